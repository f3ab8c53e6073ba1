"""The command line: `python -m jaxunlearn methods|cite|doctor|ledger|report`; it needs the extra `cli`."""

import sys
from collections.abc import Sequence

from jaxunlearn.commands.books import ledger
from jaxunlearn.commands.doctor import doctor
from jaxunlearn.commands.report import report
from jaxunlearn.commands.table import cite, methods

COMMANDS = {"methods": methods, "cite": cite, "doctor": doctor, "ledger": ledger, "report": report}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: by default those of the process.

    Returns:
        The exit code: 0 where all is well, 1 where the command failed or found something wrong, 2 for a command line that
        cannot be read (as `SystemExit`).

    Example:
        >>> from jaxunlearn.commands import main
        >>> main(["cite", "leace"])  # doctest: +ELLIPSIS
        @inproceedings{belrose2023leace,
        ...
    """
    try:
        import tyro
    except ImportError:
        print("error: the command line needs tyro: pip install 'jaxunlearn[cli]'", file=sys.stderr)
        return 1
    try:
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="python -m jaxunlearn",
            description="Methods and citations, a look at the machine, ledgers, and saved results as pages.",
            args=arguments,
            config=(tyro.conf.PositionalRequiredArgs,),
        )
    except (ValueError, OSError, RuntimeError) as error:  # those of the package say what to do
        print(f"error: {error}", file=sys.stderr)
        return 1
