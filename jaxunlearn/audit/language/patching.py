"""Activation patching: what of the forgotten tokens the original model still reads in an unlearned model's states.

Lee, Kim, Jo: Measuring the depth of LLM unlearning via activation patching, 2026, arXiv 2605.24614 (unlearning depth score). In
the original model the states behind layer l are replaced by those of another model, where forgotten tokens are predicted, and
the rest of the original runs on. With `s` its mean log-probability of these tokens and `s_l` that after the replacement,

    drop_l = s - s_l,    depth = sum_l drop_l(retrained) clip(drop_l(other) / drop_l(retrained), 0, 1) / sum_l drop_l(retrained)

over the layers that know them: drop_l(retrained) > threshold. It is 1 where states say no more than those of a model that never
saw the tokens, and 0 where all is there and only hidden behind.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxunlearn import checks, tree
from jaxunlearn.audit.language.comes_back import Returned
from jaxunlearn.audit.language.tokens import mean_log_probability, token_log_probabilities
from jaxunlearn.audit.statistics.verdict import permutation_p_value
from jaxunlearn.types import Scalar, Variables

States: TypeAlias = Callable[[Variables], Float[Array, "l n t d"]]  # behind every layer
Patched: TypeAlias = Callable[[Int[Array, ""], Float[Array, "n t d"], Bool[Array, "n t"]], Float[Array, "n t v"]]


def unlearning_depth(
    retrained: Float[Array, "... l n"], other: Float[Array, "... l n"], *, threshold: Scalar = 0.05
) -> Float[Array, "... n"]:
    """The unlearning depth score of every row, see this file's head.

    Args:
        retrained: `drop_l` with the states of a retrained model, in nats per token, layer by layer.
        other: the same with those of the model that is judged.
        threshold: a layer knows a row from this drop on; 0.05 is the authors'.

    Returns:
        In [0, 1], 1 for all forgotten; NaN for a row that no layer knows, which the authors leave out.

    Raises:
        ValueError: a negative threshold.

    Example:
        >>> drops = jnp.array([[0.0], [1.0], [3.0]])
        >>> jaxunlearn.audit.language.unlearning_depth(drops, jnp.array([[9.0], [0.5], [3.0]])).tolist()
        [0.875]
    """
    checks.check_range("threshold", threshold, low=0)
    knows = retrained > threshold
    found = jnp.sum(jnp.where(knows, jnp.clip(other, 0, retrained), 0), axis=-2)
    return found / jnp.sum(jnp.where(knows, retrained, 0), axis=-2)


def patching(
    patched: Patched,
    states: States,
    original: Variables,
    unlearned: Variables,
    retrained: Variables,
    labels: Int[Array, "n t"],
    key: PRNGKeyArray,
    *,
    threshold: Scalar = 0.05,
    num_permutations: int = 199,
) -> Returned:
    """A cell like those of `comes_back`: how much the original reads in each model's states, `1 - unlearning_depth`.

    A retrained model is judged by the mean drops of the others, an unlearned one by those of all. Models go through one after
    the other, in one program: jit the call.

    Args:
        patched: `(layer, states, where) -> logits` of the original, with its states behind one layer replaced where it says so.
        states: `variables -> states` on the same rows, behind every layer.
        original: the model before unlearning.
        unlearned: of r models, stacked.
        retrained: of m models, stacked, two or more.
        labels: what positions of forgotten rows predict, below 0 where one does not count; states are replaced where it does.
        key: one typed key, for the p-value.
        threshold: see `unlearning_depth`.
        num_permutations: see `comes_back`.

    Returns:
        `Returned`, means over rows that some layer knows, in [0, 1]: 1 for a model in whose states all is still there. NaN
        where no row is known.

    Raises:
        ValueError: fewer than two retrained models, a negative threshold.

    Example:
        >>> labels, embed = jnp.array([[0, 1]]), jnp.eye(2)[jnp.array([[0, 1]])]
        >>> states = lambda v: (v["w"] * embed)[None]
        >>> patched = lambda layer, z, where: jnp.where(where[..., None], z, 5 * embed)
        >>> found = jaxunlearn.audit.language.patching(
        ...     patched, states, {"w": 5.0}, {"w": jnp.array([5.0, 0.0])}, {"w": jnp.zeros(2)}, labels, key)
        >>> found.unlearned.tolist(), found.retrained.tolist()
        ([1.0, 0.0], [0.0, 0.0])
    """
    checks.check_key(key)
    first, second = (tree.leading_axis(x, name) for x, name in ((unlearned, "unlearned"), (retrained, "retrained")))
    if second < 2:
        raise ValueError(f"patching judges retrained models by each other: give two or more, got {second}")
    counted = jnp.asarray(labels) >= 0

    def scores(variables: Variables) -> Float[Array, "l n"]:
        def one(place: tuple[Int[Array, ""], Float[Array, "n t d"]]) -> Float[Array, " n"]:
            return mean_log_probability(token_log_probabilities(patched(*place, counted), labels), labels)

        behind = states(variables)
        return jax.lax.map(one, (jnp.arange(behind.shape[0]), behind))

    everyone = jax.tree.map(lambda *x: jnp.concatenate(x), unlearned, retrained)
    drops = scores(original)[0] - jax.lax.map(scores, everyone)  # [r + m, l, n]; its own states replace nothing
    references = drops[first:]
    others = (jnp.sum(references, axis=0) - references) / (second - 1)
    judges = jnp.concatenate([jnp.broadcast_to(jnp.mean(references, axis=0), drops[:first].shape), others])
    known = jnp.nanmean(1 - unlearning_depth(judges, drops, threshold=threshold), axis=-1)
    sides = known[:first], known[first:]

    def gap(candidate: Array, reference: Array) -> Float[Array, ""]:
        return jnp.mean(candidate) - jnp.mean(reference)

    return Returned(*sides, gap(*sides), permutation_p_value(gap, *sides, key, num_permutations=num_permutations))
