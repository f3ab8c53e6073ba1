"""Solving `(C + damping I) x = b` from products alone, with an outcome for every right-hand side."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks, tree
from jaxunlearn.curvature.approximations import Representation
from jaxunlearn.curvature.matvecs import Matvec, damped
from jaxunlearn.types import Scalar

UNITS = 2.0**40  # the steps of a solve are measured in this; see `cg`


class Solved(NamedTuple):
    """What a solver returns, measured and not assumed."""

    solution: PyTree
    converged: Bool[Array, ""]  # whether the residual is as small as was asked for
    residual: Float[Array, ""]  # ||(C + damping) x - b|| / ||b||, from one more product
    num_steps: Int[Array, ""]
    positive: Bool[Array, ""]  # whether `x' (C + damping) x` is; if it is not, the matrix is indefinite


def cg(
    matvec: Matvec,
    b: PyTree,
    *,
    damping: Scalar = 0.0,
    rtol: float = 1e-3,
    max_steps: int = 100,
    preconditioner: Representation | None = None,
    preconditioner_damping: Scalar | None = None,
) -> Solved:
    """Conjugate gradients, by lineax; `vmap` it over right-hand sides.

    Args:
        matvec: of a positive matrix; for an indefinite one the solver stops and says that it did not converge.
        b: right-hand side.
        damping: added to the matrix.
        rtol: relative residual to reach.
        max_steps: products at most. Under `vmap` all lanes run until the slowest is done.
        preconditioner: whose damped inverse is close to the inverse of the matrix, e.g. of `jaxunlearn.curvature.ekfac`.
        preconditioner_damping: of it; `damping` by default.

    Returns:
        `Solved`; a right-hand side of zeros has the solution 0.

    Raises:
        ValueError: a tolerance or a number of steps out of range.

    References:
        Hestenes, Stiefel: Methods of conjugate gradients for solving linear systems, 1952, doi 10.6028/jres.049.044.

    Example:
        >>> product = jaxunlearn.curvature.ggn_vp(model, variables, data.train)
        >>> solved = jaxunlearn.curvature.cg(product, variables.params, damping=0.1, rtol=1e-3)
        >>> bool(solved.converged)
        True
    """
    import lineax

    checks.require_count("max_steps", max_steps)
    if not 0 < rtol < 1:
        raise ValueError(f"rtol is a relative residual between 0 and 1, got {rtol}")
    product = damped(matvec, damping)
    b = jax.tree.map(jnp.asarray, b)
    options = {}
    if preconditioner is not None:
        shift = damping if preconditioner_damping is None else preconditioner_damping
        options["preconditioner"] = lineax.FunctionLinearOperator(
            lambda v: preconditioner.solve(v, shift), jax.eval_shape(lambda: b), lineax.positive_semidefinite_tag
        )

    def solve(product, b):
        length = tree.norm(b)
        unit = jax.tree.map(lambda x: x / jnp.where(length > 0, length, 1), b)
        # lineax stops when residual and step are both small; in units in which every step is small the residual alone decides
        operator = lineax.FunctionLinearOperator(
            lambda v: jax.tree.map(lambda x: x * UNITS, product(v)),
            jax.eval_shape(lambda: unit),
            lineax.positive_semidefinite_tag,
        )
        with jax.numpy_dtype_promotion("standard"):
            method = lineax.CG(rtol=0.0, atol=rtol, norm=tree.norm, max_steps=max_steps)
            found = lineax.linear_solve(operator, unit, method, options=options, throw=False)
        return jax.tree.map(lambda x: x * UNITS * length, found.value), found.stats["num_steps"]

    # so that a gradient through the solution is one more solve, whatever happened in this one
    solution, num_steps = jax.lax.custom_linear_solve(product, b, solve, symmetric=True, has_aux=True)
    return measured(product, b, solution, rtol, num_steps)


def lissa(
    batch_matvec: Callable[[PyTree, Int[Array, ""]], PyTree],
    b: PyTree,
    *,
    damping: Scalar,
    scale: Scalar,
    num_steps: int,
    matvec: Matvec,
    rtol: float = 1e-1,
) -> Solved:
    """Neumann's series on one batch a step, `h <- b + h - (C_B h + damping h) / scale`, answer `h / scale`.

    It diverges where `scale` is below half the largest eigenvalue (damping included) and is safe from that of every batch on;
    `safe_scale` finds one. For fixed data `cg` is better in every way; this is for streams, and for comparison.

    Args:
        batch_matvec: `(v, step) -> C_B v` with the matrix of the batch of that step.
        b: right-hand side.
        damping: added to the matrix, may be traced.
        scale: as above, may be traced.
        num_steps: batches.
        matvec: of the whole matrix, with which the answer is measured.
        rtol: relative residual from which on it counts as converged.

    Returns:
        `Solved`, not converged where the series went apart.

    References:
        Agarwal, Bullins, Hazan: Second-order stochastic optimization for machine learning in linear time, 2017,
        arXiv 1602.03943; Koh, Liang, 2017, arXiv 1703.04730.

    Example:
        >>> product = jaxunlearn.curvature.ggn_vp(model, variables, data.train)
        >>> scale = jaxunlearn.curvature.safe_scale(product, variables.params, key, damping=1.0)
        >>> solved = jaxunlearn.curvature.lissa(
        ...     lambda v, step: product(v), variables.params, damping=1.0, scale=scale, num_steps=100, matvec=product)
        >>> bool(solved.converged)
        True
    """
    checks.require_count("num_steps", num_steps)

    def step(h, place):
        moved = jax.tree.map(lambda x, cx: x - (cx + damping * x) / scale, h, batch_matvec(h, place))
        return jax.tree.map(jnp.add, b, moved), None

    series, _ = jax.lax.scan(step, b, jnp.arange(num_steps))
    solution = jax.tree.map(lambda x: x / scale, series)
    return measured(damped(matvec, damping), b, solution, rtol, jnp.int32(num_steps))


def safe_scale(
    matvec: Matvec, like: PyTree, key: PRNGKeyArray, *, damping: Scalar = 0.0, num_steps: int = 20
) -> Float[Array, ""]:
    """Twice the largest eigenvalue that power iteration finds, damping included: a scale for `lissa`.

    Power iteration comes from below, and batches may have larger eigenvalues than all rows together: twice is a margin, not a
    proof. Whether it sufficed is in the residual that `lissa` measures.

    Args:
        matvec: of a positive matrix.
        like: a tree like the params.
        key: of the first vector.
        damping: added to the matrix.
        num_steps: products.

    Returns:
        Float[].

    Example:
        >>> product = lambda v: jax.tree.map(lambda x: 3 * x, v)
        >>> round(float(jaxunlearn.curvature.safe_scale(product, variables.params, key, damping=1.0)), 3)
        8.0
    """
    keys = jax.random.split(key, len(jax.tree.leaves(like)))
    start = jax.tree.unflatten(
        jax.tree.structure(like),
        [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, jax.tree.leaves(like), strict=True)],
    )

    def step(v, _):
        image = matvec(v)
        length = tree.norm(image)
        return jax.tree.map(lambda x: x / jnp.maximum(length, jnp.finfo(length.dtype).tiny), image), length

    first = tree.norm(start)
    _, lengths = jax.lax.scan(step, jax.tree.map(lambda x: x / first, start), length=num_steps)
    return 2 * (jnp.max(lengths) + damping)


class Downdated(NamedTuple):
    """What `woodbury` returns."""

    solution: PyTree
    margin: Float[
        Array, ""
    ]  # smallest eigenvalue of I - V' P V, no derivatives; at or below 0 the corrected matrix is not positive


def woodbury(curvature: Representation, columns: PyTree, b: PyTree, *, damping: Scalar, chunk: int | None = None) -> Downdated:
    """`(C + damping I - V V')^{-1} b`, from the inverse P of the damped representation:

        P b + P V (I - V' P V)^{-1} V' P b

    Removal of rows from a factorised matrix, many requests against one factorisation. Columns of zeros change nothing.

    Args:
        curvature: C.
        columns: V', a tree like the params with a leading axis, one entry per column.
        b: right-hand side.
        damping: positive.
        chunk: columns that P is applied to together; beside V' no more are in memory. All by default.

    Returns:
        `Downdated`. The representation approximates a matrix that contains `V V'`, but need not contain it itself: a margin
        at or below 0 says that it does not, and that the solution is to be thrown away.

    References:
        Woodbury: Inverting modified matrices, 1950; Hager: Updating the inverse of a matrix, 1989, doi 10.1137/1031049.

    Example:
        >>> fit = jaxunlearn.curvature.gram(model, kind="empirical")
        >>> curvature = jax.jit(fit)(variables, data.train, data.present, key)
        >>> row = jax.tree.map(lambda x: 0.01 * x[None], variables.params)
        >>> bool(jaxunlearn.curvature.woodbury(curvature, row, variables.params, damping=1.0).margin > 0)
        True
    """
    solved = curvature.solve(b, damping)
    count = tree.leading_axis(columns, "columns")

    def against_all(column):
        pv = curvature.solve(column, damping)
        return inner(columns, jax.tree.map(lambda x: x[None], pv))[:, 0]

    overlap = jax.lax.map(against_all, columns, batch_size=chunk) if chunk else jax.vmap(against_all)(columns)
    core = jnp.eye(count, dtype=overlap.dtype) - (overlap + overlap.T) / 2
    margin = jnp.linalg.eigvalsh(jax.lax.stop_gradient(core))[0]
    weight = jnp.linalg.solve(core, inner(columns, jax.tree.map(lambda x: x[None], solved))[:, 0])
    combined = jax.tree.map(lambda v: jnp.tensordot(weight, v, axes=1, precision="highest"), columns)
    solution = jax.tree.map(jnp.add, solved, curvature.solve(combined, damping))
    return Downdated(solution, margin)


def measured(product: Matvec, b: PyTree, solution: PyTree, rtol: float, num_steps: Int[Array, ""]) -> Solved:
    """A solution with its residual; converged within a tenth above `rtol`, which rounding may take.

    Where the residual is NaN the solution is, too: a solver that gave up at once would else hide what the matrix holds.
    """
    length = tree.norm(b)
    image = product(solution)
    rest = tree.norm(jax.tree.map(jnp.subtract, image, b))
    along = jnp.sum(jnp.stack([jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (solution, image)), strict=True)]))
    residual = jnp.where(length > 0, rest / jnp.where(length > 0, length, 1), rest)
    solution = jax.tree.map(lambda x: jnp.where(jnp.isnan(residual), jnp.nan, x), solution)
    return Solved(solution, residual <= 1.1 * rtol, residual, num_steps, (along > 0) | (length == 0))


def inner(first: PyTree, second: PyTree) -> Float[Array, "m k"]:
    """Inner products of all pairs of two stacks of trees."""

    def pairs(x, y):
        return jnp.dot(x.reshape(x.shape[0], -1), y.reshape(y.shape[0], -1).T, precision="highest")

    return sum(jax.tree.leaves(jax.tree.map(pairs, first, second)))  # type: ignore[return-value]
