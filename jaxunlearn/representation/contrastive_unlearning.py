"""Contrastive unlearning (Lee, Zhang, Yang, Lou, Xiong: Contrastive unlearning: a contrastive approach to machine unlearning,
IJCAI 2025, arXiv 2401.10458): a forgotten row leaves its class in feature space and moves in with the others.

    l_i = -mean_{a: y_a != y_i} z_i z_a / T + log sum_{p: y_p = y_i} exp(z_i z_p / T),    a, p retained, z unit features
    w <- w - optimizer(grad contrastive_weight mean_{forget} l_i + retain_weight (mean_{retain} loss + regularizer))

A batch of forgotten rows is used `repeats` times, each time with fresh retained rows. After a request for a whole class no
retained row is of its class, and the logarithm is a constant. Features are normalised as in the authors' code (the paper's
text does not say so); `denominator="official"` is what that code computes instead of the equation. It runs both kinds of
rows through the model in one batch, here each has its own pass, so that `bn` can tell them apart. Their code keeps
one row of a forgotten class among the retained ones, and forgets the first rows of the data; this does what is asked.
"""

from functools import partial
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PRNGKeyArray

from jaxunlearn import losses, risk, rows, tree
from jaxunlearn.driver import Look, Loop, descend, iterate
from jaxunlearn.features.moments import layer_of
from jaxunlearn.losses.contrastive import Denominator
from jaxunlearn.risk import BatchNormPolicy
from jaxunlearn.rows import class_labels
from jaxunlearn.types import Batch, BatchSizes, Model, Scalar, Split, Unlearner, UnlearnFn


def repeat(split: Split, context: Any, step: jax.Array, key: PRNGKeyArray, sizes: BatchSizes, *, times: Scalar) -> Batch:
    """Sampler that shows every batch of forgotten rows some times in a row, with fresh retained rows."""
    return Batch(risk.draw_forget(split, step // times, sizes.forget), risk.draw_retain(split, key, sizes.retain))


def unlearner(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    contrastive_weight: Scalar = 3.0,
    retain_weight: Scalar = 1.0,
    temperature: Scalar = 0.7,
    repeats: Scalar = 4,
    denominator: Denominator = "paper",
    layer: str = "penultimate",
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Stepwise form of `contrastive_unlearning`."""
    tree.check_range("contrastive_weight", contrastive_weight, low=0)
    tree.check_range("retain_weight", retain_weight, low=0)
    tree.check_range("temperature", temperature, low=1e-6)
    tree.check_range("repeats", repeats, low=1)

    def objective(variables, context, batch, key):
        retain, forget, moved = risk.both_passes(model, variables, batch, key, bn=bn)
        contrast = losses.class_contrast(
            losses.unit_rows(layer_of(forget.outputs, layer)),
            class_labels(batch.forget.examples.targets),
            losses.unit_rows(layer_of(retain.outputs, layer)),
            class_labels(batch.retain.examples.targets),
            batch.retain.weights,
            temperature=temperature,
            denominator=denominator,
        )
        contrastive_loss = forget.mean(contrast)
        loss = retain_weight * (retain.loss + risk.penalty(model, variables.params)) + contrastive_weight * contrastive_loss
        return loss, (moved.state, {"contrastive_loss": contrastive_loss, "retain_loss": retain.loss})

    return descend(model, optimizer, objective, sample=partial(repeat, times=repeats))


def stop_rule(
    model: Model,
    form: Literal["class", "sample"],
    *,
    classes: Bool[Array, "c"] | None = None,
    chunk: int | None = None,
) -> Look:
    """When the paper stops, to be passed on as `stop=`.

    The class form stops when the accuracy on the validation rows of the forgotten classes is at most `1 / c`; the sample form
    when the accuracy on the rows of the request is at most that on the validation rows. The authors look at test rows once an
    epoch; this looks at `data.extra["validation"]`, every `look_every` steps. Both overshoot if steps are large: a forgotten
    row that is less known than an unseen one gives itself away, too.

    Args:
        model: a classifier.
        form: the sample form reads training rows, so it needs `peek=True`.
        classes: multi-hot, the forgotten classes of the class form. By default those of `request.target`, which needs
            `peek=True` too, and lets every request of a batch have its own.
        chunk: rows that go through the model together; `None` takes all.

    Returns:
        `(variables, data, request) -> Bool[]`. It never stops where a set is empty or a logit is NaN.

    Raises:
        ValueError: an unknown form, `classes` for the sample form; when it is called, a request without classes or no
            validation rows.

    Example:
        >>> stop = jaxunlearn.representation.contrastive_unlearning.stop_rule(model, "sample")
        >>> loop = {"num_steps": 40, "batch_size": 8, "stop": stop, "look_every": 4, "peek": True}
        >>> unlearn = jaxunlearn.contrastive_unlearning(model, optax.sgd(1e-3), **loop)
    """
    if form not in ("class", "sample"):
        raise ValueError(f'form must be "class" or "sample", got {form!r}')
    if form == "sample" and classes is not None:
        raise ValueError('classes belong to the form "class"; the form "sample" reads the rows of the request')

    def accuracy(variables, examples, counts) -> tuple[jax.Array, int]:
        logits = rows.predict(model, variables, examples, chunk=chunk)
        hit = jnp.where(
            jnp.any(jnp.isnan(logits), axis=-1), jnp.nan, jnp.argmax(logits, axis=-1) == class_labels(examples.targets)
        )
        return rows.mean(hit, counts), logits.shape[-1]

    def stop(variables, data, request):
        if "validation" not in data.extra:
            raise ValueError("stop_rule looks at data.extra['validation']: add held-out rows there")
        held_out = data.extra["validation"]
        labels = class_labels(held_out.targets)
        if form == "class":
            chosen = request.target if classes is None else classes
            if not (hasattr(chosen, "dtype") and chosen.dtype == bool and jnp.ndim(chosen) == 1):
                raise ValueError(
                    "the class form needs the forgotten classes, multi-hot Bool[c]: make the request with from_classes, or "
                    "pass classes=..."
                )
            known = (labels >= 0) & (labels < chosen.shape[0])
            forgotten = known & chosen[jnp.where(known, labels, 0)]
            reached, num_classes = accuracy(variables, held_out, forgotten.astype(jnp.float32))
            return reached <= 1 / num_classes
        part = rows.forget_rows(data, request)
        unseen, _ = accuracy(variables, held_out, jnp.ones(labels.shape[0]))
        return accuracy(variables, part.examples, part.weights)[0] <= unseen

    return stop


def contrastive_unlearning(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    contrastive_weight: Scalar = 3.0,
    retain_weight: Scalar = 1.0,
    temperature: Scalar = 0.7,
    repeats: Scalar = 4,
    denominator: Denominator = "paper",
    layer: str = "penultimate",
    bn: BatchNormPolicy = "retain",
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """Move forgotten rows out of their class in feature space, and keep training on retained ones.

    Defaults are those of the authors' code, which goes with SGD at 1e-3, momentum 0.9 and batches of 128. A retained batch
    should hold several rows of every class (`retain_batch_size`): rows whose class it lacks are only drawn towards the others.
    All numbers but `num_steps` and `batch_size` may be traced.

    Args:
        model: a classifier with integer targets [b] that returns features.
        optimizer: any optax transformation.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`. `stop_rule`, beside this function, makes the paper's `stop`.
        contrastive_weight: weight of the contrast; 0 is `finetune`.
        retain_weight: weight of the loss on retained rows.
        temperature: T of the contrast.
        repeats: steps that a batch of forgotten rows is used for, with fresh retained rows each.
        denominator: "paper" for the equation, "official" for the authors' code, see `jaxunlearn.losses.class_contrast`.
        layer: which of `Outputs.features`.
        bn: which passes may move BatchNorm statistics.

    Returns:
        An `UnlearnFn`; `stats`: `loss`, `contrastive_loss`, `retain_loss` Float[num_steps], and those of `iterate`.

    Raises:
        ValueError: numbers out of their range, an unknown denominator, a layer that the model does not return, targets that are
            not integer labels.

    Example:
        >>> unlearn = jaxunlearn.contrastive_unlearning(model, optax.sgd(0.1), num_steps=10, batch_size=8)
        >>> result = unlearn(variables, data, request, key)
    """
    stepwise = unlearner(
        model,
        optimizer,
        contrastive_weight=contrastive_weight,
        retain_weight=retain_weight,
        temperature=temperature,
        repeats=repeats,
        denominator=denominator,
        layer=layer,
        bn=bn,
    )
    return iterate(stepwise, num_steps, batch_size=batch_size, **loop)
