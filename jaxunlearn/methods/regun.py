"""ReGUn, reference-guided unlearning (Mirlach, Laguna, Vogt: Reference-guided machine unlearning, ICLR 2026 workshops, arXiv
2603.11210): predict on the forget set what the trained model predicts on rows that it never saw.

    q(B) = mean_{j in H(B)} softmax(f_0(x_j) / T),    H(B) as many held-out rows as the forget batch B has, drawn like B
    L(w) = alpha (mean_{retain} loss(w) + regularizer(w)) + (1 - alpha) mean_{x in B} KL(q(B) || softmax(f_w(x) / T))

The abstract draws a held-out row of its class for each row of the batch ("class_informed"); the settings file of the released
code says "uniform". Both give every row of a batch the same q, so that for a batch of many classes q is close to how frequent
those are: the term pulls towards a nearly constant prediction, and the retain set holds against it. "own_class" is this
library's own: the mean prediction on held-out rows of the row's class, at the same cost.

A class as a whole is not forgotten this way. The trained model knows held-out rows of the class, so q is nearly one-hot there.

The reference is the trained model in evaluation mode. The authors' code can also take the model as it is at each step, in
training mode, so that held-out rows move BatchNorm statistics, and then looks for nearest rows in features of two models; both
are left out.
"""

from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxunlearn import checks, class_order, losses, passes, sampling
from jaxunlearn.card import Method
from jaxunlearn.evaluation import class_labels, map_rows
from jaxunlearn.heads.maps import layer_of
from jaxunlearn.loop.descend import descend
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Scalar, Unlearner, Variables

METHOD = Method(
    summary="predict on the forget set what the trained model predicts on held-out rows of the same classes",
    cites="mirlach2026reference",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    targets="classes",
    aliases=("reference_guided",),
    search={"learning_rate": (0.001, 0.0005, 0.00025), "alpha": (0.95, 0.99, 0.8)},
)

Reference: TypeAlias = Literal["class_informed", "uniform", "nearest", "own_class"]
Average: TypeAlias = Literal["probabilities", "logits"]


class _Reference(NamedTuple):
    """What the trained model says of held-out rows."""

    said: Float[Array, "h c"]  # probabilities or logits, whatever is averaged
    rows: class_order.ByClass  # held-out rows by class
    nearest: Int[Array, " k"]  # held-out row that is nearest to each slot of the request
    of_class: Float[Array, "c c"]  # averages over the held-out rows of each class


def regun(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    held_out: Examples,
    alpha: Scalar = 0.5,
    temperature: Scalar = 1.0,
    reference: Reference = "class_informed",
    average: Average = "probabilities",
    layer: str = "penultimate",
    chunk: int | None = None,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Descent on the retain set, and on the divergence from predictions on held-out rows on the forget set.

    Args:
        model: a classifier with logits [b, c] and integer targets [b].
        optimizer: any optax transformation; published: SGD with rate 0.01 and momentum 0.9, 10 passes over the forget set.
        held_out: rows that training never saw and that no audit reports.
        alpha: weight of the retain set in [0, 1], may be traced; the divergence gets `1 - alpha`. 1 is `jaxunlearn.finetune`.
        temperature: T of both predictions, positive, may be traced. The divergence is not multiplied by T^2.
        reference: which held-out rows: for each row of a batch one of its class at random ("class_informed"), any at random
            ("uniform"), or the one with the most similar features by cosine ("nearest"), averaged over the batch; or all of the
            row's class, averaged for each row by itself ("own_class"). A class without held-out rows takes all of them, as in
            the authors' code.
        average: of probabilities or of logits.
        layer: key of `Outputs.features` that "nearest" compares, [b, D].
        chunk: rows that go through the model together at the start; None takes all.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_loss`, `forget_loss` (the model's loss),
        `divergence` (nats) Float[].

    Raises:
        ValueError: a setting out of its range, an unknown `reference` or `average`; at trace time, held-out rows of another
            form than the training rows or with labels that are no classes, features that are missing, logits or targets that
            are no classes.
        TypeError: at trace time, `held_out` is not `Examples`.

    Example:
        >>> method = jaxunlearn.regun(model, optax.sgd(0.1), held_out=test)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=10, batch_size=8))(variables, data, request, key)
        >>> result.stats["divergence"].shape
        (10,)
    """
    checks.check_range("alpha", alpha, low=0, high=1)
    checks.check_range("temperature", temperature, low=1e-6)
    for name, value, known in (("reference", reference, Reference), ("average", average, Average)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    held_out = jax.tree.map(jnp.asarray, held_out)

    def context(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> _Reference:
        checks.require_rows_like("held_out", held_out, data.train)
        labels = class_labels(held_out.targets)

        def look(rows: Examples) -> tuple[Array, ...]:
            outputs = model.forward(variables, rows.inputs, train=False)
            checks.require_classes("regun", outputs.logits)
            logits = _wide(outputs.logits) / temperature
            said = jax.nn.softmax(logits) if average == "probabilities" else logits
            return (said, losses.unit_rows(layer_of(outputs, layer))) if reference == "nearest" else (said,)

        said, *features = map_rows(look, held_out, chunk=chunk)
        num_classes = said.shape[1]
        checks.require_labels("held_out", labels, num_classes)
        rows = class_order.by_class(labels, jnp.ones(labels.shape[0], bool), num_classes)
        nearest = jnp.zeros(request.indices.shape[0], jnp.int32)
        if reference == "nearest":
            part = sampling.forget_rows(data, request)
            nearest = map_rows(lambda own: jnp.argmax(look(own)[1] @ features[0].T, axis=1), part.examples, chunk=chunk)
        sums = jnp.zeros((num_classes, num_classes), said.dtype).at[labels].add(said)
        size = rows.size[:, None]
        of_class = jnp.where(size > 0, sums / jnp.maximum(size, 1), jnp.mean(said, axis=0))
        return _Reference(said, rows, nearest, of_class)

    def objective(variables, context: _Reference, batch, key):
        pass_key, draw_key = jax.random.split(key)
        retain, forget, moved = passes.both_passes(model, variables, batch, pass_key, bn=bn)
        logits, labels = forget.outputs.logits, class_labels(batch.forget.examples.targets)
        if reference == "own_class":
            wanted = context.of_class[labels]
        else:
            drawn = context.nearest[batch.forget.slots]
            if reference != "nearest":
                drawn = draw_like(context.rows, labels if reference == "class_informed" else None, labels.shape[0], draw_key)
            counts = jnp.where(jnp.any(forget.weights > 0), forget.weights, 1)  # a side without rows is not looked at
            mean = jax.vmap(partial(sampling.masked_mean, weights=counts, empty=0), in_axes=1)(context.said[drawn])
            wanted = jnp.broadcast_to(mean, logits.shape)
        wanted = jnp.log(wanted) if average == "probabilities" else wanted
        divergence = forget.mean(losses.kl_divergence(wanted, _wide(logits) / temperature))
        loss = alpha * (retain.loss + passes.penalty(model, variables.params)) + (1 - alpha) * divergence
        stats = {"retain_loss": retain.loss, "forget_loss": forget.loss, "divergence": divergence}
        return loss, (moved.state, stats)

    return descend(model, optimizer, objective, context=context, on_empty=METHOD.on_empty)


def _wide(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def draw_like(rows: class_order.ByClass, labels: Int[Array, " b"] | None, size: int, key: PRNGKeyArray) -> Int[Array, " b"]:
    """One held-out row at random for each of b rows, of the same class where labels are given and the class has some."""
    everything = rows.order.shape[0]
    first, count = jnp.zeros(size, jnp.int32), jnp.full(size, everything)
    if labels is not None:
        there = rows.size[labels] > 0
        first, count = jnp.where(there, rows.first[labels], first), jnp.where(there, rows.size[labels], count)
    place = (jax.random.uniform(key, (size,), jnp.float32) * count).astype(jnp.int32)
    return rows.order[first + jnp.minimum(place, count - 1)]
