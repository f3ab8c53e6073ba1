"""Features of a model's rows, computed once for all requests, and second moments from which closed forms are made.

Methods that leave everything in front of the head as it is need features alone, `Outputs.features[layer]`, and `prepare`
computes them once. The backbone still holds what it learned: whoever reads the features in front of a map or of an edited head
finds it there. None of these methods deletes anything.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxunlearn import risk, tree
from jaxunlearn.precision import in_float64
from jaxunlearn.rows import forget_rows, map_rows, sum_rows
from jaxunlearn.types import Data, Examples, ForgetRequest, Head, Model, Outputs, Variables, Weighted

FEATURES, MOMENTS = "features", "moments"  # in Data.extra


def prepare(
    model: Model, *, layer: str = "penultimate", chunk: int | None = None
) -> Callable[[Variables, Data, PRNGKeyArray], Data]:
    """Compute what all requests share: features of all rows, and their second moments.

    Args:
        model: its `forward` returns `features[layer]`, [b, D].
        layer: what the head acts on.
        chunk: rows that go through the model together; None takes all.

    Returns:
        `(variables, data, key) -> Data` with `extra["features"]` Float[n, D] and `extra["moments"]` Float64[D + 1, D + 1], the
        sum of `h h'` over present rows, `h = (z, 1)`. Both belong to the weights in front of the head; they stay right when the
        head is edited.

    Raises:
        ValueError: the model returns no such features.

    Example:
        >>> prepared = jaxunlearn.features.prepare(headed)(headed_variables, data, key)
        >>> prepared.extra["moments"].shape
        (9, 9)
    """

    def prepared(variables: Variables, data: Data, key: PRNGKeyArray) -> Data:
        tree.check_variables(variables)
        del key
        found = map_rows(lambda part: features_at(model, variables, part.inputs, layer), data.train, chunk=chunk)
        total = in_float64(partial(sum_rows, second_moments, chunk=chunk))(found, data.present)
        return data._replace(extra={**data.extra, FEATURES: found, MOMENTS: total})

    return prepared


def features_at(model: Model, variables: Variables, inputs: PyTree, layer: str) -> Float[Array, "b D"]:
    """Features in evaluation mode; ValueError with the layers there are."""
    return layer_of(model.forward(variables, inputs, train=False), layer)


def layer_of(outputs: Outputs, layer: str) -> Float[Array, "b D"]:
    """Features of a layer, at least in float32; ValueError unless they are one vector a row."""
    if layer not in outputs.features:
        there = ", ".join(outputs.features) or "none"
        raise ValueError(f"forward returns no features {layer!r} (it has: {there}); return them in Outputs.features")
    found = outputs.features[layer]
    if found.ndim != 2:
        raise ValueError(f"features {layer!r} must be one vector a row, got shape {found.shape}")
    return found.astype(jnp.promote_types(found.dtype, jnp.float32))


def features_of_rows(model: Model, variables: Variables, data: Data, layer: str) -> Float[Array, "n D"]:
    """Those that were prepared, else of all rows, which requests of one `vmap` share."""
    prepared = data.extra.get(FEATURES)
    if prepared is None:
        return map_rows(lambda part: features_at(model, variables, part.inputs, layer), data.train)
    if jnp.ndim(prepared) != 2 or prepared.shape[0] != data.present.shape[0]:
        raise ValueError(f"data.extra['features'] has shape {jnp.shape(prepared)}, expected [{data.present.shape[0]}, D]")
    return prepared


def features_of_request(model: Model, variables: Variables, data: Data, request: ForgetRequest, layer: str) -> Weighted:
    """The usable rows of a request, features in place of inputs; all other slots hold zeros, weight 0."""
    part = forget_rows(data, request)
    prepared = data.extra.get(FEATURES)
    if prepared is None:
        found = map_rows(lambda rows: features_at(model, variables, rows.inputs, layer), part.examples)
    else:
        found = prepared[jnp.where(part.weights > 0, risk.row_numbers(request), 0)]
    return part._replace(examples=risk.blank(Examples(found, part.examples.targets), part.weights))


def moments_of(data: Data) -> Float[Array, "h h"]:
    """What `prepare` found; ValueError without it."""
    if MOMENTS not in data.extra:
        raise ValueError(
            "data.extra['moments'] is missing: make it once with jaxunlearn.features.prepare(model)(variables, data, key)"
        )
    return data.extra[MOMENTS]


def second_moments(features: Float[Array, "n D"], weights: Float[Array, "n"]) -> Float[Array, "h h"]:
    """Sum of `h h'` over rows with weights, `h = (z, 1)`; in float64 where that is on."""
    dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
    ones = jnp.ones((features.shape[0], 1), dtype)
    rows = jnp.where(weights[:, None] > 0, jnp.concatenate([features.astype(dtype), ones], axis=1), 0)
    return jnp.dot((weights[:, None].astype(dtype) * rows).T, rows, precision="highest")


def require_head(model: Model, reason: str) -> Head:
    """`model.head`; ValueError if there is none."""
    if model.head is None:
        raise ValueError(f"{reason}: give the model its last layer, Model(..., head=jaxunlearn.Head(apply, get, set))")
    return model.head


def checked_kernel(head: Head, variables: Variables, width: int) -> tuple[Float[Array, "D c"], Float[Array, "c"]]:
    """Kernel and bias of the head, at least in float32; ValueError if it does not act on features of this width."""
    kernel, bias = head.get(variables)
    if kernel.shape[0] != width:
        raise ValueError(
            f"the head takes {kernel.shape[0]} features, the layer has {width}: name the layer in front of the head"
        )
    return tuple(x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (kernel, bias))  # type: ignore[return-value]
