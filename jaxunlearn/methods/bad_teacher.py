"""Bad teacher (Chundawat, Tarun, Mandal, Kankanhalli: Can bad teaching induce forgetting? Unlearning in deep networks using
an incompetent teacher, AAAI 2023, arXiv 2205.08096).

    L(w) = alpha mean_{retain} KL_T(competent || w) + (1 - alpha) mean_{forget} KL_T(incompetent || w),

the competent teacher being the trained model, the incompetent one a fresh random model, drawn once per request. The paper
mixes both sets in one (30 % of the retain set); here `alpha` weighs them, so that it means the same for requests of all sizes.
The authors' code averages the divergence over rows and classes alike, which divides its gradient by the number of classes; this
averages over rows, and KL_T carries the factor T^2.
"""

import jax
import optax

from jaxunlearn import checks, losses, passes
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend, require_init
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner, Variables, Weighted

METHOD = Method(
    summary="copy a random model on the forget set, the trained one on the retain set",
    cites="chundawat2023can",
    family="objective",
    reads=frozenset({"forget", "init", "retain"}),
    targets="classes",
    aliases=("bad_teaching", "blindspot"),
    search={"learning_rate": (0.001, 0.004, 0.01), "alpha": (0.5, 0.8, 0.95, 0.99)},
)


def bad_teacher(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    alpha: Scalar = 0.5,
    temperature: Scalar = 1.0,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Distil from the trained model on the retain set and from a random one on the forget set.

    Args:
        model: a classifier; needs `init`.
        optimizer: any optax transformation.
        alpha: weight of the retain set in [0, 1], may be traced; the forget set gets `1 - alpha`.
        temperature: of the distillation, positive, may be traced.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_distance`, `forget_distance` (KL to the two
        teachers, nats times T^2) Float[].

    Raises:
        ValueError: the model has no `init`, `alpha` outside [0, 1], a temperature that is not positive.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.bad_teacher(model, optax.sgd(0.1)), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    init = require_init(model, "the incompetent teacher is a fresh model")
    checks.check_range("alpha", alpha, low=0, high=1)
    checks.check_range("temperature", temperature, low=1e-6)

    def distance(teacher: Variables, run: passes.Pass, part: Weighted) -> jax.Array:
        target = model.forward(teacher, part.examples.inputs, train=False).logits
        return run.mean(losses.kl_divergence(target, run.outputs.logits, temperature=temperature))

    def objective(variables, teachers, batch, key):
        competent, incompetent = teachers
        retain, forget, moved = passes.both_passes(model, variables, batch, key, bn=bn)
        obeyed, copied = distance(competent, retain, batch.retain), distance(incompetent, forget, batch.forget)
        stats = {"retain_distance": obeyed, "forget_distance": copied}
        return alpha * obeyed + (1 - alpha) * copied, (moved.state, stats)

    def teachers(variables, data, request, key):
        return variables, init(key)

    return descend(model, optimizer, objective, context=teachers, on_empty=METHOD.on_empty)
