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
from jaxtyping import Array, Float

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.curvature.approximations import prepare
from jaxunlearn.curvature.diagonals import diagonal
from jaxunlearn.curvature.solve import forgotten
from jaxunlearn.evaluation import evaluate
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.sampling import forgotten_classes
from jaxunlearn.slots import FISHER_DIAGONAL
from jaxunlearn.status import combine
from jaxunlearn.types import Model, Result, Scalar, UnlearnFn

METHOD = Method(
    summary="noise along the weights that matter little to the retain set",
    cites="golatkar2020eternal",
    family="closed form",
    reads=frozenset({"fisher_diagonal", "forget"}),
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
    chunk: int | None = 64,
) -> UnlearnFn:
    """Add noise shaped by the inverse Fisher matrix of the retain set.

    Reads slot `fisher_diagonal`, that of all rows, see `jaxunlearn.prepare`; the part of the forget set is taken off for every
    request.

    Args:
        model: a classifier; parameters whose last axis has as many entries as there are logits count as its last layer.
        form: see the module.
        strength: `alpha` of the released form (1e-8 to 1e-5 there), `lambda sigma_h^2` of the paper's; may be traced.
        damping: added to F.
        chunk: rows whose gradients are in memory together.

    Returns:
        An `UnlearnFn`; `stats`: `noise_norm` Float[], the expected norm of the noise. Model state stays as it is.

    Raises:
        ValueError: a diagonal that is missing or is not that of the true Fisher matrix, an unknown form, settings out of range.

    Example:
        >>> unlearn = jaxunlearn.fisher_forgetting(model)
        >>> ready = jax.jit(jaxunlearn.prepare(unlearn))(variables, data, key)
        >>> result = jax.jit(unlearn)(variables, ready, request, key)
    """
    if form not in ("paper", "released"):
        raise ValueError(f"form must be 'paper' or 'released', got {form!r}")
    checks.check_range("strength", strength, low=0)
    checks.check_range("damping", damping, low=0)

    fit = diagonal(model, kind="fisher", chunk=chunk)

    def remove(variables, data, request, key):
        shared, stale = FISHER_DIAGONAL.read(data, at=variables, how=HOW)
        part, count, left = forgotten(data, request)
        own = fit(variables, part.examples, part.weights, key).diagonal(variables.params)
        present = count + left

        def without(whole, gone):
            return jnp.maximum(present * whole - count * jnp.where(count > 0, gone, 0), 0) / jnp.maximum(left, 1)

        fisher = jax.tree.map(without, shared.values, own)
        shape = jax.eval_shape(lambda: evaluate(model, variables, part.examples)[0].logits)
        classes = forgotten_classes(request.target, shape.shape[-1])

        def noisy(path, w, f):
            noise_key = jax.random.fold_in(key, zlib.crc32(tree.path_of(path).encode()))
            if form == "paper":
                mean, variance = w, jnp.sqrt(strength / (f + damping))
            else:
                mean, variance = _released(w, f, classes, strength, damping)
            noise = jnp.sqrt(variance) * jax.random.normal(noise_key, w.shape, variance.dtype)
            return (mean + noise).astype(w.dtype), jnp.sum(jnp.broadcast_to(variance, w.shape))

        pairs = jax.tree.map_with_path(noisy, variables.params, fisher)
        params = jax.tree.map(lambda w, pair: pair[0], variables.params, pairs)
        total = jax.tree.leaves(jax.tree.map(lambda w, pair: pair[1], variables.params, pairs))
        return Result(
            variables._replace(params=params), combine(STALE=stale), {"noise_norm": jnp.sqrt(jnp.sum(jnp.stack(total)))}
        )

    return one_shot(remove, model=model, prepare=prepare(fit, FISHER_DIAGONAL, how=HOW))


def _released(w: Array, fisher: Array, classes: Float[Array, "c"], strength: Scalar, damping: Scalar) -> tuple[Array, Array]:
    """Mean and variance of one parameter."""
    is_classifier = w.ndim > 0 and w.shape[-1] == classes.shape[0]
    variance = jnp.minimum(1 / (fisher + damping), 1e3)
    if is_classifier:
        variance = jnp.minimum(variance, 1e2)
    variance = strength * variance
    if w.ndim > 1:
        variance = jnp.broadcast_to(jnp.mean(variance, axis=-2, keepdims=True), w.shape)
    mean = w
    if is_classifier:
        mean, variance = jnp.where(classes, 0, w), jnp.where(classes, 1e-4, variance)
    return mean, variance * 10 if is_classifier or w.ndim == 1 else variance
