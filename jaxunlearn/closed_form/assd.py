"""Adaptive selective synaptic dampening (Schoepf, Foster, Brintrup: Parameter-tuning-free data entry error unlearning with
adaptive selective synaptic dampening, 2024, arXiv 2402.10098): `jaxunlearn.ssd` whose threshold follows from the size of the
request.

    alpha = percentile_q of f_j / F_j over all weights,    q = 100 - ln(1 + 100 m / n),    strength 1

Reconstruction from a port of the authors' notebook; ratios of 0 / 0 are left out.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxunlearn import tree
from jaxunlearn.closed_form.ssd import NAME
from jaxunlearn.curvature.importances import Average, dampened, importances, of_request
from jaxunlearn.curvature.inverse import forgotten
from jaxunlearn.driver import Updated, one_shot
from jaxunlearn.types import Model, UnlearnFn


def assd(model: Model, *, average: Average = "batch", batch_size: int = 64) -> UnlearnFn:
    """Dampen the weights with the largest ratios of importances, more of them for larger requests.

    Reads `data.extra["importances"]`, see `jaxunlearn.closed_form.ssd.prepare`.

    Args:
        model: any.
        average, batch_size: as in `jaxunlearn.ssd`.

    Returns:
        An `UnlearnFn`; `stats`: `selected` Float[], the share of the weights that were dampened, and `alpha` Float[].

    Raises:
        ValueError: importances that are missing or were made in another way.

    Example:
        >>> prepared = jaxunlearn.closed_form.ssd.prepare(model)(variables, data, key)
        >>> result = jaxunlearn.assd(model)(variables, prepared, request, key)
    """
    tree.require_count("batch_size", batch_size)
    make = partial(importances, average=average, batch_size=batch_size)

    def remove(variables, data, request, key):
        everything, own = of_request(make, model, variables, data, request, NAME)
        _, count, left = forgotten(data, request)
        pairs = zip(jax.tree.leaves(own.values), jax.tree.leaves(everything.values), strict=True)
        ratios = jnp.concatenate([(part / whole).ravel() for part, whole in pairs])
        finite = jnp.where(jnp.isfinite(ratios), ratios, jnp.nan)
        alpha = jnp.nanpercentile(finite, 100 - jnp.log1p(100 * count / (count + left)))
        params, share = dampened(variables.params, everything.values, own.values, alpha=alpha, strength=1.0)
        return Updated(variables._replace(params=params), {"selected": share, "alpha": alpha})

    return one_shot(remove)
