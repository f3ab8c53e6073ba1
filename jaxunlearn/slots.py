"""The keys of `Data.extra`: what each holds, who makes it, and what it was made from.

What is prepared once for all requests (a curvature, importances, moments) is right for one set of weights only. A slot that is
`stamped` therefore keeps a digest of them, of a frozen base, and of `Data.present` where rows count, beside the value; whoever
reads it learns whether they are still the ones at hand and reports `Status.STALE` if not. How a value was made is static:
another layer or another kind is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, UInt32

from jaxunlearn import tree
from jaxunlearn.types import Data


@partial(jax.tree_util.register_dataclass, data_fields=["value", "weights", "base", "present"], meta_fields=["how"])
@dataclass(frozen=True)
class Made:
    """A prepared value and what it was made from."""

    value: PyTree
    weights: UInt32[Array, " 2"]  # digest of the variables
    base: UInt32[Array, " 2"]  # digest of what slot `base` holds; zeros where there is none
    present: UInt32[Array, " 2"]  # digest of `Data.present`; zeros where it does not matter
    how: str  # e.g. "features of layer 'penultimate'"


class Slot(NamedTuple):
    """One key of `Data.extra`."""

    name: str
    holds: str  # what, with its shape
    maker: str  # code that fills it
    stamped: bool = True
    of_rows: bool = True  # whether a stamped value also depends on which rows are present

    def made(self, value: PyTree, *, at: PyTree, data: Data, how: str = "") -> Made:
        """A value with its stamp, for `Result.extra` of a method that carries it on.

        Args:
            value: what the slot holds.
            at: the variables it belongs to, or the part of them that matters.
            data: of the rows it was made from, with the base that `at` belongs to, if there is one.
            how: what must agree between maker and reader, in words.
        """
        rows = _rows(data.present) if self.of_rows else jnp.zeros(2, jnp.uint32)
        return Made(value, tree.digest(at), _base(data), rows, how)

    def put(self, data: Data, value: PyTree, *, at: PyTree = None, how: str = "") -> Data:
        """Data with a value in this slot; `at` and `how` as in `made`, for stamped slots only.

        Example:
            >>> marked = jaxunlearn.slots.ATTRIBUTES.put(data, jnp.zeros((60, 2), int))
            >>> jaxunlearn.slots.ATTRIBUTES.get(marked).shape
            (60, 2)
        """
        if self.stamped:
            if at is None:
                raise ValueError(f"slot {self.name!r} is stamped: pass at=variables, the ones that the value was made from")
            value = self.made(value, at=at, data=data, how=how)
        return data._replace(extra={**data.extra, self.name: value})

    def find(self, data: Data) -> Any:
        """What the slot holds (with its stamp, if it is stamped), None if it is empty."""
        held = data.extra.get(self.name)
        if held is not None and self.stamped and not isinstance(held, Made):
            raise ValueError(
                f"data.extra[{self.name!r}] holds {type(held).__name__} without a stamp of the weights it was made at: "
                f"fill it with {self.maker}"
            )
        return held

    def get(self, data: Data) -> Any:
        """What the slot holds.

        Raises:
            ValueError: it is empty; the message says how to fill it.
        """
        held = self.find(data)
        if held is None:
            raise ValueError(f"data.extra[{self.name!r}] is missing ({self.holds}): fill it with {self.maker}")
        return held

    def read(self, data: Data, *, at: PyTree, how: str | None = None) -> tuple[Any, Bool[Array, ""]]:
        """A stamped value, and whether it is stale: made at other weights than `at`, over another base, or from other rows.

        Args:
            data: where it lies.
            at: the variables at hand, or the part of them that matters.
            how: the way the reader needs it made; None takes any.

        Raises:
            ValueError: the slot is empty, or was filled in another way.
        """
        held: Made = self.get(data)
        if how is not None and held.how != how:
            raise ValueError(
                f"data.extra[{self.name!r}] holds {held.how}, and {how} is needed: prepare it anew with {self.maker}"
            )
        stale = jnp.any(held.weights != tree.digest(at)) | jnp.any(held.base != _base(data))
        if self.of_rows:
            stale |= jnp.any(held.present != _rows(data.present))
        return held.value, stale


def _base(data: Data) -> UInt32[Array, " 2"]:
    return tree.digest(data.extra[BASE.name]) if BASE.name in data.extra else jnp.zeros(2, jnp.uint32)


def _rows(present: Float[Array, " n"]) -> UInt32[Array, " 2"]:
    return tree.digest(jnp.asarray(present) > 0)  # whatever dtype it is kept in


_PREPARE = "jaxunlearn.prepare(unlearn)(variables, data, key)"

CURVATURE = Slot("curvature", "a jaxunlearn.curvature.Representation of the mean over all present rows", _PREPARE)
FISHER_DIAGONAL = Slot("fisher_diagonal", "the diagonal of the Fisher matrix of all present rows", _PREPARE)
IMPORTANCES = Slot("importances", "importances of all present rows, a tree like params", _PREPARE)
SENSITIVITIES = Slot("sensitivities", "sensitivities of all present rows, a tree like params", _PREPARE)
FEATURES = Slot("features", "features of all rows, Float[n, D]", _PREPARE, of_rows=False)
MOMENTS = Slot("moments", "second moments of the features of all present rows, Float64[D + 1, D + 1]", _PREPARE)
FACTORISATION = Slot("factorisation", "a jaxunlearn.convex.Factorisation", _PREPARE)
UPDATES = Slot("updates", "the updates of every training step", "jaxunlearn.record(...)", of_rows=False)
RECOLLECTIONS = Slot("recollections", "vectors of all rows, their part in the training", "jaxunlearn.recollect(...)")
INITIAL_PARAMS = Slot(
    "initial_params", "the weights before training, a tree like params", "slots.INITIAL_PARAMS.put(data, params)", stamped=False
)
CHECKPOINT = Slot(
    "checkpoint",
    "params of the same descent some steps ago, a tree like params",
    "slots.CHECKPOINT.put(data, params, at=variables)",
    of_rows=False,
)
PERTURBATION = Slot(
    "perturbation", "the secret of objective perturbation, Float[d, c]", "jaxunlearn.convex.with_perturbation", stamped=False
)
ATTRIBUTES = Slot(
    "attributes",
    "attributes of all rows, Int[n, A], -1 where a value is unknown",
    "training_data(..., extra={'attributes': values})",
    stamped=False,
)
BASE = Slot("base", "the Variables that adapters or chosen leaves belong to", "slots.BASE.put(data, variables)", stamped=False)
REFUSALS = Slot(
    "refusals",
    "m answers in place of each training row, Examples of leaves [n, m, ...]",
    "slots.REFUSALS.put(data, answers)",
    stamped=False,
)
USER = Slot("user", "whatever your own methods read, any tree", "slots.USER.put(data, values)", stamped=False)

SLOTS: dict[str, Slot] = {
    slot.name: slot
    for slot in (
        *(CURVATURE, FISHER_DIAGONAL, IMPORTANCES, SENSITIVITIES, FEATURES, MOMENTS, FACTORISATION, UPDATES),
        *(RECOLLECTIONS, INITIAL_PARAMS, CHECKPOINT, PERTURBATION, ATTRIBUTES, BASE, REFUSALS, USER),
    )
}


def check_known(extra: Mapping[str, Any] | None) -> None:
    """Refuse keys that are no slot; every method does it with `Data.extra`.

    Args:
        extra: what `Data.extra` is or will be.

    Raises:
        ValueError: a key that is no slot; the message names the ones it may have been meant for.

    Example:
        >>> jaxunlearn.slots.check_known({"attributes": jnp.zeros((60, 2), int)})
    """
    for name in extra or {}:
        if name not in SLOTS:
            near = get_close_matches(str(name), SLOTS, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(SLOTS)}"
            raise ValueError(
                f"data.extra has no slot {name!r}: {hint} Your own values go into slot 'user'; rows for validation and for "
                "tests are arguments of iterate and of audit.run"
            )
