"""Linear erasures of a concept: what is left to a linear probe, and how far features move."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from tests.problems import blobs, distance, headed, lane

KEY = jax.random.key(0)
PLAIN, PLAIN_VARIABLES = headed(), headed().init(jax.random.key(1))
MODEL, VARIABLES = ju.insert_map(PLAIN, PLAIN_VARIABLES, ())
LABELS = np.asarray(blobs().train.targets)
METHODS = {"concept_erasure": {}, "nullspace_projection": {"rounds": 2}, "prototype_erasure": {}}
NAMES = ("rows", "class", "classes")


@cache
def prepared(folded=False):
    model, variables = (PLAIN, PLAIN_VARIABLES) if folded else (MODEL, VARIABLES)
    return jax.jit(ju.heads.prepare(model))(variables, blobs(), KEY)


def features():
    return np.asarray(ju.slots.FEATURES.get(prepared()).value, np.float64)


def requests():
    """Four rows, all of class 1, all of classes 0 and 1; one form, so that one program serves them all."""
    data = blobs()
    rows = ju.from_indices(data, [[3, 4, 5, 17]], capacity=60)
    classes = ju.from_classes(data, [[1], [0, 1]], capacity=60)
    rows = rows._replace(target=jnp.zeros_like(classes.target[:1]))
    return jax.tree.map(lambda *x: jnp.concatenate(x), rows, classes)


@cache
def program(method, folded=False, **options):
    unlearn = getattr(ju, method)(PLAIN if folded else MODEL, **{**METHODS[method], **options})
    return jax.jit(jax.vmap(unlearn, (None, None, 0, None)))


@cache
def answers(method, folded=False, **options):
    results = program(method, folded, **options)(PLAIN_VARIABLES if folded else VARIABLES, prepared(folded), requests(), KEY)
    assert not results.status.any()
    return results


def map_of(method, name, **options):
    (layer,) = lane(answers(method, **options).variables.params.map, NAMES.index(name))
    return np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64)


def erased(method, name, **options):
    kernel, bias = map_of(method, name, **options)
    return features() @ kernel + bias


def indicators(name):
    if name == "rows":
        return np.isin(np.arange(60), [3, 4, 5, 17])[:, None].astype(float)
    return np.stack([c == LABELS for c in ([1] if name == "class" else [0, 1])], axis=1).astype(float)


def covariance(x, y):
    return (x - x.mean(axis=0)).T @ (y - y.mean(axis=0)) / len(x)


@pytest.mark.parametrize("name", NAMES)
def test_no_linear_probe_of_the_concept_is_left(name):
    z, after = features(), erased("concept_erasure", name)
    assert np.max(np.abs(covariance(z, indicators(name)))) > 1e-2
    np.testing.assert_allclose(covariance(after, indicators(name)), 0, atol=1e-7)
    np.testing.assert_allclose(after.mean(axis=0), z.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_no_affine_map_that_erases_moves_features_less(name):
    z, after = features(), erased("concept_erasure", name)
    # any other eraser of the form z - M (z - mean) with M Cov(z, c) = Cov(z, c)
    cross, mean = covariance(z, indicators(name)), z.mean(axis=0)
    others = [cross @ np.linalg.pinv(weight @ cross) @ weight for weight in np.random.default_rng(0).normal(size=(20, 8, 8))]
    others.append(cross @ np.linalg.pinv(cross))
    moved = [np.sum(((z - mean) @ other.T) ** 2) for other in others]
    assert np.sum((after - z) ** 2) <= min(moved) * (1 + 1e-6)


def test_a_round_takes_the_directions_of_the_least_squares_classifier():
    z, (kernel, _) = features(), map_of("nullspace_projection", "class", rounds=1)
    direction = np.linalg.lstsq(z - z.mean(axis=0), indicators("class")[:, 0] - np.mean(LABELS == 1), rcond=None)[0]
    np.testing.assert_allclose(direction @ kernel / np.linalg.norm(direction), 0, atol=1e-5)
    np.testing.assert_allclose(kernel @ kernel, kernel, atol=1e-5)
    assert np.linalg.matrix_rank(kernel, tol=1e-3) == 7


def test_rounds_take_a_dimension_each_and_leave_less_to_the_next_classifier():
    ranks, fits = [], []
    target = indicators("class")[:, 0] - np.mean(LABELS == 1)
    for rounds in (1, 2, 3):
        after = erased("nullspace_projection", "class", rounds=rounds)
        centred = after - after.mean(axis=0)
        fits.append(np.mean((centred @ np.linalg.lstsq(centred, target, rcond=1e-5)[0] - target) ** 2))
        ranks.append(np.linalg.matrix_rank(map_of("nullspace_projection", "class", rounds=rounds)[0], tol=1e-3))
    assert ranks == [7, 6, 5]
    assert fits[0] < fits[1] < fits[2]


@pytest.mark.parametrize("name", NAMES)
def test_prototypes_end_where_the_rest_is(name):
    z, after, concept = features(), erased("prototype_erasure", name), indicators(name)
    rest = after[concept.sum(axis=1) == 0].mean(axis=0)
    for column in concept.T > 0:
        np.testing.assert_allclose(after[column].mean(axis=0), rest, atol=1e-5)
    np.testing.assert_allclose(rest, z[concept.sum(axis=1) == 0].mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_folded_head_gives_the_logits_of_an_inserted_map_and_keeps_what_was_erased_before(method):
    def logits(model, results):
        return jax.vmap(lambda v: model.forward(v, blobs().train.inputs).logits)(results.variables)

    inserted, folded = answers(method), answers(method, folded=True)
    expected = logits(MODEL, inserted)
    np.testing.assert_allclose(logits(PLAIN, folded), expected, atol=1e-5)
    # all of class 1 went first; the same moments are read again, which is what this status says
    again = []
    for place, results in ((False, inserted), (True, folded)):
        left = ju.remove(prepared(place), lane(requests(), 1))
        again.append(program(method, place)(lane(results.variables, 1), left, requests(), KEY))
        assert again[-1].status[0] == ju.Status.STALE
    found = logits(MODEL, again[0])
    np.testing.assert_allclose(logits(PLAIN, again[1]), found, atol=1e-5)
    assert np.max(np.abs(found[0] - expected[0])) > 1e-2


def test_real_targets_are_forgotten_by_membership():
    data = prepared()
    real = data._replace(train=data.train._replace(targets=data.train.targets * 1.0))
    found = program("concept_erasure")(VARIABLES, real, requests(), KEY)
    assert distance(lane(found.variables, 0), lane(answers("concept_erasure").variables, 0)) < 1e-12


def test_moments_must_be_there_and_rounds_a_number():
    for method, options in METHODS.items():
        with pytest.raises(ValueError, match=r"'moments'\] is missing .*jaxunlearn.prepare\(unlearn\)"):
            jax.eval_shape(getattr(ju, method)(MODEL, **options), VARIABLES, blobs(), lane(requests(), 0), KEY)
        with pytest.raises(ValueError, match="give the model its last layer"):
            getattr(ju, method)(PLAIN._replace(head=None))
    with pytest.raises(ValueError, match="rounds"):
        ju.nullspace_projection(MODEL, rounds=0)
