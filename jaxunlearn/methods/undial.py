"""UnDIAL (Dong, Lin, Belkin, Huerta, Vulic: UNDIAL: self-distillation with adjusted logits for robust unlearning in large
language models, NAACL 2025, arXiv 2402.10052).

    q = softmax(z_0(x) - strength e_y),    y the label of a position, z_0 the logits of the trained model
    L(w) = mean_{forget} mean_{positions} KL(q || softmax(z_w(x))) + retain_weight (mean_{retain} loss(w) + regularizer(w))

The target is fixed, so that a run ends at it and cannot run away: the odds of the label are multiplied by `e^-strength`, and
those of all other tokens among each other stay. The paper takes the cross-entropy with q, which has the same gradients, and
no retain set. In OpenUnlearning padding and prompts count like answers, and since their label -100 is an index from the end
there, they lower the logit of the hundredth last token of the vocabulary; here a position without a label does not count.
"""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import checks, losses, passes
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend, trained_model
from jaxunlearn.losses.sequences import logits_that_count, over_positions, token_labels
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner

METHOD = Method(
    summary="learn the trained model's own prediction with the label's logit lowered, on every token of the forget set",
    cites="dong2025undial",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    targets="tokens",
    aliases=("adjusted_logits",),
    search={"learning_rate": (0.001, 0.003), "strength": (3.0, 10.0, 30.0), "retain_weight": (1.0, 8.0)},
)


def undial(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    strength: Scalar = 10.0,
    retain_weight: Scalar = 1.0,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Learn the trained model's own prediction of the forget set, with the label less likely.

    Args:
        model: logits [b, t, v] and labels Int[b, t] as of `losses.sequence_cross_entropy`, or a classifier, whose label is one
            token.
        optimizer: any optax transformation; published: LoRA of rank 8, learning rate 1e-4.
        strength: what is taken off the logit of the label, nats, at least 0, may be traced; 0 distils the model from itself.
            Published: 3 to 30.
        retain_weight: weight of the loss on the retain set, at least 0, may be traced; 0 is the paper's.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_loss`, `forget_loss` (the model's loss),
        `distance` (KL to the target, nats per token) Float[].

    Raises:
        ValueError: a negative setting; at trace time, labels that do not fit the logits.
        TypeError: at trace time, labels that are no integers.

    Example:
        >>> method = jaxunlearn.undial(model, optax.sgd(0.1), strength=5.0)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=10, batch_size=8))(variables, data, request, key)
    """
    checks.check_range("strength", strength, low=0)
    checks.check_range("retain_weight", retain_weight, low=0)

    def objective(variables, reference, batch, key):
        retain, forget, moved = passes.both_passes(model, variables, batch, key, bn=bn)
        trained = model.forward(reference, batch.forget.examples.inputs, train=False).logits
        labels = token_labels(batch.forget.examples.targets, trained.shape[:-1], "logits")
        size = trained.shape[-1]
        teacher, student = (logits_that_count(x, labels).reshape(-1, size) for x in (trained, forget.outputs.logits))
        own = jax.nn.one_hot(labels.reshape(-1), size, dtype=bool)
        apart = losses.distil_without(teacher, student, own, odds=jnp.exp(-jnp.asarray(strength, teacher.dtype)))
        distance = forget.mean(over_positions(apart.reshape(labels.shape), labels, size))
        loss = distance + retain_weight * (retain.loss + passes.penalty(model, variables.params))
        return loss, (moved.state, {"retain_loss": retain.loss, "forget_loss": forget.loss, "distance": distance})

    return descend(model, optimizer, objective, context=trained_model, on_empty=METHOD.on_empty)
