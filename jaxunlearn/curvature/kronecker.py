"""Kronecker-factored representations: K-FAC and EK-FAC, for any model and without marked layers.

Martens, Grosse: Optimizing neural networks with Kronecker-factored approximate curvature, 2015, arXiv 1503.05671, for
convolutions and other shared weights in the expanded form of Grosse, Martens, 2016, arXiv 1602.01407; eigenvalues as in George,
Laurent, Bouthillier, Ballas, Vincent: Fast approximate natural gradient descent in a Kronecker-factored eigenbasis, 2018, arXiv
1806.03884.

For a layer `s = W' a`, a with a 1 for the bias, and g the gradient in s, at positions t,

    C ~ A (x) S,    A = mean_rows sum_t a_t a_t',    S = mean_t g_t g_t' over the positions of all rows,

in the eigenbasis Q_A (x) Q_S of which EK-FAC replaces the eigenvalues `e_A e_S` by the best ones for that basis,

    mean_rows (Q_A' (sum_t a_t g_t') Q_S)^2.

That is sharing by expansion: every position counts as an example of its own, which is right where every one has a loss of its
own, such as the tokens of a language model. Where the model averages over positions in front
of its loss, as an image classifier with pooling does, the trace comes out too small by up to their number, and sharing by
reduction is right (Eschenhagen, Immer, Turner, Schneider, Hennig: Kronecker-factored approximate curvature for modern neural
network architectures, 2023, arXiv 2311.00636):

    A = mean_rows a a' with a = mean_t a_t,    S = mean_rows g g' with g = sum_t g_t.

Positions count for a layer where a gradient reaches its output, so that padding does not thin out the factors: neither
activations nor number of a position whose g is 0 for every s, up to rounding beside those of its row, are in A, S or the mean
of a. That is decided layer by layer, not by labels: a prompt without labels counts where later positions read it (its keys and
values), and not in the head. Nor do a token that an expert does not get, or a query that sees nothing but itself. Convolutions
count all their positions, as published. kronfluence takes one mask from its user for all layers; curvlinops has none.

EK-FAC has the exact trace in both. For dense layers, where there is one t, they are the same, the square is an outer product of
two squares, and no gradient of a row is ever formed.

Layers are independent of each other, and so are the groups of a convolution, heads, experts and the layers of a scan, each with
a block of its own. A kernel that several products multiply in the same form is one layer with the positions of all of them.

A table that is looked up is multiplied with a 1 at one row, so that its A is a diagonal, how often each row is looked up, and
no matrix of its rows exists; it is shared by expansion always. A table that is the head too, transposed, and a matrix that is
multiplied as it is and transposed, have one block for the sum of their uses u, by the traces of `sum_u A_u (x) S_u`: exact
where that is a Kronecker product, both factors in the order of the table. EK-FAC corrects all its eigenvalues, with what the
uses have in common, and is exact wherever the uses share their eigenvectors. The side of the vocabulary is as large as that of
any head.

Parameters that are no kernel or bias of a layer, such as those of normalisation, get the exact block of their own if they are
small, else its diagonal; a warning names those that one would expect to have a layer.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxunlearn import tree
from jaxunlearn.blocks import Rows
from jaxunlearn.curvature import layer_moments
from jaxunlearn.curvature.approximations import Fit, Representation, RowFit
from jaxunlearn.curvature.layer_moments import Bases, counted
from jaxunlearn.curvature.layer_tracing import Activations, Layer, Taps, Use, find
from jaxunlearn.curvature.logit_gradients import Kind, check_kind, draws, slopes
from jaxunlearn.curvature.matvecs import widened
from jaxunlearn.curvature.spectral import without_derivative
from jaxunlearn.evaluation import evaluate
from jaxunlearn.types import Model

Sharing: TypeAlias = Literal["expand", "reduce"]

LARGEST_BLOCK = 512  # weights of a parameter outside of layers up to which it gets its exact block


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["bases", "values", "blocks", "diagonals"],
    meta_fields=["layers", "sharing", "block_leaves", "diagonal_leaves"],
)
@dataclass(frozen=True)
class Kronecker(Representation):
    """Block-diagonal over layers, each block diagonal in a Kronecker basis."""

    layers: tuple[Layer, ...]
    sharing: tuple[Sharing, ...]  # of every layer
    bases: list[Bases]  # eigenvectors, in columns, for every group of a layer; None for the rows of a table
    values: list[Float[Array, "g i o"]]
    block_leaves: tuple[int, ...]
    blocks: list[tuple[Float[Array, " m"], Float[Array, "m m"]]]  # eigenvalues and eigenvectors
    diagonal_leaves: tuple[int, ...]
    diagonals: list[Array]

    def apply(self, function: Callable[[jax.Array], jax.Array], v: PyTree) -> PyTree:
        """`f(C) v`."""
        leaves, form = jax.tree.flatten(widened(v))
        done: dict[int, jax.Array] = {}
        with jax.default_matmul_precision("highest"):
            for layer, (left, right), values in zip(self.layers, self.bases, self.values, strict=True):
                matrix = layer.matrix(leaves) @ right
                inside = function(values) * (matrix if left is None else left.mT @ matrix)
                done.update(layer.parts((inside if left is None else left @ inside) @ right.mT, leaves))
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
                inputs = values if left is None else left**2 @ values
                done.update(layer.parts(inputs @ (right**2).mT, leaves))
            for leaf, (values, vectors) in zip(self.block_leaves, self.blocks, strict=True):
                done[leaf] = (vectors**2 @ values).reshape(leaves[leaf].shape)
        return form.unflatten([done[leaf] for leaf in range(len(leaves))])

    def spectrum(self) -> list[jax.Array]:
        """Eigenvalues of every block."""
        return [*self.values, *(values for values, _ in self.blocks), *self.diagonals]

    def describe(self, like: PyTree) -> dict[str, str]:
        """Which parameter got which block, by its path; for layers of several groups or positions, that too."""
        names = [tree.path_of(path) for path, _ in jax.tree.leaves_with_path(like)]
        kinds: dict[int | None, str] = {}
        for layer, sharing in zip(self.layers, self.sharing, strict=True):
            words = [layer.name, *[" + ".join(layer.uses)] * (layer.uses != ("product",))]
            words += [f"{layer.form.groups} groups"] * (layer.form.groups > 1)
            words += [sharing] * (layer.positions > 1 and layer.uses != ("lookup",))
            kinds |= dict.fromkeys((layer.kernel, layer.bias), f"kronecker ({', '.join(words)})")
        kinds |= dict.fromkeys(self.block_leaves, "exact") | dict.fromkeys(self.diagonal_leaves, "diagonal")
        return {name: kinds[leaf] for leaf, name in enumerate(names)}


def kfac(
    model: Model, *, kind: Kind = "sampled", sharing: Sharing | Mapping[str, Sharing] = "expand", chunk: int | None = None
) -> Fit:
    """K-FAC, see the module.

    Args:
        model: in evaluation mode; its forward pass is read, not wrapped.
        kind: see `jaxunlearn.curvature.logit_gradients`. `sampled` and `signed` take one backward pass, `fisher` and `ggn` one
            per class.
        sharing: what layers of several positions are, `expand` or `reduce`, see the module; or which is what, by the paths of
            their kernels, where `expand` is what is left.
        chunk: rows whose activations are in memory together; None takes all.

    Returns:
        A `Fit` that makes a `Kronecker`; its `describe` says which parameter got which block. Where a parameter takes part in a
        product that has no Kronecker factors (in a branch or a long loop, in two forms, scaled before), a `UserWarning` says so
        when the fit is traced, and what it got instead.

    Raises:
        ValueError: a kind that does not fit the targets, another word for `sharing`, or a path that is no layer's.

    Example:
        >>> fit = jaxunlearn.curvature.kfac(model)
        >>> jax.jit(fit)(variables, data.train, data.present, key).describe(variables.params)["bias"]
        'kronecker (body)'
    """
    return RowFit(partial(_fit, model, kind, _checked(sharing), False), chunk)


def ekfac(
    model: Model, *, kind: Kind = "sampled", sharing: Sharing | Mapping[str, Sharing] = "expand", chunk: int | None = None
) -> Fit:
    """EK-FAC, see the module: at least as close to the matrix as K-FAC, for a second pass over the rows.

    Args:
        model, kind, sharing, chunk: as in `kfac`; sharing decides on the basis alone. Without a chunk both passes share their
            activations.

    Returns:
        A `Fit` that makes a `Kronecker`.

    Raises:
        ValueError: as `kfac`.

    Example:
        >>> fit = jaxunlearn.curvature.ekfac(model, kind="fisher", chunk=30)
        >>> curvature = jax.jit(fit)(variables, data.train, data.present, key)
        >>> step = curvature.solve(variables.params, damping=1e-3)
    """
    return RowFit(partial(_fit, model, kind, _checked(sharing), True), chunk)


def _checked(sharing: Sharing | Mapping[str, Sharing]) -> Sharing | dict[str, Sharing]:
    words = list(sharing.values()) if isinstance(sharing, Mapping) else [sharing]
    wrong = [word for word in words if word not in get_args(Sharing)]
    if wrong:
        raise ValueError(f"sharing must be 'expand' or 'reduce', or a mapping of kernels' paths to these, got {wrong[0]!r}")
    return dict(sharing) if isinstance(sharing, Mapping) else sharing


def _by_layer(sharing: Sharing | dict[str, Sharing], layers: tuple[Layer, ...]) -> tuple[Sharing, ...]:
    if isinstance(sharing, str):
        return (sharing,) * len(layers)
    names = [layer.name for layer in layers if layer.uses != ("lookup",)]
    unknown = sorted(set(sharing) - set(names))
    if unknown:
        raise ValueError(f"sharing names {', '.join(unknown)}, and the layers with products are {', '.join(names)}")
    return tuple(sharing.get(name, "expand") for name in names)


def _warn(taps: Taps, small: tuple[int, ...]) -> None:
    if not taps.unfactored:
        return
    reasons: dict[str, list[str]] = {}
    for x in taps.unfactored:
        reasons.setdefault(x.reason, []).append(f"{x.name} ({'exact block' if x.leaf in small else 'diagonal'})")
    found = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in reasons.items())
    text = (
        f"no Kronecker block for some parameters, and what they got instead: {found}. A diagonal leaves out how the entries of "
        "a parameter act together: multiply it as it is, in one form and outside of loops, or take another representation, "
        "e.g. lanczos"
    )
    warnings.warn(text, UserWarning, stacklevel=3)


def _fit(
    model: Model, kind: Kind, sharing: Sharing | dict[str, Sharing], corrected: bool, variables, rows: Rows, key
) -> Kronecker:
    check_kind(kind, rows.one, key)
    params = widened(variables.params)

    def forward(params, row):
        return evaluate(model, variables._replace(params=params), row)[0]

    taps = find(forward, params, rows.one, tables=LARGEST_BLOCK)
    shared = _by_layer(sharing, taps.layers)
    leaves = jax.tree.leaves(params)
    small = tuple(leaf for leaf in taps.others if leaves[leaf].size <= LARGEST_BLOCK)
    large = tuple(leaf for leaf in taps.others if leaf not in small)
    _warn(taps, small)

    def collect(part):
        return jax.vmap(partial(_row, model, kind, taps, params))(*part)

    mean = rows.means(collect, partial(draws, kind, key))
    moments, blocks, diagonals = mean(partial(_first_moments, taps.layers, shared, small, large))
    factors = [layer_moments.factors(*x) for x in zip(taps.layers, moments, strict=True)]
    factors, blocks = jax.tree.map(without_derivative, (factors, blocks))
    with jax.default_matmul_precision("highest"):
        spectra = [(_spectrum(a), _spectrum(s)) for a, s in factors]
        bases: list[Any] = [(a[1], s[1]) for a, s in spectra]
        if corrected:
            values = mean(partial(_second_moments, taps.layers, bases))
        else:
            values = [a[0][:, :, None] * s[0][:, None] for a, s in spectra]
        exact = [jnp.linalg.eigh(block) for block in blocks]
    return Kronecker(
        taps.layers, shared, bases, values, small,
        [(jnp.maximum(x.eigenvalues, 0), x.eigenvectors) for x in exact], large, diagonals,
    )  # fmt: skip


def _spectrum(factor: Float[Array, "g i ..."]) -> tuple[Float[Array, "g i"], Float[Array, "g i i"] | None]:
    """Eigenvalues, what rounding leaves below zero as zero, and eigenvectors; None for a diagonal."""
    if factor.ndim == 2:
        return factor, None
    values, vectors = jax.lax.platform_dependent(factor, cpu=_one_by_one, default=lambda x: tuple(jnp.linalg.eigh(x)))
    return jnp.maximum(values, 0), vectors


def _one_by_one(factor: Float[Array, "g i i"]) -> tuple[Float[Array, "g i"], Float[Array, "g i i"]]:
    """Eigenvalues and eigenvectors, one group after another: on CPUs several batches of them at once wait for each other, in
    jaxlib 0.10.1, and never end where there are few threads."""
    return jax.lax.map(lambda x: tuple(jnp.linalg.eigh(x)), factor)


def _first_moments(layers, sharing: tuple[Sharing, ...], small: tuple[int, ...], large: tuple[int, ...], collected, weights):
    activations, gradients, counts, others = collected
    moments = layer_moments.first_moments(layers, sharing, activations, gradients, counts, weights)
    flat = {leaf: counted(weights, x)[0] for leaf, x in others.items()}
    blocks = [jnp.einsum("b,bsd,bse->de", weights, *[flat[leaf].reshape(*flat[leaf].shape[:2], -1)] * 2) for leaf in small]
    diagonals = [jnp.einsum("b,bs...->...", weights, flat[leaf] ** 2) for leaf in large]
    return moments, blocks, diagonals


def _second_moments(layers, bases, collected, weights):
    activations, gradients, _, _ = collected
    return layer_moments.second_moments(layers, bases, activations, gradients, weights)


def _row(model: Model, kind: Kind, taps: Taps, params: PyTree, row: PyTree, seeds: jax.Array):
    """For one row: activations [g, T, i], gradients [s, g, T, o] and how many positions count [g], of every layer, and
    gradients [s, ...] of the other leaves."""
    one = jax.tree.map(lambda x: x[None], row)
    leaves, form = jax.tree.flatten(params)

    def run(shifts, others):
        moved = [others[taps.others.index(leaf)] if leaf in taps.others else x for leaf, x in enumerate(leaves)]
        outputs, activations = taps.run(form.unflatten(moved), one, shifts)
        return outputs.logits, (outputs, activations)

    _, pull, (outputs, activations) = jax.vjp(run, taps.zeros(), [leaves[leaf] for leaf in taps.others], has_aux=True)
    u = slopes(kind, model, outputs, one, seeds[None])
    gradients, others = jax.vmap(pull)(u)
    gradients = jax.vmap(taps.rows, axis_size=len(u))(gradients)
    uses: list[tuple[Layer, Use]] = [(layer, use) for layer in taps.layers for use in layer.uses]
    reached = [_reached(layer, g) for (layer, _), g in zip(uses, gradients, strict=True)]
    activations = [_that_count(layer, use, x, r) for (layer, use), x, r in zip(uses, activations, reached, strict=True)]
    counts = [jnp.sum(r, axis=1) for r in reached]
    return activations, *widened((gradients, counts, dict(zip(taps.others, others, strict=True))))


def _that_count(layer: Layer, use: Use, x: Activations, reached: Bool[Array, "g T"]) -> Activations:
    """Activations of positions that count, zeros for the others; of lookups a number that no row has."""
    if use == "lookup":
        return jnp.where(reached, x, layer.form.inputs)
    if layer.bias is not None:
        x = jnp.concatenate([x, jnp.ones_like(x[:, :, :1])], axis=2)
    return widened(jnp.where(reached[:, :, None], x, 0))


def _reached(layer: Layer, gradients: Float[Array, "s g T o"]) -> Bool[Array, "g T"]:
    """Which positions count, see the module; a row of one position is one example, whatever its gradient."""
    if layer.spatial or layer.positions == 1:
        return jnp.ones(gradients.shape[1:3], bool)
    size = jnp.max(jnp.abs(gradients), axis=(0, 3))
    rounding = 16 * jnp.finfo(jnp.promote_types(size.dtype, jnp.float32)).eps
    return ~(size <= rounding * jnp.max(size, axis=1, keepdims=True))  # NaN counts
