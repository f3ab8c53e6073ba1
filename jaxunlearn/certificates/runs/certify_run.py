"""From a run with noise, clipping or a rewound descent to a certificate."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import checks, sampling, tree
from jaxunlearn.certificates.certificate import Assumption, Certificate, Subject
from jaxunlearn.certificates.runs.mechanisms import Run, RunMechanism, secrecy
from jaxunlearn.certificates.statements import ONE_RELEASE, extractor_of, holds, not_adaptive, number, status_ok
from jaxunlearn.types import Data, ForgetRequest, Result

HIDDEN = Assumption(
    "hidden trajectory", True, "nobody saw weights, gradients or losses of the run, only the last weights", "assumed"
)
SETTINGS = Assumption("settings", True, "norms, rates and numbers of steps were chosen without the forget set", "assumed")
EXACT = Assumption("exact arithmetic", True, "what rounding inside of steps and noise tells is not counted", "assumed")


def certify_run(
    result: Result,
    data: Data,
    request: ForgetRequest,
    *,
    mechanism: RunMechanism,
    epsilon: float,
    delta: float,
    extractor: str | None = None,
    adaptive: bool | None = None,
    secret_key: bool | None = None,
) -> Certificate:
    """An (epsilon, delta) certificate for a run of any model, or the reasons why there is none.

    The theorems need no optimum, so that nothing is measured at the weights: what counts is what the run enforced, which it
    reports in its statistics, from the numbers that it computed with, and which request it answered. Somebody who changes those
    can write any certificate; whoever has the key can run it again. Every assumption says who answers for it, and what the
    released model is compared with, which differs between methods. Nothing is raised for what was found or declared: a void
    certificate has `valid=False`.

    Args:
        result: of one request, by `jaxunlearn.noisy_finetune`, `output_perturbation` with a `clip_norm`, `rewind_to_delete`,
            `hessian_free`, `jaxunlearn.convex.langevin` or `pnsgd`, alone or as one entry of a batched call.
        data: the training rows as the run read them, those of the request among them.
        request: the rows that must be gone.
        mechanism: `NoisyFinetune()`, `OutputPerturbation()`, `Rewind(...)`, `HessianFree(...)` or `Langevin()`, whichever made
            the result.
        epsilon: positive and finite.
        delta: in (0, 1), well below one over the number of rows.
        extractor: where features and frozen parts came from, as for `certify`.
        adaptive: whether requests may have depended on earlier releases; only False is covered.
        secret_key: whether the key of a run with noise of its own was drawn at random and is known to nobody; only True is
            covered. JAX's keys hold 64 bits, and its generator is no cryptographic one.

    Returns:
        A `Certificate`, for `publish`. A run with noise of its own has the noise scale 0. `residual` and `distance`
        are inf: nothing is said of an optimum.

    Raises:
        ValueError: epsilon, delta or a constant out of range, several results at once, or a result without the statistics of
            this mechanism.
        TypeError: inside `jit` or `vmap`, or arguments of another type.

    Example:
        >>> sigma = jaxunlearn.certificates.step_noise(2 * 0.1, 1.0, 2 * 0.01, 0.999, 1e-5, num_steps=10)
        >>> method = jaxunlearn.noisy_finetune(model, optax.sgd(0.1), sigma=float(sigma), norm=0.1, gradient_norm=1.0)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=60, batch_size=16))(variables, data, request, key)
        >>> certificate = jaxunlearn.certificates.certify_run(
        ...     result, data, request, mechanism=jaxunlearn.certificates.NoisyFinetune(), epsilon=1.0, delta=1e-5,
        ...     extractor="none", adaptive=False, secret_key=True,
        ... )
        >>> [each.name for each in certificate.assumptions if each.source == "enforced"]
        ['clipping']
    """
    _require_types(result, data, request, mechanism)
    epsilon = number("epsilon", epsilon, np.inf, "positive and finite, such as 1.0")
    delta = number("delta", delta, 1.0, "between 0 and 1, both excluded, such as 1e-5")
    missing = [name for name in (*mechanism.stats, "asked") if name not in result.stats]
    if missing:
        raise ValueError(
            f"{type(mechanism).__name__} needs stats {missing}, which this result does not have: pass the mechanism of the "
            "method that made it; output_perturbation reports with a clip_norm only"
        )
    usable = np.asarray(sampling.usable_slots(data, request))
    used = np.asarray(request.weights) > 0
    rows = np.unique(np.asarray(request.indices)[usable]).astype(np.int64)
    retained = np.asarray(data.present) > 0
    num_rows = int(retained.sum())
    retained[rows] = False
    stats = {name: np.asarray(value) for name, value in result.stats.items()}
    leaves = jax.tree.leaves(result.variables.params)
    rounding = max(float(jnp.finfo(x.dtype).eps) for x in leaves) * math.hypot(
        *(np.linalg.norm(np.asarray(x, np.float64)) for x in leaves)
    )
    assessment = mechanism.assess(Run(stats, num_rows, rows.size, rounding), epsilon, delta)
    scale = float(assessment.noise_scale)
    stray = int(used.sum()) - rows.size
    same = np.array_equal(np.reshape(stats["asked"], (-1, 4))[:1], np.asarray(sampling.asked(data, request))[None])
    found = f"{rows.size} rows were to go" + (f", {stray} slots name none" if stray else "")
    found += "" if same else ", and the run answered another request, or rows that were present are others"
    assumptions = (
        status_ok(result),
        _finite(result),
        _no_state(result),
        holds("retained rows", bool(retained.any()), f"{int(retained.sum())} rows are left", "delete the model altogether"),
        holds(
            "rows of the request",
            rows.size > 0 and not stray and same,
            found,
            "pass the request that the run answered, with its data",
        ),
        extractor_of(extractor),
        not_adaptive(adaptive),
        *((secrecy(secret_key),) if mechanism.own_noise else ()),
        *assessment.assumptions,
        holds(
            "finite noise", 0 <= scale < np.inf, f"noise of deviation {scale:.3g}", "no noise makes up for what failed above"
        ),
        Assumption("compared with", True, mechanism.compared_with, "assumed"),
        HIDDEN,
        SETTINGS,
        EXACT,
        ONE_RELEASE,
    )
    return Certificate(
        epsilon=epsilon,
        delta=delta,
        sensitivity=float(assessment.sensitivity),
        noise_scale=scale,
        budget_left=float(assessment.budget_left),
        valid=all(each.holds for each in assumptions),
        assumptions=assumptions,
        mechanism=repr(mechanism),
        residual=float("inf"),
        distance=float("inf"),
        subject=Subject(
            weights=tree.content_digest(result.variables.params),
            retained_rows=tree.content_digest(jax.tree.map(lambda x: np.asarray(x)[retained], data.train)),
            secret="",
            problem=f"a run of {type(mechanism).__name__}",
            request=tree.content_digest(rows),
        ),
    )


def _require_types(result: Any, data: Any, request: Any, mechanism: Any) -> None:
    for value, kind in ((result, Result), (data, Data), (request, ForgetRequest)):
        if not isinstance(value, kind):
            raise TypeError(f"expected a {kind.__name__}, got {type(value).__name__}: certify_run(result, data, request, ...)")
    if not callable(getattr(mechanism, "assess", None)) or isinstance(mechanism, type) or not hasattr(mechanism, "own_noise"):
        raise TypeError(f"mechanism must be such as NoisyFinetune(), got {mechanism!r}")
    values = (result.variables, result.status, result.stats, data, request)
    if not all(map(checks.is_concrete, jax.tree.leaves(values))):
        raise TypeError("certify_run() reads values, so call it outside jit and vmap, on the returned Result")
    checks.check_variables(result.variables)
    if np.shape(result.status) or np.ndim(request.indices) != 1:
        raise ValueError(
            f"certify_run speaks of one model and one request, got results {np.shape(result.status)} and requests "
            f"{np.shape(request.indices)[:-1]}: pass one entry of each, jax.tree.map(lambda x: x[0], results)"
        )


def _finite(result: Result) -> Assumption:
    broken = [
        tree.path_of(path)
        for path, leaf in jax.tree.leaves_with_path(result.variables.params)
        if not np.all(np.isfinite(np.asarray(leaf, np.float64)))
    ]
    found = f"NaN or inf in {', '.join(broken)}" if broken else "params are finite"
    return holds("finite values", not broken, found, "there is nothing to certify; take less noise or shorter steps")


def _no_state(result: Result) -> Assumption:
    held = len(jax.tree.leaves(result.variables.state))
    found = f"{held} arrays of state" if held else "no state beside the params"
    return holds("no model state", not held, found, "statistics of BatchNorm saw the forget set and get no noise")
