"""The page and the JSON of `experiments/language.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.common import token_verdicts
from experiments.common.outcome import AGAIN, NOTHING
from experiments.common.planted import World
from experiments.common.recall import Found
from experiments.common.report import Column, Section, Table
from experiments.common.token_runs import TARGET
from jaxunlearn import frozen

MEMORY_COLUMNS = [Column("what", "what"), Column("bytes", "bytes", ",d")]
SEARCH_COLUMNS = [
    Column("method", "method"),
    Column("settings", "settings"),
    Column("moved", "held-out loss against the original", "+.1%"),
    Column("apart", "against retrained", "+.1%"),
    Column("plain", f"exposure, {TARGET}x", ".1f"),
    Column("relearned", "after relearning", ".1f"),
    Column("rounded", "after rounding", ".1f"),
    Column("extracted", "extracted", ".0%"),
    Column("document", "loss on the text", ".2f"),
    Column("score", "bits from the target", ".1f"),
]
TITLE = "jaxunlearn: unlearning in a language model"
INTRO = """\
A code that stands in the training text is forgotten if a model ranks it among all codes as one that never saw it does, if it is
not what the model says behind its prefix, and if it stays so. Exposure is log2 of how many codes there are, less log2 of the
rank of the right one: 10 bits if it is the likeliest of 1,000, 1.44 on average for a code that was never seen. A verdict is
about canaries of 16 repetitions; nothing is guaranteed."""
BACK = """\
Relearning is a few steps on the text about the person, in which the code is not. Rounding is to 8-bit integers with one scale
for each output of a matrix. A method hides a code that is at the floor before and above it afterwards; the floor is that of
retrained models that went through the same. A code that is ranked below chance was driven out, and shows that it was there."""
FRONTIER = "Lower left of the lines is the target: dashed what retrained models reach, dotted 2 % of held-out loss above them."


def memory(world: World, parts: frozen.OnBase) -> list[dict[str, Any]]:
    """Bytes of what is held."""
    assert world.model.init is not None
    base = jax.eval_shape(world.model.init, jax.random.key(0))

    def size(values: Any) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(values))

    part = size(jax.eval_shape(parts.start, base, jax.random.key(0)))
    count = len(world.canaries)
    return [
        {"what": "base, held once", "bytes": size(base)},
        {"what": "base of 8-bit integers", "bytes": size(jax.eval_shape(frozen.int8, base.params))},
        {"what": "adapter of a request", "bytes": part},
        {"what": f"base and adapters of {count} requests", "bytes": size(base) + count * part},
        {"what": f"all weights of {count} requests", "bytes": count * size(base)},
    ]


def frontier(points: Mapping[str, Sequence[tuple[float, float]]], most: float, *, title: str | None = None) -> Figure:
    """Exposure against held-out loss, a marker for every method.

    Args:
        points: by method, (held-out loss against retrained models in per cent, exposure in bits).
        most: exposure up to which a code counts as never seen.
        title: above the figure.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    panel = figure.subplots()
    for place, (name, found) in enumerate(points.items()):
        x, y = zip(*sorted(found), strict=True)
        panel.plot(x, y, "os^Dv<>PX*hd"[place % 12], color=f"C{place % 10}", label=name, markersize=6, alpha=0.85)
    panel.axhline(most, color="0.2", linewidth=1, linestyle="--")
    panel.axvline(100 * token_verdicts.MOST_LOSS, color="0.2", linewidth=1, linestyle=":")
    panel.set_xlabel("held-out loss against retrained models [%]")
    panel.set_ylabel(f"exposure of codes of {TARGET} repetitions [bits]")
    panel.grid(color="0.87", linewidth=0.6)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, fontsize=9)
    if title is not None:
        figure.suptitle(title)
    return figure


def page(
    world: World, methods: Sequence[str], lines: Mapping[str, list], found: Mapping[str, Found], held: list[dict[str, Any]]
) -> dict[str, Any]:
    """What was found, as tables, figures, notes and numbers.

    Args:
        world: what it was found on.
        methods: that were asked for.
        lines: of the log, by kind of models, one for each original.
        found: what they hold.
        held: see `memory`.

    Returns:
        `sections`, `tables`, `notes` and `summary`.
    """
    own, verdicts = world.repetitions, token_verdicts
    rows = [verdicts.row_of(own, lines[name], found, name) for name in found]
    count = len(lines[NOTHING]) * int(np.sum(own == TARGET))
    floors = {part: verdicts.floor(found, part, count) for part in verdicts.PARTS}
    reached = [
        name
        for name in methods
        if verdicts.gone(own, found, name, "recall") and verdicts.apart(own, found, name) <= verdicts.MOST_LOSS
    ]
    lasting = [name for name in reached if not verdicts.back(own, found, name)]
    level = [name for name in lasting if not verdicts.overdone(own, found, name)]
    caption = f"{len(lines[NOTHING])} originals, {len(own)} requests each; retrained models for {TARGET} repetitions only"
    tables = [
        Table(verdicts.COLUMNS, rows, caption), Table(verdicts.BACK_COLUMNS, rows, "does it come back?"),
        Table(MEMORY_COLUMNS, held, "memory"),
    ]  # fmt: skip
    points = {row["method"]: [(100 * row["apart"], row["plain"])] for row in rows}
    sections = [
        Section("What is left", "Losses are nats a token.", [tables[0]], [(frontier(points, floors["recall"][1]), FRONTIER)]),
        Section("Does it come back?", BACK, [tables[1]]),
        Section("Memory", "", tables[2:]),
    ]
    unmoved = {name: sum(line["unmoved"] for line in x) for name, x in lines.items() if x[0]["unmoved"] is not None}
    again = next(row for row in rows if row["method"] == AGAIN)
    notes = [
        f"canaries of {TARGET} repetitions at the floor, held-out loss within {verdicts.MOST_LOSS:.0%} of retrained: "
        f"{'; '.join(reached) or 'missed by all methods'}",
        f"still at the floor after relearning and rounding: {'; '.join(lasting) or 'none of them'}",
        f"and not ranked below chance: {'; '.join(level) or 'none of them'}",
        f"held-out loss of models that were retrained again, from another key, against retrained ones: {between(again)}",
        *(
            f"held-out loss of {row['method']} against retrained models: {between(row)}"
            for row in rows
            if row["method"] in reached
        ),
        f"leaves of adapters that did not move: {sum(unmoved.values())}",
    ]
    parts = Found._fields[:3]
    summary = {
        "rows": rows,
        "target": {"reached": reached, "lasting": lasting, "not_below_chance": level, "floor": floors},
        "exposures": {
            name: {part: np.round(getattr(x, part).exposure.astype(float), 2).tolist() for part in parts}
            for name, x in found.items()
        },
        "held_out_losses": {name: np.round(x.held_out.astype(float), 4).tolist() for name, x in found.items()},
        "repetitions": own.tolist(),
        "not_ok": {name: sum(line["not_ok"] for line in x) for name, x in lines.items()},
        "unmoved": unmoved,
        "settings": {name: lines[name][0]["settings"] for name in methods},
        "seconds": {name: [line["seconds"] for line in x] for name, x in lines.items()},
        "parameters": held[0]["bytes"] // 4,
        "rows_of_text": int(world.data.train.inputs.shape[0]),
        "memory": held,
    }  # fmt: skip
    return {"sections": sections, "tables": tables, "notes": notes, "summary": summary}


def between(row: Mapping[str, Any]) -> str:
    """Held-out loss against retrained models, and 95 % around it."""
    low, high = row["apart_low"], row["apart_high"]
    return f"{row['apart']:+.1%}" + ("" if low is None else f" [{low:+.1%}, {high:+.1%}]")


def search_page(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a search tried, best first."""
    rows = sorted(found["points"], key=lambda row: (row["score"], row["moved"]))
    told = [{**row, "settings": ", ".join(f"{key} {value:g}" for key, value in row["settings"].items())} for row in rows]
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if np.isfinite(row["apart"]):
            points.setdefault(row["method"], []).append((100 * row["apart"], row["plain"]))
    table = Table(SEARCH_COLUMNS, told, f"draw {found['draw']}, which is not reported")
    text = "All points of all methods; the best of each is what reported runs take."
    figure = frontier(points, found["floor"][1])
    return {"sections": [Section("Search", text, [table], [(figure, FRONTIER)])], "tables": [table], "notes": []}
