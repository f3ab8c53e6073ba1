"""The bound against closed forms, its signs and limits, what is removed and what is kept, and what is read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.methods.attribute_unlearning import bound_weights
from tests.methods.runs import DATA as PLAIN
from tests.methods.runs import KEY, MODEL, RATE, STEPS, VARIABLES, answer, batch_of, program
from tests.problems import distance, forward, lane, normalized_network

VALUES = np.random.default_rng(0).integers(-1, 3, (60, 2))
DATA = ju.slots.ATTRIBUTES.put(PLAIN, jnp.asarray(VALUES))
REQUESTS = ju.ForgetRequest(jnp.zeros((3, 2), int), jnp.zeros((3, 2)), ju.from_attributes(DATA, [[0], [1], [0, 1]]).target)
FIRST_OF_TWO = lane(REQUESTS, 0)
KEYS = jax.random.split(KEY, 3)
STATIC = {"num_values": 3, "probe_width": 5, "probe_optimizer": optax.sgd(0.1)}
DEFAULTS = {"alpha": 1.0, "beta": 0.5, "gamma": 1.5, "warmup": 1 / 3}


def unlearn(variables=VARIABLES, data=DATA, request=FIRST_OF_TWO, key=KEY, steps=6, **settings):
    """One compiled program for all of these."""
    return answer(
        "attribute_unlearning", variables, data=data, request=request, key=key, steps=steps, static=STATIC,
        **{**DEFAULTS, **settings},
    )  # fmt: skip


def method(model=MODEL, optimizer=None, **options):
    return ju.attribute_unlearning(model, optimizer or optax.sgd(0.1), **{**STATIC, **options})


@pytest.mark.parametrize(("alpha", "beta", "gamma"), [(1.0, 0.5, 1.5), (2.0, 0.3, 0.0), (0.7, 0.2, 0.1)])
def test_the_bound_of_gaussians_has_its_closed_form(alpha, beta, gamma):
    # x = (u, z), y = u, h = a u + b z + s noise with a^2 + b^2 = 1: from b = 0 to b = 1 the bound grows by alpha gamma K
    weights = np.array(bound_weights(alpha, beta, gamma))
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
    options = {"num_values": 2, "probe_steps": 5, "probe_width": 8, "probe_optimizer": optax.adam(0.05)}
    unlearn = ju.iterate(method(model, optax.sgd(0.0), **options), 40, batch_size=1, retain_batch_size=1000)
    request = ju.empty_request()._replace(target=jnp.array([True]))
    result = ju.check(jax.jit(unlearn)(variables, data, request, KEY), allow=[ju.Status.UNCHANGED])
    assert distance(result.variables, variables) == 0
    # the standard error of the mean of -log p over ten batches of a thousand rows is 0.0066
    assert float(result.stats["attribute_information"][-10:].mean()) == pytest.approx(exact, abs=0.03)
    assert float(result.stats["label_error"][-1]) < 0.02
    assert float(result.stats["reconstruction_error"][-1]) < 0.02


@jax.jit
def one_step(beta, gamma, asked, shift):
    """A step with linear probes as they start, whose heads prefer the first value by `shift`."""
    linear = method(probe_steps=0, probe_width=0, alpha=0.8, beta=beta, gamma=gamma, warmup=0)
    request = FIRST_OF_TWO._replace(target=asked)
    context, state, batch = batch_of(linear, data=DATA, request=request, sizes=(4, 20))
    heads = {**state.probes["attributes"], "out_bias": jnp.zeros((2, 3)).at[:, 0].set(shift)}
    state = state._replace(probes={**state.probes, "attributes": heads})
    after, stats = linear.step(state, context, batch, KEY)
    return state.probes, batch.retain, after.model.variables, stats


@pytest.mark.parametrize(("beta", "gamma", "sign"), [(0.5, 1.5, -1.0), (0.5, 0.5, 0.0), (0.5, 0.0, 1.0)])
def test_a_step_follows_the_objective(beta, gamma, sign):
    probes, retain, after, stats = one_step(beta, gamma, jnp.array([True, True]), 0.0)
    part, values = retain.examples, VALUES[np.asarray(retain.slots)]
    entropy = [-np.sum(p * np.log(p)) for p in (np.bincount(v[v >= 0]) / np.sum(v >= 0) for v in VALUES.T)]
    l1, l2, l3 = 0.8 * (1 - beta), 0.8 * beta, 0.8 * (beta - gamma)
    assert np.sign(l3) == sign

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
    assert distance(after.params, expected) < 1e-6


def test_beyond_the_entropy_an_attribute_pushes_no_more():
    def moved(gamma):
        _, _, after, stats = one_step(0.5, gamma, jnp.array([True, False]), 20.0)  # sure of one value, so wrong for most rows
        return after, float(stats["attribute_information"][0])

    fooled, information = moved(1.5)
    assert information < -1
    assert distance(fooled, moved(0.5)[0]) == 0  # as if the attribute had no weight


def test_the_probes_learn_before_every_step_and_only_what_is_asked_for():
    stepwise = method(optimizer=optax.sgd(0.0), probe_steps=2, probe_width=64)
    context, state, batch = batch_of(stepwise, data=DATA, request=lane(REQUESTS, 1), sizes=(4, 20))
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
    whole = unlearn(warmup=0.0, steps=1, gamma=1.0)
    quarter = unlearn(warmup=4.0, steps=1, gamma=2.5)  # of a run of one step: (2.5 - 0.5) / 4 = 1.0 - 0.5
    assert distance(quarter.variables, whole.variables) < 1e-6


def test_without_the_bound_it_is_finetuning():
    plain = answer("finetune", request=FIRST_OF_TWO)
    assert distance(unlearn(alpha=0.0, beta=0.0, gamma=0.0).variables, plain.variables) == 0
    assert distance(unlearn().variables, plain.variables) > 1e-3


def test_batchnorm_moves_once_per_step():
    def predict(variables, inputs, *, train=False, key=None):
        outputs = model.forward(variables, inputs, train=train, key=key)
        return outputs._replace(features={"penultimate": inputs @ variables.params["w"]})

    model = normalized_network()
    variables = model.init(KEY)

    @jax.jit
    def counts():
        found = {}
        for bn in ("retain", "frozen"):
            stepwise = method(model._replace(forward=predict), bn=bn, probe_steps=1)
            context, state, batch = batch_of(stepwise, data=DATA, request=FIRST_OF_TWO, variables=variables)
            found[bn] = stepwise.step(state, context, batch, KEY)[0].model.variables.state["count"]
        return found

    assert counts() == {"retain": 1, "frozen": 0}


@pytest.fixture(scope="module")
def side_by_side():
    """Three runs under one `vmap`, each with start, request, key and settings of its own."""
    run = program("attribute_unlearning", static=tuple(sorted(STATIC.items())))
    together = jax.jit(jax.vmap(run, in_axes=(0, None, 0, 0, None, None, 0)))

    def call(starts=(VARIABLES,) * 3, **settings):
        values = {x: jnp.asarray(settings.get(x, [default] * 3), jnp.float32) for x, default in DEFAULTS.items()}
        return together(jax.tree.map(lambda *x: jnp.stack(x), *starts), DATA, REQUESTS, KEYS, RATE, STEPS, values)

    return call


def test_side_by_side_equals_one_call_per_request(side_by_side):
    results = ju.check(side_by_side())
    for position in range(3):
        alone = unlearn(request=lane(REQUESTS, position), key=KEYS[position])
        assert distance(alone.variables, lane(results.variables, position)) < 1e-6
    assert results.stats["attribute_information"].shape == (3, 6, 2)
    assert not jnp.any(results.stats["attribute_information"][0, :, 1])


def test_nan_in_one_request_never_reaches_another(side_by_side):
    broken = jax.tree.map(lambda x: x * jnp.nan, VARIABLES)
    clean, results = side_by_side(), side_by_side((VARIABLES, broken, VARIABLES))
    for position in (0, 2):
        assert distance(lane(results.variables, position), lane(clean.variables, position)) < 1e-6
    assert results.status.tolist() == [0, int(ju.Status.NONFINITE), 0]


def test_a_sweep_over_every_setting_equals_single_runs(side_by_side):
    settings = {"alpha": [1.0, 0.5, 0.7], "beta": [0.5, 0.1, 0.3], "gamma": [1.5, 0.7, 0.0], "warmup": [0.0, 0.5, 1.0]}
    results = side_by_side(**settings)
    for position in range(3):
        chosen = {name: values[position] for name, values in settings.items()}
        alone = unlearn(request=lane(REQUESTS, position), key=KEYS[position], **chosen)
        assert distance(lane(results.variables, position), alone.variables) < 1e-5


def test_unknown_values_and_other_attributes_are_not_read():
    def under(values):
        return unlearn(data=ju.slots.ATTRIBUTES.put(PLAIN, values)).variables

    plain = under(jnp.asarray(VALUES))
    strange = jnp.where(jnp.asarray(VALUES) < 0, 77, jnp.asarray(VALUES)).at[:, 1].set(0)
    assert distance(under(strange), plain) == 0
    known = jnp.maximum(jnp.asarray(VALUES), 0)
    assert distance(under(known), plain) > 0


def test_removed_rows_and_named_rows_are_not_read():
    gone = jnp.array([5, 12])
    removed = DATA._replace(present=DATA.present.at[gone].set(0))
    inputs = DATA.train.inputs.at[gone].set(jnp.nan)
    poisoned = ju.slots.ATTRIBUTES.put(
        removed._replace(train=removed.train._replace(inputs=inputs)), jnp.asarray(VALUES).at[gone].set(1)
    )
    naming = ju.ForgetRequest(gone, jnp.zeros(2), jnp.array([True, False]))
    clean = unlearn(data=removed, request=naming)
    assert distance(clean.variables, unlearn(data=poisoned, request=naming).variables) == 0
    named = unlearn(data=poisoned._replace(present=DATA.present), request=naming._replace(weights=jnp.ones(2)))
    assert int(named.status) == ju.Status.OK
    assert distance(named.variables, clean.variables) < 1e-6


def test_an_empty_request_changes_nothing():
    result = unlearn(request=FIRST_OF_TWO._replace(target=jnp.zeros(2, bool)))
    assert int(result.status) == ju.Status.EMPTY_REQUEST
    assert distance(result.variables, VARIABLES) == 0


def test_no_key_is_used_twice():
    @jax.jit
    def step_once(init_key, step_key):
        context, state = method().init(VARIABLES, DATA, FIRST_OF_TWO, init_key)
        return method(probe_steps=1).step(state, context, batch, step_key)[1]

    _, _, batch = batch_of(method(), data=DATA, request=FIRST_OF_TWO)
    with jax.debug_key_reuse(True):
        assert np.isfinite(step_once(*jax.random.split(KEY))["loss"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_kept(dtype):
    variables = jax.tree.map(lambda x: x.astype(dtype), VARIABLES)
    data = DATA._replace(train=DATA.train._replace(inputs=DATA.train.inputs.astype(dtype)))
    after = jax.eval_shape(ju.iterate(method(), 2, batch_size=4), variables, data, FIRST_OF_TWO, KEY).variables
    assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype(dtype)}


def test_bad_input_gets_a_clear_error():
    def trace(data=DATA, request=FIRST_OF_TWO, **options):
        jax.eval_shape(ju.iterate(method(**options), 2, batch_size=4), VARIABLES, data, request, KEY)

    for target in ((), jnp.array([1, 0]), jnp.ones(3, bool)):
        with pytest.raises(ValueError, match=r"which of the 2 attributes to forget.*from_attributes"):
            trace(request=ju.empty_request()._replace(target=target))
    with pytest.raises(ValueError, match=r"'attributes'\] is missing .* fill it with training_data"):
        trace(PLAIN)
    with pytest.raises(ValueError, match=r"must be integers \[60, A\]"):
        trace(ju.slots.ATTRIBUTES.put(PLAIN, jnp.zeros(60, int)))
    with pytest.raises(ValueError, match="it has: penultimate"):
        trace(layer="conv")
    with pytest.raises(TypeError, match="must be floating-point"):
        trace(DATA._replace(train=DATA.train._replace(inputs=jnp.ones((60, 4), int))))
    for options in ({"num_values": 1}, {"probe_steps": -1}, {"alpha": -1.0}, {"gamma": -1.0}, {"warmup": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            method(**options)


# Whole runs


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
FIRST = ju.empty_request()._replace(target=jnp.array([True, False]))


@jax.jit
def removal(variables, data, beta, gamma):
    """The model after a removal of the first attribute."""
    probes = {"num_values": 2, "probe_width": 32, "probe_steps": 5, "probe_optimizer": optax.adam(1e-2)}
    stepwise = ju.attribute_unlearning(WIDE, optax.adam(1.5e-3), beta=beta, gamma=gamma, **probes)
    return ju.iterate(stepwise, 400, batch_size=1, retain_batch_size=128)(variables, data, FIRST, KEY).variables


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
    """Accuracy of the label, and of fresh probes of the attribute and of a third one."""
    outputs = wide_forward(variables, data.train.inputs)
    features = outputs.features["penultimate"]
    accuracy = jnp.mean(jnp.argmax(outputs.logits, -1) == data.train.targets)
    first, third = (fresh_probe(features, data.extra["attributes"][:, column], KEY) for column in (0, 1))
    return float(accuracy), float(first), float(third)


@pytest.fixture(scope="module")
def removed():
    """What is left by gamma, at beta = 0.9; and of plain training."""
    data = pictures()
    train = ju.iterate(ju.retrain(WIDE, optax.adam(3e-3)), num_steps=200, batch_size=64)
    plain = jax.jit(train)(WIDE.init(KEY), data, ju.empty_request(), KEY).variables
    return {"plain": looked(plain, data), **{x: looked(removal(plain, data, 0.9, x), data) for x in (0.0, 0.9, 1.9)}}


@pytest.mark.slow
def test_the_attribute_goes_and_label_and_third_attribute_stay(removed):
    plain, after = removed["plain"], removed[1.9]
    assert after[0] > plain[0] - 0.02
    assert plain[1] > 0.9
    assert after[1] < 0.6  # chance is 0.5, with a standard error of 0.02 over the held-out rows of one probe
    assert after[2] > plain[2] - 0.05


def test_the_sign_of_gamma_minus_beta_decides(removed):
    assert removed[0.0][1] > removed[0.9][1] > removed[1.9][1]


def test_an_attribute_that_is_the_label_cannot_be_removed():
    data = pictures(correlated=True)
    accuracy, first, _ = looked(removal(WIDE.init(KEY), data, 0.5, 1.5), data)
    assert accuracy < 0.6 or first > 0.9
