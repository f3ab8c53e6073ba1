"""From a removal to a certificate: every assumption is looked at, and named."""

from typing import Any

import jax
import numpy as np

from jaxunlearn import checks, tree
from jaxunlearn.certificates.certificate import Assumption, Certificate, Evidence, Mechanism
from jaxunlearn.certificates.delete_then_noise import DeleteThenNoise
from jaxunlearn.status import MESSAGES, Status
from jaxunlearn.types import Data, Result

COMMON = ("distance_bound", "row_norm", "l2", "num_forget", "num_retain")
EXTRACTORS = ("none", "public", "trained on other data")


def certify(
    result: Result,
    data: Data,
    *,
    epsilon: float,
    delta: float,
    mechanism: Mechanism | None = None,
    extractor: str | None = None,
    adaptive: bool | None = None,
) -> Certificate:
    """An (epsilon, delta) certificate for a removal from a convex problem, or the reasons why there is none.

    Host only. Nothing is raised for what was measured or declared: a void certificate has `valid=False`, and its `assumptions`
    say which ones failed and what to do. `publish` adds its noise, and refuses void certificates.

    Args:
        result: of `newton_removal`, `woodbury_removal`, `influence_removal` or `descent_to_delete` (see `jaxunlearn.convex`),
            for one request or one merged request, or of a stream by `jaxunlearn.end_of_stream`.
        data: what the removal was given; its rows may already be marked as removed.
        epsilon: positive and finite.
        delta: in (0, 1), well below one over the number of rows.
        mechanism: which theorem; `DeleteThenNoise()` by default, else `ObjectivePerturbation`, `Sekhari` or `Neel`.
        extractor: where the features came from: `none`, `public` or `trained on other data`. One that was trained on rows
            to be forgotten voids the certificate, see `with_private_extractor`; so does silence.
        adaptive: whether requests may have depended on earlier releases; only False is covered, and silence is not False.

    Returns:
        A `Certificate` of Python floats.

    Raises:
        ValueError: epsilon, delta or a hyper-parameter of the mechanism out of range, several results at once, or statistics
            that this mechanism needs and the method does not report.
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
        >>> certificate = jaxunlearn.certificates.certify(
        ...     result, rows, epsilon=1.0, delta=1e-5, extractor="none", adaptive=False
        ... )
        >>> certificate.valid, round(certificate.noise_scale, 5)
        (True, 0.00373)
        >>> undeclared = jaxunlearn.certificates.certify(result, rows, epsilon=1.0, delta=1e-5)
        >>> [assumption.name for assumption in undeclared.assumptions if not assumption.holds]
        ['extractor', 'requests not adaptive']
    """
    mechanism = DeleteThenNoise() if mechanism is None else mechanism
    _require_types(result, data, mechanism)
    epsilon = _number("epsilon", epsilon, np.inf, "positive and finite, such as 1.0")
    delta = _number("delta", delta, 1.0, "between 0 and 1, both excluded, such as 1e-5")
    evidence = _evidence(result, data, mechanism)
    assumptions = [
        _status(result),
        _float64(result),
        _finite(result, evidence.stats),
        _holds("strong convexity", evidence.stats["l2"] > 0, f"l2 {evidence.stats['l2']:.3g}", "l2 has to be positive"),
        _holds(
            "rows within norm 1",
            evidence.stats["row_norm"] <= 1,
            f"the longest present row has norm {evidence.stats['row_norm']:.6g}",
            "make rows with convex.feature_rows, each by itself, and train again",
        ),
        _holds(
            "retained rows", evidence.num_retain >= 1, f"{evidence.num_retain:.0f} rows are left", "delete the model altogether"
        ),
        _matches(evidence),
        _extractor(extractor),
        _not_adaptive(adaptive),
    ]
    assessment = mechanism.assess(evidence, epsilon, delta)
    assumptions += assessment.assumptions
    scale = assessment.noise_scale
    assumptions += [
        _holds(
            "finite noise", 0 <= scale < np.inf, f"noise of deviation {scale:.3g}", "no noise makes up for what failed above"
        ),
        Assumption(
            "one observed release",
            True,
            "speaks of one release, to somebody who did not see the model before; add further ones with compose",
        ),
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
    )


def _holds(name: str, holds: bool, found: str, remedy: str) -> Assumption:
    return Assumption(name, bool(holds), found if holds else f"{found}: {remedy}")


def _require_types(result: Any, data: Any, mechanism: Any) -> None:
    if not isinstance(result, Result):
        raise TypeError(f"expected the Result of a removal, got {type(result).__name__}")
    if not isinstance(data, Data):
        raise TypeError(f"expected Data, got {type(data).__name__}")
    if not callable(getattr(mechanism, "assess", None)) or isinstance(mechanism, type):
        raise TypeError(f"mechanism must be such as DeleteThenNoise(), got {mechanism!r}")
    values = (result.variables, result.status, result.stats, data.present, data.extra)
    if not all(map(checks.is_concrete, jax.tree.leaves(values))):
        raise TypeError("certify() reads values, so call it outside jit and vmap, on the returned Result")
    checks.check_variables(result.variables)


def _number(name: str, value: Any, below: float, expected: str) -> float:
    if not checks.is_concrete(value):
        raise TypeError(f"{name} is needed on the host, so it cannot be traced")
    kind = np.asarray(value)
    if kind.ndim or kind.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 < float(kind) < below:
        raise ValueError(f"{name} must be {expected}, got {value}")
    return float(kind)


def _evidence(result: Result, data: Data, mechanism: Mechanism) -> Evidence:
    names = (*COMMON, *mechanism.stats)
    missing = [name for name in names if name not in result.stats]
    if missing:
        raise ValueError(
            f"{type(mechanism).__name__} needs stats {missing}, which this result does not have: use a removal from a convex "
            "problem such as newton_removal, and descent_to_delete for Neel"
        )
    many = {name: np.shape(result.stats[name]) for name in names if np.shape(result.stats[name])}
    if many or np.shape(result.status):
        raise ValueError(
            f"certify speaks of one model, got results of {np.shape(result.status)} requests: merge the requests and answer "
            "them with one, or take the end_of_stream"
        )
    stats = {name: float(np.asarray(result.stats[name])) for name in names}
    return Evidence(stats, data, sum(np.size(leaf) for leaf in jax.tree.leaves(result.variables.params)))


def _status(result: Result) -> Assumption:
    code = Status(int(np.asarray(result.status)))
    return Assumption("status ok", code == Status.OK, MESSAGES[code] if code == Status.OK else f"{code.name}: {MESSAGES[code]}")


def _float64(result: Result) -> Assumption:
    leaves = [*jax.tree.leaves(result.variables.params), *(result.stats[name] for name in COMMON)]
    found = sorted({str(np.dtype(leaf.dtype)) for leaf in leaves})
    remedy = "train with convex.fit and do not touch its weights outside of jax.enable_x64(True)"
    return _holds("float64", found == ["float64"], f"params and statistics are {' and '.join(found)}", remedy)


def _finite(result: Result, stats: dict[str, float]) -> Assumption:
    broken = [name for name in COMMON if not np.isfinite(stats[name])]
    broken += [
        tree.path_of(path)
        for path, leaf in jax.tree.leaves_with_path(result.variables.params)
        if not np.all(np.isfinite(np.asarray(leaf)))
    ]
    found = f"NaN or inf in {', '.join(broken)}" if broken else "params and statistics are finite"
    return _holds("finite values", not broken, found, "there is nothing to certify; train again")


def _matches(evidence: Evidence) -> Assumption:
    present = float(np.sum(np.asarray(evidence.data.present) > 0))
    before = evidence.num_retain + evidence.num_forget
    found = f"{present:.0f} rows are present, the removal left {evidence.num_retain:.0f} of {before:.0f}"
    remedy = "pass the data that the removal was given, with earlier requests marked as removed"
    return _holds("data of the removal", present in (before, evidence.num_retain), found, remedy)


def _extractor(extractor: Any) -> Assumption:
    known = isinstance(extractor, str) and extractor in EXTRACTORS
    remedy = f"say one of {', '.join(map(repr, EXTRACTORS))}; features learned from forgotten rows keep them"
    return _holds("extractor", known, "not declared" if extractor is None else f"declared as {extractor!r}", remedy)


def _not_adaptive(adaptive: Any) -> Assumption:
    found = "not declared" if adaptive is None else f"declared adaptive={adaptive!r}"
    remedy = "adaptive=False says that no request depended on a release; nothing else is covered"
    return _holds("requests not adaptive", isinstance(adaptive, bool | np.bool_) and not adaptive, found, remedy)
