"""L-CODEC (Mehta, Pal, Singh, Ravi: Deep unlearning via randomized conditionally independent Hessians, CVPR 2022, arXiv
2204.07655): an influence step on the few units that the loss of the forget set depends on.

    perturb the forget set; Z the activity of every unit (a mean over positions), Y the loss
    choose greedily the unit with the largest conditional dependence T(Y, Z_j | chosen), as long as it is above 0 (FOCI)
    w_S <- w_S + (C' + damping I)_SS^{-1} (1/n') sum_{forget} grad_S,     S the weights into the chosen units

T is the rank statistic of Azadkia, Chatterjee: A simple measure of conditional dependence, 2021, arXiv 1910.12327. The released
code makes C' from two stored gradients, so that it has rank one, and takes off a matrix of the row that is zero; here C' is the
Gauss-Newton matrix of the retain set (or another, see `matrix`), by conjugate gradients. The paper's noise is left out: the
constants that would calibrate it are not known for any network. Low value: the choice costs more than the step that it spares.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.curvature import layer_tracing
from jaxunlearn.curvature.matvecs import gradient_sum, widened
from jaxunlearn.curvature.solve import Inversion, checked, forgotten, moved, product_of
from jaxunlearn.curvature.solvers import cg
from jaxunlearn.evaluation import evaluate
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.status import combine
from jaxunlearn.types import Examples, Model, Result, Scalar, UnlearnFn, Variables, Weighted

METHOD = Method(
    summary="an influence step on the units that the loss depends on (low value)",
    cites="mehta2022deep",
    family="closed form",
    reads=frozenset({"forget", "retain"}),
    aliases=("l_codec",),
    search={"damping": (0.001, 0.01, 0.1, 1.0)},
)


def lcodec(
    model: Model,
    *,
    damping: Scalar,
    draws: int = 200,
    noise_scale: Scalar = 0.1,
    max_units: int = 16,
    **options: Unpack[Inversion],
) -> UnlearnFn:
    """An influence step on the units that the loss depends on.

    Args:
        model: its kernels are found in its program, see `jaxunlearn.curvature.ekfac`; other weights stay.
        damping: added to C', at least 0, may be traced.
        draws: perturbed rows, taken in turn from the rows of the request; memory grows with its square. Published: 1000 of one
            row.
        noise_scale: of the perturbation of inputs, may be traced.
        max_units: units chosen at most.
        options: see `jaxunlearn.curvature.Inversion`; `solver` is `cg`, without a preconditioner.

    Returns:
        An `UnlearnFn`; `stats`: `units` Int[], how many were chosen, `step_norm`, `residual` Float[], `solver_steps` Int[].
        Model state stays as it is.

    Raises:
        ValueError: settings out of range, a kernel that is used in two forms or in a loop.
        TypeError: inputs without a floating-point array.

    Example:
        >>> result = jax.jit(jaxunlearn.lcodec(model, damping=0.1, draws=40))(variables, data, request, key)
        >>> int(result.stats["units"]) <= 16
        True
    """
    checks.check_range("damping", damping, low=0)
    checks.check_range("noise_scale", noise_scale, low=0)
    checks.require_count("draws", draws, least=3)
    checks.require_count("max_units", max_units)
    complete = checked(**{"solver": "cg", **options})
    if complete.solver != "cg":
        raise ValueError("lcodec solves on the chosen units alone, which a representation cannot: leave solver='cg'")

    def remove(variables, data, request, key):
        part, _, left = forgotten(data, request)
        seen = perturbed(part, draws, noise_scale, key)
        layers, leaves, activity, losses = _activity(model, variables, seen)
        chosen = foci(activity, losses, max_units=max_units)
        mask = _weights_into(layers, leaves, chosen, widened(variables.params))
        rows = gradient_sum(model, variables, part.examples, part.weights, chunk=complete.chunk)
        pull = jax.tree.map(lambda m, g: m * g / jnp.maximum(left, 1), mask, rows)
        product = product_of(model, variables, data, complete, part)

        def inside(v):
            return jax.tree.map(jnp.multiply, mask, product(jax.tree.map(jnp.multiply, mask, v)))

        solved = cg(inside, pull, damping=damping, rtol=complete.rtol, max_steps=complete.max_steps)
        stats = {
            "units": jnp.sum(chosen),
            "step_norm": tree.norm(solved.solution),
            "residual": solved.residual,
            "solver_steps": solved.num_steps,
        }
        return Result(
            moved(variables, solved.solution), combine(NOT_CONVERGED=~solved.converged, INDEFINITE=~solved.positive), stats
        )

    return one_shot(remove, model=model)


def perturbed(part: Weighted, draws: int, noise_scale: Scalar, key: PRNGKeyArray) -> Examples:
    """The rows that count, in turn, with Gaussian noise on their inputs."""
    used = part.weights > 0
    order = jnp.argsort(~used, stable=True)
    turn = order[jnp.arange(draws) % jnp.maximum(jnp.sum(used), 1)]
    examples = jax.tree.map(lambda x: x[turn], part.examples)
    leaves, form = jax.tree.flatten(examples.inputs)
    if not any(jnp.issubdtype(x.dtype, jnp.floating) for x in leaves):
        raise TypeError("lcodec perturbs inputs, and these hold no floating-point array: convert them once")
    keys = jax.random.split(key, len(leaves))
    noisy = [
        x + (noise_scale * jax.random.normal(k, x.shape)).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for x, k in zip(leaves, keys, strict=True)
    ]
    return examples._replace(inputs=form.unflatten(noisy))


def _activity(
    model: Model, variables: Variables, examples: Examples
) -> tuple[tuple[layer_tracing.Layer, ...], list[Array], Float[Array, "N p"], Float[Array, " N"]]:
    """Layers, leaves of the params, outputs of every unit (means over positions) and losses."""
    params = widened(variables.params)

    def forward(params, row):
        outputs, losses = evaluate(model, variables._replace(params=params), row)
        return outputs.logits, losses

    found = layer_tracing.find(forward, params, jax.tree.map(lambda x: x[:1], examples))
    shared = [x.name for x in found.unfactored if x.reason != layer_tracing.CHANGED]
    if shared:
        raise ValueError(f"parameters {', '.join(shared)} are used in several forms or in a loop: they have no one activity")
    leaves = jax.tree.leaves(params)
    shifts, matrices = found.zeros(), [layer.matrix(leaves) for layer in found.layers]

    def one(row):
        (_, loss), inputs = found.run(params, jax.tree.map(lambda x: x[None], row), shifts)
        means = [widened(jnp.mean(x, axis=1)) for x in inputs]
        layers = list(zip(means, found.layers, strict=True))
        means = [x if layer.bias is None else jnp.pad(x, ((0, 0), (0, 1)), constant_values=1) for x, layer in layers]
        units = [jnp.einsum("gi,gio->go", x, m, precision="highest").ravel() for x, m in zip(means, matrices, strict=True)]
        return jnp.concatenate(units), loss[0]

    activity, losses = jax.vmap(one)(examples)
    return found.layers, leaves, activity, losses


def foci(activity: Float[Array, "N p"], losses: Float[Array, " N"], *, max_units: int) -> Bool[Array, " p"]:
    """Feature ordering by conditional independence: which columns are chosen, one after the other, to predict the losses.

    Args:
        activity: columns are scaled to one spread; a constant one is never chosen.
        losses: only their ranks count.
        max_units: columns at most.

    References:
        Azadkia, Chatterjee: A simple measure of conditional dependence, 2021, arXiv 1910.12327.

    Example:
        >>> from jaxunlearn.methods.lcodec import foci
        >>> z = jax.random.normal(key, (100, 5))
        >>> foci(z, z[:, 2], max_units=1).tolist()
        [False, False, True, False, False]
    """
    spread = jnp.std(activity, axis=0)
    z = (activity / jnp.where(spread > 0, spread, 1)).T
    ranks, above = (jnp.sum(compare(losses[:, None], losses), axis=1) for compare in (jnp.greater_equal, jnp.less_equal))
    itself = jnp.where(jnp.eye(len(losses), dtype=bool), jnp.inf, 0)

    def choose(carry, _):
        distance, chosen = carry
        given = jnp.argmin(distance, axis=1)
        first = ~jnp.any(chosen)

        def score(column):
            near = jnp.argmin(distance + (column[:, None] - column) ** 2, axis=1)
            return jnp.where(first, dependence(ranks, above, near), conditional_dependence(ranks, given, near))

        scores = jnp.where(chosen | (spread == 0), -jnp.inf, jax.lax.map(score, z))
        best = jnp.argmax(scores)
        useful = scores[best] > 0
        distance = jnp.where(useful, distance + (z[best][:, None] - z[best]) ** 2, distance)
        return (distance, chosen.at[best].set(chosen[best] | useful)), None

    start = itself, jnp.zeros(activity.shape[1], bool)
    (_, chosen), _ = jax.lax.scan(choose, start, length=min(max_units, activity.shape[1]))
    return chosen


def dependence(ranks: Int[Array, " N"], above: Int[Array, " N"], near: Int[Array, " N"]) -> Float[Array, ""]:
    """`T(Y, Z) = sum_i (N min(R_i, R_M(i)) - L_i^2) / sum_i L_i (N - L_i)`, M(i) the nearest neighbour in Z.

    R_i counts values up to that of i, L_i those from it on. Near 0 if they are independent, near 1 if Y is a function of Z.
    """
    count = ranks.shape[0]
    above = above.astype(jnp.float32)
    smaller = jnp.minimum(ranks, ranks[near]).astype(jnp.float32)
    total = jnp.sum(above * (count - above))
    return jnp.where(total > 0, jnp.sum(count * smaller - above**2) / jnp.where(total > 0, total, 1), 0)


def conditional_dependence(ranks: Int[Array, " N"], given: Int[Array, " N"], near: Int[Array, " N"]) -> Float[Array, ""]:
    """`T(Y, Z | X) = sum_i (min(R_i, R_M(i)) - min(R_i, R_N(i))) / sum_i (R_i - min(R_i, R_N(i)))`.

    N(i) and M(i) are the nearest neighbours in X and in (X, Z); 0 where Y is a function of X.
    """
    without, within = jnp.minimum(ranks, ranks[given]), jnp.minimum(ranks, ranks[near])
    total = jnp.sum(ranks - without)
    return jnp.where(total > 0, jnp.sum(within - without) / jnp.maximum(total, 1), 0)


def _weights_into(
    layers: tuple[layer_tracing.Layer, ...], leaves: list[Array], chosen: Bool[Array, " p"], params: PyTree
) -> PyTree:
    """1 for kernels and biases of chosen units, 0 for everything else."""
    masks = [jnp.zeros(x.shape, x.dtype) for x in leaves]
    start = 0
    for layer in layers:
        groups, outputs = layer.form.groups, layer.form.outputs
        units = chosen[start : start + groups * outputs].astype(jnp.float32).reshape(groups, 1, outputs)
        start += groups * outputs
        rows = layer.form.inputs + (layer.bias is not None)
        for leaf, mask in layer.parts(jnp.broadcast_to(units, (groups, rows, outputs)), leaves).items():
            masks[leaf] = mask.astype(leaves[leaf].dtype)
    return jax.tree.unflatten(jax.tree.structure(params), masks)
