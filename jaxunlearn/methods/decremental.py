"""Decremental reinforcement unlearning (Ye, Zhu, Zhu, Wang, Gao, Shi, Shen, Zhou, Xue: Reinforcement unlearning, NDSS 2025,
arXiv 2312.15910, Eq. 5): a value-based agent forgets an environment.

Rows are states, logits are action values, a request is the states of the environment that is revoked.

    L(w) = mean_{forget} max_a |Q_w(s, a)| + retain_weight mean_{retain} max_a |Q_w(s, a) - Q_0(s, a)|,

Q_0 the trained agent, frozen. All values of the revoked environment go to 0, not to minus infinity, so that the greedy action
there becomes arbitrary. `|x|` has the derivative 0 at 0, and for the second term where x is no more than rounding: at the start
Q_w is Q_0, and a derivative of 1 there, which is what `jnp.abs` has, would push all retained values down in the first step.
The rows are the two samples of states that the paper draws once: those of the revoked environment under a random policy, and
some of all others.

The authors' code (github.com/cp-lab-uts/Reinforcement-Unlearning) does something else: it replaces the maps by new ones
after training, acts at random on the first of them and goes on with ordinary DQN everywhere. There is no frozen agent in it,
and the environment that training saw is never touched. What is here is the equation of the paper.

To act badly in an environment is not to have never seen it: an agent that was retrained without it may well succeed there. And
values near 0 in one environment only are a fingerprint that tells which one was revoked. Compare with a retrained agent.
Where states of the revoked environment look like states of others, the two terms conflict, see `jaxunlearn.rl.aliased_share`.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxunlearn import checks, passes
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend, trained_model
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner

METHOD = Method(
    summary="action values of a revoked environment go to 0, those of all others stay (reinforcement learning)",
    cites="ye2025reinforcement",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    search={"learning_rate": (1e-4, 3e-4, 1e-3), "retain_weight": (1.0, 3.0)},
)

ROUNDING = 64  # units of rounding, relative to the largest value of a row, up to which a row counts as where it was


def decremental(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    retain_weight: Scalar = 1.0,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Drive the action values of the forget set to 0 and keep those of the retain set where the trained agent has them.

    Args:
        model: its logits are action values, [b, actions]. Its loss is reported and tells whether the run damaged the agent;
            no gradient of it is taken. Logits of another meaning and shape are treated alike.
        optimizer: any optax transformation.
        retain_weight: weight of the second term, at least 0, may be traced; 1 is the paper's.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_loss`, `forget_loss` (the model's loss),
        `largest_value` (mean of max_a |Q|, forget set) and `drift` (mean of max_a |Q - Q_0|, retain set) Float[].

    Raises:
        ValueError: a negative `retain_weight`.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.decremental(model, optax.adam(1e-3)), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
        >>> bool(result.stats["largest_value"][-1] < result.stats["largest_value"][0])
        True
    """
    checks.check_range("retain_weight", retain_weight, low=0)

    def objective(variables, reference, batch, key):
        retain, forget, moved = passes.both_passes(model, variables, batch, key, bn=bn)
        trained = model.forward(reference, batch.retain.examples.inputs, train=False).logits
        largest = forget.mean(_norm(forget.outputs.logits))
        drift = retain.mean(_norm(retain.outputs.logits - trained, _rounding(trained)))
        stats = {"retain_loss": retain.loss, "forget_loss": forget.loss, "largest_value": largest, "drift": drift}
        return largest + retain_weight * drift, (moved.state, stats)

    return descend(model, optimizer, objective, context=trained_model, on_empty=METHOD.on_empty)


def _norm(values: jax.Array, least: jax.Array | float = 0.0) -> Float[Array, " b"]:
    """The largest absolute value of each row, with the derivative 0 where it is not above `least`."""
    values = values.reshape(values.shape[0], -1)
    still = jnp.abs(values) <= least
    return jnp.max(jnp.where(still, 0, jnp.abs(jnp.where(still, 1, values))), axis=1)


def _rounding(trained: jax.Array) -> jax.Array:
    """What rounding alone can make of a row of trained values: the sign of such a difference is no direction."""
    trained = trained.reshape(trained.shape[0], -1)
    return ROUNDING * jnp.finfo(trained.dtype).eps * jnp.max(jnp.abs(trained), axis=1, keepdims=True)
