"""Rows of tokens, and files in their published layouts."""

import json

import numpy as np
import pytest

from experiments.common import text


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


def test_a_published_tokenizer_needs_its_package(tmp_path):
    try:
        import tokenizers
    except ImportError:
        with pytest.raises(ImportError, match=r"jaxunlearn\[language\]"):
            text.FromFile(tmp_path / "tokenizer.json")
        return
    model = tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    read = text.FromFile(tmp_path / "tokenizer.json")
    assert (read.size, read.encode("b a")) == (3, [1, 0])


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
