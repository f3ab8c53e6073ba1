"""Labelled data with a group column: digits with a synthetic group, tables, and files in the format of MedMNIST.

A group is what people have in common that unlearning should treat alike, such as their sex. It is never a label, and models see
it only as far as the inputs show it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.common.data import Dataset, load
from jaxunlearn import Examples

TEXTURE = 1  # column of breast_cancer
ADULT_ROWS, ADULT_TEST = 4000, 1000


class Grouped(NamedTuple):
    """A data set and the group of each of its rows."""

    dataset: Dataset
    groups: Int[np.ndarray, " n"]  # of the training split
    test_groups: Int[np.ndarray, " m"]
    names: tuple[str, ...]
    about: str  # what the groups are, in a sentence


def load_grouped(name: str, data_dir: str | None = None, *, strength: float, share: float, seed: int) -> Grouped:
    """A data set with its groups.

    Args:
        name: a file `.npz` in the format of MedMNIST; `breast_cancer`, grouped by texture; `adult`, see `adult_like`; or any
            set of images of `experiments.common.data.load`, which gets a synthetic group, see `with_pattern`.
        data_dir: see `experiments.common.data.load`.
        strength: of the pattern, or of the effect on the label of `adult`.
        share: of the second group, where groups are synthetic.
        seed: of the split, the pattern and who is in which group.

    Raises:
        ValueError: real targets, or what `load` and `read_medmnist` refuse.
    """
    if name.endswith(".npz"):
        return read_medmnist(name)
    if name == "adult":
        return adult_like(ADULT_ROWS, ADULT_TEST, effect=strength, share=share, seed=seed)
    loaded = load(name, data_dir, seed=seed)
    if loaded.num_classes == 0:
        raise ValueError(f"{name} has real targets: the study compares classes")
    if name == "breast_cancer":
        return by_median(loaded, TEXTURE, "texture")
    return with_pattern(loaded, strength=strength, share=share, seed=seed)


def with_pattern(dataset: Dataset, *, strength: float, share: float, seed: int) -> Grouped:
    """Rows dealt out to two groups at random; a fixed Gaussian pattern is added to the inputs of the second.

    Labels have the same law in both groups, so a difference between them comes from the pattern and from their sizes.

    Args:
        dataset: images or rows of a table.
        strength: standard deviation of the pattern, in the unit of the inputs; 0 makes groups that no model can tell.
        share: of the second group, in (0, 1).
        seed: of the pattern and of who is in which group.
    """
    if not 0 < share < 1:
        raise ValueError(f"share of the second group must lie between 0 and 1, got {share}")
    generator = np.random.default_rng([seed, 1])
    pattern = strength * generator.standard_normal(dataset.train.inputs.shape[1:]).astype(np.float32)
    sides, groups = [], []
    for part in (dataset.train, dataset.test):
        count = len(part.targets)
        member = generator.permutation(count) < round(share * count)
        shape = (-1, *(1,) * (part.inputs.ndim - 1))
        sides.append(part._replace(inputs=part.inputs + member.reshape(shape) * pattern))
        groups.append(member.astype(np.int32))
    about = (
        f"Groups are synthetic: a fixed pattern of strength {strength:g} was added to {share:.0%} of the rows, drawn at random."
    )
    return Grouped(dataset._replace(train=sides[0], test=sides[1]), groups[0], groups[1], ("plain", "with pattern"), about)


def by_median(dataset: Dataset, column: int | None, what: str) -> Grouped:
    """Two groups: rows whose value is above the median of the training rows, and the others.

    Args:
        dataset: rows of a table, or images.
        column: of a table; None takes the mean over all inputs of a row.
        what: the value is called.
    """

    def values(part: Examples) -> Float[np.ndarray, " n"]:
        flat = np.asarray(part.inputs).reshape(len(part.targets), -1)
        return flat.mean(axis=1) if column is None else flat[:, column]

    middle = np.median(values(dataset.train))
    groups = [(values(part) > middle).astype(np.int32) for part in (dataset.train, dataset.test)]
    about = f"Groups: {what} above the median of the training rows, or not."
    return Grouped(dataset, groups[0], groups[1], (f"low {what}", f"high {what}"), about)


def adult_like(num_rows: int, num_test: int, *, effect: float, share: float = 1 / 3, seed: int) -> Grouped:
    """A synthetic table like Adult (age, education, hours, capital gain, group) whose law is known.

    With standardised columns, and `s` the group,

        log-odds(y = 1) = 0.6 age - 0.3 age^2 + 0.9 education + 0.6 hours + 0.8 gain + effect s - 0.5.

    Labels are drawn, so that no model can know all of them without having seen them.

    Args:
        num_rows, num_test: training and test rows.
        effect: of the second group, in log-odds.
        share: of the second group.
        seed: of everything.
    """
    generator = np.random.default_rng([seed, 2])
    count = num_rows + num_test
    age, education, hours = generator.standard_normal((3, count))
    gain = np.where(generator.random(count) < 0.1, generator.exponential(2.0, count), 0.0)
    gain = (gain - 0.2) / 0.87  # its mean and standard deviation
    groups = (generator.random(count) < share).astype(np.int32)
    odds = 0.6 * age - 0.3 * age**2 + 0.9 * education + 0.6 * hours + 0.8 * gain + effect * groups - 0.5
    targets = (generator.random(count) < 1 / (1 + np.exp(-odds))).astype(np.int32)
    inputs = np.stack([age, education, hours, gain, groups], axis=1).astype(np.float32)
    parts = [Examples(inputs[rows], targets[rows]) for rows in (slice(num_rows), slice(num_rows, None))]
    about = f"A synthetic table; being in the second group moves the log-odds of the label by {effect:g}."
    dataset = Dataset(parts[0], parts[1], 2, "adult")
    return Grouped(dataset, groups[:num_rows], groups[num_rows:], ("first group", "second group"), about)


def read_medmnist(path: str | Path) -> Grouped:
    """A file in the format of MedMNIST (Yang et al., 2023, doi 10.1038/s41597-022-01721-8); its `val` split is not used.

    Args:
        path: of an `.npz` file with `train_images` uint8 [n, h, w] or [n, h, w, 3], `train_labels` integers [n, 1], and the
            same for `test`. Groups are in `train_groups` and `test_groups`, integers [n] from 0 on, where somebody added
            them; else rows are grouped by how bright their images are.

    Raises:
        ValueError: arrays that are missing or of another form, several labels per image, volumes.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    needed = [f"{split}_{what}" for split in ("train", "test") for what in ("images", "labels")]
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}")
    train, test = (_images(path, split, arrays) for split in ("train", "test"))
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise ValueError(f"{path}: images of train and test differ: {train.inputs.shape[1:]} and {test.inputs.shape[1:]}")
    classes = int(max(train.targets.max(), test.targets.max())) + 1
    dataset = Dataset(train, test, max(classes, 2), Path(path).stem)
    given = [name for name in ("train_groups", "test_groups") if name in arrays]
    if not given:
        return by_median(dataset, None, "brightness")
    if len(given) == 1:
        raise ValueError(f"{path} has {given[0]} alone: add the groups of both splits, or of none")
    groups = [arrays[name].reshape(-1) for name in given]
    for name, values, part in zip(given, groups, (train, test), strict=True):
        if len(values) != len(part.targets) or not np.issubdtype(values.dtype, np.integer) or values.min() < 0:
            raise ValueError(f"{path}: {name} must hold an integer from 0 on for each of {len(part.targets)} rows")
    names = tuple(f"group {number}" for number in range(int(max(x.max() for x in groups)) + 1))
    return Grouped(dataset, groups[0].astype(np.int32), groups[1].astype(np.int32), names, "Groups are those of the file.")


def _images(path: str | Path, split: str, arrays: dict[str, np.ndarray]) -> Examples:
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise ValueError(
            f"{path}: {split}_images must be uint8 [n, h, w] or [n, h, w, 3], got {images.dtype}{list(images.shape)}; volumes "
            "are not read"
        )
    if labels.reshape(len(labels), -1).shape[1] != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{path}: {split}_labels must be one integer per image, got {labels.dtype}{list(labels.shape)}; choose one finding "
            "of a set with several"
        )
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(f"{path}: {split} has {len(images)} images and {len(labels)} labels")
    images = images[..., None] if images.ndim == 3 else images
    return Examples(images.astype(np.float32) / np.float32(255), labels.reshape(-1).astype(np.int32))
