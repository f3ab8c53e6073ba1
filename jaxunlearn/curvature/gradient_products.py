"""How far the loss of every row moves along directions: influence scores, without a gradient of any row in memory for long.

The gradient of a row in a layer's kernel is `sum_t a_t g_t'`, with activations a and output gradients g at its positions t.
So its product with a direction D is

- `a' D g` where there is one position, which takes the products of a forward pass;
- `<sum_t a_t g_t', D>` where there are several: small products of patches and gradients, in place of the backward pass of a
  convolution for every row by itself;
- `sum_t D[a_t] . g_t` for a table of which rows a_t are looked up, of which no gradient is ever formed.

Layers are found in the model's own program, see `jaxunlearn.curvature.layer_tracing`; of parameters that belong to none, the
gradients of a chunk of rows are held.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn.curvature.layer_moments import of_layers
from jaxunlearn.curvature.layer_tracing import Activations, Layer, Taps, Use, find
from jaxunlearn.curvature.matvecs import widened
from jaxunlearn.evaluation import evaluate, map_rows
from jaxunlearn.types import Examples, Model, Variables


def gradient_products(
    model: Model, variables: Variables, examples: Examples, directions: PyTree, *, chunk: int | None = None
) -> Float[Array, "n q"]:
    """Products of the loss's gradient of every row with directions, see the module.

    With `C^-1` times the gradients of queries as directions, these are influence functions (Koh, Liang: Understanding black-box
    predictions via influence functions, 2017, arXiv 1703.04730), up to their sign.

    Args:
        model: in evaluation mode; it must treat every row by itself.
        variables: where.
        examples: rows, leading axis n.
        directions: a tree like the params, leading axis q.
        chunk: rows whose activations are in memory together; None takes all.

    Returns:
        One product for every row and direction, the same as those of `per_example_gradients`, up to rounding.

    Raises:
        ValueError: directions that are not like the params, with one leading axis more.

    Example:
        >>> made = jax.jit(jaxunlearn.curvature.ekfac(model))(variables, data.train, data.present, key)
        >>> queries = jax.tree.map(lambda x: x[:4], data.train)
        >>> gradients = jaxunlearn.curvature.per_example_gradients(model, variables, queries)
        >>> directions = jax.vmap(lambda g: made.solve(g, damping=1e-3))(gradients)
        >>> scores = jaxunlearn.curvature.gradient_products(model, variables, data.train, directions, chunk=30)
        >>> scores.shape
        (60, 4)
    """
    params = widened(variables.params)
    _check(params, directions)

    def loss(params: PyTree, row: Examples) -> jax.Array:
        return jnp.sum(evaluate(model, variables._replace(params=params), row)[1])

    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), examples)
    taps = find(loss, params, one, tables=0)
    flat = widened(jax.tree.leaves(directions))
    matrices = [jax.vmap(layer.matrix, out_axes=2)(flat) for layer in taps.layers]  # products contract what comes first

    def products(part: Examples) -> Float[Array, "b q"]:
        activations, gradients, others = jax.vmap(partial(_row, taps, params))(part)
        of_uses = zip(
            taps.layers, matrices, of_layers(taps.layers, activations), of_layers(taps.layers, gradients), strict=True
        )
        parts = [
            _of_use(layer, use, matrix, a, g)
            for layer, matrix, *rows in of_uses
            for use, a, g in zip(layer.uses, *rows, strict=True)
        ]
        parts += [
            x.reshape(len(x), -1) @ flat[leaf].reshape(len(flat[leaf]), -1).T
            for leaf, x in zip(taps.others, others, strict=True)
        ]
        return jnp.sum(jnp.stack(parts), axis=0)

    return map_rows(products, examples, chunk=chunk)


def _check(params: PyTree, directions: PyTree) -> None:
    expected, found = jax.tree.structure(params), jax.tree.structure(directions)
    if found != expected:
        raise ValueError(f"directions must be a tree like the params, {expected}, got {found}")
    shapes = [jnp.shape(x) for x in jax.tree.leaves(directions)]
    leading = {shape[:1] for shape in shapes}
    if len(leading) > 1 or [shape[1:] for shape in shapes] != [x.shape for x in jax.tree.leaves(params)]:
        raise ValueError(f"directions must have one leading axis, the same for all, in front of the params' axes, got {shapes}")


def _row(taps: Taps, params: PyTree, row: Examples) -> tuple[list[Activations], list[jax.Array], list[jax.Array]]:
    """For one row: activations [g, T, i] and gradients [g, T, o] of every use of a layer, and gradients of the other leaves."""
    one = jax.tree.map(lambda x: x[None], row)
    leaves, form = jax.tree.flatten(params)

    def run(shifts: list, others: list) -> tuple[jax.Array, list[Activations]]:
        moved = [others[taps.others.index(leaf)] if leaf in taps.others else x for leaf, x in enumerate(leaves)]
        return taps.run(form.unflatten(moved), one, shifts)

    gradients, activations = jax.grad(run, argnums=(0, 1), has_aux=True)(taps.zeros(), [leaves[leaf] for leaf in taps.others])
    return activations, *widened((taps.rows(gradients[0]), gradients[1]))


def _of_use(
    layer: Layer, use: Use, directions: Float[Array, "g i q o"], a: Array, g: Float[Array, "b g T o"]
) -> Float[Array, "b q"]:
    """Products of the rows' gradients in one use of a layer."""
    if use == "lookup":
        groups = jnp.arange(len(directions))[:, None]
        tables = jnp.moveaxis(directions, 2, 0)
        read = lambda table: table.at[groups, a].get(mode="fill", fill_value=0)  # noqa: E731
        return jax.lax.map(lambda table: jnp.einsum("bgto,bgto->b", read(table), g), tables).T
    a = widened(a)
    if layer.bias is not None:
        a = jnp.concatenate([a, jnp.ones_like(a[..., :1])], axis=-1)
    left, right = (g, a) if use == "transpose" else (a, g)
    if left.shape[2] == 1:
        return jnp.einsum("bgqo,bgo->bq", jnp.einsum("bgi,giqo->bgqo", left[:, :, 0], directions), right[:, :, 0])
    return jnp.einsum("bgio,giqo->bq", jnp.einsum("bgti,bgto->bgio", left, right), directions)
