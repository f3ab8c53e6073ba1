"""One simple change per image, drawn at random: the same for training, retraining and unlearning."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxunlearn import Examples

CHANGES = 4


def trivial(examples: Examples, key: PRNGKeyArray) -> Examples:
    """Leave an image, shift it by up to an eighth of its side, or change its brightness or contrast: TrivialAugment.

    Mueller, Hutter: TrivialAugment, 2021, arXiv 2103.10158; with fewer changes than theirs, and none that turns an image, since
    a turned digit is another one.

    Args:
        examples: images [b, h, w, channels].
        key: one typed key.

    Raises:
        ValueError: inputs that are no images.
    """
    images = examples.inputs
    if jnp.ndim(images) != 4:
        raise ValueError(f"trivial changes images [b, h, w, channels], got inputs of shape {jnp.shape(images)}")
    draws = jax.random.uniform(key, (images.shape[0], 3))
    return examples._replace(inputs=jax.vmap(_changed)(images, draws).astype(images.dtype))


def _changed(image: Float[Array, "h w c"], draws: Float[Array, " 3"]) -> Float[Array, "h w c"]:
    which = jnp.minimum((CHANGES * draws[0]).astype(jnp.int32), CHANGES - 1)
    strength = 2 * draws[1:] - 1
    mean = jnp.mean(image)
    changes = (
        lambda: image,
        lambda: _shifted(_shifted(image, strength[0], 0), strength[1], 1),
        lambda: image + 0.2 * strength[0],
        lambda: mean + (1 + 0.4 * strength[0]) * (image - mean),
    )
    return jax.lax.switch(which, changes)


def _shifted(image: Float[Array, "h w c"], strength: Float[Array, ""], axis: int) -> Float[Array, "h w c"]:
    side = image.shape[axis]
    by = jnp.round(strength * max(1, side // 8)).astype(jnp.int32)
    place = jnp.arange(side) - by
    moved = jnp.take(image, jnp.clip(place, 0, side - 1), axis=axis)
    inside = ((place >= 0) & (place < side)).reshape([-1 if x == axis else 1 for x in range(3)])
    return jnp.where(inside, moved, 0)
