"""Manifests and signatures of the releases in a directory: made from what was promised, so that they never change."""

import os
from pathlib import Path
from typing import Any

from jaxunlearn.certificates import manifest
from jaxunlearn.certificates.accounting import compose
from jaxunlearn.certificates.manifest import Manifest
from jaxunlearn.service import journal
from jaxunlearn.service.errors import ReleaseError
from jaxunlearn.service.intents import Intent, name_of


def manifest_of(known: list[Intent]) -> Manifest:
    """The manifest of the last of some releases, which is complete."""
    intent, total = known[-1], compose(*((each.certificate["epsilon"], each.certificate["delta"]) for each in known))
    return Manifest(
        number=intent.number,
        file=name_of(intent.number, "npz"),
        sha256=intent.release,
        total_epsilon=total.epsilon,
        total_delta=total.delta,
        noise_key=intent.noise_key,
        mechanism=mechanism_of(intent),
        assumptions=manifest.conditions(intent.assumptions, "assumptions of the certificate"),
        library=intent.library,
        time=intent.time,
        signer=intent.signer,
        **{field: intent.certificate[field] for field in ("epsilon", "delta", "noise_scale")},
    )


def mechanism_of(intent: Intent) -> str:
    """Its name without its options, which may be computed from the data."""
    return intent.certificate["mechanism"].split("(")[0]


def document(known: list[Intent], public: Path) -> None:
    """Write the manifest of every complete release; those that are there must be the same."""
    for count, intent in enumerate(known, start=1):
        if intent.release and not intent.retracted:
            path, content = public / name_of(intent.number, "json"), manifest.write(manifest_of(known[:count]))
            if not os.path.lexists(path):
                journal.write(path, content)
            elif manifest.content_of(path, manifest.LARGEST) != content:
                raise ReleaseError(f"{path} is not the manifest that was released: put that one back, or delete this one")


def sign(intent: Intent, public: Path, key: Any) -> None:
    """Write the signature of a release; one that is there must be the same."""
    content = manifest.content_of(public / name_of(intent.number, "json"), manifest.LARGEST)
    path, signature = public / name_of(intent.number, "sig"), key.sign(content)
    if not os.path.lexists(path):
        journal.write(path, signature)
    elif manifest.content_of(path, 2 * len(signature)) != signature:
        raise ReleaseError(f"{path} is not the signature that was released: put that one back, or delete this one")
