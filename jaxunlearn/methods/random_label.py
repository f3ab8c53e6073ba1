"""Random labels (Golatkar, Achille, Soatto: Eternal sunshine of the spotless net, CVPR 2020, arXiv 1911.04933, and Graves,
Nagisetty, Ganesh: Amnesiac machine learning, AAAI 2021, arXiv 2010.10981, where it is called "unlearning").

    L(w) = alpha (mean_{retain} loss(w; x, y) + regularizer(w)) + (1 - alpha) mean_{forget} loss(w; x, y'),

with y' uniform over the classes that are neither the row's own nor asked to be forgotten. The two terms are descended on
together, or with `turns` one after the other, as released code of this method and of SalUn (arXiv 2310.12508) does. That code
draws y' over all classes, the right one included, which its paper excludes; so does this. Several code bases call this method
"amnesiac"; `jaxunlearn.amnesiac` is that paper's other proposal.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jaxunlearn import checks, passes, sampling
from jaxunlearn.card import Method
from jaxunlearn.evaluation import class_labels
from jaxunlearn.loop.descend import descend
from jaxunlearn.loop.phases import forgets, in_turns
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner, Weighted

METHOD = Method(
    summary="learn wrong labels for the forget set",
    cites="golatkar2020eternal",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    targets="classes",
    aliases=("relabel",),
    search={"learning_rate": (0.001, 0.004, 0.01), "alpha": (0.5, 0.8, 0.95, 0.99)},
)


def wrong_labels(
    key: PRNGKeyArray, slots: Int[Array, " b"], labels: Int[Array, " b"], excluded: Bool[Array, " c"]
) -> Int[Array, " b"]:
    """A label for each row, uniform over the classes that are neither its own nor excluded; one slot always draws the same.

    Where nothing is left, excluded classes other than the row's own are drawn too.
    """
    others = ~jax.nn.one_hot(labels, excluded.shape[0], dtype=bool)
    wanted = others & ~excluded
    wanted = jnp.where(jnp.any(wanted, axis=-1, keepdims=True), wanted, others)
    draws = jax.vmap(lambda slot: jax.random.uniform(jax.random.fold_in(key, slot), excluded.shape))(slots)
    return jnp.argmax(jnp.where(wanted, draws, -1), axis=-1).astype(labels.dtype)


def random_label(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    alpha: Scalar = 0.5,
    redraw: bool = False,
    turns: tuple[int, int] | None = None,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Descent on the retain set, and on the forget set with wrong labels.

    Args:
        model: a classifier with logits [b, c] and integer targets [b].
        optimizer: any optax transformation.
        alpha: weight of the retain set in [0, 1], may be traced; the forget set gets `1 - alpha`. 1 is `jaxunlearn.finetune`.
        redraw: draw new wrong labels in every step instead of one per row for the whole run.
        turns: steps on the forget set and steps on the retain set that follow each other, again and again, each on its own
            weighted term: (8, 100) is one pass each over 8 and 100 batches. None takes the sum in every step.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_loss`, `relabelled_loss` Float[]; with
        `turns`: `loss` Float[], `phase` Int[] (1 in forget steps).

    Raises:
        ValueError: `alpha` outside [0, 1], turns without a step; at trace time, a request that names more classes than there
            are logits, logits or targets that are no classes.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.random_label(model, optax.sgd(0.1)), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    checks.check_range("alpha", alpha, low=0, high=1)

    def relabelled(forget: passes.Pass, context: Any, part: Weighted, step_key: PRNGKeyArray):
        label_key, target = context
        checks.require_classes("random_label", forget.outputs.logits)
        excluded = sampling.forgotten_classes(target, forget.outputs.logits.shape[-1])
        labels = wrong_labels(step_key if redraw else label_key, part.slots, class_labels(part.examples.targets), excluded)
        return forget.mean(model.loss(forget.outputs, part.examples._replace(targets=labels)))

    def objective(variables, context, batch, key):
        pass_key, step_key = jax.random.split(key)
        retain, forget, moved = passes.both_passes(model, variables, batch, pass_key, bn=bn)
        wrong = relabelled(forget, context, batch.forget, step_key)
        loss = alpha * (retain.loss + passes.penalty(model, variables.params)) + (1 - alpha) * wrong
        return loss, (moved.state, {"retain_loss": retain.loss, "relabelled_loss": wrong})

    def labels_and_classes(variables, data, request, key):
        return key, request.target

    if turns is None:
        return descend(model, optimizer, objective, context=labels_and_classes, on_empty=METHOD.on_empty)
    steps = dict(zip(("forget_steps", "retain_steps"), turns, strict=True))
    for name, count in steps.items():
        checks.require_count(name, count)

    def on_forget(variables, context, batch, key):
        pass_key, step_key = jax.random.split(key)
        forget, moved = passes.train_pass(model, variables, batch.forget, pass_key, side="forget", bn=bn)
        return (1 - alpha) * relabelled(forget, context, batch.forget, step_key), moved.state

    def on_retain(variables, context, batch, key):
        retain, moved = passes.train_pass(model, variables, batch.retain, key, side="retain", bn=bn)
        return alpha * (retain.loss + passes.penalty(model, variables.params)), moved.state

    def one_of_them(variables, context, batch, key):
        leaves = forgets(batch, **steps, rounds=batch.num_steps)
        loss, state = jax.lax.cond(leaves, on_forget, on_retain, variables, context, batch, key)
        return loss, (state, {"phase": leaves.astype(jnp.int32)})

    return descend(
        model, optimizer, one_of_them, context=labels_and_classes, sample=in_turns(**steps), on_empty=METHOD.on_empty
    )
