"""Flags of every experiment that say on what it runs: devices, processes, memory and precision.

The base configuration of all scripts holds a `Scale`; they call `start` before anything touches a device, and hand the mesh and
`scale.chunk` to what they run. In a run of several processes all of them compute the same script; results are `gathered`, and
only the process that `leads` prints and writes files.
"""

import os
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

import jaxunlearn as ju
from jaxunlearn import cores


@dataclass(frozen=True)
class Scale:
    """On what a script runs."""

    mesh: bool = True
    """Spread requests and models over all devices; on CPUs every core is one."""
    chunk: int | None = None
    """Requests that run side by side on a device; bounds memory."""
    bf16: bool = False
    """Compute forward and backward passes in bfloat16; weights, optimizer and audits stay float32."""
    distributed: bool = False
    """Join the other processes of this run, one per host; implies --mesh."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where the cluster does not tell (e.g. two processes on one machine)."""
    num_processes: int | None = None
    """How many processes there are; together with --coordinator."""
    process_id: int | None = None
    """Which of them this one is, from 0; together with --coordinator."""

    def recorded(self) -> dict[str, Any]:
        """What belongs beside results: everything but who is who."""
        return {"mesh": self.mesh, "chunk": self.chunk, "bf16": self.bf16, "distributed": self.distributed}


def use_all_cores() -> None:
    """Make every CPU core a device, unless the environment says how many devices there are.

    It must be called before anything touches a device. `JAX_NUM_CPU_DEVICES` and XLA's flag
    `--xla_force_host_platform_device_count` are left as they are; accelerators are not concerned.

    Raises:
        RuntimeError: a device was used already.
    """
    flag = "--xla_force_host_platform_device_count"
    if "JAX_NUM_CPU_DEVICES" not in os.environ and flag not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", cores.available())


def start(scale: Scale) -> Mesh | None:
    """Take all CPU cores, or join the other processes, and make the mesh; call it before anything touches a device.

    Returns:
        A mesh over the devices of all processes with `--distributed`, of this one with `--mesh` if there is more than one;
        else None.

    Raises:
        ValueError: flags that do not go together, or a chunk that is not positive.
        RuntimeError: a device was used before; `--distributed` was started twice.
    """
    if scale.chunk is not None and scale.chunk < 1:
        raise ValueError(f"--chunk must be at least 1, got {scale.chunk}")
    named = {"coordinator": scale.coordinator, "num-processes": scale.num_processes, "process-id": scale.process_id}
    given = [f"--{name}" for name, value in named.items() if value is not None]
    if given and not scale.distributed:
        raise ValueError(f"{', '.join(given)} without --distributed: add it, or leave them out")
    if given and len(given) < len(named):
        raise ValueError(
            f"got only {', '.join(given)}: give --coordinator, --num-processes and --process-id together, or none of them "
            "where the cluster tells (TPU, Slurm, Open MPI)"
        )
    if scale.process_id is not None and not 0 <= scale.process_id < (scale.num_processes or 0):
        raise ValueError(f"--process-id must lie in 0 .. {(scale.num_processes or 0) - 1}, got {scale.process_id}")
    if scale.distributed:
        jax.distributed.initialize(scale.coordinator, scale.num_processes, scale.process_id)
        return ju.request_mesh()
    if not scale.mesh:
        return None
    use_all_cores()
    return ju.request_mesh() if jax.device_count() > 1 else None


def leads() -> bool:
    """Whether this process prints and writes files: the first one does."""
    return jax.process_index() == 0


def gathered(values: PyTree) -> PyTree:
    """Arrays that span processes as a full copy on one device of each; other leaves as they are.

    Every process must call it, with the same tree.
    """

    def gather(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        assert isinstance(x.sharding, NamedSharding)  # what `ju.batched` and `ju.replicate` make
        return jax.jit(_identity, out_shardings=NamedSharding(x.sharding.mesh, P()))(x).addressable_data(0)

    return jax.tree.map(gather, values)


def _identity(x: jax.Array) -> jax.Array:
    return x  # one function for all calls, so that jit compiles once a shape


def in_bfloat16(model: ju.Model) -> ju.Model:
    """A model that computes in bfloat16 and looks as before from outside.

    Params and inputs are cast in the forward pass; logits, features and moved state are cast back. Weights, gradients, the
    loss and the optimizer therefore keep their dtypes. State goes in as it is: running statistics would lose their small
    moves in bfloat16, and a layer that mixes them with activations decides for itself in what it computes.

    Args:
        model: any model; integer inputs and leaves of other kinds are left alone.
    """

    def forward(variables: ju.Variables, inputs: PyTree, /, *, train: bool = False, key: jax.Array | None = None) -> ju.Outputs:
        def full(variables: ju.Variables, inputs: PyTree, key: jax.Array | None) -> ju.Outputs:
            return model.forward(variables, inputs, train=train, key=key)

        like = jax.eval_shape(full, variables, inputs, key)
        return _cast_like(full(variables._replace(params=_narrow(variables.params)), _narrow(inputs), key), like)

    if model.head is None:
        return model._replace(forward=forward)
    wide = model.head.apply

    def apply(variables: ju.Variables, features: jax.Array) -> jax.Array:
        like = jax.eval_shape(wide, variables, features)
        return _cast_like(wide(variables._replace(params=_narrow(variables.params)), _narrow(features)), like)

    return model._replace(forward=forward, head=model.head._replace(apply=apply))


def _narrow(values: PyTree) -> PyTree:
    def cast(x):
        return jnp.asarray(x, jnp.bfloat16) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x

    return jax.tree.map(cast, values)


def _cast_like(values: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), values, like)
