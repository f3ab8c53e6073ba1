"""EK-FAC and what is built on it, beside PyTorch on the same cores.

    pip install -e '.[benchmarks]'
    python experiments/benchmarks/ekfac.py --data-dir DIR                    # MNIST, 10,000 rows; some minutes on two cores
    python experiments/benchmarks/ekfac.py --data-dir DIR --network cnn --chunk 250 --parts fit scores
    python experiments/benchmarks/ekfac.py --smoke                           # 200 digits, whether it runs

- *fit*: covariances, eigenvectors and eigenvalues, against kronfluence 1.0.1. Both draw one label a row from the model. For
  dense layers the square of a row's gradient is an outer product of two squares, which is why no gradient is formed here;
  kronfluence rotates the gradient of every row.
- *scores*: influence of every training row on the loss of 64 rows. Here products of Jacobians with 64 preconditioned
  directions, linearised once a chunk; kronfluence forms the gradient of every row.
- *solve*: 64 removals of 8 rows each: one solve a request against the shared EK-FAC, or conjugate gradients on the GGN for
  each, to a relative residual of 1e-3 (four of them are run); and how far both are from a converged solve.
- *ssd*: importances of 64 requests of 100 rows in batches of 64, and the dampening, with the importances of all rows shared;
  against the published loop in eager PyTorch.

Networks: 784-256-128-10, or the small CNN of the experiments, trained for a few hundred steps. Logits of both sides must agree
to 1e-3 first, and sums of dampened weights to 1e-3. One process; kronfluence runs once, everything else `--rounds` times,
medians; compile time apart.
"""

import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch  # pyright: ignore[reportMissingImports]  # of the `benchmarks` extra
import tyro
from rich.console import Console

import jaxunlearn as ju
from experiments.benchmarks import timing
from experiments.benchmarks.pytorch import check_threads
from experiments.common import training
from experiments.common.data import load, subset
from experiments.common.models import build
from experiments.common.report import Column, Table, print_table
from jaxunlearn import curvature
from jaxunlearn.closed_form import ssd
from jaxunlearn.curvature.solvers import norm
from jaxunlearn.rows import map_rows

Part = Literal["fit", "scores", "solve", "ssd"]
TARGETS = {"mlp": {"fit": 50.0, "scores": 5.0, "solve": 20.0, "ssd": 10.0}, "cnn": {"fit": 5.0, "scores": 5.0}}
QUERIES, REMOVED, REQUESTED, BATCH = 64, 8, 100, 64


@dataclass
class Config:
    """Command line of the benchmark."""

    dataset: str = "mnist"
    """mnist, or digits."""
    data_dir: str | None = None
    """Where TFDS finds prepared data."""
    network: Literal["mlp", "cnn"] = "mlp"
    """Which network."""
    rows: int = 10_000
    """Training rows."""
    chunk: int | None = None
    """Rows whose activations are in memory together, on this side."""
    torch_batch: int = 500
    """Rows of a batch, on the other side."""
    parts: tuple[Part, ...] = ("fit", "scores", "solve", "ssd")
    """What is measured."""
    rounds: int = 3
    """Timed calls of everything but kronfluence."""
    threads: int = 2
    """Threads of PyTorch."""
    out: Path | None = None
    """JSON file."""
    smoke: bool = False
    """Few rows, one round."""


class Flatten(torch.nn.Module):
    """Images with channels last, as flax flattens them."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)


def as_torch(network: str, params: Any) -> torch.nn.Module:
    """The same network in PyTorch, with the same weights."""

    def dense(name: str) -> torch.nn.Linear:
        kernel = np.asarray(params[name]["kernel"])
        layer = torch.nn.Linear(*kernel.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(kernel.T.copy()))
            layer.bias.copy_(torch.tensor(np.asarray(params[name]["bias"])))
        return layer

    def conv(name: str, stride: int) -> list[torch.nn.Module]:
        kernel = np.asarray(params[name]["kernel"])
        layer = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, stride=stride)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(kernel.transpose(3, 2, 0, 1).copy()))
            layer.bias.copy_(torch.tensor(np.asarray(params[name]["bias"])))  # pyright: ignore[reportOptionalMemberAccess]
        padding = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)  # SAME, for even sizes
        return [torch.nn.ZeroPad2d(padding), layer, torch.nn.ReLU()]

    if network == "mlp":
        hidden = [x for name in ("Dense_0", "Dense_1") for x in (dense(name), torch.nn.ReLU())]
        return torch.nn.Sequential(torch.nn.Flatten(), *hidden, dense("head"))
    blocks = [x for place in range(3) for x in conv(f"Conv_{place}", 1 if place == 0 else 2)]
    return torch.nn.Sequential(*blocks, Flatten(), dense("Dense_0"), torch.nn.ReLU(), dense("head"))


class Kronfluence:
    """kronfluence on a network and its rows, with everything in a temporary folder."""

    def __init__(self, network: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, batch: int, folder: str) -> None:
        from kronfluence.analyzer import Analyzer, prepare_model  # pyright: ignore[reportMissingImports]
        from kronfluence.arguments import FactorArguments  # pyright: ignore[reportMissingImports]
        from kronfluence.task import Task  # pyright: ignore[reportMissingImports]

        class Classification(Task):
            def compute_train_loss(self, batch, model, sample=False):
                logits = model(batch[0])
                labels = batch[1]
                if sample:
                    with torch.no_grad():
                        labels = torch.multinomial(torch.softmax(logits, dim=-1), 1).flatten()
                return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

            def compute_measurement(self, batch, model):
                return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

            def get_influence_tracked_modules(self):
                return None

        logging.disable(logging.WARNING)
        task = Classification()
        self.dataset, self.batch = torch.utils.data.TensorDataset(inputs, targets), batch
        self.analyzer = Analyzer(
            "benchmark", prepare_model(network, task), task, cpu=True, disable_tqdm=True, output_dir=folder, log_level=50
        )
        self.options = FactorArguments(
            strategy="ekfac", covariance_max_examples=None, lambda_max_examples=None, eigendecomposition_dtype=torch.float32
        )

    def fit(self) -> dict[str, float]:
        """Seconds of each stage."""
        shared = {"factor_args": self.options, "overwrite_output_dir": True}
        stages: dict[str, Callable[[], Any]] = {
            "covariances": lambda: self.analyzer.fit_covariance_matrices(
                "f", self.dataset, per_device_batch_size=self.batch, **shared
            ),
            "eigenvectors": lambda: self.analyzer.perform_eigendecomposition("f", **shared),
            "lambda": lambda: self.analyzer.fit_lambda_matrices("f", self.dataset, per_device_batch_size=self.batch, **shared),
        }
        return {name: seconds_of(stage)[1] for name, stage in stages.items()}

    def eigenvalue_sum(self) -> float:
        """Trace of the fitted matrix."""
        lambdas = self.analyzer.load_lambda_matrices("f")
        assert lambdas is not None
        counts = lambdas["num_lambda_processed"]
        return sum(float(x.sum() / counts[name]) for name, x in lambdas["lambda_matrix"].items())

    def scores(self, queries: torch.utils.data.Dataset, damping: float) -> torch.Tensor:
        """Pairwise scores [queries, rows]."""
        from kronfluence.arguments import ScoreArguments  # pyright: ignore[reportMissingImports]

        self.analyzer.compute_pairwise_scores(
            "s", "f", queries, self.dataset, per_device_query_batch_size=QUERIES, per_device_train_batch_size=self.batch,
            score_args=ScoreArguments(damping_factor=damping), overwrite_output_dir=True,
        )  # fmt: skip
        return self.analyzer.load_pairwise_scores("s")["all_modules"]  # pyright: ignore[reportOptionalSubscript]


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, dataset="digits", rows=200, rounds=1, torch_batch=100)
    check_threads(config.threads)
    console = Console()
    load_before = timing.load_per_core()
    dataset = load(config.dataset, config.data_dir)
    train = subset(dataset.train, np.random.default_rng(0).permutation(len(dataset.train.targets))[: config.rows])
    widths: dict[str, Any] = {"widths": (256, 128)} if config.network == "mlp" else {}
    model = build(config.network, train.inputs.shape[1:], dataset.num_classes, **widths)
    data = ju.training_data(*train)
    key = jax.random.key(0)
    trained = training.train(model, data, optax.adam(1e-3), num_steps=400, batch_size=128, seeds=[0], key=key)
    variables = jax.tree.map(lambda x: x[0], trained)
    network = as_torch(config.network, variables.params)
    inputs = torch.tensor(np.ascontiguousarray(np.asarray(train.inputs).transpose(0, 3, 1, 2)))
    targets = torch.tensor(np.asarray(train.targets, np.int64))
    if config.network == "mlp":
        inputs = inputs.permute(0, 2, 3, 1).reshape(len(inputs), -1)
    logits = model.forward(variables, data.train.inputs[:100]).logits
    apart = float(np.abs(np.asarray(logits) - network(inputs[:100]).detach().numpy()).max())
    if apart > 1e-3:
        raise SystemExit(f"the two networks differ by {apart}: nothing was measured")
    found: dict[str, Any] = {}
    fit = jax.jit(curvature.ekfac(model, kind="sampled", chunk=config.chunk))
    made, first, fit_seconds = measured(lambda: fit(variables, data.train, data.present, key), config.rounds)
    values = made.spectrum()
    damping = 0.1 * float(made.trace()) / sum(x.size for x in values)
    with tempfile.TemporaryDirectory() as folder:
        theirs = Kronfluence(network, inputs, targets, config.torch_batch, folder)
        if {"fit", "scores"} & set(config.parts):
            stages = theirs.fit()
            found["fit"] = {
                "seconds": fit_seconds, "first_call": first, "kronfluence_stages": stages,
                "kronfluence": sum(stages.values()), "ratio": sum(stages.values()) / fit_seconds,
                "trace": float(made.trace()), "kronfluence_trace": theirs.eigenvalue_sum(),
            }  # fmt: skip
        if "scores" in config.parts:
            found["scores"] = scores(config, model, variables, data, made, damping, theirs, (inputs, targets))
    if "solve" in config.parts:
        found["solve"] = solves(config, model, variables, data, made, damping, fit_seconds)
    if "ssd" in config.parts:
        found["ssd"] = dampening(config, model, variables, data, as_torch(config.network, variables.params), inputs, targets)
    summary = {
        "config": {**vars(config), "out": None, "data_dir": None},
        "environment": {
            **training.environment(), "torch": torch.__version__, "torch_threads": config.threads
        },
        "load_per_core_before": load_before,
        "valid": load_before < timing.BUSY,
        "damping": damping,
        "logits_differ_by": apart,
        **found,
    }  # fmt: skip
    rows = [{"what": name, "ratio": part["ratio"], "target": TARGETS[config.network].get(name)} for name, part in found.items()]
    columns = [Column("what", "what"), Column("ratio", "times faster", ".1f"), Column("target", "target", ".0f")]
    print_table(Table(columns, rows, f"{config.network}, {config.rows} rows of {config.dataset}"), console)
    console.print_json(data=found)
    if config.out is not None:
        config.out.write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def scores(config: Config, model, variables, data, made, damping: float, theirs: Kronfluence, rows) -> dict[str, Any]:
    """Influence of every row on 64 of them."""
    queries = jax.tree.map(lambda x: x[:QUERIES], data.train)

    def losses(params, examples):
        return model.loss(model.forward(variables._replace(params=params), examples.inputs), examples)

    @jax.jit
    def ours(made, train):
        gradients = curvature.per_example_gradients(model, variables, queries)
        directions = jax.vmap(lambda g: made.solve(g, damping))(gradients)

        def against(part):
            push = jax.linearize(lambda p: losses(p, part), variables.params)[1]
            return jax.vmap(push)(directions).T

        return map_rows(against, train, chunk=1000 if config.rows > 1000 else None).T

    found, first, seconds = measured(lambda: ours(made, data.train), config.rounds)
    asked = torch.utils.data.TensorDataset(rows[0][:QUERIES], rows[1][:QUERIES])
    reference, theirs_seconds = seconds_of(lambda: theirs.scores(asked, damping))
    pair = np.asarray(found).ravel(), reference.numpy().ravel()
    return {
        "seconds": seconds, "first_call": first, "kronfluence": theirs_seconds, "ratio": theirs_seconds / seconds,
        "correlation": float(np.corrcoef(*pair)[0, 1]),
    }  # fmt: skip


def solves(config: Config, model, variables, data, made, damping: float, fit_seconds: float) -> dict[str, Any]:
    """64 removals: against the shared factors, and by conjugate gradients one after the other."""
    generator = np.random.default_rng(1)
    requests = ju.from_indices(data, [generator.choice(config.rows, REMOVED, replace=False) for _ in range(QUERIES)])

    def pull(request):
        examples = jax.tree.map(lambda x: x[request.indices], data.train)
        return curvature.gradient_sum(model, variables, examples, request.weights)

    pulls = jax.jit(jax.vmap(pull))(requests)
    shared = jax.jit(lambda made, pulls: jax.vmap(lambda b: made.solve(b, damping))(pulls))
    steps, first, seconds = measured(lambda: shared(made, pulls), config.rounds)
    product = partial(curvature.ggn_vp, model, variables, chunk=1000 if config.rows > 1000 else None)

    @jax.jit
    def alone(b, train, present):
        return curvature.cg(product(train, present), b, damping=damping, rtol=1e-3, max_steps=500)

    single = [jax.tree.map(lambda x, i=i: x[i], pulls) for i in range(QUERIES)]
    few = single[:4]  # all of them take minutes; a request takes what these take on average
    solved, _, some = measured(lambda: [alone(b, data.train, data.present) for b in few], 1)
    exact = jax.jit(lambda b, t, p: curvature.cg(product(t, p), b, damping=damping, rtol=1e-5, max_steps=2000))
    truth = [exact(b, data.train, data.present) for b in few]

    def error(step, true):
        return float(norm(jax.tree.map(jnp.subtract, step, true)) / norm(true))

    shared_steps = [jax.tree.map(lambda x, i=i: x[i], steps) for i in range(len(few))]
    return {
        "seconds_a_request": seconds / QUERIES,
        "first_call": first,
        "cg_seconds_a_request": some / len(few),
        "cg_steps": [int(x.num_steps) for x in solved],
        "cg_converged": [bool(x.converged) for x in solved],
        "ratio": some / len(few) / (seconds / QUERIES),
        "ratio_with_the_fit": QUERIES * some / len(few) / (seconds + fit_seconds),
        "reference_converged": [bool(x.converged) for x in truth],
        "relative_error": statistics.mean(error(a, b.solution) for a, b in zip(shared_steps, truth, strict=True)),
        "relative_error_of_cg": statistics.mean(error(a.solution, b.solution) for a, b in zip(solved, truth, strict=True)),
    }


def dampening(config: Config, model, variables, data, network, inputs, targets) -> dict[str, Any]:
    """SSD for 64 requests with shared importances."""
    generator = np.random.default_rng(2)
    asked = [generator.choice(config.rows, REQUESTED, replace=False) for _ in range(QUERIES)]
    requests = ju.from_indices(data, asked)
    prepared = jax.jit(ssd.prepare(model, batch_size=BATCH))(variables, data, jax.random.key(0))
    unlearn = jax.jit(ju.batched(ju.ssd(model, alpha=2.0), chunk=8))
    keys = jax.random.split(jax.random.key(1), QUERIES)
    result, first, seconds = measured(lambda: unlearn(variables, prepared, requests, keys), config.rounds)

    parameters = list(network.parameters())
    loss = torch.nn.CrossEntropyLoss()

    def importances(rows) -> list[torch.Tensor]:
        squares = [torch.zeros_like(x) for x in parameters]
        batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        for batch in batches:
            network.zero_grad(set_to_none=True)
            loss(network(inputs[batch]), targets[batch]).backward()
            for total, x in zip(squares, parameters, strict=True):
                total += x.grad**2 / len(batches)
        return squares

    everything = importances(np.arange(config.rows))

    def published() -> list[list[torch.Tensor]]:
        answers = []
        for rows in asked:
            own = importances(rows)
            with torch.no_grad():
                answers.append([
                    torch.where(f > 2.0 * whole, w * torch.clamp(whole / f, max=1.0), w)
                    for w, whole, f in zip(parameters, everything, own, strict=True)
                ])  # fmt: skip
        return answers

    answers, _, theirs = measured(published, config.rounds)
    ours = [np.asarray(x[0]) for x in jax.tree.leaves(jax.tree.map(lambda x: x, result.variables.params))]
    sizes = sorted(float(np.abs(x).sum()) for x in ours), sorted(float(x.abs().sum()) for x in answers[0])
    apart = max(abs(a - b) / b for a, b in zip(*sizes, strict=True))
    if apart > 1e-3:
        raise SystemExit(f"dampened weights differ by {apart:.2e} in their sums: nothing was measured")
    return {
        "seconds_a_request": seconds / QUERIES, "first_call": first, "torch_seconds_a_request": theirs / QUERIES,
        "ratio": theirs / seconds, "sums_differ_by": apart,
    }  # fmt: skip


def measured(call: Callable[[], Any], rounds: int) -> tuple[Any, float, float]:
    """What a call returns, seconds of the first one, and the median of the others."""
    result, first = seconds_of(call)
    return result, first, statistics.median(seconds_of(call)[1] for _ in range(rounds))


def seconds_of(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds; JAX arrays are waited for."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
