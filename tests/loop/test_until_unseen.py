"""Where a run ends by itself: at the level of unseen rows, and after passes over the forget set."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.loop.runs import DATA, FINETUNE, KEY, MODEL, TEST, VARIABLES, accuracy, run
from tests.problems import distance, lane, linear_classifier, linear_regression, regression_data

STEPS = 8
ROWS = jnp.eye(16)  # every row has logits of its own
LABELS = jnp.arange(16) % 3
TABLE = linear_classifier()
SEEN, UNSEEN = ju.training_data(ROWS[:12], LABELS[:12]), ju.Examples(ROWS[12:], LABELS[12:])
SURE = jnp.where(jnp.arange(16) < 12, 3.0, jnp.arange(16.0) / 2 - 5.5)[:, None]  # held-out rows are less known, and differ
START = ju.Variables({"w": SURE * jax.nn.one_hot(LABELS, 3)})


def margins(variables, rows):
    return np.asarray(ju.audit.margins(TABLE.forward(variables, rows.inputs).logits, rows.targets))


def level(variables, rows, gone):
    """Mean over rows of the mean margin of held-out rows of their class."""
    others, labels = margins(variables, UNSEEN), np.asarray(UNSEEN.targets)
    return np.mean([-np.log(2) if y in gone else others[labels == y].mean() for y in np.asarray(rows.targets)])


@pytest.mark.parametrize(("asked", "gone"), [([0, 1, 3], ()), ([1, 4, 7, 10], (1,)), ([0, 2, 5, 8, 11], (2,))])
def test_it_stops_at_the_first_look_that_finds_the_rows_unseen(asked, gone):
    request, rows = lane(ju.from_indices(SEEN, [asked]), 0), jax.tree.map(lambda x: x[np.array(asked)], SEEN.train)
    ascent = ju.gradient_ascent(TABLE, optax.sgd(6.0))
    plain = jax.jit(lambda steps: ju.iterate(ascent, STEPS, batch_size=4, active_steps=steps)(START, SEEN, request, KEY))
    path = [plain(step).variables for step in range(STEPS + 1)]
    unseen = [margins(path[step], rows).mean() <= level(path[step], rows, gone) for step in range(2, STEPS + 1, 2)]
    assert any(unseen)
    assert not all(unseen)
    stop = ju.until_unseen(TABLE, UNSEEN, chunk=3)
    run = jax.jit(ju.iterate(ascent, STEPS, batch_size=4, look_every=2, stop=stop))(START, SEEN, request, KEY)
    assert int(run.stats["steps"]) == 2 * (1 + unseen.index(True))
    assert distance(run.variables, path[int(run.stats["steps"])]) < 1e-5
    assert not run.stats["peek"]


def test_real_targets_stop_by_their_errors():
    data, model = regression_data(), linear_regression()
    held_out = ju.Examples(*regression_data(seed=1).train)
    start = jax.jit(ju.iterate(ju.retrain(model, optax.sgd(0.1)), 40, batch_size=16))
    trained = start(model.init(KEY), data, ju.empty_request(), KEY).variables
    method = ju.iterate(ju.gradient_ascent(model, optax.sgd(0.5)), 30, batch_size=4, stop=ju.until_unseen(model, held_out))
    request = lane(ju.from_indices(data, [[1, 2, 3, 4]]), 0)
    result = jax.jit(method)(trained, data, request, KEY)
    assert 0 < int(result.stats["steps"]) < 30


def test_it_shows_the_forget_set_to_nobody_else():
    def on_the_request(variables, seen):
        return seen.request.weights.sum()

    stop = ju.until_unseen(MODEL, TEST)
    with pytest.raises(ValueError, match=r"may not read seen\.request\.weights"):
        run(stop=stop, keep_best=on_the_request, validation=TEST)
    assert not run(stop=stop, keep_best=accuracy, validation=TEST).stats["peek"]
    with pytest.raises(ValueError, match="rows of held_out have the form"):
        run(stop=ju.until_unseen(MODEL, TEST._replace(targets=TEST.targets * 1.0)))


def test_epochs_are_passes_over_the_rows_of_each_request():
    requests = ju.from_indices(DATA, [[3, 4, 5, 30], list(range(9))], capacity=12)
    unlearn = ju.iterate(FINETUNE, epochs=2, batch_size=4)
    result = jax.jit(ju.batched(unlearn))(VARIABLES, DATA, requests, jax.random.split(KEY, 2))
    assert result.stats["steps"].tolist() == [2, 6]
    assert result.stats["loss"].shape == (2, 6)
    assert result.stats["visited"].tolist() == [1, 1]
    same = ju.iterate(FINETUNE, 6, batch_size=4)(VARIABLES, DATA, lane(requests, 1), jax.random.split(KEY, 2)[1])
    assert distance(lane(result.variables, 1), same.variables) < 1e-6
    for wrong, message in [
        ({}, "num_steps=100 or epochs=5, one of them"),
        ({"num_steps": 3, "epochs": 1}, "one of them"),
        ({"epochs": -1}, "epochs must be an integer"),
        ({"epochs": 1, "active_steps": 1}, "both say how long"),
    ]:
        with pytest.raises(ValueError, match=message):
            ju.iterate(FINETUNE, batch_size=4, **wrong)
    with pytest.raises(ValueError, match="of which a training reads nothing: pass num_steps"):
        ju.iterate(ju.retrain(MODEL, optax.sgd(0.1)), epochs=2, batch_size=4)
    with pytest.raises(ValueError, match="look_every=10 is more than num_steps=6"):
        ju.iterate(FINETUNE, epochs=2, batch_size=4, stop=accuracy, validation=TEST, look_every=10)(
            VARIABLES, DATA, lane(requests, 0), KEY
        )
