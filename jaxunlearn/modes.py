"""Modes of files: whoever opens a secret finds out whether others could have read it, too."""

import os
import stat
from pathlib import Path

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_private(path: str | Path) -> bytes:
    """The content of a file that nobody but its owner may read or write.

    The mode is that of the file that was opened, so that nobody can put another one in its place in between. Symbolic links
    are followed, as systems that hand out secrets use them.

    Args:
        path: of the file.

    Returns:
        Its bytes.

    Raises:
        FileNotFoundError: there is no file at `path`.
        PermissionError: group or others may read, write or execute it; the message says how to change that.
        ValueError: it is no regular file.

    Example:
        >>> import os, tempfile
        >>> handle, path = tempfile.mkstemp()
        >>> os.write(handle, b"secret")
        6
        >>> jaxunlearn.modes.read_private(path)
        b'secret'
        >>> os.chmod(path, 0o644)
        >>> read_private(path)
        Traceback (most recent call last):
        PermissionError: ... may be read or changed by others (mode 0644): chmod 600 ...
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not keep us waiting
    try:
        found = os.fstat(handle).st_mode
        if not stat.S_ISREG(found):
            raise ValueError(f"{path} is no regular file: give the file itself")
        _require(found, path, "600")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def require_private(path: str | Path) -> None:
    """PermissionError unless a file, or a folder with all that is in it, is closed to group and others.

    Args:
        path: of the file or folder.

    Raises:
        PermissionError: the first one that others may read, write, list or enter; the message says how to change that.

    Example:
        >>> import tempfile
        >>> require_private(tempfile.mkdtemp())
    """
    path = Path(path)
    mode = path.stat().st_mode
    _require(mode, path, "700" if stat.S_ISDIR(mode) else "600")
    if stat.S_ISDIR(mode):
        for inner in sorted(path.iterdir()):
            require_private(inner)


def make_private(path: str | Path) -> None:
    """Take a file, or a folder with all that is in it, away from group and others: files 0600, folders 0700.

    For files that a library writes under the process's umask. Symbolic links are left alone, and so is what they point to.

    Args:
        path: of the file or folder.

    Example:
        >>> import os, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "weights").write_bytes(b"...")
        >>> make_private(folder)
        >>> oct((folder / "weights").stat().st_mode & 0o777)
        '0o600'
    """
    path = Path(path)
    if path.is_symlink():
        return
    if path.is_dir():
        path.chmod(0o700)
        for inner in path.iterdir():
            make_private(inner)
    else:
        path.chmod(0o600)


def _require(mode: int, path: str | Path, wanted: str) -> None:
    if mode & OTHERS:
        raise PermissionError(
            f"{path} may be read or changed by others (mode {stat.S_IMODE(mode):04o}): chmod {wanted} {path}, and replace the "
            "secret if they may have seen it"
        )
