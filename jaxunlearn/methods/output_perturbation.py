"""Output perturbation: Gaussian noise on the weights (Chaudhuri, Monteleoni, Sarwate: Differentially private empirical risk
minimization, JMLR 2011, arXiv 0912.0071).

    w <- w + sigma N(0, I)

The baseline that reads no row at all. It is private in the sense of its source only where `sigma` comes from the sensitivity of
the weights to one row, which is bounded for strongly convex problems and not checked here.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.loop.preparation import prepared_by
from jaxunlearn.precision import in_float64
from jaxunlearn.types import Model, Result, Scalar, UnlearnFn

METHOD = Method(
    summary="add Gaussian noise to the weights",
    cites="chaudhuri2011differentially",
    family="closed form",
    reads=frozenset(),
    search={"sigma": (0.003, 0.01, 0.02, 0.04, 0.08)},
)


def output_perturbation(model: Model, *, sigma: Scalar) -> UnlearnFn:
    """Add independent Gaussian noise to every weight.

    Args:
        model: any; it is not run.
        sigma: standard deviation of the noise, in the units of the weights; may be traced. 0 changes nothing.

    Returns:
        An `UnlearnFn`; `stats`: `noise_norm` Float[], Euclidean norm of the noise.

    Raises:
        ValueError: a negative `sigma`.

    Example:
        >>> unlearn = jaxunlearn.output_perturbation(model, sigma=0.01)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    del model
    checks.check_range("sigma", sigma, low=0)

    def perturb(variables, data, request, key):
        leaves, form = jax.tree.flatten(variables.params)
        keys = jax.random.split(key, len(leaves))
        normal = form.unflatten([_normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])
        noise = jax.tree.map(lambda z: (sigma * z).astype(z.dtype), normal)
        params = optax.tree.add(variables.params, noise)
        return Result(variables._replace(params=params), stats={"noise_norm": tree.norm(noise)})

    perturbed = one_shot(perturb)
    widely = in_float64(perturbed)

    def unlearn(variables, data, request, key):
        wide = any(jnp.result_type(x) == jnp.float64 for x in jax.tree.leaves(variables))
        return (widely if wide else perturbed)(variables, data, request, key)

    return prepared_by(unlearn, None)


def _normal(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Standard normal numbers; those of float64 from 32 random bits at a time, as 64 are cut where a session has float32."""
    if dtype != jnp.float64:
        return jax.random.normal(key, shape, dtype)
    high, low = (jax.random.bits(part, shape, jnp.uint32).astype(jnp.float64) for part in jax.random.split(key))
    return jax.scipy.special.ndtri((high + (low + 0.5) / 2**32) / 2**32)
