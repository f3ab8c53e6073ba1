"""DUCK (Cotogni, Bonato, Sabetta, Pelosin, Nicolosi: DUCK: distance-based unlearning via centroid kinematics, 2023, arXiv
2312.02052): draw the features of each row of the forget set to the nearest centroid of another class.

    c_k = mean_{retain, y = k} f(x),    j(x) = argmin_{k != y} 1 - cos(f(x), c_k),    f features of the trained model
    L(w) = distance_weight mean_{forget} (1 - cos(f_w(x), c_{j(x)}))
           + retain_weight (mean_{retain} loss(logits(w) / T) + regularizer(w))

A batch of the forget set is used `repeats` times, each time with fresh rows of the retain set. Centroids, and the one that a
row is drawn to, are found once, at the start. The authors' code looks for the row's label among centroids that lack the
forgotten class, so that it passes over the class behind that one. It finds aims anew in every step of the first epoch, stores
all of them, and reads them back by the number of the batch, so that rows then follow the aims of others. It takes centroids
from 50 batches, this from all retained rows, and it ends on two epochs of Adam at 1e-4 with a tenth of the distance, which
`jaxunlearn.then` can add.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxunlearn import checks, losses, passes, sampling
from jaxunlearn.card import Method
from jaxunlearn.evaluation import class_labels, map_rows, sum_rows
from jaxunlearn.heads.maps import layer_of
from jaxunlearn.heads.moments import features_at
from jaxunlearn.loop.descend import descend
from jaxunlearn.loop.phases import repeated
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Data, ForgetRequest, Model, Scalar, Unlearner, Variables

METHOD = Method(
    summary="draw features of the forget set to the nearest centroid of another class",
    cites="cotogni2023duck",
    family="representation",
    reads=frozenset({"forget", "layer", "retain"}),
    targets="classes",
    aliases=("centroid_kinematics",),
    search={"learning_rate": (0.001, 0.004, 0.01), "distance_weight": (0.1, 1.0, 10.0)},
)


class _Aims(NamedTuple):
    """Where each slot of a request is drawn to."""

    directions: Float[Array, "k D"]  # of length 1
    found: Bool[Array, " k"]  # False where the retain set has no other class


def duck(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    distance_weight: Scalar = 1.0,
    retain_weight: Scalar = 1.4,
    temperature: Scalar = 2.0,
    repeats: Scalar = 5,
    layer: str = "penultimate",
    chunk: int | None = None,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Draw the forget set to centroids of other classes in feature space, and keep training on the retain set.

    Defaults are those of the authors' code for CIFAR-10, which goes with Adam at 1e-3 and batches of 1,024, and stops at an
    accuracy of 1 % on the forget set; `jaxunlearn.until_unseen` stops where unseen rows are. All settings but `layer`, `chunk`
    and `bn` may be traced.

    Args:
        model: a classifier with integer targets [b] that returns features.
        optimizer: any optax transformation.
        distance_weight: weight of the distance to the centroid, at least 0.
        retain_weight: weight of the loss on the retain set, at least 0.
        temperature: T, what the logits of the retain set are divided by, positive.
        repeats: steps that a batch of the forget set is used for; the authors' code makes one more than its ratio of 5.
        layer: which of `Outputs.features`.
        chunk: rows that go through the model together for the centroids; None takes all.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `distance` (mean of 1 - cos, in [0, 2]),
        `retain_loss` (at the temperature) Float[].

    Raises:
        ValueError: a setting out of its range; at trace time, a layer that the model does not return, logits or targets that
            are no classes.

    Example:
        >>> unlearn = jaxunlearn.iterate(jaxunlearn.duck(model, optax.adam(0.01)), num_steps=10, batch_size=8)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
    """
    checks.check_range("distance_weight", distance_weight, low=0)
    checks.check_range("retain_weight", retain_weight, low=0)
    checks.check_range("temperature", temperature, low=1e-6)
    checks.check_range("repeats", repeats, low=1)

    def aims(variables: Variables, data: Data, request: ForgetRequest, key) -> _Aims:
        class_labels(data.train.targets)
        logits = checks.check_forward(model, variables, data.train.inputs).logits
        checks.require_classes("duck", logits)
        count = logits.shape[1]

        def sums(rows, weights):
            found = features_at(model, variables, rows.inputs, layer)
            places = jnp.where(weights > 0, rows.targets.astype(jnp.int32), count)  # labels of few bits cannot hold c
            total = jnp.zeros((count, found.shape[1]), found.dtype).at[places].add(found, mode="drop")
            return total, jnp.zeros(count, found.dtype).at[places].add(1, mode="drop")

        part = sampling.forget_rows(data, request)
        # the sum over all present rows is the same for all requests
        everything, leaving = (
            sum_rows(sums, *x, chunk=chunk) for x in ((data.train, data.present), (part.examples, part.weights))
        )
        centroids, sizes = jax.tree.map(jnp.subtract, everything, leaving)
        centroids = losses.unit_rows(centroids / jnp.maximum(sizes, 1)[:, None])
        own = map_rows(lambda rows: features_at(model, variables, rows.inputs, layer), part.examples, chunk=chunk)
        others = (sizes > 0) & ~jax.nn.one_hot(part.examples.targets, count, dtype=bool)
        cosines = jnp.dot(losses.unit_rows(own), centroids.T, precision="highest")
        nearest = jnp.argmax(jnp.where(others, cosines, -jnp.inf), axis=1)
        return _Aims(centroids[nearest], jnp.any(others, axis=1))

    def objective(variables, context: _Aims, batch, key):
        retain, forget, moved = passes.both_passes(model, variables, batch, key, bn=bn)
        slots = batch.forget.slots
        apart = 1 - jnp.sum(losses.unit_rows(layer_of(forget.outputs, layer)) * context.directions[slots], axis=1)
        distance = sampling.masked_mean(apart, batch.forget.weights * context.found[slots], empty=0)
        softened = retain.outputs._replace(logits=retain.outputs.logits / temperature)
        kept = retain.mean(model.loss(softened, batch.retain.examples))
        loss = distance_weight * distance + retain_weight * (kept + passes.penalty(model, variables.params))
        return loss, (moved.state, {"distance": distance, "retain_loss": kept})

    return descend(model, optimizer, objective, context=aims, sample=repeated(times=repeats), on_empty=METHOD.on_empty)
