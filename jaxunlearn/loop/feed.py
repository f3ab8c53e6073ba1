"""The host-side twin of `iterate`, for data that do not fit the device: batches come from outside, progress is durable."""

import copy
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

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
        """Keep the tree after `step` steps; may skip steps that are not due, and may go on in the background."""
        ...

    def finish(self) -> None:
        """Wait until all that was saved is durable; called once at the end of a run, after an error too."""
        ...


class _Kept(NamedTuple):
    """What a checkpoint holds; beside it, where the source stood before the last batch, which a resumed run reads again."""

    state: PyTree
    stats: dict[str, jax.Array]  # of the last step
    num_steps: jax.Array  # that the run was to have


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
        source: `source(step) -> Batch`, e.g. what `jaxunlearn.sources.batches` reads from disk, or an iterator of batches,
            e.g. grain's; an iterator needs `get_state` and `set_state` (as grain's have) to be resumed exactly. `Batch.step`
            and `Batch.num_steps` are filled in here.
        request: what is forgotten. Its indices are in the numbering of `source`; they are not looked up here.
        key: one typed key.
        num_steps: steps in all, those before a resume included.
        data: only for methods whose `init` reads data, see `jaxunlearn.sources.part`.
        checkpoint: where progress is kept, e.g. `jaxunlearn.checkpoint.Directory(path, every=100)`; an unfinished run found
            there is resumed, to the same bits. That of another method, hyper-parameter, model, key, request or first batch is
            refused (told by the traced step and the values it starts from), and so is another `num_steps` where a step reads
            it, as methods with phases do.
        callback: `(step, stats)` after each step, e.g. a progress bar, see `jaxunlearn.sources.paced`.
        damaged_at: mean loss of retained rows, those of the last batch, from which the status says DAMAGED; as in `iterate`.

    Returns:
        A `Result`; `stats` holds `steps` Int[] (in all), the per-step `stats` of the last step, `moved` Float[] (share of the
        numbers in the variables that changed), and, for methods that may read retained rows, `retain_loss_before` and
        `retain_loss_after` Float[] of the last batch's.

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
    context, state = meshes.place_parameters((context, _strong(state)), mesh)
    has_position = hasattr(source, "get_state") and hasattr(source, "set_state")
    if checkpoint is not None and not callable(source) and not has_position:
        raise ValueError("an iterator without get_state and set_state cannot be resumed; pass source(step) or a grain iterator")

    @jax.jit
    def step_once(state, context, batch, step, key):
        batch = meshes.over_rows(batch)._replace(step=step, num_steps=num_steps)
        state, stats = unlearner.step(state, context, batch, key)
        return meshes.over_parameters(_strong(state)), stats

    stats: dict[str, jax.Array] = {}
    run, first, batch, batches = "", 0, None, _Batches(source, num_steps)
    try:
        if checkpoint is not None:
            example = batches.first()
            origin = (variables, request, data, example if callable(source) else ())  # an iterator may stand anywhere
            run, reads_length = _fingerprint(unlearner.step, (state, context, example, key), origin)
            form = jax.eval_shape(step_once, state, context, example, jnp.int32(0), key)[1]
            like = _Kept(state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), form), jnp.int32(0))
            found = checkpoint.restore(like, run)
            if found is not None:
                first, (state, stats, planned), position = found
                _check_length(first, int(planned), num_steps, reads_length)
                batch = meshes.place_rows(batches.again(first - 1, position), mesh)
        for step in range(first, num_steps):
            position = batches.position() if checkpoint is not None else None
            batch = meshes.place_rows(batches(step), mesh)
            state, stats = step_once(state, context, batch, jnp.int32(step), step_keys(loop_key, step)[2])
            if checkpoint is not None:
                checkpoint.save(step + 1, _Kept(state, stats, jnp.int32(num_steps)), position, run)
            if callback is not None:
                callback(step, stats)
    finally:
        if checkpoint is not None:
            checkpoint.finish()
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


class _Batches:
    """The two kinds of sources under one name."""

    def __init__(self, source: Any, num_steps: int):
        self._source, self._num_steps = source, num_steps

    def __call__(self, step: int) -> Batch:
        """The batch of a step; an iterator gives its next one."""
        try:
            batch = self._source(step) if callable(self._source) else next(self._source)
        except StopIteration:
            raise ValueError(
                f"the source ended after {step} of {self._num_steps} steps; repeat it or lower num_steps"
            ) from None
        if not isinstance(batch, Batch):
            raise TypeError(
                "a source gives jaxunlearn.Batch(forget, retain), each a Weighted(examples, weights, slots), "
                f"got {type(batch).__name__}"
            )
        return batch

    def position(self) -> Any:
        """Where the source stands; None for a function of the step. A copy: a source may go on in the object that it gave."""
        return None if callable(self._source) else copy.deepcopy(self._source.get_state())

    def first(self) -> Batch:
        """The batch that comes next; the source stays where it is."""
        position = self.position()
        try:
            return self(0)
        finally:
            if not callable(self._source):
                self._source.set_state(position)

    def again(self, step: int, position: Any) -> Batch:
        """The batch of a step that was made before, from where the source stood; it then stands behind that batch."""
        if not callable(self._source):
            self._source.set_state(position)
        return self(step)


def _strong(state: PyTree) -> PyTree:
    """Arrays whose dtypes count, as those that come back from disk; typed keys as they are."""

    def strong(x: Any) -> jax.Array:
        is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
        return x if is_key else jax.lax.convert_element_type(x, jnp.result_type(x))

    return jax.tree.map(strong, state)


def _check_length(made: int, planned: int, num_steps: int, reads_length: bool) -> None:
    if made > num_steps:
        raise ValueError(f"the checkpoint holds {made} steps, more than num_steps={num_steps}; raise num_steps")
    if reads_length and planned != num_steps:
        raise ValueError(
            f"the checkpoint belongs to a run of {planned} steps, and every step of this method reads how many there are, so "
            f"that {num_steps} would have been others from the start: pass num_steps={planned}, or choose another directory"
        )


def _fingerprint(step: Callable, arguments: tuple, origin: PyTree) -> tuple[str, bool]:
    """Tells runs apart by the program of a step, what it captured, and the values the run starts from.

    Also whether a step reads the length of the run.
    """
    _, context, _, key = arguments
    with meshes.without_sizes():  # a run may go on with other devices
        program = jax.make_jaxpr(step)(*jax.tree.map(_form, arguments))
    length = program.jaxpr.invars[len(jax.tree.leaves(arguments[:3])) - 1]  # the last leaf of a batch
    reads_length = any(length is variable for equation in program.eqns for variable in equation.invars)
    text = re.sub(r"0x[0-9a-f]+", "", str(program))  # addresses of functions differ from process to process
    values = tree.content_digest((program.consts, context, key, origin))
    return hashlib.sha256(f"{text} {values}".encode()).hexdigest(), reads_length


def _form(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=jax.typeof(x).weak_type) if isinstance(x, jax.Array) else x
