"""Representation Unlearning (Almudevar, Ortega: Representation unlearning: forgetting through information compression, 2026,
arXiv 2601.21564): a small map f between frozen features and a frozen head, logits = W f(e(x)) + c.

    min_f  L_r + beta L_f
    standard:   L_r = a mean_{retain} |f(z + s eps) - z|^2,        L_f = mean_{forget, all rows j} |f(z + s eps) - z_j|^2
    zero-shot:  L_r = sum_{k kept} pi_k' |f(w_k + s eps) - w_k|^2,   L_f = mean_{forget} sum_k pi_k |f(z + s eps) - w_k|^2

w_k are the rows of W in place of features of the retain set, pi the shares of the classes among all rows and pi' among those of
kept classes; a = 1/D as in the authors' code (`retention="per_dimension"`), which takes the mean over dimensions in L_r
and the sum in L_f, or 1. The bound behind L_f pulls features of the forget set towards all others; it pushes them away from
nothing.

The mean over pairs is taken in its exact form, `mean |f - mu|^2 + mean |z_j - mu|^2`, with mu over all present rows; the
authors draw a reference batch, whose gradient has the same mean. Features are computed once, where theirs are augmented anew in
every step. Written from the authors' published code; the body of the paper was not available.

Nothing is deleted: features in front of f are as they were, and a probe finds the class in them. An affine f is an edit of the
head.
"""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxunlearn import checks, sampling
from jaxunlearn.card import Method
from jaxunlearn.evaluation import class_labels
from jaxunlearn.heads.maps import apply_map, current_map, placed, require_head
from jaxunlearn.heads.moments import checked_kernel, features_of_request, features_of_rows, prepare
from jaxunlearn.loop.descend import descend
from jaxunlearn.status import combine
from jaxunlearn.types import Data, ForgetRequest, Model, Scalar, Unlearner, Variables, View

METHOD = Method(
    summary="learn a map in front of the head that keeps features of the retain set and merges those of the forget set",
    cites="almudevar2026representation",
    family="representation",
    reads=frozenset({"forget", "layer", "head", "retain"}),
    search={"learning_rate": (0.001, 0.01), "beta": (0.001, 0.01, 0.1, 1.0)},
)

Regime: TypeAlias = Literal["standard", "zero_shot"]
Retention: TypeAlias = Literal["per_dimension", "summed"]
Noise: TypeAlias = Literal["sampled", "exact"]
JANUARY_NOISE_SCALE, LATER_NOISE_SCALE = 0.0, 0.1  # defaults of the two versions of the authors' code


class Targets(NamedTuple):
    """What stays as it is during a run."""

    variables: Variables
    anchors: Float[Array, "m D"]  # what the map must keep besides the retain set: rows of the head, or nothing
    anchor_weights: Float[Array, " m"]
    centre: Float[Array, " D"]  # where features of the forget set are pulled
    spread: Float[Array, ""]  # mean squared distance of the targets from it
    view: View  # features in place of inputs


def representation_unlearning(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    beta: Scalar,
    regime: Regime = "standard",
    noise_scale: Scalar = LATER_NOISE_SCALE,
    draws: int = 1,
    noise: Noise = "sampled",
    retention: Retention = "per_dimension",
    layer: str = "penultimate",
) -> Unlearner:
    """Learn a map between features and head that keeps features of the retain set and merges those of the forget set.

    Without an inserted map f is affine, starts at the identity and is folded into the head. For deeper maps call
    `jaxunlearn.insert_map` first. Features are computed in every call unless slot `features` holds them (`jaxunlearn.prepare`).
    The closed form of the affine map is `jaxunlearn.affine_representation_unlearning`.

    Args:
        model: with a head and `features[layer]`, or one with an inserted map.
        optimizer: any optax transformation; published: Adam, 1e-3.
        beta: weight of forgetting, at least 0, may be traced. Published grid: 1e-4 to 1; the scale depends on `regime` and
            `retention`.
        regime: `standard` reads both sets; `zero_shot` reads the forget set, the head and labels only.
        noise_scale: s, at least 0. The first version of the authors' code used 0 (`JANUARY_NOISE_SCALE`), the later one 0.1.
        draws: of the noise, per row and step.
        noise: `exact` takes its mean in closed form, `|f(z) - t|^2 + s^2 |A|^2`, for affine maps.
        retention: the scale of L_r in the standard regime, see the module.
        layer: what the head acts on, in front of a map.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_loss`, `forget_loss` Float[]. The status is
        STALE where prepared features belong to another model.

    Raises:
        ValueError: no head, a setting out of its range; at trace time, no such features, `noise="exact"` for a deeper map,
            targets that are no class labels in the zero-shot regime.

    References:
        Almudevar, Ortega: Representation unlearning: forgetting through information compression, 2026, arXiv 2601.21564.

    Example:
        >>> method = jaxunlearn.representation_unlearning(headed, optax.adam(1e-2), beta=0.1)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=20, batch_size=8))(headed_variables, data, request, key)
        >>> int(result.status)
        0
    """
    for name, value in {"beta": beta, "noise_scale": noise_scale}.items():
        checks.check_range(name, value, low=0)
    checks.require_count("draws", draws)
    for name, value, known in (
        ("regime", regime, ("standard", "zero_shot")),
        ("retention", retention, ("per_dimension", "summed")),
        ("noise", noise, ("sampled", "exact")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    head = require_head(model, "representation_unlearning acts between features and head")
    silent = noise == "exact" or (not isinstance(noise_scale, jax.Array) and noise_scale == 0)

    def context(variables, data, request, key):
        if regime == "standard":
            rows, stale = features_of_rows(model, variables, data, layer)
            view = View(data._replace(train=data.train._replace(inputs=rows)), request, combine(STALE=stale))
        else:
            view = _request_alone(model, variables, data, request, layer)
        width = view.data.train.inputs.shape[1]
        kernel, bias = checked_kernel(head, variables, width)
        if regime == "standard":
            targets = jnp.zeros((0, width)), jnp.zeros(0), *centre_and_spread(view.data.train.inputs, data.present)
        else:
            shares, kept = class_shares(class_counts(data, bias.shape[0]), request)
            targets = kernel.T, kept, *centre_and_spread(kernel.T, shares)
        return Targets(variables, *targets, view)

    def start(variables, key):
        layers = current_map(variables, head.get(variables)[0].shape[0])
        if noise == "exact" and len(layers) > 1:
            raise ValueError("noise='exact' is for affine maps, whose noise has a closed form: use noise='sampled'")
        return Variables(layers)

    def errors(layers, z, targets, key):
        """Mean over draws of |f(z + s eps) - target|^2, for every row."""
        if silent:
            found = jnp.sum((apply_map(layers, z) - targets) ** 2, axis=-1)
            return found + noise_scale**2 * jnp.sum(layers[0]["kernel"] ** 2) if noise == "exact" else found
        eps = jax.random.normal(key, (draws, *z.shape), z.dtype)
        return jnp.mean(jnp.sum((apply_map(layers, z + noise_scale * eps) - targets) ** 2, axis=-1), axis=0)

    def objective(variables, targets, batch, key):
        gone, kept, weights = batch.forget.examples.inputs, targets.anchors, targets.anchor_weights
        if regime == "standard":
            kept, weights = batch.retain.examples.inputs, batch.retain.weights
        aims = jnp.concatenate([jnp.broadcast_to(targets.centre, gone.shape), kept])
        found = errors(variables.params, jnp.concatenate([gone, kept]), aims, key)  # one product for both sides
        forget, retain = found[: len(gone)], found[len(gone) :]
        forget = sampling.masked_mean(forget, batch.forget.weights, empty=0)
        forget += jnp.where(jnp.sum(batch.forget.weights) > 0, targets.spread, 0)
        if regime == "standard":
            retain = sampling.masked_mean(retain, weights, empty=0) / (kept.shape[1] if retention == "per_dimension" else 1)
        else:
            retain = jnp.sum(weights * retain)
        return retain + beta * forget, (variables.state, {"retain_loss": retain, "forget_loss": forget})

    reads_retained = regime == "standard"
    stepwise = descend(
        model, optimizer, objective, context=context, start=start, on_empty=METHOD.on_empty, judge=reads_retained
    )
    return stepwise._replace(
        finalize=lambda state, targets: placed(head, targets.variables, state.variables.params),
        view=lambda variables, data, request, targets: targets.view,
        prepare=prepare(model, layer=layer),
    )


def _request_alone(model: Model, variables: Variables, data: Data, request: ForgetRequest, layer: str) -> View:
    """The forget set and one row of zeros that stands for the whole retain set."""
    part, stale = features_of_request(model, variables, data, request, layer)
    left = jnp.sum(data.present > 0) > jnp.sum(part.weights)
    rows = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:1])]), part.examples)
    present = jnp.append(part.weights, left.astype(part.weights.dtype))
    slots = jnp.arange(part.weights.shape[0], dtype=jnp.int32)
    return View(Data(rows, present), request._replace(indices=slots), combine(STALE=stale))


def class_counts(data: Data, num_classes: int) -> Float[Array, " c"]:
    """Present rows of every class; ValueError unless targets are class labels."""
    targets = class_labels(data.train.targets)
    return jnp.zeros(num_classes).at[targets].add(jnp.where(data.present > 0, 1.0, 0.0))


def class_shares(counts: Float[Array, " c"], request: ForgetRequest) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Shares of the classes among all rows, and among rows of the classes that are not forgotten as a whole."""
    kept = jnp.where(sampling.forgotten_classes(request.target, counts.shape[0]), 0, counts)
    return counts / jnp.maximum(jnp.sum(counts), 1), kept / jnp.maximum(jnp.sum(kept), 1)


def centre_and_spread(z: Float[Array, "n D"], weights: Float[Array, " n"]) -> tuple[Float[Array, " D"], Float[Array, ""]]:
    """Weighted mean, and the mean squared distance from it; rows of weight 0 may hold anything."""
    z = jnp.where(weights[:, None] > 0, z, 0)
    share = weights / jnp.sum(weights)
    centre = jnp.dot(share, z, precision="highest")
    return centre, sampling.masked_mean(jnp.sum((z - centre) ** 2, axis=1), weights, empty=jnp.nan)
