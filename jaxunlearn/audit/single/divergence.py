"""How far apart the predictions of two models are."""

import jax
import jax.numpy as jnp
from jax.scipy.special import rel_entr
from jaxtyping import Array, Float, PyTree

from jaxunlearn.audit.statistics.checks import require_numbers, require_probabilities
from jaxunlearn.evaluation import map_rows
from jaxunlearn.losses import jensen_shannon
from jaxunlearn.sampling import forget_rows, masked_mean
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Variables


def divergence(
    model: Model,
    first: Variables,
    second: Variables,
    examples: Examples,
    weights: Float[Array, " n"] | None = None,
    *,
    chunk: int | None = None,
) -> Float[Array, ""]:
    """Mean Jensen-Shannon divergence between the predictions of two models.

        mean_i (KL(p_i || m_i) + KL(q_i || m_i)) / 2,    m_i = (p_i + q_i) / 2

    Args:
        model: `forward` in evaluation mode, with logits [b, c].
        first, second: the two models, e.g. unlearned and retrained; their order does not matter.
        examples: only `inputs` are read, leading axis n.
        weights: of the rows; all 1 by default. Rows of weight 0 may hold anything, NaN included.
        chunk: rows that go through the models together; `None` takes all.

    Returns:
        Float[], in nats: 0 where the predictions agree, log 2 where they share no class. NaN if no row counts. Two retrained
        models differ as well: their divergence is the floor to compare with.

    Raises:
        ValueError: logits that are not [b, c] with at least two classes, leading axes that differ, a bad chunk.

    References:
        Lin: Divergence measures based on the Shannon entropy, 1991, doi 10.1109/18.61115.

    Example:
        >>> float(jaxunlearn.audit.divergence(model, variables, variables, test)) < 1e-6
        True
    """

    def logits(variables: Variables, part: Examples) -> Float[Array, "b c"]:
        values = model.forward(variables, part.inputs, train=False).logits
        if jnp.ndim(values) != 2 or values.shape[1] < 2:
            raise ValueError(f"divergence compares class probabilities: expected logits [b, c], c >= 2, got {values.shape}")
        return values.astype(jnp.promote_types(values.dtype, jnp.float32))

    values = map_rows(lambda part: jensen_shannon(logits(first, part), logits(second, part)), examples, chunk=chunk)
    average = masked_mean(values, jnp.ones(values.shape[0]) if weights is None else weights, empty=jnp.nan)
    return jnp.maximum(average, 0)  # rounding


def forget_divergence(
    model: Model,
    first: Variables,
    second: Variables,
    data: Data,
    request: ForgetRequest,
    *,
    chunk: int | None = None,
) -> Float[Array, ""]:
    """`divergence` on the usable rows of one request.

    Args:
        model, first, second, chunk: as in `divergence`.
        data: the training data that the request refers to.
        request: one request.

    Returns:
        Float[], in nats, between 0 and log 2. NaN for an empty request.

    Raises:
        ValueError: stacked requests, and as `divergence`.

    Example:
        >>> float(jaxunlearn.audit.forget_divergence(model, variables, variables, data, request)) < 1e-6
        True
    """
    forgotten = forget_rows(data, request)
    return divergence(model, first, second, forgotten.examples, forgotten.weights, chunk=chunk)


def activation_distance(candidate: Float[Array, "n c"], reference: Float[Array, "n c"]) -> Float[Array, ""]:
    """Mean Euclidean distance between predicted probabilities, `mean_i ||p_u(x_i) - p_r(x_i)||_2`.

    Args:
        candidate, reference: probabilities of the same rows.

    Returns:
        Float[], in [0, sqrt 2]. Two retrained models differ as well: compare with their distance.

    Raises:
        ValueError: different shapes, or rows that do not sum to 1.

    References:
        Golatkar, Achille, Ravichandran, Polito, Soatto: Mixed-privacy forgetting in deep networks, 2021, arXiv 2012.13431.

    Example:
        >>> float(jaxunlearn.audit.activation_distance(jnp.eye(2), jnp.eye(2)[::-1])).__round__(4)
        1.4142
    """
    candidate, reference = _pair("activation_distance", candidate, reference)
    require_probabilities("activation_distance", candidate=candidate, reference=reference)
    return jnp.mean(jnp.linalg.norm(candidate - reference, axis=1))


def completeness(candidate: Float[Array, "n c"], reference: Float[Array, "n c"]) -> Float[Array, ""]:
    """Share of rows for which both models predict the same class.

    Args:
        candidate, reference: logits or probabilities of the same rows.

    Returns:
        Float[], a fraction in [0, 1].

    Raises:
        ValueError: different shapes, or NaN.

    References:
        Cao, Yang: Towards making systems forget with machine unlearning, 2015, doi 10.1109/SP.2015.35.

    Example:
        >>> float(jaxunlearn.audit.completeness(jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0]])))
        0.5
    """
    candidate, reference = _pair("completeness", candidate, reference)
    require_numbers("completeness", candidate=candidate, reference=reference)
    return jnp.mean(jnp.argmax(candidate, axis=1) == jnp.argmax(reference, axis=1))


def zero_retrain_forgetting(
    candidate: Float[Array, "n c"], incompetent: Float[Array, "n c"], *, reference: bool = False
) -> Float[Array, ""]:
    """ZRF, `1 - mean_i JS(p_u(x_i), p_T(x_i))` against a randomly initialised network T on the forget set.

    Its aim is the value of a retrained model, not 1: a network that guesses on the forget set is over-unlearned.

    Args:
        candidate, incompetent: probabilities of the same rows.
        reference: compute it as popular code does: the mean is over n x c entries, so that ZRF is c times nearer 1, and the
            divergences are of the middle from the two predictions, not the other way round.

    Returns:
        Float[], at most 1 and at least 1 - log 2.

    Raises:
        ValueError: different shapes, or rows that do not sum to 1.

    References:
        Chundawat, Tarun, Mandal, Kankanhalli: Can bad teaching induce forgetting?, 2023, arXiv 2205.08096.

    Example:
        >>> float(jaxunlearn.audit.zero_retrain_forgetting(jnp.eye(2), jnp.eye(2)))
        1.0
    """
    candidate, incompetent = _pair("zero_retrain_forgetting", candidate, incompetent)
    require_probabilities("zero_retrain_forgetting", candidate=candidate, incompetent=incompetent)
    middle = (candidate + incompetent) / 2
    if reference:
        terms = rel_entr(middle, candidate) + rel_entr(middle, incompetent)
        return 1 - jnp.mean(terms) / 2
    terms = rel_entr(candidate, middle) + rel_entr(incompetent, middle)
    return 1 - jnp.mean(jnp.sum(terms, axis=1)) / 2


def layer_distances(first: PyTree, second: PyTree) -> PyTree:
    """Euclidean distance of two models' parameters, leaf by leaf.

    Two retrained models are far apart as well, since hidden units can be swapped: compare with their distance.

    Args:
        first, second: params of one form.

    Returns:
        A tree of the same structure, Float[] for every leaf.

    Raises:
        ValueError: trees of different structures.

    Example:
        >>> jaxunlearn.audit.layer_distances({"w": jnp.zeros(4)}, {"w": jnp.ones(4)})["w"].item()
        2.0
    """
    return jax.tree.map(lambda a, b: jnp.sqrt(jnp.sum((a - b) ** 2)), first, second)


def _pair(metric: str, first: Array, second: Array) -> tuple[Array, Array]:
    first, second = jnp.asarray(first), jnp.asarray(second)
    if first.ndim != 2 or first.shape != second.shape or first.shape[1] < 2:
        raise ValueError(f"{metric}: expected two arrays [n, c] of the same rows, c >= 2, got {first.shape} and {second.shape}")
    return first, second
