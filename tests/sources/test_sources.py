"""Rows that stay on disk: drawn by their numbers, each once where it is to come once, read ahead, on one device or many."""

import threading
import time
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxunlearn as ju
from jaxunlearn import sources
from tests.problems import blobs, distance, lane, network

DATA, MODEL, KEY = blobs(), network(), jax.random.key(7)
INDEX = sources.index(60)
REQUEST = lane(ju.from_indices(INDEX, [[3, 4, 5, 30, 59]]), 0)
FINETUNE = ju.finetune(MODEL, optax.sgd(0.1))
HOST = jax.tree.map(np.asarray, DATA.train)
SIZES = {"num_steps": 40, "batch_size": 8}


class Disk:
    """Rows with a note of which were read, and by whom."""

    def __init__(self, count=60):
        self.count, self.read, self.threads = count, [], set()

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        self.read.append(number)
        self.threads.add(threading.get_ident())
        return {"image": HOST.inputs[number % 60].astype(np.float16), "label": HOST.targets[number % 60]}


def parse(row):
    return ju.Examples(row["image"], row["label"])


def plan_of(request=REQUEST, index=INDEX, method=FINETUNE, **sizes):
    return sources.draw(method, index, request, KEY, **{**SIZES, **sizes})


def test_retained_rows_are_those_that_are_left():
    index = ju.remove(INDEX, lane(ju.from_indices(INDEX, [[0, 7]]), 0))
    repeated = REQUEST._replace(
        indices=REQUEST.indices.at[5:8].set(jnp.array([3, 7, 90])), weights=REQUEST.weights.at[5:8].set(1)
    )
    for request in (REQUEST, repeated):  # rows that come twice, are gone, or are none
        plan = plan_of(request, index, num_steps=200)
        assert set(plan.retain.rows.ravel()) == set(range(60)) - {3, 4, 5, 30, 59, 0, 7}
        visits = Counter(plan.forget.rows.ravel().tolist())
        assert visits == dict.fromkeys((3, 4, 5, 30, 59), 320)
        assert np.all(plan.forget.weights == 1)


def test_a_side_without_rows_counts_for_nothing_and_reads_a_row_that_is_there():
    index = ju.remove(INDEX, lane(ju.from_indices(INDEX, [[0]]), 0))
    plan = plan_of(ju.empty_request(4), index)
    assert set(plan.forget.rows.ravel()) == {1}
    assert plan.forget.weights.max() == 0
    plan = plan_of(lane(ju.from_indices(index, [range(1, 60)]), 0), index)
    assert set(plan.retain.rows.ravel()) == {1}
    assert plan.retain.weights.max() == 0


def test_a_plan_does_not_depend_on_how_many_steps_are_drawn():
    few, many = plan_of(num_steps=3), plan_of(num_steps=300)
    for short, long in zip(few.retain, many.retain, strict=True):
        np.testing.assert_array_equal(short, long[:3])


def test_batches_are_the_rows_of_the_plan():
    disk, plan = Disk(), plan_of()
    source = sources.batches(FINETUNE, disk, INDEX, REQUEST, KEY, parse=parse, **SIZES)
    for step in (0, 1, 2, 17, 3, 39):  # in order and not
        batch = source(step)
        assert batch.retain.examples.inputs.dtype == jnp.float16
        np.testing.assert_array_equal(batch.retain.examples.inputs, HOST.inputs[plan.retain.rows[step]].astype(np.float16))
        np.testing.assert_array_equal(batch.forget.examples.targets, HOST.targets[plan.forget.rows[step]])
        np.testing.assert_array_equal(batch.forget.slots, plan.forget.slots[step])
    assert threading.get_ident() not in disk.threads


def test_batches_are_read_ahead_and_no_further():
    disk = Disk()
    source = sources.batches(FINETUNE, disk, INDEX, REQUEST, KEY, parse=parse, ahead=3, **SIZES)
    source(36)
    deadline = time.monotonic() + 10
    expected = sum(len(np.unique(side.rows[step])) for step in range(36, 40) for side in plan_of()[:2])
    while len(disk.read) < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(disk.read) == expected  # a row that comes twice in a batch is read once, and the plan ends at 40


def test_rows_that_cannot_be_read_say_so_at_their_step():
    class Broken(Disk):
        def __getitem__(self, number):
            if number == 3:
                raise OSError("row 3 is unreadable")
            return super().__getitem__(number)

    source = sources.batches(FINETUNE, Broken(), INDEX, REQUEST, KEY, parse=parse, **SIZES)
    with pytest.raises(OSError, match="row 3 is unreadable"):
        ju.feed(FINETUNE, MODEL.init(KEY), source, REQUEST, KEY, num_steps=40)


def test_x64_is_that_of_the_caller():
    rows = ju.Examples(HOST.inputs.astype(np.float64), HOST.targets)
    source = sources.batches(FINETUNE, rows, INDEX, REQUEST, KEY, **SIZES)
    assert source(0).retain.examples.inputs.dtype == jnp.float32
    with jax.enable_x64(True):
        assert source(5).retain.examples.inputs.dtype == jnp.float64


def test_arrays_on_disk_are_read_by_their_numbers(tmp_path):
    np.save(tmp_path / "inputs.npy", HOST.inputs)
    rows = ju.Examples(np.load(tmp_path / "inputs.npy", mmap_mode="r"), HOST.targets)
    for how in (None, lambda row: row._replace(inputs=2 * row.inputs)):
        source = sources.batches(FINETUNE, rows, INDEX, REQUEST, KEY, parse=how, **SIZES)
        expected = (1 if how is None else 2) * HOST.inputs[plan_of().retain.rows[4]]
        np.testing.assert_array_equal(source(4).retain.examples.inputs, expected)


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        (Disk(59), {}, ValueError, "there are 59 rows, and the index has 60"),
        (iter([]), {}, TypeError, "rows are read by their numbers"),
        (Disk(), {"parse": None}, TypeError, "a row must be jaxunlearn.Examples.*got dict.*parse=lambda"),
        (Disk(), {"parse": lambda row: ju.Examples(np.zeros(int(row["label"])), 0)}, ValueError, "rows differ in form"),
        (Disk(), {"ahead": -1}, ValueError, "ahead must be an integer"),
        (Disk(), {"batch_size": 0}, ValueError, "batch_size must be"),
    ],
)
def test_what_cannot_be_read_is_told(rows, options, error, message):
    with pytest.raises(error, match=message):
        sources.batches(FINETUNE, rows, INDEX, REQUEST, KEY, **{"parse": parse, **SIZES, **options})(0)


def test_more_steps_than_were_drawn_are_refused():
    source = sources.batches(FINETUNE, DATA.train, INDEX, REQUEST, KEY, num_steps=3, batch_size=4)
    with pytest.raises(ValueError, match="the plan has 3 steps, and step 3 was asked for"):
        ju.feed(FINETUNE, MODEL.init(KEY), source, REQUEST, KEY, num_steps=4)


def test_batches_spread_over_devices_give_the_same_run():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    variables = MODEL.init(KEY)

    def run(variables, **options):
        source = sources.batches(FINETUNE, DATA.train, INDEX, REQUEST, KEY, num_steps=4, batch_size=8, **options)
        return source(0), ju.feed(FINETUNE, variables, source, REQUEST, KEY, num_steps=4).variables

    spread = NamedSharding(mesh, P("data"))
    batch, found = run(jax.device_put(variables, NamedSharding(mesh, P())), sharding=spread)
    assert batch.retain.examples.inputs.sharding == spread
    plain, expected = run(variables)
    np.testing.assert_array_equal(batch.retain.examples.inputs, plain.retain.examples.inputs)
    assert distance(found, expected) < 1e-6
    with pytest.raises(ValueError, match="a batch of 6 rows cannot be spread"):
        sources.batches(FINETUNE, DATA.train, INDEX, REQUEST, KEY, num_steps=1, batch_size=6, sharding=spread)(0)


@pytest.mark.parametrize("size", [1, 7, 20, 60, 99])
def test_a_pass_has_every_row_once(size):
    gone = ju.remove(INDEX, lane(ju.from_indices(INDEX, [[0, 7]]), 0))
    for index, request, side, expected in [
        (INDEX, None, "retain", set(range(60))),
        (gone, REQUEST, "retain", set(range(60)) - {0, 7, 3, 4, 5, 30, 59}),
        (gone, REQUEST, "forget", {3, 4, 5, 30, 59}),
    ]:
        disk = Disk()
        start = sources.blocks(disk, index, size=size, request=request, side=side, parse=parse)
        for _ in range(2):
            disk.read.clear()
            found = list(start())
            assert {len(block.weights) for block in found} == {size}
            numbers = np.concatenate([block.slots[block.weights > 0] for block in found])
            assert sorted(numbers.tolist()) == sorted(expected)
            assert sorted(disk.read) == sorted(expected)  # what was removed is never read
            inputs = np.concatenate([block.examples.inputs[block.weights > 0] for block in found])
            np.testing.assert_array_equal(inputs, HOST.inputs[numbers].astype(np.float16))


def test_values_of_all_rows_are_those_in_memory():
    variables = MODEL.init(KEY)
    start = sources.blocks(DATA.train, INDEX, size=16, request=REQUEST)
    left = np.setdiff1d(np.arange(60), [3, 4, 5, 30, 59])
    logits = sources.map_blocks(lambda rows: ju.audit.predict(MODEL, variables, rows), start)
    np.testing.assert_allclose(logits, ju.audit.predict(MODEL, variables, DATA.train)[left], atol=1e-6)
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), variables)
    of_models = lambda rows: jax.vmap(lambda one: ju.audit.predict(MODEL, one, rows))(many)
    found = sources.map_blocks(of_models, start, axis=1)
    np.testing.assert_allclose(found, of_models(DATA.train)[:, left], atol=1e-6)
    with pytest.raises(ValueError, match="one entry per row of 16 on axis 0"):
        sources.map_blocks(lambda rows: jnp.sum(rows.inputs), start)
    with pytest.raises(TypeError, match="pass a function that starts a pass"):
        sources.map_blocks(lambda rows: rows.inputs, start())


def test_part_holds_the_request_slot_by_slot():
    index = ju.remove(INDEX, lane(ju.from_indices(INDEX, [[5, 7]]), 0))
    data, asked = sources.part(DATA.train, index, REQUEST, retained=10)
    assert asked.weights.tolist() == [1, 1, 0, 1, 1, *[0] * 11]
    rows = [3, 4, 30, 59]
    np.testing.assert_array_equal(data.train.inputs[asked.indices[asked.weights > 0]], HOST.inputs[rows])
    assert data.present.shape == (14,)
    kept = {tuple(row) for row in np.asarray(data.train.inputs[4:])}
    assert len(kept) == 10
    assert not kept & {tuple(row) for row in HOST.inputs[[*rows, 5, 7]]}
    whole, _ = sources.part(DATA.train, index, REQUEST, retained=10**6)
    assert whole.present.shape == (58,)


def test_pace_is_told_now_and_then(monkeypatch):
    clock = iter([0.0, 0.0, *np.repeat(np.arange(1.0, 10.0), 2)])
    monkeypatch.setattr("jaxunlearn.sources.pace.time", SimpleNamespace(monotonic=lambda: next(clock)))
    told = []
    callback = sources.paced(told.append, 9, seconds=1.0)
    for step in range(5, 8):
        callback(step, {})
    assert [pace.steps for pace in told] == [6, 7, 8]
    assert np.isnan(told[0].steps_per_second)
    assert told[1].steps_per_second == pytest.approx(1.0)
    assert told[2].seconds_left == pytest.approx(1.0)
