"""Inference-time unlearning (Basu Roy Chowdhury, Kidambi, Dubey, Wang, Mergen, Ahmed, Mehta: Inference-time unlearning using
conformal prediction, 2026, arXiv 2602.03787): a generator tries until a verifier accepts, within a calibrated budget.

    y_t, s_t = G(x, s_{t-1}),    return y_t for the first t <= q with V(x, y_t) = 1,    a refusal if there is none

**It suppresses outputs and removes nothing**: the weights are unchanged, and whoever calls the generator without the guard gets
everything. A reconstruction, from the paper's abstract and a description of its algorithm: the paper may use another score, and
its prompts and verifier were not read. That a budget of tries is calibrated by conformal prediction is theirs; the split
conformal rank, groups, confidence (`calibrate`), rounds of candidates and the bound on the verifier's error are our reading.

Related and not here: (alpha, beta)-conformal unlearning (Alkhatib et al., 2025: the forgotten label is excluded from prediction
sets, retained labels are covered by them), and FROC (arXiv 2512.13337: settings of an unlearning method with controlled risk).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks
from jaxunlearn.card import Method
from jaxunlearn.guards.conformal import Budget
from jaxunlearn.types import Scalar

METHOD = Method(
    summary="suppresses outputs that a verifier rejects, within a calibrated number of tries; removes nothing",
    cites="basuroychowdhury2026inference",
    family="guard",
    reads=frozenset(),
    takes="generator",
    reconstruction=True,
    aliases=("conformal_guard", "inference_time_unlearning"),
)
MOST = np.iinfo(np.int32).max


class Answer(NamedTuple):
    """What a guard returns; all of its leaves gain an axis under `vmap`."""

    output: PyTree  # the first accepted one, or the refusal
    accepted: Bool[Array, ""]  # False: it is the refusal
    tries: Int[Array, ""]  # rounds that were made

    @property
    def stopping_time(self) -> Float[Array, ""]:
        """The score for `calibrate`: the accepted try, inf if there was none."""
        return jnp.where(self.accepted, self.tries, jnp.inf)


def guarded(
    generator: Callable[[Any, Any, PRNGKeyArray], tuple[PyTree, Any]],
    *,
    verifier: Callable[[Any, PyTree], Bool[Array, ""]],
    budget: Budget | Scalar,
    refusal: PyTree,
    initial: PyTree = (),
    candidates: int = 1,
) -> Callable[[Any, PRNGKeyArray], Answer]:
    """Let a generator try until a verifier accepts. It suppresses outputs and removes nothing from the model.

    To calibrate, run it on calibration prompts with the largest number of tries that is bearable as the budget, and give the
    stopping times to `calibrate`; generator, verifier, refusal and candidates have to be the same afterwards, and the keys new.
    An infeasible budget is an error; where it is traced, everything is refused at once, without a try: a guard without a
    promise must not look like one with it.

    Args:
        generator: `(prompt, state, key) -> (output, state)`. The state begins as `initial` and carries what refinement needs:
            the last output, what was wrong with it. Its structure, shapes and dtypes must stay. Random, or tries are all equal.
        verifier: `(prompt, output) -> Bool[]`, whether an output meets the requirement. It may err, see `verifier_error_bound`.
        budget: of `calibrate`, one (vmap for many), or a number of tries; 0 refuses everything. May be traced.
        refusal: what is returned where nothing was accepted: arrays, or numbers, in the structure of an output.
        initial: state of the generator in front of the first try.
        candidates: outputs that are made and verified side by side in a round, each with its own state and key; the first that
            is accepted is returned, and rounds count as tries. Static.

    Returns:
        A pure function `(prompt, key) -> Answer` for jit and vmap; under vmap it ends with its slowest prompt.

    Raises:
        ValueError: an infeasible or infinite budget, or one that is not single; candidates below 1. When called: a refusal or
            a state that does not fit, a verifier that returns anything but one boolean.

    References:
        Basu Roy Chowdhury, Kidambi, Dubey, Wang, Mergen, Ahmed, Mehta: Inference-time unlearning using conformal prediction,
        2026, arXiv 2602.03787.

    Example:
        >>> generator = lambda prompt, state, key: (jax.random.categorical(key, prompt), state)
        >>> verifier = lambda prompt, token: token != 0  # token 0 is not to be said
        >>> prompts, keys = jnp.zeros((99, 3)).at[:, 0].set(1.0), jax.random.split(key, 100)
        >>> slow = jaxunlearn.guards.guarded(generator, verifier=verifier, budget=20, refusal=-1)
        >>> budget = jaxunlearn.guards.calibrate(jax.vmap(slow)(prompts, keys[1:]).stopping_time, alpha=0.1)
        >>> answer = jax.jit(jaxunlearn.guards.guarded(generator, verifier=verifier, budget=budget, refusal=-1))
        >>> int(answer(prompts[0], keys[0]).output) in (-1, 1, 2)
        True
    """
    checks.require_count("candidates", candidates)
    most = tries_of(budget)

    def tried(prompt: Any, state: Any, key: PRNGKeyArray) -> tuple[PyTree, Any, Any]:
        if candidates == 1:
            output, state = generator(prompt, state, key)
            return output, verifier(prompt, output), state
        outputs, state = jax.vmap(generator, in_axes=(None, 0, 0))(prompt, state, jax.random.split(key, candidates))
        good = jax.vmap(verifier, in_axes=(None, 0))(prompt, outputs)
        return jax.tree.map(lambda x: x[jnp.argmax(good)], outputs), jnp.any(good) if good.ndim == 1 else good, state

    def answer(prompt: Any, key: PRNGKeyArray) -> Answer:
        checks.check_key(key)
        begin = jax.tree.map(jnp.asarray, initial)
        if candidates > 1:
            begin = jax.tree.map(lambda x: jnp.broadcast_to(x, (candidates, *x.shape)), begin)
        refused = _fitting(jax.eval_shape(tried, prompt, begin, key), begin, refusal)

        def go_on(carry):
            _, accepted, tries, _ = carry
            return ~accepted & (tries < most)

        def again(carry):
            *_, tries, state = carry
            output, accepted, state = tried(prompt, state, jax.random.fold_in(key, tries))
            kept = jax.tree.map(lambda x, y: jnp.where(accepted, x, y), output, refused)
            return kept, accepted, tries + 1, state

        output, accepted, tries, _ = jax.lax.while_loop(go_on, again, (refused, jnp.bool(False), jnp.int32(0), begin))
        return Answer(output, accepted, tries)

    return answer


def guarded_host(
    generator: Callable[[Any, Any], tuple[Any, Any]],
    *,
    verifier: Callable[[Any, Any], bool],
    budget: Budget | Scalar,
    refusal: Any,
    initial: Any = None,
) -> Callable[[Any], Answer]:
    """`guarded` as a plain Python loop, for generators outside of JAX such as a served language model.

    Args:
        generator: `(prompt, state) -> (output, state)`; outputs are anything.
        verifier, budget, refusal, initial: as of `guarded`; the budget is concrete.

    Returns:
        `prompt -> Answer`, with Python values.

    Raises:
        ValueError: an infeasible or infinite budget. TypeError: a traced one.

    Example:
        >>> replies = iter(["the secret", "I cannot say"])
        >>> ask = jaxunlearn.guards.guarded_host(
        ...     lambda prompt, state: (next(replies), state), verifier=lambda prompt, x: "secret" not in x, budget=3, refusal=""
        ... )
        >>> answer = ask("What is it?")
        >>> answer.output, answer.tries
        ('I cannot say', 2)
    """
    most = tries_of(budget)
    if not checks.is_concrete(most):
        raise TypeError("guarded_host loops in Python, so its budget cannot be traced")

    def answer(prompt: Any) -> Answer:
        state, tries = initial, 0
        while tries < float(most):
            output, state = generator(prompt, state)
            tries += 1
            if verifier(prompt, output):
                return Answer(output, True, tries)  # type: ignore[arg-type]
        return Answer(refusal, False, tries)  # type: ignore[arg-type]

    return answer


def tries_of(budget: Budget | Scalar) -> Scalar:
    """The number of tries that a budget allows; 0 where it is traced and promises nothing."""
    number = budget.budget if isinstance(budget, Budget) else budget
    if jnp.ndim(number):
        raise ValueError(f"expected one budget, got shape {jnp.shape(number)}; call guarded inside of jax.vmap for many")
    if isinstance(budget, Budget) and checks.is_concrete(budget.feasible) and not bool(budget.feasible):
        raise ValueError(
            f"the budget is infeasible: no finite number of tries reaches {float(budget.level):.3g} with "
            f"{int(budget.num_prompts)} calibration prompts; raise alpha, calibrate on more prompts, "
            "or let the generator try more often there"
        )
    checks.check_range("budget", number, low=0, high=MOST)
    if checks.is_concrete(number):
        if number != int(number):
            raise ValueError(f"a budget is a whole number of tries, got {number}")
        return number
    promised = jnp.isfinite(number) & (budget.feasible if isinstance(budget, Budget) else True)
    return jnp.where(promised, number, 0)


def _fitting(tried: tuple[PyTree, Any, Any], begin: PyTree, refusal: PyTree) -> PyTree:
    """The refusal as an output; ValueError where it, the state or the verdict does not fit."""
    output, accepted, state = tried
    if getattr(accepted, "shape", None) != () or accepted.dtype != jnp.bool:
        raise ValueError(f"the verifier must return one boolean for an output, got {accepted}")
    forms = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (jax.eval_shape(lambda: begin), state)]
    if forms[0] != forms[1]:
        raise ValueError(f"the generator's state must keep its form: it begins as {forms[0]} and becomes {forms[1]}")
    if jax.tree.structure(refusal) != jax.tree.structure(output):
        raise ValueError(f"the refusal must have the structure of an output, {jax.tree.structure(output)}")
    try:
        return jax.tree.map(lambda x, y: jnp.broadcast_to(jnp.asarray(x, y.dtype), y.shape), refusal, output)
    except ValueError as error:
        raise ValueError(f"the refusal must fit an output: {error}") from None
