"""A small language model, a training text with canaries in it, and what a model still knows of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

import jaxunlearn as ju
from experiments.common import decoder, text
from jaxunlearn.audit import language

SIZE = 3  # digits of a secret


class World(NamedTuple):
    """A training text, requests, and rows to look at."""

    model: ju.Model
    config: decoder.Config
    data: ju.Data
    requests: ju.ForgetRequest  # one for every canary: all its copies, and the document about the same person
    canaries: list[text.Canary]
    documents: ju.Examples  # Int[r, m, t], rows of the documents that are forgotten; rows of padding where one is shorter
    retained: ju.Examples  # some rows that no request is for
    held_out: ju.Examples
    prefixes: Int[np.ndarray, "r p"]  # in front of the secrets, padded on the left
    secrets: Int[np.ndarray, "r k"]  # tokens
    digits: Int[np.ndarray, " 10"]  # tokens

    @property
    def repetitions(self) -> np.ndarray:
        """Of every canary."""
        return np.array([canary.repetitions for canary in self.canaries])


def build(
    *, documents: int, held_out: int, repetitions: Sequence[int], each: int, length: int, form: dict[str, Any], seed: int,
    texts: Sequence[str] | None = None, looks: int = 64,
) -> World:  # fmt: skip
    """Make a world.

    Args:
        documents: training texts.
        held_out: texts of the same kind that no model sees.
        repetitions: of canaries, e.g. (1, 4, 16, 64).
        each: canaries of each repetition; every one is a request.
        length: of a row.
        form: of the decoder, as arguments of `decoder.Config`.
        seed: of texts and canaries.
        texts: in place of the register of people; the first ones are held out.
        looks: retained and held-out rows that losses are measured on, at most.

    Raises:
        ValueError: fewer texts than are asked for.
    """
    random = np.random.default_rng(seed)
    people = text.names(documents + held_out, random)
    if texts is None:
        stories = text.register(people, random)
    elif len(texts) < documents + held_out:
        raise ValueError(f"there are {len(texts)} texts, and {documents} + {held_out} are asked for")
    else:
        stories = [texts[place] for place in (*range(held_out, held_out + documents), *range(held_out))]
    planted = text.canaries(people[: each * len(repetitions)], repetitions, random, size=SIZE)
    if len(planted) >= documents:
        raise ValueError(f"{len(planted)} canaries stand beside one document each, and {documents} leave none to retain")
    tokenizer = text.Characters("".join([*stories, *(canary.text for canary in planted), text.DIGITS]))

    def rows(parts: Sequence[str]) -> text.Rows:
        return text.windows([tokenizer.encode(part) for part in parts], length)

    plain = rows(stories[:documents])
    copies = rows([canary.text for canary in planted for _ in range(canary.repetitions)])
    if len(copies.owners) != len(set(copies.owners)):
        raise ValueError(f"a canary does not fit into a row of {length}")
    owners = np.concatenate([plain.owners, np.repeat(np.arange(len(planted)), [x.repetitions for x in planted])])
    train = jax.tree.map(lambda *x: np.concatenate(x), plain.examples, copies.examples)
    data = ju.training_data(train.inputs, train.targets)
    requests = ju.from_indices(data, [np.flatnonzero(owners == place) for place in range(len(planted))])
    most = max(np.bincount(plain.owners)[: len(planted)])

    def document(side: np.ndarray, place: int) -> np.ndarray:
        own = side[plain.owners == place]
        return np.pad(own, ((0, most - len(own)), (0, 0)), constant_values=text.PADDING)

    forgotten = jax.tree.map(lambda x: np.stack([document(x, place) for place in range(len(planted))]), plain.examples)
    spread = np.flatnonzero(plain.owners >= len(planted))
    spread = spread[np.linspace(0, len(spread) - 1, min(looks, len(spread))).astype(int)]
    prefixes = [tokenizer.encode(canary.prefix) for canary in planted]
    width = max(map(len, prefixes))
    config = decoder.Config(tokenizer.size, **form)
    unseen = jax.tree.map(lambda x: x[:looks], rows(stories[documents:]).examples)
    return World(
        decoder.model(config), config, data, requests, planted, forgotten,
        jax.tree.map(lambda x: x[spread], plain.examples), unseen,
        np.array([text.padded(x, width, left=True) for x in prefixes], np.int32),
        np.array([tokenizer.encode(canary.secret) for canary in planted], np.int32),
        np.array(tokenizer.encode(text.DIGITS), np.int32),
    )  # fmt: skip


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
