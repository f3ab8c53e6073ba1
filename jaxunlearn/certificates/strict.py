"""JSON that is read to the letter: what is missing, unknown, twice there or out of range is refused and named, never guessed.

Numbers that are not finite have no form in JSON; they are the words `"inf"`, `"-inf"` and `"nan"`, where they may occur at all.
Every reader raises `ValueError` with the name of what it read.
"""

import json
import math
import re
from collections.abc import Collection
from typing import Any

WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def parse(content: bytes | str, name: str) -> Any:
    """JSON without duplicate fields, NaN, infinities, numbers beyond float64, or text that is no Unicode."""
    if len(content) == 0:
        raise ValueError(f"{name} is empty")
    try:
        text = content.decode() if isinstance(content, bytes) else content
        text.encode()  # half a surrogate pair is no text
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
        json.dumps(found, ensure_ascii=False).encode()  # and may be hidden in an escape
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{name} is no JSON that this library writes: {error}") from error
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the fields {twice} occur more than once")
    return dict(pairs)


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits} is beyond float64")
    return number


def fields(value: Any, names: Collection[str], name: str) -> dict[str, Any]:
    """An object with these fields and no others."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object with fields, got {_shown(value)}")
    missing, unknown = [x for x in names if x not in value], sorted(set(value) - set(names))
    if missing or unknown:
        raise ValueError(f"{name} has other fields than expected: missing {missing}, unknown {unknown}")
    return value


def versioned(
    value: Any, form: str, versions: tuple[int, ...], names: Collection[str], name: str
) -> tuple[dict[str, Any], int]:
    """An object of a format and one of some versions, with these fields besides and no others; and its version."""
    found = value if isinstance(value, dict) else {}
    given = (found.get("format"), found.get("version"))
    if given[0] != form or given[1] not in versions or isinstance(given[1], bool | float):
        shown = f"{_shown(given[0])} of version {_shown(given[1])}"
        raise ValueError(f"{name} has no format {form!r} of version {' or '.join(map(str, versions))}: got {shown}")
    return fields(found, ("format", "version", *names), name), given[1]


def same_version(given: int, needed: int, name: str) -> None:
    """The lowest version that can say it, so that nothing is written in two ways."""
    if given != needed:
        raise ValueError(f"{name} is of version {given}, and what it says is said in version {needed}")


def number(value: Any, name: str, *, words: bool = False) -> float:
    """A number as float64, none of its digits lost; with `words` also one that is not finite."""
    if words and isinstance(value, str) and value in WORDS:
        return WORDS[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {_shown(value)}")
    if isinstance(value, int) and abs(value) > 2**53:
        raise ValueError(f"{name} must be a float64 number, got an integer of {value.bit_length()} bits")
    return float(value)


def plain(value: Any) -> float | str:
    """A number in the form that `number` reads."""
    found = float(value)
    return found if math.isfinite(found) else str(found)


def count(value: Any, name: str) -> int:
    """An integer from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**53:
        raise ValueError(f"{name} must be an integer of at least 1, got {_shown(value)}")
    return value


def budget(epsilon: float, delta: float, name: str) -> None:
    """Positive and finite epsilon, delta from 0 and below 1."""
    if not (0 < epsilon < math.inf and 0 <= delta < 1):
        raise ValueError(f"{name} needs 0 < epsilon < inf and 0 <= delta < 1, got epsilon {epsilon!r} and delta {delta!r}")


def text(value: Any, name: str, *, empty: bool = False) -> str:
    """Text, which may be empty where that is said."""
    if not isinstance(value, str) or not (value or empty):
        raise ValueError(f"{name} must be text, got {_shown(value)}")
    return value


def one_of(value: Any, known: Collection[str], name: str) -> Any:
    """One of some words."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {_shown(value)}")
    return value


def truth(value: Any, name: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {_shown(value)}")
    return value


def items(value: Any, name: str) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, got {_shown(value)}")
    return value


def digest(value: Any, name: str, *, empty: bool = False) -> str:
    """64 lower-case hexadecimal digits, or nothing where that is said."""
    if not isinstance(value, str) or not (re.fullmatch("[0-9a-f]{64}", value) or (empty and not value)):
        raise ValueError(f"{name} must be 64 hexadecimal digits, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 2**63:
        return f"an integer of {value.bit_length()} bits"  # which may have too many digits to print
    found = repr(value)
    return found if len(found) <= 60 else f"{found[:60]}..."
