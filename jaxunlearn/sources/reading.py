"""Rows read by their numbers, ahead of the steps that need them, onto one device or many."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Int, PRNGKeyArray

from jaxunlearn import checks, sampling
from jaxunlearn.blocks import Blocks
from jaxunlearn.requests import training_data
from jaxunlearn.sources.drawing import Drawn, Plan, draw
from jaxunlearn.types import Batch, Data, Examples, ForgetRequest, Unlearner, Weighted

T = TypeVar("T")


class RandomAccess(Protocol):
    """Rows by their numbers, as a tfds data source, a grain `MapDataset`, and lists have them; read by several threads.

    Where there is `__getitems__(numbers) -> list of rows`, as in tfds, a batch is read by one call of it.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


Rows: TypeAlias = RandomAccess | Examples
Parse: TypeAlias = Callable[[Any], Examples]


@dataclass(frozen=True)
class Reader:
    """The batch of a step, in NumPy alone: what `batches` reads with, and what other loaders can run, such as grain's.

    Args:
        plan: which rows, see `draw`.
        rows: by their numbers, see `batches`.
        parse: what makes `Examples` of a row, see `batches`.

    Example:
        >>> method = jaxunlearn.npo(model, optax.sgd(0.1))
        >>> plan = jaxunlearn.sources.draw(method, data, request, key, num_steps=3, batch_size=4)
        >>> read = jaxunlearn.sources.Reader(plan, data.train)
        >>> read(2).retain.examples.inputs.shape
        (4, 4)
    """

    plan: Plan
    rows: Any
    parse: Parse | None = None

    def __post_init__(self):
        _check_length(self.rows, self.plan.num_rows)

    def __call__(self, step: int) -> Batch:
        """The batch of a step; ValueError beyond the plan."""
        forget, retain = (self._side(side, int(step), slice(None)) for side in (self.plan.forget, self.plan.retain))
        return Batch(forget, retain)

    def placed(self, step: int, sharding: Sharding | None) -> Batch:
        """The batch of a step on the devices; a process reads those rows only that its own devices get."""
        forget, retain = (self._placed(side, step, sharding) for side in (self.plan.forget, self.plan.retain))
        return Batch(forget, retain)

    def _side(self, side: Drawn, step: int, places: Any) -> Weighted:
        if not 0 <= step < len(side.rows):
            raise ValueError(f"the plan has {len(side.rows)} steps, and step {step} was asked for: draw with more num_steps")
        values: Any = [x[step][places] for x in side]
        rows, weights, slots = values
        return Weighted(_read(self.rows, self.parse, rows), weights, slots)

    def _placed(self, side: Drawn, step: int, sharding: Sharding | None) -> Weighted:
        if sharding is None:
            return jax.tree.map(jnp.asarray, self._side(side, step, slice(None)))
        size = side.rows.shape[1]
        mine = _own(sharding, size)
        local = self._side(side, step, mine)
        place = np.zeros(size, np.int64)
        place[mine] = np.arange(len(mine))

        def put(x):
            def part(at: Any) -> np.ndarray:
                return x[place[at[0]]]  # places of this process are found in what it read

            return jax.make_array_from_callback((size, *x.shape[1:]), sharding, part)

        return jax.tree.map(put, local)


def batches(
    unlearner: Unlearner,
    rows: Rows,
    index: Data,
    request: ForgetRequest,
    key: PRNGKeyArray,
    *,
    num_steps: int,
    batch_size: int,
    retain_batch_size: int | None = None,
    parse: Parse | None = None,
    sharding: Sharding | None = None,
    ahead: int = 2,
) -> Callable[[int], Batch]:
    """Batches of a request for `jaxunlearn.feed`, read from where the rows are: those that `iterate` would draw.

    A function of the step alone, so a run is resumed exactly. Rows of the forget set come in passes, those of the retain set
    at random with the request left out, as the method's own sampler draws them.

    Args:
        unlearner: the method.
        rows: `len(rows)` and `rows[number]`, e.g. `tfds.builder(...).as_data_source("train")`, a `grain.MapDataset`, a list; or
            `Examples` of arrays that may lie on disk, as `np.load(..., mmap_mode="r")` opens them.
        index: see `jaxunlearn.sources.index`.
        request: one request, in the numbering of `rows`.
        key: the one that `feed` gets.
        num_steps, batch_size, retain_batch_size: as for `jaxunlearn.iterate`.
        parse: makes `Examples` of NumPy arrays from one row; None where rows are `Examples` already. It draws nothing by
            itself: a row that is read again must be the same.
        sharding: where batches go, e.g. `NamedSharding(mesh, P("data"))` to spread their rows over devices. On a mesh of
            several processes each of them reads the rows of its own devices only; the variables must be on that mesh, too
            (`jaxunlearn.replicate`). None is the first device.
        ahead: batches that are read, by as many threads, while a step runs; 0 reads when it is asked.

    Returns:
        `source(step) -> Batch`.

    Raises:
        ValueError: as `draw`; another number of rows than in the index; rows of different forms.
        TypeError: rows that are no `Examples` after parsing.

    Example:
        >>> rows = [{"x": x, "y": y} for x, y in zip(*map(np.asarray, data.train))]  # in practice: a tfds data source
        >>> parse = lambda row: jaxunlearn.Examples(row["x"], row["y"])
        >>> method = jaxunlearn.npo(model, optax.sgd(0.1))
        >>> index = jaxunlearn.sources.index(len(rows))
        >>> source = jaxunlearn.sources.batches(method, rows, index, request, key, num_steps=4, batch_size=8, parse=parse)
        >>> result = jaxunlearn.feed(method, variables, source, request, key, num_steps=4)
        >>> in_memory = jaxunlearn.iterate(method, num_steps=4, batch_size=8)(variables, data, request, key)
        >>> bool(jnp.allclose(result.variables.params["head"], in_memory.variables.params["head"]))
        True
    """
    checks.require_count("ahead", ahead, least=0)
    plan = draw(unlearner, index, request, key, num_steps=num_steps, batch_size=batch_size, retain_batch_size=retain_batch_size)
    reader = Reader(plan, rows, parse)
    return _read_ahead(lambda step: reader.placed(step, sharding), num_steps, ahead)


def blocks(
    rows: Rows,
    index: Data,
    *,
    size: int,
    request: ForgetRequest | None = None,
    side: Literal["retain", "forget"] = "retain",
    parse: Parse | None = None,
    ahead: int = 1,
) -> Blocks:
    """A pass over rows in the order of their numbers, block by block; for `jaxunlearn.curvature.fit_blocks` and `map_blocks`.

    Args:
        rows, parse: as for `batches`.
        index: see `jaxunlearn.sources.index`; rows that are not present are not read.
        size: rows of a block; the last one is filled with its last row, with weight 0.
        request: one request; None for all present rows.
        side: of the request: present rows without those that it names, or those.
        ahead: blocks that are read in the background.

    Returns:
        A function that starts a pass, whenever it is called.

    Raises:
        ValueError: a size that is not a positive integer, another number of rows than in the index, an unknown side.

    Example:
        >>> blocks = jaxunlearn.sources.blocks(data.train, jaxunlearn.sources.index(60), size=25, request=request)
        >>> [int(block.weights.sum()) for block in blocks()]  # without two of 60 rows
        [25, 25, 8]
    """
    checks.require_count("size", size)
    checks.require_count("ahead", ahead, least=0)
    if side not in ("retain", "forget"):
        raise ValueError(f"side must be 'retain' or 'forget', got {side!r}")
    _check_length(rows, checks.check_present(index))
    present = np.asarray(index.present) > 0
    asked = np.zeros(0, np.int64)
    if request is not None:
        usable = np.asarray(sampling.usable_slots(index, request))
        asked = np.sort(np.asarray(request.indices)[usable])
    if request is not None and side == "forget":
        numbers = asked
    else:
        left = present.copy()
        left[asked] = False
        numbers = np.flatnonzero(left)
    count = -(-len(numbers) // size)

    def read(place: int) -> Weighted:
        own: Any = numbers[place * size : (place + 1) * size]
        places = np.minimum(np.arange(size), len(own) - 1)
        weights: Any = (np.arange(size) < len(own)).astype(np.float32)
        return Weighted(_read(rows, parse, own[places]), weights, own[places])

    def start() -> Iterator[Weighted]:
        source = _read_ahead(read, count, ahead)
        return (source(place) for place in range(count))

    return start


def part(
    rows: Rows,
    index: Data,
    request: ForgetRequest,
    *,
    retained: int = 256,
    parse: Parse | None = None,
) -> tuple[Data, ForgetRequest]:
    """The forget set and some of the retain set in memory, for methods that look at rows before their first step.

    Give both to `jaxunlearn.feed`, as `data` and `request`. What such a method measures on the retain set is then measured on
    these rows of it.

    Args:
        rows, index, parse: as for `batches`.
        request: one request, in the numbering of `rows`.
        retained: so many rows of the retain set, at equal distances; where it has fewer, all.

    Returns:
        `Data` of the rows, and the request in their numbering, slot by slot.

    Raises:
        ValueError: as `batches`.

    Example:
        >>> index = jaxunlearn.sources.index(60)
        >>> few, asked = jaxunlearn.sources.part(data.train, index, request, retained=10)
        >>> method = jaxunlearn.salun(model, optax.sgd(0.1))  # a saliency mask of the forget set comes first
        >>> source = jaxunlearn.sources.batches(method, data.train, index, request, key, num_steps=4, batch_size=8)
        >>> result = jaxunlearn.feed(method, variables, source, asked, key, num_steps=4, data=few)
        >>> in_memory = jaxunlearn.iterate(method, num_steps=4, batch_size=8)(variables, data, request, key)
        >>> bool(jnp.allclose(result.variables.params["head"], in_memory.variables.params["head"], atol=1e-5))
        True
    """
    checks.require_count("retained", retained)
    count = checks.check_present(index)
    _check_length(rows, count)
    usable = np.asarray(sampling.usable_slots(index, request))
    asked = np.asarray(request.indices)[usable]
    left = np.asarray(index.present) > 0
    left[asked] = False
    numbers = np.flatnonzero(left)
    some = numbers[np.unique(np.linspace(0, max(len(numbers) - 1, 0), min(retained, len(numbers)), dtype=np.int64))]
    slots = np.where(usable, np.cumsum(usable) - 1, 0)
    train = _read(rows, parse, np.concatenate([asked, some]))
    data = training_data(*train)
    weights = jnp.asarray(usable, jnp.result_type(request.weights))
    return data, request._replace(indices=jnp.asarray(slots, jnp.int32), weights=weights)


def _read_ahead(read: Callable[[int], T], count: int, ahead: int) -> Callable[[int], T]:
    """`read`, with the places behind the one that is asked for read meanwhile; in whatever order they are asked for."""
    if ahead == 0:
        return read
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="jaxunlearn-read")
    waiting: dict[int, Future[T]] = {}

    def in_precision(place: int, x64: bool) -> T:
        with jax.enable_x64(x64):  # a setting of the thread
            return read(place)

    def source(place: int) -> T:
        wanted = range(place, min(place + ahead + 1, count))
        for other in [other for other in waiting if other not in wanted]:
            waiting.pop(other).cancel()
        for other in wanted:
            if other not in waiting:
                waiting[other] = pool.submit(in_precision, other, jax.dtypes.canonicalize_dtype(np.float64) == np.float64)
        return waiting.pop(place).result() if place in waiting else read(place)

    return source


def _own(sharding: Sharding, size: int) -> Int[np.ndarray, " m"]:
    """Places of a batch that go to devices of this process."""
    try:
        places = sharding.addressable_devices_indices_map((size,)).values()
    except ValueError as error:
        raise ValueError(f"a batch of {size} rows cannot be spread: take a multiple of the devices ({error})") from error
    return np.unique(np.concatenate([np.arange(size)[at] for at in places if at is not None]))


def _check_length(rows: Any, expected: int) -> None:
    if isinstance(rows, Examples):
        found = {x.shape[0] for x in jax.tree.leaves(rows)}
        found = found.pop() if len(found) == 1 else sorted(found)
    elif hasattr(rows, "__len__") and hasattr(rows, "__getitem__"):
        found = len(rows)
    else:
        raise TypeError(
            f"rows are read by their numbers, rows[number], and counted by len(rows); got {type(rows).__name__}. An iterator "
            "of batches goes into feed as it is"
        )
    if found != expected:
        raise ValueError(f"there are {found} rows, and the index has {expected}: make it with sources.index(len(rows))")


def _read(rows: Any, parse: Parse | None, numbers: Int[np.ndarray, " b"]) -> Examples:
    """Rows by their numbers as one batch; each is read once, however often it is asked for."""
    once, back = np.unique(numbers, return_inverse=True)
    if isinstance(rows, Examples) and parse is None:
        return jax.tree.map(lambda x: np.asarray(x[once])[back], rows)
    if isinstance(rows, Examples):
        records = [jax.tree.map(lambda x, n=n: np.asarray(x[n]), rows) for n in once]
    elif hasattr(rows, "__getitems__"):
        records = rows.__getitems__([int(n) for n in once])
    else:
        records = [rows[int(n)] for n in once]
    if len(records) != len(once):
        raise ValueError(f"{len(once)} rows were asked for, and {len(records)} came")
    examples = records if parse is None else [parse(record) for record in records]
    for example in examples:
        if not isinstance(example, Examples):
            raise TypeError(
                f"a row must be jaxunlearn.Examples(inputs, targets), got {type(example).__name__}: pass "
                "parse=lambda row: Examples(row['image'], row['label'])"
            )
    forms = {_form(example) for example in examples}
    if len(forms) > 1:
        raise ValueError(f"rows differ in form, so they make no batch: {' and '.join(sorted(map(str, forms))[:2])}")
    return jax.tree.map(lambda *x: np.stack(x)[back], *examples)


def _form(example: Examples) -> str:
    return ", ".join(f"{np.asarray(x).dtype}{list(np.shape(x))}" for x in jax.tree.leaves(example))
