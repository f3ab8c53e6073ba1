"""The target by hand, the fixed point, and where nothing moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import DATA, KEY, MODEL, REQUEST, VARIABLES, answer, descended, one_step
from tests.problems import distance, lane, token_network, token_rows

SGD = optax.sgd(0.1)


def test_without_strength_it_distils_itself_and_nothing_moves_at_the_start():
    found = answer("undial", strength=0.0, retain_weight=0.0)
    assert distance(found.variables, VARIABLES) < 1e-6
    np.testing.assert_allclose(found.stats["distance"], 0, atol=1e-6)


@pytest.mark.parametrize("retain_weight", [0.0, 2.0])
def test_a_step_descends_on_the_divergence_from_the_adjusted_prediction(retain_weight):
    nudged = jax.tree.map(lambda x: x - 0.2, VARIABLES)
    params, batch, _ = one_step(ju.undial(MODEL, SGD, strength=1.5, retain_weight=retain_weight), nudged)
    rows, kept = batch.forget.examples, batch.retain.examples
    lowered = MODEL.forward(VARIABLES, rows.inputs).logits - 1.5 * jax.nn.one_hot(rows.targets, 3)
    target = jax.nn.softmax(lowered)

    def loss(params):
        log_p = jax.nn.log_softmax(MODEL.forward(ju.Variables(params), rows.inputs).logits)
        retained = ju.losses.cross_entropy(MODEL.forward(ju.Variables(params), kept.inputs), kept)
        return -jnp.mean(jnp.sum(target * log_p, axis=1)) + retain_weight * jnp.mean(retained)

    assert distance(params, descended(nudged.params, loss)) < 1e-6


def table(tokens, labels):
    """A model of free logits for every position of every row, started anywhere; and its rows."""

    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(variables.params["table"][inputs])

    model = ju.Model(forward, ju.losses.sequence_cross_entropy)
    return model, ju.Variables({"table": jnp.asarray(tokens)}), ju.training_data(jnp.arange(len(labels)), jnp.asarray(labels))


def test_of_sequences_it_ends_at_the_lowered_logits_of_the_labels_and_padding_stays():
    logits = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    labels = np.array([[-1, 2, -1], [0, 1, 4], [-1, -1, 3], [1, 1, 1]])
    model, start, data = table(logits, labels)
    request = lane(ju.from_indices(data, [[0, 1]]), 0)
    method = ju.iterate(ju.undial(model, optax.sgd(6.0), strength=2.0, retain_weight=0.0), 600, batch_size=2)
    after = jax.jit(method)(start, data, request, KEY).variables.params["table"]
    np.testing.assert_array_equal(after[2:], logits[2:])
    np.testing.assert_array_equal(after[0, [0, 2]], logits[0, [0, 2]])
    for row, place in ((0, 1), (1, 0), (1, 1), (1, 2)):
        lowered = logits[row, place] - 2 * (np.arange(5) == labels[row, place])
        np.testing.assert_allclose(jax.nn.softmax(after[row, place]), jax.nn.softmax(lowered), atol=1e-3)


def test_one_token_is_a_label():
    def forward(variables, inputs, **options):
        outputs = MODEL.forward(variables, inputs, **options)
        return outputs._replace(logits=outputs.logits[:, None])

    sequences = MODEL._replace(forward=forward, loss=ju.losses.sequence_cross_entropy)
    data = DATA._replace(train=DATA.train._replace(targets=DATA.train.targets[:, None]))
    settings = {"strength": 3.0, "retain_weight": 1.0}
    ours, theirs = (
        jax.jit(ju.iterate(ju.undial(model, SGD, **settings), 3, batch_size=4))(VARIABLES, rows, REQUEST, KEY).variables
        for model, rows in ((sequences, data), (MODEL, DATA))
    )
    assert distance(ours, theirs) < 1e-6


def test_tokens_that_the_model_rules_out_give_no_nan():
    """Logits of minus infinity, as of a masked vocabulary."""
    base = token_network()

    def forward(variables, inputs, **options):
        outputs = base.forward(variables, inputs, **options)
        return outputs._replace(logits=jnp.where(jnp.arange(7) == 6, -jnp.inf, outputs.logits))

    rows = token_rows()
    data = ju.training_data(jnp.asarray(rows.inputs), jnp.asarray(np.where(rows.targets == 6, -1, rows.targets)))
    method = ju.iterate(ju.undial(base._replace(forward=forward), SGD), 2, batch_size=3)
    request = lane(ju.from_indices(data, [[3, 4]]), 0)
    assert jax.jit(method)(base.init(KEY), data, request, KEY).status == ju.Status.OK


def test_labels_that_do_not_fit_are_refused():
    data = DATA._replace(train=DATA.train._replace(targets=DATA.train.targets[:, None]))
    model = MODEL._replace(loss=lambda o, e: jnp.sum(o.logits, axis=1))
    method = ju.iterate(ju.undial(model, SGD), 2, batch_size=3)
    with pytest.raises(ValueError, match="already shifted"):
        jax.eval_shape(method, VARIABLES, data, REQUEST, KEY)
    for setting in ("strength", "retain_weight"):
        with pytest.raises(ValueError, match=f"{setting} must lie in"):
            ju.undial(MODEL, SGD, **{setting: -1.0})
