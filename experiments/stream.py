"""Two hundred requests, one after another: how far does a model drift from retrained ones, and when is it time to retrain?

    python experiments/stream.py                                  # digits, three methods
    python experiments/stream.py --smoke                          # tiny, for a first look whether it runs
    python experiments/stream.py --methods salun --requests 400 --rows 1200

Every model answers request after request, each from its last weights; removed rows stay removed. At checkpoints of the stream
models are retrained without all rows so far: accuracies, KLoM and distances of the weights stand beside theirs, and beside
those of a second set of retrained models, the floor. Then the question when to retrain: a rule that watches what a service can
see without any retrained model, chosen on another stream, is compared with never, always, the best fixed interval and the best
schedule in hindsight. Written to the folder `--out`: `report.html` and `stream.json`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

import jaxunlearn as ju
from experiments.common import methods, schedule, script, settings, stream_page, study_page
from experiments.common.comparison import COMPARED, Bench, programs, stream_of_keys, trained
from experiments.common.outcome import AGAIN, NOTHING
from experiments.common.stream_page import SETS
from experiments.common.study import Study
from jaxunlearn.audit import Interval, t_interval
from jaxunlearn.requests import bucket
from jaxunlearn.tree import norm

PRICES = (0.1, 0.3, 1.0, 3.0, 10.0)  # accuracy times requests: 1 is a gap of one point over a hundred requests
HELD_OUT_LOSS, UNLIKE_HELD_OUT = "rise of the held-out loss since the last retraining", "forgotten rows unlike held-out ones"


@dataclass
class Config(script.OnNetworks):
    """Command line of the stream."""

    methods: tuple[str, ...] = ("gradient_difference", "scrub", "salun")
    """Which methods of `jaxunlearn.METHODS`."""
    rows: int = 800
    requests: int = 200
    """Requests of the stream."""
    request_rows: int = 1
    """Rows of a request."""
    unlearning_steps: int = 20
    """Steps of a method for each request."""
    checkpoints: tuple[int, ...] = (5, 10, 25, 50, 100, 200)
    """Requests after which models are retrained; multiples of --call."""
    call: int = 5
    """Requests in one compiled call."""
    models: int = 24
    """Models of each kind."""
    seeds: int = 8
    """Models that the rule is tried on, and as many that it is chosen on."""
    blocks: int = 8
    """Points of the stream at which a service may retrain."""
    out: Path = Path("out/stream")


class Known(NamedTuple):
    """What models know; leading axis of models."""

    retain: Any  # [n], accuracies
    forgotten: Any  # [n], on the rows of all requests so far; NaN before the first
    test: Any  # [n]
    held_out: Any  # [n]
    held_out_loss: Any  # [n]
    train_margins: Any  # [n, e]
    test_margins: Any  # [n, e]


class World(NamedTuple):
    """Programs, and the rows that are asked for."""

    bench: Bench
    setting: Study
    rows: Int[np.ndarray, "t k"]
    answer: dict[str, Callable[..., Any]]  # by method: some requests, for some models
    measure: Callable[..., Known]


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(
            config, methods=config.methods[:1], rows=120, requests=8, unlearning_steps=2, training_steps=20, checkpoints=(2, 8),
            call=2, models=2, seeds=2, blocks=2,
        )  # fmt: skip
    config = replace(config, methods=tuple(dict.fromkeys(map(methods.known, config.methods))))
    per_block = check(config)
    _, console = script.begin(config)
    first = world(config, config.request_seed)
    total = len(config.methods) * (config.requests + config.requests * (config.blocks + 1)) + len(config.checkpoints)
    with script.progress(console, "stream", total) as advance:
        found, bad = drift(config, first, advance)
        second = first._replace(rows=asked_rows(config, first.setting, config.request_seed + 1000))
        seeds = range(1000, 1000 + config.seeds), range(2000, 2000 + config.seeds)
        tried = harms(config, first, seeds[0], per_block, advance)
        chosen_on = harms(config, second, seeds[1], per_block, advance)
    rows = [row for name in config.methods for row in regrets(name, tried[name], chosen_on[name], per_block)]
    drifting = stream_page.drift(found, bad, config.models)
    retraining = stream_page.when_to_retrain(rows, per_block, config.seeds)
    tables = {"drift": study_page.as_json(drifting), "when_to_retrain": study_page.as_json(retraining)}
    summary = script.summary_of(config, **tables, not_ok=bad)
    return script.finish(
        config, console, "stream", summary, title=f"jaxunlearn stream: {config.dataset}", intro=INTRO,
        sections=[drifting, retraining], tables=[drifting.tables[0], retraining.tables[0]],
        notes=[*stream_page.drift_in_words(found), *stream_page.retraining_in_words(rows)],
    )  # fmt: skip


def check(config: Config) -> int:
    """Requests per block; SystemExit where numbers do not divide or a method does not fit a stream."""
    if min(config.seeds, config.models) < 2:
        raise SystemExit("--seeds and --models must be at least 2: intervals are taken over models")
    per_block = config.requests // config.blocks
    if config.requests % config.blocks or per_block % config.call or any(x % config.call for x in config.checkpoints):
        raise SystemExit(
            f"--requests {config.requests} must be a multiple of --blocks {config.blocks}, and a block and the checkpoints "
            f"multiples of --call {config.call}"
        )
    if not config.checkpoints or max(config.checkpoints) > config.requests:
        raise SystemExit(f"checkpoints lie between --call and --requests {config.requests}, got {config.checkpoints}")
    if config.requests * config.request_rows >= config.rows:
        raise SystemExit(f"{config.requests} requests of {config.request_rows} rows leave nothing of --rows {config.rows}")
    for name in config.methods:
        stale = ju.METHODS[name].reads & set(ju.slots.SLOTS)
        if stale:
            raise SystemExit(
                f"{name} reads {', '.join(sorted(stale))}, which belong to the model in front of the stream: after one request "
                "they are STALE"
            )
    return per_block


def asked_rows(config: Config, setting: Study, seed: int) -> Int[np.ndarray, "t k"]:
    """Random rows, none twice."""
    order = np.random.default_rng([seed, 4]).permutation(len(setting.data.present))
    return order[: config.requests * config.request_rows].reshape(config.requests, config.request_rows)


def world(config: Config, request_seed: int) -> World:
    """Programs for a stream."""
    setting = config.setting()
    if setting.held_out is None or setting.num_classes == 0:
        raise SystemExit("the rule watches held-out rows of a classification: leave some with --rows")
    bench = programs(setting, network=config.network, num_steps=config.unlearning_steps, scale=config.scale, mesh=None)
    for name in config.methods:
        why = methods.left_out(name, setting, on_classes=False, seeds=config.seeds)
        if why is not None:
            raise SystemExit(f"{name} {why}")

    def answer(name: str) -> Callable[..., Any]:
        chosen = settings.load(settings.CONFIGS, name, "sequential", config.study_key)[0]
        given: dict[str, Any] = {**methods.given(name, setting, config.network), **chosen}
        unlearn = methods.build(
            name, bench.setting.model, num_steps=config.unlearning_steps, batch_size=config.request_rows,
            retain_batch_size=setting.batch_size, **given,
        )  # fmt: skip
        return ju.batched(ju.streamed(unlearn), in_axes=(0, None, None, 0), chunk=config.scale.chunk)

    return World(
        bench, setting, asked_rows(config, setting, request_seed), {name: answer(name) for name in config.methods},
        measurer(setting),
    )  # fmt: skip


def measurer(setting: Study) -> Callable[..., Known]:
    """The program that looks at models: `(variables [n], present [e]) -> Known` on the host."""
    targets, held_out, test = setting.data.train.targets, setting.held_out, setting.test
    assert held_out is not None  # checked before

    def share(right: Array, weights: Array) -> Array:
        return jnp.sum(right * weights) / jnp.sum(weights)

    @jax.jit
    def measure(variables: ju.Variables, present: Array) -> Known:
        def one(model: ju.Variables) -> Known:
            train, tested, unseen = (
                ju.audit.predict(setting.model, model, part) for part in (setting.data.train, test, held_out)
            )
            right, test_right, unseen_right = (
                jnp.argmax(logits, axis=-1) == labels
                for logits, labels in ((train, targets), (tested, test.targets), (unseen, held_out.targets))
            )
            return Known(
                share(right, present), share(right, 1 - present), jnp.mean(test_right), jnp.mean(unseen_right),
                jnp.mean(ju.losses.cross_entropy(ju.Outputs(unseen), held_out)),
                ju.audit.margins(train, targets), ju.audit.margins(tested, test.targets),
            )  # fmt: skip

        return jax.lax.map(one, variables)

    return lambda variables, present: jax.device_get(measure(variables, jnp.asarray(present)))


# The stream


def present_after(setting: Study, rows: Int[np.ndarray, "t k"]) -> Float[np.ndarray, " n"]:
    """1 on the rows that are left."""
    present = np.ones(len(setting.data.present), np.float32)
    present[rows.reshape(-1)] = 0
    return present


def keys_of(purpose: str, seeds: Sequence[int]) -> PRNGKeyArray:
    """One key per model."""
    return jax.vmap(jax.random.fold_in, (None, 0))(stream_of_keys(0, "stream", purpose), jnp.asarray(seeds, jnp.uint32))


def retrained(one: World, count: int, keys: PRNGKeyArray) -> ju.Variables:
    """Models trained without the rows of the first requests; of none, the originals."""
    most = bucket(one.rows.size)
    rows = one.rows[:count].reshape(-1)
    request = ju.ForgetRequest(
        jnp.asarray(np.pad(rows, (0, most - len(rows))), jnp.int32), jnp.asarray(np.arange(most) < len(rows), jnp.float32)
    )
    return trained(one.bench, one.setting, request, keys).result.variables


def go_on(
    config: Config, one: World, name: str, variables: ju.Variables, start: int, end: int, keys: PRNGKeyArray
) -> tuple[ju.Variables, int]:
    """Answer requests `start` to `end - 1`; the models after them, and how many answers were not OK."""
    present, bad = present_after(one.setting, one.rows[:start]), 0
    for begin in range(start, end, config.call):
        rows = jnp.asarray(one.rows[begin : begin + config.call], jnp.int32)
        requests = ju.ForgetRequest(rows, jnp.ones(rows.shape))
        data = one.setting.data._replace(present=jnp.asarray(present))
        calls = jax.vmap(lambda key, begin=begin: jax.random.split(jax.random.fold_in(key, begin), config.call))(keys)
        result = one.answer[name](variables, data, requests, calls)
        ju.check(result, allow=COMPARED)
        bad += int(np.sum(np.asarray(result.status) != ju.Status.OK))
        variables, present = result.variables, np.asarray(result.extra["present"])[0]
    return variables, bad


def drift(config: Config, one: World, advance: script.Advance) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows of the table of the drift, and how many answers of each method were not OK."""
    seeds = range(config.models)
    training, second, unlearning = (keys_of(purpose, seeds) for purpose in ("train", "again", "unlearn"))
    advance("training the originals")
    first = retrained(one, 0, training)
    now, bad = dict.fromkeys(config.methods, first), dict.fromkeys(config.methods, 0)
    found, before = [], 0
    for count in sorted(set(config.checkpoints)):
        present = present_after(one.setting, one.rows[:count])
        advance(f"retraining after {count} requests", done=1)
        reference, other = (retrained(one, count, keys) for keys in (training, second))
        known = one.measure(reference, present)
        compared = {NOTHING: first}
        for name in config.methods:
            advance(f"{name}: requests up to {count}")
            now[name], more = go_on(config, one, name, now[name], before, count, unlearning)
            bad[name] += more
            compared[name] = now[name]
            advance(done=count - before)
        compared[AGAIN] = other
        for name, models in compared.items():
            seen = one.measure(models, present)
            klom = [np.asarray(ju.audit.klom(getattr(seen, x), getattr(known, x))) for x in ("train_margins", "test_margins")]
            found.append({
                "requests": count,
                "method": name,
                **{x: over_models(getattr(seen, x) - getattr(known, x)) for x in SETS},
                "klom_forgotten": float(klom[0][present == 0].mean()),
                "klom_retain": float(klom[0][present == 1].mean()),
                "klom_test": float(klom[1].mean()),
                "moved": None if name == AGAIN else distance(models, first),
                "to_retrained": distance(models, reference),
            })  # fmt: skip
        before = count
    return found, bad


def distance(models: ju.Variables, others: ju.Variables) -> Interval:
    """`||w - w'|| / ||w'||` over all parameters, of models one by one."""
    both = [jax.tree.map(lambda x: np.asarray(x, np.float32), x.params) for x in (models, others)]
    far, length = (np.asarray(jax.vmap(norm)(x)) for x in (jax.tree.map(np.subtract, *both), both[1]))
    return over_models(far / length)


def over_models(values: Float[np.ndarray, " n"]) -> Interval:
    """Mean over models, with its interval."""
    return t_interval(jnp.asarray(values))


# When to retrain


class Tried(NamedTuple):
    """What happens to each model from every start, [models, blocks + 1, blocks + 1]."""

    harm: Float[np.ndarray, "n s t"]
    observed: dict[str, Float[np.ndarray, "n s t"]]


def harms(config: Config, one: World, seeds: Sequence[int], per_block: int, advance: script.Advance) -> dict[str, Tried]:
    """Models that are retrained after every block go on from there to the end of the stream.

    Harm is the mean over retained, forgotten and test rows of how far the accuracy is from the mean of retrained models, each
    left out of the mean that it is compared with.
    """
    training, unlearning = (keys_of(purpose, seeds) for purpose in ("train", "unlearn"))
    count = config.blocks + 1
    presents = [present_after(one.setting, one.rows[: place * per_block]) for place in range(count)]
    advance("retraining after every block")
    starts = [retrained(one, place * per_block, training) for place in range(count)]
    fresh = [one.measure(models, present) for models, present in zip(starts, presents, strict=True)]
    tried = {}
    for name in config.methods:
        harm = np.full((len(seeds), count, count), np.nan)
        observed = {x: harm.copy() for x in (HELD_OUT_LOSS, UNLIKE_HELD_OUT)}
        for start in range(count):
            models = starts[start]
            for place in range(start, count):
                if place > start:
                    span = (place - 1) * per_block, place * per_block
                    models, _ = go_on(config, one, name, models, *span, unlearning)
                    advance(f"{name}: from block {start} on", done=per_block / 2)
                seen = one.measure(models, presents[place])
                if place > 0:
                    harm[:, start, place] = harm_of(seen, fresh[place])
                    observed[UNLIKE_HELD_OUT][:, start, place] = np.abs(seen.forgotten - seen.held_out)
                observed[HELD_OUT_LOSS][:, start, place] = seen.held_out_loss - fresh[start].held_out_loss
        tried[name] = Tried(harm, observed)
    return tried


def harm_of(seen: Known, fresh: Known) -> Float[np.ndarray, " n"]:
    """Distance of the accuracies from those of retrained models."""
    apart = []
    for name in SETS:
        values, others = (np.asarray(getattr(x, name), np.float64) for x in (seen, fresh))
        left_out = (others.sum() - others) / (len(others) - 1)
        apart.append(np.abs(values - left_out))
    return np.mean(apart, axis=0)


def regrets(name: str, tried: Tried, chosen_on: Tried, per_block: int) -> list[dict[str, Any]]:
    """What the rule costs on a stream that it was not chosen on, for every price; each model is a service of its own."""
    models = range(len(tried.harm))

    def of_model(one: Tried, place: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return one.harm[place], {x: values[place] for x, values in one.observed.items()}

    rows = []
    for price in PRICES:
        pairs = [of_model(chosen_on, place) for place in range(len(chosen_on.harm))]
        rule = schedule.chosen_rule([x for x, _ in pairs], [x for _, x in pairs], price, per_block)
        plans: dict[str, list[schedule.Plan]] = {"rule": [], "fixed": [], "never": [], "always": [], "best": []}
        intervals = []
        for place in models:
            harm, observed = of_model(tried, place)
            plans["rule"].append(schedule.by_rule(harm, price, per_block, rule, observed))
            blocks, plan = schedule.best_interval(harm, price, per_block)
            intervals.append(blocks)
            plans["fixed"].append(plan)
            plans["never"].append(schedule.follow(harm, price, per_block, lambda since, t: False))
            plans["always"].append(schedule.follow(harm, price, per_block, schedule.every(1)))
            plans["best"].append(schedule.best_schedule(harm, price, per_block))
        costs = {x: np.array([plan.cost for plan in found]) for x, found in plans.items()}
        rows.append({
            "method": name, "price": price, "observable": rule.observable,
            "threshold": rule.threshold if np.isfinite(rule.threshold) else None,
            "retrainings": float(np.mean([len(plan.retrained) for plan in plans["rule"]])),
            "fixed_retrainings": float(np.mean([len(plan.retrained) for plan in plans["fixed"]])),
            **{x: float(found.mean()) for x, found in costs.items()},
            **{f"over_{x}": over_models(costs["rule"] - costs[x]) for x in ("fixed", "never", "always", "best")},
        })  # fmt: skip
    return rows


INTRO = """\
A model answers request after request, each from the weights that the last one left. Retrained models, trained from fresh
weights without all rows so far, are the reference at every checkpoint, and a second set of them is the floor: what those two
differ by, no method can be blamed for."""


if __name__ == "__main__":
    script.run(main, Config, __doc__)
