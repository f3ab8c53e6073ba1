"""Rewind-to-delete (Mu, Klabjan: Rewind-to-delete, certified machine unlearning for nonconvex functions, NeurIPS 2025, arXiv
2409.09778).

    w <- the weights of some steps ago;    w <- w - h grad F'(w),    `steps` times,    F' the mean over the retain set

Learning is the same descent on all rows, with the same step and no batches, so that rewinding all of it is retraining. Weights
that were not stored are found again: a step h of gradient descent with h L < 1 is undone by the proximal point

    argmin_x ||x - w||^2 / (2 h) - F(x),    the only x with x = w + h grad F(x),

which is iterated to. `jaxunlearn.certificates.Rewind` says how much noise hides the difference from retraining; `publish` adds
it. The paper trains on batches and measures L and G on samples, which its bound does not cover.
"""

import jax
import jax.numpy as jnp

from jaxunlearn import checks, passes, tree
from jaxunlearn.card import Method
from jaxunlearn.evaluation import evaluate, sum_rows
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.sampling import asked, retain_weights
from jaxunlearn.slots import CHECKPOINT
from jaxunlearn.status import combine
from jaxunlearn.types import Model, Result, Scalar, UnlearnFn, Variables

METHOD = Method(
    summary="go back some steps of a full-batch descent, and make them again without the forget set",
    cites="mu2025rewind",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    guarantee="certified",
    on_empty="finetune",
    aliases=("r2d",),
    search={"step_size": (0.01, 0.05, 0.2)},
)


def rewind_to_delete(
    model: Model,
    *,
    step_size: Scalar,
    steps: int = 10,
    undo: bool = True,
    iterations: int = 30,
    chunk: int | None = None,
) -> UnlearnFn:
    """Full-batch gradient descent on the retain set, from weights of the past.

    With `undo=False` and an empty request it is the learning: `steps` on all rows from the weights that are given.

    Args:
        model: in evaluation mode, so without dropout; its state is kept.
        step_size: h of the learning too, above 0, may be traced; at most 1 / L for the certificate.
        steps: K, steps on the retain set; static.
        undo: where slot `checkpoint` is empty, take back K steps on all present rows; else start from the weights that are
            given. The slot holds params of K steps ago and goes before both; a stream carries it on.
        iterations: of each proximal point, each of which is a pass over the rows; the error shrinks by h L in each.
        chunk: rows that are in memory together; None takes all.

    Returns:
        An `UnlearnFn`; `stats` Float[]: `step_size`, `descent_steps` (K), `undone_steps` (K where steps were undone, else
        0) and `undo_residual` (largest norm of `x - w - h grad F(x)` over the undone steps); `asked`
        UInt32[4], which rows the run read.

    Raises:
        ValueError: a step that is not positive, counts that are none.

    Example:
        >>> learn = jaxunlearn.rewind_to_delete(model, step_size=0.1, steps=5, undo=False)
        >>> past = learn(variables, data, jaxunlearn.empty_request(), key).variables
        >>> trained = learn(past, data, jaxunlearn.empty_request(), key).variables
        >>> stored = jaxunlearn.slots.CHECKPOINT.put(data, past.params, at=trained)
        >>> unlearn = jaxunlearn.rewind_to_delete(model, step_size=0.1, steps=5)
        >>> float(unlearn(trained, stored, request, key).stats["undone_steps"])
        0.0
    """
    checks.check_range("step_size", step_size, low=1e-30)
    for name, value in (("steps", steps), ("iterations", iterations)):
        checks.require_count(name, value)
    if chunk is not None:
        checks.require_count("chunk", chunk)

    def gradient(params, state, examples, weights):
        """Of the mean loss over rows that count, and of the regularizer."""

        def total(params):
            variables = Variables(params, state)

            def block(examples, weights):
                losses = evaluate(model, variables, examples)[1]
                return jnp.sum(jnp.where(weights > 0, losses, 0) * weights)

            return sum_rows(block, examples, weights, chunk=chunk)

        slope, count = jax.grad(total)(params), jnp.maximum(jnp.sum(weights), 1)
        penalty = jax.grad(lambda p: jnp.asarray(passes.penalty(model, p), jnp.result_type(float)))(params)
        return jax.tree.map(lambda g, r: g / count.astype(g.dtype) + r.astype(g.dtype), slope, penalty)

    def moved(params, rate, slope):
        return jax.tree.map(lambda w, g: (w + rate * g).astype(w.dtype), params, slope)

    def rewind(variables, data, request, key):
        del key
        state, present = variables.state, (data.present > 0).astype(jnp.float32)
        retained = (retain_weights(data, request) > 0).astype(jnp.float32)

        def back(params, _):
            def nearer(x, _):
                return moved(params, step_size, gradient(x, state, data.train, present)), None

            found, _ = jax.lax.scan(nearer, params, length=iterations)
            gap = jax.tree.map(jnp.subtract, nearer(found, None)[0], found)
            return found, tree.norm(gap)

        def forth(params, _):
            return moved(params, -step_size, gradient(params, state, data.train, retained)), None

        stale, undone, residual, extra = False, 0, jnp.float32(0), {}
        params = variables.params
        if CHECKPOINT.find(data) is not None:
            stored, stale = CHECKPOINT.read(data, at=variables)
            params = jax.tree.map(lambda x, like: jnp.asarray(x).astype(like.dtype), stored, params)
        elif undo:
            params, gaps = jax.lax.scan(back, params, length=steps)
            undone, residual = steps, jnp.max(gaps)
        start = params
        params, _ = jax.lax.scan(forth, params, length=steps)
        after = variables._replace(params=params)
        if CHECKPOINT.find(data) is not None:
            extra = {CHECKPOINT.name: CHECKPOINT.made(start, at=after, data=data)}
        told = {"step_size": step_size, "descent_steps": steps, "undone_steps": undone, "undo_residual": residual}
        stats = {name: jnp.asarray(value, jnp.float32) for name, value in told.items()}
        stats["asked"] = asked(data, request)
        return Result(after, combine(STALE=jnp.asarray(stale)), stats, extra)

    return one_shot(rewind, model=model, on_empty=METHOD.on_empty)
