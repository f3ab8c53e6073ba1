"""MSG, masked small gradients, an entry of the NeurIPS 2023 unlearning challenge, as it stands in the code of Cadet, Borovykh,
Malekzadeh, Ahmadi-Abhari, Haddadi: Deep Unlearn: benchmarking machine unlearning, 2024, arXiv 2410.01276: start afresh where
retaining and forgetting pull least, then fine-tune.

    g = sum_{R'} grad loss - sum_{forget} grad loss,    R' as many rows of the retain set, drawn at random
    w_j <- init(key)_j   for the `fraction` of smallest |g_j| of each kernel
    w <- w - optimizer(s grad mean_{retain} loss(w) + grad regularizer(w)),    s = 1 there and in other layers, else `held`

Weights with small g tell the two sets least apart; they are drawn anew, and learn at full speed while the rest of their kernels
is held back. That code treats convolutions only, and draws normal weights of He's variance for any network. Here `layers` says
which kernels, and fresh weights are those of the model's own `init`. It goes with SGD at 1e-3, momentum 0.9, weight decay 5e-4
and a learning rate that rises for half of five epochs, then falls. The paper's description of the method was not at hand.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxunlearn import checks, passes, sampling, tree
from jaxunlearn.card import Method
from jaxunlearn.curvature.matvecs import gradient_sum
from jaxunlearn.loop.descend import descend, require_init
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.transforms import saliency_mask
from jaxunlearn.tree import Layers
from jaxunlearn.types import Model, Scalar, Unlearner

METHOD = Method(
    summary="draw weights anew where retain and forget set pull least, then keep training on the retain set",
    cites="cadet2024deep",
    family="objective",
    reads=frozenset({"forget", "init", "retain"}),
    aliases=("msg",),
    search={"learning_rate": (0.001, 0.004, 0.01, 0.02)},  # `fraction` is static
)


def masked_small_gradients(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    fraction: float = 0.3,
    held: Scalar = 0.1,
    layers: Layers | None = None,
    chunk: int | None = None,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Fine-tuning on the retain set, from weights of which those with the smallest gradients were drawn anew.

    Args:
        model: needs `init`.
        optimizer: any optax transformation.
        fraction: of each kernel that is drawn anew, in [0, 1], static; published: 0.3.
        held: what gradients of the others in these kernels are multiplied by, in [0, 1], may be traced; published: 0.1. Weight
            decay acts on all alike.
        layers: which kernels, by a regular expression to be found in their paths or a predicate of it. None takes all
            parameters with two axes or more; published: convolutions alone.
        chunk: rows of which gradients are taken together; None takes all of the request.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` Float[].

    Raises:
        ValueError: `fraction` or `held` outside [0, 1], no `init`; at trace time, `init` makes variables of another form, or
            `layers` names no parameter.
        TypeError: at trace time, `layers` is neither an expression nor a predicate.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.masked_small_gradients(model, optax.sgd(0.1)), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    make = require_init(model, "masked_small_gradients draws weights anew")
    checks.check_range("fraction", fraction, low=0, high=1)
    checks.check_range("held", held, low=0, high=1)

    def objective(variables, speeds, batch, key):
        slowed = jax.tree.map(_slowed, variables.params, speeds)
        retain, moved = passes.train_pass(model, variables._replace(params=slowed), batch.retain, key, side="retain", bn=bn)
        return retain.loss + passes.penalty(model, variables.params), (moved.state, {})

    inner = descend(model, optimizer, objective, on_empty=METHOD.on_empty)

    def init(variables, data, request, key):
        order_key, draw_key, fresh_key, inner_key = jax.random.split(key, 4)
        fresh = make(fresh_key)
        checks.check_same(variables, fresh)
        part, size = sampling.forget_rows(data, request), request.indices.shape[0]
        split = sampling.split(data, request, order_key)
        drawn = sampling.draw_retain(split, draw_key, size)
        weights = drawn.weights * (jnp.arange(size) < split.num_forget)
        toward, away = (
            gradient_sum(model, variables, rows, x, chunk=chunk)
            for rows, x in ((drawn.examples, weights), (part.examples, part.weights))
        )
        chosen = _kernels(variables.params) if layers is None else tree.matching(variables.params, layers)
        if not any(jax.tree.leaves(chosen)):
            raise ValueError(f"layers={layers!r} names no parameter; there are {', '.join(tree.form_of(variables.params))}")

        slopes = jax.tree.map(jnp.subtract, toward, away)

        def weakest(is_chosen, slope):
            return saliency_mask(slope, 1 - fraction) == 0 if is_chosen else jnp.zeros(slope.shape, bool)

        def mixed(mask, slope, new, old):
            return jnp.where(mask, new + (0 * slope).astype(new.dtype), old)  # NaN ranks nothing, and must show

        masks = jax.tree.map(weakest, chosen, slopes)
        params = jax.tree.map(mixed, masks, slopes, fresh.params, variables.params)
        speeds = jax.tree.map(lambda is_chosen, mask: jnp.where(mask, 1, held) if is_chosen else 1.0, chosen, masks)
        return speeds, inner.init(variables._replace(params=params), data, request, inner_key)[1]

    return inner._replace(init=init)


def _kernels(params: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)


def _slowed(w: jax.Array, speed: Scalar) -> jax.Array:
    """The same weights; their gradients are multiplied by the speed."""
    fixed = jax.lax.stop_gradient(w)
    return fixed + ((w - fixed) * speed).astype(w.dtype)
