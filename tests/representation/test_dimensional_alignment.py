"""Eigenspaces, the alignment and its slope, the distillation, and the phases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax
from scipy.stats import entropy

import jaxunlearn as ju
from jaxunlearn import losses, risk
from jaxunlearn.features import Eigenspace, alignment, eigenspace
from jaxunlearn.representation import dimensional_alignment as module
from tests.problems import blobs, distance, forward, lane, network

KEY = jax.random.key(7)
DATA, MODEL = blobs(), network()
VARIABLES = MODEL.init(jax.random.key(1))
REQUEST = lane(ju.from_indices(DATA, [[3, 4, 5, 30]]), 0)
LOOP = {"num_steps": 6, "batch_size": 4}
RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.normal(size=(6, 6)))[0].astype(np.float32)
SPACE = Eigenspace(jnp.asarray(BASIS.T), 1.0 * (jnp.arange(6) < 2))  # of the first two columns


def answer(method, **options):
    return jax.jit(method(MODEL, optax.sgd(0.1), **{**LOOP, **options}))(VARIABLES, DATA, REQUEST, KEY)


def rows_in(columns, count=5):
    return (RNG.normal(size=(count, len(columns))) @ BASIS[:, columns].T).astype(np.float32)


def score(features, space=SPACE, weights=None):
    features = jnp.asarray(features)
    return alignment(features, jnp.ones(len(features)) if weights is None else weights, space)


def test_alignment_is_1_inside_and_0_outside():
    assert float(score(rows_in([0, 1]))) == pytest.approx(1, abs=1e-6)
    assert float(score(rows_in([2, 5]))) == pytest.approx(0, abs=1e-6)
    assert float(score(np.zeros((3, 6), np.float32))) == 1
    space = Eigenspace(jnp.eye(64), 1.0 * (jnp.arange(64) < 16))
    # of a quotient of chi-squares: sd = sqrt(2 k (D - k) / D^2 / (n D + 2)) = 0.0024
    assert float(score(RNG.normal(size=(2000, 64)).astype(np.float32), space)) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(("rows", "features"), [(40, 6), (4, 6)])
@pytest.mark.parametrize("options", [{"energy": 0.7}, {"energy": 0.95}, {"rank": 2}])
def test_the_eigenspace_is_that_of_the_second_moment(rows, features, options):
    retained = (RNG.normal(size=(rows, features)) * np.array([5, 3, 2, 1, 0.5, 0.1])).astype(np.float32)
    forgotten = RNG.normal(size=(7, features)).astype(np.float32)
    values, vectors = np.linalg.eigh(retained.T.astype(float) @ retained / rows)
    values, vectors = values[::-1], vectors[:, ::-1]
    cut = 2 if "rank" in options else 1 + int(np.argmax(np.cumsum(values) / values.sum() >= options["energy"]))
    expected = np.sum((forgotten @ vectors[:, :cut]) ** 2) / np.sum(forgotten**2)
    space = eigenspace(retained, jnp.ones(rows), **options)
    assert int(space.shares.sum()) == cut
    assert float(score(forgotten, space)) == pytest.approx(expected, rel=1e-5)


def test_scale_and_rotation_do_not_matter_and_the_soft_form_has_this_limit():
    retained, forgotten = rows_in([0, 1], 20), RNG.normal(size=(7, 6)).astype(np.float32)
    turn = np.linalg.qr(RNG.normal(size=(6, 6)))[0].astype(np.float32)
    ones = jnp.ones(20)
    plain = float(score(forgotten, eigenspace(retained, ones, energy=1.0)))
    assert float(score(3 * forgotten, eigenspace(7 * retained, ones, energy=1.0))) == pytest.approx(plain, rel=1e-5)
    turned = eigenspace(retained @ turn, ones, energy=1.0)
    assert int(turned.shares.sum()) == 2  # directions that hold rounding errors only are none
    assert float(score(forgotten @ turn, turned)) == pytest.approx(plain, rel=1e-4)
    moment = retained.T.astype(float) @ retained / 20
    inside = forgotten @ moment @ np.linalg.inv(moment + 1e-9 * np.eye(6))
    assert np.sum(inside * forgotten) / np.sum(forgotten**2) == pytest.approx(plain, rel=1e-4)


def test_the_slope_of_the_alignment():
    z = RNG.normal(size=(5, 6)).astype(np.float32)
    slope = jax.grad(lambda z: 1 - score(z))(jnp.asarray(z))
    inside = z @ BASIS[:, :2] @ BASIS[:, :2].T
    np.testing.assert_allclose(slope, -2 * (inside - float(score(z)) * z) / np.sum(z**2), atol=1e-6)
    assert float(jnp.abs(jax.grad(score)(jnp.asarray(rows_in([0, 1])))).max()) < 1e-6
    assert not jnp.any(jax.grad(score)(jnp.zeros((2, 6))))
    values, current = [], jnp.asarray(z)
    for _ in range(20):
        values.append(float(score(current)))
        current = current + 2.0 * jax.grad(score)(current)
    assert np.all(np.diff(values) > 0)


def test_no_slope_flows_through_the_eigenspace():
    def of_retained(retained):
        return score(RNG.normal(size=(3, 6)), eigenspace(retained, jnp.ones(4)))

    assert not jnp.any(jax.grad(of_retained)(jnp.ones((4, 6))))  # equal singular values, too


def test_rows_that_do_not_count_do_not_matter():
    z = RNG.normal(size=(5, 6)).astype(np.float32)
    padded = jnp.concatenate([jnp.asarray(z), jnp.full((3, 6), jnp.nan)])
    weights = jnp.array([1, 1, 1, 1, 1, 0, 0, 0.0])
    assert float(score(padded, SPACE, weights)) == pytest.approx(float(score(z)), rel=1e-6)
    slope = jax.grad(lambda z: score(z, SPACE, weights))(padded)
    np.testing.assert_allclose(slope[:5], jax.grad(score)(jnp.asarray(z)), atol=1e-7)
    assert not jnp.any(slope[5:])
    for options in ({"energy": 0.8}, {"rank": 3}):
        one, other = eigenspace(padded, weights, **options), eigenspace(jnp.asarray(z), jnp.ones(5), **options)
        probe = rows_in([0, 3, 5])
        assert float(score(probe, one)) == pytest.approx(float(score(probe, other)), rel=1e-5)
        assert int(one.shares.sum()) == int(other.shares.sum())
    nothing = eigenspace(padded, jnp.zeros(8))
    assert not jnp.any(nothing.shares)
    assert float(score(z, nothing)) == 0


def test_distillation_leaves_out_the_own_class():
    teacher, student = RNG.normal(size=(2, 6, 5)).astype(np.float32) * 2
    labels = np.array([0, 1, 2, 3, 4, 0])
    belief = softmax(teacher / 2, axis=1)
    belief[np.arange(6), labels] = 0
    belief /= belief.sum(1, keepdims=True)
    found = module.distil_without_own_class(teacher, jnp.asarray(student), jnp.asarray(labels), temperature=2.0)
    np.testing.assert_allclose(found, entropy(belief, softmax(student, axis=1), axis=1), rtol=1e-5)
    # 0 exactly at the belief, whose slope in the logits is the difference of the distributions: they sum to 1, q_y is 0
    at_belief = jnp.log(jnp.asarray(belief)).at[np.arange(6), labels].set(-80.0)
    np.testing.assert_allclose(
        module.distil_without_own_class(teacher, at_belief, jnp.asarray(labels), temperature=2.0), 0, atol=1e-5
    )

    def total(student):
        return module.distil_without_own_class(teacher, student, jnp.asarray(labels), temperature=2.0).sum()

    slope = jax.grad(total)(jnp.asarray(student))
    np.testing.assert_allclose(slope, softmax(student, axis=1) - belief, atol=1e-6)


def test_distillation_with_the_own_class_is_the_divergence():
    teacher, student = RNG.normal(size=(2, 6, 5)).astype(np.float32)
    labels = jnp.array([0, 1, 2, 3, 4, 0])
    whole = module.distil_without_own_class(teacher, student, labels, own_class=1.0)
    np.testing.assert_allclose(whole, losses.kl_divergence(teacher, student), atol=1e-6)


def test_without_rounds_it_is_finetuning():
    assert distance(answer(module.dimensional_alignment, rounds=0).variables, answer(ju.finetune).variables) == 0


def test_phases_alternate_and_recovery_comes_last():
    def phases(**options):
        return answer(module.dimensional_alignment, **options).stats["phase"].tolist()

    assert phases() == [1, 0, 1, 0, 1, 0]
    assert phases(num_steps=10, forget_steps=2, recover_steps=1) == [1, 1, 0, 1, 1, 0, 1, 1, 0, 0]
    assert phases(num_steps=7, rounds=1, forget_steps=2) == [1, 1, 0, 0, 0, 0, 0]
    assert phases(num_steps=7, rounds=jnp.int32(2)) == [1, 0, 1, 0, 0, 0, 0]


def test_a_forget_batch_has_retained_rows():
    stepwise = module.unlearner(MODEL, optax.sgd(0.1), rounds=1)
    split = risk.split(DATA, REQUEST, KEY)
    first, second = (stepwise.sample(split, (), jnp.int32(step), KEY, risk.BatchSizes(4, 6)) for step in (0, 1))
    assert first.forget.weights.tolist() == [1.0] * 4
    assert second.forget.weights.tolist() == [0.0] * 4
    assert first.retain.weights.tolist() == second.retain.weights.tolist() == [1.0] * 6
    plain = risk.uniform(split, (), jnp.int32(0), KEY, risk.BatchSizes(4, 6))
    assert first.retain.slots.tolist() == plain.retain.slots.tolist()


def test_steps_follow_their_objectives():
    nudged = jax.tree.map(lambda x: x + 0.3, VARIABLES)
    options = {"alignment_weight": 2.0, "feature_weight": 0.4, "temperature": 1.5, "energy": 0.8}
    stepwise = module.unlearner(MODEL, optax.sgd(0.1), rounds=1, **options)
    context, state = stepwise.init(VARIABLES, DATA, REQUEST, KEY)
    state = state._replace(variables=nudged)
    split = risk.split(DATA, REQUEST, KEY)
    step_once = jax.jit(stepwise.step)
    for step in (0, 1):
        batch = stepwise.sample(split, context, jnp.int32(step), KEY, risk.BatchSizes(4, 10))
        after, stats = step_once(state, context, batch, KEY)
        forget, retain = batch.forget.examples, batch.retain.examples
        retained = np.asarray(forward(nudged, retain.inputs).features["penultimate"], float)
        values, vectors = np.linalg.eigh(retained.T @ retained)
        cut = 1 + int(np.argmax(np.cumsum(values[::-1]) / values.sum() >= 0.8))
        projector = jnp.asarray(vectors[:, ::-1][:, :cut] @ vectors[:, ::-1][:, :cut].T, jnp.float32)
        belief = np.array(softmax(np.asarray(forward(VARIABLES, forget.inputs).logits) / 1.5, axis=1))
        belief[np.arange(4), np.asarray(forget.targets)] = 0
        belief = jnp.asarray(belief / belief.sum(1, keepdims=True))
        inside = jnp.where(belief > 0, belief, 1)

        def loss(params, step=step, forget=forget, retain=retain, projector=projector, belief=belief, inside=inside):
            if step == 0:
                outputs = forward(ju.Variables(params), forget.inputs)
                z = outputs.features["penultimate"]
                kl = jnp.sum(belief * (jnp.log(inside) - jax.nn.log_softmax(outputs.logits)), -1).mean()
                return kl + 2 * (1 - jnp.sum((z @ projector) * z) / jnp.sum(z**2))
            outputs, before = (forward(v, retain.inputs) for v in (ju.Variables(params), VARIABLES))
            away = outputs.features["penultimate"] - before.features["penultimate"]
            return ju.losses.cross_entropy(outputs, retain).mean() + 0.4 * jnp.sum(away**2, -1).mean()

        value, slope = jax.jit(jax.value_and_grad(loss))(nudged.params)
        assert float(stats["loss"]) == pytest.approx(float(value), rel=1e-5)
        assert distance(after.variables.params, jax.tree.map(lambda p, g: p - 0.1 * g, nudged.params, slope)) < 1e-6


def test_every_number_may_be_traced():
    names = ("alignment_weight", "feature_weight", "temperature", "own_class", "energy", "rounds", "forget_steps")

    def at(values):
        return answer(module.dimensional_alignment, **dict(zip(names, values, strict=True))).variables

    columns = [(1.0, 2.0), (0.0, 0.5), (1.0, 2.0), (0.0, 0.3), (0.9, 0.5), (2, 9), (1, 2)]
    swept = jax.jit(jax.vmap(at))(tuple(map(jnp.array, columns)))
    expected = at((1.0, 0.0, 1.0, 0.0, 0.9, 2, 1)), at((2.0, 0.5, 2.0, 0.3, 0.5, 2, 2))  # there is room for two rounds
    for position in range(2):
        assert distance(lane(swept, position), expected[position]) < 1e-5


def test_bad_input_gets_a_clear_error():
    for options, message in (
        ({"alignment_weight": -1.0}, "alignment_weight must lie in"),
        ({"energy": 1.5}, "energy must lie in"),
        ({"own_class": -0.1}, "own_class must lie in"),
        ({"forget_steps": 0}, "forget_steps must lie in"),
        ({"rounds": 4}, "rounds must lie in"),
        ({"forget_steps": 6}, "forget_steps \\+ recover_steps"),
        ({"rank": 0}, "rank must be an integer"),
        ({"layer": "conv"}, "it has: penultimate"),
    ):
        with pytest.raises(ValueError, match=message):
            answer(module.dimensional_alignment, **options)


def test_a_forgotten_class_moves_into_the_space_of_the_others_and_is_unlearned():
    data = blobs(300, seed=4)
    train = ju.retrain(MODEL, optax.sgd(0.3), num_steps=300, batch_size=32)
    request = lane(ju.from_classes(data, [[1]]), 0)
    both = jax.jit(ju.batched(train, in_axes=(None, None, 0, None), chunk=2))
    empty = request._replace(weights=jnp.zeros_like(request.weights), target=jnp.zeros(3, bool))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), empty, request)
    original, retrained = (lane(both(MODEL.init(KEY), data, stacked, KEY).variables, position) for position in (0, 1))
    unlearn = module.dimensional_alignment(MODEL, optax.sgd(0.1), num_steps=100, batch_size=32)
    unlearned = ju.check(jax.jit(unlearn)(original, data, request, KEY)).variables
    unaligned = module.dimensional_alignment(MODEL, optax.sgd(0.1), num_steps=100, batch_size=32, alignment_weight=0.0)
    without = jax.jit(unaligned)(original, data, request, KEY).variables
    forgotten = np.asarray(data.train.targets) == 1

    def looked(variables):
        outputs = forward(variables, data.train.inputs)
        features, right = outputs.features["penultimate"], np.argmax(outputs.logits, -1) == np.asarray(data.train.targets)
        space = eigenspace(features, jnp.asarray(~forgotten, jnp.float32), energy=0.95)
        inside = alignment(features, jnp.asarray(forgotten, jnp.float32), space)
        return float(inside), right[forgotten].mean(), right[~forgotten].mean()

    before, after, aim = looked(original), looked(unlearned), looked(retrained)
    assert before[0] < aim[0]  # what the paper observes
    assert max(before[0], looked(without)[0]) < after[0]
    assert before[1] > 0.8
    assert after[1] < 0.1
    assert after[2] > aim[2] - 0.02
