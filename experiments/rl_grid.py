"""Do agents forget a map? Reinforcement unlearning in grid worlds, beside agents that never saw the map.

    python experiments/rl_grid.py                                                           # offline, minutes
    python experiments/rl_grid.py --agent dqn                                               # agents that learn by acting
    python experiments/rl_grid.py --smoke                                                   # tiny, to see whether it runs

Agents learn twenty maps; one of them is revoked, by every request another one. `decremental` answers all requests to all agents
in one compiled call. Before anything is unlearned the agents must succeed on all maps: forgetting what was never learnt is
no result. Agents that see only what is around them are shown besides, for which most states of a map look like states of
others.

Utility is the mean return and the share of successes on the other maps, with intervals. The measure of the authors' code
is not used: it normalises the running totals of rewards within every model, so that it is 25 for an agent that never reaches a
goal and for one that always does. Its forget quality compares such ramps too. Written to the folder `--out`: `report.html`
with the maps, `rl_grid.json`.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float
from matplotlib.figure import Figure

import jaxunlearn as ju
from experiments.benchmarks.timing import interleaved
from experiments.common import models, script
from experiments.common.outcome import NOTHING, RETRAINED
from experiments.common.report import Column, Section, Table
from experiments.common.running import Run, reusable
from experiments.common.training import form
from jaxunlearn import rl

DECREMENTAL, POISONED, RANDOM = "decremental", "environment_poisoning", "random actions"
LEAST = 0.95  # share of successes of the trained agents, on every side
SCALE = 20.0  # of what a fresh network gives, in rewards
COLUMNS = [
    Column("method", "method"),
    Column("return_revoked", "return, revoked map", ".0f"),
    Column("return_retained", "return, others", ".0f"),
    Column("success_revoked", "success, revoked map", ".1%"),
    Column("success_retained", "success, others", ".1%"),
    Column("agreement", "actions as before, revoked", ".1%"),
    Column("distance", "distance to retrained", ".1f"),
    Column("inference", "inference score", "+.3f"),
    Column("milliseconds", "ms/request", ".0f"),
]


@dataclass
class Config(script.Base):
    """Command line of the script."""

    agent: Literal["exact", "dqn"] = "exact"
    """How agents learn: by regression on the exact values of all states, or by deep Q-learning."""
    draw: int = 0
    """Seed of the maps and of everything else."""
    maps: int = 20
    size: int = 10
    """Rows and columns of a map."""
    obstacles: int = 10
    seeds: int = 5
    """Agents."""
    requests: int = 16
    """Maps that are revoked, each by itself."""
    references: int = 4
    """Requests for which agents are retrained, poisoned and attacked as well."""
    widths: tuple[int, ...] = (128, 128)
    """Hidden units of the agents."""
    training_steps: int = 2000
    """Steps of training and retraining, with `--agent exact`."""
    training_batch: int = 128
    training_rate: float = 3e-3
    dqn_steps: int = 20_000
    """Steps in every map, and updates, with `--agent dqn`."""
    unlearning_steps: int = 600
    unlearning_rate: float = 1e-3
    batch_size: int = 32
    """States of each side in a step of unlearning."""
    rounds: int = 3
    """Changes of the revoked map that poisoning makes."""
    round_steps: int = 60
    """Updates of the agent after a change."""
    candidates: int = 3
    """Changes that are tried side by side."""
    poisoning_rate: float = 1e-3
    episodes: int = 10
    """Of every agent in every map."""
    epsilon: float = 0.05
    """Share of random actions while agents are watched."""
    horizon: int = 100
    """Steps after which an episode has failed."""
    generations: int = 30
    """Of the attack that infers a map from actions."""
    population: int = 64
    local_seeds: int = 2
    """Agents that see only what is around them."""
    timing_steps: int = 50
    """Steps of unlearning that are timed."""
    timing_rounds: int = 3
    out: Path = Path("out/rl_grid")


SMOKE: dict[str, Any] = {
    "maps": 3, "size": 4, "obstacles": 2, "seeds": 2, "requests": 2, "references": 2, "widths": (128,), "training_steps": 1000,
    "training_batch": 32, "training_rate": 1e-2, "dqn_steps": 20, "unlearning_steps": 60, "rounds": 1, "round_steps": 3,
    "candidates": 2, "episodes": 2, "epsilon": 0.0, "horizon": 20, "generations": 2, "population": 4, "timing_steps": 2,
    "timing_rounds": 1,
}  # fmt: skip


class World(NamedTuple):
    """What all parts of the script share."""

    config: Config
    mesh: Mesh | None
    maps: rl.Grid
    key: jax.Array

    def draw(self, number: int, *shape: int) -> jax.Array:
        """Keys of one part of the script."""
        return jax.random.split(jax.random.fold_in(self.key, number), shape)

    def run(self, function: Any, **options: Any) -> Run:
        """A function for many agents, compiled once."""
        return reusable(function, chunk=self.config.scale.chunk, mesh=self.mesh, **options)

    def model(self, kind: rl.Observation) -> ju.Model:
        """The agent, which gives a value to every action."""
        inputs = {"separable": 2 * self.config.size**2, "local": 10}[kind]
        model = models.build("mlp", (inputs,), 4, widths=self.config.widths)

        def forward(variables, inputs, **options):
            outputs = model.forward(variables, inputs, **options)
            return outputs._replace(logits=SCALE * outputs.logits)

        return model._replace(forward=forward, loss=ju.losses.squared_error)


class Agents(NamedTuple):
    """What agents of a kind do: values [seeds, requests, maps, cells, actions], and how they fare [seeds, requests, maps]."""

    values: Float[Any, "s r m c a"]
    returns: Float[Any, "s r m"]
    success: Float[Any, "s r m"]
    milliseconds: float | None = None


class Case(NamedTuple):
    """Agents with one kind of observation, and what is asked of them."""

    model: ju.Model
    data: ju.Data
    requests: ju.ForgetRequest  # the first maps, one each
    aliased: Float[Any, " r"]


def main(config: Config) -> dict[str, Any]:
    """Run it all; returns what is written as JSON."""
    if config.smoke:
        config = replace(config, **SMOKE)
    if not 1 <= config.references <= config.requests < config.maps:
        raise SystemExit("--references, --requests and --maps must rise in this order, and one map must stay")
    mesh, console = script.begin(config)
    began, cpu = time.perf_counter(), time.process_time()
    world = world_of(config, mesh)
    with script.progress(console, "rl_grid", 6) as advance:
        advance("training agents")
        case = case_of(world, "separable")
        trained, agents = originals(world, case)
        require_success(agents[NOTHING], config)
        advance("decremental", done=2)
        agents[DECREMENTAL] = unlearned(world, case, trained)
        advance("environment poisoning", done=1)
        agents[POISONED] = poisoned(world, case, trained)
        agents[RANDOM] = watched(world, np.zeros_like(agents[NOTHING].values[:, :1]), epsilon=1.0)
        advance("environment inference", done=1)
        scores = inferred(world, agents)
        advance("timing", done=1)
        times = timed(world, case, trained)
        advance("agents that see little", done=1)
        local = aliased(world)
    seconds = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    return reported(world, console, case, agents, scores, times, local, seconds)


def world_of(config: Config, mesh: Mesh | None) -> World:
    """The maps."""
    key = jax.random.key(config.draw)
    draw = jax.jit(jax.vmap(lambda key: rl.random_map(key, size=config.size, obstacles=config.obstacles)))
    return World(config, mesh, draw(jax.random.split(jax.random.fold_in(key, 0), config.maps)), key)


def case_of(world: World, kind: rl.Observation) -> Case:
    """All states as rows, and one request for each of the first maps; warns where states look alike."""
    data = jax.jit(lambda maps: rl.states(rl.grid_world(kind), maps))(world.maps)
    rows = np.arange(data.present.shape[0]).reshape(world.config.maps, -1)
    there = np.asarray(data.present) > 0
    requests = ju.from_indices(data, [row[there[row]] for row in rows[: world.config.requests]])
    return Case(world.model(kind), data, requests, np.asarray(rl.check_aliasing(data, requests)))


def part(requests: ju.ForgetRequest, places: Any) -> ju.ForgetRequest:
    """Some of the requests."""
    return jax.tree.map(lambda x: np.asarray(x)[places], requests)


def originals(world: World, case: Case) -> tuple[ju.Variables, dict[str, Agents]]:
    """Variables of the trained agents [seeds], and how they and those that never saw the map fare."""
    config, count = world.config, world.config.references
    seed, request = np.indices((config.seeds, count + 1)).reshape(2, -1)  # the last request is for nothing
    keys = world.draw(1, config.seeds, count + 1).reshape(-1)
    like, all_maps = form(case.model), request == count
    if config.agent == "exact":
        asked = part(case.requests, np.minimum(request, count - 1))
        asked = asked._replace(weights=asked.weights * ~all_maps[:, None])
        done = world.run(learner(case.model, config))([(like, case.data, asked, keys)])
        ju.check(done.result, allow=[ju.Status.EMPTY_REQUEST])
        variables = done.result.variables
    else:
        anywhere = world.maps._replace(starts=jax.vmap(rl.open_cells)(world.maps))
        weights = 1.0 - (np.arange(config.maps) == np.where(all_maps, -1, request)[:, None])
        train = rl.dqn(
            case.model, rl.grid_world(), optax.adam(optax.cosine_decay_schedule(1e-3, config.dqn_steps)),
            num_steps=config.dqn_steps, horizon=config.horizon, capacity=20_000, batch_size=config.training_batch,
            target_rate=0.01,
        )  # fmt: skip

        def learn(variables, maps, weights, key):
            fresh = case.model.init(key)  # type: ignore[misc]
            return train(fresh, maps, weights, jax.random.fold_in(key, 1))[0]

        done = world.run(learn)([(like, anywhere, weights, keys)])
        variables = done.result
    variables = jax.tree.map(lambda x: x[0].reshape(config.seeds, count + 1, *x.shape[2:]), variables)
    values = tables(world, case, variables)
    found = {NOTHING: watched(world, values[:, count:]), RETRAINED: watched(world, values[:, :count])}
    milliseconds = 1e3 * done.run_seconds / len(seed)
    found[RETRAINED] = found[RETRAINED]._replace(milliseconds=milliseconds)
    return jax.tree.map(lambda x: x[:, count], variables), found


def learner(model: ju.Model, config: Config) -> ju.UnlearnFn:
    """Regression on the exact values of all states that stay, from fresh weights."""
    optimizer = optax.adam(optax.cosine_decay_schedule(config.training_rate, config.training_steps))
    return ju.iterate(
        ju.retrain(model, optimizer), config.training_steps, batch_size=1, retain_batch_size=config.training_batch
    )


def forgetter(model: ju.Model, config: Config, num_steps: int) -> ju.UnlearnFn:
    """The decremental method."""
    method = ju.decremental(model, optax.adam(config.unlearning_rate))
    return ju.iterate(method, num_steps, batch_size=config.batch_size)


def require_success(agents: Agents, config: Config) -> None:
    """Stop where agents did not learn what they shall forget."""
    revoked = agents.success[:, 0, : config.requests].mean()
    others = agents.success[:, 0].mean()
    if min(revoked, others) < LEAST:
        raise SystemExit(
            f"trained agents succeed in {revoked:.1%} of the episodes on maps that are to be revoked, in {others:.1%} of all, "
            f"less than {LEAST:.0%}: nothing can be said of forgetting. Train for longer, or larger agents (--widths)"
        )


def tables(world: World, case: Case, variables: ju.Variables) -> Float[Any, "s r m c a"]:
    """Values of all actions in all states, of agents [seeds, requests]."""
    config = world.config

    inputs, program = case.data.train.inputs, jax.jit(lambda own, inputs: case.model.forward(own, inputs).logits)
    leading = jax.tree.leaves(variables)[0].shape[:2]
    found = [program(jax.tree.map(lambda x, at=at: x[at], variables), inputs) for at in np.ndindex(*leading)]
    return np.asarray(jnp.stack(found)).reshape(*leading, config.maps, config.size**2, 4)


@partial(jax.jit, static_argnames="num_steps")
def walks(
    maps: rl.Grid, tables: Float[Array, "m c a"], epsilon: Any, keys: Any, *, num_steps: int
) -> rl.Rollout:  # fmt: skip
    """Episodes of one agent in every map, [m, e]."""

    def episode(table, grid, key):
        policy = rl.epsilon_greedy(lambda cell: table[cell], epsilon)
        return rl.rollout(rl.grid_world("cell"), grid, policy, key, num_steps=num_steps)

    return jax.vmap(jax.vmap(episode, (None, None, 0)), (0, 0, 0))(tables, maps, keys)


def watched(world: World, values: Float[Any, "s r m c a"], *, epsilon: float | None = None) -> Agents:
    """How agents fare in every map."""
    config, (seeds, requests) = world.config, values.shape[:2]
    share = jnp.float32(config.epsilon if epsilon is None else epsilon)
    keys = world.draw(2, seeds, requests, config.maps, config.episodes)
    found = np.zeros((2, seeds, requests, config.maps))
    for at in np.ndindex(seeds, requests):
        done = walks(world.maps, values[at], share, keys[at], num_steps=config.horizon)
        found[:, *at] = np.mean(done.value, axis=1), np.mean(done.finished, axis=1)
    return Agents(values, found[0], found[1])


def crossed(world: World, trained: ju.Variables, count: int) -> tuple[ju.Variables, np.ndarray]:
    """Every agent with every request: variables [seeds x count], and the numbers of the requests."""
    seed, request = np.indices((jax.tree.leaves(trained)[0].shape[0], count)).reshape(2, -1)
    return jax.tree.map(lambda x: np.asarray(x)[seed], trained), request


def unlearned(world: World, case: Case, trained: ju.Variables) -> Agents:
    """All requests to all agents in one call."""
    config = world.config
    variables, request = crossed(world, trained, case.requests.indices.shape[0])
    run = world.run(forgetter(case.model, config, config.unlearning_steps), in_axes=(0, None, 0, 0))
    done = run([(variables, case.data, part(case.requests, request), world.draw(3, len(request)))])
    ju.check(done.result, allow=[ju.Status.DAMAGED])
    seeds = len(request) // case.requests.indices.shape[0]
    after = jax.tree.map(lambda x: x[0].reshape(seeds, -1, *x.shape[2:]), done.result.variables)
    found = watched(world, tables(world, case, after))
    return found._replace(milliseconds=1e3 * done.run_seconds / len(request))


def poisoned(world: World, case: Case, trained: ju.Variables) -> Agents:
    """The first requests to all agents."""
    config = world.config
    method = rl.environment_poisoning(
        rl.grid_world(), optax.adam(config.poisoning_rate), model=case.model, num_rounds=config.rounds,
        train_steps=config.round_steps, batch_size=config.batch_size, attacker=rl.random_search(candidates=config.candidates),
    )  # fmt: skip
    variables, request = crossed(world, trained, config.references)
    run = world.run(method, in_axes=(0, None, 0, 0))
    done = run([(variables, world.maps, request.astype(np.int32), world.draw(4, len(request)))])
    ju.check(done.result)
    after = jax.tree.map(lambda x: x[0].reshape(config.seeds, -1, *x.shape[2:]), done.result.variables)
    found = watched(world, tables(world, case, after))
    return found._replace(milliseconds=1e3 * done.run_seconds / len(request))


def own_map(values: Float[Any, "s r m ..."], count: int) -> Float[Any, "s r ..."]:
    """What agents [seeds, requests] have for the map of their request; those of one request have all maps."""
    values = np.broadcast_to(values, (values.shape[0], count, *values.shape[2:])) if values.shape[1] == 1 else values[:, :count]
    return np.stack([values[:, place, place] for place in range(count)], axis=1)


def inferred(world: World, agents: dict[str, Agents]) -> dict[str, Float[Any, "s r"]]:
    """Scores of the attack on the first requests: the attacker sees the greedy action in every cell."""
    config, count = world.config, world.config.references
    grids, keys = jax.tree.map(lambda x: x[:count], world.maps), world.draw(5, count)

    @jax.jit
    def attack(policies):
        def one(policy, grid, key):
            return rl.environment_inference(
                policy, grid, key, generations=config.generations, population=config.population, sweeps=3 * config.size
            ).score

        return jax.vmap(one)(policies, grids, keys)

    found = {}
    for name, own in agents.items():
        greedy = np.eye(4, dtype=np.float32)[own_map(own.values, count).argmax(axis=-1)]
        found[name] = np.stack([attack(x) for x in (greedy if name != RANDOM else np.full_like(greedy, 0.25))])
    return found


def timed(world: World, case: Case, trained: ju.Variables) -> dict[str, float]:
    """Milliseconds per request of the first agent's requests, together and one by one."""
    config = world.config
    single = jax.tree.map(lambda x: jnp.asarray(x[0]), trained)
    forget, keys = forgetter(case.model, config, config.timing_steps), world.draw(6, config.requests)
    requests, data = jax.tree.map(jnp.asarray, (case.requests, case.data))
    one, scanned, together = (
        jax.jit(forget), jax.jit(ju.batched(forget, chunk=1)), jax.jit(ju.batched(forget, chunk=config.requests))
    )  # fmt: skip
    split = [(jax.tree.map(lambda x, place=place: x[place], requests), keys[place]) for place in range(config.requests)]
    variants: dict[str, Callable[[], Any]] = {
        "loop of jitted calls": lambda: [one(single, data, *pair).variables for pair in split],
        "one call, in turn": lambda: scanned(single, data, requests, keys).variables,
        "one call, side by side": lambda: together(single, data, requests, keys).variables,
    }
    times = interleaved(variants, rounds=config.timing_rounds)
    return {name: 1e3 * seconds / config.requests for name, seconds in times.median.items()}


def aliased(world: World) -> dict[str, Any]:
    """The same with agents that see only what is around them."""
    config, count = world.config, world.config.references
    case = case_of(world, "local")
    asked = ju.empty_request(case.requests.indices.shape[1])
    run = world.run(learner(case.model, config), in_axes=(None, None, None, 0))
    done = run([(form(case.model), case.data, asked, world.draw(7, config.local_seeds))])
    trained = jax.tree.map(lambda x: x[0], done.result.variables)
    before = watched(world, tables(world, case, jax.tree.map(lambda x: x[:, None], trained)))
    after = unlearned(world, case._replace(requests=part(case.requests, slice(count))), trained)
    rows = [fares(name, agents, count) for name, agents in ((NOTHING, before), (DECREMENTAL, after))]
    return {"aliased": case.aliased, "rows": rows}


def fares(name: str, agents: Agents, count: int) -> dict[str, Any]:
    """Return and success on both sides, with intervals over agents and requests."""
    row: dict[str, Any] = {"method": name}
    for measure, values in (("return", agents.returns), ("success", agents.success)):
        maps, requests = values.shape[2], count if values.shape[1] == 1 else values.shape[1]
        own = own_map(values, requests)
        rest = np.broadcast_to(values, (values.shape[0], requests, maps)) if values.shape[1] == 1 else values
        others = (rest.sum(axis=2) - own) / (maps - 1)
        within = (0, 1) if measure == "success" else (-np.inf, np.inf)
        row[f"{measure}_revoked"] = ju.audit.crossed_interval(jnp.asarray(own), within=within)
        row[f"{measure}_retained"] = ju.audit.crossed_interval(jnp.asarray(others), within=within)
    return row


def compared(world: World, agents: dict[str, Agents], scores: dict[str, Float[Any, "s r"]]) -> list[dict[str, Any]]:
    """A row for every kind of agents."""
    config, count = world.config, world.config.references
    opened = np.asarray(jax.vmap(rl.open_cells)(world.maps))[:count] > 0
    before, without = (own_map(agents[name].values, count) for name in (NOTHING, RETRAINED))
    rows = []
    for name in (NOTHING, DECREMENTAL, POISONED, RANDOM, RETRAINED):
        own, row = own_map(agents[name].values, count), fares(name, agents[name], config.requests)
        if name != RANDOM:
            same = np.where(opened, own.argmax(axis=-1) == before.argmax(axis=-1), 0).sum(axis=2) / opened.sum(axis=1)
            far = np.where(opened, np.abs(own - without).max(axis=-1), 0).sum(axis=2) / opened.sum(axis=1)
            row["agreement"] = ju.audit.crossed_interval(jnp.asarray(same), within=(0, 1))
            row["distance"] = None if name == RETRAINED else ju.audit.crossed_interval(jnp.asarray(far))
        row["inference"] = ju.audit.crossed_interval(jnp.asarray(scores[name]))
        row["milliseconds"] = agents[name].milliseconds
        rows.append(row)
    return rows


INTRO = """\
Every request revokes another map. Success is the share of episodes that reach the goal. The aim is what retrained agents do,
which never saw the map: they may well find its goal. An agent whose success on the revoked map falls below theirs is told from
them by just that, and so is one whose values are near 0 on one map only. Nothing is guaranteed; to act badly on a map is not to
have never seen it. `environment_poisoning` is a reconstruction."""
READING = """\
Intervals are over agents and requests. Actions as before: share of the revoked map's cells in which the greedy action is still
that of the trained agent. Distance: mean over these cells of the largest difference of values to the agent that was retrained
with the same request. The inference score is the F1 of obstacles that a search reads from the greedy actions, less that of a
search on random ones."""
ALIASED = """\
These agents see their row, their column and the eight cells around. Most states of a map look like states of other maps, so
that an agent cannot forget the one and keep the other; it does not learn all maps in the first place."""


def reported(
    world: World, console: Any, case: Case, agents: dict[str, Agents], scores: dict[str, Any], times: dict[str, float],
    local: dict[str, Any], seconds: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Write the page and the JSON."""
    config, rows = world.config, compared(world, agents, scores)
    by_name = {row["method"]: row for row in rows}
    wanted = float(by_name[RANDOM]["success_revoked"].estimate) + 0.1
    own, kept = (float(by_name[DECREMENTAL][f"success_{side}"].estimate) for side in ("revoked", "retained"))
    ratio = times["loop of jitted calls"] / min(list(times.values())[1:])
    share = f"{np.min(local['aliased']):.0%} to {np.max(local['aliased']):.0%}"
    notes = [
        f"success of decremental on the revoked map {own:.1%}, target at most {wanted:.1%}: {said(own <= wanted)}",
        f"on the others {kept:.1%}, target at least 95.0%: {said(kept >= LEAST)}",
        f"{config.requests} requests in one call take {1 / ratio:.2f} of a loop's time, target a third: {said(ratio >= 3)}",
        f"with local observations {share} of a map's states look like states of other maps",
        f"{seconds['cpu']:.0f} s of CPU time, {seconds['wall']:.0f} s by the wall",
    ]
    caption = f"{config.seeds} agents ({config.agent}), {config.maps} maps, {config.requests} requests"
    caption += f", {config.references} of them for agents that are retrained or poisoned and for the attack"
    tables_ = [
        Table(COLUMNS, rows, caption),
        Table(COLUMNS[:5], local["rows"], f"local observations, {config.local_seeds} agents, {config.references} requests"),
        Table([Column("how", "how"), Column("ms", "ms/request", ".1f")], [{"how": x, "ms": y} for x, y in times.items()],
              f"{config.requests} requests of {config.timing_steps} steps, one agent"),
    ]  # fmt: skip
    shown = {name: agents[name] for name in (NOTHING, DECREMENTAL, POISONED, RETRAINED)}
    sections = [
        Section("Agents", READING, [tables_[0]]),
        Section("Paths", "The first agent, without random actions.", figures=[
            (paths(world, shown, place), f"Request {place}: ways of the agents on the map that it revokes.")
            for place in range(min(2, config.references))
        ]),
        Section("Observations that many maps share", ALIASED, [tables_[1]]),
        Section("Time", "\n\n".join(notes), [tables_[2]]),
    ]  # fmt: skip

    def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        def value(x: Any) -> Any:
            return [None if np.isnan(y) else float(y) for y in x] if isinstance(x, ju.audit.Interval) else x

        return [{key: value(x) for key, x in row.items()} for row in rows]

    found = {
        "agents": plain(rows), "local": plain(local["rows"]), "aliased_local": np.round(local["aliased"], 3).tolist(),
        "aliased_separable": np.round(case.aliased, 3).tolist(), "milliseconds_per_request": times, "seconds": seconds,
        "notes": notes,
    }  # fmt: skip
    return script.finish(
        config, console, "rl_grid", script.summary_of(config, **found), title="jaxunlearn: agents that forget a map",
        intro=INTRO, sections=sections, tables=tables_, notes=notes,
    )  # fmt: skip


def said(reached: bool) -> str:
    """A target in a word."""
    return "reached" if reached else "missed"


def paths(world: World, agents: dict[str, Agents], request: int) -> Figure:
    """The way of one agent of each kind on the map of a request."""
    config = world.config
    grid = jax.tree.map(lambda x: x[request], world.maps)
    figure = Figure(figsize=(2.6 * len(agents), 3.0), layout="constrained")
    for panel, (name, own) in zip(figure.subplots(1, len(agents), squeeze=False)[0], agents.items(), strict=True):
        tables = own.values[0, min(request, own.values.shape[1] - 1)]
        keys = world.draw(2, config.maps, config.episodes)
        found = walks(world.maps, tables, jnp.float32(0), keys, num_steps=config.horizon)
        found = jax.tree.map(lambda x: np.asarray(x)[request, 0], found)
        cells = np.append(np.asarray(found.states)[np.asarray(found.alive)], grid.goal if found.finished else [])
        rows, columns = np.divmod(cells, config.size)
        panel.imshow(np.asarray(grid.obstacles), cmap="Greys", vmax=1.6)
        panel.plot(columns, rows, color="#0072B2" if found.finished else "#D55E00", linewidth=2, marker=".")
        goal, start = int(grid.goal), int(jnp.argmax(grid.starts))
        panel.text(goal % config.size, goal // config.size, "G", ha="center", va="center", fontweight="bold")
        panel.text(start % config.size, start // config.size, "S", ha="center", va="center", fontweight="bold")
        panel.set_title(f"{name}\n{float(found.value):.0f}", fontsize=9)
        panel.set_xticks([])
        panel.set_yticks([])
    return figure


if __name__ == "__main__":
    script.run(main, Config, __doc__)
