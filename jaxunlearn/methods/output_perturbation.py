"""Output perturbation: Gaussian noise on the weights (Chaudhuri, Monteleoni, Sarwate: Differentially private empirical risk
minimization, JMLR 2011, arXiv 0912.0071).

    w <- clip(w, C) + sigma N(0, I)

The baseline that reads no row at all. With weights that are clipped to norm C it is certified, however they were trained: no
two of them are more than 2 C apart (`jaxunlearn.certificates.certify_run` with `OutputPerturbation`). Without, it is private in
the sense of its source only where `sigma` comes from the sensitivity of the weights to one row, which is not checked here.
"""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import checks, noise, sampling, tree
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


def output_perturbation(model: Model, *, sigma: Scalar, clip_norm: Scalar | None = None) -> UnlearnFn:
    """Add independent Gaussian noise to every weight.

    Args:
        model: any; it is not run.
        sigma: standard deviation of the noise, in the units of the weights; may be traced. 0 adds none, for weights that
            `jaxunlearn.certificates.publish` adds it to.
        clip_norm: norm that all weights together are shortened to before, above 0, may be traced; None leaves them as they are.

    Returns:
        An `UnlearnFn`; `stats`: `noise_norm` Float[], Euclidean norm of the noise, and with a `clip_norm` also that,
        `sigma` and `asked` UInt32[4], which rows the request names.

    Raises:
        ValueError: a negative `sigma` or `clip_norm`.

    Example:
        >>> unlearn = jaxunlearn.output_perturbation(model, sigma=0.01)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    del model
    checks.check_range("sigma", sigma, low=0)
    if clip_norm is not None:
        checks.check_range("clip_norm", clip_norm, low=0)

    def perturb(variables, data, request, key):
        # rounded to half precision at the very end: its grid near 0 would tell weights apart, and it rounds norms up
        params = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), variables.params)
        drawn = jax.tree.map(lambda z: (sigma * z).astype(z.dtype), noise.normal_like(key, params))
        stats = {"noise_norm": tree.norm(drawn)}
        if clip_norm is not None:
            params = tree.clipped(params, clip_norm)
            stats |= {"clip_norm": jnp.asarray(clip_norm, jnp.float32), "sigma": jnp.asarray(sigma, jnp.float32)}
            stats["asked"] = sampling.asked(data, request)
        params = jax.tree.map(lambda x, like: x.astype(like.dtype), optax.tree.add(params, drawn), variables.params)
        return Result(variables._replace(params=params), stats=stats)

    perturbed = one_shot(perturb, may_rest=clip_norm is not None)
    widely = in_float64(perturbed)

    def unlearn(variables, data, request, key):
        wide = any(jnp.result_type(x) == jnp.float64 for x in jax.tree.leaves(variables))
        return (widely if wide else perturbed)(variables, data, request, key)

    return prepared_by(unlearn, None)
