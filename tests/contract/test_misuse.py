"""Mistakes of new users, and the words that tell them what to do."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.problems import blobs, held_out, lane, linear_regression, network, regression_data

DATA, MODEL, KEY = blobs(), network(), jax.random.key(0)
VARIABLES, REQUEST = MODEL.init(KEY), lane(ju.from_indices(DATA, [[1]]), 0)
SGD = optax.sgd(0.1)


def finetune(model):
    return ju.iterate(ju.finetune(model, SGD), 2, batch_size=4)


def bare(variables, inputs, *, train=False, key=None):
    return inputs @ variables.params["body"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ju.training_data([[1.0, 2.0], [3.0, 4.0]], [0, 1]), ValueError, r"pass numpy\.asarray"),
        (lambda: ju.from_indices(DATA, [{3, 5}]), ValueError, r"got a set; pass sorted"),
        (lambda: ju.from_groups(DATA, ["a"] * 59 + [None], [["a"]]), ValueError, r"no group for rows 59 \(None or NaN\)"),
        (lambda: ju.from_groups(DATA, [np.nan] + [1.0] * 59, [[1.0]]), ValueError, r"no group for rows 0"),
        (lambda: ju.one_shot(lambda v, d, r, k: v), TypeError, r"this one returned Variables"),
        (lambda: finetune(MODEL._replace(forward=bare)), TypeError, r"must return jaxunlearn.Outputs"),
        (
            lambda: finetune(MODEL._replace(forward=lambda variables, inputs: None)),
            TypeError,
            r"forward\(variables, inputs, train",
        ),
        (
            lambda: finetune(MODEL._replace(loss=optax.losses.softmax_cross_entropy_with_integer_labels)),
            TypeError,
            r"loss\(outputs, examples\)",
        ),
        (
            lambda: finetune(MODEL._replace(loss=lambda o, e: jnp.mean(ju.losses.cross_entropy(o, e)))),
            ValueError,
            r"leave out the mean",
        ),
    ],
)
def test_what_to_do_is_said(call, error, message):
    with pytest.raises(error) as raised:
        jax.eval_shape(call(), VARIABLES, DATA, REQUEST, KEY)
    notes = getattr(raised.value, "__notes__", [])
    assert re.search(message, "\n".join([str(raised.value), *notes]))


def one_logit(shape):
    """A model of one logit per row, for labels 0 and 1."""

    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs((inputs @ variables.params["w"]).reshape(-1, *shape))

    def loss(outputs, examples):
        return optax.losses.sigmoid_binary_cross_entropy(outputs.logits.reshape(-1), examples.targets.astype(jnp.float32))

    return ju.Model(forward, loss, linear_regression().init)


@pytest.mark.parametrize("method", [ju.scrub, ju.bad_teacher, ju.random_label, ju.salun])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_methods_of_classes_refuse_one_logit(method, shape):
    model, data = one_logit(shape), DATA._replace(train=DATA.train._replace(targets=jnp.arange(60) % 2))
    unlearn = ju.iterate(method(model, SGD), 2, batch_size=4)
    with pytest.raises(ValueError, match=r"needs logits .* of at least 2.* for one logit z"):
        jax.eval_shape(unlearn, model.init(KEY), data, REQUEST, KEY)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_accuracy_of_one_logit_is_that_of_two_classes(shape):
    model, labels = one_logit(shape), np.array([1, 1, 1, 0])
    data = ju.training_data(np.ones((4, 4), np.float32), labels)
    request = lane(ju.from_indices(data, [[3]]), 0)
    found = ju.audit.performance(model, ju.Variables({"w": jnp.ones(4)}), data, request, ju.Examples(np.ones((4, 4)), labels))
    assert (float(found.accuracy.retain), float(found.accuracy.forget), float(found.accuracy.test)) == (1, 0, 0.75)
    counts = data._replace(train=data.train._replace(targets=np.array([4, 0, 2, 1])))
    assert ju.audit.performance(model, ju.Variables({"w": jnp.ones(4)}), counts, request, counts.train).accuracy is None


def test_random_labels_of_a_regression_are_refused():
    data = regression_data()
    unlearn = ju.iterate(ju.random_label(linear_regression(), SGD), 2, batch_size=4)
    with pytest.raises(ValueError, match="random_label compares classes"):
        jax.eval_shape(unlearn, linear_regression().init(KEY), data, REQUEST, KEY)


def test_an_audit_of_many_requests_says_that_it_takes_one():
    requests = ju.from_indices(DATA, [[1], [2]])
    retrain = ju.iterate(ju.retrain(MODEL, SGD), 2, batch_size=4)
    with pytest.raises(ValueError, match="run audits one request"):
        ju.audit.run(MODEL, finetune(MODEL), retrain, VARIABLES, DATA, requests, KEY, test=held_out(), num_models=40)


def test_a_source_of_tuples_is_told_what_a_batch_is():
    with pytest.raises(TypeError, match=r"a source gives jaxunlearn\.Batch.*got Examples"):
        ju.feed(ju.finetune(MODEL, SGD), VARIABLES, lambda step: DATA.train, REQUEST, KEY, num_steps=2)


@pytest.mark.parametrize(
    ("module", "extra", "call"),
    [
        ("flax", "flax", lambda path: ju.adapters.from_nnx(None, ju.losses.cross_entropy)),
        ("equinox", "equinox", lambda path: ju.adapters.from_equinox(None, ju.losses.cross_entropy)),
        ("haiku", "haiku", lambda path: ju.adapters.from_haiku(None, ju.losses.cross_entropy, np.ones((1, 4)))),
        ("orbax", "checkpoint", lambda path: ju.checkpoint.save_variables(path / "weights", VARIABLES)),
        ("orbax", "checkpoint", lambda path: ju.checkpoint.load_variables(path / "weights", VARIABLES)),
    ],
)
def test_the_extra_that_is_missing_is_named(module, extra, call, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"this needs {module}: pip install 'jaxunlearn\[{extra}\]'"):
        call(tmp_path)
