"""Which rows every step of a run reads, by their numbers: what `iterate` draws, without the rows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from jaxunlearn import checks, sampling
from jaxunlearn.loop.iterate import step_keys
from jaxunlearn.requests import training_data
from jaxunlearn.types import BatchSizes, Data, ForgetRequest, Unlearner


class Drawn(NamedTuple):
    """One side of the batches of a run, as NumPy arrays."""

    rows: Int[np.ndarray, "steps b"]  # numbers of the rows
    weights: Float[np.ndarray, "steps b"]  # 0 where a row counts for nothing
    slots: Int[np.ndarray, "steps b"]  # as in `jaxunlearn.Weighted`


class Plan(NamedTuple):
    """The rows of every step of a run; a table that processes share, each of which reads its own columns."""

    forget: Drawn
    retain: Drawn
    num_rows: int  # of the data


class _NotHere:
    """Stands for the context of a method, which is made where the model is."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(
            "the batches of this method are made of its context (noise, hybrids), not of rows that can be read from disk: run "
            "it with iterate"
        )


def index(num_rows: int, targets: Any = None) -> Data:
    """Data whose rows are their own numbers: what requests are made from while the rows themselves stay on disk.

    Args:
        num_rows: n; it takes 8 bytes for each.
        targets: labels Int[n], if there are any, for `jaxunlearn.from_classes`.

    Returns:
        `Data` for `from_indices`, `from_classes`, `from_groups`, `remove` and the other functions of `sources`.

    Raises:
        ValueError: a number of rows that is not a positive integer, or targets of another number.

    Example:
        >>> index = jaxunlearn.sources.index(10**6)
        >>> jaxunlearn.merge(jaxunlearn.from_indices(index, [[3, 999_999]])).indices[:2].tolist()
        [3, 999999]
    """
    checks.require_count("num_rows", num_rows)
    numbers = np.arange(num_rows, dtype=np.int32)
    return training_data(numbers, numbers if targets is None else np.asarray(targets))


def draw(
    unlearner: Unlearner,
    index: Data,
    request: ForgetRequest,
    key: PRNGKeyArray,
    *,
    num_steps: int,
    batch_size: int,
    retain_batch_size: int | None = None,
) -> Plan:
    """The rows that `iterate` would draw for every step, by their numbers.

    The retain set is `present` minus the request, found from ranks as everywhere, so nothing of size n is made for a request.

    Args:
        unlearner: the method, whose sampler draws.
        index: see `index`; `present` says which rows are left.
        request: one request.
        key: the one that `feed` gets.
        num_steps, batch_size, retain_batch_size: as for `jaxunlearn.iterate`.

    Returns:
        `Plan`, 12 bytes for every row of every batch.

    Raises:
        ValueError: stacked requests, sizes that are not positive, a method that draws from a view of the data or makes its
            batches of its context.
        TypeError: no `Unlearner`, or no typed key.

    Example:
        >>> method = jaxunlearn.npo(model, optax.sgd(0.1))
        >>> plan = jaxunlearn.sources.draw(
        ...     method, jaxunlearn.sources.index(60), request, key, num_steps=3, batch_size=4, retain_batch_size=8
        ... )
        >>> plan.retain.rows.shape, sorted(set(plan.forget.rows.ravel().tolist()))
        ((3, 8), [1, 2])
    """
    checks.require_unlearner(unlearner, "sources.draw")
    checks.check_key(key)
    if jnp.ndim(request.indices) != 1:
        raise ValueError(f"draw takes one request, got indices of shape {jnp.shape(request.indices)}; merge() them first")
    if unlearner.view is not None:
        raise ValueError("this method draws its batches from a view of the data, such as their features: run it with iterate")
    checks.require_count("num_steps", num_steps)
    sizes = BatchSizes(batch_size, batch_size if retain_batch_size is None else retain_batch_size)
    checks.require_count("batch_size", sizes.forget)
    checks.require_count("retain_batch_size", sizes.retain)
    count = checks.check_present(index)
    numbers = index._replace(train=index.train._replace(inputs=jnp.arange(count, dtype=jnp.int32), targets=()), extra={})

    @jax.jit
    def run(data: Data, request: ForgetRequest, key: PRNGKeyArray) -> tuple[Any, Any]:
        _, split_key, loop_key = jax.random.split(key, 3)
        split = sampling.split(data, request, split_key)

        def of_step(step):
            return unlearner.sample(split, _NotHere(), step, step_keys(loop_key, step)[0], sizes)

        batch = jax.lax.map(of_step, jnp.arange(num_steps, dtype=jnp.int32), batch_size=min(num_steps, 256))
        return batch.forget, batch.retain

    forget, retain = (
        Drawn(np.asarray(side.examples.inputs), np.asarray(side.weights), np.asarray(side.slots))
        for side in run(numbers, request, key)
    )
    return Plan(forget, retain, count)
