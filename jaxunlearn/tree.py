"""Small operations on pytrees that every floor above shares."""

import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, UInt32

Layers: TypeAlias = str | Callable[[str], bool]  # a regular expression to be found in a parameter's path, or a predicate


def leading_axis(tree: PyTree, what: str) -> int:
    """Common length of the first axis of all leaves; ValueError if there is none."""
    lengths = {
        jax.tree_util.keystr(path): np.shape(leaf)[0] if np.ndim(leaf) else -1 for path, leaf in jax.tree.leaves_with_path(tree)
    }
    if len(set(lengths.values())) != 1 or -1 in lengths.values():
        hint = "; lists are trees of numbers here, so pass numpy.asarray(...) of them" if -1 in lengths.values() else ""
        raise ValueError(f"every array of {what} needs the same leading axis (its rows), got {lengths}{hint}")
    return next(iter(lengths.values()))


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no inexact leaf holds NaN or inf."""
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if _is_inexact(x)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.array(True)


def share_changed(before: PyTree, after: PyTree) -> Float[Array, ""]:
    """Share of the numbers in the inexact leaves that differ between two trees of one form, NaN included; 0 of none."""
    pairs = [(x, y) for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True) if _is_inexact(x)]
    count = sum(jnp.size(x) for x, _ in pairs)
    changed = sum((jnp.sum(x != y, dtype=jnp.float32) for x, y in pairs), start=jnp.float32(0))
    return changed / max(count, 1)


def _is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def select(condition: Bool[Array, ""], on_true: PyTree, on_false: PyTree) -> PyTree:
    """`where` over two trees of one structure; leaves of any dtype, typed keys included."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), on_true, on_false)


def path_of(path: tuple) -> str:
    """A leaf's path as users write it, e.g. `Dense_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def require_own_paths(paths: Sequence[str]) -> None:
    """ValueError if two leaves have one path, as those of {"a/b": x, "a": {"b": y}} have."""
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise ValueError(
            f"several leaves have the path {', '.join(twice)}, so that it names none of them: rename the parameters"
        )


def matching(tree: PyTree, layers: Layers) -> PyTree:
    """A tree of static bools: which leaves `layers` names, by their paths such as `Dense_0/kernel`."""
    if not (isinstance(layers, str) or callable(layers)):
        raise TypeError(f"layers must be a regular expression over parameter paths or a predicate, got {layers!r}")
    names = re.compile(layers).search if isinstance(layers, str) else layers
    return jax.tree.map_with_path(lambda path, _: bool(names(path_of(path))), tree)


def form_of(values: PyTree) -> dict[str, str]:
    """Shape and dtype of every leaf by its path, e.g. `{"Dense_0/kernel": "float32[4,8]"}`."""
    return {path_of(path): jax.typeof(leaf).str_short() for path, leaf in jax.tree.leaves_with_path(values)}


def differences(expected: PyTree, got: PyTree) -> str:
    """How the forms of two trees differ, for an error message; empty if they do not."""
    old, new = form_of(expected), form_of(got)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    shown = "; ".join(f"{name}: {old.get(name, 'absent')} became {new.get(name, 'absent')}" for name in names[:5])
    return shown + (f"; and {len(names) - 5} more" if len(names) > 5 else "")


def norm(tree: PyTree) -> Float[Array, ""]:
    """Euclidean norm of all leaves together, at least in float32; 0 without leaves."""
    squares = [jnp.sum(jnp.square(jnp.abs(x.astype(jnp.promote_types(x.dtype, jnp.float32))))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.float32(0)))


def clipped(tree: PyTree, radius: Any) -> PyTree:
    """The tree shortened to a norm of at most `radius`, the rounding of the norm included; NaN stays NaN.

    A projection, on a ball that is smaller by 1e-5: no distance grows. Squares of float32 that are 0 or inf do not matter.
    """
    wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)
    largest = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(wide)]
    unit = jnp.max(jnp.stack(largest)) if largest else jnp.float32(1)
    unit = jnp.where((unit > 0) & (unit < jnp.inf), unit, 1)
    length, inner = unit * norm(jax.tree.map(lambda x: x / unit, wide)), radius * (1 - 1e-5)
    scale = jnp.where(length > inner, inner / jnp.where(length > 0, length, 1), 1)
    scale = jnp.where(jnp.isnan(length), jnp.nan, scale)
    return jax.tree.map(lambda x: (scale * x).astype(x.dtype), tree)


def row_norms(rows: PyTree) -> Float[Array, " b"]:
    """Euclidean norm of each row over all leaves, at least in float32, with a gradient of 0 where it is 0."""
    wide = [x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(x.shape[0], -1) for x in jax.tree.leaves(rows)]
    total = sum(jnp.sum(x**2, axis=1) for x in wide)
    return jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1)), 0)


def digest(tree: PyTree) -> UInt32[Array, " 2"]:
    """64 bits that tell values apart, on the device: one pass over the leaves, equal with and without `jit` and `vmap`.

    Bits, positions, paths, shapes and dtypes count. Good against mistakes, not against an adversary; `content_digest` is for
    those.
    """
    total = jnp.zeros(2, jnp.uint32)
    for path, leaf in jax.tree.leaves_with_path(tree):
        leaf = _canonical(leaf)
        words = _words(leaf).ravel()
        place = jax.lax.iota(jnp.uint32, words.size)
        name = jnp.uint32(zlib.crc32(f"{path_of(path)} {jnp.shape(leaf)} {jnp.result_type(leaf)}".encode()))
        found = mixed(words ^ (place * jnp.uint32(0x9E3779B9) + name))
        sums = jnp.stack([jnp.sum(found, dtype=jnp.uint32), jnp.sum(found * (2 * place + 1), dtype=jnp.uint32)])
        total += mixed(sums + name)
    return total


def _canonical(leaf: Any) -> jax.Array:
    """NumPy arrays and Python numbers as JAX takes them by default, whether float64 is on or not."""
    if isinstance(leaf, jax.Array):
        return leaf
    with jax.enable_x64(False):
        return jnp.asarray(leaf)


def mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The finalizer of MurmurHash3: every bit of the input moves half of those of the output."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _words(leaf: Any) -> UInt32[Array, "..."]:
    """The bits of an array as 32-bit words."""
    x = jax.random.key_data(leaf) if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key) else jnp.asarray(leaf)
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.stack([_words(x.real), _words(x.imag)])
    if x.dtype.itemsize < 4:
        return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def content_digest(tree: PyTree) -> str:
    """SHA-256 of paths, shapes, dtypes and bytes of all leaves, on the host; 64 hexadecimal digits.

    Of arrays that span processes every process gets the digest of the whole, and all must ask.

    Raises:
        TypeError: inside `jit` or `vmap`, where values are not known.
    """
    found = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        leaf = jax.random.key_data(leaf) if is_key else leaf
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            from jax.experimental.multihost_utils import process_allgather

            leaf = process_allgather(leaf, tiled=True)
        host = np.asarray(leaf)
        found.update(f"{path_of(path)} {host.dtype} {host.shape};".encode())
        found.update(np.ascontiguousarray(host).tobytes())
    return found.hexdigest()
