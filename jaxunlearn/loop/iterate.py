"""The only training loop of the library, on the device."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxunlearn import checks, meshes, sampling, tree
from jaxunlearn.loop.damage import ROWS, classes_of, damage
from jaxunlearn.loop.outcome import begin, finish
from jaxunlearn.loop.preparation import prepared_by
from jaxunlearn.status import combine
from jaxunlearn.types import (
    Batch,
    BatchSizes,
    Data,
    Examples,
    ForgetRequest,
    Result,
    Scalar,
    Unlearner,
    UnlearnFn,
    Variables,
    View,
    Weighted,
)


class Seen(NamedTuple):
    """What `stop` and `keep_best` may look at; training rows and request are hidden unless `peek=True`."""

    validation: Examples
    data: Data
    request: ForgetRequest


Augment: TypeAlias = Callable[[Examples, PRNGKeyArray], Examples]
Look: TypeAlias = Callable[[Variables, Seen], jax.Array]
ActiveSteps: TypeAlias = Scalar | Callable[[Data, ForgetRequest], jax.Array]


class _Progress(NamedTuple):
    state: Any
    running: jax.Array  # Bool[]
    best: Any  # (score, step, variables) of the best look, () without keep_best
    visited: jax.Array  # Bool[k], slots of the request that were drawn


class _Hidden:
    """Stands where `stop` and `keep_best` must not look."""

    def __init__(self, name: str, instead: str):
        self._name, self._instead = name, instead

    def __getattr__(self, attribute: str):
        raise ValueError(f"stop and keep_best may not read seen.{self._name}.{attribute}: {self._instead}")


def iterate(
    unlearner: Unlearner,
    num_steps: int | None = None,
    *,
    batch_size: int,
    epochs: int | None = None,
    retain_batch_size: int | None = None,
    active_steps: ActiveSteps | None = None,
    augment: Augment | None = None,
    stop: Look | None = None,
    keep_best: Look | None = None,
    look_every: int = 1,
    validation: Examples | None = None,
    peek: bool = False,
    damaged_at: Scalar | None = None,
) -> UnlearnFn:
    """Run an `Unlearner` for a number of steps inside one program; this is how a method with steps becomes an `UnlearnFn`.

    Args:
        unlearner: the method, step by step, e.g. `jaxunlearn.scrub(model, optimizer)`.
        num_steps: static length of the loop; or `epochs` in its place.
        batch_size: rows of the forget set per step; the retain side draws as many unless `retain_batch_size` is given.
        epochs: passes over the forget set, of `ceil(k / batch_size)` steps each: a request of more rows gets more steps. In
            methods with phases every step counts, whichever set it reads. An empty request gets none.
        retain_batch_size: rows of the retain set per step.
        active_steps: a number of steps up to `num_steps`, or `(data, request) -> Int[]`, which may be traced and
            differ between requests; later steps change nothing.
        augment: `(examples, key) -> examples`, applied to both sides of every batch.
        stop: `(variables, seen) -> Bool[]`, True ends the run there; `seen.validation` are the rows to choose on. See
            `jaxunlearn.until_unseen`.
        keep_best: `(variables, seen) -> Float[]`, a score; the variables of the highest score are returned instead of
            the last ones. The variables before the first step do not compete, and neither does a score that is NaN.
        look_every: steps between two calls of `stop` and `keep_best`; a request that runs for fewer is not looked at.
        validation: held-out rows for `stop` and `keep_best`.
        peek: let `stop` and `keep_best` see the training rows and the request, as `seen.data` and `seen.request`.
            Choosing on rows that are reported flatters the report, so it is recorded in `stats["peek"]`.
        damaged_at: mean loss of retained rows from which the status says DAMAGED, see `jaxunlearn.loop.damage`; by default
            that of guessing among the classes, or twice that before the run if that is more.

    Returns:
        An `UnlearnFn`. Its `stats` hold every entry of the method's per-step `stats` with a leading axis [num_steps] (after
        an early end, entries from `steps` on are of steps that changed nothing), `steps` Int[] (how many were made), `visited`
        Float[] (share of the forget set that was drawn), `moved` Float[] (share of the numbers in the variables that changed),
        `retain_loss_before` and `retain_loss_after` Float[] (of up to 64 retained rows in evaluation mode, for methods that
        may read those), `peek` Bool[], `chosen_on_request` Bool[] (whether `stop`, `keep_best` or `active_steps` could read
        the request, as `until_unseen` does), `first_look` Int[] (step of their first look, 0 without) and, with
        `keep_best`, `best_step` Int[] and `best_score` Float[].

    Raises:
        ValueError: at construction, neither or both of `num_steps` and `epochs`, or `epochs` of a training; one of them (both
            may be 0), `look_every` or a batch size that is not a positive integer, `active_steps` beyond `num_steps` or beside
            `epochs`, `look_every` beyond the last step; at trace time, variables, data or requests of the wrong shape, and
            `stop` or `keep_best` without rows to look at.
        TypeError: no `Unlearner`; a `num_steps` that is traced; at trace time, no `Variables` or no typed key.

    Example:
        >>> method = jaxunlearn.gradient_difference(model, optax.sgd(0.1), alpha=0.9)
        >>> unlearn = jaxunlearn.iterate(method, num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
        >>> result.stats["loss"].shape, int(result.stats["steps"])
        ((10,), 10)

        The parameters that are best on held-out rows:

        >>> def accuracy(variables, seen):
        ...     logits = model.forward(variables, seen.validation.inputs).logits
        ...     return jnp.mean(jnp.argmax(logits, axis=-1) == seen.validation.targets)
        >>> unlearn = jaxunlearn.iterate(method, num_steps=10, batch_size=8, keep_best=accuracy, validation=test)
        >>> 1 <= int(unlearn(variables, data, request, key).stats["best_step"]) <= 10
        True
    """
    checks.require_unlearner(unlearner, "iterate")
    if (num_steps is None) == (epochs is None):
        raise ValueError("iterate takes num_steps=100 or epochs=5, one of them")
    if epochs is not None and unlearner.on_empty == "train":
        raise ValueError("epochs are passes over the forget set, of which a training reads nothing: pass num_steps")
    checks.require_count(*(("num_steps", num_steps) if epochs is None else ("epochs", epochs)), least=0)
    checks.require_count("batch_size", batch_size)
    checks.require_count("look_every", look_every)
    sizes = BatchSizes(batch_size, batch_size if retain_batch_size is None else retain_batch_size)
    checks.require_count("retain_batch_size", sizes.retain)
    looks = stop is not None or keep_best is not None
    if looks and num_steps is not None:
        _check_looks(look_every, num_steps)
    if damaged_at is not None:
        checks.check_range("damaged_at", damaged_at, low=-jnp.inf)
    if active_steps is not None and epochs is not None:
        raise ValueError("active_steps and epochs both say how long a request runs: pass one of them")
    if active_steps is not None and not callable(active_steps):
        checks.check_range("active_steps", active_steps, low=0, high=num_steps or 0)
    may_freeze = stop is not None or active_steps is not None or epochs is not None
    reads = any(getattr(look, "reads_forget_set", False) for look in (stop, keep_best))
    chosen = callable(active_steps) or (looks and (peek or reads))
    passes: Any = epochs

    def unlearn(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Result:
        data, request = begin(variables, data, request, key)
        meshes.require_rows("batch_size", sizes.forget)
        meshes.require_rows("retain_batch_size", sizes.retain)
        init_key, split_key, loop_key = jax.random.split(key, 3)
        context, state = meshes.over_parameters(unlearner.init(variables, data, request, init_key))
        view = View(data, request) if unlearner.view is None else unlearner.view(variables, data, request, context)
        split = sampling.split(view.data, view.request, split_key)
        shown: Any = tuple(look and _seen(look, validation, data, request, peek) for look in (stop, keep_best))
        if num_steps is not None:
            total, limit = num_steps, active_steps(data, request) if callable(active_steps) else active_steps
        else:
            total, limit = (passes * (-(-rows // batch_size)) for rows in (view.request.indices.shape[0], split.num_forget))
            if looks:
                _check_looks(look_every, total)
        length = total if limit is None else jnp.maximum(limit, 1)  # of this request's own run

        def look(progress: _Progress, step: jax.Array) -> _Progress:
            candidate = unlearner.finalize(progress.state, context)
            running, best = progress.running, progress.best
            if keep_best is not None:
                score = jnp.asarray(keep_best(candidate, shown[1]), jnp.float32)
                better = running & (score > best[0])
                best = tree.select(better, (score, step + 1, candidate), best)
            if stop is not None:
                running &= ~jnp.asarray(stop(candidate, shown[0]), bool)
            return _Progress(progress.state, running, best, progress.visited)

        def body(progress: _Progress, step: jax.Array):
            running = progress.running if limit is None else progress.running & (step < limit)
            sample_key, augment_key, step_key = step_keys(loop_key, step)
            batch = unlearner.sample(split, context, step, sample_key, sizes)._replace(step=step, num_steps=length)
            if augment is not None:
                batch = _augmented(augment, batch, augment_key)
            state, stats = unlearner.step(progress.state, context, batch, step_key)
            forget = batch.forget
            visited = progress.visited.at[forget.slots].max((forget.weights > 0) & running, mode="drop")
            if may_freeze:
                state = tree.select(running, state, progress.state)
            progress = _Progress(meshes.over_parameters(state), running, progress.best, visited)
            if looks:
                progress = jax.lax.cond((step + 1) % look_every == 0, look, lambda p, _: p, progress, step)
            return progress, {**stats, "ran": running}

        first = unlearner.finalize(state, context)
        checks.check_same(variables, first)
        classes = classes_of(unlearner.model, variables, data)
        best = (jnp.float32(-jnp.inf), jnp.int32(0), first) if keep_best is not None else ()
        progress = _Progress(state, jnp.array(True), best, jnp.zeros(view.request.indices.shape, bool))
        progress, stats = jax.lax.scan(body, progress, jnp.arange(total, dtype=jnp.int32))
        made = jnp.sum(stats.pop("ran"), dtype=jnp.int32)
        stats = {**stats, "steps": made, "peek": jnp.array(peek and looks)}
        stats |= {"chosen_on_request": jnp.array(chosen), "first_look": jnp.int32(look_every if looks else 0)}
        final = unlearner.finalize(progress.state, context)
        if keep_best is not None:
            score, stats["best_step"], kept = progress.best
            stats["best_score"] = score
            final = tree.select(stats["best_step"] > 0, kept, final)
        stats["visited"] = jnp.sum(progress.visited) / jnp.maximum(split.num_forget, 1).astype(jnp.float32)
        code = view.status
        if unlearner.judged is not None:
            own = split if unlearner.view is None else sampling.split(data, request, jax.random.fold_in(loop_key, 3 * total))
            rows = sampling.spread_retain(own, min(ROWS, data.present.shape[0]))
            found, conditions = damage(unlearner.judged, variables, final, rows, damaged_at)
            stats |= found
            code = jnp.maximum(code, combine(**conditions))
        return finish(unlearner.on_empty, variables, data, request, Result(final, code, stats), classes)

    return prepared_by(unlearn, unlearner.prepare)


def step_keys(key: PRNGKeyArray, step: int | jax.Array) -> tuple[PRNGKeyArray, PRNGKeyArray, PRNGKeyArray]:
    """Keys of one step: for sampling, for augmentation, for the step itself. Those that are not used cost nothing."""
    first = 3 * step
    return jax.random.fold_in(key, first), jax.random.fold_in(key, first + 1), jax.random.fold_in(key, first + 2)


def _check_looks(look_every: int, num_steps: int) -> None:
    if look_every > num_steps:
        raise ValueError(
            f"look_every={look_every} is more than num_steps={num_steps}: stop and keep_best would never be called"
        )


def _seen(look: Look, validation: Examples | None, data: Data, request: ForgetRequest, peek: bool) -> Seen:
    """What a rule may look at; one that `reads_forget_set` compares it with rows of its own, as a method does."""
    instead = "choose on seen.validation, or pass peek=True, which is recorded in Result.stats['peek']"
    peek |= getattr(look, "reads_forget_set", False)
    if validation is None:
        if not peek:
            raise ValueError(
                "stop and keep_best choose on held-out rows: pass iterate(..., validation=Examples(inputs, targets)), or "
                "peek=True"
            )
        validation = _Hidden("validation", "pass iterate(..., validation=Examples(inputs, targets))")  # type: ignore[assignment]
    else:
        validation = jax.tree.map(jnp.asarray, validation)
    if peek:
        return Seen(validation, data, request)  # type: ignore[arg-type]
    return Seen(validation, _Hidden("data", instead), _Hidden("request", instead))  # type: ignore[arg-type]


def _augmented(augment: Augment, batch: Batch, key: PRNGKeyArray) -> Batch:
    def apply(part: Weighted, key: PRNGKeyArray) -> Weighted:
        return part._replace(examples=sampling.fill(augment(part.examples, key), part.weights))

    forget_key, retain_key = jax.random.split(key)
    return batch._replace(forget=apply(batch.forget, forget_key), retain=apply(batch.retain, retain_key))
