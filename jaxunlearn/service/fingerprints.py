"""Which model, which rows, which people: digests that are equal for equal contents, and keyed ones that tell nothing."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import jax
import numpy as np

from jaxunlearn import tree
from jaxunlearn.service import journal
from jaxunlearn.types import Data, Variables

RecordId: TypeAlias = str | int


def fingerprint(variables: Variables) -> str:
    """SHA-256 of a model's parameters and state: paths, dtypes, shapes and bits.

    Args:
        variables: of the trained model.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: inside `jit` or `vmap`.

    Example:
        >>> len(jaxunlearn.ledger.fingerprint(variables))
        64
    """
    return tree.content_digest(variables)


def data_fingerprint(data: Data, record_ids: Sequence[RecordId]) -> str:
    """SHA-256 of ids and contents of the present rows, in whatever order they come.

    Args:
        data: the training data; `extra` does not count.
        record_ids: the id of each of its n rows.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: another number of ids than of rows.
        TypeError: ids that are neither strings nor integers.

    Example:
        >>> len(jaxunlearn.ledger.data_fingerprint(data, range(60)))
        64
    """
    return digest_of_rows(row_digests(data, names_of(record_ids)))


def row_digests(data: Data, names: Sequence[str]) -> dict[int, bytes]:
    """SHA-256 of the id and the content of each present row, by its number.

    Raises:
        ValueError: another number of names than of rows.
    """
    rows = tree.leading_axis(data.train, "data.train")
    if len(names) != rows:
        raise ValueError(f"expected one record id for each of the {rows} training rows, got {len(names)}")
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(data.train)]
    form = journal.canonical([[str(leaf.dtype), *leaf.shape[1:]] for leaf in leaves])
    digests = {}
    for row in np.flatnonzero(np.asarray(data.present) > 0).tolist():
        content = b"".join(leaf[row].tobytes() for leaf in leaves)
        digests[row] = hashlib.sha256(form + names[row].encode() + b"\0" + content).digest()
    return digests


def digest_of_rows(digests: dict[int, bytes]) -> str:
    """One digest of many rows, in whatever order they come."""
    return hashlib.sha256(b"".join(sorted(digests.values()))).hexdigest()


def names_of(record_ids: Iterable[RecordId]) -> list[str]:
    """Record ids as text.

    Raises:
        TypeError: ids that are neither strings nor integers.
    """
    record_ids = list(record_ids)
    strange = [each for each in record_ids if isinstance(each, bool) or not isinstance(each, str | int | np.integer)]
    if strange:
        raise TypeError(f"record ids are strings or integers, got {strange[0]!r}; use ids that stay, not row numbers")
    return [str(each) for each in record_ids]


def keyed(salt: bytes, text: str) -> str:
    """HMAC-SHA-256: tells nothing about the text to whoever does not know the salt."""
    return hmac.new(salt, text.encode(), "sha256").hexdigest()
