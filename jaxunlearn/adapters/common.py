"""What adapters share for libraries whose objects hold their weights."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from jaxunlearn import tree
from jaxunlearn.types import Variables


def adopt(like: Variables, made: Variables, what: str) -> Variables:
    """`made` in the tree of `like`, static fields of a library's objects included.

    Raises:
        ValueError: paths, shapes or dtypes differ; it begins with `what` and names the leaves.
    """
    if changes := tree.differences(like, made):
        raise ValueError(f"{what}: {changes}")
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(made))


def init_from(
    create: Callable[[PRNGKeyArray], Any] | None, take: Callable[[Any], Variables], like: Variables
) -> Callable[[PRNGKeyArray], Variables] | None:
    """`Model.init` from a user's `create(key)` and from what takes the variables out of the objects it makes."""
    if create is None:
        return None
    return lambda key: adopt(like, take(create(key)), "create(key) must make an object of the same form as the trained one")
