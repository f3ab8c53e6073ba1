"""Refusals that the metrics share. They look at concrete values only; in traced ones NaN stays NaN."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.checks import is_concrete
from jaxunlearn.types import Examples


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
        if is_concrete(values) and np.any(np.isnan(np.asarray(values))):
            raise ValueError(f"{metric}: {name} hold NaN; leave out the models or examples that diverged, and say so")


def require_finite(metric: str, **arrays: ArrayLike) -> None:
    """ValueError if a concrete array holds NaN or an infinite value."""
    require_numbers(metric, **arrays)
    for name, values in arrays.items():
        if is_concrete(values) and not np.all(np.isfinite(np.asarray(values))):
            raise ValueError(
                f"{metric}: {name} hold infinite values, of which no mean or variance can be taken: clip them to what the "
                "logits can resolve, or leave those rows out, and say so"
            )


def require_disjoint(metric: str, *, members: Examples, nonmembers: Examples) -> None:
    """ValueError if a concrete non-member is a member as well: the same inputs and targets, by value, whatever their dtypes."""
    leaves = jax.tree.leaves((members, nonmembers))
    if not all(is_concrete(x) for x in leaves):
        return
    dtypes = [_common(*pair) for pair in zip(*map(jax.tree.leaves, (members, nonmembers)), strict=True)]
    known = {row: place for place, row in enumerate(_row_bytes(members, dtypes))}
    shared = [(known[row], place) for place, row in enumerate(_row_bytes(nonmembers, dtypes)) if row in known]
    if shared:
        pairs = ", ".join(f"{member} and {other}" for member, other in shared[:3])
        raise ValueError(
            f"{metric}: {len(shared)} non-members are members as well (member {pairs}{', ...' if len(shared) > 3 else ''}); "
            "take rows that no model was trained on"
        )


def _common(first: ArrayLike, second: ArrayLike) -> np.dtype:
    """What both are compared in: the narrower of two floating-point dtypes, to which the other side may have been rounded."""
    dtypes = [np.asarray(x).dtype for x in (first, second)]
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    if len(floating) == 2:
        return min(floating, key=lambda dtype: jnp.finfo(dtype).bits)
    return np.dtype(np.float64 if floating else np.int64)


def _row_bytes(examples: Examples, dtypes: list) -> list[bytes]:
    columns = [np.asarray(x).astype(dtype) + dtype.type(0) for x, dtype in zip(jax.tree.leaves(examples), dtypes, strict=True)]
    return [b"".join(row) for row in zip(*([x.tobytes() for x in column] for column in columns), strict=True)]


def require_probabilities(metric: str, **arrays: ArrayLike) -> None:
    """ValueError unless concrete arrays are probabilities that sum to 1 on their last axis, within 1e-3."""
    for name, values in arrays.items():
        require_numbers(metric, **{name: values})
        if not is_concrete(values):
            continue
        values = np.asarray(values)
        if np.any(values < 0) or np.any(np.abs(values.sum(axis=-1) - 1) > 1e-3):
            raise ValueError(f"{metric}: {name} must be at least 0 and sum to 1 over the last axis; take softmax of logits")


def require_margins(metric: str, candidate: ArrayLike, reference: ArrayLike, *, least: int) -> tuple[jax.Array, jax.Array]:
    """Both as arrays; ValueError unless they are [models, examples] of the same examples with models enough and no NaN."""
    candidate, reference = jnp.asarray(candidate), jnp.asarray(reference)
    if candidate.ndim != 2 or reference.ndim != 2:
        raise ValueError(f"{metric}: expected margins [models, examples], got {candidate.shape} and {reference.shape}")
    require_equal(metric, "examples", candidate.shape[1], reference.shape[1])
    require_models(metric, min(candidate.shape[0], reference.shape[0]), least)
    require_numbers(metric, **{"candidate margins": candidate, "reference margins": reference})
    return candidate, reference
