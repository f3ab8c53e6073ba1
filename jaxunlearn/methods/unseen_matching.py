"""Unseen matching: stop where a model that never saw the rows would stand. A heuristic of this library, guarantee none.

Rows of the forget set are pulled to the scores that unseen rows have, and no further; for a classifier the score is the margin
`m(x) = log p(y|x) / (1 - p(y|x))`. With F the law of the trained model's scores on trained rows, q the quantiles of those on
held-out rows, and S the held-out rows whose class stays,

    t_i = min(m_0(x_i), q(F(m_0(x_i)))),
    L(w) = mean_{forget} huber(m_w(x_i) - t_i)
           + retain_weight (mean_{retain} loss(w) + mean_S huber(m_w(x) - m_0(x)) + regularizer(w)).

So a row of which the trained model was less sure than of most is taken for a hard one, whatever else is forgotten with it.
Held-out rows keep their scores: else the model grows less sure of everything, and what was forgotten stands out again.

A class of which no row stays has no unseen rows to resemble: a retrained model does not know the class. Its rows are pulled
to the trained model's own prediction with such classes masked out, and to the scores that held-out rows of these classes have
at the same time (s(x) is the row's rank among both, so that the second term is a Wasserstein distance),

    KL(p_0(.|x, not forgotten) || p_w(.|x)) + huber(m_w(x) - q_w(s(x))).

It assumes that trained and held-out rows are drawn alike, and that the order of scores tells which row is hard; the forget set
may be harder or easier than others. Where classes differ in that, `by_class` matches within them. What it cannot know is what
only rows of the forget set teach: duplicates that are forgotten together look easy.

It descends from stopping at the error of held-out rows (SCRUB+R: Kurmanji, Triantafillou, Hayes, Triantafillou, NeurIPS 2023,
arXiv 2302.09880), and from smoothing predictions as far as unseen data bounds it (LoTUS: Spartalis, Semertzidis, Gavves, Daras,
CVPR 2025, arXiv 2503.18314). New are targets of single rows, which no learning rate can overshoot.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxunlearn import checks, losses, passes, sampling, unseen
from jaxunlearn.card import Method
from jaxunlearn.evaluation import class_logits, map_rows
from jaxunlearn.loop.damage import classes_of
from jaxunlearn.loop.descend import descend
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Outputs, Scalar, Unlearner, Variables

METHOD = Method(
    summary="of this library: pull each row to the margin that an unseen row would have, forgotten classes to the others",
    cites="kurmanji2023towards",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    aliases=("quantile_matching",),
    search={"learning_rate": (0.002,)},  # that of the training in `experiments/`: it has nothing to search
)


MOST = 1000  # trained rows that others are placed among; all of them where classes are apart, which may be rare
UNIT = 3.0  # nats up to which the loss is quadratic, so that rows that are far off are pulled harder


class _Targets(NamedTuple):
    """What the rows of one request, and held-out rows, are pulled to."""

    trained: Variables
    wanted: Float[Array, "k m"]
    known: Float[Array, "h m"]  # of held-out rows, by the trained model
    unit: Float[Array, " m"]  # difference up to which the loss is quadratic
    classes: Bool[Array, " c"]  # of which no row stays
    whole: Bool[Array, " k"]  # rows of such a class
    apart: Bool[Array, " h"]  # held-out rows of such a class


def unseen_matching(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    held_out: Examples,
    by_class: bool = False,
    retain_weight: Scalar = 5.0,
    score: Callable[[Outputs, Examples], jax.Array] | None = None,
    chunk: int | None = None,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Pull every row of the forget set to the score that an unseen row would have.

    The settings that it was measured with: Adam at the learning rate of the training, 50 steps, 64 rows of each side in a step.
    A step looks at as many held-out rows besides as at rows of the retain set.

    Args:
        model: a classifier, a regression, or one with many labels, see `jaxunlearn.unseen.scores`.
        optimizer: any optax transformation.
        held_out: rows that training never saw and that no audit reports, some tens at least. Their labels are read; what
            is asked of them is to keep their scores.
        by_class: place rows within their classes; a class without held-out rows takes those of all.
        retain_weight: weight of the retain set and of held-out rows, at least 0, may be traced. With the default, answers are
            within two seed spreads of retrained models in 18 of 24 cells of data, network, wrong labels and request,
            `gradient_difference` in 3, see `experiments/results`; 100 rows of MNIST at once are not.
        score: `(outputs, examples) -> Float[b, m]` in place of `jaxunlearn.unseen.scores`, high where a model knows the row.
        chunk: rows that are scored together at the start; None takes all.
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`. With dropout "evaluate" lets rows end at
            their targets; otherwise it is their scores in training mode that do.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_loss`, `forget_loss` (the model's loss),
        `excess` (mean of score minus target over rows of no forgotten class, nats or the unit of the targets) and `drift`
        (what held-out rows gained) Float[].

    Raises:
        ValueError: a negative `retain_weight`, held-out rows of another form than the training rows, `by_class` without
            classes, targets that have no score.
        TypeError: `held_out` is not `Examples`.

    Example:
        >>> method = jaxunlearn.unseen_matching(model, optax.adam(0.01), held_out=test)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=50, batch_size=16))(variables, data, request, key)
        >>> result.stats["excess"].shape
        (50,)
    """
    checks.check_range("retain_weight", retain_weight, low=0)
    held_out = jax.tree.map(jnp.asarray, held_out)
    measure = partial(unseen.scores, model) if score is None else score

    def targets(variables: Variables, data: Data, request: ForgetRequest, key) -> _Targets:
        checks.require_rows_like("held_out", held_out, data.train)

        def known(rows: Examples):
            return measure(model.forward(variables, rows.inputs, train=False), rows)

        part, sample = sampling.forget_rows(data, request), _some_present(data, None if by_class else MOST)
        rows = part.examples, data.train if sample is None else jax.tree.map(lambda x: x[sample], data.train), held_out
        seen, others = (map_rows(known, x, chunk=chunk) for x in rows[1:])
        # out of the same pass where that has all rows: equal up to rounding is another place among them
        own = seen[sampling.row_numbers(request)] if sample is None else map_rows(known, part.examples, chunk=chunk)
        if own.ndim != 2:
            raise ValueError(f"score must return [b, m], one or more numbers for each row, got shape {own.shape}")
        count = classes_of(model, variables, data)
        if by_class and count is None:
            raise ValueError("by_class=True matches within classes, and the targets are not one class per row")
        if count is not None:
            checks.require_labels("held_out", held_out.targets, count)
        groups, there = (
            tuple(x.targets for x in rows) if by_class else None,
            jnp.asarray(data.present)[slice(None) if sample is None else sample] > 0,
        )
        wanted = jax.vmap(lambda *x: unseen.expected_scores(x[0], x[1], there, x[2], groups=groups), in_axes=1, out_axes=1)(
            own, seen, others
        )
        real = score is None and unseen.is_real(part.examples.targets) and count is None
        unit = jnp.mean(jnp.abs(others), axis=0) if real else jnp.full(own.shape[1], UNIT, own.dtype)
        classes = jnp.zeros(0, bool) if count is None else sampling.classes_gone(data, request, count)
        whole, apart = (
            jnp.zeros(len(scores), bool) if count is None else classes[x.targets]
            for x, scores in ((part.examples, own), (held_out, others))
        )
        return _Targets(variables, wanted, others, jnp.where(unit > 0, unit, 1), classes, whole, apart)

    def objective(variables, context: _Targets, batch, key):
        def far(difference):
            return jnp.sum(context.unit**2 * optax.losses.huber_loss(difference / context.unit), axis=1)

        key, held_key = jax.random.split(key)
        retain, forget, moved = passes.both_passes(model, variables, batch, key, bn=bn)
        part, drawn = batch.forget, _draw(context.apart, batch.retain.weights.shape[0], held_key)
        rows, apart = jax.tree.map(lambda x: x[drawn], held_out), context.apart[drawn]
        own = measure(forget.outputs, part.examples)
        others = measure(model.forward(moved, rows.inputs, train=False), rows)
        excess, gained = own - context.wanted[part.slots], others - context.known[drawn]
        pulls, whole = far(excess), context.whole[part.slots]
        if context.classes.shape[0] > 1:
            counts = whole & (part.weights > 0)
            like = jax.vmap(lambda a, b: unseen.matched_scores(a, counts, b, apart), in_axes=1, out_axes=1)(own, others)
            lost = _apart(model, forget.outputs, context, part.examples) + jnp.where(jnp.any(apart), far(own - like), 0)
            pulls = jnp.where(whole, lost, pulls)
        kept = retain.loss + sampling.masked_mean(far(gained), 1.0 - apart, empty=0) + passes.penalty(model, variables.params)
        stats = {
            "retain_loss": retain.loss,
            "forget_loss": forget.loss,
            "excess": sampling.masked_mean(jnp.mean(excess, axis=1), part.weights * ~whole, empty=0),
            "drift": sampling.masked_mean(jnp.mean(gained, axis=1), 1.0 - apart, empty=0),
        }
        return forget.mean(pulls) + retain_weight * kept, (moved.state, stats)

    return descend(model, optimizer, objective, context=targets, on_empty=METHOD.on_empty)


def _some_present(data: Data, most: int | None) -> Int[Array, " t"] | None:
    """So many rows, present ones first, the same for all requests; None for all rows, if there are no more."""
    rows = data.present.shape[0]
    if most is None or rows <= most:
        return None
    order = np.random.default_rng(0).permutation(rows).astype(np.int32)
    return jnp.asarray(order)[jnp.argsort(jnp.asarray(data.present)[order] <= 0)][:most]


def _draw(apart: Bool[Array, " h"], size: int, key: PRNGKeyArray) -> Int[Array, " b"]:
    """Held-out rows with replacement; where some belong to forgotten classes, every other one is one of those."""
    share, count = jax.random.uniform(key, (size,)), jnp.sum(apart)
    among = jnp.where((jnp.arange(size) % 2 == 1) & (count > 0), count, apart.shape[0])
    return jnp.argsort(~apart)[jnp.minimum((share * among).astype(jnp.int32), among - 1)]


def _apart(model: Model, outputs: Outputs, context: _Targets, examples: Examples) -> Float[Array, " b"]:
    """Divergence from the trained model's prediction among the classes that stay."""
    trained = model.forward(context.trained, examples.inputs, train=False).logits
    trained, moved = (class_logits(x, examples.targets) for x in (trained, outputs.logits))
    gone = context.classes & ~jnp.all(context.classes)  # with no class left there is nothing to tell apart
    return losses.kl_divergence(jnp.where(gone, jnp.finfo(trained.dtype).min, trained), moved)
