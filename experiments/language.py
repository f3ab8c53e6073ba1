"""Does a language model forget a secret, and does it come back? Canaries, unlearned in adapters over one frozen base.

    python experiments/language.py                                                          # a register of nobody, offline
    python experiments/language.py --text FILE                                              # your own text; --tofu, --muse
    python experiments/language.py --model DIR                                              # a checkpoint that is trained on
    python experiments/language.py --tune                                                   # choose settings on another draw
    python experiments/language.py --smoke                                                  # tiny, to see whether it runs

A small decoder learns texts about people, and their codes, which stand there 1, 4, 16 or 64 times. Sixteen requests, each for
one code and for the text about the same person, are answered in one compiled call by several methods, in LoRA adapters over a
base that is held once, and in all weights for comparison. Beside them: models retrained without it, again with another seed,
and doing nothing. Then the model reads the text again, without the code, and its weights are rounded to 8 bits: what comes back
was only hidden. Settings come from experiments/configs, where `--tune` puts them, from other people and other codes.

Written to the folder `--out`: `original-0` and so on (the models, as other libraries read them), `results.jsonl` (a line as
soon as a method is done with an original; an interrupted run with the same configuration goes on behind it), `language.json`
and `report.html`.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

import jaxunlearn as ju
from experiments.common import planted, script, settings, text, token_methods, token_page, token_runs, weights
from experiments.common.log import append, read_log, told_by_first
from experiments.common.outcome import AGAIN, NOTHING, RETRAINED
from experiments.common.planted import World
from experiments.common.running import at
from experiments.common.scale import leads
from experiments.common.script import Advance
from experiments.common.token_runs import KINDS, Bench, Plan, scenario_of
from experiments.common.token_search import search
from experiments.common.token_verdicts import REPETITIONS, verdict

Lines = dict[tuple[str, str], dict[str, Any]]  # of the log, by original and kind of models


@dataclass
class Config(script.Base):
    """Command line of the script."""

    text: Path | None = None
    """Text file (paragraphs), or JSON with texts, in place of the register."""
    tofu: Path | None = None
    """Folder with the files of TOFU, whose questions and answers are the texts."""
    muse: Path | None = None
    """Folder with one corpus of MUSE, `raw`, `knowmem` and so on, whose raw texts are the texts."""
    model: Path | None = None
    """Folder with a checkpoint of the form of Llama or GPT-2 (config.json, safetensors, tokenizer.json) that is trained on, in
    place of a fresh decoder of characters."""
    documents: int = 40
    """Training texts."""
    held_out: int = 64
    """Texts that no model sees; of fewer the loss of two models differs by chance by more than what is looked for."""
    each: int = 4
    """Canaries, and requests, of each number of repetitions."""
    length: int = 64
    """Of a row, in tokens."""
    width: int = 64
    """Of a fresh decoder."""
    layers: int = 2
    """Of a fresh decoder."""
    training_steps: int = 300
    """Steps of training and retraining."""
    learning_rate: float = 2e-3
    """Of training and retraining; about 1e-4 for a checkpoint of usual size. At twice that, held-out loss is lower, and
    retrained models lie almost three times as far from each other, so that the same difference takes more originals to see."""
    batch_size: int = 8
    """Rows of a step of training."""
    forget_batch_size: int = 4
    """Rows of the forget set in a step of unlearning."""
    retain_batch_size: int = 16
    """Retained rows in a step of unlearning."""
    unlearning_steps: int = 20
    """Steps of every method."""
    rank: int = 32
    """Of adapters. Steps of Adam on many coordinates, at a lower rate, forget as much and damage less."""
    methods: Annotated[tuple[str, ...], script.unless_given("all, in adapters")] = ()
    """Which ones; with `_all_weights` behind the name in all weights, else in adapters."""
    seeds: int = 3
    """Original models."""
    controls: int = 4
    """Requests of each original, for canaries of 16 repetitions, that models are retrained for, and retrained again; of
    few canaries the floor depends on what they happen to be."""
    relearning_steps: int = 5
    """Steps on the text that was forgotten, without the code."""
    relearning_rate: float = 1e-3
    """Learning rate of these."""
    draw: int = 0
    """Seed of everything."""
    tune: bool = False
    """Choose settings instead, and write them to --configs."""
    tune_draw: int = 1
    """Seed of the people, codes and models that settings are chosen on; texts of your own stay the same."""
    configs: Path = settings.CONFIGS
    """Folder of settings."""
    out: Path = Path("out/language")


SMOKE: dict[str, Any] = {
    "documents": 17, "held_out": 1, "width": 8, "layers": 1, "training_steps": 2, "batch_size": 2, "forget_batch_size": 1,
    "retain_batch_size": 2, "unlearning_steps": 3, "rank": 1, "seeds": 1, "relearning_steps": 1, "controls": 1,
}  # fmt: skip


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, **SMOKE, methods=config.methods or ("idk",))
    config = replace(config, methods=tuple(dict.fromkeys(config.methods)) or token_methods.IN_ADAPTERS)
    if strange := set(config.methods) - set(token_methods.NAMES):
        raise SystemExit(f"--methods knows {', '.join(token_methods.NAMES)}, not {', '.join(sorted(strange))}")
    if config.tune and config.draw == config.tune_draw:
        raise SystemExit(f"settings must not be chosen on what is reported: --tune-draw must not be --draw={config.draw}")
    if config.controls < 1 or config.seeds < 1 or config.each < 1:
        raise SystemExit("--controls, --seeds and --each must be at least 1: floors are those of retrained models")
    if sum(path is not None for path in (config.text, config.tofu, config.muse)) > 1:
        raise SystemExit("--text, --tofu and --muse exclude each other")
    mesh, console = script.begin(config)
    return tune(config, mesh, console) if config.tune else compare(config, mesh, console)


# The world


def build(config: Config) -> World:
    """Texts, canaries and requests."""
    start = started(config)
    texts = None
    if (own := paragraphs(config)) is not None:  # joined until they are as long as a text of the register
        size = 4 * config.length
        texts, joined = [], ""
        for paragraph in own:
            joined = f"{joined}\n{paragraph}".strip()
            if len(joined) > size - 20:
                texts, joined = [*texts, joined[:size]], ""
    form = {"width": config.width, "layers": config.layers, "heads": 4, "hidden": 2 * config.width, "remat": False}
    return planted.build(
        documents=config.documents, held_out=config.held_out, repetitions=REPETITIONS, each=config.each, length=config.length,
        form=form if start is None else None, start=start, seed=config.draw, texts=texts,
    )  # fmt: skip


def started(config: Config) -> planted.Start | None:
    """The checkpoint that is trained on, in float32."""
    if config.model is None:
        return None
    form, found, variables = weights.load(config.model, dtype="float32")
    return planted.Start(form, found, variables, text.tokenizer_of(config.model, found.vocabulary))


def paragraphs(config: Config) -> list[str] | None:
    """Texts of the user's own: those that are held out, those that are forgotten, and the others, in this order."""
    if config.text is not None:
        return text.read_texts(config.text)
    if config.tofu is not None:
        found = text.read_tofu(config.tofu)
        pairs = [*(found.held_out or found.retain[-len(found.forget) :]), *found.forget, *found.retain]
        return [f"{pair.question}\n{pair.answer}" for pair in pairs]
    if config.muse is not None:
        corpus = text.read_muse(config.muse)
        return [*corpus.held_out, *corpus.forget, *corpus.retain]
    return None


def bench_of(config: Config, mesh: Mesh | None) -> Bench:
    """The world and its programs."""
    sizes = token_methods.Steps(config.unlearning_steps, config.forget_batch_size, config.retain_batch_size)
    plan = Plan(
        config.training_steps, config.batch_size, config.learning_rate, sizes, config.rank, config.relearning_steps,
        config.relearning_rate, config.controls, config.draw,
    )  # fmt: skip
    return token_runs.bench(build(config), plan, config.methods, config.scale, mesh)


# The search


def tune(config: Config, mesh: Mesh | None, console: Console) -> dict[str, Any]:
    """Choose settings on another draw."""
    bench = bench_of(replace(config, draw=config.tune_draw), mesh)
    with script.progress(console, "search", 1 + len(config.methods)) as advance:
        found = search(bench, config.methods, config.configs, advance)
    page = token_page.search_page(found)
    return script.finish(
        config, console, "language_search", summary(config, **found), title=token_page.TITLE, intro=token_page.INTRO, **page
    )


# The comparison and its log


def identity(config: Config) -> dict[str, Any]:
    """What two runs must have in common to go into one log, besides the settings: all that moves a number in it."""
    free = ("methods", "seeds", "out", "configs", "smoke", "tune", "tune_draw")
    kept = {name: value for name, value in flags(config).items() if name not in free}
    return json.loads(json.dumps({**kept, "scale": config.scale.recorded()}))


def flags(config: Config) -> dict[str, Any]:
    """The flags, without places on this machine."""
    places = {name: path and path.name for name in ("text", "tofu", "muse", "model") for path in [getattr(config, name)]}
    return {**vars(config), **places}


def summary(config: Config, **found: Any) -> dict[str, Any]:
    """What is written as JSON."""
    made = script.summary_of(config, **found)
    return made | {"config": {**flags(config), "out": None, "configs": None, "scale": config.scale.recorded()}}


def compare(config: Config, mesh: Mesh | None, console: Console) -> dict[str, Any]:
    """Answer all requests to every original by every method, as far as the log does not hold it yet, and report."""
    chosen, searches = {}, {}
    for name in config.methods:
        chosen[name], searches[name] = token_methods.chosen(config.configs, name)
    log, seeds = config.out / "results.jsonl", range(config.seeds)
    wanted = [(scenario_of(seed), name) for seed in seeds for name in (*KINDS, *config.methods)]
    lines, problem = {}, ""
    if leads():
        try:
            held = {(scenario, name): chosen[name] for scenario, name in wanted if name in chosen}
            lines = read_log(log, identity(config), held)
        except ValueError as error:
            problem = str(error)
    refused, pending = told_by_first(bool(problem), [pair not in lines for pair in wanted])
    if refused:
        raise SystemExit(problem or "the first process refused the configuration, see its message")
    todo = [pair for pair, is_pending in zip(wanted, pending, strict=True) if is_pending]
    if len(todo) < len(wanted):
        console.print(f"{log}: {len(wanted) - len(todo)} of {len(wanted)} results are there already")
    for line in told(searches):
        console.print(line)
    bench = bench_of(config, mesh)
    with script.progress(console, "language", len(todo)) as advance:
        for seed in seeds:
            names = [name for scenario, name in todo if scenario == scenario_of(seed)]
            if names:
                answer_original(config, bench, seed, names, chosen, lines, advance)
    if not leads():
        return {}
    by_name = {name: [lines[scenario_of(seed), name] for seed in seeds] for name in (*KINDS, *config.methods)}
    found = {name: token_runs.found_in(x) for name, x in by_name.items()}
    for name in config.methods:
        console.print(f"{name}: {verdict(bench.world.repetitions, found, name)}")
    memory = token_page.memory(bench.world, bench.parts)
    page = token_page.page(bench.world, config.methods, by_name, found, memory)
    made = summary(config, **page.pop("summary"), searches=searches)
    return script.finish(
        config, console, "language", made, title=token_page.TITLE, intro=token_page.INTRO,
        **{**page, "notes": [*page["notes"], *told(searches)]},
    )  # fmt: skip


def answer_original(
    config: Config, bench: Bench, seed: int, names: list[str], chosen: dict[str, dict[str, float]], lines: Lines,
    advance: Advance,
) -> None:  # fmt: skip
    """All that is pending for one original; a line of the log for each kind of models."""
    every = np.arange(len(bench.world.canaries))

    def keep(name: str, places: np.ndarray, models: ju.Variables, **known: Any) -> None:
        line = token_runs.line_of(name, seed, places, token_runs.measured(bench, models, places), **known)
        if leads():
            append(config.out / "results.jsonl", line)
            lines[scenario_of(seed), name] = line
        rate = "" if not known.get("seconds") else f", {known['tokens'] / known['seconds']:,.0f} tokens/s"
        advance(f"seed {seed}: {name} is done{rate}", done=1)

    missing = [name for name in KINDS if name in names]
    if missing or jax.process_count() > 1 or not token_runs.original_at(config.out, seed).exists():
        advance(f"seed {seed}: training and retraining")
        base, controls, seconds, tokens = token_runs.trained(bench, seed)
        if leads():
            token_runs.save_original(config.out, bench.world, seed, base)
        models = {RETRAINED: at(controls, 0), AGAIN: at(controls, 1), NOTHING: token_runs.repeated(base, len(every))}
        for name in missing:
            places, cost = (every, {}) if name == NOTHING else (bench.chosen, {"seconds": seconds, "tokens": tokens})
            keep(name, places, models[name], **cost)
    else:
        base = token_runs.load_original(config.out, seed)
    for name in names:
        if name in chosen:
            advance(f"seed {seed}: {name}")
            answer, seconds, tokens = token_runs.answered(bench, name, base, chosen[name], every, seed)
            known = {"settings": chosen[name], "status": answer.status, "seconds": seconds, "tokens": tokens}
            unmoved = None if token_methods.is_whole(name) else int(np.sum(answer.unmoved))
            keep(name, every, answer.variables, unmoved=unmoved, **known)


def told(searches: dict[str, dict[str, Any] | None]) -> list[str]:
    """Where settings come from."""
    searched = [search for search in searches.values() if search is not None]
    missing = [name for name, search in searches.items() if search is None]
    lines = []
    if searched:
        draws = sorted({draw for search in searched for draw in search["draws"]})
        most, count = max(x["requests"] for x in searched), sum(x["points"] for x in searched)
        where = f"draw {', '.join(map(str, draws))}, {most} requests"
        lines.append(f"settings of {len(searched)} methods: {count} points in all, tried on {where}")
    return [*lines, *([f"{settings.NOT_SEARCHED}, for {', '.join(missing)}: --tune searches them"] if missing else [])]


if __name__ == "__main__":
    script.run(main, Config, __doc__)
