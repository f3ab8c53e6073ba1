"""Learners that see their rows through sums alone.

All of them keep cross products, `total[g] = sum_{i in group g} left(row_i) right(row_i)'`, from which the parameters follow;
groups are the classes, or all rows are one. To take a row out is to take its part out of the sum (Cao, Yang: Towards making
systems forget with machine unlearning, IEEE S&P 2015).

Inputs whose means are far larger than their spread lose the digits of their variances in any such sum, before and after a
removal: take a constant off them that does not depend on the rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxunlearn import checks, losses
from jaxunlearn.summation.features import flat_rows, wide
from jaxunlearn.types import ExampleLoss, Examples, Model, Outputs, Scalar, Variables

NEVER = -1e30  # logit of a class that has no rows
STEADY = 256  # units of rounding by which features of one row may differ from call to call, where they do not say themselves


class Learner(NamedTuple):
    """A learner as functions; all of them run in float64."""

    name: str
    left: Callable[[Examples], Float[Array, "b p"]]
    right: Callable[[Examples], Float[Array, "b q"]]
    whole: Callable[[Float[Array, "g p q"]], dict[str, Array]]  # total -> parameters
    predict: Callable[[PyTree, PyTree], Array]  # (parameters, inputs) -> logits [b, c], or [b] and [b, m] for real targets
    loss: ExampleLoss
    num_classes: int | None = None  # of integer targets
    groups: int = 1  # 1, or the classes, whose sums are kept apart
    own: Callable[[Float[Array, "p q"]], dict[str, Array]] | None = None  # parameters of a group that follow from its sum alone
    # by how much left and right of a row may differ from call to call, and the largest of their entries; None for not at all
    slack: Callable[[Examples], tuple[Float[Array, " b"], Float[Array, " b"]]] | None = None

    def model(self) -> Model:
        """The learner's predictions as a `Model`."""

        def forward(variables: Variables, inputs: PyTree, *, train: bool = False, key: Any = None) -> Outputs:
            return Outputs(self.predict(jax.tree.map(wide, variables.params), inputs), {}, variables.state)

        return Model(forward, self.loss)

    def solve(self, total: Float[Array, "g p q"]) -> dict[str, Array]:
        """All parameters."""
        return self.whole(total) | ({} if self.own is None else jax.vmap(self.own)(total))

    def solve_again(
        self, params: dict[str, Array], total: Float[Array, "g p q"], changed: Bool[Array, " g"]
    ) -> dict[str, Array]:
        """All parameters, from those that belong to a total of which some groups have changed since; others cost nothing."""
        own = self.own
        if own is None:
            return self.whole(total)

        def one(group: tuple) -> dict[str, Array]:
            sums, known, is_new = group
            return jax.lax.cond(is_new, own, lambda _: {name: known[name] for name in form}, sums)

        form = jax.eval_shape(own, total[0])
        return self.whole(total) | jax.lax.map(one, (total, {name: params[name] for name in form}, changed))

    def group(self, rows: Examples) -> Int[Array, " b"]:
        """The group of every row."""
        if self.groups == 1:
            return jnp.zeros(jnp.shape(jax.tree.leaves(rows)[0])[0], jnp.int32)
        return _labels(rows, self.groups)[0]


def ridge(*, penalty: Scalar = 1.0, features: Callable[[Any], Float[Array, "b d"]] | None = None) -> Learner:
    """Least squares with `penalty` times the squared weights, which the intercept is free of; targets Float[n] or [n, m].

    Args:
        penalty: positive, for the sum over rows; may be traced.
        features: of the inputs, e.g. `random_features`; by default the inputs as vectors. Floating-point inputs reach them in
            float64. Features of a row may differ a little with the rows beside it; where they have no method
            `slack(inputs) -> Float[b]` that says by how much, 256 roundings of their dtype are allowed for. Those in float32
            are too coarse to be taken out of a sum again, and every removal sums anew.

    Returns:
        A `Learner` with parameters `weights` [d, m] and `intercept` [m]. Integer targets are refused: use `one_hot` targets to
        fit classes by least squares.

    Raises:
        ValueError: a penalty that is not positive.

    Example:
        >>> learner = jaxunlearn.summation.ridge(penalty=0.1)
        >>> rows = jaxunlearn.training_data(x, x[:, 0])
        >>> jaxunlearn.summation.fit(learner, rows).params["weights"].shape
        (4, 1)
    """
    checks.check_range("penalty", penalty, low=1e-300)
    mapped = flat_rows if features is None else lambda inputs: wide(features(jax.tree.map(_wide_inexact, inputs)))

    def with_one(examples: Examples) -> jax.Array:
        return _with_one(mapped(examples.inputs))

    def right(examples: Examples) -> jax.Array:
        checks.require_floating(examples.targets, "ridge fits real targets")
        targets = wide(examples.targets)
        return jnp.concatenate([with_one(examples), targets.reshape(len(targets), -1)], axis=1)

    def slack(examples: Examples) -> tuple[jax.Array, jax.Array]:
        inputs = jax.tree.map(_wide_inexact, examples.inputs)
        found = features(inputs)  # type: ignore[misc]
        entries = jnp.max(jnp.abs(wide(found)), axis=1, initial=1)
        own = getattr(features, "slack", None)
        wrong = STEADY * float(jnp.finfo(found.dtype).eps) / 2 * entries if own is None else wide(own(inputs))
        return wrong, jnp.maximum(entries, jnp.max(jnp.abs(right(examples)), axis=1))

    def solve(total: jax.Array) -> Any:
        total = total[0]
        width = total.shape[0]
        shrink = penalty * jnp.eye(width).at[0, 0].set(0)
        found = jax.scipy.linalg.solve(total[:, :width] + shrink, total[:, width:], assume_a="pos")
        return {"weights": found[1:], "intercept": found[0]}

    def predict(params: Any, inputs: Any) -> jax.Array:
        found = mapped(inputs) @ params["weights"] + params["intercept"]
        return found[:, 0] if found.shape[1] == 1 else found

    return Learner(
        "ridge", with_one, right, solve, predict, losses.squared_error, slack=None if features is None else slack
    )  # fmt: skip


def nearest_mean(num_classes: int) -> Learner:
    """The class whose mean is nearest; logits are minus half the squared distances. Parameters: `means` [c, d].

    Args:
        num_classes: c.

    Returns:
        A `Learner` for integer targets. A class without rows is never predicted.

    Example:
        >>> fitted = jaxunlearn.summation.fit(jaxunlearn.summation.nearest_mean(3), data)
        >>> fitted.params["means"].shape
        (3, 4)
    """

    def solve(total: jax.Array) -> Any:
        counts, means = _means(total[:, 0])
        return {"means": means, "offset": jnp.where(counts > 0.5, jnp.zeros_like(counts), NEVER)}

    def predict(params: Any, inputs: Any) -> jax.Array:
        flat = flat_rows(inputs)
        return -jnp.sum((flat[:, None] - params["means"]) ** 2, axis=2) / 2 + params["offset"]

    return _classifier("nearest mean", num_classes, _with_one, solve, predict)


def gaussian_naive_bayes(num_classes: int, *, smoothing: float = 1e-9) -> Learner:
    """Independent normal inputs in every class. Parameters: `means`, `variances` [c, d] and `prior` [c], logarithms.

    Args:
        num_classes: c.
        smoothing: this share of the largest variance of an input over all rows is added to all variances.

    Returns:
        A `Learner` for integer targets.

    Example:
        >>> fitted = jaxunlearn.summation.fit(jaxunlearn.summation.gaussian_naive_bayes(3), data)
        >>> fitted.params["variances"].shape
        (3, 4)
    """

    def right(flat: jax.Array) -> jax.Array:
        return jnp.concatenate([_with_one(flat), flat**2], axis=1)

    def solve(total: jax.Array) -> Any:
        total = total[:, 0]
        width = (total.shape[1] - 1) // 2
        counts, means = _means(total[:, : 1 + width])
        squares = total[:, 1 + width :] / jnp.maximum(counts, 1)[:, None]
        whole = jnp.sum(total, axis=0) / jnp.maximum(jnp.sum(counts), 1)
        size = whole[1 + width :]
        largest = jnp.max(jnp.maximum(size - whole[1 : 1 + width] ** 2, 1e-12 * size))  # below that lies rounding
        largest = jnp.where(largest > 0, largest, 1)
        return {
            "means": means,
            "variances": jnp.maximum(squares - means**2, 0) + smoothing * largest,
            "prior": _log_shares(counts),
        }

    def predict(params: Any, inputs: Any) -> jax.Array:
        flat = flat_rows(inputs)
        apart = (flat[:, None] - params["means"]) ** 2 / params["variances"]
        return params["prior"] - jnp.sum(apart + jnp.log(2 * jnp.pi * params["variances"]), axis=2) / 2

    return _classifier("Gaussian naive Bayes", num_classes, right, solve, predict)


def multinomial_naive_bayes(num_classes: int, *, smoothing: Scalar = 1.0) -> Learner:
    """Counts drawn independently in every class. Parameters: `log_shares` [c, d] and `prior` [c], logarithms.

    Args:
        num_classes: c.
        smoothing: added to every count, positive; may be traced.

    Returns:
        A `Learner` for integer targets and inputs that are at least 0.

    Raises:
        ValueError: a smoothing that is not positive.

    Example:
        >>> counts = jaxunlearn.training_data(jnp.abs(x), data.train.targets)
        >>> jaxunlearn.summation.fit(jaxunlearn.summation.multinomial_naive_bayes(3), counts).params["log_shares"].shape
        (3, 4)
    """
    checks.check_range("smoothing", smoothing, low=1e-300)

    def solve(total: jax.Array) -> Any:
        sums = total[:, 0, 1:] + smoothing
        shares = sums / jnp.sum(sums, axis=1, keepdims=True)
        return {"log_shares": jnp.log(shares), "prior": _log_shares(total[:, 0, 0])}

    def predict(params: Any, inputs: Any) -> jax.Array:
        return flat_rows(inputs) @ params["log_shares"].T + params["prior"]

    return _classifier("multinomial naive Bayes", num_classes, _with_one, solve, predict)


def linear_discriminant(num_classes: int, *, shrinkage: Scalar = 1e-6) -> Learner:
    """Normal inputs with one covariance for all classes. Parameters: `weights` [d, c] and `intercept` [c].

    Args:
        num_classes: c.
        shrinkage: in [0, 1], towards the mean variance times the identity; may be traced.

    Returns:
        A `Learner` for integer targets.

    Raises:
        ValueError: a shrinkage outside [0, 1].

    Example:
        >>> fitted = jaxunlearn.summation.fit(jaxunlearn.summation.linear_discriminant(3), data)
        >>> fitted.params["weights"].shape
        (4, 3)
    """
    checks.check_range("shrinkage", shrinkage, low=0, high=1)

    def left(examples: Examples) -> jax.Array:
        return jnp.concatenate([_one_hot(examples, num_classes), flat_rows(examples.inputs)], axis=1)

    def solve(total: jax.Array) -> Any:
        total = total[0]
        counts, means = _means(total[:num_classes])
        rows = jnp.maximum(jnp.sum(counts), 1)
        covariance = _shrunk(total[num_classes:, 1:] / rows, (means * counts[:, None] / rows).T @ means, shrinkage)
        weights = jax.scipy.linalg.solve(covariance, means.T, assume_a="pos")
        return {"weights": weights, "intercept": _log_shares(counts) - jnp.sum(means.T * weights, axis=0) / 2}

    def predict(params: Any, inputs: Any) -> jax.Array:
        return flat_rows(inputs) @ params["weights"] + params["intercept"]

    return Learner(
        "linear discriminant", left, lambda rows: _with_one(flat_rows(rows.inputs)), solve, predict, losses.cross_entropy,
        num_classes,
    )  # fmt: skip


def quadratic_discriminant(num_classes: int, *, shrinkage: Scalar = 1e-3) -> Learner:
    """Normal inputs with a covariance for every class. Parameters: `means` [c, d], `precisions` [c, d, d], `volumes` and
    `prior` [c], logarithms.

    Args:
        num_classes: c.
        shrinkage: of every covariance, in [0, 1], as in `linear_discriminant`.

    Returns:
        A `Learner` for integer targets.

    Raises:
        ValueError: a shrinkage outside [0, 1].

    Example:
        >>> fitted = jaxunlearn.summation.fit(jaxunlearn.summation.quadratic_discriminant(3), data)
        >>> fitted.params["precisions"].shape
        (3, 4, 4)
    """
    checks.check_range("shrinkage", shrinkage, low=0, high=1)

    def own(total: jax.Array) -> Any:
        count = jnp.maximum(total[0, 0], 1)
        mean = total[0, 1:] / count
        factor = jnp.linalg.cholesky(_shrunk(total[1:, 1:] / count, mean[:, None] * mean, shrinkage))
        precision = jax.scipy.linalg.cho_solve((factor, True), jnp.eye(factor.shape[0]))
        return {"means": mean, "precisions": precision, "volumes": jnp.sum(jnp.log(jnp.diag(factor)))}

    def predict(params: Any, inputs: Any) -> jax.Array:
        apart = flat_rows(inputs)[:, None] - params["means"]
        far = jnp.einsum("bci,cij,bcj->bc", apart, params["precisions"], apart) / 2
        return params["prior"] - params["volumes"] - far

    return _classifier(
        "quadratic discriminant", num_classes, _with_one, lambda total: {"prior": _log_shares(total[:, 0, 0])}, predict,
        _with_one, own,
    )  # fmt: skip


# What they share


def _classifier(
    name: str, num_classes: int, right: Callable[[jax.Array], jax.Array], whole: Callable, predict: Callable,
    left: Callable[[jax.Array], jax.Array] = lambda flat: jnp.ones((flat.shape[0], 1), flat.dtype), own: Callable | None = None,
) -> Learner:  # fmt: skip
    """A learner of sums over the rows of every class."""
    checks.require_count("num_classes", num_classes, least=2)

    def known(rows: Examples) -> jax.Array:
        return jnp.where(_labels(rows, num_classes)[1][:, None], left(flat_rows(rows.inputs)), jnp.nan)

    return Learner(
        name,
        known,
        lambda rows: right(flat_rows(rows.inputs)),
        whole,
        predict,
        losses.cross_entropy,
        num_classes,
        num_classes,
        own,
    )


def _with_one(flat: Float[Array, "b d"]) -> Float[Array, "b e"]:
    return jnp.concatenate([jnp.ones((flat.shape[0], 1), flat.dtype), flat], axis=1)


def _wide_inexact(values: Any) -> Array:
    values = jnp.asarray(values)
    return wide(values) if jnp.issubdtype(values.dtype, jnp.inexact) else values


def _labels(examples: Examples, num_classes: int) -> tuple[Int[Array, " b"], Array]:
    """Classes, and whether they are any; a row whose label is none makes its sum NaN, which does not go unnoticed."""
    targets = jnp.asarray(examples.targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.ndim != 1:
        raise ValueError(f"expected one integer class per row, got targets {targets.dtype}{list(targets.shape)}")
    labels = targets.astype(jnp.int32)
    return jnp.clip(labels, 0, num_classes - 1), (labels >= 0) & (labels < num_classes)


def _one_hot(examples: Examples, num_classes: int) -> Float[Array, "b c"]:
    labels, known = _labels(examples, num_classes)
    return jnp.where(known[:, None], wide(jax.nn.one_hot(labels, num_classes)), jnp.nan)


def _means(total: Float[Array, "c e"]) -> tuple[Float[Array, " c"], Float[Array, "c d"]]:
    """Counts and means of classes from sums of 1 and x; 0 for a class without rows."""
    counts = total[:, 0]
    return counts, total[:, 1:] / jnp.maximum(counts, 1)[:, None]


def _log_shares(counts: Float[Array, " c"]) -> Float[Array, " c"]:
    """Logarithms of the shares of rows; NEVER for a class without any, so that parameters stay finite."""
    there = counts > 0.5
    return jnp.where(there, jnp.log(jnp.where(there, counts, 1) / jnp.maximum(jnp.sum(counts), 1)), NEVER)


def _shrunk(moments: Float[Array, "d d"], centre: Float[Array, "d d"], shrinkage: Scalar) -> Float[Array, "d d"]:
    """The covariance `moments - centre`, shrunk; with a little of the second moments, below which lies nothing but rounding."""
    width, covariance = moments.shape[0], moments - centre
    size = jnp.trace(moments) / width
    floor = 1e-12 * jnp.where(size > 0, size, 1)
    return (1 - shrinkage) * covariance + (shrinkage * jnp.trace(covariance) / width + floor) * jnp.eye(width)
