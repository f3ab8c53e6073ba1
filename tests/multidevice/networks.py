"""Networks that several devices can share."""

import jax
import jax.numpy as jnp

import jaxunlearn as ju
from tests.problems import NUM_CLASSES, NUM_FEATURES, init


def deep(width, layers):
    """Equal layers under `scan`, as in large networks."""

    def predict(variables, inputs, *, train=False, key=None):
        params = variables.params
        x, _ = jax.lax.scan(
            lambda x, layer: (x + 0.3 * jnp.tanh(x @ layer["w"] + layer["b"]), None), inputs @ params["in"], params["layers"]
        )
        return ju.Outputs(x @ params["head"], {"penultimate": x})

    def start(key):
        first, middle, last = jax.random.split(key, 3)
        middle = {"w": jax.random.normal(middle, (layers, width, width)) / width**0.5, "b": jnp.zeros((layers, width))}
        first = jax.random.normal(first, (NUM_FEATURES, width)) / 2
        return ju.Variables({"in": first, "layers": middle, "head": jax.random.normal(last, (width, NUM_CLASSES)) / 5})

    return ju.Model(predict, ju.losses.cross_entropy, start)


def _normalised():
    """A classifier with BatchNorm, whose statistics are those of the whole batch."""

    def predict(variables, inputs, *, train=False, key=None):
        params, state = variables
        hidden = inputs @ params["body"]
        mean, variance = (jnp.mean(hidden, axis=0), jnp.var(hidden, axis=0)) if train else (state["mean"], state["var"])
        moved = {"mean": 0.9 * state["mean"] + 0.1 * mean, "var": 0.9 * state["var"] + 0.1 * variance}
        hidden = jnp.tanh((hidden - mean) / jnp.sqrt(variance + 1e-3) * params["scale"])
        return ju.Outputs(hidden @ params["head"], {"penultimate": hidden}, moved if train else state)

    def start(key):
        params = init(key).params
        state = {"mean": jnp.zeros(8), "var": jnp.ones(8)}
        return ju.Variables({"body": params["body"], "scale": jnp.ones(8), "head": params["head"]}, state)

    return ju.Model(predict, ju.losses.cross_entropy, start)


NORMALISED = _normalised()
