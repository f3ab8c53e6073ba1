"""A certificate, looked at by somebody else: what it says of weights, rows and request is computed anew and compared."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxunlearn import checks
from jaxunlearn.certificates.certificate import Certificate, Mechanism
from jaxunlearn.certificates.certify import certify
from jaxunlearn.certificates.evidence import collect
from jaxunlearn.convex.problems import Problem
from jaxunlearn.status import Status
from jaxunlearn.types import Data, ForgetRequest, Result, Variables

ABOUT = {
    "weights": "the weights are others",
    "retained_rows": "the rows that are left, their targets, their order or their dtype are others",
    "request": "the request names other rows",
    "secret": "the secret of the objective is another, or is missing",
    "problem": "the problem is another",
}


class Recheck(NamedTuple):
    """What somebody else found; a certificate holds up only if `agrees`."""

    agrees: bool
    differences: tuple[str, ...]  # what differs, in words; empty if nothing does
    residual: float  # as computed here, rounding included
    distance: float


def recheck(
    certificate: Certificate,
    variables: Variables,
    data: Data,
    request: ForgetRequest,
    *,
    problem: Problem,
    mechanism: Mechanism | None = None,
) -> Recheck:
    """Compute residual and distance of a certificate anew, and compare them and all digests with what it says.

    Host only, one pass over the rows, two with a mechanism. Two computers add rows in different orders: residuals agree if they
    differ by no more than twice what float64 rounding can do, as bounded in `jaxunlearn.certificates.evidence`. Contents of the
    rows that had to go are not read; they may be erased by then.

    Only with a mechanism are sensitivity, noise scale, budget and the checked assumptions computed anew; else they are as they
    stand in the certificate. What was declared (`source` of each assumption) and the status of the removal cannot be computed
    from anything, and the noise of a release is secret.

    Args:
        certificate: what `certify` returned or `Certificate.from_json` read, valid or not.
        variables: the weights before the noise.
        data: the training rows, in the order that they had, and the secret of an objective perturbation.
        request: the rows that had to go, in the numbering of these data.
        problem: what the weights are said to be an optimum of.
        mechanism: the one of the certificate, `DeleteThenNoise` or `Sekhari`. Others read statistics of the removal, so that
            only `certify` can repeat them.

    Returns:
        A `Recheck`.

    Raises:
        ValueError: weights, rows or targets that do not belong to the problem at all; a mechanism that reads statistics.
        TypeError: inside `jit` or `vmap`, or arguments of another type.

    Example:
        >>> rows = jaxunlearn.training_data(jaxunlearn.convex.feature_rows(data.train.inputs), data.train.targets)
        >>> problem = jaxunlearn.convex.softmax(0.1, 3)
        >>> unlearn = jax.jit(jaxunlearn.convex.newton_removal(problem))
        >>> result = unlearn(jaxunlearn.convex.fit(problem, rows), rows, request, key)
        >>> declared = {"extractor": "none", "adaptive": False}
        >>> text = jaxunlearn.certificates.certify(
        ...     result, rows, request, problem=problem, epsilon=1.0, delta=1e-5, **declared
        ... ).to_json()
        >>> certificate = jaxunlearn.certificates.Certificate.from_json(text)
        >>> jaxunlearn.certificates.recheck(certificate, result.variables, rows, request, problem=problem).agrees
        True
        >>> moved = rows._replace(train=rows.train._replace(targets=rows.train.targets[::-1]))
        >>> jaxunlearn.certificates.recheck(certificate, result.variables, moved, request, problem=problem).differences[0]
        'the rows that are left, their targets, their order or their dtype are others'
    """
    expected = ((certificate, Certificate), (variables, Variables), (data, Data), (request, ForgetRequest), (problem, Problem))
    for value, kind in expected:
        if not isinstance(value, kind):
            raise TypeError(f"expected a {kind.__name__}, got {type(value).__name__}: recheck(certificate, variables, ...)")
    if not all(map(checks.is_concrete, jax.tree.leaves((variables, data, request)))):
        raise TypeError("recheck() reads values, so call it outside jit and vmap")
    checks.check_variables(variables)
    if np.ndim(request.indices) != 1:
        raise ValueError("recheck looks at one request, got several: merge() them")
    evidence, subject = collect(Result(variables, np.int32(Status.OK)), data, request, problem, {})
    differences = [words for name, words in ABOUT.items() if getattr(subject, name) != getattr(certificate.subject, name)]
    if evidence.num_unknown:
        differences.append(f"{evidence.num_unknown} indices of the request name no row of these data")
    if not evidence.num_forget:
        differences.append("the request names no row")
    residual, distance = evidence.residual + evidence.rounding, evidence.distance
    margin = 2 * evidence.rounding * (1 + 1e-6)
    curvature = evidence.l2 * evidence.num_retain
    near = margin / curvature * (1 + 1e-6) if curvature > 0 else 0.0
    for name, said, found, allowed in (
        ("residual", certificate.residual, residual, margin),
        ("distance", certificate.distance, distance, near),
    ):
        if not _same(said, found, allowed):
            differences.append(f"the {name} is {found:.6g}, the certificate says {said:.6g}")
    if mechanism is not None:
        if mechanism.stats:
            raise ValueError(
                f"{type(mechanism).__name__} reads {mechanism.stats} of the removal: repeat the certificate with certify"
            )
        epsilon, delta = certificate.epsilon, certificate.delta
        again = certify(Result(variables), data, request, problem=problem, epsilon=epsilon, delta=delta, mechanism=mechanism)
        differences += _promises(certificate, again, near)
    return Recheck(not differences, tuple(differences), residual, distance)


def _same(said: float, found: float, allowed: float) -> bool:
    if math.isfinite(said) and math.isfinite(found):
        return abs(said - found) <= allowed
    return repr(float(said)) == repr(float(found))  # of a void certificate: nan is nan


def _promises(said: Certificate, found: Certificate, near: float) -> Iterator[str]:
    """How what the mechanism makes of the evidence differs."""
    if said.mechanism != found.mechanism:
        yield f"the mechanism is {found.mechanism}, the certificate says {said.mechanism}"
    for name, more in (("sensitivity", 0.0), ("noise_scale", 0.0), ("budget_left", near)):
        old, new = getattr(said, name), getattr(found, name)
        if not _same(old, new, more + 1e-12 * abs(new)):
            yield f"the {name} is {new:.6g}, the certificate says {old:.6g}"
    old, new = ({(each.name, each.source) for each in certificate.assumptions} for certificate in (said, found))
    for name, source in sorted(old ^ new):
        yield f"the assumption {name!r} ({source}) is {'missing' if (name, source) in new else 'none of this mechanism'}"
    holds = {each.name: each.holds for each in said.assumptions}
    for each in found.assumptions:
        if each.source == "checked" and each.name != "status ok" and holds.get(each.name, each.holds) != each.holds:
            yield f"the assumption {each.name!r} {'holds' if each.holds else 'fails'}: {each.detail}"
