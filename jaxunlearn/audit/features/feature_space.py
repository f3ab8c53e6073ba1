"""Suppressed or removed: what features still know of a forgotten class, beside what features of retrained models know.

Outputs can forget what features keep. Every measure of features is compared with that of models that never saw the class, and
with that of doing nothing: what the features of a retrained model reveal is no fault of unlearning. The words:

- *not forgotten*: an output measure is off the floor on the side of the original;
- *suppressed*: outputs are not, but a measure of features is: the class is hidden from the head, and still there;
- *removed, as far as these measures see*: none is off the floor on the side of the original;
- *over-unlearned* is added where some measure is off the floor on the other side, which gives unlearned models away as well.

No measure proves deletion.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxunlearn.audit.statistics.verdict import Judgement, Verdict, judge

Measured = Mapping[str, Float[Array, " n"]]  # one value per model, by the name of the measure


class FeatureAudit(NamedTuple):
    """What `judge_features` returns."""

    judgements: dict[str, Judgement]
    word: str  # see the module


def judge_features(
    candidate: Measured,
    reference: Measured,
    original: Measured,
    key: PRNGKeyArray,
    *,
    outputs: Collection[str],
    alpha: float = 0.05,
    num_permutations: int = 1999,
) -> FeatureAudit:
    """Every measure of unlearned models beside retrained ones and originals, and one word for all.

    Args:
        candidate: of the unlearned models: one value per model and measure, e.g. accuracies of a probe on the forgotten class.
        reference: the same of retrained models.
        original: the same of models before unlearning.
        key: one typed key, for the permutations.
        outputs: names of the measures that look at outputs; all others look at features.
        alpha: level of all tests together: each is made at `alpha` divided by how many there are.
        num_permutations: see `jaxunlearn.audit.judge`.

    Returns:
        `FeatureAudit`.

    Raises:
        ValueError: measures that differ, an output measure that is missing, fewer models than the level needs.

    Example:
        >>> retrained, unlearned, original = jax.random.normal(key, (3, 20)) + jnp.array([[0.0], [3.0], [6.0]])
        >>> hidden = jax.random.normal(jax.random.key(1), (20,))
        >>> found = jaxunlearn.audit.judge_features(
        ...     {"forget accuracy": hidden, "probe": unlearned}, {"forget accuracy": retrained, "probe": retrained},
        ...     {"forget accuracy": original, "probe": original}, key, outputs=["forget accuracy"])
        >>> found.word
        'suppressed'
    """
    names = list(reference)
    if set(candidate) != set(names) or set(original) != set(names):
        raise ValueError(
            f"candidate, reference and original must hold the same measures, got {sorted(candidate)}, {sorted(names)} and "
            f"{sorted(original)}"
        )
    if missing := sorted(set(outputs) - set(names)):
        raise ValueError(f"outputs names measures that are not there: {', '.join(missing)}")
    judgements = {
        name: judge(
            _gap, jnp.asarray(candidate[name]), jnp.asarray(reference[name]), jnp.asarray(original[name]),
            jax.random.fold_in(key, place), alpha=alpha / len(names), num_permutations=num_permutations,
        )
        for place, name in enumerate(names)
    }  # fmt: skip
    verdicts = {name: Verdict(int(x.verdict)) for name, x in judgements.items() if int(x.verdict) >= 0}
    under = {name for name, verdict in verdicts.items() if verdict is Verdict.UNDER}
    if under & set(outputs):
        word = "not forgotten"
    elif under:
        word = "suppressed"
    elif len(verdicts) < len(names):
        word = "unknown: a measure is not a number"
    else:
        word = "removed, as far as these measures see"
    if Verdict.OVER in verdicts.values():
        word += "; over-unlearned"
    return FeatureAudit(judgements, word)


def _gap(candidate: jax.Array, reference: jax.Array) -> jax.Array:
    return jnp.mean(candidate) - jnp.mean(reference)
