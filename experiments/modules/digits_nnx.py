"""An nnx network on digits, for `unlearn_checkpoint.py`: copy this file and put in your own model and data.

    python experiments/unlearn_checkpoint.py --module experiments/modules/digits_nnx.py --demo
    python experiments/unlearn_checkpoint.py --module experiments/modules/digits_nnx.py --checkpoint DIR --rows 3 14 15

There is no `variables(checkpoint)`: what orbax saved of `nnx.state(net)` is read without. Your own training saves it by
`orbax.checkpoint.StandardCheckpointer().save(DIR, nnx.state(net))`.
"""

from pathlib import Path

import jax
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxunlearn as ju


class Net(nnx.Module):
    """Two layers with dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, 128, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.last(self.drop(nnx.relu(self.first(inputs))))


def create(key: jax.Array) -> Net:
    return Net(nnx.Rngs(key))


def model() -> ju.Model:
    found, _ = ju.adapters.from_nnx(create(jax.random.key(0)), ju.losses.cross_entropy, create=create)
    return found


def data() -> tuple[ju.Examples, ju.Examples]:
    images, labels = load_digits(return_X_y=True)
    images, labels = np.asarray(images / 16, np.float32), np.asarray(labels, np.int32)
    train, test, train_labels, test_labels = train_test_split(images, labels, test_size=0.2, random_state=0)
    return ju.Examples(train, train_labels), ju.Examples(test, test_labels)


def save(path: Path, variables: ju.Variables) -> None:
    """As an nnx state, which `nnx.merge` takes; without this function it would be a tree of params and state."""
    ju.checkpoint.save_variables(path, nnx.state(ju.adapters.to_nnx(create(jax.random.key(0)), variables)))
