"""Checkpoints of a ledger's applications: the un-noised weights, and apart from them what the next request starts from.

checkpoints/000002/weights   variables and status
checkpoints/000002/carried   statistics, and what the method carries on (`Result.extra`), stamps included
"""

import os
import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxunlearn import modes, tree
from jaxunlearn.service import checkpoint, journal
from jaxunlearn.service.errors import CheckpointError, LedgerError, explained
from jaxunlearn.service.fingerprints import keyed
from jaxunlearn.service.records import Application
from jaxunlearn.slots import Made
from jaxunlearn.types import Data, Result, Variables


def save(directory: Path, record: int, result: Result, salt: bytes) -> dict[str, Any]:
    """Write the checkpoint of one application durably.

    Returns:
        What the journal's record of it says: keyed digests of the parts, the form of the statistics, what is carried on.

    Raises:
        LedgerError: the system refuses, e.g. because the disk is full. What was begun is deleted.
    """
    parts: dict[str, PyTree] = {"weights": {"variables": result.variables, "status": result.status}}
    if result.stats or result.extra:
        parts["carried"] = {"stats": dict(result.stats), "extra": dict(result.extra)}
    folder = _folder(directory, record)
    journal.make_directory(folder)
    try:
        with jax.enable_x64(True), explained(folder):
            for name, part in parts.items():
                checkpoint.save_variables(folder / name, part)
            modes.make_private(folder)  # weights before the noise: the files themselves, not their folder alone
            journal.sync_tree(folder)
    except CheckpointError as error:
        shutil.rmtree(folder)
        raise LedgerError(f"{error}; nothing was applied") from error
    return {
        "digests": {name: keyed(salt, tree.content_digest(part)) for name, part in parts.items()},
        "stats": {name: [str(np.asarray(x).dtype), list(np.shape(x))] for name, x in result.stats.items()},
        "carried": {name: _how(x) for name, x in sorted(result.extra.items())},
    }


def load_weights(directory: Path, application: Application, like: Variables, salt: bytes) -> tuple[Variables, jax.Array]:
    """Weights and status after an application, in the tree of `like`.

    Raises:
        LedgerError: the checkpoint was tampered with, is damaged or is gone.
        ValueError: it holds the weights of another model.
    """
    found = _load(directory, application, "weights", {"variables": like, "status": jax.ShapeDtypeStruct((), jnp.int32)}, salt)
    return found["variables"], found["status"]


def load_carried(directory: Path, application: Application, data: Data, salt: bytes) -> tuple[dict, dict]:
    """Statistics of an application, and what its method carries on, in the form of what `data.extra` holds.

    Raises:
        LedgerError: the checkpoint was tampered with, is damaged or is gone.
        ValueError: `data.extra` lacks what is carried on, or holds values that were made in another way.
    """
    if "carried" not in application.digests:
        return {}, {}
    missing = [name for name in application.carried if name not in data.extra]
    if missing:
        raise ValueError(f"the ledger carries {missing} on: pass them, or values of the same form, in data.extra")
    extra = {name: data.extra[name] for name in application.carried}
    for name, how in application.carried.items():
        if (given := _how(extra[name])) != how:
            raise ValueError(f"the ledger carries data.extra[{name!r}] on, made as {how!r}; this one was made as {given!r}")
    stats = {name: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (dtype, shape) in application.stats.items()}
    found = _load(directory, application, "carried", {"stats": stats, "extra": extra}, salt)
    return found["stats"], found["extra"]


def clean(directory: Path, kept: Mapping[int, Collection[str]]) -> None:
    """Delete all checkpoints and parts of them but those that are kept, by the record of their application."""
    parts = {_folder(directory, record).name: names for record, names in kept.items()}
    for folder in sorted(directory.iterdir()):
        if folder.name not in parts:
            remove(folder)
        else:
            for part in sorted(folder.iterdir()):
                if part.name not in parts[folder.name]:
                    remove(part)


def remove(path: Path) -> None:
    """Delete a file or a folder durably."""
    for left in reversed(range(20)):
        try:
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():
                os.unlink(path)
            break
        except OSError:  # threads of a save that was interrupted may still be at it
            if not left:
                raise
            time.sleep(0.1)
    journal.sync_directory(path.parent)


def _load(directory: Path, application: Application, part: str, like: PyTree, salt: bytes) -> Any:
    folder = _folder(directory, application.record) / part
    try:
        modes.require_private(folder)
        with jax.enable_x64(True):
            found = checkpoint.load_variables(folder, like)
    except (CheckpointError, FileNotFoundError) as error:
        raise LedgerError(
            f"the checkpoint of record {application.record} ({part}) cannot be read, so put it back from a backup: {error}"
        ) from error
    if keyed(salt, tree.content_digest(found)) != application.digests[part]:
        raise LedgerError(f"the checkpoint of record {application.record} ({part}) was tampered with")
    return found


def _folder(directory: Path, record: int) -> Path:
    return directory / f"{record:06d}"


def _how(value: Any) -> str:
    """How a value was made, which is static and so not among the arrays of a checkpoint."""
    return value.how if isinstance(value, Made) else ""
