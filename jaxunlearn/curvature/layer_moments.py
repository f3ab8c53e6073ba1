"""Second moments of activations and gradients, summed over rows: what Kronecker factors are made of.

Of every use of a layer there are activations, [b, g, T, i], or for a lookup numbers of rows, [b, g, T], and gradients,
[b, s, g, T, o], see `jaxunlearn.curvature.logit_gradients` for s. Where the gradients of several uses add up to that of one
parameter, both factors are those of the sum, by their traces:

    sum_u A_u (x) S_u ~ L (x) R / t,    L = sum_u A_u tr S_u,    R = sum_u tr A_u S_u,    t = sum_u tr A_u tr S_u.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn.curvature.layer_tracing import Layer

LARGEST_GROUP = 2**22  # numbers of the gradients of single rows that are in memory together

Moments = tuple[Float[Array, "g i ..."], Float[Array, "g o o"], Float[Array, " g"]]  # sums of a a' and g g', and a count
Bases = tuple[Float[Array, "g i i"] | None, Float[Array, "g o o"]]  # eigenvectors; None for unit vectors


def of_layers(layers: Sequence[Layer], values: Sequence[Any]) -> list[list[Any]]:
    """What stands there for every use, by layers."""
    rest: Iterator[Any] = iter(values)
    return [[next(rest) for _ in layer.uses] for layer in layers]


def first_moments(
    layers: Sequence[Layer], sharing: Sequence[str], activations: list, gradients: list, counts: list, weights: Array
) -> list[list[Moments]]:
    """Sums of outer products of every use; for a lookup those of activations are a diagonal, [g, i]."""
    found = []
    parts = zip(layers, sharing, *(of_layers(layers, x) for x in (activations, gradients, counts)), strict=True)
    for layer, shared, *of_uses in parts:
        found.append([
            _looked_up(layer.form.inputs, a, g, n, weights) if use == "lookup" else _multiplied(shared, a, g, n, weights)
            for use, a, g, n in zip(layer.uses, *of_uses, strict=True)
        ])  # fmt: skip
    return found


def _multiplied(shared: str, a: Array, g: Array, count: Array, weights: Array) -> Moments:
    a, g = counted(weights, a, g)
    if shared == "reduce":
        number = jnp.maximum(count, 1)[:, :, None, None]
        a, g = jnp.sum(a, axis=2, keepdims=True) / number, jnp.sum(g, axis=3, keepdims=True)
        count = jnp.minimum(count, 1)
    w = weights.astype(a.dtype)
    each = w[:, None, None, None]
    return _squares(a, each * a), _squares(g, each[:, None] * g), w @ count


def _looked_up(size: int, places: Int[Array, "b g T"], g: Array, count: Array, weights: Array) -> Moments:
    places, g = counted(weights, places, g)
    w = weights.astype(g.dtype)
    each = jnp.broadcast_to(w[:, None, None], places.shape)
    return _scattered(size, places, each), _squares(g, w[:, None, None, None, None] * g), w @ count


def _scattered(size: int, places: Int[Array, "b g T"], values: Float[Array, "b g T ..."]) -> Float[Array, "g i ..."]:
    """Sums by the rows that were looked up; numbers out of range are left out."""
    groups = jnp.arange(places.shape[1])[:, None]
    zeros = jnp.zeros((places.shape[1], size, *values.shape[3:]), values.dtype)
    return zeros.at[groups, places].add(values, mode="drop")


def _squares(x: Float[Array, "... g T d"], weighted: Float[Array, "... g T d"]) -> Float[Array, "g d d"]:
    """Sums of outer products, for every group."""
    x, weighted = (jnp.moveaxis(y, -3, 0).reshape(y.shape[-3], -1, y.shape[-1]) for y in (x, weighted))
    return jnp.einsum("gri,grj->gij", weighted, x)


def factors(layer: Layer, moments: list[Moments]) -> tuple[Array, Float[Array, "g o o"]]:
    """Both factors of a layer, see the module; that of the inputs is a diagonal [g, i] where there are lookups alone.

    Args:
        layer: whose they are.
        moments: of its uses, as means over rows.
    """
    whole = [(a, s / jnp.where(n > 0, n, 1)[:, None, None]) for a, s, n in moments]
    if len(whole) == 1:
        return whole[0]
    left, right, total = 0.0, 0.0, 0.0
    for use, (a, s) in zip(layer.uses, whole, strict=True):
        first, second = (s, a) if use == "transpose" else (jax.vmap(jnp.diag)(a) if use == "lookup" else a, s)
        traces = [jnp.trace(x, axis1=1, axis2=2)[:, None, None] for x in (first, second)]
        left, right, total = left + first * traces[1], right + second * traces[0], total + traces[0] * traces[1]
    return left / jnp.where(total > 0, total, 1), jnp.asarray(right)


def second_moments(
    layers: Sequence[Layer], bases: Sequence[Bases], activations: list, gradients: list, weights: Array
) -> list[Float[Array, "g i o"]]:
    """Sums of the squared gradients of rows in these bases, one matrix for every layer."""
    found = []
    for layer, basis, *of_uses in zip(layers, bases, of_layers(layers, activations), of_layers(layers, gradients), strict=True):
        rows = [counted(weights, a, g) for a, g in zip(*of_uses, strict=True)]
        w = weights.astype(rows[0][1].dtype)
        if layer.uses == ("lookup",):
            ((places, g),) = rows
            found.append(_squares_of_rows(layer.form.inputs, basis[1], places, g, w))
        else:
            turned = [_turned(basis, use, a, g) for use, (a, g) in zip(layer.uses, rows, strict=True)]
            found.append(_squares_of_products(turned, w))
    return found


def _turned(bases: Bases, use: str, a: Array, g: Array) -> tuple[Array, Array]:
    """Both sides of a use's gradient in the bases: [b, g, T, i] and [b, s, g, T, o], or the s on the other side."""
    left, right = bases
    assert left is not None
    if use == "transpose":
        return jnp.einsum("bsgti,gij->bsgtj", g, left), jnp.einsum("bgto,gop->bgtp", a, right)
    if use == "product":
        inputs = jnp.einsum("bgti,gij->bgtj", a, left)
    else:
        inputs = left.at[jnp.arange(a.shape[1])[:, None], a].get(mode="fill", fill_value=0)
    return inputs, jnp.einsum("bsgto,gop->bsgtp", g, right)


def _squares_of_products(uses: list[tuple[Array, Array]], w: Float[Array, " b"]) -> Float[Array, "g i o"]:
    a, g = uses[0]
    if len(uses) == 1 and a.shape[2] == 1:
        squares = jnp.sum(g[:, :, :, 0] ** 2, axis=1)
        return jnp.einsum("bgi,bgo->gio", w[:, None, None] * a[:, :, 0] ** 2, squares)

    def squared(part: tuple) -> Array:
        uses, w = part
        names = (("bgti", "bsgto") if a.ndim == 4 else ("bsgti", "bgto") for a, _ in uses)
        whole = sum(jnp.einsum(f"{x},{y}->bsgio", a, g) for (x, y), (a, g) in zip(names, uses, strict=True))
        return jnp.einsum("b,bsgio->gio", w, jnp.asarray(whole) ** 2)

    numbers = (a if a.ndim == 5 else g).shape[1]  # of gradients for every row
    together = max(1, LARGEST_GROUP // (numbers * a.shape[-3] * a.shape[-1] * g.shape[-1]))
    return _grouped(squared, (uses, w), together)


def _squares_of_rows(
    size: int, right: Float[Array, "g o o"], places: Int[Array, "b g T"], g: Float[Array, "b s g T o"], w: Float[Array, " b"]
) -> Float[Array, "g i o"]:
    """Those of a table: of positions that look up the same row, products of all pairs, and never a table for every row."""
    g = jnp.einsum("bsgto,gop->bsgtp", g, right)
    same = (places[..., :, None] == places[..., None, :]).astype(g.dtype)
    pairs = jnp.sum(g * jnp.einsum("bgtu,bsguo->bsgto", same, g), axis=1)
    return _scattered(size, places, w[:, None, None, None] * pairs)


def _grouped(function: Any, rows: tuple, group: int) -> Array:
    """A sum over rows, so many at a time."""
    count = rows[-1].shape[0]
    whole = count // group * group
    parts = []
    if whole:
        blocks = jax.tree.map(lambda x: x[:whole].reshape(-1, group, *x.shape[1:]), rows)
        first = jax.tree.map(lambda x: x[0], blocks)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first))
        parts.append(jax.lax.scan(lambda total, part: (total + function(part), None), zeros, blocks)[0])
    if whole < count:
        parts.append(function(jax.tree.map(lambda x: x[whole:], rows)))
    return sum(parts[1:], parts[0])


def counted(weights: Float[Array, " b"], *arrays: Array) -> list[Array]:
    """Arrays with zeros in rows of weight 0, whatever they held."""
    return [jnp.where(weights.reshape(-1, *(1,) * (x.ndim - 1)) > 0, x, 0) for x in arrays]
