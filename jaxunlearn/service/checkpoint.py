"""Durable weights, and durable progress for `jaxunlearn.feed`, through orbax (extra `checkpoint`)."""

import base64
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxunlearn import checks
from jaxunlearn import tree as trees
from jaxunlearn.service.errors import CheckpointError, LedgerError, unwritten
from jaxunlearn.service.layouts import Layout, layouts_of
from jaxunlearn.service.lock import Lock

Tree = TypeVar("Tree")


def save_variables(path: str | Path, variables: PyTree) -> None:
    """Write weights as an orbax checkpoint, as `StandardCheckpointer` does.

    Args:
        path: of the checkpoint, a folder that must not be there yet; folders on the way are made.
        variables: `Variables`, or the tree in which a library keeps its weights, such as linen's `{"params": ...,
            "batch_stats": ...}`. Typed keys are kept.

    Raises:
        FileExistsError: there is something at `path` already. It is left as it is.
        CheckpointError: the system refuses, e.g. because the disk is full.

    Example:
        >>> import tempfile
        >>> jaxunlearn.checkpoint.save_variables(f"{tempfile.mkdtemp()}/unlearned", variables)
    """
    checks.require_extra("orbax", "checkpoint")
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten: choose another path, or remove it first")
    with _written(path), ocp.StandardCheckpointer() as checkpointer:
        try:
            checkpointer.save(path, variables)
            checkpointer.wait_until_finished()
        except BaseException:
            checkpointer.close()  # an interrupted save goes on in other threads: wait for their end
            raise


def load_variables(path: str | Path, like: Tree, *, partial: bool = False) -> Tree:
    """Read weights that `save_variables` or an orbax checkpointer for trees wrote.

    `Variables` are also found in a checkpoint of linen's collections, `{"params": ..., "batch_stats": ...}`, of
    `nnx.state(module)`, of the state that `nnx.split` returns, and of either as a pure dict. Random streams of nnx are passed
    over, as `from_nnx` seeds them itself.

    Args:
        path: of the checkpoint. Of a CheckpointManager: the item of a step, such as `run/100/default`.
        like: a tree of the saved form, or `Variables`: arrays or what `jax.eval_shape(model.init, key)` returns; the result
            takes its shardings, by default the first device.
        partial: leave out what the checkpoint holds besides, such as the state of an optimizer.

    Returns:
        The saved values in the tree of `like`.

    Raises:
        FileNotFoundError: there is no checkpoint at `path`.
        CheckpointError: the checkpoint is damaged. A few changed bytes inside of an array are not noticed: orbax keeps no
            checksum of them. A ledger does.
        ValueError: the checkpoint has other leaves, shapes or dtypes than `like`; it names them.

    Example:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/unlearned"
        >>> jaxunlearn.checkpoint.save_variables(path, variables)
        >>> again = jaxunlearn.checkpoint.load_variables(path, jax.eval_shape(model.init, key))
        >>> bool(jnp.array_equal(again.params["head"], variables.params["head"]))
        True
    """
    checks.require_extra("orbax", "checkpoint")
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=getattr(x, "sharding", None) or here), like
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        with _readable(path):
            saved = checkpointer.metadata(path).item_metadata
        if saved is None:
            inside = sorted(str(file.parent) for depth in ("*", "*/*") for file in path.glob(f"{depth}/_METADATA"))
            if not inside and any((path / name).exists() for name in _MARKS):
                raise CheckpointError(_damaged(path, "its metadata cannot be read"))
            advice = f"; give one of the checkpoints inside: {', '.join(inside[:5])}" if inside else ""
            raise FileNotFoundError(f"{path} is not a checkpoint that orbax wrote{advice}")
        names = _fitting(path, layouts_of(target), _form(target), _form(saved.tree), partial)
        wanted = dict(zip(names, jax.tree.leaves(target), strict=True))
        # the saved tree itself, with nodes that hold nothing: orbax takes no other; `...` is not read
        item = jax.tree.map_with_path(lambda at, _: wanted.get(trees.path_of(at), ...), saved.tree)
        args = ocp.args.PyTreeRestore(item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item))
        with _readable(path):
            restored = checkpointer.restore(path, args=args)
    values = {trees.path_of(at): leaf for at, leaf in jax.tree.leaves_with_path(restored)}
    return jax.tree.unflatten(jax.tree.structure(like), [values[name] for name in names])


_OF_ORBAX = (OSError, ValueError, LookupError, TypeError, AttributeError)  # whatever meets damaged bytes first
_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")  # files that a checkpoint of orbax has


def _damaged(path: Path, why: str) -> str:
    return f"the checkpoint at {path} is damaged ({why}): restore it from a backup, or write it again"


def _interrupted(error: BaseException | None) -> bool:
    """Whether an interrupt is behind an error; orbax wraps them."""
    while error is not None and isinstance(error, Exception):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        met = type(error) is Exception or isinstance(error, _OF_ORBAX)
        if not met or isinstance(error, TimeoutError) or _interrupted(error):
            raise
        raise CheckpointError(_damaged(path, str(error).partition("\n")[0][:200])) from error


def _form(values: PyTree) -> dict[str, str]:
    def describe(x: Any) -> str:
        if not hasattr(x, "dtype"):  # orbax keeps texts, too
            return type(x).__name__
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.eval_shape(jax.random.key_data, x)  # as keys are stored
        return f"{jnp.dtype(x.dtype).name}[{','.join(map(str, x.shape))}]"

    return {trees.path_of(path): describe(leaf) for path, leaf in jax.tree.leaves_with_path(values)}


def _fitting(
    path: Path, layouts: Sequence[Layout], like: dict[str, str], saved: dict[str, str], partial: bool
) -> Sequence[str]:
    """Where a checkpoint has the leaves of a tree; ValueError, by the nearest layout, if it has not got them."""
    found = []
    for layout in layouts:
        expected, passed = dict(zip(layout.names, like.values(), strict=True)), layout.ignores(saved)
        shared = [name for name in expected if name in saved and saved[name] != expected[name]]
        wrong = [f"{name} is {saved[name]}, not {expected[name]}" for name in shared]
        wrong += [f"{name} ({expected[name]}) is missing" for name in expected if name not in saved]
        left = [] if partial else [name for name in saved if name not in expected and name not in passed]
        wrong += [f"{name} ({saved[name]}) is too much" for name in left]
        if not wrong:
            return layout.names
        found.append((len(expected.keys() & saved.keys()), wrong))
    wrong = max(found, key=lambda one: one[0])[1]  # the first one of the nearest
    more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    raise ValueError(f"the checkpoint at {path} holds the weights of another model: {'; '.join(wrong[:5])}{more}")


class Directory:
    """A directory of checkpoints, the newest of which a run of `jaxunlearn.feed` resumes from.

    A save costs a run the time of copying its state to the host; writing goes on beside the next steps. What a kill leaves
    half written is not seen again. One run at a time holds the directory, under a lock that dies with its process.

    Args:
        path: made if absent. One run, one directory.
        every: steps between two saves; None for none by count.
        minutes: minutes after which a save is due anyway; None for none by time. Not in runs of several processes, whose
            clocks differ.
        keep: how many of the newest saves stay; older ones are deleted.
        asynchronous: write in the background; False waits for the disk at every save.

    Raises:
        ValueError: `every` or `keep` is not a positive integer, `minutes` is not positive, or neither says when to save.

    Example:
        >>> import tempfile
        >>> part = jaxunlearn.forget_rows(data, request)
        >>> source = lambda step: jaxunlearn.Batch(part, part)
        >>> unlearner = jaxunlearn.gradient_difference(model, optax.sgd(0.1))
        >>> folder = tempfile.mkdtemp()
        >>> for num_steps in (2, 4):  # the second run begins where the first one stopped
        ...     progress = jaxunlearn.checkpoint.Directory(folder, every=2, minutes=10)
        ...     result = jaxunlearn.feed(unlearner, variables, source, request, key, num_steps=num_steps, checkpoint=progress)
        >>> int(result.stats["steps"])
        4
    """

    def __init__(
        self,
        path: str | Path,
        *,
        every: int | None = 100,
        minutes: float | None = None,
        keep: int = 2,
        asynchronous: bool = True,
    ):
        checks.require_extra("orbax", "checkpoint")
        if every is not None:
            checks.require_count("every", every)
        if minutes is not None and not minutes > 0:
            raise ValueError(f"minutes must be positive, got {minutes!r}")
        if every is None and minutes is None:
            raise ValueError("nothing would be saved: say how often, by every=100 steps or minutes=10")
        checks.require_count("keep", keep)
        self._path, self._every, self._minutes = Path(path).absolute(), every, minutes
        self._keep, self._asynchronous = keep, asynchronous
        self._lock: Lock | None = None
        self._manager: Any = None
        self._saved_at = 0.0

    def restore(self, like: PyTree, run: str) -> tuple[int, PyTree, Any] | None:
        """Newest `(step, tree, source state)`, None in an empty directory.

        Args:
            like: a tree of the saved structure, whose shapes, dtypes and shardings the result takes.
            run: fingerprint that the checkpoint must have been saved with.

        Returns:
            Steps made, the tree, and the state of the source as `save` got it; None in an empty directory.

        Raises:
            ValueError: the checkpoint belongs to another run. It is left as it is.
            CheckpointError: the checkpoint is damaged; without its folder, the run resumes from the one before. Or another
                run holds the directory.
        """
        import orbax.checkpoint as ocp

        manager = self._opened()
        step = manager.latest_step()
        if step is None:
            return None
        folder = self._path / str(step)
        with _resumable(folder, manager.all_steps()):
            about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
            fingerprint, source = about["run"], about["source"]
        if fingerprint != run:
            raise ValueError(
                f"the checkpoint at step {step} in {self._path} was written for another method, key, request, first batch, "
                "model or version of jax; continue with those, or choose another directory"
            )
        with _resumable(folder, manager.all_steps()):
            found = manager.restore(step, args=ocp.args.Composite(tree=ocp.args.StandardRestore(like)))
        return step, found["tree"], base64.b64decode(source["bytes"]) if "bytes" in source else source["json"]

    def save(self, step: int, tree: PyTree, source: Any, run: str) -> None:
        """Keep the tree after `step` steps if a save is due.

        Args:
            step: steps made so far.
            tree: arrays, typed keys included.
            source: state of the batch source: None, bytes, or what JSON can hold.
            run: fingerprint of the run.

        Raises:
            CheckpointError: the system refuses this save or the one before, e.g. because the disk is full.
        """
        import orbax.checkpoint as ocp

        manager, now = self._opened(), time.monotonic()
        by_count = self._every is not None and step % self._every == 0
        by_time = self._minutes is not None and now - self._saved_at >= 60 * self._minutes
        if not (by_count or by_time):
            return
        self._saved_at = now
        kept = {"bytes": base64.b64encode(source).decode()} if isinstance(source, bytes) else {"json": source}
        about = ocp.args.JsonSave({"run": run, "source": kept})
        with _written(self._path):
            manager.save(step, args=ocp.args.Composite(tree=ocp.args.StandardSave(tree), about=about), force=True)

    def finish(self) -> None:
        """Wait until the last save is on disk, and let others have the directory.

        Raises:
            CheckpointError: the system refused it.
        """
        try:
            if self._manager is not None:
                with _written(self._path):
                    self._manager.wait_until_finished()
                self._manager.close()
        finally:
            self._manager = None
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def _opened(self) -> Any:
        """Orbax's manager, made under the lock: it clears away what it takes for remains of a kill."""
        if self._manager is None:
            import orbax.checkpoint as ocp

            if self._minutes is not None and jax.process_count() > 1:
                raise ValueError("minutes: the clocks of several processes differ, so they save by count: pass every=100 alone")
            self._path.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                try:
                    self._lock = Lock(self._path / ".lock")
                except LedgerError as error:
                    raise CheckpointError(str(error)) from error
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, enable_async_checkpointing=self._asynchronous, cleanup_tmp_directories=True
            )
            self._manager = ocp.CheckpointManager(self._path, options=options)
            self._saved_at = time.monotonic()
        return self._manager


@contextmanager
def _resumable(folder: Path, steps: Sequence[int]) -> Iterator[None]:
    """Say which folder to remove where the newest of several saves is damaged."""
    try:
        with _readable(folder):
            yield
    except CheckpointError as error:
        before = f"the run then resumes from step {sorted(steps)[-2]}" if len(steps) > 1 else "the run then starts anew"
        raise CheckpointError(f"{error}; or remove that folder: {before}") from error


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # orbax has no type for it: a full disk is a ValueError there
        if isinstance(error, TimeoutError):
            raise
        raise CheckpointError(unwritten(path, error)) from error
