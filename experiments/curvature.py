"""Which curvature to invert? Every representation against the dense matrix, and against retraining, at what it costs.

    python experiments/curvature.py                     # digits, 870 weights:   the dense matrix is the reference
    python experiments/curvature.py --network mlp       # more weights: conjugate gradients are the reference
    python experiments/curvature.py --dataset mnist --data-dir DIR --network cnn --rows 2000
    python experiments/curvature.py --smoke             # tiny, for a first look whether it runs

A network is trained with weight decay until it stands still; if it does not, no distance to retrained is reported. Groups of
rows are then removed by one damped Newton step with every representation; the reference goes on training without the rows from
the same weights, so that it is in the same valley.
Written to the folder `--out`: `report.html` with the plots, `curvature.json`.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import jaxunlearn as ju
from experiments.common import plots, script, study
from experiments.common.models import build
from experiments.common.report import Column, Section, Table
from experiments.common.running import at, reusable
from jaxunlearn import curvature, slots, tree
from jaxunlearn.sampling import retain_weights

LARGEST_DENSE = 2500  # parameters up to which the dense matrix is the reference
STATIONARY = 1e-6  # norm of the gradient above which "left" would compare with a training that had not ended
COLUMNS = [
    Column("representation", "representation"),
    Column("damping", "damping", ".0e"),
    Column("error", "error of the solve", ".3f"),
    Column("left", "distance to retrained left", ".3f"),
    Column("fit_seconds", "fit [s]", ".3g"),
    Column("solve_ms", "a solve [ms]", ".3g"),
    Column("memory_mib", "memory [MiB]", ".3g"),
    Column("indefinite", "not positive", ".0%"),
]


SMOKE = ("dense GGN", "EK-FAC")  # programs of the others take minutes to compile


@dataclass
class Config(script.OnNetworks):
    """Command line of the script."""

    network: str = "small"
    """small (two hidden layers of 10, tanh, in float64), mlp or cnn."""
    label_noise: float = 0.02
    training_steps: int = 5000
    """Full-batch steps of Adam."""
    seeds: int = 3
    """Rows, networks and requests, from --draw on; figures are means over them."""
    weight_decay: float = 1e-2
    """Of the objective: half of it times the squared norm of the weights."""
    polish_steps: int = 12
    """Newton steps behind them, and of each retraining."""
    requests: int = 8
    """Groups of rows to be removed."""
    request_size: int = 10
    """Rows of each."""
    damping: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    """Added to the curvature, besides the weight decay."""
    rank: int = 64
    """Of Lanczos and Nystrom."""
    rows_together: int | None = None
    """Rows in memory together."""
    repeats: int = 3
    """Timed calls, of which the median counts."""
    out: Path = Path("out/curvature")


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(
            config, rows=60, training_steps=30, polish_steps=1, requests=2, request_size=4, seeds=1, damping=(1e-2,), rank=8,
            repeats=1,
        )  # fmt: skip
    mesh, console = script.begin(config)
    runs = []
    steps = 1 + len(config.damping) * (len(SMOKE) if config.smoke else 12)  # representations, about
    with jax.enable_x64(config.network == "small"), script.progress(console, "curvature", config.seeds * steps) as advance:
        for seed in range(config.draw, config.draw + config.seeds):
            runs.append(one_seed(config, seed, mesh, lambda doing, seed=seed: advance(f"seed {seed}: {doing}", done=1)))
    names = list(runs[0]["rows"])
    rows = []
    for name, damping in names:
        parts = [run["rows"][name, damping] for run in runs]
        means = {key: statistics.mean(part[key] for part in parts) for key in parts[0]}
        spread = {f"{key}_sd": statistics.pstdev(part[key] for part in parts) for key in ("error", "left")}
        rows.append({"representation": name, "damping": damping, **means, **spread})
    still = all(run["gradient_norm"] <= STATIONARY for run in runs)
    if not still:
        console.print(
            f"[yellow]no distance to retrained: training ended with a gradient above {STATIONARY:g}, see --training-steps[/]"
        )
        rows = [{**row, "left": None, "left_sd": None} for row in rows]
    summary = script.summary_of(
        config,
        reference=runs[0]["reference"],
        weights=runs[0]["weights"],
        gradient_norm_after_training=[run["gradient_norm"] for run in runs],
        distance_to_retrained=[run["way"] for run in runs],
        rows=rows,
    )
    table = Table(COLUMNS, rows, f"means over {config.seeds} seeds x {config.requests} requests of {config.request_size} rows")
    shown = ("error", "left") if still else ("error",)
    figures = [figure(rows, config.damping[len(config.damping) // 2], key) for key in shown]
    text = f"{summary['weights']} parameters; the reference of a solve is {summary['reference']}. {READING}"
    return script.finish(
        config, console, "curvature", summary, title="jaxunlearn: curvature", intro=INTRO,
        sections=[Section("Representations", text, [table], figures)], tables=[table],
        notes=in_words(rows, runs[0]["reference"]),
    )  # fmt: skip


def in_words(rows: list[dict[str, Any]], reference: str) -> list[str]:
    """Which representation comes closest, at what cost.

    Args:
        rows: of the table.
        reference: what solves are compared with.

    Returns:
        Sentences.
    """
    said = []
    for key, what in (("error", f"steps closest to those with the reference ({reference})"), ("left", "closest to retrained")):
        # the reference itself has no error
        known = [row for row in rows if row[key] is not None and math.isfinite(row[key]) and (key == "left" or row[key] > 0)]
        if known:
            best = min(known, key=lambda row: row[key])
            share = f"relative error {best['error']:.2f}" if key == "error" else f"{best['left']:.0%} of the way is left"
            said.append(
                f"{what[0].upper()}{what[1:]}: {best['representation']} at damping {best['damping']:.0e}, {share}; "
                f"{best['fit_seconds']:.2g} s to fit, {best['solve_ms']:.2g} ms for a solve."
            )
    if all(row["left"] is None for row in rows):
        said.append("Training had not ended, so that no distance to retrained is reported.")
    elif worse := sorted({row["representation"] for row in rows if row["left"] > 1}):
        said.append(f"Worse than doing nothing at some damping: {', '.join(worse)}.")
    return said


INTRO = """\
Removals with curvature solve one linear system per request. What differs is the matrix: dense, a block, a diagonal, Kronecker
factors, a low rank, or none at all with conjugate gradients."""
READING = """\
Error of the solve: of the Newton step against that with the reference at the same damping, relative. Distance to retrained
left: of the way from the trained to the retrained weights, what the step leaves; 0 is there, 1 is as far as before, more is
worse than doing nothing. Conjugate gradients leave the removed rows out of the matrix, the representations do not."""


def figure(rows: list[dict[str, Any]], damping: float, key: str):
    """Time of a solve against its error, or against what is left of the way."""
    points = {
        row["representation"]: (row["solve_ms"], max(row[key], 1e-6))
        for row in rows
        if row["damping"] == damping and np.isfinite(row[key])
    }
    reference = "the reference solve" if key == "error" else "retrained"
    unit = "relative error" if key == "error" else "share of the distance left"
    caption = f"Damping {damping:g}. Lower left is better; a line joins what none beats in both."
    return plots.pareto(points, reference=reference, unit=unit), caption


def setting_of(config: Config, seed: int) -> study.Study:
    """Rows and a network with weight decay in its objective."""
    made = study.overfitted(config.dataset, config.data_dir, num_rows=config.rows, label_noise=config.label_noise, seed=seed)
    shape = made.data.train.inputs.shape[1:]
    small: dict[str, Any] = {}
    network = config.network
    if network == "small":  # smooth and in float64, so that it can stand still
        network, small = "mlp", {"widths": (10, 10), "activation": jnp.tanh}
        train = made.data.train
        made = made._replace(data=made.data._replace(train=train._replace(inputs=train.inputs.astype(jnp.float64))))
    return made._replace(model=build(network, shape, made.num_classes, weight_decay=config.weight_decay, **small))


def one_seed(config: Config, seed: int, mesh: Mesh | None, tell: Callable[[str], Any]) -> dict[str, Any]:
    """All representations on one network."""
    setting = setting_of(config, seed)
    model, data = setting.model, setting.data
    key = jax.random.key(seed)
    assert model.init is not None
    start = model.init(key)
    if config.network == "small":
        start = jax.tree.map(lambda x: x.astype(jnp.float64), start)
    program = jax.jit(partial(train, config, model, data.train))
    variables = program(start, data.present)
    requests = study.random_requests(data, [config.request_size] * config.requests, seed)
    kept = jax.vmap(lambda request: retain_weights(data, request))(requests)

    def retrain(variables: ju.Variables, data: ju.Data, kept: jax.Array, key: jax.Array) -> ju.Variables:
        return polish(config, model, data.train, variables, kept)

    keys = jax.random.split(jax.random.fold_in(key, 1), config.requests)
    retrained = at(reusable(retrain, mesh=mesh)([(variables, data, kept, keys)]).result, 0)
    tell("trained and retrained")
    slope = jax.jit(jax.grad(objective), static_argnums=1)(variables.params, model, variables, data.train, data.present)
    weights = num_weights(variables)
    is_dense = weights <= LARGEST_DENSE
    ways = jax.vmap(lambda v: difference(v.params, variables.params))(retrained)
    fits = representations(config, model, dense=is_dense)
    if config.smoke:
        fits = {name: fit for name, fit in fits.items() if name in SMOKE}
    found: dict[tuple[str, float], dict[str, float]] = {}
    references: dict[float, Any] = {}
    order = ["dense GGN" if is_dense else "CG", *(name for name in fits if name not in ("dense GGN", "CG"))]
    order += ["CG"] if is_dense and not config.smoke else []
    for name in order:
        fit = fits.get(name)
        prepared, fit_seconds, memory = data, 0.0, 0
        if fit is not None:
            program = jax.jit(curvature.prepare(fit))
            prepared, fit_seconds = timed(lambda p=program: p(variables, data, key), config.repeats)
            memory = slots.CURVATURE.get(prepared).value.memory
        for damping in config.damping:
            tolerance = 1e-3 if is_dense else 1e-5
            options: dict[str, Any] = (
                {} if fit is not None else {"solver": "cg", "rtol": tolerance, "max_steps": 1000, "chunk": config.rows_together}
            )
            unlearn = jax.jit(ju.batched(ju.newton(model, damping=damping, **options), chunk=config.requests))
            result, _ = timed(lambda u=unlearn, p=prepared: u(variables, p, requests, keys), 1)
            # a Hessian away from the optimum is compared as it is, and its row says how often it was not positive
            ju.check(result, allow=[ju.Status.INDEFINITE] if name == "dense Hessian" else [])
            steps = jax.vmap(lambda v: difference(v.params, variables.params))(result.variables)
            references.setdefault(damping, steps)
            tell(f"{name}, damping {damping:g}")
            lengths = jax.vmap(tree.norm)
            error = lengths(difference(steps, references[damping])) / lengths(references[damping])
            left = lengths(difference(steps, ways)) / lengths(ways)
            found[name, damping] = {
                "error": float(jnp.mean(error)),
                "left": float(jnp.mean(left)),
                "fit_seconds": fit_seconds,
                "solve_ms": 1e3 * solve_seconds(config, model, variables, prepared, damping, fit is None),
                "memory_mib": memory / 2**20,
                "indefinite": float(jnp.mean(result.status == ju.Status.INDEFINITE)),
            }
    reference = "the dense GGN" if is_dense else "conjugate gradients on the GGN, relative residual 1e-5"
    return {
        "rows": found,
        "reference": reference,
        "weights": weights,
        "gradient_norm": float(tree.norm(slope)),
        "way": float(jnp.mean(jax.vmap(tree.norm)(ways))),
    }


def representations(config: Config, model: ju.Model, *, dense: bool) -> dict[str, curvature.Fit]:
    """What is compared, by name; conjugate gradients have no representation."""
    ggn = partial(curvature.ggn_vp, model, chunk=config.rows_together)
    exact = {
        "dense GGN": curvature.dense(model, chunk=config.rows_together),
        "dense Hessian": curvature.dense(model, kind="hessian", chunk=config.rows_together),
    }
    return {
        **(exact if dense else {}),
        "last layer": curvature.dense(model, layers="head", chunk=config.rows_together),
        "diagonal": curvature.diagonal(model, kind="fisher", chunk=64),
        "empirical diagonal": curvature.diagonal(model, kind="empirical", chunk=64),
        "K-FAC": curvature.kfac(model, kind="ggn", chunk=config.rows_together),
        "EK-FAC": curvature.ekfac(model, kind="ggn", chunk=config.rows_together),
        "EK-FAC, sampled labels": curvature.ekfac(model, kind="sampled", chunk=config.rows_together),
        f"Lanczos {config.rank}": curvature.lanczos(ggn, rank=config.rank),
        f"Nystrom {config.rank}": curvature.nystrom(ggn, rank=config.rank),
    }


def solve_seconds(
    config: Config, model: ju.Model, variables: ju.Variables, data: ju.Data, damping: float, is_cg: bool
) -> float:
    """Seconds of one right-hand side among `--requests` of them, without the gradients."""
    many = jax.vmap(lambda key: jax.tree.map(lambda x: jax.random.normal(key, x.shape, x.dtype), variables.params))(
        jax.random.split(jax.random.key(0), config.requests)
    )
    if is_cg:
        product = curvature.ggn_vp(model, variables, data.train, data.present, chunk=config.rows_together)
        solve = jax.jit(jax.vmap(lambda b: curvature.cg(product, b, damping=damping, rtol=1e-3, max_steps=1000).solution))
    else:
        made = slots.CURVATURE.get(data).value
        solve = jax.jit(jax.vmap(lambda b: made.solve(b, damping)))
    _, seconds = timed(lambda: solve(many), config.repeats)
    return seconds / config.requests


def train(config: Config, model: ju.Model, rows: ju.Examples, variables: ju.Variables, weights: jax.Array) -> ju.Variables:
    """Full-batch Adam with a fading step, and Newton steps to where it stands still."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, config.training_steps))

    def step(carry, _):
        params, state = carry
        slope = jax.grad(objective)(params, model, variables, rows, weights)
        updates, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (variables.params, optimizer.init(variables.params)), length=config.training_steps)
    return polish(config, model, rows, variables._replace(params=params), weights)


def polish(config: Config, model: ju.Model, rows: ju.Examples, variables: ju.Variables, weights: jax.Array) -> ju.Variables:
    """Newton steps, each as long as helps most, from where the weights are, which stays in their valley.

    With the dense Hessian, of which eigenvalues count by their size, where it fits; else with conjugate gradients on the GGN.
    """
    lengths = 2.0 ** -jnp.arange(10)
    is_dense = num_weights(variables) <= LARGEST_DENSE

    def value(params):
        return objective(params, model, variables, rows, weights)

    def step(params, _):
        now, slope = variables._replace(params=params), jax.grad(value)(params)
        if is_dense:
            hessian = curvature.dense(model, kind="hessian", chunk=config.rows_together)(now, rows, weights, jax.random.key(0))
            way = hessian.apply(lambda e: 1 / (jnp.abs(e + config.weight_decay) + 1e-5), slope)
        else:
            product = curvature.ggn_vp(model, now, rows, weights, chunk=config.rows_together)
            way = curvature.cg(product, slope, damping=config.weight_decay, rtol=1e-2, max_steps=200).solution
        tried = jax.vmap(lambda t: jax.tree.map(lambda w, p: w - t * p, params, way))(lengths)
        best = jnp.argmin(jax.vmap(value)(tried))
        return jax.tree.map(lambda x: x[best], tried), None

    params, _ = jax.lax.scan(step, variables.params, length=config.polish_steps)
    return variables._replace(params=params)


def num_weights(variables: ju.Variables) -> int:
    """How many there are."""
    return sum(x.size for x in jax.tree.leaves(variables.params))


def objective(params: Any, model: ju.Model, variables: ju.Variables, rows: ju.Examples, weights: jax.Array) -> jax.Array:
    """Mean loss over rows with weights, and the regularizer."""
    losses = model.loss(model.forward(variables._replace(params=params), rows.inputs), rows)
    assert model.regularizer is not None
    return jnp.sum(losses * weights) / jnp.sum(weights) + model.regularizer(params)


def difference(first: Any, second: Any) -> Any:
    """First minus second, leaf by leaf."""
    return jax.tree.map(jnp.subtract, first, second)


def timed(call: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """What a call returns, and its median seconds after a first one that compiles."""
    result = jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


if __name__ == "__main__":
    script.run(main, Config, __doc__)
