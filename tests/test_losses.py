"""Losses and transformations against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

import jaxunlearn as ju

RNG = np.random.default_rng(0)
FIRST, SECOND = RNG.normal(size=(2, 5, 3)).astype(np.float32) * 3
TEMPERATURE = 0.7


def test_cross_entropy():
    labels = np.array([0, 2, 1, 1, 0])
    values = ju.losses.cross_entropy(ju.Outputs(jnp.asarray(FIRST)), ju.Examples((), jnp.asarray(labels)))
    assert np.allclose(values, -log_softmax(FIRST, axis=1)[np.arange(5), labels], atol=1e-6)


def test_squared_error():
    values = ju.losses.squared_error(ju.Outputs(jnp.asarray(FIRST)), ju.Examples((), jnp.asarray(SECOND)))
    assert np.allclose(values, 0.5 * ((FIRST - SECOND) ** 2).sum(1), atol=1e-5)
    with pytest.raises(ValueError, match="one shape"):
        ju.losses.squared_error(ju.Outputs(jnp.ones((5, 1))), ju.Examples((), jnp.ones(5)))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_divergence(temperature):
    expected = temperature**2 * entropy(softmax(FIRST / temperature, axis=1), softmax(SECOND / temperature, axis=1), axis=1)
    assert np.allclose(ju.losses.kl_divergence(FIRST, SECOND, temperature=temperature), expected, rtol=1e-4)
    assert np.allclose(ju.losses.kl_divergence(FIRST, FIRST + 5, temperature=temperature), 0, atol=1e-5)


def test_distillation_leaves_out_what_is_hidden():
    labels, hidden = np.array([0, 1, 2, 0, 1]), np.zeros((5, 3), bool)
    hidden[np.arange(5), labels] = True
    hidden[4] = [True, True, False]
    predicted = np.where(hidden, 0, softmax(FIRST / 2, axis=1))
    predicted /= predicted.sum(1, keepdims=True)

    @jax.jit
    def distilled(student):
        def total(student):
            values = ju.losses.distil_without(FIRST, student, hidden, temperature=2.0)
            return values.sum(), values

        return jax.grad(total, has_aux=True)(student)

    slope, found = distilled(jnp.asarray(SECOND))
    np.testing.assert_allclose(found, entropy(predicted, softmax(SECOND, axis=1), axis=1), rtol=1e-5)
    np.testing.assert_allclose(slope, softmax(SECOND, axis=1) - predicted, atol=1e-6)
    # 0 exactly at the prediction, whose slope in the logits is the difference of the distributions: both sum to 1
    at_prediction = jnp.maximum(jnp.log(jnp.asarray(predicted)), -80.0)
    np.testing.assert_allclose(distilled(at_prediction)[1], 0, atol=1e-5)
    whole = ju.losses.distil_without(FIRST, SECOND, hidden, odds=1.0)
    np.testing.assert_allclose(whole, ju.losses.kl_divergence(FIRST, SECOND), atol=1e-6)


def test_jensen_shannon():
    expected = jensenshannon(softmax(FIRST, axis=1), softmax(SECOND, axis=1), axis=1) ** 2
    assert np.allclose(ju.losses.jensen_shannon(FIRST, SECOND), expected, rtol=1e-3, atol=1e-6)
    apart = ju.losses.jensen_shannon(jnp.array([[200.0, 0.0]]), jnp.array([[0.0, 200.0]]))
    assert np.allclose(apart, np.log(2), atol=1e-6)
    certain = jnp.array([[0.0, -jnp.inf]])
    assert ju.losses.jensen_shannon(certain, certain).tolist() == [0.0]


def test_jensen_shannon_has_a_gradient_where_classes_are_ruled_out():
    ruled_out, others = jnp.array([[1.0, -jnp.inf, 0.5]]), jnp.array([[0.2, 0.1, -jnp.inf]])
    for first, second in ((ruled_out, others), (others, ruled_out), (ruled_out, ruled_out + 0.1)):
        slope = jax.grad(lambda x, y=second: jnp.sum(ju.losses.jensen_shannon(x, y)))(first)
        finite = jnp.maximum(first, -60), jnp.maximum(second, -60)  # as good as ruled out
        expected = jax.grad(lambda x, y=finite[1]: jnp.sum(ju.losses.jensen_shannon(x, y)))(finite[0])
        np.testing.assert_allclose(slope, expected, atol=1e-6)


def rows_of(count, width=5):
    rows = RNG.normal(size=(count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_hand(z, y, others, labels, weights, denominator):
    """The loss row by row, and its slope in z, in NumPy."""
    values, slopes = [], []
    for row, label in zip(z, y, strict=True):
        same, different = others[(labels == label) & (weights > 0)], others[(labels != label) & (weights > 0)]
        pull = (different @ row / TEMPERATURE).mean()
        slope = -different.mean(0) / TEMPERATURE
        scale = (len(same) + len(different)) / len(different) if denominator == "official" else 1
        if len(same):
            terms = np.exp(same @ row / TEMPERATURE)
            push = np.log(terms.sum())
            slope = slope + scale * (terms / terms.sum()) @ same / TEMPERATURE
        else:
            push = np.log(len(different))
        values.append(scale * push - pull)
        slopes.append(slope)
    return np.array(values), np.array(slopes)


@pytest.mark.parametrize("denominator", ["paper", "official"])
@pytest.mark.parametrize("form", ["class", "sample"])
def test_contrast_and_its_slope_have_their_closed_form(denominator, form):
    z, others = rows_of(4), rows_of(9)
    y, labels = np.array([0, 1, 2, 0]), np.array([0, 0, 1, 1, 2, 2, 3, 3, 0])
    if form == "class":  # nobody is of the class that is forgotten
        y, labels = np.zeros(4, int), np.array([1, 1, 1, 2, 2, 2, 3, 3, 3])
    weights = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0.0])
    with jax.enable_x64(True):
        arguments = tuple(map(jnp.asarray, (y, others, labels, weights)))

        def mean(z):
            values = ju.losses.class_contrast(z, *arguments, temperature=TEMPERATURE, denominator=denominator)
            return values.mean(), values

        slopes, values = jax.jit(jax.grad(mean, has_aux=True))(jnp.asarray(z))
    expected, expected_slopes = by_hand(z, y, others, labels, weights, denominator)
    np.testing.assert_allclose(values, expected, atol=1e-12)
    np.testing.assert_allclose(slopes, expected_slopes / 4, atol=1e-12)
    if form == "class":
        np.testing.assert_allclose(slopes, np.tile(-others[:7].mean(0) / (4 * TEMPERATURE), (4, 1)), atol=1e-12)


def test_slopes_reach_the_retained_rows_too():
    z, others, weights = rows_of(1), rows_of(3), jnp.ones(3)
    slope = jax.jit(
        jax.grad(lambda others: ju.losses.class_contrast(z, jnp.array([0]), others, jnp.array([1, 2, 1]), weights)[0])
    )(others)
    np.testing.assert_allclose(slope, np.tile(-z / 3, (3, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "weights"), [([1, 1, 2], [1, 1, 1]), ([0, 0, 0], [1, 1, 1]), ([0, 1, 2], [0, 0, 0]), ([0, 0, 1], [0, 0, 1])]
)
def test_absent_classes_give_no_inf_and_no_nan(labels, weights):
    for denominator in ("paper", "official"):

        def mean(both, denominator=denominator):
            z, others = map(ju.losses.unit_rows, both)
            labelled = (jnp.zeros(2, int), others, jnp.array(labels), jnp.array(weights))
            return ju.losses.class_contrast(z, *labelled, denominator=denominator).sum()

        value, slopes = jax.jit(jax.value_and_grad(mean))((jnp.zeros((2, 4)).at[0].set(3.0), jnp.eye(3, 4)))
        assert np.isfinite(value)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in slopes)
        if not any(weights) or labels == [0, 0, 0]:
            assert value == 0
            assert not any(bool(jnp.any(x)) for x in slopes)


def test_unit_rows():
    rows = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32).at[1].set(0)
    units = ju.losses.unit_rows(rows)
    np.testing.assert_allclose(jnp.linalg.norm(units, axis=1), [1, 0, 1], atol=1e-6)
    slopes = jax.jit(jax.jacobian(ju.losses.unit_rows))(rows)
    assert not jnp.any(slopes[1])
    assert bool(jnp.all(jnp.isfinite(slopes)))


def test_an_unknown_denominator_is_refused():
    with pytest.raises(ValueError, match='must be "paper" or "official"'):
        ju.losses.class_contrast(jnp.eye(2), jnp.arange(2), jnp.eye(2), jnp.arange(2), jnp.ones(2), denominator="code")


def test_ascend_climbs_what_the_optimizer_descends():
    gradient, params = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.zeros(2)}
    up = optax.chain(ju.transforms.ascend(), optax.adam(0.1))
    down = optax.adam(0.1)
    climbed, _ = up.update(gradient, up.init(params), params)
    descended, _ = down.update(gradient, down.init(params), params)
    assert jnp.array_equal(climbed["w"], -descended["w"])


def test_keep_survives_momentum_and_weight_decay():
    params = {"body": jnp.ones(2), "head": jnp.ones(3)}

    def move(mask):
        optimizer = optax.chain(optax.adamw(0.1, weight_decay=0.5), ju.transforms.keep(mask))
        state, current = optimizer.init(params), params
        for _ in range(3):
            updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, current)
            current = optax.apply_updates(current, updates)
        return current

    moved = move({"body": 0.0, "head": 1.0})
    assert moved["body"].tolist() == [1, 1]
    assert (moved["head"] < 1).all()
    still = ju.transforms.keep({"w": 0.0})
    assert still.update({"w": jnp.array([jnp.nan, jnp.inf])}, still.init({"w": jnp.ones(2)}))[0]["w"].tolist() == [0, 0]
    traced = jax.vmap(lambda weight: move({"body": weight, "head": 1.0 - weight}))(jnp.array([0.0, 1.0]))
    assert traced["body"][0].tolist() == [1, 1]
    assert traced["head"][1].tolist() == [1, 1, 1]
