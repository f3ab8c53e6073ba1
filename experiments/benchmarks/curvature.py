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

import copy
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch  # pyright: ignore[reportMissingImports]  # of the `benchmarks` extra
import tyro
from jaxtyping import Array, Float, PyTree
from rich.console import Console
from torch.utils.data import TensorDataset  # pyright: ignore[reportMissingImports]

import jaxunlearn as ju
from experiments.benchmarks import timing
from experiments.common import training
from experiments.common.data import load
from experiments.common.models import build
from experiments.common.report import Column, Table, print_table
from jaxunlearn import curvature
from jaxunlearn.curvature.importances import dampened
from jaxunlearn.curvature.solvers import norm
from jaxunlearn.rows import evaluate, map_rows

Network = Literal["mlp", "cnn"]

QUERIES, REQUESTS, REMOVED, REQUESTED, BATCH, COMPARED = 64, 64, 8, 100, 64, 3
PUBLISHED = 4  # requests of SSD's published form, which take the time of all rows each
ALPHA, STRENGTH = 2.0, 1.0  # of the dampening
WIDTHS = (256, 128)
CHUNKS: dict[Network, int] = {"mlp": 1000, "cnn": 100}  # rows whose activations are in memory together
LOGITS, EQUAL, CORRELATED = 1e-4, 1e-4, 0.9  # what the two sides may differ by, and how far their scores must correlate
SAME_FACTORS = 1e-3  # scores with one set of factors, float32 in two libraries
SUBSET = 1000  # training rows whose scores are compared


@dataclass
class Config:
    """Command line of the benchmark."""

    data_dir: str | None = None
    """Where TFDS finds prepared MNIST; only a smoke run can do without."""
    networks: tuple[Network, ...] = ("mlp", "cnn")
    """Which networks."""
    rows: int = 10_000
    """Training rows."""
    train_steps: int = 400
    """Steps of 128 rows that the networks are trained for."""
    chunk: int | None = None
    """Rows in memory together on this side; by default 1000 for the MLP, 100 for the CNN."""
    torch_batch: int = 500
    """Rows of a batch of kronfluence."""
    cg_chunk: int | None = 1000
    """Rows in memory together in a product with the GGN."""
    cg_steps: int = 1000
    """Steps of conjugate gradients at most; three times as many for the converged ones."""
    cg_requests: int = 8
    """Requests of the 64 that conjugate gradients solve one after the other; a request takes their mean."""
    removal_damping: float = 1e-3
    """Damping of removals; at that of scores, a tenth of the mean eigenvalue, conjugate gradients need more than 500 steps."""
    ssd_lanes: int = 64
    """Requests side by side."""
    rounds: int = 5
    """Timed rounds."""
    threads: int = 2
    """Threads of PyTorch."""
    pause: float = 0.2
    """Seconds of rest after every call."""
    smoke: bool = False
    """Few rows, one round, few solves."""
    out: Path | None = None
    """JSON file."""


class Problem(NamedTuple):
    """One trained network and its rows on both sides."""

    model: ju.Model
    variables: ju.Variables
    data: ju.Data
    inputs: torch.Tensor
    targets: torch.Tensor
    build: Callable[[], torch.nn.Module]  # the same network in PyTorch, every time anew


# PyTorch's side


class Flatten(torch.nn.Module):
    """Images with channels last, as flax flattens them."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def as_torch(network: Network, params: Any) -> torch.nn.Module:
    """The network with the same weights and names of layers."""

    def filled(layer, name: str, axes: tuple[int, ...]):
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.array(params[name]["kernel"]).transpose(axes)))
            layer.bias.copy_(torch.from_numpy(np.array(params[name]["bias"])))
        return layer

    def dense(name: str):
        return filled(torch.nn.Linear(*params[name]["kernel"].shape), name, (1, 0))

    layers: OrderedDict[str, Any] = OrderedDict()
    hidden = ["Dense_0", "Dense_1"] if network == "mlp" else ["Dense_0"]
    if network == "cnn":
        for place in range(3):
            name, stride = f"Conv_{place}", 1 if place == 0 else 2
            channels = params[name]["kernel"].shape[2:]
            layers[f"pad_{place}"] = torch.nn.ZeroPad2d((1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))  # SAME, for even sizes
            layers[name] = filled(torch.nn.Conv2d(channels[0], channels[1], 3, stride=stride), name, (3, 2, 0, 1))
            layers[f"relu_{name}"] = torch.nn.ReLU()
        layers["flatten"] = Flatten()
    for name in hidden:
        layers[name], layers[f"relu_{name}"] = dense(name), torch.nn.ReLU()
    layers["head"] = dense("head")
    return torch.nn.Sequential(layers).eval()


def kronfluence_task() -> Any:
    """Cross-entropy, with labels drawn from the model for the factors."""
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

    return Classification()


class Kronfluence:
    """kronfluence on one network, with everything it writes in a folder."""

    def __init__(self, problem: Problem, batch: int, folder: str) -> None:
        from kronfluence.analyzer import Analyzer, prepare_model  # pyright: ignore[reportMissingImports]
        from kronfluence.arguments import FactorArguments  # pyright: ignore[reportMissingImports]

        task, rows = kronfluence_task(), len(problem.targets)
        self.analyzer = Analyzer(
            "benchmark",
            prepare_model(problem.build(), task),
            task,
            cpu=True,
            log_level=50,
            disable_tqdm=True,
            output_dir=folder,
        )  # fmt: skip
        self.dataset, self.batch = TensorDataset(problem.inputs, problem.targets), batch
        self.options = FactorArguments(
            strategy="ekfac", covariance_max_examples=rows, lambda_max_examples=rows, eigendecomposition_dtype=torch.float32
        )

    def fit(self, name: str, dataset: TensorDataset) -> dict[str, float]:
        """Seconds of every stage."""
        rows: dict[str, Any] = {"dataset": dataset, "per_device_batch_size": min(self.batch, len(dataset))}
        stages: dict[str, Callable[[], Any]] = {
            "covariances": partial(self.analyzer.fit_covariance_matrices, name, factor_args=self.options, **rows),
            "eigenvectors": partial(self.analyzer.perform_eigendecomposition, name, factor_args=self.options),
            "lambda": partial(self.analyzer.fit_lambda_matrices, name, factor_args=self.options, **rows),
        }
        return {stage: seconds_of(call)[1] for stage, call in stages.items()}

    def factors(self, name: str, like: curvature.Kronecker) -> curvature.Kronecker:
        """What it fitted, read from its files, as a representation of this library."""
        eigen: Any = self.analyzer.load_eigendecomposition(name)
        fitted: Any = self.analyzer.load_lambda_matrices(name)
        layers, bases, values = [], [], []
        for layer in like.layers:
            module = layer.name.split("/")[0]
            # kernels [h, w, in, out] here, [out, in, h, w] there
            layers.append(dataclasses.replace(layer, permutation=(2, 0, 1, 3)) if len(layer.permutation) == 4 else layer)
            vectors = (eigen[f"{side}_eigenvectors"][module].float().numpy() for side in ("activation", "gradient"))
            bases.append(tuple(jnp.asarray(x) for x in vectors))
            mean = fitted["lambda_matrix"][module].double() / fitted["num_lambda_processed"][module]
            values.append(jnp.asarray(mean.float().numpy().T))
        return curvature.Kronecker(tuple(layers), bases, values, (), [], (), [])

    def scores(self, name: str, factors: str, queries: TensorDataset, damping: float) -> Float[np.ndarray, "q n"]:
        """Influence of every row on every query."""
        from kronfluence.arguments import ScoreArguments  # pyright: ignore[reportMissingImports]

        self.analyzer.compute_pairwise_scores(
            name, factors, queries, self.dataset, per_device_query_batch_size=len(queries),
            per_device_train_batch_size=min(self.batch, len(self.dataset)), score_args=ScoreArguments(damping_factor=damping),
        )  # fmt: skip
        found: Any = self.analyzer.load_pairwise_scores(name)
        return found["all_modules"].numpy()


# Parts


def fit_and_scores(
    config: Config, network: Network, problem: Problem
) -> tuple[dict[str, Any], curvature.Kronecker, curvature.Kronecker, float]:
    """Both of them, with this library's factors, kronfluence's, and the damping."""
    model, variables, data = problem.model, problem.variables, problem.data
    chunk = config.chunk or CHUNKS[network]
    program = jax.jit(curvature.ekfac(model, kind="sampled", chunk=chunk))
    fit = partial(program, variables, data.train, data.present, jax.random.key(1))
    every = partial(jax.jit(curvature.ekfac(model, kind="fisher", chunk=chunk)), *fit.args)
    fits = {"jaxunlearn": fit, "all classes": every} if network == "mlp" else {"jaxunlearn": fit}
    times = timing.interleaved(fits, rounds=config.rounds, pause=config.pause)  # before PyTorch's threads are there
    made: Any = fit()
    damping = 0.1 * float(made.trace()) / sum(x.size for x in made.spectrum())
    queries = jax.tree.map(lambda x: x[:QUERIES], data.train)
    influence = jax.jit(partial(scores, model, damping=damping, chunk=chunk, gradients_of_rows=network == "cnn"))

    with tempfile.TemporaryDirectory() as folder:
        theirs = Kronfluence(problem, config.torch_batch, folder)
        few = TensorDataset(problem.inputs[:BATCH], problem.targets[:BATCH])
        theirs.fit("warm", few)
        stages = theirs.fit("timed", theirs.dataset)
        read = theirs.factors("timed", made)
        asked = TensorDataset(problem.inputs[:QUERIES], problem.targets[:QUERIES])
        expected, scores_seconds = seconds_of(partial(theirs.scores, "timed", "timed", asked, damping))

    ours = partial(influence, variables, queries, data.train, made)
    score_times = timing.interleaved({"jaxunlearn": ours}, rounds=config.rounds, pause=config.pause)
    with_theirs = np.asarray(influence(variables, queries, data.train, read))
    apart = float(np.linalg.norm(with_theirs - expected) / np.linalg.norm(expected))
    require(apart <= SAME_FACTORS, f"{network}: scores with the same factors differ by {apart:.1e}")
    found = np.asarray(ours())
    pairs = [(found[:, :SUBSET], expected[:, :SUBSET]), (found, expected)]
    correlations = [float(np.corrcoef(x.ravel(), y.ravel())[0, 1]) for x, y in pairs]
    least = min(float(np.corrcoef(x, y)[0, 1]) for x, y in zip(found, expected, strict=True))
    require(correlations[0] > CORRELATED, f"{network}: scores correlate by {correlations[0]:.2f} only")

    traces = {
        layer.name.split("/")[0]: [float(jnp.sum(x)), float(jnp.sum(y))]
        for layer, x, y in zip(made.layers, made.values, read.values, strict=True)
    }
    total = sum(stages.values())
    parts = {
        "fit": {
            "seconds": {**times.median, "kronfluence": total},
            "best_seconds": times.best,
            "first_call_seconds": times.first["jaxunlearn"],
            "kronfluence_stages": stages,
            "ratios": {"kronfluence": total / times.median["jaxunlearn"]},
            "eigenvalue_sums_ours_and_theirs": traces,
            "largest_relative_difference_of_sums": max(abs(x - y) / y for x, y in traces.values()),
        },
        "scores": {
            "seconds": {"jaxunlearn": score_times.median["jaxunlearn"], "kronfluence": scores_seconds},
            "best_seconds": score_times.best,
            "first_call_seconds": score_times.first["jaxunlearn"],
            "ratios": {"kronfluence": scores_seconds / score_times.median["jaxunlearn"]},
            "correlation_on_subset": correlations[0],
            "correlation": correlations[1],
            "least_correlation_of_a_query": least,
            "relative_difference_with_the_same_factors": apart,
        },
    }
    return parts, made, read, damping


def scores(
    model: ju.Model,
    variables: ju.Variables,
    queries: ju.Examples,
    train: ju.Examples,
    made: curvature.Kronecker,
    *,
    damping: float,
    chunk: int,
    gradients_of_rows: bool,
) -> Float[Array, "q n"]:
    """Influence of every row on every query: losses along the preconditioned gradients of the queries.

    Pushing 64 directions through a convolution costs more than the gradients of its rows, and less through dense layers.
    """
    gradients = curvature.per_example_gradients(model, variables, queries)
    directions = jax.vmap(lambda g: made.solve(g, damping))(gradients)

    def along(part):
        losses = lambda p: evaluate(model, variables._replace(params=p), part)[1]  # noqa: E731
        push = jax.linearize(losses, variables.params)[1]
        return jax.vmap(push, out_axes=1)(directions)

    def against(part):
        rows = curvature.per_example_gradients(model, variables, part)
        return sum(
            jax.tree.leaves(jax.tree.map(lambda g, d: g.reshape(len(g), -1) @ d.reshape(QUERIES, -1).T, rows, directions))
        )

    return map_rows(against if gradients_of_rows else along, train, chunk=chunk).T


def solves(
    config: Config,
    problem: Problem,
    made: curvature.Kronecker,
    read: curvature.Kronecker,
    fit_seconds: float,
    console: Console,
) -> dict[str, Any]:
    """Errors against converged solves, and 64 removals both ways."""
    model, variables, data, damping = problem.model, problem.variables, problem.data, config.removal_damping
    rows = len(problem.targets)

    def solver(rtol: float, max_steps: int) -> tuple[Callable[[PyTree], curvature.Solved], float]:
        def solve(variables, train, present, b):
            product = curvature.ggn_vp(model, variables, train, present, chunk=config.cg_chunk)
            return curvature.cg(product, b, damping=damping, rtol=rtol, max_steps=max_steps)

        arguments = (variables, data.train, data.present)
        start = time.perf_counter()
        program = jax.jit(solve).lower(*arguments, variables.params).compile()
        return partial(program, *arguments), time.perf_counter() - start

    compared = 2 if config.smoke else COMPARED
    gradients = curvature.per_example_gradients(model, variables, jax.tree.map(lambda x: x[:compared], data.train))
    truth, _ = solver(1e-4, 3 * config.cg_steps)
    converged = [truth(lane(gradients, place)) for place in range(compared)]
    errors = {}
    drawn = jax.jit(curvature.ekfac(model, kind="sampled", chunk=config.chunk or CHUNKS["mlp"]))
    exact = jax.jit(curvature.ekfac(model, kind="fisher", chunk=config.chunk or CHUNKS["mlp"]))
    rows_of_fit = (variables, data.train, data.present)
    candidates = {"jaxunlearn": made, "kronfluence": read, "jaxunlearn, all classes": exact(*rows_of_fit, jax.random.key(1))}
    candidates |= {f"jaxunlearn, draw {seed}": drawn(*rows_of_fit, jax.random.key(seed)) for seed in range(2, 6)}
    for name, factors in candidates.items():
        found = jax.vmap(lambda g, factors=factors: factors.solve(g, damping))(gradients)
        errors[name] = [relative(lane(found, place), x.solution) for place, x in enumerate(converged)]
    errors["no curvature"] = [relative(lane(gradients, place), x.solution, scaled=True) for place, x in enumerate(converged)]
    console.print(f"errors of solves: {', '.join(f'{name} {statistics.median(x):.2f}' for name, x in errors.items())}")

    generator = np.random.default_rng(1)
    removed = np.stack([generator.choice(rows, REMOVED, replace=False) for _ in range(REQUESTS)])

    def pull(rows):
        part = jax.tree.map(lambda x: x[rows], data.train)
        return curvature.gradient_sum(model, variables, part, jnp.ones(REMOVED))

    pulls = jax.block_until_ready(jax.jit(jax.vmap(pull))(removed))
    shared = jax.jit(lambda made, pulls: jax.vmap(lambda b: made.solve(b, damping))(pulls))
    times = timing.interleaved({"ekfac": lambda: shared(made, pulls)}, rounds=config.rounds, pause=config.pause)
    alone, compile_seconds = solver(1e-3, config.cg_steps)
    lanes = range(config.cg_requests)
    solved, each = zip(*[seconds_of(partial(alone, lane(pulls, place))) for place in lanes], strict=True)
    steps = shared(made, pulls)
    one, cg = times.median["ekfac"] / REQUESTS, statistics.mean(each)
    return {
        "error": {
            "relative_errors": errors,
            "median_relative_error": {name: statistics.median(x) for name, x in errors.items()},
            "converged": [bool(x.converged) for x in converged],
            "residuals": [float(x.residual) for x in converged],
            "cg_steps": [int(x.num_steps) for x in converged],
        },
        "solves": {
            "seconds": {"ekfac": one, "cg": cg, "ekfac, fit included": one + fit_seconds / REQUESTS},
            "first_call_seconds": {"ekfac": times.first["ekfac"], "cg, compilation alone": compile_seconds},
            "median_seconds_of_cg": statistics.median(each),
            "ratios": {"cg": cg / one, "cg, fit included": cg / (one + fit_seconds / REQUESTS)},
            "requests_solved_by_cg": len(each),
            "cg_converged": sum(bool(x.converged) for x in solved),
            "cg_steps": [int(x.num_steps) for x in solved],
            "cg_largest_residual": max(float(x.residual) for x in solved),
            "median_distance_of_ekfac_from_cg": statistics.median(
                relative(lane(steps, place), x.solution) for place, x in enumerate(solved)
            ),
        },
    }


def published_importances(network: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Squares of the mean gradients of batches, averaged, as published code accumulates them."""
    parameters = list(network.parameters())
    totals = [torch.zeros_like(x) for x in parameters]
    batches = list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))
    for images, labels in batches:
        network.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        for total, parameter in zip(totals, parameters, strict=True):
            total += parameter.grad.pow(2)  # pyright: ignore[reportOptionalMemberAccess]
    return [total / len(batches) for total in totals]


def published_dampening(network: torch.nn.Module, everything: list[torch.Tensor], own: list[torch.Tensor]) -> None:
    """Select, and multiply by at most 1, in place."""
    with torch.no_grad():
        for parameter, whole, part in zip(network.parameters(), everything, own, strict=True):
            places = torch.where(part > whole * ALPHA)
            update = (whole * STRENGTH / part)[places]
            update[update > 1] = 1.0
            parameter[places] = parameter[places] * update


def dampening(config: Config, problem: Problem) -> dict[str, Any]:
    """SSD for 64 requests, both ways."""
    model, variables, data = problem.model, problem.variables, problem.data
    generator = np.random.default_rng(2)
    asked = np.stack([generator.choice(len(problem.targets), REQUESTED, replace=False) for _ in range(REQUESTS)])
    places, original = torch.from_numpy(asked), problem.build()
    squares = partial(curvature.batch_means, model, batch_size=BATCH)

    def of_request(variables, train, rows):
        return squares(variables, jax.tree.map(lambda x: x[rows], train), jnp.ones(REQUESTED))

    def request(variables, train, everything, rows):
        own = of_request(variables, train, rows)
        return dampened(variables.params, everything, own, alpha=ALPHA, strength=STRENGTH)

    @jax.jit
    def ours(variables, train, everything, requests):
        one = partial(request, variables, train, everything)
        if config.ssd_lanes >= REQUESTS:
            return jax.vmap(one)(requests)
        return jax.lax.map(one, requests, batch_size=config.ssd_lanes)

    def theirs(whole: list[torch.Tensor] | None, places: torch.Tensor = places) -> list[torch.nn.Module]:
        answers = []
        for rows in places:
            network = copy.deepcopy(original)
            own = published_importances(network, problem.inputs[rows], problem.targets[rows])
            everything = published_importances(network, problem.inputs, problem.targets) if whole is None else whole
            published_dampening(network, everything, own)
            answers.append(network)
        return answers

    everything = jax.jit(squares)(variables, data.train, data.present)
    whole = published_importances(original, problem.inputs, problem.targets)
    own = jax.jit(jax.vmap(of_request, in_axes=(None, None, 0)))(variables, data.train, asked)
    apart = furthest(everything, whole, original)
    for place, rows in enumerate(places):
        expected = published_importances(original, problem.inputs[rows], problem.targets[rows])
        apart = max(apart, furthest(lane(own, place), expected, original))
    require(apart <= EQUAL, f"importances differ by {apart:.1e}")
    del own

    program = partial(ours, variables, data.train, everything, asked)
    params, selected = program()
    answers = theirs(whole)
    moved = [furthest(lane(params, place), list(x.parameters()), original) for place, x in enumerate(answers)]
    few = places[:PUBLISHED]
    sides = {"jaxunlearn": program, "eager, shared": partial(theirs, whole), "eager, as published": partial(theirs, None, few)}
    times = timing.interleaved(sides, rounds=config.rounds, pause=config.pause)
    counts = dict.fromkeys(sides, REQUESTS) | {"eager, as published": PUBLISHED}
    seconds = {name: x / counts[name] for name, x in times.median.items()}
    return {
        "seconds": seconds,
        "best_seconds": {name: x / counts[name] for name, x in times.best.items()},
        "cores_busy_after": times.spinning,
        "ratios": {name: x / seconds["jaxunlearn"] for name, x in seconds.items() if name != "jaxunlearn"},
        "largest_relative_difference_of_importances": apart,
        "largest_relative_difference_of_weights": max(moved),
        "mean_share_selected": float(jnp.mean(selected)),
    }


# Small things


def furthest(ours: PyTree, theirs: list[torch.Tensor], network: torch.nn.Module) -> float:
    """Largest relative distance of a parameter's values, by norms."""
    found = []
    for (name, _), theirs_value in zip(network.named_parameters(), theirs, strict=True):
        layer, kind = name.split(".")
        value = np.asarray(ours[layer]["bias" if kind == "bias" else "kernel"])
        expected = theirs_value.detach().numpy()
        if kind == "weight":
            value = value.transpose((1, 0) if value.ndim == 2 else (3, 2, 0, 1))
        found.append(float(np.linalg.norm(value - expected) / np.linalg.norm(expected)))
    return max(found)


def relative(found: PyTree, expected: PyTree, *, scaled: bool = False) -> float:
    """Relative distance; `scaled`, after multiplying what was found by the best number."""
    if scaled:
        products = jax.tree.map(lambda x, y: jnp.stack([jnp.vdot(x, y), jnp.vdot(x, x)]), found, expected)
        both = jnp.sum(jnp.stack(jax.tree.leaves(products)), axis=0)
        found = jax.tree.map(lambda x: x * both[0] / both[1], found)
    return float(norm(jax.tree.map(jnp.subtract, found, expected)) / norm(expected))


def lane(stacked: PyTree, place: int) -> PyTree:
    """One entry of every leaf."""
    return jax.tree.map(lambda x: x[place], stacked)


def require(holds: bool, message: str) -> None:
    """Stop before anything is timed that is not the same on both sides."""
    if not holds:
        raise AssertionError(message)


def seconds_of(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds; JAX arrays are waited for."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - start


def prepared(config: Config, network: Network) -> tuple[Problem, float]:
    """Data, a trained network and its copy, and the largest difference of their logits."""
    name = "digits" if config.smoke and config.data_dir is None else "mnist"
    dataset = load(name, config.data_dir, max_rows=config.rows)
    train = dataset.train
    options: dict[str, Any] = {"widths": WIDTHS} if network == "mlp" else {}
    model = build(network, train.inputs.shape[1:], dataset.num_classes, **options)
    data = ju.training_data(*jax.tree.map(jnp.asarray, train))
    trained = training.train(
        model, data, optax.adam(1e-3), num_steps=config.train_steps, batch_size=128, seeds=[0], key=jax.random.key(0)
    )
    variables = lane(trained, 0)
    images = np.asarray(train.inputs).transpose(0, 3, 1, 2) if network == "cnn" else train.inputs.reshape(config.rows, -1)
    inputs = torch.from_numpy(np.array(images, order="C"))
    targets = torch.from_numpy(np.asarray(train.targets).astype(np.int64))
    create = partial(as_torch, network, jax.tree.map(np.asarray, variables.params))
    with torch.no_grad():
        expected = create()(inputs[:SUBSET]).numpy()
    logits = np.asarray(model.forward(variables, data.train.inputs[:SUBSET], train=False).logits)
    apart = float(np.max(np.abs(logits - expected)))
    require(apart <= LOGITS, f"{network}: logits differ by {apart:.1e}")
    return Problem(model, variables, data, inputs, targets, create), apart


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
    print_table(Table(columns, table, f"{config.rows} rows; solves and ssd: a request"), console)
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
