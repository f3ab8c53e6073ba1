"""The site: `sphinx-build -W docs out/site`.

Sphinx with MyST and the PyData theme, by their upkeep in November 2026: all three had a release in this month or the last, the
theme 14 in a year, and NumPy and pandas stand on it. MkDocs has had no stable release since 2024, its successors (properdocs,
zensical) are months old, and Furo had one release in a year. Docstrings are no reStructuredText, so autodoc is not used:
`docs/building` makes Markdown of them.
"""

import sys
from pathlib import Path

from sphinx.errors import SphinxError

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from docs.building.executing import printed_by_all  # noqa: E402
from docs.building.links import broken  # noqa: E402
from docs.building.write import every_page, write  # noqa: E402
from jaxunlearn.version import __version__  # noqa: E402

GENERATED = HERE / "generated"
write(GENERATED, every_page(printed_by_all(GENERATED / "outputs")))

project = "jaxunlearn"
author = "The jaxunlearn authors"
version = release = __version__
language = "en"
extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["building", "tasks"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
suppress_warnings = ["misc.copy_overwrite"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
html_theme = "pydata_sphinx_theme"
html_title = f"jaxunlearn {__version__}"
html_context = {"default_mode": "auto"}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["scrolling.js"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
    "collapse_navigation": True,
    "navigation_depth": 2,
}


def setup(app):
    """No site with a broken link."""

    def check(app, error):
        if error is None and app.builder.format == "html" and (found := broken(Path(app.outdir))):
            raise SphinxError("broken links:\n" + "\n".join(found))

    app.connect("build-finished", check, priority=900)  # behind the theme, which writes its colours then
