"""The loops and compositions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import driver, risk
from jaxunlearn.checkpoint import Directory
from jaxunlearn.objective import finetune, gradient_difference, scrub
from tests.problems import blobs, distance, lane, linear_regression, network, normalized_network, regression_data

DATA = blobs()
REQUEST = lane(ju.from_indices(DATA, [[3, 4, 5, 30]]), 0)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def variables():
    return network().init(jax.random.key(1))


def accuracy(variables, data, request):
    rows = data.extra["validation"]
    return jnp.mean(jnp.argmax(network().forward(variables, rows.inputs).logits, -1) == rows.targets)


def run(variables, num_steps=6, optimizer=None, data=DATA, request=REQUEST, **loop):
    unlearn = ju.finetune(network(), optimizer or optax.sgd(0.1), num_steps=num_steps, batch_size=4, **loop)
    return jax.jit(unlearn)(variables, data, request, KEY)


def test_steps_are_plain_optax_on_the_drawn_batches(variables):
    optimizer = optax.adam(0.05)
    result = run(variables, 5, optimizer)
    _, split_key, loop_key = jax.random.split(KEY, 3)
    split = risk.split(DATA, REQUEST, split_key)
    params, state = variables.params, optimizer.init(variables.params)
    for step in range(5):
        sample_key, _, _ = driver.step_keys(loop_key, step)
        rows = np.asarray(risk.draw_retain(split, sample_key, 4).slots)
        examples = jax.tree.map(lambda x, rows=rows: x[rows], DATA.train)

        def loss(params, examples=examples):
            outputs = network().forward(ju.Variables(params), examples.inputs)
            return optax.losses.softmax_cross_entropy_with_integer_labels(outputs.logits, examples.targets).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        assert float(value) == pytest.approx(float(result.stats["loss"][step]), rel=1e-4)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    assert distance(params, result.variables.params) < 1e-4
    assert int(result.stats["steps"]) == 5
    assert not result.stats["peek"]


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(1e-2),
        optax.lion(1e-3),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
        optax.polyak_sgd(1.0),
        optax.lbfgs(),
        optax.contrib.muon(1e-2),
        optax.sgd(optax.cosine_decay_schedule(0.1, 6)),
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
        optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2),
    ],
    ids=["adamw", "lion", "clipped", "polyak", "lbfgs", "muon", "schedule", "injected", "accumulated"],
)
def test_any_optax_optimizer_works(variables, optimizer):
    result = run(variables, 3, optimizer)
    assert int(result.status) == ju.Status.OK
    assert distance(result.variables, variables) > 0


def test_no_steps_change_nothing(variables):
    result = run(variables, 0)
    assert distance(result.variables, variables) == 0
    assert int(result.stats["steps"]) == 0


def test_later_steps_are_frozen(variables):
    short = run(variables, 3)
    assert distance(run(variables, 6, active_steps=3).variables, short.variables) < 1e-6
    by_size = run(variables, 6, active_steps=lambda data, request: jnp.sum(request.weights).astype(int) - 1)
    assert distance(by_size.variables, short.variables) < 1e-6
    assert int(by_size.stats["steps"]) == 3
    swept = jax.jit(jax.vmap(lambda steps: run(variables, 6, active_steps=steps)))(jnp.array([0, 3, 6]))
    assert swept.stats["steps"].tolist() == [0, 3, 6]
    assert distance(lane(swept.variables, 0), variables) == 0
    assert distance(lane(swept.variables, 1), short.variables) < 1e-6


def test_stop_ends_the_run(variables):
    seen = run(variables, 8, stop=lambda variables, data, request: accuracy(variables, data, request) >= 0, look_every=3)
    assert int(seen.stats["steps"]) == 3
    assert distance(seen.variables, run(variables, 3).variables) < 1e-6
    never = run(variables, 8, stop=lambda variables, data, request: False)
    assert int(never.stats["steps"]) == 8


def test_stops_differ_between_requests(variables):
    def stop(variables, data, request):
        return jnp.sum(request.weights) < 3

    requests = ju.from_indices(DATA, [[1], [2, 3, 4]])
    unlearn = ju.finetune(network(), optax.sgd(0.1), num_steps=6, batch_size=4, stop=stop, look_every=2, peek=True)
    result = jax.jit(ju.batched(unlearn))(variables, DATA, requests, jax.random.split(KEY, 2))
    assert result.stats["steps"].tolist() == [2, 6]
    assert result.stats["peek"].all()


def test_the_best_variables_are_kept(variables):
    scores = jnp.array([0.0, 3.0, 1.0, 5.0, 2.0, 4.0])

    def score(candidate, data, request):
        # Which step this is, told from the trajectory of plain runs.
        return scores[jnp.argmin(jnp.array([distance_of(candidate, point) for point in trajectory]))]

    def distance_of(first, second):
        return sum(jnp.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (first, second)), strict=True))

    def first(steps):
        unlearn = ju.finetune(network(), optax.sgd(0.1), num_steps=6, batch_size=4, active_steps=steps)
        return unlearn(variables, DATA, REQUEST, KEY).variables

    points = jax.jit(jax.vmap(first))(jnp.arange(1, 7))
    trajectory = [lane(points, place) for place in range(6)]
    best = run(variables, 6, keep_best=score)
    assert int(best.stats["best_step"]) == 4
    assert float(best.stats["best_score"]) == 5
    assert distance(best.variables, trajectory[3]) < 1e-6
    every_third = run(variables, 6, keep_best=score, look_every=3)
    assert int(every_third.stats["best_step"]) == 6


def test_choosing_looks_at_validation_rows_only(variables):
    def on_training_rows(variables, data, request):
        return data.train.inputs.mean()

    def on_the_request(variables, data, request):
        return request.weights.sum()

    with pytest.raises(ValueError, match=r"may not read data\.train\.inputs.*peek=True"):
        run(variables, stop=on_training_rows)
    with pytest.raises(ValueError, match=r"may not read request\.weights"):
        run(variables, keep_best=on_the_request)
    with pytest.raises(ValueError, match=r"data\.extra\['validation'\]"):
        run(variables, stop=accuracy, data=DATA._replace(extra={}))
    with pytest.raises(KeyError, match="test"):
        run(variables, stop=lambda v, data, r: data.extra["test"], data=DATA._replace(extra={**DATA.extra, "test": 0}))
    peeked = run(variables, keep_best=on_training_rows, peek=True)
    assert bool(peeked.stats["peek"])


def test_augmentation_reaches_both_sides(variables):
    def shift(examples, key):
        return examples._replace(inputs=examples.inputs + jax.random.normal(key, examples.inputs.shape))

    def constant(examples, key):
        return examples._replace(inputs=jnp.full_like(examples.inputs, 0.5))

    assert distance(run(variables, augment=shift).variables, run(variables).variables) > 1e-4
    for name in ("gradient_ascent", "finetune"):
        unlearn = ju.METHODS[name].factory(network(), optax.sgd(0.1), num_steps=2, batch_size=4, augment=constant)
        blind = DATA._replace(train=DATA.train._replace(inputs=DATA.train.inputs * 7))
        one, two = (jax.jit(unlearn)(variables, data, REQUEST, KEY) for data in (DATA, blind))
        assert distance(one.variables, two.variables) == 0


def test_batch_sizes_of_the_two_sides(variables):
    seen = []

    def sample(split, context, step, key, sizes):
        batch = risk.uniform(split, context, step, key, sizes)
        seen.append((batch.forget.weights.shape, batch.retain.weights.shape))
        return batch

    unlearner = finetune.unlearner(network(), optax.sgd(0.1))._replace(sample=sample)
    jax.jit(ju.iterate(unlearner, 2, batch_size=3, retain_batch_size=5))(variables, DATA, REQUEST, KEY)
    assert seen[0] == ((3,), (5,))


@pytest.mark.parametrize("bn", ["frozen", "retain", "all"])
def test_bn_decides_what_may_move_the_state(bn):
    model = normalized_network()
    unlearn = ju.gradient_difference(model, optax.sgd(0.1), num_steps=4, batch_size=4, bn=bn)
    start = model.init(KEY)
    # Retained rows all have the mean 1, forgotten ones 5.
    inputs = jnp.ones((20, 4)).at[:5].set(5.0)
    data = ju.training_data(inputs, jnp.zeros(20, jnp.int32))
    request = lane(ju.from_indices(data, [list(range(5))]), 0)
    state = jax.jit(unlearn)(start, data, request, KEY).variables.state
    assert int(state["count"]) == {"frozen": 0, "retain": 4, "all": 8}[bn]
    expected = 0.0
    for _ in range(4):
        for value in {"frozen": [], "retain": [1.0], "all": [1.0, 5.0]}[bn]:
            expected = 0.9 * expected + 0.1 * value
    assert np.allclose(state["mean"], expected, atol=1e-6)


def test_regularizer_is_part_of_training():
    # With rows that fit exactly, only the regularizer moves the weights: one step shrinks them by 1 - rate * l2.
    data = ju.training_data(jnp.zeros((8, 4)), jnp.zeros(8))
    start = ju.Variables({"w": jnp.arange(1.0, 5.0)})
    for name in ("finetune", "gradient_difference", "scrub"):
        options = {"alpha": 1.0} if name == "gradient_difference" else {}
        unlearn = ju.METHODS[name].factory(
            linear_regression(0.5)
            if name != "scrub"
            else linear_regression(0.5)._replace(
                forward=lambda v, x, *, train=False, key=None: ju.Outputs(x @ v.params["w"][:, None]),
                loss=lambda outputs, examples: ju.losses.squared_error(ju.Outputs(outputs.logits[:, 0]), examples),
            ),
            optax.sgd(0.1),
            num_steps=1,
            batch_size=2,
            **({**options, "forget_epochs": 0} if name == "scrub" else options),
        )
        result = unlearn(start, data, lane(ju.from_indices(data, [[1]]), 0), KEY)
        assert np.allclose(result.variables.params["w"], start.params["w"] * 0.95), name


def drawn(split_key, loop_key, request, sizes, phase=None):
    split = risk.split(DATA, request, split_key)
    return jax.jit(lambda step: risk.uniform(split, (), step, driver.step_keys(loop_key, step)[0], sizes))


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.adam(0.01)], ids=["sgd", "adam"])
def test_feed_equals_iterate_on_the_same_batches(variables, optimizer):
    unlearner = gradient_difference.unlearner(network(), optimizer)
    inside = jax.jit(ju.iterate(unlearner, 5, batch_size=4))(variables, DATA, REQUEST, KEY)
    _, split_key, loop_key = jax.random.split(KEY, 3)
    source = drawn(split_key, loop_key, REQUEST, risk.BatchSizes(4, 4))
    told = []
    outside = ju.feed(
        unlearner, variables, source, REQUEST, KEY, num_steps=5, callback=lambda i, s: told.append(float(s["loss"]))
    )
    assert distance(inside.variables, outside.variables) < 1e-4
    assert told == pytest.approx(inside.stats["loss"].tolist(), rel=1e-4)
    assert int(outside.status) == ju.Status.OK
    empty = ju.feed(unlearner, variables, source, ju.empty_request(16), KEY, num_steps=2)
    assert distance(empty.variables, variables) == 0
    assert int(empty.status) == ju.Status.EMPTY_REQUEST


class Loader:
    """An iterator with a position, as grain's."""

    def __init__(self, source, as_bytes=False):
        self.source, self.position, self.as_bytes = source, 0, as_bytes

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        return self.source(self.position - 1)

    def get_state(self):
        return str(self.position).encode() if self.as_bytes else {"position": self.position}

    def set_state(self, state):
        self.position = int(state) if self.as_bytes else state["position"]


@pytest.mark.parametrize("kind", ["function", "json", "bytes"])
def test_an_interrupted_feed_goes_on_exactly(variables, tmp_path, kind):
    unlearner = scrub.unlearner(network(), optax.adam(0.01), forget_epochs=2)
    _, split_key, loop_key = jax.random.split(KEY, 3)
    function = drawn(split_key, loop_key, REQUEST, risk.BatchSizes(4, 4))

    def source():
        return function if kind == "function" else Loader(function, kind == "bytes")

    class PowerCut(Exception):
        pass

    def cut(step, stats):
        if step == 4:
            raise PowerCut

    whole = ju.feed(unlearner, variables, source(), REQUEST, KEY, num_steps=7)
    with pytest.raises(PowerCut):
        ju.feed(
            unlearner, variables, source(), REQUEST, KEY, num_steps=7, checkpoint=Directory(tmp_path, every=2), callback=cut
        )
    steps = []
    resumed = ju.feed(
        unlearner,
        variables,
        source(),
        REQUEST,
        KEY,
        num_steps=7,
        checkpoint=Directory(tmp_path, every=2),
        callback=lambda step, stats: steps.append(step),
    )
    assert steps == [4, 5, 6]
    assert distance(resumed.variables, whole.variables) == 0


def test_a_foreign_checkpoint_is_refused(variables, tmp_path):
    unlearner = finetune.unlearner(network(), optax.sgd(0.1))
    _, split_key, loop_key = jax.random.split(KEY, 3)
    source = drawn(split_key, loop_key, REQUEST, risk.BatchSizes(4, 4))

    def go(unlearner=unlearner, variables=variables, request=REQUEST, key=KEY, num_steps=4):
        return ju.feed(unlearner, variables, source, request, key, num_steps=num_steps, checkpoint=Directory(tmp_path, every=1))

    expected = go()
    other = ju.Variables(jax.tree.map(lambda x: x + 1, variables.params))
    for change in (
        {"key": jax.random.key(8)},
        {"request": REQUEST._replace(indices=REQUEST.indices + 1)},
        {"variables": other},
        {"unlearner": finetune.unlearner(network(), optax.adam(0.1))},
        {"unlearner": finetune.unlearner(network(), optax.sgd(0.2))},
        {"unlearner": finetune.unlearner(network(), optax.sgd(jnp.array([0.2])[0]))},
        {"unlearner": gradient_difference.unlearner(network(), optax.sgd(0.1))},
    ):
        with pytest.raises(ValueError, match="another method, key, request"):
            go(**change)
    with pytest.raises(ValueError, match="holds 4 steps, more than num_steps=2"):
        go(num_steps=2)
    assert distance(go().variables, expected.variables) == 0


def test_sources_that_cannot_serve_are_refused(variables, tmp_path):
    unlearner = finetune.unlearner(network(), optax.sgd(0.1))
    _, split_key, loop_key = jax.random.split(KEY, 3)
    function = drawn(split_key, loop_key, REQUEST, risk.BatchSizes(4, 4))
    batches = [function(step) for step in range(2)]
    with pytest.raises(ValueError, match="ended after 2 of 3 steps"):
        ju.feed(unlearner, variables, iter(batches), REQUEST, KEY, num_steps=3)
    with pytest.raises(ValueError, match="get_state and set_state"):
        ju.feed(unlearner, variables, iter(batches), REQUEST, KEY, num_steps=2, checkpoint=Directory(tmp_path))


def test_then_starts_the_second_from_the_first(variables):
    first = ju.gradient_ascent(network(), optax.sgd(0.1), num_steps=2, batch_size=4)
    second = ju.finetune(network(), optax.sgd(0.1), num_steps=3, batch_size=4)
    both = jax.jit(ju.then(first, second))(variables, DATA, REQUEST, KEY)
    keys = jax.random.split(KEY)
    one = first(variables, DATA, REQUEST, keys[0])
    two = second(one.variables, DATA, REQUEST, keys[1])
    assert distance(both.variables, two.variables) < 1e-6
    assert both.stats["first/loss"].shape == (2,)
    assert both.stats["second/loss"].shape == (3,)
    broken = ju.then(lambda v, d, r, k: ju.Result(v, jnp.int32(4), {}, {"note": jnp.ones(())}), second)
    result = broken(variables, DATA, REQUEST, KEY)
    assert int(result.status) == ju.Status.NOT_CONVERGED
    assert "note" in result.extra


def test_filtered_narrows_the_request(variables):
    unlearn = ju.gradient_ascent(network(), optax.sgd(0.1), num_steps=2, batch_size=4)
    narrowed = ju.filtered(lambda v, data, request, key: request.indices != 30, unlearn)
    result = jax.jit(narrowed)(variables, DATA, REQUEST, KEY)
    smaller = lane(ju.from_indices(DATA, [[3, 4, 5]]), 0)
    assert distance(result.variables, unlearn(variables, DATA, smaller, jax.random.split(KEY)[1]).variables) < 1e-6
    assert result.stats["skipped"].tolist() == [0, 0, 0, 1] + [0] * 12


def test_a_hand_written_unlearner_runs():
    # Full-batch gradient descent on a sum over retained rows: no optimizer, no model.
    data = regression_data()

    def init(variables, data, request, key):
        return (data, request), variables

    def step(state, context, batch, key):
        data, request = context
        weights = risk.retain_weights(data, request)
        residual = (data.train.inputs @ state.params["w"] - data.train.targets) * weights
        gradient = data.train.inputs.T @ residual / weights.sum()
        return ju.Variables({"w": state.params["w"] - 0.5 * gradient}), {"norm": jnp.linalg.norm(gradient)}

    unlearner = ju.Unlearner(init, step, lambda state, context: state, ju.uniform)
    request = lane(ju.from_indices(data, [list(range(10))]), 0)
    result = jax.jit(ju.iterate(unlearner, 200, batch_size=1))(ju.Variables({"w": jnp.zeros(4)}), data, request, KEY)
    expected = np.linalg.lstsq(np.asarray(data.train.inputs)[10:], np.asarray(data.train.targets)[10:], rcond=None)[0]
    assert np.allclose(result.variables.params["w"], expected, atol=1e-4)
    assert result.stats["norm"].shape == (200,)


def test_bad_loops_are_refused(variables):
    model = network()
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 0, got -1"):
        run(variables, -1)
    with pytest.raises(ValueError, match=r"num_steps must be an integer.*got 2\.5"):
        run(variables, 2.5)
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
        ju.finetune(model, optax.sgd(0.1), num_steps=2, batch_size=0)
    with pytest.raises(ValueError, match="retain_batch_size"):
        ju.finetune(model, optax.sgd(0.1), num_steps=2, batch_size=2, retain_batch_size=0)
    with pytest.raises(ValueError, match="active_steps must lie in"):
        ju.finetune(model, optax.sgd(0.1), num_steps=2, batch_size=2, active_steps=3)
    with pytest.raises(TypeError, match="num_steps fixes shapes"):
        jax.jit(lambda steps: ju.finetune(model, optax.sgd(0.1), num_steps=steps, batch_size=2) and 0)(3)
    with pytest.raises(TypeError, match="expected a Model"):
        ju.finetune(forward := model.forward, optax.sgd(0.1), num_steps=2, batch_size=2)
    with pytest.raises(TypeError, match="expected an optax transformation"):
        ju.finetune(model, 0.1, num_steps=2, batch_size=2)
    assert callable(forward)


def test_divergence_is_reported_and_raised_on_the_host(variables):
    requests = ju.from_indices(DATA, [[1], [2], [3]])
    unlearn = ju.gradient_ascent(network(), optax.sgd(1.0), num_steps=3, batch_size=2)
    poisoned = DATA._replace(train=DATA.train._replace(inputs=DATA.train.inputs.at[2].set(jnp.inf)))
    result = ju.batched(unlearn)(variables, poisoned, requests, jax.random.split(KEY, 3))
    assert result.status.tolist() == [0, ju.Status.NONFINITE, 0]
    with pytest.raises(ju.UnlearningError, match="request 1: NONFINITE: the new weights hold NaN or inf"):
        ju.check(result)
    assert ju.check(result, allow=[ju.Status.NONFINITE]) is result
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(ju.check)(result)


def test_everything_forgotten_is_reported(variables):
    data = blobs(6)
    request = lane(ju.from_indices(data, [list(range(6))]), 0)
    result = run(variables, 2, data=data, request=request)
    assert int(result.status) == ju.Status.NOTHING_RETAINED
    assert distance(result.variables, variables) == 0


def test_then_never_hides_the_graver_status(variables):
    ruin = ju.finetune(network(), optax.sgd(jnp.inf), num_steps=1, batch_size=4)
    stale = REQUEST._replace(indices=REQUEST.indices.at[0].set(10**6))
    result = ju.then(ju.gradient_ascent(network(), optax.sgd(0.1), num_steps=1, batch_size=4), ruin)(
        variables, DATA, stale, KEY
    )
    assert int(result.status) == ju.Status.NONFINITE


def test_a_spoiled_state_is_reported():
    model = normalized_network()
    forward = model.forward

    def spoiled(variables, inputs, *, train=False, key=None):
        outputs = forward(variables, inputs, train=train)
        return outputs._replace(state={**outputs.state, "mean": outputs.state["mean"] * jnp.nan}) if train else outputs

    unlearn = ju.finetune(model._replace(forward=spoiled), optax.sgd(0.1), num_steps=1, batch_size=4)
    assert int(unlearn(model.init(KEY), DATA, REQUEST, KEY).status) == ju.Status.NONFINITE


def test_numpy_arrays_work_without_jit(variables):
    unlearn = ju.gradient_difference(network(), optax.sgd(0.1), num_steps=2, batch_size=4)
    plain = unlearn(*jax.tree.map(np.asarray, (variables, DATA, REQUEST)), KEY)
    assert distance(plain.variables, unlearn(variables, DATA, REQUEST, KEY).variables) < 1e-6


def test_looks_that_never_come_are_refused(variables):
    with pytest.raises(ValueError, match="would never be called"):
        run(variables, 3, stop=accuracy, look_every=10)
