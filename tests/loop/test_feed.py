"""The loop on the host: equal to the one on the device, durable, and careful about what it resumes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.service.checkpoint import Directory
from jaxunlearn.service.errors import CheckpointError
from jaxunlearn.tree import content_digest
from tests.loop.runs import DATA, FINETUNE, KEY, MODEL, REQUEST, VARIABLES, drawn
from tests.problems import distance

SCRUB = ju.scrub(MODEL, optax.adam(0.01), forget_epochs=2)


@pytest.mark.parametrize(
    "method",
    [
        ju.gradient_difference(MODEL, optax.adam(0.01)),
        SCRUB,  # has phases
        ju.l1_sparse(MODEL, optax.sgd(0.1), gamma=0.05),  # fades with the progress of the run
    ],
    ids=["gradient_difference", "scrub", "l1_sparse"],
)
def test_feed_equals_iterate_on_the_same_batches(method):
    inside = jax.jit(ju.iterate(method, 5, batch_size=4))(VARIABLES, DATA, REQUEST, KEY)
    told = []
    outside = ju.feed(method, VARIABLES, drawn, REQUEST, KEY, num_steps=5, callback=lambda i, s: told.append(float(s["loss"])))
    assert distance(inside.variables, outside.variables) < 1e-4
    assert told == pytest.approx(inside.stats["loss"].tolist(), rel=1e-4, abs=1e-6)
    assert int(outside.status) == ju.Status.OK
    assert int(outside.stats["steps"]) == 5


def test_an_empty_request_gets_what_the_method_says():
    for method, same in ((ju.gradient_ascent(MODEL, optax.sgd(0.1)), True), (FINETUNE, False)):
        empty = ju.feed(method, VARIABLES, drawn, ju.empty_request(16), KEY, num_steps=1)
        assert (distance(empty.variables, VARIABLES) == 0) == same
        assert int(empty.status) == ju.Status.EMPTY_REQUEST


class Loader:
    """An iterator with a position, as grain's."""

    def __init__(self, source, as_bytes=False):
        self.source, self.position, self.as_bytes = source, 0, as_bytes

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        return self.source(self.position - 1)

    def get_state(self):
        return str(self.position).encode() if self.as_bytes else {"position": self.position}

    def set_state(self, state):
        self.position = int(state) if self.as_bytes else state["position"]


class Live(Loader):
    """Its state is the very object that it counts in."""

    def __init__(self, source):
        self.source, self.state = source, {"position": 0}

    def __next__(self):
        self.state["position"] += 1
        return self.source(self.state["position"] - 1)

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def test_an_iterator_may_count_in_the_state_that_it_gives(tmp_path):
    def go(source, **options):
        return ju.feed(watcher(), VARIABLES, source, REQUEST, KEY, num_steps=3, **options)

    assert distance(go(Live(drawn), checkpoint=Directory(tmp_path)).variables, go(Live(drawn)).variables) == 0


def watcher():
    """A method whose end says which batches and keys it saw, in order."""

    def step(state, context, batch, key):
        seen = jnp.sum(batch.retain.examples.inputs) + jax.random.uniform(key) + batch.progress
        return jax.tree.map(lambda w: 0.5 * w + seen, state), {"loss": seen}

    return ju.Unlearner(lambda v, d, r, k: ((), v), step, lambda state, context: state, ju.uniform)


@pytest.mark.parametrize(("kind", "method"), [("function", SCRUB), ("json", watcher()), ("bytes", watcher())])
def test_an_interrupted_feed_goes_on_exactly(tmp_path, kind, method):
    def source():
        return drawn if kind == "function" else Loader(drawn, kind == "bytes")

    class PowerCut(Exception):
        pass

    def cut(step, stats):
        if step == 4:
            raise PowerCut

    def go(**options):
        return ju.feed(method, VARIABLES, source(), REQUEST, KEY, num_steps=7, **options)

    whole = go()
    with pytest.raises(PowerCut):
        go(checkpoint=Directory(tmp_path, every=2), callback=cut)
    steps = []
    resumed = go(checkpoint=Directory(tmp_path, every=2), callback=lambda step, stats: steps.append(step))
    assert steps == [4, 5, 6]
    assert distance(resumed.variables, whole.variables) == 0


def test_a_foreign_checkpoint_is_refused(tmp_path):
    def go(method=FINETUNE, variables=VARIABLES, request=REQUEST, key=KEY, num_steps=4):
        return ju.feed(method, variables, drawn, request, key, num_steps=num_steps, checkpoint=Directory(tmp_path, every=1))

    expected = go()
    other = ju.Variables(jax.tree.map(lambda x: x + 1, VARIABLES.params))
    for change in (
        {"key": jax.random.key(8)},
        {"request": REQUEST._replace(indices=REQUEST.indices + 1)},
        {"variables": other},
        {"method": ju.finetune(MODEL, optax.adam(0.1))},
        {"method": ju.finetune(MODEL, optax.sgd(0.2))},
        {"method": ju.finetune(MODEL, optax.sgd(jnp.array([0.2])[0]))},
        {"method": ju.gradient_difference(MODEL, optax.sgd(0.1))},
    ):
        with pytest.raises(ValueError, match="another method, key, request"):
            go(**change)
    with pytest.raises(ValueError, match="holds 4 steps, more than num_steps=2"):
        go(num_steps=2)
    assert distance(go().variables, expected.variables) == 0


def test_sources_that_cannot_serve_are_refused(tmp_path):
    batches = [drawn(step) for step in range(2)]

    def go(source, num_steps, **options):
        return ju.feed(watcher(), VARIABLES, source, REQUEST, KEY, num_steps=num_steps, **options)

    with pytest.raises(ValueError, match="ended after 2 of 3 steps"):
        go(iter(batches), 3)
    with pytest.raises(ValueError, match="get_state and set_state"):
        go(iter(batches), 2, checkpoint=Directory(tmp_path))


def test_divergence_is_reported():
    result = ju.feed(ju.finetune(MODEL, optax.sgd(jnp.inf)), VARIABLES, drawn, REQUEST, KEY, num_steps=1)
    assert int(result.status) == ju.Status.NONFINITE
    assert not all(np.isfinite(x).all() for x in jax.tree.leaves(result.variables))


def test_a_run_that_is_over_is_told_again_as_it_was(tmp_path):
    def go(method, source):
        kept = Directory(tmp_path / method.sample.__qualname__, every=2)
        return ju.feed(method, VARIABLES, source, REQUEST, KEY, num_steps=4, checkpoint=kept, damaged_at=0.0)

    for method, source in ((SCRUB, lambda: drawn), (FINETUNE, lambda: Loader(drawn))):
        first, again = go(method, source()), go(method, source())
        assert int(first.status) == ju.Status.DAMAGED  # by the loss of the last batch, which is read again
        assert content_digest(again) == content_digest(first)


def test_another_length_is_refused_where_a_step_reads_it(tmp_path):
    def go(method, num_steps, folder):
        return ju.feed(method, VARIABLES, drawn, REQUEST, KEY, num_steps=num_steps, checkpoint=Directory(folder, every=2))

    l1_sparse = ju.l1_sparse(MODEL, optax.sgd(0.1), gamma=0.05)  # fades with the progress of the run
    go(l1_sparse, 2, tmp_path / "reads")
    with pytest.raises(ValueError, match=r"belongs to a run of 2 steps.*pass num_steps=2, or choose another directory"):
        go(l1_sparse, 4, tmp_path / "reads")
    go(FINETUNE, 2, tmp_path / "does not")
    assert distance(go(FINETUNE, 4, tmp_path / "does not").variables, go(FINETUNE, 4, tmp_path / "whole").variables) == 0


def test_other_rows_are_told_by_the_first_batch(tmp_path):
    def go(source):
        return ju.feed(FINETUNE, VARIABLES, source, REQUEST, KEY, num_steps=2, checkpoint=Directory(tmp_path, every=1))

    go(drawn)
    with pytest.raises(ValueError, match="another method, key, request, first batch"):
        go(lambda step: jax.tree.map(lambda x: x + 1, drawn(step)))


def test_one_run_at_a_time_holds_a_directory(tmp_path):
    def second(step, stats):
        with pytest.raises(CheckpointError, match="is open for writing already"):
            ju.feed(FINETUNE, VARIABLES, drawn, REQUEST, KEY, num_steps=1, checkpoint=Directory(tmp_path, every=1))

    ju.feed(FINETUNE, VARIABLES, drawn, REQUEST, KEY, num_steps=1, checkpoint=Directory(tmp_path, every=1), callback=second)
    ju.feed(FINETUNE, VARIABLES, drawn, REQUEST, KEY, num_steps=1, checkpoint=Directory(tmp_path, every=1))
