"""Equinox modules as models."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.adapters import from_equinox, to_equinox
from tests.adapters import promises
from tests.adapters.promises import DATA, KEY, KEYS, REQUESTS, ROWS, read, same, write
from tests.problems import lane


class Net(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    last: eqx.nn.Linear
    order: jax.Array  # integers are no params

    def __init__(self, key, width=8):
        first, last = jax.random.split(key)
        self.first = eqx.nn.Linear(4, width, key=first)
        self.norm = eqx.nn.BatchNorm(width, "batch", momentum=0.9, mode="batch")
        self.drop = eqx.nn.Dropout(0.5)
        self.last = eqx.nn.Linear(width, 3, key=last)
        self.order = jnp.array([2, 0, 1])

    def __call__(self, row, state, *, key=None):
        hidden, state = self.norm(self.first(row), state)
        hidden = self.drop(jax.nn.relu(hidden), key=key)
        return (self.last(hidden)[self.order], {"hidden": hidden}), state


class Keyless(eqx.Module):
    last: eqx.nn.Linear

    def __call__(self, row):
        return self.last(row)


create = eqx.nn.make_with_state(Net)


@pytest.fixture(scope="module")
def module():
    return create(KEY)[0]


@pytest.fixture(scope="module")
def case():
    module, state = create(KEY)
    return from_equinox(module, ju.losses.cross_entropy, state=state, create=create)


@pytest.fixture(scope="module")
def model(case):
    return case[0]


@pytest.fixture(scope="module")
def variables(case):
    return case[1]


@pytest.fixture(scope="module")
def answers(model, variables):
    return promises.answered(model, variables)


def test_forward_equals_the_modules_own(module, model, variables):
    own = jax.vmap(module, (0, None), (0, None), axis_name="batch")
    _, state = own(ROWS, variables.state, key=jax.random.split(KEY, 60))
    moved = model.forward(variables, ROWS, train=True, key=KEY).state
    assert eqx.tree_equal(moved, state, rtol=1e-6, atol=1e-6) is not False
    still = jax.vmap(eqx.nn.inference_mode(module), (0, None), (0, None), axis_name="batch")
    (logits, features), _ = still(ROWS, state)
    outputs = model.forward(variables._replace(state=state), ROWS)
    assert np.allclose(outputs.logits, logits, atol=1e-6)
    assert np.allclose(outputs.features["hidden"], features["hidden"], atol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda key: eqx.nn.MLP(4, 3, 8, 1, key=key), lambda key: Keyless(eqx.nn.Linear(4, 3, key=key))]
)
def test_stateless_modules_have_no_state(make):
    module = make(KEY)
    model, variables = from_equinox(module, ju.losses.cross_entropy)
    assert variables.state == ()
    assert model.init is None
    for options in ({}, {"train": True, "key": KEY}):
        outputs = model.forward(variables, ROWS, **options)
        assert np.allclose(outputs.logits, jax.vmap(module)(ROWS), atol=1e-6)
        assert outputs.state == ()
    assert from_equinox(module, ju.losses.cross_entropy, create=make)[0].init(KEYS[1]).state == ()


def test_every_row_has_its_own_dropout(model, variables):
    rows = jnp.tile(ROWS[:1], (32, 1))
    hidden = model.forward(variables, rows + 0.01 * ROWS[:32], train=True, key=KEY).features["hidden"]
    assert len(np.unique(np.asarray(hidden) == 0, axis=0)) > 2


def test_statistics_follow_the_policy(model, variables, answers):
    promises.statistics_follow_the_policy(model, variables, answers)


def test_dropout_follows_the_key(model, variables):
    promises.dropout_follows_the_key(model, variables)
    promises.no_key_is_used_twice(model, variables)


def test_batched_equals_single(variables, answers):
    promises.batched_equals_single(answers, variables)


def test_module_to_variables_to_module(module, model, variables, answers):
    assert eqx.tree_equal(to_equinox(module, variables), module)
    result = lane(answers[1].variables, 0)
    unlearned = eqx.nn.inference_mode(to_equinox(module, result))
    (logits, _), _ = jax.vmap(unlearned, (0, None), (0, None), axis_name="batch")(ROWS, result.state)
    assert np.allclose(logits, model.forward(result, ROWS).logits, atol=1e-6)
    with pytest.raises(ValueError, match=r"do not fit the module: params/first/weight: float32\[8,4\] became float32"):
        to_equinox(module, answers[1].variables)


def test_init_is_create(module, model, variables):
    fresh, state = create(KEYS[1])
    made = model.init(KEYS[1])
    assert same(made, from_equinox(fresh, ju.losses.cross_entropy, state=state)[1])
    assert jax.tree.structure(made) == jax.tree.structure(variables)
    wider = eqx.nn.make_with_state(lambda key: Net(key, width=7))
    for wrong, message in ((wider, r"float32\[8,4\] became"), (lambda key: create(key)[0], r"state/0: int32.* became absent")):
        bad, _ = from_equinox(module, ju.losses.cross_entropy, state=variables.state, create=wrong)
        with pytest.raises(ValueError, match=r"create\(key\) must make an object of the same form.*" + message):
            jax.eval_shape(bad.init, KEY)


def test_orbax_checkpoint_in_and_out(answers, tmp_path):
    module, state = create(KEY)
    write(tmp_path / "trained", (eqx.filter(module, eqx.is_array), state))
    skeleton, state = create(KEYS[1])
    arrays, static = eqx.partition(skeleton, eqx.is_array)
    arrays, state = read(tmp_path / "trained", (arrays, state))
    restored = eqx.combine(arrays, static)
    assert eqx.tree_equal(restored, module)
    _, variables = from_equinox(restored, ju.losses.cross_entropy, state=state)
    result = ju.check(answers[0](variables, DATA, lane(REQUESTS, 0), KEY))
    unlearned = to_equinox(restored, result.variables)
    write(tmp_path / "unlearned", (eqx.filter(unlearned, eqx.is_array), result.variables.state))
    arrays, state = read(tmp_path / "unlearned", (arrays, state))
    again = eqx.combine(arrays, static)
    assert same(from_equinox(again, ju.losses.cross_entropy, state=state)[1], result.variables)
