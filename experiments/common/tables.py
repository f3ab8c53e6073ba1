"""Tables and plots of a comparison, made from its log alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from experiments.common import plots
from experiments.common.comparison import measures_of
from experiments.common.log import Records
from experiments.common.outcome import AGAIN, LEAST_SPREAD, NOTHING, RETRAINED, Outcome, gaps, in_spreads, spreads
from experiments.common.report import Column, Table

REMARKS = {
    "nonfinite": "{count} of {total} models of {method} hold NaN or inf",
    "damaged": "{method} damaged {count} of {total} models: their loss on retained rows is above that of guessing",
    "unchanged": "{method} moved no weight for {count} of {total} requests",
    "indefinite": "{method} solved with a matrix that is not positive for {count} of {total} requests",
    "not_converged": "the solver of {method} did not converge for {count} of {total} requests",
    "stale": "{method} answers a stream with values that it prepared for the model in front of it: they belong to other "
    "weights from the second request on ({count} of {total} requests are STALE)",
}


def outcome_of(line: Mapping[str, Any]) -> Outcome:
    """The values of a line of the log; null is NaN."""
    return Outcome(**{key: jnp.asarray(np.array(value, np.float32)) for key, value in line["values"].items()})


def summarise(
    table: str, methods: Sequence[str], records: Records, reasons: Mapping[str, str | None], notes: Mapping[str, str]
) -> dict[str, Any]:
    """Tables, plot and JSON of one scenario, from the log alone.

    Args:
        table: name of the scenario.
        methods: in order.
        records: of the log.
        reasons: why methods are left out, None for those that are not.
        notes: on settings, by method.
    """
    first = records[table, RETRAINED]
    reference, measure = outcome_of(first), first["measure"]
    names, seeds, requests = measures_of(measure), *reference.auc.shape
    rows, gap_rows, lines, points, levels, remarks = [], [], {}, {}, {}, []
    for method in [method for method in methods if reasons[method] is None]:
        line = records[table, method]
        outcome = outcome_of(line)
        means = {name: ju.audit.crossed_interval(getattr(outcome, name), within=(0, math.inf)) for name in names}
        rows.append({"method": method, **means, **{x: line[x] for x in ("milliseconds",)}, "note": notes.get(method)})
        lines[method] = {
            "settings": line["settings"],
            "means": as_lists(means),
            **{name: line[name] for name in ("milliseconds", "compile_seconds", *REMARKS)},
            **({"note": notes[method]} if method in notes else {}),
        }
        remarks += [
            text.format(method=method, count=line[name], total=line["requests"]) for name, text in REMARKS.items() if line[name]
        ]
        if method == RETRAINED:
            continue
        apart = gaps(outcome, reference, names)
        scaled = in_spreads(outcome, reference, names, least=LEAST_SPREAD)
        place = max(names, key=lambda name: math.inf if math.isnan(scaled[name]) else abs(scaled[name]))
        worst = scaled[place]
        rows[-1] |= {"worst": worst, "place": place}
        gap_rows.append({"method": method, **apart, "worst": worst})
        lines[method] |= {
            "gaps": as_lists(apart),
            "gaps_in_spreads": {name: rounded(value) for name, value in scaled.items()},
            "worst": rounded(worst),
            "worst_at": place,
        }
        if method in (NOTHING, AGAIN):
            levels[method] = max(abs(worst), 0.01)
        elif np.isfinite(worst):
            points[method] = (line["milliseconds"], max(abs(worst), 0.01))
    left = {method: reason for method, reason in reasons.items() if reason is not None}
    rows += [{"method": method} for method in left]
    gap_columns, columns = columns_of(measure, bool(first["classes"]), bool(notes))
    caption = f"{table}: means over {seeds} seeds x {requests} requests, 95 % intervals; worst: largest gap in seed spreads"
    return {
        "json": {
            "question": first["question"],
            "measure": measure,
            "rows": first["rows"],
            "seed_spreads": {name: rounded(value) for name, value in spreads(reference, names).items()},
            "methods": lines,
            "left_out": left,
        },
        "table": Table(columns, rows, caption),
        "gap_table": Table(gap_columns, gap_rows, f"{table}: signed gaps to the retrained models of the same requests"),
        "remarks": [*remarks, *(f"{method} is left out: it {reason}" for method, reason in left.items())],
        "figure": plots.pareto(points, levels=levels, reference_time=first["milliseconds"]) if points else None,
    }


def columns_of(measure: str, classifies: bool, has_notes: bool) -> tuple[list[Column], list[Column]]:
    """Columns of the gap table and of the table."""
    unit, form = ("acc.", ".1%") if classifies else ("RMSE", ".3f")
    measures = [Column(name, f"{name} {unit}", form) for name in ("retain", "forget", "test")]
    measures += [Column("unseen", measure, form)] if measure else []
    measures.append(Column("auc", "attack AUC", ".3f"))
    signed = [column._replace(format=f"+{column.format}") for column in measures]
    worst, method = Column("worst", "worst", "+.1f"), Column("method", "method")
    rest = [worst, Column("place", "at"), Column("milliseconds", "ms/request", ".1f")]
    return [method, *signed, worst], [method, *measures, *rest, *([Column("note", "note")] if has_notes else [])]


def overview(found: Mapping[str, dict[str, Any]]) -> Table:
    """Largest gap in seed spreads of every method in every scenario."""
    methods = dict.fromkeys(method for one in found.values() for method in one["json"]["methods"])
    rows = [
        {"method": method, **{table: one["json"]["methods"].get(method, {}).get("worst") for table, one in found.items()}}
        for method in [*(x for x in methods if x not in (AGAIN, RETRAINED)), AGAIN]
    ]
    return Table(
        [Column("method", "method"), *(Column(table, table, "+.1f") for table in found)],
        rows,
        "Largest signed gap to retrained models in seed spreads, by scenario; a dash: does not apply, or diverged",
    )


def rounded(value: float) -> float | None:
    """Four significant digits; None, which is JSON, for what is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def as_lists(intervals: Mapping[str, ju.audit.Interval]) -> dict[str, list[float | None]]:
    """Intervals as [estimate, low, high]."""
    return {name: [rounded(float(x)) for x in interval] for name, interval in intervals.items()}
