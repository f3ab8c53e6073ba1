"""Loss-free selective synaptic dampening (Foster, Schoepf, Brintrup: Loss-free machine unlearning, ICLR 2024 Tiny Papers, arXiv
2402.19308): `jaxunlearn.ssd` without labels.

Importances are absolute gradients of the mean squared norm of the logits,

    F_j = mean_batches |d/dw_j mean_i ||f(x_i)||^2|,    w_j <- w_j min(strength F_j / f_j, 1)    where f_j > alpha F_j

so that neither the loss nor a label is read. The formula is that of the authors' README.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxunlearn import tree
from jaxunlearn.closed_form.ssd import dampening, preparation
from jaxunlearn.curvature.importances import Average, importances
from jaxunlearn.types import Data, Examples, Model, Outputs, Scalar, UnlearnFn, Variables

NAME = "sensitivities"  # in Data.extra


def _squared_logits(outputs: Outputs, examples: Examples) -> Float[Array, "b"]:
    return jnp.sum(outputs.logits.reshape(outputs.logits.shape[0], -1) ** 2, axis=1)


def _make(model: Model, *arguments, average: Average, batch_size: int):
    free = model._replace(loss=_squared_logits)
    return importances(free, *arguments, average=average, batch_size=batch_size, function=jnp.abs, label="absolute values")


def prepare(
    model: Model, *, average: Average = "batch", batch_size: int = 64
) -> Callable[[Variables, Data, PRNGKeyArray], Data]:
    """What puts the sensitivities of all present rows into `data.extra["sensitivities"]`.

    Args:
        model: only its logits are read.
        average, batch_size: as in `lfssd`.

    Example:
        >>> prepared = jaxunlearn.closed_form.lfssd.prepare(model)(variables, data, key)
    """
    tree.require_count("batch_size", batch_size)
    return preparation(partial(_make, average=average, batch_size=batch_size), model, NAME)


def lfssd(
    model: Model, *, alpha: Scalar = 10.0, strength: Scalar = 1.0, average: Average = "batch", batch_size: int = 64
) -> UnlearnFn:
    """Dampen the weights that the logits of the forgotten rows hang on more than those of all rows; labels are not read.

    Reads `data.extra["sensitivities"]`, see `prepare`.

    Args:
        model, alpha, strength, average, batch_size: as in `jaxunlearn.ssd`.

    Returns:
        An `UnlearnFn`; `stats`: `selected` Float[], the share of the weights that were dampened.

    Raises:
        ValueError: as `jaxunlearn.ssd`.

    Example:
        >>> prepared = jaxunlearn.closed_form.lfssd.prepare(model)(variables, data, key)
        >>> result = jaxunlearn.lfssd(model, alpha=1.5)(variables, prepared, request, key)
    """
    tree.require_count("batch_size", batch_size)
    return dampening(partial(_make, average=average, batch_size=batch_size), model, NAME, alpha=alpha, strength=strength)
