"""Two compiled programs per method that answer whatever a test asks: one with many requests side by side, one with a stream.

Compiling is what costs time here, running a toy costs none. In the first program every argument has one entry per request
(weights, rows, request, key), so that every test is a few requests more of the same program.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from tests import problems
from tests.problems import NUM_ROWS, asked, blobs, lane, method, network, trained

ROWS = [[3, 4, 5], [0, 10, 20, 30, 40, 50, 59], [7]]
REMOVED = [33, 12]  # in no request
SLOTS = 8  # of a request side by side; in a stream the largest one is not padded
TOGETHER = 8  # requests that are answered side by side


def model_of(name):
    """The toy classifier on rows of length 4: it has no derivative at zeros, so padding must hold something else."""
    model = problems.model_of(name)

    def forward(variables, inputs, **options):
        return model.forward(variables, 4 * inputs / jnp.linalg.norm(inputs, axis=1, keepdims=True), **options)

    return model._replace(forward=forward)


def make(name, model=None):
    """A short run of a method on the toy classifier, with plain SGD."""
    return method(name, model or model_of(name))


def start(name, data):
    """Variables and data before anything is prepared; a method that reads facts of the training gets those."""
    variables, reads = trained(name), ju.METHODS[name].reads
    if "attributes" in reads:
        data = ju.slots.ATTRIBUTES.put(data, jnp.arange(2 * NUM_ROWS).reshape(NUM_ROWS, 2) // 3 % 2)
    if "updates" in reads:
        done = training()(variables, data, ju.empty_request(), jax.random.key(3))
        data, variables = data._replace(extra={**data.extra, **done.extra}), done.variables
    if "recollections" in reads:
        done = remembered()(variables, data, ju.empty_request(), jax.random.key(3))
        data, variables = data._replace(extra={**data.extra, **done.extra}), done.variables
    return variables, data


@cache
def remembered():
    """A training that leaves a vector for every row."""
    return jax.jit(ju.recollect(network(), learning_rate=0.1, num_steps=12, batch_size=4))


@cache
def training():
    """A training whose updates are recorded."""
    return jax.jit(ju.record(network(), optax.sgd(0.1), num_steps=12, batch_size=4))


def stamped(name):
    """The stamped slots that a method needs."""
    return [slot for word, slot in ju.slots.SLOTS.items() if word in ju.METHODS[name].reads and slot.stamped]


def spoilt(data, rows):
    """Data whose inputs are NaN in these rows."""
    inputs = np.array(data.train.inputs)
    inputs[np.asarray(rows)] = np.nan
    return data._replace(train=data.train._replace(inputs=inputs))


def without_rows(data, rows):
    """Data from which rows were removed."""
    return ju.remove(data, lane(ju.from_indices(data, [rows]), 0))


def without_features(data):
    """Data without prepared features, so that a method reads the rows themselves."""
    return data._replace(extra={name: value for name, value in data.extra.items() if name != ju.slots.FEATURES.name})


def stacked(calls):
    """One tree with an entry per call; float64 stays."""

    def stack(*leaves):
        if jnp.issubdtype(jnp.result_type(leaves[0]), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(np.stack([np.asarray(jax.random.key_data(x)) for x in leaves]))
        return jnp.asarray(np.stack([np.asarray(x) for x in leaves]))

    with jax.enable_x64(True):
        return jax.tree.map(stack, *calls)


class Case:
    """One method with its programs; `ask` writes a call, `answers` and `stream` answer it."""

    def __init__(self, name):
        self.name, self.card, self.unlearn = name, ju.METHODS[name], make(name)
        self.prepare = jax.jit(ju.prepare(self.unlearn))
        self.variables, self.fresh = start(name, blobs())
        self.ready = self.prepared(self.fresh)
        self.requests = asked(name, ju.from_indices(self.fresh, ROWS, capacity=SLOTS))
        self.keys = list(jax.random.split(jax.random.key(2), len(ROWS)))
        self.traces = 0
        self._side_by_side = jax.jit(ju.batched(self._counted, in_axes=(0, 0, 0, 0), chunk=TOGETHER))
        self._stream = jax.jit(ju.streamed(self._told))

    def _counted(self, *arguments):
        self.traces += 1
        return self.unlearn(*arguments)

    def _told(self, *arguments):
        result = self.unlearn(*arguments)
        return result._replace(stats={"variables": result.variables})

    def prepared(self, data, variables=None):
        """Data with all that the method reads, made by `ju.prepare`."""
        return self.prepare(self.variables if variables is None else variables, data, jax.random.key(4))

    def begun(self, data):
        """Variables and prepared data where these were the training rows; most variables do not depend on them."""
        variables, data = start(self.name, data)
        return {"variables": variables, "data": self.prepared(data, variables)}

    def ask(self, position, *, variables=None, data=None, request=None, key=None):
        """A call of the method for one of the requests, with some arguments replaced."""
        variables = self.variables if variables is None else variables
        data = without_features(self.ready if data is None else data)
        request = lane(self.requests, position) if request is None else request
        return variables, data, request, self.keys[position] if key is None else key

    def answers(self, *calls):
        """Results of calls side by side."""
        assert len(calls) <= TOGETHER
        results = jax.device_get(self._side_by_side(*stacked([*calls, *[calls[-1]] * (TOGETHER - len(calls))])))
        return [lane(results, position) for position in range(len(calls))]

    def stream(self, order, *, variables=None, data=None):
        """Requests one after another, each in as many slots as the largest one has rows; `stats` hold all variables."""
        largest = max(map(len, ROWS))
        requests = jax.tree.map(lambda x: x[np.array(order)], self.requests)
        requests = requests._replace(indices=requests.indices[:, :largest], weights=requests.weights[:, :largest])
        keys = jnp.stack([self.keys[position] for position in order])
        variables = self.variables if variables is None else variables
        return jax.device_get(self._stream(variables, self.ready if data is None else data, requests, keys))

    def alone(self, position, **options):
        """Variables and status of one call that no other request is part of, the first of a stream."""
        others = [other for other in range(len(ROWS)) if other != position]
        result = self.stream([position, *others], **options)
        return lane(result.stats["variables"], 0), result.status[0]
