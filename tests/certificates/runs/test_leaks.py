"""Ways round the noise of a run, and constants that a run did not enforce: each has to show in the certificate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import certificates as c
from jaxunlearn import tree
from jaxunlearn.certificates.runs.mechanisms import Run
from tests.problems import blobs, distance, held_out, lane, network

DATA, MODEL, KEY = blobs(), network(), jax.random.key(0)
VARIABLES = MODEL.init(jax.random.key(1))
REQUEST, OTHER = (lane(ju.from_indices(DATA, [rows]), 0) for rows in ([3, 17, 40], [5, 6, 7]))
NORM, STEPS = 0.1, 2
SIGMA = 1.001 * float(c.step_noise(2 * NORM, 1.0, 2 * 0.01, 1.0, 1e-5, num_steps=STEPS))


def run(optimizer=None, **options):
    optimizer = optax.sgd(0.0) if optimizer is None else optimizer
    method = ju.noisy_finetune(MODEL, optimizer, sigma=SIGMA, norm=NORM, noisy_steps=STEPS)
    unlearn = ju.iterate(method, 4, batch_size=4, damaged_at=np.inf, **options)
    return jax.jit(unlearn)(VARIABLES, DATA, REQUEST, KEY)


def certified(result, mechanism=None, data=DATA, request=REQUEST, delta=1e-5):
    mechanism = c.NoisyFinetune() if mechanism is None else mechanism
    said = {"extractor": "none", "adaptive": False, "secret_key": True}
    return c.certify_run(result, data, request, mechanism=mechanism, epsilon=1.0, delta=delta, **said)


def failed(certificate):
    return [each.name for each in certificate.assumptions if not each.holds]


def test_an_optimizer_that_keeps_its_first_weights_keeps_noisy_ones():
    """Prodigy, Schedule-Free and others store them; this one goes back there."""

    def back(gradient, first, params=None, **_):
        del gradient
        return jax.tree.map(jnp.subtract, first, params), first

    found = run(optax.GradientTransformationExtraArgs(lambda params: params, back))
    assert certified(found).valid
    assert distance(found.variables.params, run().variables.params) < 1e-6
    assert distance(found.variables.params, tree.clipped(VARIABLES.params, NORM)) > 0.1


def test_an_end_that_the_forget_set_chose_is_not_certified():
    chosen = {"stop": ju.until_unseen(MODEL, held_out()), "look_every": STEPS}
    assert failed(certified(run(**chosen))) == ["nothing looked at the forget set"]
    assert failed(certified(run(active_steps=lambda data, request: 3))) == ["nothing looked at the forget set"]


def test_a_look_at_steps_whose_noise_is_not_all_there_is_not_certified():
    best = {"keep_best": lambda variables, seen: jnp.sum(variables.params["bias"]), "validation": held_out()}
    assert "no look at noisy steps" in failed(certified(run(**best)))
    assert failed(certified(run(**best, look_every=STEPS))) == []


def test_a_run_does_not_answer_the_request_of_another_run():
    found, alone = run(), ju.output_perturbation(MODEL, sigma=0.0, clip_norm=NORM)(VARIABLES, DATA, REQUEST, KEY)
    longer = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros_like(x), x[::-1]]), REQUEST)
    fewer = DATA._replace(present=jnp.asarray(DATA.present).at[50].set(0))
    for result, mechanism in ((found, None), (alone, c.OutputPerturbation())):
        assert failed(certified(result, mechanism)) == failed(certified(result, mechanism, request=longer)) == []
        assert failed(certified(result, mechanism, request=OTHER)) == ["rows of the request"]
        assert failed(certified(result, mechanism, data=fewer)) == ["rows of the request"]


def test_half_precision_is_the_last_rounding():
    """The grid of bfloat16 near 0 is fine; a sum of two numbers of that grid is not, and would tell where one of them was."""
    weights = ju.Variables({"w": jnp.full(20_000, 0.5, jnp.bfloat16)})
    found = ju.output_perturbation(MODEL, sigma=4.0, clip_norm=1e3)(weights, DATA, REQUEST, KEY).variables.params["w"]
    near = np.asarray(found, np.float64)[np.abs(np.asarray(found, np.float64)) < 0.1]
    assert np.mean(near * 2**9 % 1 != 0) > 0.5
    quiet = ju.output_perturbation(MODEL, sigma=0.0, clip_norm=1.0)(weights, DATA, REQUEST, KEY)
    length = np.linalg.norm(np.asarray(quiet.variables.params["w"], np.float64))
    assert certified(quiet, c.OutputPerturbation()).sensitivity >= 2 * length


@pytest.mark.parametrize("size", [1e-30, 1e-24, 1.0, 1e24])
def test_clipping_is_a_projection_at_every_size(size):
    inside, outside = ({"w": jnp.full(1000, x * size, jnp.float32)} for x in (1 - 1e-6, 1 + 1e-6))
    radius = size * 1000**0.5
    first, second = (np.float64(tree.clipped(x, radius)["w"]) / size for x in (inside, outside))
    assert max(np.linalg.norm(first), np.linalg.norm(second)) <= 1000**0.5
    assert np.linalg.norm(first - second) < 3e-6 * 1000**0.5
    assert np.linalg.norm(np.float64(tree.clipped(outside, radius / 100)["w"]) / size) == pytest.approx(
        1000**0.5 / 100, rel=1e-4
    )


def rewound(steps, source="declared", rate=0.5, rounding=0.0):
    one = c.Constant(1.0, source)
    stats = {"step_size": np.float32(rate), "descent_steps": np.float32(steps), "undone_steps": np.float32(0)}
    return c.Rewind(one, one, steps_before=10, convexity=one).assess(Run(stats, 100, 1, rounding), 1.0, 1e-5)


def test_noise_below_rounding_hides_nothing():
    """Two descents that converge end apart by what rounding makes of them, not by 2^-400."""
    assert "noise above rounding" not in failed(rewound(5, rounding=1e-7))
    for steps, rate in ((60, 0.5), (400, 0.5), (2000, 0.5), (3, 1 - 2e-6)):
        assert failed(rewound(steps, rate=rate, rounding=1e-7)) == ["noise above rounding"]


def test_a_contraction_is_not_stronger_than_it_is():
    growth = c.growth_per_step(0.5, 1.0, 1.0)
    for steps in (1, 40, 400):
        exact = c.rewind_sensitivity(1, 100, 1.0, growth, 0.5, steps_before=10, steps_after=steps)
        assert exact <= rewound(steps).sensitivity <= exact * (1 + 1e-5 * steps)


@pytest.mark.parametrize("source", ["checked", "enforced", "assumed", "surely"])
def test_nobody_is_named_who_did_not_check_a_constant(source):
    with pytest.raises(ValueError, match="must be declared, estimated or unproved"):
        rewound(5, source)


def test_batches_in_turn_hide_a_row_after_an_epoch_and_not_before():
    """Steps of other batches may forget all (h L = 1) or little (c): the worst order stays below the bound from an epoch on."""
    batches, lost, rng = 24, 0.01, np.random.default_rng(0)
    contraction = 1 - lost
    start = c.langevin_mu(1, batches, 0.5, lost, 1.0, 0.5**0.5, num_batches=batches, smallest_batch=1)  # drift and noise 1

    def worst(after):
        """No step has a weaker contraction than c; those in front of the last drift may forget everything."""
        found = 0.0
        for weak in (np.ones, lambda n: rng.random(n) < 0.9, lambda n: np.arange(n) != n - 1 - after * batches):
            keep = np.asarray(weak((40 + after) * batches), bool)
            drift = np.arange(keep.size) % batches == batches - 1
            drift[40 * batches :] = False
            shift = np.zeros(2)  # of a linear run: distance and variance
            for kept, moved in zip(keep, drift, strict=True):
                shift = np.array([contraction * kept * shift[0] + moved, contraction**2 * kept * shift[1] + 1])
            found = max(found, shift[0] / shift[1] ** 0.5)
        return found

    assert worst(0) > 1.2 * start
    for epochs in (1, 2):
        left = c.unlearned_mu([start], [epochs * batches], lost, 1.0)
        assert worst(epochs) <= left * (1 + 1e-9)
