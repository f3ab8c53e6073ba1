"""Relearning with prototypes: how much of a forgotten class do a few rows bring back, by their mean features alone?

After Ha, Park, Yoon: Unlearning's blind spots: over-unlearning and prototypical relearning attack, 2025, arXiv 2506.01318; of
its idea alone, so this is a reconstruction. Features in front of the head stay as they are. Either the head is replaced by
nearest class means, or it is trained on these means.

A retrained model has features for classes it never saw as well: compare with what the same attack brings back from those.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxunlearn import checks
from jaxunlearn.evaluation import class_labels, map_rows
from jaxunlearn.types import Examples, Head, Model, Variables


class PrototypeRelearning(NamedTuple):
    """Accuracies on the rows asked for."""

    curve: Float[Array, " s+1"]  # before the first step on the prototypes, and after every one
    nearest_mean: Float[Array, ""]  # with nearest class means in place of the head
    variables: Variables  # after the last step, to see what it cost elsewhere


def relearn_with_prototypes(
    model: Model,
    variables: Variables,
    shots: Examples,
    rows: Examples,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int = 20,
    layer: str = "penultimate",
    chunk: int | None = None,
) -> PrototypeRelearning:
    """Train the head on class means of features, and replace it by them.

    Args:
        model: a classifier with a head.
        variables: unlearned, original or retrained ones.
        shots: a few rows of every class the attacker wants, the forgotten one among them. Classes without a shot keep their
            part of the head; nearest means never name them.
        rows: of the forgotten class, no shots among them.
        optimizer: of the head, full batches.
        num_steps: s.
        layer: the features that the head acts on.
        chunk: rows that go through the model together.

    Returns:
        `PrototypeRelearning`.

    Raises:
        ValueError: no head, no such features, targets that are no classes.

    Example:
        >>> found = jaxunlearn.audit.relearn_with_prototypes(
        ...     headed, headed_variables, jax.tree.map(lambda x: x[:6], data.train), test, optax.sgd(0.1), num_steps=3)
        >>> found.curve.shape
        (4,)
    """
    checks.require_count("num_steps", num_steps)
    if model.head is None:
        raise ValueError("relearn_with_prototypes trains a head: give the model one (jaxunlearn.Head)")
    head: Head = model.head
    labels, wanted = class_labels(shots.targets), class_labels(rows.targets)

    def features_of(examples: Examples) -> Array:
        outputs = model.forward(variables, examples.inputs, train=False)
        if layer not in outputs.features:
            raise ValueError(f"the model returns the features {sorted(outputs.features)}, not {layer!r}")
        return outputs.features[layer]

    near, asked = (map_rows(features_of, part, chunk=chunk) for part in (shots, rows))
    kernel, bias = head.get(variables)
    member = jax.nn.one_hot(labels, bias.shape[0], dtype=near.dtype)
    count = jnp.sum(member, axis=0)
    means = jnp.matmul(member.T, near, precision="highest") / jnp.maximum(count, 1)[:, None]

    def put(parts: tuple[Array, Array]) -> Variables:
        return head.set(variables, *parts)

    def know(parts: tuple[Array, Array]) -> Array:
        return jnp.mean((jnp.argmax(head.apply(put(parts), asked), axis=-1) == wanted).astype(jnp.float32))

    def loss(parts: tuple[Array, Array]) -> Array:
        logits = head.apply(put(parts), means.astype(near.dtype))
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(bias.shape[0]))
        return jnp.sum(jnp.where(count > 0, losses, 0)) / jnp.maximum(jnp.sum(count > 0), 1)

    def step(carry: tuple, _: None) -> tuple:
        parts, state = carry
        updates, state = optimizer.update(jax.grad(loss)(parts), state, parts)
        parts = optax.apply_updates(parts, updates)
        return (parts, state), know(parts)  # type: ignore[arg-type]

    first = (kernel, bias)
    (last, _), later = jax.lax.scan(step, (first, optimizer.init(first)), length=num_steps)
    nearness = jnp.matmul(asked, means.T, precision="highest") - jnp.sum(means**2, axis=1) / 2
    nearest = jnp.argmax(jnp.where(count > 0, nearness, -jnp.inf), axis=1)
    return PrototypeRelearning(
        jnp.concatenate([know(first)[None], later]), jnp.mean((nearest == wanted).astype(jnp.float32)), put(last)
    )
