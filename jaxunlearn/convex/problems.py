"""L2-regularised losses of linear scores, with the constants that bounds are made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxunlearn import checks
from jaxunlearn.types import Examples, Model, Outputs, Variables


class Problem(NamedTuple):
    """A convex loss of linear scores `z = x W`, with the constants that bounds are made of.

    Make one with `ridge`, `logistic` or `softmax`. Constants are suprema over all scores and labels.
    """

    name: str
    l2: float
    num_outputs: int  # c
    loss: Callable[[jax.Array, jax.Array], jax.Array]  # (scores [b, c], targets [b, ...]) -> [b]
    slope: Callable[[jax.Array, jax.Array], jax.Array]  # gradient in the scores, [b, c]
    curvature: Callable[[jax.Array], jax.Array]  # second derivative in the scores, [b, c, c]
    curvature_root: Callable[[jax.Array], jax.Array]  # R [b, c, c] with R R' = curvature
    max_slope: float  # of the Euclidean norm
    max_curvature: float  # of the spectral norm
    curvature_lipschitz: float  # of the curvature, in the spectral norm; 0 for a quadratic

    @property
    def model(self) -> Model:
        """The problem as a `Model` with weights `{"kernel": [d, c]}`, for audits and for methods that are not convex."""

        def forward(variables: Variables, inputs: PyTree, /, *, train: bool = False, key: Any = None) -> Outputs:
            check_kernel(self, variables.params, inputs.shape[-1])
            scores = inputs @ variables.params["kernel"]
            if self.name == "logistic":
                scores = jnp.concatenate([jnp.zeros_like(scores), scores], axis=1)  # the logits of two classes
            return Outputs(scores[:, 0] if self.name == "ridge" and self.num_outputs == 1 else scores)

        def loss(outputs: Outputs, examples: Examples) -> jax.Array:
            if self.name == "ridge":
                return 0.5 * jnp.sum(jnp.reshape((outputs.logits - examples.targets) ** 2, (examples.targets.shape[0], -1)), 1)
            labels = examples.targets.astype(jnp.int32)  # bool ones are no indices
            return optax.losses.softmax_cross_entropy_with_integer_labels(outputs.logits, labels)

        def regularizer(params: PyTree) -> jax.Array:
            return self.l2 / 2 * jnp.sum(params["kernel"] ** 2)

        return Model(forward, loss, None, regularizer=regularizer)


def check_kernel(problem: Problem, params: PyTree, width: int) -> None:
    """ValueError unless the weights are those of a problem on rows of that many numbers."""
    expected = (width, problem.num_outputs)
    if not isinstance(params, dict) or set(params) != {"kernel"} or jnp.shape(params["kernel"]) != expected:
        raise ValueError(
            f"a {problem.name} problem has params {{'kernel': {list(expected)}}}, as convex.fit makes them; "
            f"got {jax.tree.map(jnp.shape, params)}"
        )


def ridge(l2: float, num_outputs: int = 1) -> Problem:
    """Least squares, `1/2 ||z - y||^2`, for real targets [n] or [n, num_outputs].

    Args:
        l2: weight of the penalty `l2 / 2 ||W||^2` per row, above 0.
        num_outputs: c.

    Returns:
        A `Problem`.

    Raises:
        ValueError: `l2` is not positive and finite.

    Example:
        >>> problem = jaxunlearn.convex.ridge(0.1)
        >>> problem.loss(jnp.array([[3.0]]), jnp.array([1.0])).tolist()
        [2.0]
    """

    def residual(scores, targets):
        return scores - targets.reshape(scores.shape)

    def identity(scores):
        return jnp.broadcast_to(jnp.eye(num_outputs, dtype=scores.dtype), (scores.shape[0], num_outputs, num_outputs))

    return Problem(
        "ridge",
        _positive(l2),
        num_outputs,
        loss=lambda z, y: 0.5 * jnp.sum(residual(z, y) ** 2, axis=1),
        slope=residual,
        curvature=identity,
        curvature_root=identity,
        max_slope=np.inf,
        max_curvature=1.0,
        curvature_lipschitz=0.0,
    )


def logistic(l2: float) -> Problem:
    """Two classes, `log(1 + exp(-s z))` with `s = 2 y - 1`, for integer or bool targets 0 and 1.

    Its third derivative is at most `1 / (6 sqrt 3) = 0.096` (at `z = log(2 + sqrt 3)`), less than the 1/4 in use elsewhere.

    Args:
        l2: weight of the penalty `l2 / 2 ||W||^2` per row, above 0.

    Returns:
        A `Problem` of one output.

    Raises:
        ValueError: `l2` is not positive and finite.

    Example:
        >>> problem = jaxunlearn.convex.logistic(0.1)
        >>> round(float(problem.loss(jnp.zeros((1, 1)), jnp.array([1]))[0]), 4)
        0.6931
    """

    def sign(z, y):
        return (2 * y.astype(z.dtype) - 1)[:, None]  # unsigned and bool labels have no -1

    def spread(z):
        return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)

    return Problem(
        "logistic",
        _positive(l2),
        1,
        loss=lambda z, y: jax.nn.softplus(-sign(z, y) * z)[:, 0],
        slope=lambda z, y: -sign(z, y) * jax.nn.sigmoid(-sign(z, y) * z),
        curvature=lambda z: spread(z)[:, :, None],
        curvature_root=lambda z: jnp.sqrt(spread(z))[:, :, None],
        max_slope=1.0,
        max_curvature=0.25,
        curvature_lipschitz=1 / (6 * 3**0.5),
    )


def softmax(l2: float, num_classes: int) -> Problem:
    """Softmax regression, `-log softmax(z)_y`, for integer targets from 0 to `num_classes - 1`.

    Args:
        l2: weight of the penalty `l2 / 2 ||W||^2` per row, above 0.
        num_classes: c, at least 2.

    Returns:
        A `Problem`.

    Raises:
        ValueError: `l2` is not positive and finite, or fewer than two classes.

    Example:
        >>> problem = jaxunlearn.convex.softmax(0.1, 3)
        >>> round(float(problem.loss(jnp.zeros((1, 3)), jnp.array([2]))[0]), 4)
        1.0986
    """
    checks.require_count("num_classes", num_classes, least=2)

    def slope(z, y):
        return jax.nn.softmax(z) - jax.nn.one_hot(y, num_classes, dtype=z.dtype)

    def curvature(z):
        p = jax.nn.softmax(z)
        return p[:, :, None] * jnp.eye(num_classes, dtype=z.dtype) - p[:, :, None] * p[:, None, :]

    def root(z):
        p = jax.nn.softmax(z)
        return jnp.sqrt(p)[:, :, None] * jnp.eye(num_classes, dtype=z.dtype) - p[:, :, None] * jnp.sqrt(p)[:, None, :]

    return Problem(
        "softmax",
        _positive(l2),
        num_classes,
        loss=optax.losses.softmax_cross_entropy_with_integer_labels,
        slope=slope,
        curvature=curvature,
        curvature_root=root,
        max_slope=2**0.5,
        max_curvature=0.5,
        curvature_lipschitz=2**0.5 / (3 * 3**0.5),
    )


def _positive(l2: float) -> float:
    if not (np.isfinite(l2) and l2 > 0):
        raise ValueError(f"l2 must be positive and finite, or the problem is not strongly convex; got {l2}")
    return float(l2)
