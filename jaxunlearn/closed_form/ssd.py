"""Selective synaptic dampening (Foster, Schoepf, Brintrup: Fast machine unlearning without retraining through selective
synaptic dampening, AAAI 2024, arXiv 2308.07707).

    w_j <- w_j min(strength F_j / f_j, 1)    where f_j > alpha F_j

F and f are importances of all rows and of the forgotten ones: squared gradients. Published code squares the mean gradient of
batches of 64, so that alpha belongs to that batch size: on one model squares fell a hundredfold from batches of 1 to batches of
128. `average="sample"` squares gradients of single rows, which no batch size can change. On random rows f is close to F and
nearly nothing is selected; that is what the method does, not a fault of its settings.
"""

from collections.abc import Callable
from functools import partial

from jaxtyping import PRNGKeyArray

from jaxunlearn import tree
from jaxunlearn.curvature.importances import Average, Make, dampened, importances, of_request
from jaxunlearn.driver import Updated, one_shot
from jaxunlearn.types import Data, Model, Scalar, UnlearnFn, Variables

NAME = "importances"  # in Data.extra


def prepare(
    model: Model, *, average: Average = "batch", batch_size: int = 64
) -> Callable[[Variables, Data, PRNGKeyArray], Data]:
    """What puts the importances of all present rows into `data.extra["importances"]`, for all requests to share.

    Args:
        model: its loss is differentiated in evaluation mode.
        average, batch_size: as in `ssd`.

    Example:
        >>> prepared = jax.jit(jaxunlearn.closed_form.ssd.prepare(model))(variables, data, key)
    """
    tree.require_count("batch_size", batch_size)
    return preparation(partial(importances, average=average, batch_size=batch_size), model, NAME)


def ssd(
    model: Model, *, alpha: Scalar = 10.0, strength: Scalar = 1.0, average: Average = "batch", batch_size: int = 64
) -> UnlearnFn:
    """Dampen the weights that matter more to the forgotten rows than to all.

    Reads `data.extra["importances"]`, see `prepare`.

    Args:
        model: any.
        alpha: how many times more; may be traced. 10 for a ResNet-18 and 5 for a ViT in the paper.
        strength: the paper's lambda, may be traced.
        average: `batch` or `sample`, see the module.
        batch_size: rows of a batch; the same for both importances.

    Returns:
        An `UnlearnFn`; `stats`: `selected` Float[], the share of the weights that were dampened. Model state stays as it is.

    Raises:
        ValueError: importances that are missing or were made in another way; settings out of range.

    Example:
        >>> prepared = jaxunlearn.closed_form.ssd.prepare(model)(variables, data, key)
        >>> result = jaxunlearn.ssd(model, alpha=2.0)(variables, prepared, request, key)
    """
    tree.require_count("batch_size", batch_size)
    make = partial(importances, average=average, batch_size=batch_size)
    return dampening(make, model, NAME, alpha=alpha, strength=strength)


def preparation(make: Make, model: Model, name: str) -> Callable[[Variables, Data, PRNGKeyArray], Data]:
    """`prepare` for importances of any kind."""

    def prepared(variables: Variables, data: Data, key: PRNGKeyArray) -> Data:
        del key
        return data._replace(extra={**data.extra, name: make(model, variables, data.train, data.present)})

    return prepared


def dampening(make: Make, model: Model, name: str, *, alpha: Scalar, strength: Scalar) -> UnlearnFn:
    """The method for importances of any kind."""
    tree.check_range("alpha", alpha, low=0)
    tree.check_range("strength", strength, low=0)

    def remove(variables, data, request, key):
        everything, own = of_request(make, model, variables, data, request, name)
        params, share = dampened(variables.params, everything.values, own.values, alpha=alpha, strength=strength)
        return Updated(variables._replace(params=params), {"selected": share})

    return one_shot(remove)
