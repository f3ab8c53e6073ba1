"""Looks at a ledger and its files."""

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxunlearn.service.ledger import Ledger
from tests.crashes import IDS, SALT

KEY = jax.random.key(0)


def reopen(book, about, **options):
    book.close()
    return Ledger.open(book.directory, options.pop("record_ids", IDS), **{"salt": SALT, **about, **options})


def kernel_of(variables):
    return np.asarray(variables.params["kernel"])


def kernel(result):
    return kernel_of(result.variables)


def contents(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def everything_on_disk(directory):
    """Bytes of all files, and of all arrays in checkpoints, which are compressed."""
    found = list(contents(directory).values())
    for path in directory.rglob("_METADATA"):
        with ocp.PyTreeCheckpointer() as checkpointer:
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), checkpointer.metadata(path.parent).item_metadata.tree
            )
            saved = checkpointer.restore(path.parent, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        found += [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(saved)]
    return b"\n".join(found)
