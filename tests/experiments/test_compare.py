"""The comparison at a size that shows only what it promises: settings, log, resumption, tables."""

import json

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from experiments import compare
from experiments.common import comparison, methods, outcome, plots, scenarios, search, settings, study
from experiments.common.log import append, read_log
from experiments.common.scale import Scale
from tests.problems import convolutional

METHODS = ("finetune", "output_perturbation", "unsir")
ONE_DEVICE = Scale(mesh=False)
SEARCH = {"points": 2, "grid": {}, "draws": [1], "seeds": 2, "requests": 2, "unlearning_steps": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with settings and a finished run, and its configuration."""
    folder = tmp_path_factory.mktemp("compare")
    values = {"finetune": {"learning_rate": 0.01}, "output_perturbation": {"sigma": 0.01}}
    for method, numbers in values.items():
        entry = {"values": numbers, "worst_gap_in_spreads": 1.0, "search": SEARCH}
        file = {"method": method, "datasets": {"digits": {"backdoor": entry, "random": entry}}}
        (folder / f"{method}.json").write_text(json.dumps(file))
    config = compare.Config(
        scenario=("backdoor",), methods=METHODS, seeds=2, requests=2, rows=120, training_steps=3, unlearning_steps=2,
        configs=folder, out=folder / "out", scale=ONE_DEVICE,
    )  # fmt: skip
    return config, compare.main(config)


def lines_of(config):
    return (config.out / "results.jsonl").read_text().splitlines()


def fails(*_, **__):
    raise AssertionError("this was to be read from the log")


def test_every_method_is_in_the_table_or_left_out_with_a_reason(finished, capsys):
    config, summary = finished
    found = summary["scenarios"]["backdoor"]
    assert list(found["methods"]) == ["do nothing", "finetune", "output_perturbation", "retrained again", "retrained"]
    assert "whole classes" in found["left_out"]["unsir"]
    assert set(found["methods"]["finetune"]["gaps"]) == {"retain", "forget", "test", "auc", "unseen"}
    assert found["measure"] == "attack success"
    page = (config.out / "report.html").read_text()
    assert "unsir is left out: it overwrites whole classes" in page
    assert "2 to 2 points each, 4 in all, tried on draws 1 of digits, 2 seeds x up to 2 requests each" in page


def test_a_finished_run_computes_nothing_again(finished, monkeypatch):
    config, summary = finished
    before = lines_of(config)
    monkeypatch.setattr(compare, "prepare", fails)
    again = compare.main(config)
    assert lines_of(config) == before
    assert again["scenarios"] == summary["scenarios"]


def test_an_interrupted_run_goes_on_behind_its_last_whole_line(finished, monkeypatch, tmp_path):
    config, summary = finished
    moved = compare.replace(config, out=tmp_path)
    lines = lines_of(config)
    last = next(line for line in lines if '"output_perturbation"' in line)
    before = [line for line in lines if line != last]
    (tmp_path / "results.jsonl").write_text("\n".join(before) + "\n" + last[:40])  # cut off by a crash
    computed, answer = [], compare.answer

    def counted(bench, ready, method, options):
        computed.append(method)
        return answer(bench, ready, method, options)

    monkeypatch.setattr(compare, "answer", counted)
    again = compare.main(moved)
    assert computed == ["output_perturbation"]
    *kept, new = lines_of(moved)
    assert kept == before
    assert json.loads(new)["values"] == json.loads(last)["values"]
    methods = [run["scenarios"]["backdoor"]["methods"] for run in (summary, again)]
    assert methods[0]["finetune"] == methods[1]["finetune"]
    assert methods[0]["output_perturbation"]["gaps"] == methods[1]["output_perturbation"]["gaps"]


def test_another_configuration_is_refused(finished, tmp_path):
    config, _ = finished
    before = lines_of(config)
    with pytest.raises(SystemExit, match=r"audit_seed was 0, is 1.*use another --out"):
        compare.main(compare.replace(config, audit_seed=1))
    changed = tmp_path / "configs"
    changed.mkdir()
    for method in ("finetune", "output_perturbation"):
        (changed / f"{method}.json").write_text((config.configs / f"{method}.json").read_text().replace("0.01", "0.02"))
    with pytest.raises(SystemExit, match=r"settings of finetune for backdoor were .*0\.01.*are .*0\.02"):
        compare.main(compare.replace(config, configs=changed))
    assert lines_of(config) == before


def test_a_log_keeps_what_was_written(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    assert read_log(path, {"seeds": 2}, {}) == {}
    line = {"scenario": "a", "method": "b", "settings": {"x": 1.0}}
    append(path, line)
    assert read_log(path, {"seeds": 2}, {("a", "b"): {"x": 1.0}}) == {("a", "b"): line}
    path.write_text('{"other": 1}\n')
    with pytest.raises(ValueError, match="is not a log"):
        read_log(path, {"seeds": 2}, {})


def test_seeds_of_training_requests_and_audit_move_their_own_part():
    setting = study.overfitted(num_rows=100, num_steps=2)
    ran = []

    def run(calls, tell=None):
        ran.append([jax.random.key_data(call[3]) for call in calls])
        nothing = np.zeros(np.shape(calls[0][3]), np.int32)
        return comparison.Timed(ju.Result(np.stack([nothing] * len(calls)), np.stack([nothing] * len(calls))), 0.0, 0.0)

    bench = comparison.Bench(setting, run, run, fails, lambda name, streams: run, fails, block=None)
    scenario = scenarios.random_rows(setting, num_requests=2, sizes=(3, 5), request_seed=0)

    def keys(method, **changes):
        seeds = comparison.Seeds(0, 0, 0, range(2))._replace(**changes)
        comparison.answer(bench, comparison.Ready(scenario, [None, None], seeds), method, {})
        return np.array(ran.pop()).reshape(2, -1)  # a row per seed

    same = {
        "finetune": {"audit": 1, "draw": 1},
        comparison.RETRAINED: {"audit": 1, "request": 1},
        comparison.AGAIN: {"request": 1},
    }
    moved = {"finetune": {"request": 1}, comparison.AGAIN: {"audit": 1}}
    for method, changes in same.items():
        np.testing.assert_array_equal(keys(method), keys(method, **changes))
        shifted = keys(method, training=range(1, 3))  # seed 1 has its own keys, whatever its place
        np.testing.assert_array_equal(keys(method)[1], shifted[0])
        assert not np.array_equal(keys(method)[1], shifted[1])
    for method, changes in moved.items():
        assert not np.array_equal(keys(method), keys(method, **changes))
    assert not np.array_equal(keys(comparison.RETRAINED), keys(comparison.AGAIN))


def test_one_shape_for_all_requests_changes_no_row():
    setting = study.overfitted(num_rows=120, num_steps=1)
    shapes = set()
    for scenario in (
        scenarios.random_rows(setting, num_requests=3, sizes=(3, 9), request_seed=0),
        scenarios.classes(setting, num_requests=3, request_seed=0),
    ):
        padded = comparison.of_one_shape(scenario).requests
        shapes.add(str(jax.tree.map(jax.typeof, padded)))
        for one, other in zip(jax.tree.leaves(scenario.requests._replace(target=())), jax.tree.leaves(padded), strict=False):
            np.testing.assert_array_equal(one, other[:, : one.shape[1]])
            assert not other[:, one.shape[1] :].any()
    assert len(shapes) == 1
    np.testing.assert_array_equal(padded.target, scenario.requests.target)  # that of the classes


def test_numbers_are_traced_so_that_one_program_serves_all_settings(monkeypatch):
    setting = study.overfitted(num_rows=100, num_steps=1)
    traces, build = [], methods.build

    def counted(*arguments, **options):
        traces.append(options)
        return build(*arguments, **options)

    monkeypatch.setattr(methods, "build", counted)
    bench = comparison.programs(setting, network="mlp", num_steps=1, scale=ONE_DEVICE, mesh=None)
    run = bench.method("output_perturbation", False)
    variables = setting.model.init(jax.random.key(0))
    request = ju.from_indices(setting.data, [[1, 2], [3]])
    keys = jax.random.split(jax.random.key(0), 2)
    norms = []
    for sigma in (0.1, 0.2):
        done = run([(variables, setting.data, (request, {"sigma": np.full(2, sigma, np.float32)}), keys)])
        norms.append(np.asarray(done.result.stats["noise_norm"]))
    assert len(traces) == 1
    assert norms[0].shape == (1, 2)
    np.testing.assert_allclose(norms[1], 2 * norms[0], rtol=1e-5)
    assert done.compile_seconds == 0


def test_learning_rates_go_where_there_are_steps():
    model = study.overfitted(num_rows=100, num_steps=1).model
    with pytest.raises(ValueError, match="scrub needs a learning_rate"):
        methods.build("scrub", model, num_steps=1, batch_size=4)
    with pytest.raises(ValueError, match="output_perturbation has no use for a learning_rate"):
        methods.build("output_perturbation", model, num_steps=1, batch_size=4, learning_rate=0.1, sigma=1.0)


def test_the_search_takes_the_point_with_the_smallest_largest_gap():
    flat = np.zeros((2, 2), np.float32)
    fields = {**dict.fromkeys(outcome.Outcome._fields, flat), "auc": np.array([[0.5, 0.5], [0.52, 0.48]], np.float32)}
    reference = outcome.Outcome(**fields)
    near = reference._replace(auc=reference.auc + 0.01)
    far = reference._replace(unseen=flat + 0.5)
    broken = reference._replace(test=np.full((2, 2), np.nan, np.float32))
    width = outcome.spreads(reference, ("auc",))["auc"]
    of_rows, of_both = comparison.measures_of(""), comparison.measures_of("x")
    assert search.worst_over_draws([near, near], [reference] * 2, of_both) == pytest.approx(0.01 / width)
    assert search.worst_over_draws([near, reference], [reference] * 2, of_both) == pytest.approx(0.005 / width)
    assert search.worst_over_draws([far], [reference], of_both) == pytest.approx(0.5 / outcome.LEAST_SPREAD)
    assert search.worst_over_draws([far], [reference], of_rows) == 0  # unseen rows are the test rows
    assert search.worst_over_draws([broken], [reference], of_both) == np.inf


def test_every_method_is_compared_from_its_card_alone():
    """What a search chose counts while the card searches the same names; else a method starts at its card's first point."""
    config = compare.Config()
    searched = set()
    for method in methods.on_networks():
        points = methods.points(method)
        assert points[0] == methods.defaults(method)
        for table in [table for names in scenarios.NAMES.values() for table in names]:
            values, found = settings.load(config.configs, method, table, "digits")
            if found is None:
                assert values == points[0]
                continue
            searched.add(method)
            assert values.keys() == points[0].keys()
            assert config.draw not in found["draws"]
            assert all(value in found["grid"][name] for name, value in values.items())
            assert found["points"] == np.prod([len(x) for x in found["grid"].values()])
    assert searched >= {"finetune", "gradient_difference", "npo", "scrub", "ssd", "representation_unlearning"}
    with pytest.raises(SystemExit, match="must not be chosen on what is reported"):
        compare.main(compare.Config(tune=True, draw=1))


def test_methods_that_cannot_apply_say_why(monkeypatch):
    regression = study.overfitted("diabetes", num_rows=50, label_noise=0, num_steps=1)

    def why(method, setting=regression, on_classes=False):
        return methods.left_out(method, setting, on_classes=on_classes, seeds=2)

    for method in ("random_label", "bad_teacher", "scrub", "unsir"):
        assert "targets are real" in why(method)
    assert why("npo") is None
    assert why("amnesiac") is None
    assert "attributes" in why("attribute_unlearning")
    assert "GiB" in why("amnesiac", regression._replace(num_steps=10**6))
    assert "works on images" in why("natmu", study.overfitted("breast_cancer", num_rows=50, num_steps=1))
    digits = study.overfitted(num_rows=50, num_steps=1)
    assert "overwrites whole classes" in why("unsir", digits)
    assert why("unsir", digits, on_classes=True) is None
    assert "network has none" in why("convolution_transpose", digits)
    assert why("convolution_transpose", digits._replace(model=convolutional())) is None

    def novel(model, *, horizon):
        """Something new."""

    card = ju.METHODS["finetune"]._replace(factory=novel, search={})
    monkeypatch.setattr(ju, "METHODS", {**ju.METHODS, "novel": card})
    assert "needs horizon" in why("novel", digits)


def test_the_front_is_what_none_beats():
    points = {"slow and good": (10.0, 1.0), "fast and bad": (1.0, 10.0), "beaten": (10.0, 12.0), "between": (3.0, 3.0)}
    (panel,) = plots.pareto(points, levels={"do nothing": 20.0}, reference_time=100.0).axes
    labels = [line.get_label() for line in panel.lines]
    assert labels[:4] == ["1  slow and good", "3  between", "10  fast and bad", "12  beaten"]
    (front,) = [line for line in panel.lines if len(line.get_xdata()) == 3]
    assert list(front.get_xdata()) == [1, 3, 10]
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    with pytest.raises(ValueError, match="positive"):
        plots.pareto({"exact": (1.0, 0.0)})
