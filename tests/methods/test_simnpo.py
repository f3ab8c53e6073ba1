"""Where it is `npo` and gradient ascent, the damping of single rows, and what the length of an answer does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import MODEL, VARIABLES, answer, descended, forget_losses, one_step, sweep_equals_single_runs
from tests.problems import distance


def test_each_row_is_damped_by_its_own_likelihood():
    nudged = jax.tree.map(lambda x: x - 0.4, VARIABLES)
    params, _, stats = one_step(ju.simnpo(MODEL, optax.sgd(0.1), beta=1.5, gamma=0.3, retain_weight=0.0), nudged)
    ratio = jnp.exp(1.5 * (0.3 - forget_losses(nudged.params)))
    damping = 2 * ratio / (1 + ratio)
    expected = descended(nudged.params, lambda params: -jnp.mean(damping * forget_losses(params)))
    assert np.ptp(damping) > 0.1
    assert distance(params, expected) < 1e-6
    assert float(stats["damping"]) == pytest.approx(float(damping.mean()), rel=1e-5)
    assert float(stats["loss"]) == pytest.approx(float(2 / 1.5 * jnp.mean(jnp.log1p(ratio))), rel=1e-5)


@pytest.mark.slow
def test_it_is_npo_for_a_trained_model_that_finds_all_rows_equally_likely():
    """A head of zeros says 1/3 of every class: the reference is a constant, and gamma stands for it."""
    blank = VARIABLES._replace(params={**VARIABLES.params, "head": jnp.zeros((8, 3))})
    settings = {"beta": 2.0, "retain_weight": 3.0, "rate": 0.3}
    own = answer("simnpo", blank, gamma=float(np.log(3)), **settings).variables
    assert distance(own, answer("npo", blank, **settings).variables) < 1e-6
    assert distance(own, answer("simnpo", blank, gamma=0.0, **settings).variables) > 1e-3


@pytest.mark.slow
def test_with_small_beta_it_is_gradient_difference():
    small = answer("simnpo", beta=1e-5, gamma=0.0, retain_weight=3.0, rate=0.025).variables
    assert distance(small, answer("gradient_difference", alpha=0.75).variables) < 1e-4


def test_what_is_unlikely_already_is_left_alone_from_the_first_step():
    far = answer("simnpo", beta=2.0, gamma=-30.0, retain_weight=0.0)
    assert distance(far.variables, VARIABLES) < 1e-6
    near = answer("simnpo", beta=2.0, gamma=30.0, retain_weight=0.0, steps=1).variables
    climbed = descended(VARIABLES.params, lambda params: -2 * jnp.mean(forget_losses(params)))
    assert distance(near.params, climbed) < 1e-6


def test_a_loss_per_token_divides_by_the_length_of_the_answer():
    """Rows of 1 and of 3 tokens: the exponent of the likelihood of the whole is beta / |y|."""
    lengths, beta = (1, 3), 2.0

    def tokens(params):
        """Negative log-likelihoods [b, 3] of tokens."""
        return jax.nn.softplus(params["a"][:, None] * jnp.arange(1.0, 4))

    def per_token(outputs, examples):
        counts = jnp.arange(3) < examples.targets[:, None]
        return jnp.sum(jnp.where(counts, outputs.logits, 0), axis=1) / examples.targets

    model = ju.Model(lambda v, x, *, train=False, key=None: ju.Outputs(tokens({"a": v.params["a"] * x})), per_token)
    data = ju.training_data(jnp.array([1.0, 0.5, 2.0]), jnp.array([1, 3, 2]))
    request = jax.tree.map(lambda x: x[0], ju.from_indices(data, [[0, 1]], capacity=2))
    unlearner = ju.simnpo(model, optax.sgd(0.1), beta=beta, retain_weight=0.0)
    start = ju.Variables({"a": jnp.array(0.7)})
    result = jax.jit(ju.iterate(unlearner, 1, batch_size=2))(start, data, request, jax.random.key(0))

    @jax.jit
    def loss(a):
        whole = [-tokens({"a": a * data.train.inputs[row : row + 1]})[0, : lengths[row]].sum() for row in (0, 1)]
        return sum(jnp.log(1 + jnp.exp(log_p) ** (beta / length)) for log_p, length in zip(whole, lengths, strict=True)) / beta

    assert float(result.variables.params["a"]) == pytest.approx(float(0.7 - 0.1 * jax.grad(loss)(0.7)), abs=1e-6)


@pytest.mark.slow
def test_a_sweep_equals_single_runs():
    sweep_equals_single_runs("simnpo", beta=[0.2, 2.0], gamma=[0.0, 0.4], retain_weight=[1.0, 0.5])


@pytest.mark.parametrize("setting", ["beta", "gamma", "retain_weight"])
def test_what_is_no_number_is_named(setting):
    with pytest.raises(TypeError, match=f"{setting} must be a number in .*, got None"):
        ju.simnpo(MODEL, optax.sgd(0.1), **{setting: None})
