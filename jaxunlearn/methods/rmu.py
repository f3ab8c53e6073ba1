"""RMU, representation misdirection for unlearning (Li et al.: The WMDP benchmark: measuring and reducing malicious use with
unlearning, ICML 2024, arXiv 2403.03218, section 4).

    L(w) = mean_{forget} mean_{positions} ||h_w(x) - coefficient u||^2 / D
           + alpha mean_{retain} mean_{positions} ||h_w(x) - h_0(x)||^2 / D,

h the features of one layer, u a unit vector at random, the same in the whole run, h_0 the trained model's features. The paper
has no division by their number D; the authors' code has, which scales the loss. Entries of u are uniform in [0, 1) before it
is scaled: two such directions have a cosine of about 3/4. Only a few layers up to that one move, here `layers`. In the authors'
code padding counts like text; here a position without a label does not. The coefficient is fixed, and has to be large against
the features' norm (Huu-Tien, Pham, Thanh-Tung, Inoue, arXiv 2408.06223): look at `forget_norm`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxunlearn import checks, passes
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend
from jaxunlearn.losses.sequences import IGNORED
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.sampling import masked_mean
from jaxunlearn.transforms import restrict
from jaxunlearn.tree import Layers
from jaxunlearn.types import Examples, Model, Outputs, Scalar, Unlearner, Variables, Weighted

METHOD = Method(
    summary="steer a layer's features on the forget set to one random direction, keep those of the retain set",
    cites="li2024wmdp",
    family="representation",
    reads=frozenset({"forget", "layer", "retain"}),
    aliases=("representation_misdirection",),
    search={"learning_rate": (0.001, 0.004), "coefficient": (5.0, 20.0), "alpha": (1.0, 10.0, 100.0)},
)


class _Frozen(NamedTuple):
    trained: Variables
    goal: Float[Array, " D"]


def rmu(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    layer: str = "penultimate",
    layers: Layers | None = None,
    coefficient: Scalar = 20.0,
    alpha: Scalar = 100.0,
    counts: Callable[[Examples], jax.Array] | None = None,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Steer the features of the forget set to one random direction, and keep those of the retain set.

    What lies behind the layer is neither read nor moved, so that no gradient passes through it.

    Args:
        model: its forward pass returns the layer's features, [b, D] or [b, t, D]; its loss is not read.
        optimizer: any optax transformation; in the authors' code AdamW at 5e-5, 80 steps of 4 rows.
        layer: key of `Outputs.features`; in the authors' code the seventh block of a model of 7 billion parameters.
        layers: which parameters move: a regular expression to be found in a parameter's path, or a predicate of it. All by
            default, which is all in front of the layer; in the authors' code one matrix of each of the three blocks up to it.
        coefficient: length of the goal, positive, may be traced; the default is that of the authors' code.
        alpha: weight of the retain set, at least 0, may be traced; the default is that of the authors' code.
        counts: which positions of rows count, `examples -> Bool[b, t]`, e.g. those of the prompt too; by default those that
            have a label, see `losses.sequence_cross_entropy`, and every row of features [b, D].
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `forget_distance` and `retain_distance` (squared,
        over D), `forget_norm` (of the features, per position) Float[].

    Raises:
        ValueError: a setting out of its range; at trace time, features that are missing or of another shape, `layers` that name
            no parameter, positions that do not fit the features.

    Example:
        >>> method = jaxunlearn.rmu(model, optax.sgd(0.1), layers="body", coefficient=2.0, alpha=10.0)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=10, batch_size=8))(variables, data, request, key)
        >>> bool((result.variables.params["head"] == variables.params["head"]).all())
        True
    """
    checks.check_range("coefficient", coefficient, low=1e-6)
    checks.check_range("alpha", alpha, low=0)

    def stated(outputs: Outputs) -> Any:
        if layer not in outputs.features:
            there = ", ".join(outputs.features) or "none"
            raise ValueError(f"forward returns no features {layer!r} (it has: {there}); return them in Outputs.features")
        found = outputs.features[layer]
        if found.ndim < 2:
            raise ValueError(f"rmu steers features [b, D] or [b, t, D], and {layer!r} has shape {found.shape}")
        return found

    def features(outputs: Outputs) -> Array:
        found = stated(outputs)
        return found.astype(jnp.promote_types(found.dtype, jnp.float32))

    def context(variables, data, request, key) -> _Frozen:
        if not jax.tree.leaves(data.train.inputs):
            raise ValueError("rmu reads the width of the features from a row of the data: pass feed(..., data=data)")
        like = stated(checks.check_forward(model, variables, data.train.inputs))
        drawn = jax.random.uniform(key, like.shape[-1:], jnp.float32)
        return _Frozen(variables, coefficient * drawn / jnp.linalg.norm(drawn))

    def used(examples: Examples, shape: tuple[int, ...]) -> Array:
        if counts is not None:
            found = jnp.asarray(counts(examples)) != 0
        elif len(shape) == 1:
            return jnp.ones(shape, bool)
        else:
            found = examples.targets != jnp.int32(IGNORED)  # which is 255 in eight bits
        if found.shape != shape:
            raise ValueError(f"features {layer!r} have positions {shape}, and those that count are given as {found.shape}")
        return found

    def per_row(values: Array, there: Array) -> Float[Array, " b"]:
        return jax.vmap(lambda x, w: masked_mean(x.reshape(-1), w.reshape(-1), empty=0))(values, there.astype(values.dtype))

    def distance(run: passes.Pass, part: Weighted, goal: Array) -> tuple[Array, Array]:
        found = features(run.outputs)
        there = used(part.examples, found.shape[:-1])
        # replaced before they are squared: what stands where nothing counts must reach no gradient
        apart, found = (jnp.where(there[..., None], x, 0) for x in (found - goal, jax.lax.stop_gradient(found)))
        squares = run.mean(per_row(jnp.mean(apart**2, axis=-1), there))
        return squares, run.mean(per_row(jnp.linalg.norm(found, axis=-1), there))

    def objective(variables, context: _Frozen, batch, key):
        retain, forget, moved = passes.both_passes(model, variables, batch, key, bn=bn)
        steered, length = distance(forget, batch.forget, context.goal)
        known = features(model.forward(context.trained, batch.retain.examples.inputs, train=False))
        kept, _ = distance(retain, batch.retain, known)
        loss = steered + alpha * kept
        return loss, (moved.state, {"forget_distance": steered, "retain_distance": kept, "forget_norm": length})

    optimizer = optimizer if layers is None else restrict(optimizer, layers)
    return descend(model, optimizer, objective, context=context, on_empty=METHOD.on_empty)
