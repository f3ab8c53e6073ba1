"""KLoM: how far the margins of unlearned models are from those of retrained ones, example by example.

Georgiev, Rinberg, Park, Garg, Ilyas, Madry, Neel: Attribute-to-delete: machine unlearning via datamodel matching, 2024, arXiv
2410.23232. For each example the margins of all models of a kind make a histogram, and the histograms are compared.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn import checks
from jaxunlearn.audit.statistics.checks import require_margins
from jaxunlearn.precision import in_float64

BLOCK = 2048  # examples whose margins stay in the cache, which is several times faster


@in_float64
def klom(
    candidate_margins: Float[Array, "n e"],
    reference_margins: Float[Array, "m e"],
    *,
    num_bins: int = 20,
    floor: float = 1e-5,
    limit: float = 100.0,
    reference: bool = False,
) -> Float[Array, " e"]:
    """KL divergence between histograms of margins, for every example.

        KLoM(x) = sum_b p_b log(p_b / q_b),    q_b raised to `floor` where p_b > 0, then normalised

    with p the histogram of the candidate's margins and q that of the reference's, over equal bins from the smallest to the
    largest margin of both together.

    It is not 0 for perfect unlearning: with n Gaussian margins of each kind its mean is about 5.5 for n = 10, 0.87 for 50, 0.35
    for 100, 0.15 for 200, 0.05 for 500. Compare with the value between two retrained ensembles, `jaxunlearn.audit.floor_of`.

    Args:
        candidate_margins: of n unlearned models, see `jaxunlearn.audit.margins`.
        reference_margins: of m retrained models; about 100 are needed for a stable value.
        num_bins: bins of each histogram.
        floor: least probability of a bin of q where p is positive.
        limit: margins are cut to [-limit, limit], in nats.
        reference: count as the published code does, whose last bin misses its right edge, so that the largest margin of all
            is not counted.

    Returns:
        In nats, float32, at least 0, one value per example. NaN where a margin is.

    Raises:
        ValueError: margins that are not [models, examples], different examples, fewer than two models, NaN, or settings out
            of range.

    Example:
        >>> retrained, other, unlearned = jax.random.normal(key, (3, 100, 5))
        >>> bool(jaxunlearn.audit.klom(unlearned + 2, retrained).mean() > jaxunlearn.audit.klom(other, retrained).mean())
        True
    """
    candidate, compared = require_margins("klom", candidate_margins, reference_margins, least=2)
    checks.require_count("num_bins", num_bins, least=2)
    if not (0 < floor < 1 and limit > 0):
        raise ValueError(f"klom: expected 0 < floor < 1 and limit > 0, got {floor} and {limit}")

    def divergence(candidate: Float[Array, "n b"], compared: Float[Array, "m b"]) -> Float[Array, " b"]:
        candidate, compared = (jnp.clip(x.astype(jnp.float64), -limit, limit) for x in (candidate, compared))
        low = jnp.minimum(candidate.min(axis=0), compared.min(axis=0))
        high = jnp.maximum(candidate.max(axis=0), compared.max(axis=0))
        width = jnp.where(low < high, high - low, 1)

        def shares(margins):
            bins = jnp.minimum(jnp.floor((margins - low) / width * num_bins), num_bins - 1)
            if reference:
                bins = jnp.where((margins >= high) & (low < high), -1, bins)
            return _shares(bins.astype(jnp.int32), num_bins)

        p, q = shares(candidate), shares(compared)
        q = jnp.where(p > 0, jnp.maximum(q, floor), q)
        q = q / q.sum(axis=0)
        found = jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1) / jnp.where(p > 0, q, 1)), 0), axis=0)
        broken = jnp.isnan(candidate.sum(axis=0) + compared.sum(axis=0))
        return jnp.where(broken, jnp.nan, jnp.maximum(found, 0)).astype(jnp.float32)  # rounding

    examples = candidate.shape[1]
    if examples <= BLOCK:
        return divergence(candidate, compared)
    # The last block is moved back to end with the examples.
    starts = jnp.minimum(jnp.arange(0, examples, BLOCK), examples - BLOCK)
    blocks = jax.lax.map(
        lambda start: divergence(*(jax.lax.dynamic_slice_in_dim(x, start, BLOCK, axis=1) for x in (candidate, compared))),
        starts,
    )
    return jnp.concatenate([blocks[:-1].reshape(-1), blocks[-1, -examples % BLOCK :]])


def _shares(bins: Int[Array, "n e"], num_bins: int) -> Float[Array, "b e"]:
    """Fraction of models in each bin; a loop over models keeps memory at b x e, and is quicker than a scatter or a sort."""
    numbers = jnp.arange(num_bins)[:, None]
    counts = jnp.zeros((num_bins, bins.shape[1]), jnp.int32)
    counts, _ = jax.lax.scan(lambda total, row: (total + (row == numbers), None), counts, bins)
    return counts / jnp.maximum(counts.sum(axis=0), 1)
