"""Audits of models that are no classifiers: real targets, tokens, labels; and what fits which."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.audit.metrics import METRICS, TASKS, Answers, Told, observe
from jaxunlearn.audit.report import remarks, table
from jaxunlearn.audit.tasks import Measured, Task, choose, measuring, task_of, told_by
from jaxunlearn.sampling import retain_weights
from tests.problems import blobs, held_out, lane, network

KEY = jax.random.key(0)
FORGOTTEN = 12


def regression(targets=(), noise=0.5):
    """More features than rows, a ridge solution, and noise on every row that it is fitted to: rows are known by heart."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 20)).astype(np.float32)
    truth = rng.normal(size=(20, *targets)).astype(np.float32)
    values = (inputs @ truth + rng.normal(size=(60, *targets))).astype(np.float32)
    data = ju.training_data(jnp.asarray(inputs[:30]), jnp.asarray(values[:30]))
    model = ju.Model(lambda v, x, *, train=False, key=None: ju.Outputs(x @ v.params["w"]), ju.losses.squared_error)

    def fit(variables, data, request, key):
        """Training in one step: ridge regression on noisy retained rows."""
        weights = retain_weights(data, request)
        x, y = data.train
        y = y + noise * jax.random.normal(key, y.shape)
        kernel = x.T @ (x * weights[:, None]) + 0.1 * jnp.eye(x.shape[1])
        return ju.Result(ju.Variables({"w": jnp.linalg.solve(kernel, x.T @ (y * weights.reshape(-1, *[1] * (y.ndim - 1))))}))

    return model, fit, ju.Variables({"w": jnp.zeros((20, *targets))}), data, ju.Examples(inputs[30:], values[30:])


def tokens(padding=-100):
    """A table of logits for every position of every row that counts: memory, and nothing else."""
    rng = np.random.default_rng(1)
    inputs, targets = np.arange(40), rng.integers(0, 5, (40, 6))
    targets[::3, 4:] = padding
    data = ju.training_data(jnp.asarray(inputs[:24]), jnp.asarray(targets[:24]))

    def loss(outputs, examples):
        counts = examples.targets != padding
        safe = jnp.where(counts, examples.targets, 0)
        nats = -jnp.take_along_axis(jax.nn.log_softmax(outputs.logits), safe[..., None], axis=-1)[..., 0]
        return jnp.sum(nats * counts, axis=1) / jnp.maximum(counts.sum(axis=1), 1)

    model = ju.Model(lambda v, x, *, train=False, key=None: ju.Outputs(v.params["table"][x]), loss)

    def fit(variables, data, request, key):
        weights = jnp.zeros(40).at[: data.present.shape[0]].set(retain_weights(data, request))
        one_hot = jax.nn.one_hot(jnp.asarray(targets), 5)
        return ju.Result(ju.Variables({"table": 3 * weights[:, None, None] * one_hot + jax.random.normal(key, (40, 6, 5))}))

    return model, fit, ju.Variables({"table": jnp.zeros((40, 6, 5))}), data, ju.Examples(inputs[24:], targets[24:])


def nothing(variables, data, request, key):
    return ju.Result(variables)


def audited(problem, unlearn, metrics=None, **options):
    model, fit, variables, data, test = problem
    request = lane(ju.from_indices(data, [range(FORGOTTEN)]), 0)
    options = {"num_models": 39, "num_permutations": 39, **options}
    return ju.audit.run(model, unlearn or fit, fit, variables, data, request, KEY, test=test, metrics=metrics, **options)


def verdicts(audit):
    return {name: ju.audit.Verdict(int(x.verdict)).name for name, x in audit.judgements.items()}


@pytest.fixture(scope="module")
def of_values():
    some = jax.tree.map(lambda x: x[:4], regression()[3].train)
    return audited(regression(), nothing, ["forget_loss", "margin_gap", "attack_auc", "u_lira"], controls=some)


@pytest.fixture(scope="module")
def of_tokens():
    return audited(tokens(), nothing, ["forget_accuracy", "forget_loss", "klom_forget", "test_loss"], ignore=-100)


def test_doing_nothing_is_under_for_real_targets_and_tokens(of_values, of_tokens):
    assert set(verdicts(of_values).values()) == {"UNDER"}
    assert verdicts(of_tokens) == {
        "forget_accuracy": "UNDER",
        "forget_loss": "UNDER",
        "klom_forget": "UNDER",
        "test_loss": "INSIDE",
    }
    assert (
        float(of_values.judgements["forget_loss"].value.estimate) < 0 < float(of_values.judgements["margin_gap"].value.estimate)
    )
    assert of_values.settings["task"], of_tokens.settings["task"] == ("values", "tokens")
    losses = {f"{x}_loss" for x in ("retain", "forget", "test")}
    assert of_values.means["original"].keys() == losses | {"attack_auc", "attack_tpr"}
    assert of_values.left_out == {}  # by choice, not by task
    assert set(of_values.controls) == {"forget_loss", "u_lira"}


@pytest.mark.parametrize("problem", [partial(regression, (2,)), tokens], ids=["values", "tokens"])
def test_retraining_is_inside(problem):
    options = {"ignore": -100} if problem is tokens else {}
    audit = audited(problem(), None, ["forget_loss", "klom_forget"], **options)
    assert min(float(x.p_value) for x in audit.judgements.values()) > 0.05 / len(audit.judgements)


def test_metrics_that_fit_are_taken_and_others_are_named():
    chosen, left_out = choose(Task("values"), None)
    assert set(left_out) == {"retain_accuracy", "forget_accuracy", "test_accuracy", "divergence"}
    assert chosen == [name for name in METRICS if name not in left_out]
    assert choose(Task("tokens"), None)[1].keys() == choose(Task("labels"), None)[1].keys() == {"divergence"}
    losses = ["retain_loss", "forget_loss", "test_loss"]
    assert choose(Task("classes"), None) == ([name for name in METRICS if name not in losses], {})


def test_reports_say_what_stands_in_for_margins_and_what_is_left_out(of_values, of_tokens, tmp_path, capsys):
    for audit in (of_values, of_tokens):
        audit = audit._replace(left_out=choose(Task(audit.settings["task"]), None)[1])
        page = ju.audit.write_html(audit, tmp_path / "page.html").read_text()
        assert page.count("data:image/png") == 4
        assert "JS divergence" in page
        assert "needs the probabilities of classes" in ju.audit.to_markdown(audit)
        json.dumps(ju.audit.to_json(audit), allow_nan=False)
        ju.audit.print_report(audit)
        assert "Left out" in capsys.readouterr().out
        assert len(table(audit).rows) == len(audit.judgements) + len(audit.controls)
        said = remarks(audit)
    assert said[0] == "Task: tokens. A score stands in for margins: -log(exp(loss) - 1), of the model's own loss."
    assert (
        said[1] == "Left out: JS divergence, which needs the probabilities of classes: logits [b, c] and integer targets [b]."
    )


def test_metrics_that_do_not_fit_are_refused_by_name():
    with pytest.raises(
        ValueError, match=r"'divergence' needs the probabilities of classes: .* here is values: choose from att"
    ):
        audited(regression(), nothing, ["margin_gap", "divergence"])
    with pytest.raises(ValueError, match="'forget_accuracy' needs targets that an answer hits or misses"):
        audited(regression(), nothing, ["forget_accuracy"])
    with pytest.raises(ValueError, match="'forget_loss' needs a task without classes"):
        audited((network(), nothing, network().init(KEY), blobs(), held_out()), nothing, ["forget_loss"])


def said(logits, targets, likelihood=None, ignore=None):
    """The task of a model that says these logits, with a loss that fits everything."""
    logits = jnp.asarray(logits)
    model = ju.Model(
        lambda v, x, *, train=False, key=None: ju.Outputs(logits[x]),
        lambda outputs, examples: jnp.sum(outputs.logits.reshape(outputs.logits.shape[0], -1), axis=1) * 0,
        likelihood=likelihood,
    )
    rows = ju.Examples(jnp.arange(len(logits)), targets if isinstance(targets, dict) else jnp.asarray(targets))
    return task_of(model, ju.Variables(()), {"forget": rows, "test": rows}, ignore).name


def test_tasks_are_told_by_shapes_and_dtypes():
    zeros, likelihoods = np.zeros, ju.likelihoods
    assert said(zeros((4, 3)), zeros(4, int)) == "classes"
    assert said(zeros(4), [0, 1, 1, 0]) == said(zeros((4, 1)), [0, 1, 1, 0]) == said(zeros(4), zeros(4, bool)) == "classes"
    assert said(zeros(4), [0, 1, 2, 3]) == said(zeros(4), zeros(4, int), likelihoods.poisson()) == "values"  # counts
    assert said(zeros((4, 2, 3)), zeros((4, 2), int)) == said(zeros((4, 2, 2, 3)), zeros((4, 2, 2), int)) == "tokens"
    assert said(zeros((4, 2)), zeros((4, 2), int)) == said(zeros((4, 2, 1)), zeros((4, 2), int)) == "labels"
    assert said(zeros((4, 2)), zeros((4, 2)), likelihoods.bernoulli()) == said(zeros((4, 1)), zeros((4, 1), int)) == "labels"
    assert said(zeros((4, 2)), [[0, -1]] * 4, ignore=-1) == "labels"
    assert said(zeros((4, 2)), [[0, 5]] * 4) == said(zeros((4, 7)), zeros((4, 2), int)) == "values"  # counts, heads
    assert said(zeros(4), zeros(4)) == said(zeros((4, 1)), zeros(4)) == said(zeros((4, 2)), {"a": zeros(4)}) == "values"
    with pytest.raises(ValueError, match=r"targets hold -100, which is none of 3 tokens; .* pass ignore=-100"):
        said(zeros((4, 2, 3)), [[0, -100]] * 4)
    with pytest.raises(ValueError, match=r"ignore=-1 marks padding of tokens or labels, and the task here is classes"):
        said(zeros((4, 3)), zeros(4, int), ignore=-1)
    assert set(TASKS) == {"classes", "tokens", "labels", "values"}


def test_a_loss_that_mixes_rows_is_refused():
    model, fit, variables, data, test = regression()
    column = ju.Model(
        lambda v, x, *, train=False, key=None: ju.Outputs(x @ v.params["w"][:, None]),
        lambda outputs, examples: jnp.mean((outputs.logits - examples.targets) ** 2, axis=-1),  # [b, 1] - [b] is [b, b]
    )
    with pytest.raises(ValueError, match=r"loss of a row depends on the rows beside it; .* give both one shape"):
        audited((column, fit, variables, data, test), nothing)
    whole = model._replace(loss=lambda outputs, examples: jnp.mean((outputs.logits - examples.targets) ** 2))
    with pytest.raises(ValueError, match=r"one value per row, shape \(12,\), got \(\)"):
        audited((whole, fit, variables, data, test), nothing)
    with pytest.raises(ValueError, match=r"rows of test have the form float32\[30, 20\], float32\[30, 1\], training rows"):
        audited((model, fit, variables, data, test._replace(targets=test.targets[:, None])), nothing)


def test_rows_of_padding_are_left_out_of_the_audit_and_refused_in_a_request():
    model, fit, variables, data, test = tokens()
    some = (
        audited((model, fit, variables, data, test._replace(targets=test.targets * 0 - 100)), nothing, ignore=-100)
        if 0
        else None
    )
    assert some is None
    padded = np.array(test.targets)
    padded[:3] = -100
    audit = audited((model, fit, variables, data, test._replace(targets=padded)), nothing, ["attack_auc"], ignore=-100)
    assert audit.settings["test_rows"] == len(padded) - 3
    with pytest.raises(ValueError, match="all rows of test hold nothing but padding"):
        audited((model, fit, variables, data, test._replace(targets=padded * 0 - 100)), nothing, ignore=-100)
    train = data.train._replace(targets=data.train.targets.at[2].set(-100))
    with pytest.raises(ValueError, match="1 rows of the request hold nothing but padding"):
        audited((model, fit, variables, data._replace(train=train), test), nothing, ignore=-100)


def kinds(**losses):
    return {kind: ju.audit.Ensemble({"forget": Measured(jnp.asarray(x), None)}, (), ()) for kind, x in losses.items()}


def scores(task, **losses):
    told, settings = told_by(kinds(**losses), Task(task))
    return {kind: x["forget"].scores for kind, x in told.items()}, settings


def test_the_score_of_one_token_is_its_margin():
    logits, targets = jax.random.normal(KEY, (7, 5)) * 3, jnp.arange(7) % 5
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1).T
    found, settings = scores("tokens", all=losses)
    np.testing.assert_allclose(found["all"][0], ju.audit.margins(logits, targets), rtol=1e-4, atol=1e-4)
    assert settings == {"score": "-log(exp(loss) - 1)"}


def test_scores_are_finite_falling_and_blind_to_units_and_names():
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=(2, 3, 4))
    losses[0, 0, :2], losses[1, 1, 1] = [0, np.inf], np.inf
    for task in ("values", "tokens"):
        found, settings = scores(task, unlearned=losses[0], retrained=losses[1])
        swapped, _ = scores(task, unlearned=losses[1], retrained=losses[0])
        assert settings["infinite_losses"] == 2
        np.testing.assert_array_equal(found["unlearned"], swapped["retrained"])
        together = np.stack(list(found.values()))
        assert np.all(np.isfinite(together))
        order = np.argsort(losses, axis=None)
        assert np.all(np.diff(together.ravel()[order]) <= 0)
    scaled, _ = scores("values", unlearned=1e6 * losses[0], retrained=1e6 * losses[1])
    plain, _ = scores("values", unlearned=losses[0], retrained=losses[1])
    np.testing.assert_allclose(scaled["unlearned"], plain["unlearned"] - np.log(1e6), rtol=1e-5, atol=1e-5)
    below, settings = scores("values", unlearned=losses[0] - 1)
    assert settings["score"] == "minus the loss"
    assert np.all(np.isfinite(below["unlearned"]))
    constant, _ = scores("values", unlearned=np.zeros((2, 3)))
    assert np.all(constant["unlearned"] == 0)
    with pytest.raises(ValueError, match="every loss is infinite"):
        scores("values", unlearned=np.full((2, 3), np.inf))


def test_models_that_blew_up_are_over_and_the_report_counts_infinite_losses():
    def blown(variables, data, request, key):
        return ju.Result(jax.tree.map(lambda w: w * 1e30, variables))

    audit = audited(regression(), blown, ["forget_loss"])
    assert verdicts(audit) == {"forget_loss": "OVER"}
    assert f"{39 * 60} losses are infinite" in " ".join(remarks(audit))
    json.dumps(ju.audit.to_json(audit), allow_nan=False)


def test_successes_are_shares_of_what_counts():
    logits = jnp.array([[[2.0, 0], [2, 0], [0, 2]], [[2, 0], [2, 0], [2, 0]]])
    targets = jnp.array([[0, 1, -1], [-1, -1, 0]])
    model = ju.Model(
        lambda v, x, *, train=False, key=None: ju.Outputs(logits[x]), lambda outputs, examples: outputs.logits[:, 0, 0]
    )
    rows = ju.Examples(jnp.arange(2), targets)
    assert measuring(model, Task("tokens", -1))(ju.Variables(()), rows).successes.tolist() == [0.5, 1]
    labels = measuring(model, Task("labels"))(ju.Variables(()), ju.Examples(jnp.arange(2), jnp.ones((2, 3, 2), int)))
    assert labels.successes.tolist() == [0.5, 0.5]
    assert measuring(model, Task("classes")) is None


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.needs in (None, "loss")])
def test_constant_scores_and_single_rows_are_no_difference(name):
    constant = Told(jnp.ones((8, 1)), jnp.zeros((8, 1)))
    seen = observe(dict.fromkeys(("forget", "retain", "test"), constant))
    p_value = ju.audit.permutation_p_value(METRICS[name].statistic, seen, seen, KEY, num_permutations=39)
    assert float(p_value) == 1


def test_classifiers_are_observed_as_ever():
    """Nothing of the other tasks touches them, to the last bit."""
    logits, targets = jax.random.normal(KEY, (6, 9, 3)), jnp.broadcast_to(jnp.arange(9) % 3, (6, 9))
    seen = observe(dict.fromkeys(("forget", "retain", "test"), Answers(logits, targets)))
    assert set(seen) == {f"{x}_{y}" for x in ("forget", "retain", "test") for y in ("accuracy", "margins")} | {
        "forget_probabilities", "attack_auc", "attack_tpr",
    }  # fmt: skip
    np.testing.assert_array_equal(seen["forget_margins"], ju.audit.margins(logits, targets))
    np.testing.assert_array_equal(seen["forget_accuracy"], jnp.mean(jnp.argmax(logits, -1) == targets, axis=1))
    np.testing.assert_array_equal(seen["forget_probabilities"], jax.nn.softmax(logits))
