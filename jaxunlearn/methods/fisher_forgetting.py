"""Fisher forgetting (Golatkar, Achille, Soatto: Eternal sunshine of the spotless net, CVPR 2020, arXiv 1911.04933): noise
along the weights that matter little to the retain set.

    paper:     w <- w + strength^{1/4} F^{-1/4} xi,    strength = lambda sigma_h^2
    released:  w <- mu + v^{1/2} xi,    v made of 1 / F by clamps, means and factors

xi is standard normal and F the diagonal of the true Fisher matrix of the retain set, exact over labels. The two differ in
the exponent, and the released form in more: v = min(1 / (F + 1e-8), 1000), at most 100 in the classifier; alpha v; the mean
over a kernel's inputs; ten times as much in the classifier, in biases and in normalisation; and where whole classes are
forgotten their columns of the classifier start from 0 with a variance of 1e-4, ten times that for being in the classifier.
Those steps decide the result, and are followed in that order. The form of the paper is a reconstruction.
"""

import zlib
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.curvature.approximations import prepare
from jaxunlearn.curvature.diagonals import diagonal
from jaxunlearn.curvature.solve import forgotten
from jaxunlearn.heads.maps import require_head
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.sampling import forgotten_classes
from jaxunlearn.slots import FISHER_DIAGONAL
from jaxunlearn.status import combine
from jaxunlearn.types import Head, Model, Result, Scalar, UnlearnFn, Variables

METHOD = Method(
    summary="noise along the weights that matter little to the retain set",
    cites="golatkar2020eternal",
    family="closed form",
    reads=frozenset({"fisher_diagonal", "forget", "head"}),
    targets="classes",
    search={"strength": (1e-08, 1e-07, 1e-06, 1e-05)},
)

HOW = "the diagonal of the true Fisher matrix"


def fisher_forgetting(
    model: Model,
    *,
    form: Literal["paper", "released"] = "released",
    strength: Scalar = 1e-6,
    damping: Scalar = 1e-8,
    input_axis: int = -2,
    chunk: int | None = 64,
) -> UnlearnFn:
    """Add noise shaped by the inverse Fisher matrix of the retain set.

    Reads slot `fisher_diagonal`, that of all rows, see `jaxunlearn.prepare`; the part of the forget set is taken off for every
    request.

    Args:
        model: a classifier; the released form needs its `head`, which it treats apart.
        form: see the module.
        strength: `alpha` of the released form (1e-8 to 1e-5 there), `lambda sigma_h^2` of the paper's; may be traced.
        damping: added to F.
        input_axis: of the released form: where weights with two axes and more have their inputs, -2 as in flax and Haiku, 1 as
            in Equinox.
        chunk: rows whose gradients are in memory together.

    Returns:
        An `UnlearnFn`; `stats`: `noise_norm` Float[], the expected norm of the noise. Model state stays as it is.

    Raises:
        ValueError: a diagonal that is missing or is not that of the true Fisher matrix, an unknown form, settings out of range,
            a model without a head in the released form.

    Example:
        >>> unlearn = jaxunlearn.fisher_forgetting(headed)
        >>> ready = jax.jit(jaxunlearn.prepare(unlearn))(headed_variables, data, key)
        >>> result = jax.jit(unlearn)(headed_variables, ready, request, key)
    """
    if form not in ("paper", "released"):
        raise ValueError(f"form must be 'paper' or 'released', got {form!r}")
    checks.check_range("strength", strength, low=0)
    checks.check_range("damping", damping, low=0)

    reason = "form='released' treats the last layer apart, form='paper' does not"
    head = None if form == "paper" else require_head(model, reason)
    fit = diagonal(model, kind="fisher", chunk=chunk)

    def remove(variables, data, request, key):
        shared, stale = FISHER_DIAGONAL.read(data, at=variables, how=HOW)
        part, count, left = forgotten(data, request)
        own = fit(variables, part.examples, part.weights, key).diagonal(variables.params)
        present = count + left

        def without(whole, gone):
            return jnp.maximum(present * whole - count * jnp.where(count > 0, gone, 0), 0) / jnp.maximum(left, 1)

        fisher = jax.tree.map(without, shared.values, own)
        if head is None:
            mean, variance = variables.params, jax.tree.map(lambda f: jnp.sqrt(strength / (f + damping)), fisher)
        else:
            mean, variance = _released(head, variables, fisher, request.target, strength, damping, input_axis)

        def noisy(path, w, mean, variance):
            noise_key = jax.random.fold_in(key, zlib.crc32(tree.path_of(path).encode()))
            return (mean + jnp.sqrt(variance) * jax.random.normal(noise_key, w.shape, variance.dtype)).astype(w.dtype)

        params = jax.tree.map_with_path(noisy, variables.params, mean, variance)
        norm = jnp.sqrt(sum(map(jnp.sum, jax.tree.leaves(variance))))
        return Result(variables._replace(params=params), combine(STALE=stale), {"noise_norm": norm})

    return one_shot(remove, model=model, prepare=prepare(fit, FISHER_DIAGONAL, how=HOW))


def _released(
    head: Head, variables: Variables, fisher: PyTree, target: PyTree, strength: Scalar, damping: Scalar, input_axis: int
) -> tuple[PyTree, PyTree]:
    """Mean and variance of the parameters; those of the head are put over the ones that hidden layers get."""

    def shaped(f: Array, most: float, axis: int) -> Array:
        variance = strength * jnp.minimum(1 / (f + damping), most)
        return jnp.broadcast_to(jnp.mean(variance, axis=axis, keepdims=True), f.shape) if f.ndim > 1 else variance

    variance = jax.tree.map(lambda f: shaped(f, 1e3, input_axis) * (10 if f.ndim == 1 else 1), fisher)
    means, fishers = head.get(variables), head.get(variables._replace(params=fisher))
    classes: Float[Array, " c"] = forgotten_classes(target, means[1].shape[-1])
    mean = head.set(variables, *(jnp.where(classes, 0, w) for w in means))
    of_head = [10 * jnp.where(classes, 1e-4, shaped(f, 1e2, -2)) for f in fishers]
    return mean.params, head.set(variables._replace(params=variance), *of_head).params
