"""A log of finished results, one JSON object per line, that an interrupted run goes on behind."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.experimental import multihost_utils

Records: TypeAlias = dict[tuple[str, str], dict[str, Any]]  # by scenario and method


def read_log(path: Path, expected: dict[str, Any], settings: Mapping[tuple[str, str], Mapping[str, float]]) -> Records:
    """What a log holds so far; one is begun where there is none. A last line that was cut off is removed.

    Raises:
        ValueError: it belongs to another configuration or other settings, or is no log.
    """
    text = path.read_bytes() if path.exists() else b""
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    if not whole:
        path.parent.mkdir(parents=True, exist_ok=True)
        append(path, {"config": expected})
        return {}
    first, *lines = map(json.loads, whole.splitlines())
    if "config" not in first:
        raise ValueError(f"{path} is not a log of this script: use another --out")
    found = first["config"]
    different = [
        f"{name} was {found.get(name)}, is {expected.get(name)}"
        for name in {**found, **expected}
        if found.get(name) != expected.get(name)
    ]
    records = {(line["scenario"], line["method"]): line for line in lines}
    different += [
        f"settings of {method} for {table} were {records[table, method]['settings']}, are {wanted}"
        for (table, method), wanted in settings.items()
        if (table, method) in records and records[table, method]["settings"] != wanted
    ]
    if different:
        raise ValueError(
            f"{path} belongs to a run with another configuration ({'; '.join(different)}): use another --out, or delete it"
        )
    return records


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a log, safely on the disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def told_by_first(refused: bool, pending: list[bool]) -> tuple[bool, list[bool]]:
    """What the first process decided; the others may not see its log."""
    flags = np.array([refused, *pending])
    if jax.process_count() > 1:
        flags = np.asarray(multihost_utils.broadcast_one_to_all(flags))
    return bool(flags[0]), flags[1:].astype(bool).tolist()
