"""Ed25519 keys and signatures, through `cryptography` (extra `sign`).

    openssl genpkey -algorithm ed25519 -out release.pem && chmod 600 release.pem     # stays with whoever publishes
    openssl pkey -in release.pem -pubout -out release.pub                            # goes to everybody, by another way

A signature is 64 bytes over the bytes of a file, so that other programs can check it, too:

    openssl pkeyutl -verify -rawin -in release-000001.json -sigfile release-000001.sig -pubin -inkey release.pub
"""

from pathlib import Path
from typing import Any

from jaxunlearn import modes

LENGTH = 64  # bytes of a signature
LARGEST = 65_536  # bytes of a file with a key


def read_private_key(path: str | Path) -> Any:
    """An Ed25519 private key.

    Raises:
        ImportError: without the extra `sign`.
        FileNotFoundError, PermissionError: no file, or one that others may read.
        ValueError: encrypted, of another kind, or no key at all.
        TypeError: not a path.
    """
    private, serialization, _, unsupported = _cryptography()
    _require_path(path, "signing_key")
    content = modes.read_private(path)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError as error:  # that is what cryptography raises for a missing password
        raise ValueError(
            f"the private key in {path} is encrypted: decrypt it to a file of mode 600 (openssl pkey -in ... -out ...)"
        ) from error
    except (ValueError, unsupported) as error:
        raise ValueError(
            f"{path} holds no private key in PEM form: make one as jaxunlearn.certificates.publish says"
        ) from error
    if not isinstance(key, private.Ed25519PrivateKey):
        raise ValueError(f"{path} holds a key of another kind ({type(key).__name__}); only Ed25519 keys sign releases")
    return key


def read_public_key(path: str | Path) -> Any:
    """An Ed25519 public key.

    Raises:
        ImportError: without the extra `sign`.
        FileNotFoundError: no file.
        ValueError: a private key, one of another kind, or no key at all.
        TypeError: not a path.
    """
    private, serialization, _, unsupported = _cryptography()
    _require_path(path, "public_key")
    with Path(path).open("rb") as file:
        content = file.read(LARGEST)
    if b"PRIVATE KEY" in content:
        raise ValueError(f"{path} holds a private key, which nobody but the publisher should have: give the public one")
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, unsupported) as error:
        raise ValueError(f"{path} holds no public key in PEM form") from error
    if not isinstance(key, private.Ed25519PublicKey):
        raise ValueError(f"{path} holds a key of another kind ({type(key).__name__}); releases are signed with Ed25519")
    return key


def name_of(public_key: Any) -> str:
    """The 32 bytes of a public key as hexadecimal digits."""
    return public_key.public_bytes_raw().hex()


def fits(public_key: Any, signature: bytes, content: bytes) -> bool:
    """Whether a signature was made for this content with this key."""
    _, _, invalid, _ = _cryptography()
    try:
        public_key.verify(signature, content)
    except invalid:
        return False
    return True


def _require_path(path: Any, name: str) -> None:
    if not isinstance(path, str | Path):
        raise TypeError(f"{name} must be the path of a PEM file, got {type(path).__name__}")


def _cryptography() -> tuple[Any, Any, type[Exception], type[Exception]]:
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise ImportError(
            "signatures of releases need cryptography: pip install 'jaxunlearn[sign]'", name="cryptography"
        ) from error
    return ed25519, serialization, InvalidSignature, UnsupportedAlgorithm
