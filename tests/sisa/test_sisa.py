"""Shards and slices: an answer is training without the rows, bit for bit, at the cost that was told before."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import sisa
from jaxunlearn.service.ledger import Ledger, data_fingerprint, fingerprint
from jaxunlearn.sisa import training
from tests.problems import blobs, distance, lane, network, normalized_network

KEY = jax.random.key(0)
ROWS, SHARDS, SLICES = 61, 3, 4  # no number divides another
DATA = blobs(ROWS)
PARTITION = sisa.random_partition(DATA, KEY, shards=SHARDS, slices=SLICES)
PLACES = np.asarray(PARTITION.rows)


def dropping():
    """`normalized_network` with dropout and weight decay in its loss, so that keys and penalties count."""
    model = normalized_network()

    def forward(variables, inputs, *, train=False, key=None):
        kept = jax.random.bernoulli(key, 0.8, inputs.shape) if train else 1
        return model.forward(variables, inputs * kept, train=train)

    return model._replace(forward=forward, regularizer=lambda params: 0.01 * jnp.sum(params["w"] ** 2))


MODELS = {
    "SGD": (network(), optax.sgd(0.1)),
    "Adam with decay": (network(), optax.adamw(0.02)),
    "momentum, state and dropout": (dropping(), optax.sgd(optax.linear_schedule(0.1, 0.01, 60), momentum=0.9)),
}


class Setting(NamedTuple):
    trainer: sisa.Trainer
    fit: object
    unlearn: object
    fitted: ju.Variables


@cache
def setting(name, **options):
    trainer = sisa.trainer(*MODELS[name], epochs=3, batch_size=4, **options)
    fit = jax.jit(lambda data: sisa.fit(trainer, data, PARTITION, KEY))
    return Setting(trainer, fit, jax.jit(sisa.sisa(trainer)), fit(DATA))


def asked(*rows):
    slots = np.zeros(32, np.int32)
    slots[: len(rows)] = rows
    return ju.ForgetRequest(jnp.asarray(slots), jnp.asarray((np.arange(32) < len(rows)).astype(np.float32)))


def equal(first, second):
    """Bit for bit, keys included."""
    return ju.ledger.fingerprint(first) == ju.ledger.fingerprint(second)


def last_of(shard):
    """The last row of the last slice, which lies behind R floor(N_s / R) rows where R does not divide N_s."""
    return PLACES[shard, -1][PLACES[shard, -1] >= 0][-1]


REQUESTS = {
    "a row of a first slice": (PLACES[1, 0, 0],),
    "the last row of every shard": tuple(last_of(shard) for shard in range(SHARDS)),
    "rows of all shards and slices": tuple(PLACES[:, :, 1].ravel()),
    "a whole shard": tuple(PLACES[2][PLACES[2] >= 0]),
    "all of a slice but one row": tuple(PLACES[0, 2, 1:][PLACES[0, 2, 1:] >= 0]),
}


@pytest.mark.parametrize(
    "name", ["Adam with decay", *(pytest.param(x, marks=pytest.mark.slow) for x in sorted(MODELS) if x != "Adam with decay")]
)
def test_the_answer_is_training_without_the_rows(name):
    trainer, fit, unlearn, fitted = setting(name)
    for what, rows in REQUESTS.items():
        found = ju.check(unlearn(fitted, DATA, asked(*rows), KEY))
        assert equal(found.variables, fit(ju.remove(DATA, asked(*rows)))), what
        assert not equal(found.variables, fitted), what
        np.testing.assert_array_equal(found.stats["visits"], sisa.visits_of(trainer, PARTITION, rows), what)
        kept = np.flatnonzero(~np.isin(PLACES, rows).any((1, 2)))
        assert equal(lane(found.variables.params, kept), lane(fitted.params, kept)), what
        np.testing.assert_array_equal(np.asarray(found.stats["first_slice"])[kept], SLICES)
    gone = unlearn(fitted, DATA, asked(*REQUESTS["a whole shard"]), KEY).variables
    assert equal(lane(gone.params, 2), lane(gone.state.starts.variables.params, (2, 0)))  # not one step of momentum or decay
    assert gone.state.partition.left.tolist() == [21, 20, 0]
    assert equal(lane(gone.state.starts, (2, 0)), lane(gone.state.starts, (2, -1)))


def test_requests_one_after_another_are_one():
    _, fit, unlearn, fitted = setting("Adam with decay")
    current, data, rows = fitted, DATA, [PLACES[0, 3, 0], PLACES[0, 0, 2], PLACES[2, 1, 1], last_of(0)]
    for row in rows:
        current = ju.check(unlearn(current, data, asked(row), KEY)).variables
        data = ju.remove(data, asked(row))
    assert equal(current, fit(ju.remove(DATA, asked(*rows))))
    again = unlearn(current, data, asked(rows[0]), KEY)
    assert ju.Status(int(again.status)) is ju.Status.INVALID_ROWS
    assert equal(again.variables, current)
    twice = unlearn(fitted, DATA, asked(*rows, rows[0], 999), KEY)
    assert ju.Status(int(twice.status)) is ju.Status.INVALID_ROWS
    assert equal(twice.variables, current)
    kept = unlearn(current, DATA, asked(5), KEY).variables  # `present` was not cleared: rows do not come back
    assert equal(kept, fit(ju.remove(DATA, asked(*rows, 5))))


def test_removed_rows_are_not_read_and_nothing_of_them_is_kept():
    _, fit, unlearn, fitted = setting("Adam with decay")
    rows = [0, PLACES[1, 0, 0], last_of(2)]  # row 0 stands where slots are empty
    found = unlearn(fitted, DATA, asked(*rows), KEY).variables
    left = ju.remove(DATA, asked(*rows))
    broken = left._replace(
        train=ju.Examples(
            left.train.inputs.at[jnp.asarray(rows)].set(jnp.nan), left.train.targets.at[jnp.asarray(rows)].set(-1)
        )
    )
    assert equal(found, fit(broken))
    assert not np.isin(rows, found.state.partition.rows).any()
    assert equal(unlearn(found, broken, asked(7), KEY).variables, fit(ju.remove(DATA, asked(*rows, 7))))
    assert equal(unlearn(fitted, broken, asked(7), KEY).variables, fit(ju.remove(DATA, asked(*rows, 7))))  # gone without asking
    everything = unlearn(fitted, DATA._replace(present=jnp.ones(ROWS).at[32:].set(0)), asked(*range(32)), KEY)
    assert ju.Status(int(everything.status)) is ju.Status.NOTHING_RETAINED
    assert equal(everything.variables.params, lane(fitted.state.starts.variables.params, (slice(None), 0)))
    nothing = unlearn(fitted, DATA, asked(), KEY)
    assert ju.Status(int(nothing.status)) is ju.Status.EMPTY_REQUEST
    assert equal(nothing.variables, fitted)


@pytest.mark.slow
def test_training_is_what_it_says():
    """Written out: epochs of each slice, their order, batches, keys."""
    trainer, _, _, fitted = setting("momentum, state and dropout")
    model, optimizer = MODELS["momentum, state and dropout"]
    shard, key, count = 1, jax.random.fold_in(KEY, 1), 0

    @jax.jit
    def step(variables, state, rows, weights, key):
        def loss(params):
            outputs = model.forward(ju.Variables(params, variables.state), DATA.train.inputs[rows], train=True, key=key)
            losses = model.loss(outputs, ju.Examples(None, DATA.train.targets[rows]))
            return jnp.sum(losses * weights) / jnp.sum(weights) + model.regularizer(params), outputs.state

        gradient, moved = jax.grad(loss, has_aux=True)(variables.params)
        updates, state = optimizer.update(gradient, state, variables.params)
        return ju.Variables(optax.apply_updates(variables.params, updates), moved), state

    _, start_key = jax.random.split(jax.random.fold_in(key, 0))
    variables = model.init(start_key)
    state, used = optimizer.init(variables.params), PLACES[shard] >= 0
    for number, epochs in enumerate(trainer.slice_epochs(SLICES)):
        assert distance(variables, lane(fitted.state.starts.variables, (shard, number))) < 1e-5
        for _ in range(epochs):
            count += 1
            epoch_key = jax.random.fold_in(key, count)
            draws = jax.random.uniform(jax.random.fold_in(epoch_key, 0), (PLACES[0].size,))
            usable = (used & (np.arange(SLICES)[:, None] <= number)).ravel()
            order = PLACES[shard].ravel()[np.argsort(np.where(usable, draws, np.inf), kind="stable")[: usable.sum()]]
            for place in range(0, len(order), 4):
                batch = order[place : place + 4]
                rows = np.concatenate([batch, np.repeat(batch[:1], 4 - len(batch))])
                weights = (np.arange(4) < len(batch)).astype(np.float32)
                variables, state = step(variables, state, rows, weights, jax.random.fold_in(epoch_key, 1 + place // 4))
    assert distance(variables, ju.Variables(lane(fitted.params, shard), lane(fitted.state.state, shard))) < 1e-5


def test_epochs_are_those_of_the_authors():
    trainer = sisa.trainer(*MODELS["SGD"], epochs=20, batch_size=4)
    for slices in range(1, 40):
        u = 2 * 20 / (slices + 1) + 1e-12
        expected = [int(r * u) - int((r - 1) * u) for r in range(1, slices + 1)]
        assert trainer.slice_epochs(slices).tolist() == expected
        assert min(expected) >= 1
    with pytest.raises(ValueError, match="take at least 21 epochs, or fewer slices"):
        trainer.slice_epochs(40)


@pytest.mark.slow
def test_requests_side_by_side_and_in_a_stream_equal_single_ones():
    _, fit, unlearn, fitted = setting("SGD")
    once = sisa.sisa(setting("SGD").trainer)
    requests = ju.from_indices(DATA, [[1], [2, 3, 4], [5, PLACES[0, 0, 0]]], capacity=32)
    keys = jax.random.split(KEY, 3)
    for chunk in (1, 3):
        many = ju.check(jax.jit(ju.batched(once, chunk=chunk))(fitted, DATA, requests, keys))
        for place in range(3):
            assert (
                distance(lane(many.variables.params, place), unlearn(fitted, DATA, lane(requests, place), KEY).variables.params)
                < 1e-6
            )
    stream = ju.check(jax.jit(ju.streamed(once))(fitted, DATA, requests, keys))
    assert distance(stream.variables.params, fit(ju.remove(DATA, ju.merge(requests))).params) < 1e-6


@pytest.mark.slow
def test_shards_side_by_side_or_over_devices_are_the_same_shards():
    expected = setting("SGD")
    request = asked(*REQUESTS["the last row of every shard"])
    answer = expected.unlearn(expected.fitted, DATA, request, KEY)
    mesh = ju.request_mesh(jax.devices()[:3])
    for options in ({"chunk": 2}, {"chunk": 3}, {"mesh": mesh}):
        trainer, fit, unlearn, fitted = setting("SGD", **options)
        assert distance(fitted.params, expected.fitted.params) < 1e-5
        found = ju.check(unlearn(fitted, DATA, request, KEY))
        assert equal(found.variables, fit(ju.remove(DATA, request)))
        assert distance(found.variables.params, answer.variables.params) < 1e-5
        np.testing.assert_array_equal(found.stats["visits"], answer.stats["visits"])
    assert not fitted.params["head"].sharding.is_fully_replicated
    four = sisa.random_partition(DATA, KEY, shards=4, slices=2)
    with pytest.raises(ValueError, match="4 shards are no multiple of the 3 devices"):
        sisa.fit(trainer, DATA, four, KEY)


@pytest.mark.slow
def test_half_precision_and_traced_settings():
    def at(rate):
        trainer = sisa.trainer(network(), optax.sgd(rate), epochs=3, batch_size=4)
        fitted = sisa.fit(trainer, DATA, PARTITION, KEY)
        return fitted, sisa.sisa(trainer)(fitted, DATA, asked(1, 2), KEY)

    fitted, found = jax.jit(jax.vmap(at))(jnp.array([0.1, 0.2]))
    expected = setting("SGD")
    assert distance(lane(fitted.params, 0), expected.fitted.params) < 1e-5
    assert (
        distance(lane(found.variables.params, 0), expected.unlearn(expected.fitted, DATA, asked(1, 2), KEY).variables.params)
        < 1e-5
    )

    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), DATA.train.inputs)
    data = ju.training_data(half, DATA.train.targets)
    model = network()
    start = lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.init(key))
    trainer = sisa.trainer(model._replace(init=start), optax.adam(1e-2), epochs=3, batch_size=4)
    fit = jax.jit(lambda data: sisa.fit(trainer, data, PARTITION, KEY))
    fitted = fit(data)
    assert fitted.params["head"].dtype == jnp.bfloat16
    found = ju.check(jax.jit(sisa.sisa(trainer))(fitted, data, asked(1, 2), KEY))
    assert equal(found.variables, fit(ju.remove(data, asked(1, 2))))


@pytest.mark.slow
def test_a_ledger_loses_no_request_and_a_checkpoint_no_shard(tmp_path):
    _, fit, unlearn, fitted = setting("Adam with decay")
    ju.checkpoint.save_variables(tmp_path / "fitted", fitted)
    like = jax.eval_shape(lambda: fitted)
    assert equal(ju.checkpoint.load_variables(tmp_path / "fitted", like), fitted)

    people = [f"customer {row // 2}" for row in range(ROWS)]
    about = {"model_fingerprint": fingerprint(fitted), "data_fingerprint": data_fingerprint(DATA, people)}
    with Ledger.create(tmp_path / "book", people, **about) as book:
        book.submit(["customer 3"])
        result = book.apply(unlearn, fitted, DATA, KEY, capacity=32)
        assert equal(result.variables, fit(ju.remove(DATA, asked(6, 7))))
        book.submit(["customer 30", "customer 0"])

        def crash(*arguments):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            book.apply(crash, fitted, DATA, KEY, capacity=32)
    journal = tmp_path / "book" / "journal.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"kind": "appl')  # torn by the crash
    with Ledger.open(tmp_path / "book", people, recover=True, **about) as book:
        assert len(book.state.pending) == 2
        variables, data = book.load(like, DATA)
        assert equal(variables, fit(ju.remove(DATA, asked(6, 7))))
        assert data.present[6] == 0
        result = book.apply(unlearn, like, DATA, KEY, capacity=32)
        assert equal(result.variables, fit(ju.remove(DATA, asked(0, 1, 6, 7, 60))))
        assert not book.state.pending
    with Ledger.open(tmp_path / "book", people, **about) as book:
        assert equal(book.load(like, DATA)[0], result.variables)


def test_it_can_be_traced_where_float64_is_on():
    trainer = setting("Adam with decay").trainer
    with jax.enable_x64(True):
        form = jax.eval_shape(lambda data: sisa.fit(trainer, data, PARTITION, KEY), DATA)
        found = jax.eval_shape(sisa.sisa(trainer), form, DATA, asked(1), KEY)
    assert found.stats["visits"].dtype == np.int32


def test_rows_have_one_order_where_float64_is_on():
    rates = np.ones(61)
    found = training._shuffled(KEY, jnp.arange(61), jnp.ones(61, bool))
    partition = sisa.partition_by_rate(rates, KEY, shards=2, slices=2)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(training._shuffled(KEY, jnp.arange(61), jnp.ones(61, bool)), found)
        np.testing.assert_array_equal(sisa.partition_by_rate(rates, KEY, shards=2, slices=2).rows, partition.rows)


def test_misuse_is_refused():
    trainer, _, unlearn, fitted = setting("Adam with decay")
    model, optimizer = MODELS["SGD"]
    with pytest.raises(TypeError, match=r"expected jaxunlearn\.sisa\.trainer"):
        sisa.sisa(model)
    with pytest.raises(ValueError, match="epochs must be an integer of at least 1"):
        sisa.trainer(model, optimizer, epochs=0, batch_size=4)
    with pytest.raises(ValueError, match="fresh model"):
        sisa.trainer(model._replace(init=None), optimizer, epochs=1, batch_size=4)
    with pytest.raises(TypeError, match="expected an optax transformation"):
        sisa.trainer(model, 0.1, epochs=1, batch_size=4)
    with pytest.raises(ValueError, match="works on what"):
        unlearn(model.init(KEY), DATA, asked(1), KEY)
    bare = fitted._replace(state=fitted.state._replace(starts=()))
    for other, held in ((sisa.trainer(model, optax.lion(0.1), epochs=3, batch_size=4), fitted), (trainer, bare)):
        with pytest.raises(ValueError, match="the trainer that fit was given"):
            jax.eval_shape(sisa.sisa(other), held, DATA, asked(1), KEY)
    with pytest.raises(ValueError, match="the partition is of 61 rows, and the data has 60"):
        sisa.fit(trainer, blobs(60), PARTITION, KEY)
    with pytest.raises(ValueError, match=r"data.present must have shape \(61,\)"):
        sisa.fit(trainer, DATA._replace(present=jnp.ones(5)), PARTITION, KEY)
    repeated = PARTITION.rows.at[0, 0, 0].set(PARTITION.rows[1, 1, 1])
    unread = PARTITION.sizes.at[0, 0].add(-1).at[1, 1].add(1)
    for wrong, match in (
        ({"rows": repeated}, "each of the 61 rows once"),
        ({"rows": PARTITION.rows.at[0, 0, 0].set(61)}, "each of the 61 rows once"),
        ({"sizes": unread}, "lie in its first slots"),
        ({"rows": PARTITION.rows[0]}, r"rows \[S, R, m\]"),
    ):
        with pytest.raises(ValueError, match=match):
            sisa.fit(trainer, DATA, PARTITION._replace(**wrong), KEY)
    with pytest.raises(TypeError, match="expected a Partition"):
        sisa.fit(trainer, DATA, PARTITION.rows, KEY)
    with pytest.raises(TypeError, match="typed key"):
        sisa.fit(trainer, DATA, PARTITION, jax.random.key_data(KEY))
    with pytest.raises(ValueError, match="too few for 9 slices"):
        sisa.fit(trainer, DATA, sisa.random_partition(DATA, KEY, shards=2, slices=9), KEY)
