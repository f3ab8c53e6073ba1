"""How removal methods solve with a Hessian or Gauss-Newton matrix: by a shared representation, or by conjugate gradients."""

from typing import Literal, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import checks, slots
from jaxunlearn.curvature.approximations import Fit, prepare
from jaxunlearn.curvature.kronecker import ekfac
from jaxunlearn.curvature.logit_gradients import Kind, check_kind, draws
from jaxunlearn.curvature.matvecs import Matvec, empirical_fisher_vp, ggn_vp, gradient_sum, hvp, regularizer_vp, widened
from jaxunlearn.curvature.single_rows import row_factors
from jaxunlearn.curvature.solvers import cg, woodbury
from jaxunlearn.evaluation import map_rows
from jaxunlearn.sampling import forget_rows
from jaxunlearn.status import combine
from jaxunlearn.types import Data, ForgetRequest, Model, Prepare, Scalar, Variables, Weighted

PRODUCTS = {"hessian": hvp, "ggn": ggn_vp, "empirical": empirical_fisher_vp}


class Inversion(TypedDict, total=False):
    """Options of methods that solve with such a matrix.

    solver: `representation` solves with the one in slot `curvature`, which all requests share; `cg` runs conjugate gradients on
        the rows themselves, preconditioned by the representation if there is one.
    fit: what `jaxunlearn.prepare` puts into the slot, e.g. `jaxunlearn.curvature.dense(model)`; by default the EK-FAC of the
        Gauss-Newton matrix. Any representation may lie there.
    matrix: for `cg`, `ggn`, `hessian` or `empirical`.
    rtol, max_steps: for `cg`, see `jaxunlearn.curvature.cg`.
    chunk: rows in memory together; with a correction their factors are kept, and nothing else is made of more rows at once.
    """

    solver: Literal["representation", "cg"]
    fit: Fit | None
    matrix: Literal["ggn", "hessian", "empirical"]
    rtol: float
    max_steps: int
    chunk: int | None


class Solving(NamedTuple):
    """`Inversion` with its defaults."""

    solver: Literal["representation", "cg"] = "representation"
    fit: Fit | None = None
    matrix: Literal["ggn", "hessian", "empirical"] = "ggn"
    rtol: float = 1e-3
    max_steps: int = 100
    chunk: int | None = None


class Inverted(NamedTuple):
    """What `invert` returns."""

    solution: PyTree
    stats: dict[str, jax.Array]
    status: Int[Array, ""]  # NOT_CONVERGED, INDEFINITE, or STALE if the representation belongs to other weights or rows


def checked(**options: Unpack[Inversion]) -> Solving:
    """Options with their defaults; ValueError or TypeError for those that cannot be."""
    found = Solving(**options)
    if found.solver not in ("representation", "cg"):
        raise ValueError(f"solver must be 'representation' or 'cg', got {found.solver!r}")
    if found.matrix not in PRODUCTS:
        raise ValueError(f"matrix must be one of {', '.join(PRODUCTS)}, got {found.matrix!r}")
    if found.chunk is not None:
        checks.require_count("chunk", found.chunk)
    return found


def invert(
    model: Model,
    variables: Variables,
    data: Data,
    b: PyTree,
    *,
    damping: Scalar,
    options: Solving,
    without: Weighted | None = None,
    correction: Kind | None = None,
    key: jax.Array | None = None,
) -> Inverted:
    """`(C + R + damping I)^{-1} b`, with C over all present rows, or those left, and R the regularizer's Hessian.

    Args:
        model, variables, data: of one request.
        b: right-hand side.
        damping: added to the matrix.
        options: complete ones, see `checked`.
        without: rows that do not count. `cg` leaves them out exactly; a representation only with a correction.
        correction: which vectors of those rows are taken off a representation, see `jaxunlearn.curvature.woodbury`.
        key: of the labels of `correction="sampled"`.

    Returns:
        `Inverted`; `stats`: for `cg` `residual` Float[] and `solver_steps` Int[], with a correction `margin` Float[].
    """
    if options.solver == "cg":
        product = product_of(model, variables, data, options, without)
        there = slots.CURVATURE.find(data)
        preconditioner = there.value if there is not None else None  # a stale one costs steps and changes no solution
        tolerances = {"rtol": options.rtol, "max_steps": options.max_steps}
        solved = cg(product, b, damping=damping, preconditioner=preconditioner, **tolerances)
        stats = {"residual": solved.residual, "solver_steps": solved.num_steps}
        return Inverted(solved.solution, stats, combine(NOT_CONVERGED=~solved.converged, INDEFINITE=~solved.positive))
    made, stale = slots.CURVATURE.read(data, at=variables)
    shift = damping + _mean_curvature(model, variables)
    if without is None or correction is None:
        return Inverted(made.solve(b, shift), {}, combine(STALE=stale, INDEFINITE=~made.is_positive(shift)))
    check_kind(correction, without.examples, key)
    present = jnp.sum(data.present > 0)
    left = present - jnp.sum(without.weights > 0)

    def factors(part):  # zeros in unused slots
        examples, seeds, used = part
        scale = jnp.where(used, 1 / jnp.sqrt(present), 0)

        def scaled(x):
            share = scale.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
            return jnp.where(share > 0, x, 0) * share

        return jax.tree.map(scaled, row_factors(correction, model, variables, examples, seeds))

    rows = without.examples, draws(correction, key, without.weights.shape[0]), without.weights > 0
    columns = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), map_rows(factors, rows, chunk=options.chunk))
    # (n C - V V' + n' shift I) / n', of which the first n / n' is taken out.
    found = woodbury(made, columns, b, damping=shift * left / present, chunk=options.chunk)
    scaled = jax.tree.map(lambda x: x * left / present, found.solution)
    positive = made.is_positive(shift) & (found.margin > 0)
    return Inverted(scaled, {"margin": found.margin}, combine(STALE=stale, INDEFINITE=~positive))


def preparation_for(model: Model, options: Solving) -> Prepare | None:
    """What fills slot `curvature` for a method with these options; None for conjugate gradients, which need nothing."""
    if options.solver == "cg" and options.fit is None:
        return None
    return prepare(ekfac(model, kind="ggn", chunk=100) if options.fit is None else options.fit)


def product_of(model: Model, variables: Variables, data: Data, options: Solving, without: Weighted | None) -> Matvec:
    """`v -> (C + R) v` over all present rows, or those left, which `cg` solves with."""
    make = PRODUCTS[options.matrix]
    everything = make(model, variables, data.train, data.present, chunk=options.chunk)
    penalty = regularizer_vp(model, variables)
    if without is None:
        return lambda v: jax.tree.map(jnp.add, everything(v), penalty(v))
    # Rows of all requests share one pass; those of this one are taken off again.
    gone = make(model, variables, without.examples, without.weights)
    present, count = jnp.sum(data.present > 0), jnp.sum(without.weights > 0)
    left = jnp.maximum(present - count, 1)

    def product(v):
        parts = everything(v), gone(v), penalty(v)
        return jax.tree.map(lambda x, y, p: (present * x - count * y) / left + p, *parts)

    return product


def _mean_curvature(model: Model, variables: Variables) -> Float[Array, ""]:
    """Mean of the diagonal of the regularizer's Hessian, taken as diagonal: exact for an L2 penalty on all weights."""
    ones = jax.tree.map(jnp.ones_like, widened(variables.params))
    image = jax.tree.leaves(regularizer_vp(model, variables)(ones))
    return jnp.sum(jnp.stack([jnp.sum(x) for x in image])) / sum(x.size for x in image)


def regularizer_gradient(model: Model, variables: Variables) -> PyTree:
    """Gradient of the model's regularizer; zeros without one."""
    params = widened(variables.params)
    return jax.tree.map(jnp.zeros_like, params) if model.regularizer is None else jax.grad(model.regularizer)(params)


def retained_gradient(model: Model, variables: Variables, data: Data, part: Weighted, *, chunk: int | None = None) -> PyTree:
    """Gradient of the mean loss over the rows that are left, plus that of the regularizer, at least in float32.

    The pass over all rows is one and the same for requests that share the variables; each takes its own rows off again.
    Where no row is left it is that of the regularizer alone: the difference would be rounding.
    """
    left = jnp.sum(data.present > 0) - jnp.sum(part.weights > 0)
    everything = gradient_sum(model, variables, data.train, data.present, chunk=chunk)
    rows = gradient_sum(model, variables, part.examples, part.weights, chunk=chunk)
    penalty = regularizer_gradient(model, variables)
    return jax.tree.map(lambda a, g, p: jnp.where(left > 0, a - g, 0) / jnp.maximum(left, 1) + p, everything, rows, penalty)


def moved(variables: Variables, step: PyTree) -> Variables:
    """Variables after a step, in their own dtypes; the model state stays."""
    params = jax.tree.map(lambda w, s: (w + s).astype(w.dtype), variables.params, step)
    return variables._replace(params=params)


def forgotten(data: Data, request: ForgetRequest) -> tuple[Weighted, Int[Array, ""], Int[Array, ""]]:
    """The usable rows of a request, their number, and that of the rows left."""
    part = forget_rows(data, request)
    count = jnp.sum(part.weights > 0)
    return part, count, jnp.sum(data.present > 0) - count
