"""The host-side twin of `iterate`, for data that do not fit the device: batches come from outside, progress is durable."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from jaxunlearn import checks, meshes, sampling, status, tree
from jaxunlearn.loop.damage import damage
from jaxunlearn.loop.iterate import step_keys
from jaxunlearn.types import Batch, Data, Examples, ForgetRequest, Result, Scalar, Unlearner, Variables


class Checkpoint(Protocol):
    """Durable storage for `feed`; see `jaxunlearn.service.checkpoint.Directory`."""

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
    damaged_at: Scalar | None = None,
) -> Result:
    """Run an `Unlearner` from the host, on batches that come from outside; for data that do not fit the device.

    Given the batches that `iterate` would draw, it returns what `iterate` returns. Under `jax.set_mesh` the devices of the axes
    `data` and `fsdp` share the rows of a batch where they divide their number, and what is carried lies in parts over `fsdp`,
    see `jaxunlearn.request_mesh`; a run may go on from its checkpoint on another number of devices. On a mesh that spans
    processes a source gives the same batch in each, or arrays that span them (`jax.make_array_from_process_local_data`).

    Args:
        unlearner: the method, step by step, as for `jaxunlearn.iterate`.
        variables: the trained model's parameters and state.
        source: `source(step) -> Batch`, or an iterator of batches; an iterator needs `get_state` and `set_state`
            (as grain's have) to be resumed exactly. `Batch.step` and `Batch.num_steps` are filled in here.
        request: what is forgotten. Its indices are in the numbering of `source`; they are not looked up here.
        key: one typed key.
        num_steps: steps in all, those before a resume included.
        data: only for methods whose `init` reads data.
        checkpoint: where progress is kept, e.g. `jaxunlearn.checkpoint.Directory(path, every=100)`; an unfinished run found
            there is resumed. That of another method, hyper-parameter, model, key or request is refused (told by the traced
            step and the values it starts from).
        callback: `(step, stats)` after each step, e.g. a progress bar.
        damaged_at: mean loss of retained rows, those of the last batch, from which the status says DAMAGED; as in `iterate`.

    Returns:
        A `Result`; `stats` holds `steps` Int[] (in all), the per-step `stats` of the last step made by this call, `moved`
        Float[] (share of the numbers in the variables that changed), and, for methods that may read retained rows,
        `retain_loss_before` and `retain_loss_after` Float[] of the last batch's.

    Raises:
        ValueError: the source ended early, cannot be resumed, or the checkpoint belongs to another run; variables of the
            wrong form.
        TypeError: no `Unlearner`, or no typed key.

    Example:
        >>> def source(step):  # in practice: rows read from disk
        ...     rows = (8 * step + jnp.arange(8)) % 40 + 10
        ...     kept = jax.tree.map(lambda x: x[rows], data.train)
        ...     retain = jaxunlearn.Weighted(kept, jnp.ones(8), rows)
        ...     return jaxunlearn.Batch(forget=jaxunlearn.forget_rows(data, request), retain=retain)
        >>> method = jaxunlearn.gradient_difference(model, optax.sgd(0.1))
        >>> result = jaxunlearn.feed(method, variables, source, request, key, num_steps=5)
        >>> int(result.stats["steps"]), result.stats["forget_loss"].shape
        (5, ())
    """
    checks.require_unlearner(unlearner, "feed")
    if unlearner.view is not None:
        raise ValueError("this method draws its batches from a view of the data, such as their features: run it with iterate")
    checks.check_variables(variables)
    checks.check_key(key)
    checks.require_count("num_steps", num_steps, least=0)
    if damaged_at is not None:
        checks.check_range("damaged_at", damaged_at, low=-jnp.inf)
    nothing = Data(Examples((), ()), jnp.zeros(0))
    init_key, _, loop_key = jax.random.split(key, 3)
    mesh = meshes.host_mesh()
    variables = meshes.place_parameters(variables, mesh)
    context, state = unlearner.init(variables, nothing if data is None else data, request, init_key)
    context, state = meshes.place_parameters((context, state), mesh)
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

    @jax.jit
    def step_once(state, context, batch, step, key):
        batch = meshes.over_rows(batch)._replace(step=step, num_steps=num_steps)
        state, stats = unlearner.step(state, context, batch, key)
        return meshes.over_parameters(state), stats

    stats: dict[str, jax.Array] = {}
    batch: Any = None
    for step in range(first, num_steps):
        try:
            batch = _checked(source(step) if callable(source) else next(source))
        except StopIteration:
            raise ValueError(f"the source ended after {step} of {num_steps} steps; repeat it or lower num_steps") from None
        batch = meshes.place_rows(batch, mesh)
        state, stats = step_once(state, context, batch, jnp.int32(step), step_keys(loop_key, step)[2])
        if checkpoint is not None:
            position = None if callable(source) else source.get_state()  # type: ignore[attr-defined]
            checkpoint.save(step + 1, state, position, run)
        if callback is not None:
            callback(step, stats)
    final = unlearner.finalize(state, context)
    checks.check_same(variables, final)
    if unlearner.on_empty == "identity":
        final = tree.select(sampling.is_empty(request), variables, final)
    moved = tree.share_changed(variables, final)
    idle = sampling.is_empty(request)
    code = status.combine(EMPTY_REQUEST=idle, UNCHANGED=~idle & (moved == 0), NONFINITE=~tree.all_finite(final))
    if unlearner.judged is not None and batch is not None:
        found, conditions = damage(unlearner.judged, variables, final, batch.retain, damaged_at)
        stats, code = {**stats, **found}, jnp.maximum(code, status.combine(**conditions))
    return Result(final, code, {**stats, "steps": jnp.int32(num_steps), "moved": moved})


def _checked(batch: Any) -> Batch:
    if not isinstance(batch, Batch):
        raise TypeError(
            "a source gives jaxunlearn.Batch(forget, retain), each a Weighted(examples, weights, slots), "
            f"got {type(batch).__name__}"
        )
    return batch


def _first_batch(source: Any) -> Any:
    """The batch a source begins with; the source stays where it is."""
    if callable(source):
        return _checked(source(0))
    position = source.get_state()
    try:
        return _checked(next(source))
    except StopIteration:
        raise ValueError("the source holds no batch") from None
    finally:
        source.set_state(position)


def _fingerprint(step: Callable, arguments: tuple, origin: PyTree) -> str:
    """Tells runs apart by the program of a step, what it captured, and the values the run starts from."""
    with meshes.without_sizes():  # a run may go on with other devices
        program = jax.make_jaxpr(step)(*jax.tree.map(_form, arguments))
    text = re.sub(r"0x[0-9a-f]+", "", str(program))  # addresses of functions differ from process to process
    values = tree.content_digest((program.consts, arguments[1], origin))
    return hashlib.sha256(f"{text} {values}".encode()).hexdigest()


def _form(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=jax.typeof(x).weak_type) if isinstance(x, jax.Array) else x
