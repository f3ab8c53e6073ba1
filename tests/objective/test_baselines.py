"""Identities and limits of the baselines: layer-wise retraining, relabelling, distillation, noise, task vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import driver, risk
from jaxunlearn.objective import bad_teacher, finetune, npo, random_label, unsir
from tests.problems import blobs, distance, lane, linear_regression, method, network, normalized_network, regression_data

DATA = blobs()
ROWS = [3, 4, 5, 30]
REQUEST = lane(ju.from_indices(DATA, [ROWS]), 0)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def variables():
    return network().init(jax.random.key(1))


def answer(name, variables, *, model=None, optimizer=None, data=DATA, request=REQUEST, num_steps=6, **options):
    unlearn = method(name, model or network(), optimizer, num_steps=num_steps, **options)
    return jax.jit(unlearn)(variables, data, request, KEY)


def forget_losses(params, targets=None):
    examples = jax.tree.map(lambda x: x[jnp.array(ROWS)], DATA.train)
    examples = examples if targets is None else examples._replace(targets=targets)
    return ju.losses.cross_entropy(network().forward(ju.Variables(params), examples.inputs), examples)


def one_step(stepwise, variables, weights):
    """Parameters after one step of 0.1 SGD that starts at `weights`, for a model trained to `variables`; and the batch."""
    context, state = stepwise.init(variables, DATA, REQUEST, KEY)
    batch = stepwise.sample(risk.split(DATA, REQUEST, KEY), context, jnp.int32(0), KEY, risk.BatchSizes(4, 5))
    after, stats = stepwise.step(state._replace(variables=weights), context, batch, KEY)
    return after.variables.params, batch, stats


def descended(params, loss):
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))


# layers


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adamw(0.1, weight_decay=0.1)])
@pytest.mark.parametrize("name", ["cf_k", "eu_k"])
def test_frozen_layers_stay_bit_identical_under_momentum_and_weight_decay(name, optimizer, variables):
    params = answer(name, variables, layers="head", optimizer=optimizer).variables.params
    for leaf in ("body", "bias"):
        assert jnp.array_equal(params[leaf], variables.params[leaf])
    assert jnp.all(params["head"] != variables.params["head"])


def test_all_layers_make_cf_k_finetuning_and_eu_k_retraining(variables):
    for name, reference in (("cf_k", "finetune"), ("eu_k", "retrain")):
        everything = answer(name, variables, layers="").variables
        assert distance(everything, answer(reference, variables).variables) == 0


def test_the_first_step_of_cf_k_is_the_heads_part_of_finetuning(variables):
    moved = answer("cf_k", variables, layers=lambda path: path == "head", num_steps=1).variables.params["head"]
    assert jnp.allclose(moved, answer("finetune", variables, num_steps=1).variables.params["head"], atol=1e-6)


def test_eu_k_keeps_nothing_of_the_retrained_layers(variables):
    other = variables._replace(params={**variables.params, "head": 100 * variables.params["head"] + 3})
    assert distance(*(answer("eu_k", start, layers="head").variables for start in (variables, other))) == 0


def test_eu_k_starts_the_state_of_its_layers_afresh():
    model = normalized_network()
    used = model.init(KEY)
    used = used._replace(state={"mean": used.state["mean"] + 50, "count": jnp.int32(1000)})
    fresh = answer("eu_k", used, model=model, layers="w|mean", bn="frozen").variables.state
    assert not fresh["mean"].any()
    assert int(fresh["count"]) == 1000


def test_layers_that_name_nothing_are_refused(variables):
    with pytest.raises(ValueError, match="names no parameter; there are bias, body, head"):
        answer("cf_k", variables, layers="Dense_7")
    with pytest.raises(TypeError, match="regular expression"):
        answer("eu_k", variables, layers=3)
    with pytest.raises(ValueError, match="eu_k starts its layers from fresh weights: pass Model"):
        method("eu_k", network()._replace(init=None))


# l1_sparse


def test_l1_sparse_without_penalty_is_finetuning(variables):
    assert distance(answer("l1_sparse", variables, gamma=0.0).variables, answer("finetune", variables).variables) == 0


def test_l1_sparse_adds_the_sign_and_lets_it_fade(variables):
    plain = answer("finetune", variables, num_steps=1).variables.params
    first = answer("l1_sparse", variables, gamma=0.5, num_steps=1).variables.params
    expected = jax.tree.map(lambda p, w: p - 0.1 * 0.5 * jnp.sign(w), plain, variables.params)
    assert distance(first, expected) < 1e-6
    # Nothing but the penalty moves a model whose loss is flat: 0.1 gamma (1 + 3/4 + 2/4 + 1/4).
    flat = network()._replace(loss=lambda outputs, examples: 0 * outputs.logits[:, 0])
    start = jax.tree.map(lambda x: jnp.where(x > 0, x + 1, x - 1), variables)
    shrunk = answer("l1_sparse", start, model=flat, gamma=0.2, num_steps=4).variables.params
    assert distance(shrunk, jax.tree.map(lambda w: w - 0.1 * 0.2 * 2.5 * jnp.sign(w), start.params)) < 1e-6


# random_label


def test_random_label_with_all_weight_on_retained_rows_is_finetuning(variables):
    assert distance(answer("random_label", variables, alpha=1.0).variables, answer("finetune", variables).variables) < 1e-6


def test_wrong_labels_are_uniform_over_what_is_left():
    slots = jnp.arange(6000)
    labels = slots % 5
    excluded = jnp.array([False, True, False, False, False])
    drawn = np.asarray(random_label.wrong_labels(KEY, slots, labels, excluded))
    for own in range(5):
        counts = np.bincount(drawn[np.asarray(labels) == own], minlength=5)
        allowed = [c for c in range(5) if c not in (own, 1)]
        assert counts.sum() == counts[allowed].sum() == 1200
        expected = 1200 / len(allowed)
        assert np.all(np.abs(counts[allowed] - expected) < 5 * np.sqrt(expected))
    # A slot keeps its label whatever else is in the batch; with nothing left excluded classes come back.
    again = random_label.wrong_labels(KEY, slots[100:107], labels[100:107], excluded)
    assert again.tolist() == drawn[100:107].tolist()
    two = random_label.wrong_labels(KEY, jnp.arange(50), jnp.arange(50) % 2, jnp.array([True, True]))
    assert two.tolist() == (1 - np.arange(50) % 2).tolist()


def test_random_label_descends_on_the_labels_it_drew_once(variables):
    stepwise = random_label.unlearner(network(), optax.sgd(0.1), alpha=0.3)
    params, batch, stats = one_step(stepwise, variables, variables)
    retained = batch.retain.examples
    context, _ = stepwise.init(variables, DATA, REQUEST, KEY)
    order = jnp.argsort(batch.forget.slots)
    labels = random_label.wrong_labels(context[0], batch.forget.slots, batch.forget.examples.targets, jnp.zeros(3, bool))[order]
    assert not jnp.any(labels == DATA.train.targets[jnp.array(ROWS)])

    def loss(params):
        outputs = network().forward(ju.Variables(params), retained.inputs)
        return 0.3 * jnp.mean(ju.losses.cross_entropy(outputs, retained)) + 0.7 * jnp.mean(forget_losses(params, labels))

    assert distance(params, descended(variables.params, loss)) < 1e-6
    assert float(stats["relabelled_loss"]) == pytest.approx(float(jnp.mean(forget_losses(variables.params, labels))), rel=1e-5)
    # Without retained rows every step sees the same four labels; `redraw` does not.
    run = {"alpha": 0.0, "optimizer": optax.sgd(0.0), "num_steps": 8}
    assert np.ptp(answer("random_label", variables, **run).stats["relabelled_loss"]) < 1e-6
    assert np.ptp(answer("random_label", variables, redraw=True, **run).stats["relabelled_loss"]) > 1e-3


def test_random_label_avoids_the_classes_that_are_to_go():
    request = lane(ju.from_classes(DATA, [[0, 2]]), 0)
    assert risk.forgotten_classes(request.target, 5).tolist() == [True, False, True, False, False]
    assert not risk.forgotten_classes((), 3).any()
    with pytest.raises(ValueError, match="names 3 classes, but the model has 2 logits"):
        risk.forgotten_classes(request.target, 2)


# npo


def test_npo_with_small_beta_is_gradient_difference(variables):
    small = answer("npo", variables, beta=1e-5, retain_weight=3.0, optimizer=optax.sgd(0.025)).variables
    assert distance(small, answer("gradient_difference", variables, alpha=0.75).variables) < 1e-4
    alone = answer("npo", variables, beta=1e-5, retain_weight=0.0).variables
    assert distance(alone, answer("gradient_ascent", variables).variables) < 1e-4


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_first_step_of_npo_is_ascent_whatever_beta_is(variables, beta):
    first = answer("npo", variables, beta=beta, retain_weight=0.0, num_steps=1).variables
    assert distance(first, answer("gradient_ascent", variables, num_steps=1).variables) < 1e-6


def test_npo_damps_each_row_by_its_own_likelihood_ratio(variables):
    nudged = jax.tree.map(lambda x: x - 0.4, variables)
    params, _, _ = one_step(npo.unlearner(network(), optax.sgd(0.1), beta=1.5, retain_weight=0.0), variables, nudged)
    ratio = jnp.exp(1.5 * (forget_losses(variables.params) - forget_losses(nudged.params)))
    damping = 2 * ratio / (1 + ratio)
    expected = descended(nudged.params, lambda params: -jnp.mean(damping * forget_losses(params)))
    assert np.ptp(damping) > 0.1
    assert distance(params, expected) < 1e-6


# bad_teacher


def test_bad_teacher_changes_nothing_where_the_student_equals_its_teachers(variables):
    assert distance(answer("bad_teacher", variables, alpha=1.0).variables, variables) < 1e-6
    itself = network()._replace(init=lambda key: variables)
    assert distance(answer("bad_teacher", variables, model=itself).variables, variables) < 1e-6


def test_bad_teacher_follows_its_two_teachers(variables):
    nudged = jax.tree.map(lambda x: x + 0.3, variables)
    stepwise = bad_teacher.unlearner(network(), optax.sgd(0.1), alpha=0.3, temperature=2.0)
    params, batch, _ = one_step(stepwise, variables, nudged)
    (_, incompetent), _ = stepwise.init(variables, DATA, REQUEST, KEY)
    assert distance(incompetent, variables) > 0.1

    def kl(teacher, params, inputs):
        target = jax.nn.log_softmax(network().forward(teacher, inputs).logits / 2)
        student = jax.nn.log_softmax(network().forward(ju.Variables(params), inputs).logits / 2)
        return 4 * jnp.mean(jnp.sum(jnp.exp(target) * (target - student), -1))

    def loss(params):
        retained = kl(variables, params, batch.retain.examples.inputs)
        return 0.3 * retained + 0.7 * kl(incompetent, params, batch.forget.examples.inputs)

    assert distance(params, descended(nudged.params, loss)) < 1e-6


# task_vector


def test_one_step_of_a_task_vector_is_gradient_ascent(variables):
    one = answer("task_vector", variables, scale=0.5, num_steps=1).variables
    assert distance(one, answer("gradient_ascent", variables, optimizer=optax.sgd(0.05), num_steps=1).variables) < 1e-6


def test_task_vector_negates_the_tuning_and_keeps_state(variables):
    tuned = variables.params
    for _ in range(6):
        tuned = descended(tuned, lambda params: jnp.mean(forget_losses(params)))
    expected = jax.tree.map(lambda w, v: w - 0.7 * (v - w), variables.params, tuned)
    assert distance(answer("task_vector", variables, scale=0.7).variables.params, expected) < 1e-5
    assert distance(answer("task_vector", variables, scale=0.0).variables, variables) == 0
    model = normalized_network()
    start = model.init(KEY)
    result = answer("task_vector", start, model=model)
    assert distance(result.variables.state, start.state) == 0
    assert distance(result.variables.params, start.params) > 0


# unsir


def test_noise_of_unsir_reaches_the_optimum_of_its_objective():
    # Squared error of a linear model: argmin_x penalty |x|^2 - (x w - y)^2 / 2 lies at x = -y w / (2 penalty - |w|^2).
    data, model, weights = regression_data(), linear_regression(), jnp.array([0.5, -1.0, 0.3, 0.8])
    noise = unsir.learn_noise(
        model, ju.Variables({"w": weights}), data, REQUEST, KEY, rows=4, steps=2000, learning_rate=0.02, penalty=4.0
    )
    targets = data.train.targets[jnp.array(ROWS)]
    assert sorted(noise.examples.targets.tolist()) == sorted(targets.tolist())
    expected = -noise.examples.targets[:, None] * weights / (8 - jnp.sum(weights**2))
    assert jnp.allclose(noise.examples.inputs, expected, atol=1e-3)


def test_unsir_impairs_then_repairs_on_labels_of_forgotten_rows(variables):
    result = answer("unsir", variables, impair_steps=2)
    assert result.stats["phase"].tolist() == [1, 1, 0, 0, 0, 0]
    assert answer("unsir", variables, num_steps=5).stats["phase"].tolist() == [1, 1, 0, 0, 0]
    stepwise = unsir.unlearner(network(), optax.sgd(0.1), impair_steps=1, alpha=0.6, noise_rows=5, noise_steps=3)
    params, batch, _ = one_step(stepwise, variables, variables)
    assert set(batch.forget.examples.targets.tolist()) <= set(DATA.train.targets[jnp.array(ROWS)].tolist())

    def mean(params, examples):
        return jnp.mean(ju.losses.cross_entropy(network().forward(ju.Variables(params), examples.inputs), examples))

    def loss(params):
        return 0.6 * mean(params, batch.retain.examples) + 0.4 * mean(params, batch.forget.examples)

    assert distance(params, descended(variables.params, loss)) < 1e-6


def test_unsir_without_impairing_is_finetuning(variables):
    stepwise = unsir.unlearner(network(), optax.sgd(0.1), impair_steps=0, noise_rows=6, noise_steps=3)
    plain = finetune.unlearner(network(), optax.sgd(0.1))
    same_draws = plain._replace(sample=stepwise.sample, init=lambda *call: (stepwise.init(*call)[0], plain.init(*call)[1]))
    expected = jax.jit(driver.iterate(same_draws, 6, batch_size=4))(variables, DATA, REQUEST, KEY)
    assert distance(answer("unsir", variables, impair_steps=0).variables, expected.variables) < 1e-6


def test_unsir_refuses_inputs_without_gradients(variables):
    words = ju.training_data(jnp.ones((9, 4), jnp.int32), jnp.zeros(9, jnp.int32))
    with pytest.raises(TypeError, match="must be floating-point, got int32"):
        method("unsir", network())(variables, words, lane(ju.from_indices(words, [[1]]), 0), KEY)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("l1_sparse", {"gamma": -1.0}, "gamma"),
        ("random_label", {"alpha": 1.1}, "alpha"),
        ("npo", {"beta": 0.0}, "beta"),
        ("npo", {"retain_weight": -1.0}, "retain_weight"),
        ("bad_teacher", {"alpha": -0.1}, "alpha"),
        ("bad_teacher", {"temperature": 0.0}, "temperature"),
        ("task_vector", {"scale": -1.0}, "scale"),
        ("unsir", {"impair_steps": -1}, "impair_steps"),
        ("output_perturbation", {"sigma": -1.0}, "sigma"),
    ],
)
def test_numbers_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=f"{message} must lie in"):
        method(name, network(), **options)


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("l1_sparse", "gamma", [0.01, 0.1]),
        ("random_label", "alpha", [0.2, 0.6]),
        ("npo", "beta", [0.2, 2.0]),
        ("bad_teacher", "temperature", [1.0, 2.0]),
        ("task_vector", "scale", [0.3, 0.6]),
        ("unsir", "impair_steps", [1, 3]),
        ("output_perturbation", "sigma", [0.1, 0.2]),
    ],
)
def test_their_numbers_may_be_traced(name, option, values, variables):
    swept = jax.jit(jax.vmap(lambda value: method(name, network(), **{option: value})(variables, DATA, REQUEST, KEY)))(
        jnp.array(values)
    )
    alone = jax.jit(method(name, network(), **{option: values[1]}))(variables, DATA, REQUEST, KEY)
    assert distance(lane(swept.variables, 1), alone.variables) < 1e-5
    assert distance(lane(swept.variables, 0), alone.variables) > 1e-6
