"""Fine-tuning of the toy network, which the tests of loops run."""

import jax
import jax.numpy as jnp
import optax

import jaxunlearn as ju
from jaxunlearn import sampling
from jaxunlearn.loop.iterate import step_keys
from tests.problems import blobs, held_out, lane, network

DATA, TEST, MODEL = blobs(), held_out(), network()
REQUEST = lane(ju.from_indices(DATA, [[3, 4, 5, 30]]), 0)
KEY = jax.random.key(7)
VARIABLES = MODEL.init(jax.random.key(1))
FINETUNE = ju.finetune(MODEL, optax.sgd(0.1))
SIZES = sampling.BatchSizes(4, 4)


def run(variables=VARIABLES, num_steps=6, optimizer=None, data=DATA, request=REQUEST, **loop):
    method = FINETUNE if optimizer is None else ju.finetune(MODEL, optimizer)
    return jax.jit(ju.iterate(method, num_steps, batch_size=4, **loop))(variables, data, request, KEY)


def accuracy(variables, seen):
    logits = MODEL.forward(variables, seen.validation.inputs).logits
    return jnp.mean(jnp.argmax(logits, -1) == seen.validation.targets)


@jax.jit
def drawn(step):
    """The batch that `iterate` draws at a step."""
    _, split_key, loop_key = jax.random.split(KEY, 3)
    split = sampling.split(DATA, REQUEST, split_key)
    return sampling.uniform(split, (), step, step_keys(loop_key, step)[0], SIZES)
