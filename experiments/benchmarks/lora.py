"""Sixteen requests in adapters over one base: one compiled call against one jitted call each, and what both hold in memory.

    python experiments/benchmarks/lora.py
    python experiments/benchmarks/lora.py --rounds 0        # memory only

Times are of a small decoder of characters, interleaved, compilation apart. Memory is that of compiled programs, for it and for
one of the size of GPT-2, which is compiled and not run; the yardstick is the base and, for every request, an adapter with both
moments of Adam. Nothing smaller can be expected, and activations come on top.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jaxunlearn as ju
from experiments.benchmarks.timing import interleaved
from experiments.common import decoder
from jaxunlearn import frozen

SMALL = decoder.Config(64, width=64, layers=2, heads=4, hidden=128, remat=False)
LARGE = decoder.Config(
    50257, width=768, layers=12, heads=12, hidden=3072, norm="layer", mlp="gelu", rotary=False,
    biases=("q", "k", "v", "o", "up", "down"),
)  # fmt: skip
TARGET = 1.15  # times the yardstick


@dataclass
class Config:
    """Command line of the benchmark."""

    requests: int = 16
    """Requests of a call."""
    steps: int = 5
    """Steps of unlearning (NPO), each of one row to forget and two to retain."""
    rounds: int = 5
    """Timed calls of each variant; 0 leaves the times out."""
    rank: int = 4
    """Of the adapters of the small model; those of the large one have twice that."""
    large: bool = True
    """Compile for a model of the size of GPT-2, too."""
    out: Path | None = None
    """JSON file."""


def method_of(form: decoder.Config, rank: int, steps: int) -> tuple[frozen.OnBase, ju.UnlearnFn]:
    """NPO with Adam in adapters of all matrices."""
    model = decoder.model(form, ju.losses.sequence_log_loss(reduction="sum"))
    assert model.init is not None
    like = jax.eval_shape(model.init, jax.random.key(0))
    parts = frozen.lora(model, like, np.zeros((1, 64), np.int32), rank=rank, targets=decoder.MATRICES)

    def make(model: ju.Model) -> ju.UnlearnFn:
        return ju.iterate(ju.npo(model, optax.adam(1e-3)), num_steps=steps, batch_size=1, retain_batch_size=2)

    return parts, frozen.on_base(parts, make)


def arguments(form: decoder.Config, parts: frozen.OnBase, requests: int) -> tuple[Any, ...]:
    """Variables, data with the base, requests and keys, drawn at random."""
    key = jax.random.key(0)
    base = decoder.init(form, key)
    tokens = jax.random.randint(key, (128, 65), 0, form.vocabulary)
    data = ju.slots.BASE.put(ju.training_data(tokens[:, :-1], tokens[:, 1:]), base)
    rows = ju.ForgetRequest(4 * jnp.arange(requests)[:, None] + jnp.arange(2), jnp.ones((requests, 2)))
    return parts.start(base, key), data, rows, jax.random.split(key, requests)


def size(values: Any) -> int:
    """Bytes of arrays or of their shapes; of keys, those of their data."""
    shapes = jax.tree.leaves(jax.eval_shape(lambda x: jax.tree.map(_plain, x), values))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes)


def _plain(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def memory(form: decoder.Config, rank: int, config: Config) -> dict[str, Any]:
    """Bytes of the compiled calls, and of the yardstick."""
    parts, method = method_of(form, rank, config.steps)
    shapes = jax.eval_shape(lambda: arguments(form, parts, config.requests))
    base, part = size(ju.slots.BASE.get(shapes[1])), size(shapes[0])
    least = base + 3 * config.requests * part
    found: dict[str, Any] = {"base": base, "adapter": part, "yardstick": least}
    for name, chunk in (("one after the other", 1), ("side by side", config.requests)):
        used = jax.jit(ju.batched(method, chunk=chunk)).lower(*shapes).compile().memory_analysis()
        assert used is not None  # every backend in use has one
        held = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
        whole = held + used.temp_size_in_bytes
        found[name] = {
            "arguments and results": held, "temporary": used.temp_size_in_bytes, "bytes": whole, "times": whole / least,
            "reached": whole <= TARGET * least,
        }  # fmt: skip
        print(f"width {form.width}, {name}: {whole:,} bytes, {whole / least:.2f} of base and adapters with Adam ({least:,})")
    return found


def times(config: Config) -> dict[str, Any]:
    """One call for all against one call each."""
    parts, method = method_of(SMALL, config.rank, config.steps)
    variables, data, requests, keys = jax.jit(lambda: arguments(SMALL, parts, config.requests))()
    together, alone = ju.batched(method), jax.jit(method)
    inside = jax.jit(together)
    single = [jax.tree.map(lambda x, place=place: x[place], requests) for place in range(config.requests)]
    jax.block_until_ready(single)
    taken = interleaved(
        {
            "one call": lambda: together(variables, data, requests, keys).variables,
            "one call inside jit": lambda: inside(variables, data, requests, keys).variables,
            "a call each": lambda: [alone(variables, data, *x).variables for x in zip(single, keys, strict=True)],
        },
        rounds=config.rounds,
    )
    gain = taken.median["a call each"] / taken.median["one call"]
    print(f"{config.requests} requests: {1e3 * taken.median['one call']:.0f} ms in one call, {gain:.2f} times as fast")
    return {
        "median": taken.median, "best": taken.best, "first": taken.first, "gain": gain,
        "gain_of_best": taken.best["a call each"] / taken.best["one call"], "load_per_core": taken.load_per_core,
        "valid": taken.valid,
    }  # fmt: skip


def main(config: Config) -> dict[str, Any]:
    """Measure; returns what is written."""
    found: dict[str, Any] = {"jax": jax.__version__, "requests": config.requests, "steps": config.steps}
    if config.rounds:
        found["seconds"] = times(config)
    found["memory"] = {"small": memory(SMALL, config.rank, config)}
    if config.large:
        found["memory"]["large"] = memory(LARGE, 2 * config.rank, config)
    if config.out is not None:
        config.out.write_text(json.dumps(found, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
