"""Near-duplicates of rows that are to be forgotten: rows that say nearly the same and would stay."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

BLOCK = 4096  # rows at a time, on both sides


class Near(NamedTuple):
    """A row that stays and is close to one that goes."""

    row: int
    like: int  # the row of the request that it is closest to
    similarity: float  # cosine, at most 1


def near_duplicates(
    features: Float[np.ndarray, "n d"], rows: Sequence[int], stays: Bool[np.ndarray, " n"], *, least: float = 0.99
) -> list[Near]:
    """Rows that stay and whose features have nearly the direction of those of a row that goes.

    On the host, in blocks of 4,096 by 4,096 rows. Rows without a direction (zeros, NaN or infinities) are near to nothing.

    Args:
        features: of all rows; inputs will do where nothing better is known.
        rows: numbers of the rows that go.
        stays: which rows stay; those of the request count as gone whatever it says.
        least: smallest cosine that counts as near, in [-1, 1].

    Returns:
        One entry per such row, the most similar first.

    Raises:
        ValueError: shapes that do not fit, rows out of range, a cosine out of range.

    Example:
        >>> found = near_duplicates(np.array([[1.0, 0.0], [2.0, 0.01], [0.0, 1.0]]), [0], np.array([True, True, True]))
        >>> [(each.row, each.like) for each in found]
        [(1, 0)]
    """
    features, gone = np.asarray(features), np.asarray(rows, int)
    if features.ndim != 2 or np.shape(stays) != features.shape[:1]:
        raise ValueError(f"expected features [n, d] and stays [n], got {features.shape} and {np.shape(stays)}")
    if gone.size and not (gone.min() >= 0 and gone.max() < len(features)):
        raise ValueError(f"rows must lie in 0..{len(features) - 1}, got {gone.min()}..{gone.max()}")
    if not -1 <= least <= 1:
        raise ValueError(f"least is a cosine, from -1 to 1, got {least}")
    kept = np.array(stays, bool)
    kept[gone] = False
    left, found = np.flatnonzero(kept), []
    for start in range(0, len(left), BLOCK):
        part = left[start : start + BLOCK]
        here, best, like = _directions(features[part]), np.full(len(part), -np.inf), np.zeros(len(part), int)
        for first in range(0, len(gone), BLOCK):
            others = gone[first : first + BLOCK]
            cosines = here @ _directions(features[others]).T
            cosines = np.where(np.isfinite(cosines), cosines, -np.inf)
            place = cosines.argmax(axis=1)
            value = cosines[np.arange(len(part)), place]
            best, like = np.maximum(best, value), np.where(value > best, others[place], like)
        found += [Near(int(part[i]), int(like[i]), min(float(best[i]), 1.0)) for i in np.flatnonzero(best >= least)]
    return sorted(found, key=lambda each: (-each.similarity, each.row))


def _directions(rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
    """Rows of length 1; NaN for those without a direction."""
    rows = rows.astype(np.float64)
    with np.errstate(all="ignore"):
        rows = rows / np.max(np.abs(rows), axis=1, keepdims=True, initial=0)  # so that no square overflows
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
