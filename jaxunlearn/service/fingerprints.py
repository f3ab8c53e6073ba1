"""Which model, which rows, which people: digests that are equal for equal contents, and keyed ones that tell nothing."""

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, TypeAlias

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
        ValueError: another number of ids than of rows, or an id that is empty or no valid text.
        TypeError: ids that are neither strings nor integers, or that have no order.

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


def names_of(record_ids: Sequence[RecordId]) -> list[str]:
    """Ids of rows, one each and in their order, as text that differs wherever the ids do: 1 and "1" are two people.

    Raises:
        TypeError: ids that are neither strings nor integers, or that have no order.
        ValueError: an id that is empty or no valid text.
    """
    if isinstance(record_ids, str | Set):
        raise TypeError(f"expected a list with the id of every row, in their order, got a {type(record_ids).__name__}")
    return _names(record_ids)


def names_in(record_ids: RecordId | Iterable[RecordId]) -> list[str]:
    """Ids of a request, or a single one, each named once, as `names_of` names them.

    Raises:
        TypeError, ValueError: as `names_of`; order does not matter here.
    """
    alone = isinstance(record_ids, str | int | np.integer)
    return list(dict.fromkeys(_names([record_ids] if alone else record_ids)))


def _names(record_ids: Any) -> list[str]:
    if isinstance(record_ids, Mapping | bytes | bytearray) or not isinstance(record_ids, Iterable):
        raise TypeError(f"expected a list of record ids, got a {type(record_ids).__name__}; of a dict pass list(keys)")
    record_ids = list(record_ids)
    for each in record_ids:
        if isinstance(each, bool) or not isinstance(each, str | int | np.integer):
            raise TypeError(f"record ids are strings or integers, got {each!r}; use ids that stay, not row numbers")
        if isinstance(each, str) and not each:
            raise ValueError("a record id is empty: rows without an id would all count as one person; give each its own")
        if isinstance(each, str) and any("\ud800" <= letter <= "\udfff" for letter in each):
            raise ValueError(
                f"the record id {each!r} is no valid text: a lone surrogate stands for a byte that was not decoded; read "
                "the ids with their own encoding"
            )
    return [json.dumps(each if isinstance(each, str) else int(each), ensure_ascii=False) for each in record_ids]


def keyed(salt: bytes, text: str) -> str:
    """HMAC-SHA-256: tells nothing about the text to whoever does not know the salt."""
    return hmac.new(salt, text.encode(), "sha256").hexdigest()
