"""Hessian-free unlearning (Qiao, Zhang, Tang, Wei: Hessian-free online certified unlearning, ICLR 2025, arXiv 2404.01712).

    w <- w + sum of a^u over the forget set,
    a^u <- a^u - h_t H_t a^u + [u in batch t] (h_t / b) grad l(w_t; z_u)    for t = 0, 1, ..., from a^u = 0

with the weights w_t of SGD on fixed batches, and the Hessian H_t of batch t there: to first order what training without row u
would have changed. `recollect` trains and makes a vector for every row, by running the training again beside as many vectors as
fit into memory; a removal is then a sum of vectors, and reads no row.

H_t leaves row u out here, as the retrained model does; the paper keeps it. One row is then exact for quadratic losses. The
authors' code takes the Hessian of the sum of both terms, the new gradient included, which is less exact. Vectors tell of their
rows: `jaxunlearn.remove` does not delete those of rows that are gone.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxunlearn import checks, sampling, tree
from jaxunlearn.card import Method
from jaxunlearn.loop.fixed_batches import along, batch_of, fixed_batches, slope_of
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.slots import RECOLLECTIONS
from jaxunlearn.status import combine
from jaxunlearn.types import Model, Result, Scalar, UnlearnFn, Variables

METHOD = Method(
    summary="add, for every row of the forget set, a vector that says what training without it would have changed",
    cites="qiao2025hessian",
    family="closed form",
    reads=frozenset({"recollections"}),
    guarantee="certified",
    aliases=("hf", "recollecting"),
)

Rate: TypeAlias = Scalar | Callable[[Array], Array]


class Recollections(NamedTuple):
    """What a training leaves in slot `recollections`."""

    vectors: PyTree  # one per row, each leaf [n, ...], at least float32
    batches: Int[Array, "t b"]
    rates: Float[Array, " t"]
    trained: Bool[Array, " n"]  # rows that were trained on


def recollect(
    model: Model,
    *,
    learning_rate: Rate,
    num_steps: int,
    batch_size: int,
    vectors: bool = True,
    chunk: int | None = None,
) -> UnlearnFn:
    """Train by plain SGD on fixed batches from the weights that are given, and make a vector for every row.

    Args:
        model: in evaluation mode, so without dropout; its state is kept. Rows have to be treated one by one.
        learning_rate: h, above 0, may be traced, or a function of the step such as an optax schedule.
        num_steps: t.
        batch_size: b; gradients are divided by it whatever rows are gone, so that a row that leaves is a gradient less.
        vectors: whether to make them. Without, and with a request, it is retraining on the same batches.
        chunk: vectors that are in memory together beside the training, which is run again for each chunk; None takes all.

    Returns:
        An `UnlearnFn`; with `vectors` its `Result.extra` fills slot `recollections`: n vectors of the size of the params, 0 of
        rows that are not trained on. It costs about as much as n t / b steps for every t.

    Raises:
        ValueError: a rate that is not positive, sizes that are none.

    Example:
        >>> train = jaxunlearn.recollect(model, learning_rate=0.1, num_steps=20, batch_size=8)
        >>> trained = jax.jit(train)(variables, data, jaxunlearn.empty_request(), key)
        >>> ready = data._replace(extra={**data.extra, **trained.extra})
        >>> result = jax.jit(jaxunlearn.hessian_free(model))(trained.variables, ready, request, key)
        >>> int(result.status)
        0
    """
    if not callable(learning_rate):
        checks.check_range("learning_rate", learning_rate, low=1e-30)
    for name, size in (("num_steps", num_steps), ("batch_size", batch_size), ("chunk", chunk or 1)):
        checks.require_count(name, size)

    def train(variables, data, request, key):
        counts = jnp.asarray(sampling.retain_weights(data, request))
        batches = fixed_batches(counts.shape[0], key, num_steps=num_steps, batch_size=batch_size)
        steps = jnp.arange(num_steps)
        rates = jax.vmap(learning_rate)(steps) if callable(learning_rate) else jnp.full(num_steps, learning_rate)
        rates = jnp.asarray(rates, jnp.float32)
        after = variables._replace(params=along(model, variables, data, batches, rates, counts))
        if not vectors:
            return Result(after)
        found = _vectors(model, variables, data, batches, rates, counts, chunk)
        return Result(after, extra={RECOLLECTIONS.name: RECOLLECTIONS.made(
            Recollections(found, batches, rates, counts > 0), at=after, data=data
        )})  # fmt: skip

    return one_shot(train, model=model, on_empty="finetune")


def _vectors(model, variables, data, batches, rates, counts, chunk):
    """The recursion for all rows, `chunk` at a time."""
    num_rows, batch_size = counts.shape[0], batches.shape[1]
    wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), variables.params)
    bare = model._replace(regularizer=None)

    def block(mine):
        own, present = batch_of(data, mine, counts)

        def step(carry, now):
            params, found = carry
            rows, rate = now
            slope, push = jax.linearize(slope_of(model, variables.state, *batch_of(data, rows, counts), "fixed"), params)
            hits = jnp.sum(rows == mine[:, None], axis=1) * present / batch_size

            def one(vector, example, hit):
                row = jax.tree.map(lambda x: x[None], example)
                of_row = slope_of(bare, variables.state, row, jnp.ones(1), "fixed")
                gradient, curved = jax.jvp(of_row, (params,), (vector,))

                def moved(a, turned, mine, g):
                    return a - rate * (turned - jnp.where(hit > 0, hit * mine, 0)) + rate * jnp.where(hit > 0, hit * g, 0)

                return jax.tree.map(moved, vector, push(vector), curved, gradient)

            found = jax.vmap(one)(found, own, hits)
            return (jax.tree.map(lambda w, g: w - rate * g, params, slope), found), None

        zeros = jax.tree.map(lambda x: jnp.zeros((mine.shape[0], *x.shape), x.dtype), wide)
        return jax.lax.scan(step, (wide, zeros), (batches, rates))[0][1]

    with jax.default_matmul_precision("highest"):
        if chunk is None or chunk >= num_rows:
            return block(jnp.arange(num_rows))
        parts = -(-num_rows // chunk)
        mine = jnp.arange(parts * chunk)
        found = jax.lax.map(block, jnp.where(mine < num_rows, mine, -1).reshape(parts, chunk))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], found)


def hessian_free(model: Model) -> UnlearnFn:
    """Add the vectors of the forget set to the weights.

    Reads slot `recollections`, see `recollect`; no row and no pass. A stream adds up, as `Result.extra` carries it on.

    Args:
        model: any; it is not run.

    Returns:
        An `UnlearnFn`; `stats`: `step_norm` Float[], of what was added; `hits` Int[t], rows in each batch that are gone now, by
        this request or before; `gone` Int[], all of those; `rates` Float[t]; `batch_size` Int[]; `asked` UInt32[4], see
        `sampling.asked`.

    Raises:
        ValueError: at trace time, there are no vectors, or they belong to a model of another form.

    Example:
        >>> train = jaxunlearn.recollect(model, learning_rate=0.1, num_steps=20, batch_size=8)
        >>> trained = jax.jit(train)(variables, data, jaxunlearn.empty_request(), key)
        >>> ready = data._replace(extra={**data.extra, **trained.extra})
        >>> result = jax.jit(jaxunlearn.hessian_free(model))(trained.variables, ready, request, key)
        >>> result.stats["hits"].shape
        (20,)
    """
    del model

    def remove(variables, data, request, key):
        del key
        known, stale = RECOLLECTIONS.read(data, at=variables)
        shapes = [jax.tree.map(jnp.shape, variables.params), jax.tree.map(lambda x: x.shape[1:], known.vectors)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"data.extra['recollections'] was made for parameters {shapes[1]}, these are {shapes[0]}")
        usable = sampling.usable_slots(data, request)
        rows = jnp.where(usable, sampling.row_numbers(request), 0)

        def total(vectors):
            own = vectors[rows]
            return jnp.sum(jnp.where(usable.reshape(-1, *(1,) * (own.ndim - 1)), own, 0), axis=0)

        change = jax.tree.map(total, known.vectors)
        params = jax.tree.map(lambda w, a: (w.astype(a.dtype) + a).astype(w.dtype), variables.params, change)
        after: Variables = variables._replace(params=params)
        retained = sampling.retain_weights(data, request)
        gone = known.trained & (retained <= 0)
        hits = jnp.sum(gone[known.batches], axis=1, dtype=jnp.int32)
        stats = {"step_norm": tree.norm(change), "hits": hits, "gone": jnp.sum(gone, dtype=jnp.int32), "rates": known.rates}
        stats |= {"batch_size": jnp.int32(known.batches.shape[1]), "asked": sampling.asked(data, request)}
        extra = {RECOLLECTIONS.name: RECOLLECTIONS.made(known, at=after, data=data._replace(present=retained))}
        return Result(after, combine(STALE=stale), stats, extra)

    return one_shot(remove, on_empty=METHOD.on_empty, may_rest=True)
