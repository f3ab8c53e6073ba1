"""FUNU, a filter in front of a method (Li, Ye, Hu: FUNU: boosting machine unlearning efficiency by filtering unnecessary
unlearning, WWW 2025, arXiv 2501.16614): a row that resembles many rows of its class that stay is not unlearned.

    S_ij = cos(f_i, f_j),   theta_c = mean_{i,j in c} S_ij,   a_c = mean_{i in c} #{j in c : S_ij <= theta_c}
    keep row i  iff  #{j retained : y_j = y_i, S_ij >= theta} <= a,      theta = mean_c theta_c,   a = mean_c a_c

f are features, and c stands for the typical rows of a class, those that a weak model gets right. The released code counts pairs
*below* the threshold for a and neighbours *above* it for a row; `mode="release"` does that, `mode="consistent"` counts above it
in both. The code averages over the first five classes only, whatever their number; this takes all. Its features are those of
the tenth epoch, which ends its training of CIFAR; here they are those of the model at hand.
"""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxunlearn import checks, sampling
from jaxunlearn.evaluation import class_labels, map_rows, sum_rows
from jaxunlearn.heads.moments import features_of_rows
from jaxunlearn.loop.compose import Select
from jaxunlearn.loop.damage import classes_of
from jaxunlearn.losses import unit_rows
from jaxunlearn.types import Data, ForgetRequest, Model, Variables

Mode: TypeAlias = Literal["release", "consistent"]
TIE = 1e-5  # similarities and counts that differ by less are equal: rounding must not decide


def funu(
    model: Model,
    typical: Bool[Array, " n"],
    *,
    mode: Mode = "release",
    layer: str = "penultimate",
    chunk: int = 1024,
) -> Select:
    """Leave rows out of a request that have many neighbours of their class in the retain set.

    **It gives no guarantee.** Rows that are left out stay in the training set and in the retain set, so the model goes on
    using them, and whoever asked must be told: `stats["skipped"]` of `jaxunlearn.filtered` is 1 in their slots. Whoever can
    add rows to the training set can plant near-duplicates of somebody else's, which are then never unlearned. A row becomes
    necessary once its neighbours leave: put all requests so far together (`jaxunlearn.merge`) rather than filtering each by
    itself; `jaxunlearn.streamed` looks at a row once, and never again. A request of which nothing is kept ends as
    `Status.EMPTY_REQUEST`, with the model as it was.

    Only present rows of the same class count; a row whose class leaves as a whole is always kept. So is every row if there is
    no typical one, and if prepared features belong to other weights. Similarities are computed `chunk` rows at a time, never
    for all pairs at once: about `sum_c n_c^2` for the thresholds, which requests of one batch share, and `k n` for a request.

    Args:
        model: a classifier with integer targets that returns features.
        typical: Bool[n], the training rows that a weak model classifies correctly; published: after one epoch.
        mode: "release" or "consistent", see the module. Where similarities are symmetric about their mean, both count half of
            the rows of a class; where a class is tight but for a few rows, "release" leaves out almost all of it, and
            "consistent" hardly any once many of its rows leave together.
        layer: which of `Outputs.features`; those in `Data.extra["features"]` are read if they are there.
        chunk: rows that are compared, or go through the model, together.

    Returns:
        A `Select` for `jaxunlearn.filtered`: `(variables, data, request, key) -> Bool[k]`, True where a slot is kept, and in
        slots that hold no usable row. The key is not used.

    Raises:
        ValueError: an unknown mode; when it is called, `typical` of another shape, features that are not there, targets that
            are not classes.

    References:
        Li, Ye, Hu: FUNU: boosting machine unlearning efficiency by filtering unnecessary unlearning, WWW 2025,
        arXiv 2501.16614.

    Example:
        >>> weak = jaxunlearn.iterate(jaxunlearn.retrain(model, optax.sgd(0.1)), num_steps=4, batch_size=16)
        >>> weak_variables = weak(variables, data, jaxunlearn.empty_request(), key).variables
        >>> typical = jnp.argmax(model.forward(weak_variables, data.train.inputs).logits, axis=1) == data.train.targets
        >>> unlearn = jaxunlearn.filtered(jaxunlearn.funu(model, typical), jaxunlearn.output_perturbation(model, sigma=0.1))
        >>> skipped = jax.jit(unlearn)(variables, data, request, key).stats["skipped"]
        >>> bool(skipped.sum() <= request.weights.sum())
        True
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    checks.require_count("chunk", chunk)

    def select(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Bool[Array, " k"]:
        del key
        checks.check_variables(variables)
        if jnp.shape(typical) != jnp.shape(data.present):
            raise ValueError(f"funu needs one entry of typical per row, {jnp.shape(data.present)}, got {jnp.shape(typical)}")
        labels = jnp.asarray(class_labels(data.train.targets)).astype(jnp.int32)  # those of few bits cannot hold c
        count = classes_of(model, variables, data)
        if count is None:
            raise ValueError("funu compares rows of one class, and this model's targets are not classes")
        present = jnp.asarray(data.present) > 0
        features, stale = features_of_rows(model, variables, data, layer, chunk=chunk)
        units = unit_rows(jnp.where(present[:, None], features, 0))
        known = present & (labels >= 0) & (labels < count)
        threshold, enough = thresholds(units, labels, known & (jnp.asarray(typical) > 0), count, mode, chunk)
        usable = sampling.usable_slots(data, request)
        near = neighbours(units, labels, known, data, request, threshold, chunk)
        return ~usable | (near <= enough * (1 + TIE)) | stale

    return select


def thresholds(
    units: Float[Array, "n D"],
    labels: Int[Array, " n"],
    counted: Bool[Array, " n"],
    num_classes: int,
    mode: Mode,
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The similarity from which rows are neighbours, and how many neighbours a row may have and still be kept.

    Args:
        units: features of length 1, or 0.
        labels: within range where a row is counted.
        counted: the typical rows.
        num_classes, mode, chunk: as of `funu`.

    Returns:
        `theta` and `a`, Float[], means over the classes that have a typical row; without one, a is inf.
    """
    own = jnp.where(counted, labels.astype(jnp.int32), num_classes)  # labels of few bits cannot hold c
    sizes = jnp.zeros(num_classes, units.dtype).at[own].add(1, mode="drop")
    means = jnp.zeros((num_classes, units.shape[1]), units.dtype).at[own].add(units, mode="drop")
    means /= jnp.maximum(sizes, 1)[:, None]
    similarity = jnp.sum(means**2, axis=1)  # the mean over all pairs
    order = jnp.argsort(own)  # rows of a class follow each other, so that most pairs of blocks need not be compared
    sorted_units, sorted_own = units[order], own[order]
    limits = jnp.append(similarity, 0)[sorted_own]
    rows, size = units.shape[0], min(chunk, units.shape[0])
    first, last = (jnp.searchsorted(sorted_own, sorted_own, side=side) for side in ("left", "right"))

    def pairs(part):
        part_units, part_own, part_limits, part_first, part_last = part
        begin, end = jnp.min(part_first), jnp.max(jnp.where(part_own < num_classes, part_last, 0))

        def add(block, total):
            start = jnp.minimum(block * size, rows - size)
            others = jax.lax.dynamic_slice_in_dim(sorted_units, start, size)
            theirs = jax.lax.dynamic_slice_in_dim(sorted_own, start, size)
            fresh = start + jnp.arange(size) >= block * size  # the last block reaches back over the one in front of it
            similar = part_units @ others.T - part_limits[:, None]
            hit = similar <= TIE if mode == "release" else similar >= -TIE
            return total + jnp.sum(hit & fresh & (part_own[:, None] == theirs), axis=1, dtype=jnp.int32)

        return jax.lax.fori_loop(begin // size, -(-end // size), add, jnp.zeros(part_own.shape, jnp.int32))

    counts = map_rows(pairs, (sorted_units, sorted_own, limits, first, last), chunk=size).astype(units.dtype)
    enough = jnp.zeros_like(similarity).at[sorted_own].add(counts, mode="drop") / jnp.maximum(sizes, 1)
    there = (sizes > 0).astype(units.dtype)
    return sampling.masked_mean(similarity, there, empty=jnp.inf), sampling.masked_mean(enough, there, empty=jnp.inf)


def neighbours(
    units: Float[Array, "n D"],
    labels: Int[Array, " n"],
    counted: Bool[Array, " n"],
    data: Data,
    request: ForgetRequest,
    threshold: Float[Array, ""],
    chunk: int,
) -> Int[Array, " k"]:
    """How many counted rows of the retain set, of the class of each slot, are at least so similar."""
    rows = jnp.arange(units.shape[0], dtype=jnp.int32)
    asked = jnp.where(sampling.usable_slots(data, request), sampling.row_numbers(request), 0)
    own, label = units[asked], labels[asked]
    leaving = sampling.asked_rows(data, request)

    def add(part, weights):
        others, theirs, numbers = part
        near = (own @ others.T >= threshold - TIE) & (label[:, None] == theirs)
        return jnp.sum(near & (weights > 0) & ~sampling.is_among(leaving, numbers), axis=1, dtype=jnp.int32)

    return sum_rows(add, (units, labels, rows), counted.astype(jnp.float32), chunk=chunk)
