"""flax.nnx modules as models."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jaxunlearn as ju
from jaxunlearn.adapters import from_nnx, to_nnx
from jaxunlearn.service.checkpoint import load_variables, save_variables
from tests.adapters import promises
from tests.adapters.promises import DATA, KEY, KEYS, REQUESTS, ROWS, form, read, same, write
from tests.problems import distance, lane


class Passes(nnx.Variable):
    """A state of integers."""


class Salt(nnx.Variable):
    """A state that is a typed key but no random stream."""


class Net(nnx.Module):
    def __init__(self, rngs, width=8):
        self.first = nnx.Linear(4, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(width, 3, rngs=rngs)])
        self.passes = Passes(jnp.int32(0))
        self.salt = Salt(jax.random.key(5))

    def __call__(self, x):
        self.passes[...] += 1
        hidden = self.drop(nnx.relu(self.norm(self.first(x))))
        return self.layers[0](hidden), {"hidden": hidden}


def create(key):
    return Net(nnx.Rngs(key))


@pytest.fixture(scope="module")
def module():
    return create(KEY)


@pytest.fixture(scope="module")
def model(module):
    return from_nnx(module, ju.losses.cross_entropy, create=create)[0]


@pytest.fixture(scope="module")
def variables(module):
    return from_nnx(module, ju.losses.cross_entropy)[1]


@pytest.fixture(scope="module")
def answers(model, variables):
    return promises.answered(model, variables)


def test_forward_equals_the_modules_own(module, model, variables):
    own = nnx.clone(module)
    own.train()
    own(ROWS)  # statistics that are not those of a fresh module
    _, moved = from_nnx(own, ju.losses.cross_entropy)
    before = nnx.clone(own)
    own.eval()
    logits, features = own(ROWS)
    outputs = model.forward(moved, ROWS)
    assert np.array_equal(outputs.logits, logits)
    assert np.array_equal(outputs.features["hidden"], features["hidden"])
    before.train()
    before(ROWS)
    after = model.forward(moved, ROWS, train=True, key=KEY).state
    assert np.allclose(after["norm"]["mean"], before.norm.mean[...], atol=1e-6)
    assert int(after["passes"]) == int(before.passes[...]) == 2


def test_the_users_module_is_left_alone(module, model, variables):
    graph, state = nnx.split(module)
    jax.jit(lambda v: model.forward(v, ROWS, train=True, key=KEY).logits)(variables)
    graph_after, state_after = nnx.split(module)
    assert graph == graph_after
    assert same(state, state_after)


def test_random_streams_are_no_state(module, variables):
    assert set(variables.state) == {"norm", "passes", "salt"}
    model, plain = from_nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), ju.losses.cross_entropy)
    assert plain.state == ()
    assert model.init is None
    assert model.forward(plain, ROWS, train=True).logits.shape == (60, 3)  # no stream, no key


def test_training_without_a_key_is_refused(model, variables):
    with pytest.raises(ValueError, match=r"random streams \['default'\]: pass a key"):
        model.forward(variables, ROWS, train=True)


def test_several_streams_get_different_keys():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.weight = nnx.Param(jnp.ones(()))
            self.drops = nnx.List([nnx.Dropout(0.5, rng_collection=name, rngs=rngs) for name in ("a", "a", "b")])

        def __call__(self, x):
            return jnp.stack([drop(self.weight * x) for drop in self.drops])

    model, variables = from_nnx(Two(nnx.Rngs(a=0, b=0)), ju.losses.cross_entropy)
    masks = np.asarray(model.forward(variables, jnp.ones(64), train=True, key=KEY).logits)
    assert len(np.unique(masks, axis=0)) == 3


def test_statistics_follow_the_policy(model, variables, answers):
    promises.statistics_follow_the_policy(model, variables, answers)


def test_dropout_follows_the_key(model, variables):
    promises.dropout_follows_the_key(model, variables)
    promises.no_key_is_used_twice(model, variables)


def test_batched_equals_single(variables, answers):
    promises.batched_equals_single(answers, variables)


def test_module_to_variables_to_module(module, model, variables, answers):
    back = to_nnx(module, variables)
    assert back is not module
    assert same(nnx.state(back), nnx.state(module))
    _, result = answers
    unlearned = to_nnx(module, lane(result.variables, 0))
    unlearned.eval()
    assert np.allclose(unlearned(ROWS)[0], model.forward(lane(result.variables, 0), ROWS).logits, atol=1e-6)
    with pytest.raises(ValueError, match=r"not fit the module: params/first/bias: float32\[8\] became float32\[2,8\]"):
        to_nnx(module, result.variables)


def test_init_is_create(module, model, variables):
    assert same(model.init(KEYS[1]), from_nnx(create(KEYS[1]), ju.losses.cross_entropy)[1])
    wrong, _ = from_nnx(module, ju.losses.cross_entropy, create=lambda key: Net(nnx.Rngs(key), width=7))
    with pytest.raises(ValueError, match=r"create\(key\) must make an object of the same form .* float32\[8\] became"):
        jax.eval_shape(wrong.init, KEY)


def test_orbax_checkpoint_in_and_out(module, answers, tmp_path):
    write(tmp_path / "trained", nnx.state(module))
    graph, like = nnx.split(create(KEYS[1]))
    restored = nnx.merge(graph, read(tmp_path / "trained", like))
    _, variables = from_nnx(restored, ju.losses.cross_entropy)
    unlearn, _ = answers
    result = ju.check(unlearn(variables, DATA, lane(REQUESTS, 0), KEY))
    unlearned = to_nnx(restored, result.variables)
    write(tmp_path / "unlearned", nnx.state(unlearned))
    again = nnx.merge(graph, read(tmp_path / "unlearned", like))
    assert same(from_nnx(again, ju.losses.cross_entropy)[1], result.variables)


class Asks(nnx.Module):
    """Dropout that keeps no stream: its draws come with the call."""

    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(4, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)
        self.drops = nnx.List([nnx.Dropout(0.5), nnx.Dropout(0.5, rng_collection="other")])

    def __call__(self, x, *, rngs):
        hidden = nnx.relu(self.first(x))
        dropped = [drop(hidden, rngs=rngs) for drop in self.drops]
        return self.last(sum(dropped)), {"hidden": dropped[0], "other": dropped[1]}


@pytest.fixture(scope="module")
def asking():
    return from_nnx(Asks(nnx.Rngs(0)), ju.losses.cross_entropy)


def test_modules_that_ask_for_rngs_get_them_in_training(asking):
    model, variables = asking
    assert variables.state == ()
    promises.dropout_follows_the_key(model, variables)
    promises.no_key_is_used_twice(model, variables)
    features = model.forward(variables, ROWS, train=True, key=KEY).features
    assert not np.array_equal(features["hidden"], features["other"])
    with pytest.raises(ValueError, match="no `rngs` argument was provided to Dropout"):
        model.forward(variables, ROWS, train=True)


def test_gradients_of_modules_that_ask_for_rngs(asking):
    model, variables = asking

    def gradient(variables, key):
        def loss(params):
            outputs = model.forward(variables._replace(params=params), ROWS, train=True, key=key)
            return jnp.mean(model.loss(outputs, DATA.train))

        return jax.grad(loss)(variables.params)

    alone = [gradient(variables, key) for key in KEYS]
    assert distance(*alone) > 1e-3
    assert distance(jax.jit(gradient)(variables, KEYS[0]), alone[0]) < 1e-5
    together = jax.jit(jax.vmap(gradient, (None, 0)))(variables, KEYS)
    assert max(distance(lane(together, place), alone[place]) for place in (0, 1)) < 1e-5


def test_batched_equals_single_for_modules_that_ask_for_rngs(asking):
    model, variables = asking
    promises.batched_equals_single(promises.answered(model, variables), variables)


def test_sequences_pass_rngs_on_and_need_none_without_dropout():
    rngs = nnx.Rngs(0)
    model, variables = from_nnx(nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.5)), ju.losses.cross_entropy)
    draws = [model.forward(variables, ROWS, train=True, key=key).logits for key in (KEYS[0], KEYS[0], KEYS[1])]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    plain, variables = from_nnx(nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.relu), ju.losses.cross_entropy)
    assert np.array_equal(plain.forward(variables, ROWS, train=True).logits, plain.forward(variables, ROWS).logits)


def test_streams_that_are_kept_and_rngs_of_the_call_differ():
    class Both(nnx.Module):
        def __init__(self, rngs):
            self.weight = nnx.Param(jnp.ones(()))
            self.kept, self.asked = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5)

        def __call__(self, x, rngs=None):
            return jnp.stack([self.kept(self.weight * x), self.asked(self.weight * x, rngs=rngs)])

    model, variables = from_nnx(Both(nnx.Rngs(0)), ju.losses.cross_entropy)
    kept, asked = np.asarray(model.forward(variables, jnp.ones(64), train=True, key=KEY).logits)
    assert not np.array_equal(kept, asked)


def with_manager(path, state):
    with ocp.CheckpointManager(path) as manager:
        manager.save(3, args=ocp.args.StandardSave(state))


@pytest.fixture(scope="module")
def saved(module, tmp_path_factory):
    """A state, and pure dicts of it, as orbax writes them."""
    path = tmp_path_factory.mktemp("nnx")
    write(path / "state", nnx.state(module))
    write(path / "split", nnx.split(module)[1])
    write(path / "pure", nnx.to_pure_dict(nnx.state(module)))
    with_manager(path / "run", nnx.state(module))
    return path


@pytest.mark.parametrize("name", ["state", "split", "pure", "run/3/default"])
def test_checkpoints_of_states_are_loaded(saved, model, variables, name):
    other = from_nnx(create(KEYS[1]), ju.losses.cross_entropy)[1]
    for like in (other, jax.eval_shape(model.init, KEY)):
        again = load_variables(saved / name, like)
        assert form(again) == form(variables)
        assert same(again, variables)


def test_what_unlearned_nnx_modules_are_saved_as_is_loaded(module, variables, tmp_path):
    half = variables._replace(params=jax.tree.map(lambda x: x / 2, variables.params))
    save_variables(tmp_path / "unlearned", nnx.state(to_nnx(module, half)))
    assert same(load_variables(tmp_path / "unlearned", variables), half)
    restored = load_variables(tmp_path / "unlearned", nnx.state(module))
    assert same(restored, nnx.state(to_nnx(module, half)))


def test_checkpoints_of_other_nnx_modules_name_the_leaves(saved, variables, module, tmp_path):
    wide = from_nnx(Net(nnx.Rngs(0), width=7), ju.losses.cross_entropy)[1]
    with pytest.raises(ValueError, match=r"another model: first/bias/value is float32\[8\], not float32\[7\]; "):
        load_variables(saved / "state", wide)
    with pytest.raises(ValueError, match=r"another model: first/bias is float32\[8\], not float32\[7\]; "):
        load_variables(saved / "pure", wide)
    more = variables._replace(params={**variables.params, "head": {"kernel": jnp.ones(3)}})
    with pytest.raises(ValueError, match=r"another model: head/kernel/value \(float32\[3\]\) is missing$"):
        load_variables(saved / "split", more)
    less = variables._replace(state={name: x for name, x in variables.state.items() if name != "passes"})
    with pytest.raises(ValueError, match=r"another model: passes/value \(int32\[\]\) is too much$"):
        load_variables(saved / "state", less)
    assert same(load_variables(saved / "state", less, partial=True), less)
    write(tmp_path / "params", nnx.state(module, nnx.Param))
    with pytest.raises(ValueError, match=r"another model: norm/mean/value \(float32\[8\]\) is missing; norm/var/value"):
        load_variables(tmp_path / "params", variables)
    with pytest.raises(FileNotFoundError, match=r"give one of the checkpoints inside: .*run/3/default$"):
        load_variables(saved / "run", variables)
    with pytest.raises(FileNotFoundError, match=r"give one of the checkpoints inside: .*run/3/default$"):
        load_variables(saved / "run" / "3", variables)
