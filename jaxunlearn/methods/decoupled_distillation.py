"""DELETE (Zhou, Zheng, Mo, Lu, Lin, Zheng: Decoupled distillation to erase: a general unlearning method for any class-centric
tasks, CVPR 2025, arXiv 2503.23751): copy the trained model on the forget set, with the forgotten class masked out.

    L(w) = mean_{forget} KL(softmax(mask(logits(w_o))) || softmax(logits(w))),    mask: -inf at the label of the row

The mask is what forgets; what the trained model says of the other classes ("dark knowledge") is what holds them. No row of the
retain set is read. The authors' code masks the label of the row alone, so that after a request for two classes the rows of one
may be taught to look like the other; here every class of which no row stays is masked. It trains with batch statistics, which
moves those of BatchNorm towards the forget set: `bn="all"` does that.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from jaxunlearn import checks, losses, passes, sampling
from jaxunlearn.card import Method
from jaxunlearn.evaluation import class_labels
from jaxunlearn.loop.descend import descend
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Unlearner, Variables

METHOD = Method(
    summary="copy the trained model on the forget set, with its class masked out; reads no row that stays",
    cites="zhou2025decoupled",
    family="objective",
    reads=frozenset({"forget"}),
    targets="classes",
    aliases=("delete",),
    search={"learning_rate": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)},
)


class _Teacher(NamedTuple):
    """The trained model, and the classes that it may not name."""

    trained: Variables
    gone: Bool[Array, " c"]


def decoupled_distillation(
    model: Model, optimizer: optax.GradientTransformation, *, bn: BatchNormPolicy = "retain"
) -> Unlearner:
    """Distil the trained model into itself on the forget set, without the class of each row.

    It is made for whole classes. A retrained model still knows most single rows, and this asks that none of them is recognised.
    With no retain set to hold it, `num_steps` and the learning rate decide how much else is lost.

    Args:
        model: a classifier with logits [b, c] and integer targets [b].
        optimizer: any optax transformation; published: SGD with momentum 0.9, 1e-3 for CIFAR-10, 20 passes, batches of 128.
        bn: which passes may move BatchNorm statistics; there is no retain pass, so only "all" moves them. A batch of one class
            is best taken through the model with "evaluate", see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` (nats), `forget_loss` (the model's own) Float[].

    Raises:
        ValueError: at trace time, logits or targets that are no classes, a request that names more classes than there are.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.decoupled_distillation(model, optax.sgd(0.1)), num_steps=5, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """

    def teacher(variables, data, request, key) -> _Teacher:
        class_labels(data.train.targets)
        logits = checks.check_forward(model, variables, data.train.inputs).logits
        checks.require_classes("decoupled_distillation", logits)
        return _Teacher(variables, sampling.classes_gone(data, request, logits.shape[1]))

    def objective(variables, context: _Teacher, batch, key):
        forget, moved = passes.train_pass(model, variables, batch.forget, key, side="forget", bn=bn)
        predicted = model.forward(context.trained, batch.forget.examples.inputs, train=False).logits
        own = jax.nn.one_hot(batch.forget.examples.targets, predicted.shape[-1], dtype=bool)
        hidden = own | context.gone
        hidden = jnp.where(jnp.all(hidden, axis=-1, keepdims=True), own, hidden)  # with no class left there are the others
        copied = losses.distil_without(predicted, forget.outputs.logits, hidden)
        return forget.mean(copied), (moved.state, {"forget_loss": forget.loss})

    return descend(model, optimizer, objective, context=teacher, on_empty=METHOD.on_empty, judge=False)
