"""Features of a model's rows, computed once for all requests, and second moments from which closed forms are made.

Methods that leave everything in front of the head as it is need features alone, `Outputs.features[layer]`, and `prepare`
computes them once. The backbone still holds what it learned: whoever reads the features in front of a map or of an edited head
finds it there. None of these methods deletes anything.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from jaxunlearn import checks, sampling
from jaxunlearn.evaluation import map_rows, sum_rows
from jaxunlearn.heads.maps import MAPPED, layer_of, without_map
from jaxunlearn.precision import in_float64
from jaxunlearn.sampling import forget_rows
from jaxunlearn.slots import FEATURES, MOMENTS
from jaxunlearn.types import Data, Examples, ForgetRequest, Head, Model, Prepare, Variables, Weighted


def body(model: Model, variables: Variables, layer: str) -> Variables:
    """What features of a layer depend on: the variables, less the head, and less an inserted map where the layer is in front.

    Edits of the head, and of the map, leave such features as they are, and so does inserting one.
    """
    if model.head is not None:
        kernel, bias = model.head.get(variables)
        variables = model.head.set(variables, jnp.zeros_like(kernel), jnp.zeros_like(bias))
    return variables if layer == MAPPED else without_map(variables)


def prepare(model: Model, *, layer: str = "penultimate", chunk: int | None = None) -> Prepare:
    """Compute what all requests share: features of all rows, and their second moments.

    Args:
        model: its `forward` returns `features[layer]`, [b, D].
        layer: what the head acts on.
        chunk: rows that go through the model together; None takes all.

    Returns:
        `(variables, data, key) -> Data` with Float[n, D] in slot `features` and Float64[D + 1, D + 1] in slot `moments`, the
        sum of `h h'` over present rows, `h = (z, 1)`. Both belong to the weights in front of the head; they stay right when the
        head is edited.

    Raises:
        ValueError: the model returns no such features.

    Example:
        >>> prepared = jax.jit(jaxunlearn.heads.prepare(headed))(headed_variables, data, key)
        >>> jaxunlearn.slots.MOMENTS.get(prepared).value.shape
        (9, 9)
    """

    def prepared(variables: Variables, data: Data, key: PRNGKeyArray) -> Data:
        checks.check_variables(variables)
        del key
        found = map_rows(lambda part: features_at(model, variables, part.inputs, layer), data.train, chunk=chunk)
        total = in_float64(partial(sum_rows, second_moments, chunk=chunk))(found, data.present)
        place = {"at": body(model, variables, layer), "how": f"layer {layer!r}"}
        return MOMENTS.put(FEATURES.put(data, found, **place), total, **place)

    return prepared


def features_at(model: Model, variables: Variables, inputs: PyTree, layer: str) -> Float[Array, "b D"]:
    """Features in evaluation mode.

    Args:
        model, variables: its `forward` is run.
        inputs: of b rows.
        layer: a key of `Outputs.features`.

    Returns:
        Float[b, D], at least in float32.

    Raises:
        ValueError: no such layer, with the ones there are; features that are not one vector per row.

    Example:
        >>> jaxunlearn.heads.features_at(headed, headed_variables, x, "penultimate").shape
        (60, 8)
    """
    return layer_of(model.forward(variables, inputs, train=False), layer)


def features_of_rows(
    model: Model, variables: Variables, data: Data, layer: str, *, chunk: int | None = None
) -> tuple[Float[Array, "n D"], Bool[Array, ""]]:
    """Those that were prepared, else of all rows, which requests of one `vmap` share; and whether they are stale."""
    if FEATURES.find(data) is None:
        found = map_rows(lambda part: features_at(model, variables, part.inputs, layer), data.train, chunk=chunk)
        return found, jnp.array(False)
    prepared, stale = FEATURES.read(data, at=body(model, variables, layer), how=f"layer {layer!r}")
    if jnp.ndim(prepared) != 2 or prepared.shape[0] != data.present.shape[0]:
        raise ValueError(f"data.extra['features'] has shape {jnp.shape(prepared)}, expected [{data.present.shape[0]}, D]")
    return prepared, stale


def features_of_request(
    model: Model, variables: Variables, data: Data, request: ForgetRequest, layer: str
) -> tuple[Weighted, Bool[Array, ""]]:
    """The usable rows of a request, features in place of inputs, and whether they are stale; other slots have weight 0."""
    part = forget_rows(data, request)
    if FEATURES.find(data) is None:
        found = map_rows(lambda rows: features_at(model, variables, rows.inputs, layer), part.examples)
        stale = jnp.array(False)
    else:
        prepared, stale = features_of_rows(model, variables, data, layer)
        found = prepared[jnp.where(part.weights > 0, sampling.row_numbers(request), 0)]
    return part._replace(examples=sampling.fill(Examples(found, part.examples.targets), part.weights)), stale


def moments_of(model: Model, variables: Variables, data: Data, layer: str) -> tuple[Float[Array, "h h"], Bool[Array, ""]]:
    """Second moments that `prepare` found, and whether they are stale; ValueError without them."""
    return MOMENTS.read(data, at=body(model, variables, layer), how=f"layer {layer!r}")


def second_moments(features: Float[Array, "n D"], weights: Float[Array, " n"]) -> Float[Array, "h h"]:
    """Sum of `h h'` over rows with weights, `h = (z, 1)`; in float64 where that is on."""
    dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
    ones = jnp.ones((features.shape[0], 1), dtype)
    rows = jnp.where(weights[:, None] > 0, jnp.concatenate([features.astype(dtype), ones], axis=1), 0)
    return jnp.dot((weights[:, None].astype(dtype) * rows).T, rows, precision="highest")


def checked_kernel(head: Head, variables: Variables, width: int) -> tuple[Float[Array, "D c"], Float[Array, " c"]]:
    """Kernel and bias of the head, at least in float32; ValueError if it does not act on features of this width."""
    kernel, bias = head.get(variables)
    if kernel.shape[0] != width:
        raise ValueError(
            f"the head takes {kernel.shape[0]} features, the layer has {width}: name the layer in front of the head"
        )
    return tuple(x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (kernel, bias))  # type: ignore[return-value]
