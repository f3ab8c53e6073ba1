"""Methods of the catalogue on a token model: padding changes nothing, what fits runs, what does not says why."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import curvature, frozen, likelihoods
from tests.problems import OPTIONS, distance, lane, takes_optimizer, token_network, token_rows

KEY, SGD = jax.random.key(1), optax.sgd(0.1)
DATA = ju.training_data(*map(jnp.asarray, token_rows()))
MODEL = token_network()._replace(likelihood=likelihoods.categorical(ignore=-1, mean=True))
VARIABLES = MODEL.init(jax.random.key(0))
REQUESTS = ju.from_indices(DATA, [[3, 4, 5], [10, 20]])
REQUEST = lane(REQUESTS, 0)
REFUSE = ju.refusals.after_prompt([[6, 6], [5, -1]])
ASK = {
    **OPTIONS,
    "cf_k": {"layers": "unembed"},
    "eu_k": {"layers": "unembed"},
    "idk": {"refusals": REFUSE},
    "preference_optimization": {"refusals": REFUSE},
    "rmu": {"layer": "first", "layers": "first", "coefficient": 2.0, "alpha": 1.0},
    # Kronecker factors, the default, count activations at padding
    "newton": lambda model: {"damping": 1.0, "fit": curvature.diagonal(model, kind="ggn")},
    "influence": lambda model: {"damping": 1.0, "fit": curvature.diagonal(model, kind="ggn")},
    "oracle_matching": lambda model: {
        "oracle": ju.iterate(ju.retrain(model, SGD), num_steps=2, batch_size=4),
        "num_oracles": 2,
    },
    "unseen_matching": {"held_out": jax.tree.map(jnp.asarray, token_rows(20, seed=5))},
}
REFUSED = {
    "affine_representation_unlearning": "give the model its last layer",
    "concept_erasure": "give the model its last layer",
    "convolution_transpose": "needs parameters of four axes",
    "just_in_time": "must be floating-point",
    "lcodec": "no floating-point array",
    "nullspace_projection": "give the model its last layer",
    "prototype_erasure": "give the model its last layer",
    "representation_unlearning": "give the model its last layer",
    "unseen_matching": "pass score=",
}
ELSEWHERE = {
    "amnesiac",
    "decremental",
    "hessian_free",
    "image_to_image",
}  # training records, action values and images: no labels of tokens
FIT = [
    name
    for name, card in ju.METHODS.items()
    if card.takes == "model" and card.targets != "classes" and name not in {*REFUSED, *ELSEWHERE}
]
QUICK = {"finetune", "gradient_difference", "npo", "simnpo", "task_vector", "idk", "preference_optimization", "rmu", "undial"}
QUICK |= {"oracle_matching", "ssd"}


def build(name, model, **static):
    options = ASK.get(name, {})
    options = {**(options(model) if callable(options) else options), **static}
    made = ju.METHODS[name].factory
    return ju.iterate(made(model, SGD, **options), 3, batch_size=3) if takes_optimizer(name) else made(model, **options)


@cache
def program(name):
    method = build(name, MODEL)

    def run(variables, data, request, key):
        return method(variables, ju.prepare(method)(variables, data, KEY), request, key)

    return jax.jit(run)


def answer(name, data=DATA, request=REQUEST, variables=VARIABLES):
    return program(name)(variables, data, request, KEY)


def repadded():
    """Other tokens behind the last one that a label needs; the model looks back only."""
    tokens, labels = (np.array(x) for x in DATA.train)
    last = labels.shape[1] - 1 - np.argmax(labels[:, ::-1] >= 0, axis=1)
    behind = np.arange(labels.shape[1]) > last[:, None]
    return DATA._replace(train=ju.Examples(jnp.asarray(np.where(behind, (tokens + 3) % 7, tokens)), DATA.train.targets))


@pytest.mark.parametrize("name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in FIT])
def test_a_method_of_any_targets_runs_on_tokens_and_does_not_see_padding(name):
    result = answer(name)
    assert result.status == ju.Status.OK
    assert distance(result.variables, VARIABLES) > 0
    other = answer(name, repadded())
    np.testing.assert_allclose(distance(result.variables, other.variables), 0, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_tokens_says_why(name):
    with pytest.raises((TypeError, ValueError), match=REFUSED[name]):
        jax.eval_shape(build(name, MODEL), VARIABLES, DATA, REQUEST, KEY)


def test_one_after_the_other_and_a_sum_over_tokens_serve_too():
    first = ju.iterate(ju.npo(token_network(ju.losses.sequence_log_loss(reduction="sum")), SGD), 2, batch_size=3)
    both = ju.then(first, ju.iterate(ju.finetune(MODEL, SGD), 2, batch_size=3))
    assert jax.jit(both)(VARIABLES, DATA, REQUEST, KEY).status == ju.Status.OK


def test_a_destroyed_token_model_is_damaged():
    climb = ju.iterate(ju.gradient_difference(MODEL, optax.sgd(20.0), alpha=0.0), 5, batch_size=3)
    result = jax.jit(climb)(VARIABLES, DATA, REQUEST, KEY)
    assert result.stats["retain_loss_after"] > np.log(7)
    assert result.status == ju.Status.DAMAGED


def test_labels_that_are_no_token_are_noticed():
    targets = np.array(DATA.train.targets)
    targets[3, 1] = -100
    assert answer("finetune", DATA._replace(train=DATA.train._replace(targets=targets))).status == ju.Status.OK  # not read
    assert answer("npo", DATA._replace(train=DATA.train._replace(targets=targets))).status == ju.Status.NONFINITE


def test_curvature_of_a_mean_over_tokens_is_that_of_the_loss():
    """The Fisher matrix against the Gauss-Newton matrix of the loss itself, which asks no likelihood."""
    rows = jax.tree.map(lambda x: x[:6], DATA.train)
    small = {"unembed": VARIABLES.params["unembed"]}
    parts = frozen.train_only(MODEL, VARIABLES, "unembed")
    model, part = parts.on(VARIABLES), ju.Variables(small)
    direction = jax.tree.map(lambda x: jax.random.normal(KEY, x.shape), small)

    def dense(params):
        return jnp.mean(MODEL.loss(model.forward(ju.Variables(params), rows.inputs), rows))

    hessian = jax.jit(lambda v: jax.jvp(jax.grad(dense), (small,), (v,))[1])(direction)  # linear in the weights: exact
    for product in (curvature.fisher_vp, curvature.ggn_vp):
        found = jax.jit(lambda v, product=product: product(model, part, rows)(v))(direction)
        np.testing.assert_allclose(found["unembed"], hessian["unembed"], rtol=1e-3, atol=1e-5)
    likelihood = MODEL.likelihood
    logits, labels = model.forward(part, rows.inputs).logits, rows.targets
    drawn = jax.vmap(lambda key: jax.vmap(lambda z, y: likelihood.signed(key, z, y))(logits, labels))(
        jax.random.split(KEY, 800)
    )
    exact = jnp.sum(likelihood.roots(logits, labels) ** 2, axis=0)
    np.testing.assert_allclose(jnp.mean(drawn**2, axis=0), exact, atol=0.05)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("npo", {}, marks=pytest.mark.slow),
        ("rmu", {"layer": "second", "coefficient": 2.0, "alpha": 1.0}),
        pytest.param("undial", {"strength": 3.0}, marks=pytest.mark.slow),
    ],
)
def test_adapters_over_a_frozen_base_in_one_batched_call(name, options):
    parts = frozen.lora(MODEL, VARIABLES, DATA.train.inputs[:1], rank=2)
    part = parts.start(VARIABLES, KEY)
    assert set(part.params) == {*(f"{x}/{y}" for x in ("first", "second") for y in ("own", "others")), "unembed"}
    data, keys = ju.slots.BASE.put(DATA, VARIABLES), jax.random.split(KEY, 2)

    def make(model):
        return ju.iterate(ju.METHODS[name].factory(model, optax.adam(0.05), **options), 3, batch_size=3)

    unlearn = frozen.on_base(parts, make)
    many = jax.jit(ju.batched(unlearn, chunk=2))(part, data, REQUESTS, keys)
    assert many.status.tolist() == [ju.Status.OK] * 2
    assert set(many.variables.params) == set(part.params)
    one = jax.jit(unlearn)(part, data, lane(REQUESTS, 1), keys[1])
    np.testing.assert_allclose(distance(lane(many.variables, 1), one.variables), 0, atol=1e-5)
    assert many.stats["unmoved"].tolist() == [2 if name == "rmu" else 0] * 2  # the head lies behind the layer
    if name == "rmu":  # what is kept is what the adapter says at its start, which is the base
        np.testing.assert_allclose(many.stats["retain_distance"][:, 0], 0, atol=1e-10)
        assert jnp.all(many.stats["retain_distance"][:, 2] > 0)
