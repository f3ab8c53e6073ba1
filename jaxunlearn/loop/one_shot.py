"""Methods without a loop."""

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import PRNGKeyArray

from jaxunlearn.loop.damage import classes_of
from jaxunlearn.loop.outcome import begin, finish
from jaxunlearn.loop.preparation import prepared_by
from jaxunlearn.types import Data, ForgetRequest, Model, OnEmpty, Prepare, Result, UnlearnFn, Variables

Update: TypeAlias = Callable[[Variables, Data, ForgetRequest, PRNGKeyArray], Result]


def one_shot(
    update: Update,
    *,
    model: Model | None = None,
    on_empty: OnEmpty = "identity",
    prepare: Prepare | None = None,
    may_rest: bool = False,
) -> UnlearnFn:
    """A finished method from one update: the checks, the status and the treatment of empty requests of `iterate`.

    Args:
        update: `(variables, data, request, key) -> Result`; a status that it gives (`jaxunlearn.status.combine`) is kept where
            it is the gravest one.
        model: whose logits the labels have to fit; None where labels are not read.
        on_empty: what an empty request gets, see `jaxunlearn.Unlearner`.
        may_rest: weights that stay as they are may be the answer, as training never saw the rows, or as a bound says how good
            they are; no UNCHANGED then.
        prepare: fills what the update reads in `Data.extra`, for `jaxunlearn.prepare`.

    Returns:
        An `UnlearnFn`.

    Raises:
        ValueError, TypeError: at trace time, for variables, data, requests or keys of the wrong form, and for an update that
            changes the tree, shapes or dtypes of the variables.

    Example:
        >>> def halve(variables, data, request, key):
        ...     return jaxunlearn.Result(jax.tree.map(lambda w: w / 2, variables))
        >>> result = jaxunlearn.one_shot(halve)(variables, data, request, key)
        >>> int(result.status)
        0
    """

    def unlearn(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Result:
        data, request = begin(variables, data, request, key)
        classes = classes_of(model, variables, data)
        return finish(on_empty, variables, data, request, update(variables, data, request, key), classes, may_rest)

    return prepared_by(unlearn, prepare)
