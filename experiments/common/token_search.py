"""Choosing settings of methods on canaries that are not reported: other people, other codes, another model."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import jaxunlearn as ju
from experiments.common import settings, token_methods, token_runs, token_verdicts
from experiments.common.outcome import AGAIN, NOTHING, RETRAINED
from experiments.common.recall import Found
from experiments.common.running import at
from experiments.common.script import Advance
from experiments.common.token_runs import Bench

MARGIN = 0.01  # of held-out loss above the original's; half of what is allowed, because reported models are others


def score(row: Mapping[str, float], low: float, high: float) -> float:
    """How far a point is from the target, in bits: outside the floor in the worst case, and one for each per cent of damage.

    Damage is that against the original: retrained models of one original scatter by more.
    """
    worst = max(row["plain"], row["relearned"], row["rounded"])
    return max(worst - high, 0.0) + max(low - row["plain"], 0.0) + 100 * max(row["moved"] - MARGIN, 0.0)


def band(references: Mapping[str, Found], count: int) -> tuple[float, float]:
    """The middle half of the floor, as reported canaries are others, and more of them."""
    low, high, _ = token_verdicts.floor(references, "recall", count)
    return (3 * low + high) / 4, (low + 3 * high) / 4


def tried(bench: Bench, name: str, base: ju.Variables, references: Mapping[str, Found], seed: int) -> list[dict[str, Any]]:
    """All points of one method, on the canaries that models are retrained for, in one call."""
    points, places = token_methods.points(name), bench.chosen
    each = [point for point in points for _ in places]
    answer, _, _ = token_runs.answered(bench, name, base, each, np.tile(places, len(points)), seed)
    found = token_runs.measured(bench, answer.variables, np.tile(places, len(points)))
    low, high = band(references, len(places))
    rows = []
    for place, point in enumerate(points):
        mine: Found = at(found, slice(place * len(places), (place + 1) * len(places)))
        row: dict[str, Any] = {"method": name, "settings": point}
        row |= {
            label: float((mine.held_out / references[kind].held_out).mean() - 1)
            for label, kind in (("apart", RETRAINED), ("moved", NOTHING))
        }
        row |= {
            label: float(getattr(mine, part).exposure.mean()) for part, label in token_verdicts.PARTS.items()
        }  # fmt: skip
        row |= {"extracted": float(mine.recall.extracted.mean()), "document": float(mine.document.mean())}
        rows.append(row | {"score": score(row, low, high) if np.isfinite(row["apart"]) else float("inf")})
    return rows


def search(bench: Bench, names: tuple[str, ...], configs: Any, advance: Advance, seed: int = 0) -> dict[str, Any]:
    """Try all points of all methods, and keep the best of each.

    Args:
        bench: of a world of another draw than the reported one.
        names: methods.
        configs: folder that the settings are written to.
        advance: of the progress bar: one for training, one for each method.
        seed: of the original.

    Returns:
        All points with what was found, the floor, and the draw.
    """
    advance("training and retraining")
    base, controls, seconds, tokens = token_runs.trained(bench, seed)
    advance(f"{tokens / seconds:,.0f} tokens/s", done=1)
    references = {
        name: token_runs.measured(bench, at(controls, half), bench.chosen) for half, name in enumerate((RETRAINED, AGAIN))
    }
    references[NOTHING] = token_runs.measured(bench, token_runs.repeated(base, len(bench.chosen)), bench.chosen)
    points = []
    for name in names:
        advance(name)
        rows = tried(bench, name, base, references, seed)
        points += rows
        best = min(rows, key=lambda row: (row["score"], row["moved"]))
        if not np.isfinite(best["score"]):
            raise SystemExit(f"{name} diverged at all {len(rows)} points: give it smaller values in token_methods.SEARCH")
        entry = {
            "values": best["settings"], "bits_from_the_target": round(best["score"], 2),
            "search": {
                "points": len(rows), "grid": token_methods.SEARCH[token_methods.factory_of(name)], "draws": [bench.plan.draw],
                "seeds": 1, "requests": len(bench.chosen), "unlearning_steps": bench.plan.steps.num_steps,
            },
        }  # fmt: skip
        scenario = token_methods.SCENARIOS[token_methods.is_whole(name)]
        settings.save(configs, token_methods.factory_of(name), token_methods.STUDY, {scenario: entry})
        advance(done=1)
    return {
        "points": points, "floor": token_verdicts.floor(references, "recall", len(bench.chosen)), "draw": bench.plan.draw,
        "held_out": float(references[RETRAINED].held_out.mean()),
    }  # fmt: skip
