"""The linear optimum, limits, what may move, and how I2I treats rows that do not count."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.methods.image_to_image import depends_on, moments
from tests.methods.runs import KEY, stepped, sweep_equals_single_runs
from tests.problems import distance, lane

ROWS, PIXELS, CODE = 24, 5, 3
FORGET = list(range(9))
RNG = np.random.default_rng(0)
VARIABLES = ju.Variables(
    {
        "encoder": {"w": jnp.asarray(RNG.normal(size=(PIXELS, CODE)), jnp.float32)},
        "decoder": (jnp.asarray(RNG.normal(size=(CODE, PIXELS)), jnp.float32), jnp.zeros(PIXELS)),
    }
)


def images(seed=1):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(ROWS, PIXELS)) + np.where(np.arange(ROWS) < len(FORGET), 0.8, 0.0)[:, None]
    return ju.training_data(rows.astype(np.float32), np.arange(ROWS) // len(FORGET))


def encode(variables, corrupted):
    return corrupted @ variables.params["encoder"]["w"]


def decode(variables, embedding):
    kernel, bias = variables.params["decoder"]
    return embedding @ kernel + bias


def complete(variables, inputs, *, train=False, key=None):
    return ju.Outputs(decode(variables, encode(variables, inputs)))


def model():
    return ju.Model(complete, lambda outputs, examples: jnp.mean((outputs.logits - examples.inputs) ** 2, axis=1))


def untouched(key, inputs):
    return inputs


def masked(key, inputs):
    return jnp.where(jax.random.bernoulli(key, 0.6, inputs.shape), inputs, 0)


def method(optimizer=None, **options):
    options = {"encode": encode, "corrupt": untouched, "decode": decode, **options}
    return ju.image_to_image(model(), optimizer or optax.sgd(0.1), **options)


DATA = images()
REQUEST = lane(ju.from_indices(DATA, [FORGET], capacity=len(FORGET)), 0)


def full_batches(data, request):
    """Every row of both sides in each step, for `feed`."""
    staying = np.setdiff1d(np.arange(ROWS), FORGET)
    retain = ju.Weighted(jax.tree.map(lambda x: x[staying], data.train), jnp.ones(len(staying)), jnp.asarray(staying))
    return ju.Batch(ju.forget_rows(data, request), retain)


def begun(stepwise):
    """Context and state at the start of a run, and a batch of all rows."""
    return *stepwise.init(VARIABLES, DATA, REQUEST, KEY), full_batches(DATA, REQUEST)


def optimum(data, alpha, mean):
    """`W = (C_r + alpha C_f)^-1 (C_r + alpha m_f m_n') W_0`, for embeddings `x W` and noise that is one image."""
    rows = np.asarray(data.train.inputs, float)
    gone, kept = rows[FORGET], rows[np.setdiff1d(np.arange(ROWS), FORGET)]
    second = kept.T @ kept / len(kept)
    to_noise = np.outer(gone.mean(axis=0), np.full(PIXELS, mean))
    return np.linalg.solve(second + alpha * gone.T @ gone / len(gone), second + alpha * to_noise) @ np.asarray(
        VARIABLES.params["encoder"]["w"], float
    )


def trained(method, data, steps):
    """All rows in every step."""
    batch = full_batches(data, REQUEST)
    context, state = method.init(VARIABLES, data, REQUEST, KEY)
    state, stats = jax.lax.scan(lambda state, key: method.step(state, context, batch, key), state, jax.random.split(KEY, steps))
    return state.variables, stats


@cache
def long_run():
    """`(data, alpha, mean, std) -> variables, stats` of a full-batch training to its end, compiled once."""
    optimizer = optax.sgd(optax.cosine_decay_schedule(0.1, 4000))
    return jax.jit(lambda data, alpha, mean, std: trained(method(optimizer, alpha=alpha, mean=mean, std=std), data, 4000))


def short_run(method):
    return jax.jit(lambda: trained(method, DATA, 5))()[0]


@pytest.mark.parametrize(("alpha", "mean"), [(0.25, 0.7), (2.0, 0.0)])
def test_a_linear_encoder_reaches_its_optimum(alpha, mean):
    moved, _ = long_run()(DATA, alpha, mean, 0.0)
    np.testing.assert_allclose(moved.params["encoder"]["w"], optimum(DATA, alpha, mean), atol=2e-4)


def test_the_target_of_noise_is_a_constant():
    """Noise that is drawn anew in every step leads where its mean alone does, up to the noise of the steps."""
    moved, _ = long_run()(DATA, 1.0, 0.7, 1.0)
    apart = np.abs(moved.params["encoder"]["w"] - optimum(DATA, 1.0, 0.7)).max()
    assert apart < 0.05 * np.abs(VARIABLES.params["encoder"]["w"] - optimum(DATA, 1.0, 0.7)).max()


def test_where_both_sets_span_different_pixels_one_stays_and_the_other_is_erased():
    rows = np.array(DATA.train.inputs)
    rows[: len(FORGET), 2:], rows[len(FORGET) :, :2] = 0, 0
    moved, _ = long_run()(DATA._replace(train=DATA.train._replace(inputs=jnp.asarray(rows))), 1.0, 0.0, 0.0)
    w, before = moved.params["encoder"]["w"], VARIABLES.params["encoder"]["w"]
    np.testing.assert_array_equal(w[2:], before[2:])
    np.testing.assert_allclose(w[:2], 0, atol=1e-4)


def test_without_the_forget_set_nothing_moves():
    moved, stats = long_run()(DATA, 0.0, 0.7, 1.0)
    assert float(jnp.max(stats["loss"])) == 0
    assert distance(moved, VARIABLES) == 0


def test_a_step_follows_the_objective():
    stepwise = method(corrupt=masked, alpha=0.7, retain_weight=2.0, low=0.0, high=1.0)
    other = jax.tree.map(lambda x: 1.1 * x + 0.1, VARIABLES)
    context, state, batch = begun(stepwise)
    after, stats = jax.jit(stepwise.step)(state._replace(variables=other), context, batch, KEY)
    forget_key, retain_key, draw_key = jax.random.split(KEY, 3)
    x, kept = batch.forget.examples.inputs, batch.retain.examples.inputs
    normal = optax.tree.random_like(draw_key, x, sampler=jax.random.normal)
    noise = jnp.clip(x.mean() + x.std() * normal, 0, 1)
    old = VARIABLES.params["encoder"]["w"]

    def loss(w):
        retain = jnp.mean((masked(retain_key, kept) @ (w - old)) ** 2)
        return 2 * retain + 0.7 * jnp.mean((masked(forget_key, x) @ w - masked(forget_key, noise) @ old) ** 2)

    value, expected = stepped(other.params["encoder"]["w"], loss)
    assert float(stats["loss"]) == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(after.variables.params["encoder"]["w"], expected, atol=1e-6)
    assert distance(after.variables.params["decoder"], other.params["decoder"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("target", ["random embedding", "retain embedding"])
def test_other_targets_of_the_forget_set(target):
    stepwise = method(target=target, corrupt=masked)
    context, state, batch = begun(stepwise)
    batch = batch._replace(retain=jax.tree.map(lambda x: x[:4], batch.retain))
    _, stats = jax.jit(stepwise.step)(state, context, batch, KEY)
    forget_key, retain_key, draw_key = jax.random.split(KEY, 3)
    own = encode(VARIABLES, masked(forget_key, batch.forget.examples.inputs))
    if target == "random embedding":
        wanted = own.mean() + own.std() * optax.tree.random_like(draw_key, own, sampler=jax.random.normal)
    else:
        wanted = encode(VARIABLES, masked(retain_key, batch.retain.examples.inputs))[jnp.arange(len(FORGET)) % 4]
        batch = batch._replace(retain=batch.retain._replace(weights=jnp.zeros(4)))
        alone, none = jax.jit(stepwise.step)(state, context, batch, KEY)
        assert float(none["forget_error"]) == 0  # no row stays whose embedding could be taken
        assert distance(alone.variables, VARIABLES) == 0
    assert float(stats["forget_error"]) == pytest.approx(float(jnp.mean((own - wanted) ** 2)), rel=1e-5)


@pytest.mark.slow
def test_order_and_padding_of_a_batch_do_not_matter():
    stepwise = method(std=0.0)  # draws belong to places in a batch, so that there are none here
    context, state, batch = begun(stepwise)
    other, step = state._replace(variables=jax.tree.map(lambda x: 1.1 * x, VARIABLES)), jax.jit(stepwise.step)
    plain, stats = step(other, context, batch, KEY)
    sides = {"forget": batch.forget, "retain": batch.retain}
    turned, _ = step(other, context, batch._replace(**jax.tree.map(lambda x: x[::-1], sides)), KEY)
    assert distance(plain.variables, turned.variables) < 1e-6

    def padded(part):
        rows = jax.tree.map(lambda x: jnp.concatenate([x, 100 * jnp.ones_like(x[:3])]), part)
        return rows._replace(weights=jnp.concatenate([part.weights, jnp.zeros(3)]))

    longer, found = step(other, context, batch._replace(forget=padded(batch.forget), retain=padded(batch.retain)), KEY)
    assert distance(plain.variables, longer.variables) < 1e-6
    assert float(found["loss"]) == pytest.approx(float(stats["loss"]), rel=1e-5)


def test_noise_has_the_moments_of_the_rows_that_count():
    rows = jnp.array([[[0.0, 2.0]], [[4.0, 2.0]], [[jnp.nan, 9.0]]])
    assert [float(x) for x in moments(rows, jnp.array([1.0, 1.0, 0.0]))] == pytest.approx([2.0, 2**0.5])


def test_decoders_stay_bit_for_bit_under_weight_decay():
    moved = short_run(method(optax.adamw(0.1, weight_decay=0.3)))
    assert distance(moved.params["decoder"], VARIABLES.params["decoder"]) == 0
    assert distance(moved.params["encoder"], VARIABLES.params["encoder"]) > 0.1


@pytest.mark.slow
def test_sixteen_requests_side_by_side_are_answered_as_alone():
    unlearn = ju.iterate(method(corrupt=masked), num_steps=5, batch_size=4)
    requests = ju.from_indices(DATA, [[row, row + 1, *range(18, 18 + row % 5)] for row in range(16)], capacity=8)
    keys = jax.random.split(KEY, 16)
    together = jax.jit(ju.batched(unlearn, chunk=16))(VARIABLES, DATA, requests, keys)
    single = jax.jit(unlearn)
    for place in range(16):
        alone = single(VARIABLES, DATA, lane(requests, place), keys[place])
        assert distance(alone.variables, lane(together.variables, place)) < 1e-6


def test_what_only_dead_code_reads_does_not_move():
    @jax.jit
    def through_forward(variables, inputs):
        def layer(x, w):
            return x, x @ w  # the second is never used

        x, _ = jax.lax.scan(layer, jax.nn.relu(inputs @ variables.params["w"]), variables.params["deep"])
        return x, ju.Outputs(x @ variables.params["head"]).logits

    variables = ju.Variables({"w": jnp.ones((4, 3)), "deep": jnp.ones((2, 3, 3)), "head": jnp.ones((3, 2))})
    found = depends_on(lambda v, x: through_forward(v, x)[0], variables, jnp.ones((5, 4)))
    assert found == {"w": True, "deep": False, "head": False}


def tied_encode(variables, corrupted):
    return corrupted @ variables.params["encoder"]["w"] + variables.params["decoder"][1][:CODE]


@pytest.mark.slow
@pytest.mark.parametrize("tied", ["freeze", "train"])
def test_tied_weights_are_refused_frozen_or_trained(tied):
    with pytest.raises(ValueError, match="share decoder/1: tied='freeze'"):
        short_run(method(encode=tied_encode))
    moved = short_run(method(optax.adamw(0.1, weight_decay=0.3), encode=tied_encode, tied=tied, alpha=1.0))
    changed = [distance(*x) > 0 for x in zip(moved.params["decoder"], VARIABLES.params["decoder"], strict=True)]
    assert changed == [False, tied == "train"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"encode": tied_encode, "decode": decode}, ValueError, "share decoder/1: tied='freeze'"),
        ({"alpha": -0.1}, ValueError, "alpha must lie in"),
        ({"std": -1.0}, ValueError, "std must lie in"),
        ({"target": "grey"}, ValueError, "target must be one of 'noise', 'random embedding'"),
        ({"tied": "copy"}, ValueError, "tied must be"),
        ({"encode": lambda variables, corrupted: corrupted}, ValueError, "depends on no parameter that may move"),
        ({"encode": lambda v, x: jnp.sum(encode(v, x))}, ValueError, "same leading axis"),
    ],
)
def test_mistakes_are_named(options, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(ju.iterate(method(**{"decode": None, **options}), 2, batch_size=4), VARIABLES, DATA, REQUEST, KEY)


def test_whole_numbers_are_no_images():
    data = DATA._replace(train=DATA.train._replace(inputs=jnp.ones((ROWS, PIXELS), jnp.int32)))
    with pytest.raises(TypeError, match="must be floating-point"):
        jax.eval_shape(ju.iterate(method(), 2, batch_size=4), VARIABLES, data, REQUEST, KEY)


@pytest.mark.slow
def test_a_sweep_is_so_many_runs():
    sweep_equals_single_runs("image_to_image", alpha=[0.1, 1.0], retain_weight=[1.0, 2.0], mean=[0.0, 0.5], std=[1.0, 0.5])
