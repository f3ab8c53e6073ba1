"""What `certified_stream.py` shows: its tables, its pictures, and what became of every head in words."""

from typing import Any, Protocol

import numpy as np

from experiments.common import plots
from experiments.common.report import Column, Section, Table

BOUNDS = {"worst_case": "worst case", "data": "data bound", "quartic": "quartic bound", "residual": "true residual"}

STREAM_COLUMNS = [
    Column("head", "head"),
    Column("removals", "rows", "d"),
    Column("certificates", "certificates", "d"),
    Column("milliseconds", "ms each", ".1f"),
    Column("certify_milliseconds", "ms certificate", ".0f"),
    Column("refit_milliseconds", "ms refit", ".0f"),
    Column("distance", "distance", ".0e"),
    Column("distance_bound", "bound", ".0e"),
    Column("accuracy", "accuracy", ".2%"),
    Column("retrained_accuracy", "refit", ".2%"),
    Column("verdict", "verdict"),
]
BATCH_COLUMNS = [
    Column("head", "head"),
    Column("requests", "requests", "d"),
    Column("milliseconds", "ms each", ".2f"),
    Column("faster", "refit / it", ".0f"),
    Column("distance", "distance", ".1e"),
    Column("distance_bound", "bound", ".1e"),
]
BUDGET_COLUMNS = [
    Column("bound", "bound"),
    Column("sum", "sum over the stream", ".2e"),
    Column("share", "of the budget", ".3g"),
    Column("spent", "spent at removal", "d"),
]
EPSILON_COLUMNS = [
    Column("epsilon", "epsilon", "g"),
    Column("noise", "noise", ".1e"),
    Column("accuracy", "accuracy of releases", ".2%"),
    Column("gap", "minus refit [points]", "+.2f"),
]

INTRO = """\
People leave one after another. After each removal the head is a few Newton steps from where training on the remaining rows
would end, and the gradient that is left proves how far. Noise of a fixed size, larger than that distance calls for, makes the
released weights (epsilon, delta) indistinguishable from those of a head that never saw the rows.

How to read it: the distance to a refitted head is what was really left; its bound is what the certificate counts.
Accuracies are those of released weights: removed and noised. A head on features is only as clean as the network that made
them: one that was trained on the rows keeps them, whatever happens to the head, and its certificate is refused.

Requests must not depend on releases, and one release is observed. Nothing here speaks of copies of the rows elsewhere."""


class Asked(Protocol):
    """What of the command line is read."""

    epsilon: float
    delta: float
    sensitivity: float
    sigma: float


def promised(config: Asked) -> str:
    """The promise, in words."""
    return f"epsilon {config.epsilon:g}, delta {config.delta:g}"


def in_words(config: Asked, row: dict[str, Any], refusal: list[str]) -> str:
    """What became of one head.

    Args:
        config: of the script.
        row: of the table of streams.
        refusal: why the last certificate is void.
    """
    said = f"Head on {row['head']}: {row['removals']} rows left one after another, {row['milliseconds']:.1f} ms each"
    if refusal:
        return f"{said}. No certificate: {'; '.join(refusal)}."
    return (
        f"{said}, where training again takes {row['refit_milliseconds']:.0f} ms. {row['certificates']} certificates hold; "
        f"at the end it is {row['distance']:.0e} from a retrained head, and at most {row['distance_bound']:.0e} by the bound. "
        f"With noise for {promised(config)} it is right on {row['accuracy'].estimate:.1%} of test rows, a retrained head on "
        f"{row['retrained_accuracy']:.1%}."
    )


def stat_names() -> dict[str, str]:
    """Labels of bounds by their names in the stats of a removal."""
    return {name if name == "residual" else f"{name}_bound": label for name, label in BOUNDS.items()}


def _counted(values: np.ndarray) -> np.ndarray:
    return np.arange(1, len(values) + 1)


def sections(
    config: Asked,
    found: dict[str, dict[str, Any]],
    perturbed: dict[str, Any] | None,
    curve: list[dict[str, Any]],
    tables: list[Table],
) -> tuple[list[Section], Any]:
    """Parts of the report, and the picture that is kept beside it."""
    first = next(iter(found.values()))
    distances = plots.curves(
        {name: (_counted(x["stats"]["distance_bound"]), x["stats"]["distance_bound"]) for name, x in found.items()},
        x_label="removal", y_label="bound of the distance to a refit", log_y=True, level=("sensitivity", config.sensitivity),
    )  # fmt: skip
    epsilons = np.array([row["epsilon"] for row in curve])
    accuracies = 100 * np.array([[float(x) for x in row["accuracy"]] for row in curve]).T
    accuracy = plots.curves(
        {"releases": (epsilons, accuracies[0])}, bands={"releases": (accuracies[1], accuracies[2])},
        x_label="epsilon", y_label="test accuracy [%]", log_x=True,
        level=("retrained", 100 * first["stream"]["retrained_accuracy"]),
    )  # fmt: skip
    refusals = [
        f"Certificate of the head on {name} refused: {'; '.join(x['refusal'])}." for name, x in found.items() if x["refusal"]
    ]
    told = "Where noise begins to cost accuracy; the band holds 95 % of releases."
    picture, middle = distances, []
    if perturbed is not None:
        picture, secret = budgets(config, perturbed, tables[2])
        words = "Alternatives from one start; time of the whole call, divided by its requests."
        middle = [Section("At once", words, [tables[1]]), secret]
    parts = [
        Section("One after another", "\n\n".join(refusals), [tables[0]], [(distances, "What the certificates count.")]),
        *middle,
        Section("Accuracy against epsilon", "", [tables[-1]], [(accuracy, told)]),
    ]
    return parts, picture


def budgets(config: Asked, perturbed: dict[str, Any], table: Table) -> tuple[Any, Section]:
    """What each removal leaves under objective perturbation, and how long its budget lasts."""
    residuals = plots.curves(
        {label: (_counted(perturbed["stats"][stat]), perturbed["stats"][stat]) for stat, label in stat_names().items()},
        x_label="removal", y_label="norm of the gradient that is left", log_y=True,
    )  # fmt: skip
    budget = plots.curves(
        {label: (_counted(values), values) for label, values in perturbed["sums"].items()},
        x_label="removal", y_label="spent so far", log_y=True, level=("budget", perturbed["budget"]),
    )  # fmt: skip
    words = (
        "Bounds of successive removals add up; when they exceed the budget, the head has to be trained again. The true "
        "residual is what is left at each moment; it is shown for comparison, and no such certificate may use it. The worst "
        "case is proved for one Newton step from an exact optimum; it is shown as published, added up over the stream.\n\n"
        f"The secret of deviation {config.sigma:g} costs accuracy: {perturbed['json']['accuracy_before']:.1%} with it, "
        f"{perturbed['json']['accuracy_before_without_secret']:.1%} without, and {perturbed['json']['accuracy_after']:.1%} "
        "after the stream."
    )
    pictures = [
        (residuals, "One Newton step per removal: what it leaves, and bounds of that."),
        (budget, "What each has spent."),
    ]
    return residuals, Section("Objective perturbation", words, [table], pictures)
