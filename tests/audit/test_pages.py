"""Pages and tables of a report: cells, Markdown, and HTML that needs no other file."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from jaxunlearn.audit import Interval
from jaxunlearn.audit.pages import DOTS_PER_INCH, MISSING, Section, Table, cell, page, to_markdown, write_page

TABLE = Table(
    ["method", "accuracy", "time [ms]"],
    [["original", "98.1% [97.0, 99.0]", MISSING], ["a|b <i>", "50.0%", "12.3"]],
    "Accuracy & time",
    numbers=(1, 2),
    links={"original": "what"},
)


class Parsed(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def of(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.mark.parametrize(
    ("value", "specification", "text"),
    [
        (None, ".1%", MISSING),
        ("scrub", "", "scrub"),
        (12.345, ".3g", "12.3"),
        (0.5, "+.3f", "+0.500"),
        (Interval(0.981, 0.97, 0.99), ".1%", "98.1% [97.0, 99.0]"),
        (Interval(np.float32(-0.5), np.float32(-1), np.float32(0)), "+.1f", "-0.5 [-1.0, +0.0]"),
        (Interval(0.5, np.nan, np.nan), ".1%", "50.0%"),
    ],
)
def test_cells_show_values_and_their_intervals(value, specification, text):
    assert cell(value, specification) == text


def test_markdown_aligns_numbers_and_escapes_bars():
    lines = to_markdown(TABLE).splitlines()
    assert lines[:2] == ["Accuracy & time", ""]
    assert lines[3] == "| --- | ---: | ---: |"
    assert lines[5] == "| a\\|b <i> | 50.0% | 12.3 |"


def test_a_page_holds_everything_it_needs(tmp_path):
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot([0, 1])
    sections = [
        Section("Accuracy", "One.\n\nTwo <b>.", [TABLE], [(figure, 'Accuracy of "all" methods')]),
        Section("Terms", terms=[("what", "original & co.", "a model < 1")]),
    ]
    path = write_page(tmp_path / "new" / "page.html", "A & B", sections, intro="Intro.")
    text = path.read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert not parsed.of("link")
    assert parsed.of("script") == [{}]  # its own, from no other file
    assert "http" not in text
    (image,) = parsed.of("img")
    assert image["alt"] == 'Accuracy of "all" methods'
    source = image["src"].removeprefix("data:image/png;base64,")
    pixels = imread(io.BytesIO(base64.b64decode(source)))
    assert int(image["width"]) == round(pixels.shape[1] * 96 / DOTS_PER_INCH)
    assert {"<h1>A &amp; B</h1>", "<p>Intro.</p>", "<p>One.</p>", "<p>Two &lt;b&gt;.</p>"} <= set(text.splitlines())
    assert [found["class"] for found in parsed.of("td") if "class" in found] == ["number"] * 4
    assert [found["scope"] for found in parsed.of("th")] == ["col"] * 3 + ["row"] * 2
    assert [found["href"] for found in parsed.of("a")] == ["#what"]
    assert [found["id"] for found in parsed.of("dt")] == ["what"]
    assert "<dd>a model &lt; 1</dd>" in text
    assert text == page("A & B", sections, intro="Intro.")
