"""REMIND: do losses around a text tell that it was unlearned?

Cohen, Nemcovesky, Mendelson: REMIND: memorization and unlearning in LLMs through the lens of input loss landscapes, 2026,
arXiv 2511.04228. Unlearned texts are said to lie on plateaus of the loss over near-synonymous inputs, where the loss of the
text itself says nothing. A classifier learns from such neighbourhoods which texts were retained, held out or forgotten.

A reconstruction: names and order of the fifteen features are the authors', their code for them is not public. Facts of their
outputs that it meets: `increment_variance` repeats `loss_variance`, and distances differ between variants. `loss_volatility`,
`local_curvature` and the distance (theirs is that of an external text encoder) are this library's reading.

Retained, held-out and forgotten texts may differ in content or format, and unlearning may have damaged the model wherever texts
resemble those forgotten. So the same classifier is fitted to a retrained model, for which forgotten texts *are* held-out ones,
and to the loss alone. What counts is the excess over both.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.audit.features.probes import linear_probe
from jaxunlearn.audit.language.neighbourhood import Neighbourhood
from jaxunlearn.audit.single.membership import auc, roc_curve

RETAINED, HELD_OUT, FORGOTTEN = KINDS = (0, 1, 2)  # what a text is to the model; below 0 it is padding
FEATURES = (
    "original_loss", "mean_neighbor_loss", "max_neighbor_loss", "min_neighbor_loss", "loss_variance", "loss_std",
    "mean_loss_increment", "max_loss_increment", "min_loss_increment", "mean_gradient", "max_gradient", "gradient_variance",
    "loss_volatility", "local_curvature", "increment_variance",
)  # fmt: skip
REPEATED = ("increment_variance",)  # equal to another feature, whatever the losses


class Told(NamedTuple):
    """How well test texts are told apart."""

    auc: Float[Array, ""]  # one kind against the others, mean over kinds
    forgotten_auc: Float[Array, ""]  # forgotten against all others
    unseen_auc: Float[Array, ""]  # forgotten against held-out: 0.5 for a model that saw neither
    unseen_tpr: Float[Array, ""]  # the same, true-positive rate at a false-positive rate of 1 %, interpolated
    accuracy: Float[Array, ""]


class Separation(NamedTuple):
    """What `separation` returns."""

    features: Told
    loss_alone: Told
    gain: Float[Array, ""]  # of `unseen_auc`, features over loss alone
    gradient_norm: Float[Array, ""]  # largest of both fits; a large one says that the solver did not converge


class Remind(NamedTuple):
    """What `remind` returns."""

    unlearned: Separation
    retrained: Separation
    excess: Float[Array, ""]  # of `features.unseen_auc`, unlearned over retrained


def remind_features(neighbours: Neighbourhood, *, drop_degenerate: bool = False) -> Float[Array, "... n f"]:
    """The fifteen features of every text, in the order of `FEATURES`.

    With `l` the loss of a text, `l_1 ... l_K` those of its variants and `d_k` their distances: mean, largest and smallest of
    `l_k`; variance and deviation of `l_k`; mean, largest and smallest of `l_k - l`; mean, largest and variance of
    `|l_k - l| / d_k`; mean of `|l_{k+1} - l_k|`; mean of `l_{k+1} - 2 l_k + l_{k-1}`; variance of `l_k - l`.

    Args:
        neighbours: from `neighbourhood`, or losses of any model around any input.
        drop_degenerate: leave out `increment_variance`, which repeats `loss_variance`.

    Returns:
        15 features, or 14.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> flat = jaxunlearn.audit.language.Neighbourhood(jnp.ones(2), jnp.ones((2, 4)), jnp.ones((2, 4)))
        >>> jaxunlearn.audit.language.remind_features(flat).shape
        (2, 15)
    """
    original, variants, distances = (jnp.asarray(x) for x in neighbours)
    if variants.shape[:-1] != original.shape or distances.shape != variants.shape or variants.shape[-1:] == (0,):
        raise ValueError(
            f"remind_features: expected original [n], variants and distances [n, k], k > 0, got {original.shape}, "
            f"{variants.shape}, {distances.shape}"
        )
    increments = variants - original[..., None]
    slopes = jnp.abs(increments) / distances
    variance = _variance(variants)
    steps = jnp.diff(variants, axis=-1)
    values = {
        "original_loss": original,
        "mean_neighbor_loss": jnp.mean(variants, axis=-1),
        "max_neighbor_loss": jnp.max(variants, axis=-1),
        "min_neighbor_loss": jnp.min(variants, axis=-1),
        "loss_variance": variance,
        "loss_std": jnp.sqrt(variance),
        "mean_loss_increment": jnp.mean(increments, axis=-1),
        "max_loss_increment": jnp.max(increments, axis=-1),
        "min_loss_increment": jnp.min(increments, axis=-1),
        "mean_gradient": jnp.mean(slopes, axis=-1),
        "max_gradient": jnp.max(slopes, axis=-1),
        "gradient_variance": _variance(slopes),
        "loss_volatility": _mean(jnp.abs(steps)),
        "local_curvature": _mean(jnp.diff(steps, axis=-1)),
        "increment_variance": variance,
    }
    kept = [name for name in FEATURES if not (drop_degenerate and name in REPEATED)]
    return jnp.stack([values[name] for name in kept], axis=-1)


def held_back(kinds: Int[Array, " n"], key: PRNGKeyArray, *, share: float = 0.2) -> Bool[Array, " n"]:
    """A random share of the texts of every kind, for testing; padding behind the texts changes nothing.

    Args:
        kinds: 0 retained, 1 held out, 2 forgotten, below 0 padding.
        key: one typed key.
        share: in (0, 1).

    Returns:
        Booleans, `round(share * count)` of every kind.

    Raises:
        ValueError: a share outside (0, 1).

    Example:
        >>> int(jaxunlearn.audit.language.held_back(jnp.repeat(jnp.arange(3), 10), key).sum())
        6
    """
    if not 0 < share < 1:
        raise ValueError(f"held_back: share must lie in (0, 1), got {share}")
    kinds = jnp.asarray(kinds)
    draws = jax.random.uniform(key, kinds.shape)
    chosen = jnp.zeros(kinds.shape, bool)
    for kind in KINDS:
        of_kind = kinds == kind
        rank = jnp.argsort(jnp.argsort(jnp.where(of_kind, draws, jnp.inf)))
        chosen = chosen | (of_kind & (rank < jnp.round(share * jnp.sum(of_kind))))
    return chosen


def separation(
    neighbours: Neighbourhood,
    kinds: Int[Array, " n"],
    key: PRNGKeyArray,
    *,
    test_share: float = 0.2,
    drop_degenerate: bool = False,
    penalty: float = 1.0,
    num_steps: int = 100,
) -> Separation:
    """How well the neighbourhoods of one model tell retained, held-out and forgotten texts apart.

    A multinomial logistic regression, `sum CE + penalty / 2 |W|^2` on features that are standardised on the training part (one
    that does not vary there counts for nothing). The authors standardise before the split, and report a random forest as well.

    Args:
        neighbours: of one model, n texts.
        kinds: 0 retained, 1 held out, 2 forgotten, below 0 padding, which may hold anything.
        key: one typed key, for the split.
        test_share: of every kind, in (0, 1).
        drop_degenerate: see `remind_features`.
        penalty: `1 / C` of scikit-learn.
        num_steps: of L-BFGS.

    Returns:
        `Separation`; areas are NaN where a kind has no test text, or where a loss is NaN.

    Raises:
        ValueError: shapes that do not fit, a share outside (0, 1), counts that are too small.

    Example:
        >>> losses, kinds = jax.random.uniform(key, (60, 4)), jnp.arange(60) % 3
        >>> around = jaxunlearn.audit.language.Neighbourhood(losses[:, 0], losses, jnp.ones((60, 4)))
        >>> found = jaxunlearn.audit.language.separation(around, kinds, key, num_steps=5)
        >>> bool(0 <= found.features.auc <= 1)
        True
    """
    checks.check_key(key)
    kinds = jnp.asarray(kinds)
    if kinds.ndim != 1 or neighbours.original.shape != kinds.shape:
        raise ValueError(
            f"separation: expected losses and kinds [n] of one model, got {neighbours.original.shape}, {kinds.shape}"
        )
    tested = held_back(kinds, key, share=test_share)
    trained = (kinds >= 0) & ~tested
    features = jnp.where(kinds[:, None] >= 0, remind_features(neighbours, drop_degenerate=drop_degenerate), 0)
    features = _standardised(features, trained)
    alone = jnp.where(jnp.arange(features.shape[1]) == FEATURES.index("original_loss"), features, 0)

    def fit(z: Float[Array, "n f"]) -> tuple[Told, Float[Array, ""]]:
        found = linear_probe(
            z, jnp.maximum(kinds, 0), z, jnp.maximum(kinds, 0), num_classes=len(KINDS), weights=trained.astype(z.dtype),
            l2=penalty / jnp.maximum(jnp.sum(trained), 1), num_steps=num_steps,
        )  # fmt: skip
        return _told(jnp.dot(z, found.kernel, precision="highest") + found.bias, kinds, tested), found.gradient_norm

    told, norms = jax.vmap(fit)(jnp.stack([features, alone]))  # one program for both
    all_features, loss_alone = (jax.tree.map(lambda x, place=place: x[place], told) for place in range(2))
    return Separation(all_features, loss_alone, all_features.unseen_auc - loss_alone.unseen_auc, jnp.max(norms))


def remind(
    unlearned: Neighbourhood,
    retrained: Neighbourhood,
    kinds: Int[Array, " n"],
    key: PRNGKeyArray,
    *,
    test_share: float = 0.2,
    drop_degenerate: bool = False,
    penalty: float = 1.0,
    num_steps: int = 100,
) -> Remind:
    """REMIND of an unlearned model, beside the same of a model that was retrained without the forgotten texts.

    Several models are one `jax.vmap`; of many, give `separation(...).features.unseen_auc` of each to `jaxunlearn.audit.judge`.

    Args:
        unlearned: from `neighbourhood`, with this model's losses.
        retrained: of the same variants: the same texts and key.
        kinds, key, test_share, drop_degenerate, penalty, num_steps: as for `separation`; the split is one for both models.

    Returns:
        `Remind`. An `excess` near 0 says that the classifier finds no more in the unlearned model than in the retrained one.

    Raises:
        ValueError: as `separation`, and models seen on different texts.

    Example:
        >>> losses, kinds = jax.random.uniform(key, (60, 4)), jnp.arange(60) % 3
        >>> around = jaxunlearn.audit.language.Neighbourhood(losses[:, 0], losses, jnp.ones((60, 4)))
        >>> float(jaxunlearn.audit.language.remind(around, around, kinds, key, num_steps=5).excess)
        0.0
    """
    if jax.tree.map(jnp.shape, unlearned) != jax.tree.map(jnp.shape, retrained):
        raise ValueError("remind: unlearned and retrained model must be asked for the same texts and variants")

    def of(neighbours: Neighbourhood) -> Separation:
        return separation(
            neighbours, kinds, key, test_share=test_share, drop_degenerate=drop_degenerate, penalty=penalty, num_steps=num_steps
        )

    both = jax.vmap(of)(jax.tree.map(lambda *x: jnp.stack(x), unlearned, retrained))
    first, second = (jax.tree.map(lambda x, place=place: x[place], both) for place in range(2))
    return Remind(first, second, first.features.unseen_auc - second.features.unseen_auc)


def _told(logits: Float[Array, "n c"], kinds: Int[Array, " n"], tested: Bool[Array, " n"]) -> Told:
    def against(scores: Float[Array, " n"], kind: int, others: Bool[Array, " n"]) -> tuple:
        return scores, (tested & (kinds == kind)).astype(scores.dtype), scores, (tested & others).astype(scores.dtype)

    probabilities = jax.nn.softmax(logits)
    by_kind = [auc(*against(probabilities[:, kind], kind, kinds != kind)) for kind in KINDS]
    unseen = against(logits[:, FORGOTTEN] - logits[:, HELD_OUT], FORGOTTEN, kinds == HELD_OUT)
    curve = roc_curve(*unseen)
    right = jnp.where(tested, jnp.argmax(logits, axis=1) == kinds, 0)
    return Told(
        jnp.mean(jnp.stack(by_kind)),
        by_kind[FORGOTTEN],
        auc(*unseen),
        jnp.interp(0.01, curve.fpr, curve.tpr),
        jnp.sum(right) / jnp.sum(tested),
    )


def _standardised(features: Float[Array, "n f"], trained: Bool[Array, " n"]) -> Float[Array, "n f"]:
    count = jnp.maximum(jnp.sum(trained), 1)
    centre = jnp.sum(jnp.where(trained[:, None], features, 0), axis=0) / count
    deviation = jnp.sqrt(jnp.sum(jnp.where(trained[:, None], (features - centre) ** 2, 0), axis=0) / count)
    varies = deviation > 1e-6 * jnp.maximum(jnp.abs(centre), jnp.finfo(features.dtype).tiny)
    return jnp.where(varies, (features - centre) / jnp.where(varies, deviation, 1), 0)


def _mean(values: Float[Array, "... k"]) -> Float[Array, "..."]:
    """0 where there is nothing to average: one variant has no neighbour, two have no second difference."""
    return jnp.sum(values, axis=-1) / max(values.shape[-1], 1)


def _variance(values: Float[Array, "... k"]) -> Float[Array, "..."]:
    """Exactly 0 where all values are equal."""
    return jnp.var(values - values[..., :1], axis=-1)
