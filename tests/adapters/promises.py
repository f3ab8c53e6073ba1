"""What every adapter promises; each test file calls these on a module with BatchNorm and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

import jaxunlearn as ju
from jaxunlearn import passes
from tests.problems import blobs, distance, lane, method

DATA = blobs()
ROWS = DATA.train.inputs
KEY = jax.random.key(0)
REQUESTS = ju.from_indices(DATA, [[1, 2, 3], [4]])
KEYS = jax.random.split(KEY)


def quick(function):
    """`jax.jit` that compiles in half the time; these programs run once or twice."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def same(first, second):
    """Whether two trees are equal bit for bit, typed keys included."""

    def plain(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(plain(x), plain(y)), first, second))


def form(tree):
    return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


def answered(model, variables):
    """A method with passes over both sides of a batch: jitted for one request, and its result for several."""
    unlearn = method("gradient_difference", model, num_steps=3, batch_size=8)
    batched = quick(ju.batched(unlearn, chunk=2))
    return quick(unlearn), ju.check(batched(variables, DATA, REQUESTS, KEYS))


def batched_equals_single(answers, variables):
    unlearn, result = answers
    alone = ju.check(unlearn(variables, DATA, lane(REQUESTS, 1), KEYS[1]))
    assert form(alone.variables) == form(variables)
    assert distance(alone.variables.params, lane(result.variables.params, 1)) < 1e-5
    assert distance(alone.variables.params, variables.params) > 1e-3


def statistics_follow_the_policy(model, variables, answers):
    assert same(model.forward(variables, ROWS).state, variables.state)
    assert not same(model.forward(variables, ROWS, train=True, key=KEY).state, variables.state)
    part = ju.Weighted(jax.tree.map(lambda x: x[:8], DATA.train), jnp.ones(8), jnp.arange(8))
    for side in ("forget", "retain"):
        for bn in ("frozen", "retain", "all"):
            _, moved = passes.train_pass(model, variables, part, KEY, side=side, bn=bn)
            assert same(moved.state, variables.state) == (bn not in ("all", side))
            assert form(moved) == form(variables)
    assert not same(lane(answers[1].variables.state, 0), variables.state)


def dropout_follows_the_key(model, variables):
    def hidden(**options):
        return model.forward(variables, ROWS, **options).features["hidden"]

    assert np.array_equal(hidden(train=True, key=KEY), hidden(train=True, key=KEY))
    assert not np.array_equal(hidden(train=True, key=KEY), hidden(train=True, key=jax.random.key(1)))
    assert np.array_equal(hidden(), hidden(key=jax.random.key(1)))
    zeros = np.mean(np.asarray(hidden(train=True, key=KEY)) == 0) - np.mean(np.asarray(hidden()) == 0)
    assert zeros > 0.1  # half of what relu leaves


def no_key_is_used_twice(model, variables):
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: model.forward(variables, ROWS, train=True, key=key).logits)(jax.random.key(3))


def write(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def read(path, like):
    with ocp.StandardCheckpointer() as checkpointer:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return checkpointer.restore(path, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like))
