"""Data sets as NumPy arrays: scikit-learn's digits and two of its tables, or labelled images from TensorFlow Datasets.

TensorFlow itself is never imported: prepared files are read through `as_data_source`.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from jaxunlearn import Examples

ROWS_AT_ONCE = 512
TABLES = ("breast_cancer", "diabetes")
PARTS = ("train", "test")


class Dataset(NamedTuple):
    """Images float32 [n, h, w, channels] or table rows float32 [n, features]; labels int32 [n] or real targets [n, 1]."""

    train: Examples
    test: Examples
    num_classes: int  # 0 for real targets
    name: str


def load(
    name: str,
    data_dir: str | None = None,
    *,
    scaling: Literal["unit", "standardise"] = "unit",
    max_rows: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Dataset:
    """Load a data set.

    Args:
        name: `digits` (1,797 images of 8x8x1 that ship with scikit-learn, split 4:1 by class), one of its tables
            `breast_cancer` (569 rows, 30 features, two classes) and `diabetes` (442 rows, 10 features, a real target),
            split 4:1 too, or a name from the TFDS catalogue such as `mnist` or `cifar10` whose `train` and `test` splits
            were prepared before.
        data_dir: where TFDS finds prepared data, by default its own `~/tensorflow_datasets`; not used for what ships
            with scikit-learn.
        scaling: `unit` maps pixels to [0, 1]; `standardise` then subtracts the mean and divides by the standard deviation
            of each channel over the training split. Columns of tables and real targets are always standardised. Those two
            numbers do depend on rows that may be forgotten later.
        max_rows: keep at most this many rows of each split, for a quick trial.
        seed: splits what ships with scikit-learn.
        progress: show a bar on stderr while files are read; only where stderr is a terminal.

    Raises:
        ValueError: unknown name or scaling, `max_rows` below 1, a split is missing or empty, or the rows are not images
            of one size with a label.
        RuntimeError: the data set is known but was not prepared, or not in a format that is read without TensorFlow.
    """
    if scaling not in ("unit", "standardise"):
        raise ValueError(f"scaling must be unit or standardise, got {scaling!r}")
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows must be at least 1, or None for all rows, got {max_rows}")
    if name in TABLES:
        train, test, num_classes = _table(name, max_rows, seed)
        return Dataset(train, test, num_classes, name)
    if name == "digits":
        train, test, num_classes = _digits(max_rows, seed)
    else:
        train, test, num_classes = _prepared(name, data_dir, max_rows, progress)
    if scaling == "standardise":
        mean = train.inputs.mean(axis=(0, 1, 2))
        deviation = np.maximum(train.inputs.std(axis=(0, 1, 2)), 1e-6)
        train, test = (part._replace(inputs=(part.inputs - mean) / deviation) for part in (train, test))
    return Dataset(train, test, num_classes, name)


def _digits(max_rows: int | None, seed: int) -> tuple[Examples, Examples, int]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    rows = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=seed, stratify=labels)
    inputs = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    train, test = (subset(Examples(inputs, labels.astype(np.int32)), part[:max_rows]) for part in rows)
    return train, test, 10


def _table(name: str, max_rows: int | None, seed: int) -> tuple[Examples, Examples, int]:
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    classifies = name == "breast_cancer"
    loaded: Any = (datasets.load_breast_cancer if classifies else datasets.load_diabetes)(return_X_y=True)
    inputs, targets = loaded
    targets = targets.astype(np.int32) if classifies else targets[:, None]
    rows = train_test_split(np.arange(len(targets)), test_size=0.2, random_state=seed, stratify=targets if classifies else None)
    parts = [Examples(inputs[part[:max_rows]], targets[part[:max_rows]]) for part in rows]

    def standardised(values: np.ndarray, like: np.ndarray) -> np.ndarray:
        return ((values - like.mean(axis=0)) / np.maximum(like.std(axis=0), 1e-6)).astype(np.float32)

    train, test = (
        Examples(
            standardised(part.inputs, parts[0].inputs),
            part.targets if classifies else standardised(part.targets, parts[0].targets),
        )
        for part in parts
    )
    return train, test, 2 if classifies else 0


class OnDisk(NamedTuple):
    """The splits of a prepared data set where they lie, for `jaxunlearn.sources`."""

    train: Any  # rows by their numbers
    test: Any
    shape: tuple[int, ...]  # of an image
    num_classes: int


def on_disk(name: str, data_dir: str | None = None) -> OnDisk:
    """Labelled images from TensorFlow Datasets, of which no row is read before it is asked for; `as_example` parses them.

    Raises:
        ValueError, RuntimeError: as `load`.
    """
    builder = _builder(name, data_dir)
    features = builder.info.features
    train, test = (_split(builder, part) for part in PARTS)
    return OnDisk(train, test, features["image"].shape, features["label"].num_classes)


def as_example(record: Any) -> Examples:
    """One record as an image float32 in [0, 1] and its label int32."""
    return Examples(np.asarray(record["image"], np.float32) / np.float32(255), np.int32(record["label"]))


def _prepared(name: str, data_dir: str | None, max_rows: int | None, progress: bool) -> tuple[Examples, Examples, int]:
    builder = _builder(name, data_dir)
    features, parts = builder.info.features, []
    for split in PARTS:
        count = builder.info.splits[split].num_examples
        rows = count if max_rows is None else min(max_rows, count)
        source = _split(builder, f"{split}[:{rows}]")
        parts.append(_read(source, rows, features["image"].shape, f"{name} {split}", progress))
    return *parts, features["label"].num_classes


def _builder(name: str, data_dir: str | None) -> Any:
    """A prepared set of labelled images with both splits."""
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(
            f"unknown data set {name!r}: use 'digits', {', '.join(map(repr, TABLES))}, or a name from the TFDS catalogue "
            "such as 'mnist' or 'cifar10'"
        ) from None
    splits = builder.info.splits
    if not splits:
        raise RuntimeError(
            f"there is no prepared {name} at {builder.data_path}: say where it is with data_dir (--data-dir), or prepare it "
            f"once with tfds.builder({name!r}, data_dir=..., file_format='array_record').download_and_prepare(), "
            "for which some data sets need TensorFlow"
        )
    missing = [split for split in PARTS if split not in splits or splits[split].num_examples == 0]
    if missing:
        raise ValueError(f"{name} has no rows in {' and '.join(missing)}; its splits are {', '.join(splits)}")
    _check_features(name, builder.info.features)
    return builder


def _split(builder: Any, split: str) -> Any:
    try:
        return builder.as_data_source(split)
    except NotImplementedError as error:
        raise RuntimeError(
            f"{builder.name} at {builder.data_path} is stored in a format that only TensorFlow reads: "
            "prepare it in another folder with file_format='array_record'"
        ) from error


def _check_features(name: str, features: Any) -> None:
    import tensorflow_datasets as tfds

    kinds: dict[str, type] = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    for feature, kind in kinds.items():
        if feature not in features or not isinstance(features[feature], kind):
            raise ValueError(
                f"{name} has no feature '{feature}' of the kind {kind.__name__}, so it is not a set of labelled images; "
                f"its features are {', '.join(features)}"
            )
    image = features["image"]
    if None in image.shape or np.dtype(image.np_dtype) != np.uint8:
        raise ValueError(f"{name} must hold uint8 images of one size, got {image.np_dtype} of shape {image.shape}")


def _read(source: Any, rows: int, shape: tuple[int, ...], what: str, progress: bool) -> Examples:
    inputs, targets = np.empty((rows, *shape), np.uint8), np.empty(rows, np.int32)
    console = Console(stderr=True)
    starts = range(0, rows, ROWS_AT_ONCE)
    for start in track(
        starts, f"reading {what}", console=console, transient=True, disable=not (progress and console.is_terminal)
    ):
        block = range(start, min(start + ROWS_AT_ONCE, rows))
        for row, record in zip(block, source.__getitems__(block), strict=True):
            inputs[row], targets[row] = record["image"], record["label"]
    if targets.min() < 0:
        raise ValueError(f"{what} holds rows without a label (label -1), so it cannot be used for classification")
    return Examples(inputs.astype(np.float32) / np.float32(255), targets)


def subset(examples: Examples, rows: Any) -> Examples:
    """Some rows of examples, by number or mask."""
    return Examples(examples.inputs[rows], examples.targets[rows])


def with_label_noise(examples: Examples, fraction: float, num_classes: int, seed: int) -> tuple[Examples, np.ndarray]:
    """Give a random fraction of the rows a wrong label, uniform over the other classes.

    Args:
        examples: targets are integer labels, [n].
        fraction: of the rows, in [0, 1]; `round(fraction * n)` rows are changed.
        num_classes: labels run from 0 to `num_classes - 1`.
        seed: which rows, and which labels.

    Returns:
        The examples with new targets, and a mask Bool[n] of the changed rows.

    Raises:
        ValueError: a fraction outside [0, 1], or fewer than two classes.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    if num_classes < 2:
        raise ValueError(f"a wrong label needs at least two classes, got num_classes={num_classes}")
    targets = np.asarray(examples.targets)
    generator = np.random.default_rng(seed)
    flipped = np.zeros(len(targets), bool)
    flipped[generator.permutation(len(targets))[: round(fraction * len(targets))]] = True
    shift = generator.integers(1, num_classes, len(targets))
    noisy = np.where(flipped, (targets + shift) % num_classes, targets).astype(targets.dtype)
    return examples._replace(targets=noisy), flipped
