"""MinNorm-OG, towards the smallest model that still fits the retain set (Block, Mokhtari, Shakkottai: Machine unlearning under
overparameterization, NeurIPS 2025, arXiv 2505.22601).

A model that interpolates has loss gradients of 0 on every row, forgotten or not, so no step along them can forget. Among all
models that fit the retain set, this looks for the one of least norm:

    w <- w - r_k P w,           P the projection onto what is orthogonal to the rows of G,    r_k = strength decay^k
    w <- w - optimizer(grad mean_{retain} loss(w) + regularizer(w)),    at the new w

The rows of G are the gradients of the output of some rows of the batch (of the largest logit of a classifier, as published),
so that the first line keeps these outputs to first order and shrinks all else. Its move d is the minimum of
`|w + d|^2 + lambda |d|^2` over `G d = 0`, with `r = 1 / (1 + lambda)`. The update does not read the forget set. For linear
models with r = 1 the first step ends at the least-norm solution; for deep networks nothing is proven.

The authors' code takes the loss's graph before the shrinking, so that its descent mixes old activations with new weights; this
descends at the new weights, as their Algorithm 1 says. It has a QR factorisation of G, which returns an arbitrary direction for
a row that is zero or repeated; this finds the directions from products with G and G', which such rows add nothing to. Its
forward passes of the forget set move BatchNorm statistics; here only passes of the retain set do.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks, class_order
from jaxunlearn.card import Method
from jaxunlearn.curvature.approximations import chosen_leaves
from jaxunlearn.curvature.matvecs import widened
from jaxunlearn.evaluation import class_labels
from jaxunlearn.loop.descend import descend, retain_objective
from jaxunlearn.losses.sequences import are_tokens
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.tree import Layers
from jaxunlearn.types import Model, Scalar, Unlearner, Variables, Weighted

METHOD = Method(
    summary="shrink all that the outputs on the retain set do not depend on, and keep training on it",
    cites="block2025machine",
    family="objective",
    reads=frozenset({"retain"}),
    on_empty="finetune",
    aliases=("minnorm",),
    search={"learning_rate": (0.001, 0.003), "strength": (0.01, 0.05, 0.1), "decay": (0.4, 0.8)},
)

Which: TypeAlias = Literal["largest", "all"]
Images: TypeAlias = Callable[[Float[Array, "m m"]], Float[Array, "m m"]]  # of combinations c of the rows of G, `G G' c`


def minnorm_og(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    strength: Scalar = 0.1,
    decay: Scalar = 0.9,
    every: Scalar = 2,
    shrink_share: Scalar = 0.5,
    num_rows: int = 50,
    balanced: bool = False,
    outputs: Which | None = None,
    layers: Layers | None = None,
    chunk: int | None = None,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Shrink the parameters where the outputs on the retain set do not depend on them, and keep training on it.

    A step that shrinks costs `2 num_rows` passes forward and back over `num_rows` rows, others what a step of
    `jaxunlearn.finetune` does. The defaults are those of the paper's regression for a run of 100 steps; for classifiers it
    tries strengths of 0.001 to 0.1, decays of 0.2 to 0.9, and shrinks in every step.

    Args:
        model: any that interpolates; it is seen in training mode, so with dropout it is the thinned one whose outputs stay.
        optimizer: any optax transformation; published: `optax.adamw(1e-3, weight_decay=0.01)`.
        strength: r of the first shrinking, in [0, 1], may be traced; 0 is `jaxunlearn.finetune`.
        decay: factor on r after each of them, in [0, 1], may be traced.
        every: steps from one shrinking to the next, a whole number of at least 1, may be traced.
        shrink_share: share of the run after which it only descends, in [0, 1], may be traced. Published: 0.8 of 10 steps, 0.5
            of 100 and of 1000.
        num_rows: rows of the batch whose outputs are kept, static; the whole batch if it has no more.
        balanced: take rows of all classes in turn, as published, and not in the order of the batch; needs integer labels.
        outputs: `largest` keeps the largest logit for each label, `all` every logit, which makes c times as many rows of G.
            None is `largest` where one integer label stands for several logits, else `all`.
        layers: parameters that are shrunk, by their paths, see `jaxunlearn.transforms.restrict`, e.g. to leave out biases and
            normalisation; all by default. The descent moves what the optimizer moves: restrict that one, too, to hold others.
        chunk: rows of G that are in memory together, each of the size of the parameters; None takes all.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`. Both halves of a step normalise by the batch,
            so that shrinking what stands in front of a BatchNorm changes nothing; running statistics follow in the descent.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` Float[], `strength` Float[] (r of this step) and
        `rank` Int[] (directions that were kept), both 0 in steps that only descend.

    Raises:
        ValueError: a setting out of its range; at trace time, `layers` that name no parameter, `balanced` without labels.

    Example:
        >>> method = jaxunlearn.minnorm_og(model, optax.adamw(1e-3), num_rows=8, every=2)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=6, batch_size=16))(variables, data, request, key)
        >>> [round(x, 3) for x in result.stats["strength"].tolist()]  # in the first half of the run
        [0.1, 0.0, 0.09, 0.0, 0.0, 0.0]
    """
    checks.check_range("strength", strength, low=0, high=1)
    checks.check_range("decay", decay, low=0, high=1)
    checks.check_range("every", every, low=1)
    checks.check_range("shrink_share", shrink_share, low=0, high=1)
    checks.require_count("num_rows", num_rows)
    if chunk is not None:
        checks.require_count("chunk", chunk)
    if outputs not in (None, "largest", "all"):
        raise ValueError(f"outputs must be 'largest', 'all' or None, got {outputs!r}")
    inner = descend(model, optimizer, retain_objective(model, bn), on_empty=METHOD.on_empty)

    def step(state, context, batch, key):
        shrink_key, step_key = jax.random.split(key)
        made, since = jnp.divmod(batch.step, every)
        shrinks = jnp.asarray((since == 0) & (batch.progress < shrink_share))
        factor = jnp.where(shrinks, strength * decay**made, 0)

        def shrink(variables: Variables) -> tuple[PyTree, Int[Array, ""]]:
            part = _chosen_rows(batch.retain, num_rows, balanced)
            free, rank = _orthogonal(model, variables, part, shrink_key, outputs=outputs, layers=layers, chunk=chunk)
            return jax.tree.map(lambda w, p: (w - factor * p).astype(w.dtype), variables.params, free), rank

        def rest(variables: Variables) -> tuple[PyTree, Int[Array, ""]]:
            return variables.params, jnp.int32(0)

        params, rank = jax.lax.cond(shrinks, shrink, rest, state.variables)
        moved = state._replace(variables=state.variables._replace(params=params))
        after, stats = inner.step(moved, context, batch, step_key)
        return after, {**stats, "strength": factor, "rank": rank}

    return inner._replace(step=step)


def _chosen_rows(part: Weighted, num_rows: int, balanced: bool) -> Weighted:
    """The rows of a batch whose outputs are kept; the batch is in random order."""
    size = min(num_rows, part.weights.shape[0])
    order = jnp.arange(size)
    if balanced:
        order = class_order.turns_by_label(class_labels(part.examples.targets), part.weights > 0)[:size]
    return jax.tree.map(lambda x: x[order], part)


def _orthogonal(
    model: Model,
    variables: Variables,
    part: Weighted,
    key: PRNGKeyArray,
    *,
    outputs: Which | None,
    layers: Layers | None,
    chunk: int | None,
) -> tuple[PyTree, Int[Array, ""]]:
    """The part of the parameters that is orthogonal to the gradients of the outputs, and how many directions those span.

    It is 0 in what `layers` does not name, and everywhere where no row counts.
    """
    leaves, form = jax.tree.flatten(widened(variables.params))
    chosen = chosen_leaves(variables.params, layers)
    moving = [x for x, take in zip(leaves, chosen, strict=True) if take]

    def whole(moving: list[Array], others: list[Array]) -> PyTree:
        parts = iter(moving)
        return form.unflatten([next(parts) if take else x for x, take in zip(others, chosen, strict=True)])

    def kept(moving: list[Array]) -> Float[Array, " m"]:
        placed = variables._replace(params=whole(moving, leaves))
        logits, targets = model.forward(placed, part.examples.inputs, train=True, key=key).logits, part.examples.targets
        found = _outputs(logits, targets, outputs)
        counts = (part.weights > 0).reshape(-1, *(1,) * (found.ndim - 1))
        if are_tokens(logits, targets):  # those without a label are not kept
            counts = counts & (targets >= 0).reshape(targets.shape + (1,) * (found.ndim - targets.ndim))
        return jnp.where(counts, found, 0).astype(moving[0].dtype).ravel()

    with jax.default_matmul_precision("highest"):
        values, push = jax.linearize(kept, moving)
        pull = jax.linear_transpose(push, moving)

        def images(combinations: Float[Array, "m m"]) -> Float[Array, "m m"]:
            column = lambda row: push(*pull(row))  # noqa: E731
            return jax.vmap(column)(combinations) if chunk is None else jax.lax.map(column, combinations, batch_size=chunk)

        bases, rank = _bases(images, jnp.eye(values.shape[0], dtype=values.dtype))
        free = moving
        for _ in range(2):  # the second time takes off what rounding left
            for basis in bases:
                free = jax.tree.map(jnp.subtract, free, pull(basis.T @ (basis @ push(free)))[0])
    some = jnp.any(part.weights > 0)
    free = [jnp.where(some, x, 0) for x in free]
    return whole(free, [jnp.zeros_like(x) for x in leaves]), rank


def _outputs(logits: Array, targets: PyTree, which: Which | None) -> Array:
    """The outputs that are kept; the index of the largest logit is a constant, as a maximum's derivative has it."""
    if which is None:
        labelled = hasattr(targets, "dtype") and jnp.issubdtype(targets.dtype, jnp.integer)
        which = "largest" if labelled and logits.ndim == targets.ndim + 1 and logits.shape[-1] > 1 else "all"
    if which == "all" or logits.ndim == 1:
        return logits
    largest = jnp.argmax(logits, axis=-1, keepdims=True)  # one of several that are equal; `max` would give their mean
    return jnp.take_along_axis(logits, largest, axis=-1)[..., 0]


def _bases(images: Images, units: Float[Array, "m m"]) -> tuple[list[Float[Array, "m m"]], Int[Array, ""]]:
    """Combinations of the rows of G that are orthonormal, or 0, and span all of them; and how many there are.

    Eigenvalues of G G' are squares, so that those of short directions drown in rounding: with 50 rows in float32, all that are
    shorter than a hundredth of a row. What the first round cannot resolve is multiplied once more, at its own scale.
    """
    small = units.shape[0] * jnp.finfo(units.dtype).eps
    gram = images(units)
    squares = jnp.diagonal(gram)
    scale = jnp.where(squares > 0, jax.lax.rsqrt(jnp.where(squares > 0, squares, 1)), 0)[:, None]
    rows, gram = scale * units, scale * gram * scale.T  # rows of length 1
    bases, rank, floor = [], jnp.int32(0), jnp.zeros((), units.dtype)
    for turn in range(2):
        gram = rows @ images(rows).T if turn else gram
        found, vectors = jnp.linalg.eigh((gram + gram.T) / 2)
        largest = jnp.maximum(found[-1], 0)
        used = found > jnp.maximum(small * largest, floor)
        turned = vectors.T @ rows
        bases.append(jnp.where(used, jax.lax.rsqrt(jnp.where(used, found, 1)), 0)[:, None] * turned)
        rows, rank = jnp.where(used[:, None], 0, turned), rank + jnp.sum(used, dtype=jnp.int32)
        floor = small**2 * largest  # what is shorter is rounding, such as differences of repeated rows
    return bases, rank
