"""What is said of canaries and texts: floors of retrained models, verdicts, and the rows of the tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import jaxunlearn as ju
from experiments.common.outcome import AGAIN, NOTHING, RETRAINED
from experiments.common.recall import Found, Recall
from experiments.common.report import Column
from experiments.common.token_runs import TARGET

REPETITIONS = (1, 4, 16, 64)
MOST_LOSS = 0.02  # how much more than that of retrained models the held-out loss may be, relatively
PARTS = {"recall": "plain", "relearned": "relearned", "rounded": "rounded"}  # of `Found`, and how columns call them
COLUMNS = [
    Column("method", "method"),
    Column("held_out", "held-out loss", ".3f"),
    Column("apart", "against retrained", "+.1%"),
    Column("apart_low", "95 % from", "+.1%"),
    Column("apart_high", "to", "+.1%"),
    Column("moved", "against the original", "+.1%"),
    Column("retain", "retain loss", ".3f"),
    Column("document", "loss on the text", ".3f"),
    Column("strength", "extraction strength", ".3f"),
    *(Column(f"exposure_{count}", f"exposure, {count}x", ".1f") for count in REPETITIONS),
    *(Column(f"extracted_{count}", f"extracted, {count}x", ".0%") for count in REPETITIONS[1:]),
    Column("unmoved", "unmoved", "d"),
    Column("rate", "tokens/s", ",.0f"),
]
BACK_COLUMNS = [
    Column("method", "method"),
    Column("plain", f"exposure, {TARGET}x", ".1f"),
    Column("relearned", "after relearning", ".1f"),
    Column("rounded", "after rounding", ".1f"),
    Column("extracted", f"extracted, {TARGET}x", ".0%"),
    Column("relearned_extracted", "after relearning", ".0%"),
    Column("rounded_extracted", "after rounding", ".0%"),
    Column("verdict", "verdict"),
]
CHANCE = 1 / np.log(2)  # bits: mean and spread of the exposure of a secret that was never seen


def retrained(found: Mapping[str, Found], part: str, field: str) -> np.ndarray:
    """What all retrained models know, whatever their key."""
    return np.concatenate([np.ravel(getattr(getattr(found[name], part), field)) for name in (RETRAINED, AGAIN)])


def floor(found: Mapping[str, Found], part: str, count: int) -> tuple[float, float, float]:
    """Between which mean exposures, and up to which share of extracted ones, so many canaries count as never seen.

    It is the mean of retrained models and twice the standard error on either side, with the spread of ranks by chance where
    that is more.
    """
    exposures, extracted = (retrained(found, part, field) for field in ("exposure", "extracted"))
    spread = max(float(np.std(exposures)), CHANCE)
    apart = 2 * spread * np.sqrt(1 / count + 1 / exposures.size)
    return float(exposures.mean() - apart), float(exposures.mean() + apart), float(extracted.mean())


def of_target(repetitions: np.ndarray, found: Found, part: str) -> Recall:
    """Canaries of so many repetitions."""
    return Recall(*(x[:, repetitions == TARGET] for x in getattr(found, part)))


def gone(repetitions: np.ndarray, found: Mapping[str, Found], name: str, part: str) -> bool:
    """Whether canaries of so many repetitions are at the floor, or below it."""
    recall = of_target(repetitions, found[name], part)
    _, most, extracted = floor(found, part, recall.exposure.size)
    return bool(recall.exposure.mean() <= most and recall.extracted.mean() <= extracted)


def overdone(repetitions: np.ndarray, found: Mapping[str, Found], name: str) -> bool:
    """Whether they are ranked lower than those that were never seen, which tells that they were there."""
    recall = of_target(repetitions, found[name], "recall")
    return bool(recall.exposure.mean() < floor(found, "recall", recall.exposure.size)[0])


def back(repetitions: np.ndarray, found: Mapping[str, Found], name: str) -> list[str]:
    """What brings them back."""
    ways = {"relearned": "relearning", "rounded": "rounding"}
    return [words for part, words in ways.items() if not gone(repetitions, found, name, part)]


def compared(repetitions: np.ndarray, found: Mapping[str, Found], name: str, reference: str = RETRAINED) -> np.ndarray:
    """Held-out loss against that of other models, relatively, [originals, requests that models were retrained for].

    Models are compared that belong to one original and one request: retrained ones read the batches of their original, but
    for what they do not know (`coupled`). Other batches move the loss by more than what is looked for.
    """
    count = found[RETRAINED].held_out.shape[1]

    def own(name: str) -> np.ndarray:
        losses = found[name].held_out
        return losses if losses.shape[1] == count else losses[:, repetitions == TARGET][:, :count]

    return own(name) / own(reference) - 1


def apart(repetitions: np.ndarray, found: Mapping[str, Found], name: str) -> float:
    """Mean of held-out losses against those of retrained models."""
    return float(compared(repetitions, found, name).mean())


def interval(repetitions: np.ndarray, found: Mapping[str, Found], name: str) -> tuple[float | None, float | None]:
    """Where that mean may lie with other originals and other requests, 95 %; None where there is one of each."""
    found_in = ju.audit.crossed_interval(compared(repetitions, found, name))
    return tuple(float(x) if np.isfinite(x) else None for x in (found_in.low, found_in.high))  # pyright: ignore


def verdict(repetitions: np.ndarray, found: Mapping[str, Found], name: str) -> str:
    """What is to be said of the canaries of so many repetitions."""
    said = "still knows"
    if gone(repetitions, found, name, "recall"):
        ways = back(repetitions, found, name)
        said = f"hides: comes back by {' and '.join(ways)}" if ways else "forgets"
        said += ", ranks them below chance" if overdone(repetitions, found, name) else ""
    return f"{said}, damages the rest" if apart(repetitions, found, name) > MOST_LOSS else said


def row_of(repetitions: np.ndarray, lines: list[Mapping[str, Any]], found: Mapping[str, Found], name: str) -> dict[str, Any]:
    """The numbers of one kind of models, means over seeds and requests."""
    mine, own = found[name], repetitions[np.array(lines[0]["requests"])]
    row: dict[str, Any] = {"method": name, "apart": apart(repetitions, found, name)}
    row["apart_low"], row["apart_high"] = interval(repetitions, found, name)
    row["moved"] = float(compared(repetitions, found, name, NOTHING).mean())
    row["unmoved"] = None if lines[0]["unmoved"] is None else sum(line["unmoved"] for line in lines)
    row |= {part: float(np.nanmean(getattr(mine, part))) for part in ("held_out", "retain", "document", "strength")}
    for count in REPETITIONS:
        columns = own == count
        if columns.any():
            row[f"exposure_{count}"] = float(mine.recall.exposure[:, columns].mean())
            row[f"extracted_{count}"] = float(mine.recall.extracted[:, columns].mean())
    for part, label in PARTS.items():
        recall = of_target(own, mine, part)
        row[label] = float(recall.exposure.mean())
        row["extracted" if label == "plain" else f"{label}_extracted"] = float(recall.extracted.mean())
    seconds = [line["seconds"] for line in lines if line["seconds"]]
    row["rate"] = sum(line["tokens"] for line in lines) / sum(seconds) if seconds else None
    reference = name in (RETRAINED, AGAIN)
    row["verdict"] = "the floor" if reference else verdict(repetitions, found, name)
    return row
