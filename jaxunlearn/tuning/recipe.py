"""How a model was trained, from which the scale of settings for unlearning follows."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import checks
from jaxunlearn.loop.iterate import iterate
from jaxunlearn.methods.retrain import retrain
from jaxunlearn.types import Model, Scalar, UnlearnFn


class Recipe(NamedTuple):
    """How a model was trained.

    `optimizer` makes the transformation from a learning rate or a schedule, as `optax.adam` does; `num_steps` and `batch_size`
    are those of `jaxunlearn.iterate`.

    Example:
        >>> recipe = jaxunlearn.Recipe(optax.adam, learning_rate=0.01, num_steps=20, batch_size=16)
        >>> method = jaxunlearn.finetune(model, recipe.scaled(0.5, num_steps=10))  # half of the rate of the training
        >>> jax.jit(jaxunlearn.iterate(method, num_steps=10, batch_size=16))(variables, data, request, key).stats["loss"].shape
        (10,)
    """

    optimizer: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]  # e.g. optax.adam
    learning_rate: optax.ScalarOrSchedule
    num_steps: int
    batch_size: int

    def retrain(self, model: Model) -> UnlearnFn:
        """The training procedure on the retain set, from fresh weights."""
        return iterate(retrain(model, self.optimizer(self.learning_rate)), num_steps=self.num_steps, batch_size=self.batch_size)

    def rate(self) -> Scalar:
        """The learning rate, or the mean of a schedule over the training: its last value is often 0."""
        if not callable(self.learning_rate):
            return self.learning_rate
        return jnp.mean(jax.vmap(self.learning_rate)(jnp.arange(self.num_steps)))

    def scaled(self, multiple: Scalar = 1.0, *, num_steps: int) -> optax.GradientTransformation:
        """The optimizer of the training for a run of unlearning, with a cosine schedule that ends at 0.

        Args:
            multiple: of the training's rate, at least 0; may be traced.
            num_steps: of the run.
        """
        checks.check_range("multiple", multiple, low=0)
        checks.require_count("num_steps", num_steps)
        return self.optimizer(optax.cosine_decay_schedule(multiple * self.rate(), num_steps))
