"""Unlearning with dimensional alignment, called MUDA (Seo, Kim, Han: Revisiting machine unlearning with dimensional alignment,
WACV 2025, arXiv 2407.17710): features of the forget set move into the leading eigenspace of those of the retain set.

**A reconstruction.** The paper says that it aligns the eigenspaces of the features of both sets, distils from the model itself
on the forget set and alternates with recovery; the formulas here are inferred, and its figures are not claimed.

    DA = ||Z_f U||^2 / ||Z_f||^2,    U leading eigenvectors of Z_r' Z_r, Z rows of features
    q = softmax(logits(w_o) / T) without the class of the row
    forget step:    w <- w - optimizer(grad mean_{forget} KL(q || w) + alignment_weight (1 - DA))
    recover step:   w <- w - optimizer(grad mean_{retain} [loss + feature_weight ||z(w) - z(w_o)||^2] + regularizer)

A round is `forget_steps` of the first kind, then `recover_steps` of the second; the run ends on recovery. U is computed in
every forget step from the retain side of its batch, and no gradient flows through it. The paper's scheme suggests one
decomposition per phase of the whole retain set instead, which is a pass over the data for every phase and request, out of date
after the first step; the rows of a batch see the space as it is. They span at most `retain_batch_size` directions: take more
than the space has. The moment is not centred: on digits the original model then scores .86 and retrained ones .94, which is
the order that the paper observes. DA may overshoot: compare with a retrained model.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import checks, losses, passes
from jaxunlearn.card import Method
from jaxunlearn.evaluation import class_labels
from jaxunlearn.heads import alignment, eigenspace
from jaxunlearn.heads.maps import layer_of
from jaxunlearn.loop.descend import descend, trained_model
from jaxunlearn.loop.phases import forgets, in_turns
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Batch, Model, Scalar, Unlearner, Variables, Weighted

METHOD = Method(
    summary="move features of the forget set into the space of those of the retain set",
    cites="seo2025revisiting",
    family="representation",
    reads=frozenset({"forget", "layer", "retain"}),
    targets="classes",
    reconstruction=True,
    aliases=("muda",),
    search={"learning_rate": (0.001, 0.004, 0.01), "alignment_weight": (0.1, 1.0), "own_class": (0.0, 0.1)},
)


def dimensional_alignment(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
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
) -> Unlearner:
    """MUDA, a reconstruction: align features of the forget set with the space of the retain set's, then recover, in turns.

    No default is the paper's. All settings but `rank`, `layer` and `bn` may be traced.

    Args:
        model: a classifier with integer targets [b] that returns features.
        optimizer: any optax transformation; its state is shared by both phases.
        rounds: of a forget and a recover phase each; the steps that are left recover. By default as many as fit into the run;
            one that does not fit is never begun, so that the run ends on recovery.
        alignment_weight: weight of `1 - DA`, at least 0.
        feature_weight: weight of the squared distance to the features of the trained model while recovering, at least 0.
        temperature: of the trained model's prediction, positive.
        own_class: what is left of that prediction in the class of the row, in [0, 1]. A retrained model still knows most single
            rows, so 0 asks for too much where no class is forgotten as a whole.
        energy: share of the second moment of the retain set's features that the space holds, in [0, 1].
        rank: a number of directions instead of `energy`, static.
        forget_steps, recover_steps: length of the phases of a round, in steps; at least 1.
        layer: which of `Outputs.features`.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `distillation` (nats), `alignment` (DA in [0, 1],
        before the step; both 0 in recover steps) Float[], `phase` Int[] (1 in forget steps).

    Raises:
        ValueError: a setting out of its range; at trace time, a run that is shorter than its rounds, a layer that the model
            does not return, targets that are not integer labels.

    References:
        Seo, Kim, Han: Revisiting machine unlearning with dimensional alignment, WACV 2025, arXiv 2407.17710.

    Example:
        >>> method = jaxunlearn.dimensional_alignment(model, optax.sgd(0.1), forget_steps=2)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=7, batch_size=8))(variables, data, request, key)
        >>> result.stats["phase"].tolist()
        [1, 1, 0, 1, 1, 0, 0]
    """
    for name, value in {"alignment_weight": alignment_weight, "feature_weight": feature_weight}.items():
        checks.check_range(name, value, low=0)
    for name, value in {"forget_steps": forget_steps, "recover_steps": recover_steps}.items():
        checks.check_range(name, value, low=1)
    for name, value in {"energy": energy, "own_class": own_class}.items():
        checks.check_range(name, value, low=0, high=1)
    checks.check_range("temperature", temperature, low=1e-6)
    if rank is not None:
        checks.require_count("rank", rank)
    stays_near = not (checks.is_concrete(feature_weight) and np.all(np.asarray(feature_weight) == 0))

    def is_forget_step(batch: Batch) -> jax.Array:
        room = batch.num_steps // (forget_steps + recover_steps)
        if checks.is_concrete(room) and batch.num_steps > 0:
            checks.check_range("num_steps // (forget_steps + recover_steps)", room, low=1)
            checks.check_range("rounds", room if rounds is None else rounds, low=0, high=float(room))
        begun = room if rounds is None else jnp.minimum(rounds, room)
        return forgets(batch, forget_steps=forget_steps, retain_steps=recover_steps, rounds=begun)

    def forget_step(variables, trained, batch, key):
        retain, forget, moved = passes.both_passes(model, variables, batch, key, bn=bn)
        predicted = model.forward(trained, batch.forget.examples.inputs, train=False).logits
        own = jax.nn.one_hot(class_labels(batch.forget.examples.targets), predicted.shape[-1], dtype=bool)
        distilled = losses.distil_without(predicted, forget.outputs.logits, own, temperature=temperature, odds=own_class)
        kept = jax.lax.stop_gradient(layer_of(retain.outputs, layer))
        space = eigenspace(kept, batch.retain.weights, energy=energy, rank=rank)
        aligned = alignment(layer_of(forget.outputs, layer), batch.forget.weights, space)
        distillation = forget.mean(distilled)
        stats = {"distillation": distillation, "alignment": aligned}
        loss, stats = jax.tree.map(  # both branches return one dtype
            lambda x: x.astype(retain.loss.dtype), (distillation + alignment_weight * (1 - aligned), stats)
        )
        return loss, (moved.state, stats)

    def distance(trained: Variables, run: passes.Pass, part: Weighted) -> jax.Array:
        before = layer_of(model.forward(trained, part.examples.inputs, train=False), layer)
        return run.mean(jnp.sum((layer_of(run.outputs, layer) - before) ** 2, axis=-1))

    def recover_step(variables, trained, batch, key):
        retain, moved = passes.train_pass(model, variables, batch.retain, key, side="retain", bn=bn)
        loss = retain.loss + passes.penalty(model, variables.params)
        if stays_near:
            loss = loss + feature_weight * distance(trained, retain, batch.retain)
        zeros = {"distillation": jnp.zeros_like(retain.loss), "alignment": jnp.zeros_like(retain.loss)}
        return loss.astype(retain.loss.dtype), (moved.state, zeros)

    def objective(variables, trained, batch, key):
        chosen = is_forget_step(batch)
        loss, (state, stats) = jax.lax.cond(chosen, forget_step, recover_step, variables, trained, batch, key)
        return loss, (state, {**stats, "phase": chosen.astype(jnp.int32)})

    method = descend(model, optimizer, objective, context=trained_model, on_empty=METHOD.on_empty)
    return method._replace(sample=in_turns(forget_steps=forget_steps, retain_steps=recover_steps))
