"""Methods made of methods."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxunlearn import checks
from jaxunlearn.loop.preparation import preparation_of, prepared_by
from jaxunlearn.types import Data, ForgetRequest, Result, UnlearnFn, Variables


def then(first: UnlearnFn, second: UnlearnFn) -> UnlearnFn:
    """Compose two methods: the second starts from what the first returns, e.g. unlearn, then repair.

    Args:
        first, second: finished methods; nest `then` for more of them.

    Returns:
        An `UnlearnFn`. Its status is the graver of the two, its `stats` are theirs with the prefixes `first/` and `second/`,
        and `Result.extra` of the first is in the data of the second. `prepare` runs what both of them want; what the second
        one reads then belongs to the model that the first one moves, which the status says (STALE).

    Raises:
        TypeError: one of them is an `Unlearner` or no function.

    Example:
        >>> repair = jaxunlearn.iterate(jaxunlearn.finetune(model, optax.sgd(0.1)), num_steps=5, batch_size=8)
        >>> unlearn = jaxunlearn.then(jaxunlearn.output_perturbation(model, sigma=0.1), repair)
        >>> sorted(unlearn(variables, data, request, key).stats)[:3]
        ['first/moved', 'first/noise_norm', 'second/loss']
    """
    checks.require_unlearn_fn(first, "then")
    checks.require_unlearn_fn(second, "then")

    def unlearn(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Result:
        first_key, second_key = jax.random.split(key)
        one = first(variables, data, request, first_key)
        two = second(one.variables, data._replace(extra={**data.extra, **one.extra}), request, second_key)
        stats = {f"first/{name}": x for name, x in one.stats.items()} | {f"second/{name}": x for name, x in two.stats.items()}
        return Result(two.variables, jnp.maximum(one.status, two.status), stats, {**one.extra, **two.extra})

    return prepared_by(unlearn, preparation_of(first), preparation_of(second))


Kept: TypeAlias = Bool[Array, " k"] | Int[Array, " k"] | Float[Array, " k"]
Select: TypeAlias = Callable[[Variables, Data, ForgetRequest, PRNGKeyArray], Kept]


def filtered(select: Select, unlearn: UnlearnFn) -> UnlearnFn:
    """Narrow a request before it is answered.

    Args:
        select: `(variables, data, request, key) -> keep`, of shape [k]; slots with `keep > 0` stay in the request;
            e.g. `jaxunlearn.funu`.
        unlearn: a finished method, which answers the narrowed request. What was left out stays in the retain set.

    Returns:
        An `UnlearnFn` whose `stats["skipped"]` (Float[k]) is 1 in the slots that were left out, so that its sum says how many
        were. In a stream they count as answered all the same: `streamed` clears the rows of the whole request.

    Raises:
        TypeError: `unlearn` is an `Unlearner` or no function.

    Example:
        >>> def hard(variables, data, request, key):
        ...     part = jaxunlearn.forget_rows(data, request).examples
        ...     return model.loss(model.forward(variables, part.inputs), part) > 0.1
        >>> unlearn = jaxunlearn.filtered(hard, jaxunlearn.output_perturbation(model, sigma=0.1))
        >>> unlearn(variables, data, request, key).stats["skipped"].shape == request.weights.shape
        True
    """
    checks.require_unlearn_fn(unlearn, "filtered")

    def narrowed(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Result:
        select_key, unlearn_key = jax.random.split(key)
        kept = jnp.where(select(variables, data, request, select_key) > 0, request.weights, 0)
        result = unlearn(variables, data, request._replace(weights=kept), unlearn_key)
        return result._replace(stats={**result.stats, "skipped": request.weights - kept})

    return prepared_by(narrowed, preparation_of(unlearn))
