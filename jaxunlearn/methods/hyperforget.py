"""HyperForget (Lara Rangel, Schoepf, Foster, Krueger, Anwar: Learning to forget using hypernetworks, 2024, arXiv 2412.00761):
a network that forgot is drawn from a diffusion over weights, which is told what losses it shall have.

    theta = scale w0,    c = (l_r* - l_r, l_r*, l_r, l_f* - l_f, l_f*, l_f),    w ~ H(. | theta, c) / scale

H is trained before, on networks that did and did not see the forget set; l_r and l_f are mean losses of w0 on the retain set
and on the forget set, starred those that are asked for. A request takes no gradient.

A reconstruction: of the paper only the abstract and summaries of others were read, and no code is released. The diffusion is
that of G.pt (arXiv 2209.12892), which it extends and whose code was read; condition, prompts and the choice among samples are
this library's. Told the loss on the forget set alone, it is the other of the two variants that summaries speak of. Its numbers
cannot be compared with the published ones.

Guarantee none. H was trained on networks that saw the forget set, and so has memorised it: to release H is no unlearning. What
it samples starts from w0, and may inherit the forget set from there. It is only as good as H, which needs thousands of trained
networks of one small form. Networks of that size are retrained in less time than one of them is sampled, see
`experiments/results`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import checks, sampling
from jaxunlearn.card import Method
from jaxunlearn.evaluation import evaluate, map_rows
from jaxunlearn.hypernetworks.diffusion import Hypernetwork, sample
from jaxunlearn.hypernetworks.vectors import condition, to_params, to_vector
from jaxunlearn.loop.damage import damage
from jaxunlearn.loop.one_shot import one_shot
from jaxunlearn.status import combine
from jaxunlearn.types import Data, ForgetRequest, Model, Result, Scalar, UnlearnFn, Variables, Weighted

METHOD = Method(
    summary="draw a network from a diffusion over weights that is told what losses it shall have",
    cites="lararangel2024learning",
    family="generative",
    reads=frozenset({"forget", "retain"}),
    reconstruction=True,
    aliases=("dihyfo",),
    search={"forget_prompt": (2.5, 4.0, 6.0, 8.0)},
)


def hyperforget(
    model: Model,
    *,
    hypernetwork: Hypernetwork,
    forget_prompt: Scalar,
    retain_prompt: Scalar | None,
    num_samples: int = 8,
    eta: Scalar = 1.0,
    retain_rows: int = 256,
) -> UnlearnFn:
    """Sample some networks that forgot, and keep the one whose losses are nearest to what was asked for.

    The kept one has the smallest `|l_r - l_r*| + |l_f - l_f*|`, on the rows that the condition is measured on; of equal ones
    the first. A sample whose losses are not finite is kept only if there is no other. If the request has a `target`, such as
    the classes of `jaxunlearn.from_classes`, its numbers are the end of the condition, so that one hypernetwork serves requests
    for any class. To feed what is sampled back is `jaxunlearn.then(unlearn, unlearn)`.

    Args:
        model: any; its state stays as it is, so BatchNorm statistics remain those of the trained network.
        hypernetwork: trained on networks of this form, under conditions of this form, see `jaxunlearn.hypernetworks`. Its
            `params` and `scale` may be traced.
        forget_prompt: l_f*, mean loss on the forget set that is asked for, may be traced; for a classifier from that of
            guessing, log c, up to what H has seen.
        retain_prompt: l_r*, on the retain set, may be traced: the least that H has seen. None leaves the retain set out of
            the condition and of the choice; it is then not read.
        num_samples: networks that are sampled per request, static; their losses are in `stats`.
        eta: noise of the sampling in [0, 1], may be traced, see `jaxunlearn.hypernetworks.sample`.
        retain_rows: so many rows of the retain set, at equal distances, stand for all of it; static. Where it has fewer, all.

    Returns:
        An `UnlearnFn`; `stats`: `forget_losses`, `retain_losses` Float[num_samples] of the samples, `chosen` Int[], `distance`
        Float[] of the chosen one to the prompts (NaN if no row tells), `forget_loss_before`, `retain_loss_before`,
        `retain_loss_after` Float[]. Those of the retain set only with a `retain_prompt`; then DAMAGED is the status where the
        chosen network knows less of it than guessing does: draw more samples, or train H longer.

    Raises:
        ValueError: prompts that are NaN, `eta` outside [0, 1], a number that is not positive; at trace time a denoiser that
            makes a vector of another shape. TypeError: no `Hypernetwork`.

    References:
        Lara Rangel, Schoepf, Foster, Krueger, Anwar: Learning to forget using hypernetworks, 2024, arXiv 2412.00761. Peebles,
        Radosavovic, Brooks, Efros, Malik: Learning to learn with generative models of neural network checkpoints, 2022, arXiv
        2209.12892.

    Example:
        >>> from jaxunlearn import hypernetworks
        >>> def denoise(params, noised, start, condition, step):  # an untrained one
        ...     return start + 0.01 * noised
        >>> schedule = hypernetworks.linear_schedule(50)
        >>> made = hypernetworks.Hypernetwork(denoise, (), schedule=schedule)
        >>> unlearn = jaxunlearn.hyperforget(model, hypernetwork=made, forget_prompt=2.0, retain_prompt=0.1, num_samples=3)
        >>> result = jax.jit(unlearn)(variables, data, request, key)
        >>> result.stats["forget_losses"].shape
        (3,)
    """
    if not isinstance(hypernetwork, Hypernetwork):
        raise TypeError(f"hypernetwork must be a jaxunlearn.hypernetworks.Hypernetwork, got {type(hypernetwork).__name__}")
    checks.check_range("forget_prompt", forget_prompt, low=-jnp.inf)  # losses of densities can be negative
    if retain_prompt is not None:
        checks.check_range("retain_prompt", retain_prompt, low=-jnp.inf)
    checks.require_count("num_samples", num_samples)
    checks.require_count("retain_rows", retain_rows)
    checks.check_range("eta", eta, low=0, high=1)
    asked = {"forget": forget_prompt} if retain_prompt is None else {"retain": retain_prompt, "forget": forget_prompt}

    def update(variables: Variables, data: Data, request: ForgetRequest, key) -> Result:
        split_key, sample_key = jax.random.split(key)
        rows = {"forget": sampling.forget_rows(data, request)}
        if retain_prompt is not None:
            split = sampling.split(data, request, split_key)
            rows["retain"] = _once(sampling.spread_retain(split, min(retain_rows, data.present.shape[0])))

        def measured(variables: Variables) -> Float[Array, " m"]:
            def mean(part: Weighted):
                losses = map_rows(lambda rows: evaluate(model, variables, rows)[1], part.examples)
                return sampling.masked_mean(losses, part.weights, empty=jnp.nan)

            return jnp.stack([mean(rows[side]) for side in asked])

        def network(vector: Float[Array, " p"]) -> Variables:
            return variables._replace(params=to_params(vector, variables.params, hypernetwork.scale))

        before = measured(variables)
        prompts = jnp.stack([jnp.asarray(prompt, before.dtype) for prompt in asked.values()])
        some = jnp.stack([jnp.any(rows[side].weights > 0) for side in asked])  # a side without rows is as it shall be
        told = condition(jnp.where(some, before, prompts), prompts, request.target)
        start = to_vector(variables.params, hypernetwork.scale)
        made = jax.vmap(lambda key: sample(hypernetwork, start, told, key, eta=eta))(jax.random.split(sample_key, num_samples))
        losses = jax.vmap(lambda vector: measured(network(vector)))(made)
        apart = jnp.sum(jnp.where(some, jnp.abs(losses - prompts), 0), axis=1)
        chosen = jnp.argmin(jnp.where(jnp.isfinite(apart), apart, jnp.inf)).astype(jnp.int32)
        after = network(made[chosen])
        stats = {"chosen": chosen, "distance": jnp.where(jnp.any(some), apart[chosen], jnp.nan)}
        for place, side in enumerate(asked):
            stats |= {f"{side}_losses": losses[:, place], f"{side}_loss_before": before[place]}
        code = combine(NONFINITE=~jnp.isfinite(apart[chosen]))
        if retain_prompt is not None:
            found, conditions = damage(model, variables, after, rows["retain"], None)
            stats, code = {**stats, **found}, jnp.maximum(code, combine(**conditions))
        return Result(after, code, stats)

    return one_shot(update, model=model, on_empty=METHOD.on_empty)


def _once(part: Weighted) -> Weighted:
    """Ascending rows, each of which counts once: where there are fewer than were drawn, some come twice."""
    fresh = jnp.concatenate([jnp.ones(1, bool), part.slots[1:] != part.slots[:-1]])
    return part._replace(weights=part.weights * fresh)
