"""The noise, and the two phases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.methods.unsir import learn_noise, spread_over_labels
from tests.methods.runs import DATA, KEY, MODEL, REQUEST, ROWS, VARIABLES, answer, descended, one_step, sweep_equals_single_runs
from tests.problems import distance, lane, linear_regression, method, network, regression_data

NOISE = {"noise_rows": 6, "noise_steps": 3}


def test_noise_reaches_the_optimum_of_its_objective():
    # Squared error of a linear model: argmin_x penalty |x|^2 - (x w - y)^2 / 2 lies at x = -y w / (2 penalty - |w|^2).
    data, model, weights = regression_data(), linear_regression(), jnp.array([0.5, -1.0, 0.3, 0.8])
    noise = learn_noise(
        model, ju.Variables({"w": weights}), data, REQUEST, KEY, rows=4, steps=2000, learning_rate=0.02, penalty=4.0
    )
    targets = data.train.targets[jnp.array(ROWS)]
    assert sorted(noise.examples.targets.tolist()) == sorted(targets.tolist())
    expected = -noise.examples.targets[:, None] * weights / (8 - jnp.sum(weights**2))
    assert jnp.allclose(noise.examples.inputs, expected, atol=1e-3)


def test_rare_labels_have_noise_too():
    targets = np.zeros(300, np.int32)
    targets[280:285], targets[285:] = 1, 2
    data = ju.training_data(np.zeros((300, 4), np.float32), targets)
    request = lane(ju.from_indices(data, [range(285)]), 0)
    rows = jax.jit(lambda data, request, key: spread_over_labels(data, request, 16, key))(data, request, KEY)
    assert np.bincount(rows.examples.targets, minlength=3).tolist() == [11, 5, 0]
    few = jax.jit(lambda data, request, key: spread_over_labels(data, request, 16, key))(
        data, lane(ju.from_indices(data, [[3, 4, 281, 282, 283]]), 0), KEY
    )
    assert np.bincount(few.slots, minlength=5).min() == 3


def test_noise_is_learned_in_single_precision():
    half = jax.tree.map(lambda x: x.astype(jnp.float16), VARIABLES)
    data = DATA._replace(train=DATA.train._replace(inputs=DATA.train.inputs.astype(jnp.float16)))
    noise = jax.jit(lambda *call: learn_noise(MODEL, *call, rows=8, steps=40, learning_rate=0.1, penalty=0.1))
    learned = noise(half, data, REQUEST, KEY).examples.inputs
    assert learned.dtype == jnp.float16
    wide = noise(VARIABLES, DATA, REQUEST, KEY).examples.inputs
    assert jnp.allclose(learned, wide, atol=0.1)


@pytest.mark.parametrize(("share", "phases"), [(0.5, [1, 1, 1, 0, 0, 0]), (2 / 6, [1, 1, 0, 0, 0, 0]), (1.0, [1] * 6)])
def test_a_share_of_the_steps_impairs(share, phases):
    assert answer("unsir", impair_share=share).stats["phase"].tolist() == phases


def test_it_impairs_on_labels_of_the_forget_set():
    unlearner = ju.unsir(MODEL, optax.sgd(0.1), impair_share=0.5, alpha=0.6, **NOISE)
    params, batch, _ = one_step(unlearner)
    assert set(batch.forget.examples.targets.tolist()) <= set(DATA.train.targets[jnp.array(ROWS)].tolist())

    def mean(params, examples):
        return jnp.mean(ju.losses.cross_entropy(MODEL.forward(ju.Variables(params), examples.inputs), examples))

    def loss(params):
        return 0.6 * mean(params, batch.retain.examples) + 0.4 * mean(params, batch.forget.examples)

    assert distance(params, descended(VARIABLES.params, loss)) < 1e-6


def test_without_impairing_it_is_finetuning():
    unlearner, plain = ju.unsir(MODEL, optax.sgd(0.1), **NOISE), ju.finetune(MODEL, optax.sgd(0.1))
    same_draws = plain._replace(sample=unlearner.sample, init=lambda *call: (unlearner.init(*call)[0], plain.init(*call)[1]))
    expected = jax.jit(ju.iterate(same_draws, 6, batch_size=4))(VARIABLES, DATA, REQUEST, KEY)
    assert distance(answer("unsir", impair_share=0.0).variables, expected.variables) < 1e-6


def test_inputs_without_gradients_are_refused():
    words = ju.training_data(jnp.ones((9, 4), jnp.int32), jnp.zeros(9, jnp.int32))
    with pytest.raises(TypeError, match="must be floating-point, got int32"):
        method("unsir", network())(VARIABLES, words, lane(ju.from_indices(words, [[1]]), 0), KEY)


@pytest.mark.slow
def test_a_sweep_equals_single_runs():
    sweep_equals_single_runs("unsir", impair_share=[0.2, 0.6])
