"""Floors, verdicts and false positives, where the truth is known; ensembles; a whole audit of tiny models."""

import importlib
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.problems import blobs, lane, network

KEY = jax.random.key(0)
DATA, MODEL = blobs(), network()
TEST = DATA.extra["validation"]
AUDITED = DATA._replace(extra={**DATA.extra, "test": TEST})
RETRAIN = ju.retrain(MODEL, optax.sgd(0.1), num_steps=3, batch_size=8)
REQUEST = lane(ju.from_indices(DATA, [range(8)]), 0)
report = importlib.import_module("jaxunlearn.audit.report")


def gap(candidate, reference):
    return jnp.mean(candidate) - jnp.mean(reference)


def distance(candidate, reference):
    return jnp.abs(gap(candidate, reference))


judge_gap = jax.jit(partial(ju.audit.judge, gap))
judge_distance = jax.jit(partial(ju.audit.judge, distance, shift=gap))


def models(shift, count=40, seed=0):
    return np.float32(np.random.default_rng(seed).normal(size=count) + shift)


# Verdicts


@pytest.mark.parametrize("judge", [judge_gap, judge_distance], ids=["gap", "distance"])
@pytest.mark.parametrize(
    ("shift", "verdict", "sign"), [(0.0, "INSIDE", None), (2.0, "UNDER", 1), (-2.0, "OVER", -1)], ids=["none", "under", "over"]
)
def test_verdicts_have_the_sign_of_the_shift(judge, shift, verdict, sign):
    found = judge(models(shift), models(0, seed=1), models(3, seed=2), KEY, held_out=models(0, seed=3))
    assert ju.audit.Verdict(int(found.verdict)).name == verdict
    if sign is not None:
        assert int(found.sign) == sign


def test_the_original_on_the_other_side_turns_the_verdict_round():
    found = judge_gap(models(2), models(0, seed=1), models(-3, seed=2), KEY)
    assert int(found.verdict) == ju.audit.Verdict.OVER


def test_value_floor_and_ceiling_are_what_they_say():
    candidate, reference, original = models(1), models(0, seed=1), models(3, seed=2)
    found = judge_gap(candidate, reference, original, KEY, held_out=models(0, seed=3))
    assert float(found.value.estimate) == pytest.approx(candidate.mean() - reference.mean(), abs=1e-6)
    assert float(found.ceiling) == pytest.approx(original.mean() - reference.mean(), abs=1e-6)
    # Differences of two means of 40 draws of unit variance.
    assert float(found.floor.high - found.floor.low) == pytest.approx(2 * 1.96 * np.sqrt(2 / 40), rel=0.25)
    assert float(found.value.high - found.value.low) == pytest.approx(2 * 1.96 * np.sqrt(2 / 40), rel=0.25)
    assert found.value.low < found.value.estimate < found.value.high


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_test_has_its_level_at_any_number_of_models(two_sided):
    draws = jnp.asarray(np.random.default_rng(0).exponential(size=(400, 12)), jnp.float32)

    def told(sample, key):
        options = {"num_permutations": 39, "two_sided": two_sided}
        return ju.audit.permutation_p_value(gap, sample[:3], sample[3:], key, **options) <= 0.05

    rate = float(jnp.mean(jax.jit(jax.vmap(told))(draws, jax.random.split(KEY, 400))))
    assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_intervals_over_rows_and_models_have_the_spread_of_fresh_rows_and_models():
    rng = np.random.default_rng(0)
    models, rows = 40, 30

    def draw():
        ease = rng.normal(0, 1.0, rows)  # what a row has in common in all models of both kinds
        moved = rng.normal(0.5, 0.5, rows)  # how far unlearning moves it
        return [np.float32(a + ease + rng.normal(size=(models, 1)) + rng.normal(size=(models, rows))) for a in (moved, 0)]

    gap = lambda a, b: jnp.mean(a["x"]) - jnp.mean(b["x"])
    crossed = jax.jit(lambda a, b: ju.audit.crossed_bootstrap(gap, {"x": a}, {"x": b}, KEY))
    found = [crossed(*draw()) for _ in range(60)]
    width = np.mean([x.high - x.low for x in found]) / (2 * 1.96)
    truth = np.sqrt(0.25 / rows + 2 / models + 2 / (models * rows))
    assert width == pytest.approx(truth, rel=0.15)
    assert np.mean([x.low < 0.5 < x.high for x in found]) > 0.85
    with pytest.raises(ValueError, match="same groups and examples"):
        ju.audit.crossed_bootstrap(gap, {"x": np.ones((4, 3))}, {"x": np.ones((4, 2))}, KEY)
    with pytest.raises(ValueError, match="leading axes"):
        ju.audit.crossed_bootstrap(gap, {"x": np.ones(4)}, {"x": np.ones(4)}, KEY)


def test_one_model_is_ranked_among_all():
    p = partial(ju.audit.permutation_p_value, gap, reference=jnp.arange(99.0), key=KEY)
    assert float(p(jnp.array([200.0]))) == pytest.approx(1 / 100)
    assert float(p(jnp.array([96.5]))) == pytest.approx(3 / 100)
    assert float(p(jnp.array([96.5]), two_sided=True)) == pytest.approx(6 / 100)


def test_false_positives_of_held_out_models_are_rare_and_those_of_others_are_not():
    rate = jax.jit(partial(ju.audit.false_positive_rate, gap, two_sided=True))
    same = rate(models(0, 50), models(0, 100, seed=1), KEY)
    assert float(same.low) <= 0.05
    assert float(same.estimate) <= 0.15
    assert float(rate(models(5, 50), models(0, 100, seed=1), KEY).estimate) > 0.9
    sets = jax.jit(partial(ju.audit.false_positive_rate, distance, size=10))(models(0, 50), models(0, 100, seed=1), KEY)
    assert float(sets.low) <= 0.05


def test_a_broken_statistic_has_no_verdict():
    found = judge_gap(models(0) * np.nan, models(0), models(3), KEY)
    assert int(found.verdict) == -1
    assert np.isnan(found.p_value)


def test_levels_that_cannot_be_reached_say_what_is_needed():
    with pytest.raises(ValueError, match="needs at least 39 permutations, got 19"):
        ju.audit.judge(gap, models(0), models(0), models(0), KEY, num_permutations=19)
    with pytest.raises(ValueError, match="needs at least 39 retrained models, got 20"):
        ju.audit.judge(gap, models(0, 1), models(0, 20), models(0), KEY)
    with pytest.raises(ValueError, match=r"held out.* needs at least 40 models"):
        ju.audit.judge(gap, models(0), models(0), models(0), KEY, held_out=models(0, 10))
    with pytest.raises(ValueError, match="candidates of 60 models need as many held-out ones, got 50"):
        ju.audit.false_positive_rate(gap, models(0, 50), models(0), KEY, size=60)
    with pytest.raises(ValueError, match="floor_of needs at least 4"):
        ju.audit.floor_of(gap, models(0, 3), KEY)
    with pytest.raises(ValueError, match="alpha is a level"):
        ju.audit.judge(gap, models(0), models(0), models(0), KEY, alpha=1.5)


# Ensembles


KEYS = jax.random.split(KEY, 4)
make = partial(ju.audit.ensemble, MODEL, RETRAIN, MODEL.init(KEY), DATA, REQUEST, KEYS, {"test": TEST})


@pytest.fixture(scope="module")
def plain():
    return make()


def test_an_ensemble_is_one_model_after_another(plain):
    one = RETRAIN(MODEL.init(KEY), DATA, REQUEST, KEYS[2])
    np.testing.assert_allclose(plain.logits["test"][2], ju.audit.predict(MODEL, one.variables, TEST), rtol=1e-5, atol=1e-6)


def test_blocks_and_meshes_change_nothing(plain):
    for other in (make(block=3), make(mesh=ju.request_mesh())):
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_directory_resumes_behind_the_last_block(plain, tmp_path):
    first = partial(ju.audit.ensemble, MODEL, RETRAIN, MODEL.init(KEY), DATA, REQUEST)
    first(KEYS[:2], {"test": TEST}, directory=tmp_path)  # as if it had been stopped here
    saved = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    counts = []
    done = make(block=2, directory=tmp_path, progress=counts.append)
    assert counts == [2, 4]
    assert len(list(tmp_path.iterdir())) == 2
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in saved.items())
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(done), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_is_saved_is_found_only_by_the_same_computation(tmp_path):
    def count(function=RETRAIN, data=DATA, keys=KEYS[:1], rows=TEST):
        ju.audit.ensemble(MODEL, function, MODEL.init(KEY), data, REQUEST, keys, {"test": rows}, directory=tmp_path)
        return len(list(tmp_path.iterdir()))

    assert count() == 1
    assert count() == 1
    assert count(function=ju.retrain(MODEL, optax.sgd(0.2), num_steps=3, batch_size=8)) == 2
    assert count(data=DATA._replace(present=DATA.present.at[11].set(0))) == 3
    assert count(keys=KEYS[1:2]) == 4
    assert count(rows=TEST._replace(inputs=TEST.inputs + 1)) == 5


def test_hashes_see_large_constants_of_a_program():
    content_hash = importlib.import_module("jaxunlearn.audit.ensemble").content_hash

    def text(value):
        table = np.full(10_000, 0.5, np.float32)
        table[7_777] = value
        return jax.jit(lambda x: x + table).lower(jnp.zeros(10_000)).as_text()

    assert content_hash((), text(1.0)) != content_hash((), text(2.0))
    assert content_hash({"a": np.zeros(2)}) != content_hash({"b": np.zeros(2)})
    assert content_hash(np.zeros(2, np.float32)) != content_hash(np.zeros(2, np.int32))


def test_random_halves_are_balanced_and_train_on_their_rows():
    members = ju.audit.random_halves(4, 60, KEY)
    assert members.sum(axis=0).tolist() == [2] * 60
    assert members.sum(axis=1).tolist() == [30] * 4
    broken = DATA._replace(train=DATA.train._replace(inputs=jnp.where(members[0][:, None], DATA.train.inputs, jnp.nan)))
    halves, in_axes = ju.audit.subsets(broken, members[:1])
    made = ju.audit.ensemble(
        MODEL, RETRAIN, MODEL.init(KEY), halves, ju.empty_request(), KEYS[:1], {"test": TEST}, in_axes=in_axes
    )
    assert np.all(np.isfinite(made.logits["test"]))


def test_bad_designs_are_refused():
    with pytest.raises(ValueError, match="must be even"):
        ju.audit.random_halves(3, 10, KEY)
    with pytest.raises(ValueError, match=r"expected members \[models, 60\]"):
        ju.audit.subsets(DATA, jnp.ones((2, 5), bool))
    with pytest.raises(ValueError, match="names no set of examples"):
        ju.audit.ensemble(MODEL, RETRAIN, MODEL.init(KEY), DATA, REQUEST, KEYS, {})


# A whole audit

AUDITS = ["forget_accuracy", "attack_tpr", "divergence", "klom_forget", "u_lira"]


@pytest.fixture(scope="module")
def audit():
    controls = jax.tree.map(lambda x: x[:4], DATA.train)
    options = {"num_models": 39, "num_permutations": 39, "controls": controls, "metrics": AUDITS}
    return ju.audit.run(MODEL, RETRAIN, RETRAIN, MODEL.init(KEY), AUDITED, REQUEST, KEY, **options)


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
    cells = report.table(audit)
    assert len(cells) == len(audit.judgements) + 3
    markdown = ju.audit.to_markdown(audit)
    assert markdown.count("\n| ") == len(cells) + 2
    found = json.loads(json.dumps(ju.audit.to_json(audit), allow_nan=False))
    assert found["judgements"]["u_lira"]["verdict"] in ("inside", "under", "over")
    page = ju.audit.write_html(audit, tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 4
    assert all(f'href="#{name}"' in page and f'id="{name}"' in page for name in audit.judgements)
    ju.audit.print_report(audit)
    assert "influence of the forgotten examples" in capsys.readouterr().out.replace("\n", " ")


def test_the_worst_examples_come_first(audit):
    shifts = [abs(x["shift"]) for x in report.worst_examples(audit)]
    assert shifts == sorted(shifts, reverse=True)
    assert len(shifts) == 8


def test_audits_that_cannot_be_are_refused():
    run = partial(ju.audit.run, MODEL, RETRAIN, RETRAIN, MODEL.init(KEY))
    with pytest.raises(ValueError, match="run needs at least 39 models of each kind, got 10"):
        run(AUDITED, REQUEST, KEY, num_models=10)
    with pytest.raises(ValueError, match=r"held out.* needs at least 40"):
        run(AUDITED, REQUEST, KEY, num_models=40, num_held_out=10)
    with pytest.raises(ValueError, match="unknown metrics \\['accuracy'\\]; choose from retain_accuracy"):
        run(AUDITED, REQUEST, KEY, metrics=["accuracy"])
    with pytest.raises(ValueError, match="rows that no model sees"):
        run(DATA, REQUEST, KEY, num_models=40)
    with pytest.raises(ValueError, match="it must do both"):
        run(AUDITED, ju.empty_request(), KEY, num_models=40)
    seen = DATA._replace(extra={"test": jax.tree.map(lambda x: x[3:6], DATA.train)})
    with pytest.raises(ValueError, match=r"run: 3 non-members are members as well .*rows that no model was trained on"):
        run(seen, REQUEST, KEY, num_models=40)
    with pytest.raises(ValueError, match="integer classes"):
        run(AUDITED._replace(train=DATA.train._replace(targets=DATA.train.targets * 1.0)), REQUEST, KEY, num_models=40)
    broken = ju.retrain(MODEL, optax.sgd(jnp.inf), num_steps=2, batch_size=8)
    with pytest.raises(ValueError, match="39 of 39 original models hold NaN or inf"):
        ju.audit.run(MODEL, RETRAIN, broken, MODEL.init(KEY), AUDITED, REQUEST, KEY, num_models=39)
