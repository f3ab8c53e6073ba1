"""Refusals that the metrics share. They look at values only where these are concrete; under tracing NaN stays NaN."""

import jax
import numpy as np
from jax.typing import ArrayLike


def require_models(metric: str, count: int, least: int) -> None:
    """ValueError unless there are at least `least` models."""
    if count < least:
        raise ValueError(f"{metric} needs at least {least} models of each kind, got {count}: train more")


def require_equal(metric: str, what: str, first: int, second: int) -> None:
    """ValueError unless both counts agree."""
    if first != second:
        raise ValueError(f"{metric}: candidate and reference hold {first} and {second} {what}; compare them on the same ones")


def require_numbers(metric: str, **arrays: ArrayLike) -> None:
    """ValueError if a concrete array holds NaN."""
    for name, values in arrays.items():
        if not isinstance(values, jax.core.Tracer) and np.any(np.isnan(np.asarray(values))):
            raise ValueError(f"{metric}: {name} hold NaN; leave out the models or examples that diverged, and say so")


def require_probabilities(metric: str, **arrays: ArrayLike) -> None:
    """ValueError unless concrete arrays are probabilities that sum to 1 on their last axis, within 1e-3."""
    for name, values in arrays.items():
        require_numbers(metric, **{name: values})
        if isinstance(values, jax.core.Tracer):
            continue
        values = np.asarray(values)
        if np.any(values < 0) or np.any(np.abs(values.sum(axis=-1) - 1) > 1e-3):
            raise ValueError(f"{metric}: {name} must be at least 0 and sum to 1 over the last axis; take softmax of logits")
