"""SISA: Bourtoule, Chandrasekaran, Choquette-Choo, Jia, Travers, Zhang, Lie, Papernot: Machine unlearning, IEEE S&P 2021,
arXiv 1912.03817. Exact unlearning by shards and slices.

One model for each shard of the rows, trained slice by slice. A removal touches the shards that its rows lie in; each of them
goes back to what it was before the first slice with a removed row, and is trained again from there, without them:

    r* = first slice of the shard that loses a row;    M_{r*-1} as kept;    M_r = train(M_{r-1}, slices 1..r less the removed)

The result is that of `fit` on data without the rows, bit for bit. Where this differs from the authors' code: slices differ
by one row at most, and all of their rows decide where to start (theirs passes over the last `N_s mod R` rows of a
shard, which are then not unlearned); optimizer state and BatchNorm statistics go back with the parameters, so that it is exact
for momentum and Adam, too; rows are shuffled in every epoch.

It is exact as long as neither hyper-parameters nor partition depended on who was removed. Copies are for the caller to delete:
the variables from before, and those of earlier applications, which a ledger keeps until `purge(exact=True)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxunlearn import sampling
from jaxunlearn.card import Method
from jaxunlearn.loop.outcome import begin, finish
from jaxunlearn.loop.preparation import prepared_by
from jaxunlearn.sisa.partition import require_fits, without
from jaxunlearn.sisa.training import Shards, Trainer, train_again
from jaxunlearn.types import Data, ForgetRequest, Result, UnlearnFn, Variables

METHOD = Method(
    summary="one model for each shard of the rows; those that lose one are trained again from the last slice without it",
    cites="bourtoule2021machine",
    family="exact",
    reads=frozenset({"retain"}),
    guarantee="exact",
    takes="trainer",
)


def sisa(trainer: Trainer) -> UnlearnFn:
    """Remove rows from models that `sisa.fit` trained on shards.

    Args:
        trainer: the one that `sisa.fit` was given.

    Returns:
        An `UnlearnFn` of the variables that `fit` returned. What it returns equals, bit for bit on one machine, `fit` on data
        without the rows: nothing of them is left in it, kept starts included; delete the variables from before. Shards
        without removed rows are untouched. Rows that are no longer present are removed along with a request, and never come
        back. Rows are known by number: blank removed ones, but neither drop nor reorder any. The key is not read: draws are
        those of `fit`. `stats`: `visits` Int[S], rows that each shard visited, and `first_slice` Int[S], where it
        started, R if it was not trained.

    Raises:
        TypeError: no `Trainer`.
        ValueError: at trace time, variables that `fit` did not make, or made with a model or optimizer of another form; a
            partition of other data.

    Example:
        >>> trainer = jaxunlearn.sisa.trainer(model, optax.sgd(0.1), epochs=4, batch_size=8)
        >>> partition = jaxunlearn.sisa.random_partition(data, key, shards=4, slices=2)
        >>> fit = jax.jit(lambda data: jaxunlearn.sisa.fit(trainer, data, partition, key))
        >>> result = jaxunlearn.check(jax.jit(jaxunlearn.sisa.sisa(trainer))(fit(data), data, request, key))
        >>> again = fit(jaxunlearn.remove(data, request))
        >>> bool(jnp.array_equal(result.variables.params["head"], again.params["head"]))
        True
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(f"expected jaxunlearn.sisa.trainer(model, optimizer, ...), got {type(trainer).__name__}")

    def unlearn(variables: Variables, data: Data, request: ForgetRequest, key: PRNGKeyArray) -> Result:
        if not isinstance(variables.state, Shards):
            raise ValueError("sisa works on what jaxunlearn.sisa.fit returned: Variables(params, Shards)")
        data, request = begin(variables, data, request, key)
        require_fits(variables.state.partition, data.present.shape[0])
        _require_starts(trainer, data, variables.state, key)
        slices = variables.state.partition.rows.shape[1]
        idle = ~jnp.any(sampling.usable_slots(data, request))
        retained = sampling.retain_weights(data, request) > 0
        partition, hit = without(variables.state.partition, retained | idle)
        first = jnp.where(jnp.any(hit, axis=1), jnp.argmax(hit, axis=1), slices).astype(jnp.int32)
        left = variables._replace(state=variables.state._replace(partition=partition))
        found, visits = train_again(trainer, data, left, first)
        result = Result(_without_starts(found), stats={"visits": visits, "first_slice": first})
        result = finish(METHOD.on_empty, _without_starts(variables), data, request, result, may_rest=True)
        return result._replace(variables=found)  # which are the ones that went in where nothing was to be removed

    return prepared_by(unlearn, None)


def _require_starts(trainer: Trainer, data: Data, state: Shards, key: PRNGKeyArray) -> None:
    """ValueError unless what was kept has the form of what this trainer trains."""
    unread: Any = ()
    expected = jax.eval_shape(lambda key: trainer.method.init(unread, data, unread, key)[1], key)
    lanes = state.partition.rows.shape[:2]
    fits = jax.tree.structure(expected) == jax.tree.structure(state.starts)
    if fits and all(jax.tree.leaves(jax.tree.map(lambda x, y: (*lanes, *x.shape) == jnp.shape(y), expected, state.starts))):
        return
    raise ValueError(
        "what was kept of each slice is gone, or of another model or optimizer: give sisa the trainer that fit was given"
    )


def _without_starts(variables: Variables) -> Variables:
    """What a status is about. Starts are many times larger, and a look at all of them would cost as much as some answers."""
    return variables._replace(state=variables.state._replace(starts=()))
