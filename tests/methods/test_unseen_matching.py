"""Unseen matching: targets against a slow twin, and models of one logit per row that must reach them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxunlearn as ju
from jaxunlearn import sampling, unseen
from tests.problems import blobs, held_out, lane, network

ROWS, CLASSES = 8, 3
KEY = jax.random.key(0)


def slow_targets(own, trained, counts, others, groups):
    """One row at a time."""
    of_own, of_trained, of_others = groups
    found = np.full(len(own), np.nan)

    def standing(x, values):
        below, above, equal = (np.sum(values < x), np.sum(values > x), np.sum(values == x))
        if equal:
            return (below + equal / 2) / len(values)
        if not below or not above:
            return (0.5 if not below else below - 0.5) / len(values)
        low, high = values[values < x].max(), values[values > x].min()
        return (below - 0.5 + (x - low) / (high - low)) / len(values)

    for i in range(len(own)):
        ours, theirs = trained[counts & (of_trained == of_own[i])], others[of_others == of_own[i]]
        if not len(ours) or not len(theirs):
            ours, theirs = trained[counts], others
        place = (np.arange(len(theirs)) + 0.5) / len(theirs)
        found[i] = min(own[i], np.interp(standing(own[i], ours), place, np.sort(theirs)))
    return found


@jax.jit
def fast_targets(own, trained, counts, others, groups):
    whole = unseen.expected_scores(own, trained, counts, others)
    return whole, unseen.expected_scores(own, trained, counts, others, groups=groups)


numbers = st.integers(-4, 4)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_targets_are_quantiles_of_places_and_never_above_a_rows_own_score(data):
    def draw(values, size):
        return np.array(data.draw(st.lists(values, min_size=size, max_size=size)))

    own, trained, others = (draw(numbers, size).astype(np.float32) / 2 for size in (4, 7, 5))
    counts = draw(st.booleans(), 7)
    counts[0] = True
    groups = tuple(draw(st.integers(0, 2), size) for size in (4, 7, 5))
    whole, by_group = fast_targets(own, trained, counts, others, groups)
    zeros = tuple(np.zeros(size, int) for size in (4, 7, 5))
    np.testing.assert_allclose(whole, slow_targets(own, trained, counts, others, zeros), atol=1e-6)
    np.testing.assert_allclose(by_group, slow_targets(own, trained, counts, others, groups), atol=1e-6)


def test_matched_scores_are_those_of_equal_rank_and_move_the_other_side():
    own, others = jnp.array([3.0, jnp.nan, 1.0, 2.0]), jnp.array([10.0, jnp.nan, 30.0, 20.0])
    counts = there = jnp.array([True, False, True, True])
    found = unseen.matched_scores(own, counts, others, there)
    np.testing.assert_array_equal(found[counts], [30, 10, 20])
    moved = jax.grad(lambda x: unseen.matched_scores(own, counts, x, there)[0])(others)
    np.testing.assert_array_equal(moved, [0, 0, 1, 0])
    few = unseen.matched_scores(jnp.array([5.0, 7.0]), jnp.ones(2, bool), jnp.array([4.0]), jnp.ones(1, bool))
    np.testing.assert_array_equal(few, [4, 4])


def table(loss, shape):
    """Every row has logits of its own, so that each can be followed to where it ends."""

    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(inputs @ variables.params["logits"].reshape(inputs.shape[1], -1))

    start = np.random.default_rng(0).normal(size=(2 * ROWS, *shape)).astype(np.float32) + 3 * np.eye(2 * ROWS, *shape)
    return ju.Model(forward, loss), ju.Variables({"logits": jnp.asarray(start, jnp.float32)})


def rows(targets):
    """Rows that are unit vectors; the second half is held out."""
    inputs = np.eye(2 * ROWS, dtype=np.float32)
    return ju.training_data(inputs[:ROWS], targets[:ROWS]), ju.Examples(jnp.asarray(inputs[ROWS:]), jnp.asarray(targets[ROWS:]))


def answer(model, variables, data, others, forgotten, target=(), **options):
    method = ju.unseen_matching(model, optax.adam(0.05), held_out=others, retain_weight=0.0, **options)
    one = lane(ju.from_indices(data, [forgotten], capacity=6), 0)._replace(target=target)
    result = ju.check(jax.jit(ju.iterate(method, num_steps=400, batch_size=6, damaged_at=np.inf))(variables, data, one, KEY))
    return result, jax.device_get(result.variables.params["logits"])


def scores_of(model, variables, part):
    return np.asarray(unseen.scores(model, model.forward(variables, part.inputs), part))


def test_margins_end_at_the_quantiles_of_held_out_rows():
    model, variables = table(ju.losses.cross_entropy, (CLASSES,))
    data, others = rows(np.arange(2 * ROWS) % CLASSES)
    forgotten = [1, 4, 6]
    result, _ = answer(model, variables, data, others, forgotten)
    own, known = (scores_of(model, variables, part)[:, 0] for part in (data.train, others))
    zeros = np.zeros(3, int), np.zeros(ROWS, int), np.zeros(ROWS, int)
    expected = slow_targets(own[forgotten], own, np.ones(ROWS, bool), known, zeros)
    np.testing.assert_allclose(scores_of(model, result.variables, data.train)[forgotten, 0], expected, atol=0.02)
    assert abs(result.stats["excess"][-1]) < 0.02


def test_real_targets_end_as_far_off_as_held_out_ones():
    model, variables = table(lambda outputs, part: jnp.sum((outputs.logits - part.targets) ** 2, axis=1), (2,))
    targets = np.asarray(variables.params["logits"]) + np.repeat([0.05, 1.0], ROWS)[:, None] * [1, -2]
    data, others = rows(targets.astype(np.float32))
    _, after = answer(model, variables, data, others, [0, 3])
    np.testing.assert_allclose(np.abs(after[[0, 3]] - targets[[0, 3]]), [[1, 2], [1, 2]], atol=0.05)


def test_every_label_of_many_is_matched_by_itself():
    def loss(outputs, part):
        return jnp.sum(optax.sigmoid_binary_cross_entropy(outputs.logits, part.targets), axis=1)

    model, variables = table(loss, (2,))
    targets = (np.arange(4 * ROWS).reshape(-1, 2) % 3 == 0).astype(np.int32)
    signs = 2 * targets - 1
    variables = ju.Variables({"logits": jnp.asarray(signs * np.repeat([5.0, 1.0], ROWS)[:, None] * [1, 0.5], jnp.float32)})
    data, others = rows(targets)
    _, after = answer(model, variables, data, others, [0, 5])
    np.testing.assert_allclose((signs[:ROWS] * after[:ROWS])[[0, 5]], [[1, 0.5], [1, 0.5]], atol=0.02)


def test_a_forgotten_class_is_told_as_the_other_classes():
    model, variables = table(ju.losses.cross_entropy, (CLASSES,))
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1] * 2)
    data, others = rows(labels)
    before = np.asarray(jax.nn.softmax(variables.params["logits"]))
    _, after = answer(model, variables, data, others, [2, 5, 0])  # the whole of class 2, and one row besides
    found = np.asarray(jax.nn.softmax(after))
    for row in (2, 5):
        np.testing.assert_allclose(found[row, :2], before[row, :2] / before[row, :2].sum(), atol=0.01)
    assert found[0, 2] > 1e-3  # single rows are not kept from the class
    np.testing.assert_allclose(after[[1, 3, 4, 6, 7]], np.asarray(variables.params["logits"])[[1, 3, 4, 6, 7]], atol=1e-6)


@pytest.mark.parametrize(
    ("forgotten", "removed", "target", "expected"),
    [
        ([2, 5], [], (), [False, False, True]),
        ([2], [], (), [False, False, False]),
        ([2], [5], (), [False, False, True]),  # the other row of the class had gone before
        ([2, 2, 99], [], (), [False, False, False]),
        ([2], [], [False, True, False], [False, True, False]),
        ([], [2, 5], (), [False, False, False]),  # a class without rows is not this request's
    ],
)
def test_classes_of_which_no_row_stays(forgotten, removed, target, expected):
    data, _ = rows(np.array([0, 1, 2, 0, 1, 2, 0, 1] * 2))
    data = data._replace(present=data.present.at[np.array(removed, int)].set(0))
    indices = np.zeros(4, int)
    indices[: len(forgotten)] = forgotten
    request = ju.ForgetRequest(indices, (np.arange(4) < len(forgotten)).astype(np.float32), np.array(target) if target else ())
    assert sampling.classes_gone(data, request, CLASSES).tolist() == expected


def test_labels_of_few_bits_are_labels():
    model, variables = table(ju.losses.cross_entropy, (CLASSES,))
    found = [
        answer(model, variables, *rows((np.arange(2 * ROWS) % CLASSES).astype(dtype)), [1, 4, 6], by_class=True)[1]
        for dtype in (np.int32, np.uint8)
    ]
    np.testing.assert_array_equal(*found)


def test_counts_are_no_classes_and_need_a_score():
    def loss(outputs, part):
        return jnp.exp(outputs.logits) - part.targets * outputs.logits

    model = ju.Model(lambda v, x, **_: ju.Outputs(x @ v.params["w"]), loss)
    data, others = rows(np.arange(2 * ROWS) % 5)
    variables = ju.Variables({"w": jnp.zeros(2 * ROWS)})
    with pytest.raises(ValueError, match=r"of a poisson likelihood: pass score="):
        answer(model, variables, data, others, [0, 3])
    method = ju.unseen_matching(
        model, optax.sgd(0.1), held_out=others, score=lambda outputs, part: -loss(outputs, part)[:, None]
    )
    one = lane(ju.from_indices(data, [[0, 3]]), 0)
    assert jax.jit(ju.iterate(method, num_steps=3, batch_size=4))(variables, data, one, KEY).status == ju.Status.OK
    flat = ju.unseen_matching(model, optax.sgd(0.1), held_out=others, score=loss)
    with pytest.raises(ValueError, match=r"score must return \[b, m\]"):
        jax.eval_shape(ju.iterate(flat, num_steps=3, batch_size=4), variables, data, one, KEY)


def test_rows_that_are_already_known_as_unseen_ones_are_let_be():
    model, data = network(), blobs()
    variables = model.init(KEY)
    one = lane(ju.from_indices(data, [[3, 4, 50]], capacity=4), 0)
    method = ju.unseen_matching(model, optax.sgd(0.1), held_out=data.train, retain_weight=0.0)
    result = jax.jit(ju.iterate(method, num_steps=5, batch_size=4))(variables, data, one, KEY)
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=2e-4), result.variables.params, variables.params
    )  # rounding of shares


def test_bad_input_is_told():
    model, data = network(), blobs()
    call = model.init(KEY), data, lane(ju.from_indices(data, [[1, 2]]), 0), KEY

    def run(held_out, model=model, call=call, **options):
        method = ju.unseen_matching(model, optax.sgd(0.1), held_out=held_out, **options)
        jax.eval_shape(ju.iterate(method, num_steps=1, batch_size=4), *call)

    with pytest.raises(TypeError, match="held_out must be Examples"):
        run(tuple(held_out()))
    with pytest.raises(ValueError, match="rows of held_out have the form"):
        run(ju.Examples(np.zeros((5, 3), np.float32), np.zeros(5, int)))
    with pytest.raises(ValueError, match="held_out holds no row"):
        run(jax.tree.map(lambda x: x[:0], held_out()))
    with pytest.raises(ValueError, match="retain_weight"):
        run(held_out(), retain_weight=-1.0)
    real = ju.Model(lambda v, x, **_: ju.Outputs(x @ v.params["body"]), lambda outputs, part: jnp.sum(outputs.logits, axis=1))
    numbers = data._replace(train=data.train._replace(targets=jnp.zeros((60, 8))))
    with pytest.raises(ValueError, match="by_class=True"):
        run(ju.Examples(held_out().inputs, jnp.zeros((20, 8))), real, (call[0], numbers, *call[2:]), by_class=True)
    tokens = data._replace(train=data.train._replace(targets=jnp.zeros((60, 2), int)))
    with pytest.raises(ValueError, match="pass score="):
        run(ju.Examples(held_out().inputs, jnp.zeros((20, 2), int)), real, (call[0], tokens, *call[2:]))


def test_held_out_rows_keep_their_scores():
    """A bias is shared: pulling one row down by it would take everything else along."""

    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(inputs @ variables.params["logits"] + variables.params["bias"])

    model, variables = table(ju.losses.cross_entropy, (2,))
    model = ju.Model(forward, ju.losses.cross_entropy)
    start = jnp.concatenate([jnp.tile(jnp.array([6.0, 0]), (ROWS, 1)), jnp.tile(jnp.array([1.0, 0]), (ROWS, 1))])
    variables = ju.Variables({"logits": start, "bias": jnp.zeros(2)})
    data, others = rows(np.zeros(2 * ROWS, int))
    drift = {}
    for weight in (0.0, 5.0):
        method = ju.unseen_matching(model, optax.adam(0.05), held_out=others, retain_weight=weight)
        one = lane(ju.from_indices(data, [[0, 1]]), 0)
        run = jax.jit(ju.iterate(method, num_steps=60, batch_size=8, damaged_at=np.inf))
        drift[weight] = float(run(variables, data, one, KEY).stats["drift"][-1])
    assert drift[0.0] < -1
    assert abs(drift[5.0]) < 0.2


def test_a_forgotten_class_ends_where_held_out_rows_of_it_are():
    """Rows and held-out rows share what tells the class; what is left is what the model knows of the rows themselves."""

    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(inputs @ variables.params["own"] + inputs @ variables.params["shared"] @ variables.params["class"])

    model, labels = ju.Model(forward, ju.losses.cross_entropy), np.arange(2 * ROWS) % 2
    own = 2 * jax.nn.one_hot(labels, 2) * (jnp.arange(2 * ROWS) < ROWS)[:, None]
    shared = {"shared": jax.nn.one_hot(labels, 2), "class": 4 * jnp.eye(2)}
    data, others = rows(labels)
    method = ju.unseen_matching(model, optax.adam(0.05), held_out=others, retain_weight=1.0)
    one = lane(ju.from_classes(data, [[0]], num_classes=2), 0)
    run = jax.jit(ju.iterate(method, num_steps=200, batch_size=8, damaged_at=np.inf))
    result = run(ju.Variables({"own": own, **shared}), data, one, KEY)
    left, theirs = (scores_of(model, result.variables, part)[labels[:ROWS] == 0, 0] for part in (data.train, others))
    assert np.all(left < -3)
    np.testing.assert_allclose(np.mean(left), np.mean(theirs), atol=0.3)


@pytest.mark.parametrize("by_class", [False, True])
def test_targets_do_not_depend_on_the_form_of_a_request(by_class):
    model, data = network(), blobs()
    method = ju.unseen_matching(model, optax.sgd(0.05), held_out=held_out(), by_class=by_class)
    found = []
    for capacity in (4, 7, 16):
        one = lane(ju.from_indices(data, [[3, 4, 50, 7]], capacity=capacity), 0)
        found.append(jax.jit(method.init)(model.init(KEY), data, one, KEY)[0].wanted[:4])
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    np.testing.assert_allclose(found[0], found[2], atol=1e-4)


def test_labels_as_floats_are_labels_of_a_bernoulli_law_or_refused():
    inputs, bits = jnp.eye(6), np.array([0, 1, 1, 0, 1, 0])
    outputs = ju.Outputs(jnp.array([[2.0], [2.0], [-1.0], [-1.0], [0.5], [0.5]]))
    model = ju.Model(None, lambda o, part: optax.sigmoid_binary_cross_entropy(o.logits[:, 0], part.targets))
    found = [unseen.scores(model, outputs, ju.Examples(inputs, bits.astype(kind))) for kind in (np.int32, np.float32)]
    np.testing.assert_allclose(*found)
    one_hot = ju.Examples(inputs, np.eye(3, dtype=np.float32)[bits])
    soft = ju.Model(None, lambda o, part: -jnp.sum(part.targets * jax.nn.log_softmax(o.logits), axis=1))
    with pytest.raises(ValueError, match="all of them 0 or 1: pass score="):
        unseen.scores(soft, ju.Outputs(jnp.zeros((6, 3))), one_hot)


def test_held_out_labels_are_classes():
    model, data = network(), blobs()
    strange = held_out()._replace(targets=jnp.full(20, -1))
    method = ju.unseen_matching(model, optax.sgd(0.05), held_out=strange)
    with pytest.raises(ValueError, match=r"held_out has labels \[-1\]"):
        jax.eval_shape(method.init, model.init(KEY), data, lane(ju.from_indices(data, [[3]]), 0), KEY)
