"""What can be got out of a model word for word.

Teacher-forced measures need one forward pass; `completions` needs the caller's own decoding,
`generate(key, prompts) -> tokens`, greedy or sampled. A retrained model completes texts as well, those that follow from what it
did see: compare.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks
from jaxunlearn.audit.language.overlap import RougeL, rouge_l
from jaxunlearn.audit.language.tokens import require_fit
from jaxunlearn.types import Scalar

Generate: TypeAlias = Callable[[PRNGKeyArray, PyTree], Int[Array, "b t"]]  # (key, prompts) -> tokens behind the prompts


class Completions(NamedTuple):
    """What `completions` returns; s samples of b prompts."""

    verbatim: Bool[Array, "s b"]  # every token of the reference is there
    prefix: Int[Array, "s b"]  # tokens that are right before the first one that is not
    rouge: RougeL  # each [s, b]
    tokens: Int[Array, "s b t"]

    @property
    def extracted(self) -> Bool[Array, " b"]:
        """Whether any of the samples is verbatim."""
        return jnp.any(self.verbatim, axis=0)


def exact_memorisation(hits: Bool[Array, "... t"], labels: Int[Array, "... t"]) -> Float[Array, "..."]:
    """Share of an answer's tokens that the model predicts first, given the true tokens before them.

    Args:
        hits: from `token_hits`.
        labels: what counts.

    Returns:
        In [0, 1]; NaN for a row of which nothing counts.

    Raises:
        ValueError: shapes that do not fit.

    References:
        Tirumala, Markosyan, Zettlemoyer, Aghajanyan: Memorization without overfitting, 2022, arXiv 2205.10770.

    Example:
        >>> hits = jnp.array([[False, True, True, False]])
        >>> jaxunlearn.audit.language.exact_memorisation(hits, jnp.array([[5, 1, 2, -1]])).round(3).tolist()
        [0.667...]
    """
    hits, counted = require_fit("exact_memorisation", hits, labels)
    return jnp.sum(hits & counted, axis=-1) / jnp.sum(counted, axis=-1)


def extraction_strength(hits: Bool[Array, "... t"], labels: Int[Array, "... t"]) -> Float[Array, "..."]:
    """`1 - k / length`, k the shortest beginning of an answer behind which every token is predicted first.

    OpenUnlearning's code never gives 0: an answer whose last token is missed gets `1 / length` there.

    Args:
        hits: from `token_hits`.
        labels: what counts.

    Returns:
        In [0, 1]; 0 where the last token is missed, NaN for a row of which nothing counts.

    Raises:
        ValueError: shapes that do not fit.

    References:
        Carlini, Liu, Erlingsson, Kos, Song: The secret sharer, 2019, arXiv 1802.08232; Wang, Han, Yang, Zhu, Liu, Sugiyama:
        Towards effective evaluations and comparisons for LLM unlearning methods, 2025, arXiv 2406.09179.

    Example:
        >>> hits = jnp.array([[True, False, True, False]])
        >>> jaxunlearn.audit.language.extraction_strength(hits, jnp.array([[5, 1, 2, -1]])).round(3).tolist()
        [0.333...]
    """
    hits, counted = require_fit("extraction_strength", hits, labels)
    all_behind = jnp.flip(jnp.cumprod(jnp.flip(hits | ~counted, axis=-1).astype(jnp.int32), axis=-1), axis=-1)
    return jnp.sum(jnp.where(counted, all_behind, 0), axis=-1) / jnp.sum(counted, axis=-1)


def extraction_probability(
    log_probabilities: Float[Array, "... t"], labels: Int[Array, "... t"], *, attempts: Scalar = 1
) -> Float[Array, "..."]:
    """Probability that at least one of n samples from the model is the answer, word for word: `1 - (1 - p)^n`.

    What sampling estimates, without samples, for plain sampling from the softmax; divide logits by a temperature before.

    Args:
        log_probabilities: from `token_log_probabilities`.
        labels: what counts.
        attempts: n, may be traced.

    Returns:
        In [0, 1]; NaN for a row of which nothing counts.

    Raises:
        ValueError: shapes that do not fit, fewer than one attempt.

    References:
        Hayes, Swanberg, Chaudhari, Yona, Shumailov, Nasr, Choquette-Choo, Lee, Cooper: Measuring memorization in language
        models via probabilistic extraction, 2024, arXiv 2410.19482.

    Example:
        >>> log = jnp.log(jnp.array([[0.5, 0.5]]))
        >>> jaxunlearn.audit.language.extraction_probability(log, jnp.array([[1, 2]]), attempts=2).round(4).tolist()
        [0.4375]
    """
    checks.check_range("attempts", attempts, low=1)
    log, counted = require_fit("extraction_probability", log_probabilities, labels)
    total = jnp.minimum(jnp.sum(jnp.where(counted, log, 0), axis=-1), 0)
    none = attempts * jnp.log1p(-jnp.exp(total))
    return jnp.where(jnp.any(counted, axis=-1), -jnp.expm1(none), jnp.nan)


def completion(generated: Int[Array, "... n"], labels: Int[Array, "... t"]) -> tuple[Bool[Array, "..."], Int[Array, "..."]]:
    """Whether a continuation is the reference, word for word, and how many tokens of its beginning are.

    Args:
        generated: tokens behind the prompt; as many as the reference has, or more. One below 0 is right nowhere.
        labels: the reference; tokens below 0 do not count, and those that do count are compared from the first one on.

    Returns:
        (verbatim, prefix). A reference without tokens is not verbatim.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> verbatim, prefix = jaxunlearn.audit.language.completion(jnp.array([4, 5, 9]), jnp.array([-1, 4, 5, 6]))
        >>> bool(verbatim), int(prefix)
        (False, 2)
    """
    generated, labels = jnp.asarray(generated), jnp.asarray(labels)
    if not generated.ndim or not labels.ndim or generated.ndim < labels.ndim:
        raise ValueError(
            f"completion: expected generated tokens [..., n] and labels [..., t], got {generated.shape}, {labels.shape}"
        )
    counted = labels >= 0
    place = jnp.broadcast_to(jnp.cumsum(counted, axis=-1) - 1, (*generated.shape[:-1], labels.shape[-1]))
    there = jnp.take_along_axis(generated, jnp.clip(place, 0, generated.shape[-1] - 1), axis=-1)
    same = ((there == labels) & (place < generated.shape[-1])) | ~counted
    prefix = jnp.sum(jnp.where(counted, jnp.cumprod(same.astype(jnp.int32), axis=-1), 0), axis=-1)
    return (prefix == jnp.sum(counted, axis=-1)) & jnp.any(counted, axis=-1), prefix


def completions(
    generate: Generate, prompts: PyTree, labels: Int[Array, "b t"], key: PRNGKeyArray, *, num_samples: int = 1
) -> Completions:
    """Let a model complete prompts, and compare with what stood there: verbatim, its beginning, and ROUGE-L.

    MUSE's VerbMem is ROUGE-L of greedy continuations, its KnowMem that of answers to questions.

    Args:
        generate: the caller's decoding, greedy (one sample then says all) or sampled; tokens behind the end are below 0.
        prompts: any tree with b rows.
        labels: the references, below 0 where a position does not count.
        key: one typed key; every sample gets its own.
        num_samples: how often every prompt is completed, one after the other.

    Returns:
        `Completions`.

    Raises:
        ValueError: no sample, shapes that do not fit.
        TypeError: a key that is not typed.

    Example:
        >>> parrot = lambda key, prompts: prompts + 1
        >>> found = jaxunlearn.audit.language.completions(parrot, jnp.array([[1, 2]]), jnp.array([[2, 3]]), key)
        >>> found.extracted.tolist()
        [True]
    """
    checks.require_count("num_samples", num_samples)
    checks.check_key(key)

    def sample(key: PRNGKeyArray) -> Completions:
        tokens = generate(key, prompts)
        return Completions(*completion(tokens, labels), rouge_l(tokens, labels), tokens)

    return jax.lax.map(sample, jax.random.split(key, num_samples))
