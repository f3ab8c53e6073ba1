"""The loops: `iterate` on the device, `feed` on the host, and the ways to compose methods.

A method that descends on some objective is `descend(model, optimizer, objective)`; whoever needs another kind
of step writes an `Unlearner` by hand. Both run through `iterate`, the only training loop of the library.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import risk, status, tree
from jaxunlearn.types import (
    Batch,
    BatchSizes,
    Data,
    Examples,
    ForgetRequest,
    Model,
    OnEmpty,
    Result,
    Sampler,
    Scalar,
    Unlearner,
    UnlearnFn,
    Variables,
    Weighted,
)


class Objective(Protocol):
    """`objective(variables, context, batch, key) -> (loss, (moved model state, stats))`."""

    def __call__(
        self, variables: Variables, context: Any, batch: Batch, key: PRNGKeyArray, /
    ) -> tuple[Float[Array, ""], tuple[PyTree, dict[str, jax.Array]]]: ...


class GradientState(NamedTuple):
    """What a gradient method carries from step to step."""

    variables: Variables
    optimizer: optax.OptState


def _no_context(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Any:
    return ()


def _from_trained(variables: Variables, key: PRNGKeyArray) -> Variables:
    return variables


def descend(
    model: Model,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    context: Callable[[Variables, Data, ForgetRequest, PRNGKeyArray], Any] = _no_context,
    start: Callable[[Variables, PRNGKeyArray], Variables] = _from_trained,
    sample: Sampler = risk.uniform,
    on_empty: OnEmpty = "identity",
) -> Unlearner:
    """Gradient descent on an objective, as an `Unlearner`.

    Args:
        model: the user's model.
        optimizer: any optax transformation; those that ask for `value`, `grad` or `value_fn` get them.
        objective: see `Objective`; differentiated with respect to `variables.params`.
        context: `(variables, data, request, key) -> context`, e.g. a teacher; read-only during the run.
        start: `(variables, key) -> Variables`, where the descent begins.
        sample: draws the batches.
        on_empty: see `Unlearner`.
    """
    if not isinstance(model, Model):
        raise TypeError(f"expected a Model(forward, loss), got {type(model).__name__}")
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"expected an optax transformation such as optax.sgd(0.1), got {type(optimizer).__name__}")
    optimizer = optax.with_extra_args_support(optimizer)

    def init(variables, data, request, key):
        context_key, start_key = jax.random.split(key)
        first = start(variables, start_key)
        return context(variables, data, request, context_key), GradientState(first, optimizer.init(first.params))

    def step(state, context, batch, key):
        params, model_state = state.variables

        def loss_at(params):
            return objective(Variables(params, model_state), context, batch, key)

        (loss, (model_state_after, stats)), gradient = jax.value_and_grad(loss_at, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(
            gradient, state.optimizer, params, value=loss, grad=gradient, value_fn=lambda p: loss_at(p)[0]
        )
        variables = Variables(optax.apply_updates(params, updates), model_state_after)
        return GradientState(variables, optimizer_state), {"loss": loss, **stats}

    return Unlearner(init, step, lambda state, context: state.variables, sample, on_empty)


Augment: TypeAlias = Callable[[Examples, PRNGKeyArray], Examples]
Look: TypeAlias = Callable[[Variables, Data, ForgetRequest], jax.Array]
ActiveSteps: TypeAlias = Scalar | Callable[[Data, ForgetRequest], jax.Array]


class Loop(TypedDict, total=False):
    """Options of `iterate` besides `num_steps` and `batch_size`; every iterative method takes them by keyword."""

    retain_batch_size: int | None
    active_steps: ActiveSteps | None
    augment: Augment | None
    stop: Look | None
    keep_best: Look | None
    look_every: int
    peek: bool


class _Progress(NamedTuple):
    state: Any
    running: jax.Array  # Bool[]
    best: Any  # (score, step, variables) of the best look, () without keep_best


class _Hidden:
    """Stands where `stop` and `keep_best` must not look."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str):
        raise ValueError(
            f"stop and keep_best may not read {self._name}.{attribute}: choose on data.extra['validation'], "
            "or pass peek=True, which is recorded in Result.stats['peek']"
        )


def iterate(
    unlearner: Unlearner,
    num_steps: int,
    *,
    batch_size: int,
    retain_batch_size: int | None = None,
    active_steps: ActiveSteps | None = None,
    augment: Augment | None = None,
    stop: Look | None = None,
    keep_best: Look | None = None,
    look_every: int = 1,
    peek: bool = False,
) -> UnlearnFn:
    """Run an `Unlearner` for a number of steps inside one program.

    Args:
        unlearner: the method, step by step.
        num_steps: static length of the loop.
        batch_size: rows of the request a step; the retain side draws as many unless `retain_batch_size` is given.
        retain_batch_size: rows of the retain set a step.
        active_steps: a number of steps up to `num_steps`, or `(data, request) -> number`, that may be traced and
            differ between requests; later steps change nothing.
        augment: `(examples, key) -> examples`, applied to both sides of every batch.
        stop: `(variables, data, request) -> bool`; True ends the run there.
        keep_best: `(variables, data, request) -> score`; the variables of the highest score are returned instead of
            the last ones. The variables before the first step do not compete, and neither does a score that is NaN.
        look_every: steps between two calls of `stop` and `keep_best`.
        peek: let `stop` and `keep_best` see the training rows and the request. Without it they see
            `data.extra["validation"]` only, because choosing on rows that are reported flatters the report.

    Returns:
        An `UnlearnFn`. Its `stats` hold every scalar of `unlearner.step` as an array [num_steps] (after an early end,
        entries from `steps` on are of steps that changed nothing), `steps` (Int[], how many were made), `peek` (Bool[]) and,
        with `keep_best`, `best_step` (Int[]) and `best_score` (Float[]).

    Raises:
        ValueError, TypeError: for a `num_steps` or batch size that is not a positive integer, at construction; for
            variables, data, requests or keys of the wrong form, at trace time.
    """
    tree.require_count("num_steps", num_steps, least=0)
    tree.require_count("batch_size", batch_size)
    tree.require_count("look_every", look_every)
    sizes = BatchSizes(batch_size, batch_size if retain_batch_size is None else retain_batch_size)
    tree.require_count("retain_batch_size", sizes.retain)
    looks = stop is not None or keep_best is not None
    if looks and look_every > num_steps:
        raise ValueError(
            f"look_every={look_every} is more than num_steps={num_steps}: stop and keep_best would never be called"
        )
    if active_steps is not None and not callable(active_steps):
        tree.check_range("active_steps", active_steps, low=0, high=num_steps)
    may_freeze = stop is not None or active_steps is not None

    def unlearn(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Result:
        tree.check_call(variables, data, request, key)
        (train, present), request = jax.tree.map(jnp.asarray, (data[:2], request))
        data = data._replace(train=train, present=present)
        visible, visible_request = (data, request) if peek else _validation_only(data, looks)
        init_key, split_key, loop_key = jax.random.split(key, 3)
        context, state = unlearner.init(variables, data, request, init_key)
        split = risk.split(data, request, split_key)
        limit = active_steps(data, request) if callable(active_steps) else active_steps

        def look(progress: _Progress, step: jax.Array) -> _Progress:
            candidate = unlearner.finalize(progress.state, context)
            running, best = progress.running, progress.best
            if keep_best is not None:
                score = jnp.asarray(keep_best(candidate, visible, visible_request), jnp.float32)
                better = running & (score > best[0])
                best = tree.select(better, (score, step + 1, candidate), best)
            if stop is not None:
                running &= ~jnp.asarray(stop(candidate, visible, visible_request), bool)
            return _Progress(progress.state, running, best)

        def body(progress: _Progress, step: jax.Array):
            running = progress.running if limit is None else progress.running & (step < limit)
            sample_key, augment_key, step_key = step_keys(loop_key, step)
            batch = unlearner.sample(split, context, step, sample_key, sizes)
            if augment is not None:
                batch = _augmented(augment, batch, augment_key)
            state, stats = unlearner.step(progress.state, context, batch, step_key)
            if may_freeze:
                state = tree.select(running, state, progress.state)
            progress = _Progress(state, running, progress.best)
            if looks:
                progress = jax.lax.cond((step + 1) % look_every == 0, look, lambda p, _: p, progress, step)
            return progress, {**stats, "ran": running}

        first = unlearner.finalize(state, context)
        tree.check_same(variables, first)
        best = (jnp.float32(-jnp.inf), jnp.int32(0), first) if keep_best is not None else ()
        progress = _Progress(state, jnp.array(True), best)
        progress, stats = jax.lax.scan(body, progress, jnp.arange(num_steps, dtype=jnp.int32))
        made = jnp.sum(stats.pop("ran"), dtype=jnp.int32)
        stats = {**stats, "steps": made, "peek": jnp.array(peek and looks)}
        final = unlearner.finalize(progress.state, context)
        if keep_best is not None:
            score, stats["best_step"], kept = progress.best
            stats["best_score"] = score
            final = tree.select(stats["best_step"] > 0, kept, final)
        return _finish(unlearner.on_empty, variables, final, data, request, stats)

    return unlearn


class Updated(NamedTuple):
    """What an update without a loop makes of its variables."""

    variables: Variables
    stats: dict[str, jax.Array]
    extra: dict[str, PyTree] = {}  # entries of `Data.extra` that a stream carries on
    converged: bool | jax.Array = True


Update: TypeAlias = Callable[[Variables, Data, ForgetRequest, PRNGKeyArray], Updated]


def one_shot(update: Update, *, on_empty: OnEmpty = "identity") -> UnlearnFn:
    """An `UnlearnFn` from one update without a loop: the checks, the status and the treatment of empty requests of `iterate`.

    Args:
        update: `(variables, data, request, key) -> Updated`.
        on_empty: see `Unlearner`.
    """

    def unlearn(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Result:
        tree.check_call(variables, data, request, key)
        (train, present), request = jax.tree.map(jnp.asarray, (data[:2], request))
        data = data._replace(train=train, present=present)
        after, stats, extra, converged = update(variables, data, request, key)
        tree.check_same(variables, after)
        result = _finish(on_empty, variables, after, data, request, stats)
        return result._replace(
            extra=extra, status=jnp.maximum(result.status, status.combine(NOT_CONVERGED=~jnp.asarray(converged)))
        )

    return unlearn


def step_keys(key: PRNGKeyArray, step: int | jax.Array) -> tuple[PRNGKeyArray, PRNGKeyArray, PRNGKeyArray]:
    """Keys of one step: for sampling, for augmentation, for the step itself. Those that are not used cost nothing."""
    first = 3 * step
    return jax.random.fold_in(key, first), jax.random.fold_in(key, first + 1), jax.random.fold_in(key, first + 2)


def _finish(on_empty: OnEmpty, before: Variables, after: Variables, data: Data, request: ForgetRequest, stats: dict) -> Result:
    used = request.weights > 0
    usable = risk.usable_slots(data, request)
    if on_empty == "identity":
        idle = risk.is_empty(request._replace(weights=usable.astype(request.weights.dtype)))
        after = tree.select(idle, before, after)
    code = status.combine(
        EMPTY_REQUEST=risk.is_empty(request),
        INVALID_ROWS=jnp.any(used & ~usable),
        NOTHING_RETAINED=jnp.sum(usable) == jnp.sum(data.present > 0),
        NONFINITE=~tree.all_finite(after),
    )
    return Result(after, code, stats)


def _validation_only(data: Data, looks: bool) -> tuple[Any, Any]:
    if not looks:
        return None, None
    if "validation" not in data.extra:
        raise ValueError(
            "stop and keep_best choose on data.extra['validation']: add held-out rows with "
            "training_data(..., extra={'validation': Examples(inputs, targets)}), or pass peek=True"
        )
    hidden = _Hidden("data.train")
    return Data(hidden, hidden, {"validation": data.extra["validation"]}), _Hidden("request")  # type: ignore[arg-type]


def _augmented(augment: Augment, batch: Batch, key: PRNGKeyArray) -> Batch:
    def apply(part: Weighted, key: PRNGKeyArray) -> Weighted:
        return part._replace(examples=risk.blank(augment(part.examples, key), part.weights))

    forget_key, retain_key = jax.random.split(key)
    return batch._replace(forget=apply(batch.forget, forget_key), retain=apply(batch.retain, retain_key))


class Checkpoint(Protocol):
    """Durable storage for `feed`; see `jaxunlearn.checkpoint.Directory`."""

    def restore(self, like: PyTree, run: str) -> tuple[int, PyTree, Any] | None:
        """Newest `(step, tree, source state)` of this run, None if there is none; ValueError if it is another run's."""
        ...

    def save(self, step: int, tree: PyTree, source: Any, run: str) -> None:
        """Keep the tree after `step` steps; may skip steps that are not due."""
        ...


Source: TypeAlias = Callable[[int], Batch] | Iterator[Batch]


def feed(
    unlearner: Unlearner,
    variables: Variables,
    source: Source,
    request: ForgetRequest,
    key: PRNGKeyArray,
    *,
    num_steps: int,
    data: Data | None = None,
    checkpoint: Checkpoint | None = None,
    callback: Callable[[int, dict[str, jax.Array]], None] | None = None,
) -> Result:
    """Run an `Unlearner` from the host, on batches that come from outside; for data that do not fit the device.

    Given the batches that `iterate` would draw, it returns what `iterate` returns.

    Args:
        unlearner: the method, step by step.
        variables: the trained model.
        source: `source(step) -> Batch`, or an iterator of batches; an iterator needs `get_state` and `set_state`
            (as grain's have) to be resumed exactly.
        request: what is forgotten. Its indices are in the numbering of `source`; they are not looked up here.
        key: one typed key.
        num_steps: steps in all, those before a resume included.
        data: only for methods whose `init` reads data.
        checkpoint: where progress is kept; an unfinished run found there is resumed. That of another method,
            hyper-parameter, model, key or request is refused (told by the traced step and the values it starts from).
        callback: `(step, stats)` after each step, e.g. a progress bar.

    Returns:
        Result; `stats` holds `steps` (Int[], in all) and the scalars of the last step made by this call.

    Raises:
        ValueError: the source ended early, cannot be resumed, or the checkpoint belongs to another run.
    """
    tree.check_variables(variables)
    tree.check_key(key)
    tree.require_count("num_steps", num_steps, least=0)
    nothing = Data(Examples((), ()), jnp.zeros(0))
    init_key, _, loop_key = jax.random.split(key, 3)
    context, state = unlearner.init(variables, nothing if data is None else data, request, init_key)
    resumable = callable(source) or (hasattr(source, "get_state") and hasattr(source, "set_state"))
    if checkpoint is not None and not resumable:
        raise ValueError("an iterator without get_state and set_state cannot be resumed; pass source(step) or a grain iterator")
    run, first = "", 0
    if checkpoint is not None:
        run = _fingerprint(unlearner.step, (state, context, _first_batch(source), key), (variables, request, key))
    if checkpoint is not None and (found := checkpoint.restore(state, run)) is not None:
        first, state, position = found
        if first > num_steps:
            raise ValueError(f"the checkpoint holds {first} steps, more than num_steps={num_steps}; raise num_steps")
        if not callable(source):
            source.set_state(position)  # type: ignore[attr-defined]
    step_once = jax.jit(unlearner.step)
    stats: dict[str, jax.Array] = {}
    for step in range(first, num_steps):
        try:
            batch = source(step) if callable(source) else next(source)
        except StopIteration:
            raise ValueError(f"the source ended after {step} of {num_steps} steps; repeat it or lower num_steps") from None
        state, stats = step_once(state, context, batch, step_keys(loop_key, step)[2])
        if checkpoint is not None:
            position = None if callable(source) else source.get_state()  # type: ignore[attr-defined]
            checkpoint.save(step + 1, state, position, run)
        if callback is not None:
            callback(step, stats)
    final = unlearner.finalize(state, context)
    tree.check_same(variables, final)
    if unlearner.on_empty == "identity":
        final = tree.select(risk.is_empty(request), variables, final)
    code = status.combine(EMPTY_REQUEST=risk.is_empty(request), NONFINITE=~tree.all_finite(final))
    return Result(final, code, {**stats, "steps": jnp.int32(num_steps)})


def _first_batch(source: Any) -> Any:
    """The batch a source begins with; the source stays where it is."""
    if callable(source):
        return source(0)
    position = source.get_state()
    try:
        return next(source)
    except StopIteration:
        raise ValueError("the source holds no batch") from None
    finally:
        source.set_state(position)


def _fingerprint(step: Callable, arguments: tuple, origin: PyTree) -> str:
    """Tells runs apart by the program of a step, what it captured, and the values the run starts from."""
    program = jax.make_jaxpr(step)(*arguments)
    text = re.sub(r"0x[0-9a-f]+", "", str(program))  # addresses of functions differ from process to process
    digest = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves((program.consts, arguments[1], origin)):
        typed_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(leaf) if typed_key else leaf).tobytes())
    return digest.hexdigest()


def then(first: UnlearnFn, second: UnlearnFn) -> UnlearnFn:
    """Compose two methods: the second starts from what the first returns, e.g. unlearn, then repair.

    The status is the graver of the two; stats are prefixed `first/` and `second/`; `extra` of the first is in the
    data of the second. Nest it for more than two.
    """

    def unlearn(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Result:
        first_key, second_key = jax.random.split(key)
        one = first(variables, data, request, first_key)
        two = second(one.variables, data._replace(extra={**data.extra, **one.extra}), request, second_key)
        stats = {f"first/{name}": x for name, x in one.stats.items()} | {f"second/{name}": x for name, x in two.stats.items()}
        return Result(two.variables, jnp.maximum(one.status, two.status), stats, {**one.extra, **two.extra})

    return unlearn


Select: TypeAlias = Callable[[Variables, Data, ForgetRequest, PRNGKeyArray], Int[Array, "k"] | Float[Array, "k"]]


def filtered(select: Select, unlearn: UnlearnFn) -> UnlearnFn:
    """Narrow a request before it is answered.

    Args:
        select: `(variables, data, request, key) -> keep`, shape [k]; slots with `keep > 0` stay in the request.
        unlearn: answers the narrowed request. What was left out stays in the retain set.

    Returns:
        An `UnlearnFn` whose `stats["skipped"]` (Float[k]) is 1 in the slots that were left out. In a stream they count as
        answered all the same: `streamed` clears the rows of the whole request.
    """

    def narrowed(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Result:
        select_key, unlearn_key = jax.random.split(key)
        kept = jnp.where(select(variables, data, request, select_key) > 0, request.weights, 0)
        result = unlearn(variables, data, request._replace(weights=kept), unlearn_key)
        return result._replace(stats={**result.stats, "skipped": request.weights - kept})

    return narrowed
