"""The script at its smallest, and what it measures against slow twins."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import language
from experiments.common import decoder, planted, text
from experiments.common.scale import Scale

ONE_DEVICE = Scale(mesh=False)


def test_a_smoke_run_writes_its_report(tmp_path):
    summary = language.main(language.Config(scale=ONE_DEVICE, smoke=True, out=tmp_path))
    names = [row["method"] for row in summary["rows"]]
    assert names == ["do nothing", "retrained", "retrained again", "simnpo"]
    assert all(count == 0 for count in summary["unmoved"].values())
    assert np.shape(summary["exposures"]["simnpo"]["recall"]) == (1, 16)
    assert json.loads((tmp_path / "language.json").read_text())["config"]["seeds"] == 1
    assert "</html>" in (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def world():
    form = {"width": 8, "layers": 1, "heads": 2, "hidden": 8, "remat": False}
    return planted.build(documents=4, held_out=1, repetitions=(1, 2), each=1, length=64, form=form, seed=0)


def test_requests_hold_all_copies_and_the_text_about_the_same_person(world):
    for place, canary in enumerate(world.canaries):
        rows = np.unique(world.requests.indices[place][world.requests.weights[place] > 0])
        spent = world.data.train.inputs[rows]
        documents = int(np.sum(np.any(world.documents.targets[place] >= 0, axis=1)))
        assert len(rows) == documents + canary.repetitions
        copies = np.sum(np.all(spent == spent[-1], axis=1))
        assert copies == canary.repetitions
    assert [canary.repetitions for canary in world.canaries] == [1, 2]


def test_exposure_is_the_rank_among_all_codes(world):
    variables = jax.tree.map(lambda x: 2 * x, world.model.init(jax.random.key(0)))
    measure = jax.jit(planted.measuring(world, steps=1, learning_rate=1e-3))
    found = measure(variables, planted.looked_at(world), jnp.int32(1), jax.random.key(0))
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


def knows(exposure, seeds=3, count=4, *, relearned=None, rounded=None, held_out=1.0):
    """Models of one kind that know secrets so well."""

    def recall(bits):
        full = np.full((seeds, count), bits)
        return planted.Recall(full, (full > 9).astype(float), full)

    losses = np.full((seeds, count), held_out)
    parts = (exposure if x is None else x for x in (relearned, rounded))
    return planted.Found(recall(exposure), *map(recall, parts), losses, losses, losses, losses)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (knows(1.5), "forgets"),
        (knows(10.0), "still knows"),
        (knows(1.5, relearned=9.9), "hides: comes back by relearning"),
        (knows(0.1, relearned=9.9, rounded=10.0), "hides: comes back by relearning and rounding"),
        (knows(0.1, held_out=1.1), "forgets, damages the rest"),
    ],
)
def test_a_verdict_compares_with_models_that_never_saw_it(world, kind, words):
    canaries = [text.Canary("", "", language.TARGET)] * 4
    found = {"a": kind, "retrained": knows(1.4, count=1), "retrained again": knows(1.6, count=1)}
    assert language.verdict(world._replace(canaries=canaries), found, "a") == words


def test_worlds_that_cannot_be_are_refused():
    form = {"width": 8, "layers": 1, "heads": 2}
    sizes = {"repetitions": (1,), "each": 1, "form": form, "seed": 0}
    with pytest.raises(ValueError, match="leave none to retain"):
        planted.build(documents=1, held_out=1, length=64, **sizes)
    with pytest.raises(ValueError, match="does not fit into a row"):
        planted.build(documents=3, held_out=1, length=8, **sizes)
    with pytest.raises(ValueError, match="there are 1 texts"):
        planted.build(documents=3, held_out=1, length=64, texts=["a"], **sizes)


def test_texts_of_a_file_are_joined_until_they_are_long_enough(tmp_path):
    (tmp_path / "own.txt").write_text("\n\n".join(f"{word} " * 20 for word in text.TRADES * 8))
    world = language.build(language.Config(text=tmp_path / "own.txt", documents=17, held_out=2))
    assert world.data.train.inputs.shape[1] == 64
    assert world.held_out.inputs.shape[0] >= 2


def test_questions_of_tofu_are_texts(tmp_path):
    pairs = [json.dumps({"question": f"{word} " * 15, "answer": word * 3}) for word in text.TRADES * 8]
    (tmp_path / "forget10.json").write_text("\n".join(pairs[:10]))
    (tmp_path / "retain90.json").write_text("\n".join(pairs[10:]))
    told = language.paragraphs(language.Config(tofu=tmp_path))
    assert told is not None
    assert len(told) == len(pairs) + 10  # those that are held out come first
    assert told[10] == "baker " * 15 + "\n" + "bakerbakerbaker"
    assert language.paragraphs(language.Config()) is None
