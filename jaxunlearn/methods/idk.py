"""IDK, refusals in place of what is to be forgotten (Maini, Feng, Schwarzschild, Lipton, Kolter: TOFU: a task of fictitious
unlearning for LLMs, COLM 2024, arXiv 2401.06121, section 3.2, "Preference Optimization").

    L(w) = mean_{forget} loss(w; x -> refusal) + retain_weight (mean_{retain} loss(w) + regularizer(w)),

a refusal being one of a hundred sentences of the kind "I don't know", behind the question of the row. It descends only, so that
nothing can run away; what a model answers without a refusal is not forgotten. The authors' code puts both sides into one batch
and takes the mean over all of its tokens, which weighs a side by its length; here the model's loss of a row is what counts.
"""

import jax
import optax

from jaxunlearn import checks, passes
from jaxunlearn import refusals as answers
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.refusals import Refusals
from jaxunlearn.types import Model, Scalar, Unlearner

METHOD = Method(
    summary="learn refusals in place of the answers of the forget set, descend on the retain set",
    cites="maini2024tofu",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    aliases=("idk_nll",),
    search={"learning_rate": (0.0003, 0.001, 0.003), "retain_weight": (1.0, 4.0)},
)


def idk(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    refusals: Refusals,
    retain_weight: Scalar = 1.0,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Learn a refusal in place of every row of the forget set.

    Args:
        model: any; of language models with a loss such as `losses.sequence_cross_entropy`.
        optimizer: any optax transformation.
        refusals: `(rows, key) -> rows`, e.g. `jaxunlearn.refusals.after_prompt`, or `jaxunlearn.slots.REFUSALS`, see
            `jaxunlearn.refusals`.
        retain_weight: weight of the loss on the retain set, at least 0, may be traced; published: 1.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_loss`, `refusal_loss` Float[].

    Raises:
        ValueError: a negative `retain_weight`; at trace time, refusals of another form than the rows.
        TypeError: `refusals` that are neither.

    Example:
        >>> refuse = lambda rows, key: rows._replace(targets=(rows.targets + 1) % 3)
        >>> method = jaxunlearn.idk(model, optax.sgd(0.1), refusals=refuse)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=10, batch_size=8))(variables, data, request, key)
    """
    answers.require(refusals, "idk")
    checks.check_range("retain_weight", retain_weight, low=0)

    def context(variables, data, request, key):
        return answers.of_request(refusals, data, request)

    def objective(variables, kept, batch, key):
        draw_key, pass_key = jax.random.split(key)
        batch = batch._replace(forget=answers.refused(refusals, kept, batch.forget, draw_key))
        retain, refusal, moved = passes.both_passes(model, variables, batch, pass_key, bn=bn)
        loss = refusal.loss + retain_weight * (retain.loss + passes.penalty(model, variables.params))
        return loss, (moved.state, {"retain_loss": retain.loss, "refusal_loss": refusal.loss})

    return descend(model, optimizer, objective, context=context, on_empty=METHOD.on_empty)
