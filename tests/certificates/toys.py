"""A removal as it comes out of the package, and results written by hand."""

import jax
import numpy as np

import jaxunlearn as ju
from jaxunlearn import certificates

DECLARED = {"epsilon": 1.0, "delta": 1e-5, "extractor": "none", "adaptive": False}


def data_of(num_rows=100, *, extra=None):
    return ju.training_data(np.zeros((num_rows, 2), np.float32), np.zeros(num_rows, np.int32), extra=extra or {})


def result_of(*, status=0, kernel=(0.5, -0.5), dtype=np.float64, **stats):
    """Two of 100 rows removed, l2 0.1: residual 1e-6."""
    stats = {
        "residual": 1e-6,
        "distance_bound": 1e-6 / (0.1 * 98),
        "worst_case_bound": 4e-2,
        "data_bound": 3e-4,
        "quartic_bound": 1e-4,
        "row_norm": 0.9,
        "l2": 0.1,
        "num_forget": 2.0,
        "num_retain": 98.0,
        **stats,
    }
    with jax.enable_x64(True):
        params = {"kernel": jax.numpy.asarray(np.asarray(kernel, dtype)[:, None])}
        measured = {name: jax.numpy.asarray(np.asarray(value, np.float64)) for name, value in stats.items()}
    return ju.Result(ju.Variables(params), jax.numpy.int32(status), measured)


def failed(certificate):
    return [assumption.name for assumption in certificate.assumptions if not assumption.holds]


def certified(result=None, data=None, **options):
    result = result_of() if result is None else result
    return certificates.certify(result, data_of() if data is None else data, **{**DECLARED, **options})
