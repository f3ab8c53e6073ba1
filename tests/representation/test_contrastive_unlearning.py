"""The contrast against closed forms, its limits, its sampler and its rule to stop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import losses, risk
from jaxunlearn.representation import contrastive_unlearning as module
from tests.problems import blobs, distance, forward, lane, network

KEY = jax.random.key(7)
DATA, MODEL = blobs(), network()
VARIABLES = MODEL.init(jax.random.key(1))
REQUEST = lane(ju.from_indices(DATA, [[3, 4, 5, 30]]), 0)
LOOP = {"num_steps": 6, "batch_size": 4}
RNG = np.random.default_rng(0)
TEMPERATURE = 0.7


def answer(method, **options):
    return jax.jit(method(MODEL, optax.sgd(0.1), **{**LOOP, **options}))(VARIABLES, DATA, REQUEST, KEY)


def rows_of(count, width=5):
    rows = RNG.normal(size=(count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_hand(z, y, others, labels, weights, denominator):
    """The loss row by row, and its slope in z, in NumPy."""
    values, slopes = [], []
    for row, label in zip(z, y, strict=True):
        same, different = others[(labels == label) & (weights > 0)], others[(labels != label) & (weights > 0)]
        pull = (different @ row / TEMPERATURE).mean()
        slope = -different.mean(0) / TEMPERATURE
        scale = (len(same) + len(different)) / len(different) if denominator == "official" else 1
        if len(same):
            terms = np.exp(same @ row / TEMPERATURE)
            push = np.log(terms.sum())
            slope = slope + scale * (terms / terms.sum()) @ same / TEMPERATURE
        else:
            push = np.log(len(different))
        values.append(scale * push - pull)
        slopes.append(slope)
    return np.array(values), np.array(slopes)


@pytest.mark.parametrize("denominator", ["paper", "official"])
@pytest.mark.parametrize("form", ["class", "sample"])
def test_contrast_and_its_slope_have_their_closed_form(denominator, form):
    z, others = rows_of(4), rows_of(9)
    y, labels = np.array([0, 1, 2, 0]), np.array([0, 0, 1, 1, 2, 2, 3, 3, 0])
    if form == "class":  # nobody is of the class that is forgotten
        y, labels = np.zeros(4, int), np.array([1, 1, 1, 2, 2, 2, 3, 3, 3])
    weights = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0.0])
    with jax.enable_x64(True):
        arguments = tuple(map(jnp.asarray, (y, others, labels, weights)))

        def mean(z):
            values = losses.class_contrast(z, *arguments, temperature=TEMPERATURE, denominator=denominator)
            return values.mean(), values

        slopes, values = jax.grad(mean, has_aux=True)(jnp.asarray(z))
    expected, expected_slopes = by_hand(z, y, others, labels, weights, denominator)
    np.testing.assert_allclose(values, expected, atol=1e-12)
    np.testing.assert_allclose(slopes, expected_slopes / 4, atol=1e-12)
    if form == "class":
        np.testing.assert_allclose(slopes, np.tile(-others[:7].mean(0) / (4 * TEMPERATURE), (4, 1)), atol=1e-12)


def test_slopes_reach_the_retained_rows_too():
    z, others, weights = rows_of(1), rows_of(3), jnp.ones(3)
    slope = jax.grad(lambda others: losses.class_contrast(z, jnp.array([0]), others, jnp.array([1, 2, 1]), weights)[0])(others)
    np.testing.assert_allclose(slope, np.tile(-z / 3, (3, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "weights"), [([1, 1, 2], [1, 1, 1]), ([0, 0, 0], [1, 1, 1]), ([0, 1, 2], [0, 0, 0]), ([0, 0, 1], [0, 0, 1])]
)
def test_absent_classes_give_no_inf_and_no_nan(labels, weights):
    for denominator in ("paper", "official"):

        def mean(both, denominator=denominator):
            z, others = map(losses.unit_rows, both)
            labelled = (jnp.zeros(2, int), others, jnp.array(labels), jnp.array(weights))
            return losses.class_contrast(z, *labelled, denominator=denominator).sum()

        value, slopes = jax.jit(jax.value_and_grad(mean))((jnp.zeros((2, 4)).at[0].set(3.0), jnp.eye(3, 4)))
        assert np.isfinite(value)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in slopes)
        if not any(weights) or labels == [0, 0, 0]:
            assert value == 0
            assert not any(bool(jnp.any(x)) for x in slopes)


def test_unit_rows():
    rows = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32).at[1].set(0)
    units = losses.unit_rows(rows)
    np.testing.assert_allclose(jnp.linalg.norm(units, axis=1), [1, 0, 1], atol=1e-6)
    slopes = jax.jacobian(losses.unit_rows)(rows)
    assert not jnp.any(slopes[1])
    assert bool(jnp.all(jnp.isfinite(slopes)))


def test_an_unknown_denominator_is_refused():
    with pytest.raises(ValueError, match='must be "paper" or "official"'):
        answer(module.contrastive_unlearning, denominator="code")


def test_a_batch_that_does_not_count_moves_nothing():
    stepwise = module.unlearner(MODEL, optax.sgd(0.1))
    context, state = stepwise.init(VARIABLES, DATA, REQUEST, KEY)
    batch = stepwise.sample(risk.split(DATA, REQUEST, KEY), context, jnp.int32(0), KEY, risk.BatchSizes(4, 4))
    none = jax.tree.map(lambda part: part._replace(weights=jnp.zeros(4)), batch[:2], is_leaf=lambda x: hasattr(x, "slots"))
    after, stats = jax.jit(stepwise.step)(state, context, ju.Batch(*none), KEY)
    assert distance(after.variables, VARIABLES) == 0
    assert float(stats["loss"]) == 0


def test_without_contrast_it_is_finetuning():
    plain = answer(ju.finetune)
    assert distance(answer(module.contrastive_unlearning, contrastive_weight=0.0).variables, plain.variables) == 0
    assert distance(answer(module.contrastive_unlearning).variables, plain.variables) > 1e-3


@pytest.mark.parametrize("denominator", ["paper", "official"])
def test_a_step_follows_the_objective(denominator):
    stepwise = module.unlearner(MODEL, optax.sgd(0.1), denominator=denominator, retain_weight=0.6)
    context, state = stepwise.init(VARIABLES, DATA, REQUEST, KEY)
    batch = stepwise.sample(risk.split(DATA, REQUEST, KEY), context, jnp.int32(0), KEY, risk.BatchSizes(4, 12))
    after, stats = jax.jit(stepwise.step)(state, context, batch, KEY)
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

    value, slope = jax.jit(jax.value_and_grad(loss))(VARIABLES.params)
    assert float(stats["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert distance(after.variables.params, jax.tree.map(lambda p, g: p - 0.1 * g, VARIABLES.params, slope)) < 1e-6


def test_without_the_retained_loss_a_row_moves_from_its_class_to_the_others():
    def linear(variables, inputs, *, train=False, key=None):
        features = inputs @ variables.params["w"]
        return ju.Outputs(features[:, :3], {"penultimate": features})

    model = ju.Model(linear, ju.losses.cross_entropy)
    start = ju.Variables({"w": jnp.eye(4)})
    request = lane(ju.from_indices(DATA, [[3]]), 0)
    stop_at = {"num_steps": 40, "batch_size": 1, "retain_batch_size": 4000, "retain_weight": 0.0}
    own = np.asarray(DATA.train.targets) == int(DATA.train.targets[3])
    own[3] = False
    others = np.asarray(DATA.train.targets) != int(DATA.train.targets[3])

    def cosines(active):
        unlearn = module.contrastive_unlearning(model, optax.sgd(0.003), active_steps=active, **stop_at)
        z = losses.unit_rows(DATA.train.inputs @ unlearn(start, DATA, request, KEY).variables.params["w"])
        return z[3] @ z[others].mean(0), z[3] @ z[own].mean(0)

    far, near = jax.jit(jax.vmap(cosines))(jnp.array([0, 10, 20, 30, 40]))
    assert bool(jnp.all(jnp.diff(far) > 0))
    assert bool(jnp.all(jnp.diff(near) < 0))


def test_a_batch_of_forgotten_rows_is_repeated_with_fresh_retained_rows():
    stepwise = module.unlearner(MODEL, optax.sgd(0.1), repeats=3)
    split = risk.split(DATA, REQUEST, KEY)
    drawn = [
        stepwise.sample(split, (), jnp.int32(step), jax.random.fold_in(KEY, step), risk.BatchSizes(2, 8)) for step in range(7)
    ]
    forgotten = [batch.forget.slots.tolist() for batch in drawn]
    assert forgotten[0] == forgotten[1] == forgotten[2] != forgotten[3] == forgotten[4] == forgotten[5]
    assert sorted(forgotten[0] + forgotten[3]) == [0, 1, 2, 3]
    assert forgotten[6] == forgotten[0]
    assert len({tuple(batch.retain.slots.tolist()) for batch in drawn}) == 7


def test_every_number_may_be_traced():
    names = ("contrastive_weight", "retain_weight", "temperature", "repeats")

    def at(values):
        return answer(module.contrastive_unlearning, **dict(zip(names, values, strict=True))).variables

    swept = jax.jit(jax.vmap(at))((jnp.array([1.0, 3.0]), jnp.ones(2), jnp.array([0.5, 0.7]), jnp.array([1, 2])))
    for position, values in enumerate([(1.0, 1.0, 0.5, 1), (3.0, 1.0, 0.7, 2)]):
        assert distance(lane(swept, position), at(values)) < 1e-5


def test_bad_input_gets_a_clear_error():
    with pytest.raises(ValueError, match=r"no features 'conv' \(it has: penultimate"):
        answer(module.contrastive_unlearning, layer="conv")
    bare = MODEL._replace(forward=lambda *a, **k: forward(*a, **k)._replace(features={}))
    with pytest.raises(ValueError, match="it has: none"):
        module.contrastive_unlearning(bare, optax.sgd(0.1), **LOOP)(VARIABLES, DATA, REQUEST, KEY)
    real = DATA._replace(train=DATA.train._replace(targets=jnp.zeros(60)))
    regression = MODEL._replace(loss=lambda outputs, examples: outputs.logits[:, 0] - examples.targets)
    with pytest.raises(ValueError, match="integer labels"):
        module.contrastive_unlearning(regression, optax.sgd(0.1), **LOOP)(VARIABLES, real, REQUEST, KEY)
    for name, value in {"contrastive_weight": -1.0, "retain_weight": -1.0, "temperature": 0.0, "repeats": 0}.items():
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            answer(module.contrastive_unlearning, **{name: value})


@pytest.fixture(scope="module")
def problem():
    """300 rows, a trained model, requests for two of the classes and for some rows."""
    data = blobs(300, seed=4)
    train = ju.retrain(MODEL, optax.sgd(0.3), num_steps=300, batch_size=32)
    return data, jax.jit(train)(MODEL.init(KEY), data, ju.empty_request(), KEY).variables


def accuracy(variables, examples, chosen):
    right = np.asarray(jnp.argmax(forward(variables, examples.inputs).logits, -1) == examples.targets)
    return right[np.asarray(chosen)].mean()


def test_the_class_form_stops_every_request_at_chance(problem):
    data, variables = problem
    held_out, requests = data.extra["validation"], ju.from_classes(data, [[0], [1], [2]])
    keys = jax.random.split(KEY, 3)

    def method(**options):
        loop = {"num_steps": 80, "batch_size": 32, "contrastive_weight": 1.0}
        return jax.jit(ju.batched(module.contrastive_unlearning(MODEL, optax.sgd(0.1), **loop, **options), chunk=3))

    results = ju.check(method(peek=True, stop=module.stop_rule(MODEL, "class", chunk=7))(variables, data, requests, keys))
    steps = results.stats["steps"]
    assert len(set(steps.tolist())) > 1
    assert bool(jnp.all(steps < 80))

    # the same run, cut off where it stopped, and one step earlier: each request by itself, told by the rows it is given
    def told(data, request):
        return steps[jnp.argmax(request.target)]

    at_stop = method(active_steps=told)(variables, data, requests, keys)
    earlier = method(active_steps=lambda *a: told(*a) - 1)(variables, data, requests, keys)
    assert distance(at_stop.variables, results.variables) < 1e-6
    retrain = ju.batched(ju.retrain(MODEL, optax.sgd(0.3), num_steps=300, batch_size=32), chunk=3)
    retrained = jax.jit(retrain)(variables, data, requests, keys)
    for position in range(3):
        own, kept = held_out.targets == position, data.train.targets != position
        assert accuracy(lane(results.variables, position), held_out, own) <= 1 / 3
        assert accuracy(lane(earlier.variables, position), held_out, own) > 1 / 3
        reached, aim = (accuracy(lane(x.variables, position), data.train, kept) for x in (results, retrained))
        assert reached > aim - 0.02


def test_named_classes_need_no_peek(problem):
    data, variables = problem
    request = lane(ju.from_classes(data, [[1]]), 0)
    loop = {"num_steps": 60, "batch_size": 32}
    named = module.stop_rule(MODEL, "class", classes=jnp.array([False, True, False]))
    blind = module.contrastive_unlearning(MODEL, optax.sgd(0.03), stop=named, **loop)
    seeing = module.contrastive_unlearning(MODEL, optax.sgd(0.03), stop=module.stop_rule(MODEL, "class"), peek=True, **loop)
    first, second = (jax.jit(f)(variables, data, request, KEY) for f in (blind, seeing))
    assert int(first.stats["steps"]) == int(second.stats["steps"]) < 60
    assert not bool(first.stats["peek"])
    assert distance(first.variables, second.variables) == 0


def test_the_sample_form_compares_the_request_with_unseen_rows(problem):
    data, variables = problem
    unseen = data.extra["validation"]
    requests = ju.from_indices(data, [list(range(10)), list(range(100, 107))])

    def looked(variables, rows, request):
        return jax.vmap(module.stop_rule(MODEL, "sample"), in_axes=(0, None, 0))(variables, rows, request)

    zero = jax.tree.map(jnp.zeros_like, variables)
    both = jax.tree.map(lambda *x: jnp.stack(x), variables, zero)
    for rows in (data, data._replace(extra={"validation": unseen._replace(targets=(unseen.targets + 1) % 3)})):
        stops = jax.jit(looked)(both, rows, requests)
        for position, at in enumerate((variables, zero)):
            indices = np.asarray(requests.indices[position])[np.asarray(requests.weights[position]) > 0]
            expected = accuracy(at, data.train, indices) <= accuracy(at, rows.extra["validation"], np.arange(20))
            assert bool(stops[position]) == expected


def test_the_rule_never_stops_on_nan_or_on_an_empty_set(problem):
    data, variables = problem
    broken = jax.tree.map(lambda x: x * jnp.nan, variables)
    request = lane(ju.from_classes(data, [[1]]), 0)
    nothing = request._replace(weights=jnp.zeros_like(request.weights), target=jnp.zeros(3, bool))
    for form in ("class", "sample"):
        stop = module.stop_rule(MODEL, form)
        assert not bool(stop(broken, data, request))
        assert not bool(stop(variables, data, nothing))


def test_the_rule_says_what_it_needs(problem):
    data, variables = problem
    loop = {"num_steps": 2, "batch_size": 4}
    for form in ("class", "sample"):
        unlearn = module.contrastive_unlearning(MODEL, optax.sgd(0.1), stop=module.stop_rule(MODEL, form), **loop)
        with pytest.raises(ValueError, match="pass peek=True"):
            unlearn(variables, data, REQUEST, KEY)
    with pytest.raises(ValueError, match="make the request with from_classes"):
        module.stop_rule(MODEL, "class")(variables, data, REQUEST)
    with pytest.raises(ValueError, match="add held-out rows"):
        module.stop_rule(MODEL, "sample")(variables, data._replace(extra={}), REQUEST)
    with pytest.raises(ValueError, match="form must be"):
        module.stop_rule(MODEL, "row")
    with pytest.raises(ValueError, match='belong to the form "class"'):
        module.stop_rule(MODEL, "sample", classes=jnp.ones(3, bool))
