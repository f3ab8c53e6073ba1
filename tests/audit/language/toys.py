"""Random logits and labels, and their padding."""

import numpy as np


def random_rows(seed=0, rows=5, length=7, vocabulary=6):
    """Logits [b, t, v] and labels [b, t] of which about a third does not count; every row has one that does."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, length, vocabulary)).astype(np.float32) * 2
    labels = np.where(rng.random((rows, length)) < 0.3, -1, rng.integers(0, vocabulary, (rows, length)))
    labels[:, 2] = rng.integers(0, vocabulary, rows)
    return logits, labels.astype(np.int32)


def padded(logits, labels, extra=4):
    """The same rows with positions behind them that hold NaN and do not count."""
    behind = ((0, 0), (0, extra))
    return np.pad(logits, (*behind, (0, 0)), constant_values=np.nan), np.pad(labels, behind, constant_values=-1)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def by_row(logits, labels):
    """What counts of every row: log-probabilities of all tokens [length, v], and labels."""
    return [(log_softmax(row[label >= 0]), label[label >= 0]) for row, label in zip(logits, labels, strict=True)]
