"""Gradients of the loss with respect to the logits: what every Gauss-Newton and Fisher matrix is made of.

With J the Jacobian of the logits of a row, each of these matrices is the mean over rows of `J' S J`, and `S = sum_s u_s u_s'`
with

- `ggn`: u the columns of a root of the loss's second derivative in the logits, NaN where that has a negative eigenvalue: a loss
  that is not convex in the logits has no such root;
- `ggn_psd`: the same with negative eigenvalues cut to zero;
- `fisher`: the roots of the model's likelihood, `sqrt(p_y) (p - e_y)` for every class y of a softmax: the expectation over
  targets, exactly;
- `sampled`: the gradient at one target drawn from the likelihood: right on average;
- `signed`: the roots of `fisher`, each with a random sign, added up to one vector: right on average, too, in the memory of one
  vector where `fisher` takes one for every class;
- `empirical`: `grad_z loss(z, y)` for the label in the data: *not* an estimate of the Fisher matrix. At a fitted model it
  vanishes with the gradients (Kunstner, Balles, Hennig: Limitations of the empirical Fisher approximation, 2019, arXiv
  1905.12558).
- `jacobian`: the unit vectors, `S = I`, whatever the loss; none at positions of sequences that have no label.

For cross-entropy, least squares and a Poisson loss the first two are the same matrix. What a model predicts is
`Model.likelihood`, or found by trying its loss, see `jaxunlearn.likelihoods`; it is not always a softmax.
"""

from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from jaxunlearn import checks, likelihoods
from jaxunlearn.curvature.spectral import without_derivative
from jaxunlearn.losses.sequences import are_tokens
from jaxunlearn.types import Examples, Model, Outputs

Kind: TypeAlias = Literal["ggn", "ggn_psd", "fisher", "sampled", "signed", "empirical", "jacobian"]
RANDOM = ("sampled", "signed")  # those that need a key


def check_kind(kind: Kind, examples: Examples, key: PRNGKeyArray | None) -> None:
    """ValueError unless a matrix of this kind can be made of these examples."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if kind in RANDOM and key is None:
        raise ValueError(f"kind={kind!r} is drawn at random and needs a key")
    if key is not None:
        checks.check_key(key)


def draws(kind: Kind, key: PRNGKeyArray | None, count: int) -> UInt32[Array, " n"]:
    """A seed per row, from which `slopes` draws its target or signs; zeros where nothing is drawn."""
    return jax.random.bits(key, (count,)) if kind in RANDOM and key is not None else jnp.zeros(count, jnp.uint32)


def slopes(
    kind: Kind, model: Model, outputs: Outputs, examples: Examples, seeds: UInt32[Array, " b"]
) -> Float[Array, "s b ..."]:
    """The vectors u of every row, see the module.

    Args:
        kind: which matrix.
        model: only its loss is used.
        outputs: of the rows.
        examples: the rows.
        seeds: see `draws`.
    """
    require_logits_alone(kind, model, outputs, examples)
    if kind == "empirical":
        return _slope(model, outputs, examples, outputs.logits)[None]
    if kind in ("ggn", "ggn_psd"):
        return _roots(model, outputs, examples, cut=kind == "ggn_psd")
    if kind == "jacobian":
        basis = _basis(outputs)
        return labelled(outputs, examples, jnp.broadcast_to(basis[:, None], (len(basis), *outputs.logits.shape)))
    likelihood = likelihoods.of(model, outputs, examples)
    factor = likelihood.scale**0.5
    if kind == "fisher":
        return factor * likelihoods.exact_roots(likelihood, outputs.logits, examples.targets)
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl="threefry2x32"))(seeds)  # draws the same however rows are cut
    if kind == "signed":
        signed = partial(likelihoods.signed_root, likelihood)
        return factor * jax.vmap(signed)(keys, outputs.logits, examples.targets)[None]
    targets = jax.vmap(likelihood.draw)(keys, outputs.logits, examples.targets)
    return factor * likelihood.slope(outputs.logits, targets)[None]


def labelled(outputs: Outputs, examples: Examples, vectors: Float[Array, "... b t v"]) -> Float[Array, "... b t v"]:
    """Vectors of the logits' shape, zero at positions of sequences that have no label; others as they are."""
    if not are_tokens(outputs.logits, examples.targets):
        return vectors
    return jnp.where((examples.targets >= 0)[..., None], vectors, 0)


def loss_curvature(model: Model, outputs: Outputs, examples: Examples, direction: jax.Array) -> jax.Array:
    """Second derivative of every row's loss in its logits, times a direction of the logits' shape."""
    require_logits_alone("ggn", model, outputs, examples)
    slope = lambda logits: _slope(model, outputs, examples, logits)  # noqa: E731
    return jax.jvp(slope, (outputs.logits,), (direction,))[1]


def _slope(model: Model, outputs: Outputs, examples: Examples, logits: jax.Array) -> jax.Array:
    """Gradient of every row's loss in its logits; whatever else the loss reads of the outputs is held fixed."""
    return jax.grad(lambda z: jnp.sum(model.loss(outputs._replace(logits=z), examples)))(logits)


def require_logits_alone(kind: Kind, model: Model, outputs: Outputs, examples: Examples) -> None:
    """ValueError if the loss reads the model's features or state, whose part of the matrix does not go through the logits."""
    if kind == "jacobian":
        return
    leaves, form = jax.tree.flatten((outputs.features, outputs.state))

    def loss(others, logits):
        features, state = form.unflatten(others)
        return model.loss(outputs._replace(logits=logits, features=features, state=state), examples)

    program = jax.make_jaxpr(loss)(leaves, outputs.logits).jaxpr
    if any(_depends(program, [True] * len(leaves) + [False] * (len(program.invars) - len(leaves)))):
        raise ValueError(
            f"the loss reads outputs.features or outputs.state, whose part the matrix of kind={kind!r} would miss: it goes "
            "through the logits alone. Take the Hessian (hvp, dense(kind='hessian')), or make them logits"
        )


def _depends(program: Any, marked: list[bool]) -> list[bool]:
    """Which outputs of a program depend on its marked inputs; programs inside of it are looked into."""
    reached = {id(x) for x, is_marked in zip(program.invars, marked, strict=True) if is_marked}
    for equation in program.eqns:
        inputs = [id(x) in reached for x in equation.invars]
        inner = getattr(equation.params.get("jaxpr"), "jaxpr", None)
        if equation.primitive.name in ("jit", "pjit") and inner is not None:
            outputs = _depends(inner, inputs)
        else:
            outputs = [any(inputs)] * len(equation.outvars)
        reached |= {id(x) for x, is_reached in zip(equation.outvars, outputs, strict=True) if is_reached}
    return [id(x) in reached for x in program.outvars]


def _roots(model: Model, outputs: Outputs, examples: Examples, *, cut: bool) -> Float[Array, "c b ..."]:
    """Columns of a root of the second derivative, from its eigenvalues; those below zero are cut, or NaN beyond rounding."""
    basis = _basis(outputs)
    shape = outputs.logits.shape

    def at(outputs: Outputs) -> Float[Array, "b c c"]:
        columns = jax.vmap(lambda e: loss_curvature(model, outputs, examples, jnp.broadcast_to(e, shape)))(basis)
        return without_derivative(jnp.moveaxis(columns.reshape(len(basis), shape[0], len(basis)), 0, 2))

    whole = at(outputs)
    values, vectors = jnp.linalg.eigh(whole)
    # rounding leaves parts of null vectors where the loss does not look, such as positions without a label
    vectors = jnp.where(jnp.any(whole != 0, axis=2, keepdims=True), vectors, 0)
    if not cut:
        # where a row is certain its matrix is the difference of terms far larger than itself, as large as at logits of 0
        ordinary = jnp.max(jnp.abs(at(outputs._replace(logits=jnp.zeros_like(outputs.logits)))), axis=(1, 2))
        largest = jnp.fmax(jnp.max(jnp.abs(values), axis=1), ordinary)[:, None]
        rounding = 64 * len(basis) * jnp.finfo(values.dtype).eps * largest
        values = jnp.where(values < -rounding, jnp.nan, values)
    return jnp.moveaxis(vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None, :], 2, 0).reshape(len(basis), *shape)


def _basis(outputs: Outputs) -> Float[Array, "c ..."]:
    """Unit vectors of one row's logits."""
    shape = outputs.logits.shape[1:]
    count = int(np.prod(shape, dtype=int))
    return jnp.eye(count, dtype=outputs.logits.dtype).reshape(count, *shape)
