"""Do influence scores say what retraining does? Every curvature against a bank of models that left half of the rows out.

    python experiments/attribution.py                   # digits, a network of two hidden layers
    python experiments/attribution.py --dataset mnist --data-dir DIR --rows 2000
    python experiments/attribution.py --network decoder --rows 256 --training-steps 150 --models 50 --queries 40
    python experiments/attribution.py --smoke           # tiny, for a first look whether it runs

A score says how much a training row moves the margin m of a query: `-grad m' (C + damping)^-1 grad loss`. Summed over the rows
that a model was trained on, scores predict its margin. The linear datamodeling score (Park, Georgiev, Ilyas, Leclerc, Madry:
TRAK, 2023, arXiv 2303.14186) is the rank correlation of that prediction with the margins of retrained models over random halves
of the training set, mean over queries. What differs between the rows of the table is C. Damping is a multiple of the mean
eigenvalue of C, as found by EK-FAC. The bank is retrained in batched calls and kept in the folder `--out`; `bank.npz` there is
found again by a run with the same flags. Intervals are over the models of the bank; the ceiling is how well one retraining of
each half predicts another. `--network decoder` learns rows of text; the value of a query is then the mean log-likelihood of its
tokens in place of the margin, and K-FAC and EK-FAC draw one token for every position, where a network of classes takes all.
Written to `--out`: `report.html`, `attribution.json`.
"""

import json
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
from jax.sharding import Mesh
from scipy.stats import rankdata

import jaxunlearn as ju
from experiments.common import script, study, token_study
from experiments.common.report import Column, Section, Table
from experiments.common.running import reusable
from jaxunlearn import curvature
from jaxunlearn.curvature.logit_gradients import Kind
from jaxunlearn.losses.sequences import are_tokens
from jaxunlearn.margin import margins

TOGETHER = ("rows_together", "queries_together")
COLUMNS = [
    Column("matrix", "matrix"),
    Column("damping", "damping, mean eigenvalues", ".3g"),
    Column("score", "linear datamodeling score", ".3f"),
    Column("low", "from", ".3f"),
    Column("high", "to", ".3f"),
    Column("seconds", "seconds", ".1f"),
]


@dataclass
class Config(script.OnNetworks):
    """Command line of the script."""

    label_noise: float = 0.1
    models: int = 100
    """Random halves of the training set."""
    repeats: int = 2
    """Retrained models of each half, at least 2."""
    queries: int = 100
    """Test rows whose margins are predicted."""
    width: int = 32
    """Of a decoder."""
    layers: int = 2
    """Of a decoder."""
    length: int = 48
    """Of a decoder's rows, in characters."""
    damping: tuple[float, ...] = (0.1, 1.0, 10.0)
    """Multiples of the mean eigenvalue."""
    rank: int = 64
    """Of Lanczos."""
    cg_steps: int = 100
    """Of conjugate gradients, at most."""
    rows_together: int = 250
    """Rows in memory together."""
    queries_together: int = 1
    """Queries that are solved for side by side."""
    out: Path = Path("out/attribution")


def main(config: Config) -> dict[str, Any]:
    """Retrain, score and compare; returns what is written as JSON."""
    if config.smoke:
        config = replace(
            config, rows=40, training_steps=10, models=4, queries=3, damping=(1.0,), rank=4, cg_steps=3, rows_together=20
        )
    if config.repeats < 2:
        raise SystemExit("--repeats must be at least 2: the ceiling is how well one retraining predicts another")
    mesh, console = script.begin(config)
    began = time.perf_counter()
    setting = world(config)
    queries = jax.tree.map(lambda x: x[: config.queries], setting.test)
    kept = halves(config)
    fits = matrices(config, setting.model)
    with script.progress(console, "attribution", 1 + len(fits) * len(config.damping)) as advance:
        advance("retraining")
        bank, seconds = retrained(config, setting, queries, kept, mesh)
        advance(done=1)
        variables = original(setting, config.draw)
        scorer = Scorer(config, setting, variables, queries)
        rows = []
        for name, make in fits.items():
            solve = scorer.solver(make)
            for multiple in config.damping:
                advance(f"{name}, damping {multiple:g}")
                start = time.perf_counter()
                scores = scorer.scores(solve, multiple)
                predicted = kept @ scores.T
                rows.append({
                    "matrix": name, "damping": multiple, "seconds": time.perf_counter() - start,
                    **correlated(predicted, bank.mean(axis=1), config.draw), "predicted": predicted,
                })  # fmt: skip
                advance(done=1)
    ceiling = correlated(bank[:, 0], bank[:, 1], config.draw)
    best = {name: max((row for row in rows if row["matrix"] == name), key=lambda row: row["score"] or -1.0) for name in fits}
    notes = [
        f"ceiling: one retraining of each half predicts another with {ceiling['score']:.3f}",
        compared(best["EK-FAC and CG"], best["EK-FAC"], bank.mean(axis=1), config.draw),
        f"bank: {config.models} x {config.repeats} models in {seconds:.0f} s; all in {time.perf_counter() - began:.0f} s",
    ]
    rows = [{name: value for name, value in row.items() if name != "predicted"} for row in rows]
    what = "text" if config.network == "decoder" else config.dataset
    table = Table(COLUMNS, rows, f"{what}, {config.rows} rows, {config.models} halves, {config.queries} queries")
    summary = script.summary_of(
        config, rows=rows, ceiling=ceiling, notes=notes, mean_eigenvalue=scorer.mean_eigenvalue, weights=scorer.size
    )
    return script.finish(
        config, console, "attribution", summary, title="Influence against retraining", intro=str(__doc__),
        sections=[Section("Scores", "; ".join(notes), [table], [])], tables=[table], notes=notes,
    )  # fmt: skip


def world(config: Config) -> study.Study:
    """The rows, the model and its training."""
    if config.network != "decoder":
        return config.setting()
    sizes: dict[str, Any] = {"width": config.width, "layers": config.layers, "length": config.length}
    return token_study.learned(
        num_rows=config.rows, held_out=config.queries, num_steps=config.training_steps, seed=config.draw, **sizes
    )


def values(model: ju.Model, variables: ju.Variables, queries: ju.Examples) -> Any:
    """What is explained of every query: its margin, or the mean log-likelihood of its tokens."""
    outputs = model.forward(variables, queries.inputs)
    if are_tokens(outputs.logits, queries.targets):
        return -model.loss(outputs, queries)
    return margins(outputs.logits, queries.targets)


def halves(config: Config) -> np.ndarray:
    """Which rows each model of the bank is trained on, 0 or 1, [models, rows]."""
    rng = np.random.default_rng(config.draw)
    kept = np.zeros((config.models, config.rows), np.float32)
    for row in kept:
        row[rng.choice(config.rows, config.rows // 2, replace=False)] = 1
    return kept


def original(setting: study.Study, seed: int) -> ju.Variables:
    """A model trained on all rows."""
    assert setting.model.init is not None
    key = jax.random.key(seed)
    done = jax.jit(setting.retrain())(jax.jit(setting.model.init)(key), setting.data, ju.empty_request(), key)
    return ju.check(done, allow=[ju.Status.EMPTY_REQUEST]).variables


def retrained(
    config: Config, setting: study.Study, queries: ju.Examples, kept: np.ndarray, mesh: Mesh | None
) -> tuple[np.ndarray, float]:
    """Margins of the queries under every retrained model, [models, repeats, queries], and the seconds that they took."""
    identity = json.dumps(
        {**vars(config), "out": "", "scale": "", "damping": "", "rank": "", "cg_steps": "", **dict.fromkeys(TOGETHER, "")},
        default=str,
    )
    path = config.out / "bank.npz"
    if path.exists():
        with np.load(path) as stored:
            if str(stored["identity"]) == identity:
                return stored["margins"], float(stored["seconds"])
    train = setting.retrain()

    def margins_of(variables: ju.Variables, data: ju.Data, request: ju.ForgetRequest, key: jax.Array) -> Any:
        result = train(variables, data, request, key)
        return values(setting.model, result.variables, queries), result.status

    requests = ju.from_indices(setting.data, [np.flatnonzero(row == 0) for row in kept])
    every = jax.tree.map(lambda x: np.repeat(np.asarray(x), config.repeats, axis=0), requests)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.draw), 1), len(every.weights))
    assert setting.model.init is not None
    like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(setting.model.init, jax.random.key(0)))
    done = reusable(margins_of, mesh=mesh)([(like, setting.data, every, keys)])
    found, status = done.result
    ju.check(ju.Result((), status[0]))
    bank = np.asarray(found[0], np.float64).reshape(config.models, config.repeats, -1)
    config.out.mkdir(parents=True, exist_ok=True)
    np.savez(path, identity=identity, margins=bank, seconds=done.run_seconds)
    return bank, done.run_seconds


Make = Callable[["Scorer"], Callable[[Any, jax.Array], Any]]  # the scorer: `(gradients [q, ...], damping) -> solutions`


class Scorer:
    """Gradients of rows and queries, and scores from them.

    Args:
        config, setting: of the run.
        variables: of the model that is explained.
        queries: whose margins are explained.
    """

    def __init__(self, config: Config, setting: study.Study, variables: ju.Variables, queries: ju.Examples) -> None:
        self.config, self.setting, self.variables = config, setting, variables
        model, data, chunk = setting.model, setting.data, config.rows_together
        self.rows = jax.jit(lambda v: curvature.per_example_gradients(model, v, data.train, chunk=chunk))(variables)

        def of_query(query: ju.Examples) -> Any:
            one = jax.tree.map(lambda x: x[None], query)
            return jax.grad(lambda p: values(model, variables._replace(params=p), one)[0])(variables.params)

        self.queries = jax.jit(jax.vmap(of_query))(queries)
        self.size = sum(x.size for x in jax.tree.leaves(variables.params))
        self.made: dict[str, Any] = {}
        self.mean_eigenvalue = float(self.fitted("EK-FAC", curvature.ekfac(model, kind=kind_of(config), chunk=chunk)).trace())
        self.mean_eigenvalue /= self.size

    def fitted(self, name: str, fit: curvature.Fit) -> Any:
        """A representation of the mean over all rows, made once."""
        if name not in self.made:
            data = self.setting.data
            self.made[name] = jax.jit(fit)(self.variables, data.train, data.present, jax.random.key(self.config.draw))
        return self.made[name]

    def solver(self, make: Make) -> Callable[[Any, jax.Array], Any]:
        """Solutions for many gradients, compiled once for all damping."""
        solve = make(self)

        @jax.jit
        def every(gradients: Any, damping: jax.Array) -> Any:
            return jax.lax.map(lambda one: solve(one, damping), gradients, batch_size=self.config.queries_together)

        return every

    def scores(self, solve: Callable[[Any, jax.Array], Any], multiple: float) -> np.ndarray:
        """What every row adds to the margin of every query, [queries, rows], up to a factor that all share."""
        solved = solve(self.queries, jnp.float32(multiple * self.mean_eigenvalue))
        parts = [
            -np.asarray(g.reshape(len(g), -1) @ r.reshape(len(r), -1).T, np.float64)
            for g, r in zip(jax.tree.leaves(solved), jax.tree.leaves(self.rows), strict=True)
        ]
        return np.sum(parts, axis=0)


def kind_of(config: Config) -> Kind:
    """Which matrix Kronecker factors are of; all classes at all positions would be a gradient for each of them."""
    return "sampled" if config.network == "decoder" else "ggn"


def matrices(config: Config, model: ju.Model) -> dict[str, Make]:
    """How a gradient is solved for, by name."""
    chunk, kind, tokens = config.rows_together, kind_of(config), config.network == "decoder"

    def fitted(name: str, fit: curvature.Fit) -> Make:
        return lambda scorer: scorer.fitted(name, fit).solve

    def with_cg(scorer: Scorer) -> Callable[[Any, jax.Array], Any]:
        data = scorer.setting.data
        product = curvature.ggn_vp(model, scorer.variables, data.train, data.present, chunk=chunk)
        near = scorer.fitted("EK-FAC", curvature.ekfac(model, kind=kind, chunk=chunk))
        options = {"rtol": 1e-3, "max_steps": config.cg_steps, "preconditioner": near}
        return lambda g, damping: curvature.cg(product, g, damping=damping, **options).solution

    ggn = partial(curvature.ggn_vp, model, chunk=chunk)
    every: dict[str, Make] = {
        "none": lambda scorer: lambda g, damping: g,
        "last layer": fitted("last layer", curvature.dense(model, layers="head", chunk=chunk)),
        "diagonal": fitted("diagonal", curvature.diagonal(model, kind="sampled" if tokens else "fisher", chunk=64)),
        "K-FAC": fitted("K-FAC", curvature.kfac(model, kind=kind, chunk=chunk)),
        "EK-FAC": fitted("EK-FAC", curvature.ekfac(model, kind=kind, chunk=chunk)),
        f"Lanczos {config.rank}": fitted("Lanczos", curvature.lanczos(ggn, rank=config.rank)),
        "EK-FAC and CG": with_cg,
    }
    if tokens:
        del every["last layer"]  # it is the embedding
    return {name: every[name] for name in ("EK-FAC", "EK-FAC and CG")} if config.smoke else every


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the first axis, centred and of length 1."""
    order = rankdata(values, axis=0)
    order = order - order.mean(axis=0)
    return order / np.maximum(np.linalg.norm(order, axis=0), 1e-12)


def spearman(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Rank correlation over models [models, queries], mean over queries."""
    return float(np.sum(ranks(predicted) * ranks(measured), axis=0).mean())


def resampled(seed: int, models: int) -> list[np.ndarray]:
    """Draws of a bootstrap over the models of the bank."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, models, models) for _ in range(200)]


def correlated(predicted: np.ndarray, measured: np.ndarray, seed: int) -> dict[str, Any]:
    """The score with its interval at 95 %; None where a score is not finite."""
    draws = [spearman(predicted[places], measured[places]) for places in resampled(seed, len(measured))]
    low, high = np.quantile(draws, (0.025, 0.975))
    found = {"score": spearman(predicted, measured), "low": float(low), "high": float(high)}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def compared(first: dict[str, Any], second: dict[str, Any], measured: np.ndarray, seed: int) -> str:
    """The difference of two scores over the same draws, in words."""
    places = resampled(seed, len(measured))
    draws = [spearman(first["predicted"][x], measured[x]) - spearman(second["predicted"][x], measured[x]) for x in places]
    low, high = np.quantile(draws, (0.025, 0.975))
    verdict = "beats" if low > 0 else "is beaten by" if high < 0 else "is not told apart from"
    gain = first["score"] - second["score"]
    return (
        f"{first['matrix']} {verdict} {second['matrix']}, each at its best damping: {gain:+.3f}, from {low:+.3f} to {high:+.3f}"
    )


if __name__ == "__main__":
    script.run(main, Config, __doc__)
