"""What features tell: nearest neighbours, a linear probe, clusters.

Features may still separate a class that outputs forgot. Retrained models are the reference here too: features of models that
never saw a class separate it more or less as well.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxunlearn import checks, tree
from jaxunlearn.evaluation import map_rows
from jaxunlearn.types import Scalar


class Probe(NamedTuple):
    """What `linear_probe` returns."""

    accuracy: Float[Array, ""]  # on test rows
    recall: Float[Array, " c"]  # on the test rows of every class; NaN for a class without any
    gradient_norm: Float[Array, ""]  # of the training loss where the solver ended, largest entry
    kernel: Float[Array, "D c"]
    bias: Float[Array, " c"]


class Clusters(NamedTuple):
    """What `cluster_scores` returns."""

    nmi: float  # normalised mutual information of clusters and labels
    pairwise_f1: float  # of "in one cluster" as a prediction of "in one class"


def linear_probe(
    features: Float[Array, "n D"],
    labels: Int[Array, " n"],
    test_features: Float[Array, "e D"],
    test_labels: Int[Array, " e"],
    *,
    num_classes: int,
    weights: Float[Array, " n"] | None = None,
    l2: Scalar = 1e-4,
    num_steps: int = 100,
) -> Probe:
    """Multinomial logistic regression on frozen features, by L-BFGS.

        min_{W, b}  mean CE(z W + b, y) + l2 / 2 |W|^2,    z standardised by training statistics

    Train it on rows of all classes, the forgotten one included: it asks what the features hold, not what the head does.

    Args:
        features, labels: of n training rows.
        test_features, test_labels: of e held-out rows.
        num_classes: c.
        weights: 1 for training rows that count, 0 for others, which may hold anything.
        l2: weight decay of W, may be traced.
        num_steps: of L-BFGS.

    Returns:
        `Probe`; a large `gradient_norm` says that the solver did not converge.

    Raises:
        ValueError: different numbers of features and labels, counts that are too small.

    Example:
        >>> z = jax.nn.one_hot(jnp.arange(30) % 3, 3)
        >>> found = jaxunlearn.audit.linear_probe(z, jnp.arange(30) % 3, z[:3], jnp.arange(3), num_classes=3)
        >>> found.recall.tolist()
        [1.0, 1.0, 1.0]
    """
    checks.require_count("num_classes", num_classes, least=2)
    checks.require_count("num_steps", num_steps)
    tree.leading_axis((features, labels), "features and labels")
    tree.leading_axis((test_features, test_labels), "test features and labels")
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    counts = jnp.ones(features.shape[0], dtype) if weights is None else (weights > 0).astype(dtype)
    total = jnp.maximum(jnp.sum(counts), 1)
    z = jnp.where(counts[:, None] > 0, features.astype(dtype), 0)
    centre = jnp.sum(z, axis=0) / total
    scale = jnp.sqrt(jnp.sum(counts[:, None] * (z - centre) ** 2, axis=0) / total)
    scale = jnp.where(scale > 1e-6 * jnp.max(scale), scale, jnp.inf)  # a unit that never changes says nothing
    z = (z - centre) / scale
    targets = jax.nn.one_hot(labels, num_classes, dtype=dtype)

    def objective(params):
        logits = jnp.dot(z, params["kernel"], precision="highest") + params["bias"]
        losses = -jnp.sum(targets * jax.nn.log_softmax(logits), axis=1)
        return jnp.sum(losses * counts) / total + l2 / 2 * jnp.sum(params["kernel"] ** 2)

    params = {"kernel": jnp.zeros((features.shape[1], num_classes), dtype), "bias": jnp.zeros(num_classes, dtype)}
    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(objective)

    def step(carry, _):
        params, state = carry
        value, gradient = value_and_gradient(params, state=state)
        updates, state = solver.update(gradient, state, params, value=value, grad=gradient, value_fn=objective)
        return (optax.apply_updates(params, updates), state), None

    (found, _), _ = jax.lax.scan(step, (params, solver.init(params)), length=num_steps)
    ended: Any = found
    rest = jax.tree.leaves(jax.grad(objective)(ended))
    logits = jnp.dot((test_features.astype(dtype) - centre) / scale, ended["kernel"], precision="highest") + ended["bias"]
    right = (jnp.argmax(logits, axis=1) == test_labels).astype(dtype)
    of_class = jax.nn.one_hot(test_labels, num_classes, dtype=dtype)
    return Probe(
        jnp.mean(right),
        jnp.sum(of_class * right[:, None], axis=0) / jnp.sum(of_class, axis=0),
        jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in rest])),
        ended["kernel"],
        ended["bias"],
    )


def knn_accuracy(
    bank: Float[Array, "n D"],
    labels: Int[Array, " n"],
    queries: Float[Array, "e D"],
    targets: Int[Array, " e"],
    *,
    num_classes: int,
    neighbours: int = 5,
    bank_weights: Float[Array, " n"] | None = None,
    query_weights: Float[Array, " e"] | None = None,
    chunk: int | None = None,
) -> Float[Array, ""]:
    """Accuracy of the vote of the nearest neighbours by the cosine; ties go to the smallest label.

    Args:
        bank, labels: features and labels of the n rows that vote.
        queries, targets: features and right labels of the e rows to classify.
        num_classes: c.
        neighbours: how many vote.
        bank_weights, query_weights: 1 for rows that count, 0 for others, which may hold anything.
        chunk: queries in memory together; `None` takes all.

    Returns:
        Float[], a fraction in [0, 1]; NaN if no query counts.

    Raises:
        ValueError: fewer rows in the bank than neighbours, different numbers of features and labels, a bad chunk.

    References:
        Kim, Cha, Kim: Are we truly forgetting? A critical re-examination of machine unlearning evaluation protocols, 2025,
        arXiv 2503.06991. Their published code uses logits as features; here features are what is passed.

    Example:
        >>> z = jax.nn.one_hot(jnp.arange(30) % 3, 3)
        >>> float(jaxunlearn.audit.knn_accuracy(z, jnp.arange(30) % 3, z[:3], jnp.arange(3), num_classes=3))
        1.0
    """
    checks.require_count("neighbours", neighbours)
    if bank.shape[0] < neighbours:
        raise ValueError(f"knn_accuracy: {neighbours} neighbours need as many rows in the bank, got {bank.shape[0]}")
    tree.leading_axis((bank, labels), "bank and labels")
    counts = jnp.ones(bank.shape[0]) if bank_weights is None else jnp.asarray(bank_weights)
    asked = jnp.ones(queries.shape[0]) if query_weights is None else (query_weights > 0).astype(jnp.float32)
    labels, known = jnp.asarray(labels), _directions(jnp.where(counts[:, None] > 0, bank, 0))

    def votes(part):
        scores = jnp.dot(_directions(part), known.T, precision="highest")
        _, nearest = jax.lax.top_k(jnp.where(counts > 0, scores, -jnp.inf), neighbours)
        used = counts[nearest] > 0
        return jnp.argmax(jnp.sum(jax.nn.one_hot(labels[nearest], num_classes) * used[..., None], axis=1), axis=1)

    right = map_rows(votes, queries, chunk=chunk) == targets
    return jnp.sum(jnp.where(asked > 0, right, 0)) / jnp.sum(asked)


def cluster_scores(
    features: Float[np.ndarray, "n D"], labels: Int[np.ndarray, " n"], *, num_clusters: int, seed: int = 0
) -> Clusters:
    """How well k-means on normalised features finds the classes; on the host, by scikit-learn, best of ten starts.

    Args:
        features, labels: of n rows.
        num_clusters: of k-means.
        seed: of the starts.

    Returns:
        `Clusters`, values in [0, 1].

    Raises:
        ImportError: without scikit-learn.
        ValueError: features that are not finite, fewer rows than clusters.

    Example:
        >>> z = jax.nn.one_hot(jnp.arange(30) % 3, 3)
        >>> jaxunlearn.audit.cluster_scores(z, jnp.arange(30) % 3, num_clusters=3).nmi
        1.0
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import pair_confusion_matrix

    rows, targets = np.asarray(features, np.float64), np.asarray(labels)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    means: Any = KMeans  # its stub knows only one kind of n_init
    clusters = means(num_clusters, n_init=10, random_state=seed).fit_predict(rows)
    (_, false_positives), (false_negatives, true_positives) = pair_confusion_matrix(targets, clusters).tolist()
    f1 = 2 * true_positives / max(2 * true_positives + false_positives + false_negatives, 1)
    return Clusters(float(normalized_mutual_info_score(targets, clusters)), f1)


def _directions(z: Array) -> Array:
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), jnp.finfo(z.dtype).tiny)
