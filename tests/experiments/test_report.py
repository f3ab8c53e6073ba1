import io
import re
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from experiments.common import plots
from experiments.common.report import Column, Section, Table, formatted, print_table, terminal, write_report
from jaxunlearn.audit import Interval, Roc, pages, t_interval

TABLE = Table(
    [Column("method", "method"), Column("accuracy", "accuracy", ".1%"), Column("time", "time [ms]", ".3g")],
    [
        {"method": "original", "accuracy": Interval(0.981, 0.97, 0.99), "time": None},
        {"method": "a|b <i>", "accuracy": t_interval(jnp.array([0.5])), "time": 12.345},
    ],
    "Accuracy & time",
)
ACCURACIES = {
    "original": {"forget": Interval(1.0, 0.99, 1.0), "test": Interval(0.96, 0.95, 0.97)},
    "retrained": {"forget": Interval(0.9, 0.88, 0.92), "test": Interval(0.95, 0.94, 0.96)},
    "single seed": {"forget": t_interval(jnp.array([0.93])), "test": t_interval(jnp.array([0.92]))},
}


def test_cells_show_intervals_and_gaps():
    assert list(map(list, formatted(TABLE).rows)) == [["original", "98.1% [97.0, 99.0]", "–"], ["a|b <i>", "50.0%", "12.3"]]  # noqa: RUF001


def test_markdown_aligns_numbers_and_escapes_bars():
    lines = pages.to_markdown(formatted(TABLE)).splitlines()
    assert lines[:2] == ["Accuracy & time", ""]
    assert lines[3] == "| --- | ---: | ---: |"
    assert lines[5] == "| a\\|b <i> | 50.0% | 12.3 |"


WIDE = Table(
    [
        Column("method", "method"),
        *(Column(f"m{i}", f"measure {i}", "+.1%") for i in range(6)),
        Column("worst", "worst in spreads", ".1f"),
    ],
    [
        {
            "method": name,
            **{f"m{i}": Interval(0.1 * i + 0.011, 0.1 * i - 0.02, 0.1 * i + 0.042) for i in range(6)},
            "worst": 7.5 + row,
        }
        for row, name in enumerate(("do nothing", "gradient_difference", "retrained again"))
    ],
    "Gaps",
)


@pytest.mark.parametrize("width", [30, 60, 80, 200])
@pytest.mark.parametrize("table", [TABLE, WIDE], ids=["narrow", "wide"])
def test_no_terminal_loses_a_figure(width, table):
    file = io.StringIO()
    print_table(table, Console(file=file, width=width))
    text = file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for row in table.rows:
        for column in table.columns:
            value = row[column.key]
            estimate = value.estimate if isinstance(value, Interval) else value
            shown = format(estimate, column.format).rstrip("%") if column.format and estimate is not None else None
            assert shown is None or shown in text, (column.key, shown)
    assert all(word in text for column in table.columns for word in column.label.split())


def test_a_pipe_gets_whole_lines(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(WIDE, terminal())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "do nothing" in line]
    assert line.split()[-1] == "7.5"
    assert line.count("[") == 6


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def of(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def test_page_holds_everything_it_needs(tmp_path):
    figure = plots.accuracy_bars(ACCURACIES)
    sections = [Section("Accuracy", "One.\n\nTwo <b>.", [TABLE], [(figure, "Accuracy of all methods")])]
    path = write_report(tmp_path / "new" / "page.html", "A & B", "Intro.", sections, settings={"load_average": 0.5})
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    assert not page.of("link")
    assert page.of("script") == [{}]  # its own, from no other file
    assert "http" not in text
    (image,) = page.of("img")
    assert image["src"].startswith("data:image/png;base64,")
    assert image["alt"] == "Accuracy of all methods"
    assert {"<h1>A &amp; B</h1>", "<p>One.</p>", "<p>Two &lt;b&gt;.</p>"} <= set(text.splitlines())
    assert [cell["class"] for cell in page.of("td") if "class" in cell] == ["number"] * 4
    assert "load average" in text


def test_figures_are_png_files_of_their_own():
    figure = plots.accuracy_bars(ACCURACIES, title="Digits")
    pixels = imread(io.BytesIO(plots.to_png(figure)))
    assert pixels.shape[1] > 600
    assert np.ptp(pixels[..., :3]) > 0.5


def test_accuracy_panels_carry_the_reference():
    panels = plots.accuracy_bars(ACCURACIES).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["forget", "test"]
    for panel, split in zip(panels, ("forget", "test"), strict=True):
        reference = 100 * ACCURACIES["retrained"][split].estimate
        np.testing.assert_allclose(panel.lines[0].get_xdata(), [reference, reference])
        assert max(panel.get_xticks()) <= 100
    with pytest.raises(ValueError, match="scrub has no accuracy for test"):
        plots.accuracy_bars({**ACCURACIES, "scrub": {"forget": Interval(0.9, 0.8, 1.0)}})


def test_roc_legend_tells_the_area():
    rates = np.linspace(0, 1, 201)
    retrained = Roc(jnp.asarray(rates), jnp.asarray(rates), jnp.zeros(201))
    for log in (False, True):
        figure = plots.roc_curves({"original": (rates, np.sqrt(rates)), "retrained": retrained}, log=log)
        (panel,) = figure.axes
        labels = [line.get_label() for line in panel.lines]
        assert labels == ["0.500  chance", "0.667  original", "0.500  retrained"]
        assert panel.get_xscale() == ("log" if log else "linear")


def require_numbers_within(figure):
    """No number is outside of its panel, where it could be read as a tick of the next one."""
    figure.canvas.draw()
    for panel in figure.axes:
        box = panel.get_window_extent()
        for text in panel.texts:
            place = text.get_window_extent()
            assert box.x0 < place.x0, text
            assert place.x1 < box.x1, text


@pytest.mark.parametrize("means", [(1.0, 1.0), (0.0, 1.0), (0.93, 0.95), (1.0, 0.0)])
def test_accuracies_stand_in_their_panels(means):
    names = {"scrub": means[0], "retrained": means[1]}
    accuracies = {
        name: {split: Interval(mean, max(0, mean - 0.01), min(1, mean + 0.01)) for split in ("forget", "retain", "test")}
        for name, mean in names.items()
    }
    figure = plots.accuracy_bars(accuracies)
    require_numbers_within(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == [f"{100 * mean:.1f}" for mean in means]
    assert max(max(panel.get_xticks()) for panel in figure.axes) <= 100


@pytest.mark.parametrize("times", [(900, 30), (90_000, 0.02), (1.0, 1.0), (12, 11), (1e6, 1e-3)])
def test_times_stand_in_their_panels(times):
    figure = plots.time_per_request(dict(zip(("retrained", "scrub"), times, strict=True)), {"retrained": 1234.5, "scrub": 0.0})
    require_numbers_within(figure)


def test_time_tells_the_speed_up():
    figure = plots.time_per_request({"retrained": 900.0, "scrub": 30.0}, {"retrained": 2.0, "scrub": 3.0})
    run, compilation = figure.axes
    assert [text.get_text() for text in run.texts] == ["900", "30 (30x)"]
    assert [bar.get_width() for bar in compilation.patches] == [2.0, 3.0]
    assert re.match(r"time \[ms\]", run.get_xlabel())
    with pytest.raises(ValueError, match="compile times name"):
        plots.time_per_request({"scrub": 30.0}, {})
    with pytest.raises(ValueError, match="positive"):
        plots.time_per_request({"scrub": 0.0}, {"scrub": 1.0})
