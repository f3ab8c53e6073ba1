"""A study: originals for several seeds, requests, what methods make of them, and what an audit says of that.

Every array of a study has the leading axes [seeds, requests].
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import jaxunlearn as ju
from experiments.common.data import Dataset, load, subset, with_label_noise
from experiments.common.models import build
from experiments.common.scale import gathered
from experiments.common.training import Timed, timed, train

FALSE_POSITIVE_RATES = np.concatenate([[0.0], np.geomspace(1e-3, 1, 200)])


class Study(NamedTuple):
    """What all methods start from."""

    model: ju.Model
    data: ju.Data
    test: ju.Examples
    num_classes: int  # 0 for real targets
    num_steps: int  # of training and retraining
    batch_size: int
    learning_rate: float

    def retrain(self) -> ju.UnlearnFn:
        """The training procedure, on retained rows."""
        optimizer = optax.adam(self.learning_rate)
        return ju.retrain(self.model, optimizer, num_steps=self.num_steps, batch_size=self.batch_size)

    def originals(
        self, seeds: Sequence[int], key: PRNGKeyArray, *, chunk: int | None = None, mesh: Mesh | None = None
    ) -> ju.Variables:
        """Models trained on all rows, one a seed; `chunk` and `mesh` as in `jaxunlearn.batched`."""
        return train(
            self.model,
            self.data,
            optax.adam(self.learning_rate),
            num_steps=self.num_steps,
            batch_size=self.batch_size,
            seeds=seeds,
            key=key,
            chunk=chunk,
            mesh=mesh,
        )


def overfitted(
    dataset: str | Dataset = "digits",
    data_dir: str | None = None,
    *,
    network: str = "mlp",
    num_rows: int = 500,
    label_noise: float = 0.12,
    num_steps: int = 600,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Study:
    """A small noisy training set and a network that learns it by heart, so that there is something to forget.

    Args:
        dataset, data_dir: see `experiments.common.data.load`; or what it returned.
        network: see `experiments.common.models.build`.
        num_rows: training rows, drawn at random.
        label_noise: fraction of them that get a wrong label; test labels stay right. It must be 0 for real targets.
        num_steps, batch_size, learning_rate: of training, with Adam.
        seed: of the rows and the noise.

    Raises:
        ValueError: more rows than there are, or label noise without labels.
    """
    loaded = load(dataset, data_dir, seed=seed) if isinstance(dataset, str) else dataset
    available = len(loaded.train.targets)
    if num_rows > available:
        raise ValueError(f"{loaded.name} has {available} training rows, fewer than num_rows={num_rows}")
    rows = np.random.default_rng(seed).permutation(available)[:num_rows]
    train_rows = subset(loaded.train, rows)
    model = build(network, loaded.train.inputs.shape[1:], loaded.num_classes or 1)
    if loaded.num_classes == 0:
        if label_noise:
            raise ValueError(f"{loaded.name} has real targets and no labels: set label_noise=0, got {label_noise}")
        noisy, model = train_rows, model._replace(loss=ju.losses.squared_error)
    else:
        noisy, _ = with_label_noise(train_rows, label_noise, loaded.num_classes, seed)
    test = jax.tree.map(jnp.asarray, loaded.test)
    return Study(model, ju.training_data(*noisy), test, loaded.num_classes, num_steps, batch_size, learning_rate)


def random_requests(data: ju.Data, sizes: Sequence[int], seed: int) -> ju.ForgetRequest:
    """Requests for random rows, one of each size."""
    generator = np.random.default_rng(seed)
    present = np.flatnonzero(np.asarray(data.present))
    return ju.from_indices(data, [generator.choice(present, size, replace=False) for size in sizes])


def unlearner(
    name: str, model: ju.Model, *, num_steps: int, batch_size: int, learning_rate: Any = None, **options: Any
) -> ju.UnlearnFn:
    """A method of the catalogue under Adam with a cosine schedule, or one without a loop; numbers may be traced.

    Raises:
        ValueError: a method with a loop and no learning rate, or one without a loop and with one.
    """
    factory = ju.METHODS[name].factory
    loops = "num_steps" in inspect.signature(factory).parameters
    if loops != (learning_rate is not None):
        raise ValueError(f"{name} needs a learning_rate" if loops else f"{name} has no loop: leave learning_rate out")
    if not loops:
        return factory(model, **options)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    return factory(model, optimizer, num_steps=num_steps, batch_size=batch_size, **options)


def with_options(build: Callable[..., ju.UnlearnFn]) -> ju.UnlearnFn:
    """A method that reads its numbers from `data.extra["options"]`, so that one compiled program serves all of them.

    Args:
        build: `(**numbers) -> UnlearnFn`.
    """

    def unlearn(variables: ju.Variables, data: ju.Data, request: ju.ForgetRequest, key: PRNGKeyArray) -> ju.Result:
        extra = dict(data.extra)
        options = extra.pop("options")
        return build(**options)(variables, data._replace(extra=extra), request, key)

    return unlearn


Call: TypeAlias = tuple[ju.Variables, ju.Data, ju.ForgetRequest, PRNGKeyArray]


def reusable(unlearn: ju.UnlearnFn, *, chunk: int | None = None, mesh: Mesh | None = None) -> Callable[[Sequence[Call]], Timed]:
    """A batched method that compiles once for each set of shapes, however often it is used.

    Args:
        unlearn: the method; `ju.streamed(method)` for stacked streams.
        chunk, mesh: see `jaxunlearn.batched`.

    Returns:
        A function of calls `(variables, data, requests [R], keys [R])` of equal shapes, one an original; it returns
        `Timed` with the results stacked, [S, R]. `run_seconds` is that of all calls together. `compile_seconds` is the first
        call of these shapes less an average one, 0 if there was one before. Nothing is raised for bad status codes.
    """
    batched = ju.batched(unlearn, chunk=chunk, mesh=mesh)
    program = batched if mesh is not None else jax.jit(batched)
    seen = set()

    def run(calls: Sequence[Call]) -> Timed:
        if mesh is not None:
            calls = [(ju.replicate(v, mesh), ju.replicate(d, mesh), r, k) for v, d, r, k in calls]
        jax.block_until_ready(calls)
        shapes = jax.tree.structure(calls[0]), tuple((jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(calls[0]))
        first = None
        if shapes not in seen:
            start = time.perf_counter()
            jax.block_until_ready(program(*calls[0]))
            first = time.perf_counter() - start
            seen.add(shapes)
        start = time.perf_counter()
        results = jax.block_until_ready([program(*call) for call in calls])
        run_seconds = time.perf_counter() - start
        compile_seconds = 0.0 if first is None else max(first - run_seconds / len(calls), 0.0)
        return Timed(_stack(gathered(results)), compile_seconds, run_seconds)

    return run


def over_seeds(unlearn: ju.UnlearnFn, *, chunk: int | None = None, mesh: Mesh | None = None) -> Any:
    """Answer R requests for each of S originals: `(variables [S], data, requests [R], keys [S, R]) -> Result [S, R]`.

    Args:
        unlearn: the method.
        chunk: requests that run side by side on a device; with a chunk, originals take turns.
        mesh: see `jaxunlearn.batched`; originals take turns in one compiled program, called from outside `jit`.
    """
    if mesh is None:
        return ju.batched(ju.batched(unlearn, chunk=chunk), in_axes=(0, None, None, 0), chunk=None if chunk is None else 1)
    one_original = ju.batched(unlearn, chunk=chunk, mesh=mesh)

    def run(originals: ju.Variables, data: ju.Data, requests: ju.ForgetRequest, keys: PRNGKeyArray) -> ju.Result:
        data = ju.replicate(data, mesh)
        return _stack([one_original(lane, data, requests, key) for lane, key in zip(_unstack(originals), keys, strict=True)])

    return run


def _unstack(values: PyTree) -> list[PyTree]:
    return [jax.tree.map(lambda x, s=s: x[s], values) for s in range(jax.tree.leaves(values)[0].shape[0])]


def _stack(values: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *x: jnp.stack(x), *values)


def answer(
    unlearn: ju.UnlearnFn,
    originals: ju.Variables,
    data: ju.Data,
    requests: ju.ForgetRequest,
    key: PRNGKeyArray,
    *,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Timed:
    """Every seed's answers to every request, with compile and run time apart.

    Without a mesh all seeds are one compiled call. With a mesh they are one call a seed of one compiled program, and
    results that span processes are gathered. A meshed call compiles by itself, so the first seed is answered once more:
    `compile_seconds` is that first call less an average one, hence an estimate that holds placing and caching, too;
    `run_seconds` is measured, and includes laying out the requests of every call, but neither gathering nor stacking.

    Args:
        unlearn, originals, data, requests: see `over_seeds`.
        key: one typed key, split over seeds and requests.
        chunk, mesh: see `over_seeds`.
    """
    seeds, lanes = jax.tree.leaves(originals)[0].shape[0], requests.indices.shape[0]
    keys = jax.random.split(key, (seeds, lanes))
    if mesh is None:
        done = timed(over_seeds(unlearn, chunk=chunk), originals, data, requests, keys)
    else:
        data = ju.replicate(data, mesh)
        calls = [(lane, data, requests, keys[s]) for s, lane in enumerate(_unstack(originals))]
        done = reusable(unlearn, chunk=chunk, mesh=mesh)(calls)
    ju.check(done.result)
    return done


class Outcome(NamedTuple):
    """What a comparison of methods looks at: accuracies, or root mean squared errors for real targets."""

    retain: Float[Array, "s r"]
    forget: Float[Array, "s r"]
    test: Float[Array, "s r"]
    unseen: Float[Array, "s r"]  # on unseen rows drawn like the forgotten ones
    auc: Float[Array, "s r"]  # of the loss attack: forgotten rows against those


def outcome(
    study: Study,
    variables: ju.Variables,
    requests: ju.ForgetRequest,
    unseen: ju.Examples,
    unseen_weights: Float[Array, "r m"],
) -> Outcome:
    """Audit the models [R] of one original; run it under `jax.jit`.

    Args:
        study: its model, data and test rows.
        variables: one model a request.
        requests: [R].
        unseen: rows that no model was trained on.
        unseen_weights: 1 where one of them is drawn like the rows of a request.
    """
    model = study.model

    def one(variables, request, weights):
        performance = ju.audit.performance(model, variables, study.data, request, study.test)
        scores = ju.audit.loss_scores(model, variables, study.data, request, unseen)._replace(nonmember_weights=weights)
        if performance.accuracy is not None:
            sets = performance.accuracy
            logits = ju.audit.predict(model, variables, unseen)
            like = ju.audit.accuracy(logits, jnp.asarray(unseen.targets), weights)
        else:
            sets = jax.tree.map(lambda loss: jnp.sqrt(2 * loss), performance.loss)  # squared_error has a factor 1/2
            like = jnp.sqrt(-2 * jnp.sum(jnp.where(weights > 0, scores.nonmembers, 0)) / jnp.sum(weights))
        return Outcome(sets.retain, sets.forget, sets.test, like, ju.audit.auc(*scores))

    return jax.vmap(one)(variables, requests, unseen_weights)


class Measures(NamedTuple):
    """What the audit finds for each seed and request."""

    retain_accuracy: Float[Array, "s r"]
    forget_accuracy: Float[Array, "s r"]
    test_accuracy: Float[Array, "s r"]
    forget_loss: Float[Array, "s r"]
    auc: Float[Array, "s r"]  # of the loss attack
    tpr: Float[Array, "s r"]  # of the loss attack, at a false positive rate of 1 %
    divergence: Float[Array, "s r"]  # Jensen-Shannon to the retrained model, on forgotten rows
    roc: Float[Array, "s r p"]  # true positive rates at FALSE_POSITIVE_RATES


def measure(study: Study, variables: ju.Variables, retrained: ju.Variables, requests: ju.ForgetRequest) -> Measures:
    """Audit models [S, R]; run it under `jax.jit`."""
    model, data, test = study.model, study.data, study.test
    grid = jnp.asarray(FALSE_POSITIVE_RATES, jnp.float32)

    def one(variables, reference, request):
        performance = ju.audit.performance(model, variables, data, request, test)
        assert performance.accuracy is not None  # a study classifies
        scores = ju.audit.loss_scores(model, variables, data, request, test)
        curve = ju.audit.roc_curve(*scores)
        reached = curve.fpr[None, :] <= grid[:, None]
        return Measures(
            performance.accuracy.retain,
            performance.accuracy.forget,
            performance.accuracy.test,
            performance.loss.forget,
            ju.audit.auc(*scores),
            ju.audit.tpr_at_fpr(*scores).estimate,
            ju.audit.forget_divergence(model, variables, reference, data, request),
            jnp.max(jnp.where(reached, curve.tpr[None, :], 0), axis=1),
        )

    return jax.lax.map(lambda pair: jax.vmap(one)(pair[0], pair[1], requests), (variables, retrained))


def repeat(originals: ju.Variables, lanes: int) -> ju.Variables:
    """Doing nothing: each seed's original as its answer to every request."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], lanes, *x.shape[1:])), originals)


COMPARED = ("retain_accuracy", "forget_accuracy", "test_accuracy", "auc")


def spreads(retrained: Any, compared: Sequence[str] = COMPARED) -> dict[str, float]:
    """Seed spread of one retrained model: standard deviation over seeds at a fixed request, root mean square over requests.

    Args:
        retrained: `Measures` or `Outcome` of retrained models.
        compared: which of its measures.
    """
    return {name: float(np.sqrt(np.var(np.asarray(getattr(retrained, name)), axis=0, ddof=1).mean())) for name in compared}


def gaps(measures: Any, retrained: Any, compared: Sequence[str] = COMPARED) -> dict[str, ju.audit.Interval]:
    """Signed gaps to the retrained models of the same seeds and requests, with intervals."""
    return {name: ju.audit.crossed_interval(getattr(measures, name) - getattr(retrained, name)) for name in compared}


def in_spreads(measures: Any, retrained: Any, compared: Sequence[str] = COMPARED, *, least: float = 0.0) -> dict[str, float]:
    """Signed mean gaps in units of the seed spread; a gap that is not there is 0 even where nothing varies.

    Args:
        measures, retrained, compared: as in `gaps`.
        least: a spread below this counts as this; spreads over few seeds can be 0 by chance.
    """
    width = {name: max(value, least) for name, value in spreads(retrained, compared).items()}
    values = {name: float(interval.estimate) for name, interval in gaps(measures, retrained, compared).items()}
    return {
        name: value / width[name] if width[name] else float(np.sign(value) * np.inf if value else 0)
        for name, value in values.items()
    }


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and intervals as plain Python; what is not finite becomes null, which is JSON."""

    def number(value: Any) -> float | None:
        return float(value) if np.isfinite(value) else None

    return {
        name: {part: number(x) for part, x in value._asdict().items()}
        if isinstance(value, ju.audit.Interval)
        else number(value)
        for name, value in values.items()
    }
