"""What a directory of releases promises: one intent per release, written before its file and kept ever after.

private/release-000001.json   the intent, sealed
public/release-000001.npz     the released weights, until they are retracted
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxunlearn import modes
from jaxunlearn.service import journal, seals
from jaxunlearn.service.errors import ReleaseError, explained
from jaxunlearn.service.lock import locked
from jaxunlearn.service.seals import Key, key_of

VERSION = 2


class Intent(NamedTuple):
    """What is promised before anything is released."""

    version: int
    number: int  # 1, 2, ... in its directory
    time: str  # UTC
    library: str
    salt: str
    input: str  # salted hash of the weights before the noise and of what the certificate promises
    certificate: dict[str, Any]
    assumptions: list[dict[str, str]]  # as the manifest shows them
    noise_key: Literal["os", "caller"]
    signer: str  # public key; empty if the release is not to be signed
    seed: str  # empty once the release is complete or retracted
    release: str  # hash of the released file, empty until then
    retracted: str  # why its file is gone for good, empty while it may be handed out


def name_of(number: int, suffix: str) -> str:
    """The name of a release's file."""
    return f"release-{number:06d}.{suffix}"


def read(directory: Path, key: bytes | None) -> list[Intent]:
    """All intents of a directory, checked one by one.

    Raises:
        ReleaseError: one is torn, tampered with, sealed with another key, of another version, or gone.
    """
    if (directory / "private").is_dir():  # there is none before the first release
        modes.require_private(directory / "private")
    intents: list[Intent] = []
    for number, path in enumerate(sorted((directory / "private").glob("release-*.json")), start=1):
        content = modes.read_private(path)
        try:
            fields = json.loads(content)
            form = journal.canonical(fields)
        except (ValueError, RecursionError) as error:
            raise ReleaseError(f"{path} was tampered with: it is no JSON; restore it from a backup") from error
        if not isinstance(fields, dict) or fields.get("version") != VERSION:
            raise ReleaseError(f"{path} has another version than {VERSION}, or none: use the library that wrote it")
        carried = fields.pop("hash", None)
        if set(fields) != set(Intent._fields):
            raise ReleaseError(f"{path} was tampered with: expected the fields {Intent._fields}, got {tuple(sorted(fields))}")
        if fault := seals.fault(journal.canonical(fields), carried, key):
            raise ReleaseError(f"{path} {fault}")
        if content != form:
            raise ReleaseError(f"{path} was tampered with: it is not in the form that was sealed; restore it from a backup")
        intents.append(Intent(**fields))
        if intents[-1].number != number:
            raise ReleaseError(f"{path} is release {intents[-1].number} where release {number} is expected: one is gone")
    return intents


def count(directory: Path) -> int:
    """How many releases were promised."""
    return len(list((directory / "private").glob("release-*.json")))


def write(directory: Path, intent: Intent, key: bytes | None) -> None:
    """Write or replace an intent durably."""
    fields = intent._asdict()
    sealed = {**fields, "hash": seals.seal(journal.canonical(fields), key)}
    journal.write(directory / "private" / name_of(intent.number, "json"), journal.canonical(sealed))


def completed(directory: Path, intent: Intent, key: bytes | None) -> Intent:
    """The intent as its released file says; files are replaced at once, so one that is there is whole.

    Raises:
        ReleaseError: the file is gone, although it was not retracted, or is another one.
    """
    path = directory / "public" / name_of(intent.number, "npz")
    if intent.retracted:
        return intent
    if not path.exists():
        if intent.release:
            raise ReleaseError(
                f"{path} was released and is gone: put it back, since other noise for the same weights would be one more "
                "release; if it is not to be handed out any more, retract it"
            )
        return intent
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not intent.release:
        intent = intent._replace(seed="", release=found)
        write(directory, intent, key)
    elif found != intent.release:
        raise ReleaseError(f"{path} is not the file that was released: put that one back")
    return intent


def retract(directory: str | Path, number: int, reason: str, *, seal_key: Key | None = None) -> None:
    """Take a release back: its file is deleted, it is never written again, and later releases do not need it.

    Its epsilon and delta still count, since whoever had it may have kept it. Called again, it finishes what was interrupted.
    In a ledger call `Ledger.retract`, which records it.

    Args:
        directory: of the releases, as given to `publish`.
        number: of the release.
        reason: for the record; no names in it.
        seal_key: as given to `publish`.

    Raises:
        ReleaseError: no such release, or the directory was tampered with.
        ValueError: no reason.
        LedgerError: somebody else publishes there.

    Example:
        >>> jaxunlearn.certificates.retract("releases", 1, "trained on people removed later")  # doctest: +SKIP
    """
    retract_all(Path(directory), {number: reason}, key_of(seal_key, Path(directory)))


def retract_all(directory: Path, reasons: Mapping[int, str], key: bytes | None) -> None:
    """Retract releases by their number, or finish that; see `retract`."""
    for reason in reasons.values():
        require_reason(reason)
    if not (directory / "private").is_dir():
        raise ReleaseError(f"{directory} holds no releases to retract: give the folder that `publish` was given")
    with locked(directory / "lock"):
        known = {intent.number: intent for intent in read(directory, key)}
        if missing := sorted(set(reasons) - set(known)):
            raise ReleaseError(f"{directory} has no release {missing[0]} to retract: it has {sorted(known) or 'none'}")
        for number, reason in reasons.items():
            if not known[number].retracted:
                write(directory, known[number]._replace(seed="", retracted=reason), key)
            remove_file(directory, number)


def remove_file(directory: Path, number: int) -> None:
    """Delete the file of a release durably, if it is there."""
    path = directory / "public" / name_of(number, "npz")
    files = [path.with_suffix(suffix) for suffix in (".npz", ".json", ".sig")]
    found = [each for each in (*files, *(file.with_name(f"{file.name}.new") for file in files)) if os.path.lexists(each)]
    with explained(path):
        for each in found:
            os.unlink(each)
        if found:
            journal.sync_directory(path.parent)


def require_reason(reason: str) -> None:
    """ValueError unless a reason is text that can be written down."""
    if not isinstance(reason, str) or not reason.strip() or any("\ud800" <= letter <= "\udfff" for letter in reason):
        raise ValueError(f"a retraction needs a reason in words, got {reason!r}")


def require_recorded(directory: Path, recorded: Iterable[Mapping[str, Any]], key: bytes | None) -> None:
    """Compare the intents with the releases that a journal recorded.

    Raises:
        ReleaseError: one is gone, or says something else; or the directory was tampered with.
    """
    known = {intent.number: intent for intent in read(directory, key)}
    for release in recorded:
        path = directory / "private" / name_of(release["number"], "json")
        intent = known.get(release["number"])
        if intent is None:
            raise ReleaseError(f"{path} is gone, and the journal recorded its release: restore it from a backup")
        told = {**intent.certificate, "noise_key": intent.noise_key, "sha256": intent.release}
        wrong = [name for name in ("epsilon", "delta", "noise_key", "sha256") if told[name] != release[name]]
        if wrong:
            raise ReleaseError(f"{path} says another {' and '.join(wrong)} than the journal recorded: restore it from a backup")
