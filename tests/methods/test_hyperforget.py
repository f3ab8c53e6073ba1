"""Diffusion over weights against closed forms, and what a request makes of it."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import hypernetworks as hyper
from jaxunlearn.sampling import retain_weights
from tests.methods.runs import DATA, KEY, MODEL, ROWS, VARIABLES
from tests.problems import NUM_CLASSES, NUM_ROWS, distance, drifting, lane

SCHEDULE, SCALE, SAMPLES = hyper.linear_schedule(25), 2.0, 6
PROMPTS = {"forget_prompt": 2.0, "retain_prompt": 0.5}
IDENTITY = {"start": 1.0, "noise": 0.0, "told": 0.0, "limit": np.inf}
REQUEST = lane(ju.from_indices(DATA, [ROWS], capacity=NUM_ROWS), 0)._replace(target=jnp.zeros(NUM_CLASSES, bool))


def any_denoiser(params, noised, start, condition, step):
    """Noise and what it is told, as much of each as the parameters say; no network where the noise is beyond a limit."""
    told = jnp.zeros_like(start).at[: condition.size].set(condition)
    made = params["start"] * start + params["noise"] * noised + params["told"] * (told - start)
    return jnp.where((step == 0) & (noised[0] > params["limit"]), jnp.nan, made)


@cache
def program(both=True):
    """`(params, data, request, prompts) -> Result`, compiled once."""

    def run(params, data, request, prompts):
        made = hyper.Hypernetwork(any_denoiser, params, SCALE, SCHEDULE)
        prompts = {**prompts, "retain_prompt": prompts["retain_prompt"] if both else None}
        return ju.hyperforget(MODEL, hypernetwork=made, num_samples=SAMPLES, **prompts)(VARIABLES, data, request, KEY)

    return jax.jit(run)


def ask(*, data=DATA, request=REQUEST, both=True, prompts=PROMPTS, **params):
    return jax.device_get(program(both)({**IDENTITY, **params}, data, request, prompts))


def rows_of(request):
    weights = np.zeros(NUM_ROWS, np.float32)
    weights[np.asarray(request.indices)[np.asarray(request.weights) > 0]] = 1
    return weights


@jax.jit
def mean_loss(variables, weights):
    losses = MODEL.loss(MODEL.forward(variables, DATA.train.inputs), DATA.train)
    return jnp.sum(losses * weights) / jnp.sum(weights)


def test_a_hypernetwork_that_is_not_yet_trained_returns_the_network_it_starts_from():
    result = ask()
    assert distance(result.variables, VARIABLES) == 0
    assert result.status == ju.Status.UNCHANGED
    np.testing.assert_allclose(result.stats["forget_losses"], result.stats["forget_loss_before"], rtol=1e-6)
    np.testing.assert_allclose(result.stats["retain_loss_before"], mean_loss(VARIABLES, 1 - rows_of(REQUEST)), rtol=1e-5)


def three_layers(inputs, params):
    for name in ("first", "second"):
        inputs = jax.nn.relu(inputs @ params[name]["kernel"] + params[name]["bias"])
    return inputs @ params["head"]["kernel"] + params["head"]["bias"]


def test_units_in_another_order_make_the_same_network():
    draw = np.random.default_rng(0).normal
    sizes = {"first": (4, 8), "second": (8, 6), "head": (6, 3)}
    params = {
        x: {"kernel": np.float32(0.3 * draw(size=s)), "bias": np.arange(s[1], dtype=np.float32) / 9} for x, s in sizes.items()
    }
    layers = [(f"{name}/kernel", f"{name}/bias") for name in sizes]
    moved = jax.jit(lambda params: hyper.permuted(params, layers, KEY))(params)
    run = jax.jit(three_layers)
    np.testing.assert_allclose(run(DATA.train.inputs, moved), run(DATA.train.inputs, params), atol=1e-6)
    for name in ("first", "second"):
        assert distance(moved[name], params[name]) > 0.1
        assert sorted(moved[name]["bias"].tolist()) == params[name]["bias"].tolist()
    assert distance(moved["head"]["bias"], params["head"]["bias"]) == 0


def test_channels_in_another_order_make_the_same_convolutions():
    draw = np.random.default_rng(0).normal
    params = tuple(np.float32(draw(size=size)) for size in ((3, 3, 1, 5), (3, 3, 5, 2)))  # paths are "0" and "1"
    images = np.float32(draw(size=(2, 6, 6, 1)))

    @jax.jit
    def run(params):
        layer = partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return layer(jax.nn.relu(layer(images, params[0], (1, 1), "SAME")), params[1], (1, 1), "SAME")

    moved = hyper.permuted(params, [("0",), ("1",)], KEY)
    assert distance(moved, params) > 0.1
    np.testing.assert_allclose(run(moved), run(params), atol=1e-4)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([("body", "bias")], "at least two layers"),
        (["body", "head"], "a layer is a tuple of paths"),
        ([("bdy",), ("head",)], "no 'bdy'; did you mean 'body'"),
        ([("head",), ("body",)], r"body \(4, 8\) does not follow head \(8, 3\)"),
        ([("body", "bias"), ("head", "bias")], "bias stands twice"),
        ([("bias",), ("head",)], None),  # [1, 8] looks like a kernel, and is none that a chain could tell from one
        ([("body", "head"), ("head",)], r"head \(8, 3\) has no entry for each of the 8 units"),
    ],
)
def test_a_chain_that_is_none_is_refused(layers, message):
    if message is None:
        hyper.permuted(VARIABLES.params, layers, KEY)
        return
    with pytest.raises(ValueError, match=message):
        hyper.permuted(VARIABLES.params, layers, KEY)


def test_one_pair_is_memorised():
    start, goal, told = jnp.zeros(6), jnp.linspace(-1, 1, 6), jnp.ones(3)

    def denoise(params, noised, start, condition, step):
        return start + params["bias"] + params["gain"] * noised

    made = hyper.Hypernetwork(denoise, {"bias": jnp.zeros(6), "gain": jnp.float32(0.5)}, 1.0, SCHEDULE)
    optimizer = optax.adam(0.05)

    def loss(params, key):
        lost = partial(hyper.denoising_loss, made._replace(params=params), start, goal, told)
        return jnp.mean(jax.vmap(lost)(jax.random.split(key, 32)))

    def step(carry, key):
        value, slope = jax.value_and_grad(loss)(carry[0], key)
        updates, state = optimizer.update(slope, carry[1])
        return (optax.apply_updates(carry[0], updates), state), value

    @jax.jit
    def train(params, key):
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, 300))
        keys, learnt = jax.random.split(key, 5), made._replace(params=params)
        return losses, jax.vmap(lambda key: hyper.sample(learnt, start, told, key))(keys)

    losses, samples = train(made.params, KEY)
    assert losses[0] > 0.3
    assert losses[-1] < 1e-3
    np.testing.assert_allclose(samples, jnp.tile(goal, (5, 1)), atol=0.05)


S, MU = 0.5, 1.5  # of networks whose entries are N(MU, S^2)


def posterior(schedule):
    """Coefficients of x_t and of MU in the mean of the clean vector given x_t."""
    kept = np.asarray(schedule.signal) ** 2
    gain = np.sqrt(kept) * S**2 / (kept * S**2 + 1 - kept)
    return np.stack([gain, 1 - gain * np.sqrt(kept)], axis=1)


def linear(params, noised, start, condition, step):
    gain, share = params[step]
    return gain * noised + share * condition[0]


def test_training_finds_the_posterior_mean():
    goals = MU + S * jax.random.normal(KEY, (400, 200))
    made = hyper.Hypernetwork(linear, (), 1.0, SCHEDULE)

    def loss(params, keys):
        lost = jax.vmap(lambda goal, key: hyper.denoising_loss(made._replace(params=params), goal, goal, jnp.array([MU]), key))
        return jnp.mean(lost(goals, keys))

    @jax.jit
    def minimum(keys):  # the loss is quadratic
        flat = jnp.zeros(50)
        slope, matrix = (f(lambda x: loss(x.reshape(25, 2), keys))(flat) for f in (jax.grad, jax.hessian))
        return -jnp.linalg.solve(matrix, slope).reshape(25, 2)

    np.testing.assert_allclose(minimum(jax.random.split(KEY, 400)), posterior(SCHEDULE), atol=0.05)


def variance(schedule, eta):
    """Of samples that follow the posterior mean, step by step; everything is linear and Gaussian."""
    signal, noise, beta = (np.asarray(x, float) for x in schedule[1:])
    gain, found = posterior(schedule)[:, 0], 1.0
    for t in reversed(range(len(beta))):
        signal_before, noise_before = (signal[t - 1], noise[t - 1]) if t else (1.0, 0.0)
        kept = np.sqrt(max(noise_before**2 - eta**2 * beta[t] * noise_before**2 / noise[t] ** 2, 0))
        factor = signal_before * gain[t] + kept * (1 - signal[t] * gain[t]) / noise[t]
        found = factor**2 * found + (eta**2 * beta[t] if t else 0)
    return found


def test_samples_have_the_mean_and_the_variance_of_the_networks():
    schedule = hyper.respaced(hyper.linear_schedule(), 100)
    steps = jnp.zeros(1000, int).at[schedule.steps].set(jnp.arange(100))
    gains = jnp.asarray(posterior(schedule), jnp.float32)
    made = hyper.Hypernetwork(lambda params, x, start, c, step: linear(gains, x, start, c, steps[step]), (), 1.0, schedule)
    draw = jax.jit(partial(hyper.sample, made))
    for eta in (1.0, 0.0):
        found = np.asarray(draw(jnp.zeros(10_000), jnp.array([MU]), KEY, eta=eta))
        np.testing.assert_allclose(np.mean(found), MU, atol=4 * S / 100)
        np.testing.assert_allclose(np.var(found), variance(schedule, eta), rtol=4 * np.sqrt(2 / 10_000))
        assert abs(variance(hyper.linear_schedule(), eta) / S**2 - 1) < 0.02  # with all steps it is that of the networks


def test_a_schedule_of_fewer_steps_has_the_noise_of_those_it_keeps():
    whole = hyper.linear_schedule(200)
    some = hyper.respaced(whole, 7)
    np.testing.assert_allclose(some.signal, whole.signal[some.steps])
    np.testing.assert_allclose(np.cumprod(1 - some.beta), some.signal**2)
    np.testing.assert_allclose(some.signal**2 + some.noise**2, 1)
    for same, other in zip(hyper.respaced(whole, 200), whole, strict=True):
        np.testing.assert_allclose(same, other, rtol=1e-6)


@pytest.mark.parametrize("both", [True, False])
def test_it_is_told_losses_prompts_and_what_the_request_names(both):
    request = lane(ju.from_classes(DATA, [[2]], capacity=NUM_ROWS), 0) if both else REQUEST._replace(target=())
    result = ask(request=request, both=both, told=1.0)
    sides = {0.5: retain_weights(DATA, request), 2.0: rows_of(request)} if both else {2.0: rows_of(request)}
    losses = {prompt: mean_loss(VARIABLES, weights) for prompt, weights in sides.items()}
    told = [x for prompt, loss in losses.items() for x in (prompt - loss, prompt, loss)] + [0, 0, 1] * both
    vector = hyper.to_vector(result.variables.params, SCALE)
    np.testing.assert_allclose(vector[: len(told)], told, atol=1e-5)
    assert not np.any(vector[len(told) :])
    assert ("retain_losses" in result.stats) == ("retain_loss_after" in result.stats) == both


def test_the_sample_nearest_to_the_prompts_is_kept():
    result = ask(noise=1.0)
    forget, retain, chosen = (result.stats[x] for x in ("forget_losses", "retain_losses", "chosen"))
    apart = np.abs(forget - 2.0) + np.abs(retain - 0.5)
    assert chosen == np.argmin(apart)
    assert len(np.unique(apart)) == SAMPLES
    np.testing.assert_allclose(result.stats["distance"], apart.min(), rtol=1e-6)
    np.testing.assert_allclose(mean_loss(result.variables, rows_of(REQUEST)), forget[chosen], rtol=1e-4)
    for found in (mean_loss(result.variables, 1 - rows_of(REQUEST)), result.stats["retain_loss_after"]):
        np.testing.assert_allclose(found, retain[chosen], rtol=1e-4)
    other = ask(noise=1.0, prompts={"forget_prompt": float(forget[0]), "retain_prompt": float(retain[0])})
    assert other.stats["chosen"] == 0 != chosen  # the denoiser is not told, so that the samples are the same
    assert distance(other.variables, result.variables) > 0.1


def test_a_request_that_names_a_class_without_rows_is_not_said_to_be_met():
    request = REQUEST._replace(weights=0 * REQUEST.weights, target=jnp.array([False, True, False]))
    result = ask(request=request, both=False, noise=1.0)
    assert np.isnan(result.stats["distance"])
    assert distance(result.variables, VARIABLES) > 0.1


def test_samples_that_are_no_networks_are_passed_over():
    result = ask(noise=0.1, limit=0.0)
    assert 0 < np.sum(np.isnan(result.stats["forget_losses"])) < SAMPLES
    assert result.status == ju.Status.OK
    assert np.isfinite(result.stats["distance"])
    assert ask(noise=0.1, limit=-np.inf).status == ju.Status.NONFINITE


def test_a_network_that_lost_the_retain_set_is_damaged():
    result = ask(start=-20.0)
    assert result.status == ju.Status.DAMAGED
    assert result.stats["retain_loss_after"] > max(np.log(NUM_CLASSES), 2 * result.stats["retain_loss_before"])


def test_without_a_prompt_for_it_the_retain_set_is_not_read():
    inputs = np.where(rows_of(REQUEST)[:, None] > 0, DATA.train.inputs, np.nan)
    spoilt = DATA._replace(train=DATA.train._replace(inputs=jnp.asarray(inputs)))
    request = REQUEST._replace(target=())
    clean, found = (ask(data=data, request=request, both=False, noise=0.1, told=0.01) for data in (DATA, spoilt))
    assert found.status == clean.status == ju.Status.OK
    assert distance(found.variables, clean.variables) == 0


def test_with_nothing_retained_it_samples_all_the_same():
    everything = REQUEST._replace(indices=jnp.arange(NUM_ROWS), weights=jnp.ones(NUM_ROWS))
    result = ask(request=everything, noise=0.1, told=0.01)
    assert result.status == ju.Status.NOTHING_RETAINED
    assert np.all(np.isnan(result.stats["retain_losses"]))
    assert np.isfinite(result.stats["distance"])


@pytest.mark.slow
def test_prompts_and_hypernetworks_side_by_side_are_single_runs():
    params = {**IDENTITY, "noise": jnp.array([0.1, 0.2]), "told": jnp.array([0.01, 0.1])}
    prompts = {"forget_prompt": jnp.array([1.0, 3.0]), "retain_prompt": jnp.array([0.5, 0.1])}
    axes = {name: 0 if np.ndim(x) else None for name, x in params.items()}, None, None, 0
    together = jax.jit(jax.vmap(program(), in_axes=axes))(params, DATA, REQUEST, prompts).variables
    alone = [ask(prompts=lane(prompts, i), noise=params["noise"][i], told=params["told"][i]).variables for i in range(2)]
    for place in range(2):
        assert distance(lane(together, place), alone[place]) < 1e-5
    assert distance(*alone) > 1e-3


def test_bad_input_is_told():
    made = drifting()
    with pytest.raises(TypeError, match=r"must be a jaxunlearn\.hypernetworks\.Hypernetwork"):
        ju.hyperforget(MODEL, hypernetwork=made.denoise, **PROMPTS)
    for options, message in [
        ({"forget_prompt": np.nan}, "forget_prompt must lie"),
        ({"retain_prompt": np.nan}, "retain_prompt must lie"),
        ({"num_samples": 0}, "num_samples must be"),
        ({"retain_rows": 0}, "retain_rows must be"),
        ({"eta": 1.5}, "eta must lie"),
    ]:
        with pytest.raises(ValueError, match=message):
            ju.hyperforget(MODEL, hypernetwork=made, **{**PROMPTS, **options})
    short = made._replace(denoise=lambda params, noised, start, condition, step: start[:2])
    size = hyper.to_vector(VARIABLES.params).size
    with pytest.raises(ValueError, match=rf"denoise must return the vector of one network, shape \({size},\), got \(2,\)"):
        jax.eval_shape(ju.hyperforget(MODEL, hypernetwork=short, **PROMPTS), VARIABLES, DATA, REQUEST, KEY)
    with pytest.raises(ValueError, match="two networks of one form"):
        hyper.denoising_loss(made, jnp.zeros(3), jnp.zeros(4), jnp.zeros(0), KEY)
    with pytest.raises(ValueError, match=r"more than 20 steps; fewer come from respaced"):
        hyper.linear_schedule(20)
    with pytest.raises(ValueError, match="fewer than num_steps=30"):
        hyper.respaced(SCHEDULE, 30)
