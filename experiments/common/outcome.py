"""What an audit finds for many models, and how far that is from retrained models.

Arrays have the leading axes [seeds, requests].
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import jaxunlearn as ju
from jaxunlearn.audit import Outcome

NOTHING, AGAIN, RETRAINED = "do nothing", "retrained again", "retrained"
FALSE_POSITIVE_RATES = np.concatenate([[0.0], np.geomspace(1e-3, 1, 200)])
LEAST_SPREAD = 0.005  # half a point: spreads over few seeds can be 0 by chance
MEASURES = ("retain", "forget", "test", "auc")


class Details(NamedTuple):
    """What a report of few methods shows besides."""

    tpr: Float[Array, "s r"]  # of the loss attack, at a false positive rate of 1 %
    divergence: Float[Array, "s r"]  # Jensen-Shannon to the retrained model, on the forget set
    roc: Float[Array, "s r p"]  # true positive rates at FALSE_POSITIVE_RATES


def outcome(
    model: ju.Model,
    variables: ju.Variables,
    data: ju.Data,
    test: ju.Examples,
    request: ju.ForgetRequest,
    unseen: ju.Examples,
    unseen_weights: Float[Array, " m"],
    reference: ju.Variables | None = None,
) -> tuple[Outcome, Details | None]:
    """Audit one model; errors of real targets are root mean squares.

    Args:
        model, variables: the model.
        data, test, request: what it was trained on, what it is tested on, what it was asked to forget.
        unseen: rows that no model was trained on.
        unseen_weights: 1 where one of them is drawn like the rows of the request.
        reference: the retrained model of the same request, for `Details`.
    """
    found = ju.audit.outcome(model, variables, data, request, test, unseen=unseen, unseen_weights=unseen_weights)
    if not jnp.issubdtype(jnp.result_type(test.targets), jnp.integer):
        errors = jax.tree.map(lambda loss: jnp.sqrt(2 * loss), found)  # squared_error has a factor 1/2
        found = errors._replace(auc=found.auc)
    if reference is None:
        return found, None
    scores = ju.audit.loss_scores(model, variables, data, request, unseen)._replace(nonmember_weights=unseen_weights)
    curve = ju.audit.roc_curve(*scores)
    reached = curve.fpr[None, :] <= jnp.asarray(FALSE_POSITIVE_RATES, jnp.float32)[:, None]
    return found, Details(
        ju.audit.tpr_at_fpr(*scores).tpr.estimate,
        ju.audit.forget_divergence(model, variables, reference, data, request),
        jnp.max(jnp.where(reached, curve.tpr[None, :], 0), axis=1),
    )


def spreads(retrained: Outcome, measures: Sequence[str] = MEASURES) -> dict[str, float]:
    """Seed spread of one retrained model: standard deviation over seeds at a fixed request, root mean square over requests.

    Args:
        retrained: of retrained models.
        measures: which fields.
    """
    return {name: float(np.sqrt(np.var(np.asarray(getattr(retrained, name)), axis=0, ddof=1).mean())) for name in measures}


def gaps(
    found: Outcome,
    retrained: Outcome,
    measures: Sequence[str] = MEASURES,
    *,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> dict[str, ju.audit.Interval]:
    """Signed gaps to the retrained models of the same seeds and requests, with intervals inside of what a gap can be."""
    apart = {name: getattr(found, name) - getattr(retrained, name) for name in measures}
    return {name: ju.audit.crossed_interval(gap, within=within) for name, gap in apart.items()}


def in_spreads(
    found: Outcome, retrained: Outcome, measures: Sequence[str] = MEASURES, *, least: float = 0.0
) -> dict[str, float]:
    """Signed mean gaps in units of the seed spread; a gap that is not there is 0 even where nothing varies.

    Args:
        found, retrained, measures: as in `gaps`.
        least: a spread below this counts as this; spreads over few seeds can be 0 by chance.
    """
    width = {name: max(value, least) for name, value in spreads(retrained, measures).items()}
    values = {name: float(interval.estimate) for name, interval in gaps(found, retrained, measures).items()}
    return {
        name: value / width[name] if width[name] else float(np.sign(value) * np.inf if value else 0)
        for name, value in values.items()
    }


def in_words(scaled: Mapping[str, float], *, limit: float = 2.0) -> str:
    """What gaps in spreads mean; those within the limit mean nothing."""
    forgetting, rest = ([scaled[name] for name in names] for names in (("forget", "auc"), ("retain", "test")))
    said = [
        *(["still knows the forget set"] if max(forgetting) > limit else []),
        *(["drives it out too far"] if min(forgetting) < -limit else []),
        *(["damages the rest"] if min(rest) < -limit else []),
        *(["knows the rest better"] if max(rest) > limit else []),
    ]
    return ", ".join(said) or "like retrained models"


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and intervals as plain Python; what is not finite becomes null, which is JSON."""

    def number(value: Any) -> float | None:
        return float(value) if np.isfinite(value) else None

    return {
        name: {part: number(x) for part, x in value._asdict().items()}
        if isinstance(value, ju.audit.Interval)
        else number(value)
        for name, value in values.items()
    }
