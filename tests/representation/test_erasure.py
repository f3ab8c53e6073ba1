"""Linear erasures of a concept: what is left to a linear probe, and how far features move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from tests.problems import blobs, distance, headed, lane

KEY = jax.random.key(0)
MODEL, VARIABLES = ju.insert_map(headed(), headed().init(jax.random.key(1)), ())
DATA = ju.features.prepare(MODEL)(VARIABLES, blobs(), KEY)
Z = np.asarray(DATA.extra["features"], np.float64)
LABELS = np.asarray(DATA.train.targets)
METHODS = {
    "concept_erasure": ju.concept_erasure(MODEL),
    "nullspace_projection": ju.nullspace_projection(MODEL, rounds=2),
    "prototype_erasure": ju.prototype_erasure(MODEL),
}
REQUESTS = {
    "rows": lane(ju.from_indices(DATA, [[3, 4, 5, 17]]), 0),
    "class": lane(ju.from_classes(DATA, [[1]]), 0),
    "classes": lane(ju.from_classes(DATA, [[0, 1]]), 0),
}


def indicators(name):
    if name == "rows":
        return np.isin(np.arange(60), [3, 4, 5, 17])[:, None].astype(float)
    return np.stack([c == LABELS for c in ([1] if name == "class" else [0, 1])], axis=1).astype(float)


def erased(method, name):
    result = jax.jit(METHODS[method])(VARIABLES, DATA, REQUESTS[name], KEY)
    assert int(result.status) == 0
    (layer,) = result.variables.params.map
    return Z @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])


def covariance(x, y):
    return (x - x.mean(axis=0)).T @ (y - y.mean(axis=0)) / len(x)


@pytest.mark.parametrize("name", list(REQUESTS))
def test_no_linear_probe_of_the_concept_is_left(name):
    after = erased("concept_erasure", name)
    assert np.max(np.abs(covariance(Z, indicators(name)))) > 1e-2
    np.testing.assert_allclose(covariance(after, indicators(name)), 0, atol=1e-7)
    np.testing.assert_allclose(after.mean(axis=0), Z.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("name", list(REQUESTS))
def test_no_affine_map_that_erases_moves_features_less(name):
    after = erased("concept_erasure", name)
    # any other eraser of the form z - M (z - mean) with M Cov(z, c) = Cov(z, c)
    cross, mean = covariance(Z, indicators(name)), Z.mean(axis=0)
    others = [cross @ np.linalg.pinv(weight @ cross) @ weight for weight in np.random.default_rng(0).normal(size=(20, 8, 8))]
    others.append(cross @ np.linalg.pinv(cross))
    moved = [np.sum(((Z - mean) @ other.T) ** 2) for other in others]
    assert np.sum((after - Z) ** 2) <= min(moved) * (1 + 1e-6)


def test_a_round_takes_the_directions_of_the_least_squares_classifier():
    result = jax.jit(ju.nullspace_projection(MODEL))(VARIABLES, DATA, REQUESTS["class"], KEY)
    (layer,) = result.variables.params.map
    kernel = np.asarray(layer["kernel"], np.float64)
    direction = np.linalg.lstsq(Z - Z.mean(axis=0), indicators("class")[:, 0] - np.mean(LABELS == 1), rcond=None)[0]
    np.testing.assert_allclose(direction @ kernel / np.linalg.norm(direction), 0, atol=1e-5)
    np.testing.assert_allclose(kernel @ kernel, kernel, atol=1e-5)
    assert np.linalg.matrix_rank(kernel, tol=1e-3) == 7


def test_rounds_take_a_dimension_each_and_leave_less_to_the_next_classifier():
    ranks, fits = [], []
    for rounds in (1, 2, 3):
        unlearn = ju.nullspace_projection(MODEL, rounds=rounds)
        (layer,) = jax.jit(unlearn)(VARIABLES, DATA, REQUESTS["class"], KEY).variables.params.map
        after = Z @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
        target = indicators("class")[:, 0] - np.mean(LABELS == 1)
        centred = after - after.mean(axis=0)
        fits.append(np.mean((centred @ np.linalg.lstsq(centred, target, rcond=1e-5)[0] - target) ** 2))
        ranks.append(np.linalg.matrix_rank(np.asarray(layer["kernel"]), tol=1e-3))
    assert ranks == [7, 6, 5]
    assert fits[0] < fits[1] < fits[2]


@pytest.mark.parametrize("name", list(REQUESTS))
def test_prototypes_end_where_the_rest_is(name):
    after, concept = erased("prototype_erasure", name), indicators(name)
    rest = after[concept.sum(axis=1) == 0].mean(axis=0)
    for column in concept.T > 0:
        np.testing.assert_allclose(after[column].mean(axis=0), rest, atol=1e-5)
    np.testing.assert_allclose(rest, Z[concept.sum(axis=1) == 0].mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("name", list(METHODS))
def test_requests_side_by_side_and_a_folded_head(name):
    requests = ju.from_classes(DATA, [[0], [1]])
    model, variables = headed(), headed().init(jax.random.key(1))
    options = {"rounds": 2} if name == "nullspace_projection" else {}
    folded = getattr(ju, name)(model, **options)
    together = jax.jit(ju.batched(folded))(variables, DATA, requests, jax.random.split(KEY, 2))
    for place in range(2):
        inserted = METHODS[name](VARIABLES, DATA, lane(requests, place), KEY)
        found = model.forward(lane(together.variables, place), DATA.train.inputs).logits
        np.testing.assert_allclose(found, MODEL.forward(inserted.variables, DATA.train.inputs).logits, atol=1e-5)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_stream_keeps_what_was_erased_before(name):
    requests, keys = ju.from_classes(DATA, [[0], [1]]), jax.random.split(KEY, 2)
    model, variables = headed(), headed().init(jax.random.key(1))
    options = {"rounds": 2} if name == "nullspace_projection" else {}
    folded = jax.jit(ju.streamed(getattr(ju, name)(model, **options)))(variables, DATA, requests, keys)
    inserted = jax.jit(ju.streamed(METHODS[name]))(VARIABLES, DATA, requests, keys)
    found = MODEL.forward(inserted.variables, DATA.train.inputs).logits
    np.testing.assert_allclose(found, model.forward(folded.variables, DATA.train.inputs).logits, atol=1e-5)
    alone = METHODS[name](VARIABLES, DATA, lane(requests, 1), KEY)
    assert np.max(np.abs(found - MODEL.forward(alone.variables, DATA.train.inputs).logits)) > 1e-2


def test_real_targets_are_forgotten_by_membership():
    data = DATA._replace(train=DATA.train._replace(targets=DATA.train.targets * 1.0))
    first, second = (METHODS["concept_erasure"](VARIABLES, x, REQUESTS["rows"], KEY) for x in (data, DATA))
    assert distance(first.variables, second.variables) < 1e-12


def test_moments_must_be_there():
    with pytest.raises(ValueError, match="moments"):
        METHODS["concept_erasure"](VARIABLES, blobs(), REQUESTS["rows"], KEY)
    with pytest.raises(ValueError, match="rounds"):
        ju.nullspace_projection(MODEL, rounds=0)
    assert jnp.isfinite(DATA.extra["moments"]).all()
