"""Documents that stand elsewhere in the repository, and status codes, as pages."""

import re
from pathlib import Path

from jaxunlearn.audit import pages
from jaxunlearn.status import MESSAGES, Status

ROOT = Path(__file__).parents[2]
# documents that are pages, by their paths from the root
COPIES = {
    "experiments/results/README.md": "results",
    "CHANGELOG.md": "changelog",
    "ARCHITECTURE.md": "architecture",
    "CONTRIBUTING.md": "contributing",
    "experiments/launch/README.md": "launch",
}
PAGES = {**{path: f"{name}.md" for path, name in COPIES.items()}, "README.md": "../index.md"}
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")
DO = {
    Status.OK: "Nothing.",
    Status.EMPTY_REQUEST: "`check(result, allow=[Status.EMPTY_REQUEST])` if that is meant, or look at `request.weights`.",
    Status.INVALID_ROWS: "Build requests with `from_indices`, which refuses bad rows; in a stream it is normal where requests "
    "overlap, so allow it there.",
    Status.UNCHANGED: "Take a larger step, or float32; if the method selects parameters, a lower threshold.",
    Status.NOTHING_RETAINED: "Train a new model on other data: there is nothing to unlearn towards.",
    Status.NOT_CONVERGED: "More `max_steps`, more damping, or a looser tolerance; `stats` say how far it came.",
    Status.INDEFINITE: "More damping, or `ggn` or a Fisher matrix instead of the Hessian.",
    Status.STALE: "Call `prepare` again on the model at hand; in a stream use a method's `carry=`.",
    Status.DAMAGED: "Fewer steps, a lower rate, more weight on the retain set; see [troubleshooting](../troubleshooting.md).",
    Status.INVALID_LABELS: "Number the classes from 0.",
    Status.NONFINITE: "A lower rate; clip gradients with `optax.clip_by_global_norm`; check the rows for NaN.",
}


def relinked(text: str, place: Path) -> str:
    """Links of a document of the repository as they stand on a page in the folder of generated ones.

    Args:
        text: Markdown.
        place: folder of the document, from the root.

    Returns:
        Markdown: links to other pages of the site, or to files of the repository, which readers can download.

    Raises:
        ValueError: a link that leads nowhere.
    """

    def moved(match: re.Match[str]) -> str:
        target = (ROOT / place / match[1]).resolve()
        if not target.exists():
            raise ValueError(f"a link in {place or 'the root'} leads to {match[1]}, which is not there")
        path = target.relative_to(ROOT).as_posix()
        if target.is_dir():
            path += "/README.md"
        found = PAGES.get(path)
        if found:
            return f"]({found}{match[2] or ''})"
        if not (ROOT / path).is_file():
            raise ValueError(f"a link in {place} leads to the folder {match[1]}, which has no README.md")
        return f"](../../{path})"

    return _LINK.sub(moved, text)


def copy(path: str) -> str:
    """A document of the repository as a page."""
    return relinked((ROOT / path).read_text(), Path(path).parent)


def statuses() -> str:
    """All status codes: what each means and what to do.

    Returns:
        Markdown.
    """
    rows = [[str(int(code)), f"`{code.name}`", MESSAGES[code], DO[code]] for code in Status]
    text = (
        "What depends on values cannot raise inside a compiled program. It becomes `Result.status`, one code for each request; "
        "where several apply, the largest. `check(result)` raises on the host and names the requests."
    )
    table = pages.to_markdown(pages.Table(["code", "name", "what it says", "what to do"], rows))
    return f"# Status codes\n\n{text}\n\n{table}"


def all_pages() -> dict[str, str]:
    """Pages by their paths in the folder of generated ones."""
    copies = {f"{name}.md": copy(path) for path, name in COPIES.items()}
    return {**copies, "status.md": statuses()}
