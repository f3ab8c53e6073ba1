"""Reports and pages of the site in a browser: narrow and wide, light and dark, on paper; accessibility by axe-core.

`.ci/run` installs Chromium and names the folder of the built site in JAXUNLEARN_SITE.
"""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from experiments.common import plots, report
from jaxunlearn.audit import pages, saved

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SITE = os.environ.get("JAXUNLEARN_SITE")
RESULTS = Path(__file__).parents[2] / "experiments" / "results"
REPORTS = ("audit", "comparison", "quickstart")
OF_THE_SITE = (
    "index", "generated/which", "generated/methods/npo", "generated/methods/woodbury_removal", "generated/tasks/recommender",
    "generated/tutorials/first_unlearning", "generated/reference/audit.language", "generated/status", "howto/checkpoint",
    "generated/results",
)  # fmt: skip
LARGE = ("generated/results",)  # contrast takes minutes there: it is looked at in the first part, the rest everywhere
LOOKS = [(400, "light"), (1280, "dark")]
HAS_DRIVER = find_spec("playwright") is not None and find_spec("axe_playwright_python") is not None
without_browser = pytest.mark.skipif(
    CHROMIUM is None or not HAS_DRIVER, reason="no browser: apt-get install chromium, pip install 'jaxunlearn[test]'"
)
without_site = pytest.mark.skipif(SITE is None, reason="JAXUNLEARN_SITE names no built site: sphinx-build -W docs FOLDER")
pytestmark = without_browser


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Reports of every form, from results that are kept."""
    found = tmp_path_factory.mktemp("pages")
    for name, file in (("audit", "audit_gradient_difference"), ("comparison", "compare_digits_repeated")):
        title, sections = saved.report_of(_some(json.loads((RESULTS / f"{file}.json").read_text())))
        pages.write_page(found / f"{name}.html", title, sections, intro="How to read it.")
    summary, first, *_ = saved.report_of(json.loads((RESULTS / "quickstart.json").read_text()))[1]
    rates = np.linspace(0, 1, 50)
    drawn = [(plots.roc_curves({"original": (rates, rates**0.5)}), "The loss attack."), *_times()]
    parts = [summary, first._replace(figures=drawn)]
    report.write_report(found / "quickstart.html", "Quickstart", "How to read it.", parts, settings={"rows": 9})
    return found


def _some(found):
    """Two scenarios and ten methods: axe takes seconds for large tables."""
    kept = dict(list(found.get("scenarios", {}).items())[:2])
    for one in kept.values():
        one["methods"] = dict(list(one["methods"].items())[:10])
    return {**found, "scenarios": kept} if kept else found


def _times():
    milliseconds = {"retrained": 900.0, "gradient_difference": 30.0, "scrub": 12.0}
    return [(plots.time_per_request(milliseconds, dict.fromkeys(milliseconds, 2.0)), "Time of a request.")]


def opened(browser, path, width=1280, scheme="light"):
    """A page, and what its console says of errors."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(Path(path).as_uri())
    return page, errors


def findings(page, context=None, **options):
    """Serious findings of axe-core."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, context=context, options={"resultTypes": ["violations"], **options}).response["violations"]
    return [(x["id"], x["nodes"][0]["html"][:200]) for x in found if x["impact"] in ("serious", "critical")]


def require_fits(page, errors):
    assert not errors
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert not page.evaluate("[...document.images].filter(x => !x.alt).map(x => x.outerHTML.slice(0, 99))")
    assert not page.evaluate("[...document.images].filter(x => !x.naturalWidth).map(x => x.outerHTML.slice(0, 99))")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
@pytest.mark.parametrize("name", REPORTS)
def test_reports_fit_and_are_accessible(browser, folder, name, width, scheme):
    page, errors = opened(browser, folder / f"{name}.html", width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(part => (part.open = true))")
    require_fits(page, errors)
    assert not findings(page)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 26)"
    assert dark == (scheme == "dark")
    page.context.close()


def test_figures_stay_readable_on_narrow_screens(browser, folder):
    page, _ = opened(browser, folder / "quickstart.html", 400)
    shares = page.evaluate("[...document.images].map(x => x.getBoundingClientRect().width / Number(x.getAttribute('width')))")
    assert len(shares) == 2
    assert min(shares) > 0.69
    page.context.close()


def test_tables_are_sorted_by_a_click(browser, folder):
    page, _ = opened(browser, folder / "comparison.html")
    table = page.locator("section:not(.summary) table").first
    heading = table.get_by_role("button", name="worst")
    place = heading.evaluate("x => x.parentElement.cellIndex")

    def column():
        cells = table.locator("tbody tr").evaluate_all(f"rows => rows.map(x => x.cells[{place}].textContent)")
        return [float(x.split()[0]) for x in cells if x[0] in "+-0123456789"], cells

    heading.click()
    up, cells = column()
    assert up == sorted(up)
    assert heading.evaluate("x => x.parentElement.ariaSort") == "ascending"
    assert all(x[0] not in "+-0123456789" for x in cells[len(up) :])  # dashes stand last, either way
    heading.press("Enter")
    down, _ = column()
    assert down == up[::-1]
    assert heading.evaluate("x => x.parentElement.ariaSort") == "descending"
    page.context.close()


def test_folded_parts_open_by_a_click_and_in_print(browser, folder):
    page, _ = opened(browser, folder / "quickstart.html")
    cell = page.get_by_role("rowheader", name="rows", exact=True)
    assert not cell.is_visible()
    page.get_by_text("Settings and versions").click()
    assert cell.is_visible()
    page.get_by_text("Settings and versions").click()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert cell.is_visible()
    page.context.close()


@pytest.mark.parametrize("name", REPORTS)
def test_paper_cuts_nothing_off(browser, folder, name):
    page, _ = opened(browser, folder / f"{name}.html", 718, "dark")  # A4 less its margins, in CSS pixels
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    wide = "[...document.querySelectorAll('table, img')].map(x => x.getBoundingClientRect().right).filter(x => x > innerWidth)"
    assert not page.evaluate(wide)
    page.context.close()


def test_verdicts_are_more_than_colours(browser, folder):
    page, _ = opened(browser, folder / "audit.html")
    for kind, mark in pages.MARKS.items():
        said = page.locator(f"span.{kind}").all_inner_texts()
        assert all(text.startswith(f"{mark} ") and len(text) > 3 for text in said)
    assert page.locator("span.good, span.bad").count() > 2
    assert page.locator("main > :nth-child(2).summary p").first.inner_text().startswith("On ")
    page.context.close()


@pytest.mark.slow
@without_site
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
@pytest.mark.parametrize("name", OF_THE_SITE)
def test_pages_of_the_site_fit_and_are_accessible(browser, name, width, scheme):
    page, errors = opened(browser, Path(SITE or "") / f"{name}.html", width, scheme)
    require_fits(page, errors)
    if name in LARGE:
        assert not findings(page, rules={"color-contrast": {"enabled": False}})
        assert not findings(page, context="article section section:first-of-type")
    else:
        assert not findings(page)
    page.context.close()
