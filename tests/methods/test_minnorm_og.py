"""The projection against dense algebra, the least-norm limit, and the schedule."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import jaxunlearn as ju
from tests.methods.runs import DATA, KEY, MODEL, VARIABLES, answer, descended, sweep_equals_single_runs
from tests.problems import distance, lane, linear_regression

STILL = optax.sgd(0.0)


@pytest.fixture(autouse=True, scope="module")
def in_float64():
    with jax.enable_x64(True):
        yield


def wide(values):
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if np.asarray(x).dtype == np.float32 else x, values)


def weighted(rows, weights=None):
    """These rows as one side of a batch of ten."""
    weights = np.ones(len(rows)) if weights is None else weights
    rows, weights = (np.concatenate([x, np.zeros(10 - len(x), np.result_type(x))]) for x in (np.array(rows), np.array(weights)))
    return ju.Weighted(jax.tree.map(lambda x: x[rows], wide(DATA.train)), weights, rows)


@cache
def program(model, optimizer, **options):
    """`(variables, batch, strength) -> (variables, stats)`, one step of the method."""

    def step(variables, batch, strength):
        method = ju.minnorm_og(model, optimizer, strength=strength, **options)
        after, stats = method.step(method.init(variables, None, None, KEY)[1], (), batch, KEY)
        return after.variables, stats

    return jax.jit(step)


def shrunk(retain, strength, model=MODEL, variables=VARIABLES, optimizer=STILL, **options):
    """Variables after the first step of the method on these rows, and its statistics."""
    return program(model, optimizer, **options)(wide(variables), ju.Batch(retain, retain, 0, 6), strength)


def dense(rows, outputs, strength, variables=VARIABLES):
    """The same step from gradients written out, one for each of `outputs(logits)`."""
    flat, unravel = ravel_pytree(wide(variables).params)

    def values(vector):
        return outputs(MODEL.forward(ju.Variables(unravel(vector)), wide(DATA).train.inputs[np.array(rows)]).logits).ravel()

    gradients = np.asarray(jax.jit(jax.jacobian(values))(flat))
    free = flat - np.linalg.pinv(gradients) @ (gradients @ flat)
    return unravel(flat - strength * free), np.linalg.matrix_rank(gradients)


@pytest.mark.parametrize(("outputs", "chunk"), [("largest", None), ("largest", 2), ("all", None)])
def test_it_follows_the_dense_projection_whatever_is_repeated_or_padded(outputs, chunk):
    which = {"largest": lambda logits: logits.max(axis=1), "all": lambda logits: logits}[outputs]
    expected, rank = dense([7, 20, 41], which, 0.3)
    after, stats = shrunk(weighted([7, 20, 7, 41, 20, 59], [1, 1, 1, 1, 1, 0]), 0.3, outputs=outputs, chunk=chunk)
    assert int(stats["rank"]) == rank
    assert distance(after.params, expected) < 1e-9


def interpolated(rows=5):
    """Rows of four features that a linear model fits exactly, the first two to be forgotten."""
    rng = np.random.default_rng(0)
    inputs, kernel = rng.normal(size=(rows, 4)), rng.normal(size=4)
    data = ju.training_data(inputs, inputs @ kernel)
    return data, ju.Variables({"w": jnp.asarray(kernel)}), lane(ju.from_indices(data, [[0, 1]]), 0)


def run(method, variables, data, request, num_steps=3, batch_size=20):
    return jax.jit(ju.iterate(method, num_steps, batch_size=batch_size))(variables, data, request, KEY)


def test_it_ends_at_the_least_norm_solution_of_a_linear_model_in_one_step():
    data, variables, request = interpolated()
    kept = [np.asarray(x)[2:] for x in data.train]
    least = np.linalg.pinv(kept[0]) @ kept[1]
    before = variables.params["w"] - least
    assert np.linalg.norm(before) > 0.1

    def at(strength):
        method = ju.minnorm_og(linear_regression(), optax.sgd(0.1), strength=strength, every=100, shrink_share=1.0)
        return ju.iterate(method, 3, batch_size=20)(variables, data, request, KEY)

    results = jax.jit(jax.vmap(at))(np.array([1.0, 0.3]))
    assert not results.status.any()
    np.testing.assert_allclose(results.variables.params["w"] - least, np.outer([0.0, 0.7], before), atol=1e-12)


def test_rows_that_are_almost_equal_are_kept_in_single_precision_and_repeated_ones_count_once():
    with jax.enable_x64(False):
        inputs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
        inputs[2] = inputs[1] + np.float32(1e-4) * inputs[0][::-1]  # its eigenvalue is 1e-9 of the largest one
        part = ju.Weighted(ju.Examples(inputs[[0, 1, 2, 1, 2]], np.zeros(5, np.float32)), np.ones(5, np.float32), np.arange(5))
        method = ju.minnorm_og(linear_regression(), STILL, strength=1.0)
        variables = ju.Variables({"w": jnp.array([1.0, -2.0, 0.5, 3.0])})
        after, stats = jax.jit(method.step)(method.init(variables, None, None, KEY)[1], (), ju.Batch(part, part, 0, 6), KEY)
        assert int(stats["rank"]) == 3
        kernels = [np.asarray(x.params["w"], np.float64) for x in (variables, after.variables)]
        inputs = inputs.astype(np.float64)
        np.testing.assert_allclose(inputs @ kernels[1], inputs @ kernels[0], atol=1e-4)
        expected = np.linalg.pinv(inputs) @ (inputs @ kernels[0])
        np.testing.assert_allclose(kernels[1], expected, atol=1e-2)
        assert np.linalg.norm(expected - kernels[0]) > 0.1


@pytest.mark.parametrize(
    "method", [ju.finetune, ju.gradient_ascent, lambda *call: ju.gradient_difference(*call, alpha=0.9)], ids=["gd", "ga", "ngp"]
)
def test_steps_along_gradients_cannot_forget_what_is_interpolated(method):
    data, variables, request = interpolated()
    assert distance(run(method(linear_regression(), optax.sgd(0.1)), variables, data, request).variables, variables) < 1e-14


def test_outputs_of_the_retain_set_change_in_second_order_and_those_of_the_forget_set_in_first():
    model = MODEL._replace(loss=ju.losses.squared_error)
    variables, forget, retain = wide(VARIABLES), [3, 4], [0, 9, 20, 35, 50]

    def logits(variables, rows):
        return model.forward(variables, wide(DATA).train.inputs[np.array(rows)]).logits

    part = weighted(retain)
    part = part._replace(examples=part.examples._replace(targets=logits(variables, part.slots)))  # what it knows exactly
    changes = {}
    for strength in (0.02, 0.01):
        after, stats = shrunk(part, strength, model)
        assert int(stats["rank"]) == 3 * len(retain)  # real targets: every output counts
        changes[strength] = [np.linalg.norm(logits(after, rows) - logits(variables, rows)) for rows in (retain, forget)]
    ratios = np.divide(changes[0.02], changes[0.01])
    np.testing.assert_allclose(ratios, [4, 2], rtol=0.05)


def test_the_strength_decays_with_every_shrinking_until_the_run_only_descends():
    found = answer("minnorm_og", strength=0.4, decay=0.5, every=2, shrink_share=0.7, static={"num_rows": 3}).stats
    np.testing.assert_allclose(found["strength"], [0.4, 0, 0.2, 0, 0.1, 0])
    assert (found["rank"] > 0).tolist() == (found["strength"] > 0).tolist()
    half = answer("minnorm_og", strength=0.4, decay=0.5, every=1, shrink_share=0.5, static={"num_rows": 3}).stats["strength"]
    weight = 1 / np.asarray(half[:3]) - 1  # lambda, which the paper's code raises
    np.testing.assert_allclose(weight[1:], (weight[:-1] + 1) / 0.5 - 1)
    assert not half[3:].any()


def test_without_shrinking_it_is_finetuning():
    plain = answer("finetune").variables
    settings = {"strength": 0.4, "decay": 0.5, "every": 2, "shrink_share": 0.7}  # as above, so that the program is there
    for off in ("strength", "shrink_share"):
        assert distance(answer("minnorm_og", **{**settings, off: 0.0}, static={"num_rows": 3}).variables, plain) < 1e-6


def test_it_descends_at_the_new_parameters():
    retain = weighted([7, 20, 41])
    moved, _ = shrunk(retain, 0.5, outputs="largest", chunk=None)
    both, _ = shrunk(retain, 0.5, optimizer=optax.sgd(0.1), outputs="largest", chunk=None)

    def loss(params):
        rows = jax.tree.map(lambda x: x[:3], retain.examples)
        return jnp.mean(MODEL.loss(MODEL.forward(ju.Variables(params), rows.inputs), rows))

    assert distance(both.params, descended(moved.params, loss)) < 1e-12


def primitives(jaxpr, inside=()):
    """Every primitive of a program with the primitives that it stands in."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, inside
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from primitives(inner, (*inside, equation.primitive.name))


def test_a_step_that_only_descends_costs_no_projection_under_vmap_either():
    unlearn = ju.iterate(ju.minnorm_og(MODEL, STILL, num_rows=3), 6, batch_size=4)
    requests, keys = ju.from_indices(DATA, [[1], [2]]), jax.random.split(KEY)
    program = jax.make_jaxpr(jax.vmap(unlearn, in_axes=(None, None, 0, 0)))(VARIABLES, DATA, requests, keys)
    places = [inside for name, inside in primitives(program.jaxpr) if name == "eigh"]
    assert places
    assert all("cond" in inside for inside in places)


def test_what_layers_leaves_out_is_not_shrunk():
    after, stats = shrunk(weighted([7, 20]), 1.0, layers="head")
    assert distance(*[{x: v.params[x] for x in ("body", "bias")} for v in (after, wide(VARIABLES))]) == 0
    assert int(stats["rank"]) == 2
    assert distance(after.params["head"], VARIABLES.params["head"]) > 0.1
    with pytest.raises(ValueError, match="names no parameter"):
        shrunk(weighted([7]), 1.0, layers="nothing")


def test_balanced_rows_hold_every_class():
    labels = np.asarray(DATA.train.targets)
    common, rare = np.flatnonzero(labels == 0)[:5], np.flatnonzero(labels == 2)[0]
    after, _ = shrunk(weighted([*common, rare]), 0.5, num_rows=2, balanced=True)
    assert distance(after.params, dense([common[0], rare], lambda logits: logits.max(axis=1), 0.5)[0]) < 1e-9
    rows = weighted([7])
    rows = rows._replace(examples=rows.examples._replace(targets=jnp.zeros((10, 3))))
    with pytest.raises(ValueError, match="integer labels"):
        shrunk(rows, 0.5, MODEL._replace(loss=ju.losses.squared_error), balanced=True)


def batch_normalised():
    """A dense layer without a bias, BatchNorm, a head."""

    def forward(variables, inputs, *, train=False, key=None):
        hidden = inputs @ variables.params["body"]
        found = {"mean": hidden.mean(axis=0), "variance": hidden.var(axis=0)}
        used = found if train else variables.state
        normal = (hidden - used["mean"]) / jnp.sqrt(used["variance"])
        moved = jax.tree.map(lambda x, y: 0.9 * x + 0.1 * y, variables.state, found) if train else variables.state
        return ju.Outputs(jnp.tanh(normal) @ variables.params["head"], {}, moved)

    params = {x: VARIABLES.params[x] for x in ("body", "head")}
    return ju.Model(forward, ju.losses.cross_entropy), ju.Variables(params, {"mean": jnp.zeros(8), "variance": jnp.ones(8)})


@pytest.mark.parametrize("bn", ["frozen", "retain"])
def test_weights_in_front_of_a_batch_norm_shrink_as_a_whole_and_the_policy_holds(bn):
    model, variables = batch_normalised()
    variables, retain = wide(variables), weighted(range(10))
    after, _ = shrunk(retain, 0.25, model, variables, layers="body", bn=bn)
    np.testing.assert_allclose(after.params["body"], 0.75 * np.asarray(variables.params["body"]), atol=1e-9)
    before, now = (model.forward(v, retain.examples.inputs, train=True).logits for v in (variables, after))
    np.testing.assert_allclose(now, before, atol=1e-9)
    assert (distance(after.state, variables.state) == 0) == (bn == "frozen")


def test_a_batch_without_a_row_moves_nothing():
    after, stats = shrunk(weighted([7, 20], [0, 0]), 1.0, outputs="largest", chunk=None)
    assert distance(after, wide(VARIABLES)) == 0
    assert int(stats["rank"]) == 0


@pytest.mark.slow
def test_a_sweep_equals_single_runs():
    settings = {"strength": [0.1, 0.3], "decay": [0.5, 0.9], "every": [1, 2], "shrink_share": [0.3, 0.9]}
    sweep_equals_single_runs("minnorm_og", **settings, static={"num_rows": 3})


@pytest.mark.parametrize(
    "options",
    [
        {"strength": 1.5},
        {"decay": -0.1},
        {"every": 0},
        {"shrink_share": 2.0},
        {"num_rows": 0},
        {"chunk": 0},
        {"outputs": "some"},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ju.minnorm_og(MODEL, STILL, **options)
