"""Attacks that go round the removed rows: neighbours, classes, and prototypes of a class."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import audit
from tests.problems import NUM_CLASSES, NUM_FEATURES, blobs, headed, held_out, network


def test_neighbours_of_the_same_class_are_averaged():
    rng = np.random.default_rng(0)
    public, candidates = rng.normal(size=(30, 2)), rng.normal(size=(4, 2))
    labels, asked = rng.integers(0, 3, 30), np.array([0, 1, 2, 5])
    before, after = rng.normal(size=(2, 30, 3))
    moved = np.linalg.norm(jax.nn.softmax(before) - jax.nn.softmax(after), axis=1)
    found = audit.neighbour_changes(before, after, public, candidates, neighbours=3)
    theirs = audit.neighbour_changes(before, after, public, candidates, neighbours=3, targets=labels, candidate_targets=asked)
    for place, row in enumerate(candidates):
        order = np.argsort(np.sum((public - row) ** 2, axis=1))
        np.testing.assert_allclose(found[place], moved[order[:3]].mean(), rtol=1e-5)
        own = [n for n in order if labels[n] == asked[place]][:3]
        if own:
            np.testing.assert_allclose(theirs[place], moved[own].mean(), rtol=1e-5)
    assert np.isnan(theirs[3])  # nobody is of class 5
    with pytest.raises(ValueError, match="neither"):
        audit.neighbour_changes(before, after, public, candidates, targets=labels)
    with pytest.raises(ValueError, match="31 neighbours"):
        audit.neighbour_changes(before, after, public, candidates, neighbours=31)


def test_the_class_of_the_removed_rows_is_the_one_that_moved_most():
    rng = np.random.default_rng(1)
    targets = np.repeat([0, 1, 2], [2, 3, 20])
    before = rng.normal(size=(25, 3))
    for label in range(3):  # whatever the number of rows
        after = before + np.where(targets == label, 1.0, 0.5)[:, None] * rng.normal(size=(25, 3))
        changes = audit.class_changes(before, np.where(targets[:, None] == label, -before, before), targets, 4)
        assert (int(np.argmax(changes)), float(changes[3])) == (label, -np.inf)
        assert np.count_nonzero(np.asarray(changes[:3])) == 1
        moved = np.linalg.norm(jax.nn.softmax(before) - jax.nn.softmax(after), axis=1)
        means = [moved[targets == c].mean() for c in range(3)]
        np.testing.assert_allclose(audit.class_changes(before, after, targets, 3), means, rtol=1e-4)


def few(data, count, label=None):
    """The first rows of every class, or of one."""
    labels = np.asarray(data.train.targets)
    rows = [np.flatnonzero(labels == c)[:count] for c in range(NUM_CLASSES) if label in (None, c)]
    return jax.tree.map(lambda x: x[np.concatenate(rows)], data.train)


def test_prototypes_bring_back_a_class_that_only_the_head_forgot():
    model, data = headed(), blobs()
    train = ju.iterate(ju.retrain(model, optax.adam(0.05)), num_steps=150, batch_size=1, retain_batch_size=16)
    trained = jax.jit(train)(model.init(jax.random.key(0)), data, ju.empty_request(), jax.random.key(1)).variables
    kernel, bias = model.head.get(trained)
    suppressed = model.head.set(trained, kernel, bias.at[1].set(-100.0))  # the class is never named
    rows = jax.tree.map(lambda x: x[3:], few(data, 15, label=1))
    found = jax.jit(lambda v: audit.relearn_with_prototypes(model, v, few(data, 3), rows, optax.sgd(20.0), num_steps=30))(
        suppressed
    )
    assert found.curve[0] == 0
    assert min(float(found.curve[-1]), float(found.nearest_mean)) > 0.8
    body = found.variables.params["body"]
    np.testing.assert_array_equal(body, trained.params["body"])  # features stay
    # features that say nothing of the class bring nothing back
    blind = suppressed._replace(params={**suppressed.params, "body": jnp.zeros_like(body)})
    nothing = audit.relearn_with_prototypes(model, blind, few(data, 3), rows, optax.sgd(20.0), num_steps=5)
    assert nothing.nearest_mean in (0, 1)  # all features are one point


def test_nearest_means_are_those_of_the_shots():
    model, data = headed(), blobs()
    variables = model.init(jax.random.key(3))
    shots, rows = few(data, 4), held_out()
    found = audit.relearn_with_prototypes(model, variables, shots, rows, optax.sgd(0.0), num_steps=2)
    features = [np.asarray(model.forward(variables, x.inputs).features["penultimate"]) for x in (shots, rows)]
    means = np.stack([features[0][np.asarray(shots.targets) == c].mean(axis=0) for c in range(NUM_CLASSES)])
    nearest = np.argmin(((features[1][:, None] - means) ** 2).sum(axis=2), axis=1)
    assert float(found.nearest_mean) == pytest.approx(np.mean(nearest == np.asarray(rows.targets)), abs=1e-6)
    assert len(set(np.asarray(found.curve).tolist())) == 1  # a rate of 0 teaches nothing
    lacking = jax.tree.map(lambda x: x[np.asarray(shots.targets) != 2], shots)
    partly = audit.relearn_with_prototypes(model, variables, lacking, rows, optax.sgd(0.5), num_steps=2)
    assert bool(jnp.all(jnp.isfinite(partly.variables.params["head"])))
    with pytest.raises(ValueError, match="head"):
        audit.relearn_with_prototypes(network(), variables, shots, rows, optax.sgd(0.1))
    with pytest.raises(ValueError, match="penultimate"):
        audit.relearn_with_prototypes(model, variables, shots, rows, optax.sgd(0.1), layer="last")
    assert rows.inputs.shape[1] == NUM_FEATURES
