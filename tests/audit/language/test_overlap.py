"""ROUGE-L against the package of its authors' choice, and a table filled by loops."""

import jax
import numpy as np
import pytest

import jaxunlearn as ju

language = ju.audit.language


def texts(seed=0, count=20):
    """Padded tokens of two texts, some of them empty."""
    rng = np.random.default_rng(seed)
    return [np.where(np.arange(n) < rng.integers(0, n + 1, (count, 1)), rng.integers(0, 5, (count, n)), -1) for n in (9, 7)]


def table(first, second):
    best = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            best[i + 1, j + 1] = best[i, j] + 1 if a == b else max(best[i, j + 1], best[i + 1, j])
    return best[-1, -1]


def test_common_length_is_that_of_a_table():
    first, second = texts()
    found = jax.jit(language.common_length)(first, second)
    assert found.tolist() == [table(a[a >= 0], b[b >= 0]) for a, b in zip(first, second, strict=True)]
    one_by_one = jax.vmap(language.common_length)(first, second)
    np.testing.assert_array_equal(found, one_by_one)


def test_padding_anywhere_changes_nothing():
    first, second = texts(1)
    wider = np.insert(first, [0, 3, 9], -1, axis=1)
    for values, others in zip(language.rouge_l(first, second), language.rouge_l(wider, second), strict=True):
        np.testing.assert_array_equal(values, others)


def test_rouge_l_equals_the_package_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed")

    class Words:
        def tokenize(self, text):
            return text.split()

    judge = scorer.RougeScorer(["rougeL"], tokenizer=Words())
    generated, references = texts(2)
    found = jax.jit(language.rouge_l)(generated, references)
    words = [[" ".join(str(x) for x in row[row >= 0]) for row in side] for side in (references, generated)]
    expected = [judge.score(*pair)["rougeL"] for pair in zip(*words, strict=True)]
    np.testing.assert_allclose(found.precision, [x.precision for x in expected], rtol=1e-6)
    np.testing.assert_allclose(found.recall, [x.recall for x in expected], rtol=1e-6)
    np.testing.assert_allclose(found.f1, [x.fmeasure for x in expected], rtol=1e-6)
