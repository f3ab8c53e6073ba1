"""Exact removal from learners of sums (Cao, Yang: Towards making systems forget with machine unlearning, IEEE S&P 2015).

    total <- total - sum_{forget} left(row) right(row)',    parameters <- solve(total)

The result is the fit without the rows, whatever was removed before; only rounding stands between them. It is kept small by
adding without loss (Knuth's two-sum) and bounded column by column. Where the bound grows above a tolerance, as it does when
almost everything was removed from a column, the rows that are left are summed anew; so are they where a sum is not finite, and
where the rows that are present are not as many as were summed. Nothing of the paper's system of models is taken over;
the learners are those of `jaxunlearn.summation.learners`.
"""

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from jaxunlearn import sampling
from jaxunlearn.card import Method
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.precision import in_float64
from jaxunlearn.summation.learners import Learner
from jaxunlearn.summation.totals import Totals, crossed, summed, without
from jaxunlearn.types import Result, UnlearnFn, Variables

METHOD = Method(
    summary="take the rows out of the sums that a learner is made of: the fit without them, to rounding",
    cites="cao2015towards",
    family="exact",
    reads=frozenset({"forget"}),
    guarantee="exact",
    takes="learner",
    aliases=("statistical_query_unlearning",),
)


def summation(learner: Learner, *, tolerance: float = 1e-10) -> UnlearnFn:
    """Remove rows from a fitted learner of sums.

    Args:
        learner: the one that `jaxunlearn.summation.fit` was given.
        tolerance: of `rounding` below, in (0, 1); where rounding may be worse, the retain set is read and summed anew. It must
            be above what one fit has, about 1e-13 for a thousand rows and more.

    Returns:
        An `UnlearnFn` of the variables that `fit` returned. `stats`: `rounding` Float64[], the largest error that an entry of
        the sums may have, relative to the root of the product of its columns' sums of squares, and `summed_anew` Bool[]. All
        rows may go: what is left then is the learner's answer to no rows, which for most is not finite, and the status says so.
        Rows that were exchanged since the fit, as many as before, are not noticed.

    Raises:
        ValueError: a tolerance outside (0, 1); at trace time, variables that are not of this learner, or that are no longer in
            float64.

    Example:
        >>> learner = jaxunlearn.summation.ridge(penalty=0.1)
        >>> rows = jaxunlearn.training_data(x, x[:, 0])
        >>> fitted = jaxunlearn.summation.fit(learner, rows)
        >>> result = jax.jit(jaxunlearn.summation.summation(learner))(fitted, rows, request, key)
        >>> again = jaxunlearn.summation.fit(learner, jaxunlearn.remove(rows, request))
        >>> ours, theirs = jax.device_get((result.variables.params["weights"], again.params["weights"]))
        >>> bool(abs(ours - theirs).max() < 1e-12 * abs(theirs).max())
        True
    """
    if not isinstance(learner, Learner):
        raise TypeError(f"expected a learner such as jaxunlearn.summation.ridge(), got {type(learner).__name__}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance is a relative error in (0, 1), got {tolerance}")

    @sequential_vmap
    def anew(condition, totals, data, request):
        """Under `vmap` requests decide one after the other, so that one of them makes no other one read all rows."""
        again = lambda: summed(learner, data.train, sampling.retain_weights(data, request))  # noqa: E731
        return jax.lax.cond(condition, again, lambda: totals)

    @sequential_vmap
    def afresh(params, total, changed):
        """Parameters of the groups that changed."""
        return learner.solve_again(params, total, changed)

    @in_float64
    def update(variables, data, request, key):
        if not isinstance(variables.state, Totals):
            raise ValueError("summation works on what jaxunlearn.summation.fit returned: Variables(params, Totals)")
        if any(x.dtype != jnp.float64 for x in jax.tree.leaves(variables)):
            raise ValueError(
                "the sums were rounded since they were made: keep what summation.fit returned in float64, and calculate with "
                "it inside jax.enable_x64(True) only"
            )
        before: Totals = variables.state
        part = sampling.forget_rows(data, request)
        counted = part.weights > 0
        slots = counted.shape[0]
        few = slots < learner.groups  # then only the sums of the forget set's groups are touched
        own, every = learner.group(part.examples), jnp.arange(learner.groups, dtype=jnp.int32)
        groups = own if few else every
        totals = without(before, crossed(learner, part.examples, counted, groups, slots), groups if few else None)
        some, present = jnp.any(counted), jnp.sum(data.present > 0, dtype=jnp.int32)  # as `finish` counts them
        trusted = (totals.relative <= tolerance) & (totals.rows == present - jnp.sum(counted))  # False for NaN
        worse = some & ~trusted
        totals = anew(worse, totals, data._replace(extra={}), request)
        changed = jnp.any((own[:, None] == every) & counted[:, None], axis=0) | worse
        params = afresh(variables.params, totals.value, changed) if learner.own else learner.solve(totals.value)
        params = jax.tree.map(lambda new, old: jnp.where(some, new, old).astype(old.dtype), params, variables.params)
        return Result(Variables(params, totals), stats={"rounding": totals.relative, "summed_anew": worse})

    # a sum less nothing is the same sum: so empty requests get what they came with, and large sums are not copied once more
    return one_shot(update, on_empty="finetune")
