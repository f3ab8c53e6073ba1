"""What a request asks for: read to the letter, and found among the rows (phase `find`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.certificates import strict
from jaxunlearn.service.fingerprints import RecordId, names_in, names_of

KINDS = ("ids", "indices", "group")
LONGEST_NAME = 200  # characters of a request's id


class Asked(NamedTuple):
    """One request as it was written."""

    request: str  # its id, chosen by who asks
    kind: str  # of `KINDS`
    value: Any  # list of ids, list of row numbers, or (column, value)


def parse(content: bytes, name: str) -> Asked:
    """Read a request; nothing is guessed.

    Args:
        content: one JSON object, see `jaxunlearn.answering.inbox`.
        name: where it stands, for messages.

    Returns:
        `Asked`.

    Raises:
        ValueError: says what is wrong.

    Example:
        >>> parse(b'{"request": "r-18", "indices": [3, 5]}', "line 1")
        Asked(request='r-18', kind='indices', value=[3, 5])
    """
    found = strict.parse(content, name)
    kinds = [kind for kind in KINDS if isinstance(found, dict) and kind in found]
    if len(kinds) != 1:
        raise ValueError(f"{name} must be an object with the field 'request' and one of {', '.join(map(repr, KINDS))}")
    kind = kinds[0]
    value = strict.fields(found, ("request", kind), name)[kind]
    request = strict.text(found["request"], f"request of {name}")
    if len(request) > LONGEST_NAME or not request.isprintable():
        raise ValueError(f"request of {name} must be at most {LONGEST_NAME} printable characters")
    if kind == "group":
        group = strict.fields(value, ("column", "value"), f"group of {name}")
        column = strict.text(group["column"], f"column of {name}")
        if isinstance(group["value"], bool) or not isinstance(group["value"], str | int):
            raise ValueError(f"value of {name} must be a text or an integer")
        return Asked(request, kind, (column, group["value"]))
    listed = strict.items(value, f"{kind} of {name}")
    wanted = "integers" if kind == "indices" else "texts or integers"
    right = int if kind == "indices" else str | int
    if not listed or any(isinstance(each, bool) or not isinstance(each, right) for each in listed):
        raise ValueError(f"{kind} of {name} must be a list of {wanted} with at least one entry")
    return Asked(request, kind, listed)


class Lookup:
    """Finds the rows of requests among those of a data set.

    Args:
        record_ids: the id of every row, [n]; rows that share an id go together.
        groups: columns that requests may name, each with one text or integer per row.

    Raises:
        ValueError: a column with another number of rows.

    Example:
        >>> found = Lookup(["ada", "bob", "ada"], {"city": ["Ulm", "Bonn", "Ulm"]})
        >>> found.names(Asked("r-1", "group", ("city", "Ulm")), lambda name: False)
        ['"ada"']
    """

    def __init__(self, record_ids: Sequence[RecordId], groups: Mapping[str, Sequence[Any]]):
        self.of_rows = names_of(record_ids)
        self.rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.of_rows):
            self.rows.setdefault(name, []).append(row)
        self._groups: dict[str, dict[Any, list[int]]] = {}
        for column, values in groups.items():
            values = np.asarray(values).tolist() if hasattr(values, "dtype") else list(values)
            if len(values) != len(self.of_rows):
                raise ValueError(f"groups[{column!r}] has {len(values)} values for {len(self.of_rows)} rows")
            rows: dict[Any, list[int]] = {}
            for row, value in enumerate(values):
                rows.setdefault(_kept_apart(value), []).append(row)
            self._groups[column] = rows

    def names(self, asked: Asked, removed: Callable[[str], bool]) -> list[str]:
        """Record ids that a request asks for, as text, each once and in order.

        Args:
            asked: the request.
            removed: whether an id, as text, was removed before; it may have no row any more.

        Returns:
            At least one id, in the form of `names_of`.

        Raises:
            ValueError: rows or ids that are not there, or a part of the rows of one id.
        """
        if asked.kind == "ids":
            names = names_in(asked.value)
            strangers = [place for place, name in enumerate(names) if name not in self.rows and not removed(name)]
            if strangers:
                raise ValueError(
                    f"no row has {len(strangers)} of the {len(names)} record ids, such as number {strangers[0] + 1}"
                )
            return names
        rows = self._rows_asked(asked)
        names = list(dict.fromkeys(self.of_rows[row] for row in rows))
        asked_for = set(rows)
        for name in names:
            if missing := [row for row in self.rows[name] if row not in asked_for]:
                raise ValueError(
                    f"row {next(row for row in rows if self.of_rows[row] == name)} shares its record id with "
                    f"{len(missing)} rows that were not named, and rows of one id go together: ask by ids"
                )
        return names

    def _rows_asked(self, asked: Asked) -> list[int]:
        if asked.kind == "indices":
            count = len(self.of_rows)
            strays = [row for row in asked.value if not 0 <= row < count]
            if strays:
                raise ValueError(f"row {strays[0]} is not among the {count} rows, which are numbered from 0")
            return list(dict.fromkeys(asked.value))
        column, value = asked.value
        if column not in self._groups:
            raise ValueError(f"there is no column {column!r}; there are {sorted(self._groups)}")
        rows = self._groups[column].get(_kept_apart(value))
        if rows is None:
            raise ValueError(f"no row has this value in column {column!r}; 1 and '1' are two values")
        return rows


def _kept_apart(value: Any) -> Any:
    """1 and "1", and 1 and True, are different values."""
    return (type(value).__name__, value)
