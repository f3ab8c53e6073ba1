"""SalUn (Fan, Liu, Zhang, Wong, Wei, Liu: SalUn: empowering machine unlearning via gradient-based weight saliency, ICLR 2024,
arXiv 2310.12508): random labels, on the parameters that the forget set depends on most.

    m_j = 1 for the largest |mean_{forget} d loss / d w_j|, else 0
    w <- m (w - optimizer(grad L(w))) + (1 - m) w_o,    L as in `jaxunlearn.random_label`

The mask is applied to the finished step, behind momentum and weight decay, as the authors' code does since February 2026. It
alternates passes over both sets with one batch per step, which `turns` does; without it every step sees both sets, weighted by
alpha. It also draws labels over all classes, the right one included, which the paper excludes; here wrong labels are wrong.
"""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import checks
from jaxunlearn.card import Method
from jaxunlearn.curvature.matvecs import gradient_sum
from jaxunlearn.methods.random_label import random_label
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.sampling import forget_rows
from jaxunlearn.transforms import saliency_mask
from jaxunlearn.types import Model, Scalar, Unlearner

METHOD = Method(
    summary="learn wrong labels with the parameters that the forget set depends on most",
    cites="fan2024salun",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    targets="classes",
    aliases=("saliency_unlearning",),
    search={"learning_rate": (0.001, 0.004, 0.01), "alpha": (0.8, 0.95, 0.99)},
)


def salun(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    fraction: float = 0.5,
    alpha: Scalar = 0.5,
    redraw: bool = False,
    turns: tuple[int, int] | None = None,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """`random_label` restricted to the parameters with the largest gradients on the forget set.

    Args:
        model: a classifier with logits [b, c] and integer targets [b].
        optimizer: any optax transformation.
        fraction: of the parameters that may move, in [0, 1], static; 1 is `jaxunlearn.random_label`.
        alpha, redraw, turns, bn: as in `jaxunlearn.random_label`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`, as of `jaxunlearn.random_label`.

    Raises:
        ValueError: `fraction` or `alpha` outside [0, 1], turns without a step; at trace time, a request that names more
            classes than there are logits.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.salun(model, optax.sgd(0.1)), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    checks.check_range("fraction", fraction, low=0, high=1)
    inner = random_label(model, optimizer, alpha=alpha, redraw=redraw, turns=turns, bn=bn)

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

    def finalize(state, context):
        return inner.finalize(state, context[0])

    return inner._replace(init=init, step=step, finalize=finalize, on_empty=METHOD.on_empty)
