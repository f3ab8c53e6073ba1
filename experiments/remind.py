"""Does the loss around a text tell that it was unlearned? REMIND on a small language model, beside a retrained one.

    python experiments/remind.py                     # a register of nobody, offline
    python experiments/remind.py --smoke             # tiny, to see whether it runs

A small decoder learns texts about people, and is asked to forget sixteen of them at once. A classifier is told the losses of
rows and of near variants of them, and says which were retained, held out or forgotten; it is tested on other rows. A model that
was retrained without the forgotten texts has never seen them: whatever tells them from held-out ones there is no memory. So
what counts is the excess over the retrained model, and the gain over the loss alone. Written to the folder `--out`:
`report.html`, `remind.json`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import jaxunlearn as ju
from experiments.common import planted, script, settings, token_methods, token_runs, training
from experiments.common.outcome import NOTHING
from experiments.common.planted import World
from experiments.common.report import Column, Section, Table
from experiments.common.running import at
from experiments.common.token_runs import Bench, Plan
from jaxunlearn.audit import language

TEXTS = 16  # that are forgotten, with a canary of one copy each
RETAINED, HELD_OUT, FORGOTTEN = range(3)  # as `audit.language.remind` counts kinds


@dataclass
class Config(script.Base):
    """Command line of the script."""

    documents: int = 40
    """Training texts, of which the first 16 are forgotten."""
    held_out: int = 16
    """Texts that no model sees."""
    width: int = 64
    """Of the decoder."""
    layers: int = 2
    """Of the decoder."""
    training_steps: int = 300
    """Steps of training and retraining."""
    unlearning_steps: int = 20
    """Steps of every method."""
    forget_batch_size: int = 16
    """Rows of the forget set in a step of unlearning."""
    retain_batch_size: int = 16
    """Retained rows in a step of unlearning."""
    rank: int = 32
    """Of adapters."""
    methods: tuple[str, ...] = ("npo", "undial", "idk", "gradient_difference")
    """Which ones, with the settings that `language.py` takes."""
    seeds: int = 3
    """Original models."""
    variants: int = 15
    """Of each text."""
    neighbours: int = 5
    """Characters that one may be replaced by, the nearest by the original's embeddings; the paper takes 20 of many more."""
    rate: float = 0.3
    """Share of characters that are replaced."""
    splits: int = 20
    """Random halves of the rows that the classifier is fitted on; the others test it."""
    draw: int = 0
    """Seed of everything."""
    configs: Path = settings.CONFIGS
    """Folder of settings."""
    out: Path = Path("out/remind")


SMOKE: dict[str, Any] = {
    "documents": 17, "held_out": 2, "width": 8, "layers": 1, "training_steps": 2, "unlearning_steps": 2, "forget_batch_size": 2,
    "retain_batch_size": 2, "rank": 1, "methods": ("idk",), "seeds": 1, "variants": 2, "splits": 2,
}  # fmt: skip
COLUMNS = [
    Column("method", "method"),
    Column("auc", "forgotten against held out, AUC", ".3f"),
    Column("low", "lowest original", ".3f"),
    Column("high", "highest", ".3f"),
    Column("retrained", "of the retrained model", ".3f"),
    Column("excess", "excess", "+.3f"),
    Column("alone", "loss alone", ".3f"),
    Column("gain", "gain over it", "+.3f"),
    Column("retrained_gain", "gain, retrained", "+.3f"),
    Column("document", "loss on the texts", ".3f"),
    Column("held_out", "held-out loss", ".3f"),
]
INTRO = """\
An AUC of 0.5 says that forgotten rows are not told from held-out ones. The retrained model never saw them, so its AUC shows
how much the texts themselves differ, and the scatter of so few rows. Excess is what the unlearned model adds, gain what the
shape of the loss around a text adds to the loss of the text. Features are a reconstruction, see `audit.language.remind`."""


class Texts(NamedTuple):
    """Rows of the three kinds."""

    rows: ju.Examples
    kinds: np.ndarray


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, **SMOKE)
    mesh, console = script.begin(config)
    with script.progress(console, "remind", config.seeds * (2 + len(config.methods))) as advance:
        form = {"width": config.width, "layers": config.layers, "heads": 4, "hidden": 2 * config.width, "remat": False}
        world = planted.build(
            documents=config.documents, held_out=config.held_out, repetitions=(1,), each=TEXTS, length=64, form=form,
            seed=config.draw,
        )  # fmt: skip
        sizes = token_methods.Steps(config.unlearning_steps, config.forget_batch_size, config.retain_batch_size)
        plan = Plan(config.training_steps, 8, 4e-3, sizes, config.rank, 1, 0.0, 1, config.draw)
        bench = token_runs.bench(world, plan, config.methods, config.scale, mesh)
        texts = texts_of(world)
        look, told = looking(config, world, texts), telling(config, texts)
        rows: dict[str, list[dict[str, float]]] = {}
        for seed in range(config.seeds):
            advance(f"seed {seed}: training and retraining")
            original, retrained = trained(bench, seed)
            reference = look(original.params["embed"], retrained)
            advance(done=1)
            for name in (NOTHING, *config.methods):
                advance(f"seed {seed}: {name}")
                model = original if name == NOTHING else answered(config, bench, name, original, seed)
                around = look(original.params["embed"], model)
                row = {key: float(np.mean(x)) for key, x in told(around, reference).items()}
                losses = np.asarray(around.original)
                row |= {
                    "document": float(losses[texts.kinds == FORGOTTEN].mean()),
                    "held_out": float(losses[texts.kinds == HELD_OUT].mean()),
                }
                rows.setdefault(name, []).append(row)
                advance(done=1)
    return reported(config, console, rows, texts)


def texts_of(world: World) -> Texts:
    """Rows that were retained, held out and forgotten, as far as something counts in them."""
    forgotten = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), world.documents)
    parts = {RETAINED: world.retained, HELD_OUT: world.held_out, FORGOTTEN: forgotten}
    rows = jax.tree.map(lambda *x: np.concatenate(x), *parts.values())
    kinds = np.concatenate([np.full(len(x.targets), kind) for kind, x in parts.items()])
    counts = np.any(rows.targets >= 0, axis=1)
    return Texts(jax.tree.map(lambda x: x[counts], rows), kinds[counts])


def merged(world: World) -> ju.ForgetRequest:
    """One request for all texts and canaries that are forgotten."""
    return jax.tree.map(lambda x: np.asarray(x)[None], ju.merge(world.requests))


def trained(bench: Bench, seed: int) -> tuple[ju.Variables, ju.Variables]:
    """An original, and a model retrained without what is forgotten, from the same key."""
    request, world = merged(bench.world), bench.world
    none = jax.tree.map(lambda x: x[None], ju.empty_request(request.indices.shape[1]))
    requests = jax.tree.map(lambda *x: np.concatenate(x), none, request)
    key = jax.random.fold_in(jax.random.key(bench.plan.draw), seed)
    done = bench.train([(training.form(world.model), world.data, requests, jnp.stack([key, key]))])
    ju.check(at(done.result, 0), allow=[ju.Status.EMPTY_REQUEST])
    return at(done.result.variables, 0, 0), at(done.result.variables, 0, 1)


def answered(config: Config, bench: Bench, name: str, original: ju.Variables, seed: int) -> ju.Variables:
    """The original after a method."""
    chosen, _ = token_methods.chosen(config.configs, name)
    values = {key: np.array([value], np.float32) for key, value in chosen.items()}
    keys = jax.random.split(jax.random.fold_in(jax.random.key(bench.plan.draw), 1000 + seed), 1)
    done = bench.answers[name]([((original, values), bench.world.asked, merged(bench.world), keys)])
    return at(done.result.variables, 0, 0)


def looking(config: Config, world: World, texts: Texts) -> Callable[..., language.Neighbourhood]:
    """`(embeddings, variables) -> Neighbourhood` of one model; the variants are those of the embeddings."""

    @jax.jit
    def look(embeddings: jax.Array, variables: ju.Variables, rows: ju.Examples) -> language.Neighbourhood:
        table = language.neighbour_table(embeddings, config.neighbours)
        return language.neighbourhood(
            lambda part: world.model.loss(world.model.forward(variables, part.inputs), part), rows, rows.inputs >= 0, table,
            jax.random.key(config.draw), distance=language.embedding_distance(embeddings), num_variants=config.variants,
            rate=config.rate, chunk=16,
        )  # fmt: skip

    return lambda embeddings, variables: look(embeddings, variables, texts.rows)


def telling(config: Config, texts: Texts) -> Callable[..., dict[str, jax.Array]]:
    """`(unlearned, retrained) -> numbers of all splits`."""

    @jax.jit
    def told(unlearned: language.Neighbourhood, retrained: language.Neighbourhood) -> dict[str, jax.Array]:
        keys = jax.random.split(jax.random.key(config.draw), config.splits)
        kinds = jnp.asarray(texts.kinds)
        found = jax.lax.map(
            lambda key: language.remind(unlearned, retrained, kinds, key, test_share=0.5, drop_degenerate=True), keys
        )
        return {
            "auc": found.unlearned.features.unseen_auc, "retrained": found.retrained.features.unseen_auc,
            "excess": found.excess, "alone": found.unlearned.loss_alone.unseen_auc, "gain": found.unlearned.gain,
            "retrained_gain": found.retrained.gain,
        }  # fmt: skip

    return told


def reported(config: Config, console: Console, rows: dict[str, list[dict[str, float]]], texts: Texts) -> dict[str, Any]:
    """Write the page and the JSON."""
    means = []
    for name, seeds in rows.items():
        row: dict[str, Any] = {"method": name, **{key: float(np.mean([one[key] for one in seeds])) for key in seeds[0]}}
        means.append(row | {"low": min(one["auc"] for one in seeds), "high": max(one["auc"] for one in seeds)})
    counts = np.bincount(texts.kinds, minlength=3)
    caption = f"{config.seeds} originals, {config.splits} splits; {counts[0]} retained, {counts[1]} held-out, {counts[2]} rows"
    table = Table(COLUMNS, means, f"{caption} to forget")
    summary = script.summary_of(config, rows=means, seeds=rows, texts=counts.tolist()) | {
        "config": {**vars(config), "out": None, "configs": None, "scale": config.scale.recorded()}
    }
    return script.finish(
        config, console, "remind", summary, title="jaxunlearn: the loss around unlearned texts", intro=INTRO,
        sections=[Section("What is told apart", "", [table])], tables=[table], notes=[in_words(row) for row in means],
    )  # fmt: skip


def in_words(row: dict[str, Any]) -> str:
    """What the classifier can tell of one method.

    Args:
        row: of the table.
    """
    more = "more" if row["excess"] >= 0 else "less"
    return (
        f"After {row['method']}, forgotten texts are told from unseen ones with an AUC of {row['auc']:.2f}, "
        f"{abs(row['excess']):.2f} {more} than in a retrained model; the loss of the text alone gives {row['alone']:.2f}."
    )


if __name__ == "__main__":
    script.run(main, Config, __doc__)
