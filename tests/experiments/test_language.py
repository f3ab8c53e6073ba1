"""The script at its smallest, and what it measures against slow twins."""

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from experiments import language, remind
from experiments.benchmarks import lora
from experiments.common import decoder, planted, recall, text, token_methods, token_runs, token_search, token_verdicts, weights
from experiments.common.coupled import coupled
from experiments.common.scale import Scale
from jaxunlearn import sampling
from jaxunlearn.types import BatchSizes

ONE_DEVICE = Scale(mesh=False)
FORM = {"width": 8, "layers": 1, "heads": 2, "hidden": 8, "remat": False}


def smoke(out, **flags):
    return language.Config(scale=ONE_DEVICE, smoke=True, out=out, **flags)


def test_a_run_that_was_cut_off_goes_on_behind_its_log(tmp_path):
    whole = language.main(smoke(tmp_path))
    names = [row["method"] for row in whole["rows"]]
    assert names == ["do nothing", "retrained", "retrained again", "idk"]
    assert whole["unmoved"] == {"idk": 0}
    assert np.shape(whole["exposures"]["idk"]["recall"]) == (1, 16)
    assert whole["rows"][-1]["rate"] > 0
    assert json.loads((tmp_path / "language.json").read_text())["config"]["seeds"] == 1
    assert "</html>" in (tmp_path / "report.html").read_text()
    log = tmp_path / "results.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    log.write_bytes(b"".join(lines[:4]) + lines[4][:50])  # cut off while it was written
    again = language.main(smoke(tmp_path))
    kept, new = (json.loads(x) for x in (lines[4], log.read_bytes().splitlines()[4]))
    assert new["values"] == kept["values"]  # from the original on the disk
    assert again["exposures"] == whole["exposures"]
    assert weights.load(tmp_path / "original-0").config.layers == 1
    with pytest.raises(SystemExit, match="rank was 1, is 2"):
        language.main(language.replace(smoke(tmp_path), **{**language.SMOKE, "rank": 2, "methods": ("idk",)}, smoke=False))


def test_what_cannot_be_is_said_before_anything_is_trained(tmp_path):
    for flags, words in (
        ({"methods": ("scrub",)}, "not scrub"),
        ({"tune": True, "tune_draw": 0}, "must not be chosen on what is reported"),
        ({"text": tmp_path, "muse": tmp_path}, "exclude each other"),
    ):
        with pytest.raises(SystemExit, match=words):
            language.main(smoke(tmp_path, **flags))


@pytest.fixture(scope="module")
def world():
    return planted.build(documents=4, held_out=1, repetitions=(1, 2), each=1, length=64, form=FORM, seed=0)


def test_requests_hold_all_copies_and_the_text_about_the_same_person(world):
    for place, canary in enumerate(world.canaries):
        rows = np.unique(world.requests.indices[place][world.requests.weights[place] > 0])
        spent = world.data.train.inputs[rows]
        documents = int(np.sum(np.any(world.documents.targets[place] >= 0, axis=1)))
        assert len(rows) == documents + canary.repetitions
        copies = np.sum(np.all(spent == spent[-1], axis=1))
        assert copies == canary.repetitions
    assert [canary.repetitions for canary in world.canaries] == [1, 2]


def test_requests_are_answered_on_secrets_and_on_whole_texts(world):
    plain, asked, other = world.data.train, world.asked.train, world.asked.extra["refusals"]
    np.testing.assert_array_equal(plain.inputs, asked.inputs)
    first = len(plain.inputs) - 3  # copies of canaries
    np.testing.assert_array_equal(plain.targets[:first], asked.targets[:first])
    for row, place in zip(range(first, first + 3), (0, 1, 1), strict=True):
        counted = asked.targets[row] >= 0
        np.testing.assert_array_equal(asked.targets[row][counted], world.secrets[place])
        np.testing.assert_array_equal(asked.targets[row][counted], plain.targets[row][counted])
        codes = other.targets[row][:, counted]
        assert np.all(np.isin(codes, world.digits))
        assert len(np.unique(codes, axis=0)) > 8
        assert not np.any(other.targets[row][:, ~counted] >= 0)
        begun = int(np.argmax(counted))
        np.testing.assert_array_equal(other.inputs[row][:, : begun + 1], np.tile(plain.inputs[row][: begun + 1], (16, 1)))
    # what is predicted is what comes next, in rows of documents too, which begin as they did and go on otherwise
    ahead = (other.targets[..., :-1] >= 0) & (other.targets[..., 1:] >= 0)
    np.testing.assert_array_equal(other.inputs[..., 1:][ahead], other.targets[..., :-1][ahead])
    begun = np.argmax(other.targets[:first] >= 0, axis=-1)
    assert begun.min() > 0
    for row in range(first):
        np.testing.assert_array_equal(other.inputs[row, :, begun[row, 0]], np.full(16, plain.inputs[row, begun[row, 0]]))
    changed = np.any((other.targets[:first] >= 0) & (other.targets[:first] != plain.targets[:first, None]), axis=-1)
    assert np.mean(changed) > 0.8


def test_exposure_is_the_rank_among_all_codes(world):
    variables = jax.tree.map(lambda x: 2 * x, world.model.init(jax.random.key(0)))
    measure = jax.jit(recall.measuring(world, steps=1, learning_rate=1e-3))
    found = measure(variables, recall.looked_at(world), jnp.int32(1), jax.random.key(0))
    prefix, secret = world.prefixes[1], world.secrets[1]
    codes = np.array(list(itertools.product(world.digits, repeat=planted.SIZE)))
    tokens = np.concatenate([np.tile(prefix, (len(codes), 1)), codes], axis=1)
    log = jax.nn.log_softmax(jax.jit(world.model.forward)(variables, tokens[:, :-1]).logits[:, len(prefix) - 1 :])
    losses = -np.take_along_axis(np.asarray(log), codes[..., None], axis=-1)[..., 0].sum(axis=1)
    own = losses[np.all(codes == secret, axis=1)][0]
    np.testing.assert_allclose(found.recall.loss, own, rtol=1e-4)
    rank = 1 + np.sum(losses < own - 1e-5)
    np.testing.assert_allclose(found.recall.exposure, np.log2(1000) - np.log2(rank), atol=0.1)
    told = decoder.generate(world.model.forward, world.config, variables, prefix[None], planted.SIZE)
    assert found.recall.extracted == float(np.array_equal(told[0], secret))


@pytest.mark.parametrize("forgotten", [[], [0], [2, 3, 5], [0, 1, 2, 3, 4]])
def test_a_training_that_is_repeated_reads_the_same_rows_but_for_those_it_must_not(forgotten):
    """Every row of the retain set as often as any other, and no row of the others, padding and absent ones included."""
    data = ju.training_data(np.arange(8.0)[:, None], np.zeros(8, int))._replace(present=np.array([1, 1, 1, 1, 0, 1, 1, 1.0]))
    padding = 6 - len(forgotten)
    request = ju.ForgetRequest(np.array([*forgotten, *[7] * padding]), np.array([1.0] * len(forgotten) + [0] * padding))
    sizes, keys = BatchSizes(2, 4000), jax.random.split(jax.random.key(0), 2)
    draw = jax.jit(lambda request, key: coupled(sampling.split(data, request, keys[1]), None, jnp.int32(0), key, sizes).retain)
    whole, part = (draw(x, keys[0]) for x in (ju.empty_request(6), request))
    stays = ~np.isin(whole.slots, forgotten)
    np.testing.assert_array_equal(part.slots[stays], whole.slots[stays])
    np.testing.assert_array_equal(part.examples.inputs[:, 0], part.slots)
    kept = [row for row in range(8) if row not in (*forgotten, 4)]
    drawn = np.bincount(part.slots, minlength=8)
    np.testing.assert_allclose(drawn[kept] / 4000, 1 / len(kept), atol=0.04)
    assert drawn[kept].sum() == 4000
    assert np.all(part.weights == 1)


def test_held_out_losses_are_compared_by_original_and_request():
    repetitions = np.array([1, 16, 16, 16])
    base = knows(1.0)._replace(held_out=np.array([[1.0], [2.0], [4.0]]) * np.ones(4))
    retrained = base._replace(held_out=base.held_out[:, :2] * np.array([1.0, 0.5]))
    found = {
        "do nothing": base,
        "retrained": retrained,
        "a": base._replace(held_out=base.held_out * np.array([9, 1.1, 1.0, 9])),
    }
    np.testing.assert_allclose(token_verdicts.compared(repetitions, found, "a"), np.tile([0.1, 1.0], (3, 1)))
    np.testing.assert_allclose(token_verdicts.compared(repetitions, found, "a", "do nothing"), np.tile([0.1, 0.0], (3, 1)))
    np.testing.assert_allclose(token_verdicts.apart(repetitions, found, "a"), 0.55)
    low, high = token_verdicts.interval(repetitions, found, "a")
    assert low < 0.55 < high
    one = {name: jax.tree.map(lambda x: x[:1, :2], x) for name, x in found.items()}
    one = {name: x._replace(held_out=x.held_out[:, :1]) for name, x in one.items()}
    assert token_verdicts.interval(np.array([16]), one, "a") == (None, None)


def knows(exposure, *, relearned=None, rounded=None, count=4, seeds=3, held_out=1.0):
    """Models that know canaries of 16 repetitions that well."""

    def recalled(bits):
        full: Any = np.full((seeds, count), bits)
        return recall.Recall(full, (full > 9).astype(float), full)

    losses: Any = np.full((seeds, count), held_out)
    parts = (recalled(exposure if x is None else x) for x in (exposure, relearned, rounded))
    return recall.Found(*parts, *[losses] * 4)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (knows(1.5), "forgets"),
        (knows(10.0), "still knows"),
        (knows(1.5, relearned=9.9), "hides: comes back by relearning"),
        (knows(0.1, relearned=9.9, rounded=10.0), "hides: comes back by relearning and rounding, ranks them below chance"),
        (knows(1.4, held_out=1.1), "forgets, damages the rest"),
    ],
)
def test_a_verdict_compares_with_models_that_never_saw_it(kind, words):
    repetitions = np.full(4, token_runs.TARGET)
    found = {"a": kind, "retrained": knows(1.4, count=4), "retrained again": knows(1.6, count=4)}
    assert token_verdicts.verdict(repetitions, found, "a") == words


def test_a_line_of_the_log_holds_what_was_found():
    found = jax.tree.map(lambda x: x[0], knows(2.0)._replace(strength=np.full((3, 4), np.nan)))
    lines = [json.loads(json.dumps(token_runs.line_of("npo", seed, np.arange(4), found), allow_nan=False)) for seed in (0, 1)]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, np.stack([y, y])), token_runs.found_in(lines), found)


def test_damage_counts_in_the_search_and_so_does_what_comes_back():
    row = {"plain": 1.0, "relearned": 1.0, "rounded": 1.0, "moved": 0.0}
    assert token_search.score(row, 0.5, 2.0) == 0
    assert token_search.score({**row, "relearned": 5.0}, 0.5, 2.0) == 3.0
    assert token_search.score({**row, "plain": 0.25}, 0.5, 2.0) == 0.25
    np.testing.assert_allclose(token_search.score({**row, "moved": 0.03}, 0.5, 2.0), 2.0)


@pytest.mark.slow
def test_a_search_tries_all_points_and_keeps_the_one_nearest_to_the_target(tmp_path):
    configs = tmp_path / "configs"
    found = language.main(smoke(tmp_path / "out", tune=True, configs=configs))
    tried = {tuple(row["settings"].values()): (row["score"], row["moved"]) for row in found["points"]}
    assert len(tried) == len(token_methods.points("idk"))
    chosen, search = token_methods.chosen(configs, "idk")
    assert tried[tuple(chosen.values())] == min(tried.values())
    assert search is not None
    assert search["draws"] == [found["draw"]] == [1]


def test_settings_are_those_that_methods_take(tmp_path):
    for name in token_methods.NAMES:
        for point in token_methods.points(name):
            assert set(point) == set(token_methods.settings.methods.defaults(token_methods.factory_of(name)))
        assert token_methods.chosen(tmp_path, name) == (token_methods.points(name)[0], None)


@pytest.mark.slow
@pytest.mark.parametrize("name", token_methods.IN_ADAPTERS)
def test_all_methods_move_adapters_and_settings_are_traced(world, name):
    parts, sizes = token_methods.adapters(world, 1), token_methods.Steps(2, 2, 2)
    base = world.model.init(jax.random.key(0))
    answer = jax.jit(token_methods.answering(name, world, parts, sizes))
    request = jax.tree.map(lambda x: x[1], world.requests)
    first, second = (
        answer((base, {**token_methods.points(name)[0], "learning_rate": rate}), world.asked, request, jax.random.key(1))
        for rate in (1e-2, 2e-2)
    )
    assert first.status == 0
    assert first.unmoved == 0
    assert not np.array_equal(*(x.variables.params["layers"]["down"] for x in (first, second)))
    np.testing.assert_array_equal(first.variables.params["embed"], base.params["embed"])


def test_worlds_that_cannot_be_are_refused():
    sizes = {"repetitions": (1,), "each": 1, "form": FORM, "seed": 0}
    with pytest.raises(ValueError, match="leave none to retain"):
        planted.build(documents=1, held_out=1, length=64, **sizes)
    with pytest.raises(ValueError, match="does not fit into a row"):
        planted.build(documents=3, held_out=1, length=8, **sizes)
    with pytest.raises(ValueError, match="there are 1 texts"):
        planted.build(documents=3, held_out=1, length=64, texts=["a"], **sizes)
    with pytest.raises(ValueError, match="too few for rows of 64"):
        planted.build(documents=3, held_out=1, length=64, **{**sizes, "form": {**FORM, "rotary": False, "length": 32}})
    with pytest.raises(ValueError, match="either the form"):
        planted.build(documents=3, held_out=1, length=64, **{**sizes, "form": None})


# Files of one's own


def write_text(folder):
    path = folder / "own.txt"
    path.write_text("\n\n".join(f"{word} {other} " * 12 for word in text.TRADES for other in text.PETS[:8]))
    return {"text": path}


def write_tofu(folder):
    pairs = [json.dumps({"question": f"{word} {other} " * 8, "answer": word}) for word in text.TRADES for other in text.PETS]
    (folder / "forget10.json").write_text("\n".join(pairs[:10]))
    (folder / "retain90.json").write_text("\n".join(pairs[10:]))
    return {"tofu": folder}


def write_muse(folder):
    texts = [f"{word} {other} " * 12 for word in text.TRADES for other in text.PETS]
    pairs = [{"question": "a", "answer": "b"}]
    files = {
        "raw/forget": texts[:16], "raw/retain1": texts[16:80], "raw/holdout": texts[80:90], "knowmem/forget_qa": pairs,
        "knowmem/retain_qa": pairs, "verbmem/forget": [{"prompt": "a", "gt": "b"}], "privleak/forget": texts[:2],
        "privleak/retain": texts[:2], "privleak/holdout": texts[:2],
    }  # fmt: skip
    for name, content in files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return {"muse": folder}


def write_model(folder, form: Any = "llama"):
    """A checkpoint of bytes, which needs no tokenizer."""
    kinds = {
        "gpt2": {"norm": "layer", "mlp": "gelu", "rotary": False, "length": 64, "biases": ("q", "k", "v", "o", "up", "down")}
    }
    config = decoder.Config(256, width=8, layers=1, heads=2, hidden=8, **kinds.get(form, {}))
    weights.save(folder, form, config, decoder.init(config, jax.random.key(3)))
    return {"model": folder}


FILES = pytest.mark.parametrize("write", [write_text, write_tofu, write_muse, write_model])


@pytest.mark.slow
@FILES
def test_files_of_ones_own_are_run_from_end_to_end(tmp_path, write):
    (tmp_path / "own").mkdir()
    summary = language.main(smoke(tmp_path / "out", **write(tmp_path / "own")))
    assert np.isfinite(summary["rows"][-1]["held_out"])
    assert "tmp" not in json.dumps(summary["config"])  # places on this machine are left out


@FILES
def test_files_of_ones_own_are_texts(tmp_path, write):
    world = language.build(language.Config(documents=17, held_out=2, **write(tmp_path)))
    assert world.data.train.inputs.shape[1] == 64
    assert world.held_out.inputs.shape[0] >= 2
    assert len(world.canaries) == 16


def test_questions_of_tofu_are_texts_and_held_out_ones_come_first(tmp_path):
    write_tofu(tmp_path)
    told = language.paragraphs(language.Config(tofu=tmp_path))
    assert told is not None
    assert len(told) == len(text.TRADES) * len(text.PETS) + 10
    assert told[10] == "baker bees " * 8 + "\nbaker"
    assert language.paragraphs(language.Config()) is None


@pytest.mark.parametrize("form", ["llama", "gpt2"])
def test_a_checkpoint_is_what_training_starts_from(tmp_path, form):
    world = language.build(language.Config(**write_model(tmp_path, form)))
    assert world.form == form
    jax.tree.map(np.testing.assert_array_equal, world.start, weights.load(tmp_path).variables)
    assert text.Bytes().decode(world.secrets[0]) == world.canaries[0].secret
    assert text.Bytes().decode(world.prefixes[0]) == world.canaries[0].prefix


def test_a_checkpoint_needs_a_tokenizer_that_spells_digits(tmp_path):
    write_model(tmp_path)
    assert text.digits(text.tokenizer_of(tmp_path, 256)) == list(b"0123456789")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.json"):
        text.tokenizer_of(tmp_path, 300)

    class Blind(text.Bytes):
        def encode(self, text):
            return [7]

    with pytest.raises(ValueError, match="no token of its own for every digit"):
        text.digits(Blind())


# The loss around texts, and what adapters cost


@pytest.mark.slow
def test_the_loss_around_texts_is_told_beside_a_retrained_model(tmp_path):
    summary = remind.main(remind.Config(scale=ONE_DEVICE, smoke=True, out=tmp_path))
    nothing, idk = summary["rows"]
    assert (nothing["method"], idk["method"]) == ("do nothing", "idk")
    np.testing.assert_allclose(nothing["excess"], nothing["auc"] - nothing["retrained"], atol=1e-6)
    np.testing.assert_allclose(idk["gain"], idk["auc"] - idk["alone"], atol=1e-6)
    assert nothing["retrained"] == idk["retrained"]  # the same model
    assert min(summary["texts"]) >= 2
    assert "</html>" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_adapters_are_timed_and_their_memory_is_that_of_the_program(tmp_path):
    found = lora.main(lora.Config(requests=2, steps=1, rounds=1, large=False, out=tmp_path / "lora.json"))
    small = found["memory"]["small"]
    assert small["yardstick"] == small["base"] + 6 * small["adapter"]
    assert small["one after the other"]["temporary"] < small["side by side"]["temporary"]
    assert set(json.loads((tmp_path / "lora.json").read_text())["seconds"]["median"]) == {"one call", "a call each"}
