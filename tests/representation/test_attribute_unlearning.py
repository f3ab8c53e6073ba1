"""The bound against closed forms, its signs and limits, what is removed and what is kept, and the promises of the catalogue."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import risk
from jaxunlearn.features import attributes
from jaxunlearn.representation import attribute_unlearning as module
from tests.problems import blobs, distance, forward, lane, network, normalized_network

KEY = jax.random.key(7)
MODEL = network()
VARIABLES = MODEL.init(jax.random.key(1))
RNG = np.random.default_rng(0)
VALUES = RNG.integers(-1, 3, (60, 2))
DATA = blobs()._replace(extra={"attributes": jnp.asarray(VALUES)})
LOOP = {"num_steps": 5, "batch_size": 4, "num_values": 3, "probe_width": 5}
REQUESTS = ju.from_attributes(DATA, [[0], [1], [0, 1]])
KEYS = jax.random.split(KEY, 3)


def method(model=MODEL, optimizer=None, **options):
    loop = {"probe_optimizer": optax.sgd(0.1), **LOOP, **options}
    return module.attribute_unlearning(model, optimizer or optax.sgd(0.1), **loop)


def answer(data=DATA, request=None, **options):
    return jax.jit(method(**options))(VARIABLES, data, lane(REQUESTS, 0) if request is None else request, KEY)


@pytest.fixture(scope="module")
def batched():
    return jax.jit(ju.batched(method(), chunk=3))


@pytest.fixture(scope="module")
def results(batched):
    return ju.check(batched(VARIABLES, DATA, REQUESTS, KEYS))


@pytest.mark.parametrize(("alpha", "beta", "gamma"), [(1.0, 0.5, 1.5), (2.0, 0.3, 0.0), (0.7, 0.2, 0.1)])
def test_the_bound_of_gaussians_has_its_closed_form(alpha, beta, gamma):
    # x = (u, z), y = u, h = a u + b z + s noise with a^2 + b^2 = 1: from b = 0 to b = 1 the bound grows by alpha gamma K
    weights = np.array(module.bound_weights(alpha, beta, gamma))
    rng, s = np.random.default_rng(1), 0.5
    capacity = 0.5 * np.log(1 + 1 / s**2)
    u, z, noise = rng.normal(size=(3, 20_000))
    bounds, estimates = [], []
    for b in (0.0, 1.0):
        a = np.sqrt(1 - b**2)
        exact = [capacity, 0.5 * np.log(1 + a**2 / (b**2 + s**2)), 0.5 * np.log(1 + b**2 / (a**2 + s**2))]
        bounds.append(-weights @ exact)
        h = a * u + b * z + s * noise

        def left(target, h=h):  # what the best linear probe leaves of a variance
            return np.var(target - h * np.dot(h, target) / np.dot(h, h)) / np.var(target)

        # errors of probes are entropies of Gaussians; the input's part that h has is the mixture it holds
        errors = 0.5 * np.log([left(a * u + b * z), left(u), left(z)])
        estimates.append(weights @ errors)
    assert bounds[1] - bounds[0] == pytest.approx(alpha * gamma * capacity, abs=1e-12)
    assert estimates[1] - estimates[0] == pytest.approx(alpha * gamma * capacity, rel=0.05, abs=0.02 * alpha)


def test_frequencies_leave_out_what_is_unknown_removed_or_asked_for():
    present = DATA.present.at[jnp.array([0, 7])].set(0)
    data = DATA._replace(present=present)
    request = ju.ForgetRequest(jnp.array([3, 8, 0]), jnp.array([1.0, 1, 0]), jnp.array([True, False]))
    counts = attributes.frequencies(data, request, jnp.asarray(VALUES), 3)
    used = np.setdiff1d(np.arange(60), [0, 7, 3, 8])
    expected = np.array([[np.sum(VALUES[used, column] == value) for value in range(3)] for column in range(2)])
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_allclose(
        attributes.entropy_of(counts), [-np.sum(p * np.log(p)) for p in expected / expected.sum(1, keepdims=True)], rtol=1e-5
    )
    assert attributes.entropy_of(jnp.array([[4.0, 0.0], [0.0, 0.0]])).tolist() == [0, 0]


def channel(flip, rows=4000):
    """Two inputs, of which one is the label and the other an attribute seen through a binary symmetric channel."""
    rng = np.random.default_rng(2)
    label, attribute = rng.integers(0, 2, (2, rows))
    seen = np.where(rng.random(rows) < flip, 1 - attribute, attribute)
    inputs = np.stack([label, seen], axis=1).astype(np.float32)
    data = ju.training_data(inputs, label.astype(np.int32), extra={"attributes": jnp.asarray(attribute[:, None])})
    exact = np.log(2) + flip * np.log(flip) + (1 - flip) * np.log(1 - flip)

    def predict(variables, inputs, *, train=False, key=None):
        features = inputs @ variables.params["w"]
        return ju.Outputs(features, {"penultimate": features})

    return data, ju.Model(predict, ju.losses.cross_entropy), ju.Variables({"w": jnp.eye(2)}), float(exact)


def test_probes_measure_the_information_of_a_channel():
    data, model, variables, exact = channel(0.1)
    loop = {"num_steps": 40, "batch_size": 1000, "probe_steps": 5, "probe_width": 8, "num_values": 2}
    unlearn = method(model, optax.sgd(0.0), probe_optimizer=optax.adam(0.05), **loop)
    request = ju.empty_request()._replace(target=jnp.array([True]))
    result = ju.check(jax.jit(unlearn)(variables, data, request, KEY))
    assert distance(result.variables, variables) == 0
    # the standard error of the mean of -log p over ten batches of a thousand rows is 0.0066
    assert float(result.stats["attribute_information"][-10:].mean()) == pytest.approx(exact, abs=0.03)
    assert float(result.stats["label_error"][-1]) < 0.02
    assert float(result.stats["reconstruction_error"][-1]) < 0.02


@pytest.mark.parametrize(("beta", "gamma", "sign"), [(0.5, 1.5, -1.0), (0.5, 0.5, 0.0), (0.5, 0.0, 1.0)])
def test_a_step_follows_the_objective(beta, gamma, sign):
    stepwise = module.unlearner(
        MODEL, optax.sgd(0.1), num_values=3, probe_steps=0, probe_width=0, alpha=0.8, beta=beta, gamma=gamma
    )
    request = lane(REQUESTS, 2)
    context, state = stepwise.init(VARIABLES, DATA, request, KEY)
    batch = stepwise.sample(risk.split(DATA, request, KEY), context, jnp.int32(0), KEY, risk.BatchSizes(4, 20))
    after, stats = jax.jit(stepwise.step)(state, context, batch, KEY)
    part, values = batch.retain.examples, VALUES[np.asarray(batch.retain.slots)]
    entropy = [-np.sum(p * np.log(p)) for p in (np.bincount(v[v >= 0]) / np.sum(v >= 0) for v in VALUES.T)]
    l1, l2, l3 = 0.8 * (1 - beta), 0.8 * beta, 0.8 * (beta - gamma)
    assert np.sign(l3) == sign
    probes = jax.tree.map(np.asarray, state.probes)

    def loss(params):
        outputs = forward(ju.Variables(params), part.inputs)
        h = outputs.features["penultimate"]
        decoded, named = (h @ probes[x]["out"] for x in ("decoder", "label"))
        total = ju.losses.cross_entropy(outputs, part).mean() + l1 * jnp.mean((decoded - part.inputs) ** 2)
        total += l2 * ju.losses.cross_entropy(ju.Outputs(named), part).mean()
        for column in range(2):
            known = np.flatnonzero(values[:, column] >= 0)
            guesses = jax.nn.log_softmax(h @ probes["attributes"]["out"][column])
            error = -jnp.mean(guesses[known, values[known, column]])
            total += l3 * jnp.minimum(error, entropy[column])
        return total

    value, slope = jax.jit(jax.value_and_grad(loss))(VARIABLES.params)
    assert float(stats["loss"]) == pytest.approx(float(value), rel=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, VARIABLES.params, slope)
    assert distance(after.model.variables.params, expected) < 1e-6


def test_beyond_the_entropy_an_attribute_pushes_no_more():
    def moved(shift, gamma):
        stepwise = module.unlearner(MODEL, optax.sgd(0.1), num_values=3, probe_steps=0, probe_width=0, beta=0.5, gamma=gamma)
        request = lane(REQUESTS, 0)
        context, state = stepwise.init(VARIABLES, DATA, request, KEY)
        heads = {**state.probes["attributes"], "out_bias": jnp.full((2, 3), 0.0).at[:, 0].set(shift)}
        state = state._replace(probes={**state.probes, "attributes": heads})
        batch = stepwise.sample(risk.split(DATA, request, KEY), context, jnp.int32(0), KEY, risk.BatchSizes(4, 20))
        after, stats = jax.jit(stepwise.step)(state, context, batch, KEY)
        return after.model.variables, float(stats["attribute_information"][0])

    fooled, information = moved(20.0, 1.5)  # sure of one value, so wrong for most rows
    assert information < -1
    assert distance(fooled, moved(20.0, 0.5)[0]) == 0  # as if the attribute had no weight


def test_the_probes_learn_before_every_step_and_only_what_is_asked_for():
    stepwise = module.unlearner(MODEL, optax.sgd(0.0), num_values=3, probe_steps=2, probe_optimizer=optax.sgd(0.1))
    request = lane(REQUESTS, 1)
    context, state = stepwise.init(VARIABLES, DATA, request, KEY)
    batch = stepwise.sample(risk.split(DATA, request, KEY), context, jnp.int32(0), KEY, risk.BatchSizes(4, 20))
    step_once, errors = jax.jit(stepwise.step), []
    after = state
    for _ in range(5):
        after, stats = step_once(after, context, batch, KEY)
        errors.append([float(stats[x]) for x in ("reconstruction_error", "label_error")] + [-stats["attribute_information"][1]])
    assert np.all(np.diff(np.array(errors), axis=0) < 0)
    untouched, trained = (lane(x.probes["attributes"], 0) for x in (state, after))
    assert distance(untouched, trained) == 0
    assert distance(lane(state.probes["attributes"], 1), lane(after.probes["attributes"], 1)) > 0


def test_the_weight_of_the_attribute_grows_over_the_warm_up():
    whole = answer(warmup_steps=0, num_steps=1, gamma=1.0, probe_steps=0)
    assert distance(answer(warmup_steps=4, num_steps=1, gamma=2.5, probe_steps=0).variables, whole.variables) < 1e-6


def test_without_the_bound_it_is_finetuning():
    loop = {"num_steps": 5, "batch_size": 4}
    plain = jax.jit(ju.finetune(MODEL, optax.sgd(0.1), **loop))(VARIABLES, DATA, lane(REQUESTS, 0), KEY)
    assert distance(answer(alpha=0.0, beta=0.0, gamma=0.0).variables, plain.variables) == 0
    assert distance(answer().variables, plain.variables) > 1e-3


def test_batchnorm_moves_once_a_step():
    def predict(variables, inputs, *, train=False, key=None):
        outputs = model.forward(variables, inputs, train=train, key=key)
        return outputs._replace(features={"penultimate": inputs @ variables.params["w"]})

    model = normalized_network()
    variables = model.init(KEY)
    for bn, count in (("retain", 5), ("frozen", 0)):
        unlearn = method(model._replace(forward=predict), bn=bn)
        after = jax.jit(unlearn)(variables, DATA, lane(REQUESTS, 0), KEY).variables
        assert int(after.state["count"]) == count


def test_batched_equals_one_call_per_request(results):
    single = jax.jit(method())
    for position in range(3):
        alone = single(VARIABLES, DATA, lane(REQUESTS, position), KEYS[position])
        assert distance(alone.variables, lane(results.variables, position)) < 1e-6
    assert results.stats["attribute_information"].shape == (3, 5, 2)
    assert not jnp.any(results.stats["attribute_information"][0, :, 1])


def test_nan_in_one_request_never_reaches_another(results):
    start = jax.tree.map(lambda x: jnp.stack([x, x * jnp.nan, x]), VARIABLES)
    tenants = jax.jit(ju.batched(method(), in_axes=(0, None, 0, 0), chunk=3))(start, DATA, REQUESTS, KEYS)
    for position in (0, 2):
        assert distance(lane(tenants.variables, position), lane(results.variables, position)) < 1e-6
    assert tenants.status.tolist() == [0, int(ju.Status.NONFINITE), 0]


def test_unknown_values_and_other_attributes_are_not_read():
    unlearn, request = jax.jit(method()), lane(REQUESTS, 0)

    def under(values):
        return unlearn(VARIABLES, DATA._replace(extra={"attributes": values}), request, KEY).variables

    plain = under(jnp.asarray(VALUES))
    strange = jnp.where(jnp.asarray(VALUES) < 0, 77, jnp.asarray(VALUES)).at[:, 1].set(0)
    assert distance(under(strange), plain) == 0
    known = jnp.maximum(jnp.asarray(VALUES), 0)
    assert distance(under(known), plain) > 0


def test_removed_rows_and_named_rows_are_not_read():
    gone = jnp.array([5, 12])
    removed = DATA._replace(present=DATA.present.at[gone].set(0))
    values = jnp.asarray(VALUES).at[gone].set(1)
    poisoned = removed._replace(
        train=removed.train._replace(inputs=DATA.train.inputs.at[gone].set(jnp.nan)), extra={"attributes": values}
    )
    unlearn, naming = jax.jit(method()), ju.ForgetRequest(gone, jnp.zeros(2), jnp.array([True, False]))
    clean = unlearn(VARIABLES, removed, naming, KEY)
    assert distance(clean.variables, unlearn(VARIABLES, poisoned, naming, KEY).variables) == 0
    named = unlearn(VARIABLES, poisoned._replace(present=DATA.present), naming._replace(weights=jnp.ones(2)), KEY)
    assert int(named.status) == ju.Status.OK
    assert distance(named.variables, clean.variables) < 1e-6


def test_an_empty_request_changes_nothing():
    result = answer(request=ju.empty_request()._replace(target=jnp.zeros(2, bool)))
    assert int(result.status) == ju.Status.EMPTY_REQUEST
    assert distance(result.variables, VARIABLES) == 0


def test_no_key_is_used_twice_and_one_trace_serves_all():
    with jax.debug_key_reuse(True):
        assert int(answer().status) == ju.Status.OK
    traces = []

    def counted(*arguments):
        traces.append(1)
        return method()(*arguments)

    once = jax.jit(counted)
    for position in range(3):
        once(VARIABLES, DATA, lane(REQUESTS, position), KEYS[position])
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_kept(dtype):
    variables = jax.tree.map(lambda x: x.astype(dtype), VARIABLES)
    data = DATA._replace(train=DATA.train._replace(inputs=DATA.train.inputs.astype(dtype)))
    after = jax.eval_shape(method(), variables, data, lane(REQUESTS, 0), KEY).variables
    assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype(dtype)}


def test_every_number_may_be_traced():
    swept = jax.jit(jax.vmap(lambda *x: answer(alpha=x[0], beta=x[1], gamma=x[2], warmup_steps=x[3]).variables))(
        jnp.array([1.0, 0.5]), jnp.array([0.5, 0.1]), jnp.array([1.5, 0.7]), jnp.array([0, 3])
    )
    for position, (alpha, beta, gamma, warmup) in enumerate([(1.0, 0.5, 1.5, 0), (0.5, 0.1, 0.7, 3)]):
        alone = answer(alpha=alpha, beta=beta, gamma=gamma, warmup_steps=warmup)
        assert distance(lane(swept, position), alone.variables) < 1e-5


def test_requests_for_attributes():
    assert REQUESTS.target.tolist() == [[True, False], [False, True], [True, True]]
    assert not jnp.any(REQUESTS.weights)
    for chosen, message in (
        ([[2]], "there are 0, 1"),
        ([[0, 0]], "more than once"),
        ([[]], "names no attributes"),
        ([], "at least"),
    ):
        with pytest.raises(ValueError, match=message):
            ju.from_attributes(DATA, chosen)
    with pytest.raises(ValueError, match="must be integers"):
        ju.from_attributes(blobs(), [[0]])


def test_bad_input_gets_a_clear_error():
    for target in ((), jnp.array([1, 0]), jnp.ones(3, bool)):
        with pytest.raises(ValueError, match=r"which of the 2 attributes to forget.*from_attributes"):
            answer(request=ju.empty_request()._replace(target=target))
    with pytest.raises(ValueError, match="add them with training_data"):
        answer(DATA._replace(extra={}))
    with pytest.raises(ValueError, match=r"must be integers \[60, A\]"):
        answer(DATA._replace(extra={"attributes": jnp.zeros(60, int)}))
    with pytest.raises(ValueError, match="it has: penultimate"):
        answer(layer="conv")
    whole = DATA._replace(train=DATA.train._replace(inputs=jnp.ones((60, 4), int)))
    with pytest.raises(TypeError, match="must be floating-point"):
        answer(whole)
    for options in ({"num_values": 1}, {"probe_steps": -1}, {"alpha": -1.0}, {"gamma": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            answer(**options)


def pictures(correlated=False, rows=1500):
    """Label, attribute and a third one, each a direction of its own in twelve noisy inputs."""
    rng = np.random.default_rng(5)
    label, attribute, third = rng.integers(0, 2, (3, rows))
    attribute = label if correlated else attribute
    directions = np.linalg.qr(rng.normal(size=(12, 12)))[0][:3] * 3
    signs = 2 * np.stack([label, attribute, third], axis=1) - 1
    inputs = (signs @ directions + rng.normal(size=(rows, 12))).astype(np.float32)
    attributes = jnp.asarray(np.stack([attribute, third], axis=1))
    return ju.training_data(inputs, label.astype(np.int32), extra={"attributes": attributes})


def wide_forward(variables, inputs, *, train=False, key=None):
    hidden = jax.nn.relu(inputs @ variables.params["in"])
    features = hidden @ variables.params["out"]
    return ju.Outputs(features @ variables.params["head"], {"penultimate": features})


def wide_init(key):
    keys = jax.random.split(key, 3)
    shapes = {"in": (12, 32), "out": (32, 8), "head": (8, 2)}
    return ju.Variables({x: jax.random.normal(k, s) / s[0] ** 0.5 for k, (x, s) in zip(keys, shapes.items(), strict=True)})


WIDE = ju.Model(wide_forward, ju.losses.cross_entropy, wide_init)


@jax.jit
def fresh_probe(features, labels, key):
    """Held-out accuracy of a new two-layer probe."""
    half = features.shape[0] // 2
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    first, second = jax.random.split(key)
    start = {"in": jax.random.normal(first, (features.shape[1], 32)) / 3, "out": jax.random.normal(second, (32, 2)) / 6}
    optimizer = optax.adam(0.01)

    def logits(params, x):
        return jax.nn.relu(x @ params["in"]) @ params["out"]

    def step(carried, _):
        params, state = carried

        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(logits(params, features[:half]), labels[:half]).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=200)
    return jnp.mean(jnp.argmax(logits(params, features[half:]), -1) == labels[half:])


def looked(variables, data):
    outputs = wide_forward(variables, data.train.inputs)
    features = outputs.features["penultimate"]
    accuracy = jnp.mean(jnp.argmax(outputs.logits, -1) == data.train.targets)
    first, third = (fresh_probe(features, data.extra["attributes"][:, column], KEY) for column in (0, 1))
    return float(accuracy), float(first), float(third)


@pytest.fixture(scope="module")
def removed():
    """Accuracy of the label, of fresh probes of the attribute and of a third one, by gamma; and of plain training."""
    data = pictures()
    start = WIDE.init(KEY)
    request = ju.empty_request()._replace(target=jnp.array([True, False]))
    train = ju.retrain(WIDE, optax.adam(3e-3), num_steps=200, batch_size=64)
    plain = jax.jit(train)(start, data, ju.empty_request(), KEY).variables

    @jax.jit
    def at(gamma):
        loop = {"num_steps": 600, "batch_size": 256, "num_values": 2}
        probes = {"probe_width": 32, "probe_steps": 5, "probe_optimizer": optax.adam(1e-2)}
        unlearn = module.attribute_unlearning(WIDE, optax.adam(1e-3), beta=0.9, gamma=gamma, **loop, **probes)
        return unlearn(plain, data, request, KEY).variables

    return {"plain": looked(plain, data), **{gamma: looked(at(gamma), data) for gamma in (0.0, 0.9, 1.9)}}


def test_the_attribute_goes_and_label_and_third_attribute_stay(removed):
    plain, after = removed["plain"], removed[1.9]
    assert after[0] > plain[0] - 0.02
    assert plain[1] > 0.9
    assert after[1] < 0.55
    assert after[2] > plain[2] - 0.05


def test_the_sign_of_gamma_minus_beta_decides(removed):
    assert removed[0.0][1] > removed[0.9][1] > removed[1.9][1]


def test_an_attribute_that_is_the_label_cannot_be_removed():
    data = pictures(correlated=True)
    request = ju.empty_request()._replace(target=jnp.array([True, False]))
    loop = {"num_steps": 200, "batch_size": 64, "num_values": 2, "probe_width": 32, "probe_optimizer": optax.adam(1e-2)}
    unlearn = module.attribute_unlearning(WIDE, optax.adam(3e-3), **loop)
    accuracy, first, _ = looked(jax.jit(unlearn)(WIDE.init(KEY), data, request, KEY).variables, data)
    assert accuracy < 0.6 or first > 0.9
