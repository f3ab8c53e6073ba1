"""Selective synaptic dampening (Foster, Schoepf, Brintrup: Fast machine unlearning without retraining through selective
synaptic dampening, AAAI 2024, arXiv 2308.07707).

    w_j <- w_j min(strength F_j / f_j, 1)    where f_j > alpha F_j

F and f are importances of all rows and of the forget set: squared gradients. Published code squares the mean gradient of
batches of 64, so that alpha belongs to that batch size: on one model squares fell a hundredfold from batches of 1 to batches of
128. `average="sample"` squares gradients of single rows, which no batch size can change. On random rows f is close to F and
nearly nothing is selected, whatever the settings.
"""

from jaxunlearn.card import Method
from jaxunlearn.curvature.importances import Average, dampening, measure, prepare
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.types import Model, Scalar, UnlearnFn

METHOD = Method(
    summary="dampen weights that matter more to the forget set than to all rows",
    cites="foster2024fast",
    family="closed form",
    reads=frozenset({"forget", "importances"}),
    aliases=("selective_synaptic_dampening",),
    search={"alpha": (1.2, 2.0, 5.0, 10.0, 20.0, 40.0), "strength": (0.3, 1.0)},
)


def ssd(
    model: Model, *, alpha: Scalar = 10.0, strength: Scalar = 1.0, average: Average = "batch", batch_size: int = 64
) -> UnlearnFn:
    """Dampen the weights that matter more to the forget set than to all rows.

    Reads slot `importances`, see `jaxunlearn.prepare`.

    Args:
        model: any; its loss is differentiated in evaluation mode.
        alpha: how many times more; may be traced. 10 for a ResNet-18 and 5 for a ViT in the paper.
        strength: the paper's lambda, may be traced.
        average: `batch` or `sample`, see the module.
        batch_size: rows per batch, for the importances of all rows and of the request alike.

    Returns:
        An `UnlearnFn`; `stats`: `selected` Float[], the share of the weights that were dampened. Model state stays as it is.

    Raises:
        ValueError: importances that are missing or were made in another way; settings out of range.

    Example:
        >>> unlearn = jaxunlearn.ssd(model, alpha=2.0)
        >>> ready = jax.jit(jaxunlearn.prepare(unlearn))(variables, data, key)
        >>> result = jax.jit(unlearn)(variables, ready, request, key)
    """
    how = measure(average=average, batch_size=batch_size)
    return one_shot(dampening(how, model, alpha=alpha, strength=strength), model=model, prepare=prepare(how, model))
