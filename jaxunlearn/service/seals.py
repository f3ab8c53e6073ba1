"""Hashes that seal records: SHA-256, or HMAC-SHA-256 with a key that is kept outside of the folder it protects.

Without a key a seal finds accidents. With one it also finds whoever may write in the folder and does not have the key.
"""

import hashlib
import hmac
from pathlib import Path
from typing import TypeAlias

Key: TypeAlias = bytes | str | Path
LEAST_KEY = 16  # bytes
_KEYED = "hmac:"


def key_of(key: Key | None, directory: Path) -> bytes | None:
    """The bytes of a key, or of the file that holds it.

    Args:
        key: bytes, or the path of a file; None for no key.
        directory: that it protects.

    Raises:
        FileNotFoundError: no such file.
        ValueError: fewer than 16 bytes, or a file inside of the directory.
    """
    if key is None or isinstance(key, bytes):
        found = key
    else:
        path = Path(key)
        if path.resolve().is_relative_to(directory.resolve()):
            raise ValueError(f"the key {path} lies inside of {directory}, which it protects: keep it outside")
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no key at {path}: for a new ledger make one, pathlib.Path({str(path)!r}).write_bytes("
                "secrets.token_bytes(32)); for an old one restore its own"
            )
        found = path.read_bytes()
    if found is not None and len(found) < LEAST_KEY:
        raise ValueError(f"a key has at least {LEAST_KEY} bytes, got {len(found)}: draw it with secrets.token_bytes(32)")
    return found


def seal(content: bytes, key: bytes | None) -> str:
    """What a record carries to show that nobody changed it."""
    if key is None:
        return hashlib.sha256(content).hexdigest()
    return _KEYED + hmac.new(key, content, "sha256").hexdigest()


def fault(content: bytes, carried: object, key: bytes | None) -> str:
    """What is wrong with a seal, in words that follow the name of what carries it; empty if nothing is."""
    carried = carried if isinstance(carried, str) else ""
    if carried.startswith(_KEYED) and key is None:
        return "was sealed with a key: pass the one that it was created with"
    if key is not None and not carried.startswith(_KEYED):
        return "was not sealed with a key, so that anybody may have written it: open it without a key if it never had one"
    if hmac.compare_digest(seal(content, key).encode(), carried.encode()):
        return ""
    if key is None:
        return "was tampered with: its content does not have the hash that it carries"
    return "does not fit this key: pass the one that it was created with; if this is that one, it was tampered with"


def short(carried: str) -> str:
    """The first digits of a seal, for people."""
    return carried.removeprefix(_KEYED)[:12]
