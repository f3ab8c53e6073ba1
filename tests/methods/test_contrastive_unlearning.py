"""Limits of contrastive unlearning, its sampler and its rule to stop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import sampling
from jaxunlearn.loop.iterate import Seen
from jaxunlearn.losses import unit_rows
from jaxunlearn.methods.contrastive_unlearning import stop_rule
from tests.methods.runs import DATA, KEY, MODEL, REQUEST, VARIABLES, answer, batch_of, stepped, sweep_equals_single_runs
from tests.problems import blobs, distance, forward, held_out, lane

UNSEEN = held_out(300, seed=4)
DEFAULTS = {"contrastive_weight": 3.0, "retain_weight": 1.0, "temperature": 0.7, "repeats": 4}


def contrast(**settings):
    """One compiled program for all of these."""
    return answer("contrastive_unlearning", **{**DEFAULTS, **settings})


def method(**options):
    return ju.contrastive_unlearning(MODEL, optax.sgd(0.1), **options)


def test_without_contrast_it_is_finetuning():
    plain = answer("finetune")
    assert distance(contrast(contrastive_weight=0.0).variables, plain.variables) == 0
    assert distance(contrast().variables, plain.variables) > 1e-3


@pytest.mark.parametrize("denominator", ["paper", "official"])
def test_a_step_follows_the_objective(denominator):
    stepwise = method(denominator=denominator, retain_weight=0.6)
    context, state, batch = batch_of(stepwise, sizes=(4, 12))
    step_once = jax.jit(stepwise.step)
    after, stats = step_once(state, context, batch, KEY)
    forget, retain = batch.forget.examples, batch.retain.examples

    def loss(params):
        z, others = (forward(ju.Variables(params), x.inputs).features["penultimate"] for x in (forget, retain))
        z, others = z / jnp.linalg.norm(z, axis=1)[:, None], others / jnp.linalg.norm(others, axis=1)[:, None]
        total = 0.0
        for i, label in enumerate(np.asarray(forget.targets)):
            same = np.flatnonzero(np.asarray(retain.targets) == label)
            different = np.flatnonzero(np.asarray(retain.targets) != label)
            scale = 12 / len(different) if denominator == "official" else 1
            near = jnp.exp(others[same] @ z[i] / 0.7).sum()
            total += scale * jnp.log(near) - (others[different] @ z[i] / 0.7).mean()
        task = ju.losses.cross_entropy(forward(ju.Variables(params), retain.inputs), retain).mean()
        return 3 * total / 4 + 0.6 * task

    value, expected = stepped(VARIABLES.params, loss)
    assert float(stats["loss"]) == pytest.approx(value, rel=1e-5)
    assert distance(after.variables.params, expected) < 1e-6
    # a batch that does not count moves nothing
    none = batch._replace(
        forget=batch.forget._replace(weights=jnp.zeros(4)), retain=batch.retain._replace(weights=jnp.zeros(12))
    )
    after, stats = step_once(state, context, none, KEY)
    assert distance(after.variables, VARIABLES) == 0
    assert float(stats["loss"]) == 0


def test_without_the_loss_on_the_retain_set_a_row_moves_from_its_class_to_the_others():
    def linear(variables, inputs, *, train=False, key=None):
        features = inputs @ variables.params["w"]
        return ju.Outputs(features[:, :3], {"penultimate": features})

    model = ju.Model(linear, ju.losses.cross_entropy)
    start = ju.Variables({"w": jnp.eye(4)})
    request = lane(ju.from_indices(DATA, [[3]]), 0)
    own = np.asarray(DATA.train.targets) == int(DATA.train.targets[3])
    own[3] = False
    others = np.asarray(DATA.train.targets) != int(DATA.train.targets[3])
    stepwise = ju.contrastive_unlearning(model, optax.sgd(0.003), retain_weight=0.0)
    loop = {"num_steps": 40, "batch_size": 1, "retain_batch_size": 4000}

    def cosines(active):
        unlearn = ju.iterate(stepwise, active_steps=active, **loop)
        z = unit_rows(DATA.train.inputs @ unlearn(start, DATA, request, KEY).variables.params["w"])
        return z[3] @ z[others].mean(0), z[3] @ z[own].mean(0)

    far, near = jax.jit(jax.vmap(cosines))(jnp.array([0, 10, 20, 30, 40]))
    assert bool(jnp.all(jnp.diff(far) > 0))
    assert bool(jnp.all(jnp.diff(near) < 0))


def test_a_batch_of_the_forget_set_is_repeated_with_fresh_rows_of_the_retain_set():
    stepwise = method(repeats=3)

    @jax.jit
    def drawn(step):
        split = sampling.split(DATA, REQUEST, KEY)
        batch = stepwise.sample(split, (), step, jax.random.fold_in(KEY, step), sampling.BatchSizes(2, 8))
        return batch.forget.slots, batch.retain.slots

    slots = [drawn(step) for step in range(7)]
    forgotten = [x[0].tolist() for x in slots]
    assert forgotten[0] == forgotten[1] == forgotten[2] != forgotten[3] == forgotten[4] == forgotten[5]
    assert sorted(forgotten[0] + forgotten[3]) == [0, 1, 2, 3]
    assert forgotten[6] == forgotten[0]
    assert len({tuple(x[1].tolist()) for x in slots}) == 7


@pytest.mark.slow
def test_a_sweep_over_every_setting_equals_single_runs():
    settings = {"contrastive_weight": [1.0, 3.0], "retain_weight": [1.0, 0.9], "temperature": [0.5, 0.7], "repeats": [1, 2]}
    sweep_equals_single_runs("contrastive_unlearning", **settings)


def test_bad_input_gets_a_clear_error():
    def trace(stepwise, data=DATA):
        jax.eval_shape(ju.iterate(stepwise, 2, batch_size=4), VARIABLES, data, REQUEST, KEY)

    with pytest.raises(ValueError, match=r"no features 'conv' \(it has: penultimate"):
        trace(method(layer="conv"))
    with pytest.raises(ValueError, match='must be "paper" or "official"'):
        trace(method(denominator="code"))
    bare = MODEL._replace(forward=lambda *a, **k: forward(*a, **k)._replace(features={}))
    with pytest.raises(ValueError, match="it has: none"):
        trace(ju.contrastive_unlearning(bare, optax.sgd(0.1)))
    real = DATA._replace(train=DATA.train._replace(targets=jnp.zeros(60)))
    regression = MODEL._replace(loss=lambda outputs, examples: outputs.logits[:, 0] - examples.targets)
    with pytest.raises(ValueError, match="integer labels"):
        trace(ju.contrastive_unlearning(regression, optax.sgd(0.1)), real)
    for name, value in {"contrastive_weight": -1.0, "retain_weight": -1.0, "temperature": 0.0, "repeats": 0}.items():
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            method(**{name: value})


# The rule to stop


@pytest.fixture(scope="module")
def problem():
    """300 rows and a trained model."""
    data = blobs(300, seed=4)
    return data, retrained(MODEL.init(KEY), data, jax.tree.map(lambda x: x[None], ju.empty_request(256)), KEY[None])


RETRAIN = ju.iterate(ju.retrain(MODEL, optax.sgd(0.3)), num_steps=300, batch_size=32)
retrained = jax.jit(ju.batched(RETRAIN, chunk=1))


@pytest.fixture(scope="module")
def trained(problem):
    return lane(problem[1].variables, 0)


def accuracy(variables, examples, chosen):
    right = np.asarray(jnp.argmax(forward(variables, examples.inputs).logits, -1) == examples.targets)
    return right[np.asarray(chosen)].mean()


@pytest.mark.slow
def test_the_class_form_stops_every_request_at_chance(problem, trained):
    data, requests, keys = problem[0], ju.from_classes(problem[0], [[0], [1], [2]]), jax.random.split(KEY, 3)
    stepwise, loop = method(contrastive_weight=1.0), {"num_steps": 80, "batch_size": 32}
    stopping = ju.iterate(stepwise, stop=stop_rule(MODEL, "class", chunk=7), validation=UNSEEN, peek=True, **loop)
    results = ju.check(jax.jit(ju.batched(stopping, chunk=3))(trained, data, requests, keys))
    steps = results.stats["steps"]
    assert len(set(steps.tolist())) > 1
    assert bool(jnp.all(steps < 80))

    # the same run, cut off where it stopped, and one step earlier: each request by itself
    def cut(request, key, steps):
        return ju.iterate(stepwise, active_steps=steps, **loop)(trained, data, request, key).variables

    run_until = jax.jit(jax.vmap(cut))
    at_stop, earlier = run_until(requests, keys, steps), run_until(requests, keys, steps - 1)
    assert distance(at_stop, results.variables) < 1e-6
    aims = retrained(trained, data, requests, keys).variables
    for position in range(3):
        own, kept = UNSEEN.targets == position, data.train.targets != position
        assert accuracy(lane(results.variables, position), UNSEEN, own) <= 1 / 3
        assert accuracy(lane(earlier, position), UNSEEN, own) > 1 / 3
        reached, aim = (accuracy(lane(x, position), data.train, kept) for x in (results.variables, aims))
        assert reached > aim - 0.02


def test_named_classes_need_no_peek(problem, trained):
    data, request = problem[0], lane(ju.from_classes(problem[0], [[1]]), 0)
    stepwise = ju.contrastive_unlearning(MODEL, optax.sgd(0.03))
    loop = {"num_steps": 60, "batch_size": 32, "validation": UNSEEN}
    named = stop_rule(MODEL, "class", classes=jnp.array([False, True, False]))
    blind = ju.iterate(stepwise, stop=named, **loop)
    seeing = ju.iterate(stepwise, stop=stop_rule(MODEL, "class"), peek=True, **loop)
    first, second = (jax.jit(f)(trained, data, request, KEY) for f in (blind, seeing))
    assert int(first.stats["steps"]) == int(second.stats["steps"]) < 60
    assert not bool(first.stats["peek"])
    assert distance(first.variables, second.variables) == 0


def test_the_sample_form_compares_the_request_with_unseen_rows(problem, trained):
    data, requests = problem[0], ju.from_indices(problem[0], [list(range(10)), list(range(100, 107))])

    @jax.jit
    def looked(variables, unseen, requests):
        stop = stop_rule(MODEL, "sample")
        return jax.vmap(lambda variables, request: stop(variables, Seen(unseen, data, request)))(variables, requests)

    zero = jax.tree.map(jnp.zeros_like, trained)
    both = jax.tree.map(lambda *x: jnp.stack(x), trained, zero)
    for rows in (UNSEEN, UNSEEN._replace(targets=(UNSEEN.targets + 1) % 3)):
        stops = looked(both, rows, requests)
        for position, at in enumerate((trained, zero)):
            indices = np.asarray(requests.indices[position])[np.asarray(requests.weights[position]) > 0]
            expected = accuracy(at, data.train, indices) <= accuracy(at, rows, np.arange(20))
            assert bool(stops[position]) == expected


def test_the_rule_never_stops_on_nan_or_on_an_empty_set(problem, trained):
    data, request = problem[0], lane(ju.from_classes(problem[0], [[1]]), 0)
    broken = jax.tree.map(lambda x: x * jnp.nan, trained)
    nothing = request._replace(weights=jnp.zeros_like(request.weights), target=jnp.zeros(3, bool))
    for form in ("class", "sample"):
        stop = jax.jit(stop_rule(MODEL, form))
        assert not bool(stop(broken, Seen(UNSEEN, data, request)))
        assert not bool(stop(trained, Seen(UNSEEN, data, nothing)))


def test_the_rule_says_what_it_needs():
    for form in ("class", "sample"):
        unlearn = ju.iterate(method(), 2, batch_size=4, stop=stop_rule(MODEL, form), validation=UNSEEN)
        with pytest.raises(ValueError, match=r"may not read seen\..*pass peek=True"):
            unlearn(VARIABLES, DATA, REQUEST, KEY)
        with pytest.raises(ValueError, match=r"pass iterate\(\.\.\., validation="):
            ju.iterate(method(), 2, batch_size=4, stop=stop_rule(MODEL, form), peek=True)(VARIABLES, DATA, REQUEST, KEY)
    with pytest.raises(ValueError, match="make the request with from_classes"):
        stop_rule(MODEL, "class")(VARIABLES, Seen(UNSEEN, DATA, REQUEST))
    with pytest.raises(ValueError, match="form must be"):
        stop_rule(MODEL, "row")
    with pytest.raises(ValueError, match='belong to the form "class"'):
        stop_rule(MODEL, "sample", classes=jnp.ones(3, bool))
