"""Learners of sums, and exact removal from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import summation
from tests.problems import NUM_CLASSES, NUM_FEATURES, blobs, lane

KEY = jax.random.key(0)
LEARNERS = {
    "ridge": summation.ridge(penalty=0.5),
    "random features": summation.ridge(features=summation.random_features(KEY, 6, NUM_FEATURES)),
    "nearest mean": summation.nearest_mean(NUM_CLASSES),
    "Gaussian naive Bayes": summation.gaussian_naive_bayes(NUM_CLASSES),
    "multinomial naive Bayes": summation.multinomial_naive_bayes(NUM_CLASSES),
    "linear discriminant": summation.linear_discriminant(NUM_CLASSES, shrinkage=0.1),
    "quadratic discriminant": summation.quadratic_discriminant(NUM_CLASSES, shrinkage=0.1),
}


def rows_for(name, rows=60):
    data = blobs(rows)
    inputs, targets = data.train
    if name in ("ridge", "random features"):
        return ju.training_data(inputs, jnp.stack([inputs[:, 0], inputs[:, 1] ** 2], axis=1))
    return ju.training_data(jnp.abs(inputs), targets) if name.startswith("multi") else data


def asked(data, *rows):
    return lane(ju.from_indices(data, [rows]), 0)


def value(variables):
    """The sum, calculated where float64 is on."""
    with jax.enable_x64(True):
        return np.asarray(variables.state.value), np.asarray(variables.state.error)


def removal(learner, data, *rows, request=None):
    """The fit, the answer to a request, and the fit without its rows, in one program."""

    @jax.jit
    def run(data, request):
        fitted = summation.fit(learner, data)
        result = summation.summation(learner)(fitted, data, request, KEY)
        return fitted, result, summation.fit(learner, ju.remove(data, request))

    return run(data, asked(data, *rows) if request is None else request)


def agree(ours, theirs, rtol=1e-9):
    def close(a, b):
        scale = np.abs(np.asarray(b)).max()
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale)

    jax.tree.map(close, ours, theirs)


@pytest.mark.parametrize("name", LEARNERS)
def test_the_answer_is_the_fit_without_the_rows(name):
    learner, data = LEARNERS[name], rows_for(name)
    fitted, result, again = removal(learner, data, 3, 17, 40)
    assert all(x.dtype == np.float64 for x in jax.tree.leaves(fitted))
    agree(ju.check(result).variables.params, again.params)
    agree(value(result.variables)[0], value(again)[0], 1e-12)
    assert not bool(result.stats["summed_anew"])
    logits = learner.model().forward(result.variables, data.train.inputs).logits
    assert logits.shape == data.train.targets.shape if name in ("ridge", "random features") else logits.shape[1] == NUM_CLASSES


def test_learners_equal_well_known_ones():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import Ridge
    from sklearn.naive_bayes import GaussianNB, MultinomialNB

    for name, theirs in (
        ("Gaussian naive Bayes", GaussianNB()),
        ("multinomial naive Bayes", MultinomialNB()),
        ("linear discriminant", LinearDiscriminantAnalysis(solver="lsqr")),
    ):
        data = rows_for(name)
        learner = summation.linear_discriminant(NUM_CLASSES, shrinkage=0.0) if name.startswith("linear") else LEARNERS[name]
        inputs, targets = (np.asarray(x, np.float64) for x in data.train)
        logits = learner.model().forward(summation.fit(learner, data), data.train.inputs).logits
        np.testing.assert_allclose(
            jax.nn.log_softmax(logits),
            theirs.fit(inputs, targets).predict_log_proba(inputs),
            rtol=1e-3,
            atol=1e-3,
            err_msg=name,
        )
    data = rows_for("ridge")
    inputs, targets = (np.asarray(x, np.float64) for x in data.train)
    agree(summation.fit(LEARNERS["ridge"], data).params["weights"].T, Ridge(alpha=0.5).fit(inputs, targets).coef_)


def test_ten_thousand_removals_are_one_fit():
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(10_200, 3)) * [1, 100, 1e-3]).astype(np.float32)
    data = ju.training_data(inputs, (inputs[:, 0] + rng.normal(size=10_200)).astype(np.float32))
    learner = LEARNERS["ridge"]
    requests = ju.from_indices(data, [[row] for row in rng.permutation(10_200)[:10_000]])
    stream = jax.jit(ju.streamed(summation.summation(learner)))
    result = stream(summation.fit(learner, data), data, requests, jax.random.split(KEY, 10_000))
    assert np.all(result.status == ju.Status.OK)
    again = summation.fit(learner, data._replace(present=result.extra["present"]))
    agree(result.variables.params, again.params)
    (ours, bound), (theirs, own) = value(result.variables), value(again)
    assert np.all(np.abs(ours - theirs) <= bound + own)


def test_rounding_is_bounded_and_summed_anew_where_it_is_too_much():
    inputs = np.ones((50, 2), np.float32) * np.array([1.0, 1e-3], np.float32)
    inputs[:40] *= 1e5  # what stays is far smaller than what was summed
    data = ju.training_data(inputs, np.linspace(0, 1, 50, dtype=np.float32))
    learner = summation.ridge(penalty=1e-3)
    request = asked(data, *range(40))
    fitted = summation.fit(learner, data)
    exact = summation.fit(learner, ju.remove(data, request))
    found = summation.summation(learner)(fitted, data, request, KEY)
    assert bool(found.stats["summed_anew"])
    agree(found.variables.params, exact.params)
    loose = summation.summation(learner, tolerance=0.9)(fitted, data, request, KEY)
    assert not bool(loose.stats["summed_anew"])
    (ours, bound), (theirs, own) = value(loose.variables), value(exact)
    assert np.all(np.abs(ours - theirs) <= bound + own)


def test_requests_side_by_side_equal_single_ones_padded_or_not():
    learner, data = LEARNERS["quadratic discriminant"], rows_for("quadratic discriminant")
    fitted, unlearn = summation.fit(learner, data), summation.summation(learner)
    requests = ju.from_indices(data, [[1], [2, 3, 4], [5, 6]])
    keys = jax.random.split(KEY, 3)
    for chunk in (1, 3):
        many = jax.jit(ju.batched(unlearn, chunk=chunk))(fitted, data, requests, keys)
        alone = unlearn(fitted, data, asked(data, 5, 6), keys[2])
        agree(lane(many.variables, 2), alone.variables)
        np.testing.assert_array_equal(many.status, ju.Status.OK)


def test_large_columns_do_not_hide_small_ones():
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(60, 3)) * np.array([1e6, 1.0, 1e-6])
    inputs[:4, 2] *= 1e9  # what makes up the small column, until it is removed
    data = ju.training_data(inputs.astype(np.float32), rng.normal(size=60).astype(np.float32))
    _, found, again = removal(summation.ridge(penalty=1e-14), data, 0, 1, 2, 3)
    assert bool(ju.check(found).stats["summed_anew"])
    np.testing.assert_allclose(found.variables.params["weights"], again.params["weights"], rtol=1e-9)


def test_what_only_removed_rows_held_is_exactly_zero():
    data = rows_for("quadratic discriminant")
    inputs = np.array(data.train.inputs)
    inputs[:, 2] = 0
    inputs[[5, 9], 2] = [0.1, 0.3]  # as in rare words, or pixels at the rim
    for name in ("Gaussian naive Bayes", "quadratic discriminant"):
        _, found, again = removal(LEARNERS[name], ju.training_data(inputs, data.train.targets), 5, 9)
        assert not bool(ju.check(found).stats["summed_anew"])
        ours, theirs = value(found.variables)[0], value(again)[0]
        assert np.any(theirs == 0)
        np.testing.assert_array_equal(ours[theirs == 0], 0)
        agree(found.variables.params, again.params)


def test_rows_that_break_a_sum_can_be_removed():
    data = rows_for("quadratic discriminant")
    broken = data._replace(train=data.train._replace(inputs=data.train.inputs.at[7, 1].set(jnp.nan).at[8, 0].set(jnp.inf)))
    fitted, found, again = removal(LEARNERS["quadratic discriminant"], broken, 7, 8)
    assert not np.all(np.isfinite(fitted.params["means"]))
    assert bool(ju.check(found).stats["summed_anew"])
    agree(found.variables.params, again.params)


def test_few_rows_touch_only_their_own_classes():
    learner, data = LEARNERS["quadratic discriminant"], rows_for("quadratic discriminant")
    rows = np.flatnonzero(np.asarray(data.train.targets) == 2)
    assert NUM_CLASSES > 2
    fitted, found, again = removal(learner, data, rows[0], rows[3])  # two slots of one class
    agree(ju.check(found).variables.params, again.params)
    for old, new in zip(jax.tree.leaves(fitted), jax.tree.leaves(found.variables), strict=True):
        if np.ndim(old) > 1:
            np.testing.assert_array_equal(np.asarray(old)[:2], np.asarray(new)[:2])
    run = jax.jit(summation.summation(learner))
    twice = run(fitted, data, ju.ForgetRequest(jnp.array([rows[0], rows[0]]), jnp.ones(2)), KEY)
    once = run(fitted, data, ju.ForgetRequest(jnp.array([rows[0], 0]), jnp.array([1.0, 0.0])), KEY)
    assert (int(twice.status), int(once.status)) == (ju.Status.INVALID_ROWS, ju.Status.OK)
    jax.tree.map(np.testing.assert_array_equal, twice.variables, once.variables)
    absent = run(fitted, data, ju.ForgetRequest(jnp.array([999, -1]), jnp.ones(2)), KEY)
    jax.tree.map(np.testing.assert_array_equal, absent.variables, fitted)
    # rows that left without having been removed from the sums
    left = ju.remove(data, asked(data, 1, 2))
    missed = run(fitted, left, ju.ForgetRequest(jnp.array([3, 3]), jnp.array([1.0, 0.0])), KEY)
    assert bool(ju.check(missed).stats["summed_anew"])
    agree(missed.variables.params, removal(learner, left, 3)[2].params)


@pytest.mark.parametrize("name", ["ridge", "Gaussian naive Bayes", "linear discriminant", "quadratic discriminant"])
def test_one_row_left(name):
    data = rows_for(name, rows=12)
    _, found, again = removal(LEARNERS[name], data, *range(11))
    params = ju.check(found).variables.params
    if not name.endswith("discriminant"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), params, again.params)
    elif name.startswith("quadratic"):  # one row has no covariance but rounding
        agree(params["means"], again.params["means"])
    logits = LEARNERS[name].model().forward(found.variables, data.train.inputs[11:]).logits
    if logits.shape[-1] == NUM_CLASSES:
        assert int(np.argmax(logits)) == int(data.train.targets[11])


@pytest.mark.parametrize("kind", ["far out on the cosine", "in float32", "in float64"])
def test_features_that_change_with_the_rows_beside_them_are_allowed_for(kind):
    data, kernel = rows_for("ridge"), jax.random.normal(KEY, (NUM_FEATURES, 6))
    large = data._replace(train=data.train._replace(inputs=data.train.inputs * 1e7))
    learner, rows, anew = {
        "far out on the cosine": (LEARNERS["random features"], large, True),
        "in float32": (summation.ridge(features=lambda x: jnp.tanh(x.astype(jnp.float32) @ kernel)), data, True),
        "in float64": (summation.ridge(features=lambda x: jnp.tanh(x @ kernel)), data, False),
    }[kind]
    _, found, again = removal(learner, rows, 4, 11)
    assert bool(ju.check(found).stats["summed_anew"]) == anew
    agree(found.variables.params, again.params)


def test_float64_may_be_on_for_everything():
    with jax.enable_x64(True):
        _, found, again = removal(LEARNERS["Gaussian naive Bayes"], rows_for("Gaussian naive Bayes"), 3)
        agree(ju.check(found).variables.params, again.params)


def test_a_class_that_is_gone_is_never_predicted():
    for name in set(LEARNERS) - {"ridge", "random features"}:
        learner, data = LEARNERS[name], rows_for(name)
        gone = lane(ju.from_classes(data, [[1]]), 0)
        result = ju.check(summation.summation(learner)(summation.fit(learner, data), data, gone, KEY))
        logits = learner.model().forward(result.variables, data.train.inputs).logits
        assert not np.any(np.argmax(logits, axis=1) == 1), name
        assert np.all(np.isfinite(logits)), name


def test_rows_that_do_not_count_are_not_read():
    learner, data = LEARNERS["ridge"], rows_for("ridge")
    gone = ju.remove(data, asked(data, 7, 8))
    broken = gone._replace(train=gone.train._replace(inputs=gone.train.inputs.at[7].set(jnp.nan)))
    agree(summation.fit(learner, broken).params, summation.fit(learner, gone).params, 1e-13)
    request = asked(data, 3, 8)  # one of them was removed before
    result = summation.summation(learner)(summation.fit(learner, broken), broken, request, KEY)
    agree(result.variables.params, summation.fit(learner, ju.remove(gone, asked(gone, 3))).params)
    nothing = summation.summation(learner)(summation.fit(learner, gone), gone, ju.empty_request(), KEY)
    assert int(nothing.status) == ju.Status.EMPTY_REQUEST


def test_bad_input_gets_a_clear_error():
    data = blobs()
    with pytest.raises(TypeError, match="ridge"):
        summation.summation(ju.Model(lambda v, x: x, ju.losses.cross_entropy))
    with pytest.raises(ValueError, match="tolerance"):
        summation.summation(LEARNERS["ridge"], tolerance=2.0)
    with pytest.raises(TypeError, match="real targets"):
        summation.fit(LEARNERS["ridge"], data)
    with pytest.raises(ValueError, match="integer class"):
        summation.fit(LEARNERS["nearest mean"], rows_for("ridge"))
    odd = data._replace(train=data.train._replace(targets=data.train.targets.at[4].set(-1)))
    with pytest.raises(ValueError, match="classes 0 to"):
        summation.fit(LEARNERS["nearest mean"], odd)
    unnoticed = jax.jit(lambda data: summation.fit(LEARNERS["nearest mean"], data))(odd)
    assert not np.all(np.isfinite(unnoticed.params["means"]))
    fitted = jax.tree.map(jnp.float32, summation.fit(LEARNERS["nearest mean"], data))
    with pytest.raises(ValueError, match="float64"):
        summation.summation(LEARNERS["nearest mean"])(fitted, data, asked(data, 1), KEY)
    with pytest.raises(ValueError, match=r"summation\.fit"):
        summation.summation(LEARNERS["nearest mean"])(ju.Variables({"w": jnp.ones(2)}), data, asked(data, 1), KEY)
