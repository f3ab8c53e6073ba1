"""Which parameters a request depends on most."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxunlearn import checks


def saliency_mask(gradient: PyTree, fraction: float = 0.5) -> PyTree:
    """1 for the parameters with the largest absolute gradients over all leaves together, 0 elsewhere.

    Exactly `int(fraction * d)` of them, equal gradients in their order, so that there are no more where many are 0. Chain
    `jaxunlearn.transforms.keep(mask)` behind an optimizer: masked parameters then stay as they are to the bit, whatever
    momentum and weight decay would do.

    Args:
        gradient: any tree of d numbers, e.g. the gradient of the loss on the forget set.
        fraction: of all parameters, in [0, 1]; static.

    Returns:
        A tree like the gradient, of its shapes and dtypes.

    Raises:
        ValueError: a fraction outside [0, 1].

    References:
        Fan, Liu, Zhang, Wong, Wei, Liu: SalUn, ICLR 2024, arXiv 2310.12508.

    Example:
        >>> mask = jaxunlearn.transforms.saliency_mask({"a": jnp.array([3.0, -1.0]), "b": jnp.array([-2.0, 0.5])}, 0.5)
        >>> {name: leaf.tolist() for name, leaf in mask.items()}
        {'a': [1.0, 0.0], 'b': [1.0, 0.0]}
    """
    checks.check_range("fraction", fraction, low=0, high=1)
    leaves, form = jax.tree.flatten(gradient)
    sizes = jnp.concatenate([jnp.abs(x).astype(jnp.promote_types(x.dtype, jnp.float32)).ravel() for x in leaves])
    order = jnp.argsort(-sizes, stable=True)
    chosen = jnp.zeros(sizes.shape, bool).at[order[: int(fraction * sizes.shape[0])]].set(True)
    ends, parts = 0, []
    for x in leaves:
        parts.append(chosen[ends : ends + x.size].reshape(x.shape).astype(x.dtype))
        ends += x.size
    return form.unflatten(parts)
