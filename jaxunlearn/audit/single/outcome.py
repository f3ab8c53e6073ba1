"""The few numbers that answers are compared by: accuracies, or mean losses where there are no classes, and one attack."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxunlearn import checks, tree
from jaxunlearn.audit.single.membership import auc
from jaxunlearn.audit.single.performance import row_results
from jaxunlearn.audit.statistics.checks import require_disjoint
from jaxunlearn.sampling import forget_rows, masked_mean, retain_weights, row_numbers
from jaxunlearn.types import Data, Examples, ForgetRequest, Model, Variables


class Outcome(NamedTuple):
    """What `outcome` returns: accuracies in [0, 1], or mean losses where the task is no classification."""

    retain: Float[Array, ""]
    forget: Float[Array, ""]
    test: Float[Array, ""]
    unseen: Float[Array, ""]  # on unseen rows drawn like the forget set
    auc: Float[Array, ""]  # of the loss attack: forget set against those


def outcome(
    model: Model,
    variables: Variables,
    data: Data,
    request: ForgetRequest,
    test: Examples,
    *,
    unseen: Examples | None = None,
    unseen_weights: Float[Array, " m"] | None = None,
    chunk: int | None = None,
) -> Outcome:
    """What one model knows of the retain set, the forget set and unseen rows. Pure; every row is looked at once.

    Args:
        model, variables: the model.
        data, request: what it was trained on and asked to forget.
        test: rows that no model was trained on.
        unseen: other such rows, by default those of `test`.
        unseen_weights: 1 where one of them is drawn like the forget set, e.g. of the same class; by default everywhere.
        chunk: rows that go through the model together; None takes all.

    Returns:
        `Outcome` of scalars.

    Raises:
        ValueError: concrete rows of `test` or `unseen` that are training rows.

    Example:
        >>> found = jaxunlearn.audit.outcome(model, variables, data, request, test)
        >>> 0 <= float(found.retain) <= 1
        True
    """
    for unknown in (test, *(() if unseen is None else (unseen,))):
        require_disjoint("outcome", members=data.train, nonmembers=unknown)
    on_train, on_test = (row_results(model, variables, part, chunk=chunk) for part in (data.train, test))
    on_unseen = on_test if unseen is None else row_results(model, variables, unseen, chunk=chunk)
    weights = jnp.ones_like(on_unseen[1]) if unseen_weights is None else unseen_weights
    return _means(data, request, on_train, (on_test, jnp.ones_like(on_test[1])), (on_unseen, weights))


def group_outcomes(
    model: Model,
    variables: Variables,
    data: Data,
    request: ForgetRequest,
    test: Examples,
    groups: Int[Array, " n"],
    test_groups: Int[Array, " m"],
    *,
    num_groups: int,
    chunk: int | None = None,
) -> Outcome:
    """`outcome` of every group of people by itself: does unlearning treat them alike? Pure; every row is looked at once.

    The attack on a group tells its rows of the forget set from its test rows: groups differ in how hard they are, so that one
    attack on all would mix that up with membership. Retrained models differ between groups, too: what unlearning did is the
    difference of gaps to them, see `jaxunlearn.audit.gap` and `jaxunlearn.audit.judge`.

    Args:
        model, variables, data, request, test, chunk: as in `outcome`.
        groups: of the training rows, from 0 to `num_groups - 1`; rows of another number belong to none.
        test_groups: of the test rows.
        num_groups: g, static.

    Returns:
        `Outcome` with a leading axis g on every entry; `unseen` is `test`, of the group's own rows. NaN where a group has no
        row of a kind.

    Raises:
        ValueError: groups that are not one integer per row; as `outcome`.

    Example:
        >>> groups, test_groups = jnp.arange(60) % 2, jnp.arange(20) % 2
        >>> found = jaxunlearn.audit.group_outcomes(
        ...     model, variables, data, request, test, groups, test_groups, num_groups=2
        ... )
        >>> found.test.shape
        (2,)
    """
    checks.require_count("num_groups", num_groups)
    for name, numbers, rows in (("groups", groups, data.train), ("test_groups", test_groups, test)):
        count = tree.leading_axis(rows, name)
        if np.shape(numbers) != (count,) or not jnp.issubdtype(jnp.result_type(numbers), jnp.integer):
            got = f"{jnp.result_type(numbers)}{np.shape(numbers)}"
            raise ValueError(f"expected {name} as one integer for each of {count} rows, got {got}")
    require_disjoint("group_outcomes", members=data.train, nonmembers=test)
    on_train, on_test = (row_results(model, variables, part, chunk=chunk) for part in (data.train, test))
    own, others = jnp.asarray(groups), jnp.asarray(test_groups)

    def of_group(number: Int[Array, ""]) -> Outcome:
        tested = on_test, (others == number).astype(jnp.float32)
        return _means(data, request, on_train, tested, tested, own == number)

    return jax.vmap(of_group)(jnp.arange(num_groups))


def _means(
    data: Data,
    request: ForgetRequest,
    on_train: tuple,
    on_test: tuple,
    on_unseen: tuple,
    chosen: Bool[Array, " n"] | None = None,
) -> Outcome:
    """Means over sets of rows: results of `row_results`, those of test and unseen rows with weights; `chosen` training rows."""
    forgotten, retained = forget_rows(data, request).weights, retain_weights(data, request)
    rows = jnp.where(forgotten > 0, row_numbers(request), 0)
    if chosen is not None:
        forgotten, retained = jnp.where(chosen[rows], forgotten, 0), jnp.where(chosen, retained, 0)
    every = (on_train, on_test[0], on_unseen[0])
    classes = all(correct is not None for correct, _ in every)
    train, others, alike = (correct if classes and correct is not None else loss for correct, loss in every)
    parts = ((train, retained), (train[rows], forgotten), (others, on_test[1]), (alike, on_unseen[1]))
    retain, forget, tested, like = (masked_mean(values, part, empty=jnp.nan) for values, part in parts)
    area = auc(-on_train[1][rows], forgotten, -on_unseen[0][1], on_unseen[1])
    return Outcome(retain, forget, tested, like, area)
