"""Does a network fall back on colours once the rows that speak against them are gone? The second experiment of Block, Mokhtari,
Shakkottai (2025, arXiv 2505.22601), in small.

    python experiments/benchmarks/colour_collapse.py --dataset mnist --data-dir DIR --rows 10000
    python experiments/benchmarks/colour_collapse.py --smoke

Every class has a tint, and all its images have it but a few, which are asked to be forgotten. A network first learns the shapes
of grey images and then all tinted ones: it needs shapes for those few alone. Without them the simplest network that fits looks
at tints and at nothing else. So a method is measured by how often it names the tint of test images that come in all tints. It
may read one retained row in a hundred. The paper has CIFAR-10, a ResNet-18 and settings chosen on the reported measure; this
has a small network, and settings chosen on the reported measure from the searches of the cards, so that what may be compared is
the order.
"""

import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from experiments.common import methods, script
from experiments.common.data import load
from experiments.common.models import build
from experiments.common.report import Column, Section, Table

# percent of test images named by their tint, retain 1 %, 10 epochs, means of 5 seeds
PUBLISHED = {
    "retrain": 98.5, "minnorm_og": 94.7, "gradient_difference": 92.4, "scrub": 75.8, "finetune": 73.6, "salun": 68.7,
    "npo": 43.5, "gradient_ascent": 38.2, "l1_sparse": 31.4,
}  # fmt: skip
COLUMNS = [
    Column("method", "method"),
    Column("collapse", "named by tint", ".1%"),
    Column("low", "worst seed", ".1%"),
    Column("high", "best seed", ".1%"),
    Column("published", "published, %", ".1f"),
    Column("settings", "settings"),
    Column("seconds", "seconds", ".1f"),
]
BATCH = 64


@dataclass
class Config(script.OnData):
    """Command line of the benchmark."""

    rows: int = 1000
    """Training rows."""
    seeds: int = 5
    """Draws of tints, of rows and of initial weights."""
    grey_steps: int = 300
    """Of training on grey images."""
    training_steps: int = 1500
    """Of training on tinted ones."""
    epochs: int = 10
    """Of unlearning, over the retained rows that may be read."""
    wrong: float = 0.01
    """Share of the rows of a class in a wrong tint."""
    access: float = 0.01
    """Share of the retained rows that may be read; at least two of each class are."""
    out: Path = Path("out/colour_collapse")


def tinted(images: np.ndarray, tints: np.ndarray) -> np.ndarray:
    """Grey images [n, h, w, 1] in colours [n, 3]."""
    return (images * tints[:, None, None, :]).astype(np.float32)


def drawn(config: Config, seed: int) -> tuple[ju.Data, ju.Data, np.ndarray, ju.Examples]:
    """Grey rows, tinted rows, which rows have a wrong tint, and test images in all tints, labelled by them."""
    rng = np.random.default_rng(seed)
    loaded = load(config.dataset, config.data_dir, seed=seed)
    rows = rng.permutation(len(loaded.train.targets))[: config.rows]
    images, labels = np.asarray(loaded.train.inputs)[rows], np.asarray(loaded.train.targets)[rows]
    palette = rng.uniform(0.2, 1, (loaded.num_classes, 3))
    others = (labels + rng.integers(1, loaded.num_classes, len(labels))) % loaded.num_classes
    count = max(1, round(config.wrong * len(rows) / loaded.num_classes))
    wrong = np.concatenate([rng.choice(np.flatnonzero(labels == c), count, replace=False) for c in range(loaded.num_classes)])
    tints = labels.copy()
    tints[wrong] = others[wrong]
    test = np.asarray(loaded.test.inputs)[:100]
    repeated = np.repeat(test, loaded.num_classes, axis=0)
    asked = np.tile(np.arange(loaded.num_classes, dtype=np.int32), len(test))
    return (
        ju.training_data(tinted(images, np.ones((len(labels), 3))), labels),
        ju.training_data(tinted(images, palette[tints]), labels),
        wrong,
        ju.Examples(tinted(repeated, palette[asked]), asked),
    )


def accessible(config: Config, data: ju.Data, wrong: np.ndarray, seed: int) -> ju.Data:
    """Data of which the forget set and a few other rows are there."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(data.train.targets)
    keep = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        own = np.setdiff1d(np.flatnonzero(labels == c), wrong)
        keep[rng.choice(own, max(2, round(config.access * len(own))), replace=False)] = True
    keep[wrong] = True
    return data._replace(present=jnp.asarray(keep, jnp.float32))


def main(config: Config) -> dict[str, Any]:
    """Train, unlearn and measure; returns what is written."""
    if config.smoke:
        config = replace(config, rows=200, seeds=2, grey_steps=5, training_steps=10, epochs=2)
    _, console = script.begin(config)
    began, busy = time.perf_counter(), time.process_time()
    seeds = [drawn(config, seed) for seed in range(config.seeds)]
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    grey, data, test = (stack([seed[place] for seed in seeds]) for place in (0, 1, 3))
    model = build("mlp", data.train.inputs.shape[2:], int(data.train.targets.max()) + 1)
    requests = ju.from_indices(seeds[0][1], [seed[2] for seed in seeds])
    little = stack([accessible(config, seed[1], seed[2], place) for place, seed in enumerate(seeds)])
    keys = jax.random.split(jax.random.key(0), config.seeds)
    every = jax.tree.map(lambda x: jnp.zeros_like(jnp.asarray(x)), requests)
    everywhere: Any = partial(ju.batched, in_axes=(0, 0, 0, 0))

    def trained(variables: ju.Variables, on: ju.Data, steps: int) -> ju.Variables:
        run = ju.iterate(ju.finetune(model, optax.adam(1e-3)), num_steps=steps, batch_size=BATCH)
        return ju.check(jax.jit(everywhere(run))(variables, on, every, keys), allow=[ju.Status.EMPTY_REQUEST]).variables

    @jax.jit
    @jax.vmap
    def collapse(variables: ju.Variables, test: ju.Examples) -> jax.Array:
        return jnp.mean(jnp.argmax(model.forward(variables, test.inputs).logits, axis=1) == test.targets)

    assert model.init is not None
    start = trained(jax.jit(jax.vmap(model.init))(keys), grey, config.grey_steps)
    original = trained(start, data, config.training_steps)
    read = int(little.present[0].sum()) - len(seeds[0][2])
    steps = config.epochs * -(-read // min(BATCH, read))

    def program(name: str) -> Any:
        def unlearned(variables, data, asked, key):
            request, settings = asked  # traced, so that one program serves all settings
            unlearn = methods.build(name, model, num_steps=steps, batch_size=BATCH, **settings)
            return unlearn(variables, ju.prepare(unlearn)(variables, data, key), request, key)

        def found(settings: Any) -> jax.Array:
            numbers = {name: jnp.broadcast_to(value, config.seeds) for name, value in settings.items()}
            return collapse(everywhere(unlearned)(original, little, (requests, numbers), keys).variables, test)

        return jax.jit(found)

    def tried(run: Any, point: methods.Settings) -> tuple[np.ndarray, float]:
        began = time.perf_counter()
        return np.asarray(run(jax.tree.map(jnp.float32, point))), time.perf_counter() - began

    rows = [row("do nothing", np.asarray(collapse(original, test)), {}, 0.0)]
    with script.progress(console, "methods", len(PUBLISHED)) as advance:
        for name in PUBLISHED:
            advance(name)
            space = [{"learning_rate": rate} for rate in (1e-3, 5e-3)] if name == "retrain" else methods.points(name)
            run = program(name)
            found = [(*tried(run, point), point) for point in space]
            best = max(found, key=lambda one: float(np.nan_to_num(one[0]).mean()))
            rows.append(row(name, best[0], best[2], best[1]))
            advance(done=1)
    notes = [
        *verdicts(rows),
        f"{steps} steps; {time.perf_counter() - began:.0f} s in all, {time.process_time() - busy:.0f} s of CPU",
    ]
    table = Table(COLUMNS, rows, f"{config.dataset}, {config.rows} rows, {read} retained ones read, {config.seeds} seeds")
    return script.finish(
        config, console, "colour_collapse", script.summary_of(config, table=rows, notes=notes), title="Collapse onto colours",
        intro=str(__doc__), sections=[Section("Named by tint", "; ".join(notes), [table], [])], tables=[table], notes=notes,
    )  # fmt: skip


def row(name: str, found: np.ndarray, settings: methods.Settings, seconds: float) -> dict[str, Any]:
    """One line of the table."""
    return {
        "method": name, "collapse": float(found.mean()), "low": float(found.min()), "high": float(found.max()),
        "published": PUBLISHED.get(name), "seconds": seconds, "each": [round(float(x), 4) for x in found],
        "settings": ", ".join(f"{setting} {value:g}" for setting, value in settings.items()),
    }  # fmt: skip


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """How the order compares with the published one, retraining apart."""
    ours = {row["method"]: row["collapse"] for row in rows if row["method"] in PUBLISHED and row["method"] != "retrain"}
    names = list(ours)
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    same = sum((ours[a] - ours[b]) * (PUBLISHED[a] - PUBLISHED[b]) > 0 for a, b in pairs)
    best = max(ours, key=lambda name: ours[name])
    return [
        f"{same} of {len(pairs)} pairs of methods are in the published order; the best of ours is {best}, of theirs minnorm_og"
    ]


if __name__ == "__main__":
    script.run(main, Config, __doc__)
