"""Noisy fine-tuning does what its accountant counts, and certificates of runs say who answers for what."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import certificates as c
from tests.problems import blobs, distance, lane, network

DATA, MODEL, KEY = blobs(), network(), jax.random.key(0)
VARIABLES = MODEL.init(jax.random.key(1))
REQUEST = lane(ju.from_indices(DATA, [[3, 17, 40]]), 0)
SAID = {"extractor": "none", "adaptive": False, "secret_key": True}


def size(params):
    return float(optax.tree.norm(params))


@pytest.fixture(scope="module")
def run():
    """One program per kind of projection; noise and norms are traced."""
    made = {}

    def call(project="never", variables=VARIABLES, data=DATA, static=(), **settings):
        num_steps = 4 if project == "never" else 2
        defaults = {"noisy_rate": 0.01, "noisy_decay": 0.0, **({} if project == "before noise" else {"gradient_norm": 1.0})}
        settings, kind = jax.tree.map(jnp.float32, {**defaults, **settings}), (project, static)
        if kind not in made:

            def unlearn(settings, variables, data, request, key):
                options = {"noisy_steps": 2, **dict(static)}
                method = ju.noisy_finetune(MODEL, optax.sgd(0.0), project=project, **options, **settings)
                return ju.iterate(method, num_steps, batch_size=4, damaged_at=np.inf)(variables, data, request, key)

            made[kind] = jax.jit(unlearn)
        return made[kind](settings, variables, data, REQUEST, KEY)

    return call


def test_without_noise_and_steps_the_weights_are_clipped(run):
    found = run(sigma=0.0, norm=0.5, noisy_rate=0.0)
    assert 0.499 < size(found.variables.params) <= 0.5
    kept = run(sigma=0.0, norm=1e3, noisy_rate=0.0)
    assert distance(kept.variables.params, VARIABLES.params) == 0


def test_a_clipped_step_moves_no_further_than_its_drift(run):
    still = run(sigma=0.0, norm=0.5, noisy_rate=0.0)
    moved = run(sigma=0.0, norm=0.5, noisy_rate=0.1, gradient_norm=0.01)
    step = size(jax.tree.map(jnp.subtract, moved.variables.params, still.variables.params))
    assert 0.5 * 2 * 0.1 * 0.01 < step <= 2 * 0.1 * 0.01 * 1.001
    assert moved.stats["drift"].tolist() == pytest.approx([2 * 0.1 * 0.01] * 4)


def test_noise_has_the_deviation_that_is_reported(run):
    quiet = run(sigma=0.0, norm=0.5, noisy_rate=0.0)
    noisy = run(sigma=3.0, norm=0.5, noisy_rate=0.0)
    noise = np.concatenate(
        [np.ravel(x - y) for x, y in zip(*map(jax.tree.leaves, (noisy.variables.params, quiet.variables.params)), strict=True)]
    )
    assert noisy.stats["noise"].tolist() == [3.0, 3.0, 0.0, 0.0]
    assert noise.std() == pytest.approx(3 * 2**0.5, rel=5 / noise.size**0.5)


def test_projections_stand_where_they_are_said_to_stand(run):
    last = run("after noise", sigma=3.0, norm=0.5, gradient_norm=1.0)
    assert size(last.variables.params) <= 0.5
    assert last.stats["ratio"].tolist() == pytest.approx([2 * (0.5 + 0.01 * 1.0) / 3] * 2)
    first = run("before noise", sigma=3.0, norm=0.5)
    assert size(first.variables.params) > 5
    assert first.stats["ratio"].tolist() == pytest.approx([2 * 0.5 / 3] * 2)
    assert np.isinf(first.stats["drift"]).all()


def test_decreasing_noise_follows_its_profile(run):
    found = run(sigma=1.0, norm=0.5, noisy_rate=0.5, noisy_decay=1.0, static=(("noisy_steps", 3), ("decreasing", True)))
    assert found.stats["noise"].tolist() == pytest.approx([4.0, 2.0, 1.0, 0.0])


def test_the_forget_set_is_behind_the_clipping_and_nowhere_else(run):
    """Two starts that are clipped to one point end alike, whatever the rows of the forget set are."""
    far = jax.tree.map(lambda x: 100 * x, VARIABLES)
    inputs = np.array(DATA.train.inputs)
    inputs[[3, 17, 40]] = np.nan
    spoilt = DATA._replace(train=DATA.train._replace(inputs=inputs))
    near, other = run(sigma=1.0, norm=0.1), run(sigma=1.0, norm=0.1, variables=far, data=spoilt)
    assert distance(near.variables, other.variables) < 1e-5


def certified(result, epsilon=1.0, delta=1e-5, mechanism=None, data=DATA, request=REQUEST, **said):
    mechanism = c.NoisyFinetune() if mechanism is None else mechanism
    return c.certify_run(result, data, request, mechanism=mechanism, epsilon=epsilon, delta=delta, **{**SAID, **said})


def failed(certificate):
    return [each.name for each in certificate.assumptions if not each.holds]


@pytest.mark.parametrize("epsilon", [0.5, 4.0])
def test_a_run_with_the_noise_of_the_accountant_is_certified_and_with_a_bit_less_it_is_not(run, epsilon):
    options = {"norm": 0.1, "gradient_norm": 0.2, "noisy_rate": 0.1, "noisy_decay": 0.5}
    sigma = float(c.step_noise(0.2, 0.95, 0.04, epsilon, 1e-5, num_steps=2))
    good = certified(run(sigma=sigma * 1.001, **options), epsilon)
    assert good.valid
    assert good.budget_left < 0.01 * epsilon
    assert good.noise_scale == 0
    assert failed(certified(run(sigma=sigma * 0.99, **options), epsilon)) == ["noise of the run suffices"]


@pytest.mark.parametrize("project", ["before noise", "after noise"])
def test_projected_runs_are_certified_too(run, project):
    clip = {"gradient_norm": 0.2} if project == "after noise" else {}
    push = {"learning_rate": 0.1, "gradient_norm": 0.2} if clip else {}
    options = {"norm": 0.1, "noisy_rate": 0.1, **clip}
    shift = float(c.step_noise(0.2, 1.0, 0.04, 1.0, 1e-5, num_steps=2)) if clip else np.inf
    sigma = min(float(c.projected_noise(0.1, 1.0, 1e-5, num_steps=2, **push)), shift)
    assert certified(run(project, sigma=sigma * 1.001, **options)).valid
    assert failed(certified(run(project, sigma=sigma * 0.99, **options))) == ["noise of the run suffices"]


def test_every_assumption_says_who_answers_for_it(run):
    good = certified(run(sigma=9.0, norm=0.1))
    flags = {each.name: each.source for each in good.assumptions}
    assert flags["clipping"] == "enforced"
    assert flags["all noisy steps"] == flags["no model state"] == "checked"
    assert flags["noise of the run"] == flags["requests not adaptive"] == "declared"
    assert flags["hidden trajectory"] == flags["compared with"] == flags["one observed release"] == "assumed"
    said = {each.name: each.detail for each in good.assumptions}
    assert "never saw the forget set" in said["compared with"]
    again = c.Certificate.from_json(good.to_json())
    assert again == good
    assert json.loads(good.to_json())["version"] == 2
    assert failed(certified(run(sigma=9.0, norm=0.1), secret_key=None)) == ["noise of the run"]
    assert failed(certified(run(sigma=9.0, norm=0.1), adaptive=True)) == ["requests not adaptive"]


def test_runs_that_are_none_get_no_certificate(run):
    good = run(sigma=9.0, norm=0.1)
    short = run(sigma=9.0, norm=0.1, static=(("noisy_steps", 9),))
    assert failed(certified(short)) == ["all noisy steps", "noise of the run suffices"]
    early = good._replace(stats={**good.stats, "best_step": jnp.int32(1)})
    assert "all noisy steps" in failed(certified(early))
    peeked = good._replace(stats={**good.stats, "peek": jnp.array(True)})
    assert failed(certified(peeked)) == ["nothing looked at the forget set"]
    stateful = good._replace(variables=good.variables._replace(state={"mean": jnp.zeros(2)}))
    assert failed(certified(stateful)) == ["no model state"]
    stray = REQUEST._replace(indices=jnp.array([3, 3, 999]), weights=jnp.ones(3))
    assert failed(certified(good, request=stray)) == ["rows of the request"]
    with pytest.raises(ValueError, match=r"needs stats .*clip_norm.*pass the mechanism of the method"):
        certified(good, mechanism=c.OutputPerturbation())
    with pytest.raises(TypeError, match=r"such as NoisyFinetune\(\)"):
        certified(good, mechanism=c.NoisyFinetune)
    with pytest.raises(ValueError, match="pass one entry of each"):
        certified(good._replace(status=jnp.zeros(3, jnp.int32)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"project": "sometimes"}, "project must be one of"),
        ({"project": "before noise", "gradient_norm": 1.0}, "leave out gradient_norm"),
        ({"project": "after noise", "decreasing": True}, "for project='never'"),
        ({"norm": 0.0}, "norm must lie in"),
        ({"noisy_rate": 2.0, "noisy_decay": 1.0}, r"noisy_rate \* noisy_decay must lie in"),
        ({"sigma": -1.0}, "sigma must lie in"),
    ],
)
def test_settings_without_an_accountant_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        ju.noisy_finetune(MODEL, optax.sgd(0.1), **{"sigma": 1.0, **settings})


# release


def test_a_release_says_that_its_noise_came_from_a_key(run, tmp_path):
    result = run(sigma=9.0, norm=0.1)
    release = c.publish(result, certified(result), tmp_path)
    assert (release.number, release.noise_key) == (1, "caller")
    assert distance(release.variables.params, result.variables.params) == 0
    manifest = c.verify(release.path, None).manifest
    shown = {each.name: each for each in manifest.assumptions}
    assert (shown["clipping"].source, shown["all noisy steps"].detail) == ("enforced", "")
    assert c.publish(result, certified(result), tmp_path).sha256 == release.sha256


def test_output_perturbation_is_clipped_and_gets_its_noise_from_publish(tmp_path):
    result = ju.output_perturbation(MODEL, sigma=0.0, clip_norm=0.5)(VARIABLES, DATA, REQUEST, KEY)
    assert 0.499 < size(result.variables.params) <= 0.5
    certificate = certified(result, mechanism=c.OutputPerturbation())
    assert certificate.valid
    assert certificate.noise_scale == pytest.approx(float(c.gaussian_scale(1.0, 1.0, 1e-5)), rel=1e-5)
    release = c.publish(result, certificate, tmp_path)
    assert release.noise_key == "os"
    assert size(release.variables.params) > 5
    noisy = ju.output_perturbation(MODEL, sigma=3.74, clip_norm=0.5)(VARIABLES, DATA, REQUEST, KEY)
    assert certified(noisy, mechanism=c.OutputPerturbation(own_noise=True)).valid
    assert failed(certified(noisy, mechanism=c.OutputPerturbation())) == ["no noise of its own"]
    weak = ju.output_perturbation(MODEL, sigma=3.6, clip_norm=0.5)(VARIABLES, DATA, REQUEST, KEY)
    assert failed(certified(weak, mechanism=c.OutputPerturbation(own_noise=True))) == ["noise of the run suffices"]


def test_constants_that_nobody_proved_have_to_be_accepted(tmp_path):
    unlearn = ju.rewind_to_delete(MODEL, step_size=0.05, steps=2, undo=False)
    result = jax.jit(unlearn)(VARIABLES, DATA, REQUEST, KEY)
    mechanism = c.Rewind(c.Constant(3.0, "estimated"), c.Constant(1.0, "unproved"), steps_before=5)
    certificate = certified(result, mechanism=mechanism)
    assert certificate.valid
    with pytest.raises(ValueError, match=r"'smoothness L' \(estimated: .*'gradient bound G' \(unproved") as refused:
        c.publish(result, certificate, tmp_path)
    assert "accept=('smoothness L', 'gradient bound G')" in str(refused.value)
    with pytest.raises(ValueError, match="'gradient bound G'"):
        c.publish(result, certificate, tmp_path, accept=["smoothness L"])
    with pytest.raises(ValueError, match="on which it does not rest"):
        c.publish(result, certificate, tmp_path, accept=["smoothness L", "gradient bound G", "luck"])
    with pytest.raises(TypeError, match="names in a list"):
        c.publish(result, certificate, tmp_path, accept="smoothness L")
    assert not list(tmp_path.iterdir())
    release = c.publish(result, certificate, tmp_path, accept=["smoothness L", "gradient bound G"])
    assert {each.source for each in c.verify(release.path, None).manifest.assumptions} >= {"estimated", "unproved"}
