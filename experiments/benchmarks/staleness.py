"""What does it cost to notice that a prepared value belongs to other parameters?

    python experiments/benchmarks/staleness.py

The cheapest methods that read one, each for 64 requests of 20 digits, as they are and with digests replaced by a constant;
one process, interleaved, medians.
"""

import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import tyro

import jaxunlearn as ju
from experiments.benchmarks.timing import interleaved
from experiments.common.data import load
from experiments.common.models import build
from jaxunlearn import tree


@dataclass
class Config:
    """Command line of the benchmark."""

    rounds: int = 41
    """Timed calls of each variant."""
    requests: int = 64
    """Requests of a call."""
    out: Path | None = None
    """JSON file."""


@contextmanager
def without_digests():
    """Programs that are traced here take no digest."""
    real = tree.digest
    tree.digest = lambda _: jnp.zeros(2, jnp.uint32)
    try:
        yield
    finally:
        tree.digest = real


def main(config: Config) -> dict:
    """Time the pairs; returns what is written."""
    train = load("digits", None, seed=0).train
    data = ju.training_data(jnp.asarray(train.inputs), jnp.asarray(train.targets))
    model = build("mlp", data.train.inputs.shape[1:], 10)
    assert model.init is not None
    variables = model.init(jax.random.key(0))
    requests = ju.from_indices(data, [range(20 * i, 20 * i + 20) for i in range(config.requests)])
    keys = jax.random.split(jax.random.key(1), config.requests)
    methods = {
        "concept_erasure": ju.concept_erasure(model),
        "ssd": ju.ssd(model),
        "influence": ju.influence(model, damping=1e-2),
    }
    found = {}
    for name, unlearn in methods.items():
        ready = jax.jit(ju.prepare(unlearn))(variables, data, keys[0])
        for chunk in (1, config.requests):

            def call(answer, ready=ready):
                return lambda: answer(variables, ready, requests, keys)

            plain = jax.jit(ju.batched(unlearn, chunk=chunk))
            bare = jax.jit(ju.batched(lambda *arguments, unlearn=unlearn: unlearn(*arguments), chunk=chunk))
            plain(variables, ready, requests, keys)
            with without_digests():
                bare(variables, ready, requests, keys)
            times = interleaved({"as it is": call(plain), "without": call(bare)}, rounds=config.rounds)
            cost = times.median["as it is"] / times.median["without"] - 1
            key = f"{name}, {'one by one' if chunk == 1 else 'side by side'}"
            found[key] = {"seconds": times.median, "cost": cost, "load_per_core": times.load_per_core, "valid": times.valid}
            print(f"{key}: {1e3 * times.median['as it is']:.2f} ms, digests {100 * cost:+.1f} %")
    if config.out is not None:
        record = {"jax": jax.__version__, "rows": len(data.present), "methods": found}
        config.out.write_text(json.dumps(record, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
