"""A removal as it comes out of the package, and evidence written by hand."""

from functools import cache

import jax
import numpy as np

import jaxunlearn as ju
from jaxunlearn import certificates, convex
from jaxunlearn.certificates.certificate import Evidence
from tests.problems import lane

DECLARED = {"epsilon": 1.0, "delta": 1e-5, "extractor": "none", "adaptive": False}
PROBLEM = convex.logistic(0.05)
GONE = [3, 17]


def rows_of(num_rows=60, seed=0):
    rng = np.random.default_rng(seed)
    rows = convex.feature_rows(rng.normal(size=(num_rows, 2)))
    return ju.training_data(rows, rng.integers(0, 2, num_rows).astype(np.int32))


@cache
def toy(problem=PROBLEM):
    """Data, trained variables, the request for rows GONE, and a removal of them."""
    data = rows_of()
    variables, request = convex.fit(problem, data), lane(ju.from_indices(data, [GONE]), 0)
    return data, variables, request, jax.jit(convex.newton_removal(problem))(variables, data, request, jax.random.key(0))


def failed(certificate):
    return [assumption.name for assumption in certificate.assumptions if not assumption.holds]


def certified(result=None, data=None, request=None, **options):
    """A certificate of the toy's removal, some arguments replaced."""
    own_data, _, own_request, own_result = toy()
    return certificates.certify(
        own_result if result is None else result,
        own_data if data is None else data,
        own_request if request is None else request,
        **{"problem": PROBLEM, **DECLARED, **options},
    )


def with_kernel(result, kernel):
    """The result with other weights, float64 kept."""
    with jax.enable_x64(True):
        return result._replace(variables=ju.Variables({"kernel": jax.numpy.asarray(kernel)}))


def assessed(mechanism, epsilon=1.0, delta=1e-5, *, secret=None, **changes):
    """What a mechanism makes of two of 100 rows removed, l2 0.1, residual 1e-6, some of it replaced."""
    evidence = {
        "residual": 1e-6,
        "rounding": 0.0,
        "l2": 0.1,
        "row_norm": 0.9,
        "num_retain": 98,
        "num_forget": 2,
        "num_unknown": 0,
        "num_params": 2,
    }
    evidence |= {name: changes.pop(name) for name in list(changes) if name in evidence}
    stats = {"worst_case_bound": 4e-2, "data_bound": 3e-4, "quartic_bound": 1e-4, **changes}
    return mechanism.assess(Evidence(**evidence, secret=secret, stats=stats), epsilon, delta)
