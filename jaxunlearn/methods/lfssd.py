"""Loss-free selective synaptic dampening (Foster, Schoepf, Brintrup: Loss-free machine unlearning, ICLR 2024 Tiny Papers, arXiv
2402.19308): `jaxunlearn.ssd` without labels.

Importances are absolute gradients of the mean squared norm of the logits,

    F_j = mean_batches |d/dw_j mean_i ||f(x_i)||^2|,    w_j <- w_j min(strength F_j / f_j, 1)    where f_j > alpha F_j

so that neither the loss nor a label is read; of sequences, only whether a position has one. The formula is that of the
authors' README.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.card import Method
from jaxunlearn.curvature.importances import Average, dampening, measure, prepare
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.losses.sequences import are_tokens
from jaxunlearn.slots import SENSITIVITIES
from jaxunlearn.types import Examples, Model, Outputs, Scalar, UnlearnFn

METHOD = Method(
    summary="selective synaptic dampening from the logits alone, without labels",
    cites="foster2024loss",
    family="closed form",
    reads=frozenset({"forget", "sensitivities"}),
    aliases=("loss_free_ssd",),
    search={"alpha": (1.5, 3.0, 6.0, 12.0), "strength": (0.3, 1.0)},
)


def _squared_logits(outputs: Outputs, examples: Examples) -> Float[Array, " b"]:
    squares = outputs.logits**2
    if are_tokens(outputs.logits, examples.targets):  # padding has logits too
        squares = jnp.where((examples.targets >= 0)[..., None], squares, 0)
    return jnp.sum(squares.reshape(squares.shape[0], -1), axis=1)


def lfssd(
    model: Model, *, alpha: Scalar = 10.0, strength: Scalar = 1.0, average: Average = "batch", batch_size: int = 64
) -> UnlearnFn:
    """Dampen the weights that matter more to the logits of the forget set than to those of all rows; labels are not read.

    Reads slot `sensitivities`, see `jaxunlearn.prepare`.

    Args:
        model: only its logits are read.
        alpha, strength, average, batch_size: as in `jaxunlearn.ssd`.

    Returns:
        An `UnlearnFn`; `stats`: `selected` Float[], the share of the weights that were dampened.

    Raises:
        ValueError: as `jaxunlearn.ssd`.

    Example:
        >>> unlearn = jaxunlearn.lfssd(model, alpha=1.5)
        >>> ready = jax.jit(jaxunlearn.prepare(unlearn))(variables, data, key)
        >>> result = jax.jit(unlearn)(variables, ready, request, key)
    """
    free = model._replace(loss=_squared_logits)
    options: Any = {"average": average, "batch_size": batch_size, "slot": SENSITIVITIES}
    how = measure(function=jnp.abs, label="absolute values", **options)
    return one_shot(dampening(how, free, alpha=alpha, strength=strength), model=model, prepare=prepare(how, free))
