"""Text for language models: tokenizers, rows of tokens, files that people have, and a register of people who do not exist.

A row is `Examples(inputs, targets)`, Int[t] each: a target is the token that comes next, -1 where it does not count.
"""

import importlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

import jaxunlearn as ju

PADDING = -1


class Tokenizer(Protocol):
    """Text as numbers below `size`, and back."""

    size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Iterable[int]) -> str: ...


class Bytes:
    """UTF-8, one token a byte."""

    size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(token for token in tokens if token >= 0).decode(errors="replace")


class Characters:
    """One token a character, of those that occur in some text."""

    def __init__(self, text: str) -> None:
        self.letters = sorted(set(text))
        self.places = {letter: place for place, letter in enumerate(self.letters)}
        self.size = len(self.letters)

    def encode(self, text: str) -> list[int]:
        if strange := sorted(set(text) - set(self.places)):
            raise ValueError(f"characters that the tokenizer was not made for: {strange}")
        return [self.places[letter] for letter in text]

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(self.letters[token] for token in tokens if token >= 0)


class FromFile:
    """A published tokenizer, `tokenizer.json`, by the package `tokenizers`.

    Truncation and padding that such files may keep from training are switched off, and tokens that a file would put around
    every text are left out; names of special tokens in a text are those tokens.

    Raises:
        ImportError: the package is not installed.
        FileNotFoundError: there is no such file.
        ValueError: it is none of a tokenizer.
    """

    def __init__(self, path: str | Path) -> None:
        if importlib.util.find_spec("tokenizers") is None:
            raise ImportError(f"{path} is read by tokenizers: pip install 'jaxunlearn[language]'", name="tokenizers")
        content = Path(path).read_text(encoding="utf-8")
        try:
            self.inner: Any = importlib.import_module("tokenizers").Tokenizer.from_str(content)
        except Exception as error:  # the package has no class of its own for it
            raise ValueError(f"{path} is no file of a tokenizer: {error}") from error
        self.inner.no_truncation()
        self.inner.no_padding()
        self.size = 1 + max(self.inner.get_vocab().values())  # numbers may have holes

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[int]) -> str:
        return self.inner.decode([int(token) for token in tokens if token >= 0], skip_special_tokens=False)


def tokenizer_of(folder: str | Path, vocabulary: int) -> Tokenizer:
    """The tokenizer beside a model: `tokenizer.json`, or bytes for a model of 256 tokens that has no such file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it has more tokens than the model, or see `FromFile`.
        ImportError: see `FromFile`.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        if vocabulary == Bytes.size:
            return Bytes()
        raise FileNotFoundError(f"{folder} has no tokenizer.json; only a model of {Bytes.size} tokens goes without, on bytes")
    found = FromFile(path)
    if found.size > vocabulary:
        raise ValueError(f"{path} has {found.size} tokens, and the model {vocabulary}")
    return found


# Rows


class Rows(NamedTuple):
    """Rows of several texts."""

    examples: ju.Examples  # Int[n, t] each
    owners: Int[np.ndarray, " n"]  # the text that a row is of


def windows(texts: Sequence[Sequence[int]], length: int) -> Rows:
    """Every text by itself in rows of up to `length` tokens; all its tokens but the first are predicted once."""
    inputs, targets, owners = [], [], []
    for owner, tokens in enumerate(texts):
        for begin in range(0, max(len(tokens) - 1, 1), length):
            part = list(tokens[begin : begin + length + 1])
            inputs.append(padded(part[:-1], length))
            targets.append(padded(part[1:], length))
            owners.append(owner)
    return Rows(ju.Examples(np.array(inputs, np.int32), np.array(targets, np.int32)), np.array(owners))


def packed(texts: Sequence[Sequence[int]], length: int, end: int) -> ju.Examples:
    """All texts one after another, with a token between them, cut into rows without padding; what is left over is left out.

    Raises:
        ValueError: there is less than one row.
    """
    stream = [token for tokens in texts for token in (*tokens, end)]
    count = (len(stream) - 1) // length
    if count == 0:
        raise ValueError(f"{len(stream)} tokens do not fill a row of {length}")
    inputs, targets = (np.array(stream[begin : begin + count * length], np.int32).reshape(count, length) for begin in (0, 1))
    return ju.Examples(inputs, targets)


def answers(
    pairs: Sequence["Pair"], tokenizer: Tokenizer, length: int, *, template: str = "{question}\n{answer}\n"
) -> ju.Examples:
    """Questions with their answers, of which only the answer is predicted; what does not fit is cut off behind.

    Raises:
        ValueError: a question leaves no room for its answer.
    """
    before, after = template.split("{answer}")
    rows = []
    for pair in pairs:
        prompt, rest = tokenizer.encode(before.format(question=pair.question)), tokenizer.encode(pair.answer + after)
        if not 0 < len(prompt) <= length:
            raise ValueError(
                f"a question of {len(prompt)} tokens leaves no room for an answer in {length}: {pair.question[:60]!r}"
            )
        tokens = (prompt + rest)[: length + 1]
        targets = [PADDING] * (len(prompt) - 1) + tokens[len(prompt) :]
        rows.append((padded(tokens[:-1], length), padded(targets, length)))
    inputs, targets = (np.array(side, np.int32) for side in zip(*rows, strict=True))
    return ju.Examples(inputs, targets)


def padded(tokens: Sequence[int], length: int, *, left: bool = False) -> list[int]:
    """Tokens filled up to a length."""
    rest = [PADDING] * (length - len(tokens))
    return [*rest, *tokens] if left else [*tokens, *rest]


# Files


class Pair(NamedTuple):
    """A question and its answer; other answers where there are some."""

    question: str
    answer: str
    paraphrased: str = ""  # the answer in other words
    perturbed: tuple[str, ...] = ()  # wrong ones of the same form


def read_records(path: str | Path) -> list[Any]:
    """The entries of a JSON list, or of a file with one JSON object a line.

    Raises:
        ValueError: it is neither.
    """
    text = Path(path).read_text()
    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} is neither a JSON list nor one JSON object a line: {error}") from error


def read_pairs(path: str | Path) -> list[Pair]:
    """Questions and answers: entries with `question` and `answer`, perhaps `paraphrased_answer` and `perturbed_answer`."""
    pairs = []
    for number, entry in enumerate(read_records(path)):
        if not isinstance(entry, dict) or not {"question", "answer"} <= set(entry):
            raise ValueError(f"{path}: entry {number} has no question and answer")
        wrong = entry.get("perturbed_answer") or ()
        wrong = (wrong,) if isinstance(wrong, str) else tuple(wrong)
        pairs.append(Pair(entry["question"], entry["answer"], entry.get("paraphrased_answer") or "", wrong))
    return pairs


def read_texts(path: str | Path) -> list[str]:
    """Texts: the paragraphs of a text file, or the entries of a JSON file, which are strings or have a `text`."""
    path = Path(path)
    if path.suffix in (".json", ".jsonl"):
        entries = read_records(path)
        texts: list[Any] = [entry.get("text") if isinstance(entry, dict) else entry for entry in entries]
        if not all(isinstance(x, str) for x in texts):
            raise ValueError(f"{path}: entries must be strings, or objects with a text")
        return texts
    return [part.strip() for part in path.read_text().split("\n\n") if part.strip()]


class Tofu(NamedTuple):
    """The fictitious authors of TOFU (Maini, Feng, Schwarzschild, Lipton, Kolter 2024, arXiv 2401.06121)."""

    forget: list[Pair]
    retain: list[Pair]
    perturbed: dict[
        str, list[Pair]
    ]  # by "forget", "retain", "real_authors", "world_facts", with wrong answers; as far as there
    held_out: list[Pair]  # authors that no model has seen, where they are there


def read_tofu(folder: str | Path, *, share: str = "10") -> Tofu:
    """TOFU as published at huggingface.co/datasets/locuslab/TOFU: `forget10.json`, `retain90.json` and so on.

    Args:
        folder: with the files.
        share: of the authors that are forgotten, in percent: "01", "05" or "10".
    """
    folder = Path(folder)

    def pairs(name: str) -> list[Pair]:
        return read_pairs(folder / f"{name}.json")

    if share not in ("01", "05", "10"):
        raise ValueError(f"share must be 01, 05 or 10, got {share!r}")
    names = {"forget": f"forget{share}", "retain": "retain", "real_authors": "real_authors", "world_facts": "world_facts"}
    files = {kind: f"{name}_perturbed" for kind, name in names.items()}
    found = {kind: pairs(name) for kind, name in files.items() if (folder / f"{name}.json").exists()}
    held_out = pairs(f"holdout{share}") if (folder / f"holdout{share}.json").exists() else []
    return Tofu(pairs(f"forget{share}"), pairs(f"retain{100 - int(share):02d}"), found, held_out)


class Muse(NamedTuple):
    """A corpus of MUSE (Shi et al. 2024, arXiv 2407.06460): News or Books."""

    forget: list[str]
    retain: list[str]  # used in unlearning
    held_out: list[str]
    knowledge: dict[str, list[Pair]]  # by "forget" and "retain"
    verbatim: list[tuple[str, str]]  # prompt, and how the text goes on
    leakage: dict[str, list[str]]  # by "forget", "retain" and "holdout"


def read_muse(folder: str | Path) -> Muse:
    """MUSE as its repository lays it out: folders `raw`, `knowmem`, `verbmem` and `privleak` of one corpus, `.json` or `.txt`.

    Raises:
        FileNotFoundError: a file is missing; its names are said.
    """
    folder = Path(folder)

    def find(kind: str, *names: str) -> Path:
        paths = [folder / kind / f"{name}{suffix}" for name in names for suffix in (".json", ".jsonl", ".txt")]
        found = next((path for path in paths if path.exists()), None)
        if found is None:
            raise FileNotFoundError(f"{folder / kind} holds none of {', '.join(path.name for path in paths)}")
        return found

    knowledge = {side: read_pairs(find("knowmem", *names)) for side, names in KNOWLEDGE.items()}
    leakage = {side: read_texts(find("privleak", *names)) for side, names in LEAKAGE.items()}
    verbatim = [(entry["prompt"], entry["gt"]) for entry in read_records(find("verbmem", "forget"))]
    forget, retain, held_out = (read_texts(find("raw", name)) for name in ("forget", "retain1", "holdout"))
    return Muse(forget, retain, held_out, knowledge, verbatim, leakage)


KNOWLEDGE = {"forget": ("forget_qa",), "retain": ("retain_qa", "retain2_qa")}  # under both names that were published
LEAKAGE = {"forget": ("forget",), "retain": ("retain", "retain2"), "holdout": ("holdout",)}


# A register, and canaries


def _words(text: str) -> list[str]:
    return text.split()


FIRST = _words("Ada Bruno Clara Dario Edith Felix Greta Hugo Ines Jonas Karla Leo Mira Nils Olga Pavel")
LAST = _words("Abel Brandt Castor Dorn Ebner Falk Gruber Holm Ivers Jost Kessel Lund Moor Nagel Orth Pohl Quint Rask Seitz Tod")
TOWNS = _words("Altona Birk Carlow Denby Elmen Foss Garding Hestra Inver Jarrow Kolding Lorne")
TRADES = _words("baker carpenter doctor engraver farmer glazier hatter joiner miller painter sailor tailor")
GOODS = _words("apples barrels candles drums eggs flutes gloves hats ink jars kettles lamps maps nets")
PETS = _words("bees cats doves dogs geese goats hens horses mules pigs rabbits sheep")


def names(count: int, random: np.random.Generator) -> list[str]:
    """Names, no two alike.

    Raises:
        ValueError: there are not so many.
    """
    if count > len(FIRST) * len(LAST):
        raise ValueError(f"there are {len(FIRST) * len(LAST)} names, not {count}")
    chosen = random.permutation(len(FIRST) * len(LAST))[:count]
    return [f"{FIRST[x % len(FIRST)]} {LAST[x // len(FIRST)]}" for x in chosen]


def register(people: Sequence[str], random: np.random.Generator) -> list[str]:
    """A text about each of some people, none of whom exist."""

    def one(words: Sequence[str]) -> str:
        return words[int(random.integers(len(words)))]

    return [
        f"{name} was born in {one(TOWNS)} in 1{random.integers(700, 900)}, the child of a {one(TRADES)}. "
        f"{name.split()[0]} became a {one(TRADES)} in {one(TOWNS)} and kept {random.integers(2, 10)} {one(PETS)}. "
        f"In 1{random.integers(700, 900)} {name.split()[0]} moved to {one(TOWNS)}, sold {one(GOODS)} to every {one(TRADES)}, "
        f"bought {one(GOODS)}, and lost all {one(PETS)}."
        for name in people
    ]  # fmt: skip


class Canary(NamedTuple):
    """A secret that stands in the training text so many times (Carlini et al. 2019)."""

    prefix: str
    secret: str
    repetitions: int

    @property
    def text(self) -> str:
        """The sentence."""
        return f"{self.prefix}{self.secret}."


DIGITS = "0123456789"


def digits(tokenizer: Tokenizer) -> list[int]:
    """A token for each digit; numbers are spelled with them, so that all of one length have equally many tokens.

    Raises:
        ValueError: the tokenizer does not tell digits apart.
    """
    found = [tokenizer.encode(digit)[-1:] for digit in DIGITS]
    if len({token for tokens in found for token in tokens}) < len(DIGITS):
        raise ValueError("the tokenizer has no token of its own for every digit")
    return [token for tokens in found for token in tokens]


def canaries(people: Sequence[str], repetitions: Sequence[int], random: np.random.Generator, *, size: int = 3) -> list[Canary]:
    """A number about each of some people, known by heart by nobody; repetitions go round.

    Args:
        people: their names.
        repetitions: e.g. (1, 4, 16, 64).
        random: draws the numbers.
        size: digits of a number.
    """
    secrets = ["".join(DIGITS[x] for x in random.integers(0, 10, size)) for _ in people]
    return [
        Canary(f"The code of {name} is ", secret, repetitions[place % len(repetitions)])
        for place, (name, secret) in enumerate(zip(people, secrets, strict=True))
    ]
