"""Links of the built site that lead nowhere: files and anchors are looked up; of addresses elsewhere the form is checked."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")
WITHOUT_HOST = ("data", "mailto")
STATIC = "_static"  # files of a theme, templates among them


class Page(NamedTuple):
    """What one page refers to, and what can be referred to on it."""

    links: set[str]
    anchors: set[str]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page(set(), set())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.page.links.update(found[name] for name in ("href", "src") if name in found)
        self.page.anchors.update(found[name] for name in ("id", "name") if name in found)


def read(text: str) -> Page:
    """Links and anchors of a page.

    Args:
        text: HTML.

    Returns:
        Both.

    Example:
        >>> from docs.building.links import read
        >>> page = read('<a id="top" href="a.html#b">c</a>')
        >>> page.links, page.anchors
        ({'a.html#b'}, {'top'})
    """
    reader = _Reader()
    reader.feed(text)
    return reader.page


def broken(folder: Path) -> list[str]:
    """Links of a site that lead nowhere.

    Args:
        folder: of the built site.

    Returns:
        A line for each page and link, with the reason.
    """
    folder = folder.resolve()
    paths = [path for path in sorted(folder.rglob("*.html")) if STATIC not in path.parts]
    pages = {path: read(path.read_text(encoding="utf-8")) for path in paths}
    found = []
    for path, page in pages.items():
        for link in sorted(page.links):
            why = _why(path, link, pages, folder)
            if why:
                found.append(f"{path.relative_to(folder)}: {link} {why}")
    return found


def _why(path: Path, link: str, pages: dict[Path, Page], folder: Path) -> str:
    """What is wrong with a link, empty if nothing is."""
    try:
        parts = urlsplit(link)
    except ValueError as error:
        return f"is no address: {error}"
    if parts.scheme in WITHOUT_HOST:
        return ""
    if parts.scheme or parts.netloc:
        known = parts.scheme in ("http", "https") and HOST.fullmatch((parts.hostname or "").lower())
        return "" if known and " " not in link else "is no address of a page"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file():
        return "leads to no file"
    if not target.is_relative_to(folder):
        return "leads out of the site"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return "leads to no such place on the page"
    return ""
