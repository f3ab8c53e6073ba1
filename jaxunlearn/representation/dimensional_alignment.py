"""Unlearning with dimensional alignment, called MUDA (Seo, Kim, Han: Revisiting machine unlearning with dimensional alignment,
WACV 2025, arXiv 2407.17710): features of forgotten rows move into the leading eigenspace of the retained ones.

**A reconstruction.** The paper says that it aligns eigenspaces of forgotten and retained features, distils from the model
itself on forgotten rows and alternates with recovery; the formulas here are inferred, and its figures are not claimed.

    DA = ||Z_f U||^2 / ||Z_f||^2,    U leading eigenvectors of Z_r' Z_r, Z rows of features
    q = softmax(logits(w_o) / T) without the class of the row
    forget step:    w <- w - optimizer(grad mean_{forget} KL(q || w) + alignment_weight (1 - DA))
    recover step:   w <- w - optimizer(grad mean_{retain} [loss + feature_weight ||z(w) - z(w_o)||^2] + regularizer)

Rounds are `forget_steps` of the first kind, then `recover_steps` of the second; the run ends on recovery. U is computed in
every forget step from the retained rows of its batch, and no gradient flows through it. The paper's scheme suggests one
decomposition a phase of all retained rows instead, which is a pass over the data for every phase and request, out of date after
the first step; the rows of a batch see the space as it is. They span at most `retain_batch_size` directions: take more than
the space has. The moment is not centred: on digits the original model then scores .86 and retrained ones .94, which is the
order that the paper observes. DA may overshoot: compare with a retrained model.
"""

from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxunlearn import losses, risk, tree
from jaxunlearn.driver import Loop, descend, iterate
from jaxunlearn.features import alignment, eigenspace
from jaxunlearn.features.moments import layer_of
from jaxunlearn.objective import scrub
from jaxunlearn.risk import BatchNormPolicy
from jaxunlearn.rows import class_labels
from jaxunlearn.types import Batch, BatchSizes, Model, Scalar, Split, Unlearner, UnlearnFn, Variables, Weighted


def distil_without_own_class(
    teacher_logits: Float[Array, "b c"],
    student_logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    *,
    temperature: Scalar = 1.0,
    own_class: Scalar = 0.0,
) -> Float[Array, "b"]:
    """`KL(q || softmax(student))`, q the belief of the teacher at a temperature, without the class of the row.

    Args:
        teacher_logits: two classes or more.
        student_logits: of the model that learns.
        labels: the classes that are taken out.
        temperature: of the teacher.
        own_class: odds of the own class are multiplied by it, in [0, 1]; 1 leaves the teacher as it is.

    Returns:
        One value a row, in nats.

    Example:
        >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
        >>> value = jaxunlearn.representation.dimensional_alignment.distil_without_own_class(logits, logits, jnp.array([0]))
        >>> round(float(value[0]), 3)  # -log(0.3 + 0.2)
        0.693
    """
    own = jax.nn.one_hot(labels, teacher_logits.shape[-1], dtype=bool)
    belief = teacher_logits / temperature
    return losses.kl_divergence(jnp.where(own, belief + jnp.log(own_class), belief), student_logits)


def alternate(split: Split, context: Any, step: jax.Array, key: PRNGKeyArray, sizes: BatchSizes, *, phase: Any) -> Batch:
    """Sampler as that of `scrub`, but retained rows count in forget steps too: they span the space."""
    current = phase(step)
    batch = risk.uniform(split, context, step, key, sizes)
    weights = jnp.where(current == scrub.FORGET, batch.forget.weights, 0)
    return batch._replace(forget=batch.forget._replace(weights=weights), phase=current)


def unlearner(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    rounds: Scalar,
    alignment_weight: Scalar = 1.0,
    feature_weight: Scalar = 0.0,
    temperature: Scalar = 1.0,
    own_class: Scalar = 0.0,
    energy: Scalar = 0.95,
    rank: int | None = None,
    forget_steps: Scalar = 1,
    recover_steps: Scalar = 1,
    layer: str = "penultimate",
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Stepwise form of `dimensional_alignment`."""
    numbers = {"rounds": rounds, "alignment_weight": alignment_weight, "feature_weight": feature_weight}
    for name, value in numbers.items():
        tree.check_range(name, value, low=0)
    tree.check_range("forget_steps + recover_steps", forget_steps + recover_steps, low=1)
    for name, value in {"energy": energy, "own_class": own_class}.items():
        tree.check_range(name, value, low=0, high=1)
    tree.check_range("temperature", temperature, low=1e-6)
    if rank is not None:
        tree.require_count("rank", rank)
    stays_near = not (tree.is_concrete(feature_weight) and np.all(np.asarray(feature_weight) == 0))

    def forget_step(variables, original, batch, key):
        retain, forget, moved = risk.both_passes(model, variables, batch, key, bn=bn)
        belief = model.forward(original, batch.forget.examples.inputs, train=False).logits
        distilled = distil_without_own_class(
            belief,
            forget.outputs.logits,
            class_labels(batch.forget.examples.targets),
            temperature=temperature,
            own_class=own_class,
        )
        retained = jax.lax.stop_gradient(layer_of(retain.outputs, layer))
        space = eigenspace(retained, batch.retain.weights, energy=energy, rank=rank)
        aligned = alignment(layer_of(forget.outputs, layer), batch.forget.weights, space)
        distillation = forget.mean(distilled)
        stats = {"distillation": distillation, "alignment": aligned}
        loss, stats = jax.tree.map(  # both branches return one dtype
            lambda x: x.astype(retain.loss.dtype), (distillation + alignment_weight * (1 - aligned), stats)
        )
        return loss, (moved.state, stats)

    def distance(original: Variables, run: risk.Pass, part: Weighted) -> jax.Array:
        before = layer_of(model.forward(original, part.examples.inputs, train=False), layer)
        return run.mean(jnp.sum((layer_of(run.outputs, layer) - before) ** 2, axis=-1))

    def recover_step(variables, original, batch, key):
        retain, moved = risk.train_pass(model, variables, batch.retain, key, side="retain", bn=bn)
        loss = retain.loss + risk.penalty(model, variables.params)
        if stays_near:
            loss = loss + feature_weight * distance(original, retain, batch.retain)
        zeros = {"distillation": jnp.zeros_like(retain.loss), "alignment": jnp.zeros_like(retain.loss)}
        return loss.astype(retain.loss.dtype), (moved.state, zeros)

    def objective(variables, original, batch, key):
        chosen = batch.phase == scrub.FORGET
        loss, (state, stats) = jax.lax.cond(chosen, forget_step, recover_step, variables, original, batch, key)
        return loss, (state, {**stats, "phase": jnp.asarray(batch.phase)})

    phase = partial(scrub.phase_of, forget_steps=forget_steps, retain_steps=recover_steps, forget_epochs=rounds)
    return descend(
        model,
        optimizer,
        objective,
        context=lambda variables, data, request, key: variables,
        sample=partial(alternate, phase=phase),
    )


def dimensional_alignment(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    rounds: Scalar | None = None,
    alignment_weight: Scalar = 1.0,
    feature_weight: Scalar = 0.0,
    temperature: Scalar = 1.0,
    own_class: Scalar = 0.0,
    energy: Scalar = 0.95,
    rank: int | None = None,
    forget_steps: Scalar = 1,
    recover_steps: Scalar = 1,
    layer: str = "penultimate",
    bn: BatchNormPolicy = "retain",
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """MUDA, a reconstruction: align forgotten features with the space of the retained ones, then recover, in turns.

    No default is the paper's. All numbers but `num_steps`, `batch_size` and `rank` may be traced.

    Args:
        model: a classifier with integer targets [b] that returns features.
        optimizer: any optax transformation; its state is shared by both phases.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`. `retain_batch_size` rows span the space.
        rounds: of a forget and a recover phase each; the steps that are left recover. By default as many as there is room for.
        alignment_weight: weight of `1 - DA`.
        feature_weight: weight of the squared distance to the features of the original model while recovering.
        temperature: of the original model's belief.
        own_class: what is left of that belief in the class of the row, in [0, 1]. A retrained model still knows most single
            rows, so 0 asks for too much where no class is forgotten as a whole.
        energy: share of the retained features' second moment that the space holds, in [0, 1].
        rank: a number of directions instead of `energy`.
        forget_steps, recover_steps: length of the phases of a round, in steps; at least 1.
        layer: which of `Outputs.features`.
        bn: which passes may move BatchNorm statistics.

    Returns:
        An `UnlearnFn`; `stats`: `loss`, `distillation` (nats), `alignment` (DA in [0, 1], before the step; both 0 in recover
        steps) Float[num_steps], `phase` Int[num_steps] (1 in forget steps), and those of `iterate`.

    Raises:
        ValueError: numbers out of their range, rounds that do not fit in, a layer that the model does not return, targets that
            are not integer labels.

    References:
        Seo, Kim, Han: Revisiting machine unlearning with dimensional alignment, WACV 2025, arXiv 2407.17710.

    Example:
        >>> unlearn = jaxunlearn.dimensional_alignment(model, optax.sgd(0.1), num_steps=10, batch_size=8)
        >>> result = unlearn(variables, data, request, key)
    """
    tree.require_count("num_steps", num_steps, least=0)
    for name, value in {"forget_steps": forget_steps, "recover_steps": recover_steps}.items():
        tree.check_range(name, value, low=1)
    room = num_steps // (forget_steps + recover_steps)  # rounds that end before the run does, on a recover phase
    if tree.is_concrete(room):
        tree.check_range("num_steps // (forget_steps + recover_steps)", room, low=1)
        tree.check_range("rounds", room if rounds is None else rounds, low=0, high=float(room))
    rounds = room if rounds is None else jnp.minimum(rounds, room)
    stepwise = unlearner(
        model,
        optimizer,
        rounds=rounds,
        alignment_weight=alignment_weight,
        feature_weight=feature_weight,
        temperature=temperature,
        own_class=own_class,
        energy=energy,
        rank=rank,
        forget_steps=forget_steps,
        recover_steps=recover_steps,
        layer=layer,
        bn=bn,
    )
    return iterate(stepwise, num_steps, batch_size=batch_size, **loop)
