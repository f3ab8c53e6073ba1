"""NatMU, natural machine unlearning (He, Li, Cheng, Huang, Huang: Towards natural machine unlearning, IEEE TPAMI 2025, arXiv
2405.15495): wrong labels that the input supports, because a part of another image is in it.

    x'_{it} = m_t x_i + (1 - m_t) x_{r(i,t)},    y'_{it} = y_{r(i,t)},    t = 1..4
    L(w) = mean_{retain set and hybrids} loss(w; x, y) + regularizer(w)

The image i of the forget set is mixed with four retained ones, r(i, t) of the class that the trained model holds for the t-th
likeliest among the wrong ones. Masks are triangle waves: 1 and 2 keep the middle of i (of its height, of its width), 3 and 4
its borders. Images of the forget set are never seen as they are.

Masks are between 0 and 1, so that clipping does nothing, and the weights of both images sum to 1, so that it does not matter
whether a shift and a scale for each channel come before the mixing or behind it; images that are normalised one by one must
be mixed before that. The authors' code ranks classes by probabilities, which saturate to ties on images that a model knows by
heart; here by logits. It looks for partners until it finds one, for ever once a class has run out, and where rows are forgotten
moves the surplus of frequent classes to others; here a class that ran out begins again, and classes of which no row stays are
left out. It trains on one shuffled set; here every step sees retained rows and hybrids, each weighted by their share, and both
sides are normalised by their own batch statistics. It augments the retain set only; `iterate(augment=)` reaches hybrids too.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxunlearn import checks, class_order, passes, sampling
from jaxunlearn.card import Method
from jaxunlearn.evaluation import class_labels, map_rows
from jaxunlearn.loop.descend import descend
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Batch, BatchSizes, Data, Examples, ForgetRequest, Model, Scalar, Split, Unlearner, Variables

METHOD = Method(
    summary="learn images of the forget set mixed with retained ones, under the labels of those",
    cites="he2025towards",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    targets="classes",
    aliases=("natural_unlearning",),
    search={"learning_rate": (0.004, 0.008, 0.016), "delta": (-0.05, -0.2, 0.05)},
)

MASKS = 4
TURNS = 12  # a multiple of every number of hybrids up to MASKS


class Hybrids(NamedTuple):
    """The hybrids of one request, as indices."""

    partners: Int[Array, "k t"]  # row that is mixed into a slot by each mask; where there is none, the slot's own
    counts: Int[Array, " k"]  # hybrids of each slot, which are those of the first masks
    turns: Int[Array, " k"]  # where a slot begins to go through its masks
    share: Float[Array, ""]  # of hybrids among these and the retain set
    reused: Float[Array, ""]  # share of hybrids whose class had run out


def masks(height: int, width: int, delta: Scalar = 0.0) -> Float[Array, "4 h w"]:
    """What of an image of the forget set stays in its four hybrids.

    With `u(r) = min(r, h - 1 - r) / (h / 2)`, a triangle wave over the height, and the same over the width, masks are `u` of
    the rows, `u` of the columns, `max u - u` of the rows and of the columns, each plus `delta` and clipped to [0, 1].

    Args:
        height, width: h and w, static; the paper has even h = w.
        delta: may be traced; more keeps more of the image.

    Returns:
        Float[4, h, w].

    Example:
        >>> from jaxunlearn.methods.natmu import masks
        >>> masks(4, 2)[0].tolist()
        [[0.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.0, 0.0]]
    """

    def wave(size: int) -> np.ndarray:
        place = np.arange(size)
        return np.minimum(place, size - 1 - place) / (size / 2)

    rows, columns = wave(height)[:, None], wave(width)[None, :]
    both = [rows, columns, rows.max() - rows, columns.max() - columns]
    return jnp.clip(np.stack([np.broadcast_to(x, (height, width)) for x in both]).astype(np.float32) + delta, 0, 1)


def natmu(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    delta: Scalar = -0.05,
    image_shape: tuple[int, ...] | None = None,
    spatial_axes: tuple[int, int] = (0, 1),
    quantize: Callable[[Array], Array] | None = None,
    init_linear: bool = False,
    chunk: int | None = None,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Train on the retain set and on hybrids: images of the forget set with content of retained ones, and their labels.

    A row has four hybrids, fewer where fewer wrong classes have retained rows: with c classes at most `c - 1`, those of the
    first masks. No partner is used twice before its class has run out, then all of them come again, in turn.

    Args:
        model: a classifier of images with logits [b, c] and integer targets [b].
        optimizer: any optax transformation; published: AdamW, a rate of 3e-4 to 2e-3 and a cosine schedule, for 5 passes over
            the retain set.
        delta: added to the masks, may be traced: 1 leaves the image of the forget set as it is, -1 leaves the retained one.
            Published: -0.19 (CIFAR-10) to 0.045 (Tiny ImageNet), -0.053 for classes.
        image_shape: of one row, where inputs are flattened images.
        spatial_axes: positions of height and width in the shape of one image; (1, 2) for channels in front.
        quantize: applied to hybrids of floating-point images, `jnp.floor` for pixels of 0 to 255; those of integers are
            truncated anyway, as in the authors' code.
        init_linear: draw the weights of the head anew, from Xavier's normal law with gain sqrt(2), and keep its biases, as
            published for whole classes.
        chunk: rows of the forget set that are ranked together at the start; None takes all.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`, whose `batch_size` counts hybrids; four passes over the forget set show each
        once. Per-step `stats`: `loss`, `retain_loss`, `hybrid_loss`, `share` (weight of hybrids in the loss), `reused` (share
        of hybrids whose partner another one had before) Float[].

    Raises:
        ValueError: `delta` outside [-1, 1], `init_linear` without a head; at trace time, inputs that are no images, targets or
            logits that are no classes.

    Example:
        >>> method = jaxunlearn.natmu(model, optax.sgd(0.1), image_shape=(2, 2))  # of four numbers per row
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=10, batch_size=8))(variables, data, request, key)
    """
    checks.check_range("delta", delta, low=-1, high=1)
    if init_linear and model.head is None:
        raise ValueError("init_linear draws the head anew: give the model its last layer, Model(..., head=jaxunlearn.Head(..))")

    def pairs(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Hybrids:
        _image_shape(data.train.inputs, image_shape, spatial_axes)
        labels, part = class_labels(jnp.asarray(data.train.targets)), sampling.forget_rows(data, request)
        logits = map_rows(lambda rows: model.forward(variables, rows.inputs, train=False).logits, part.examples, chunk=chunk)
        checks.require_classes("natmu", logits)
        return _pairs(logits, labels, data, request, key)

    def sample(split: Split, context: Hybrids, step: jax.Array, key: PRNGKeyArray, sizes: BatchSizes) -> Batch:
        forget, train = sampling.draw_forget(split, step, sizes.forget), split.data.train
        counts = context.counts[forget.slots] * (forget.weights > 0)
        shape = _image_shape(train.inputs, image_shape, spatial_axes)
        visit = (step * sizes.forget + jnp.arange(sizes.forget, dtype=jnp.int32)) // jnp.maximum(split.num_forget, 1)
        which = (visit + context.turns[forget.slots]) % jnp.maximum(counts, 1)
        rows = context.partners[forget.slots, which]
        partners = jax.tree.map(lambda x: jnp.asarray(x)[rows], train)
        high, wide = spatial_axes
        kept = masks(shape[high], shape[wide], delta)[which]
        others = [1 + axis for axis in range(len(shape)) if axis not in spatial_axes]
        kept = jnp.expand_dims(kept if high < wide else kept.mT, others)

        def mixed(own: Array, other: Array) -> Array:
            images = [x.reshape(-1, *shape).astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (own, other)]
            hybrid = kept * images[0] + (1 - kept) * images[1]
            return (hybrid if quantize is None else quantize(hybrid)).astype(own.dtype).reshape(own.shape)

        def where_there_is_one(hybrid: Array, own: Array) -> Array:
            return jnp.where((counts > 0).reshape(-1, *(1,) * (own.ndim - 1)), hybrid, own)

        hybrids = Examples(mixed(forget.examples.inputs, partners.inputs), partners.targets)
        examples = jax.tree.map(where_there_is_one, hybrids, forget.examples)
        weights = counts.astype(jnp.float32) / context.partners.shape[1]  # rows of fewer hybrids come as often as others
        return Batch(forget._replace(examples=examples, weights=weights), sampling.draw_retain(split, key, sizes.retain))

    def objective(variables, context: Hybrids, batch, key):
        retain, hybrids, moved = passes.both_passes(model, variables, batch, key, bn=bn)
        loss = (1 - context.share) * retain.loss + context.share * hybrids.loss + passes.penalty(model, variables.params)
        stats = {"retain_loss": retain.loss, "hybrid_loss": hybrids.loss, "share": context.share, "reused": context.reused}
        return loss, (moved.state, stats)

    def start(variables: Variables, key: PRNGKeyArray) -> Variables:
        if not init_linear or model.head is None:
            return variables
        kernel, bias = model.head.get(variables)
        fresh = jax.random.normal(key, kernel.shape) * 2 / math.sqrt(sum(kernel.shape))
        return model.head.set(variables, fresh.astype(kernel.dtype), bias)

    return descend(model, optimizer, objective, context=pairs, start=start, sample=sample, on_empty=METHOD.on_empty)


def _image_shape(inputs: Any, image_shape: tuple[int, ...] | None, spatial_axes: tuple[int, int]) -> tuple[int, ...]:
    """The shape of one image; ValueError where inputs are none."""
    found = tuple(inputs.shape[1:]) if hasattr(inputs, "dtype") else ()
    shape = found if image_shape is None else tuple(image_shape)
    apart = len(set(spatial_axes)) == 2 and all(0 <= axis < len(shape) for axis in spatial_axes)
    if not found or len(shape) < 2 or math.prod(shape) != math.prod(found) or not apart:
        raise ValueError(
            f"natmu mixes images, one array [n, height, width, ...]; got rows of shape {found}, image_shape={image_shape} and "
            f"spatial_axes={spatial_axes}: pass image_shape=(height, width) for flattened images, spatial_axes=(1, 2) for "
            "channels in front"
        )
    return shape


def _pairs(
    logits: Float[Array, "k c"], labels: Int[Array, " n"], data: Data, request: ForgetRequest, key: PRNGKeyArray
) -> Hybrids:
    """Partners for all rows of a request: of the likeliest wrong classes that stay, without replacement."""
    slots, num_classes = logits.shape
    offset_key, turn_key = jax.random.split(key)
    retained = class_order.retained_by_class(data, request, num_classes)
    usable = sampling.usable_slots(data, request)
    own = jnp.where(usable, sampling.row_numbers(request), 0)
    stays = (retained.size > 0) & ~sampling.classes_gone(data, request, num_classes)
    allowed = stays & ~jax.nn.one_hot(labels[own], num_classes, dtype=bool) & usable[:, None]
    width = min(MASKS, num_classes - 1)
    chosen = jnp.lexsort((-logits, ~allowed), axis=1)[:, :width].astype(jnp.int32)
    valid = jnp.take_along_axis(allowed, chosen, axis=1)

    wanted = class_order.by_class(chosen.ravel(), valid.ravel(), num_classes)
    turn = jnp.zeros(slots * width, jnp.int32).at[wanted.order].set(jnp.arange(slots * width, dtype=jnp.int32))
    rank = turn.reshape(slots, width) - wanted.first[chosen]  # among all that ask for the same class
    there = jnp.maximum(retained.size, 1)
    offset = jax.random.bits(offset_key, (num_classes,)) % there.astype(jnp.uint32)
    rows = class_order.row_of_class(retained, chosen, (offset.astype(jnp.int32)[chosen] + rank) % there[chosen])
    total, kept = jnp.sum(valid), jnp.sum(jnp.asarray(data.present) > 0) - jnp.sum(usable)
    return Hybrids(
        partners=jnp.where(valid, rows, own[:, None]),
        counts=jnp.sum(valid, axis=1, dtype=jnp.int32),
        turns=(jax.random.bits(turn_key, (slots,)) % TURNS).astype(jnp.int32),
        share=total / jnp.maximum(total + kept, 1).astype(jnp.float32),
        reused=jnp.sum(valid & (rank >= retained.size[chosen])) / jnp.maximum(total, 1).astype(jnp.float32),
    )
