"""SalUn (Fan, Liu, Zhang, Wong, Wei, Liu: SalUn: empowering machine unlearning via gradient-based weight saliency, ICLR 2024,
arXiv 2310.12508): random labels, on the weights that the forgotten rows hang on.

    m_j = 1 for the largest |mean_{forget} d loss / d w_j|, else 0
    w <- m (w - optimizer(grad L(w))) + (1 - m) w_o,    L as in `jaxunlearn.random_label`

The mask is applied to the finished step, behind momentum and weight decay, as the authors' code does since February 2026. It
alternates passes over both kinds of rows with one batch of each a step, and draws labels over all classes, the right one
included, which the paper excludes; here every step sees both kinds, weighted by alpha, and wrong labels are wrong.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import tree
from jaxunlearn.curvature.matvecs import gradient_sum
from jaxunlearn.driver import Loop, iterate
from jaxunlearn.objective import random_label
from jaxunlearn.risk import BatchNormPolicy
from jaxunlearn.rows import forget_rows
from jaxunlearn.transforms import saliency_mask
from jaxunlearn.types import Model, Scalar, Unlearner, UnlearnFn


def unlearner(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    fraction: float = 0.5,
    alpha: Scalar = 0.5,
    redraw: bool = False,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Stepwise form of `salun`."""
    tree.check_range("fraction", fraction, low=0, high=1)
    inner = random_label.unlearner(model, optimizer, alpha=alpha, redraw=redraw, bn=bn)

    def init(variables, data, request, key):
        context, state = inner.init(variables, data, request, key)
        part = forget_rows(data, request)
        mask = saliency_mask(gradient_sum(model, variables, part.examples, part.weights), fraction)
        return (context, mask), state

    def step(state, context, batch, key):
        inner_context, mask = context
        moved, stats = inner.step(state, inner_context, batch, key)

        def masked(m, after, before):
            return jnp.where(m > 0, after, before)

        params = jax.tree.map(masked, mask, moved.variables.params, state.variables.params)
        return moved._replace(variables=moved.variables._replace(params=params)), stats

    return inner._replace(init=init, step=step, finalize=lambda state, context: inner.finalize(state, context[0]))


def salun(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    fraction: float = 0.5,
    alpha: Scalar = 0.5,
    redraw: bool = False,
    bn: BatchNormPolicy = "retain",
    **loop: Unpack[Loop],
) -> UnlearnFn:
    """`random_label` restricted to the weights with the largest gradients on the forgotten rows.

    Args:
        model: a classifier with logits [b, c] and integer targets [b].
        optimizer: any optax transformation.
        num_steps, batch_size, loop: see `jaxunlearn.iterate`.
        fraction: of the weights that may move, in [0, 1], static; 1 is `random_label`.
        alpha, redraw, bn: as in `jaxunlearn.random_label`.

    Returns:
        An `UnlearnFn`; `stats` as those of `jaxunlearn.random_label`.

    Raises:
        ValueError: `fraction` or `alpha` outside [0, 1]; a request that names more classes than there are logits.

    Example:
        >>> unlearn = jaxunlearn.salun(model, optax.sgd(0.1), num_steps=10, batch_size=8)
        >>> result = unlearn(variables, data, request, key)
    """
    stepwise = unlearner(model, optimizer, fraction=fraction, alpha=alpha, redraw=redraw, bn=bn)
    return iterate(stepwise, num_steps, batch_size=batch_size, **loop)
