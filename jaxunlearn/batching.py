"""Many requests at once: `batched` (alternatives from one start) and `streamed` (one model, one after another)."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import PRNGKeyArray

from jaxunlearn import checks, cores, meshes
from jaxunlearn.requests import remove
from jaxunlearn.types import Data, ForgetRequest, Result, UnlearnFn, Variables

Batched: TypeAlias = Callable[[Variables, Data, ForgetRequest, PRNGKeyArray], Result]

AXIS = meshes.REQUEST
_SHARED = -1


def batched(
    unlearn: UnlearnFn, *, in_axes: Any = (None, None, 0, 0), chunk: int | None = None, mesh: Mesh | None = None
) -> Batched:
    """Answer R requests in one compiled call: R alternative models, all from the same start.

    Args:
        unlearn: a finished method, e.g. `jaxunlearn.iterate(jaxunlearn.scrub(model, optimizer), num_steps=100, batch_size=64)`.
        in_axes: for (variables, data, requests, keys): 0 where an argument has one entry per request, None where it is
            shared; a tree of them within one argument, as in `jax.vmap`. `(0, None, None, 0)` serves R originals.
        chunk: how many requests run side by side; the others wait, which bounds memory. 1 is a loop inside the program,
            R or more is one `vmap`. By default 1 on CPUs, where it was never slower (see `experiments/results`), and all
            at once on accelerators.
            Outside `jit` every core of a CPU runs chunks of its own, unless the call is a single chunk or tells the host of
            itself (`jax.debug.print`, `io_callback`), so that there are as many in memory as cores; inside `jit` there is one.
        mesh: shards the requests over its `request` axis, see `request_mesh`; devices of different requests never wait for
            another. An axis `data` shares the rows of every batch, an axis `fsdp` parameters too; further axes are left to the
            model. Data are copied to every device, variables too or, with an axis `fsdp`, to each in part (`shard`), unless
            they lie on the mesh already (`replicate`). On a mesh that spans processes
            (`jax.distributed`) every process makes the same call with the same values, and gets its part of one result:
            `jax.experimental.multihost_utils.process_allgather(result, tiled=True)` makes all of it readable.

    Returns:
        `(variables, data, requests, keys) -> Result` with a leading axis R on every leaf, for stacked requests (`indices`
        Int[R, k]) and R keys. It compiles by itself, once for each R. Without a mesh it is pure as well: inside `jit`, `vmap`
        or `jax.eval_shape` it is part of that program, which a CPU runs on one core. With a mesh it must be called outside
        `jit`, because requests are laid out and results trimmed outside the program.

    Raises:
        ValueError: leading axes that differ, a chunk that is not positive, a mesh without the axis or with Explicit axes,
            arguments that differ between processes.
        TypeError: an `Unlearner` instead of a finished method; a meshed call inside `jit`.

    Example:
        >>> method = jaxunlearn.gradient_difference(model, optax.sgd(0.1))
        >>> unlearn = jaxunlearn.iterate(method, num_steps=5, batch_size=8)
        >>> requests = jaxunlearn.from_indices(data, [[1], [2, 3], [4]])
        >>> results = jaxunlearn.batched(unlearn)(variables, data, requests, jax.random.split(key, 3))
        >>> results.status.tolist(), results.stats["loss"].shape
        ([0, 0, 0], (3, 5))
    """
    checks.require_unlearn_fn(unlearn, "batched")
    if chunk is not None:
        checks.require_count("chunk", chunk)
    if mesh is None:
        chunk = chunk or _default_chunk(jax.default_backend())
        return _on_one_device(unlearn, chunk, in_axes)
    _check_mesh(mesh)
    chunk = chunk or _default_chunk(mesh.devices.flat[0].platform)
    parts = mesh.shape[AXIS]

    # Inside shard_map every device, or all those of one request, run the plain one-device program, so that nothing can be
    # communicated between requests. Axes of one request are left to the compiler, see `meshes`.
    # check_vma=False is essential: the default sums gradients with respect to shared variables over the devices.
    @partial(jax.jit, static_argnums=2)
    def program(shared: list, per_request: list, form: _Form) -> Result:
        on_device = jax.shard_map(
            lambda shared, per_request: _run(unlearn, chunk, shared, per_request, form),
            mesh=mesh,
            in_specs=(P(), P(AXIS)),
            out_specs=P(AXIS),
            axis_names={AXIS},
            check_vma=False,
        )
        return on_device(shared, per_request)

    def meshed(variables: Variables, data: Data, requests: ForgetRequest, keys: PRNGKeyArray) -> Result:
        arguments = (variables, data, requests, keys)
        if not all(map(checks.is_concrete, jax.tree.leaves(arguments))):
            raise TypeError("batched(mesh=...) lays out requests on the host and compiles by itself: call it outside jit")
        shared, per_request, form = separate(arguments, in_axes)
        lanes = num_lanes(per_request)
        padded = _pad(per_request, -lanes % parts)
        weights = form.is_mapped[: len(jax.tree.leaves(variables))].count(False)
        placed = _placed(shared[:weights], mesh, meshes.place_parameters) + _placed(shared[weights:], mesh, meshes.replicate)
        result = program(placed, meshes.place(padded, [P(AXIS)] * len(padded), mesh), form)
        return result if lanes % parts == 0 else jax.tree.map(lambda x: x[:lanes], result)

    return meshed


def _on_one_device(unlearn: UnlearnFn, chunk: int, in_axes: Any) -> Batched:
    @partial(jax.jit, static_argnums=(1, 2))
    def program(first: jax.Array, size: int, form: _Form, shared: list, per_request: list) -> Result:
        part = [jax.lax.dynamic_slice_in_dim(x, first, size) for x in per_request]
        return _run(unlearn, chunk, shared, part, form)

    def call(variables: Variables, data: Data, requests: ForgetRequest, keys: PRNGKeyArray) -> Result:
        shared, per_request, form = separate((variables, data, requests, keys), in_axes)
        if cores.inside_a_program() or cores.is_on("jax_disable_jit"):
            return _run(unlearn, chunk, shared, per_request, form)
        lanes = num_lanes(per_request)
        parts = cores.parts_of(lanes, chunk, [*shared, *per_request])
        return cores.run(program, (shared, per_request), form, lanes, parts)

    return call


def _placed(shared: list, mesh: Mesh, place: Callable[[list, Mesh], list]) -> list:
    """Leaves that do not lie on the mesh yet are placed there, together."""
    news = [leaf for leaf in shared if not meshes.lies_on(leaf, mesh)]
    placed = iter(place(news, mesh))
    return [leaf if meshes.lies_on(leaf, mesh) else next(placed) for leaf in shared]


class _Form(NamedTuple):
    """How the arguments of a call are put together from leaves that are shared and leaves per request; hashable."""

    treedef: Any
    is_mapped: tuple[bool, ...]

    def join(self, shared: list, per_request: list) -> tuple:
        shared_leaves, mapped_leaves = iter(shared), iter(per_request)
        return jax.tree.unflatten(self.treedef, [next(mapped_leaves if m else shared_leaves) for m in self.is_mapped])


def separate(arguments: tuple, in_axes: Any) -> tuple[list, list, _Form]:
    """Leaves that all requests share, leaves with one entry per request, and how they are put together again."""
    if not isinstance(in_axes, tuple | list) or any(axis != 0 for axis in jax.tree.leaves(tuple(in_axes))):
        raise ValueError(f"in_axes takes 0 (one entry per request) and None (shared), one for each argument, got {in_axes}")
    # None is an empty tree to JAX, so that a shared argument is marked by a number instead.
    marked = jax.tree.map(lambda axis: _SHARED if axis is None else axis, tuple(in_axes), is_leaf=lambda axis: axis is None)
    axes = jax.tree.leaves(jax.tree.broadcast(marked, arguments))
    if not any(axis == 0 for axis in axes):
        raise ValueError("in_axes maps nothing: at least one argument needs one entry per request")
    leaves, treedef = jax.tree.flatten(arguments)
    shared = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis == _SHARED]
    per_request = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis == 0]
    return shared, per_request, _Form(treedef, tuple(axis == 0 for axis in axes))


def _default_chunk(platform: str) -> int:
    return 1 if platform == "cpu" else sys.maxsize


def _run(unlearn: UnlearnFn, chunk: int, shared: list, per_request: list, form: _Form) -> Result:
    lanes = num_lanes(per_request)

    def one(per_request: list) -> Result:
        return unlearn(*form.join(shared, per_request))

    if chunk == 1:
        return jax.lax.map(one, per_request)
    if chunk >= lanes:
        return jax.vmap(one)(per_request)
    blocks = [x.reshape(-1, chunk, *x.shape[1:]) for x in _pad(per_request, -lanes % chunk)]
    result = jax.lax.map(jax.vmap(one), blocks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:lanes], result)


def num_lanes(per_request: list) -> int:
    """Length of the leading axis that all leaves must have."""
    lanes = sorted({jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in per_request})
    if len(lanes) != 1 or lanes == [0]:
        raise ValueError(
            f"every argument with one entry per request needs the same leading axis, got {lanes}; stack requests with "
            "from_indices and make one key each with jax.random.split(key, num_requests)"
        )
    return lanes[0]


def _pad(per_request: list, extra: int) -> list:
    """Repeat the last lane; a valid lane, so that padding cannot raise or poison anything."""
    return [jnp.concatenate([x, jnp.repeat(x[-1:], extra, axis=0)]) if extra else x for x in per_request]


def _check_mesh(mesh: Mesh) -> None:
    if AXIS not in mesh.axis_names:
        raise ValueError(f"expected a mesh with the axis '{AXIS}', got {mesh.axis_names}; make it with request_mesh()")
    if set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(f"expected an Auto mesh, got {mesh.axis_types}; make it with request_mesh()")


def streamed(unlearn: UnlearnFn) -> Batched:
    """Answer requests one after another with one model: each starts from the last result, and removed rows stay removed.

    A row that an earlier request of the stream removed is left out of a later one, whose status is then INVALID_ROWS. All
    rows of a request count as removed once it is answered, those that `filtered` skipped included.

    Args:
        unlearn: a finished method.

    Returns:
        `(variables, data, requests, keys) -> Result` for stacked requests (`indices` Int[R, k]) and R keys. `variables` is the
        one model after the last request; `status` and `stats` have a leading axis R; `extra` holds `present` (Float[n], 1 on
        the rows that are left) and whatever the method carries from request to request. Pure: wrap it in `jax.jit`.

    Raises:
        ValueError: when it is called, leading axes that differ, or nothing in `Data.extra` for what the method carries.
        TypeError: an `Unlearner` instead of a finished method.

    Example:
        >>> stream = jax.jit(jaxunlearn.streamed(jaxunlearn.output_perturbation(model, sigma=0.1)))
        >>> requests = jaxunlearn.from_indices(data, [[1], [2, 3]])
        >>> result = stream(variables, data, requests, jax.random.split(key))
        >>> result.status.tolist(), int(result.extra["present"].sum())
        ([0, 0], 57)
    """
    checks.require_unlearn_fn(unlearn, "streamed")

    def stream(variables: Variables, data: Data, requests: ForgetRequest, keys: PRNGKeyArray) -> Result:
        num_lanes(jax.tree.leaves((requests, keys)))

        def answer(carry, request_and_key):
            variables, present, extra = carry
            request, key = request_and_key
            current = Data(data.train, present, {**data.extra, **extra})
            result = unlearn(variables, current, request, key)
            present = remove(current, request).present
            return (result.variables, present, result.extra), (result.status, result.stats)

        first = jax.tree.map(lambda x: x[0], (requests, keys))
        carried = jax.eval_shape(lambda v, d, r, k: unlearn(v, d, r, k).extra, variables, data, *first)
        missing = [name for name in carried if name not in data.extra]
        if missing:
            raise ValueError(
                f"this method carries {missing} from request to request; put the first in data.extra (see jaxunlearn.prepare)"
            )
        extra = {name: data.extra[name] for name in carried}
        carry, (codes, stats) = jax.lax.scan(answer, (variables, data.present, extra), (requests, keys))
        return Result(carry[0], codes, stats, {**carry[2], "present": carry[1]})

    return stream


def end_of_stream(result: Result, data: Data) -> tuple[Result, Data]:
    """What a stream leaves behind: the result of its last request, and the data as the next request would meet them.

    Args:
        result: of `streamed`.
        data: what the stream was given.

    Returns:
        A `Result` with the last status and `stats`, for `check` or `jaxunlearn.certificates.certify`; and `data` with
        `present` cleared on the removed rows and what the method carried in `extra`.

    Example:
        >>> stream = jaxunlearn.streamed(jaxunlearn.output_perturbation(model, sigma=0.1))
        >>> requests = jaxunlearn.from_indices(data, [[1], [2, 3]])
        >>> result, left = jaxunlearn.end_of_stream(stream(variables, data, requests, jax.random.split(key)), data)
        >>> int(left.present.sum())
        57
    """
    extra = dict(result.extra)
    present = extra.pop("present")
    status, stats = jax.tree.map(lambda x: x[-1], (result.status, result.stats))
    return Result(result.variables, status, stats, extra), Data(data.train, present, {**data.extra, **extra})
