"""What the status says of runs that destroyed the model, did nothing, or read labels that are no classes."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.loop import damage
from jaxunlearn.loop.damage import strange_labels
from tests.problems import blobs, lane, linear_regression, network, regression_data

KEY = jax.random.key(0)
MODEL = network()


@cache
def trained():
    """A network that knows its rows."""
    unlearn = ju.iterate(ju.finetune(MODEL, optax.adam(0.05)), 60, batch_size=16)
    return jax.jit(unlearn)(MODEL.init(KEY), blobs(), ju.empty_request(), KEY).variables


def request_of(rows, data=None):
    return lane(ju.from_indices(blobs() if data is None else data, [rows]), 0)


def run(method, variables, data, request, **options):
    options = {"num_steps": 10, "batch_size": 4, **options}
    return jax.jit(ju.iterate(method, **options))(variables, data, request, KEY)


def test_a_destroyed_model_is_damaged():
    results = [
        run(ju.gradient_difference(MODEL, optax.sgd(rate), alpha=alpha), trained(), blobs(), request_of([3, 4, 5]))
        for rate, alpha in ((0.01, 0.9), (3.0, 0.1))
    ]
    assert [ju.Status(int(x.status)) for x in results] == [ju.Status.OK, ju.Status.DAMAGED]
    kept, broken = (x.stats for x in results)
    assert kept["retain_loss_before"] == broken["retain_loss_before"] < 0.3
    assert kept["retain_loss_after"] < np.log(3) < broken["retain_loss_after"]
    with pytest.raises(ju.UnlearningError, match="the model is damaged"):
        ju.check(results[1])


def test_guessing_is_what_the_models_own_loss_says():
    """Ten times the cross-entropy is damage of no other model: its loss of guessing is ten times log 3."""
    scaled = MODEL._replace(loss=lambda outputs, examples: 10 * ju.losses.cross_entropy(outputs, examples))
    status = []
    for rate in (0.002, 0.3):
        result = run(ju.gradient_difference(scaled, optax.sgd(rate), alpha=0.1), trained(), blobs(), request_of([3, 4, 5]))
        guess = 10 * np.log(3)
        status.append((int(result.status), bool(result.stats["retain_loss_after"] > guess)))
        assert result.stats["retain_loss_after"] > np.log(3)
    assert status == [(ju.Status.OK, False), (ju.Status.DAMAGED, True)]


def test_damage_is_judged_per_request():
    unlearn = ju.iterate(ju.gradient_difference(MODEL, optax.sgd(3.0), alpha=0.1), num_steps=10, batch_size=4)
    requests = ju.from_indices(blobs(), [[3, 4, 5], [7]], capacity=4)
    requests = requests._replace(weights=requests.weights.at[1].set(0))
    result = jax.jit(ju.batched(unlearn))(trained(), blobs(), requests, jax.random.split(KEY, 2))
    assert result.status.tolist() == [ju.Status.DAMAGED, ju.Status.EMPTY_REQUEST]


def test_the_limit_of_damage_is_an_argument():
    method = ju.gradient_difference(MODEL, optax.sgd(0.01), alpha=0.9)
    result = run(method, trained(), blobs(), request_of([3, 4, 5]), damaged_at=1e-6)
    assert result.status == ju.Status.DAMAGED
    real = linear_regression()
    data, variables = regression_data(), ju.Variables({"w": jnp.zeros(4)})
    method = ju.gradient_difference(real, optax.sgd(0.5), alpha=0.1)
    found = [run(method, variables, data, request_of([3], data), damaged_at=limit) for limit in (None, 1e3)]
    assert found[0].stats["retain_loss_after"] > 1e3  # targets that are no classes have no loss of guessing
    assert [int(x.status) for x in found] == [ju.Status.OK, ju.Status.DAMAGED]
    with pytest.raises(ValueError, match="damaged_at must lie in"):
        ju.iterate(method, 3, batch_size=4, damaged_at=np.nan)


def test_feed_judges_the_rows_of_its_last_batch():
    request = request_of([3, 4, 5])
    kept = jax.tree.map(lambda x: x[10:26], blobs().train)
    retain = ju.Weighted(kept, jnp.ones(16), jnp.arange(10, 26))

    def source(step):
        return ju.Batch(ju.forget_rows(blobs(), request), retain)

    found = [
        ju.feed(ju.gradient_difference(MODEL, optax.sgd(rate), alpha=alpha), trained(), source, request, KEY, num_steps=10)
        for rate, alpha in ((0.01, 0.9), (3.0, 0.1))
    ]
    assert [int(x.status) for x in found] == [ju.Status.OK, ju.Status.DAMAGED]
    assert found[0].stats["moved"] == 1


def test_weights_behind_stop_gradient_do_not_change():
    frozen = MODEL._replace(
        forward=lambda variables, inputs, **options: MODEL.forward(jax.lax.stop_gradient(variables), inputs)
    )
    result = run(ju.gradient_ascent(frozen, optax.sgd(0.1)), trained(), blobs(), request_of([3]))
    assert (result.status, result.stats["moved"]) == (ju.Status.UNCHANGED, 0)
    with pytest.raises(ju.UnlearningError, match="not one weight changed"):
        ju.check(result)


def test_steps_below_the_rounding_of_bfloat16_show():
    variables = jax.tree.map(lambda x: x.astype(jnp.bfloat16), trained())
    moved = [
        run(ju.gradient_ascent(MODEL, optax.sgd(rate)), variables, blobs(), request_of([3])).stats["moved"]
        for rate in (1e-4, 1e-1)
    ]
    assert moved[0] < 0.2 < moved[1]


def test_a_selection_of_no_weight_is_no_unlearning():
    unlearn = ju.ssd(MODEL, alpha=1e6)
    data = jax.jit(ju.prepare(unlearn))(trained(), blobs(), KEY)
    result = jax.jit(unlearn)(trained(), data, request_of([3]), KEY)
    assert result.status == ju.Status.UNCHANGED


@pytest.mark.parametrize(("rows", "steps", "share"), [(50, 5, 0.4), (8, 2, 1.0), (8, 0, 0.0), (3, 1, 1.0)])
def test_the_share_of_the_forget_set_that_was_read(rows, steps, share):
    result = run(ju.finetune(MODEL, optax.sgd(0.1)), trained(), blobs(), request_of(list(range(rows))), num_steps=steps)
    np.testing.assert_allclose(result.stats["visited"], share)
    assert result.status == (ju.Status.OK if steps else ju.Status.UNCHANGED)


@pytest.mark.parametrize("label", [-1, 3, 100])
@pytest.mark.parametrize("kind", ["steps", "once"])
def test_labels_that_are_no_class_are_noticed(label, kind):
    data = blobs()
    data = data._replace(train=data.train._replace(targets=jnp.asarray(data.train.targets).at[40].set(label)))
    request = request_of([3, 4])
    if kind == "steps":
        method = ju.iterate(ju.gradient_difference(MODEL, optax.sgd(0.01)), num_steps=2, batch_size=4)
    else:
        method = ju.woodfisher(MODEL, damping=0.1, block_size=24)
    result = jax.jit(method)(trained(), data, request, KEY)
    assert result.status in (ju.Status.INVALID_LABELS, ju.Status.NONFINITE)
    gone = ju.remove(data, request_of([40]))  # rows that are not present have no say
    assert jax.jit(method)(trained(), gone, request, KEY).status == ju.Status.OK


@pytest.mark.parametrize("told", [True, False])
def test_counts_are_no_labels(told):
    data = blobs()
    data = data._replace(train=data.train._replace(targets=jnp.arange(60) % 7))
    model = ju.Model(
        lambda variables, inputs, **_: ju.Outputs(inputs @ variables.params["w"]),
        lambda outputs, rows: jnp.exp(outputs.logits) - rows.targets * outputs.logits,
        likelihood=ju.likelihoods.poisson() if told else None,
    )
    method = ju.iterate(ju.gradient_difference(model, optax.sgd(0.001)), num_steps=2, batch_size=4)
    assert jax.jit(method)(ju.Variables({"w": jnp.zeros(4)}), data, request_of([3, 4]), KEY).status == ju.Status.OK


def test_labels_of_one_logit_are_zero_and_one():
    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(inputs @ variables.params["w"])

    def loss(outputs, examples):
        return optax.losses.sigmoid_binary_cross_entropy(outputs.logits[:, 0], examples.targets.astype(jnp.float32))

    model, variables = ju.Model(forward, loss), ju.Variables({"w": jnp.ones((4, 1))})
    for labels, expected in ((np.arange(60) % 2, ju.Status.OK), (np.arange(60) % 3, ju.Status.INVALID_LABELS)):
        data = ju.training_data(blobs().train.inputs, labels)
        result = run(ju.gradient_difference(model, optax.sgd(0.01)), variables, data, request_of([3]))
        assert result.status == expected


@pytest.mark.parametrize("weight", [0.5, -1.0, np.nan, 2.0])
def test_weights_of_a_request_are_zero_or_one(weight):
    request = request_of([3, 4])
    request = request._replace(weights=jnp.asarray(request.weights).at[0].set(weight))
    result = run(ju.gradient_ascent(MODEL, optax.sgd(0.1)), trained(), blobs(), request)
    assert result.status == ju.Status.INVALID_ROWS


def test_labels_of_eight_bits_may_name_256_classes():
    for dtype, classes in ((np.uint8, 256), (np.int8, 128)):
        data = ju.training_data(np.zeros((2, 1), np.float32), np.array([0, classes - 1], dtype))
        assert not strange_labels(classes, data)
        assert strange_labels(classes - 1, data)


def test_rows_of_large_outputs_are_looked_at_a_few_at_a_time(monkeypatch):
    """Logits of a language model for 64 rows would be most of what a run needs of memory."""
    rows = ju.types.Weighted(jax.tree.map(lambda x: x[:7], blobs().train), jnp.array([1.0, 1, 0, 1, 1, 1, 0]), jnp.arange(7))
    other = jax.tree.map(lambda x: 1.1 * x, trained())

    def look():
        return damage.damage(MODEL, trained(), other, rows, None)

    whole, sizes = look(), []
    evaluate = damage.evaluate

    def seen(model, variables, part):
        sizes.append(part.targets.shape[0])
        return evaluate(model, variables, part)

    monkeypatch.setattr(damage, "evaluate", seen)
    outputs = jax.eval_shape(MODEL.forward, trained(), rows.examples.inputs)
    entries = sum(x.size for x in jax.tree.leaves((outputs.logits, outputs.features))) // 7
    for together, most in ((2 * entries, 2), (1, 1), (100 * entries, 7)):
        sizes.clear()
        monkeypatch.setattr(damage, "TOGETHER", together)
        part = look()
        assert max(sizes) == most
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), whole, part)
