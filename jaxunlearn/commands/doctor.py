"""`doctor`: what JAX finds on this machine, what is slow or wrong here, and the setting that mends it."""

import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import cores
from jaxunlearn.commands.table import aligned
from jaxunlearn.version import __version__

# distributions, and the extra that brings each of those that the core does without
PARTS = {
    "jax": "", "jaxlib": "", "optax": "", "numpy": "", "scipy": "", "lineax": "", "flax": "flax", "equinox": "equinox",
    "dm-haiku": "haiku", "orbax-checkpoint": "checkpoint", "cryptography": "sign", "tensorflow-datasets": "data",
    "tokenizers": "language", "matplotlib": "experiments",
}  # fmt: skip
FEW_COMPILE_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0"


class Machine(NamedTuple):
    """What is looked at."""

    platform: str  # of the default backend: cpu, gpu, tpu
    devices: tuple[str, ...]
    has_float64: bool  # whether a float64 scope computes in float64
    cores: int  # that this process may use
    quota: float | None  # cores' worth of time that a container grants; None: no limit
    load: float  # processes that wanted to run over the last minute
    has_gpu: bool  # whether the system shows one, whatever JAX sees
    settings: Mapping[str, object]  # of JAX
    environment: Mapping[str, str]
    versions: Mapping[str, str | None]  # None: not installed


class Remark(NamedTuple):
    """One thing to know."""

    what: str
    mend: str  # a setting, a command, or what to do


def look() -> Machine:
    """Look at this machine; starts JAX's backend.

    Returns:
        What was found.

    Example:
        >>> from jaxunlearn.commands.doctor import look
        >>> look().has_float64
        True
    """
    with jax.enable_x64(True):
        has_float64 = bool(jnp.asarray(1.0, jnp.float64) + 1e-12 != 1)
    names = ("jax_default_prng_impl", "jax_debug_nans", "jax_disable_jit", "jax_compilation_cache_dir")
    return Machine(
        platform=jax.default_backend(),
        devices=tuple(f"{device.device_kind} {device.id}" for device in jax.devices()),
        has_float64=has_float64,
        cores=cores.available(),
        quota=quota_of(Path("/sys/fs/cgroup/cpu.max")),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        has_gpu=Path("/dev/nvidiactl").exists(),
        settings={name: getattr(jax.config, name) for name in names},
        environment=dict(os.environ),
        versions={name: _version(name) for name in PARTS},
    )


def quota_of(path: Path) -> float | None:
    """Cores that a Linux control group grants.

    Args:
        path: of its `cpu.max`, which holds `max 100000` or `150000 100000`, in microseconds.

    Returns:
        Cores, None without a limit or without the file.

    Example:
        >>> from pathlib import Path
        >>> from jaxunlearn.commands.doctor import quota_of
        >>> quota_of(Path("nothing"))
    """
    granted, *period = path.read_text().split() if path.exists() else ["max"]
    return None if granted == "max" else float(granted) / float(period[0])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def faults(machine: Machine) -> list[Remark]:
    """What makes results wrong or is refused.

    Args:
        machine: as `look` finds it.

    Returns:
        Faults, none on a sound machine.

    Example:
        >>> from jaxunlearn.commands.doctor import faults, look
        >>> faults(look())
        []
    """
    found = []
    if machine.versions.get("jaxlib") == "0.10.2":
        found.append(
            Remark("jaxlib 0.10.2 compiles some products wrongly on CPUs (jax issue 39103)", "pip install 'jaxlib!=0.10.2'")
        )
    if not machine.has_float64:
        found.append(Remark("float64 is not to be had, so that certificates are void", "certify on the CPU: JAX_PLATFORMS=cpu"))
    if (kind := machine.settings.get("jax_default_prng_impl")) != "threefry2x32":
        found.append(Remark(f"random keys are of kind {kind}, which methods refuse", "JAX_DEFAULT_PRNG_IMPL=threefry2x32"))
    return found


def slow(machine: Machine) -> list[Remark]:
    """What is slower here than it need be.

    Args:
        machine: as `look` finds it.

    Returns:
        Remarks; figures in them are those of experiments/results.

    Example:
        >>> from jaxunlearn.commands.doctor import look, slow
        >>> machine = look()._replace(platform="cpu", cores=4, quota=None)
        >>> slow(machine)[0].mend
        'call batched(unlearn) outside jit, which takes all 4'
    """
    found, on_cpu = [], machine.platform == "cpu"
    able = machine.cores if machine.quota is None else max(1, min(machine.cores, int(machine.quota)))

    def add(when: object, what: str, mend: str) -> None:
        if when:
            found.append(Remark(what, mend))

    add(
        on_cpu and able > 1,
        "inside jit a CPU runs small models on one core",
        f"call batched(unlearn) outside jit, which takes all {able}",
    )
    add(on_cpu and machine.has_gpu, "the system has a GPU that JAX does not use", "pip install 'jaxunlearn[cuda]'")
    add(
        on_cpu,
        "native convolutions inside a loop take 10 to 15 times longer on CPUs",
        "write them as slices and one matrix product, as experiments/common/convolution.py does",
    )
    add(
        on_cpu and able > 1 and machine.environment.get("OPENBLAS_NUM_THREADS") != "1",
        "many small solves at once can be 50 times slower with several threads of OpenBLAS",
        "OPENBLAS_NUM_THREADS=1, if you certify or solve many requests; measure both",
    )
    add(
        machine.quota is not None and machine.quota < machine.cores,
        f"this container may use {machine.quota:g} of {machine.cores} cores, and libraries start a thread for each"
        if machine.quota is not None
        else "",
        f"taskset -c 0-{able - 1} in front of the command",
    )
    add(
        not machine.settings.get("jax_compilation_cache_dir"),
        "every process compiles everything anew",
        f"JAX_COMPILATION_CACHE_DIR=some/folder {FEW_COMPILE_SECONDS}",
    )
    add(machine.settings.get("jax_disable_jit"), "jit is switched off", "unset JAX_DISABLE_JIT")
    add(machine.settings.get("jax_debug_nans"), "every operation is checked for NaN", "unset JAX_DEBUG_NANS")
    add(
        machine.load > able + 1,
        f"{machine.load:.1f} processes want {able} core(s): times that you measure now mean little",
        "wait, or run elsewhere",
    )
    return found


def doctor() -> int:
    """Print devices, float64, threads and versions, and what is wrong or slow here with the setting that mends it.

    Returns:
        0, or 1 if something makes results wrong or is refused.
    """
    machine = look()
    threads = {name: value for name, value in machine.environment.items() if name.endswith("_NUM_THREADS")}
    print(
        aligned(
            [
                ("jaxunlearn", __version__),
                ("python", sys.version.split()[0]),
                *(
                    (name, found or f"not installed: pip install 'jaxunlearn[{PARTS[name]}]'")
                    for name, found in machine.versions.items()
                ),
                ("devices", f"{len(machine.devices)} on {machine.platform}: {', '.join(machine.devices)}"),
                ("float64", "works where it is asked for" if machine.has_float64 else "does not work"),
                ("cores", f"{machine.cores}" + ("" if machine.quota is None else f", of which {machine.quota:g} are granted")),
                ("threads", ", ".join(f"{name}={value}" for name, value in threads.items()) or "as libraries choose"),
                ("XLA_FLAGS", machine.environment.get("XLA_FLAGS", "not set")),
            ]
        )
    )
    wrong = faults(machine)
    for title, remarks in (("wrong", wrong), ("slow", slow(machine))):
        for remark in remarks:
            print(f"\n{title}: {remark.what}\n  mend: {remark.mend}")
    return 1 if wrong else 0
