"""A language model, a training text with canaries in it, and requests to forget each of them with the text about a person.

Training reads whole rows. A request is answered on `World.asked`: the same rows, but of a canary only its secret counts, as
of a question only its answer does. "The code of" stands in canaries that stay, and to forget it is damage.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

import jaxunlearn as ju
from experiments.common import decoder, text, weights

SIZE = 3  # digits of a secret
ALTERNATIVES = 16  # what may be learnt in place of a row
MATCH = 6  # tokens that two texts have in common where one goes on like the other, at most


class World(NamedTuple):
    """A training text, requests, and rows to look at."""

    model: ju.Model
    config: decoder.Config
    data: ju.Data
    asked: ju.Data  # what requests are answered on, with slot `refusals`
    requests: ju.ForgetRequest  # one for every canary: all its copies, and the document about the same person
    canaries: list[text.Canary]
    documents: ju.Examples  # Int[r, m, t], rows of the documents that are forgotten; rows of padding where one is shorter
    retained: ju.Examples  # some rows that no request is for
    held_out: ju.Examples
    prefixes: Int[np.ndarray, "r p"]  # in front of the secrets, padded on the left
    secrets: Int[np.ndarray, "r k"]  # tokens
    digits: Int[np.ndarray, " 10"]  # tokens
    form: weights.Form  # as which the model can be published
    start: ju.Variables | None  # of a model that was there before; else training begins with fresh weights

    @property
    def layer(self) -> str:
        """Features in the middle of the model."""
        return f"layer_{self.config.features[0]}"

    @property
    def repetitions(self) -> np.ndarray:
        """Of every canary."""
        return np.array([canary.repetitions for canary in self.canaries])


class Start(NamedTuple):
    """A model that is trained on, and its tokens."""

    form: weights.Form
    config: decoder.Config
    variables: ju.Variables
    tokenizer: text.Tokenizer


def build(
    *, documents: int, held_out: int, repetitions: Sequence[int], each: int, length: int, seed: int,
    form: dict[str, Any] | None = None, start: Start | None = None, texts: Sequence[str] | None = None, looks: int = 64,
) -> World:  # fmt: skip
    """Make a world.

    Args:
        documents: training texts.
        held_out: texts of the same kind that no model sees.
        repetitions: of canaries, e.g. (1, 4, 16, 64).
        each: canaries of each repetition; every one is a request.
        length: of a row.
        seed: of texts and canaries.
        form: of a fresh decoder of characters, as arguments of `decoder.Config`.
        start: a model in place of a fresh one.
        texts: in place of the register of people; the first ones are held out.
        looks: retained rows that losses are measured on, at most; of held-out texts all are.

    Raises:
        ValueError: fewer texts than are asked for, rows that the model or a canary does not fit into, a tokenizer without
            digits, or not one of `form` and `start`.
    """
    if (form is None) == (start is None):
        raise ValueError("build needs either the form of a fresh model, or one to start from")
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
    if start is None:
        tokenizer = text.Characters("".join([*stories, *(canary.text for canary in planted), text.DIGITS]))
        config = decoder.Config(tokenizer.size, **(form or {}))
    else:
        config, tokenizer = start.config, start.tokenizer
    if not config.rotary and config.length < length:
        raise ValueError(f"the model has {config.length} positions, too few for rows of {length} tokens")
    digits = text.digits(tokenizer)
    prefixes = [tokenizer.encode(canary.prefix) for canary in planted]
    secrets = np.array([[digits[int(digit)] for digit in canary.secret] for canary in planted], np.int32)
    sentences = [[*prefix, *secret, *tokenizer.encode(".")] for prefix, secret in zip(prefixes, secrets.tolist(), strict=True)]

    plain = text.windows([tokenizer.encode(story) for story in stories[:documents]], length)
    of = np.repeat(np.arange(len(planted)), [canary.repetitions for canary in planted])  # whose copy it is
    copies = text.windows([sentences[place] for place in of], length)
    if len(copies.owners) != len(of):
        raise ValueError(f"a canary does not fit into a row of {length}")
    owners = np.concatenate([plain.owners, of])
    train = jax.tree.map(lambda *x: np.concatenate(x), plain.examples, copies.examples)
    data = ju.training_data(train.inputs, train.targets)
    requests = ju.from_indices(data, [np.flatnonzero(owners == place) for place in range(len(planted))])
    places = np.array([len(prefix) - 1 for prefix in prefixes])[of]  # of the first digit among the targets of a copy
    most = max(np.bincount(plain.owners)[: len(planted)])

    def document(side: np.ndarray, place: int) -> np.ndarray:
        own = side[plain.owners == place]
        return np.pad(own, ((0, most - len(own)), (0, 0)), constant_values=text.PADDING)

    forgotten = jax.tree.map(lambda x: np.stack([document(x, place) for place in range(len(planted))]), plain.examples)
    spread = np.flatnonzero(plain.owners >= len(planted))
    spread = spread[np.linspace(0, len(spread) - 1, min(looks, len(spread))).astype(int)]
    width = max(map(len, prefixes))
    config = replace(config, features=((config.layers - 1) // 2,))
    unseen = text.windows([tokenizer.encode(story) for story in stories[documents:]], length)
    return World(
        decoder.model(config), config, data, _asked(data, owners, places, digits, random), requests, planted, forgotten,
        jax.tree.map(lambda x: x[spread], plain.examples), unseen.examples,
        np.array([text.padded(x, width, left=True) for x in prefixes], np.int32), secrets, np.array(digits, np.int32),
        "llama" if start is None else start.form, None if start is None else start.variables,
    )  # fmt: skip


def _asked(
    data: ju.Data,
    owners: Int[np.ndarray, " n"],
    places: Int[np.ndarray, " c"],
    digits: Sequence[int],
    random: np.random.Generator,
) -> ju.Data:
    """The data of requests: canaries, which come last, count where their secrets stand.

    In place of a secret other ones may be learnt, and in place of a row of a document one that begins like it and goes on as
    some other document does behind the same tokens, because a text that breaks off teaches that texts break off.
    """
    inputs, targets = (np.array(x) for x in data.train)
    count = len(targets)
    first = count - len(places)
    own = places[:, None] + np.arange(SIZE)
    codes = np.asarray(digits, np.int32)[random.integers(0, 10, (len(places), ALTERNATIVES, SIZE))]
    other, said = (np.repeat(x[:, None], ALTERNATIVES, axis=1) for x in (inputs, np.full_like(targets, text.PADDING)))
    copy, version = np.arange(first, count)[:, None, None], np.arange(ALTERNATIVES)[:, None]
    said[copy, version, own[:, None]] = codes
    other[copy, version, own[:, None, 1:]] = codes[..., :-1]
    other[:first], said[:first] = _spliced(inputs[:first], targets[:first], owners[:first], random)
    counted = np.full_like(targets, text.PADDING)
    counted[:first] = targets[:first]
    counted[np.arange(first, count)[:, None], own] = targets[np.arange(first, count)[:, None], own]
    return ju.slots.REFUSALS.put(data._replace(train=ju.Examples(inputs, counted)), ju.Examples(other, said))


def _spliced(
    inputs: Int[np.ndarray, "d t"], targets: Int[np.ndarray, "d t"], owners: Int[np.ndarray, " d"], random: np.random.Generator
) -> tuple[Int[np.ndarray, "d m t"], Int[np.ndarray, "d m t"]]:
    """Rows that begin as these do, and go on like rows of other documents; inputs, and targets from there on."""
    count, length = inputs.shape
    other = np.repeat(inputs[:, None], ALTERNATIVES, axis=1)
    said = np.full_like(other, text.PADDING)
    behind: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # where tokens stand, up to the last of them
    for row, place in np.argwhere(targets >= 0).tolist():
        for size in range(MATCH + 1):
            if size <= place + 1:
                behind.setdefault(tuple(inputs[row, place + 1 - size : place + 1].tolist()), []).append((row, place))
    for row in range(count):
        begun = int(np.sum(targets[row] >= 0)) // 4  # the first position that may predict another token
        found: list[tuple[int, int]] = []
        for size in range(min(MATCH, begun + 1), -1, -1):
            own = tuple(inputs[row, begun + 1 - size : begun + 1].tolist())
            found = found or [x for x in behind.get(own, []) if owners[x[0]] != owners[row]]
        for version, pick in enumerate(random.integers(0, max(len(found), 1), ALTERNATIVES) if found else ()):
            partner, place = found[pick]
            rest = targets[partner, place : place + length - begun]
            said[row, version, begun : begun + len(rest)] = rest
            other[row, version, begun + 1 :] = text.PADDING
            other[row, version, begun + 1 : begun + len(rest)] = inputs[partner, place + 1 : place + len(rest)]
    return other, said
