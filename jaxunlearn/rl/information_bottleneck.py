"""SVIB, an information bottleneck for actor-critic agents by Stein variational gradients (Pei, Hou: Learning representations in
reinforcement learning: an information bottleneck approach, 2019, arXiv 1911.05695; its equations from the authors' code).

**It is no unlearning method.** It trains an agent whose representation Z = phi(X, e) of an observation X, e random, carries
little besides what the return needs: there is no forget set, no removal and no guarantee.

    L(theta, phi) = E[J(Z; theta)] - beta I(X; Z) >= E[J(Z; theta) - beta log P(Z|X) / U(Z)],   best at P ~ U(Z) e^(J(Z)/beta)

The encoder's density is not known; its M samples z_i for an observation are moved by Stein's gradient towards that best one,

    v_i = sum_j K(z_j, z_i) g_j / sqrt(beta) + sqrt(beta) explore (1/M) sum_j d K(z_j, z_i)/d z_j,   K(a, b) = e^(-|a - b|^2/h)
    g = d [(1/M) sum_m J(z_m)] / dz,   h = median_{i<j} |z_i - z_j|^2 / (2 log(M + 1)),   encoder loss  -mean_i v_i . z_i

with v and h held fixed: sqrt(beta) times the gradient of Stein variational descent, as the code has it, with half of the usual
h. For several games the code sets `explore=0`, which is no bottleneck at all, and its default is another method (MINE). With
few particles in many dimensions such kernels make the spread of Z too small; the bound itself is never evaluated.

A use of this library's own, unproven: fine-tune an agent on the retained environments only, so that Z may drop what only the
forgotten one needed. All other weights keep what they know, and so does Z what is of use elsewhere too. Judge it by returns in
forgotten and retained environments, and by a probe that reads the environment from Z, beside a retrained agent.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import checks
from jaxunlearn.types import Scalar

Prior: TypeAlias = Literal["uniform", "gaussian"]
SCALE_OF_THE_PRIOR, LEAST_VARIANCE = 5e-3, 1e-3  # of the authors' code
SMALLEST_BETA = 1e-12


class Experience(NamedTuple):
    """What an agent saw and did, as it is trained on; `b` observations."""

    observations: PyTree  # leaves [b, ...]
    noise: PyTree  # what the encoder was given when it acted, leaves [b, ...]
    actions: Int[Array, " b"]
    returns: Float[Array, " b"]  # see `n_step_returns`


class State(NamedTuple):
    """Encoder and heads with their optimizers."""

    encoder: PyTree
    heads: PyTree
    encoder_optimizer: PyTree
    heads_optimizer: PyTree


class ActorCritic(NamedTuple):
    """`init(encoder, heads) -> State` and `update(state, rollout, key) -> (State, stats)`, pure functions."""

    init: Callable[[PyTree, PyTree], State]
    update: Callable[[State, Experience, PRNGKeyArray], tuple[State, dict[str, Array]]]


def information_bottleneck(
    encode: Callable[[PyTree, PyTree, PyTree], Float[Array, " d"]],
    heads: Callable[[PyTree, Float[Array, " d"]], tuple[Float[Array, " a"], Float[Array, ""]]],
    draw_noise: Callable[[PRNGKeyArray], PyTree],
    encoder_optimizer: optax.GradientTransformation,
    heads_optimizer: optax.GradientTransformation,
    *,
    beta: Scalar = 1e-3,
    num_particles: int = 32,
    prior: Prior = "uniform",
    explore: Scalar = 1.0,
    entropy_weight: Scalar = 0.01,
    value_weight: Scalar = 0.5,
) -> ActorCritic:
    """Advantage actor-critic (A2C) with a bottleneck between observation and heads. No unlearning method, see the module.

    The heads descend on `-J` with the particles held fixed, the encoder on `encoder_loss` with the heads held fixed. It costs
    `num_particles` times what A2C does. The first particle of an observation has the noise that the agent acted with.

    Args:
        encode: `(parameters, observation, noise) -> z`, for one observation; it has to depend on its noise.
        heads: `(parameters, z) -> (logits of the actions, value)`.
        draw_noise: `key -> noise` of one particle; draw what the agent acts with by it too.
        encoder_optimizer, heads_optimizer: any optax transformations; published: RMSProp, clipped to a gradient norm of 0.5.
        beta: weight of the bottleneck, above 0, may be traced. Small: plain ascent; large: particles spread over the prior.
        num_particles: M, static.
        prior: U; "uniform", or "gaussian", the Gaussian with the moments of the particles, as weak as in the authors' code.
        explore: weight of what drives particles apart; 0 is no bottleneck.
        entropy_weight, value_weight: see `actor_critic_objective`.

    Returns:
        An `ActorCritic`; `stats` of an update: `objective`, `spread` (mean squared distance of a particle from the mean of its
        observation), Float[]. Many agents are one `jax.vmap` over states, roll-outs and keys.

    Raises:
        ValueError: settings out of range, or an unknown prior.

    References:
        Pei, Hou: Learning representations in reinforcement learning: an information bottleneck approach, 2019,
        arXiv 1911.05695.
        Liu, Wang: Stein variational gradient descent, 2016, arXiv 1608.04471.

    Example:
        Our own use, unproven: roll out in retained environments only, so that Z may drop what only the forgotten one needed.

        >>> encode = lambda w, observation, noise: observation @ w + 0.1 * noise
        >>> heads = lambda w, z: (z @ w["policy"], z @ w["value"])
        >>> agent = jaxunlearn.rl.information_bottleneck(
        ...     encode, heads, lambda key: jax.random.normal(key, (2,)), optax.sgd(0.1), optax.sgd(0.1), num_particles=4
        ... )
        >>> state = agent.init(jnp.eye(2), {"policy": jnp.ones((2, 3)), "value": jnp.zeros(2)})
        >>> noise = jax.random.normal(key, (5, 2))
        >>> retained = jaxunlearn.rl.Experience(jnp.ones((5, 2)), noise, jnp.zeros(5, int), jnp.ones(5))
        >>> state, stats = jax.jit(agent.update)(state, retained, key)
        >>> sorted(stats)
        ['objective', 'spread']
    """
    checks.require_count("num_particles", num_particles)
    checks.check_range("entropy_weight", entropy_weight, low=0)
    checks.check_range("value_weight", value_weight, low=0)
    _check(beta, prior, explore)
    # observations share the parameters, and particles share parameters and observation
    encode_all = jax.vmap(jax.vmap(encode, in_axes=(None, None, 0)), in_axes=(None, 0, 0))

    def init(encoder: PyTree, parameters: PyTree) -> State:
        return State(encoder, parameters, encoder_optimizer.init(encoder), heads_optimizer.init(parameters))

    def objective(parameters: PyTree, particles: Float[Array, "m d"], action: Array, value: Array) -> Float[Array, ""]:
        logits, values = jax.vmap(heads, in_axes=(None, 0))(parameters, particles)
        weights = {"entropy_weight": entropy_weight, "value_weight": value_weight}
        return actor_critic_objective(logits, values, action, value, **weights)

    def update(state: State, rollout: Experience, key: PRNGKeyArray) -> tuple[State, dict[str, Array]]:
        count = jnp.shape(rollout.actions)[0]
        fresh = jax.vmap(jax.vmap(draw_noise))(jax.random.split(key, (count, num_particles)))
        noise = jax.tree.map(lambda mine, own: mine.at[:, 0].set(own), fresh, rollout.noise)
        particles, pull = jax.vjp(lambda encoder: encode_all(encoder, rollout.observations, noise), state.encoder)

        def heads_loss(parameters, particles):
            found = jax.vmap(objective, in_axes=(None, 0, 0, 0))(parameters, particles, rollout.actions, rollout.returns)
            return -jnp.mean(found)

        loss, (slopes, z_slopes) = jax.value_and_grad(heads_loss, argnums=(0, 1))(state.heads, particles)
        directions = jax.vmap(lambda z, g: stein_direction(z, g, beta=beta, prior=prior, explore=explore))
        moved = directions(particles, -count * z_slopes)  # the mean over observations is the loss's, not theirs
        (encoder_slopes,) = pull(jax.grad(encoder_loss)(particles, moved))
        changes = encoder_optimizer.update(encoder_slopes, state.encoder_optimizer, state.encoder)
        head_changes = heads_optimizer.update(slopes, state.heads_optimizer, state.heads)
        new = State(
            optax.apply_updates(state.encoder, changes[0]), optax.apply_updates(state.heads, head_changes[0]),
            changes[1], head_changes[1],
        )  # fmt: skip
        spread = jnp.mean(jnp.sum(jnp.var(particles, axis=1), axis=-1))
        return new, {"objective": -loss, "spread": spread}

    return ActorCritic(init, update)


def stein_direction(
    particles: Float[Array, "m d"],
    gradients: Float[Array, "m d"],
    *,
    beta: Scalar,
    prior: Prior = "uniform",
    explore: Scalar = 1.0,
) -> Float[Array, "m d"]:
    """Where the particles of one observation go: up the objective, and apart. No gradient flows through it.

    Args:
        particles: z_1 to z_M.
        gradients: of the *mean* of J over the particles, in each particle, so that they hold 1/M.
        beta, prior, explore: as of `information_bottleneck`.

    Returns:
        v, see the module. A single particle, or particles that coincide, have no kernel to speak of: they ascend together.

    Raises:
        ValueError: shapes that differ, settings out of range, an unknown prior.

    Example:
        >>> jaxunlearn.rl.stein_direction(jnp.ones((1, 2)), jnp.array([[1.0, 2.0]]), beta=0.25).tolist()
        [[2.0, 4.0]]
    """
    _check(beta, prior, explore)
    if jnp.ndim(particles) != 2 or jnp.shape(particles) != jnp.shape(gradients):
        raise ValueError(f"expected particles and gradients [m, d], got {jnp.shape(particles)} and {jnp.shape(gradients)}")
    z, g = jax.lax.stop_gradient((jnp.asarray(particles), jnp.asarray(gradients)))
    count, root = z.shape[0], jnp.sqrt(jnp.asarray(beta, z.dtype))
    g = g / root
    if prior == "gaussian":
        g = g + _towards_gaussian(z, g)
    apart = z[:, None] - z[None]  # differences, because squares of rows less their products cancel where particles are close
    squares = jnp.sum(apart**2, axis=-1)
    if count == 1:
        return g
    middle = jnp.median(squares[jnp.triu_indices(count, 1)])
    width = 0.5 * middle / jnp.log(count + 1.0)
    is_wide = width > 0
    inverse = jnp.where(is_wide, 1 / jnp.where(is_wide, width, 1), 0)
    kernel = jnp.exp(-squares * inverse)
    # d K(z_j, z_i) / d z_j = -2 (z_j - z_i) K / h, summed over j
    repulsion = 2 * inverse * jnp.sum(kernel[..., None] * apart, axis=1) / count
    return kernel @ g + explore * root * repulsion


def _check(beta: Any, prior: str, explore: Any) -> None:
    checks.check_range("beta", beta, low=SMALLEST_BETA)
    checks.check_range("explore", explore, low=0)
    if prior not in get_args(Prior):
        raise ValueError(f"prior must be one of {', '.join(get_args(Prior))}, got {prior!r}")


def _towards_gaussian(z: Float[Array, "m d"], g: Float[Array, "m d"]) -> Float[Array, "m d"]:
    """The slope of the Gaussian with the moments of the particles, with a share of the length of the gradients."""
    slope = -(z - jnp.mean(z, axis=0)) / (z.shape[0] * (jnp.var(z, axis=0) + LEAST_VARIANCE))
    lengths = jnp.linalg.norm(slope, axis=1, keepdims=True)
    share = jnp.linalg.norm(g, axis=1, keepdims=True) / jnp.where(lengths > 0, lengths, 1)
    return SCALE_OF_THE_PRIOR * jnp.where(lengths > 0, share, 0) * slope


def encoder_loss(particles: Float[Array, "... m d"], directions: Float[Array, "... m d"]) -> Float[Array, ""]:
    """`-mean v . z` over particles and observations; its gradient in the encoder is that of amortised Stein ascent.

    Args:
        particles: of every observation, through which the gradient flows.
        directions: of `stein_direction`, held fixed.

    Returns:
        The loss.

    Example:
        >>> float(jaxunlearn.rl.encoder_loss(jnp.ones((3, 4, 2)), jnp.ones((3, 4, 2))))
        -2.0
    """
    return -jnp.mean(jnp.sum(jax.lax.stop_gradient(directions) * particles, axis=-1))


def actor_critic_objective(
    logits: Float[Array, "m a"],
    values: Float[Array, " m"],
    action: Int[Array, ""],
    returned: Float[Array, ""],
    *,
    entropy_weight: Scalar = 0.01,
    value_weight: Scalar = 0.5,
) -> Float[Array, ""]:
    """J of one observation: what advantage actor-critic ascends, in the mean over particles.

        J = mean_m [ (R - V_m) log pi_m(a) - value_weight (V_m - R)^2 / 2 + entropy_weight H(pi_m) ],    R - V_m held fixed

    Args:
        logits: of the actions, for each particle.
        values: V, for each particle.
        action: a, what was done.
        returned: R, what it returned.
        entropy_weight, value_weight: published 0.01 and 0.5.

    Returns:
        J.

    Example:
        >>> float(jaxunlearn.rl.actor_critic_objective(jnp.zeros((4, 2)), jnp.ones(4), 0, 1.0, entropy_weight=0.0))
        0.0
    """
    chances = jax.nn.log_softmax(logits)
    advantages = jax.lax.stop_gradient(returned - values)
    possible = jnp.isfinite(chances)  # logits of -inf are actions that cannot be taken
    entropies = -jnp.sum(jnp.where(possible, jnp.exp(chances), 0) * jnp.where(possible, chances, 0), axis=-1)
    found = advantages * chances[:, action] - value_weight * (values - returned) ** 2 / 2 + entropy_weight * entropies
    return jnp.mean(found)


def n_step_returns(
    rewards: Float[Array, "t ..."], ends: Float[Array, "t ..."], last_value: Float[Array, "..."], *, discount: Scalar = 0.99
) -> Float[Array, "t ..."]:
    """Returns of the steps of a roll-out: `R_t = r_t + discount (1 - end_t) R_{t+1}`, from the value where it was cut off.

    Args:
        rewards: along the first axis.
        ends: 1 where an episode ended with the step.
        last_value: V of the observation behind the last step.
        discount: per step.

    Returns:
        R, of the shape of the rewards.

    Example:
        >>> jaxunlearn.rl.n_step_returns(jnp.ones(3), jnp.array([0, 1, 0]), 4.0, discount=0.5).tolist()
        [1.5, 1.0, 3.0]
    """
    checks.check_range("discount", discount, low=0, high=1)
    last = jnp.broadcast_to(jnp.asarray(last_value, jnp.result_type(float)), jnp.shape(rewards)[1:])

    def back(later, step):
        reward, end = step
        found = reward + discount * jnp.where(end > 0, 0, later)
        return found, found

    return jax.lax.scan(back, last, (jnp.asarray(rewards, last.dtype), jnp.asarray(ends)), reverse=True)[1]
