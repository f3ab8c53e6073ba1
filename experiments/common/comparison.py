"""The engine of a comparison: programs that every scenario shares, answers of methods, and their audit."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

import jaxunlearn as ju
from experiments.common import study
from experiments.common.scale import Scale, in_bfloat16
from experiments.common.scenarios import Scenario
from experiments.common.study import Outcome, Study
from experiments.common.training import Timed
from jaxunlearn import curvature, features
from jaxunlearn.closed_form import lfssd, ssd
from jaxunlearn.closed_form.amnesiac import record

ORIGINAL, AGAIN, RETRAINED = "original", "retrained again", "retrained"
LAYERS = {"mlp": "Dense_1|head", "cnn": "Dense_0|head", "resnet18": "head"}  # what cf_k and eu_k train
ON_CLASSES = {
    *("random_label", "bad_teacher", "scrub", "unsir", "salun", "fisher_forgetting"),
    *("contrastive_unlearning", "dimensional_alignment"),
}
LARGEST_RECORD = 4 * 2**30  # bytes of recorded updates that amnesiac may take
Run: TypeAlias = Callable[[Sequence[study.Call]], Timed]
Prepare: TypeAlias = Callable[[ju.Variables, ju.Data, PRNGKeyArray], ju.Data]
# What methods want to have computed on all rows before the first request.
PREPARED: dict[str, Callable[[ju.Model], Prepare]] = {
    "influence": lambda model: curvature.prepare(curvature.ekfac(model, kind="ggn", chunk=100)),
    "newton": lambda model: curvature.prepare(curvature.ekfac(model, kind="ggn", chunk=100)),
    "fisher_forgetting": lambda model: curvature.prepare(curvature.diagonal(model), name="fisher_diagonal"),
    "ssd": ssd.prepare,
    "assd": ssd.prepare,
    "lfssd": lfssd.prepare,
    **dict.fromkeys(
        (
            "representation_unlearning",
            "affine_representation_unlearning",
            "concept_erasure",
            "nullspace_projection",
            "prototype_erasure",
        ),
        features.prepare,
    ),
}


def prepared(name: str, model: ju.Model, unlearn: ju.UnlearnFn) -> ju.UnlearnFn:
    """A method that computes what it wants to have prepared itself, for programs that call it once a model."""
    if name not in PREPARED:
        return unlearn
    prepare = PREPARED[name](model)

    def run(variables: ju.Variables, data: ju.Data, request: ju.ForgetRequest, key: PRNGKeyArray) -> ju.Result:
        return unlearn(variables, prepare(variables, data, jax.random.fold_in(key, 0)), request, key)

    return run


class Bench(NamedTuple):
    """Compiled programs, shared by all scenarios, draws and settings."""

    train: Run  # retraining, or training with an empty request
    record: Run  # training that amnesiac can take back
    audit: Callable[..., Outcome]
    method: Callable[[str, bool], Run]  # name, whether it answers streams
    prepare: Callable[[str], Prepare | None]


class Seeds(NamedTuple):
    """Seeds of a comparison; equal numbers in two places draw nothing alike."""

    draw: int  # of training rows, wrong labels, triggers, styles
    request: int  # of what is asked for, and of the draws of methods
    audit: int  # of what only the audit sees
    training: range  # one an original


class Ready(NamedTuple):
    """A scenario with what it takes to answer it."""

    scenario: Scenario
    originals: list[ju.Variables]  # one a seed
    seeds: Seeds


def build_method(name: str, setting: Study, *, network: str, num_steps: int, **options: Any) -> ju.UnlearnFn:
    """A method with its numbers; `amnesiac` is followed by fine-tuning, as in its paper."""
    if name in ("cf_k", "eu_k"):
        options["layers"] = LAYERS[network]
    if name == "certified_newton_step":
        options["solver"] = "cg"  # LiSSA's scale would be one more number to search
    loop: dict[str, Any] = {"num_steps": num_steps, "batch_size": setting.batch_size}
    if name == "amnesiac":
        return ju.then(ju.amnesiac(setting.model), study.unlearner("finetune", setting.model, **loop, **options))
    return study.unlearner(name, setting.model, **loop, **options)


def programs(setting: Study, *, network: str, num_steps: int, scale: Scale, mesh: Mesh | None) -> Bench:
    """Programs of a study; others must have its model and, to use what is compiled already, its shapes.

    Args:
        setting: the study; the audit runs on its model as it is.
        network: its name, see `experiments.common.models.build`.
        num_steps: of unlearning.
        scale, mesh: see `experiments.common.scale`.
    """
    computed = setting._replace(model=in_bfloat16(setting.model)) if scale.bf16 else setting
    made: dict[tuple[str, bool], Run] = {}

    def reusable(unlearn: ju.UnlearnFn) -> Run:
        return study.reusable(unlearn, chunk=scale.chunk, mesh=mesh)

    def method(name: str, streams: bool) -> Run:
        if (name, streams) not in made:
            unlearn = study.with_options(partial(build_method, name, computed, network=network, num_steps=num_steps))
            made[name, streams] = reusable(ju.streamed(unlearn) if streams else unlearn)
        return made[name, streams]

    @cache
    def prepare(name: str) -> Prepare | None:
        return jax.jit(PREPARED[name](computed.model)) if name in PREPARED else None

    @jax.jit
    def audit(data, test, variables, requests, unseen, weights):
        return study.outcome(setting._replace(data=data, test=test), variables, requests, unseen, weights)

    optimizer = optax.adam(computed.learning_rate)
    recorded = record(computed.model, optimizer, num_steps=computed.num_steps, batch_size=computed.batch_size)
    return Bench(reusable(computed.retrain()), reusable(recorded), audit, method, prepare)


def of_one_shape(scenario: Scenario) -> Scenario:
    """Requests with room for half the rows and with targets, so that one program answers all scenarios.

    The targets of requests that are not about classes name none.
    """
    num_rows, num_classes = scenario.study.data.present.shape[0], scenario.study.num_classes
    requests, stream = scenario.requests, scenario.stream
    capacity = max(requests.indices.shape[-1], ju.requests.bucket(num_rows // 2))

    def padded(request: ju.ForgetRequest, capacity: int) -> ju.ForgetRequest:
        extra = [(0, 0)] * (request.indices.ndim - 1) + [(0, capacity - request.indices.shape[-1])]
        target = request.target
        if num_classes and not jax.tree.leaves(target):
            target = jnp.zeros((*request.indices.shape[:-1], num_classes), bool)
        return ju.ForgetRequest(jnp.pad(request.indices, extra), jnp.pad(request.weights, extra), target)

    stream = None if stream is None else padded(stream, stream.indices.shape[-1])
    return scenario._replace(requests=padded(requests, capacity), stream=stream)


def stream_of_keys(seed: int, *purpose: str) -> PRNGKeyArray:
    """A key for a purpose: equal seeds give unrelated keys for different purposes."""
    key = jax.random.key(seed)
    for word in purpose:
        key = jax.random.fold_in(key, zlib.crc32(word.encode()))
    return key


def trained(run: Run, setting: Study, seeds: range) -> list[ju.Result]:
    """One training on all rows a seed, by a program for training."""
    key = stream_of_keys(0, "training")
    assert setting.model.init is not None  # studies have one
    like = jax.jit(setting.model.init)(key)
    nothing = jax.tree.map(lambda x: x[None], ju.empty_request())
    result = run([(like, setting.data, nothing, jax.random.fold_in(key, seed)[None]) for seed in seeds]).result
    ju.check(result, allow=[ju.Status.EMPTY_REQUEST])
    return [jax.tree.map(lambda x, s=s: x[s, 0], result) for s in range(len(seeds))]


def answer(bench: Bench, ready: Ready, method: str, options: Mapping[str, float]) -> Timed:
    """Answers of a method, of retraining or of doing nothing to every request of a scenario: [seeds, requests].

    Args:
        bench, ready: programs and scenario.
        method: a name of the catalogue, or `ORIGINAL`, `RETRAINED`, `AGAIN`.
        options: the numbers of the method.
    """
    scenario, originals, seeds = ready
    data, asked = scenario.study.data, scenario.requests
    if method == ORIGINAL:
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *originals)
        lanes = asked.indices.shape[0]
        status = jnp.zeros((len(seeds.training), lanes), jnp.int32)
        return Timed(ju.Result(study.repeat(stacked, lanes), status, {}), 0.0, 0.0)
    if method in (RETRAINED, AGAIN):
        key = stream_of_keys(seeds.audit if method == AGAIN else 0, method, scenario.name)
        run = bench.train
    else:
        key = stream_of_keys(seeds.request, method, scenario.name)
        run = bench.method(method, scenario.stream is not None)
        asked = asked if scenario.stream is None else scenario.stream
        data = data._replace(extra={"options": {name: jnp.float32(value) for name, value in options.items()}})
    extras: list[dict[str, Any]] = [{} for _ in seeds.training]
    if method == "amnesiac":
        recorded = trained(bench.record, scenario.study, seeds.training)
        originals, extras = [result.variables for result in recorded], [result.extra for result in recorded]
    make = bench.prepare(method)
    if make is not None:
        extras = [make(variables, scenario.study.data, key).extra for variables in originals]
    calls = [
        (
            variables,
            data._replace(extra={**data.extra, **extra}),
            asked,
            jax.random.split(jax.random.fold_in(key, seed), asked.indices.shape[:-1]),
        )
        for variables, extra, seed in zip(originals, extras, seeds.training, strict=True)
    ]
    return run(calls)


def audited(bench: Bench, ready: Ready, done: Timed) -> Outcome:
    """What the audit finds for the answers of a method, [seeds, requests]."""
    scenario, _, seeds = ready
    rest = scenario.requests, scenario.unseen, scenario.unseen_weights
    found = [
        bench.audit(scenario.study.data, scenario.study.test, jax.tree.map(lambda x, s=s: x[s], done.result.variables), *rest)
        for s in range(len(seeds.training))
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *found)


def compared(measure: str) -> tuple[str, ...]:
    """Which measures count: unseen rows only where they are not the test rows."""
    return ("retain", "forget", "test", "auc", *(("unseen",) if measure else ()))


def left_out(method: str, name: str, setting: Study, seeds: int) -> str | None:
    """Why a method does not apply to a scenario, None if it does."""
    if method in ju.METHODS and "attributes" in ju.METHODS[method].reads:
        return "forgets attributes of all rows; the request is for rows"
    if setting.num_classes == 0 and method in ON_CLASSES:
        return "works on class probabilities or labels; the targets are real"
    if method == "unsir" and name not in ("class", "classes"):
        return "overwrites whole classes; the request is for some of their rows"
    if method == "amnesiac":
        assert setting.model.init is not None  # studies have one
        like = jax.eval_shape(setting.model.init, jax.random.key(0))
        size = seeds * setting.num_steps * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(like.params))
        if size > LARGEST_RECORD:
            return f"the recorded updates would take {size / 2**30:.0f} GiB"
    return None
