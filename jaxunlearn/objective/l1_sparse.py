"""l1-sparse unlearning (Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu: Model sparsity can simplify machine unlearning,
NeurIPS 2023, arXiv 2304.04934).

    w <- w - optimizer(grad mean_{retain} loss(w) + regularizer(w) + gamma_t sign(w)),    gamma_t = gamma (1 - t / num_steps),

fine-tuning on the retained rows under an L1 penalty that fades: weights that only the forgotten rows needed shrink and are
not rebuilt. The authors' code lets gamma fade by the epoch, this by the step. The penalty is on every parameter, as theirs.
"""

from typing import Unpack

import optax

from jaxunlearn import tree
from jaxunlearn.driver import Loop, descend, iterate
from jaxunlearn.objective.finetune import retain_objective
from jaxunlearn.risk import BatchNormPolicy
from jaxunlearn.transforms import sparsify
from jaxunlearn.types import Model, Scalar, Unlearner, UnlearnFn


def unlearner(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    gamma: Scalar = 5e-4,
    fade_steps: int,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Stepwise form of `l1_sparse`; the penalty reaches 0 after `fade_steps` steps."""
    tree.check_range("gamma", gamma, low=0)
    fading = sparsify(optax.linear_schedule(gamma, 0.0, max(fade_steps, 1)))
    return descend(model, optax.chain(fading, optimizer), retain_objective(model, bn), on_empty="finetune")


def l1_sparse(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    gamma: Scalar = 5e-4,
    bn: BatchNormPolicy = "retain",
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """Fine-tuning on the retained rows under a fading L1 penalty.

    Args:
        model: the model.
        optimizer: any optax transformation.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`.
        gamma: strength of the penalty at the first step; may be traced. 0 is `jaxunlearn.finetune`.
        bn: which passes may move BatchNorm statistics.

    Returns:
        An `UnlearnFn`; `stats`: `loss` Float[num_steps] without the penalty, and those of `iterate`.

    Raises:
        ValueError: a negative `gamma`.

    Example:
        >>> unlearn = jaxunlearn.l1_sparse(model, optax.sgd(0.1), num_steps=10, batch_size=8, gamma=1e-3)
        >>> result = unlearn(variables, data, request, key)
    """
    stepwise = unlearner(model, optimizer, gamma=gamma, fade_steps=num_steps, bn=bn)
    return iterate(stepwise, num_steps, batch_size=batch_size, **loop)
