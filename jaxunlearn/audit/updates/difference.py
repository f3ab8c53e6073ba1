"""Difference attacks: which rows were removed, to somebody who can ask the model before and after.

Exact removal is no defence: the difference of two models is made by the rows that were removed, and is largest at them.
Chen, Zhang, Wang, Backes, Humbert, Zhang: When machine unlearning jeopardizes privacy, CCS 2021, arXiv 2005.02205. Their five
features are here, and their attacker in its logistic form. They train it on shadow pairs of models; so does whoever calls it.

An (epsilon, delta) certificate of removal compares the release with one of a retrained model. Both differ from the
model before in the same way, so the certificate bounds nothing for those who saw that one, unless its noise covers the whole
change. `most_advantage` and `largest_auc` say what a bound allows where it holds.
"""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn import checks
from jaxunlearn.audit.single.membership import Scores, auc
from jaxunlearn.audit.statistics.checks import require_disjoint, require_numbers
from jaxunlearn.audit.statistics.intervals import auc_interval
from jaxunlearn.evaluation import class_logits, map_rows
from jaxunlearn.proportions import Interval
from jaxunlearn.sampling import forget_rows
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Variables

Kind: TypeAlias = Literal["concatenation", "sorted concatenation", "difference", "sorted difference", "distance"]
Score: TypeAlias = Callable[[Array, Array, Array], Float[Array, " b"]]  # (outputs before, after, targets) -> higher for removed


def update_features(before: Float[Array, "... c"], after: Float[Array, "... c"], kind: Kind) -> Float[Array, "... f"]:
    """What an attacker reads from the outputs of both models.

    Args:
        before, after: logits of the original and of the unlearned model, classes on the last axis. Features are made of their
            softmax, the posteriors.
        kind: `concatenation` of both, f = 2c; their `difference`, f = c; the same `sorted`, both by the posteriors before,
            descending; or the Euclidean `distance`, f = 1.

    Returns:
        Features, leading axes kept.

    Raises:
        ValueError: an unknown kind, logits of different shapes.

    Example:
        >>> logits = jnp.array([[0.0, 9.0, 1.0]])
        >>> jaxunlearn.audit.update_features(logits, logits, "sorted difference").tolist()
        [[0.0, 0.0, 0.0]]
        >>> jaxunlearn.audit.update_features(logits, logits[:, ::-1], "concatenation").shape
        (1, 6)
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind is one of {get_args(Kind)}, got {kind!r}")
    if jnp.shape(before) != jnp.shape(after):
        raise ValueError(f"logits of both models must have one shape, got {jnp.shape(before)} and {jnp.shape(after)}")
    first, second = jax.nn.softmax(jnp.asarray(before)), jax.nn.softmax(jnp.asarray(after))
    if kind.startswith("sorted"):
        order = jnp.argsort(-first, axis=-1)
        first, second = (jnp.take_along_axis(x, order, axis=-1) for x in (first, second))
    if kind.endswith("concatenation"):
        return jnp.concatenate([first, second], axis=-1)
    if kind == "distance":
        return jnp.sqrt(jnp.sum((first - second) ** 2, axis=-1, keepdims=True))
    return first - second


def difference_scores(
    model: Model,
    before: Variables,
    after: Variables,
    data: Data,
    request: ForgetRequest,
    test: Examples,
    *,
    score: Score | None = None,
    chunk: int | None = None,
) -> Scores:
    """How far the outputs moved at every removed row (members) and at every row that neither model saw (non-members).

    Args:
        model: its `forward`, in evaluation mode.
        before, after: its variables before and after the request.
        data, request: whose usable rows are the members.
        test: the non-members, drawn like the removed rows.
        score: of outputs before, outputs after and targets of rows; by default the distance of posteriors for integer targets,
            and that of outputs for others.
        chunk: rows that go through the model together; `None` takes all.

    Returns:
        `Scores` for `auc`, `tpr_at_fpr` and `roc_curve`. Retrained models give the floor: a pair of the original and a
        retrained model leaks as well.

    Raises:
        ValueError: stacked requests, a score that is not one value per row, test rows that are training rows as well.

    Example:
        >>> moved = jaxunlearn.Variables(jax.tree.map(lambda w: w * 1.1, variables.params))
        >>> scores = jaxunlearn.audit.difference_scores(model, variables, moved, data, request, test)
        >>> 0 <= float(jaxunlearn.audit.auc(*scores)) <= 1
        True
    """
    require_disjoint("difference_scores", members=data.train, nonmembers=test)
    told = _distance if score is None else score

    def of(examples: Examples) -> Float[Array, " b"]:
        first, second = (model.forward(variables, examples.inputs, train=False).logits for variables in (before, after))
        values = told(first, second, examples.targets)
        rows = jnp.shape(first)[0]
        if jnp.shape(values) != (rows,):
            raise ValueError(f"difference_scores: a score is one value per row, expected [{rows}], got {jnp.shape(values)}")
        return values

    forgotten = forget_rows(data, request)
    unseen = map_rows(of, test, chunk=chunk)
    return Scores(map_rows(of, forgotten.examples, chunk=chunk), forgotten.weights, unseen, jnp.ones(unseen.shape[0]))


def _distance(before: Array, after: Array, targets: Array) -> Float[Array, " b"]:
    if jnp.issubdtype(jnp.asarray(targets).dtype, jnp.integer) and jnp.ndim(targets) == 1:
        return update_features(class_logits(before, targets), class_logits(after, targets), "distance")[:, 0]
    return jnp.sqrt(jnp.sum((after - before).reshape(before.shape[0], -1) ** 2, axis=1))


def difference_attack(
    shadow_members: Float[np.ndarray, "n f"],
    shadow_others: Float[np.ndarray, "m f"],
    members: Float[np.ndarray, "k f"],
    others: Float[np.ndarray, "l f"],
    *,
    level: float = 0.95,
) -> Interval:
    """A logistic regression that learnt on shadow pairs of models, tried on the pair under attack; on the host.

    Args:
        shadow_members, shadow_others: `update_features` of rows that were removed from shadow models, and of rows that these
            never saw, of as many pairs as there are.
        members, others: the same of the pair under attack.
        level: confidence level.

    Returns:
        Area under the ROC curve of the pair under attack, with its interval over rows.

    Raises:
        ValueError: features of different lengths, no row, NaN.
        TypeError: inside `jit`.
        ImportError: without scikit-learn.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> removed, unseen = rng.normal(1, 1, (2, 50, 3)), rng.normal(0, 1, (2, 50, 3))
        >>> float(jaxunlearn.audit.difference_attack(removed[0], unseen[0], removed[1], unseen[1]).estimate) > 0.7
        True
    """
    given = (shadow_members, shadow_others, members, others)
    if not all(map(checks.is_concrete, given)):
        raise TypeError("difference_attack trains an attacker on the host: call it outside of jit and vmap")
    known = [np.asarray(x, np.float64) for x in given]
    if {x.ndim for x in known} != {2} or len({x.shape[1] for x in known}) != 1 or not all(map(len, known)):
        raise ValueError(f"expected features [rows, f] with one f and at least a row each, got {[x.shape for x in known]}")
    require_numbers("difference_attack", **dict(zip(("first", "second", "third", "fourth"), known, strict=True)))
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    attacker = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    attacker.fit(np.concatenate(known[:2]), np.repeat([1, 0], [len(known[0]), len(known[1])]))
    scores = [jnp.asarray(attacker.decision_function(x), jnp.float32) for x in known[2:]]
    area = auc(scores[0], jnp.ones(scores[0].size), scores[1], jnp.ones(scores[1].size))
    return auc_interval(area, scores[0].size, scores[1].size, level)


def linear_update_auc(num_inputs: int, *, signed: bool = False) -> float:
    """Area under the ROC curve of the difference attack on an exactly retrained linear model, for many normal rows.

    Ridge without row x, whose residual is e, moves its prediction at z by `e z'A^{-1}x`, A the Hessian before. For n
    rows from N(0, I), A is near n I: the removed row moves by `e |x|^2 / n`, a new one by `e |x| Z / n` with Z from N(0, 1). So

        AUC = P[|Z| < |x|] = P[|t_d| < sqrt(d)] = 2 T_d(sqrt(d)) - 1,

    with T_d the distribution function of Student's t with d degrees of freedom, because Z sqrt(d) / |x| is Student's t. An
    attacker who knows the sign of the change, as of a mean, where `z'(m - m')` stands for the prediction, has `T_d(sqrt(d))`.

    Args:
        num_inputs: d.
        signed: whether the sign of the change at the removed row is known.

    Returns:
        A number in [0.5, 1]: 1/2 for d = 1 without the sign, 0.707 for d = 2, 0.99 for d = 10.

    Raises:
        ValueError: a number that is not positive.

    Example:
        >>> [round(jaxunlearn.audit.linear_update_auc(d), 3) for d in (1, 2, 10)]
        [0.5, 0.707, 0.99]
    """
    from scipy.special import stdtr

    checks.require_count("num_inputs", num_inputs)
    below = float(stdtr(num_inputs, math.sqrt(num_inputs)))
    return below if signed else 2 * below - 1


def row_update_auc(row: Float[Array, " d"], hessian: Float[Array, "d d"], covariance: Float[Array, "d d"]) -> Float[Array, ""]:
    """The same for one removed row at any number of rows: exact where new rows are normal with mean 0.

        AUC = P[|z'v| < x'v] = 2 Phi(x'v / sqrt(v'Cv)) - 1,    v = A^{-1} x

    Args:
        row: x, the removed row.
        hessian: A, of the ridge objective, with the row or without it: v only changes its length.
        covariance: C, of new rows.

    Returns:
        Float[], in [0, 1].

    Example:
        >>> round(float(jaxunlearn.audit.row_update_auc(jnp.array([1.0, 0.0]), jnp.eye(2), jnp.eye(2))), 3)
        0.683
    """
    change = jnp.linalg.solve(hessian, row)
    return jax.scipy.special.erf(jnp.dot(row, change) / jnp.sqrt(2 * jnp.dot(change, covariance @ change)))


def most_advantage(epsilon: float, delta: float) -> float:
    """Largest TPR - FPR of any attack that tells two (epsilon, delta) close worlds apart: `(e^eps - 1 + 2 delta)/(e^eps + 1)`.

    Args:
        epsilon: at least 0.
        delta: in [0, 1].

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: values out of range.

    References:
        Kairouz, Oh, Viswanath: The composition theorem for differential privacy, 2015, arXiv 1311.0776.

    Example:
        >>> jaxunlearn.audit.most_advantage(0.0, 0.0)
        0.0
    """
    checks.check_range("epsilon", epsilon, low=0)
    checks.check_range("delta", delta, low=0, high=1)
    return math.tanh(epsilon / 2) + 2 * delta / (math.exp(min(epsilon, 700)) + 1)


def largest_auc(epsilon: float, delta: float) -> float:
    """Largest area under a ROC curve that (epsilon, delta) allows: that of the trade-off curve itself.

    The curve runs from (0, delta) by slope `e^eps` to (F, 1 - F), `F = (1 - delta) / (1 + e^eps)`, and by `e^-eps` to
    (1 - delta, 1).

    Args:
        epsilon, delta: as in `most_advantage`.

    Returns:
        A number in [0.5, 1].

    Raises:
        ValueError: values out of range.

    Example:
        >>> jaxunlearn.audit.largest_auc(0.0, 0.0)
        0.5
    """
    checks.check_range("epsilon", epsilon, low=0)
    checks.check_range("delta", delta, low=0, high=1)
    corner = (1 - delta) / (1 + math.exp(min(epsilon, 700)))
    return corner * (delta + 1 - corner) / 2 + (1 - delta - corner) * (2 - corner) / 2 + delta
