"""Small changes after unlearning: rounding, pruning, relearning, each beside retrained models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.problems import blobs, lane, network

language = ju.audit.language


def test_eight_bits_are_those_of_a_frozen_base():
    params = {"w": jax.random.normal(jax.random.key(0), (5, 3)), "b": jnp.array([0.3, 0.2])}
    base = ju.frozen.int8(params)
    found = language.rounded(params, 8)
    np.testing.assert_allclose(found["w"], base["w"].dense(), rtol=1e-6)
    np.testing.assert_array_equal(found["b"], params["b"])
    four = np.asarray(language.rounded(params, 4)["w"])
    assert all(len(np.unique(np.round(np.abs(column), 5))) <= 8 for column in four.T)
    np.testing.assert_allclose(np.abs(four).max(0), np.abs(np.asarray(params["w"])).max(0), rtol=1e-6)
    np.testing.assert_array_equal(language.rounded({"w": jnp.zeros((2, 2))}, 4)["w"], 0)
    with pytest.raises(ValueError, match="bits"):
        language.rounded(params, 1)


def test_bfloat16_and_pruning_follow_their_definitions():
    w = jax.random.normal(jax.random.key(0), (6, 5))
    np.testing.assert_array_equal(jax.jit(language.in_bfloat16)(w), w.astype(jnp.bfloat16).astype(jnp.float32))
    for share in (0.0, 0.35, 1.0):
        found = np.asarray(jax.jit(language.pruned_smallest)(w, share))
        gone = int(share * w.size)
        assert (found == 0).sum() == gone
        np.testing.assert_array_equal(np.sort(np.abs(found[found != 0])), np.sort(np.abs(np.asarray(w)).ravel())[gone:])


def test_the_nearest_mean_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    bank, labels, queries = rng.normal(size=(12, 3)), np.arange(12) % 4, rng.normal(size=(9, 3))
    targets, weights = rng.integers(0, 4, 9), np.arange(12) < 10
    means = np.stack([bank[:10][labels[:10] == c].mean(0) for c in range(4)])
    cosines = queries @ means.T / np.linalg.norm(means, axis=1)
    bank[10:] = np.nan
    found = language.nearest_mean_accuracy(
        jnp.asarray(bank, jnp.float32), jnp.asarray(labels), jnp.asarray(queries, jnp.float32), jnp.asarray(targets),
        num_classes=5, bank_weights=jnp.asarray(weights, jnp.float32),
    )  # fmt: skip
    assert float(found) == pytest.approx((cosines.argmax(1) == targets).mean())


@pytest.mark.slow
def test_hidden_rows_come_back_and_cells_are_what_they_say():
    data, model = blobs(), network()
    of_class = np.flatnonzero(np.asarray(data.train.targets) == 2)
    rows = of_class[:12]
    request, gone = (lane(ju.from_indices(data, [x]), 0) for x in (rows, of_class))
    optimizer, key = optax.sgd(0.03), jax.random.key(0)
    retrain = ju.iterate(ju.retrain(model, optax.sgd(0.3)), num_steps=150, batch_size=16)
    train = jax.jit(ju.batched(retrain, in_axes=(None, None, None, 0)))
    retrained, original = (
        train(model.init(key), data, gone._replace(weights=weights), jax.random.split(jax.random.key(seed), 10)).variables
        for seed, weights in enumerate((gone.weights, jnp.zeros_like(gone.weights)))
    )
    # the class is hidden by its logit alone: outputs look like those of retrained models, and features stay
    head = original.params["head"]
    hidden = original._replace(params=original.params | {"head": head.at[:, :, 2].multiply(-0.3)})
    forgotten = jax.tree.map(lambda x: x[rows], data.train)

    def known(variables):
        logits = model.forward(variables, forgotten.inputs).logits
        return {"accuracy": jnp.mean(jnp.argmax(logits, -1) == forgotten.targets), "logit": jnp.mean(logits[:, 2])}

    options = {"measure": known, "rows": (2, 50), "steps": (1, 8), "batch_size": 4}
    run = jax.jit(lambda u, r, request: language.comes_back(model, optimizer, u, r, data, request, key, **options))
    found = run(hidden, retrained, request)
    changes = {"nothing", "int8", "int4", "bfloat16", "pruned 0.3", "pruned 0.6"}
    assert set(found) == changes | {f"relearned {r} rows {s} steps" for s in (1, 8) for r in (2, 50)}
    before, after = found["nothing"], found["relearned 50 rows 8 steps"]
    assert float(before.p_value["accuracy"]) > 0.05
    assert float(after.gap["accuracy"]) > 0.1
    assert float(after.p_value["accuracy"]) <= 0.02
    one = jax.tree.map(lambda x: x[0], hidden)
    np.testing.assert_allclose(before.unlearned["logit"][0], known(one)["logit"], rtol=1e-5)
    pruned = one._replace(params=language.pruned_smallest(one.params, 0.6))
    np.testing.assert_allclose(found["pruned 0.6"].unlearned["logit"][0], known(pruned)["logit"], rtol=1e-4)
    # relearning is fine-tuning on those rows and no others
    present = data.present * jnp.isin(jnp.arange(data.present.size), rows[:2])
    tune = ju.iterate(ju.finetune(model, optimizer, bn="frozen"), num_steps=8, batch_size=4)
    own = jax.random.split(jax.random.split(key)[0], 20)[0]
    by_hand = tune(one, data._replace(present=present), ju.empty_request(), own).variables
    np.testing.assert_allclose(found["relearned 2 rows 8 steps"].unlearned["logit"][0], known(by_hand)["logit"], rtol=1e-4)
    # padded requests are the same requests
    longer = request._replace(indices=jnp.pad(request.indices, (0, 3)), weights=jnp.pad(request.weights, (0, 3)))
    for values, others in zip(jax.tree.leaves(found), jax.tree.leaves(run(hidden, retrained, longer)), strict=True):
        np.testing.assert_allclose(values, others, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused():
    data, model = blobs(), network()
    many = ju.from_indices(data, [[1], [2]])
    variables = jax.tree.map(lambda x: x[None], model.init(jax.random.key(0)))

    def run(request=None, **options):
        request = lane(many, 0) if request is None else request
        language.comes_back(
            model, optax.sgd(0.1), variables, variables, data, request, jax.random.key(0), measure=lambda v: 0.0, **options
        )

    with pytest.raises(ValueError, match="takes one request"):
        run(many)
    with pytest.raises(ValueError, match="steps"):
        run(steps=(0,))
    with pytest.raises(ValueError, match="bits"):
        run(bits=(32,))
    with pytest.raises(ValueError, match="pruned"):
        run(pruned=(2.0,))


def test_numbers_that_are_no_weights_stay():
    """Counters, indices, masks."""
    params = {"table": jnp.array([[1, 1001], [30001, 4]]), "mask": jnp.array([[True, False]] * 2), "key": jax.random.key(0)}
    for changed in (language.rounded(params, 4), language.in_bfloat16(params), language.pruned_smallest(params, 0.5)):
        assert jax.tree.map(lambda x: x.dtype, changed) == jax.tree.map(lambda x: x.dtype, params)
        assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), changed, params)))
