"""Memorised word for word: loops, closed forms, a decoder that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from tests.audit.language.toys import by_row, padded, random_rows

language = ju.audit.language


@jax.jit
def measures(logits, labels):
    hits, log = language.token_hits(logits, labels), language.token_log_probabilities(logits, labels)
    return (
        language.exact_memorisation(hits, labels), language.extraction_strength(hits, labels),
        language.extraction_probability(log, labels, attempts=3),
    )  # fmt: skip


def memorised_rows():
    """Random rows, some of whose last tokens are predicted."""
    logits, labels = random_rows(3, rows=8)
    for row in range(8):
        logits[row, row:] = 0
        np.put_along_axis(logits[row, row:], np.maximum(labels[row, row:], 0)[:, None], 9, axis=-1)
    return logits, labels


def test_measures_follow_their_definitions():
    logits, labels = memorised_rows()
    exact, strength, extracted = measures(logits, labels)
    seen = set()
    for place, (full, right) in enumerate(by_row(logits, labels)):
        hits = full.argmax(-1) == right
        k = next((k for k in range(len(right)) if hits[k:].all()), len(right))
        seen.add(k)
        p = np.exp(full[np.arange(len(right)), right].sum())
        assert float(exact[place]) == pytest.approx(hits.mean())
        assert float(strength[place]) == pytest.approx(1 - k / len(right), abs=1e-6)
        assert float(extracted[place]) == pytest.approx(1 - (1 - p) ** 3, rel=1e-4)
    assert len(seen) > 3


def test_padding_and_models_change_nothing():
    logits, labels = memorised_rows()
    plain = measures(logits, labels)
    for values, longer in zip(plain, measures(*padded(logits, labels)), strict=True):
        np.testing.assert_array_equal(values, longer)
    for values, stacked in zip(plain, jax.vmap(lambda x: measures(x, labels))(jnp.stack([logits, logits])), strict=True):
        np.testing.assert_allclose(values, stacked[1], rtol=1e-6)


def test_a_missed_last_token_is_no_extraction_and_no_token_is_undefined():
    labels = jnp.array([[1, 2, -1], [-1, -1, -1]])
    hits = jnp.array([[True, False, True], [True, True, True]])
    strength = language.extraction_strength(hits, labels)
    assert float(strength[0]) == 0
    assert np.isnan(strength[1])
    assert np.isnan(language.exact_memorisation(hits, labels)[1])
    assert np.isnan(language.extraction_probability(jnp.zeros((2, 3)), labels)[1])
    assert float(language.extraction_probability(jnp.zeros((2, 3)), labels, attempts=9)[0]) == 1


def test_completions_are_compared_from_the_first_token_that_counts():
    labels = jnp.array([[-1, 4, 5, 6], [-1, -1, 7, -1], [-1, -1, -1, -1]])
    told = jnp.array([[4, 5, 0, 9], [7, 1, 1, 1], [1, 1, 1, 1]])
    verbatim, prefix = language.completion(told, labels)
    assert verbatim.tolist() == [False, True, False]
    assert prefix.tolist() == [2, 1, 0]
    short, prefix = language.completion(told[:, :2], labels)
    assert not bool(short[0])
    assert prefix.tolist() == [2, 1, 0]


def test_sampled_completions_are_found_as_often_as_they_are_drawn():
    prompts, labels = jnp.arange(3)[:, None], jnp.array([[0], [1], [1]])
    logits = jnp.log(jnp.array([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]]))

    def generate(key, prompts):
        return jax.random.categorical(key, logits, axis=-1)[:, None]

    found = jax.jit(lambda key: language.completions(generate, prompts, labels, key, num_samples=200))(jax.random.key(0))
    rate = found.verbatim.mean(axis=0)
    log = language.token_log_probabilities(logits[:, None], labels)
    expected = np.asarray(language.extraction_probability(log, labels))
    np.testing.assert_allclose(rate, expected, atol=4 * np.sqrt(0.25 / 200))
    assert found.extracted.tolist() == [True, True, False]
    np.testing.assert_array_equal(found.rouge.recall, found.verbatim)
    with pytest.raises(ValueError, match="num_samples"):
        language.completions(generate, prompts, labels, jax.random.key(0), num_samples=0)
