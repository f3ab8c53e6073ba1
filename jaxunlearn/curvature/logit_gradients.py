"""Gradients of the loss with respect to the logits: what every Gauss-Newton and Fisher matrix is made of.

With J the Jacobian of the logits of a row, each of these matrices is the mean over rows of `J' S J`, and `S = sum_s u_s u_s'`
with

- `ggn`: u the columns of a root of the loss's second derivative in the logits;
- `fisher`: `u_y = sqrt(p_y) grad_z loss(z, y)` for every class y, `p = softmax(z)`: the expectation over labels, exactly;
- `sampled`: `grad_z loss(z, y)` for one label drawn from p: right on average;
- `empirical`: `grad_z loss(z, y)` for the label in the data: *not* an estimate of the Fisher matrix. At a fitted model it
  vanishes with the gradients (Kunstner, Balles, Hennig: Limitations of the empirical Fisher approximation, 2019, arXiv
  1905.12558).
- `jacobian`: the unit vectors, `S = I`, whatever the loss.

For cross-entropy the first two are the same matrix.
"""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.types import Examples, Model, Outputs

Kind: TypeAlias = Literal["ggn", "fisher", "sampled", "empirical", "jacobian"]


def check_kind(kind: Kind, examples: Examples, key: PRNGKeyArray | None) -> None:
    """ValueError unless a matrix of this kind can be made of these examples."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if kind == "sampled" and key is None:
        raise ValueError("kind='sampled' draws labels and needs a key")
    if key is not None:
        checks.check_key(key)
    classes = all(jnp.issubdtype(jnp.result_type(x), jnp.integer) for x in jax.tree.leaves(examples.targets))
    if kind in ("fisher", "sampled") and not classes:
        raise ValueError(f"kind={kind!r} runs over classes, but the targets are real numbers; take kind='ggn'")


def draws(kind: Kind, key: PRNGKeyArray | None, count: int) -> Float[Array, "n"]:
    """A uniform number per row, from which `slopes` draws its label; zeros where nothing is drawn."""
    return jax.random.uniform(key, (count,)) if kind == "sampled" and key is not None else jnp.zeros(count)


def slopes(
    kind: Kind, model: Model, outputs: Outputs, examples: Examples, uniform: Float[Array, "b"]
) -> Float[Array, "s b ..."]:
    """The vectors u of every row, see the module; logits of the shape [b, c], or [b] of one real output.

    Args:
        kind: which matrix.
        model: only its loss is used.
        outputs: of the rows.
        examples: the rows.
        uniform: see `draws`.
    """

    def of(targets):
        return _slope(model, outputs, examples._replace(targets=targets), outputs.logits)

    if kind == "empirical":
        return of(examples.targets)[None]
    if kind == "ggn":
        return _roots(model, outputs, examples)
    if kind == "jacobian":
        basis = _basis(outputs)
        return jnp.broadcast_to(basis[:, None], (len(basis), *outputs.logits.shape))
    if outputs.logits.ndim != 2:
        raise ValueError(f"kind={kind!r} needs logits [b, c], got shape {outputs.logits.shape}; take kind='ggn'")
    probabilities = jax.nn.softmax(outputs.logits)
    count = probabilities.shape[1]
    if kind == "sampled":
        label = jnp.sum(jnp.cumsum(probabilities, axis=1) < uniform[:, None], axis=1)
        return of(jnp.minimum(label, count - 1).astype(examples.targets.dtype))[None]
    every = jax.vmap(lambda y: of(jnp.full_like(examples.targets, y)))(jnp.arange(count))
    return jnp.sqrt(probabilities.T)[:, :, None] * every


def loss_curvature(model: Model, outputs: Outputs, examples: Examples, direction: jax.Array) -> jax.Array:
    """Second derivative of every row's loss in its logits, times a direction of the logits' shape."""
    slope = lambda logits: _slope(model, outputs, examples, logits)  # noqa: E731
    return jax.jvp(slope, (outputs.logits,), (direction,))[1]


def _slope(model: Model, outputs: Outputs, examples: Examples, logits: jax.Array) -> jax.Array:
    """Gradient of every row's loss in its logits; whatever else the loss reads of the outputs is held fixed."""
    return jax.grad(lambda z: jnp.sum(model.loss(outputs._replace(logits=z), examples)))(logits)


def _roots(model: Model, outputs: Outputs, examples: Examples) -> Float[Array, "c b ..."]:
    """Columns of a root of the second derivative, from its eigenvalues; those below zero are cut."""
    basis = _basis(outputs)
    shape = outputs.logits.shape
    columns = jax.vmap(lambda e: loss_curvature(model, outputs, examples, jnp.broadcast_to(e, shape)))(basis)
    matrices = jnp.moveaxis(columns.reshape(len(basis), shape[0], len(basis)), 0, 2)
    values, vectors = jnp.linalg.eigh(matrices)
    return jnp.moveaxis(vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None, :], 2, 0).reshape(len(basis), *shape)


def _basis(outputs: Outputs) -> Float[Array, "c ..."]:
    """Unit vectors of one row's logits."""
    shape = outputs.logits.shape[1:]
    count = int(np.prod(shape, dtype=int))
    return jnp.eye(count, dtype=outputs.logits.dtype).reshape(count, *shape)
