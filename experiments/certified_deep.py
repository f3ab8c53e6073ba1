"""What certificates are worth: accuracy at equal epsilon, epsilon at equal accuracy, time per request, beside noise alone.

    python experiments/certified_deep.py                                               # digits throughout, offline
    python experiments/certified_deep.py --linear-dataset mnist --data-dir DIR         # linear part: 11,982 rows of 784
    python experiments/certified_deep.py --parts linear --linear-dataset mnist --data-dir DIR --epsilons 0.5 1
    python experiments/certified_deep.py --smoke                                       # tiny, to see whether it runs

**mlp**, **cnn**. Random requests to a trained network (the CNN without normalisation), each answered with a certificate of the
same epsilon, and then trained on without noise for the same number of steps. Whoever certifies has to beat two rows: output
perturbation, which clips the weights and adds noise without a look at any row, and a fresh start, which forgets everything and
costs no noise. Beside them stand frozen features of a network that was trained on half of the rows, which may never leave, with
a certified convex head on the others: nothing is trained after its noise.

**linear**. One row leaves a logistic regression of 3 against 8: Langevin unlearning and its noise in learning, with the exact
accountant and with the published one; noisy steps on fixed batches; descent-to-delete, a rewound descent and recollected
vectors; exact removal and noise; and noise without a step. Figures of Chien, Wang, Chen and Li for one row and one step on
MNIST: 0.911 at epsilon 1, descent-to-delete 0.597. Rewinding and recollected vectors are here only, since their constants are
proved here and no more than guessed for a network.

**stable**. Predictions that stay whichever few rows of every batch are missing in training: a certificate without noise.

Written to the folder `--out`: `report.html`, `certified_deep.png`, `certified_deep.json`.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import numpy as np

from experiments.common import plots, script
from experiments.common.certified_linear import linear
from experiments.common.certified_network import RETRAINED, network
from experiments.common.certified_stable import stable
from experiments.common.data import load
from experiments.common.report import Column, Section, Table
from experiments.common.scale import leads

Part: TypeAlias = Literal["linear", "mlp", "cnn", "stable"]
SHARE = 0.9  # of the retrained accuracy that counts as useful
NETWORK_COLUMNS = [
    Column("method", "method"),
    Column("norm", "norm", "g"),
    Column("epsilon", "epsilon", "g"),
    Column("noise", "noise of a step", ".3g"),
    Column("bare", "test, no training after", ".1%"),
    Column("test", "test", ".1%"),
    Column("retain", "retain set", ".1%"),
    Column("forget", "forget set", ".1%"),
]
LINEAR_COLUMNS = [
    Column("method", "method"),
    Column("epsilon", "epsilon", "g"),
    Column("noise", "noise", ".3g"),
    Column("test", "test", ".1%"),
]
USEFUL_COLUMNS = [
    Column("method", "method"),
    Column("norm", "norm", "g"),
    Column("bare", "nothing after"),
    Column("test", "with training"),
]
ALONE_COLUMNS = [Column("method", "method"), Column("test", "epsilon")]
TIME_COLUMNS = [
    Column("method", "method"),
    Column("prepared", "once, CPU s", ".2f"),
    Column("alone", "removal alone, ms", ".2f"),
    Column("milliseconds", "CPU ms per request", ".2f"),
    Column("faster", "times faster than retraining", ".1f"),
]
STABLE_COLUMNS = [
    Column("method", "trained"),
    Column("rate", "rate", "g"),
    Column("removals", "rows of every batch", "d"),
    Column("test", "test", ".1%"),
    Column("stable", "certified to stay", ".1%"),
    Column("both", "right and certified", ".1%"),
    Column("changed", "seen to change", ".1%"),
    Column("width", "widest interval", ".2g"),
]


@dataclass
class Config(script.OnData):
    """Command line of the script."""

    parts: tuple[Part, ...] = ("linear", "mlp", "cnn", "stable")
    epsilons: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0)
    delta: float = 1e-5
    """Of networks; one over the number of rows in the linear part."""
    norms: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Radii that weights are clipped to."""
    requests: int = 64
    request_size: int = 50
    """Rows of a request to a network."""
    widths: tuple[int, ...] = (32,)
    """Of the MLP."""
    channels: tuple[int, ...] = (8, 16)
    """Of the CNN."""
    training_steps: int = 600
    """Steps of training and retraining."""
    noisy_steps: int = 10
    after_steps: int = 200
    """Steps without noise behind the noisy ones, and of the fresh start."""
    batch_size: int = 64
    rate: float = 1e-2
    """First learning rate of Adam, with a cosine schedule."""
    pull: float = 1.0
    """Norm that gradients of noisy steps are clipped to."""
    linear_dataset: str = "digits"
    draws: int = 16
    """Models that learn with noise, for every epsilon."""
    burn_in: int = 60
    """Noisy steps of learning, from the optimum: its law is reached after few."""
    retrainings: int = 2
    """Of the linear part, to be timed."""
    removals: tuple[int, ...] = (0, 1, 5, 20)
    """Rows of every batch that may be missing."""
    stable_steps: int = 8
    """Steps of SGD on the rows that may be missing, two batches in turn."""
    stable_rates: tuple[float, ...] = (0.001, 0.003, 0.01)
    seed: int = 0
    out: Path = Path("out/certified_deep")


SMOKE: dict[str, Any] = {
    "epsilons": (1.0, 10.0), "norms": (0.1,), "requests": 2, "widths": (8,), "channels": (2, 2), "training_steps": 20,
    "after_steps": 10, "draws": 2, "burn_in": 5, "noisy_steps": 2, "retrainings": 1, "removals": (0, 1), "stable_steps": 2,
    "stable_rates": (0.001,), "parts": ("linear", "mlp", "stable"),
}  # fmt: skip


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, **SMOKE)
    _, console = script.begin(config)
    began, cpu, found = time.perf_counter(), time.process_time(), {}
    seconds: dict[str, Any] = {}
    dataset = load(config.dataset, config.data_dir, max_rows=5000, progress=False)  # no scale that depends on rows
    with script.progress(console, "certified_deep", len(config.parts)) as advance:
        for part in config.parts:
            start = time.process_time()
            if part == "linear":
                found[part] = linear(config, advance)
            elif part == "stable":
                found[part] = stable(dataset, config, advance)
            else:
                found[part] = network(part, dataset, config, advance)
            seconds[f"{part} cpu"] = time.process_time() - start
            advance(done=1)
    seconds |= {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    return reported(config, console, found, seconds)


def useful(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Smallest epsilon of the grid at which a method keeps most of the retrained accuracy."""
    least = SHARE * float(next(row for row in rows if row["method"] == RETRAINED)["test"].estimate)
    found = []
    for method, norm in dict.fromkeys((row["method"], row.get("norm")) for row in rows if "epsilon" in row):
        own = [row for row in rows if (row["method"], row.get("norm")) == (method, norm)]

        def first(column, own=own):
            enough = [row["epsilon"] for row in own if float(row[column].estimate) >= least]
            return f"{min(enough):g}" if enough else "none"

        own_row = {"method": method, "norm": norm, "test": first("test")}
        found.append({**own_row, "bare": first("bare")} if "bare" in own[0] else own_row)
    return found


def times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The median over settings of what a method takes for a request."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows if row.get("milliseconds") is not None):
        own = [row for row in rows if row["method"] == method]
        middle: dict[str, Any] = {"method": method}
        for column in ("prepared", "alone", "milliseconds", "faster"):
            values = [row[column] for row in own if row.get(column) is not None]
            middle |= {column: float(np.median(values))} if values else {}
        found.append(middle)
    return found


# report

NETWORK = """\
All rows of a table are certified at their epsilon against a clean algorithm, with the constants that the run enforced; the last
columns are after the training without noise, which costs nothing. A method has to do better than output perturbation and than
the fresh start, which is certified at every epsilon. The head on frozen features gets no training after its noise; its features
are those of a network that was trained on half of the rows, which nobody can ask to forget."""
LINEAR = """\
One row leaves, delta is one over the number of rows. Intervals hold 95 % of releases. Noise is that of the release, or sigma of
a Langevin step. Output perturbation clips at the radius that holds every optimum; no step, then noise, adds what hides the
largest distance that one row can move an optimum by, and needs a model that is trained to its optimum. References differ:
Langevin, a rewound descent, recollected vectors and delete-then-noise compare with retraining with the same noise,
descent-to-delete with itself. With a constant of 1, descent-to-delete has the noise that the authors of Langevin unlearning
give it, which leaves out the penalty: that row is theirs, not a certificate."""
STABLE = """\
Half of the rows make a network and stay. SGD of its head, or of all of it, on batches of half of the others follows, from each
of which some rows may be missing in any combination. A prediction is certified if no training without them can change it: no
noise, no delta. Same order of batches; a row that goes leaves its batch. Seen to change: by one of 49 trainings without random
rows. Where there is no widest interval, there is no bound."""
TEXTS: dict[str, tuple[str, str]] = {
    "linear": ("Logistic regression", LINEAR),
    "mlp": ("MLP", NETWORK),
    "cnn": ("CNN without normalisation", NETWORK),
    "stable": ("Predictions that stay", STABLE),
}


def curves_of(rows: list[dict[str, Any]], column: str) -> Any:
    """Accuracy against epsilon, a line per method, each at its best norm."""
    best: dict[str, dict[float, float]] = {}
    for row in rows:
        if "epsilon" in row:
            own = best.setdefault(row["method"], {})
            own[row["epsilon"]] = max(own.get(row["epsilon"], 0.0), 100 * float(row[column].estimate))
    retrained = next(100 * float(row["test"].estimate) for row in rows if row["method"] == RETRAINED)
    return plots.curves(
        {name: (np.array(list(own)), np.array(list(own.values()))) for name, own in best.items()},
        x_label="epsilon", y_label="test accuracy [%]", log_x=True, level=(RETRAINED, retrained),
    )  # fmt: skip


def reported(config: Config, console: Any, found: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """Write the page and the JSON."""
    sections, tables, extra, first = [], [], {"useful": {}, "times": {}}, None
    for part, rows in found.items():
        title, text = TEXTS[part]
        if part == "stable":
            lines: dict[str, list[dict[str, Any]]] = {}
            for row in rows:
                lines.setdefault(f"{row['method']}, rate {row['rate']:g}", []).append(row)
            picture = plots.curves(
                {name: tuple(np.array([[r["removals"], 100 * r["both"]] for r in own]).T) for name, own in lines.items()},
                x_label="rows of every batch that may be missing", y_label="right and certified [%]",
            )  # fmt: skip
            shown, pictures = [Table(STABLE_COLUMNS, rows)], [(picture, "Test rows that are right and certified to stay.")]
        else:
            extra["useful"][part], extra["times"][part] = useful(rows), times(rows)
            columns = [("test", "after the noise")]
            if part != "linear":
                columns = [("bare", "no training after"), ("test", "with the training after")]
            pictures = [
                (curves_of(rows, column), f"Best norm at every epsilon, {told}. Dashed: retrained.") for column, told in columns
            ]
            first = pictures[0][0] if part == "mlp" or first is None else first
            shown = [
                Table(LINEAR_COLUMNS if part == "linear" else NETWORK_COLUMNS, rows, f"{title}, at equal epsilon"),
                Table(
                    ALONE_COLUMNS if part == "linear" else USEFUL_COLUMNS,
                    extra["useful"][part],
                    f"{title}: smallest epsilon that keeps {SHARE:.0%}",
                ),
                Table(TIME_COLUMNS, extra["times"][part], f"{title}: {config.requests} requests in one call"),
            ]
        sections.append(Section(title, text, shown, pictures))
        tables += shown
    if leads() and first is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "certified_deep.png").write_bytes(plots.to_png(first))
    summary = script.summary_of(config, **found, **extra, seconds=seconds)
    return script.finish(
        config, console, "certified_deep", summary, title="Certificates at equal epsilon", intro=NETWORK, sections=sections,
        tables=tables,
    )  # fmt: skip


if __name__ == "__main__":
    script.run(main, Config, __doc__)
