"""Membership inference attacks that papers train, through scikit-learn: on the host, on arrays, not inside `jit`.

The aim of each value is what the same attacker says of a retrained model, neither 1 nor 0.5. One rule attacks the whole forget
set; see `jaxunlearn.audit.u_lira` for attacks on single examples.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from jaxunlearn.audit.statistics.checks import require_numbers
from jaxunlearn.checks import is_concrete

Features = Float[np.ndarray, " n"] | Float[np.ndarray, "n f"]


def svc_efficacy(retain: Features, test: Features, forget: Features) -> float:
    """MIA-efficacy: the share of the forget set that a support vector machine takes for non-members.

    `SVC(C=3, gamma="auto", kernel="rbf")` is fitted to retained rows (members) against test rows, and predicts the forget set.

    Args:
        retain, test: one value per row, e.g. `jaxunlearn.audit.confidence` (what papers report), entropy, modified entropy or
            correctness, or one vector of f probabilities per row; as many retained rows as test rows.
        forget: the same of the forget set.

    Returns:
        `1 - mean(predicted member)`, a fraction in [0, 1]. The aim is the retrained model's value.

    Raises:
        ValueError: shapes that do not fit, different numbers of retained and test rows, NaN.
        TypeError: inside `jit`.
        ImportError: without scikit-learn.

    References:
        Fan, Liu, Zhang, Wong, Wei, Liu: SalUn, 2024, arXiv 2310.12508.

    Example:
        >>> import numpy as np
        >>> jaxunlearn.audit.svc_efficacy(np.full(20, 0.9), np.full(20, 0.1), np.array([0.9, 0.9, 0.1, 0.1]))
        0.5
    """
    from sklearn.svm import SVC

    members, others, asked = _columns("svc_efficacy", retain, test, forget)
    _require_balance("svc_efficacy", members, others)
    attacker = SVC(C=3, gamma="auto", kernel="rbf")
    attacker.fit(np.concatenate([members, others]), np.repeat([1, 0], [len(members), len(others)]))
    return 1 - float(np.mean(attacker.predict(asked)))


def entropy_attack(retain: Float[np.ndarray, " n"], test: Float[np.ndarray, " m"], forget: Float[np.ndarray, " k"]) -> float:
    """Share of the forget set that a balanced logistic regression on prediction entropy takes for members.

    Args:
        retain, test, forget: `jaxunlearn.audit.entropy` of retained rows (members), test rows and the forget set, in nats.

    Returns:
        Mean predicted membership, a fraction in [0, 1]. The aim is the retrained model's value.

    Raises:
        ValueError: shapes that do not fit, NaN.
        TypeError: inside `jit`.
        ImportError: without scikit-learn.

    References:
        Chundawat, Tarun, Mandal, Kankanhalli: Can bad teaching induce forgetting?, 2023, arXiv 2205.08096.

    Example:
        >>> import numpy as np
        >>> jaxunlearn.audit.entropy_attack(np.zeros(20), np.ones(20), np.array([0.0, 0.0, 1.0, 1.0]))
        0.5
    """
    members, others, asked = _columns("entropy_attack", retain, test, forget)
    attacker = _logistic().fit(np.concatenate([members, others]), np.repeat([1, 0], [len(members), len(others)]))
    return float(np.mean(attacker.predict(asked)))


def loss_attack_accuracy(
    forget: Float[np.ndarray, " n"], test: Float[np.ndarray, " n"], *, num_splits: int = 10, seed: int = 0
) -> float:
    """Accuracy of a logistic regression that tells the losses of the forget set from those of test rows.

    Mean over stratified random splits, nine tenths to fit and one tenth to score.

    Args:
        forget, test: one loss per row, as many of each.
        num_splits: how many splits.
        seed: of the splits.

    Returns:
        A fraction in [0, 1]. The aim is the retrained model's value, about 0.5 for random rows.

    Raises:
        ValueError: shapes that do not fit, different numbers of rows, fewer than ten, NaN.
        TypeError: inside `jit`.
        ImportError: without scikit-learn.

    References:
        Starting kit of the NeurIPS 2023 machine unlearning challenge; see arXiv 2406.09073.

    Example:
        >>> import numpy as np
        >>> jaxunlearn.audit.loss_attack_accuracy(np.zeros(20), np.ones(20))
        1.0
    """
    from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

    members, others = _columns("loss_attack_accuracy", forget, test)
    _require_balance("loss_attack_accuracy", members, others)
    if len(members) < 10:
        raise ValueError(f"loss_attack_accuracy needs at least 10 rows of each kind, got {len(members)}")
    splits = StratifiedShuffleSplit(n_splits=num_splits, test_size=0.1, random_state=seed)
    labels = np.repeat([1, 0], [len(members), len(others)])
    return float(np.mean(cross_val_score(_logistic(), np.concatenate([members, others]), labels, cv=splits)))


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight="balanced")


def _columns(metric: str, *groups: Features) -> list[np.ndarray]:
    """Each as [rows, features]."""
    if not all(map(is_concrete, groups)):
        raise TypeError(f"{metric} fits an attacker with scikit-learn: call it outside jit and vmap")
    arrays = [np.asarray(group, np.float64) for group in groups]
    require_numbers(metric, **{f"group {place}": array for place, array in enumerate(arrays)})
    columns = [array.reshape(len(array), -1) if array.ndim in (1, 2) else array for array in arrays]
    if any(x.ndim != 2 or x.shape[1] != columns[0].shape[1] or len(x) == 0 for x in columns):
        raise ValueError(f"{metric}: expected [rows] or [rows, features] for all groups, got {[x.shape for x in arrays]}")
    return columns


def _require_balance(metric: str, members: np.ndarray, others: np.ndarray) -> None:
    if len(members) != len(others):
        raise ValueError(f"{metric}: as many members as non-members are needed, got {len(members)} and {len(others)}")
