"""Dampening and noise by importances: SSD and its relatives, Fisher forgetting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature
from jaxunlearn.closed_form import lfssd, ssd
from jaxunlearn.curvature.importances import Importances, dampened
from tests.problems import blobs, distance, lane, network

KEY = jax.random.key(0)
DATA, MODEL = blobs(), network()
VARIABLES = MODEL.init(jax.random.key(1))
REQUEST = lane(ju.from_indices(DATA, [[3, 8, 21, 40]]), 0)
ONES = jax.tree.map(jnp.ones_like, VARIABLES.params)


def with_importances(values, name="importances", made_by="squares of gradients of batches of 64"):
    return DATA._replace(extra={name: Importances(values, made_by)})


def own(average="batch", batch_size=64):
    prepared = ssd.prepare(MODEL, average=average, batch_size=batch_size)
    gone = jnp.zeros(60).at[jnp.array([3, 8, 21, 40])].set(1)
    return prepared(VARIABLES, DATA._replace(present=gone), KEY).extra["importances"].values


def test_equal_importances_change_nothing():
    result = ju.check(ju.ssd(MODEL, alpha=1.0)(VARIABLES, with_importances(own()), REQUEST, KEY))
    assert distance(result.variables, VARIABLES) == 0
    assert float(result.stats["selected"]) == 0


def test_a_leaf_that_matters_c_times_as_much_is_multiplied_by_strength_over_c():
    values = {**own(), "head": own()["head"] / 8}
    result = ju.check(ju.ssd(MODEL, alpha=5.0, strength=0.5)(VARIABLES, with_importances(values), REQUEST, KEY))
    np.testing.assert_allclose(result.variables.params["head"], VARIABLES.params["head"] * 0.5 / 8, rtol=1e-5)
    assert distance(result.variables.params["body"], VARIABLES.params["body"]) == 0
    unlimited = ju.ssd(MODEL, alpha=5.0, strength=jnp.inf)(VARIABLES, with_importances(values), REQUEST, KEY)
    assert distance(unlimited.variables, VARIABLES) == 0


def test_only_the_ratio_counts():
    a = jax.tree.map(lambda x: jnp.abs(jax.random.normal(KEY, x.shape)) + 0.1, ONES)
    b = jax.tree.map(lambda x: 3 * jnp.abs(jax.random.normal(jax.random.key(5), x.shape)), ONES)
    plain = dampened(VARIABLES.params, a, b, alpha=2.0, strength=1.0)
    scaled = dampened(VARIABLES.params, *jax.tree.map(lambda x: 4 * x, (a, b)), alpha=2.0, strength=1.0)
    assert distance(plain[0], scaled[0]) < 1e-6
    assert 0 < float(plain[1]) < 1


def test_importances_of_batches_fall_with_the_batch_size_and_those_of_rows_do_not():
    def total(**options):
        values = ssd.prepare(MODEL, **options)(VARIABLES, DATA, KEY).extra["importances"].values
        return sum(float(jnp.sum(x)) for x in jax.tree.leaves(values))

    assert total(batch_size=1) > 2 * total(batch_size=8) > 2 * total(batch_size=60)
    np.testing.assert_allclose(total(average="sample", batch_size=7), total(batch_size=1), rtol=1e-5)


def test_importances_are_those_of_the_published_loop():
    def loss(params, part):
        return jnp.mean(MODEL.loss(MODEL.forward(ju.Variables(params), part.inputs), part))

    parts = [ju.Examples(*(x[start : start + 16] for x in DATA.train)) for start in range(0, 60, 16)]
    gradients = [jax.grad(loss)(VARIABLES.params, part) for part in parts]
    squares = jax.tree.map(lambda *g: sum(x**2 for x in g) / len(parts), *gradients)
    found = ssd.prepare(MODEL, batch_size=16)(VARIABLES, DATA, KEY).extra["importances"].values
    assert distance(found, squares) < 1e-6


def test_lfssd_reads_no_label():
    prepared = lfssd.prepare(MODEL)(VARIABLES, DATA, KEY)
    relabelled = DATA._replace(train=DATA.train._replace(targets=2 - DATA.train.targets))
    again = lfssd.prepare(MODEL)(VARIABLES, relabelled, KEY)
    assert distance(again.extra["sensitivities"].values, prepared.extra["sensitivities"].values) == 0
    unlearn = jax.jit(ju.lfssd(MODEL, alpha=1.1))
    results = [unlearn(VARIABLES, x, REQUEST, KEY) for x in (prepared, again)]
    assert distance(results[0].variables, results[1].variables) == 0
    assert float(results[0].stats["selected"]) > 0
    gradient = jax.grad(lambda p: jnp.mean(jnp.sum(MODEL.forward(ju.Variables(p), DATA.train.inputs).logits ** 2, 1)))
    assert distance(prepared.extra["sensitivities"].values, jax.tree.map(jnp.abs, gradient(VARIABLES.params))) < 1e-5


def test_assd_selects_more_for_larger_requests_and_its_threshold_is_the_percentile():
    prepared = ssd.prepare(MODEL)(VARIABLES, DATA, KEY)
    unlearn = jax.jit(ju.assd(MODEL))
    requests = [lane(ju.from_indices(DATA, [range(count)]), 0) for count in (1, 30)]
    small, large = (ju.check(unlearn(VARIABLES, prepared, request, KEY)) for request in requests)
    assert float(small.stats["selected"]) <= float(large.stats["selected"])
    ratios = jax.tree.map(lambda a, b: a / b, own(), prepared.extra["importances"].values)
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(ratios)])
    result = unlearn(VARIABLES, prepared, REQUEST, KEY)
    np.testing.assert_allclose(result.stats["alpha"], np.percentile(flat, 100 - np.log(1 + 400 / 60)), rtol=1e-4)


@pytest.mark.parametrize("method", [ju.ssd, ju.assd, ju.lfssd])
def test_importances_that_are_missing_or_of_another_kind_are_refused(method):
    with pytest.raises(ValueError, match=r"is missing: make it with the method's own prepare"):
        method(MODEL)(VARIABLES, DATA, REQUEST, KEY)
    prepare = lfssd.prepare if method is ju.lfssd else ssd.prepare
    other = prepare(MODEL, batch_size=16)(VARIABLES, DATA, KEY)
    with pytest.raises(ValueError, match=r"batches of 16, the method wants .* batches of 64: prepare them alike"):
        method(MODEL)(VARIABLES, other, REQUEST, KEY)
    with pytest.raises(ValueError, match="average must be"):
        method(MODEL, average="epoch")(VARIABLES, other, REQUEST, KEY)


# Fisher forgetting


def prepared_fisher():
    fit = curvature.diagonal(MODEL, kind="fisher")
    return curvature.prepare(fit, name="fisher_diagonal")(VARIABLES, DATA, KEY)


def spread(form, request, **options):
    unlearn = ju.fisher_forgetting(MODEL, form=form, **options)
    data = prepared_fisher()
    many = jax.jit(jax.vmap(lambda key: unlearn(VARIABLES, data, request, key).variables.params))
    params = many(jax.random.split(jax.random.key(2), 4000))
    return jax.tree.map(lambda x: (jnp.mean(x, axis=0), jnp.var(x, axis=0)), params)


def retained_fisher():
    kept = DATA.present.at[REQUEST.indices[:4]].set(0)
    return curvature.diagonal(MODEL, kind="fisher")(VARIABLES, DATA.train, kept, KEY).values


def test_the_papers_noise_has_the_variance_of_the_inverse_root():
    found = spread("paper", REQUEST, strength=1e-6, damping=1e-4)
    for name, fisher in retained_fisher().items():
        mean, variance = found[name]
        expected = jnp.sqrt(1e-6 / (fisher + 1e-4))
        np.testing.assert_allclose(variance, expected, rtol=0.15)
        np.testing.assert_allclose(mean, VARIABLES.params[name], atol=5 * float(jnp.sqrt(expected.max() / 4000)))


def test_the_released_noise_follows_its_steps_classes_included():
    target = jnp.array([False, True, False])
    for request in (REQUEST, REQUEST._replace(target=target)):
        found = spread("released", request, strength=1e-4)
        fisher = retained_fisher()
        body = np.minimum(1 / (fisher["body"] + 1e-8), 1e3) * 1e-4
        np.testing.assert_allclose(found["body"][1], np.broadcast_to(body.mean(axis=0), (4, 8)), rtol=0.15)
        head = np.minimum(1 / (fisher["head"] + 1e-8), 1e2) * 1e-4
        head = np.broadcast_to(head.mean(axis=0), (8, 3)) * 10
        mean = np.asarray(VARIABLES.params["head"])
        if request is not REQUEST:
            head, mean = np.where(target, 1e-3, head), np.where(target, 0, mean)
        np.testing.assert_allclose(found["head"][1], head, rtol=0.15)
        np.testing.assert_allclose(found["head"][0], mean, atol=5 * np.sqrt(head.max() / 4000))


def test_fisher_forgetting_names_what_it_needs():
    with pytest.raises(ValueError, match=r"needs data.extra\['fisher_diagonal'\]"):
        ju.fisher_forgetting(MODEL)(VARIABLES, DATA, REQUEST, KEY)
    with pytest.raises(ValueError, match="form must be"):
        ju.fisher_forgetting(MODEL, form="mine")
