"""A lock for one writer, which dies with its process, with its owner, and with every fork of it."""

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxunlearn.service.errors import LedgerError, explained

_held: weakref.WeakSet["Lock"] = weakref.WeakSet()
_watching = [False]


class Lock:
    """An exclusive lock on a file, until `release` is called or nothing refers to the lock any more.

    Raises:
        LedgerError: somebody else holds it, or the folder cannot be written.
    """

    def __init__(self, path: Path):
        import fcntl  # POSIX only

        if not _watching[0]:  # a child that lived on with a copy of the descriptor would keep the lock when the owner dies
            os.register_at_fork(after_in_child=_drop_copies)
            _watching[0] = True
        with explained(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._give_back = weakref.finalize(self, _give_back, handle, os.getpid())
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._give_back()
            raise LedgerError(
                f"{path.parent} is open for writing already, and takes one writer at a time: close the other one, or wait "
                "for it"
            ) from error
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether it was not released yet."""
        return self._give_back.alive

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        self._give_back()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """`Lock` for the length of a block."""
    lock = Lock(path)
    try:
        yield
    finally:
        lock.release()


def _give_back(handle: int, owner: int) -> None:
    import fcntl

    if os.getpid() == owner:
        fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough while a fork has a copy
    os.close(handle)


def _drop_copies() -> None:
    for lock in list(_held):
        lock.release()
