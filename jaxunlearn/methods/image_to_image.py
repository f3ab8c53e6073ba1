"""I2I, unlearning of models that complete images (Li, Hsu, Chen, Marculescu: Machine unlearning for image-to-image generative
models, ICLR 2024, arXiv 2402.00351): the encoder learns to see noise where the forget set is shown. The decoder stays.

    L(w) = retain_weight mean_{retain} |E_w(T(x)) - E_0(T(x))|^2 + alpha mean_{forget} |E_w(T(x)) - E_0(T(n))|^2,
    n ~ N(mean, std^2) for every pixel, clipped,    T the damage to be repaired, the same to x and to its n

E_0 is the trained encoder, |.|^2 the mean square over all numbers of a row's embedding. Proxies may stand for the retain set:
other rows of the same kind, as long as they show what has to be kept.

What it is, and what it is not:
- n is drawn anew in every step and is independent of x, so the optimum on the forget set is the constant E[E_0(T(n))]: what
  is decoded is one greyish image and no noise. The paper's argument for Gaussian outputs is not what this loss brings about.
- It erases what looks like the forget set. It does not forget single rows, and does not aim at what a retrained model does.
- A completion that is visibly spoilt tells that the image was forgotten.
- The decoder still knows how to draw the forget set, and whoever has it and another encoder may get it back.

Where the authors' code and this file differ: mean and std are those of the pixels of the forget rows of a batch, there of
both sides; dropout is off in all passes. In the code for diffusion models n is noise in the hole alone, with the true pixels
around it, which asks for less; here it is noise everywhere, as written. Two baselines of the paper are `target`s here. In the
code a sign makes them act on retain rows and leaves the forget set alone, so their published figures say little.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxunlearn import checks, tree
from jaxunlearn.card import Method
from jaxunlearn.loop.descend import descend, trained_model
from jaxunlearn.sampling import masked_mean
from jaxunlearn.types import Model, Scalar, Unlearner, Variables, Weighted

METHOD = Method(
    summary="an encoder that completes images learns to see noise where the forget set is shown; the decoder stays",
    cites="li2024machine",
    family="objective",
    reads=frozenset({"forget", "retain"}),
    requests="classes",
    aliases=("i2i",),
    search={"learning_rate": (3e-4, 1e-3, 3e-3), "alpha": (0.1, 0.25, 1.0)},
)

Target: TypeAlias = Literal["noise", "random embedding", "retain embedding"]
Encode: TypeAlias = Callable[[Variables, PyTree], PyTree]
Decode: TypeAlias = Callable[[Variables, PyTree], PyTree]


def image_to_image(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    encode: Encode,
    corrupt: Callable[[PRNGKeyArray, PyTree], PyTree],
    decode: Decode | None = None,
    tied: Literal["freeze", "train"] | None = None,
    alpha: Scalar = 0.25,
    retain_weight: Scalar = 1.0,
    target: Target = "noise",
    mean: Scalar | None = None,
    std: Scalar | None = None,
    low: Scalar = -jnp.inf,
    high: Scalar = jnp.inf,
) -> Unlearner:
    """Train the encoder alone to take the forget set for noise and everything else for what it is.

    Only parameters that `encode` depends on move, which is found from its program: all others stay bit for bit, whatever the
    optimizer does (weight decay). All passes are in evaluation mode and the model's state stays as it is.

    A proxy retain set is other rows that are present: put them into `data.train` and leave the true retain set out of it, or
    set `data.present` to 1 for proxies and the forget set and to 0 for the others.

    Args:
        model: completes images in `forward`; its loss, one value per row, tells whether a run damaged it (`damaged_at`).
        optimizer: any optax transformation; published: AdamW, or Adam at 5e-5.
        encode: `(variables, corrupted) -> embedding`, any tree of arrays [b, ...], in evaluation mode.
        corrupt: `(key, inputs) -> corrupted`, e.g. with a mask drawn for each row; given one key twice, it must do the same
            damage.
        decode: `(variables, embedding) -> ...`; only asked which parameters it depends on.
        tied: what becomes of parameters that `encode` and `decode` share: "freeze" them, or "train" them, which moves the
            decoder; by default they are an error.
        alpha: weight of the forget set, at least 0, may be traced; published: 0.1 to 0.25.
        retain_weight: weight of the retain set, at least 0, may be traced.
        target: what the forget set is pulled to. "noise": the trained encoder's embedding of noise. "random embedding": normal
            draws with mean and standard deviation of the trained embeddings of the batch's forget rows (the paper's "random
            encoder"). "retain embedding": those of the batch's retain rows ("retain label"), nothing where none stays.
        mean, std: of the noise, in units of the inputs, may be traced; by default of the pixels of the batch's forget rows.
        low, high: range that the noise is clipped to, e.g. 0 and 1.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss`, `retain_error`, `forget_error` Float[] (mean squares
        of the embeddings' differences).

    Raises:
        ValueError: a setting out of its range, an unknown target; at trace time, parameters that are shared while `tied` is
            None, an `encode` that depends on no parameter that may move, an embedding without a leading axis of rows.
        TypeError: at trace time, inputs that are not floating-point, where the target is noise.

    References:
        Li, Hsu, Chen, Marculescu: Machine unlearning for image-to-image generative models, ICLR 2024, arXiv 2402.00351.

    Example:
        >>> def encode(variables, corrupted):
        ...     return model.forward(variables, corrupted).features["penultimate"]
        >>> def corrupt(key, inputs):
        ...     return jnp.where(jax.random.bernoulli(key, 0.5, inputs.shape), inputs, 0)
        >>> method = jaxunlearn.image_to_image(model, optax.adamw(0.01), encode=encode, corrupt=corrupt)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=10, batch_size=8))(variables, data, request, key)
        >>> bool(jnp.all(result.variables.params["head"] == variables.params["head"]))
        True
    """
    checks.check_range("alpha", alpha, low=0)
    checks.check_range("retain_weight", retain_weight, low=0)
    if target not in get_args(Target):
        raise ValueError(f"target must be one of {', '.join(map(repr, get_args(Target)))}, got {target!r}")
    if tied not in (None, "freeze", "train"):
        raise ValueError(f"tied must be 'freeze', 'train' or None, got {tied!r}")
    if std is not None:
        checks.check_range("std", std, low=0)

    def noise(part: Weighted, key: PRNGKeyArray) -> PyTree:
        checks.require_floating(part.examples.inputs, "image_to_image draws noise in the place of its inputs")

        def draw(x, normal):
            centre, spread = moments(x, part.weights)
            drawn = (centre if mean is None else mean) + (spread if std is None else std) * normal
            return jnp.clip(drawn, low, high).astype(x.dtype)

        return jax.tree.map(draw, part.examples.inputs, _normal_like(key, part.examples.inputs))

    def objective(variables, teacher, batch, key):
        forget_key, retain_key, draw_key = jax.random.split(key, 3)
        forget, retain = batch.forget, batch.retain
        seen = corrupt(retain_key, retain.examples.inputs)
        trained = encode(teacher, seen)
        tree.leading_axis((trained, retain.weights), "the embedding, beside the weights,")
        retain_error = masked_mean(_row_errors(encode(variables, seen), trained), retain.weights, empty=0)
        again = jax.random.clone(forget_key)  # the same damage
        seen, weights = corrupt(forget_key, forget.examples.inputs), forget.weights
        if target == "noise":
            wanted = encode(teacher, corrupt(again, noise(forget, draw_key)))
        elif target == "random embedding":
            own = encode(teacher, seen)

            def draw(x, normal):
                centre, spread = moments(x, weights)
                return centre + spread * normal

            wanted = jax.tree.map(draw, own, _normal_like(draw_key, own))
        else:
            partner = jnp.arange(weights.shape[0]) % retain.weights.shape[0]
            wanted, weights = jax.tree.map(lambda x: x[partner], trained), weights * (retain.weights[partner] > 0)
        forget_error = masked_mean(_row_errors(encode(variables, seen), wanted), weights, empty=0)
        stats = {"retain_error": retain_error, "forget_error": forget_error}
        return retain_weight * retain_error + alpha * forget_error, (variables.state, stats)

    inner = descend(model, optimizer, objective, context=trained_model, on_empty=METHOD.on_empty)

    def step(state, context, batch, key):
        seen = jax.eval_shape(corrupt, key, batch.forget.examples.inputs)
        moves = _moving(encode, decode, tied, state.variables, seen)
        moved, stats = inner.step(state, context, batch, key)
        params = jax.tree.map(
            lambda moves, new, old: new if moves else old, moves, moved.variables.params, state.variables.params
        )
        return moved._replace(variables=moved.variables._replace(params=params)), stats

    return inner._replace(step=step)


def _row_errors(embedding: PyTree, wanted: PyTree) -> Float[Array, " b"]:
    """Mean square of the difference over all axes but the first, then over leaves; at least in float32."""

    def error(x, y):
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.mean((x.astype(dtype) - y.astype(dtype)) ** 2, axis=range(1, x.ndim))

    return jnp.mean(jnp.stack(jax.tree.leaves(jax.tree.map(error, embedding, wanted))), axis=0)


def moments(x: Float[Array, "b ..."], weights: Float[Array, " b"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and standard deviation over rows that count and all other axes, at least in float32."""
    x, axes = x.astype(jnp.promote_types(x.dtype, jnp.float32)), range(1, x.ndim)
    centre = masked_mean(jnp.mean(x, axis=axes), weights, empty=0)
    return centre, jnp.sqrt(masked_mean(jnp.mean((x - centre) ** 2, axis=axes), weights, empty=0))


def _normal_like(key: PRNGKeyArray, values: PyTree) -> PyTree:
    """Standard normal draws, at least in float32."""
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.promote_types(x.dtype, jnp.float32)), values)
    return optax.tree.random_like(key, wide, sampler=jax.random.normal)


def _moving(encode: Encode, decode: Decode | None, tied: str | None, variables: Variables, seen: PyTree) -> PyTree:
    """A tree of static bools: which parameters may move."""
    moves = depends_on(encode, variables, seen)
    if decode is not None:
        decodes = depends_on(decode, variables, jax.eval_shape(encode, variables, seen))
        shared = jax.tree.map(lambda x, y: x and y, moves, decodes)
        names = [tree.path_of(path) for path, is_shared in jax.tree.leaves_with_path(shared) if is_shared]
        if names and tied is None:
            raise ValueError(
                f"encode and decode share {', '.join(names)}: tied='freeze' leaves them as they are, tied='train' moves them "
                "and the decoder with them; or give the decoder a copy of its own"
            )
        if tied == "freeze":
            moves = jax.tree.map(lambda x, is_shared: x and not is_shared, moves, shared)
    if not any(jax.tree.leaves(moves)):
        raise ValueError(
            "encode depends on no parameter that may move: it is encode(variables, corrupted), of variables.params"
        )
    return moves


def depends_on(function: Callable, variables: Variables, argument: PyTree) -> PyTree:
    """Which parameters a function's value depends on, a tree of bools; what only dead code reads does not count."""
    form = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), (variables, argument))
    program = jax.make_jaxpr(function)(*form).jaxpr
    _, used = dce_jaxpr(program, [True] * len(program.outvars))
    leaves, treedef = jax.tree.flatten(variables.params)
    return jax.tree.unflatten(treedef, used[: len(leaves)])
