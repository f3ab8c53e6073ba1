"""Random labels (Golatkar, Achille, Soatto: Eternal sunshine of the spotless net, CVPR 2020, arXiv 1911.04933, and Graves,
Nagisetty, Ganesh: Amnesiac machine learning, AAAI 2021, arXiv 2010.10981, where it is called "unlearning").

    L(w) = alpha (mean_{retain} loss(w; x, y) + regularizer(w)) + (1 - alpha) mean_{forget} loss(w; x, y'),

with y' uniform over the classes that are neither the row's own nor asked to be forgotten. Several code bases call this
method "amnesiac"; `jaxunlearn.amnesiac` is that paper's other proposal. SalUn's code (arXiv 2310.12508) draws y' over all
classes, the right one included, which its paper excludes; so does this.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jaxunlearn import risk, tree
from jaxunlearn.driver import Loop, descend, iterate
from jaxunlearn.risk import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner, UnlearnFn


def wrong_labels(
    key: PRNGKeyArray, slots: Int[Array, "b"], labels: Int[Array, "b"], excluded: Bool[Array, "c"]
) -> Int[Array, "b"]:
    """A label for each row, uniform over the classes that are neither its own nor excluded; one slot always draws alike.

    Where nothing is left, excluded classes other than the row's own are drawn too.
    """
    others = ~jax.nn.one_hot(labels, excluded.shape[0], dtype=bool)
    wanted = others & ~excluded
    wanted = jnp.where(jnp.any(wanted, axis=-1, keepdims=True), wanted, others)
    draws = jax.vmap(lambda slot: jax.random.uniform(jax.random.fold_in(key, slot), excluded.shape))(slots)
    return jnp.argmax(jnp.where(wanted, draws, -1), axis=-1).astype(labels.dtype)


def unlearner(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    alpha: Scalar = 0.5,
    redraw: bool = False,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Stepwise form of `random_label`."""
    tree.check_range("alpha", alpha, low=0, high=1)

    def objective(variables, context, batch, key):
        label_key, target = context
        pass_key, step_key = jax.random.split(key)
        retain, forget, moved = risk.both_passes(model, variables, batch, pass_key, bn=bn)
        excluded = risk.forgotten_classes(target, forget.outputs.logits.shape[-1])
        examples = batch.forget.examples
        labels = wrong_labels(step_key if redraw else label_key, batch.forget.slots, examples.targets, excluded)
        relabelled = forget.mean(model.loss(forget.outputs, examples._replace(targets=labels)))
        loss = alpha * (retain.loss + risk.penalty(model, variables.params)) + (1 - alpha) * relabelled
        return loss, (moved.state, {"retain_loss": retain.loss, "relabelled_loss": relabelled})

    return descend(model, optimizer, objective, context=lambda variables, data, request, key: (key, request.target))


def random_label(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    alpha: Scalar = 0.5,
    redraw: bool = False,
    bn: BatchNormPolicy = "retain",
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """Descent on the retained rows and on the forgotten rows with wrong labels.

    Args:
        model: a classifier with logits [b, c] and integer targets [b].
        optimizer: any optax transformation.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`.
        alpha: weight of the retained rows in [0, 1], may be traced; the relabelled ones get `1 - alpha`. 1 is `finetune`.
        redraw: draw new wrong labels in every step instead of one for the whole run.
        bn: which passes may move BatchNorm statistics.

    Returns:
        An `UnlearnFn`; `stats`: `loss`, `retain_loss`, `relabelled_loss` Float[num_steps], and those of `iterate`.

    Raises:
        ValueError: `alpha` outside [0, 1]; a request that names more classes than there are logits.

    Example:
        >>> unlearn = jaxunlearn.random_label(model, optax.sgd(0.1), num_steps=10, batch_size=8)
        >>> result = unlearn(variables, data, request, key)
    """
    stepwise = unlearner(model, optimizer, alpha=alpha, redraw=redraw, bn=bn)
    return iterate(stepwise, num_steps, batch_size=batch_size, **loop)
