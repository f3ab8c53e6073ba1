"""Membership scores of texts, and MUSE's PrivLeak as its code has it."""

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

import jaxunlearn as ju
from tests.audit.language.toys import by_row, padded, random_rows

language = ju.audit.language


@partial(jax.jit, static_argnums=2)
def lowest(logits, labels, share):
    scores = language.token_log_probabilities(logits, labels), language.token_scores(logits, labels)
    return [language.min_k(x, labels, share=share) for x in scores]


@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_min_k_is_the_mean_of_the_lowest_scores_padded_or_not(share):
    logits, labels = random_rows(length=9)
    found = []
    for rows in ((logits, labels), padded(logits, labels)):
        found.append(lowest(*rows, share))
    for place, (full, right) in enumerate(by_row(logits, labels)):
        picked = full[np.arange(len(right)), right]
        p, k = np.exp(full), max(1, int(len(right) * share))
        mu = (p * full).sum(-1)
        better = (picked - mu) / np.sqrt((p * full**2).sum(-1) - mu**2)
        for plain, plus in found:
            assert float(plain[place]) == pytest.approx(np.sort(picked)[:k].mean(), rel=1e-5)
            assert float(plus[place]) == pytest.approx(np.sort(better)[:k].mean(), rel=1e-3, abs=1e-4)


def test_min_k_rounds_as_python_does_and_keeps_nan():
    scores = -jnp.arange(100.0)[None]
    assert float(language.min_k(scores, jnp.zeros((1, 100), int), share=0.29)[0]) == -np.arange(72, 100).mean()  # int(28.99...)
    assert np.isnan(language.min_k(jnp.array([[1.0, jnp.nan]]), jnp.array([[1, 1]]), share=0.5)[0])
    assert np.isnan(language.min_k(jnp.ones((1, 2)), jnp.array([[-1, -1]]))[0])
    stacked = language.min_k(jnp.stack([scores, scores + 1]), jnp.zeros((1, 100), int))
    assert stacked.shape == (2, 1)
    with pytest.raises(ValueError, match="share must lie"):
        language.min_k(scores, jnp.zeros((1, 100), int), share=0)


def test_zlib_scores_divide_by_compressed_bytes():
    texts = ["abc" * 40, "the quick brown fox"]
    logits, labels = random_rows(rows=2)
    log = language.token_log_probabilities(logits, labels)
    found = language.zlib_score(log, labels, language.zlib_lengths(texts))
    lengths = [len(zlib.compress(text.encode())) for text in texts]
    np.testing.assert_allclose(found, np.asarray(language.mean_log_probability(log, labels)) / lengths, rtol=1e-6)


def test_an_attack_reports_what_sklearn_does():
    rng = np.random.default_rng(0)
    members, others = rng.normal(1, 1, 50).astype(np.float32), rng.normal(0, 1, 150).astype(np.float32)
    found = jax.jit(language.attack)(
        np.pad(members, (0, 2), constant_values=np.nan), others, np.arange(52) < 50, np.ones(150, np.float32)
    )
    truth, scores = np.repeat([1, 0], [50, 150]), np.concatenate([members, others])
    assert float(found.auc.estimate) == pytest.approx(roc_auc_score(truth, scores), rel=1e-5)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert float(found.interpolated_tpr) == pytest.approx(np.interp(0.01, fpr, tpr), rel=1e-5)
    assert found.tpr.estimate <= found.interpolated_tpr + 1e-6


def test_muse_privacy_leak_has_the_sign_of_its_code():
    rng = np.random.default_rng(1)
    forget, held_out, fair, fairer = (rng.normal(shift, 1, 40).astype(np.float32) for shift in (1, 0, 0, 0))

    def as_coded(members, others):  # losses, and held-out texts are labelled 1
        losses = -np.concatenate([members, others])
        return roc_auc_score(np.repeat([0, 1], 40), -losses)

    unlearned, retrained = as_coded(forget, held_out), as_coded(fair, fairer)
    found = float(language.muse_privacy_leak(forget, held_out, fair, fairer))
    assert found == pytest.approx(100 * (unlearned - retrained) / retrained, rel=1e-4)
    assert found < 0  # still known: under-unlearned
