"""Fisher forgetting (Golatkar, Achille, Soatto: Eternal sunshine of the spotless net, CVPR 2020, arXiv 1911.04933): noise
where the retained rows do not mind.

    paper:     w <- w + strength^{1/4} F^{-1/4} xi,    strength = lambda sigma_h^2
    released:  w <- mu + v^{1/2} xi,    v made of 1 / F by clamps, means and factors

xi is standard normal and F the diagonal of the true Fisher matrix on the retained rows, exact over labels. The two differ in
the exponent, and the released form in more: v = min(1 / (F + 1e-8), 1000), at most 100 in the classifier; alpha v; the mean
over a kernel's inputs; ten times as much in the classifier, in biases and in normalisation; and where whole classes are
forgotten their columns of the classifier start from 0 with a variance of 1e-4, ten times that for being in the classifier.
Those steps decide the result, and are followed in that order. The form of the paper is written from memory of it."""

import zlib
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import tree
from jaxunlearn.curvature.diagonals import diagonal
from jaxunlearn.curvature.inverse import forgotten
from jaxunlearn.curvature.representations import Diagonal
from jaxunlearn.driver import Updated, one_shot
from jaxunlearn.risk import forgotten_classes
from jaxunlearn.rows import evaluate
from jaxunlearn.types import Model, Scalar, UnlearnFn

NAME = "fisher_diagonal"  # in Data.extra


def fisher_forgetting(
    model: Model,
    *,
    form: Literal["paper", "released"] = "released",
    strength: Scalar = 1e-6,
    damping: Scalar = 1e-8,
    chunk: int | None = 64,
) -> UnlearnFn:
    """Add noise shaped by the inverse Fisher matrix of the retained rows.

    Reads `data.extra["fisher_diagonal"]`, that of all rows, made by `jaxunlearn.curvature.prepare(fit, name="fisher_diagonal")`
    with `fit = jaxunlearn.curvature.diagonal(model, kind="fisher")`; each request takes its own rows off.

    Args:
        model: a classifier; the classifier layer is told by a last axis of as many entries as there are logits.
        form: see the module.
        strength: `alpha` of the released form (1e-8 to 1e-5 there), `lambda sigma_h^2` of the paper's; may be traced.
        damping: added to F.
        chunk: forgotten rows whose gradients are in memory together.

    Returns:
        An `UnlearnFn`; `stats`: `noise_norm` Float[], the expected norm of the noise. Model state stays as it is.

    Raises:
        ValueError: a diagonal that is missing, an unknown form, settings out of range.

    Example:
        >>> fit = jaxunlearn.curvature.diagonal(model, kind="fisher")
        >>> prepared = jaxunlearn.curvature.prepare(fit, name="fisher_diagonal")(variables, data, key)
        >>> result = jaxunlearn.fisher_forgetting(model)(variables, prepared, request, key)
    """
    if form not in ("paper", "released"):
        raise ValueError(f"form must be 'paper' or 'released', got {form!r}")
    tree.check_range("strength", strength, low=0)
    tree.check_range("damping", damping, low=0)

    def remove(variables, data, request, key):
        shared = data.extra.get(NAME)
        if not isinstance(shared, Diagonal):
            raise ValueError(
                f"fisher_forgetting needs data.extra[{NAME!r}]: make it with jaxunlearn.curvature.prepare("
                f"jaxunlearn.curvature.diagonal(model, kind='fisher'), name={NAME!r})(variables, data, key)"
            )
        part, count, left = forgotten(data, request)
        own = diagonal(model, kind="fisher", chunk=chunk)(variables, part.examples, part.weights, key).diagonal(
            variables.params
        )
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
        return Updated(variables._replace(params=params), {"noise_norm": jnp.sqrt(jnp.sum(jnp.stack(total)))})

    return one_shot(remove)


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
