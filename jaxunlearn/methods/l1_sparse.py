"""l1-sparse unlearning (Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu: Model sparsity can simplify machine unlearning,
NeurIPS 2023, arXiv 2304.04934).

    w <- w - optimizer(grad mean_{retain} loss(w) + regularizer(w) + gamma_t sign(w)),    gamma_t = gamma (1 - t / num_steps),

fine-tuning on the retain set under an L1 penalty that fades: parameters that only the forget set needed shrink and are not
rebuilt. The authors' code lets gamma fade by the epoch, this by the step. The penalty is on every parameter, as theirs.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from jaxunlearn import checks
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend, retain_objective
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner

METHOD = Method(
    summary="keep training on the retain set under a fading L1 penalty",
    cites="jia2023model",
    family="objective",
    reads=frozenset({"retain"}),
    on_empty="finetune",
    aliases=("sparsity",),
    search={"learning_rate": (0.003, 0.01, 0.02), "gamma": (0.0001, 0.0005, 0.002)},
)


def _one_norm(w: jax.Array) -> Float[jax.Array, ""]:
    # JAX gives |w| the slope 1 at 0, where sign(w) is 0 and leaves a parameter alone
    return jnp.sum((w * jax.lax.stop_gradient(jnp.sign(w))).astype(jnp.float32))


def l1_sparse(
    model: Model, optimizer: optax.GradientTransformation, *, gamma: Scalar = 5e-4, bn: BatchNormPolicy = "retain"
) -> Unlearner:
    """Fine-tuning on the retain set under a fading L1 penalty.

    Args:
        model: the model.
        optimizer: any optax transformation.
        gamma: strength of the penalty at the first step, at least 0, may be traced. 0 is `jaxunlearn.finetune`.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` Float[], without the penalty.

    Raises:
        ValueError: a negative `gamma`.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.l1_sparse(model, optax.sgd(0.1), gamma=1e-3), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    checks.check_range("gamma", gamma, low=0)
    plain = retain_objective(model, bn)

    def objective(variables, context, batch, key):
        loss, (state, stats) = plain(variables, context, batch, key)
        size = sum(_one_norm(w) for w in jax.tree.leaves(variables.params))
        return loss + gamma * (1 - batch.progress) * size, (state, {**stats, "loss": loss})

    return descend(model, optimizer, objective, on_empty=METHOD.on_empty)
