"""Releasing certified weights: the only place that adds the noise of a certificate.

    release = round(W + noise_scale * z),    z ~ N(0, I) in float64, rounded to the dtype of W at the very end

A certificate covers one release: if an observer gets two releases with different noise, both count, and if noise could be drawn
again for the same weights, averaging would remove it. So `publish` writes down what it will release before it does, releases
the same bits when it is asked again, and adds up epsilon and delta over releases that differ.

**Where the noise comes from.** A seed of 256 bits from the operating system (`secrets`), stretched by SHAKE-256 to 64 bits per
number, which Box and Muller's method makes normal. A caller's key serves experiments that must be repeated; whoever knows it
can subtract the noise, and the release says so (`noise_key="caller"`).

**Where it is kept.** `directory/public/` holds the released weights, their manifests and signatures, see
`jaxunlearn.certificates.manifest`; that is what may be handed out.
`directory/private/` holds one intent per release (`jaxunlearn.service.intents`): a salted hash of the weights before the noise,
the certificate, and the seed until the release is complete; then the seed is deleted, since the released bits are enough to
repeat them. Files have mode 0600, directories 0700, and private ones that others may read are refused. Do not hand out or back
up `private/`: a seed in there gives the noise away, and salt and hash let somebody who can compute the weights confirm a guess.
Deleting a file does not wipe a disk.

**Whom the total protects.** `total_epsilon` adds up all releases of the directory, and holds for people whose rows were removed
before the first of them. Whoever was removed after a release was part of its training: that release is a model trained on
them, its noise was not made for them, and no epsilon bounds what it tells. Retract it (`retract`, `Ledger.retract`): its file
goes, its cost stays, and what somebody has downloaded cannot be called back.

**A hard budget.** `publish(..., budget=(epsilon, delta))` refuses what would bring the total above it, before anything is
written; a ledger remembers its budget (`Ledger.declare_budget`).

**A key.** Intents carry a hash. Whoever may write in `private/` could write another epsilon and the hash to it, unless a
`seal_key` is in use, which is kept elsewhere.

**Signatures.** With a `signing_key` every manifest is signed with Ed25519. Keys are PEM files, such as `openssl` makes:

    openssl genpkey -algorithm ed25519 -out release.pem && chmod 600 release.pem     # stays with whoever publishes
    openssl pkey -in release.pem -pubout -out release.pub                            # goes to everybody, by another way

**What it does not do.** Floating-point noise is not exactly Gaussian: its low-order bits can tell more than the bound, by an
amount of the order of float64 rounding. Two directories do not know of each other.
"""

import hashlib
import io
import json
import secrets
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxunlearn import checks, status, tree
from jaxunlearn.certificates import documents, manifest, signing
from jaxunlearn.certificates.accounting import Privacy, compose
from jaxunlearn.certificates.certificate import TO_ACCEPT, Certificate
from jaxunlearn.service import intents as promises
from jaxunlearn.service import journal
from jaxunlearn.service.errors import BudgetError, ReleaseError
from jaxunlearn.service.intents import Intent, name_of
from jaxunlearn.service.lock import locked
from jaxunlearn.service.seals import Key, key_of
from jaxunlearn.types import Result, Variables
from jaxunlearn.version import __version__


class Release(NamedTuple):
    """Weights that may be handed out, and their privacy budget.

    The totals hold for people removed before release 1 of the directory, and for nobody who was removed later: earlier
    releases are models trained on them, see `jaxunlearn.certificates.publish`.
    """

    number: int  # 1, 2, ... in its directory
    variables: Variables
    epsilon: float  # of this release alone
    delta: float
    total_epsilon: float  # of all releases from the directory so far, interrupted and retracted ones included
    total_delta: float
    noise_key: Literal["os", "caller"]
    path: Path
    sha256: str  # of the file
    manifest: Path
    signer: str  # public key that the manifest names; empty if it is unsigned


def publish(
    result: Result,
    certificate: Certificate,
    directory: str | Path,
    *,
    key: PRNGKeyArray | None = None,
    seal_key: Key | None = None,
    budget: tuple[float, float] | None = None,
    signing_key: str | Path | None = None,
    accept: Collection[str] = (),
) -> Release:
    """Add the certificate's noise and write the weights to `directory/public`; the same bits for the same weights, ever after.

    Host only. Interrupted at any point, it is completed with the same bits by the next call with the same result. The budget of
    several releases is the sum of their epsilons and deltas (`compose`; `compose_costs` promises less). Rounding a
    release further, e.g. to float32, adds nothing. A model that was trained with its noise (`ObjectivePerturbation`) needs no
    more: its certificate has the noise scale 0, and it is released as it is.

    Args:
        result: of one request or of a merged one. Only its params are released; model state would leave without noise.
        certificate: valid, and made for these weights by `certify`; it knows their digest.
        directory: of all releases that one observer may see; made if absent.
        key: a typed key instead of entropy of the operating system, for experiments. Different weights get different noise
            from the same key.
        seal_key: at least 16 secret bytes, or the path of a file outside of the directory that holds them, which seal the
            intents; the same one for every release from a directory.
        budget: (epsilon, delta) that all releases from the directory may cost together; None for no limit.
        signing_key: PEM file of mode 0600 with an Ed25519 key, not encrypted; signs the manifest, see `verify`. A release that
            was promised with a signature, or without one, stays like that: asked again, publish needs the same key.
        accept: names of the assumptions that rest on a constant that was estimated or that nobody has proved, all of them and
            no others; the certificates of convex problems have none.

    Returns:
        A `Release`, read back from the file. float64 weights stay float64 although float64 may be off: do not calculate with
        them outside of `jax.enable_x64(True)`, which would round them.

    Raises:
        ValueError: a void certificate (the failed assumptions are named), one of other weights, one that rests on constants
            that `accept` does not name, or one whose values are out of range; several results at once; model state; params that
            are not float32 or float64; a file without a usable key.
        TypeError: inside `jit` or `vmap`.
        UnlearningError: the result's status is not ok.
        BudgetError: the release would cost more than is left of the budget. Nothing was written.
        ReleaseError, LedgerError: the directory was tampered with or sealed with another key, a released file is gone, these
            weights were released and retracted, or promised with other declarations or another signer, somebody else
            publishes there, or the disk is full or read-only.
        PermissionError: a private file, or the signing key, may be read by others.
        ImportError: a signing key is given, and the extra `sign` is not installed.

    References:
        Dwork, Roth: The algorithmic foundations of differential privacy, 2014 (composition). Mironov: On significance of the
        least significant bits for differential privacy, 2012.

    Example:
        >>> import tempfile
        >>> rows = jaxunlearn.training_data(jaxunlearn.convex.feature_rows(data.train.inputs), data.train.targets)
        >>> problem = jaxunlearn.convex.softmax(0.1, 3)
        >>> unlearn = jax.jit(jaxunlearn.convex.newton_removal(problem))
        >>> result = unlearn(jaxunlearn.convex.fit(problem, rows), rows, request, key)
        >>> declared = {"extractor": "none", "adaptive": False}
        >>> certificate = jaxunlearn.certificates.certify(
        ...     result, rows, request, problem=problem, epsilon=1.0, delta=1e-5, **declared
        ... )
        >>> release = jaxunlearn.certificates.publish(result, certificate, tempfile.mkdtemp())
        >>> release.number, release.total_epsilon, release.noise_key
        (1, 1.0, 'os')
    """
    weights = _require_publishable(result, certificate, key)
    _require_accepted(certificate, accept)
    signer = None if signing_key is None else signing.read_private_key(signing_key)
    signed_by = "" if signer is None else signing.name_of(signer.public_key())
    identity = tree.content_digest([weights, _promise(certificate)])
    draft = _intend(1, identity, certificate, key, signed_by)
    manifest.read(manifest.write(documents.manifest_of([draft._replace(release="0" * 64)])), "the manifest of this certificate")
    directory = Path(directory)
    secret = key_of(seal_key, directory)
    limit = None if budget is None else compose(budget)
    for folder in (directory / "public", directory / "private"):
        journal.make_directory(folder)
    with locked(directory / "lock"):
        intents = [promises.completed(directory, intent, secret) for intent in promises.read(directory, secret)]
        intent = next((known for known in intents if known.input == _salted(identity, known.salt)), None)
        if intent is None:
            intent = draft._replace(number=len(intents) + 1)
            _require_within(limit, intents, intent)
            promises.write(directory, intent, secret)
            intents.append(intent)
        _require_same(intent, certificate, signed_by)
        path = directory / "public" / name_of(intent.number, "npz")
        if intent.retracted:
            raise ReleaseError(
                f"these weights were release {intent.number}, which was retracted ({intent.retracted}), and it is not written "
                "again; another certificate makes another release of them, which costs its own epsilon"
            )
        if not intent.release:
            noisy = _add_noise(weights, certificate.noise_scale, bytes.fromhex(intent.seed))
            journal.write(path, _npz(noisy, _about(intent, intents[: intent.number])))
            intent = intents[intent.number - 1] = promises.completed(directory, intent, secret)
        documents.document(intents, directory / "public")
        if signer is not None:
            documents.sign(intent, directory / "public", signer)
        variables = load_release(path, result.variables)
        epsilon, delta = _together(intents)
    own = intent.certificate
    return Release(
        intent.number,
        variables,
        own["epsilon"],
        own["delta"],
        epsilon,
        delta,
        intent.noise_key,
        path,
        intent.release,
        directory / "public" / name_of(intent.number, "json"),
        intent.signer,
    )


def _require_within(limit: Privacy | None, intents: list[Intent], intent: Intent) -> None:
    if limit is None:
        return
    before, after = _together(intents), _together([*intents, intent])
    if after.epsilon > limit.epsilon or after.delta > limit.delta:
        own = intent.certificate
        raise BudgetError(
            f"this release costs ({own['epsilon']:g}, {own['delta']:g}) on top of ({before.epsilon:g}, {before.delta:g}), and "
            f"the budget is ({limit.epsilon:g}, {limit.delta:g}), so nothing was released: certify with less, or stop here"
        )


def load_release(path: str | Path, like: Variables) -> Variables:
    """Read released weights.

    Args:
        path: of the released file.
        like: a tree of the same form, arrays or what `jax.eval_shape(model.init, key)` returns.

    Returns:
        `like` with the released params; its state is kept. float64 weights stay float64, see `publish`.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file holds the weights of another model.

    Example:
        >>> variables = load_release("releases/public/release-000001.npz", model.init(key))  # doctest: +SKIP
    """
    with np.load(path, allow_pickle=False) as file:
        saved = {name: file[name] for name in file.files if name != "about"}
    expected = {
        f"params/{tree.path_of(place)}": (jnp.shape(leaf), np.dtype(leaf.dtype))
        for place, leaf in jax.tree.leaves_with_path(like.params)
    }
    found = {name: (array.shape, array.dtype) for name, array in saved.items()}
    if found != expected:
        raise ValueError(f"{path} holds the weights of another model: expected {expected}, found {found}")
    with jax.enable_x64(True):
        leaves = [jnp.asarray(saved[name]) for name in expected]
    return like._replace(params=jax.tree.unflatten(jax.tree.structure(like.params), leaves))


def _require_publishable(result: Result, certificate: Certificate, key: PRNGKeyArray | None) -> dict[str, np.ndarray]:
    values = (result.variables, result.status, *(getattr(certificate, name) for name in certificate._fields), key)
    if not all(map(checks.is_concrete, jax.tree.leaves(values))):
        raise TypeError("publish() draws noise and writes files, so call it outside jit and vmap, on the returned Result")
    failed = [f"{each.name} ({each.detail})" for each in certificate.assumptions if not each.holds]
    if failed or not certificate.valid:
        reasons = "; ".join(failed) or "it says so without naming an assumption"
        raise ValueError(f"the certificate is void, so nothing was released: {reasons}")
    epsilon, delta, scale = float(certificate.epsilon), float(certificate.delta), float(certificate.noise_scale)
    if not (0 < epsilon < np.inf and 0 <= delta < 1 and 0 <= scale < np.inf):
        raise ValueError(
            "expected a certificate with 0 < epsilon < inf, 0 <= delta < 1 and 0 <= noise_scale < inf, got "
            f"epsilon={epsilon}, delta={delta}, noise_scale={scale}; make it with certify()"
        )
    if key is not None:
        checks.check_key(key)
    if np.ndim(result.status):
        raise ValueError(
            f"publish releases one model, got the results of {np.shape(result.status)} requests: merge() the requests first"
        )
    status.check(result)
    checks.check_variables(result.variables)
    if jax.tree.leaves(result.variables.state):
        raise ValueError(
            "the certificate covers params, but variables.state holds arrays that would be released without noise; publish "
            "Variables(params) and keep the state of a public extractor apart"
        )
    weights = {
        f"params/{tree.path_of(place)}": np.asarray(leaf) for place, leaf in jax.tree.leaves_with_path(result.variables.params)
    }
    if tree.content_digest(result.variables.params) != certificate.subject.weights:
        raise ValueError(
            "the certificate was made for other weights, so nothing was released: certify this very result, and do not touch "
            "its weights in between"
        )
    strange = [f"{name} ({array.dtype})" for name, array in weights.items() if array.dtype not in (np.float32, np.float64)]
    if strange:
        raise ValueError(
            f"publish takes float64 or float32 params, got {', '.join(strange)}; round the release, not the result"
        )
    return weights


def _require_accepted(certificate: Certificate, accept: Collection[str]) -> None:
    if isinstance(accept, str):
        raise TypeError(f"accept takes names in a list or a tuple, got the text {accept!r}")
    asked = {each.name: each for each in certificate.assumptions if each.source in TO_ACCEPT}
    open_ = [f"{name!r} ({each.source}: {each.detail})" for name, each in asked.items() if name not in accept]
    strange = sorted(set(accept) - set(asked))
    if open_ or strange:
        told = f"it rests on {'; '.join(open_)}" if open_ else f"accept names {strange}, on which it does not rest"
        raise ValueError(f"nothing was released: {told}. Pass accept={tuple(asked)!r} if you answer for these constants")


def _intend(number: int, identity: str, certificate: Certificate, key: PRNGKeyArray | None, signer: str) -> Intent:
    salt = secrets.token_hex(32)
    return Intent(
        version=promises.VERSION,
        number=number,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        library=__version__,
        salt=salt,
        input=_salted(identity, salt),
        certificate=_promise(certificate),
        assumptions=_shown(certificate),
        noise_key="os" if key is None and not certificate.has_own_noise else "caller",
        signer=signer,
        seed=secrets.token_hex(32) if key is None else tree.content_digest([key, identity]),
        release="",
        retracted="",
    )


def _require_same(intent: Intent, certificate: Certificate, signer: str) -> None:
    """A release stays what it was promised to be."""
    given = _shown(certificate)
    if given != intent.assumptions:
        changed = {
            each["name"] for each in (*given, *intent.assumptions) if each not in given or each not in intent.assumptions
        }
        raise ReleaseError(
            f"release {intent.number} of these weights was promised with other declarations, which differ in "
            f"{', '.join(sorted(changed)) or 'their order'}: declare the same"
        )
    if signer != intent.signer:
        raise ReleaseError(
            f"release {intent.number} was promised {_signed(intent.signer)}, and is asked for {_signed(signer)}: pass the same "
            "signing_key, or none"
        )


def _shown(certificate: Certificate) -> list[dict[str, str]]:
    return [each._asdict() for each in manifest.public_conditions(certificate.assumptions)]


def _signed(signer: str) -> str:
    return f"with a signature by {signer}" if signer else "without a signature"


def _promise(certificate: Certificate) -> dict[str, Any]:
    numbers = {name: float(getattr(certificate, name)) for name in ("epsilon", "delta", "sensitivity", "noise_scale")}
    return {"mechanism": str(certificate.mechanism), **numbers}


def _salted(identity: str, salt: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + identity.encode()).hexdigest()


def _add_noise(weights: dict[str, np.ndarray], scale: float, seed: bytes) -> dict[str, np.ndarray]:
    sizes = [array.size for array in weights.values()]
    draws = np.split(_standard_normal(seed, sum(sizes)), np.cumsum(sizes)[:-1])
    return {
        name: (array.astype(np.float64) + scale * draw.reshape(array.shape)).astype(array.dtype)
        for (name, array), draw in zip(weights.items(), draws, strict=True)
    }


def _standard_normal(seed: bytes, count: int) -> np.ndarray:
    """float64 normal numbers from SHAKE-256; the same for the same seed, whatever the version of NumPy."""
    pairs = (count + 1) // 2
    words = np.frombuffer(hashlib.shake_256(seed).digest(16 * pairs), "<u8")
    first, second = (((words >> 11) + 0.5) * 2.0**-53).reshape(2, pairs)  # in (0, 1)
    radius = np.sqrt(-2 * np.log(first))
    return np.concatenate([radius * np.cos(2 * np.pi * second), radius * np.sin(2 * np.pi * second)])[:count]


def _about(intent: Intent, until: list[Intent]) -> dict[str, Any]:
    epsilon, delta = _together(until)
    return {
        "number": intent.number,
        "mechanism": documents.mechanism_of(intent),
        **{name: intent.certificate[name] for name in ("epsilon", "delta", "noise_scale")},
        "total_epsilon": epsilon,
        "total_delta": delta,
        "noise_key": intent.noise_key,
    }


def _npz(weights: dict[str, np.ndarray], about: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, about=np.array(json.dumps(about, sort_keys=True)), **weights)
    return file.getvalue()


def _together(intents: list[Intent]) -> Privacy:
    return compose(*((intent.certificate["epsilon"], intent.certificate["delta"]) for intent in intents))
