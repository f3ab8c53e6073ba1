"""On which side of retrained models each row lies: what a mean over the forget set hides."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from scipy import stats

from jaxunlearn.audit.statistics.checks import require_finite, require_margins


class Sides(NamedTuple):
    """What `row_sides` returns."""

    under: Float[Array, ""]  # share of rows on the side of the original
    over: Float[Array, ""]  # share of rows on the other side
    by_row: Int[Array, " e"]  # 1, -1, or 0 where the row is not told from chance


def row_sides(
    candidate_margins: Float[Array, "n e"],
    reference_margins: Float[Array, "m e"],
    original_margins: Float[Array, "o e"],
    *,
    level: float = 0.95,
) -> Sides:
    """Share of rows that were left, and of rows that were driven out, by Welch's test of every row's mean margin.

    A verdict `MIXED` means that both happened, or that only the spread differs; this says which, and `by_row` where. By chance
    alone `(1 - level) / 2` of the rows lie on each side.

    Args:
        candidate_margins: of n unlearned models on the forget set, see `jaxunlearn.audit.margins`.
        reference_margins: of m retrained models.
        original_margins: of models before unlearning; only their mean counts.
        level: confidence level per row, in (0, 1), static.

    Returns:
        `Sides`.

    Raises:
        ValueError: margins that are not [models, examples] or not finite, different examples, fewer than two models, a level
            outside (0, 1).

    References:
        Welch: The generalization of Student's problem, 1947, doi 10.1093/biomet/34.1-2.28; with the degrees of freedom of the
        smaller side, which is rather too careful.

    Example:
        >>> retrained, unlearned = jax.random.normal(key, (2, 40, 4))
        >>> left_and_driven_out = unlearned + jnp.array([3.0, 3.0, -3.0, 0.0])
        >>> found = jaxunlearn.audit.row_sides(left_and_driven_out, retrained, retrained + 5)
        >>> float(found.under), float(found.over)
        (0.5, 0.25)
    """
    candidate, compared = require_margins("row_sides", candidate_margins, reference_margins, least=2)
    original, _ = require_margins("row_sides", original_margins, reference_margins, least=1)
    require_finite("row_sides", candidates=candidate, references=compared, originals=original)
    if not 0 < level < 1:
        raise ValueError(f"level is a fraction between 0 and 1 such as 0.95, got {level}")
    sizes = candidate.shape[0], compared.shape[0]
    error = jnp.sqrt(sum(jnp.var(x, axis=0, ddof=1) / n for x, n in zip((candidate, compared), sizes, strict=True)))
    centre = jnp.mean(compared, axis=0)
    far = jnp.mean(candidate, axis=0) - centre
    told = jnp.abs(far) > float(stats.t.ppf((1 + level) / 2, min(sizes) - 1)) * error
    side = jnp.sign(far) * jnp.sign(jnp.mean(original, axis=0) - centre)
    by_row = jnp.where(told, side, 0).astype(jnp.int32)
    return Sides(jnp.mean(by_row == 1), jnp.mean(by_row == -1), by_row)
