"""Dampening by importances: SSD, its form without labels, and the adaptive one."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.curvature.importances import dampened
from jaxunlearn.slots import IMPORTANCES, SENSITIVITIES
from tests.problems import blobs, distance, lane, network

KEY = jax.random.key(0)
DATA, MODEL = blobs(), network()
VARIABLES = MODEL.init(jax.random.key(1))
ROWS = [3, 8, 21, 40]
REQUEST = lane(ju.from_indices(DATA, [ROWS]), 0)


@cache
def preparation(method=ju.ssd, **options):
    return jax.jit(ju.prepare(method(MODEL, **options)))


def importances(data=DATA, slot=IMPORTANCES, **options):
    return slot.get(preparation(**options)(VARIABLES, data, KEY)).value


def own():
    """Importances of the rows of the request."""
    return importances(DATA._replace(present=jnp.zeros(60).at[jnp.array(ROWS)].set(1)))


@cache
def program():
    """`ssd` with importances of all rows that are given, and traced settings."""

    def run(values, alpha, strength):
        data = IMPORTANCES.put(DATA, values, at=VARIABLES, how="squares of gradients of batches of 64")
        return ju.ssd(MODEL, alpha=alpha, strength=strength)(VARIABLES, data, REQUEST, KEY)

    return jax.jit(run)


def test_equal_importances_change_nothing_and_the_threshold_is_where_it_is_said():
    result = ju.check(program()(own(), 1.001, 1.0), allow=[ju.Status.UNCHANGED])
    assert distance(result.variables, VARIABLES) == 0
    assert float(result.stats["selected"]) == 0
    assert float(program()(own(), 0.999, 1.0).stats["selected"]) == 1


def test_a_leaf_that_matters_c_times_as_much_is_multiplied_by_strength_over_c():
    values = own()
    values = {**values, "head": values["head"] / 8}
    result = ju.check(program()(values, 5.0, 0.5))
    np.testing.assert_allclose(result.variables.params["head"], VARIABLES.params["head"] * 0.5 / 8, rtol=1e-5)
    assert distance(result.variables.params["body"], VARIABLES.params["body"]) == 0
    assert distance(program()(values, 5.0, np.inf).variables, VARIABLES) == 0


def test_only_the_ratio_counts():
    rng = np.random.default_rng(0)
    a, b = ({name: np.abs(c * rng.normal(size=x.shape)) + 0.1 for name, x in VARIABLES.params.items()} for c in (1, 3))
    plain = dampened(VARIABLES.params, a, b, alpha=2.0, strength=1.0)
    scaled = dampened(VARIABLES.params, *jax.tree.map(lambda x: 4 * x, (a, b)), alpha=2.0, strength=1.0)
    assert distance(plain[0], scaled[0]) < 1e-6
    assert 0 < float(plain[1]) < 1


def test_importances_of_batches_fall_with_the_batch_size_and_those_of_rows_do_not():
    def total(**options):
        return sum(float(np.sum(x)) for x in jax.tree.leaves(importances(**options)))

    assert total(batch_size=1) > 2 * total(batch_size=8) > 2 * total()
    np.testing.assert_allclose(total(average="sample", batch_size=7), total(batch_size=1), rtol=1e-5)


def test_importances_are_those_of_the_published_loop():
    def loss(params, part):
        return jnp.mean(MODEL.loss(MODEL.forward(ju.Variables(params), part.inputs), part))

    parts = [ju.Examples(*(x[start : start + 8] for x in DATA.train)) for start in range(0, 60, 8)]
    slope = jax.jit(jax.grad(loss))
    gradients = [slope(VARIABLES.params, part) for part in parts]
    squares = jax.tree.map(lambda *g: sum(np.square(x) for x in g) / len(parts), *gradients)
    assert distance(importances(batch_size=8), squares) < 1e-6


def test_lfssd_reads_no_label():
    prepare, unlearn = preparation(ju.lfssd), jax.jit(ju.lfssd(MODEL, alpha=1.1))
    relabelled = DATA._replace(train=DATA.train._replace(targets=2 - DATA.train.targets))
    prepared = [prepare(VARIABLES, data, KEY) for data in (DATA, relabelled)]
    assert distance(*(SENSITIVITIES.get(data).value for data in prepared)) == 0
    results = [unlearn(VARIABLES, data, REQUEST, KEY) for data in prepared]
    assert distance(results[0].variables, results[1].variables) == 0
    assert float(results[0].stats["selected"]) > 0
    size = jax.jit(jax.grad(lambda p: jnp.mean(jnp.sum(MODEL.forward(ju.Variables(p), DATA.train.inputs).logits ** 2, 1))))
    expected = jax.tree.map(np.abs, size(VARIABLES.params))
    assert distance(SENSITIVITIES.get(prepared[0]).value, expected) < 1e-5


def test_assd_selects_more_for_larger_requests_and_its_threshold_is_the_percentile():
    prepared = preparation()(VARIABLES, DATA, KEY)
    requests = ju.from_indices(DATA, [[0], range(30), ROWS])
    unlearn = ju.assd(MODEL)
    results = jax.jit(jax.vmap(lambda request: unlearn(VARIABLES, prepared, request, KEY)))(requests)
    assert not results.status.any()
    assert float(results.stats["selected"][0]) <= float(results.stats["selected"][1])
    ratios = jax.tree.map(lambda a, b: np.ravel(a / b), own(), IMPORTANCES.get(prepared).value)
    threshold = np.percentile(np.concatenate(jax.tree.leaves(ratios)), 100 - np.log(1 + 400 / 60))
    np.testing.assert_allclose(results.stats["alpha"][2], threshold, rtol=1e-4)


@pytest.mark.parametrize("method", [ju.ssd, ju.assd, ju.lfssd])
def test_importances_that_are_missing_or_of_another_kind_are_refused(method):
    with pytest.raises(ValueError, match=r"is missing .* fill it with jaxunlearn.prepare\(unlearn\)"):
        jax.eval_shape(method(MODEL), VARIABLES, DATA, REQUEST, KEY)
    other = jax.eval_shape(ju.prepare(method(MODEL, batch_size=16)), VARIABLES, DATA, KEY)
    with pytest.raises(ValueError, match=r"batches of 16, and .* batches of 64 is needed: prepare it anew"):
        jax.eval_shape(method(MODEL), VARIABLES, other, REQUEST, KEY)
    with pytest.raises(ValueError, match="average must be"):
        method(MODEL, average="epoch")
