"""What a ledger and a directory of releases refuse, and what a disk refuses them, in words that say what to do."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ADVICE = {
    errno.ENOSPC: "free some space, then repeat the call",
    errno.EDQUOT: "raise the quota or free some space, then repeat the call",
    errno.EROFS: "mount it for writing, or copy the folder to where you may write",
    errno.EACCES: "give this user the right to write there, or run as the user who owns it",
    errno.EPERM: "give this user the right to write there, or run as the user who owns it",
    errno.EIO: "the device fails: copy the folder to another one before you go on",
}


class LedgerError(RuntimeError):
    """What is on disk is torn, tampered with, foreign or in use, or a step of a ledger came out of turn."""


class ReleaseError(RuntimeError):
    """What is in a directory of releases is torn, tampered with, retracted, gone or of another version."""


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or could not be written."""


class BudgetError(RuntimeError):
    """A release would cost more than the privacy budget that was declared. Nothing was written."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say what could not be written, why, and what to do; files that are missing or there, and timeouts, stay what they are.

    Raises:
        LedgerError: in place of any other OSError.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, TimeoutError):  # the last one is how alarms interrupt
        raise
    except OSError as error:
        raise LedgerError(unwritten(path, error)) from error


def unwritten(path: Path, error: Exception) -> str:
    """That something could not be written, why, and what to do."""
    code = getattr(error, "errno", None) or next((each for each in _ADVICE if os.strerror(each) in str(error)), 0)
    reason = os.strerror(code).lower() if code else str(error).partition("\n")[0][:200]
    return f"{path} could not be written ({reason}): {_ADVICE.get(code, 'repeat the call once that is mended')}"
