"""All generated pages, written to a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from docs.building import copies, methods, reference, tutorials


def every_page(printed: Mapping[str, Sequence[str]] | None = None) -> dict[str, str]:
    """Pages, and notebooks, by their paths in the folder of generated ones.

    Args:
        printed: what tutorials print, see `executing`; without it they are shown without outputs.

    Returns:
        Texts.
    """
    return {**methods.all_pages(), **reference.all_pages(), **copies.all_pages(), **tutorials.all_pages(printed)}


def write(folder: Path, made: Mapping[str, str]) -> None:
    """Write what changed and remove what is no longer made, so that a second build reads little.

    Args:
        folder: of generated pages.
        made: texts by their paths in it.
    """
    for name, text in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in (path for suffix in ("md", "ipynb") for path in folder.rglob(f"*.{suffix}")):
        if path.relative_to(folder).as_posix() not in made:
            path.unlink()
