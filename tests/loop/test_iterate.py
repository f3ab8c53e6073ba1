"""The loop on the device: its steps, its looks, its refusals, and what it reports."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import sampling
from jaxunlearn.loop.phases import forgets
from tests.loop.runs import DATA, FINETUNE, KEY, MODEL, REQUEST, TEST, VARIABLES, accuracy, drawn, run
from tests.problems import blobs, distance, lane, linear_regression, normalized_network, regression_data


@pytest.fixture(scope="module")
def trajectory():
    """Variables after 0, 1, .. 6 steps, and the result of three of six; one program for all of them."""
    swept = jax.jit(jax.vmap(lambda steps: run(active_steps=steps)))(jnp.arange(7))
    assert swept.stats["steps"].tolist() == list(range(7))
    return [lane(swept.variables, place) for place in range(7)]


def test_steps_are_plain_optax_on_the_drawn_batches():
    optimizer = optax.adam(0.05)
    result = run(VARIABLES, 5, optimizer)
    params, state = VARIABLES.params, optimizer.init(VARIABLES.params)

    def loss(params, examples):
        outputs = MODEL.forward(ju.Variables(params), examples.inputs)
        return optax.losses.softmax_cross_entropy_with_integer_labels(outputs.logits, examples.targets).mean()

    @jax.jit
    def step_once(params, state, examples):
        value, gradient = jax.value_and_grad(loss)(params, examples)
        updates, state = optimizer.update(gradient, state, params)
        return value, optax.apply_updates(params, updates), state

    for step in range(5):
        rows = np.asarray(drawn(step).retain.slots)
        value, params, state = step_once(params, state, jax.tree.map(lambda x, rows=rows: x[rows], DATA.train))
        assert float(value) == pytest.approx(float(result.stats["loss"][step]), rel=1e-4)
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
def test_any_optax_optimizer_works(optimizer):
    method = ju.finetune(MODEL, optimizer)
    step_once = jax.jit(method.step)
    context, state = method.init(VARIABLES, DATA, REQUEST, KEY)
    form = jax.tree.map(jnp.shape, state)
    for step in range(2):
        state, stats = step_once(state, context, drawn(step), KEY)
    assert jax.tree.map(jnp.shape, state) == form  # so that a scan can carry it
    assert np.isfinite(stats["loss"])
    after = method.finalize(state, context)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(after))
    assert distance(after, VARIABLES) > 0
    jax.eval_shape(ju.iterate(method, 3, batch_size=4), VARIABLES, DATA, REQUEST, KEY)


def test_no_steps_change_nothing():
    result = run(VARIABLES, 0)
    assert distance(result.variables, VARIABLES) == 0
    assert int(result.stats["steps"]) == 0


def test_later_steps_are_frozen(trajectory):
    assert distance(trajectory[0], VARIABLES) == 0
    assert distance(trajectory[3], run(VARIABLES, 3).variables) < 1e-6
    by_size = run(active_steps=lambda data, request: jnp.sum(request.weights).astype(int) - 1)
    assert distance(by_size.variables, trajectory[3]) < 1e-6
    assert int(by_size.stats["steps"]) == 3


def test_stop_ends_the_run(trajectory):
    seen = run(stop=lambda variables, seen: accuracy(variables, seen) >= 0, look_every=3, validation=TEST)
    assert int(seen.stats["steps"]) == 3
    assert distance(seen.variables, trajectory[3]) < 1e-6
    assert not seen.stats["peek"]
    never = run(stop=lambda variables, seen: False, validation=TEST)
    assert int(never.stats["steps"]) == 6


def test_stops_differ_between_requests():
    def stop(variables, seen):
        return jnp.sum(seen.request.weights) < 3

    requests = ju.from_indices(DATA, [[1], [2, 3, 4]])
    unlearn = ju.iterate(FINETUNE, 6, batch_size=4, stop=stop, look_every=2, peek=True)
    result = jax.jit(ju.batched(unlearn))(VARIABLES, DATA, requests, jax.random.split(KEY, 2))
    assert result.stats["steps"].tolist() == [2, 6]
    assert result.stats["peek"].all()


def test_the_best_variables_are_kept(trajectory):
    scores = jnp.array([0.0, 3.0, 1.0, 5.0, 2.0, 4.0])

    def distance_of(first, second):
        return sum(jnp.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (first, second)), strict=True))

    def score(candidate, seen):
        # Which step this is, told from the trajectory of plain runs.
        return scores[jnp.argmin(jnp.array([distance_of(candidate, point) for point in trajectory[1:]]))]

    best = run(keep_best=score, validation=TEST)
    assert int(best.stats["best_step"]) == 4
    assert float(best.stats["best_score"]) == 5
    assert distance(best.variables, trajectory[4]) < 1e-6
    every_third = run(keep_best=score, look_every=3, validation=TEST)
    assert int(every_third.stats["best_step"]) == 6


def test_choosing_looks_at_validation_rows_only():
    def on_training_rows(variables, seen):
        return seen.data.train.inputs.mean()

    def on_the_request(variables, seen):
        return seen.request.weights.sum()

    with pytest.raises(ValueError, match=r"may not read seen\.data\.train.*peek=True"):
        run(stop=on_training_rows, validation=TEST)
    with pytest.raises(ValueError, match=r"may not read seen\.request\.weights"):
        run(keep_best=on_the_request, validation=TEST)
    with pytest.raises(ValueError, match=r"choose on held-out rows: pass iterate\(\.\.\., validation=Examples"):
        run(stop=accuracy)
    with pytest.raises(ValueError, match=r"may not read seen\.validation\.inputs: pass iterate\(\.\.\., validation="):
        run(stop=accuracy, peek=True)
    peeked = run(keep_best=on_training_rows, peek=True)
    assert bool(peeked.stats["peek"])


def test_validation_rows_may_be_numpy_arrays():
    host = jax.tree.map(np.asarray, TEST)
    result = jax.eval_shape(
        ju.iterate(FINETUNE, 2, batch_size=4, stop=accuracy, validation=host), VARIABLES, DATA, REQUEST, KEY
    )
    assert result.stats["steps"].shape == ()


def test_augmentation_reaches_both_sides_with_a_draw_of_its_own():
    def noise(examples, key):
        return examples._replace(inputs=jax.random.normal(key, examples.inputs.shape))

    def step(state, context, batch, key):
        return state, {"forget": batch.forget.examples.inputs, "retain": batch.retain.examples.inputs}

    watcher = ju.Unlearner(lambda v, d, r, k: ((), v), step, lambda state, context: state, ju.uniform)
    unlearn = jax.jit(ju.iterate(watcher, 3, batch_size=4, augment=noise))
    blind = DATA._replace(train=DATA.train._replace(inputs=DATA.train.inputs * 7))
    seen, same = (unlearn(VARIABLES, data, REQUEST, KEY).stats for data in (DATA, blind))
    draws = jnp.concatenate([seen["forget"], seen["retain"]])
    assert distance(draws, jnp.concatenate([same["forget"], same["retain"]])) == 0  # nothing but what was put in
    assert len(np.unique(np.asarray(draws))) == draws.size == 2 * 3 * 4 * 4  # new in every step and on every side


def test_rows_of_weight_0_stay_blank_whatever_augments_them():
    def ones(examples, key):
        return examples._replace(inputs=jnp.ones_like(examples.inputs))

    def step(state, context, batch, key):
        return state, {"forget": batch.forget.examples.inputs.sum(), "retain": batch.retain.examples.inputs.sum()}

    watcher = ju.Unlearner(lambda v, d, r, k: ((), v), step, lambda state, context: state, ju.uniform)
    stats = jax.jit(ju.iterate(watcher, 1, batch_size=4, augment=ones))(VARIABLES, DATA, ju.empty_request(), KEY).stats
    assert (float(stats["forget"][0]), float(stats["retain"][0])) == (0, 16)


def test_batch_sizes_of_the_two_sides():
    seen = []

    def sample(split, context, step, key, sizes):
        batch = sampling.uniform(split, context, step, key, sizes)
        seen.append((batch.forget.weights.shape, batch.retain.weights.shape))
        return batch

    unlearn = ju.iterate(FINETUNE._replace(sample=sample), 2, batch_size=3, retain_batch_size=5)
    jax.eval_shape(unlearn, VARIABLES, DATA, REQUEST, KEY)
    assert seen[0] == ((3,), (5,))


def test_a_step_knows_where_in_its_own_run_it_is():
    def step(state, context, batch, key):
        phase = forgets(batch, forget_steps=1, retain_steps=2, rounds=2)
        return state, {"step": jnp.asarray(batch.step), "progress": jnp.asarray(batch.progress), "forgets": phase}

    clock = ju.Unlearner(lambda v, d, r, k: ((), v), step, lambda state, context: state, ju.uniform)
    stats = jax.jit(ju.iterate(clock, 8, batch_size=1))(VARIABLES, DATA, REQUEST, KEY).stats
    assert stats["step"].tolist() == list(range(8))
    assert stats["progress"].tolist() == [step / 8 for step in range(8)]
    assert stats["forgets"].tolist() == [True, False, False, True, False, False, False, False]
    shorter = jax.jit(ju.iterate(clock, 8, batch_size=1, active_steps=4))(VARIABLES, DATA, REQUEST, KEY).stats
    assert shorter["progress"][:4].tolist() == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("bn", ["frozen", "retain", "all"])
def test_bn_decides_what_may_move_the_state(bn):
    model = normalized_network()
    unlearn = ju.iterate(ju.gradient_difference(model, optax.sgd(0.1), bn=bn), num_steps=4, batch_size=4)
    start = model.init(KEY)
    # Rows of the retain set all have the mean 1, those of the forget set 5.
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


def two_columns(regularization):
    """`linear_regression` with logits [b, 2], as methods that compare distributions want them."""
    return linear_regression(regularization)._replace(
        forward=lambda v, x, *, train=False, key=None: ju.Outputs(x @ jnp.stack([v.params["w"], v.params["w"]], axis=1)),
        loss=lambda outputs, examples: ju.losses.squared_error(ju.Outputs(outputs.logits[:, 0]), examples),
    )


@pytest.mark.parametrize(
    "method",
    [
        ju.finetune(linear_regression(0.5), optax.sgd(0.1)),
        ju.gradient_difference(linear_regression(0.5), optax.sgd(0.1), alpha=1.0),
        ju.scrub(two_columns(0.5), optax.sgd(0.1), forget_epochs=0),
    ],
    ids=["finetune", "gradient_difference", "scrub"],
)
def test_regularizer_is_part_of_training(method):
    # With rows that fit exactly, only the regularizer moves the parameters: one step shrinks them by 1 - rate * l2.
    data = ju.training_data(jnp.zeros((8, 4)), jnp.zeros(8))
    start = ju.Variables({"w": jnp.arange(1.0, 5.0)})
    unlearn = jax.jit(ju.iterate(method, num_steps=1, batch_size=2))
    result = unlearn(start, data, lane(ju.from_indices(data, [[1]]), 0), KEY)
    assert np.allclose(result.variables.params["w"], start.params["w"] * 0.95)


def test_a_hand_written_unlearner_runs():
    # Full-batch gradient descent on a sum over the retain set: no optimizer, no model.
    data = regression_data()

    def init(variables, data, request, key):
        return (data, request), variables

    def step(state, context, batch, key):
        data, request = context
        weights = sampling.retain_weights(data, request)
        residual = (data.train.inputs @ state.params["w"] - data.train.targets) * weights
        gradient = data.train.inputs.T @ residual / weights.sum()
        return ju.Variables({"w": state.params["w"] - 0.5 * gradient}), {"norm": jnp.linalg.norm(gradient)}

    unlearner = ju.Unlearner(init, step, lambda state, context: state, ju.uniform)
    request = lane(ju.from_indices(data, [list(range(10))]), 0)
    result = jax.jit(ju.iterate(unlearner, 200, batch_size=1))(ju.Variables({"w": jnp.zeros(4)}), data, request, KEY)
    expected = np.linalg.lstsq(np.asarray(data.train.inputs)[10:], np.asarray(data.train.targets)[10:], rcond=None)[0]
    assert np.allclose(result.variables.params["w"], expected, atol=1e-4)
    assert result.stats["norm"].shape == (200,)


def test_bad_loops_are_refused():
    def loop(num_steps=2, batch_size=2, **options):
        return ju.iterate(FINETUNE, num_steps, batch_size=batch_size, **options)

    with pytest.raises(ValueError, match="num_steps must be an integer of at least 0, got -1"):
        loop(-1)
    with pytest.raises(ValueError, match=r"num_steps must be an integer.*got 2\.5"):
        loop(2.5)
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
        loop(batch_size=0)
    with pytest.raises(ValueError, match="retain_batch_size"):
        loop(retain_batch_size=0)
    with pytest.raises(ValueError, match="active_steps must lie in"):
        loop(active_steps=3)
    with pytest.raises(ValueError, match="would never be called"):
        loop(stop=accuracy, validation=TEST, look_every=10)
    with pytest.raises(TypeError, match="num_steps fixes shapes"):
        jax.jit(lambda steps: loop(steps) and 0)(3)
    with pytest.raises(TypeError, match="expected a Model"):
        ju.finetune(MODEL.forward, optax.sgd(0.1))
    with pytest.raises(TypeError, match="expected an optax transformation"):
        ju.finetune(MODEL, 0.1)


def test_divergence_is_reported_and_raised_on_the_host():
    requests = ju.from_indices(DATA, [[1], [2], [3]])
    unlearn = ju.iterate(ju.gradient_ascent(MODEL, optax.sgd(1.0)), num_steps=3, batch_size=2)
    poisoned = DATA._replace(train=DATA.train._replace(inputs=DATA.train.inputs.at[2].set(jnp.inf)))
    result = jax.jit(ju.batched(unlearn))(VARIABLES, poisoned, requests, jax.random.split(KEY, 3))
    assert result.status.tolist() == [0, ju.Status.NONFINITE, 0]
    with pytest.raises(
        ju.UnlearningError, match=r"request 1: NONFINITE: the new weights or the loss of retained rows are NaN or inf"
    ):
        ju.check(result)
    assert ju.check(result, allow=[ju.Status.NONFINITE]) is result
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(ju.check)(result)


def test_everything_forgotten_is_reported():
    data = blobs(6)
    request = lane(ju.from_indices(data, [list(range(6))]), 0)
    result = run(num_steps=2, data=data, request=request)
    assert int(result.status) == ju.Status.NOTHING_RETAINED
    assert distance(result.variables, VARIABLES) == 0


def test_a_spoiled_state_is_reported():
    model = normalized_network()
    forward = model.forward

    def spoiled(variables, inputs, *, train=False, key=None):
        outputs = forward(variables, inputs, train=train)
        return outputs._replace(state={**outputs.state, "mean": outputs.state["mean"] * jnp.nan}) if train else outputs

    unlearn = ju.iterate(ju.finetune(model._replace(forward=spoiled), optax.sgd(0.1)), num_steps=1, batch_size=4)
    assert int(jax.jit(unlearn)(model.init(KEY), DATA, REQUEST, KEY).status) == ju.Status.NONFINITE


def test_numpy_arrays_work_without_jit():
    unlearn = ju.iterate(FINETUNE, num_steps=2, batch_size=4)
    plain = unlearn(*jax.tree.map(np.asarray, (VARIABLES, DATA, REQUEST)), KEY)
    assert distance(plain.variables, jax.jit(unlearn)(VARIABLES, DATA, REQUEST, KEY).variables) < 1e-6
