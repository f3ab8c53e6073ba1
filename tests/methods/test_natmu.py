"""Masks, which images are mixed under which labels, and how often each hybrid is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from experiments.common.study import overfitted, random_requests
from jaxunlearn import sampling
from jaxunlearn.loop.descend import GradientState
from jaxunlearn.methods.natmu import masks
from tests.methods.runs import answer, stepped, sweep_equals_single_runs
from tests.problems import blobs, distance, headed, lane, network

ROWS, CLASSES, SHAPE, SLOTS = 90, 6, (3, 5, 2), 8
KEY, SGD = jax.random.key(5), optax.sgd(0.1)
FORGOTTEN = [0, 7, 13, 22, 41, 80]


def scene(rows=ROWS, classes=CLASSES, seed=0):
    """Images of random pixels, labels in no order, and a linear classifier."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (rows, *SHAPE)).astype(np.float32)
    data = ju.training_data(images, rng.permutation(np.arange(rows) % classes).astype(np.int32))
    return data, ju.Variables({"w": jnp.asarray(rng.normal(size=(int(np.prod(SHAPE)), classes)).astype(np.float32) / 100)})


def forward(variables, inputs, *, train=False, key=None):
    return ju.Outputs(inputs.reshape(inputs.shape[0], -1).astype(jnp.float32) @ variables.params["w"])


MODEL = ju.Model(forward, ju.losses.cross_entropy)
DATA, VARIABLES = scene()
LABELS = np.asarray(DATA.train.targets)


def asking(rows, target=()):
    rows = list(rows)
    indices = np.zeros(max(SLOTS, len(rows)), np.int32)
    indices[: len(rows)] = rows
    return ju.ForgetRequest(jnp.asarray(indices), jnp.asarray(np.arange(len(indices)) < len(rows), jnp.float32), target)


@jax.jit
def program(variables, data, request, key, delta, step):
    method = ju.natmu(MODEL, SGD, delta=delta)
    context, _ = method.init(variables, data, request, key)
    return context, method.sample(sampling.split(data, request, key), context, step, key, sampling.BatchSizes(24, 5))


def drawn(rows=FORGOTTEN, *, data=DATA, delta=0.0, named=()):
    """The hybrids of a request as indices, and a batch that has each of those of six rows once."""
    target = jnp.asarray(np.isin(np.arange(CLASSES), named))
    return jax.device_get(program(VARIABLES, data, asking(rows, target), KEY, delta, 0))


def test_masks_follow_the_paper_at_even_squares():
    found, half = np.asarray(masks(32, 32)), 16
    wave = [r / half if r < half else (half - 1) / half - (r - half) / half for r in range(32)]
    np.testing.assert_array_equal(found[0], np.tile(np.array(wave)[:, None], (1, 32)))
    np.testing.assert_array_equal(found[1], found[0].T)
    for first, second in ((0, 2), (1, 3)):
        np.testing.assert_array_equal(found[first] + found[second], np.full((32, 32), 15 / 16))
    np.testing.assert_array_equal(found.mean((1, 2)), 0.46875)
    assert found.max() == 0.9375


@pytest.mark.parametrize(("height", "width"), [(5, 8), (7, 7), (1, 4)])
def test_masks_of_other_shapes_are_symmetric_waves(height, width):
    found = np.asarray(masks(height, width))
    np.testing.assert_array_equal(found, found[:, ::-1, ::-1])
    for place, size, axis in ((0, height, 0), (1, width, 1)):
        top = (2 * ((size - 1) // 2)) / size
        assert found[place].max() == pytest.approx(top)
        np.testing.assert_allclose(found[place] + found[place + 2], top, atol=1e-6)
        assert np.ptp(found[place], axis=1 - axis).max() == 0
    np.testing.assert_array_equal(masks(height, width, 0.1), np.clip(found + np.float32(0.1), 0, 1))


def expected_classes(row, data, gone=()):
    """Wrong classes that stay, from the likeliest one on."""
    logits = np.asarray(forward(VARIABLES, data.train.inputs[row : row + 1]).logits)[0]
    return [c for c in np.argsort(-logits) if c != LABELS[row] and c not in gone]


def test_partners_are_retained_rows_of_the_likeliest_wrong_classes_without_repetition():
    data = DATA._replace(present=DATA.present.at[jnp.array([3, 9, 30])].set(0))
    context, batch = drawn(data=data)
    assert context.counts.tolist() == [4] * 6 + [0] * 2
    used = context.partners[: len(FORGOTTEN)]
    for row, partners in zip(FORGOTTEN, used, strict=True):
        assert LABELS[partners].tolist() == expected_classes(row, data)[:4]
    assert len(set(used.ravel())) == used.size
    assert not set(used.ravel()) & {*FORGOTTEN, 3, 9, 30}
    assert context.share == pytest.approx(24 / (24 + 81))
    assert context.reused == 0
    own = LABELS[np.array(FORGOTTEN)][batch.forget.slots]
    assert not np.any(batch.forget.examples.targets == own)
    np.testing.assert_array_equal(batch.forget.weights, 1)


def test_images_are_mixed_by_the_masks():
    context, batch = drawn(delta=-0.1)
    images, seen = np.asarray(DATA.train.inputs), []
    for hybrid, label, slot in zip(*batch.forget.examples, batch.forget.slots, strict=True):
        (which,) = np.flatnonzero(LABELS[context.partners[slot]] == label)
        mask = np.asarray(masks(*SHAPE[:2], -0.1))[which, :, :, None]
        own, other = images[FORGOTTEN[slot]], images[context.partners[slot, which]]
        np.testing.assert_allclose(hybrid, mask * own + (1 - mask) * other, rtol=1e-5)
        seen.append((slot, which))
    assert len(set(seen)) == 24  # four passes over six rows show every hybrid once


def test_at_its_limits_delta_leaves_one_of_both_images():
    images = np.asarray(DATA.train.inputs)
    context, whole = drawn(delta=1.0)
    np.testing.assert_array_equal(whole.forget.examples.inputs, images[np.array(FORGOTTEN)[whole.forget.slots]])
    _, none = drawn(delta=-0.8)  # the largest mask is 4 / 5
    np.testing.assert_array_equal(none.forget.examples.targets, whole.forget.examples.targets)
    rows = [np.flatnonzero((images == x).all((1, 2, 3)))[0] for x in none.forget.examples.inputs]
    np.testing.assert_array_equal(LABELS[rows], none.forget.examples.targets)
    assert set(rows) == set(context.partners[:6].ravel())


@pytest.mark.slow
def test_every_partner_is_as_likely_as_another():
    pool = np.flatnonzero((expected_classes(7, DATA)[0] == LABELS) & ~np.isin(np.arange(ROWS), FORGOTTEN))
    keys = jax.random.split(KEY, 600)
    method = ju.natmu(MODEL, SGD)
    found = jax.jit(jax.vmap(lambda key: method.init(VARIABLES, DATA, asking(FORGOTTEN), key)[0].partners[1, 0]))(keys)
    counts = np.array([np.sum(np.asarray(found) == row) for row in pool])
    assert counts.sum() == 600
    expected = 600 / len(pool)
    assert np.sum((counts - expected) ** 2 / expected) < 2.5 * len(pool)  # chi squared, of len(pool) - 1 degrees of freedom


def test_classes_that_are_gone_get_no_hybrid_and_rows_of_fewer_count_for_less():
    whole = np.flatnonzero(LABELS == 2)[:7]
    gone = np.setdiff1d(np.flatnonzero(LABELS == 2), whole)  # had left before
    data = DATA._replace(present=DATA.present.at[gone].set(0))
    context, batch = drawn([*whole, 1], data=data, named=(0, 4))  # whose rows are not listed
    for row, partners, count in zip([*whole, 1], context.partners, context.counts, strict=True):
        left = expected_classes(row, data, gone=(0, 2, 4))
        assert LABELS[partners[:count]].tolist() == left
    assert set(context.counts) == {3, 3 - (LABELS[1] in (1, 3, 5))}
    np.testing.assert_array_equal(batch.forget.weights, context.counts[batch.forget.slots] / 4)


def test_a_class_that_ran_out_begins_again_in_turn():
    favoured = np.setdiff1d(np.flatnonzero(LABELS == 3), FORGOTTEN)
    context, _ = drawn(data=DATA._replace(present=DATA.present.at[favoured[2:]].set(0)))  # two rows stay
    taken = [row for row in context.partners[:6].ravel() if LABELS[row] == 3]
    times = np.unique(taken, return_counts=True)[1]
    assert len(taken) > 2
    assert np.ptp(times) <= 1
    assert context.reused == pytest.approx((len(taken) - 2) / 24)


@pytest.mark.slow
def test_two_classes_make_one_hybrid_and_one_class_none():
    data, variables = scene(rows=20, classes=2)
    method = ju.natmu(MODEL, SGD)
    init = jax.jit(lambda request: method.init(variables, data, request, KEY)[0])
    context = init(asking([0, 1, 2, 3]))
    assert context.partners.shape == (SLOTS, 1)
    np.testing.assert_array_equal(data.train.targets[context.partners[:4, 0]], 1 - data.train.targets[:4])
    other = np.flatnonzero(np.asarray(data.train.targets) == 1)
    context = init(asking(other[:SLOTS], jnp.array([False, True])))
    np.testing.assert_array_equal(context.counts, 1)
    context = init(asking([0], jnp.array([True, True])))
    assert (int(context.counts.sum()), float(context.share)) == (0, 0)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        pytest.param(lambda x: x.reshape(len(x), -1), {"image_shape": SHAPE}, id="flat"),
        pytest.param(lambda x: np.moveaxis(x, 3, 1), {"spatial_axes": (1, 2)}, id="channels in front"),
        pytest.param(lambda x: x.swapaxes(1, 2), {"spatial_axes": (1, 0)}, id="width before height", marks=pytest.mark.slow),
        pytest.param(lambda x: x, {"quantize": jnp.floor}, id="truncated", marks=pytest.mark.slow),
        pytest.param(lambda x: x.astype(np.uint8), {}, id="integers", marks=pytest.mark.slow),
    ],
)
def test_forms_of_images(change, options):
    data = DATA._replace(train=DATA.train._replace(inputs=jnp.asarray(change(np.asarray(DATA.train.inputs)))))
    method, sizes = ju.natmu(MODEL, SGD, delta=-0.05, **options), sampling.BatchSizes(24, 5)
    context, plain = drawn(delta=-0.05)

    @jax.jit
    def sample(data, request, context):
        return method.sample(sampling.split(data, request, KEY), context, 0, KEY, sizes)

    found = sample(data, asking(FORGOTTEN), context).forget.examples.inputs
    wanted = plain.forget.examples.inputs
    truncated = "quantize" in options or found.dtype == jnp.uint8
    wanted = change(np.resize(np.floor(wanted) if truncated else wanted, (ROWS, *SHAPE)))[:24]
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-3)


def test_a_step_descends_on_the_mean_over_retain_set_and_hybrids():
    method = ju.natmu(MODEL, optax.sgd(1e-4))
    context, batch = drawn(delta=-0.05)
    state = GradientState(VARIABLES, optax.sgd(1e-4).init(VARIABLES.params))
    after, stats = jax.jit(method.step)(state, context, batch._replace(step=0, num_steps=1), KEY)

    def loss(params):
        both = [ju.losses.cross_entropy(forward(ju.Variables(params), x.inputs), x) for x in (batch.retain[0], batch.forget[0])]
        return 84 / 108 * both[0].mean() + 24 / 108 * both[1].mean()

    value, wanted = stepped(VARIABLES.params, loss, rate=1e-4)
    assert float(stats["loss"]) == pytest.approx(value, rel=1e-5)
    assert distance(after.variables.params, wanted) < 1e-6


@pytest.mark.slow
def test_without_a_row_to_forget_it_is_fine_tuning():
    method = ju.natmu(network(), SGD, image_shape=(2, 2))._replace(on_empty="finetune")
    run = jax.jit(lambda method, *call: ju.iterate(method, 5, batch_size=4)(*call), static_argnums=0)
    call = network().init(KEY), blobs(), ju.empty_request(4), KEY
    assert distance(run(method, *call).variables, run(ju.finetune(network(), SGD), *call).variables) < 1e-7


@pytest.mark.slow
def test_the_head_starts_anew_where_that_is_asked_for():
    method = ju.natmu(headed(), SGD, image_shape=(2, 2), init_linear=True)
    variables, data, request = headed().init(KEY), blobs(), asking([1, 2])
    keys = jax.random.split(KEY, 200)
    starts = jax.jit(jax.vmap(lambda key: method.init(variables, data, request, key)[1].variables.params))(keys)
    assert float(jnp.std(starts["head"])) == pytest.approx(np.sqrt(2) * np.sqrt(2 / (8 + 3)), rel=0.05)
    assert distance(starts["shift"], jnp.broadcast_to(variables.params["shift"], (200, 3))) == 0
    assert distance(starts["body"], jnp.broadcast_to(variables.params["body"], (200, 4, 8))) == 0


def test_requests_share_the_order_of_the_rows():
    """No array of a batched start has one number per request and row."""
    requests = jax.tree.map(lambda *x: np.stack(x), *[asking([i, i + 1]) for i in range(11)])
    method = ju.natmu(MODEL, SGD)
    traced = jax.make_jaxpr(jax.vmap(lambda r, k: method.init(VARIABLES, DATA, r, k)[0]))(requests, jax.random.split(KEY, 11))

    def shapes(program):
        own = [v.aval.shape for e in program.eqns for v in e.outvars]
        inner = [x for e in program.eqns for p in e.params.values() for x in jax.tree.leaves(p) if hasattr(x, "eqns")]
        return own + [shape for p in inner for shape in shapes(p)]

    found = shapes(traced)
    assert (ROWS,) in found
    assert not [shape for shape in found if 11 in shape and ROWS in shape]


@pytest.mark.slow
def test_a_sweep_equals_single_runs():
    sweep_equals_single_runs("natmu", delta=[-0.3, 0.3])
    assert answer("natmu", delta=0.0).stats["hybrid_loss"].shape == (6,)


def test_bad_input_is_told():
    call = network().init(KEY), blobs(), lane(ju.from_indices(blobs(), [[1]]), 0), KEY
    for options in ({}, {"image_shape": (3, 2)}, {"image_shape": (4,)}, {"image_shape": (2, 2), "spatial_axes": (0, 2)}):
        with pytest.raises(ValueError, match=r"natmu mixes images.*pass image_shape=\(height, width\)"):
            jax.eval_shape(ju.natmu(network(), SGD, **options).init, *call)
    with pytest.raises(ValueError, match="init_linear draws the head anew"):
        ju.natmu(network(), SGD, init_linear=True)


@pytest.mark.slow
def test_digits_forget_as_retraining_does_and_wrong_labels_too_much():
    study = overfitted("digits", label_noise=0.1)
    model, data, retrain = study.model, study.data, study.retrain()
    requests = random_requests(data, [50] * 4, seed=1)
    keys = jax.random.split(KEY, 5)
    start = model.init(KEY)
    trained = jax.jit(retrain)(start, data, ju.empty_request(), keys[4]).variables

    def accuracies(unlearn, variables):
        def one(request, key):
            found = unlearn(variables, data, request, key).variables
            outcome = ju.audit.outcome(model, found, data, request, study.test)
            return outcome.retain, outcome.forget

        return (float(x.mean()) for x in jax.jit(jax.vmap(one))(requests, keys[:4]))

    def run(factory, **options):
        optimizer = optax.adam(optax.cosine_decay_schedule(0.008, 100))
        return accuracies(ju.iterate(factory(model, optimizer, **options), 100, batch_size=64), trained)

    retained, forgotten = accuracies(retrain, start)
    own, wrong = tuple(run(ju.natmu)), tuple(run(ju.random_label))
    assert abs(own[0] - retained) < 0.01
    assert abs(own[1] - forgotten) < abs(wrong[1] - forgotten) / 2
