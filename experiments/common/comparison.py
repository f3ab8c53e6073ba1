"""The engine of a comparison: compiled programs that all scenarios share, answers of methods, and their audit."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

import jaxunlearn as ju
from experiments.common import methods
from experiments.common.outcome import AGAIN, NOTHING, RETRAINED, Details, Outcome, outcome
from experiments.common.running import Run, Tell, Timed, at, in_blocks, reusable, stack
from experiments.common.scale import Scale, in_bfloat16
from experiments.common.scenarios import Scenario
from experiments.common.study import Study
from experiments.common.training import form
from jaxunlearn.requests import bucket

# what a comparison shows instead of raising
COMPARED = (ju.Status.UNCHANGED, ju.Status.NOT_CONVERGED, ju.Status.INDEFINITE, ju.Status.DAMAGED, ju.Status.NONFINITE)
MODELS_PER_CORE = 4  # that a CPU core trains in one call, so that one program serves any number of models


class Bench(NamedTuple):
    """Compiled programs, shared by all scenarios, draws and settings."""

    setting: Study
    train: Run  # retraining, or training with an empty request
    record: Run  # training that can be taken back
    audit: Run
    method: Callable[[str, bool], Run]  # name, whether it answers streams
    prepare: Callable[[str], Callable[..., dict[str, Any]]]
    block: int | None  # models in one call of `train`; None: all of them


class Seeds(NamedTuple):
    """Seeds of a comparison; equal numbers in two places draw nothing alike."""

    draw: int  # of training rows, wrong labels, triggers, styles
    request: int  # of what is asked for, and of the draws of methods
    audit: int  # of what only the audit sees
    training: Sequence[int]  # one per original


class Ready(NamedTuple):
    """A scenario with what it takes to answer it."""

    scenario: Scenario
    originals: list[ju.Variables]  # one per seed
    seeds: Seeds


def programs(setting: Study, *, network: str, num_steps: int, scale: Scale, mesh: Mesh | None) -> Bench:
    """Programs of a study; others must have its model and, to use what is compiled already, its shapes.

    Args:
        setting: the study; the audit runs on its model as it is.
        network: its name, see `experiments.common.models.build`.
        num_steps: of unlearning.
        scale, mesh: see `experiments.common.scale`.
    """
    computed = setting._replace(model=in_bfloat16(setting.model)) if scale.bf16 else setting
    made: dict[Any, Any] = {}

    def once(key: Any, make: Callable[[], Any]) -> Any:
        if key not in made:
            made[key] = make()
        return made[key]

    def program(function: Any, **options: Any) -> Run:
        return reusable(function, chunk=scale.chunk, mesh=mesh, **options)

    def build(name: str, settings: Mapping[str, Any], held_out: Mapping[str, ju.Examples] | None = None) -> ju.UnlearnFn:
        fixed = {**methods.given(name, computed, network), **(held_out or {}), **settings}
        run = {"num_steps": num_steps, "batch_size": computed.batch_size, "augment": computed.augment}
        return methods.build(name, computed.model, **run, **fixed)

    def method(name: str, streams: bool) -> Run:
        def answered(variables: ju.Variables, data: ju.Data, asked: Any, key: PRNGKeyArray) -> ju.Result:
            request, settings = asked  # traced, so that one program serves all settings
            unlearn = build(name, settings, data.extra.get(ju.slots.USER.name))
            return (ju.streamed(unlearn) if streams else unlearn)(variables, data, request, key)

        return once((name, streams), lambda: program(answered))

    def prepare(name: str) -> Callable[..., dict[str, Any]]:
        def prepared(variables: ju.Variables, data: ju.Data, settings: dict[str, Any], key: PRNGKeyArray) -> dict[str, Any]:
            return ju.prepare(build(name, settings))(variables, data, key).extra

        return once(name, lambda: jax.jit(prepared))

    def audit(
        variables: ju.Variables, shared: Any, asked: Any, reference: ju.Variables | None
    ) -> tuple[Outcome, Details | None]:
        data, test, unseen = shared
        request, weights = asked
        return outcome(setting.model, variables, data, test, request, unseen, weights, reference)

    optimizer = optax.adam(computed.learning_rate)
    run = {"num_steps": computed.num_steps, "batch_size": computed.batch_size, "augment": computed.augment}
    recorded = ju.record(computed.model, optimizer, **run)
    on_cpu = jax.default_backend() == "cpu"
    return Bench(
        computed,
        program(computed.retrain()),
        program(recorded),
        program(audit, in_axes=(0, None, 0, 0)),
        method,
        prepare,
        MODELS_PER_CORE * jax.device_count() if on_cpu else None,
    )


def of_one_shape(scenario: Scenario) -> Scenario:
    """Requests with room for half the rows and with targets, so that one program answers all scenarios.

    The targets of requests that are not about classes name none.
    """
    num_rows, num_classes = scenario.study.data.present.shape[0], scenario.study.num_classes
    requests, stream = scenario.requests, scenario.stream
    capacity = max(requests.indices.shape[-1], bucket(num_rows // 2))

    def padded(request: ju.ForgetRequest, capacity: int) -> ju.ForgetRequest:
        extra = [(0, 0)] * (request.indices.ndim - 1) + [(0, capacity - request.indices.shape[-1])]
        target = request.target
        if num_classes and not jax.tree.leaves(target):
            target = np.zeros((*request.indices.shape[:-1], num_classes), bool)
        return ju.ForgetRequest(np.pad(request.indices, extra), np.pad(request.weights, extra), target)  # type: ignore[arg-type]

    stream = None if stream is None else padded(stream, stream.indices.shape[-1])
    return scenario._replace(requests=padded(requests, capacity), stream=stream)


def stream_of_keys(seed: int, *purpose: str) -> PRNGKeyArray:
    """A key for a purpose: equal seeds give unrelated keys for different purposes."""
    key = jax.random.key(seed)
    for word in purpose:
        key = jax.random.fold_in(key, zlib.crc32(word.encode()))
    return key


def trained(bench: Bench, setting: Study, requests: ju.ForgetRequest, keys: PRNGKeyArray, *, tell: Tell | None = None) -> Timed:
    """Models retrained from fresh weights, each with its own request; an empty one trains on all rows.

    Args:
        bench: programs.
        setting: the training set.
        requests: [N], or one that all share.
        keys: [N].
        tell: gets the numbers of models that are done.

    Returns:
        `Timed` of a result [N].
    """
    count = keys.shape[0]
    if requests.indices.ndim == 1:
        requests = jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), requests)
    like = form(setting.model)
    parts = in_blocks((requests, keys), bench.block or count)
    done = bench.train([(like, setting.data, *part) for part in parts], tell)
    result = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], done.result)
    return done._replace(result=ju.check(result, allow=[ju.Status.EMPTY_REQUEST]))


def no_request(scenario: Scenario) -> ju.ForgetRequest:
    """A request for nothing, in the form of those of a scenario."""
    return jax.tree.map(lambda x: np.zeros_like(x[0]), scenario.requests)


def originals(bench: Bench, scenario: Scenario, seeds: Sequence[int], *, tell: Tell | None = None) -> list[ju.Variables]:
    """One training on all rows per seed; seed `s` has its own key, whatever other seeds there are."""
    done = trained(bench, scenario.study, no_request(scenario), _training_keys(seeds), tell=tell)
    return [at(done.result.variables, place) for place in range(len(seeds))]


def _training_keys(seeds: Sequence[int]) -> PRNGKeyArray:
    return jax.vmap(jax.random.fold_in, (None, 0))(stream_of_keys(0, "training"), jnp.asarray(seeds, jnp.uint32))


def answer(bench: Bench, ready: Ready, method: str, settings: Mapping[str, Any], *, tell: Tell | None = None) -> Timed:
    """Answers of a method, of retraining or of doing nothing to every request of a scenario: [seeds, requests].

    Args:
        bench, ready: programs and scenario.
        method: a name of the catalogue, or `NOTHING`, `RETRAINED`, `AGAIN`.
        settings: of the method; each is a number for all requests, or one per request.
        tell: gets the numbers of requests that are answered.

    Raises:
        UnlearningError: a status other than OK that is not the caller's to judge: those of COMPARED are; in a stream, stale
            values are as well. What was prepared for the model in front of a stream belongs to other weights once a request has
            moved them.
    """
    scenario, models, seeds = ready
    asked = scenario.requests if scenario.stream is None or method in (RETRAINED, AGAIN) else scenario.stream
    shape = len(seeds.training), asked.indices.shape[0]
    if method == NOTHING:
        repeated = jax.tree.map(lambda x: np.broadcast_to(x[:, None], (*shape, *x.shape[1:])), stack(models))
        return Timed(ju.Result(repeated, np.zeros(shape, np.int32)), 0.0, 0.0)
    key = stream_of_keys(_seed_of(method, seeds), method, scenario.name)
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.fold_in(key, seed), asked.indices.shape[:-1]))(
        jnp.asarray(seeds.training, jnp.uint32)
    )
    if method in (RETRAINED, AGAIN):
        every = jax.tree.map(lambda x: np.tile(x, (shape[0], *(1,) * (np.ndim(x) - 1))), asked)
        done = trained(bench, scenario.study, every, keys.reshape(-1), tell=tell)
        return done._replace(result=jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), done.result))
    numbers = {name: np.broadcast_to(np.float32(value), shape[1:]) for name, value in settings.items()}
    data, extras = scenario.study.data, [{} for _ in models]
    reads = ju.METHODS[method].reads
    if methods.HELD_OUT in methods.settings_of(method):  # with the data, because one program serves studies of other rows
        data = ju.slots.USER.put(data, {methods.HELD_OUT: scenario.study.held_out})
    if "updates" in reads:
        recorded = _recorded(bench, scenario, seeds.training)
        models, extras = [result.variables for result in recorded], [result.extra for result in recorded]
    elif reads & set(ju.slots.SLOTS):
        make, single = bench.prepare(method), {name: value[0] for name, value in numbers.items()}
        extras = [make(variables, data, single, key) for variables in models]
    calls = [
        (variables, data._replace(extra={**data.extra, **extra}), (asked, numbers), keys[place])
        for place, (variables, extra) in enumerate(zip(models, extras, strict=True))
    ]
    done = bench.method(method, scenario.stream is not None)(calls, tell)
    ju.check(done.result, allow=[*COMPARED, *([] if scenario.stream is None else [ju.Status.STALE])])
    return done


def _seed_of(method: str, seeds: Seeds) -> int:
    return {RETRAINED: 0, AGAIN: seeds.audit}.get(method, seeds.request)


def _recorded(bench: Bench, scenario: Scenario, seeds: Sequence[int]) -> list[ju.Result]:
    """One training per seed that can be taken back, by the keys of the originals."""
    nothing = jax.tree.map(lambda x: np.broadcast_to(x, (len(seeds), *x.shape)), no_request(scenario))
    call = form(scenario.study.model), scenario.study.data, nothing, _training_keys(seeds)
    result = ju.check(bench.record([call]).result, allow=[ju.Status.EMPTY_REQUEST])
    return [at(result, 0, place) for place in range(len(seeds))]


def audited(bench: Bench, ready: Ready, done: Timed, reference: PyTree | None = None) -> tuple[Outcome, Details | None]:
    """What the audit finds for the answers of a method, [seeds, requests].

    Args:
        bench, ready: programs and scenario.
        done: what `answer` returned.
        reference: weights of retrained models [seeds, requests], for `Details`.
    """
    scenario = ready.scenario
    shared = scenario.study.data._replace(extra={}), scenario.study.test, scenario.unseen
    asked = scenario.requests, np.asarray(scenario.unseen_weights)
    return bench.audit([
        (at(done.result.variables, place), shared, asked, None if reference is None else at(reference, place))
        for place in range(len(ready.seeds.training))
    ]).result  # fmt: skip


def measures_of(measure: str) -> tuple[str, ...]:
    """Which measures count: unseen rows only where they are not the test rows."""
    return ("retain", "forget", "test", "auc", *(("unseen",) if measure else ()))
