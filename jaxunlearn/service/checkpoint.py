"""Durable weights, and durable progress for `jaxunlearn.feed`, through orbax (extra `checkpoint`)."""

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxunlearn import checks
from jaxunlearn import tree as trees
from jaxunlearn.service.errors import CheckpointError, unwritten
from jaxunlearn.service.layouts import Layout, layouts_of

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
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            try:
                checkpointer.save(path, variables)
                checkpointer.wait_until_finished()
            except BaseException:
                checkpointer.close()  # an interrupted save goes on in other threads: wait for their end
                raise
    except (OSError, ValueError) as error:  # orbax has no type for it: a full disk is a ValueError there
        if isinstance(error, TimeoutError):
            raise
        raise CheckpointError(unwritten(path, error)) from error


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

    Args:
        path: made if absent. One run, one directory.
        every: steps between two saves.
        keep: how many of the newest saves stay; older ones are deleted.

    Raises:
        ValueError: `every` or `keep` is not a positive integer.

    Example:
        >>> import tempfile
        >>> part = jaxunlearn.forget_rows(data, request)
        >>> source = lambda step: jaxunlearn.Batch(part, part)
        >>> unlearner = jaxunlearn.gradient_difference(model, optax.sgd(0.1))
        >>> folder = tempfile.mkdtemp()
        >>> for num_steps in (2, 4):  # the second run begins where the first one stopped
        ...     progress = jaxunlearn.checkpoint.Directory(folder, every=2)
        ...     result = jaxunlearn.feed(unlearner, variables, source, request, key, num_steps=num_steps, checkpoint=progress)
        >>> int(result.stats["steps"])
        4
    """

    def __init__(self, path: str | Path, *, every: int = 100, keep: int = 2):
        checks.require_extra("orbax", "checkpoint")
        import orbax.checkpoint as ocp

        checks.require_count("every", every)
        checks.require_count("keep", keep)
        self._ocp = ocp
        options = ocp.CheckpointManagerOptions(save_interval_steps=every, max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(Path(path).absolute(), options=options)

    def restore(self, like: PyTree, run: str) -> tuple[int, PyTree, Any] | None:
        """Newest `(step, tree, source state)`, None in an empty directory.

        Args:
            like: a tree of the saved structure, whose shapes, dtypes and shardings the result takes.
            run: fingerprint that the checkpoint must have been saved with.

        Returns:
            Steps made, the tree, and the state of the source as `save` got it; None in an empty directory.

        Raises:
            ValueError: the checkpoint belongs to another run. It is left as it is.
            CheckpointError: the checkpoint is damaged; without its folder, the run resumes from the one before.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        args = self._ocp.args
        folder = Path(self._manager.directory) / str(step)
        with _readable(folder):
            about = self._manager.restore(step, args=args.Composite(about=args.JsonRestore()))["about"]
        if about["run"] != run:
            raise ValueError(
                f"the checkpoint at step {step} in {self._manager.directory} was written for another method, key, request, "
                "model or version of jax; continue with those, or choose another directory"
            )
        with _readable(folder):
            found = self._manager.restore(step, args=args.Composite(tree=args.StandardRestore(like)))
        source = about["source"]
        return step, found["tree"], base64.b64decode(source["bytes"]) if "bytes" in source else source["json"]

    def save(self, step: int, tree: PyTree, source: Any, run: str) -> None:
        """Keep the tree after `step` steps if a save is due.

        Args:
            step: steps made so far.
            tree: arrays, typed keys included.
            source: state of the batch source: None, bytes, or what JSON can hold.
            run: fingerprint of the run.
        """
        if not self._manager.should_save(step):
            return
        kept = {"bytes": base64.b64encode(source).decode()} if isinstance(source, bytes) else {"json": source}
        args = self._ocp.args
        about = args.JsonSave({"run": run, "source": kept})
        self._manager.save(step, args=args.Composite(tree=args.StandardSave(tree), about=about))
