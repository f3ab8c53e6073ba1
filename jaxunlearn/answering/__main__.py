"""The command line: `python -m jaxunlearn.answering {find,dry-run,forget,serve,verify} --help`."""

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxunlearn.answering import preview
from jaxunlearn.answering.receipts import verify
from jaxunlearn.answering.service import Answered, Service, serve
from jaxunlearn.answering.setup import load
from jaxunlearn.service.errors import CheckpointError, LedgerError, ReleaseError
from jaxunlearn.status import UnlearningError

EXPECTED = (LedgerError, ReleaseError, CheckpointError, UnlearningError, OSError, ValueError, TypeError, ImportError)


@dataclass
class Where:
    """Which service."""

    directory: Path
    """Of the service: ledger, receipts, reports."""
    setup: str
    """FILE.py:function that returns a jaxunlearn.answering.Setup."""
    inbox: Path
    """File of JSON lines, or SQLite database."""
    signing_key: Path
    """PEM file of mode 0600 with an Ed25519 key."""
    seal_key: Path | None = None
    """File with the key that seals the ledger's journal."""
    most: int = 256
    """Lines of a window."""
    restart: bool = False
    """Read the inbox from its beginning: it is another file than before."""

    def open(self) -> Service:
        """Open it."""
        return Service.open(
            self.directory, load(self.setup), inbox=self.inbox, signing_key=self.signing_key, seal_key=self.seal_key,
            restart=self.restart,
        )  # fmt: skip


@dataclass
class Find(Where):
    """Which rows the next window is asked for, and near-duplicates that would stay. Nothing is written but an empty ledger."""

    as_json: bool = False
    """Print JSON."""

    expected = False

    def run(self) -> None:
        """Print it."""
        with self.open() as service:
            found = preview.preview(service, most=self.most, expected=self.expected)
            shown = json.dumps(preview.as_json(found, service)) if self.as_json else preview.as_text(found, service)
        print(shown)


@dataclass
class DryRun(Find):
    """Like find, with cost and expected effect of every record id by itself."""

    expected = True


@dataclass
class Forget(Where):
    """Answer all lines that wait, window by window."""

    def run(self) -> None:
        """Answer."""
        with self.open() as service:
            while answered := service.answer(most=self.most):
                print(said(answered), flush=True)


@dataclass
class Serve(Where):
    """Answer as lines come in, until SIGINT or SIGTERM; the window under way is finished."""

    every: float = 60.0
    """Seconds that a line waits at most before its window is begun."""

    def run(self) -> None:
        """Answer."""
        told: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda received, _: told.append(received))
        with self.open() as service:
            serve(
                service,
                most=self.most,
                every=self.every,
                said=lambda answered: print(said(answered), flush=True),
                stop=lambda: bool(told),
            )


@dataclass
class Verify:
    """Check a receipt with nothing but the public key."""

    receipt: Path
    """Such as receipt-00000017.json; its signature lies beside it."""
    public_key: Path
    """PEM file, from a source that you trust."""
    weights: Path | None = None
    """A released file that it must speak of."""

    def run(self) -> None:
        """Print what it says."""
        found = verify(self.receipt, self.public_key, weights=self.weights)
        print(f"valid: request {found.request!r} was {found.outcome} in window {found.window}, {found.time}")
        print(f"release {found.release or 'none'}, guarantee {found.guarantee}{found.reason and f': {found.reason}'}")


def said(answered: Answered) -> str:
    """One line of progress."""
    first, last = answered.entries
    shown = f"window {answered.window}: entries {first} to {last}, {answered.requests} requests for {answered.records} ids"
    release = f", release {answered.release}" if answered.release else ""
    return f"{shown} {answered.outcome}{release}, {answered.seconds:.2f} s{answered.reason and f': {answered.reason}'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: by default those of the process.

    Returns:
        The exit code: 1 where something was refused.
    """
    try:
        import tyro
    except ModuleNotFoundError:
        print("error: this command line needs tyro: pip install 'jaxunlearn[experiments]'", file=sys.stderr)
        return 1
    commands: dict[str, Any] = {"find": Find, "dry-run": DryRun, "forget": Forget, "serve": Serve, "verify": Verify}
    given = tyro.extras.subcommand_cli_from_dict(
        commands, prog="python -m jaxunlearn.answering", description="Answer deletion requests.", args=arguments
    )
    try:
        given.run()
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
