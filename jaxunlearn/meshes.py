"""Meshes of devices: requests, rows of a batch, and parameters, each over an axis of its own.

No method knows of them. A mesh is in reach while a program is traced, inside `batched(mesh=...)` or under `jax.set_mesh`; where
rows are drawn and where a loop carries its state, `over_rows` and `over_parameters` say over which of its axes they lie, and
the compiler does the rest. Without such a mesh both do nothing.
"""

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from jaxunlearn import checks

REQUEST, DATA, FSDP = "request", "data", "fsdp"
_ROWS = (DATA, FSDP)  # devices that hold parts of the parameters read different rows


def request_mesh(devices: Any = None, *, data: int = 1, fsdp: int = 1) -> Mesh:
    """A mesh of devices for `batched(mesh=...)`, or for one large request under `jax.set_mesh`.

    Args:
        devices: which ones; by default all of `jax.devices()`. What `data` and `fsdp` leave over answers different requests.
        data: devices that share the rows of every batch of a request; each holds all of its parameters.
        fsdp: devices that share the rows of every batch and hold a part of each parameter, of the optimizer and of a teacher.

    Returns:
        A `jax.sharding.Mesh` of axis type Auto, with the axis `request` and those of `data` and `fsdp` that are more than 1.

    Raises:
        ValueError: a number that is not positive, or numbers that do not divide the devices.

    Example:
        >>> jaxunlearn.request_mesh(jax.devices()[:1]).axis_names
        ('request',)
    """
    devices = jax.devices() if devices is None else list(np.ravel(devices))
    checks.require_count("data", data)
    checks.require_count("fsdp", fsdp)
    if not devices or len(devices) % (data * fsdp):
        raise ValueError(f"data={data} times fsdp={fsdp} must divide the number of devices, which is {len(devices)}")
    axes = {REQUEST: len(devices) // (data * fsdp)} | {name: n for name, n in ((DATA, data), (FSDP, fsdp)) if n > 1}
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), devices=devices)


def replicate(values: PyTree, mesh: Mesh) -> PyTree:
    """Put one copy on every device of a mesh; do it once for variables and data, and `batched` need not.

    Args:
        values: any tree of arrays.
        mesh: see `request_mesh`.

    Returns:
        The same tree, on all devices.

    Raises:
        ValueError: on a mesh that spans processes, values that differ between them.

    Example:
        >>> mesh = jaxunlearn.request_mesh(jax.devices()[:1])
        >>> on_all = jaxunlearn.replicate((variables, data), mesh)
    """
    return place(values, jax.tree.map(lambda _: P(), values), mesh)


def shard(values: PyTree, mesh: Mesh) -> PyTree:
    """Put parts of every array on the devices of the axis `fsdp`, so that no device holds a whole model.

    An array is divided along its longest axis that the devices divide, the first of several; one without such an axis is copied
    to all of them.

    Args:
        values: variables, or another tree of arrays, such as what `Data.extra` holds.
        mesh: with the axis `fsdp`, see `request_mesh`.

    Returns:
        The same tree, in parts.

    Raises:
        ValueError: a mesh without that axis; on a mesh that spans processes, values that differ between them.

    Example:
        >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
        >>> tuple(jaxunlearn.shard(variables, mesh).params["body"].sharding.spec)
        (None, 'fsdp')
    """
    if FSDP not in mesh.axis_names:
        raise ValueError(f"expected a mesh with the axis '{FSDP}', got {mesh.axis_names}; make it with request_mesh(fsdp=...)")
    return place(values, jax.tree.map(lambda x: _of_parameter(x, mesh.shape[FSDP]) or P(), values), mesh)


def require_rows(name: str, size: int) -> None:
    """ValueError if the devices that share the rows of a batch do not divide its size."""
    axes, parts, _ = _in_reach(_ROWS)
    if size % parts:
        raise ValueError(
            f"{name}={size} rows cannot be shared by the {parts} devices of the mesh's {' and '.join(axes)}: use a multiple"
        )


def over_rows(values: PyTree) -> PyTree:
    """Inside a program: rows of a batch over the axes `data` and `fsdp` of the mesh in reach, if these divide their number."""
    axes, parts, other = _in_reach(_ROWS)

    # Parts of unequal size are never asked for: XLA ends the process on some operations with them.
    def constrain(x):
        if parts == 1 or not jnp.ndim(x) or x.shape[0] % parts:
            return x
        return jax.lax.with_sharding_constraint(x, P(axes, *[other] * (x.ndim - 1)))

    return jax.tree.map(constrain, values)


def over_parameters(values: PyTree) -> PyTree:
    """Inside a program: arrays over the axis `fsdp` of the mesh in reach, as `shard` puts them."""
    _, parts, other = _in_reach((FSDP,))

    def constrain(x):
        spec = _of_parameter(x, parts, other)
        return x if spec is None else jax.lax.with_sharding_constraint(x, spec)

    return values if parts == 1 else jax.tree.map(constrain, values)


def host_mesh() -> Mesh | None:
    """The mesh under `jax.set_mesh` on the host, if it has an axis for rows or parameters."""
    return jax.sharding.get_mesh() if _in_reach(_ROWS)[1] > 1 else None


def place_rows(values: PyTree, mesh: Mesh | None) -> PyTree:
    """On the host: `over_rows`; nothing without a mesh."""
    if mesh is None:
        return values
    axes, parts, _ = _in_reach(_ROWS)
    return place(values, jax.tree.map(lambda x: P(axes) if jnp.ndim(x) and x.shape[0] % parts == 0 else P(), values), mesh)


def place_parameters(values: PyTree, mesh: Mesh | None) -> PyTree:
    """On the host: `shard`, or a copy on every device of a mesh without the axis `fsdp`; nothing without a mesh."""
    if mesh is None:
        return values
    return shard(values, mesh) if FSDP in mesh.axis_names else replicate(values, mesh)


def without_sizes() -> Any:
    """A context in which programs read the same whatever the number of devices; a model's own axes are kept by their names."""
    mesh = jax.sharding.get_abstract_mesh()
    return _alone((REQUEST, *_ROWS, *(name for name in mesh.axis_names if name not in (REQUEST, *_ROWS))))


def _alone(names: tuple[str, ...]) -> Any:
    kinds = (AxisType.Auto,) * len(names)
    return jax.set_mesh(jax.make_mesh((1,) * len(names), names, axis_types=kinds, devices=jax.local_devices()[:1]))


def lies_on(x: Any, mesh: Mesh) -> bool:
    """Whether an array lies on a mesh already, the same for all requests."""
    if not isinstance(x, jax.Array) or not isinstance(x.sharding, NamedSharding) or x.sharding.mesh != mesh:
        return False
    return REQUEST not in jax.tree.leaves(tuple(x.sharding.spec))


def _in_reach(names: tuple[str, ...]) -> tuple[tuple[str, ...], int, Any]:
    """Those of some axes that the compiler may use here, how many devices they are, and how other axes of an array may lie."""
    mesh = jax.sharding.get_abstract_mesh()
    automatic = {} if mesh.empty else {
        name: mesh.shape[name] for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto
    }  # fmt: skip
    axes = tuple(name for name in names if name in automatic)
    foreign = automatic.keys() - {REQUEST, DATA, FSDP}  # such as a model's own, whose use is the model's affair
    return axes, math.prod(automatic[name] for name in axes), P.UNCONSTRAINED if foreign else None


def _of_parameter(x: Any, parts: int, other: Any = None) -> P | None:
    """Along the longest axis that can be divided; None if there is none."""
    shape = () if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) else jnp.shape(x)
    axes = [axis for axis, size in enumerate(shape) if size and size % parts == 0]
    if not axes:
        return None
    longest = max(axes, key=lambda axis: shape[axis])
    return P(*[FSDP if axis == longest else other for axis in range(len(shape))])


def place(values: PyTree, specs: PyTree, mesh: Mesh) -> PyTree:
    """`device_put`; where devices belong to several processes, each puts its own part of values that all of them hold."""
    leaves, treedef = jax.tree.flatten(values)
    shardings = [NamedSharding(mesh, spec) for spec in jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))]
    if not shardings or shardings[0].is_fully_addressable:
        return jax.tree.unflatten(treedef, jax.device_put(leaves, shardings))

    # device_put takes neither typed keys nor committed arrays to the devices of other processes.
    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if _spans_processes(x):
            return jax.device_put(x, sharding)
        with _alone((REQUEST,)):  # under a mesh of all processes, all of them would cut out a part together
            x = jnp.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    _require_same_in_all_processes([x for x in leaves if not _spans_processes(x)], mesh)
    return jax.tree.unflatten(treedef, map(put, leaves, shardings))


def _spans_processes(x: Any) -> bool:
    return isinstance(x, jax.Array) and not x.is_fully_addressable


def _require_same_in_all_processes(leaves: list, mesh: Mesh) -> None:
    if not leaves or len({device.process_index for device in mesh.devices.flat}) < jax.process_count():
        return  # a process without a device in the mesh does not take part, and would be waited for
    from jax.experimental.multihost_utils import process_allgather

    checksum = 0
    for x in map(jnp.asarray, leaves):
        host = np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        checksum = zlib.crc32(host.tobytes(), zlib.crc32(repr(jax.typeof(x)).encode(), checksum))
    if len(np.unique(process_allgather(np.uint32(checksum)))) > 1:
        raise ValueError(
            "the processes passed different values to a mesh that spans them; use the same data, requests, seeds and keys in "
            "every process"
        )
