"""Many models of one kind, seen by their logits: `logits[models, examples, classes]`.

An audit that can be believed compares distributions over trainings: N original models, N unlearned ones, each from an original
of its own, and N retrained ones. All come from `jaxunlearn.batched`, one block of models per call; with a directory every block
is saved when it is done, and found again by the hash of what it was computed from.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks, tree
from jaxunlearn.batching import batched, num_lanes, separate
from jaxunlearn.evaluation import predict
from jaxunlearn.service import checkpoint
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, UnlearnFn, Variables


class Ensemble(NamedTuple):
    """N models of one kind."""

    logits: dict[str, Any]  # for each named set of rows, [n, e, ...]; or what `measure` returns
    variables: Variables  # leading axis n
    status: Int[Array, " n"]


def ensemble(
    model: Model,
    unlearn: UnlearnFn,
    variables: Variables,
    data: Data,
    requests: ForgetRequest,
    keys: PRNGKeyArray,
    rows: dict[str, Examples],
    *,
    in_axes: Any = (None, None, None, 0),
    block: int | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    directory: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
    measure: Callable[[Variables, Examples], PyTree] | None = None,
) -> Ensemble:
    """Train or unlearn N models and read their logits.

    Originals: `retrain` with `jaxunlearn.empty_request()`. Unlearned, each from its own original: `in_axes=(0, None, None, 0)`
    with the originals' `variables`. Retrained: `retrain` with the request. Trainings on subsets: `data` from `subsets`.

    Args:
        model: reads the logits.
        unlearn: how each model is made.
        variables, data, requests, keys: as for `jaxunlearn.batched`; N is the leading axis of what `in_axes` maps.
        rows: named sets of examples to read logits for, e.g. forget set, retain set and test rows.
        in_axes: which arguments have one entry per model.
        block: models in one compiled call, by default all; it bounds memory and what a crash costs.
        chunk, mesh: as for `jaxunlearn.batched`.
        directory: save every block there, and take from there what was computed before from the same program, values, keys,
            rows and version of JAX. Nothing in it is ever overwritten. Needs orbax.
        progress: called after every block with the number of models that are done.
        measure: what is kept of a model on a set of rows, in place of its logits; arrays with one entry per row. Logits of long
            token sequences, of all models and rows, would fill the memory.

    Returns:
        `Ensemble`. Look at `status`: models that diverged, or that read stale values of `Data.extra`, are in it.

    Raises:
        ValueError: leading axes that differ, a block that is not positive, no rows.
        TypeError: `unlearn` is an `Unlearner`.

    Example:
        >>> retrain = jaxunlearn.iterate(jaxunlearn.retrain(model, optax.sgd(0.1)), num_steps=2, batch_size=8)
        >>> keys = jax.random.split(key, 3)
        >>> made = jaxunlearn.audit.ensemble(model, retrain, variables, data, request, keys, {"test": test})
        >>> made.logits["test"].shape
        (3, 20, 3)
    """
    checks.require_unlearn_fn(unlearn, "audit.ensemble")
    if not rows:
        raise ValueError("ensemble: rows names no set of examples to read logits for")
    shared, per_model, form = separate((variables, data, requests, keys), in_axes)
    models = num_lanes(per_model)
    if block is not None:
        checks.require_count("block", block)
    block = min(block or models, models)
    answer: Any = batched(unlearn, in_axes=in_axes, chunk=chunk, mesh=mesh)

    keep = measure or (lambda one, part: predict(model, one, part))

    @jax.jit
    def read(stacked: Variables, rows: dict[str, Examples]) -> dict[str, PyTree]:
        return jax.lax.map(lambda one: {name: keep(one, part) for name, part in rows.items()}, stacked)

    def make(arguments: tuple) -> Ensemble:
        result = answer(*arguments)
        return Ensemble(read(result.variables, rows), result.variables, result.status)

    @cache
    def described(count: int) -> tuple[str, dict]:
        """Text of the programs that make a block of so many models, and the form of what they return."""
        arguments = form.join(shared, [leaf[:count] for leaf in per_model])
        plain = jax.jit(batched(unlearn, in_axes=in_axes, chunk=1))  # chunks and meshes do not change what is computed
        made = jax.eval_shape(plain, *arguments)
        like = Ensemble(jax.eval_shape(read, made.variables, rows), made.variables, made.status)
        return plain.lower(*arguments).as_text() + read.lower(made.variables, rows).as_text(), like._asdict()

    def saved(directory: Path, arguments: tuple, count: int) -> Ensemble:
        program, like = described(count)
        path = directory / content_hash((arguments, rows), program)
        if path.exists():
            return Ensemble(**checkpoint.load_variables(path, like))
        made = make(arguments)
        checkpoint.save_variables(path, made._asdict())
        return made

    done = []
    for start in range(0, models, block):
        end = min(start + block, models)
        arguments = form.join(shared, [leaf[start:end] for leaf in per_model])
        done.append(make(arguments) if directory is None else saved(Path(directory), arguments, end - start))
        if progress is not None:
            progress(end)
    return done[0] if len(done) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *done)


def content_hash(values: PyTree, program: str = "") -> str:
    """SHA-256 of a program's text, of values (see `jaxunlearn.tree.content_digest`) and of JAX's version; 32 hex digits."""
    return hashlib.sha256(f"{jax.__version__}\n{program}\n{tree.content_digest(values)}".encode()).hexdigest()[:32]


def random_halves(num_models: int, num_rows: int, key: PRNGKeyArray) -> Bool[Array, "m n"]:
    """Memberships for LiRA and memorisation: every row is in exactly half of the models, every model has half of the rows.

    Models come in pairs that share the rows out between them.

    Args:
        num_models: m, even.
        num_rows: n; if it is odd, one model of each pair has one row more.
        key: one typed key.

    Returns:
        Bool[m, n], True where a model sees a row.

    Raises:
        ValueError: an odd number of models, or a number that is not positive.
        TypeError: a key that is not typed.

    Example:
        >>> members = jaxunlearn.audit.random_halves(4, 10, key)
        >>> members.sum(axis=0).tolist() == [2] * 10, members.sum(axis=1).tolist()
        (True, [5, 5, 5, 5])
    """
    checks.require_count("num_models", num_models)
    checks.require_count("num_rows", num_rows)
    if num_models % 2:
        raise ValueError(
            f"random_halves: num_models must be even, so that every row is in half of the models, got {num_models}"
        )
    checks.check_key(key)
    draws = jax.random.uniform(key, (num_models // 2, num_rows))
    first = jnp.argsort(jnp.argsort(draws, axis=1), axis=1) < num_rows // 2
    return jnp.stack([first, ~first], axis=1).reshape(num_models, num_rows)


def subsets(data: Data, members: Bool[Array, "m n"]) -> tuple[Data, tuple]:
    """Data whose `present` has one entry per model, and the `in_axes` with which `ensemble` trains a model on each.

    Args:
        data: n rows; rows that are not present stay so.
        members: which of m models sees which row.

    Returns:
        The data, with `present` Float[m, n], and `in_axes` for (variables, data, requests, keys).

    Raises:
        ValueError: members that are not [m, n].

    Example:
        >>> halves, in_axes = jaxunlearn.audit.subsets(data, jaxunlearn.audit.random_halves(4, 60, key))
        >>> halves.present.shape
        (4, 60)
    """
    members, present = jnp.asarray(members), jnp.asarray(data.present)
    if members.ndim != 2 or members.shape[1:] != present.shape:
        raise ValueError(f"subsets: expected members [models, {present.shape[0]}], got {members.shape}")
    axes = jax.tree.map(lambda _: None, data)._replace(present=0)
    return data._replace(present=jnp.where(members, present, 0)), (None, axes, None, 0)
