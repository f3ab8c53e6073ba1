"""What a language model still knows of a planted secret, before and after relearning and rounding."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

import jaxunlearn as ju
from experiments.common import text
from experiments.common.planted import SIZE, World
from jaxunlearn.audit import language


class Recall(NamedTuple):
    """How well a model knows a secret."""

    exposure: Float[Array, ""]  # bits, among all numbers of so many digits
    extracted: Float[Array, ""]  # 1 if the likeliest tokens behind the prefix are the secret
    loss: Float[Array, ""]  # of the secret, nats


class Found(NamedTuple):
    """What a model knows."""

    recall: Recall
    relearned: Recall  # after some steps on the document, in which the secret is not
    rounded: Recall  # with weights of 8-bit integers
    document: Float[Array, ""]  # loss on the document, nats a token
    strength: Float[Array, ""]  # extraction strength of the document, mean over its rows
    retain: Float[Array, ""]
    held_out: Float[Array, ""]


class Looked(NamedTuple):
    """What is looked at, shared by all requests."""

    documents: ju.Examples
    retained: ju.Examples
    held_out: ju.Examples
    prefixes: Int[Array, "r p"]
    secrets: Int[Array, "r k"]


def looked_at(world: World) -> Looked:
    """An argument of `measuring`, not a constant of its program."""
    return Looked(world.documents, world.retained, world.held_out, jnp.asarray(world.prefixes), jnp.asarray(world.secrets))


def measuring(world: World, *, steps: int, learning_rate: float) -> Callable[..., Found]:
    """`(variables, looked_at(world), place, key) -> Found`, for the request at a place; for `running.reusable`.

    Args:
        world: what is measured on.
        steps, learning_rate: of relearning, with Adam.
    """
    model, digits = world.model, jnp.asarray(world.digits)
    count = len(text.DIGITS)
    numbers = jnp.stack(jnp.meshgrid(*[digits] * (SIZE - 1), indexing="ij"), axis=-1).reshape(-1, SIZE - 1)

    def recall(variables: ju.Variables, prefix: Int[Array, " p"], secret: Int[Array, " k"]) -> Recall:
        # every number but its last digit behind the prefix: what follows is told by the logits
        tokens = jnp.concatenate([jnp.broadcast_to(prefix, (len(numbers), len(prefix))), numbers], axis=1)
        log = jax.nn.log_softmax(model.forward(variables, tokens).logits[:, len(prefix) - 1 :])  # [numbers, digits, v]
        known = jnp.take_along_axis(log[:, :-1], numbers[..., None], axis=-1)[..., 0].sum(axis=1)
        losses = -(known[:, None] + log[:, -1, digits])  # [numbers, 10]
        at = jnp.argmax(digits == secret[:, None], axis=1)
        row = jnp.sum(at[:-1] * count ** jnp.arange(SIZE - 2, -1, -1))
        own = losses[row, at[-1]]
        likeliest = jnp.argmax(log[row], axis=-1) == secret
        exposed = language.exposure(own[None], losses.reshape(-1), method="enumeration").estimate[0]
        return Recall(exposed, jnp.all(likeliest).astype(jnp.float32), own)

    def loss(variables: ju.Variables, rows: ju.Examples) -> Float[Array, ""]:
        counts = jnp.any(rows.targets >= 0, axis=1)
        losses = model.loss(model.forward(variables, rows.inputs), rows)
        return jnp.sum(jnp.where(counts, losses, 0)) / jnp.sum(counts)

    def relearn(variables: ju.Variables, rows: ju.Examples) -> ju.Variables:
        optimizer = optax.adam(learning_rate)

        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            slope = jax.grad(lambda params: loss(ju.Variables(params), rows))(params)
            updates, state = optimizer.update(slope, state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (variables.params, optimizer.init(variables.params)), length=steps)
        return ju.Variables(params)

    def measure(variables: ju.Variables, looked: Looked, place: Int[Array, ""], key: PRNGKeyArray) -> Found:
        rows: ju.Examples = jax.tree.map(lambda x: x[place], looked.documents)
        prefix, secret = looked.prefixes[place], looked.secrets[place]
        hits = jnp.argmax(model.forward(variables, rows.inputs).logits, axis=-1) == rows.targets
        strength = jnp.nanmean(language.extraction_strength(hits, rows.targets))
        rounded = language.rounded(variables.params, 8)
        # one program for the three, one after the other
        three = jax.tree.map(lambda *x: jnp.stack(x), variables, relearn(variables, rows), ju.Variables(rounded))
        plain, relearned, small = (
            jax.tree.map(lambda x, at=at: x[at], jax.lax.map(lambda v: recall(v, prefix, secret), three)) for at in range(3)
        )
        retained, held_out = (loss(variables, x) for x in (looked.retained, looked.held_out))
        return Found(plain, relearned, small, loss(variables, rows), strength, retained, held_out)

    return measure
