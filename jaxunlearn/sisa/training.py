"""How shards are trained slice by slice, and trained again from where a row came in.

The model of a shard is trained on its first slice, then on the first two, and so on:

    M_0 = init,    M_r = train(M_{r-1}, slices 1..r, e_r epochs),    e_r = floor(r u) - floor((r - 1) u),    u = 2 e / (R + 1)

so that a row is visited about as often as in `e` epochs of one model (authors' code). What each slice starts from is kept.
Rows, their order in an epoch, batches and keys depend on the partition alone, and a batch without its removed rows is smaller.
So training again from the last start that no removed row has reached is training without them, bit for bit.

All loops run over as many shards, slices, epochs and batches as are needed, not over all that could be: inside of one program
the answer to a request costs what it trains.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks, sampling, tree
from jaxunlearn.loop.descend import GradientState, descend, require_init, retain_objective
from jaxunlearn.sisa.partition import Partition, require_fits, without
from jaxunlearn.types import Batch, Data, Examples, Model, Unlearner, Variables, Weighted


class Trainer(NamedTuple):
    """How every shard is trained; make it with `sisa.trainer`."""

    model: Model
    method: Unlearner  # one step of training
    epochs: int  # e, of one model on all rows
    batch_size: int
    chunk: int | None  # shards side by side
    mesh: Mesh | None

    def slice_epochs(self, slices: int) -> Int[np.ndarray, " R"]:
        """e_r, the epochs on slices 1..r; ValueError where a slice would get none."""
        ends = 2 * self.epochs * np.arange(slices + 1) // (slices + 1)
        if 2 * self.epochs < slices + 1:
            raise ValueError(
                f"{self.epochs} epochs are too few for {slices} slices, some would never be trained on: take at least "
                f"{(slices + 2) // 2} epochs, or fewer slices"
            )
        return np.diff(ends)


class Shards(NamedTuple):
    """`Variables.state` of the models of all shards: their own state, and what it takes to train one of them again."""

    state: PyTree  # [S, ...], BatchNorm statistics and the like
    partition: Partition  # with -1 for rows that were removed
    keys: PRNGKeyArray  # [S], of all draws of a shard
    starts: GradientState  # [S, R, ...], variables and optimizer state that training on each slice starts from


def trainer(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Trainer:
    """How every shard is trained: shuffled epochs on the mean loss of a batch, plus the model's regularizer.

    Args:
        model: needs `init`. BatchNorm statistics, if any, are part of what is kept for each slice. Slots of a batch without a
            row repeat its first one, which weighs 0 in the loss but counts in statistics of the batch.
        optimizer: any optax transformation; its state is kept for each slice, too.
        epochs: e, as for one model on all rows; a shard of R slices is trained for about `2 e R / (R + 1)` shorter ones.
        batch_size: rows of a step.
        chunk: shards that are trained side by side; the others wait. By default 1 on CPUs, where all at once took no less CPU
            time (see `experiments/results`), and all at once on accelerators. Bits may depend on it.
        mesh: with one axis, e.g. `jaxunlearn.request_mesh()`; every device trains its share of the shards, and answers
            requests for those. S must be a multiple of its size.

    Returns:
        A `Trainer` for `sisa.fit` and `sisa.sisa`.

    Raises:
        ValueError: no `init`; a number that is no positive integer; a mesh of several axes.
        TypeError: no `Model`, or no optax transformation.

    Example:
        >>> trainer = jaxunlearn.sisa.trainer(model, optax.adam(1e-2), epochs=20, batch_size=8)
        >>> trainer.slice_epochs(4).tolist()
        [8, 8, 8, 8]
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("chunk", 1 if chunk is None else chunk)):
        checks.require_count(name, value)
    if mesh is not None and len(mesh.axis_names) != 1:
        raise ValueError(f"expected a mesh with one axis, got {mesh.axis_names}; make it with jaxunlearn.request_mesh()")
    if not isinstance(model, Model):
        raise TypeError(f"expected a Model(forward, loss), got {type(model).__name__}")
    init = require_init(model, "every shard starts from a fresh model")
    method = descend(model, optimizer, retain_objective(model, "retain"), start=lambda _, key: init(key), on_empty="train")
    return Trainer(model, method, epochs, batch_size, chunk, mesh)


def fit(trainer: Trainer, data: Data, partition: Partition, key: PRNGKeyArray) -> Variables:
    """Train the models of all shards; pure, so wrap it in `jax.jit`.

    Args:
        trainer: see `sisa.trainer`.
        data: the rows; those that are not present are left out.
        partition: of these rows.
        key: of everything that is drawn; shard s has `fold_in(key, s)`, whatever becomes of other shards.

    Returns:
        `Variables`, for `sisa.sisa`, `sisa.ensemble`, checkpoints and ledgers: `params` of S models, leaves [S, ...], and as
        `state` the `Shards`. They hold R + 1 sets of parameters and R of optimizer state for each shard.

    Raises:
        ValueError: a partition of other data, too few epochs for its slices, shards that the mesh does not divide, and whatever
            is wrong with model or loss.
        TypeError: no typed key, no `Partition`.

    Example:
        >>> trainer = jaxunlearn.sisa.trainer(model, optax.sgd(0.1), epochs=4, batch_size=8)
        >>> partition = jaxunlearn.sisa.random_partition(data, key, shards=4, slices=2)
        >>> fitted = jax.jit(lambda data: jaxunlearn.sisa.fit(trainer, data, partition, key))(data)
        >>> fitted.params["head"].shape, fitted.state.starts.variables.params["head"].shape
        ((4, 8, 3), (4, 2, 8, 3))
    """
    _require_trainer(trainer)
    checks.check_key(key)
    require_fits(partition, checks.check_present(data))
    data = data._replace(train=jax.tree.map(jnp.asarray, data.train))
    shards, slices, _ = partition.rows.shape
    partition, _ = without(partition, jnp.asarray(data.present) > 0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(shards))
    unread: Any = ()  # training starts from fresh weights and has no request
    begin = jax.vmap(lambda own: trainer.method.init(unread, data, unread, jax.random.fold_in(own, 0))[1])(keys)
    form = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), begin.variables)
    checks.check_variables(form)
    checks.check_forward(trainer.model, form, data.train.inputs)
    starts = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (shards, slices, *x.shape[1:])), begin)
    variables = Variables(begin.variables.params, Shards(begin.variables.state, partition, keys, starts))
    return train_again(trainer, data, variables, jnp.zeros(shards, jnp.int32))[0]


def train_again(
    trainer: Trainer, data: Data, variables: Variables, first: Int[Array, " S"]
) -> tuple[Variables, Int[Array, " S"]]:
    """Train each shard from slice `first` on (R: not at all); the variables, and how many rows each of them visited."""
    shards, slices, _ = variables.state.partition.rows.shape
    epochs = trainer.slice_epochs(slices)
    first = jax.lax.optimization_barrier(first)  # training is compiled like every answer, so that bits are the same
    if trainer.mesh is None:
        return _on_device(trainer, _chunk_of(trainer, shards, jax.default_backend()), epochs, data.train, variables, first)
    mesh, (axis,) = trainer.mesh, trainer.mesh.axis_names
    if shards % mesh.size:
        raise ValueError(f"{shards} shards are no multiple of the {mesh.size} devices of the mesh: change one of them")
    chunk = _chunk_of(trainer, shards // mesh.size, mesh.devices.flat[0].platform)
    on_device = partial(_on_device, trainer, chunk, epochs)
    specs: Any = (P(), P(axis), P(axis))
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=P(axis), check_vma=False)(data.train, variables, first)


def _chunk_of(trainer: Trainer, shards: int, platform: str) -> int:
    return min(shards, trainer.chunk or (1 if platform == "cpu" else shards))


def _require_trainer(trainer: Any) -> None:
    if not isinstance(trainer, Trainer):
        raise TypeError(f"expected jaxunlearn.sisa.trainer(model, optimizer, ...), got {type(trainer).__name__}")


class _Lanes(NamedTuple):
    """Shards that are trained side by side; c of them, each with M = R m slots."""

    numbers: Int[Array, " c"]  # S where there is none
    first: Int[Array, " c"]  # slice to start at, R where there is none
    keys: PRNGKeyArray
    rows: Int[Array, "c M"]
    slices: Int[Array, "c M"]  # slice of each slot, R where the slot never held a row
    reach: Int[Array, "c R"]  # slots that held a row in slices 1..r


def _on_device(
    trainer: Trainer, chunk: int, epochs: np.ndarray, train: Examples, variables: Variables, first: Int[Array, " S"]
) -> tuple[Variables, Int[Array, " S"]]:
    """Shards that have to be trained, a chunk of them after the other."""
    (rows, sizes), keys = variables.state.partition, variables.state.keys
    shards, slices, width = rows.shape
    slice_of = jnp.where(jnp.arange(width) < sizes[..., None], jnp.arange(slices)[:, None], slices).reshape(shards, -1)
    order = jnp.argsort(first)  # those that start together side by side, those that do not have to behind them
    padding = jnp.full(-shards % chunk, shards)
    order = jnp.concatenate([order, padding.astype(order.dtype)])
    starts_at = jnp.concatenate([first, jnp.array([slices], first.dtype)])

    def block(number, carry):
        variables, visits = carry
        numbers = jax.lax.dynamic_slice_in_dim(order, number * chunk, chunk)
        own = jnp.minimum(numbers, shards - 1)
        begin = starts_at[numbers]
        lanes = _Lanes(numbers, begin, keys[own], rows.reshape(shards, -1)[own], slice_of[own], jnp.cumsum(sizes, axis=1)[own])
        state = variables.state
        held = jax.tree.map(lambda x: x[own, jnp.minimum(begin, slices - 1)], state.starts)
        held, starts, made = _train_lanes(trainer, epochs, train, lanes, held, state.starts)
        places = jnp.where(begin < slices, numbers, shards)  # out of range: written nowhere

        def put(old, new):
            return jax.tree.map(lambda x, y: x.at[places].set(y, mode="drop"), old, new)

        params, model_state = put((variables.params, state.state), tuple(held.variables))
        variables = Variables(params, state._replace(state=model_state, starts=starts))
        return variables, visits.at[places].set(made, mode="drop")

    blocks = (jnp.sum(first < slices) + chunk - 1) // chunk
    return jax.lax.fori_loop(0, blocks, block, (variables, jnp.zeros(shards, jnp.int32)))


def _train_lanes(
    trainer: Trainer, epochs: np.ndarray, train: Examples, lanes: _Lanes, held: GradientState, starts: GradientState
) -> tuple[GradientState, GradientState, Int[Array, " c"]]:
    """Slices from the first one that a lane has to see again; starts are overwritten on the way."""
    slots, slices = lanes.rows.shape[1], len(epochs)
    size = min(trainer.batch_size, slots)
    before, how_often = jnp.asarray(np.cumsum(epochs) - epochs), jnp.asarray(epochs)
    one_step = jax.vmap(partial(_step, trainer.method, train))
    fold_in = jax.vmap(jax.random.fold_in, (0, None))

    def on_slice(number, carry):
        held, starts, made = carry
        runs = number >= lanes.first
        places = jnp.where(runs, lanes.numbers, jax.tree.leaves(starts)[0].shape[0])
        starts = jax.tree.map(lambda x, y: x.at[places, number].set(y, mode="drop"), starts, held)
        usable = (lanes.slices <= number) & runs[:, None]
        steps = (jnp.max(jnp.where(runs, lanes.reach[:, number], 0)) + size - 1) // size

        def on_epoch(epoch, carry):
            keys = fold_in(lanes.keys, 1 + before[number] + epoch)
            rows = jax.vmap(_shuffled)(fold_in(keys, 0), lanes.rows, usable)
            rows = jnp.pad(rows, ((0, 0), (0, -slots % size)), constant_values=-1)

            def on_batch(place, carry):
                held, made = carry
                drawn = jax.lax.dynamic_slice_in_dim(rows, place * size, size, axis=1)
                return one_step(held, drawn, fold_in(keys, 1 + place)), made + jnp.sum(drawn >= 0, axis=1, dtype=jnp.int32)

            return jax.lax.fori_loop(0, steps, on_batch, carry)

        held, made = jax.lax.fori_loop(0, how_often[number], on_epoch, (held, made))
        return held, starts, made

    made = jnp.zeros(lanes.numbers.shape, jnp.int32)
    return jax.lax.fori_loop(jnp.min(lanes.first), slices, on_slice, (held, starts, made))


def _shuffled(key: PRNGKeyArray, rows: Int[Array, " M"], usable: Array) -> Int[Array, " M"]:
    """Rows of usable slots in random order, -1 behind them; a removed row keeps its place, as -1."""
    order = jnp.argsort(jnp.where(usable, jax.random.uniform(key, rows.shape, jnp.float32), jnp.inf))
    return jnp.where(usable, rows, -1)[order]


def _step(method: Unlearner, train: Examples, held: GradientState, rows: Int[Array, " b"], key: PRNGKeyArray) -> GradientState:
    """One step of one shard on some rows; none of them: no step, not even of momentum or weight decay."""
    weights = (rows >= 0).astype(jnp.float32)
    part = Weighted(sampling.take(train, jnp.maximum(rows, 0), weights), weights, rows)
    moved, _ = method.step(held, (), Batch(part, part), key)
    return tree.select(jnp.any(rows >= 0), moved, held)
