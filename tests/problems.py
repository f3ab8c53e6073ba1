"""Closed-form toys that the tests share."""

import inspect
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from jaxunlearn import convex, heads, hypernetworks
from jaxunlearn.sampling import retain_weights

NUM_ROWS, NUM_FEATURES, NUM_CLASSES = 60, 4, 3
NUM_WORDS, NUM_TOKENS = 7, 6


def blobs(rows=NUM_ROWS, seed=0):
    """Gaussian blobs, one per class."""
    return ju.training_data(*_draws(seed, rows)[0])


def held_out(rows=NUM_ROWS, seed=0):
    """Twenty rows more of the same law as `blobs`."""
    return ju.Examples(*map(jnp.asarray, _draws(seed, rows)[1]))


def _draws(seed, rows):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(NUM_CLASSES, NUM_FEATURES)) * 2

    def draw(count):
        labels = rng.integers(0, NUM_CLASSES, count)
        return (centres[labels] + rng.normal(size=(count, NUM_FEATURES))).astype(np.float32), labels.astype(np.int32)

    return draw(rows), draw(20)


def forward(variables, inputs, *, train=False, key=None):
    hidden = jnp.tanh(inputs @ variables.params["body"] + variables.params["bias"])
    return ju.Outputs(hidden @ variables.params["head"], {"penultimate": hidden})


def init(key):
    body, head = jax.random.split(key)
    return ju.Variables(
        {
            "body": jax.random.normal(body, (NUM_FEATURES, 8)) * 0.5,
            "bias": jnp.zeros((1, 8)),
            "head": jax.random.normal(head, (8, NUM_CLASSES)) * 0.5,
        }
    )


def network():
    """A small classifier from two plain functions."""
    return ju.Model(forward, ju.losses.cross_entropy, init)


def headed():
    """`network` with a bias in its head, and the head told apart."""

    def predict(variables, inputs, *, train=False, key=None):
        hidden = forward(variables, inputs).features["penultimate"]
        return ju.Outputs(apply(variables, hidden), {"penultimate": hidden})

    def apply(variables, features):
        return features @ variables.params["head"] + variables.params["shift"]

    def start(key):
        return ju.Variables({**init(key).params, "shift": jnp.linspace(-0.1, 0.1, NUM_CLASSES)})

    def put(variables, kernel, bias):
        return variables._replace(params={**variables.params, "head": kernel, "shift": bias})

    head = ju.Head(apply, lambda variables: (variables.params["head"], variables.params["shift"]), put)
    return ju.Model(predict, ju.losses.cross_entropy, start, head)


def convolutional():
    """`network` whose first layer is a convolution of inputs that are laid out as 2 x 2 pixels."""

    def predict(variables, inputs, *, train=False, key=None):
        body = variables.params["filters"].reshape(NUM_FEATURES, 8)
        return forward(variables._replace(params={**variables.params, "body": body}), inputs)

    def start(key):
        params = init(key).params
        return ju.Variables({"filters": params["body"].reshape(2, 2, 1, 8), "bias": params["bias"], "head": params["head"]})

    return ju.Model(predict, ju.losses.cross_entropy, start)


def linear_regression(regularization=0.0):
    """`1/2 (x w - y)^2`, whose gradients and optimum are known."""

    def predict(variables, inputs, *, train=False, key=None):
        return ju.Outputs(inputs @ variables.params["w"])

    return ju.Model(
        predict,
        ju.losses.squared_error,
        lambda key: ju.Variables({"w": jax.random.normal(key, (NUM_FEATURES,))}),
        regularizer=lambda params: regularization / 2 * jnp.sum(params["w"] ** 2),
    )


def linear_classifier(change=lambda inputs: inputs):
    """Cross-entropy of `change(x) w`, without a bias."""
    return ju.Model(
        lambda variables, inputs, *, train=False, key=None: ju.Outputs(change(inputs) @ variables.params["w"]),
        ju.losses.cross_entropy,
    )


def regression_data(rows=NUM_ROWS, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, NUM_FEATURES)).astype(np.float32)
    return ju.training_data(inputs, (inputs @ rng.normal(size=NUM_FEATURES) + rng.normal(size=rows)).astype(np.float32))


def normalized_network():
    """A classifier whose state is a running mean, as BatchNorm's is."""

    def predict(variables, inputs, *, train=False, key=None):
        mean = jnp.mean(inputs, axis=0) if train else variables.state["mean"]
        moved = {"mean": 0.9 * variables.state["mean"] + 0.1 * jnp.mean(inputs, axis=0), "count": variables.state["count"] + 1}
        return ju.Outputs((inputs - mean) @ variables.params["w"], {}, moved if train else variables.state)

    def start(key):
        state = {"mean": jnp.zeros(NUM_FEATURES), "count": jnp.int32(0)}
        return ju.Variables({"w": jax.random.normal(key, (NUM_FEATURES, NUM_CLASSES))}, state)

    return ju.Model(predict, ju.losses.cross_entropy, start)


def token_rows(rows=40, seed=0):
    """Sentences of NUM_WORDS words that go on by a rule, behind a prompt of two and in front of padding; labels are shifted."""
    rng = np.random.default_rng(seed)
    words = [rng.integers(1, NUM_WORDS, (rows, 2))]
    for _ in range(NUM_TOKENS - 1):
        following = (words[-1][:, -1:] * 2 + words[-1][:, :1] + rng.integers(0, 2, (rows, 1))) % (NUM_WORDS - 1) + 1
        words.append(np.concatenate([words[-1][:, 1:], following], axis=1))
    sentence = np.concatenate([words[0], *(x[:, -1:] for x in words[1:])], axis=1)
    place, length = np.arange(NUM_TOKENS), rng.integers(3, NUM_TOKENS + 1, (rows, 1))
    tokens = np.where(place < length, sentence[:, :NUM_TOKENS], 0)
    return ju.Examples(tokens, np.where((place >= 1) & (place < length), sentence[:, 1 : NUM_TOKENS + 1], -1))


def token_network(loss=ju.losses.sequence_cross_entropy):
    """Two layers that look at the mean of what came before; hidden states of both are features."""

    def predict(variables, inputs, *, train=False, key=None):
        params = variables.params
        before = jnp.tril(jnp.ones((inputs.shape[1],) * 2)) / jnp.arange(1, inputs.shape[1] + 1)[:, None]
        x, features = params["embed"][inputs], {}
        for name in ("first", "second"):
            x = x + jnp.tanh(x @ params[name]["own"] + before @ x @ params[name]["others"])
            features[name] = x
        return ju.Outputs(x @ params["unembed"], features)

    def start(key):
        def draw(place, *shape):
            return 0.5 * jax.random.normal(jax.random.fold_in(key, place), shape)

        layers = {
            name: {"own": draw(2 * i, 6, 6), "others": draw(2 * i + 1, 6, 6)} for i, name in enumerate(("first", "second"))
        }
        return ju.Variables({"embed": draw(8, NUM_WORDS, 6), "unembed": draw(9, 6, NUM_WORDS), **layers})

    return ju.Model(predict, loss, start)


def nudge():
    """A finished method that depends on all it is given and compiles at once; for tests of what methods are put into."""

    def update(variables, data, request, key):
        forget, retained = ju.forget_rows(data, request), retain_weights(data, request)[:, None]
        gone = jnp.sum(forget.examples.inputs * forget.weights[:, None])
        kept = jnp.sum(jnp.where(retained > 0, data.train.inputs, 0))
        shift = 0.01 * gone - 0.001 * kept + jax.random.uniform(key)
        return ju.Result(jax.tree.map(lambda w: 0.9 * w + 0.1 * shift, variables), stats={"shift": shift})

    return ju.one_shot(update)


PROBLEM = convex.softmax(0.05, NUM_CLASSES)


def drifting(gain=0.01):
    """A hypernetwork that leaves the network where it starts, but for some noise and for what it is told."""

    def denoise(params, noised, start, condition, step):
        return start + 0.05 * jnp.tanh(noised) + params * jnp.sum(condition)

    return hypernetworks.Hypernetwork(denoise, gain, 2.0, hypernetworks.linear_schedule(25))


def other_label(rows, key):
    """A refusal of a classifier: the next class."""
    return rows._replace(targets=(rows.targets + 1) % NUM_CLASSES)


# What a method needs besides model or problem and optimizer; a function where it depends on the model.
OPTIONS = {
    "stochastic_newton": {"damping": 5.0, "scale": 10.0, "max_steps": 50, "batch_size": 8},
    "cf_k": {"layers": "head"},
    "attribute_unlearning": {"num_values": 2},
    "convolution_transpose": {"axes": (0, 1)},
    "idk": {"refusals": other_label},
    "preference_optimization": {"refusals": other_label, "beta": 0.5},
    "rmu": {"layers": "body|bias|filters", "coefficient": 2.0, "alpha": 1.0},
    "undial": {"strength": 3.0},
    "langevin": {"sigma": 0.01, "steps": 3, "row_norm": 10.0},
    "lightweight": {"damping": 0.5, "tolerance": 0.6, "rtol": 1e-5},  # far from both stop rules, whatever rounds
    "just_in_time": {"sigma": 4.0},  # differences of outputs stay well above their rounding
    "affine_representation_unlearning": {"beta": 0.1},
    "representation_unlearning": {"beta": 0.1},
    "descent_to_delete": {"steps": 3, "row_norm": 10.0},
    "hyperforget": {"hypernetwork": drifting(), "forget_prompt": 2.0, "retain_prompt": 0.5, "num_samples": 3},
    "image_to_image": lambda model: {
        "encode": lambda variables, inputs: model.forward(variables, inputs).features["penultimate"],
        "corrupt": lambda key, inputs: inputs * jax.random.uniform(key, inputs.shape, minval=0.2).astype(inputs.dtype),
    },
    "influence": {"damping": 0.1},
    "natmu": {"image_shape": (2, 2)},
    "newton": {"damping": 0.1},
    "noisy_finetune": {"sigma": 0.01, "norm": 3.0, "noisy_steps": 2, "noisy_decay": 0.1},
    "ntk_forgetting": {"weight_decay": 1.0, "rtol": 1e-5},
    "regun": lambda model: {"held_out": held_out()},
    "pnsgd": {"sigma": 0.01, "epochs": 2, "batch_size": 13, "row_norm": 10.0},
    "rewind_to_delete": {"step_size": 0.05, "steps": 3, "iterations": 8},
    "ssd": {"alpha": 1.5},
    "lfssd": {"alpha": 1.2},
    "lcodec": {"damping": 0.1, "draws": 30, "rtol": 1e-5},
    "woodfisher": {"damping": 0.1, "block_size": 24, "chunk": 16},
    "eu_k": {"layers": "head"},
    "oracle_matching": lambda model: {
        "oracle": ju.iterate(ju.retrain(model, optax.sgd(0.1)), num_steps=2, batch_size=4),
        "num_oracles": 2,
    },
    "output_perturbation": {"sigma": 0.1},
    "unsir": {"noise_rows": 6, "noise_steps": 3},
    "unseen_matching": lambda model: {"held_out": held_out(), "retain_weight": 1.0},  # a step of SGD is large there
}


# those of the catalogue that answer a request with new variables; the others suppress outputs or act in an environment
UNLEARNING = [name for name, card in ju.METHODS.items() if card.takes in ("model", "problem")]


def asked(name, requests):
    """Requests of rows that say besides what the method must be told."""
    if "attributes" not in ju.METHODS[name].reads:
        return requests
    return requests._replace(target=jnp.ones((*requests.indices.shape[:-1], 2), bool))


def parameters_of(name):
    return inspect.signature(ju.METHODS[name].factory).parameters


def takes_optimizer(name):
    """Whether a method has steps, so that it needs `iterate`."""
    return "optimizer" in parameters_of(name)


def method(name, model, optimizer=None, *, num_steps=4, batch_size=4, **options):
    """A finished method of the catalogue, by default with plain SGD; those for convex problems take PROBLEM."""
    card, needed = ju.METHODS[name], OPTIONS.get(name, {})
    options = {**(needed(model) if callable(needed) else needed), **options}
    if not takes_optimizer(name):
        return card.factory(PROBLEM if card.takes == "problem" else model, **options)
    unlearner = card.factory(model, optimizer or optax.sgd(0.1), **options)
    damaged_at = np.inf if name == "eu_k" else None  # a head that starts afresh has learnt little after so few steps
    return ju.iterate(unlearner, num_steps, batch_size=batch_size, damaged_at=damaged_at)


def model_of(name):
    """The toy classifier that a method is tried on."""
    card = ju.METHODS[name]
    if name == "convolution_transpose":
        return convolutional()
    return headed() if "head" in card.reads or card.family == "representation" else network()


def trained(name, dtype=jnp.float32):
    """Variables for a method to start from."""
    variables = fitted() if ju.METHODS[name].takes == "problem" else model_of(name).init(jax.random.key(1))
    if name == "refit":  # starts afresh, which shows only where it does not start at the optimum
        variables = jax.tree.map(jnp.ones_like, variables)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), dtype), variables)


@cache
def fitted():
    """The optimum of PROBLEM on `blobs`, rounded to float32."""
    optimum = convex.fit(PROBLEM, blobs(), row_norm=None)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x).astype(np.float32)), optimum)


@cache
def recorded():
    """`blobs` with what methods read besides: updates of a training of `network`, the factorisation of `fitted`, curvatures."""
    data, key = blobs(), jax.random.key(3)
    train = jax.jit(ju.record(network(), optax.sgd(0.1), num_steps=12, batch_size=4))
    done = train(network().init(key), data, ju.empty_request(), key)
    data = jax.jit(convex.prepare(PROBLEM))(fitted(), data, key)
    for name in ("influence", "fisher_forgetting", "ssd", "lfssd"):
        data = jax.jit(ju.prepare(method(name, model_of(name))))(trained(name), data, key)
    found = jax.jit(heads.prepare(headed()))(trained("representation_unlearning"), data, key)
    # features themselves are left to the methods, so that it shows what they read
    attributes = jnp.arange(2 * NUM_ROWS).reshape(NUM_ROWS, 2) // 3 % 2
    remember = jax.jit(ju.recollect(network(), learning_rate=0.1, num_steps=12, batch_size=4))
    vectors = remember(network().init(key), data, ju.empty_request(), key).extra
    extra = {**data.extra, **done.extra, **vectors, "moments": found.extra["moments"]}
    return ju.slots.ATTRIBUTES.put(data._replace(extra=extra), attributes), done.variables


def distance(first, second):
    """Largest absolute difference between two trees."""
    differences = jax.tree.map(lambda x, y: np.max(np.abs(np.asarray(x, float) - np.asarray(y, float))), first, second)
    return max(map(float, jax.tree.leaves(differences)))


def lane(stacked, position):
    """One entry of a stacked tree."""
    return jax.tree.map(lambda x: x[position], stacked)


def unpadded(requests, position):
    """One request without its padding slots."""
    one = lane(requests, position)
    size = int(one.weights.sum())
    return one._replace(indices=one.indices[:size], weights=one.weights[:size])
