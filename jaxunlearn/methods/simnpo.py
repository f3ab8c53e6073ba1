"""SimNPO, negative preference optimization without a reference (Fan, Liu, Lin, Jia, Zhang, Mei, Liu: Simplicity prevails:
rethinking negative preference optimization for LLM unlearning, NeurIPS 2025, arXiv 2410.07163), for any model whose loss is a
negative log-likelihood.

    L(w) = (2 / beta) mean_{forget} log(1 + e^{beta gamma} p_w(y|x)^{beta / |y|})
           + retain_weight (mean_{retain} loss(w) + regularizer(w))

`jaxunlearn.npo` damps the ascent on a row by how far it fell below the trained model, `(p_w / p_0)^beta`: at the start every
row climbs alike, whether it was learnt by heart or hardly at all. Here it is the likelihood itself that damps, by 2 r / (1 +
r) with r = e^{beta gamma} p_w^{beta / |y|}: what is unlikely anyway is left alone from the first step, and nothing of the
trained model is kept.

|y| is the number of tokens of an answer. Log-likelihoods are divided by it, so that long answers, which are unlikely as a
whole, are not left alone for their length. A label is one token: for a classifier nothing is divided, and what remains is the
missing reference. The paper writes gamma without the factor beta, the authors' code has it; both take gamma = 0. Their code
for MUSE puts the model's logits where log-likelihoods belong; that for TOFU, which this follows, does not.
"""

import jax
import optax

from jaxunlearn import checks, passes
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner

METHOD = Method(
    summary="climb on each row of the forget set while it is likely, whatever it was, descend on the retain set",
    cites="fan2025simplicity",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    aliases=("simple_npo",),
    search={"learning_rate": (0.002, 0.008), "beta": (1.0, 3.0), "retain_weight": (2.0, 8.0, 30.0)},
)


def simnpo(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    beta: Scalar = 2.5,
    gamma: Scalar = 0.0,
    retain_weight: Scalar = 7.3,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Push the likelihood of the forget set down, less the lower it is.

    Defaults are those of the authors' code for 5 % of TOFU, where the forget set weighs 0.1375 and the retain set 1.

    Args:
        model: its loss must be a negative log-likelihood, such as `losses.cross_entropy`; of a sequence the mean over its
            tokens, which is what divides by |y|. The sum over tokens belongs to `jaxunlearn.npo`.
        optimizer: any optax transformation.
        beta: how soon a row counts as forgotten, positive, may be traced; near 0 it never does (gradient ascent).
        gamma: loss at which a row climbs as in gradient ascent, nats per token, may be traced; likelier rows climb up to twice
            as fast, others more slowly. Published: 0, the loss of a row that is certain.
        retain_weight: weight of the loss on the retain set, at least 0, may be traced.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_loss`, `forget_loss`, `damping` (mean of
        2 r / (1 + r) over the forget set, in [0, 2]) Float[].

    Raises:
        ValueError: `beta` that is not positive, a negative `retain_weight`.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.simnpo(model, optax.sgd(0.1)), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    checks.check_range("beta", beta, low=1e-6)
    checks.check_range("gamma", gamma, low=-float("inf"))
    checks.check_range("retain_weight", retain_weight, low=0)

    def objective(variables, context, batch, key):
        retain, forget, moved = passes.both_passes(model, variables, batch, key, bn=bn)
        likely = beta * (gamma - forget.losses)
        preference = 2 / beta * forget.mean(jax.nn.softplus(likely))
        loss = preference + retain_weight * (retain.loss + passes.penalty(model, variables.params))
        damping = forget.mean(2 * jax.nn.sigmoid(likely))
        return loss, (moved.state, {"retain_loss": retain.loss, "forget_loss": forget.loss, "damping": damping})

    return descend(model, optimizer, objective, on_empty=METHOD.on_empty)
