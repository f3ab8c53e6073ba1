"""Boxes of parameters hold every training with rows missing, in float32 too, and are what closed forms say."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import certificates as c
from jaxunlearn.certificates.intervals import Interval, bounds, point
from jaxunlearn.loop.fixed_batches import along
from tests.problems import blobs, held_out, linear_regression, network, regression_data

KEY = jax.random.key(0)


def box_of(model, data, batches, start, **options):
    """One program for every number of removals."""
    options = {"learning_rate": 0.01, **options}

    @jax.jit
    def make(k):
        return c.reachable(model, start, data, batches, removals=k, **options)

    return lambda k: jax.device_get(make(k))


def retrained(model, data, batches, start, counts, rate=0.01, divide="remaining"):
    rates = jnp.full(len(batches), rate, jnp.float32)
    run = jax.jit(jax.vmap(lambda one: along(model, start, data, batches, rates, one, divide=divide)))
    return run(jnp.asarray(counts, jnp.float32))


def removals(batches, rows, k, runs, seed=0):
    """Rows that count, [runs, rows]: at most k of each batch are gone, exactly k of the first."""
    rng, counts = np.random.default_rng(seed), np.ones((runs, rows))
    for one in counts:
        for batch in np.asarray(batches)[: 1 + len(batches)]:
            free = rng.permutation(batch[batch >= 0])
            for row in free:
                one[row] = 0
                if max((one[b[b >= 0]] == 0).sum() for b in np.asarray(batches)) > k:
                    one[row] = 1
    return counts


def inside(box, params):
    """Whether all runs lie in the box, and the largest part of a side that they use."""
    ends = zip(*map(jax.tree.leaves, (box.lower, box.upper, params)), strict=True)
    within, used = True, 0.0
    for low, high, x in ends:
        low, high, x = (np.asarray(y, np.float64) for y in (low, high, x))
        within &= bool(((low <= x) & (x <= high)).all())
        used = max(used, float((np.ptp(x, axis=0) / (high - low)).max()))
    return within, used


def width(box):
    return max(float(np.max(x - y)) for x, y in zip(jax.tree.leaves(box.upper), jax.tree.leaves(box.lower), strict=True))


@pytest.fixture(scope="module")
def deep():
    model, data = network(), blobs()
    public, everything = ju.training_data(*held_out()), jnp.tile(jnp.arange(20), (100, 1))
    start = ju.Variables(along(model, model.init(KEY), public, everything, jnp.full(100, 0.3), jnp.ones(20)))
    batches = ju.fixed_batches(60, KEY, num_steps=4, batch_size=20)
    return model, data, batches, start, box_of(model, data, batches, start)


def test_without_removals_the_box_is_the_training_up_to_rounding(deep):
    model, data, batches, start, make = deep
    box, run = make(0), retrained(model, data, batches, start, np.ones((1, 60)))
    assert inside(box, run)[0]
    assert width(box) < 2e-4


@pytest.mark.parametrize("k", [1, 2])
def test_two_hundred_removals_lie_inside(deep, k):
    model, data, batches, start, make = deep
    counts = removals(batches, 60, k, 200)
    assert max((counts[:, b] == 0).sum(axis=1).max() for b in np.asarray(batches)) == k
    within, used = inside(make(k), retrained(model, data, batches, start, counts))
    assert within
    assert used > 0.03
    print(f"k {k}: box {width(make(k)):.4f} wide, runs use {used:.2f} of a side")


def test_boxes_grow_with_removals_and_all_rows_of_a_batch_may_go(deep):
    model, data, batches, start, make = deep
    first = batches[:1]
    once = box_of(model, data, first, start)
    boxes = [once(k) for k in (0, 1, 19, 20, 30)]
    for small, large in itertools.pairwise(boxes):
        for name in small.lower:
            assert np.all(large.lower[name] <= small.lower[name])
            assert np.all(small.upper[name] <= large.upper[name])
    whole = np.ones((2, 60))
    whole[0, np.asarray(first)[0]] = 0  # all of the batch
    whole[1, np.asarray(first)[0, 1:]] = 0  # all but one
    assert inside(boxes[3], retrained(model, data, first, start, whole))[0]


def test_one_step_of_linear_regression_is_its_closed_form():
    model, data = linear_regression(), regression_data()
    start, batches, k = model.init(KEY), jnp.arange(12)[None], 2
    inputs, targets = (np.asarray(x, np.float64)[:12] for x in data.train)
    w = np.asarray(start.params["w"], np.float64)
    slopes = np.sort((inputs @ w - targets)[:, None] * inputs, axis=0)
    box = c.reachable(model, start, data, batches, learning_rate=0.1, removals=k)
    assert np.abs(np.asarray(box.lower["w"]) - (w - 0.1 * slopes[k:].mean(0))).max() < 1e-5
    assert np.abs(np.asarray(box.upper["w"]) - (w - 0.1 * slopes[:-k].mean(0))).max() < 1e-5
    box = c.reachable(model, start, data, batches, learning_rate=0.1, removals=k, divide="fixed")
    high = (slopes.sum(0) - np.minimum(slopes[:k], 0).sum(0)) / 12
    assert np.abs(np.asarray(box.lower["w"]) - (w - 0.1 * high)).max() < 1e-5


def test_fixed_divisors_regularizers_and_incomplete_batches():
    model, data = linear_regression(0.5), regression_data()
    start, batches = model.init(KEY), jnp.asarray([[0, 1, 2, 3, -1], [4, 5, 6, -1, -1], [9, 8, 7, 11, 12]])
    counts = removals(batches, 60, 1, 50)
    box = c.reachable(model, start, data, batches, learning_rate=0.1, removals=1, divide="fixed")
    within, used = inside(box, retrained(model, data, batches, start, counts, 0.1, "fixed"))
    assert within
    assert used > 0.3


def test_predictions_that_are_stable_are_those_of_every_training(deep):
    model, data, batches, start, make = deep
    test, counts = held_out().inputs, removals(batches, 60, 1, 200)
    runs = retrained(model, data, batches, start, counts)
    logits = np.asarray(jax.vmap(lambda p: model.forward(ju.Variables(p), test).logits)(runs))
    nominal, one = (jax.device_get(c.stable_predictions(model, make(k), test)) for k in (0, 1))
    assert 0 < np.sum(np.asarray(one.labels) >= 0) <= np.sum(np.asarray(nominal.labels) >= 0)
    assert (np.asarray(one.low) <= logits).all()
    assert (logits <= np.asarray(one.high)).all()
    same = (np.argmax(logits, axis=2) == np.asarray(one.labels)) | (np.asarray(one.labels) < 0)
    assert same.all()
    assert [each.source for each in one.assumptions] == ["enforced", "declared", "declared", "assumed"]
    bounded = partial(c.reachable, model, start, data, batches, learning_rate=0.01)
    found = jax.jit(lambda k: c.stable_predictions(model, bounded(removals=k), test).labels)(1)
    assert np.array_equal(found, one.labels)
    with pytest.raises(TypeError, match="rounded to float32"):
        jax.jit(lambda box: c.stable_predictions(model, box, test).labels)(make(1))


def relu_tuple(variables, inputs, *, train=False, key=None):
    (kernel, bias), last = variables.params
    return ju.Outputs((jax.nn.relu(inputs @ kernel + bias) @ last)[:, 0])


def test_relu_squared_hinge_one_logit_and_parameters_in_tuples():
    model = ju.Model(relu_tuple, lambda o, e: jnp.maximum(1 - jnp.where(e.targets > 0, 1, -1) * o.logits, 0) ** 2)
    data = blobs()._replace(train=blobs().train._replace(targets=(blobs().train.targets > 0).astype(np.int32)))
    first, last = jax.random.split(KEY)
    start = ju.Variables(((jax.random.normal(first, (4, 6)) * 0.3, jnp.zeros(6)), jax.random.normal(last, (6, 1)) * 0.3))
    batches = ju.fixed_batches(60, KEY, num_steps=4, batch_size=15)
    counts = removals(batches, 60, 2, 100)
    box = c.reachable(model, start, data, batches, learning_rate=0.01, removals=2)
    assert inside(box, retrained(model, data, batches, start, counts))[0]
    labels = c.stable_predictions(model, box, data.train.inputs).labels
    assert set(np.asarray(labels).tolist()) <= {-1, 0, 1}


def test_duplicated_rows_and_bfloat16():
    model, data = network(), blobs()
    twice = jax.tree.map(lambda x: jnp.concatenate([x[:30], x[:30]]), data.train)
    start = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.init(KEY))
    data, batches = data._replace(train=twice), ju.fixed_batches(60, KEY, num_steps=2, batch_size=20)
    counts = removals(batches, 60, 1, 50)
    box = c.reachable(model, start, data, batches, learning_rate=0.01, removals=1)
    assert inside(box, retrained(model, data, batches, start, counts))[0]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x * y - x / (2 + y**2),
        lambda x, y: jnp.tanh(x) ** 3 + jnp.exp(-jnp.abs(y)) * jnp.maximum(x, y),
        lambda x, y: jax.nn.log_softmax(jnp.stack([x, y, x * x]))[0] + jnp.sqrt(1 + y * y),
        lambda x, y: jnp.where(x > y, x, -y) + jnp.where((x > 0) & ~(y > 0), 1.0, 0.0) + jnp.sign(x) * (y + 3) ** -1,
        lambda x, y: jax.nn.gelu(x) + jax.nn.softplus(y) + jax.nn.sigmoid(x - y) + jax.lax.rsqrt(2 + x),
        lambda x, y: jnp.dot(jnp.array([x, y]), jnp.array([y, -x])) + jnp.clip(x, -0.5, y),
    ],
)
def test_intervals_hold_the_function_and_its_slope(function):
    rng = np.random.default_rng(0)
    for slope in (function, jax.grad(function), jax.grad(function, 1)):
        program, many = jax.make_jaxpr(slope)(0.0, 0.0), jax.jit(jax.vmap(slope))
        for _ in range(2):
            ends = np.sort(rng.uniform(-1.5, 1.5, (2, 2)), axis=1) if rng.random() < 0.8 else np.zeros((2, 2))
            with jax.enable_x64(True):
                (found,) = bounds(program, [Interval(*map(jnp.float64, pair)) for pair in ends])
                low, high = map(float, found)
            values = np.asarray(many(*(np.float32(rng.uniform(*pair, 400).clip(*pair)) for pair in np.float32(ends))))
            assert low - 1e-5 <= values.min()
            assert values.max() <= high + 1e-5


@pytest.mark.parametrize(
    ("function", "ends"),
    [
        (jnp.exp2, (-125, 127)),  # XLA multiplies by ln 2 first, so that its error grows with x
        (lambda x: x**64, (0.8, 1.25)),
        (lambda x: x**-200, (0.9, 1.1)),
        (lambda x: jax.lax.reduce_precision(x, 8, 7), (-8, 8)),
        (lambda x: jax.lax.reduce_precision(x, 4, 3), (-300, 300)),
        (lambda x: jnp.where((x > 0) == (jnp.arange(x.size) % 2 == 1), x, -x), (-1, 1)),
    ],
)
def test_intervals_of_points_hold_what_float32_makes_of_them(function, ends):
    x = jnp.linspace(*ends, 5001, dtype=jnp.float32)
    program, found = jax.make_jaxpr(function)(x), np.asarray(jax.jit(function)(x), np.float64)
    with jax.enable_x64(True):
        low, high = map(np.asarray, bounds(program, [point(x)])[0])
    assert ((low <= found) & (found <= high)).all()


def test_sums_that_may_overflow_on_their_way_and_numbers_that_may_be_flushed_have_no_bound():
    large, small = jnp.asarray([3e38, 3e38, -3e38, -3e38], jnp.float32), jnp.asarray([1e-39], jnp.float32)
    for function, x in ((jnp.sum, large), (lambda x: x @ jnp.ones(4, jnp.float32), large), (lambda x: 1 / x, small)):
        program = jax.make_jaxpr(function)(x)
        with jax.enable_x64(True):
            assert np.isnan(bounds(program, [point(x)])[0].low).all()


def test_what_has_no_rule_is_refused_by_name_and_what_may_divide_by_zero_has_no_bound():
    program = jax.make_jaxpr(lambda x: jnp.cumsum(x))(jnp.ones(3))
    with jax.enable_x64(True), pytest.raises(TypeError, match="'cumsum'"):
        bounds(program, [point(jnp.ones(3))])
    with jax.enable_x64(True):
        (found,) = bounds(jax.make_jaxpr(lambda x: 0 * (1 / x))(1.0), [Interval(jnp.float64(-1), jnp.float64(1))])
        assert np.isnan(found.low)
    model, data = network(), blobs()
    start, batches = model.init(KEY), ju.fixed_batches(60, KEY, num_steps=1, batch_size=20)
    for options, words in (({"removals": -1}, "removals must lie in"), ({"removals": 1, "divide": "none"}, "divide must be")):
        with pytest.raises(ValueError, match=words):
            c.reachable(model, start, data, batches, learning_rate=0.1, **options)
    for rows, words in (([[0, 1, 0]], "row 0 comes twice"), ([[59, 60, -1]], "name row 60")):
        with pytest.raises(ValueError, match=words):
            c.reachable(model, start, data, jnp.asarray(rows), learning_rate=0.1, removals=1)


def test_boxes_that_burst_certify_nothing(deep):
    model, data, batches, start, _ = deep
    box = box_of(model, data, batches, start, learning_rate=50.0)(5)
    assert np.all(np.asarray(c.stable_predictions(model, box, held_out().inputs).labels) == -1)
