"""Maps in front of a head: identities, limits and the closed form."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.heads.maps import apply_map
from jaxunlearn.heads.moments import second_moments
from jaxunlearn.methods.representation_unlearning import JANUARY_NOISE_SCALE, LATER_NOISE_SCALE
from tests.methods.runs import answer
from tests.problems import blobs, distance, headed, lane

KEY = jax.random.key(0)
MODEL = headed()
DATA = blobs()
VARIABLES = MODEL.init(jax.random.key(1))
GONE = np.array([3, 4, 5, 17])
KEPT = np.setdiff1d(np.arange(60), GONE)
REQUEST = lane(ju.from_indices(DATA, [GONE]), 0)
AFFINE, AFFINE_VARIABLES = ju.insert_map(MODEL, VARIABLES, ())
DEEP = ju.insert_map(MODEL, VARIABLES, (4,), KEY)
PREPARED = jax.jit(ju.heads.prepare(MODEL))(VARIABLES, DATA, KEY)
Z = np.asarray(ju.slots.FEATURES.get(PREPARED).value, np.float64)
ADAM = optax.adam(0.01)


def run(model, variables, rate=0.0, *, request=REQUEST, data=DATA, beta=1.0, steps=1, **static):
    """Some of seven steps of SGD; beta and the step size are traced."""
    static = {"model": model, "num_steps": 7, "noise_scale": 0.0, **static}
    return answer(
        "representation_unlearning", variables, data=data, request=request, key=KEY, rate=rate, steps=steps, static=static,
        beta=beta,
    )  # fmt: skip


@cache
def closed_form(model, static):
    def unlearn(variables, data, request, settings):
        return ju.affine_representation_unlearning(model, **dict(static), **settings)(variables, data, request, KEY)

    return jax.jit(unlearn)


def closed(
    request=REQUEST, data=PREPARED, model=AFFINE, variables=AFFINE_VARIABLES, *, static=(), noise_scale=0.1, ridge=1e-6, **beta
):
    return closed_form(model, tuple(static))(variables, data, request, {**beta, "noise_scale": noise_scale, "ridge": ridge})


def theta_of(result):
    (layer,) = result.variables.params.map
    return np.concatenate([np.asarray(layer["kernel"]).T, np.asarray(layer["bias"])[:, None]], axis=1)


def with_one(z):
    return np.concatenate([z, np.ones((len(z), 1))], axis=1)


def expected_loss(theta, kept, gone, everything, *, scale, beta, noise):
    """Both terms as written in the paper's code, the noise in its mean."""
    penalty = noise**2 * jnp.sum(theta[:, :-1] ** 2)
    retain = scale * (jnp.mean(jnp.sum((with_one(kept) @ theta.T - kept) ** 2, axis=1)) + penalty)
    pairs = (with_one(gone) @ theta.T)[:, None] - everything[None]
    return retain + beta * (jnp.mean(jnp.sum(pairs**2, axis=2)) + penalty)


def test_the_mean_over_pairs_and_its_gradient_are_exact():
    found = run(AFFINE, AFFINE_VARIABLES, 1e-2, beta=1.0, retention="summed")

    def pairs(layers):
        moved = apply_map(layers, Z[GONE])
        return jnp.mean(jnp.sum((moved[:, None] - Z[None]) ** 2, axis=2))

    layers = AFFINE_VARIABLES.params.map
    value, slope = jax.jit(jax.value_and_grad(pairs))(layers)
    assert float(found.stats["forget_loss"][0]) == pytest.approx(float(value), rel=1e-6)
    assert float(found.stats["retain_loss"][0]) == 0
    assert distance(found.variables.params.map, jax.tree.map(lambda w, g: w - 1e-2 * g, layers, slope)) < 1e-6


def test_two_scales_of_retention_and_two_of_noise_are_named():
    assert (JANUARY_NOISE_SCALE, LATER_NOISE_SCALE) == (0.0, 0.1)
    losses = [
        run(MODEL, VARIABLES, beta=0.0, noise="exact", noise_scale=0.1, retention=name).stats["retain_loss"][0]
        for name in ("summed", "per_dimension")
    ]
    np.testing.assert_allclose(losses, [8 * 0.01, 0.01], rtol=1e-6)  # the identity keeps rows, so that noise is all there is


def test_drawn_noise_has_the_exact_mean():
    exact = run(MODEL, VARIABLES, beta=0.3, noise="exact", noise_scale=0.1)
    drawn = run(MODEL, VARIABLES, beta=0.3, noise_scale=0.1, draws=4000, batch_size=60, num_steps=1)
    # 60 x 4000 draws of |eps|^2 in 8 dimensions: relative standard error sqrt(2 / (8 x 240,000))
    assert float(drawn.stats["retain_loss"][0]) == pytest.approx(float(exact.stats["retain_loss"][0]), rel=5e-3)
    assert float(drawn.stats["forget_loss"][0]) == pytest.approx(float(exact.stats["forget_loss"][0]), rel=5e-3)


def test_without_forgetting_and_noise_nothing_moves():
    result = run(MODEL, VARIABLES, beta=0.0, steps=7, optimizer=ADAM)
    assert distance(result.variables, VARIABLES) == 0
    inserted = run(AFFINE, AFFINE_VARIABLES, beta=0.0, steps=7, optimizer=ADAM)
    logits = AFFINE.forward(inserted.variables, DATA.train.inputs).logits
    assert jnp.array_equal(logits, MODEL.forward(VARIABLES, DATA.train.inputs).logits)
    assert inserted.variables.state.in_use == 1


def test_without_forgetting_the_closed_form_is_the_wiener_filter():
    found = theta_of(closed(beta=0.0, noise_scale=0.5, ridge=0.0, static=[("retention", "summed")]))
    covariance, mean = np.cov(Z[KEPT].T, bias=True), Z[KEPT].mean(axis=0)
    wiener = covariance @ np.linalg.inv(covariance + 0.25 * np.eye(8))
    np.testing.assert_allclose(found, np.c_[wiener, mean - wiener @ mean], atol=1e-6)


@pytest.mark.parametrize("retention", ["per_dimension", "summed"])
def test_the_closed_form_is_the_optimum_of_the_loss(retention):
    static = [("retention", "summed")] if retention == "summed" else []
    result = closed(beta=0.2, noise_scale=0.1, ridge=1e-12, static=static)
    with jax.enable_x64(True):
        loss = jax.jit(
            jax.value_and_grad(
                partial(
                    expected_loss, kept=Z[KEPT], gone=Z[GONE], everything=Z,
                    scale=1 / 8 if retention == "per_dimension" else 1.0, beta=0.2, noise=0.1,
                )
            )
        )  # fmt: skip
        theta = jnp.asarray(theta_of(result), jnp.float64)
        (best, flat), (other, steep) = loss(theta), loss(jnp.eye(8, 9))
        assert float(result.stats["loss"]) == pytest.approx(float(best), rel=1e-5)
        assert float(jnp.max(jnp.abs(flat))) < 1e-5
        assert float(jnp.max(jnp.abs(steep))) > 1e-2
        assert best < other


def test_many_steps_come_down_to_the_closed_form():
    best = closed(beta=0.2, ridge=1e-12)
    result = run(
        AFFINE, AFFINE_VARIABLES, optimizer=optax.sgd(optax.linear_schedule(0.3, 0.0, 3000)), steps=3000,
        num_steps=3000, batch_size=56, noise="exact", beta=0.2, noise_scale=0.1,
    )  # fmt: skip
    loss = partial(expected_loss, kept=Z[KEPT], gone=Z[GONE], everything=Z, scale=1 / 8, beta=0.2, noise=0.1)
    assert float(best.stats["loss"]) <= float(loss(theta_of(result))) <= 1.02 * float(best.stats["loss"])


CARRY = [("carry", True)]


def test_moments_without_the_request_are_those_of_the_others():
    result = closed(beta=0.2, static=CARRY)
    moments = ju.slots.MOMENTS.get(PREPARED._replace(extra=result.extra)).value
    np.testing.assert_allclose(moments, with_one(Z[KEPT]).T @ with_one(Z[KEPT]), atol=1e-4)
    # no feature of the retain set is read
    held = PREPARED.extra["features"]
    few = jnp.where(jnp.isin(jnp.arange(60), GONE)[:, None], held.value, jnp.nan)
    blind = PREPARED._replace(extra={**PREPARED.extra, "features": replace(held, value=few)})
    assert distance(closed(data=blind, beta=0.2, static=CARRY).variables, result.variables) == 0


def test_streams_carry_moments_of_what_is_left():
    requests = ju.from_indices(DATA, [[3, 4, 5, 17], [20, 21]])
    unlearn = ju.affine_representation_unlearning(AFFINE, beta=0.2, carry=True)
    result = jax.jit(ju.streamed(unlearn))(AFFINE_VARIABLES, PREPARED, requests, jax.random.split(KEY, 2))
    left = np.setdiff1d(np.arange(60), [3, 4, 5, 17, 20, 21])
    moments = result.extra["moments"].value
    np.testing.assert_allclose(moments, with_one(Z[left]).T @ with_one(Z[left]), atol=1e-4)
    assert result.status.tolist() == [0, 0]


def test_a_sweep_over_beta_and_requests_is_one_call():
    requests = ju.from_indices(DATA, [[3, 4, 5, 17], [20, 21]])

    def unlearn(beta, request):
        return ju.affine_representation_unlearning(AFFINE, beta=beta)(AFFINE_VARIABLES, PREPARED, request, KEY)

    betas = jnp.array([0.0, 0.01, 1.0])
    found = jax.jit(jax.vmap(jax.vmap(unlearn, (0, None)), (None, 0)))(betas, requests)
    assert distance(lane(lane(found.variables, 1), 2), closed(lane(requests, 1), beta=1.0).variables) < 1e-6


def test_a_folded_map_gives_the_logits_of_an_inserted_one():
    for first, second in (
        (closed(model=MODEL, variables=VARIABLES, beta=0.3), closed(beta=0.3)),
        (
            run(MODEL, VARIABLES, steps=5, beta=0.3, optimizer=ADAM),
            run(AFFINE, AFFINE_VARIABLES, steps=5, beta=0.3, optimizer=ADAM),
        ),
    ):
        folded = MODEL.forward(first.variables, DATA.train.inputs).logits
        inserted = AFFINE.forward(second.variables, DATA.train.inputs).logits
        np.testing.assert_allclose(folded, inserted, atol=2e-5)


# Whole classes


def simplex(classes, width, length, seed=0):
    """A simplex in a random rotation: all pairs at the same angle, mean zero."""
    corners = np.eye(classes) - 1 / classes
    corners *= length / np.linalg.norm(corners[0])
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]
    return corners @ rotation[:classes]


def on_features(kernel, bias):
    """A model whose features are its inputs."""

    def apply(variables, z):
        return z @ variables.params["kernel"] + variables.params["bias"]

    head = ju.Head(
        apply,
        lambda variables: (variables.params["kernel"], variables.params["bias"]),
        lambda variables, kernel, bias: variables._replace(params={"kernel": kernel, "bias": bias}),
    )
    model = ju.Model(
        lambda variables, z, *, train=False, key=None: ju.Outputs(apply(variables, z), {"penultimate": z}),
        ju.losses.cross_entropy,
        head=head,
    )
    return model, ju.Variables({"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)})


def collapsed():
    """Features that are three times the row of the head of their class."""
    rows = simplex(4, 6, 1.0)
    labels = np.arange(40) % 4
    model, variables = on_features(rows.T, np.zeros(4))
    return model, variables, ju.training_data((3 * rows[labels]).astype(np.float32), labels), rows


def test_zero_shot_keeps_the_head_and_sends_the_class_to_the_centre():
    model, variables, data, rows = collapsed()
    model, variables = ju.insert_map(model, variables, ())
    prepared = jax.jit(ju.heads.prepare(model))(variables, data, KEY)
    request = lane(ju.from_classes(data, [[0]]), 0)
    options = {"beta": 1.0, "noise_scale": 0.0, "ridge": 1e-9}
    result = closed(request, prepared, model, variables, static=[("regime", "zero_shot")], **options)
    map_ = result.variables.params.map
    np.testing.assert_allclose(apply_map(map_, rows[1:]), rows[1:], atol=1e-4)
    np.testing.assert_allclose(apply_map(map_, 3 * rows[:1]), np.zeros((1, 6)), atol=1e-4)
    assert float(result.stats["retain_loss"]) < 1e-6
    # without a shift it cannot: the class is in the linear span of the others, and not in their affine hull
    kept, forgotten = rows[1:], 3 * rows[:1]
    joint = np.linalg.lstsq(np.r_[kept, forgotten], np.r_[kept, np.zeros((1, 6))], rcond=None)[0]
    assert np.linalg.norm(np.r_[kept, forgotten] @ joint - np.r_[kept, np.zeros((1, 6))]) > 0.3


def test_zero_shot_steps_follow_its_loss_and_read_no_retained_row():
    model, variables, data, rows = collapsed()
    model, variables = ju.insert_map(model, variables, ())
    request = lane(ju.from_classes(data, [[0]]), 0)
    blind = data._replace(
        train=data.train._replace(inputs=jnp.where((data.train.targets == 0)[:, None], data.train.inputs, jnp.nan))
    )
    zero_shot = {"regime": "zero_shot", "batch_size": 10}
    result = run(model, variables, request=request, data=blind, beta=0.5, **zero_shot)
    assert int(result.status) == 0
    np.testing.assert_allclose(result.stats["retain_loss"][0], 0, atol=1e-10)
    pairs = np.mean(np.sum((3 * rows[:1][:, None] - rows[None]) ** 2, axis=2))
    assert float(result.stats["forget_loss"][0]) == pytest.approx(pairs, rel=1e-5)
    everything = lane(ju.from_classes(data, [[0, 1, 2, 3]]), 0)
    assert int(run(model, variables, request=everything, data=data, beta=0.5, **zero_shot).status) != 0


def test_clusters_are_forgotten_from_some_beta_on_and_the_others_are_kept():
    rng = np.random.default_rng(0)
    means, labels = simplex(10, 64, 5.0), np.arange(400) % 10
    z = (means[labels] + 0.3 * rng.normal(size=(400, 64))).astype(np.float32)
    model, variables = on_features(means.T, -0.5 * np.sum(means**2, axis=1))
    data = ju.training_data(z, labels)
    prepared = jax.jit(ju.heads.prepare(model))(variables, data, KEY)
    request = lane(ju.from_classes(data, [[3]]), 0)

    def accuracies(beta):
        unlearn = ju.affine_representation_unlearning(model, beta=beta, noise_scale=0.0)
        right = jnp.argmax(model.forward(unlearn(variables, prepared, request, KEY).variables, z).logits, axis=1) == labels
        return jnp.mean(right[labels == 3]), jnp.mean(right[labels != 3])

    forget, retain = jax.jit(jax.vmap(accuracies))(jnp.array([0.0, 1e-4, 1e-2, 1e-1]))
    np.testing.assert_array_equal(forget, [1, 1, 0, 0])
    np.testing.assert_array_equal(retain, [1, 1, 1, 1])


def test_a_deep_map_without_retention_is_one_constant():
    model, variables = ju.insert_map(MODEL, VARIABLES, (16,), KEY)
    result = run(model, variables, beta=1e4, steps=1500, num_steps=1500, optimizer=optax.adam(3e-3))
    kernel, bias = MODEL.head.get(VARIABLES)
    found = model.forward(result.variables, DATA.train.inputs[GONE]).logits
    np.testing.assert_allclose(found, np.tile(Z.mean(axis=0) @ kernel + bias, (4, 1)), atol=0.05)
    assert int(closed(beta=1.0).stats["sink"]) == int(np.argmax(Z.mean(axis=0) @ kernel + bias))


# Inserted maps


def test_an_inserted_map_changes_nothing_until_it_is_used_and_a_checkpoint_keeps_it(tmp_path):
    model, variables = ju.insert_map(MODEL, VARIABLES, (16, 5), KEY)
    x = DATA.train.inputs
    assert jnp.array_equal(model.forward(variables, x).logits, MODEL.forward(VARIABLES, x).logits)
    nothing = run(model, variables, 0.1, request=ju.empty_request(16), steps=3)
    assert distance(nothing.variables, variables) == 0
    used = run(model, variables, 0.1, steps=3).variables
    assert not jnp.array_equal(model.forward(used, x).logits, MODEL.forward(VARIABLES, x).logits)
    assert distance(used.params.model, VARIABLES.params) == 0
    ju.checkpoint.save_variables(tmp_path / "unlearned", used)
    restored = ju.checkpoint.load_variables(tmp_path / "unlearned", variables)
    assert distance(restored, used) == 0
    assert jnp.array_equal(model.forward(restored, x).logits, model.forward(used, x).logits)


def test_fresh_maps_have_the_published_bounds():
    _, variables = ju.insert_map(MODEL, VARIABLES, (400,), KEY)
    first, second = variables.params.map
    assert float(jnp.max(jnp.abs(first["kernel"]))) == pytest.approx(8**-0.5, rel=1e-2)
    assert float(jnp.max(jnp.abs(second["kernel"]))) == pytest.approx(400**-0.5, rel=1e-2)


def test_a_second_request_starts_from_the_map_that_is_there():
    first = run(AFFINE, AFFINE_VARIABLES, 0.1, steps=3).variables
    assert distance(first, AFFINE_VARIABLES) > 0.1
    assert distance(run(AFFINE, first).variables, first) == 0


def test_other_methods_train_a_model_with_a_map():
    model, variables = ju.insert_map(MODEL, VARIABLES, (16,), KEY)
    found, expected = (
        answer("finetune", v, request=REQUEST, key=KEY, steps=3, static={"model": m}).variables
        for m, v in ((model, variables), (MODEL, VARIABLES))
    )
    assert distance(found.params.model, expected.params) < 1e-7
    assert distance(found.params.map, variables.params.map) == 0


def test_prepared_features_are_those_that_are_computed():
    first, second = (run(MODEL, VARIABLES, 0.1, beta=0.5, steps=3, noise_scale=0.1, data=data) for data in (DATA, PREPARED))
    assert distance(first.variables, second.variables) < 1e-6
    assert int(first.status) == int(second.status) == ju.Status.OK
    moments = second_moments(jnp.asarray(Z, jnp.float32), DATA.present)
    np.testing.assert_allclose(ju.slots.MOMENTS.get(PREPARED).value, moments, rtol=1e-4)


def test_features_of_another_model_are_stale():
    other = jax.tree.map(lambda x: x + 0.1, VARIABLES)
    result = run(MODEL, other, 0.1, beta=0.5, steps=3, noise_scale=0.1, data=PREPARED)
    assert int(result.status) == ju.Status.STALE


def test_an_inserted_map_leaves_the_features_in_front_of_it_fresh():
    moved = AFFINE_VARIABLES._replace(
        params=AFFINE_VARIABLES.params._replace(map=jax.tree.map(lambda x: x + 0.1, AFFINE_VARIABLES.params.map))
    )
    for variables in (AFFINE_VARIABLES, moved):
        assert int(closed(variables=variables, beta=0.2).status) == ju.Status.OK


def trace(model=MODEL, variables=VARIABLES, data=DATA, **options):
    method = ju.representation_unlearning(model, optax.sgd(0.1), **{"beta": 1.0, **options})
    jax.eval_shape(ju.iterate(method, 1, batch_size=4), variables, data, REQUEST, KEY)


def with_features(features):
    return ju.slots.FEATURES.put(DATA, features, at=VARIABLES, how="layer 'penultimate'")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trace(MODEL._replace(head=None)), "give the model its last layer"),
        (lambda: trace(layer="pooled"), "no features 'pooled'"),
        (lambda: trace(beta=-1.0), "beta"),
        (lambda: trace(noise_scale=-1.0), "noise_scale"),
        (lambda: trace(regime="one_shot"), "regime must be one of"),
        (lambda: trace(draws=0), "draws must be"),
        (lambda: closed(beta=1.0, data=DATA), r"data.extra\['moments'\] is missing"),
        (lambda: ju.insert_map(MODEL, VARIABLES, (4,)), "pass a key"),
        (lambda: ju.insert_map(AFFINE, AFFINE_VARIABLES, ()), "has a map already"),
        (lambda: ju.insert_map(MODEL, VARIABLES, (0,), KEY), r"widths\[0\]"),
        (lambda: closed(model=DEEP[0], variables=DEEP[1], beta=1.0), "not affine"),
        (lambda: trace(*DEEP, noise="exact"), "noise='exact' is for affine maps"),
        (
            lambda: trace(regime="zero_shot", data=DATA._replace(train=DATA.train._replace(targets=DATA.train.targets * 1.0))),
            "one array of integer labels",
        ),
        (lambda: trace(data=with_features(jnp.ones(60))), "has shape"),
        (lambda: trace(data=DATA._replace(extra={"features": jnp.ones((60, 8))})), "without a stamp"),
        (lambda: trace(data=PREPARED, layer="pooled"), "holds layer 'penultimate', and layer 'pooled' is needed"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
