"""Ways round the noise of a run, and constants that a run did not enforce: each has to show in the certificate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from jaxunlearn import certificates as c
from jaxunlearn import tree
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
