"""All generated pages, written to a folder."""

from pathlib import Path

from docs.building import copies, methods, reference, tutorials


def every_page() -> dict[str, str]:
    """Pages by their paths in the folder of generated ones."""
    return {**methods.all_pages(), **reference.all_pages(), **copies.all_pages(), **tutorials.all_pages()}


def write(folder: Path) -> None:
    """Write what changed and remove what is no longer made, so that a second build reads little.

    Args:
        folder: of generated pages.
    """
    made = every_page()
    for name, text in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in folder.rglob("*.md"):
        if path.relative_to(folder).as_posix() not in made:
            path.unlink()
