"""JiT, just in time unlearning (Foster, Fogarty, Schoepf, Dugue, Oztireli, Brintrup: An information theoretic approach to
machine unlearning, TMLR 2025, arXiv 2402.01401): flatten the model around the inputs of the forget set.

    l(w) = sum_{forget} mean_i |f(x) - f(x + e_i)| / |e_i|,    e_i ~ N(0, sigma^2),    x + e_i clipped to the range of the data

Zero-shot: neither the retain set nor a label is read. The authors' code holds f(x + e_i) fixed (`detach=True`), which the
algorithm does not say and which decides the result: for an f that is linear in x the expected gradient is then 0, and what
moves the model is sampling noise, curvature and clipping. `detach=False` is the algorithm as written. Their code clears its
gradients once for the whole run, so that every step repeats the earlier ones: published step sizes go with
`optax.sgd(eta, momentum=1.0)`. It clips to the range of the batch, here it is an argument, and leaves dropout on, here the
model is in evaluation mode.
"""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend
from jaxunlearn.types import Model, Scalar, Unlearner

METHOD = Method(
    summary="flatten the model around the inputs of the forget set; reads no label",
    cites="foster2025information",
    family="objective",
    reads=frozenset({"forget"}),
    aliases=("jit", "lipschitz_unlearning"),
    search={"learning_rate": (1e-4, 3e-4, 1e-3), "sigma": (0.1, 0.5, 1.0)},
)


def just_in_time(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    sigma: Scalar = 0.5,
    num_perturbations: int = 25,
    detach: bool = True,
    low: Scalar = -jnp.inf,
    high: Scalar = jnp.inf,
) -> Unlearner:
    """Flatten the model around the inputs of the forget set.

    The loss is a sum over the batch, as published, so that a step size belongs to a batch size.

    Args:
        model: any of floating-point inputs; its outputs are logits, its loss is not read.
        optimizer: any optax transformation; published: `optax.sgd(eta, momentum=1.0)`, eta from 3e-4 (VGG) to 1.5 (ViT).
        sigma: standard deviation of the perturbations, in the units of the inputs, may be traced; published: 0.01 to 1.5.
        num_perturbations: per row and step, static.
        detach: hold the perturbed outputs fixed, as the authors' code does; False for the algorithm as written.
        low, high: range that perturbed inputs are clipped to.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`, published with one pass over the forget set; per-step `stats`: `loss` Float[].
        The model's state stays as it is.

    Raises:
        ValueError: settings out of range. TypeError: inputs that are not floating-point.

    References:
        Foster, Fogarty, Schoepf, Dugue, Oztireli, Brintrup: An information theoretic approach to machine unlearning, TMLR 2025,
        arXiv 2402.01401.

    Example:
        >>> method = jaxunlearn.just_in_time(model, optax.sgd(1e-3, momentum=1.0), sigma=0.1, num_perturbations=5)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=2, batch_size=8))(variables, data, request, key)
    """
    checks.check_range("sigma", sigma, low=0)
    checks.require_count("num_perturbations", num_perturbations)

    def objective(variables, context, batch, key):
        inputs, weights = batch.forget.examples.inputs, batch.forget.weights
        checks.require_floating(inputs, "just_in_time perturbs its inputs")

        def logits(inputs):
            return model.forward(variables, inputs, train=False).logits

        outputs = logits(inputs)

        def slope(key):
            noise = optax.tree.random_like(key, inputs, sampler=jax.random.normal)
            near = jax.tree.map(lambda x, e: jnp.clip(x + sigma * e, low, high).astype(x.dtype), inputs, noise)
            there = logits(near)
            there = jax.lax.stop_gradient(there) if detach else there
            distance = tree.row_norms(jax.tree.map(jnp.subtract, inputs, near))
            return jnp.where(distance > 0, tree.row_norms(outputs - there) / jnp.where(distance > 0, distance, 1), 0)

        slopes = jnp.mean(jax.lax.map(slope, jax.random.split(key, num_perturbations)), axis=0)
        return jnp.sum(jnp.where(weights > 0, slopes, 0)), (variables.state, {})

    return descend(model, optimizer, objective, on_empty=METHOD.on_empty, judge=False)
