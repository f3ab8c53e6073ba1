"""The bottleneck's optimum and bound where they can be written down, Stein's gradient against quadrature, and a bandit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn import rl
from tests.problems import lane

direction = jax.jit(rl.stein_direction, static_argnames="prior")


def information(channel):
    """I(X; Z) of P(z|x), rows x, with equal P(x)."""
    return np.sum(channel * np.log(channel / channel.mean(axis=0))) / len(channel)


def objective(channel, gains, beta):
    return np.sum(channel * gains) / len(channel) - beta * information(channel)


def channels(generator, count, shape):
    return generator.dirichlet(np.ones(shape[1]), (count, shape[0]))


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_the_optimum_weighs_codes_by_what_they_gain(beta):
    generator = np.random.default_rng(0)
    gains = generator.normal(size=(4, 6))
    channel = channels(generator, 1, (4, 6))[0]
    for _ in range(3000):
        channel = channel.mean(axis=0) * np.exp(gains / beta)
        channel = np.maximum(channel / channel.sum(axis=1, keepdims=True), 1e-300)
    best = objective(channel, gains, beta)
    near = [(1 - share) * channel + share * other for share in (1e-3, 0.1) for other in channels(generator, 1000, (4, 6))]
    assert max(objective(other, gains, beta) for other in near) <= best + 1e-9


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_bound_is_one_and_is_reached_at_the_target_of_steins_gradient(beta):
    generator = np.random.default_rng(1)
    gains, prior = generator.normal(size=(4, 6)), generator.dirichlet(np.ones(6))

    def bound(channel):
        return np.mean(np.sum(channel * (gains - beta * np.log(channel / prior)), axis=1))

    for channel in channels(generator, 300, (4, 6)):
        assert bound(channel) <= objective(channel, gains, beta) + 1e-9
    weights = prior * np.exp(gains / beta)
    target = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(bound(target), beta * np.mean(np.log(weights.sum(axis=1))))
    assert max(bound(channel) for channel in channels(generator, 300, (4, 6))) < bound(target)


def test_steins_gradient_equals_quadrature_in_one_dimension():
    """Particles at the quantiles of a Gaussian, against the integral over it that they stand for."""
    beta, count = 0.25, 400
    z = jax.scipy.stats.norm.ppf((jnp.arange(count) + 0.5) / count)[:, None]
    slopes = -z  # of J = -z^2/2
    found = direction(z, slopes / count, beta=beta)[:, 0]
    apart = np.subtract.outer(z[:, 0], z[:, 0])
    width = np.median(apart[np.triu_indices(count, 1)] ** 2) / 2 / np.log(count + 1)
    grid = np.linspace(-7, 7, 20001)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    at = np.asarray(z[20::37, 0])
    kernel = np.exp(-((grid - at[:, None]) ** 2) / width)
    slope = -2 * (grid - at[:, None]) / width * kernel
    expected = np.sqrt(beta) * np.trapezoid(density * (kernel * -grid / beta + slope), grid, axis=1)
    np.testing.assert_allclose(found[20::37], expected, atol=0.01 * np.abs(expected).max())


def test_particles_settle_at_the_target():
    """J = -|z|^2/2 and a uniform prior: Gaussian with variance beta, a little narrow with this bandwidth."""
    beta = 0.25

    def step(z, _):
        return z + 0.2 * rl.stein_direction(z, -z / len(z), beta=beta), None

    z, _ = jax.lax.scan(step, 2 + jax.random.normal(jax.random.key(0), (64, 2)), length=1500)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(z.var(axis=0), beta, rtol=0.25)
    assert np.all(z.var(axis=0) < beta)


@pytest.mark.parametrize("prior", ["uniform", "gaussian"])
def test_one_particle_or_coinciding_ones_ascend(prior):
    slope = jnp.array([[1.0, -2.0]])
    np.testing.assert_allclose(direction(jnp.ones((1, 2)), slope, beta=0.25, prior=prior), 2 * slope)
    together = direction(jnp.ones((4, 2)), jnp.tile(slope / 4, (4, 1)), beta=0.25, prior=prior)
    np.testing.assert_allclose(together, jnp.tile(2 * slope, (4, 1)), rtol=1e-6)


def test_direction_equals_the_sums_it_is_made_of():
    key = jax.random.key(1)
    z, g = jax.random.normal(key, (2, 5, 3))
    beta, explore = 0.3, 0.7
    squares = np.sum((z[:, None] - z[None]) ** 2, axis=-1)
    width = 0.5 * np.median(squares[np.triu_indices(5, 1)]) / np.log(6)

    def kernel(a, b):
        return jnp.exp(-jnp.sum((a - b) ** 2) / width)

    for prior in ("uniform", "gaussian"):
        force = np.array(g) / np.sqrt(beta)
        if prior == "gaussian":
            q = -(z - z.mean(axis=0)) / (5 * (z.var(axis=0) + 1e-3))
            force = force + 5e-3 * np.linalg.norm(force, axis=1, keepdims=True) / np.linalg.norm(q, axis=1, keepdims=True) * q
        expected = [
            sum(kernel(z[j], z[i]) * force[j] + explore * np.sqrt(beta) / 5 * jax.grad(kernel)(z[j], z[i]) for j in range(5))
            for i in range(5)
        ]
        np.testing.assert_allclose(direction(z, g, beta=beta, prior=prior, explore=explore), expected, rtol=1e-4, atol=1e-5)


def encode(w, observation, noise):
    return observation @ w["in"] + noise @ w["noise"]


def heads(w, z):
    return z @ w["policy"] + w["bias"], z @ w["value"]


def draw_noise(key):
    return jax.random.normal(key, (2,))


def agent(**options):
    options = {"beta": 0.1, "num_particles": 6, **options}
    return rl.information_bottleneck(encode, heads, draw_noise, optax.sgd(0.1), optax.sgd(0.2), **options)


def start(key, width=2):
    keys = jax.random.split(key, 4)
    encoder = {"in": jax.random.normal(keys[0], (2, width)), "noise": 0.5 * jax.random.normal(keys[1], (2, width))}
    head = {"policy": jax.random.normal(keys[2], (width, 2)), "bias": jnp.zeros(2), "value": jnp.ones(width)}
    return encoder, head


def rollout(key, count=5):
    keys = jax.random.split(key, 4)
    return rl.Experience(
        jax.random.normal(keys[0], (count, 2)), jax.random.normal(keys[1], (count, 2)),
        jax.random.randint(keys[2], (count,), 0, 2), jax.random.normal(keys[3], (count,)),
    )  # fmt: skip


def test_the_gradient_of_the_encoder_is_amortised():
    encoder, _ = start(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 3)
    observations, noise = jax.random.normal(keys[0], (5, 2)), jax.random.normal(keys[1], (5, 6, 2))
    v = jax.random.normal(keys[2], (5, 6, 2))

    def loss(encoder):
        z = jax.vmap(jax.vmap(encode, in_axes=(None, None, 0)), in_axes=(None, 0, 0))(encoder, observations, noise)
        return rl.encoder_loss(z, v + 0 * z)

    found = jax.grad(loss)(encoder)
    np.testing.assert_allclose(found["in"], -jnp.einsum("bi,bmd->id", observations, v) / 30, rtol=1e-5)
    np.testing.assert_allclose(found["noise"], -jnp.einsum("bmi,bmd->id", noise, v) / 30, rtol=1e-5)
    slope = jax.grad(lambda z: jnp.sum(rl.stein_direction(z, z**2, beta=0.1)))(v[0])
    np.testing.assert_array_equal(slope, 0)


def test_an_update_moves_encoder_and_heads_each_by_its_own_loss():
    key, (encoder, head), data = jax.random.key(2), start(jax.random.key(0)), rollout(jax.random.key(1))
    made = agent()
    state, stats = jax.jit(made.update)(made.init(encoder, head), data, key)
    noise = jax.vmap(jax.vmap(draw_noise))(jax.random.split(key, (5, 6))).at[:, 0].set(data.noise)

    def particles(encoder):
        return jax.vmap(jax.vmap(encode, in_axes=(None, None, 0)), in_axes=(None, 0, 0))(encoder, data.observations, noise)

    def gain(head, z, action, value):
        logits, values = jax.vmap(heads, in_axes=(None, 0))(head, z)
        return rl.actor_critic_objective(logits, values, action, value)

    z = particles(encoder)
    gains = jax.vmap(gain, in_axes=(None, 0, 0, 0))
    slopes = jax.grad(lambda head: -jnp.mean(gains(head, z, data.actions, data.returns)))(head)
    chex.assert_trees_all_close(state.heads, jax.tree.map(lambda x, g: x - 0.2 * g, head, slopes), rtol=1e-5, atol=1e-6)
    at_particles = jax.vmap(jax.grad(gain, argnums=1), in_axes=(None, 0, 0, 0))(head, z, data.actions, data.returns)
    v = jax.vmap(lambda z, g: rl.stein_direction(z, g, beta=0.1))(z, at_particles)
    moved = jax.grad(lambda encoder: rl.encoder_loss(particles(encoder), v))(encoder)
    chex.assert_trees_all_close(state.encoder, jax.tree.map(lambda x, g: x - 0.1 * g, encoder, moved), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["objective"], jnp.mean(gains(head, z, data.actions, data.returns)), rtol=1e-5)


def test_many_agents_are_one_vmap_and_settings_may_be_traced():
    keys = jax.random.split(jax.random.key(3), 3)
    starts, data = jax.vmap(start)(keys), jax.vmap(rollout)(keys)

    def run(weights, data, key, beta):
        made = agent(beta=beta, explore=0.5)
        return made.update(made.init(*weights), data, key)

    betas = jnp.array([0.01, 0.1, 1.0])
    together = jax.jit(jax.vmap(run))(starts, data, keys, betas)
    alone = jax.jit(run)(lane(starts, 1), lane(data, 1), keys[1], betas[1])
    chex.assert_trees_all_close(lane(together, 1), alone, rtol=1e-5, atol=1e-6)


def test_the_objective_is_that_of_advantage_actor_critic():
    logits, values = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]])), jnp.array([1.0, 3.0])
    found = rl.actor_critic_objective(logits, values, 1, 2.0)
    entropies = [-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)), np.log(2)]
    expected = np.mean([np.log(0.75), -np.log(0.5)]) - 0.5 * 0.5 + 0.01 * np.mean(entropies)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    slope = jax.grad(lambda v: rl.actor_critic_objective(logits, v, 1, 2.0))(values)
    np.testing.assert_allclose(slope, [0.25, -0.25])  # none through the advantage
    masked = jnp.array([[0.0, -jnp.inf]])  # an action that cannot be taken
    assert jnp.isfinite(rl.actor_critic_objective(masked, values[:1], 0, 2.0))
    assert jnp.isfinite(jax.grad(lambda x: rl.actor_critic_objective(x, values[:1], 0, 2.0))(masked)).all()


def test_returns_end_with_their_episodes():
    rewards, ends = jnp.ones((4, 2)), jnp.array([[0, 0], [1, 0], [0, 0], [0, 0]])
    found = rl.n_step_returns(rewards, ends, jnp.array([8.0, 0.0]), discount=0.5)
    np.testing.assert_allclose(found, [[1.5, 1.875], [1, 1.75], [3.5, 1.5], [5, 1]])


def bandit(beta, seed, steps=1500):
    """Two bits are seen, the first decides which of two actions pays; final weights."""
    made = rl.information_bottleneck(encode, heads, draw_noise, optax.adam(0.02), optax.adam(0.02), beta=beta, num_particles=16)

    def step(state, key):
        bits, noise, act, fresh = jax.random.split(key, 4)
        seen = jax.random.bernoulli(bits, shape=(32, 2)).astype(float) * 2 - 1
        noise = jax.random.normal(noise, (32, 2))
        z = jax.vmap(encode, in_axes=(None, 0, 0))(state.encoder, seen, noise)
        logits, _ = jax.vmap(heads, in_axes=(None, 0))(state.heads, z)
        actions = jax.random.categorical(act, logits)
        rewards = (actions == (seen[:, 0] > 0)).astype(float)
        state, _ = made.update(state, rl.Experience(seen, noise, actions, rewards), fresh)
        return state, jnp.mean(rewards)

    first, second = jax.random.split(jax.random.key(seed))
    return jax.lax.scan(step, made.init(*start(first, width=2)), jax.random.split(second, steps))


@pytest.mark.slow
def test_the_bottleneck_drops_the_bit_that_does_not_pay():
    def read(beta, seed):
        state, rewards = bandit(beta, seed)
        seen = jnp.tile(jnp.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]]), (500, 1))
        noise = jax.random.normal(jax.random.key(99), (2000, 2))
        z = jax.vmap(encode, in_axes=(None, 0, 0))(state.encoder, seen, noise)
        z = jnp.c_[z - z.mean(axis=0), jnp.ones(2000)]
        # the best linear probe of the second bit, which is Bayes' for Gaussians of one shape
        probe = jnp.linalg.lstsq(z, seen[:, 1])[0]
        return jnp.mean((z @ probe > 0) == (seen[:, 1] > 0)), jnp.mean(rewards[-200:])

    read = jax.jit(jax.vmap(read, in_axes=(None, 0)))
    (probes, rewards), (free_probes, free_rewards) = read(0.1, jnp.arange(4)), read(1e-4, jnp.arange(4))
    print(f"probe {probes.mean():.3f} and {free_probes.mean():.3f}, reward {rewards.mean():.4f} and {free_rewards.mean():.4f}")
    assert rewards.mean() > 0.98
    assert free_rewards.mean() > 0.98
    assert probes.mean() < 0.6
    assert free_probes.mean() > 0.8


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: agent(beta=0.0), "beta must lie in"),
        (lambda: agent(num_particles=0), "num_particles must be an integer"),
        (lambda: agent(prior="flat"), "prior must be one of uniform, gaussian"),
        (lambda: agent(explore=-1.0), "explore must lie in"),
        (lambda: rl.stein_direction(jnp.ones((2, 3)), jnp.ones((2, 2)), beta=1.0), "expected particles and gradients"),
        (lambda: rl.n_step_returns(jnp.ones(2), jnp.ones(2), 0.0, discount=1.5), "discount must lie in"),
    ],
)
def test_bad_input_is_told(call, words):
    with pytest.raises(ValueError, match=words):
        call()
