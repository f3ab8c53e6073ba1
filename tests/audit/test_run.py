"""A whole audit of tiny models, its report in every format, and the audits that are refused."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import slots
from jaxunlearn.audit.report import table, worst_examples
from jaxunlearn.loop.preparation import prepared_by
from jaxunlearn.status import combine
from tests.problems import blobs, held_out, lane, network

KEY = jax.random.key(0)
DATA, TEST, MODEL = blobs(), held_out(), network()
RETRAIN = ju.iterate(ju.retrain(MODEL, optax.sgd(0.1)), num_steps=3, batch_size=8)
REQUEST = lane(ju.from_indices(DATA, [range(8)]), 0)
AUDITS = ["forget_accuracy", "divergence", "klom_forget", "u_lira"]


def fresh(variables, data, request, key):
    """Training that takes no step."""
    return ju.Result(MODEL.init(key))


def reading(variables, data, request, key):
    """Retraining that reads something prepared at the weights that it starts from."""
    _, stale = slots.IMPORTANCES.read(data, at=variables)
    result = RETRAIN(variables, data, request, key)
    return result._replace(status=jnp.maximum(result.status, combine(STALE=stale)))


def prepare(variables, data, key):
    return slots.IMPORTANCES.put(data, jnp.zeros(2), at=variables)


@pytest.fixture(scope="module")
def audit():
    options = {"num_models": 39, "num_permutations": 39, "controls": jax.tree.map(lambda x: x[:4], DATA.train)}
    unlearn = prepared_by(reading, prepare)
    return ju.audit.run(
        MODEL, unlearn, RETRAIN, MODEL.init(KEY), DATA, REQUEST, KEY, test=TEST, metrics=AUDITS, **options
    )  # fmt: skip


def test_retraining_passes_its_own_audit(audit):
    p_values = [float(x.p_value) for x in audit.judgements.values()]
    assert min(p_values) > 0.05 / len(p_values)  # several verdicts on one draw of models
    for rate in audit.false_positives.values():
        assert float(rate.low) <= 0.05


def test_every_metric_has_an_interval_a_floor_and_a_row_in_every_format(audit, tmp_path, capsys):
    assert list(audit.judgements) == AUDITS
    for judged in audit.judgements.values():
        assert judged.value.low <= judged.value.estimate <= judged.value.high
        assert judged.floor.low <= judged.floor.high
    assert list(audit.over_rows) == AUDITS
    assert all(x.low <= x.high for x in audit.over_rows.values())
    assert list(audit.controls) == ["forget_accuracy", "klom_forget", "u_lira"]
    rows = table(audit).rows
    assert len(rows) == len(audit.judgements) + 3
    assert ju.audit.to_markdown(audit).count("\n| ") == len(rows) + 2
    found = json.loads(json.dumps(ju.audit.to_json(audit), allow_nan=False))
    assert found["judgements"]["u_lira"]["verdict"] in ("inside", "under", "over")
    page = ju.audit.write_html(audit, tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 4
    assert all(f'href="#{name}"' in page and f'id="{name}"' in page for name in audit.judgements)
    ju.audit.print_report(audit)
    assert "influence of the forget set" in capsys.readouterr().out.replace("\n", " ")


def test_the_report_shows_the_values_of_the_audit(audit):
    judged, (label, value, _, floor, ceiling, p, verdict, rate) = audit.judgements["forget_accuracy"], table(audit).rows[0]
    assert label == "forget accuracy"
    assert value == "{:+.3f} [{:+.3f}, {:+.3f}]".format(*map(float, judged.value))
    assert floor.startswith(f"{float(judged.floor.estimate):+.3f} [")
    assert (ceiling, p) == (f"{float(judged.ceiling):+.3f}", f"{float(judged.p_value):.3f}")
    assert verdict == ju.audit.Verdict(int(judged.verdict)).name.lower()
    assert rate == "{:.0%} [{:.0f}, {:.0f}]".format(
        *(s * float(x) for s, x in zip((1, 100, 100), audit.false_positives["forget_accuracy"], strict=True))
    )


def test_the_ceiling_is_what_doing_nothing_scores(audit):
    means = {kind: values["forget_accuracy"] for kind, values in audit.means.items()}
    assert float(audit.judgements["forget_accuracy"].ceiling) == pytest.approx(means["original"] - means["retrained"], abs=1e-6)
    value = float(audit.judgements["forget_accuracy"].value.estimate)
    assert value == pytest.approx(means["unlearned"] - means["retrained"], abs=1e-6)


def test_values_are_those_of_the_metrics_on_margins_to_the_last_bit(audit):
    unlearned, retrained = (jnp.asarray(audit.margins[kind]) for kind in ("unlearned", "retrained"))
    found = jax.jit(lambda u, r: (jnp.mean(ju.audit.klom(u, r)), ju.audit.u_lira(u, r).accuracy.estimate))(unlearned, retrained)
    values = [audit.judgements[name].value.estimate for name in ("klom_forget", "u_lira")]
    assert [float(x) for x in found] == [float(x) for x in values]
    assert (audit.settings["task"], audit.settings["score"], audit.left_out) == ("classes", "margin", {})


def test_the_worst_examples_come_first(audit):
    shifts = [abs(x["shift"]) for x in worst_examples(audit)]
    assert shifts == sorted(shifts, reverse=True)
    assert len(shifts) == 8


def test_audits_that_cannot_be_are_refused():
    run = partial(ju.audit.run, MODEL, RETRAIN, RETRAIN, MODEL.init(KEY))
    with pytest.raises(ValueError, match="run needs at least 39 models of each kind, got 10"):
        run(DATA, REQUEST, KEY, test=TEST, num_models=10)
    with pytest.raises(ValueError, match=r"held out.* needs at least 40"):
        run(DATA, REQUEST, KEY, test=TEST, num_models=40, num_held_out=10)
    with pytest.raises(ValueError, match="unknown metrics \\['accuracy'\\]; choose from retain_accuracy"):
        run(DATA, REQUEST, KEY, test=TEST, metrics=["accuracy"])
    with pytest.raises(TypeError, match=r"test must be Examples\(inputs, targets\), got NoneType"):
        run(DATA, REQUEST, KEY, test=None, num_models=40)
    with pytest.raises(TypeError, match="'test'"):
        run(DATA, REQUEST, KEY, num_models=40)
    with pytest.raises(ValueError, match="it must do both"):
        run(DATA, ju.empty_request(), KEY, test=TEST, num_models=40)
    with pytest.raises(ValueError, match=r"run: 3 non-members are members as well .*rows that no model was trained on"):
        run(DATA, REQUEST, KEY, test=jax.tree.map(lambda x: x[3:6], DATA.train), num_models=40)
    real = DATA._replace(train=DATA.train._replace(targets=DATA.train.targets * 1.0))
    with pytest.raises(ValueError, match=r"rows of test have the form .*int32\[20\], training rows .*float32\[60\]"):
        run(real, REQUEST, KEY, test=TEST, num_models=40)
    with pytest.raises(TypeError, match="cross_entropy takes class numbers"):
        run(real, REQUEST, KEY, test=TEST._replace(targets=TEST.targets * 1.0), num_models=40)


def test_unlearners_are_told_to_be_iterated():
    unlearner = ju.finetune(MODEL, optax.sgd(0.1))
    for methods in ((unlearner, RETRAIN), (RETRAIN, unlearner)):
        with pytest.raises(TypeError, match=r"write audit\.run\(jaxunlearn\.iterate\(unlearner, num_steps=100"):
            ju.audit.run(MODEL, *methods, MODEL.init(KEY), DATA, REQUEST, KEY, test=TEST)
    with pytest.raises(TypeError, match=r"write audit\.ensemble\(jaxunlearn\.iterate"):
        ju.audit.ensemble(MODEL, unlearner, MODEL.init(KEY), DATA, REQUEST, jax.random.split(KEY), {"test": TEST})


def broken(variables, data, request, key):
    """What the library's loops say of weights that are not finite."""
    return ju.Result(jax.tree.map(lambda w: w * jnp.nan, variables), combine(NONFINITE=jnp.array(True)))


@pytest.mark.parametrize(
    ("unlearn", "retrain", "data", "message"),
    [
        (fresh, broken, DATA, "39 of 39 original models hold NaN or inf"),
        (broken, fresh, DATA, "39 of 39 unlearned models hold NaN or inf"),
        (reading, fresh, prepare(MODEL.init(KEY), DATA, KEY), "39 of 39 unlearned models read values .* of other weights"),
    ],
    ids=["original", "unlearned", "stale"],
)
def test_broken_models_are_not_judged(unlearn, retrain, data, message):
    with pytest.raises(ValueError, match=message):
        ju.audit.run(MODEL, unlearn, retrain, MODEL.init(KEY), data, REQUEST, KEY, test=TEST, num_models=39)
