"""What a model shall answer in place of a row: refusals of language models, other labels of classifiers.

Methods that teach a refusal take `refusals`, one of

- a function `(rows, key) -> rows` of a batch of the forget set, e.g. `after_prompt`, so that nothing of the size of the data is
  kept;
- `jaxunlearn.slots.REFUSALS`: answers of each row lie in that slot of `Data.extra`, `Examples` of leaves [n, m, ...] for n
  training rows and m answers. A row gets one of its own at random in every step. A run keeps those of its request only.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from jaxunlearn import checks, sampling, tree
from jaxunlearn.slots import Slot
from jaxunlearn.types import Data, Examples, ForgetRequest, Weighted

Refusals: TypeAlias = Callable[[Examples, PRNGKeyArray], Examples] | Slot


def after_prompt(answers: Int[Any, "m r"], *, padding: int = 0) -> Callable[[Examples, PRNGKeyArray], Examples]:
    """Token rows whose answer is replaced by one of these at random; prompts stay.

    The answer of a row begins behind the first position whose label counts. What does not fit into the row is cut off.

    Args:
        answers: tokens, with those that end an answer, and -1 behind them.
        padding: token that stands behind an answer; its label is -1.

    Returns:
        `(rows, key) -> rows`, for inputs and targets Int[b, t] as of `jaxunlearn.losses.sequence_cross_entropy`. A row of which
        nothing counts stays as it is.

    Raises:
        ValueError: no answer, or an empty one; when it is called, rows of another form.

    Example:
        >>> refuse = jaxunlearn.refusals.after_prompt([[8, 9]])
        >>> rows = jaxunlearn.Examples(jnp.array([[1, 2, 5, 6, 7]]), jnp.array([[-1, 5, 6, 7, -1]]))
        >>> new = refuse(rows, key)
        >>> new.inputs.tolist(), new.targets.tolist()
        ([[1, 2, 8, 9, 0]], [[-1, 8, 9, -1, -1]])
    """
    held = np.asarray(answers)
    if held.ndim != 2 or not held.size or not np.issubdtype(held.dtype, np.integer) or np.any(held[:, 0] < 0):
        raise ValueError(f"after_prompt takes answers Int[m, r] of at least one token each, got shape {held.shape}")

    def refuse(rows: Examples, key: PRNGKeyArray) -> Examples:
        tokens, labels = rows
        if not all(hasattr(x, "dtype") and jnp.ndim(x) == 2 and jnp.issubdtype(x.dtype, jnp.integer) for x in rows):
            raise ValueError("after_prompt replaces tokens: inputs and targets must be arrays of integers [b, t]")
        count, length = labels.shape
        drawn = jnp.asarray(held)[_draw(key, count, held.shape[0])]
        first = jnp.argmax(labels >= 0, axis=1)
        place = jnp.arange(length) - first[:, None]  # of the label that predicts token `place` of the answer

        def at(place: Int[jax.Array, "b t"]) -> Int[jax.Array, "b t"]:
            found = jnp.take_along_axis(drawn, jnp.clip(place, 0, held.shape[1] - 1), axis=1)
            return jnp.where((place >= 0) & (place < held.shape[1]), found, -1)

        answer = at(place - 1)
        replaced = jnp.where(place <= 0, tokens, jnp.where(answer >= 0, answer, padding)).astype(tokens.dtype)
        some = jnp.any(labels >= 0, axis=1, keepdims=True)
        return Examples(jnp.where(some, replaced, tokens), jnp.where(some, at(place), labels).astype(labels.dtype))

    return refuse


def require(refusals: Any, method: str) -> None:
    """Refuse what is neither a function nor a slot; the methods that take `refusals` do it.

    Args:
        refusals: see the module.
        method: whose argument it is.

    Returns:
        None.

    Raises:
        TypeError: it is neither.

    Example:
        >>> jaxunlearn.refusals.require(jaxunlearn.slots.REFUSALS, "idk")
    """
    if not (callable(refusals) or isinstance(refusals, Slot)):
        raise TypeError(
            f"{method}: refusals must be a function (rows, key) -> rows, such as jaxunlearn.refusals.after_prompt(...), or "
            f"jaxunlearn.slots.REFUSALS, got {type(refusals).__name__}"
        )


def of_request(refusals: Refusals, data: Data, request: ForgetRequest) -> Any:
    """What a run keeps of the answers.

    Args:
        refusals: see the module.
        data: the rows, with the slot.
        request: one request.

    Returns:
        `Examples` of the answers of its rows, leaves [k, m, ...], where they lie in a slot; else nothing.

    Raises:
        ValueError: the slot is empty, or holds something else than answers of every training row.

    Example:
        >>> slot, answers = jaxunlearn.slots.REFUSALS, jax.tree.map(lambda x: x[:, None], data.train)
        >>> found = jaxunlearn.refusals.of_request(slot, slot.put(data, answers), request)
        >>> found.targets.shape == (*request.indices.shape, 1)
        True
    """
    if not isinstance(refusals, Slot):
        return ()
    held = jax.tree.map(jnp.asarray, refusals.get(data))
    if not isinstance(held, Examples) or min((x.ndim for x in jax.tree.leaves(held)), default=0) < 2:
        raise ValueError(f"data.extra[{refusals.name!r}] must hold {refusals.holds}")
    count, rows = tree.leading_axis(held, "refusals"), tree.leading_axis(data.train, "data.train")
    if count != rows:
        raise ValueError(f"data.extra[{refusals.name!r}] has answers of {count} rows, and there are {rows} training rows")
    return sampling.forget_rows(data._replace(train=held), request).examples


def refused(refusals: Refusals, kept: Any, part: Weighted, key: PRNGKeyArray) -> Weighted:
    """A batch of the forget set with a refusal in place of each row.

    Args:
        refusals: see the module.
        kept: of `of_request`.
        part: the batch.
        key: of what is drawn.

    Returns:
        The batch with other examples, of the same form.

    Raises:
        ValueError, TypeError: refusals of another form than the rows.

    Example:
        >>> part = jaxunlearn.forget_rows(data, request)
        >>> next_class = lambda rows, key: rows._replace(targets=(rows.targets + 1) % 3)
        >>> new = jaxunlearn.refusals.refused(next_class, (), part, key)
        >>> bool((new.examples.targets == (part.examples.targets + 1) % 3).all())
        True
    """
    if isinstance(refusals, Slot):
        own = jax.tree.map(lambda x: x[part.slots], kept)
        which = _draw(key, part.slots.shape[0], jax.tree.leaves(kept)[0].shape[1])
        rows = jax.tree.map(lambda x: x[jnp.arange(x.shape[0]), which], own)
    else:
        rows = refusals(part.examples, key)
    checks.require_rows_like("refusals", rows, part.examples)
    if tree.leading_axis(rows, "refusals") != part.weights.shape[0]:
        raise ValueError("refusals must return one row for each row that it is given")
    return part._replace(examples=rows)


def _draw(key: PRNGKeyArray, rows: int, count: int) -> Int[jax.Array, " b"]:
    return jnp.minimum((jax.random.uniform(key, (rows,), jnp.float32) * count).astype(jnp.int32), count - 1)
