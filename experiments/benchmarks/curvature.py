"""How fast are EK-FAC and what is built on it, beside kronfluence, conjugate gradients and eager PyTorch?

    pip install -e '.[benchmarks]'
    python experiments/benchmarks/curvature.py --data-dir DIR       # 10,000 rows of MNIST
    python experiments/benchmarks/curvature.py --smoke              # 200 digits, whether it runs

- *fit*: covariances, eigenvectors and eigenvalues of EK-FAC, against kronfluence 1.0.1; one label a row drawn from the model,
  float32 on both sides. For dense layers the square of a row's gradient is an outer product of two squares, which is why no
  gradient is formed here; kronfluence rotates the gradient of every row.
- *scores*: influence of every training row on the loss of 64 rows, against kronfluence with the same damping. Here the losses
  of a chunk are linearised once and pushed along 64 preconditioned gradients, so that no row's gradient is formed; for the
  CNN gradients of rows are cheaper, and are formed 100 rows at a time.
- *error*: distance of EK-FAC's solves from converged conjugate gradients on the GGN: with kronfluence's factors, with five
  draws of labels here, and with all classes in place of a draw (`kind="fisher"`).
- *solves*: 64 removals of 8 rows each: one EK-FAC solve for all of them against one factorisation, or conjugate gradients on
  the GGN for one after the other. The two do not return the same: see *error*.
- *ssd*: squared gradients of batches of 64 for 64 requests of 100 rows, and the dampening, with the importances of all rows
  shared; against the published form in eager PyTorch, which computes the importances of all rows at every request, and against
  the same with these shared too.

Networks: 784-256-128-10 for everything, and the small CNN of the experiments for the first two; trained for some hundred steps,
copied to PyTorch, logits compared first. One process. Labels are drawn apart on both
sides, so scores only correlate; with kronfluence's factors read from its files they must be equal. kronfluence gets a small fit
before it is timed, then runs once, as conjugate gradients do; everything else runs `rounds` times, medians; compile time apart.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import torch  # pyright: ignore[reportMissingImports]  # of the `benchmarks` extra
import tyro
from rich.console import Console

from experiments.benchmarks import timing
from experiments.benchmarks.ekfac.dampening import dampening
from experiments.benchmarks.ekfac.fit_and_scores import fit_and_scores
from experiments.benchmarks.ekfac.setup import Config, prepared
from experiments.benchmarks.ekfac.solves import solves
from experiments.common import training
from experiments.common.report import Column, Table, print_table


def main(config: Config) -> None:
    """Check, time, print."""
    load_before = timing.load_per_core()
    if config.smoke:
        config = dataclasses.replace(
            config, rows=200, rounds=1, train_steps=20, torch_batch=100, chunk=64, cg_chunk=100, cg_steps=30, cg_requests=4
        )
    console = Console()
    timing.set_torch_threads(config.threads)
    torch.manual_seed(0)
    results: dict[str, dict[str, Any]] = {}
    for network in config.networks:
        problem, logits = prepared(config, network)
        console.print(f"{network}: logits differ by {logits:.1e}")
        found, made, read, damping = fit_and_scores(config, network, problem)
        if network == "mlp":
            fit_seconds = found["fit"]["seconds"]["jaxunlearn"]
            found |= solves(config, problem, made, read, fit_seconds, console)
            found["ssd"] = dampening(config, problem)
        results[network] = {"damping": damping, "largest_difference_of_logits": logits, **found}

    table = [
        {"what": f"{network}, {part}", "other": other, "ratio": ratio, "ours": 1e3 * next(iter(found["seconds"].values()))}
        for network, parts in results.items()
        for part, found in parts.items()
        if isinstance(found, dict) and "ratios" in found
        for other, ratio in found["ratios"].items()
    ]
    columns = [
        Column("what", "what"), Column("other", "against"), Column("ours", "ms here", ".2f"),
        Column("ratio", "times faster", ".1f"),
    ]  # fmt: skip
    print_table(Table(columns, table, f"{config.rows} rows; solves and ssd: per request"), console)
    valid = load_before <= timing.BUSY and not config.smoke
    note = "" if valid else "; INVALID, smoke run" if config.smoke else "; INVALID, machine busy"
    console.print(f"load average before: {load_before:.2f} per core{note}")
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        summary = {
            "config": {**vars(config), "out": None, "data_dir": None},
            "environment": {**training.environment(), "torch": torch.__version__, "torch_threads": torch.get_num_threads()},
            "load_per_core_before": load_before,
            "valid": valid,
            "networks": results,
        }
        config.out.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
