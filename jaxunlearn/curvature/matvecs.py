"""Products of curvature matrices with vectors, without the matrices.

Every function here returns `v -> C v`, a linear function of trees like the params, for C the mean over rows with weights:

| function | matrix | what it is for |
|---|---|---|
| `hvp` | Hessian of the loss | Newton's step and its bounds; indefinite for networks |
| `ggn_vp` | generalised Gauss-Newton | positive; the Hessian of the model linearised |
| `fisher_vp` | Fisher, exact over classes | the same for cross-entropy |
| `sampled_fisher_vp` | Fisher, a label drawn for each row | the same on average |
| `empirical_fisher_vp` | mean of g g', labels of the data | none of the above; vanishes at a fitted model |
| `jacobian_vp` | mean of J' J | the tangent kernel's counterpart |

The model's regularizer is in none of them, see `regularizer_vp`. With `chunk=None` the model is linearised once, when the
function is made, and all vectors share it, under `vmap` too; with a chunk every product runs through the rows again and
memory is bounded. All matrix products run at the highest precision, and at least in float32. A data axis may be sharded where
`chunk=None`: sums over rows become sums over devices.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxunlearn import checks, sampling, tree
from jaxunlearn.curvature.logit_gradients import Kind, check_kind, draws, labelled, loss_curvature, slopes
from jaxunlearn.evaluation import evaluate, sum_rows
from jaxunlearn.types import Examples, Model, Variables

Matvec: TypeAlias = Callable[[PyTree], PyTree]  # linear, trees like the params


def hvp(
    model: Model,
    variables: Variables,
    examples: Examples,
    weights: Float[Array, " n"] | None = None,
    *,
    chunk: int | None = None,
) -> Matvec:
    """Hessian of the mean loss, forward over reverse.

    Args:
        model: in evaluation mode.
        variables: where the derivatives are taken.
        examples: rows, leading axis n.
        weights: of the rows, 1 by default; rows of weight 0 may hold anything.
        chunk: rows in memory together, see the module.

    Returns:
        `v -> H v`.

    Raises:
        ValueError: a loss that is not one value per row, a bad chunk.

    References:
        Pearlmutter: Fast exact multiplication by the Hessian, 1994, doi 10.1162/neco.1994.6.1.147.

    Example:
        >>> product = jaxunlearn.curvature.hvp(model, variables, data.train)
        >>> hv = product(variables.params)
    """
    params, weights = widened(variables.params), _weights(examples, weights)

    def gradient(params, examples, weights):
        return jax.grad(lambda p: _summed(model, p, variables, examples, weights))(params)

    def linear(examples, weights):
        return jax.linearize(lambda p: gradient(p, examples, weights), params)[1]

    return _mean_product(linear, params, examples, weights, chunk)


def ggn_vp(
    model: Model,
    variables: Variables,
    examples: Examples,
    weights: Float[Array, " n"] | None = None,
    *,
    chunk: int | None = None,
) -> Matvec:
    """Generalised Gauss-Newton matrix, the mean of `J' L J` with L the second derivative of the loss in the logits.

    Args:
        model, variables, examples, weights, chunk: as in `hvp`.

    Returns:
        `v -> C v`.

    References:
        Schraudolph: Fast curvature matrix-vector products for second-order gradient descent, 2002,
        doi 10.1162/08997660260028683.

    Example:
        >>> product = jaxunlearn.curvature.ggn_vp(model, variables, data.train, chunk=32)
    """
    return _through_logits("ggn", model, variables, examples, weights, None, chunk)


def fisher_vp(
    model: Model,
    variables: Variables,
    examples: Examples,
    weights: Float[Array, " n"] | None = None,
    *,
    chunk: int | None = None,
) -> Matvec:
    """Fisher matrix, the expectation of `g g'` over labels as the model predicts them, exactly: c gradients per row.

    Args:
        model, variables, examples, weights, chunk: as in `hvp`; integer targets.

    Returns:
        `v -> C v`.

    Example:
        >>> product = jaxunlearn.curvature.fisher_vp(model, variables, data.train)
    """
    return _through_logits("fisher", model, variables, examples, weights, None, chunk)


def sampled_fisher_vp(
    model: Model,
    variables: Variables,
    examples: Examples,
    key: PRNGKeyArray,
    weights: Float[Array, " n"] | None = None,
    *,
    kind: Literal["sampled", "signed"] = "sampled",
    chunk: int | None = None,
) -> Matvec:
    """Fisher matrix with one label per row drawn from the model's prediction; unbiased, one gradient per row.

    Args:
        model, variables, examples, weights, chunk: as in `hvp`; integer targets.
        key: of the labels.
        kind: `signed` draws signs of all labels in place of one label, see `logit_gradients`.

    Returns:
        `v -> C v`.

    Example:
        >>> product = jaxunlearn.curvature.sampled_fisher_vp(model, variables, data.train, key)
    """
    return _through_logits(kind, model, variables, examples, weights, key, chunk)


def empirical_fisher_vp(
    model: Model,
    variables: Variables,
    examples: Examples,
    weights: Float[Array, " n"] | None = None,
    *,
    chunk: int | None = None,
) -> Matvec:
    """Mean of `g g'` with the labels of the data; no approximation of the Fisher matrix, see `logit_gradients`.

    Args:
        model, variables, examples, weights, chunk: as in `hvp`.

    Returns:
        `v -> C v`.

    Example:
        >>> product = jaxunlearn.curvature.empirical_fisher_vp(model, variables, data.train)
    """
    return _through_logits("empirical", model, variables, examples, weights, None, chunk)


def jacobian_vp(
    model: Model,
    variables: Variables,
    examples: Examples,
    weights: Float[Array, " n"] | None = None,
    *,
    chunk: int | None = None,
) -> Matvec:
    """Mean of `J' J`, J the Jacobian of the logits of a row: the Gauss-Newton matrix of squared error, whatever the loss.

    Args:
        model, variables, examples, weights, chunk: as in `hvp`.

    Returns:
        `v -> C v`.

    Example:
        >>> product = jaxunlearn.curvature.jacobian_vp(model, variables, data.train)
    """
    return _through_logits("jacobian", model, variables, examples, weights, None, chunk)


def regularizer_vp(model: Model, variables: Variables) -> Matvec:
    """Hessian of the model's regularizer; zero without one.

    Args:
        model, variables: as in `hvp`.

    Returns:
        `v -> R v`.

    Example:
        >>> product = jaxunlearn.curvature.regularizer_vp(model, variables)
        >>> float(jnp.sum(product(variables.params)["head"]))
        0.0
    """
    params = widened(variables.params)
    if model.regularizer is None:
        return lambda v: jax.tree.map(jnp.zeros_like, v)
    return jax.linearize(jax.grad(model.regularizer), params)[1]


def damped(matvec: Matvec, damping: float | jax.Array) -> Matvec:
    """`v -> C v + damping v`.

    Args:
        matvec: `v -> C v`.
        damping: added to the diagonal, may be traced.

    Returns:
        `v -> (C + damping I) v`.

    Example:
        >>> product = jaxunlearn.curvature.damped(lambda v: v, 0.5)
        >>> product({"w": jnp.ones(2)})["w"].tolist()
        [1.5, 1.5]
    """
    return lambda v: jax.tree.map(lambda cv, x: cv + damping * x, matvec(v), v)


def gradient_sum(
    model: Model, variables: Variables, examples: Examples, weights: Float[Array, " n"], *, chunk: int | None = None
) -> PyTree:
    """Weighted sum of the gradients of all rows, without the regularizer, at least in float32.

    Args:
        model, variables, examples, chunk: as in `hvp`.
        weights: of the rows, Float[n]; rows of weight 0 may hold anything.

    Returns:
        A tree like the params.

    Example:
        >>> total = jaxunlearn.curvature.gradient_sum(model, variables, data.train, data.present, chunk=32)
        >>> total["head"].shape == variables.params["head"].shape
        True
    """
    params = widened(variables.params)
    total = lambda examples, weights: jax.grad(lambda p: _summed(model, p, variables, examples, weights))(params)  # noqa: E731
    return sum_rows(total, examples, weights, chunk=chunk)


def widened(values: PyTree) -> PyTree:
    """Arrays at least in float32."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32)), values)


def _summed(model: Model, params: PyTree, variables: Variables, examples: Examples, weights: Float[Array, " b"]) -> jax.Array:
    losses = evaluate(model, variables._replace(params=params), examples)[1]
    return jnp.sum(jnp.where(weights > 0, losses, 0) * weights)


def _through_logits(
    kind: Kind,
    model: Model,
    variables: Variables,
    examples: Examples,
    weights: Float[Array, " n"] | None,
    key: PRNGKeyArray | None,
    chunk: int | None,
) -> Matvec:
    """The mean over rows of `J' S J`, see `jaxunlearn.curvature.logit_gradients`."""
    check_kind(kind, examples, key)
    params, weights = widened(variables.params), _weights(examples, weights)
    seeds = draws(kind, key, weights.shape[0])

    def linear(rows, weights):
        examples, seeds = rows

        def logits(p):
            outputs, _ = evaluate(model, variables._replace(params=p), examples)
            return outputs.logits, outputs

        _, push, outputs = jax.linearize(logits, params, has_aux=True)
        outputs = jax.lax.stop_gradient(outputs)
        pull = jax.linear_transpose(push, params)
        if kind == "jacobian":
            bend = partial(labelled, outputs, examples)
        elif kind == "ggn":
            bend = partial(loss_curvature, model, outputs, examples)
        else:
            bend = partial(_bent, slopes(kind, model, outputs, examples, seeds))

        def product(v):
            bent = bend(push(v))
            return pull(jax.vmap(jnp.multiply)(weights.astype(bent.dtype), bent))[0]

        return product

    return _mean_product(linear, params, (examples, seeds), weights, chunk)


def _bent(u: Float[Array, "s b ..."], moved: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """`sum_s u_s u_s'` times a direction, for every row."""
    inside = jnp.sum(u * moved, axis=tuple(range(2, u.ndim)), keepdims=True)
    return jnp.sum(u * inside, axis=0)


def _mean_product(
    linear: Callable[[PyTree, Float[Array, " b"]], Matvec],
    params: PyTree,
    rows: PyTree,
    weights: Float[Array, " n"],
    chunk: int | None,
) -> Matvec:
    """`v -> C v`, from what makes the product summed over some rows."""
    total = jnp.maximum(jnp.sum(weights), jnp.finfo(weights.dtype).tiny)

    def mean(v, summed):
        expected = jax.tree.map(jnp.shape, params)
        if jax.tree.map(jnp.shape, v) != expected:
            raise ValueError(f"expected a vector like the params, {expected}, got {jax.tree.map(jnp.shape, v)}")
        v = jax.tree.map(lambda x, w: jnp.asarray(x, w.dtype), v, params)
        with jax.default_matmul_precision("highest"):
            return jax.tree.map(lambda x: (x / total).astype(x.dtype), summed(v))

    if chunk is None or chunk >= weights.shape[0]:
        with jax.default_matmul_precision("highest"):
            product = linear(sampling.fill(rows, weights), weights)
        return lambda v: mean(v, product)
    checks.require_count("chunk", chunk)
    return lambda v: mean(v, lambda v: sum_rows(lambda part, w: linear(part, w)(v), rows, weights, chunk=chunk))


def _weights(examples: Examples, weights: Float[Array, " n"] | None) -> Float[Array, " n"]:
    rows = tree.leading_axis(examples, "examples")
    if weights is None:
        return jnp.ones(rows)
    if jnp.shape(weights) != (rows,):
        raise ValueError(f"weights must have shape ({rows},), one entry per row, got {jnp.shape(weights)}")
    return jnp.asarray(weights)
