"""From a removal to a certificate: every assumption is looked at, and named."""

from typing import Any

import jax
import numpy as np

from jaxunlearn import checks, tree
from jaxunlearn.certificates.certificate import Assumption, Certificate, Evidence, Mechanism
from jaxunlearn.certificates.delete_then_noise import DeleteThenNoise
from jaxunlearn.certificates.evidence import collect
from jaxunlearn.certificates.statements import ONE_RELEASE, extractor_of, holds, not_adaptive, number, status_ok
from jaxunlearn.convex.problems import Problem
from jaxunlearn.convex.rows import ROUNDED
from jaxunlearn.types import Data, ForgetRequest, Result


def certify(
    result: Result,
    data: Data,
    request: ForgetRequest,
    *,
    problem: Problem,
    epsilon: float,
    delta: float,
    mechanism: Mechanism | None = None,
    extractor: str | None = None,
    adaptive: bool | None = None,
) -> Certificate:
    """An (epsilon, delta) certificate for a removal from a convex problem, or the reasons why there is none.

    The gradient at the weights is taken anew, on the rows that are given here, whatever the removal said of itself: see
    `jaxunlearn.certificates.evidence`. Whoever has rows, request and weights before the noise can repeat the whole
    certificate. Host only, one pass over the rows. Nothing is raised for what was found or declared: a void certificate has
    `valid=False`, and its `assumptions` say which ones failed and what to do. `publish` adds the noise, and refuses void
    certificates and other weights.

    Args:
        result: weights without the request's rows, by any method: `jaxunlearn.convex.newton_removal`, `woodbury_removal`,
            `descent_to_delete`, a merged request, or a stream by `jaxunlearn.end_of_stream`.
        data: the training rows, and the secret of an objective perturbation; rows may already be marked as removed.
        request: the rows that must be gone; of a stream, `jaxunlearn.merge` of its requests, or the last one with the data that
            `end_of_stream` returns.
        problem: what the weights were trained on, with its l2.
        epsilon: positive and finite.
        delta: in (0, 1), well below one over the number of rows.
        mechanism: which theorem; `DeleteThenNoise()` by default, else `ObjectivePerturbation`, `Sekhari` or `Neel`.
        extractor: where the features came from: `none`, `public` or `trained on other data`. One that was trained on rows
            to be forgotten voids the certificate, see `with_private_extractor`; so does silence.
        adaptive: whether requests may have depended on earlier releases; only False is covered, and silence is not False.

    Returns:
        A `Certificate` of Python floats.

    Raises:
        ValueError: epsilon, delta or a hyper-parameter of the mechanism out of range, several results at once, weights or
            rows that do not belong to the problem, or statistics that this mechanism needs and the method does not report.
        TypeError: inside `jit` or `vmap`, or arguments of another type.

    References:
        Guo, Goldstein, Hannun, van der Maaten: Certified data removal from machine learning models, 2020, arXiv 1911.03030.
        Gupta, Jung, Neel, Roth, Sharifi-Malvajerdi, Waites: Adaptive machine unlearning, 2021, arXiv 2106.04378 (why
        requests must not depend on releases).

    Example:
        >>> rows = jaxunlearn.training_data(jaxunlearn.convex.feature_rows(data.train.inputs), data.train.targets)
        >>> problem = jaxunlearn.convex.softmax(0.1, 3)
        >>> unlearn = jax.jit(jaxunlearn.convex.newton_removal(problem))
        >>> result = unlearn(jaxunlearn.convex.fit(problem, rows), rows, request, key)
        >>> budget = {"problem": problem, "epsilon": 1.0, "delta": 1e-5}
        >>> certificate = jaxunlearn.certificates.certify(result, rows, request, **budget, extractor="none", adaptive=False)
        >>> certificate.valid, round(certificate.noise_scale, 5)
        (True, 0.00373)
        >>> undeclared = jaxunlearn.certificates.certify(result, rows, request, **budget)
        >>> [assumption.name for assumption in undeclared.assumptions if not assumption.holds]
        ['extractor', 'requests not adaptive']
    """
    mechanism = DeleteThenNoise() if mechanism is None else mechanism
    _require_types(result, data, request, problem, mechanism)
    epsilon = number("epsilon", epsilon, np.inf, "positive and finite, such as 1.0")
    delta = number("delta", delta, 1.0, "between 0 and 1, both excluded, such as 1e-5")
    evidence, subject = collect(result, data, request, problem, _statistics(result, mechanism))
    assessment = mechanism.assess(evidence, epsilon, delta)
    scale = assessment.noise_scale
    assumptions = [
        status_ok(result),
        _float64(result),
        _finite(result, evidence),
        holds(
            "rows within norm 1",
            evidence.row_norm <= ROUNDED,  # distances are measured, so that none rests on the difference
            f"the longest row of the retain set has norm {evidence.row_norm!r}",
            "make rows with convex.feature_rows, each by itself, and train again",
        ),
        holds("retained rows", evidence.num_retain >= 1, f"{evidence.num_retain} rows are left", "delete the model altogether"),
        _requested(evidence),
        extractor_of(extractor),
        not_adaptive(adaptive),
        *assessment.assumptions,
        holds(
            "finite noise", 0 <= scale < np.inf, f"noise of deviation {scale:.3g}", "no noise makes up for what failed above"
        ),
        ONE_RELEASE,
    ]
    return Certificate(
        epsilon=epsilon,
        delta=delta,
        sensitivity=float(assessment.sensitivity),
        noise_scale=float(assessment.noise_scale),
        budget_left=float(assessment.budget_left),
        valid=all(assumption.holds for assumption in assumptions),
        assumptions=tuple(assumptions),
        mechanism=repr(mechanism),
        residual=evidence.residual + evidence.rounding,
        distance=evidence.distance,
        subject=subject,
    )


def _require_types(result: Any, data: Any, request: Any, problem: Any, mechanism: Any) -> None:
    if not isinstance(result, Result):
        raise TypeError(f"expected the Result of a removal, got {type(result).__name__}")
    for value, kind in ((data, Data), (request, ForgetRequest), (problem, Problem)):
        if not isinstance(value, kind):
            raise TypeError(
                f"expected a {kind.__name__}, got {type(value).__name__}: certify(result, data, request, problem=...)"
            )
    if not callable(getattr(mechanism, "assess", None)) or isinstance(mechanism, type):
        raise TypeError(f"mechanism must be such as DeleteThenNoise(), got {mechanism!r}")
    values = (result.variables, result.status, result.stats, data, request)
    if not all(map(checks.is_concrete, jax.tree.leaves(values))):
        raise TypeError("certify() reads values, so call it outside jit and vmap, on the returned Result")
    checks.check_variables(result.variables)
    if np.shape(result.status) or np.ndim(request.indices) != 1:
        raise ValueError(
            f"certify speaks of one model and one request, got results {np.shape(result.status)} and requests "
            f"{np.shape(request.indices)[:-1]}: merge the requests and answer them with one, or take the end_of_stream"
        )


def _statistics(result: Result, mechanism: Mechanism) -> dict[str, float]:
    missing = [name for name in mechanism.stats if name not in result.stats]
    if missing:
        raise ValueError(
            f"{type(mechanism).__name__} needs stats {missing}, which this result does not have: use a removal from a convex "
            "problem such as newton_removal, and descent_to_delete for Neel"
        )
    names = [*mechanism.stats, *({"num_forget"} & set(result.stats))]
    return {name: float(np.asarray(result.stats[name])) for name in names}


def _float64(result: Result) -> Assumption:
    found = sorted({str(np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(result.variables.params)})
    remedy = "train with convex.fit and do not touch its weights outside of jax.enable_x64(True)"
    return holds("float64", found == ["float64"], f"params are {' and '.join(found)}", remedy)


def _finite(result: Result, evidence: Evidence) -> Assumption:
    broken = [
        tree.path_of(path)
        for path, leaf in jax.tree.leaves_with_path(result.variables.params)
        if not np.all(np.isfinite(np.asarray(leaf)))
    ]
    broken += [] if np.isfinite(evidence.residual + evidence.rounding) else ["the gradient"]
    found = f"NaN or inf in {', '.join(broken)}" if broken else "params and their gradient are finite"
    return holds("finite values", not broken, found, "there is nothing to certify; train again")


def _requested(evidence: Evidence) -> Assumption:
    found = f"{evidence.num_forget} rows were to go"
    if evidence.num_unknown:
        found += f", {evidence.num_unknown} indices name no row of the data"
    remedy = "pass the request that the removal answered, in the numbering of these data"
    return holds("rows of the request", evidence.num_forget >= 1 and not evidence.num_unknown, found, remedy)
