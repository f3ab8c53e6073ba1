"""Kronecker-factored representations: K-FAC and EK-FAC, for any model and without marked layers.

Martens, Grosse: Optimizing neural networks with Kronecker-factored approximate curvature, 2015, arXiv 1503.05671, for
convolutions and other shared weights in the expanded form of Grosse, Martens, 2016, arXiv 1602.01407; eigenvalues as in George,
Laurent, Bouthillier, Ballas, Vincent: Fast approximate natural gradient descent in a Kronecker-factored eigenbasis, 2018, arXiv
1806.03884.

For a layer `s = W' a`, a with a 1 for the bias, and g the gradient in s, at positions t,

    C ~ A (x) S,    A = mean_rows sum_t a_t a_t',    S = mean_rows mean_t g_t g_t',

in the eigenbasis Q_A (x) Q_S of which EK-FAC replaces the eigenvalues `e_A e_S` by the best ones for that basis,

    mean_rows (Q_A' (sum_t a_t g_t') Q_S)^2.

For dense layers, where there is one t, the square is an outer product of two squares, and no gradient of a row is ever formed.
Layers are independent of each other. Parameters that are no kernel or bias of a layer, such as those of normalisation, get the
exact block of their own if they are small, else its diagonal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import tree
from jaxunlearn.curvature.approximations import Fit, Representation
from jaxunlearn.curvature.layer_tracing import Layer, Taps, find
from jaxunlearn.curvature.logit_gradients import Kind, check_kind, draws, slopes
from jaxunlearn.curvature.matvecs import widened
from jaxunlearn.curvature.spectral import without_derivative
from jaxunlearn.evaluation import evaluate, sum_rows
from jaxunlearn.types import Model

LARGEST_BLOCK = 512  # weights of a parameter outside of layers up to which it gets its exact block
LARGEST_GROUP = 2**22  # numbers of the gradients of single rows that are in memory together


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["bases", "values", "blocks", "diagonals"],
    meta_fields=["layers", "block_leaves", "diagonal_leaves"],
)
@dataclass(frozen=True)
class Kronecker(Representation):
    """Block-diagonal over layers, each block diagonal in a Kronecker basis."""

    layers: tuple[Layer, ...]
    bases: list[tuple[Float[Array, "i i"], Float[Array, "o o"]]]  # eigenvectors, in columns
    values: list[Float[Array, "i o"]]
    block_leaves: tuple[int, ...]
    blocks: list[tuple[Float[Array, "m"], Float[Array, "m m"]]]  # eigenvalues and eigenvectors
    diagonal_leaves: tuple[int, ...]
    diagonals: list[Array]

    def apply(self, function: Callable[[jax.Array], jax.Array], v: PyTree) -> PyTree:
        """`f(C) v`."""
        leaves, form = jax.tree.flatten(widened(v))
        done: dict[int, jax.Array] = {}
        with jax.default_matmul_precision("highest"):
            for layer, (left, right), values in zip(self.layers, self.bases, self.values, strict=True):
                inside = function(values) * (left.T @ layer.matrix(leaves) @ right)
                done.update(layer.parts(left @ inside @ right.T, leaves))
            for leaf, (values, vectors) in zip(self.block_leaves, self.blocks, strict=True):
                inside = function(values) * (vectors.T @ leaves[leaf].ravel())
                done[leaf] = (vectors @ inside).reshape(leaves[leaf].shape)
        for leaf, values in zip(self.diagonal_leaves, self.diagonals, strict=True):
            done[leaf] = function(values) * leaves[leaf]
        return form.unflatten([done[leaf] for leaf in range(len(leaves))])

    def diagonal(self, like: PyTree) -> PyTree:
        """The diagonal of C."""
        leaves, form = jax.tree.flatten(like)
        done: dict[int, jax.Array] = dict(zip(self.diagonal_leaves, self.diagonals, strict=True))
        with jax.default_matmul_precision("highest"):
            for layer, (left, right), values in zip(self.layers, self.bases, self.values, strict=True):
                done.update(layer.parts(left**2 @ values @ (right**2).T, leaves))
            for leaf, (values, vectors) in zip(self.block_leaves, self.blocks, strict=True):
                done[leaf] = (vectors**2 @ values).reshape(leaves[leaf].shape)
        return form.unflatten([done[leaf] for leaf in range(len(leaves))])

    def spectrum(self) -> list[jax.Array]:
        """Eigenvalues of every block."""
        return [*self.values, *(values for values, _ in self.blocks), *self.diagonals]

    def describe(self, like: PyTree) -> dict[str, str]:
        """Which parameter got which block, by its path."""
        names = [tree.path_of(path) for path, _ in jax.tree.leaves_with_path(like)]
        kinds = {leaf: f"kronecker ({layer.name})" for layer in self.layers for leaf in (layer.kernel, layer.bias)}
        kinds |= dict.fromkeys(self.block_leaves, "exact") | dict.fromkeys(self.diagonal_leaves, "diagonal")
        return {name: kinds[leaf] for leaf, name in enumerate(names)}


def kfac(model: Model, *, kind: Kind = "sampled", chunk: int | None = None) -> Fit:
    """K-FAC, see the module.

    Args:
        model: in evaluation mode; its forward pass is read, not wrapped.
        kind: see `jaxunlearn.curvature.logit_gradients`. `sampled` takes one backward pass, `fisher` and `ggn` one per class.
        chunk: rows whose activations are in memory together; None takes all.

    Returns:
        A `Fit` that makes a `Kronecker`; its `describe` says which parameter got which block.

    Raises:
        ValueError: a kernel that is used twice, or inside a loop, by name; a kind that does not fit the targets.

    Example:
        >>> fit = jaxunlearn.curvature.kfac(model)
        >>> jax.jit(fit)(variables, data.train, data.present, key).describe(variables.params)["bias"]
        'kronecker (body)'
    """
    return partial(_fit, model, kind, chunk, False)


def ekfac(model: Model, *, kind: Kind = "sampled", chunk: int | None = None) -> Fit:
    """EK-FAC, see the module: at least as close to the matrix as K-FAC, for a second pass over the rows.

    Args:
        model, kind, chunk: as in `kfac`. Without a chunk both passes share their activations.

    Returns:
        A `Fit` that makes a `Kronecker`.

    Raises:
        ValueError: as `kfac`.

    Example:
        >>> fit = jaxunlearn.curvature.ekfac(model, kind="fisher", chunk=30)
        >>> curvature = jax.jit(fit)(variables, data.train, data.present, key)
        >>> step = curvature.solve(variables.params, damping=1e-3)
    """
    return partial(_fit, model, kind, chunk, True)


def _fit(model: Model, kind: Kind, chunk: int | None, corrected: bool, variables, examples, weights, key) -> Kronecker:
    check_kind(kind, examples, key)
    params = widened(variables.params)
    one = jax.tree.map(lambda x: x[:1], examples)

    def forward(params, row):
        return evaluate(model, variables._replace(params=params), row)[0]

    taps = find(forward, params, one)
    leaves = jax.tree.leaves(params)
    small = tuple(leaf for leaf in taps.others if leaves[leaf].size <= LARGEST_BLOCK)
    large = tuple(leaf for leaf in taps.others if leaf not in small)

    def collect(part):
        return jax.vmap(partial(_row, model, kind, taps, params))(*part)

    rows = (examples, draws(kind, key, weights.shape[0]))
    total = jnp.sum(weights)
    whole = None
    if chunk is None or chunk >= weights.shape[0]:
        with jax.default_matmul_precision("highest"):
            whole = collect((jax.tree.map(jnp.asarray, examples), rows[1]))

    def mean(function):
        if whole is not None:
            with jax.default_matmul_precision("highest"):
                sums = function(whole, weights)
        else:
            sums = sum_rows(lambda part, w: function(collect(part), w), rows, weights, chunk=chunk)
        return jax.tree.map(lambda x: x / total, sums)

    factors, blocks, diagonals = mean(partial(_first_moments, small, large))
    factors, blocks = jax.tree.map(without_derivative, (factors, blocks))
    with jax.default_matmul_precision("highest"):
        spectra = [(jnp.linalg.eigh(a), jnp.linalg.eigh(s)) for a, s in factors]
        bases = [(a.eigenvectors, s.eigenvectors) for a, s in spectra]
        if corrected:
            values = mean(partial(_second_moments, bases))
        else:
            values = [
                jnp.outer(jnp.maximum(a.eigenvalues, 0), jnp.maximum(s.eigenvalues, 0)) for a, s in spectra
            ]  # what rounding leaves below zero is zero
        exact = [jnp.linalg.eigh(block) for block in blocks]
    return Kronecker(
        taps.layers, bases, values, small,
        [(jnp.maximum(x.eigenvalues, 0), x.eigenvectors) for x in exact], large, diagonals,
    )  # fmt: skip


def _row(model: Model, kind: Kind, taps: Taps, params: PyTree, row: PyTree, seeds: jax.Array):
    """Activations [T, i] and gradients [s, T, o] of every layer, gradients [s, ...] of the other leaves, for one row."""
    one = jax.tree.map(lambda x: x[None], row)
    leaves, form = jax.tree.flatten(params)

    def run(shifts, others):
        moved = [others[taps.others.index(leaf)] if leaf in taps.others else x for leaf, x in enumerate(leaves)]
        outputs, activations = taps.run(form.unflatten(moved), one, shifts)
        return outputs.logits, (outputs, activations)

    shifts = [jnp.zeros(shape, dtype) for shape, dtype in taps.shapes]
    _, pull, (outputs, activations) = jax.vjp(run, shifts, [leaves[leaf] for leaf in taps.others], has_aux=True)
    u = slopes(kind, model, outputs, one, seeds[None])
    gradients, others = jax.vmap(pull)(u)
    gradients = [jax.vmap(partial(taps.rows, layer))(g) for layer, g in enumerate(gradients)]
    activations = [
        x if layer.bias is None else jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
        for x, layer in zip(activations, taps.layers, strict=True)
    ]
    return widened((activations, gradients, dict(zip(taps.others, others, strict=True))))


def _first_moments(small: tuple[int, ...], large: tuple[int, ...], collected, weights):
    activations, gradients, others = collected
    factors = []
    for a, g in zip(activations, gradients, strict=True):
        a, g = _counted(weights, a, g)
        w = weights.astype(a.dtype)[:, None, None]
        rows, slots = (w * a).reshape(-1, a.shape[-1]), (w[:, None] * g).reshape(-1, g.shape[-1])
        factors.append((rows.T @ a.reshape(rows.shape), slots.T @ g.reshape(slots.shape) / g.shape[2]))
    flat = {leaf: _counted(weights, x)[0] for leaf, x in others.items()}
    blocks = [jnp.einsum("b,bsd,bse->de", weights, *[flat[leaf].reshape(*flat[leaf].shape[:2], -1)] * 2) for leaf in small]
    diagonals = [jnp.einsum("b,bs...->...", weights, flat[leaf] ** 2) for leaf in large]
    return factors, blocks, diagonals


def _second_moments(bases, collected, weights):
    activations, gradients, _ = collected
    values = []
    for (left, right), a, g in zip(bases, activations, gradients, strict=True):
        a, g = _counted(weights, a, g)
        a, g, w = a @ left, g @ right, weights.astype(a.dtype)
        if a.shape[1] == 1:
            values.append(jnp.einsum("bi,bo->io", w[:, None] * a[:, 0] ** 2, jnp.sum(g[:, :, 0] ** 2, axis=1)))
            continue

        def squared(part):
            a, g, w = part
            return jnp.einsum("b,bsio->io", w, jnp.einsum("bti,bsto->bsio", a, g) ** 2)

        group = max(1, LARGEST_GROUP // (g.shape[1] * a.shape[-1] * g.shape[-1]))
        values.append(_grouped(squared, (a, g, w), group))
    return values


def _grouped(function, rows, group: int):
    """A sum over rows, so many at a time."""
    count = rows[2].shape[0]
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


def _counted(weights: Float[Array, "b"], *arrays: Array) -> list[Array]:
    """Arrays with zeros in rows of weight 0, whatever they held."""
    return [jnp.where(weights.reshape(-1, *(1,) * (x.ndim - 1)) > 0, x, 0) for x in arrays]
