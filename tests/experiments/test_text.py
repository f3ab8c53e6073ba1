"""Rows of tokens, and files in their published layouts."""

import importlib.util
import json

import numpy as np
import pytest
import tokenizers

import jaxunlearn as ju
from experiments.common import decoder, planted, text


def test_windows_predict_every_token_but_the_first_once():
    rows = text.windows([[1, 2, 3, 4, 5], [6, 7]], 3)
    np.testing.assert_array_equal(rows.examples.inputs, [[1, 2, 3], [4, -1, -1], [6, -1, -1]])
    np.testing.assert_array_equal(rows.examples.targets, [[2, 3, 4], [5, -1, -1], [7, -1, -1]])
    np.testing.assert_array_equal(rows.owners, [0, 0, 1])


def test_packing_leaves_no_padding():
    rows = text.packed([[1, 2], [3]], 2, end=9)
    np.testing.assert_array_equal(rows.inputs, [[1, 2], [9, 3]])
    np.testing.assert_array_equal(rows.targets, [[2, 9], [3, 9]])
    with pytest.raises(ValueError, match="do not fill a row"):
        text.packed([[1]], 5, end=9)


def test_of_a_question_only_the_answer_is_predicted():
    letters = text.Characters("ab?\n")
    rows = text.answers([text.Pair("a?", "b")], letters, 6)
    shown = "".join("_" if x < 0 else letters.letters[x] for x in rows.targets[0])
    assert shown == "__b\n__"
    assert letters.decode(rows.inputs[0]) == "a?\nb"
    with pytest.raises(ValueError, match="no room"):
        text.answers([text.Pair("aaaaaa?", "b")], letters, 6)


def test_tokenizers_go_there_and_back(tmp_path):
    word = "Äb c"
    for tokenizer in (text.Bytes(), text.Characters(word)):
        tokens = tokenizer.encode(word)
        assert tokenizer.decode([*tokens, -1]) == word
        assert max(tokens) < tokenizer.size
    with pytest.raises(ValueError, match="not made for"):
        text.Characters("a").encode("b")


SPECIAL = ("<s>", "</s>")
ODD = "naïve 😀\u200b 漢字\tA\u0301 \x00 12,5\r\n\n  end"


def trained(path, *, special=SPECIAL):
    """A small tokenizer of bytes and their pairs, with what published files have around it."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(text.register(text.names(20, np.random.default_rng(0)), np.random.default_rng(1)), trainer)
    if special:
        numbers = [(name, made.token_to_id(name)) for name in special]
        made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=numbers)
        made.enable_truncation(4)  # many published files keep these from training
        made.enable_padding(length=7, pad_id=0, pad_token=special[0])
    path.mkdir(exist_ok=True)
    made.save(str(path / "tokenizer.json"))
    return made


@pytest.mark.parametrize("special", [SPECIAL, ()], ids=["with special tokens", "without"])
def test_a_published_tokenizer_goes_through_rows_and_back(tmp_path, special):
    trained(tmp_path, special=special)
    read = text.tokenizer_of(tmp_path, 320)
    assert read.size == 320
    story = text.register(["Ada Abel"], np.random.default_rng(2))[0]
    shorter = read.encode(story)
    assert len(shorter) < len(story) / 1.5  # pairs were learnt, and nothing was cut off
    for whole in (story, ODD, f"a</s>{ODD}<s>"):
        tokens = read.encode(whole)
        assert max(tokens) < read.size
        rows = text.windows([tokens, shorter], 5)
        own = rows.owners == 0
        inputs, targets = (side[own].ravel() for side in rows.examples)
        kept = targets >= 0
        np.testing.assert_array_equal(inputs[kept], tokens[:-1])
        assert read.decode([*inputs[kept], *targets[kept][-1:]]) == whole
    numbers = [read.encode(name) for name in SPECIAL]
    assert (numbers == [[0], [1]]) is bool(special)  # a name in a text is that token, where there is one
    assert read.encode("") == []
    assert text.PADDING not in text.packed([shorter, read.encode(ODD)], 8, end=0).inputs


def test_a_published_tokenizer_serves_a_planted_world(tmp_path):
    trained(tmp_path)
    read = text.tokenizer_of(tmp_path, 400)
    start = planted.Start("llama", decoder.Config(400, width=8, heads=2), ju.Variables({}), read)
    world = planted.build(documents=4, held_out=1, repetitions=(1, 2), each=1, length=48, start=start, seed=0)
    for canary, prefix, secret in zip(world.canaries, world.prefixes, world.secrets, strict=True):
        assert read.decode([*prefix, *secret]) == f"{canary.prefix}{canary.secret}"


def test_numbers_of_tokens_may_have_holes(tmp_path):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    read = text.tokenizer_of(tmp_path, 8)
    assert (read.size, read.encode("b a")) == (8, [7, 0])
    with pytest.raises(ValueError, match="has 8 tokens, and the model 7"):
        text.tokenizer_of(tmp_path, 7)


def test_files_that_are_no_tokenizers_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        text.FromFile(path)
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        text.tokenizer_of(tmp_path, 320)
    for content in ("", "{}", '{"model": {"type": "BPE", "vocab": {"a"'):
        path.write_text(content)
        with pytest.raises(ValueError, match="no file of a tokenizer"):
            text.FromFile(path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"jaxunlearn\[language\]"):
        text.FromFile(path)


def write(path, entries, *, lines=False):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries))


def test_tofu_as_published(tmp_path):
    pair = {"question": "q", "answer": "a"}
    write(tmp_path / "forget10.json", [pair, pair], lines=True)
    write(tmp_path / "retain90.json", [pair], lines=True)
    write(
        tmp_path / "forget10_perturbed.json", [{**pair, "paraphrased_answer": "p", "perturbed_answer": ["x", "y"]}], lines=True
    )
    write(tmp_path / "world_facts_perturbed.json", [{**pair, "perturbed_answer": ["z"]}], lines=True)
    found = text.read_tofu(tmp_path)
    assert (len(found.forget), len(found.retain), found.held_out) == (2, 1, [])
    assert found.perturbed == {
        "forget": [text.Pair("q", "a", "p", ("x", "y"))],
        "world_facts": [text.Pair("q", "a", "", ("z",))],
    }
    with pytest.raises(ValueError, match="01, 05 or 10"):
        text.read_tofu(tmp_path, share="20")
    write(tmp_path / "forget01.json", [{"question": "q"}], lines=True)
    with pytest.raises(ValueError, match="entry 0 has no question and answer"):
        text.read_tofu(tmp_path, share="01")


def test_muse_as_published(tmp_path):
    pair = {"question": "q", "answer": "a"}
    write(tmp_path / "raw" / "forget.json", ["one", "two"])
    write(tmp_path / "raw" / "retain1.json", [{"text": "three"}])
    (tmp_path / "raw" / "holdout.txt").write_text("four\n\nfive\n")
    write(tmp_path / "knowmem" / "forget_qa.json", [pair])
    write(tmp_path / "knowmem" / "retain2_qa.json", [pair])
    write(tmp_path / "verbmem" / "forget.json", [{"prompt": "p", "gt": "g"}])
    for name in ("forget", "retain", "holdout"):
        write(tmp_path / "privleak" / f"{name}.json", [{"text": name}])
    found = text.read_muse(tmp_path)
    assert (found.forget, found.retain, found.held_out) == (["one", "two"], ["three"], ["four", "five"])
    assert found.verbatim == [("p", "g")]
    assert found.leakage["holdout"] == ["holdout"]
    (tmp_path / "verbmem" / "forget.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"forget\.json"):
        text.read_muse(tmp_path)


def test_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\nnonsense')
    with pytest.raises(ValueError, match="neither a JSON list"):
        text.read_texts(tmp_path / "a.jsonl")
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(ValueError, match="must be strings"):
        text.read_texts(tmp_path / "b.json")


def test_people_and_their_codes():
    random = np.random.default_rng(0)
    people = text.names(20, random)
    assert len(set(people)) == 20
    assert all(person in story for person, story in zip(people, text.register(people, random), strict=True))
    planted = text.canaries(people[:5], (1, 4), random)
    assert [x.repetitions for x in planted] == [1, 4, 1, 4, 1]
    assert planted[0].text == f"The code of {people[0]} is {planted[0].secret}."
    with pytest.raises(ValueError, match="names"):
        text.names(10**6, random)
