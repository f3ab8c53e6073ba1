"""What a hypernetwork reads: parameters as one scaled vector, units in another order, and losses as a condition."""

from collections.abc import Sequence
from difflib import get_close_matches

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxunlearn.tree import path_of, require_own_paths
from jaxunlearn.types import Scalar

DEVIATION = 0.538  # of what G.pt diffuses, so that its noise schedule fits parameters


def to_vector(params: PyTree, scale: Scalar = 1.0) -> Float[Array, " p"]:
    """All parameters of a network as one vector, at least in float32.

    Args:
        params: any tree of floating-point leaves.
        scale: what they are multiplied by, may be traced; see `scale_of`.

    Returns:
        Float[p], in the order of the leaves.

    Example:
        >>> jaxunlearn.hypernetworks.to_vector({"bias": jnp.ones(2), "kernel": jnp.zeros((1, 2))}, 3.0).tolist()
        [3.0, 3.0, 0.0, 0.0]
    """
    vector = ravel_pytree(params)[0]
    vector = vector.astype(jnp.promote_types(vector.dtype, jnp.float32))
    return vector * jnp.asarray(scale, vector.dtype)


def to_params(vector: Float[Array, " p"], like: PyTree, scale: Scalar = 1.0) -> PyTree:
    """The parameters that a vector stands for, the inverse of `to_vector`.

    Args:
        vector: Float[p].
        like: parameters, whose tree, shapes and dtypes are taken.
        scale: what the vector is divided by.

    Returns:
        A tree like `like`.

    Example:
        >>> vector = jaxunlearn.hypernetworks.to_vector(variables.params, 2.0)
        >>> params = jaxunlearn.hypernetworks.to_params(vector, variables.params, 2.0)
        >>> bool(jnp.array_equal(params["head"], variables.params["head"]))
        True
    """
    flat, restore = ravel_pytree(like)
    return restore((vector / jnp.asarray(scale, vector.dtype)).astype(flat.dtype))


def scale_of(vectors: Float[Array, "m p"], *, deviation: float = DEVIATION) -> Float[Array, ""]:
    """The factor that gives the entries of many networks a standard deviation, by default that of G.pt.

    Args:
        vectors: unscaled, one network in a row.
        deviation: that they shall have.

    Returns:
        Float[].

    Example:
        >>> scale = jaxunlearn.hypernetworks.scale_of(jnp.array([[1.0, -1.0], [1.0, -1.0]]))
        >>> round(float(scale), 3)
        0.538
    """
    return deviation / jnp.std(vectors)


def condition(losses: Float[Array, " m"], prompts: Float[Array, " m"], target: PyTree = ()) -> Float[Array, " q"]:
    """What a hypernetwork is told: `(l* - l, l*, l)` for every mean loss l and its prompt l*, and what the request names.

    Args:
        losses: of the network that it starts from.
        prompts: what they shall be; in training, those of the network that it shall make.
        target: of a request, e.g. multi-hot classes; with it, one hypernetwork serves requests for any class.

    Returns:
        Float[3 m + numbers of the target].

    Example:
        >>> losses, prompts = jnp.array([0.25, 0.5]), jnp.array([0.125, 4.5])
        >>> jaxunlearn.hypernetworks.condition(losses, prompts, jnp.array([False, True])).tolist()
        [-0.125, 0.125, 0.25, 4.0, 4.5, 0.5, 0.0, 1.0]
    """
    told = jnp.stack([prompts - losses, prompts, losses], axis=-1).ravel()
    return jnp.concatenate([told, *(jnp.ravel(x).astype(told.dtype) for x in jax.tree.leaves(target))])


def permuted(params: PyTree, layers: Sequence[Sequence[str]], key: PRNGKeyArray) -> PyTree:
    """A network of the same function, whose hidden units stand in a random order; augments the training of a hypernetwork.

    The units of a layer are moved together: the last axis of its kernel, of its bias and of whatever else has one entry per
    unit there, and the last but one axis of the next kernel. That leaves the function as it is for a chain of dense layers, or
    of convolutions (kernels [h, w, in, out]), with the same activation on all units of a layer between them.

    Args:
        params: of the network.
        layers: the chain, from the first to the last layer; of each the path of its kernel and of its other parameters, such
            as `[("Dense_0/kernel", "Dense_0/bias"), ("head/kernel", "head/bias")]`. Units of the last one stay.
        key: networks with the same key get the same order.

    Returns:
        A tree like `params`.

    Raises:
        ValueError: fewer than two layers, a path that is not there or stands twice, kernels that do not follow one another, a
            parameter without an entry for each unit.

    Example:
        >>> params = {"in": jnp.ones((4, 8)), "bias": jnp.arange(8.0), "out": jnp.ones((8, 3))}
        >>> moved = jaxunlearn.hypernetworks.permuted(params, [("in", "bias"), ("out",)], key)
        >>> sorted(moved["bias"].tolist()) == params["bias"].tolist()
        True
    """
    if len(layers) < 2:
        raise ValueError(f"permuted needs a chain of at least two layers, got {len(layers)}: there are no units in between")
    if wrong := [layer for layer in layers if isinstance(layer, str) or not layer]:
        raise ValueError(f'a layer is a tuple of paths, its kernel first, such as ("Dense_0/kernel",); got {wrong[0]!r}')
    paths, form = jax.tree.flatten_with_path(params)
    require_own_paths([path_of(path) for path, _ in paths])
    found = {path_of(path): jnp.asarray(leaf) for path, leaf in paths}
    named = [path for layer in layers for path in layer]
    for path in named:
        if path not in found:
            near = get_close_matches(path, found, n=3, cutoff=0.4) or list(found)[:5]
            raise ValueError(f"params have no {path!r}; did you mean {', '.join(map(repr, near))}?")
    for (kernel, *others), (following, *_), layer_key in zip(
        layers[:-1], layers[1:], jax.random.split(key, len(layers) - 1), strict=True
    ):
        units = found[kernel].shape[-1] if found[kernel].ndim > 1 else 0
        entering = found[following].shape[-2] if found[following].ndim > 1 else 0
        if units != entering or not units:
            raise ValueError(
                f"{following} {found[following].shape} does not follow {kernel} {found[kernel].shape}: kernels are [..., in, "
                "out], and what enters one is what leaves the one before, unit by unit"
            )
        for path in others:
            if found[path].ndim == 0 or found[path].shape[-1] != units:
                raise ValueError(f"{path} {found[path].shape} has no entry for each of the {units} units of {kernel}")
        order = jax.random.permutation(layer_key, units)
        for path in (kernel, *others):
            found[path] = found[path][..., order]
        found[following] = jnp.take(found[following], order, axis=-2)
    if twice := sorted({path for path in named if named.count(path) > 1}):
        raise ValueError(f"{twice[0]} stands twice: the units on its sides cannot move by themselves, so leave its layers out")
    return jax.tree.unflatten(form, found.values())
