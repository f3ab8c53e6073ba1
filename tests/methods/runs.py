"""Runs of methods with steps on one toy problem, as few compiled programs as tests can share."""

from functools import cache

import jax
import jax.numpy as jnp
import optax

import jaxunlearn as ju
from jaxunlearn import sampling
from tests.problems import OPTIONS, blobs, distance, lane, network

DATA, MODEL = blobs(), network()
VARIABLES = MODEL.init(jax.random.key(1))
ROWS = [3, 4, 5, 30]
REQUEST = lane(ju.from_indices(DATA, [ROWS]), 0)
KEY = jax.random.key(7)
STEPS, BATCH_SIZE, RATE = 6, 4, 0.1


@cache
def program(name, model=MODEL, optimizer=None, num_steps=STEPS, batch_size=BATCH_SIZE, static=()):
    """`(variables, data, request, key, rate, steps, settings) -> Result`, compiled once for all values of its arguments."""
    needed = OPTIONS.get(name, {})

    def run(variables, data, request, key, rate, steps, settings):
        chosen = {**(needed(model) if callable(needed) else needed), **dict(static), **settings}
        method = ju.METHODS[name].factory(model, optimizer or optax.sgd(rate), **chosen)
        return ju.iterate(method, num_steps, batch_size=batch_size, active_steps=steps)(variables, data, request, key)

    return jax.jit(run)


def answer(name, variables=VARIABLES, *, data=DATA, request=REQUEST, key=KEY, rate=RATE, steps=STEPS, static=None, **settings):
    """Result of a method after some of six steps of SGD; numbers among the settings are traced, `static` are not.

    Args:
        static: settings that shapes or branches depend on, and `model`, `optimizer`, `num_steps`, `batch_size`.
    """
    return _run(name, static)(variables, data, request, key, rate, steps, {x: jnp.asarray(y) for x, y in settings.items()})


def sweep_equals_single_runs(name, *, data=DATA, request=REQUEST, static=None, **settings):
    """Assert that two settings under one `vmap` give what each of them gives alone, and that they matter."""
    run, stacked = _run(name, static), {x: jnp.asarray(values) for x, values in settings.items()}
    side_by_side = jax.jit(jax.vmap(lambda values: run(VARIABLES, data, request, KEY, RATE, STEPS, values)))(stacked).variables
    alone = [run(VARIABLES, data, request, KEY, RATE, STEPS, lane(stacked, place)).variables for place in range(2)]
    for place in range(2):
        assert distance(lane(side_by_side, place), alone[place]) < 1e-5
    assert distance(*alone) > 1e-6


def _run(name, static):
    static = dict(static or {})
    form = {x: static.pop(x) for x in ("model", "optimizer", "num_steps", "batch_size") if x in static}
    return program(name, static=tuple(sorted(static.items())), **form)


def batch_of(method, *, step=0, num_steps=STEPS, data=DATA, request=REQUEST, sizes=(4, 5), variables=VARIABLES):
    """Context and state of a method, and the batch that it would see at a step."""

    @jax.jit
    def made(variables, data, request, step):
        context, state = method.init(variables, data, request, KEY)
        split = sampling.split(data, request, KEY)
        return context, state, method.sample(split, context, step, KEY, sampling.BatchSizes(*sizes))

    context, state, batch = made(variables, data, request, step)
    return context, state, batch._replace(step=step, num_steps=num_steps)


def one_step(method, variables=VARIABLES, **where):
    """Parameters after one step that starts at `variables`, for a model trained to VARIABLES; the batch and the stats."""
    context, state, batch = batch_of(method, **where)
    after, stats = jax.jit(method.step)(state._replace(variables=variables), context, batch, KEY)
    return after.variables.params, batch, stats


def stepped(params, loss, rate=RATE):
    """A loss, and the parameters after one step of gradient descent on it."""
    value, slope = jax.jit(jax.value_and_grad(loss))(params)
    return float(value), jax.tree.map(lambda p, g: p - rate * g, params, slope)


def descended(params, loss, rate=RATE):
    """Parameters after one step of gradient descent."""
    return stepped(params, loss, rate)[1]


def forget_losses(params, targets=None):
    """Losses of the rows of REQUEST."""
    examples = jax.tree.map(lambda x: x[jnp.array(ROWS)], DATA.train)
    examples = examples if targets is None else examples._replace(targets=targets)
    return ju.losses.cross_entropy(MODEL.forward(ju.Variables(params), examples.inputs), examples)
