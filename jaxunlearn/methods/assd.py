"""Adaptive selective synaptic dampening (Schoepf, Foster, Brintrup: Parameter-tuning-free data entry error unlearning with
adaptive selective synaptic dampening, 2024, arXiv 2402.10098): `jaxunlearn.ssd` whose threshold follows from the size of the
request.

    alpha = percentile_q of f_j / F_j over all weights,    q = 100 - ln(1 + 100 m / n),    strength 1

Reconstruction from a port of the authors' notebook; ratios of 0 / 0 are left out.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.card import Method
from jaxunlearn.curvature.importances import Average, dampened, measure, of_request, prepare
from jaxunlearn.curvature.solve import forgotten
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.status import combine
from jaxunlearn.types import Model, Result, UnlearnFn

METHOD = Method(
    summary="selective synaptic dampening with a threshold from the size of the request",
    cites="schoepf2024parameter",
    family="closed form",
    reads=frozenset({"forget", "importances"}),
    reconstruction=True,
    aliases=("adaptive_ssd",),
)


def assd(model: Model, *, average: Average = "batch", batch_size: int = 64) -> UnlearnFn:
    """Dampen the weights with the largest ratios of importances, more of them for larger requests.

    Reads slot `importances`, see `jaxunlearn.prepare`.

    Args:
        model: any.
        average, batch_size: as in `jaxunlearn.ssd`.

    Returns:
        An `UnlearnFn`; `stats`: `selected` Float[], the share of the weights that were dampened, and `alpha` Float[].

    Raises:
        ValueError: importances that are missing or were made in another way.

    Example:
        >>> unlearn = jaxunlearn.assd(model)
        >>> ready = jax.jit(jaxunlearn.prepare(unlearn))(variables, data, key)
        >>> result = jax.jit(unlearn)(variables, ready, request, key)
    """
    how = measure(average=average, batch_size=batch_size)

    def remove(variables, data, request, key):
        everything, own, stale = of_request(how, model, variables, data, request)
        _, count, left = forgotten(data, request)
        pairs = zip(jax.tree.leaves(own), jax.tree.leaves(everything), strict=True)
        ratios = jnp.concatenate([(part / whole).ravel() for part, whole in pairs])
        finite = jnp.where(jnp.isfinite(ratios), ratios, jnp.nan)
        alpha = jnp.nanpercentile(finite, 100 - jnp.log1p(100 * count / (count + left)))
        params, share = dampened(variables.params, everything, own, alpha=alpha, strength=1.0)
        return Result(variables._replace(params=params), combine(STALE=stale), {"selected": share, "alpha": alpha})

    return one_shot(remove, model=model, prepare=prepare(how, model))
