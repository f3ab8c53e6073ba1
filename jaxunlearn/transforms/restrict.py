"""Let an optimizer move some layers only."""

import jax
import optax
from jaxtyping import PyTree

from jaxunlearn import tree
from jaxunlearn.tree import Layers


def restrict(optimizer: optax.GradientTransformation, layers: Layers) -> optax.GradientTransformation:
    """Apply an optimizer to the named layers; the others keep their values, have no optimizer state and cost no backward pass.

    Args:
        optimizer: any optax transformation.
        layers: a regular expression to be found in a parameter's path (`"head"`, `"Dense_[12]/kernel"`), or a predicate of it.

    Returns:
        An optax transformation.

    Raises:
        TypeError: `layers` is neither, when the optimizer is initialised.
        ValueError: `layers` names no parameter, when the optimizer is initialised.

    Example:
        >>> optimizer = jaxunlearn.transforms.restrict(optax.adam(1e-3), "head")
    """

    def labels(params: PyTree) -> PyTree:
        chosen = tree.matching(params, layers)
        if not any(jax.tree.leaves(chosen)):
            names = ", ".join(tree.path_of(path) for path, _ in jax.tree.leaves_with_path(params))
            raise ValueError(f"layers={layers!r} names no parameter; there are {names}")
        return jax.tree.map(lambda moves: "moves" if moves else "stays", chosen)

    return optax.partition({"moves": optimizer, "stays": optax.set_to_zero()}, labels)
