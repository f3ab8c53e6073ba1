"""A study: a small noisy training set that a network learns by heart, and the procedure that trains and retrains it."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int

import jaxunlearn as ju
from experiments.common.data import Dataset, load, subset, with_label_noise
from experiments.common.models import build
from jaxunlearn.loop.iterate import ActiveSteps, Augment

MOST_HELD_OUT = 500


class Study(NamedTuple):
    """What all methods start from."""

    model: ju.Model
    data: ju.Data
    test: ju.Examples
    num_classes: int  # 0 for real targets
    num_steps: int  # of training and retraining
    batch_size: int
    learning_rate: float
    held_out: ju.Examples | None = None  # rows that no model sees and no audit reports; None where the data has none left
    rows: Int[np.ndarray, " n"] | None = None  # of the data set's training split
    augment: Augment | None = None  # of training, retraining and unlearning alike

    def retrain(self, active_steps: ActiveSteps | None = None) -> ju.UnlearnFn:
        """The training procedure, on the retain set; with an empty request it trains on all rows.

        Args:
            active_steps: stops it earlier, see `jaxunlearn.iterate`.
        """
        optimizer = optax.adam(self.learning_rate)
        training = ju.retrain(self.model, optimizer)
        return ju.iterate(
            training, num_steps=self.num_steps, batch_size=self.batch_size, augment=self.augment, active_steps=active_steps
        )


def overfitted(
    dataset: str | Dataset = "digits",
    data_dir: str | None = None,
    *,
    network: str = "mlp",
    num_rows: int = 500,
    label_noise: float = 0.12,
    num_steps: int = 600,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> Study:
    """A small noisy training set and a network that learns it by heart, so that there is something to forget.

    Args:
        dataset, data_dir: see `experiments.common.data.load`; or what it returned.
        network: see `experiments.common.models.build`.
        num_rows: training rows, drawn at random.
        label_noise: fraction of them that get a wrong label; test labels stay right. It must be 0 for real targets.
        num_steps, batch_size, learning_rate: of training, with Adam.
        seed: of the rows and the noise.

    Raises:
        ValueError: more rows than there are, or label noise without labels.
    """
    loaded = load(dataset, data_dir, seed=seed) if isinstance(dataset, str) else dataset
    available = len(loaded.train.targets)
    if num_rows > available:
        raise ValueError(f"{loaded.name} has {available} training rows, fewer than num_rows={num_rows}")
    order = np.random.default_rng(seed).permutation(available)
    train_rows = subset(loaded.train, order[:num_rows])
    model = build(network, loaded.train.inputs.shape[1:], loaded.num_classes or 1)
    if loaded.num_classes == 0:
        if label_noise:
            raise ValueError(f"{loaded.name} has real targets and no labels: set label_noise=0, got {label_noise}")
        noisy, model = train_rows, model._replace(loss=ju.losses.squared_error)
    else:
        noisy, _ = with_label_noise(train_rows, label_noise, loaded.num_classes, seed)
    return Study(
        model, ju.training_data(*noisy), jax.tree.map(jnp.asarray, loaded.test), loaded.num_classes, num_steps, batch_size,
        learning_rate, _held_out(loaded, order[num_rows:], label_noise, seed), order[:num_rows],
    )  # fmt: skip


def _held_out(loaded: Dataset, rows: np.ndarray, label_noise: float, seed: int) -> ju.Examples | None:
    """Rows of the training split that are left over, drawn and mislabelled like the training rows."""
    if not len(rows):
        return None
    left = subset(loaded.train, rows[:MOST_HELD_OUT])
    if label_noise:
        left, _ = with_label_noise(left, label_noise, loaded.num_classes, seed + 1)
    return jax.tree.map(jnp.asarray, left)


def random_requests(data: ju.Data, sizes: Sequence[int], seed: int) -> ju.ForgetRequest:
    """Requests for random rows, one of each size."""
    generator = np.random.default_rng(seed)
    present = np.flatnonzero(np.asarray(data.present))
    return ju.from_indices(data, [generator.choice(present, size, replace=False) for size in sizes])
