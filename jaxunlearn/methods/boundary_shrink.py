"""Boundary Shrink (Chen, Gao, Liu, Peng, Wang: Boundary unlearning: rapid forgetting of deep networks via shifting the
decision boundary, CVPR 2023, arXiv 2303.11570): give the forget set to the classes across its nearest borders.

    x'_i = clip(x_i + eps sign(grad_x loss(w0; x_i, y_i))),    z_i = argmax_k f_w0(x'_i)_k,
    L(w) = mean_{forget} loss(w; x_i, z_i),                    w0 the trained model

A model that never saw a class spreads its rows over the classes next to it; this imitates that map without the retain set.
The labels z depend on w0 and x alone and are found once. `x'` is made in un-normalised inputs. The sign is that of the margin's
gradient, which is the same and does not underflow where the model is sure.

What the paper leaves open, and what is ours:
- Where x' stays in the row's own class, z = y, and the authors' code trains the row towards what is to be forgotten. By
  default the class that comes second at x' takes its place (`uncrossed="own"` for theirs).
- Classes that the request names as a whole are nobody's neighbour, so that two of them are not given to each other.
- The authors' code un-normalises by other numbers than its loader's (one of them a typo), so that its eps of 0.1 is 0.25 in
  pixels, and values leave [0, 1]. Here mean, deviation and range are arguments.
- It trains in training mode, so that running BatchNorm statistics become those of the forget set, and of the rows that the
  curvature term perturbs. Here the forget set goes through the model in evaluation mode by default.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from jaxunlearn import checks, passes, sampling, tree
from jaxunlearn.card import Method
from jaxunlearn.evaluation import class_labels, map_rows
from jaxunlearn.loop.descend import descend
from jaxunlearn.margin import margins
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Scalar, Unlearner, Variables

METHOD = Method(
    summary="learn the labels across the nearest decision borders; reads no row of the retain set",
    cites="chen2023boundary",
    family="objective",
    reads=frozenset({"forget"}),
    targets="classes",
    aliases=("boundary_unlearning",),
    search={"learning_rate": (3e-4, 5e-4, 1e-3), "eps": (0.05, 0.1, 0.25)},
)

Uncrossed = Literal["runner-up", "own"]
POSITIVE = 1e-12
SHARE = 80 / 255  # a step of several, as a share of eps: 8/255 at 0.1, as in the authors' code
FLAT = 1e-3  # change of curvature, as a share of the curvature, below which the term is quadratic


class _Neighbours(NamedTuple):
    """What the trained model says of every slot of the request."""

    labels: Int[Array, " k"]
    weights: Float[Array, " k"]  # of the loss; NaN where the model knows no label
    crossed: Bool[Array, " k"]  # whether x' lies in another class than the row's own
    bends: Float[Array, " k"]  # curvature around the row, zeros where it is not asked for


def boundary_shrink(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    eps: Scalar = 0.1,
    mean: ArrayLike = 0.0,
    std: ArrayLike = 1.0,
    low: Scalar = -jnp.inf,
    high: Scalar = jnp.inf,
    round_to: Scalar | None = None,
    search_steps: int = 1,
    search_step: Scalar | None = None,
    uncrossed: Uncrossed = "runner-up",
    reweight: bool = False,
    curvature: Scalar = 0.0,
    curvature_step: Scalar = 0.9,
    chunk: int | None = None,
    bn: BatchNormPolicy = "evaluate",
) -> Unlearner:
    """Teach the forget set the classes across its nearest borders.

    Meant for a whole class. `eps`, `low`, `high`, `round_to` and `search_step` are in un-normalised units, those of
    `inputs * std + mean`; all numbers may be traced. The forget set alone decides where the descent ends: too large a step, or
    too many, and other classes go too.

    Args:
        model: a classifier with logits [b, c] and integer targets [b], of floating-point inputs.
        optimizer: any optax transformation; published: `optax.sgd(1e-5, momentum=0.9)`, 10 epochs of batches of 64.
        eps: how far each entry of an input may move in the search. The paper says 0.1 for pixels in [0, 1]; its released code
            moves them by 0.25 in effect.
        mean, std: by which inputs were normalised, numbers or arrays that broadcast to a row, e.g. [channels] where those
            come last; by default inputs are as they are.
        low, high: range of un-normalised inputs, which the search does not leave: 0 and 1 for images.
        round_to: un-normalised inputs of the search are multiples of this, 1/255 as published; None does not round.
        search_steps: of the search, static; 1 is FGSM, more are PGD, projected onto the ball of `eps`. Published: 1 or 5.
        search_step: how far each of them goes; by default `eps` where there is one, else `eps * 80 / 255`, as published.
        uncrossed: label of a row for which the search crosses no border: the class that comes second there, or the row's own,
            as published, which teaches the model what it should forget.
        reweight: weigh rows by `3 sigmoid(5 (m - 1/2))`, m the highest probability of another class than z less that of z, at
            x'. As published: where the search crossed, weights lie between 0.0017 and 0.23, so raise the learning rate.
        curvature: weight of the change of curvature around the rows, at least 0; 0.7 in the authors' variant. 0 is off.
        curvature_step: length of the step over which curvature is measured, in the units of the inputs as they are.
        chunk: rows that are searched together; None takes all rows of a request.
        bn: which passes may move BatchNorm statistics; there is no retain pass, so only "all" moves them, as published. With
            any but "evaluate" the forget set is normalised by its own batches, which are often of one class.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `crossed` (share of the batch's rows for which the
        search crossed a border: a small one asks for a larger `eps`) and, with `curvature`, `bending` (its term) Float[]. Rows
        of which the model gives no number at x' make the result NONFINITE.

    Raises:
        ValueError: settings out of range; at trace time, logits or targets that are no classes, `mean` or `std` that do not
            broadcast to a row.
        TypeError: at trace time, inputs that are not floating-point.

    References:
        Chen, Gao, Liu, Peng, Wang: Boundary unlearning: rapid forgetting of deep networks via shifting the decision boundary,
        CVPR 2023, arXiv 2303.11570. The curvature is that of Moosavi-Dezfooli, Fawzi, Uesato, Frossard: Robustness via
        curvature regularization, and vice versa, CVPR 2019, arXiv 1811.09716.

    Example:
        >>> method = jaxunlearn.boundary_shrink(model, optax.sgd(0.1), eps=1.0)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=10, batch_size=8))(variables, data, request, key)
        >>> result.stats["crossed"].shape
        (10,)
    """
    mean, std = (jnp.asarray(x, jnp.float32) if isinstance(x, tuple | list) else x for x in (mean, std))
    checks.check_range("eps", eps, low=0)
    checks.check_range("std", std, low=POSITIVE)
    checks.check_range("curvature", curvature, low=0)
    checks.check_range("curvature_step", curvature_step, low=POSITIVE)
    checks.require_count("search_steps", search_steps)
    for name, value in {"round_to": round_to, "search_step": search_step}.items():
        if value is not None:
            checks.check_range(name, value, low=POSITIVE)
    if checks.is_concrete(low):
        checks.check_range("high", high, low=float(low))
    if uncrossed not in get_args(Uncrossed):
        raise ValueError(f"uncrossed must be one of {', '.join(get_args(Uncrossed))}, got {uncrossed!r}")
    if search_step is None:
        search_step = eps if search_steps == 1 else eps * SHARE
    straight = checks.is_concrete(curvature) and not np.any(np.asarray(curvature))

    def logits_across(variables: Variables, rows: Examples) -> Float[Array, "b c"]:
        """Logits at x'."""

        def natural(x):
            return x.astype(jnp.promote_types(x.dtype, jnp.float32)) * std + mean

        def logits(found):
            inputs = jax.tree.map(lambda x, like: ((x - mean) / std).astype(like.dtype), found, rows.inputs)
            return model.forward(variables, inputs, train=False).logits

        def step(found, _):
            slopes = jax.grad(lambda found: jnp.sum(margins(logits(found), rows.targets)))(found)
            return jax.tree.map(moved, found, slopes, start), None

        def moved(x, slope, origin):
            x = jnp.clip(x - search_step * jnp.sign(slope), origin - eps, origin + eps)
            x = jnp.clip(x, low, high)
            return (x if round_to is None else jnp.round(x / round_to) * round_to).astype(origin.dtype)

        start = jax.tree.map(natural, rows.inputs)
        return logits(jax.lax.scan(step, start, length=search_steps)[0])

    def neighbours(variables: Variables, data: Data, request: ForgetRequest, key) -> _Neighbours:
        targets = class_labels(data.train.targets)
        checks.require_classes("boundary_shrink", checks.check_forward(model, variables, data.train.inputs).logits)
        checks.require_floating(data.train.inputs, "boundary_shrink perturbs its inputs")
        _require_fits(data.train.inputs, mean=mean, std=std)

        def look(rows: Examples):
            logits = logits_across(variables, rows)
            logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
            return logits, jnp.zeros_like(logits[:, 0]) if straight else bending(variables, rows)

        part = sampling.forget_rows(data, request)
        logits, bends = map_rows(look, part.examples, chunk=chunk)
        own = jax.nn.one_hot(part.examples.targets, logits.shape[1], dtype=bool)
        labels = _labels(logits, own, sampling.forgotten_classes(request.target, logits.shape[1]), uncrossed)
        chosen, p = jax.nn.one_hot(labels, logits.shape[1], dtype=bool), jax.nn.softmax(logits)
        lead = jnp.max(jnp.where(chosen, 0, p), axis=1) - jnp.sum(jnp.where(chosen, p, 0), axis=1)
        weights = 3 * jax.nn.sigmoid(5 * (lead - 0.5)) if reweight else jnp.ones_like(lead)
        unknown = jnp.any(jnp.isnan(logits), axis=1)
        crossed = jnp.argmax(logits, axis=1) != part.examples.targets
        return _Neighbours(labels.astype(targets.dtype), jnp.where(unknown, jnp.nan, weights), crossed, bends)

    def bending(variables: Variables, rows: Examples) -> Float[Array, " b"]:
        """Change of the loss's gradient in x over a step along its sign."""

        def slope(inputs):
            def total(inputs):
                outputs = model.forward(variables, inputs, train=False)
                return jnp.sum(checks.row_losses(model, outputs, rows._replace(inputs=inputs)))

            return jax.grad(total)(inputs)

        with jax.default_matmul_precision("highest"):
            here = slope(rows.inputs)
            signs = jax.tree.map(lambda g: jax.lax.stop_gradient(jnp.sign(g)), here)
            share = curvature_step / jnp.maximum(tree.row_norms(signs), 1)
            there = jax.tree.map(lambda x, s: (x + _along(share, s) * s).astype(x.dtype), rows.inputs, signs)
            return tree.row_norms(jax.tree.map(jnp.subtract, slope(there), here))

    def objective(variables, context: _Neighbours, batch, key):
        part, slots = batch.forget, batch.forget.slots
        counts = part.weights > 0
        relabelled = part._replace(examples=part.examples._replace(targets=context.labels[slots]))
        forget, moved = passes.train_pass(model, variables, relabelled, key, side="forget", bn=bn)
        loss = forget.mean(forget.losses * jnp.where(counts, context.weights[slots], 1))
        stats = {"crossed": forget.mean(context.crossed[slots].astype(jnp.float32))}
        if not straight:
            change = bending(variables, part.examples) - context.bends[slots]
            stats["bending"] = curvature * _length(change, context.bends[slots], counts)
            loss += stats["bending"]
        return loss, (moved.state, stats)

    return descend(model, optimizer, objective, context=neighbours, on_empty=METHOD.on_empty, judge=False)


def _labels(
    logits: Float[Array, "k c"], own: Bool[Array, "k c"], forgotten: Bool[Array, " c"], uncrossed: Uncrossed
) -> Int[Array, " k"]:
    """The highest class of those that are open to a row; where all others are forgotten, any other one."""
    others = ~own & ~forgotten
    others = jnp.where(jnp.any(others, axis=1, keepdims=True), others, ~own)
    finite = jnp.maximum(logits, jnp.finfo(logits.dtype).min)  # a model may rule classes out
    return jnp.argmax(jnp.where(others | own if uncrossed == "own" else others, finite, -jnp.inf), axis=1)


def _length(change: Float[Array, " b"], before: Float[Array, " b"], counts: Bool[Array, " b"]) -> Float[Array, ""]:
    """Norm of what the curvature changed by, over the size of the batch, as the authors' code has it.

    A norm has a unit slope however little there is of it. Below a share of the curvature it is made quadratic, so that a model
    which has not moved is not steered by rounding.
    """

    def total(values):
        return jnp.sum(jnp.where(counts, values, 0) ** 2)

    room = FLAT**2 * total(before)
    square = total(change) + room
    root = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return (root - jnp.sqrt(room)) / jnp.maximum(jnp.sum(counts), 1)


def _along(values: Float[Array, " b"], rows: Array) -> Array:
    return values.reshape(values.shape + (1,) * (rows.ndim - 1))


def _require_fits(inputs: PyTree, **settings: ArrayLike) -> None:
    """ValueError unless the settings broadcast to one row of the inputs."""
    for name, value in settings.items():
        for x in jax.tree.leaves(inputs):
            row = x.shape[1:]
            try:
                fits = jnp.broadcast_shapes(jnp.shape(value), row) == row
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(
                    f"{name} of shape {jnp.shape(value)} does not fit rows of shape {row}: give a number or one entry for each "
                    "channel along its axis, e.g. shape (3, 1, 1) where channels come first"
                )
