"""`report`: a saved audit or comparison as a page, or as Markdown."""

import json
from pathlib import Path

from jaxunlearn.audit import pages, saved


def report(file: Path, out: Path | None = None) -> int:
    """Show the JSON of an audit or of a comparison.

    Args:
        file: as `audit.to_json`, experiments/audit.py, quickstart.py or compare.py wrote it.
        out: of an HTML page that needs no other file; without it, Markdown is printed.

    Returns:
        0.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, or of another kind.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    title, sections = saved.report_of(found)
    if out is None:
        print(saved.to_markdown(title, sections), end="")
    else:
        print(pages.write_page(out, title, sections))
    return 0
