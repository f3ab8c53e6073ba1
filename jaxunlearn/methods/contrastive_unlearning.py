"""Contrastive unlearning (Lee, Zhang, Yang, Lou, Xiong: Contrastive unlearning: a contrastive approach to machine unlearning,
IJCAI 2025, arXiv 2401.10458): a row of the forget set leaves its class in feature space and moves in with the others.

    l_i = -mean_{a: y_a != y_i} z_i z_a / T + log sum_{p: y_p = y_i} exp(z_i z_p / T),    a, p in the retain set, |z| = 1
    w <- w - optimizer(grad contrastive_weight mean_{forget} l_i + retain_weight (mean_{retain} loss + regularizer))

A batch of the forget set is used `repeats` times, each time with fresh rows of the retain set. After a request for a whole
class the retain set holds no row of it, and the logarithm is a constant. Features are normalised as in the authors' code (the
paper's text does not say so); `denominator="official"` is what that code computes instead of the equation. It runs both sides
through the model in one batch, here each has its own pass, so that `bn` can tell them apart. Their code keeps one row of a
forgotten class in the retain set, and forgets the first rows of the data; this does what is asked.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from jaxunlearn import checks, evaluation, losses, passes, sampling
from jaxunlearn.card import Method
from jaxunlearn.evaluation import class_labels
from jaxunlearn.heads.maps import layer_of
from jaxunlearn.loop.descend import descend
from jaxunlearn.loop.iterate import Look
from jaxunlearn.loop.phases import repeated
from jaxunlearn.losses.contrastive import Denominator
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner

METHOD = Method(
    summary="move the forget set out of its classes in feature space",
    cites="lee2025contrastive",
    family="representation",
    reads=frozenset({"forget", "layer", "retain"}),
    targets="classes",
    search={"learning_rate": (0.004, 0.01, 0.02), "contrastive_weight": (0.03, 0.3, 3.0, 10.0)},
)


def stop_rule(
    model: Model,
    form: Literal["class", "sample"],
    *,
    classes: Bool[Array, " c"] | None = None,
    chunk: int | None = None,
) -> Look:
    """When the paper stops, to be passed on as `stop=`.

    The class form stops when the accuracy on the validation rows of the forgotten classes is at most `1 / c`; the sample form
    when the accuracy on the forget set is at most that on the validation rows. The authors look at test rows once per epoch;
    this looks at `iterate(..., validation=...)`, every `look_every` steps. Both overshoot if steps are large: a row of the
    forget set that is less known than an unseen one gives itself away, too.

    Args:
        model: a classifier.
        form: the sample form reads the forget set, so it needs `peek=True`.
        classes: multi-hot Bool[c], the forgotten classes of the class form. By default those of `request.target`, which needs
            `peek=True` too, and lets every request of a batch have its own.
        chunk: rows that go through the model together; None takes all.

    Returns:
        `(variables, seen) -> Bool[]`, for `jaxunlearn.iterate`. It never stops where a set is empty or a logit is NaN.

    Raises:
        ValueError: an unknown form, `classes` for the sample form; when it is called, a request without classes or no
            validation rows.

    Example:
        >>> from jaxunlearn.methods.contrastive_unlearning import stop_rule
        >>> stop = stop_rule(model, "sample")
        >>> loop = {"num_steps": 40, "batch_size": 8, "stop": stop, "look_every": 4, "validation": test, "peek": True}
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.contrastive_unlearning(model, optax.sgd(1e-3)), **loop)
    """
    if form not in ("class", "sample"):
        raise ValueError(f'form must be "class" or "sample", got {form!r}')
    if form == "sample" and classes is not None:
        raise ValueError('classes belong to the form "class"; the form "sample" reads the rows of the request')

    def accuracy(variables, examples, counts) -> tuple[jax.Array, int]:
        logits = evaluation.predict(model, variables, examples, chunk=chunk)
        hit = jnp.where(
            jnp.any(jnp.isnan(logits), axis=-1), jnp.nan, jnp.argmax(logits, axis=-1) == class_labels(examples.targets)
        )
        return sampling.masked_mean(hit, counts, empty=jnp.nan), logits.shape[-1]

    def stop(variables, seen):
        held_out = seen.validation
        labels = class_labels(held_out.targets)
        if form == "class":
            chosen = seen.request.target if classes is None else classes
            if not (hasattr(chosen, "dtype") and chosen.dtype == bool and jnp.ndim(chosen) == 1):
                raise ValueError(
                    "the class form needs the forgotten classes, multi-hot Bool[c]: make the request with from_classes, or "
                    "pass classes=..."
                )
            known = (labels >= 0) & (labels < jnp.int32(chosen.shape[0]))  # eight bits do not hold 256
            forgotten = known & chosen[jnp.where(known, labels, 0)]
            reached, num_classes = accuracy(variables, held_out, forgotten.astype(jnp.float32))
            return reached <= 1 / num_classes
        part = sampling.forget_rows(seen.data, seen.request)
        unseen, _ = accuracy(variables, held_out, jnp.ones(labels.shape[0]))
        return accuracy(variables, part.examples, part.weights)[0] <= unseen

    return stop


def contrastive_unlearning(
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
    """Move the forget set out of its classes in feature space, and keep training on the retain set.

    Defaults are those of the authors' code, which goes with SGD at 1e-3, momentum 0.9 and batches of 128. The retain side of a
    batch should hold several rows of every class (`retain_batch_size`): rows whose class it lacks are only drawn towards the
    others. Weights, `temperature` and `repeats` may be traced.

    Args:
        model: a classifier with integer targets [b] that returns features.
        optimizer: any optax transformation.
        contrastive_weight: weight of the contrast, at least 0; 0 is `jaxunlearn.finetune`.
        retain_weight: weight of the loss on the retain set, at least 0.
        temperature: T of the contrast, positive.
        repeats: steps that a batch of the forget set is used for, with fresh rows of the retain set each.
        denominator: "paper" for the equation, "official" for the authors' code, see `jaxunlearn.losses.class_contrast`.
        layer: which of `Outputs.features`.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `contrastive_loss`, `retain_loss` Float[].

    Raises:
        ValueError: a setting out of its range; at trace time, an unknown denominator, a layer that the model does not return,
            targets that are not integer labels.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.contrastive_unlearning(model, optax.sgd(0.1)), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    checks.check_range("contrastive_weight", contrastive_weight, low=0)
    checks.check_range("retain_weight", retain_weight, low=0)
    checks.check_range("temperature", temperature, low=1e-6)
    checks.check_range("repeats", repeats, low=1)

    def objective(variables, context, batch, key):
        retain, forget, moved = passes.both_passes(model, variables, batch, key, bn=bn)
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
        loss = retain_weight * (retain.loss + passes.penalty(model, variables.params)) + contrastive_weight * contrastive_loss
        return loss, (moved.state, {"contrastive_loss": contrastive_loss, "retain_loss": retain.loss})

    return descend(model, optimizer, objective, sample=repeated(times=repeats), on_empty=METHOD.on_empty)
