"""SCRUB (Kurmanji, Triantafillou, Hayes, Triantafillou: Towards unbounded machine unlearning, NeurIPS 2023,
arXiv 2302.09880): a student disobeys its frozen teacher, the trained model, on the forget set and obeys it on the retain set.

    forget step:   w <- w - optimizer(grad -mean_{forget} KL_T(teacher || student))
    retain step:   w <- w - optimizer(grad  mean_{retain} [alpha KL_T(teacher || student) + gamma loss] + gamma regularizer)

The phases really alternate: an epoch is `forget_steps` of the first kind, then `retain_steps` of the second; after
`forget_epochs` epochs only the second kind is left. As in the authors' code KL_T carries the factor T^2. Their code ends
an epoch with its loader, here a phase has a number of steps. Theirs can also pull the student towards a moving average
of itself ("smoothing"); the paper has no such term and neither does this. Their rewinding (SCRUB+R) is `keep_best`.

An epoch of the paper is a pass over the forget set; with `forget_steps=1` one here is one batch of it, and as many as
`ceil(rows of the forget set / batch size)` make a pass. The very first forget step moves nothing but what its optimizer decays:
the student still equals its teacher, where KL has no gradient, unless dropout or batch statistics tell them apart.
"""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import checks, losses, passes
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend, trained_model
from jaxunlearn.loop.phases import forgets, in_turns
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner, Variables, Weighted

METHOD = Method(
    summary="leave the teacher on the forget set, follow it on the retain set",
    cites="kurmanji2023towards",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    targets="classes",
    search={"learning_rate": (0.002, 0.004, 0.008), "alpha": (0.1,), "forget_epochs": (3, 6, 12)},
)


def scrub(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    alpha: Scalar = 0.5,
    gamma: Scalar = 1.0,
    temperature: Scalar = 2.0,
    forget_steps: Scalar = 1,
    retain_steps: Scalar = 1,
    forget_epochs: Scalar = 3,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """SCRUB: alternate between leaving the teacher on the forget set and following it on the retain set.

    Defaults are those of the authors' small-scale code (`alpha=0.001`, `gamma=0.99`, `temperature=4`,
    `forget_epochs=2` in the large-scale one). All of them may be traced.

    Args:
        model: a classifier.
        optimizer: any optax transformation; its state is shared by both phases.
        alpha: weight of the distance to the teacher on the retain set, at least 0.
        gamma: weight of the model's loss on the retain set, at least 0.
        temperature: of the distillation, positive.
        forget_steps, retain_steps: length of the two phases of an epoch, in steps.
        forget_epochs: epochs that have a forget phase; let the run go on long enough after them to recover.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `distance` (KL to the teacher, nats times T^2)
        Float[], `phase` Int[] (1 in forget steps).

    Raises:
        ValueError: a negative weight or length, a temperature that is not positive, an epoch without steps.

    Example:
        >>> method = jaxunlearn.scrub(model, optax.sgd(0.1), forget_epochs=2)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=6, batch_size=8))(variables, data, request, key)
        >>> result.stats["phase"].tolist()
        [1, 0, 1, 0, 0, 0]
    """
    counts = {"forget_steps": forget_steps, "retain_steps": retain_steps, "forget_epochs": forget_epochs}
    for name, value in {"alpha": alpha, "gamma": gamma, **counts}.items():
        checks.check_range(name, value, low=0)
    checks.check_range("forget_steps + retain_steps", forget_steps + retain_steps, low=1)
    checks.check_range("temperature", temperature, low=1e-6)

    def distance(teacher: Variables, run: passes.Pass, part: Weighted):
        target = model.forward(teacher, part.examples.inputs, train=False).logits
        return run.mean(losses.kl_divergence(target, run.outputs.logits, temperature=temperature))

    def disobey(variables, teacher, batch, key):
        forget, moved = passes.train_pass(model, variables, batch.forget, key, side="forget", bn=bn)
        kl = distance(teacher, forget, batch.forget)
        return -kl, (moved.state, {"distance": kl})

    def obey(variables, teacher, batch, key):
        retain, moved = passes.train_pass(model, variables, batch.retain, key, side="retain", bn=bn)
        kl = distance(teacher, retain, batch.retain)
        loss = alpha * kl + gamma * (retain.loss + passes.penalty(model, variables.params))
        return loss.astype(kl.dtype), (moved.state, {"distance": kl})  # both branches return one dtype

    def objective(variables, teacher, batch, key):
        leaves = forgets(batch, forget_steps=forget_steps, retain_steps=retain_steps, rounds=forget_epochs)
        loss, (state, stats) = jax.lax.cond(leaves, disobey, obey, variables, teacher, batch, key)
        return loss, (state, {**stats, "phase": leaves.astype(jnp.int32)})

    method = descend(model, optimizer, objective, context=trained_model, on_empty=METHOD.on_empty)
    return method._replace(sample=in_turns(forget_steps=forget_steps, retain_steps=retain_steps, rounds=forget_epochs))
