"""What goes out with released weights, so that whoever gets them can check where they come from and what is promised.

    release-000001.npz    the weights
    release-000001.json   the manifest: their digest, the promise, and who answers for each of its assumptions
    release-000001.sig    Ed25519 signature over the bytes of the manifest, if the publisher has a key

The manifest is JSON in one canonical form (sorted fields, no spaces, ASCII), so that it cannot be written in two ways. It says
nothing that depends on the rows, apart from the noise scale: what was measured stays with the certificate.

    format          "jaxunlearn release"
    version         1, or 2 where an assumption is enforced, estimated or unproved
    number          of the release in its directory, from 1
    file, sha256    name and SHA-256 of the file of weights
    epsilon, delta  of this release
    total_epsilon, total_delta    of all releases of the directory up to this one
    noise_scale     deviation of the noise; 0 if the model was trained with it
    noise_key       "os", or "caller": the noise is known to somebody
    mechanism       name of the theorem
    assumptions     name, source (checked by the library, declared by the user, assumed, enforced by the update, estimated,
                    unproved) and, unless checked or estimated, in words
    library         version of jaxunlearn
    time            when the release was promised, UTC
    signer          public key in hexadecimal digits; empty if unsigned

A signature says that the holder of the key released this file with this promise. It does not say that the promise is true,
nor that there is no newer release, nor that another directory does not hold a release of the same number.
"""

import hashlib
import os
import re
import stat
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxunlearn.certificates import signing, strict
from jaxunlearn.certificates.certificate import SOURCES, Assumption, Source, version_of
from jaxunlearn.service import journal
from jaxunlearn.service.errors import ReleaseError

FORMAT = "jaxunlearn release"
LARGEST = 2**20  # bytes of a manifest
SUFFIXES = ("npz", "json", "sig")
MEASURED = ("checked", "estimated")


class Condition(NamedTuple):
    """One assumption of a release, as the public may see it."""

    name: str
    source: Source
    detail: str  # in words; empty if it was checked or estimated, since what was found depends on the rows


class Manifest(NamedTuple):
    """What is said of one release; the fields are explained in `jaxunlearn.certificates.manifest`."""

    number: int
    file: str
    sha256: str
    epsilon: float
    delta: float
    total_epsilon: float
    total_delta: float
    noise_scale: float
    noise_key: Literal["os", "caller"]
    mechanism: str
    assumptions: tuple[Condition, ...]
    library: str
    time: str
    signer: str


class Verification(NamedTuple):
    """A release whose weights are the ones that its manifest speaks of; only `valid` says who wrote that."""

    manifest: Manifest
    status: Literal["valid", "unsigned", "unchecked"]  # unchecked: signed, but no public key was given

    @property
    def valid(self) -> bool:
        """Whether the signature was made with the given key."""
        return self.status == "valid"


def verify(path: str | Path, public_key: str | Path | None) -> Verification:
    """Check that released weights are the ones that the holder of a key released, and what is promised of them.

    The weights are not loaded; do not change the files between this and `load_release`. Names in a manifest are compared and
    never opened.

    Args:
        path: of the weights, e.g. `release-000001.npz`; manifest and signature lie beside it under their own names.
        public_key: PEM file with the Ed25519 key of the publisher, from a source that you trust: not the folder of the release.
            None checks nothing but the digest, and never gives `valid`.

    Returns:
        A `Verification`. With a key it is always valid, or an error is raised.

    Raises:
        ReleaseError: weights, manifest or signature are missing, changed, cut short, symbolic links, or of another release; the
            manifest is unsigned, signed by another key, or not what this library writes. The message says what differs.
        ValueError: `path` names no release, or there is no Ed25519 public key in the file.
        ImportError: a key is given, and the extra `sign` is not installed.

    Example:
        >>> found = jaxunlearn.certificates.verify("release-000001.npz", "publisher.pub")  # doctest: +SKIP
        >>> found.valid, found.manifest.epsilon  # doctest: +SKIP
        (True, 1.0)
    """
    path = Path(path)
    matched = re.fullmatch(r"release-([0-9]{6,})\.npz", path.name, re.ASCII)
    if not matched:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: give one of its release-*.npz, or call verify_all")
        raise ValueError(f"expected the path of released weights, such as release-000001.npz, got {path}")
    key = None if public_key is None else signing.read_public_key(public_key)
    found = content_of(path.with_suffix(".json"), LARGEST)
    try:
        manifest = read(found, f"{path.with_suffix('.json')}")
    except ValueError as error:
        raise ReleaseError(f"{error}; it was changed, or another version wrote it") from error
    wrong = []
    if (manifest.number, manifest.file) != (int(matched[1]), path.name):
        wrong.append(f"the manifest is that of release {manifest.number} ({manifest.file!r}), not of {path.name!r}")
    digest = digest_of(path)
    if digest != manifest.sha256:
        wrong.append(f"the weights have SHA-256 {digest}, the manifest says {manifest.sha256}")
    status, more = _status(path.with_suffix(".sig"), manifest, found, key, public_key)
    if wrong or more:
        raise ReleaseError(f"{path} is refused: {'; '.join([*wrong, *more])}")
    return Verification(manifest, status)


def verify_all(directory: str | Path, public_key: str | Path | None) -> tuple[Verification, ...]:
    """`verify` every release of a folder, and refuse what belongs to none of them.

    Numbers may be missing: a release that was promised and never finished counts in the totals of later ones. What cannot be
    seen is that newer releases were left out.

    Args:
        directory: such as `releases/public`.
        public_key: see `verify`.

    Returns:
        One `Verification` per release, by number.

    Raises:
        ReleaseError: see `verify`; also files that belong to no release, and a folder without any.
        ValueError, ImportError: see `verify`.
        FileNotFoundError: no such folder.

    Example:
        >>> jaxunlearn.certificates.verify_all("releases/public", "publisher.pub")[-1].manifest.total_epsilon  # doctest: +SKIP
        1.0
    """
    names = {path.name for path in Path(directory).iterdir()}
    weights = sorted(name for name in names if re.fullmatch(r"release-[0-9]{6,}\.npz", name, re.ASCII))
    numbers = [name.removesuffix(".npz") for name in weights]
    strange = sorted(names - {f"{number}.{suffix}" for number in numbers for suffix in SUFFIXES})
    if strange:
        raise ReleaseError(f"{directory} holds what belongs to no release: {', '.join(map(repr, strange))}")
    if not numbers:
        raise ReleaseError(f"{directory} holds no release")
    found = [verify(Path(directory, name), public_key) for name in weights]
    return tuple(sorted(found, key=lambda each: each.manifest.number))


def _status(
    path: Path, manifest: Manifest, content: bytes, key: Any, source: Any
) -> tuple[Literal["valid", "unsigned", "unchecked"], list[str]]:
    """What the signature says, and what is wrong about it."""
    there = os.path.lexists(path)
    if not manifest.signer:
        if there:
            return "unsigned", [f"there is a signature, {path.name}, but the manifest is unsigned: one of them was exchanged"]
        return "unsigned", [] if key is None else ["the manifest is unsigned, so anybody may have written it"]
    if not there:
        return "unchecked", [f"the manifest is signed by {manifest.signer}, but its signature {path.name} is missing"]
    signature = content_of(path, signing.LENGTH)
    if len(signature) != signing.LENGTH:
        return "unchecked", [
            f"the signature {path.name} has {len(signature)} bytes instead of {signing.LENGTH}: it was cut short"
        ]
    if key is None:
        return "unchecked", []
    if signing.name_of(key) != manifest.signer:
        return "unchecked", [f"the manifest names the signer {manifest.signer}, the key in {source} is {signing.name_of(key)}"]
    if not signing.fits(key, signature, content):
        return "unchecked", [f"the signature {path.name} does not fit the manifest: one of the two was changed"]
    return "valid", []


def public_conditions(assumptions: tuple[Assumption, ...]) -> tuple[Condition, ...]:
    """Assumptions without what was measured."""
    return tuple(Condition(x.name, x.source, "" if x.source in MEASURED else x.detail) for x in assumptions)


def write(manifest: Manifest) -> bytes:
    """The canonical form of a manifest."""
    body = {**manifest._asdict(), "assumptions": [each._asdict() for each in manifest.assumptions]}
    version = version_of(each.source for each in manifest.assumptions)
    return journal.canonical({"format": FORMAT, "version": version, **body})


def read(content: bytes, name: str) -> Manifest:
    """A manifest from its canonical form; ValueError for anything else, saying what it is."""
    value, version = strict.versioned(strict.parse(content, name), FORMAT, (1, 2), Manifest._fields, name)
    manifest = Manifest(
        number=strict.count(value["number"], f"number of {name}"),
        file=strict.text(value["file"], f"file of {name}"),
        sha256=strict.digest(value["sha256"], f"sha256 of {name}"),
        epsilon=strict.number(value["epsilon"], f"epsilon of {name}"),
        delta=strict.number(value["delta"], f"delta of {name}"),
        total_epsilon=strict.number(value["total_epsilon"], f"total_epsilon of {name}"),
        total_delta=strict.number(value["total_delta"], f"total_delta of {name}"),
        noise_scale=strict.number(value["noise_scale"], f"noise_scale of {name}"),
        noise_key=strict.one_of(value["noise_key"], ("os", "caller"), f"noise_key of {name}"),
        mechanism=strict.text(value["mechanism"], f"mechanism of {name}"),
        assumptions=conditions(value["assumptions"], f"assumptions of {name}"),
        library=strict.text(value["library"], f"library of {name}"),
        time=_time(value["time"], f"time of {name}"),
        signer=strict.digest(value["signer"], f"signer of {name}", empty=True),
    )
    strict.same_version(version, version_of(each.source for each in manifest.assumptions), name)
    strict.budget(manifest.epsilon, manifest.delta, name)
    if manifest.total_epsilon < manifest.epsilon or not manifest.delta <= manifest.total_delta <= 1:
        raise ValueError(f"{name} has lower totals for all releases together than for this one, or a total_delta above 1")
    if manifest.noise_scale < 0:
        raise ValueError(f"noise_scale of {name} must be at least 0, got {manifest.noise_scale!r}")
    if write(manifest) != content:
        raise ValueError(f"{name} is not in its canonical form: spaces, line endings, order or digits differ")
    return manifest


def conditions(value: Any, name: str) -> tuple[Condition, ...]:
    """Assumptions as a manifest holds them; ValueError for anything else."""
    found = []
    for each in strict.items(value, name):
        each = strict.fields(each, Condition._fields, name)
        source: Source = strict.one_of(each["source"], SOURCES, name)
        found.append(Condition(strict.text(each["name"], name), source, strict.text(each["detail"], name, empty=True)))
    return tuple(found)


def _time(value: Any, name: str) -> str:
    found = strict.text(value, name)
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found, re.ASCII):
        raise ValueError(f"{name} must be such as 2026-01-31T12:00:00+00:00, got {found!r}")
    try:
        datetime.fromisoformat(found)
    except ValueError as error:
        raise ValueError(f"{name} is no time: {error}") from error
    return found


def content_of(path: Path, most: int) -> bytes:
    """The content of a file that is what it seems; ReleaseError for links, folders, missing and larger files."""
    with _opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ReleaseError(f"{path} has more than {most} bytes: it was changed")
    return content


def digest_of(path: Path) -> str:
    """SHA-256 of a file that is what it seems, in hexadecimal digits; ReleaseError for links, folders and missing files."""
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path) -> Any:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ReleaseError(f"{path} is missing") from error
    except OSError as error:
        if path.is_symlink():
            raise ReleaseError(
                f"{path} is a symbolic link, which may lead elsewhere tomorrow: put the file itself there"
            ) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ReleaseError(f"{path} is no regular file")
    return os.fdopen(handle, "rb")
