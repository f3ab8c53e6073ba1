"""Direct preference optimization of refusals over what is to be forgotten (Rafailov, Sharma, Mitchell, Ermon, Manning, Finn:
Direct preference optimization, NeurIPS 2023, arXiv 2305.18290, equation 7; for unlearning: Maini et al., TOFU, arXiv
2401.06121, and Zhang, Lin, Bai, Mei, arXiv 2404.05868), for any model whose loss is a negative log-likelihood.

    L(w) = -(2 / beta) mean_{forget} log sigmoid(beta (r_w(refusal) - r_w(row)))
           + retain_weight (mean_{retain} loss(w) + regularizer(w)),    r_w(x, y) = log p_w(y|x) / p_0(y|x),

p_0 the trained model. Its gradient is that of descent on the refusal and ascent on the row, both damped by
2 sigmoid(beta (r_w(row) - r_w(refusal))): 1 at the start, 0 once the refusal has won; `beta -> 0` never damps. Without the
refusal it is `jaxunlearn.npo`, whose factor 2 / beta it has for that reason, as in the code of OpenUnlearning; DPO and TOFU
have 1, which is another step size. The branch for it in the code of TOFU takes the labels of the forgotten rows from a name
that is not defined there, and has no term of the retain set; OpenUnlearning has one.
"""

import jax
import optax

from jaxunlearn import checks, passes
from jaxunlearn import refusals as answers
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.refusals import Refusals
from jaxunlearn.types import Model, Scalar, Unlearner, Weighted

METHOD = Method(
    summary="prefer refusals to the answers of the forget set (DPO), descend on the retain set",
    cites="rafailov2023direct",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    aliases=("idk_dpo", "dpo"),
    search={"learning_rate": (0.001, 0.004), "beta": (0.1, 0.5), "retain_weight": (2.0, 8.0)},
)


def preference_optimization(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    refusals: Refusals,
    beta: Scalar = 0.1,
    retain_weight: Scalar = 1.0,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Make a refusal likelier than every row of the forget set, against the trained model.

    Args:
        model: its loss must be a negative log-likelihood, of sequences the sum over tokens:
            `losses.sequence_log_loss(reduction="sum")`.
        optimizer: any optax transformation.
        refusals: what is preferred: `(rows, key) -> rows`, e.g. `jaxunlearn.refusals.after_prompt`, or
            `jaxunlearn.slots.REFUSALS`, see `jaxunlearn.refusals`.
        beta: how soon a pair is settled, positive, may be traced; near 0 it never is. Published: 0.1.
        retain_weight: weight of the loss on the retain set, at least 0, may be traced.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`; those of refusals count as forget side.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_loss`, `forget_loss`, `refusal_loss`,
        `margin` (mean of r_w(refusal) - r_w(row), nats) Float[].

    Raises:
        ValueError: `beta` that is not positive, a negative `retain_weight`; at trace time, refusals of another form than the
            rows.
        TypeError: `refusals` that are neither.

    Example:
        >>> refuse = lambda rows, key: rows._replace(targets=(rows.targets + 1) % 3)
        >>> method = jaxunlearn.preference_optimization(model, optax.sgd(0.1), refusals=refuse)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=10, batch_size=8))(variables, data, request, key)
    """
    answers.require(refusals, "preference_optimization")
    checks.check_range("beta", beta, low=1e-6)
    checks.check_range("retain_weight", retain_weight, low=0)

    def context(variables, data, request, key):
        return variables, answers.of_request(refusals, data, request)

    def objective(variables, context, batch, key):
        reference, kept = context
        draw_key, pass_key, refusal_key = jax.random.split(key, 3)
        preferred = answers.refused(refusals, kept, batch.forget, draw_key)
        retain, forget, moved = passes.both_passes(model, variables, batch, pass_key, bn=bn)
        refusal, moved = passes.train_pass(model, moved, preferred, refusal_key, side="forget", bn=bn)

        def gain(part: Weighted, run: passes.Pass) -> jax.Array:
            trained = model.loss(model.forward(reference, part.examples.inputs, train=False), part.examples)
            return trained - run.losses

        margin = gain(preferred, refusal) - gain(batch.forget, forget)
        preference = 2 / beta * forget.mean(jax.nn.softplus(-beta * margin))
        loss = preference + retain_weight * (retain.loss + passes.penalty(model, variables.params))
        figures = {"retain_loss": retain.loss, "forget_loss": forget.loss, "refusal_loss": refusal.loss}
        return loss, (moved.state, {**figures, "margin": forget.mean(margin)})

    return descend(model, optimizer, objective, context=context, on_empty=METHOD.on_empty)
