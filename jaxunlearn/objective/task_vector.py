"""Task vector negation (Ilharco, Ribeiro, Wortsman, Gururangan, Schmidt, Hajishirzi, Farhadi: Editing models with task
arithmetic, ICLR 2023, arXiv 2212.04089).

    v <- v - optimizer(grad mean_{forget} loss(v)), starting from the trained weights w0;    w = w0 - scale (v - w0)

Learn the forgotten rows even better, then go as far the other way. It reads no retained row. In one step of plain SGD it is
gradient ascent; in many it walks a path that stays bounded, because the loss that it descends has a minimum. Model state
(running statistics) stays that of the trained model. The paper chooses `scale` on held-out rows; `keep_best` chooses the
number of steps there.
"""

from typing import Unpack

import jax
import optax

from jaxunlearn import risk, tree
from jaxunlearn.driver import Loop, descend, iterate
from jaxunlearn.types import Model, Scalar, Unlearner, UnlearnFn


def unlearner(model: Model, optimizer: optax.GradientTransformation, *, scale: Scalar = 1.0) -> Unlearner:
    """Stepwise form of `task_vector`."""
    tree.check_range("scale", scale, low=0)

    def objective(variables, trained, batch, key):
        forget, moved = risk.train_pass(model, variables, batch.forget, key, side="forget", bn="frozen")
        return forget.loss, (moved.state, {})

    def finalize(state, trained):
        negated = jax.tree.map(
            lambda old, tuned: (old - scale * (tuned - old)).astype(old.dtype), trained.params, state.variables.params
        )
        return trained._replace(params=negated)

    tuning = descend(model, optimizer, objective, context=lambda variables, data, request, key: variables)
    return tuning._replace(finalize=finalize)


def task_vector(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    scale: Scalar = 1.0,
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """Subtract from the weights what fine-tuning on the forgotten rows would add.

    Args:
        model: the model.
        optimizer: any optax transformation, for the fine-tuning.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`.
        scale: how much of the difference is subtracted, not negative, may be traced.

    Returns:
        An `UnlearnFn`; `stats`: `loss` Float[num_steps], that of the fine-tuning, and those of `iterate`.

    Raises:
        ValueError: a negative `scale`.

    Example:
        >>> unlearn = jaxunlearn.task_vector(model, optax.sgd(0.1), num_steps=10, batch_size=8, scale=0.5)
        >>> result = unlearn(variables, data, request, key)
    """
    return iterate(unlearner(model, optimizer, scale=scale), num_steps, batch_size=batch_size, **loop)
