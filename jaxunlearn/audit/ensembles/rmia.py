"""RMIA: membership inference by comparing a row with rows of the population, all seen through reference models.

Zarifzadeh, Liu, Shokri: Low-cost high-power membership inference attacks, 2024, arXiv 2312.03262.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxunlearn.audit.single.membership import auc
from jaxunlearn.audit.statistics.checks import require_models, require_numbers
from jaxunlearn.audit.statistics.ordering import ascending
from jaxunlearn.checks import check_range, is_concrete


def rmia(
    target: Float[Array, " e"],
    references: Float[Array, "m e"],
    population_target: Float[Array, " z"],
    population_references: Float[Array, "m z"],
    *,
    members: Bool[Array, "m e"] | None = None,
    a: ArrayLike = 0.3,
    gamma: float = 1.0,
) -> Float[Array, " e"]:
    """Fraction of population rows to which the target model gives a smaller ratio to the average model than to this row.

        r(x) = p(x) / Pr(x),    score(x) = mean_z [r(x) > gamma r(z)]
        Pr(x) = ((1 + a) / 2) mean_m p_m(x) + (1 - a) / 2      (offline: reference models that never saw x)
        Pr(x) = (mean_in + mean_out) / 2                       (online: `members` says which ones did)

    `score` is the empirical distribution function of r over the population, so it takes one sort: O(e + z) memory.

    Args:
        target: probability that the attacked model gives the true class of each row.
        references: the same of m reference models, retrained ones for instance; none of them the target.
        population_target, population_references: the same for rows that no model saw, and none of the rows above.
        members: which reference models saw which row; without it, none did.
        a: how much of Pr the offline average is, between 0 and 1; see `tune_rmia`. Population rows use it in both cases.
        gamma: about 1 or more; how many times the ratio of a population row has to be exceeded.

    Returns:
        Float[e], scores in [0, 1], higher for members; NaN for rows to which neither target nor references give probability.

    Raises:
        ValueError: shapes that do not fit, no reference model, values that are not probabilities, or with `members` a row
            that all or none of the reference models saw.

    Example:
        >>> p = jax.random.uniform(key, (9, 40))
        >>> jaxunlearn.audit.rmia(p[0, :10], p[1:, :10], p[0, 10:], p[1:, 10:]).shape
        (10,)
    """
    arrays = {
        "target": target,
        "references": references,
        "population_target": population_target,
        "population_references": population_references,
    }
    target, references, population_target, population_references = map(jnp.asarray, arrays.values())
    models = references.shape[0]
    expected = [target.shape[:1], (models, *target.shape), population_target.shape[:1], (models, *population_target.shape)]
    found = [jnp.shape(x) for x in (target, references, population_target, population_references)]
    if found != expected or 0 in population_target.shape:
        raise ValueError(f"rmia: expected probabilities [e], [m, e], [z], [m, z], got shapes {found}")
    require_models("rmia", models, 1)
    for name, values in arrays.items():
        require_numbers("rmia", **{name: values})
        check_range(name, values, low=0, high=1)
    check_range("a", a, low=0, high=1)
    mean = _offline(references.mean(axis=0), a) if members is None else _online(references, members)
    ratio = target / mean
    population = population_target / _offline(population_references.mean(axis=0), a)
    # 0 / 0, a row that no model gives any probability to, compares with nothing
    known = ~jnp.isnan(population)
    below = jnp.searchsorted(ascending(jnp.where(known, population, jnp.inf)), ratio / gamma, side="left")
    score = below / jnp.sum(known)
    return jnp.where(jnp.isnan(ratio), jnp.nan, score)


def _offline(mean: Float[Array, "..."], a: ArrayLike) -> Float[Array, "..."]:
    return (1 + jnp.asarray(a)) / 2 * mean + (1 - jnp.asarray(a)) / 2


def _online(references: Float[Array, "m e"], members: Bool[Array, "m e"]) -> Float[Array, " e"]:
    members = jnp.asarray(members, bool)
    if members.shape != references.shape:
        raise ValueError(f"rmia: members {members.shape} do not fit references {references.shape}")
    if is_concrete(members):
        lonely = ~(np.asarray(members).any(axis=0) & ~np.asarray(members).all(axis=0))
        if lonely.any():
            raise ValueError(
                f"rmia: {lonely.sum()} rows were seen by all or by none of the reference models; online needs both"
            )
    seen = jnp.sum(jnp.where(members, references, 0), axis=0) / jnp.sum(members, axis=0)
    unseen = jnp.sum(jnp.where(members, 0, references), axis=0) / jnp.sum(~members, axis=0)
    return (seen + unseen) / 2


class Tuned(NamedTuple):
    """What `tune_rmia` found."""

    a: Float[Array, ""]
    auc: Float[Array, " 11"]  # for a = 0, 0.1, ... 1


def tune_rmia(
    target: Float[Array, " e"],
    target_members: Bool[Array, " e"],
    references: Float[Array, "m e"],
    population_target: Float[Array, " z"],
    population_references: Float[Array, "m z"],
) -> Tuned:
    """The `a` with the largest area under the ROC curve on a model whose members are known, another one than the attacked.

    Args:
        target: as in `rmia`, of the model that is tuned on.
        target_members: which rows it was trained on; some and not all.
        references, population_target, population_references: as in `rmia`.

    Returns:
        `Tuned`.

    Raises:
        ValueError: concrete members that are all or none of the rows, and as `rmia`.

    Example:
        >>> p = jax.random.uniform(key, (9, 40))
        >>> members = jnp.arange(10) < 5
        >>> jaxunlearn.audit.tune_rmia(p[0, :10], members, p[1:, :10], p[0, 10:], p[1:, 10:]).auc.shape
        (11,)
    """
    members = jnp.asarray(target_members, bool)
    if is_concrete(members) and (np.all(np.asarray(members)) or not np.any(np.asarray(members))):
        raise ValueError("tune_rmia: expected some members and some non-members among the rows")
    grid = jnp.linspace(0, 1, 11)

    def area(a: jax.Array) -> jax.Array:
        scores = rmia(target, references, population_target, population_references, a=a)
        return auc(scores, members.astype(scores.dtype), scores, (~members).astype(scores.dtype))

    areas = jax.lax.map(area, grid)
    return Tuned(grid[jnp.argmax(areas)], areas)
