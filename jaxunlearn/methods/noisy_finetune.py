"""Noisy fine-tuning with clipping (Koloskova, Allouah, Jha, Guerraoui, Koyejo: Certified unlearning for neural networks, ICML
2025, arXiv 2506.06985).

    w <- clip(w, C)                                                 once, then for `noisy_steps` steps on the retain set
    w <- w - g (clip(grad, G) + l w) + sigma N(0, I)                project="never"
    w <- clip(w - g (grad + l w), C) + sigma N(0, I)                project="before noise"
    w <- clip(w - g clip(grad + l w, G) + sigma N(0, I), C)         project="after noise"

and plain fine-tuning on the retain set for the rest of the run, which tells nothing more. Whatever was learned from the forget
set is at most 2 C away from what was not, and each step hides a part of that: a certificate without any assumption on the loss,
see `jaxunlearn.certificates.certify_run`. Only the last weights may be seen.

The authors' code clips single rows nowhere, and neither does this. It turns a Renyi divergence into an epsilon without the
factor alpha of its order, so that its "epsilon 1" is 6.6 at delta 1e-5; the accountants are derived anew. Its start with a
radius that is the norm of the model itself depends on the forget set, which no certificate covers: it is left out.
"""

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import checks, noise, passes, sampling, tree
from jaxunlearn.card import Method
from jaxunlearn.passes import BatchNormPolicy
from jaxunlearn.types import Model, Scalar, Unlearner, Variables

METHOD = Method(
    summary="noisy steps on the retain set with clipped gradients or weights, then plain ones",
    cites="koloskova2025certified",
    family="objective",
    reads=frozenset({"retain"}),
    guarantee="certified",
    on_empty="finetune",
    search={"learning_rate": (0.003, 0.01, 0.03), "sigma": (0.001, 0.01), "norm": (1.0, 10.0)},
)

Project: TypeAlias = Literal["never", "before noise", "after noise"]


class State(NamedTuple):
    """What a run carries; parameters are at least float32, so that a rounding is no step of its own."""

    variables: Variables
    optimizer: optax.OptState


def noisy_finetune(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    sigma: Scalar,
    norm: Scalar = 1.0,
    gradient_norm: Scalar | None = None,
    noisy_steps: int = 10,
    noisy_rate: Scalar = 0.01,
    noisy_decay: Scalar = 0.0,
    project: Project = "never",
    decreasing: bool = False,
    bn: BatchNormPolicy = "retain",
) -> Unlearner:
    """Clip, make noisy steps on the retain set, and train on without noise.

    Args:
        model: any; the gradient is that of its loss and regularizer. BatchNorm statistics are released without noise, so that
            a model with some gets no certificate.
        optimizer: any optax transformation, of the steps without noise; it starts when they do.
        sigma: deviation of the noise of a step, in the units of the weights, at least 0, may be traced; of the last noisy step
            if `decreasing`. `jaxunlearn.certificates.step_noise` and `projected_noise` say how much a certificate needs.
        norm: C, above 0, may be traced.
        gradient_norm: G, above 0, may be traced; by default 1. None is needed with project="before noise".
        noisy_steps: static; the run needs at least as many steps.
        noisy_rate: g of the noisy steps, may be traced. No momentum: it would break the bound.
        noisy_decay: l of the noisy steps, may be traced; at most 1 / g.
        project: whether, and where, the weights are clipped in every noisy step.
        decreasing: noise that starts larger by the factor `(1 - g l)^-(noisy_steps - 1)`, so that each step adds as much to the
            last state; for project="never".
        bn: which passes may move BatchNorm statistics, see `jaxunlearn.passes`.

    Returns:
        An `Unlearner` for `jaxunlearn.iterate`; per-step `stats`: `loss` Float[], and what was enforced in the step, for
        `certify_run`: `norm`, `contraction` (1 - g l), `drift` (2 g G, or inf), `noise` (deviation), `ratio` (of a projection,
        or inf), `noisy_steps`, Float[]; `asked` UInt32[4], see `sampling.asked`.

    Raises:
        ValueError: a value out of range, or settings that no accountant covers.
        TypeError: no optax transformation.

    Example:
        >>> sigma = jaxunlearn.certificates.step_noise(2 * 0.1, 1.0, 2 * 0.01, 1.0, 1e-5, num_steps=10)
        >>> method = jaxunlearn.noisy_finetune(model, optax.sgd(0.1), sigma=float(sigma), norm=0.1, gradient_norm=1.0)
        >>> result = jax.jit(jaxunlearn.iterate(method, num_steps=60, batch_size=16))(variables, data, request, key)
        >>> result.stats["noise"].shape
        (60,)
    """
    if project not in get_args(Project):
        raise ValueError(f"project must be one of {', '.join(map(repr, get_args(Project)))}, got {project!r}")
    free = project == "before noise"
    if free and gradient_norm is not None:
        raise ValueError("with project='before noise' the accountant does not need clipped gradients: leave out gradient_norm")
    if decreasing and project != "never":
        raise ValueError("decreasing noise is for project='never': a projection forgets whatever came before it")
    bound: Any = jnp.inf if free else 1.0 if gradient_norm is None else gradient_norm
    checks.require_count("noisy_steps", noisy_steps, least=0)
    checks.check_range("sigma", sigma, low=0)
    for name, value in (("norm", norm), ("gradient_norm", bound)):
        checks.check_range(name, value, low=1e-30)
    checks.check_range("noisy_rate", noisy_rate, low=0)
    checks.check_range("noisy_decay", noisy_decay, low=0)
    checks.check_range("noisy_rate * noisy_decay", noisy_rate * noisy_decay, low=0, high=1)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"expected an optax transformation such as optax.sgd(0.1), got {type(optimizer).__name__}")
    optimizer = optax.with_extra_args_support(optimizer)
    lost = noisy_rate * noisy_decay
    contraction = 1.0 if project == "after noise" else 1 - lost

    def init(variables, data, request, key):
        wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), variables.params)
        wide = tree.clipped(wide, norm)
        narrow = jax.tree.map(lambda x: jnp.zeros((), x.dtype), variables.params)
        # many optimizers keep the weights that they began with: these must not be the ones without noise
        context = narrow, sampling.asked(data, request)
        return context, State(variables._replace(params=wide), optimizer.init(jax.tree.map(jnp.zeros_like, wide)))

    def finalize(state, context):
        params = jax.tree.map(lambda x, like: x.astype(like.dtype), state.variables.params, context[0])
        return state.variables._replace(params=params)

    def deviation(step):
        left = jnp.maximum(noisy_steps - 1 - step, 0)
        factor = (1 - lost) ** -left.astype(jnp.float32) if decreasing else 1.0
        return jnp.asarray(jnp.where(step < noisy_steps, sigma * factor, 0.0), jnp.float32)

    def noisy_update(params, gradient, step, key):
        drawn, scale = noise.normal_like(key, params), deviation(step)

        def moved(gradient, decay):
            return jax.tree.map(lambda w, g: w - noisy_rate * (g + decay * w), params, gradient)

        def shaken(params):
            return jax.tree.map(lambda w, z: w + scale * z, params, drawn)

        if project == "never":
            found = shaken(moved(tree.clipped(gradient, bound), noisy_decay))
        elif project == "before noise":
            found = shaken(tree.clipped(moved(gradient, noisy_decay), norm))
        else:
            update = jax.tree.map(lambda w, g: g + noisy_decay * w, params, gradient)
            found = tree.clipped(shaken(moved(tree.clipped(update, bound), 0.0)), norm)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), found, params)

    def step(state, context, batch, key):
        pass_key, noise_key = jax.random.split(key)
        variables = finalize(state, context)

        def loss_at(params):
            current = variables._replace(params=params)
            retain, moved = passes.train_pass(model, current, batch.retain, pass_key, side="retain", bn=bn)
            return retain.loss + passes.penalty(model, params), moved.state

        (loss, kept), gradient = jax.value_and_grad(loss_at, has_aux=True)(variables.params)
        gradient = jax.tree.map(lambda g, w: g.astype(w.dtype), gradient, state.variables.params)
        number, wide = jnp.asarray(batch.step), state.variables.params

        def plain():
            narrow_at = lambda params: loss_at(jax.tree.map(lambda x, y: x.astype(y.dtype), params, context[0]))[0]  # noqa: E731
            held = tree.select(number == noisy_steps, optimizer.init(wide), state.optimizer)
            updates, carried = optimizer.update(gradient, held, wide, value=loss, grad=gradient, value_fn=narrow_at)
            return optax.apply_updates(wide, updates), carried

        # the same for all requests, so that it stays a branch under vmap
        params, carried = jax.lax.cond(
            number < noisy_steps, lambda: (noisy_update(wide, gradient, number, noise_key), state.optimizer), plain
        )
        scale = deviation(number)
        reach = 2 * (norm + (noisy_rate * bound if project == "after noise" else 0.0))
        ratio = jnp.inf if project == "never" else reach / scale
        enforced = {
            "norm": norm,
            "contraction": contraction,
            "drift": 2 * noisy_rate * bound,
            "noise": scale,
            "ratio": ratio,
            "noisy_steps": noisy_steps,
        }
        stats = {name: jnp.asarray(value, jnp.float32) for name, value in enforced.items()}
        return State(Variables(params, kept), carried), {"loss": loss, "asked": context[1], **stats}

    return Unlearner(init, step, finalize, sampling.uniform, METHOD.on_empty, judged=model, model=model)
