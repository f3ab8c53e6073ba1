"""Log-probabilities, scores and hits of tokens, against loops."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from tests.audit.language.toys import by_row, padded, random_rows

language = ju.audit.language
READ = (language.token_log_probabilities, language.token_scores, language.token_hits)


@jax.jit
def read(logits, labels):
    return [function(logits, labels) for function in READ]


def test_tokens_follow_their_definitions():
    logits, labels = random_rows()
    log, scores, hits = (np.asarray(x) for x in read(logits, labels))
    for place, (full, right) in enumerate(by_row(logits, labels)):
        counted = labels[place] >= 0
        picked = full[np.arange(len(right)), right]
        p = np.exp(full)
        mu = (p * full).sum(-1)
        sigma = np.sqrt((p * full**2).sum(-1) - mu**2)
        np.testing.assert_allclose(log[place][counted], picked, rtol=1e-5)
        np.testing.assert_allclose(scores[place][counted], (picked - mu) / sigma, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(hits[place][counted], full.argmax(-1) == right)
    for values in (log, scores, hits):
        assert not np.any(values[labels < 0])
    np.testing.assert_allclose(
        language.mean_log_probability(log, labels),
        [full[np.arange(len(y)), y].mean() for full, y in by_row(logits, labels)],
        rtol=1e-5,
    )


def test_padding_of_nan_changes_nothing():
    logits, labels = random_rows()
    for values, longer in zip(read(logits, labels), read(*padded(logits, labels)), strict=True):
        np.testing.assert_array_equal(values, longer[:, : labels.shape[1]])
        assert not np.any(longer[:, labels.shape[1] :])


def test_models_are_a_leading_axis_or_a_vmap():
    logits, labels = random_rows()
    both = jnp.stack([logits, logits[::-1]])
    for function in READ:
        stacked = function(both, labels)
        np.testing.assert_array_equal(stacked, jax.vmap(lambda one, function=function: function(one, labels))(both))
        np.testing.assert_allclose(stacked[0], function(logits, labels), rtol=1e-6)


def test_impossible_tokens_and_equal_ones_give_no_nan_and_broken_logits_do():
    logits = jnp.array([[[0.0, 0.0, -jnp.inf], [3.0, 3.0, 3.0], [jnp.nan, 0, 0]]])
    scores = np.asarray(language.token_scores(logits, jnp.array([[0, 1, 2]])))[0]
    np.testing.assert_allclose(scores[:2], 0, atol=1e-3)
    assert np.isnan(scores[2])
    assert np.isnan(language.token_log_probabilities(logits, jnp.array([[0, 1, 2]]))[0, 2])
    assert language.token_log_probabilities(logits, jnp.array([[2, 1, -1]]))[0, 0] == -jnp.inf


def test_half_precision_is_read_in_float32():
    logits, labels = random_rows()
    assert language.token_log_probabilities(jnp.asarray(logits, jnp.bfloat16), labels).dtype == jnp.float32
    many = jnp.full((1, 1000), -1.0078125, jnp.bfloat16)  # whose sum in bfloat16 is not a thousand of them
    for score in (language.mean_log_probability, language.min_k):
        assert float(score(many, jnp.zeros((1, 1000), int))[0]) == pytest.approx(-1.0078125, rel=1e-6)


def test_what_does_not_fit_is_refused():
    logits, labels = random_rows()
    with pytest.raises(ValueError, match=r"expected logits \[..., t, v\]"):
        language.token_hits(logits, labels[:, :-1])
    with pytest.raises(ValueError, match="labels has labels"):
        language.token_hits(logits, labels + 6)
    with pytest.raises(TypeError, match="integers"):
        language.token_hits(logits, labels.astype(np.float32))
    with pytest.raises(ValueError, match="mean_log_probability"):
        language.mean_log_probability(logits[..., 0], labels[:, 1:])


def test_public_functions_say_what_they_take_return_and_show_it():
    functions = {name: value for name, value in vars(language).items() if inspect.isfunction(value)}
    assert len(functions) >= 30
    for name, value in functions.items():
        text = inspect.getdoc(value) or ""
        assert all(word in text for word in ("Args:", "Returns:", ">>> ")), name


def test_logits_and_features_that_are_nan_are_no_hits():
    """`argmax` takes NaN for the largest, so that a diverged model would be right wherever the first token or class is."""
    broken, labels = jnp.full((1, 2, 3), jnp.nan), jnp.array([[0, 1]])
    assert not jnp.any(language.token_hits(broken, labels))
    bank, kinds = jnp.eye(3), jnp.arange(3)
    queries = jnp.stack([bank[1], jnp.full(3, jnp.nan)])
    told = [
        language.nearest_mean_accuracy(bank, kinds, queries, jnp.array([1, 0]), num_classes=3, query_weights=jnp.array(x))
        for x in ([1.0, 1.0], [1.0, 0.0])
    ]
    np.testing.assert_array_equal(told, [jnp.nan, 1])
