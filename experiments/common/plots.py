"""Figures of a report. Every function returns a `Figure` of its own; pyplot and its global state are not used.

Methods keep their colour between figures as long as they come in the same order: the reference (retrained) is black,
`do nothing` grey, the others take Okabe and Ito's palette, which readers with colour blindness can tell apart.
"""

import io
import itertools
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments.common.outcome import NOTHING
from jaxunlearn.audit import Interval, Roc

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES, MARKERS = ("solid", "dashed", "dotted"), "osD"
BLACK, DARK, GREY, FAINT = "#1A1A1A", "#404040", "#767676", "#DADADA"
PLAIN = FuncFormatter(lambda value, _: f"{value:,g}")
DOTS_PER_INCH = 160
ROOM_BEHIND_A_NUMBER, ROOM_BEHIND_A_TIME = 0.2, 0.36  # shares of a panel

Curve = Roc | tuple[np.ndarray, np.ndarray]  # false and true positive rates come first


def accuracy_bars(
    accuracies: Mapping[str, Mapping[str, Interval]], *, reference: str = "retrained", title: str | None = None
) -> Figure:
    """Accuracy of every method on every split as a point with an error bar: a row a method, a panel a split.

    A line and a band in each panel carry the reference's mean and interval past all rows: a method that unlearned well
    lies on it. Axes do not start at zero, because differences of a few points matter; points, unlike bars, allow it.

    Args:
        accuracies: `{method: {split: Interval}}` as fractions in [0, 1]; splits in the order of the first method.
        reference: the method drawn as line and band, if it is there.
        title: above the figure.

    Raises:
        ValueError: no method, or a method without one of the splits.
    """
    methods, splits = list(accuracies), list(next(iter(accuracies.values()), ()))
    if not splits:
        raise ValueError("expected at least one method with one split, got none")
    for method in methods:
        missing = set(splits) - set(accuracies[method])
        if missing:
            raise ValueError(f"{method} has no accuracy for {', '.join(sorted(missing))}")
    colours = _colours(methods, reference)
    has_reference = reference in accuracies
    figure = Figure(figsize=(1.4 + 2.6 * len(splits), 1.1 + 0.3 * has_reference + 0.36 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for panel, split in zip(panels, splits, strict=True):
        _style(panel, "x")
        values = {method: [100 * float(x) for x in accuracies[method][split]] for method in methods}
        if has_reference:
            mean, low, high = values[reference]
            panel.axvspan(low, high, color=FAINT, alpha=0.6, linewidth=0, zorder=0)
            panel.axvline(mean, color=BLACK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for row, (method, (mean, low, high)) in enumerate(values.items()):
            error = [[mean - low], [high - mean]]
            panel.errorbar(mean, row, xerr=error, fmt="o", color=colours[method], markersize=6, capsize=3, linewidth=1.8)
            _behind(panel, np.nanmax([mean, high]), row, f"{mean:.1f}")
        _percent_axis(panel, np.array(list(values.values())))
        panel.set_title(split, fontsize=11, loc="left", fontweight="bold")
        panel.set_xlabel("accuracy [%]")
    _name_rows(panels[0], methods)
    if has_reference:
        line = Line2D([], [], color=BLACK, linewidth=1, linestyle=(0, (4, 3)), label=reference)
        band = Patch(color=FAINT, alpha=0.6, linewidth=0, label=f"interval of {reference}")
        figure.legend(handles=[line, band], loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    _entitle(figure, title)
    return figure


def roc_curves(
    curves: Mapping[str, Curve],
    *,
    log: bool = False,
    lowest: float = 1e-3,
    reference: str = "retrained",
    title: str | None = None,
) -> Figure:
    """Membership attack on every method as a ROC curve, with its area in the legend.

    Args:
        curves: `{method: jaxunlearn.audit.Roc}`, or pairs of false and true positive rates, ascending from 0 to 1.
        log: both axes logarithmic, which shows the few rows an attacker is sure about.
        lowest: where logarithmic axes begin; rates below it are not drawn.
        reference: drawn black and dashed, if it is there.
        title: above the figure.
    """
    colours = _colours(curves, reference)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.subplots()
    _style(panel, "both")
    diagonal = np.geomspace(lowest, 1, 50) if log else np.array([0.0, 1.0])
    panel.plot(diagonal, diagonal, color=GREY, linewidth=1, linestyle=":", label="0.500  chance")
    for place, (method, curve) in enumerate(curves.items()):
        false_positive, true_positive = np.asarray(curve[0]), np.asarray(curve[1])
        is_reference = method == reference
        style = (0, (4, 2)) if is_reference else ("-", "-.")[place // (len(PALETTE) + 2) % 2]
        area = np.trapezoid(true_positive, false_positive)
        panel.plot(
            false_positive,
            true_positive,
            color=colours[method],
            linestyle=style,
            linewidth=1.7,
            zorder=3 if is_reference else 2,
            label=f"{area:.3f}  {method}",
        )
    if log:
        panel.set_xscale("log", nonpositive="clip")
        panel.set_yscale("log", nonpositive="clip")
        panel.xaxis.set_major_formatter(PLAIN)
        panel.yaxis.set_major_formatter(PLAIN)
    panel.set_xlim(lowest if log else -0.01, 1 if log else 1.01)
    panel.set_ylim(lowest if log else -0.01, 1 if log else 1.01)
    panel.set_box_aspect(1)
    panel.set_xlabel("false positive rate")
    panel.set_ylabel("true positive rate")
    panel.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, title="area under the curve", alignment="left")
    _entitle(figure, title)
    return figure


def time_per_request(
    milliseconds: Mapping[str, float],
    compile_seconds: Mapping[str, float],
    *,
    reference: str = "retrained",
    title: str | None = None,
) -> Figure:
    """Run time per request (left, logarithmic) and, apart from it, compile time per program (right).

    Args:
        milliseconds: wall time of the batched call divided by its number of requests, in milliseconds, for each method.
        compile_seconds: compile time of that call, in seconds, for the same methods.
        reference: run times are followed by how many times faster than it a method is.
        title: above the figure.

    Raises:
        ValueError: the two name different methods, or a time is not positive.
    """
    methods = list(milliseconds)
    if set(methods) != set(compile_seconds):
        raise ValueError(f"run times name {', '.join(methods)}, but compile times name {', '.join(compile_seconds)}")
    if not methods or min(milliseconds.values()) <= 0:
        raise ValueError(f"expected positive run times, got {dict(milliseconds)}")
    colours = [_colours(methods, reference)[method] for method in methods]
    figure = Figure(figsize=(8.2, 1.1 + 0.36 * len(methods)), layout="constrained")
    run, compilation = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for panel in (run, compilation):
        _style(panel, "x")
    times = np.array([milliseconds[method] for method in methods])
    run.barh(range(len(methods)), times, color=colours, height=0.62)
    run.set_xscale("log")
    low, high = 10 ** np.floor(np.log10(times.min()) - 0.3), times.max()
    run.set_xlim(low, low * (high / low) ** (1 / (1 - ROOM_BEHIND_A_TIME)))
    run.set_xticks([10.0**power for power in _powers(low, high)], minor=False)
    run.set_xticks([], minor=True)
    compilations = [compile_seconds[method] for method in methods]
    compilation.barh(range(len(methods)), compilations, color=colours, height=0.62, alpha=0.45)
    compilation.set_xlim(0, max(*compilations, 1e-3) / (1 - ROOM_BEHIND_A_NUMBER))
    for row, (method, time) in enumerate(zip(methods, times, strict=True)):
        compared = reference in milliseconds and method != reference
        faster = f" ({_short(milliseconds[reference] / time)}x)" if compared else ""
        _behind(run, time, row, f"{_short(time)}{faster}")
        _behind(compilation, compile_seconds[method], row, _short(compile_seconds[method]))
    run.set_title("run, for each request", fontsize=11, loc="left", fontweight="bold")
    speed_up = f" (speed-up over {reference})" if reference in milliseconds else ""
    run.set_xlabel(f"time [ms], log scale{speed_up}")
    run.xaxis.set_major_formatter(PLAIN)
    compilation.set_title("compile, once", fontsize=11, loc="left", fontweight="bold")
    compilation.set_xlabel("time [s]")
    _name_rows(run, methods)
    _entitle(figure, title)
    return figure


def curves(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    level: tuple[str, float] | None = None,
    bands: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    title: str | None = None,
) -> Figure:
    """Lines over one axis.

    Args:
        series: `{name: (x, y)}`. On a logarithmic axis values that are not positive are left out.
        x_label, y_label: with units.
        log_x, log_y: logarithmic axes.
        level: name and value of a dashed horizontal line to compare with.
        bands: lower and upper limits of some of the series.
        title: above the figure.
    """
    figure = Figure(figsize=(7.4, 4.0), layout="constrained")
    panel = figure.subplots()
    _style(panel, "both")
    if log_x:
        panel.set_xscale("log", nonpositive="mask")
        panel.xaxis.set_major_formatter(PLAIN)
    if log_y:
        panel.set_yscale("log", nonpositive="mask")
    if level is not None:
        panel.axhline(level[1], color=BLACK, linewidth=1, linestyle=(0, (4, 3)), label=level[0])
    for place, (name, (x, y)) in enumerate(series.items()):
        again, place = divmod(place, len(PALETTE))  # colours come again with another line and marker
        colour, marker = PALETTE[place], MARKERS[again % len(MARKERS)] if len(x) <= 20 else None
        style = {"color": colour, "linestyle": LINES[again % len(LINES)], "marker": marker, "markersize": 5}
        panel.plot(x, y, linewidth=1.5 if len(x) <= 200 else 0.8, label=name, **style)
        if bands and name in bands:
            panel.fill_between(x, *bands[name], color=colour, alpha=0.2, linewidth=0)
    panel.set_xlabel(x_label)
    panel.set_ylabel(y_label)
    for line in panel.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False).get_lines():
        line.set_linewidth(1.5)
    _entitle(figure, title)
    return figure


def feature_maps(
    features: Mapping[str, np.ndarray], labels: np.ndarray, highlighted: int, *, title: str | None = None
) -> Figure:
    """Features of the same rows, side by side, on the first two principal components of the first of them.

    Args:
        features: `{name: [n, D]}`.
        labels: classes of the rows.
        highlighted: the class that is drawn on top, in colour.
        title: above the figure.
    """
    first = next(iter(features.values()))
    centre = first.mean(axis=0)
    axes = np.linalg.svd(first - centre, full_matrices=False)[2][:2]
    figure = Figure(figsize=(3.7 * len(features), 3.6), layout="constrained")
    panels = figure.subplots(1, len(features), squeeze=False, sharex=True, sharey=True)[0]
    others = labels != highlighted
    for panel, (name, z) in zip(panels, features.items(), strict=True):
        _style(panel, "both")
        places = (z - centre) @ axes.T
        panel.scatter(*places[others].T, s=6, c=labels[others], cmap="Greys", vmin=-8, vmax=12, linewidths=0)
        panel.scatter(*places[~others].T, s=10, color=PALETTE[1], linewidths=0, label=f"class {highlighted}")
        panel.set_title(name)
    panels[-1].legend(frameon=False)
    _entitle(figure, title)
    return figure


def pareto(
    points: Mapping[str, tuple[float, float]],
    *,
    levels: Mapping[str, float] | None = None,
    reference: str = "retrained",
    reference_time: float | None = None,
    unit: str = "seed spreads",
    title: str | None = None,
) -> Figure:
    """Gap to retrained models against time per request, both logarithmic: lower left is better.

    A line joins the methods that none beats in both. Every method has a colour and a marker of its own, named in the legend
    from the smallest gap to the largest.

    Args:
        points: `{method: (milliseconds per request, gap)}`, both positive.
        levels: gaps drawn as horizontal lines, e.g. that of doing nothing.
        reference: name of the vertical line.
        reference_time: milliseconds a request of the reference, drawn as a vertical line.
        unit: of the gap.
        title: above the figure.

    Raises:
        ValueError: no point, or a time or gap that is not positive and finite.
    """
    values = np.array([*points.values()], float).reshape(-1, 2)
    if len(values) == 0 or not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"expected positive times and gaps, got {dict(points)}")
    entries = len(points) + len(levels or {}) + 1
    figure = Figure(figsize=(7.2, max(4.2, 0.2 * entries)), layout="constrained")  # the legend is as high as the panel
    panel = figure.subplots()
    _style(panel, "both")
    panel.set_xscale("log")
    panel.set_yscale("log")
    looks = dict(zip(points, itertools.cycle((colour, marker) for marker in "os^Dv<>PXh*" for colour in PALETTE), strict=False))
    for method in sorted(points, key=lambda name: points[name][1]):
        colour, marker = looks[method]
        time, gap = points[method]
        label = f"{_short(gap)}  {method}"
        panel.plot(time, gap, color=colour, marker=marker, markersize=7, linestyle="none", label=label, zorder=3)
    front = [point for point in sorted(map(tuple, values)) if not any(_beats(other, point) for other in map(tuple, values))]
    panel.plot(*zip(*front, strict=True), color=GREY, linewidth=1, zorder=1)
    for place, (name, gap) in enumerate((levels or {}).items()):
        style = (":", "--", "-.")[place % 3]
        panel.axhline(gap, color=DARK, linewidth=1, linestyle=style, label=f"{_short(gap)}  {name}", zorder=2)
    if reference_time is not None:
        panel.axvline(reference_time, color=BLACK, linewidth=1, linestyle=(0, (4, 3)), label=reference, zorder=2)
    panel.xaxis.set_major_formatter(PLAIN)
    panel.yaxis.set_major_formatter(PLAIN)
    panel.set_xlabel("time per request [ms]")
    panel.set_ylabel(f"largest gap to {reference} [{unit}]")
    panel.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, fontsize=9, title="gap", alignment="left")
    _entitle(figure, title)
    return figure


def image_grid(rows: Mapping[str, np.ndarray], columns: Iterable[str]) -> Figure:
    """Grey images: `{name of a row: [m, h, w]}` with values in [0, 1], black on white, under the names of columns."""
    names = list(columns)
    figure = Figure(figsize=(1.8 + 0.62 * len(names), 0.3 + 0.62 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(names), squeeze=False)
    for line, (name, images) in zip(panels, rows.items(), strict=True):
        for panel, image in zip(line, images, strict=True):
            panel.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for panel, name in zip(panels[0], names, strict=True):
        panel.set_title(name, fontsize=9)
    return figure


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(x <= y for x, y in zip(one, other, strict=True))


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, facecolor="white", bbox_inches="tight")
    return buffer.getvalue()


def _colours(methods: Iterable[str], reference: str) -> dict[str, str]:
    fixed = {reference: BLACK, NOTHING: GREY}
    free = [method for method in methods if method not in fixed]
    return fixed | {method: PALETTE[place % len(PALETTE)] for place, method in enumerate(free)}


def _style(panel: Axes, grid: str) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(GREY)
    panel.tick_params(color=GREY)
    panel.tick_params(axis="y", length=0 if grid == "x" else 3)
    panel.grid(axis=grid, color=FAINT, linewidth=0.6)  # type: ignore[arg-type]
    panel.set_axisbelow(True)


def _behind(panel: Axes, x: float, row: int, text: str) -> None:
    """A number right of what it belongs to, inside of its panel: between panels it would read as a tick of the next one."""
    if np.isfinite(x):
        panel.annotate(
            text, (x, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9, color=DARK, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )  # fmt: skip


def _powers(low: float, high: float) -> range:
    """Of ten, from `low` to `high`, seven at most."""
    first, last = round(np.log10(low)), int(np.ceil(np.log10(high)))
    return range(first, last + 1, 1 + (last - first) // 7)


def _name_rows(panel: Axes, methods: list[str]) -> None:
    panel.set_yticks(range(len(methods)), methods)
    panel.set_ylim(len(methods) - 0.5, -0.5)
    panel.tick_params(axis="y", labelcolor=BLACK)


def _percent_axis(panel: Axes, values: np.ndarray) -> None:
    """Room around all intervals and for numbers behind them, at least four points wide, and no tick that cannot be."""
    low, high = np.nanmin(values), np.nanmax(values)
    margin = max(0.08 * (high - low), (4 - (high - low)) / 2, 0.4)
    low, high = low - margin, high + margin
    panel.set_xlim(low, low + (high - low) / (1 - ROOM_BEHIND_A_NUMBER))
    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    panel.set_xticks([x for x in ticks if max(0, low) <= x <= min(100, high)])


def _entitle(figure: Figure, title: str | None) -> None:
    if title:
        figure.suptitle(title, x=0.01, horizontalalignment="left", fontweight="bold")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
