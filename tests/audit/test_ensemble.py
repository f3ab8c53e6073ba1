"""Ensembles: the same models in blocks, on meshes, and found again on disk."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import sampling
from jaxunlearn.audit.ensemble import content_hash
from tests.problems import blobs, held_out, lane, network

KEY = jax.random.key(0)
DATA, TEST, MODEL = blobs(), held_out(), network()
REQUEST = lane(ju.from_indices(DATA, [range(8)]), 0)
KEYS = jax.random.split(KEY, 4)


def training(rate):
    """One step of gradient descent from fresh weights, on the retain set."""

    def train(variables, data, request, key):
        start, weights = MODEL.init(key), sampling.retain_weights(data, request)
        rows = sampling.blank(data.train, weights)

        def loss(params):
            return sampling.masked_mean(MODEL.loss(MODEL.forward(ju.Variables(params), rows.inputs), rows), weights, empty=0)

        slope = jax.grad(loss)(start.params)
        return ju.Result(ju.Variables(jax.tree.map(lambda w, g: w - rate * g, start.params, slope)), jnp.int32(0))

    return train


RETRAIN = training(0.1)
make = partial(ju.audit.ensemble, MODEL, RETRAIN, MODEL.init(KEY), DATA, REQUEST, KEYS, {"test": TEST})


@pytest.fixture(scope="module")
def plain():
    return make()


def test_an_ensemble_is_one_model_after_another(plain):
    one = jax.jit(RETRAIN)(MODEL.init(KEY), DATA, REQUEST, KEYS[2])
    np.testing.assert_allclose(plain.logits["test"][2], ju.audit.predict(MODEL, one.variables, TEST), rtol=1e-5, atol=1e-6)


def test_blocks_and_meshes_change_nothing(plain):
    for other in (make(block=3), make(mesh=ju.request_mesh())):
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_directory_resumes_behind_the_last_block(plain, tmp_path):
    first = partial(ju.audit.ensemble, MODEL, RETRAIN, MODEL.init(KEY), DATA, REQUEST)
    first(KEYS[:2], {"test": TEST}, directory=tmp_path)  # as if it had been stopped here
    saved = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    counts = []
    done = make(block=2, directory=tmp_path, progress=counts.append)
    assert counts == [2, 4]
    assert len(list(tmp_path.iterdir())) == 2
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in saved.items())
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(done), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_is_saved_is_found_only_by_the_same_computation(tmp_path):
    def count(function=RETRAIN, data=DATA, keys=KEYS[:1], rows=TEST):
        ju.audit.ensemble(MODEL, function, MODEL.init(KEY), data, REQUEST, keys, {"test": rows}, directory=tmp_path)
        return len(list(tmp_path.iterdir()))

    assert count() == 1
    assert count() == 1
    assert count(function=training(0.2)) == 2
    assert count(data=DATA._replace(present=DATA.present.at[11].set(0))) == 3
    assert count(keys=KEYS[1:2]) == 4
    assert count(rows=TEST._replace(inputs=TEST.inputs + 1)) == 5


def test_hashes_see_large_constants_of_a_program():
    def text(value):
        table = np.full(10_000, 0.5, np.float32)
        table[7_777] = value
        return jax.jit(lambda x: x + table).lower(jnp.zeros(10_000)).as_text()

    assert content_hash((), text(1.0)) != content_hash((), text(2.0))
    assert content_hash({"a": np.zeros(2)}) != content_hash({"b": np.zeros(2)})
    assert content_hash(np.zeros(2, np.float32)) != content_hash(np.zeros(2, np.int32))


def test_random_halves_are_balanced_and_train_on_their_rows():
    members = ju.audit.random_halves(4, 60, KEY)
    assert members.sum(axis=0).tolist() == [2] * 60
    assert members.sum(axis=1).tolist() == [30] * 4
    broken = DATA._replace(train=DATA.train._replace(inputs=jnp.where(members[0][:, None], DATA.train.inputs, jnp.nan)))
    halves, in_axes = ju.audit.subsets(broken, members[:1])
    made = ju.audit.ensemble(
        MODEL, RETRAIN, MODEL.init(KEY), halves, ju.empty_request(), KEYS[:1], {"test": TEST}, in_axes=in_axes
    )
    assert np.all(np.isfinite(made.logits["test"]))
    assert np.isnan(jax.jit(RETRAIN)(MODEL.init(KEY), broken, ju.empty_request(), KEYS[0]).variables.params["head"]).all()


def test_bad_designs_are_refused():
    with pytest.raises(ValueError, match="must be even"):
        ju.audit.random_halves(3, 10, KEY)
    with pytest.raises(ValueError, match=r"expected members \[models, 60\]"):
        ju.audit.subsets(DATA, jnp.ones((2, 5), bool))
    with pytest.raises(ValueError, match="names no set of examples"):
        ju.audit.ensemble(MODEL, RETRAIN, MODEL.init(KEY), DATA, REQUEST, KEYS, {})
