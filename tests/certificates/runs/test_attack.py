"""Certified runs under attack: the worst pair of starts, seen on the line between them.

Starts lie on opposite poles of the ball, and the loss pulls weights away from the middle with gradients that are always
clipped. What is seen is how far the two worlds end apart, in deviations (mu of Gaussian differential privacy).
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import audit
from jaxunlearn import certificates as c
from tests.problems import lane

NORM, RATE, PULL, STEPS, DELTA, LEVEL = 1.0, 0.1, 0.2, 5, 1e-5, 3.29  # LEVEL: deviations of a 99.9 % interval
DATA = ju.training_data(np.zeros((8, 1), np.float32), np.zeros(8, np.int32))
REQUEST = lane(ju.from_indices(DATA, [[0]]), 0)


def outward(variables, inputs, *, train=False, key=None):
    pull = -100 * jnp.abs(variables.params["w"][0]) * jnp.ones(inputs.shape[0])
    return ju.Outputs(jnp.stack([jnp.zeros_like(pull), pull], axis=1))


MODEL = ju.Model(outward, lambda outputs, examples: outputs.logits[:, 1])


def program(project, steps):
    """Runs from both poles, as many as there are keys; noise is traced."""

    @jax.jit
    def ends(sigma, keys):
        options = {} if project == "before noise" else {"gradient_norm": PULL}
        method = ju.noisy_finetune(
            MODEL, optax.sgd(0.0), sigma=sigma, norm=NORM, noisy_steps=steps, noisy_rate=RATE, project=project, **options
        )
        unlearn = ju.batched(ju.iterate(method, steps, batch_size=1), in_axes=(None, None, None, 0), chunk=keys.shape[1])

        def world(sign, keys):
            start = ju.Variables({"w": 10 * sign * jnp.array([1.0, 0.0])})
            return unlearn(start, DATA, REQUEST, keys).variables.params["w"][:, 0]

        return world(1.0, keys[0]), world(-1.0, keys[1])

    return ends


def apart(first, second):
    """mu of two worlds, and half the width of its interval."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    spread = np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
    mu = (first.mean() - second.mean()) / spread
    return mu, LEVEL * np.sqrt((2 + mu**2 / 4) / first.size)


@cache
def shown_by(method):
    """Worlds mirror each other, so that 0 is the threshold that tells most; nothing is chosen after the scores were seen."""
    return jax.jit(partial(audit.canary_epsilon, delta=DELTA, method=method, threshold=0.0))


def attack(ends, sigma, epsilon, runs, seed, methods=("gaussian",), moments=True):
    """Honest noise stays below the certified mu, and near it; half of it is caught, also by exact limits of the counts."""
    certified = 1 / float(c.gaussian_scale(1.0, epsilon, DELTA))
    honest = ends(sigma, jax.random.split(jax.random.key(seed), (2, runs)))
    halved = ends(sigma / 2, jax.random.split(jax.random.key(seed + 1), (2, runs)))
    seen = [apart(*worlds) for worlds in (honest, halved)]
    if moments:
        (mu, width), (low, narrow) = seen
        assert 0.8 * certified - width < mu
        assert mu - width <= certified
        assert low - narrow > certified
    for method in methods:
        shown, caught = (float(shown_by(method)(*worlds).epsilon) for worlds in (honest, halved))
        print(f"{method}: epsilon {epsilon} is at least {shown:.3f}, with half the noise {caught:.3f}")
        assert shown <= epsilon, method
        assert method != "gaussian" or caught > epsilon
    return [mu for mu, _ in seen]


def test_noise_of_the_accountant_stands_and_half_of_it_is_caught():
    sigma = float(c.step_noise(2 * NORM, 1.0, 2 * RATE * PULL, 4.0, DELTA, num_steps=STEPS))
    attack(program("never", STEPS), sigma, 4.0, 1000, 0, ("rates", "one run", "gaussian"))


@pytest.mark.slow
@pytest.mark.parametrize("project", ["never", "before noise", "after noise"])
def test_ten_thousand_runs_at_three_epsilons(project):
    """One step from the poles attains a projection; clipped gradients fall short by the pulls that noise turns around.

    A projection behind the noise shortens what is seen, and turns no sign around: there the counts decide alone.
    """
    steps = STEPS if project == "never" else 1
    ends = program(project, steps)
    for place, epsilon in enumerate((0.5, 1.0, 4.0)):
        certified = 1 / float(c.gaussian_scale(1.0, epsilon, DELTA))
        if project == "never":
            sigma = float(c.step_noise(2 * NORM, 1.0, 2 * RATE * PULL, epsilon, DELTA, num_steps=steps))
        else:
            push = {"learning_rate": RATE, "gradient_norm": PULL} if project == "after noise" else {}
            sigma = float(c.projected_noise(NORM, epsilon, DELTA, num_steps=1, **push))
        mu, low = attack(ends, sigma, epsilon, 10_000, 10 * place, moments=project != "after noise")
        print(f"{project} epsilon {epsilon}: certified mu {certified:.4f}, seen {mu:.4f}, half the noise {low:.4f}")
