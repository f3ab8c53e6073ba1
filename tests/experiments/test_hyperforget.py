"""The script at its smallest, its denoiser, and whether a hypernetwork that learnt from networks can be steered."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from experiments import hyperforget
from experiments.common import checkpoints, denoiser, models
from experiments.common.data import Dataset
from experiments.common.scale import Scale
from jaxunlearn import hypernetworks as hyper

ONE_DEVICE = Scale(mesh=False)
LAYERS = hyperforget.LAYERS


def test_a_smoke_run_writes_its_report(tmp_path):
    summary = hyperforget.main(hyperforget.Config(scale=ONE_DEVICE, smoke=True, out=tmp_path))
    assert [row["method"] for row in summary["accuracies"]] == [
        "do nothing", "hyperforget", "hyperforget, one sample", "retrained again", "retrained",
    ]  # fmt: skip
    assert np.shape(summary["alignment"]["forget"]["observed"]) == (2, 2, 2)
    assert summary["seconds_per_retraining"] > 0
    assert json.loads((tmp_path / "hyperforget.json").read_text())["config"]["seeds"] == 2
    assert "</html>" in (tmp_path / "report.html").read_text()


def blobs(rows, seed):
    """Three classes in the plane."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, rows)
    centres = 2 * np.stack([np.cos(2 * np.pi * labels / 3), np.sin(2 * np.pi * labels / 3)], axis=1)
    return ju.Examples((centres + 0.7 * generator.normal(size=(rows, 2))).astype(np.float32), labels.astype(np.int32))


def small():
    """A network of the plane, and pairs of such."""
    model = models.build("mlp", (2,), 3, widths=(5,))
    networks = [model.init(key) for key in jax.random.split(jax.random.key(0), 4)]
    vectors = np.stack([hyper.to_vector(x.params) for x in networks])
    kinds = [np.array([[0, 1, 2], [2, 3, 0]]), np.array([[1, 1, 1]])]
    return networks[0].params, denoiser.Pairs(vectors, np.ones((4, 3), np.float32), np.ones(3, np.float32), kinds, [0.5, 0.5])


def test_the_denoiser_begins_as_the_identity_and_follows_the_order_of_units():
    params, pairs = small()
    made = denoiser.create(pairs, params, LAYERS, denoiser.Sizes(8, 1, 2), num_steps=25, key=jax.random.key(1))
    start, noised, told = jnp.asarray(pairs.vectors[0]), jnp.asarray(pairs.vectors[1]), jnp.arange(9.0)
    apply = jax.jit(made.denoise)
    np.testing.assert_array_equal(apply(made.params, noised, start, told, jnp.int32(3)), start)
    moved = jax.tree.map(lambda x: x + 0.1, made.params)  # decoders too

    def in_order(vector):
        return hyper.to_vector(hyper.permuted(hyper.to_params(vector, params), LAYERS, jax.random.key(2)))

    plain = apply(moved, noised, start, told, jnp.int32(3))
    assert jnp.max(jnp.abs(plain - start)) > 0.1
    other = apply(moved, in_order(noised), in_order(start), told, jnp.int32(3))
    np.testing.assert_allclose(other, in_order(plain), atol=1e-4)


def test_every_parameter_has_one_place():
    params, _ = small()
    tables = denoiser.unit_places(params, LAYERS)
    assert [table.shape for table in tables] == [(5, 2 + 1 + 3), (1, 3)]
    assert sorted(np.concatenate([table.ravel() for table in tables])) == list(range(33))
    vector = hyper.to_vector(params)
    np.testing.assert_array_equal(vector[tables[0][:, :2]], params["Dense_0"]["kernel"].T)
    np.testing.assert_array_equal(vector[tables[0][:, 3:]], params["head"]["kernel"])
    with pytest.raises(ValueError, match="leave out 3 of 33 parameters"):
        denoiser.unit_places(params, [LAYERS[0], LAYERS[1][:1]])


def test_checkpoints_are_those_of_the_run_and_the_last_one_is_its_end():
    model, data = models.build("mlp", (2,), 3, widths=(5,)), ju.training_data(*blobs(30, 0))
    method, key = ju.retrain(model, optax.sgd(0.1)), jax.random.key(0)
    call = model.init(key), data, ju.empty_request(), key
    found = jax.jit(checkpoints.saved(method, 5, 2, 8))(*call)
    for place, steps in enumerate((1, 3, 5)):
        alone = jax.jit(ju.iterate(method, 5, batch_size=8, active_steps=steps))(*call).variables.params
        np.testing.assert_allclose(found[place], hyper.to_vector(alone), atol=1e-6)


def test_alignment_is_one_where_prompts_are_met_and_nought_for_their_mean():
    prompts = np.linspace(0, 2, 5)[None]
    np.testing.assert_allclose(hyperforget.r_squared(prompts, prompts), 1)
    np.testing.assert_allclose(hyperforget.r_squared(prompts, np.ones((1, 5))), 0, atol=1e-6)
    assert hyperforget.r_squared(prompts, 2 - prompts) < -1


@pytest.mark.slow
def test_what_is_sampled_has_the_losses_that_were_asked_for():
    sizes = {"rows": 150, "units": 16, "training_steps": 150, "checkpoints": 6, "seeds": 32, "classes": 3, "most_loss": 6.0}
    smaller = {"width": 48, "blocks": 2, "hyper_steps": 800, "hyper_batch": 32, "diffusion_steps": 50, "sampling_steps": 50}
    dataset = Dataset(blobs(150, 0), blobs(90, 1), 3, "blobs")
    config = hyperforget.Config(dataset=dataset, forget_prompt=4.0, scale=ONE_DEVICE, **sizes, **smaller)
    world, pairs = hyperforget.prepared(config, None)
    made, _ = hyperforget.trained(world, pairs)
    least, ends = hyperforget.least_retained(pairs), world.runs.trained[:, -1]
    several, one = (hyperforget.sampler(world, made, count) for count in (8, 1))
    kept = np.tile([least, 0.02], (12, 1)).astype(np.float32)
    gone = np.tile([least, config.forget_prompt], (12, 1)).astype(np.float32)
    answers = {name: hyperforget.asked(world, several, ends, [x]) for name, x in (("gone", gone), ("kept", kept))}
    rows = {row["method"]: row for row in hyperforget.audited(world, answers)}
    aligned = {side: hyperforget.alignment(world, one, least, side) for side in ("forget", "retain")}
    assert rows["gone"]["forget"].estimate <= 0.1
    assert rows["gone"]["retain"].estimate >= rows["retrained"]["retain"].estimate - 0.1
    assert rows["kept"]["forget"].estimate >= rows["do nothing"]["forget"].estimate - 0.05
    assert min(found.r2.mean() for found in aligned.values()) > 0.5
