import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn
from experiments.common.models import build, head_of

SIZES = [(8, 8, 1), (28, 28, 1), (32, 32, 3)]
SMALL = {
    "mlp": {"widths": (16, 12)},
    "cnn": {"channels": (2, 3, 4), "width": 12},
    "resnet18": {"width": 3, "blocks": (1, 1, 1)},
}


def _some_variables(model):
    """Positive random weights: any will do, and drawing them outside JAX spares compiling `init`."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(generator.uniform(0.1, 0.5, x.shape), x.dtype), shapes)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", SMALL)
def test_shapes_for_all_image_sizes(name, shape):
    model = build(name, shape, 7, **SMALL[name])
    outputs = jax.eval_shape(lambda key, x: model.forward(model.init(key), x), jax.random.key(0), jnp.zeros((3, *shape)))
    assert outputs.logits.shape == (3, 7)
    assert outputs.features["penultimate"].shape == (3, 12)


@pytest.mark.parametrize("name", SMALL)
def test_head_of_the_features_is_the_model(name):
    model = build(name, (8, 8, 1), 5, **SMALL[name])
    variables = _some_variables(model)
    outputs = jax.jit(model.forward)(variables, np.random.default_rng(1).normal(size=(3, 8, 8, 1)))
    np.testing.assert_allclose(
        model.head.apply(variables, outputs.features["penultimate"]), outputs.logits, rtol=1e-6, atol=1e-6
    )


def test_setting_the_head_that_is_there_changes_nothing():
    model = build("mlp", (6,), 5, **SMALL["mlp"])
    variables = _some_variables(model)
    same = model.head.set(variables, *model.head.get(variables))
    assert jax.tree.structure(same) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    kernel, bias = model.head.get(variables)
    other = model.head.set(variables, 0 * kernel, 0 * bias + 2)
    np.testing.assert_array_equal(model.forward(other, jnp.ones((1, 6))).logits, np.full((1, 5), 2.0))


def test_mlp_takes_flat_rows_and_images_alike():
    model = build("mlp", (2, 3, 1), 4)
    variables = _some_variables(model)
    images = np.random.default_rng(1).normal(size=(3, 2, 3, 1))
    np.testing.assert_array_equal(
        model.forward(variables, images).logits, model.forward(variables, images.reshape(3, 6)).logits
    )


def test_resnet18_is_the_one_for_small_images():
    model = build("resnet18", (32, 32, 3), 10)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(variables.params)) == 11_173_962
    outputs = jax.eval_shape(model.forward, variables, jnp.zeros((2, 32, 32, 3)))
    assert outputs.features["penultimate"].shape == (2, 512)


def test_batch_norm_statistics_follow_the_policy():
    """Retained rows are alike, so the statistics of any batch of them are known; the forgotten row differs."""
    model = build("resnet18", (8, 8, 1), 3, width=2, blocks=(1,))
    variables = _some_variables(model)
    image = np.random.default_rng(1).normal(size=(8, 8, 1)).astype(np.float32)
    data = jaxunlearn.training_data(np.stack([image + 100, *[image] * 5]), np.arange(6) % 3)
    request = jax.tree.map(lambda x: x[0], jaxunlearn.from_indices(data, [[0]]))

    def finetuned(bn):
        unlearn = jaxunlearn.iterate(jaxunlearn.finetune(model, optax.sgd(0.01), bn=bn), num_steps=1, batch_size=4)
        return jaxunlearn.check(jax.jit(unlearn)(variables, data, request, jax.random.key(2))).variables

    frozen, retained = finetuned("frozen"), finetuned("retain")
    jax.tree.map(np.testing.assert_array_equal, frozen.state, variables.state)
    stem = nn.Conv(2, (3, 3), use_bias=False).apply({"params": variables.params["stem"]}, image[None])
    before, moved = (x.state["batch_stats"]["stem_norm"] for x in (variables, retained))
    np.testing.assert_allclose(moved["mean"], 0.9 * before["mean"] + 0.1 * jnp.mean(stem, axis=(0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(moved["var"], 0.9 * before["var"] + 0.1 * jnp.var(stem, axis=(0, 1, 2)), rtol=1e-4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), frozen.params, retained.params)
    changed = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), retained.params, variables.params)
    assert changed["stem"]["kernel"]
    assert changed["head"]["kernel"]


def test_weight_decay_is_half_the_squared_norm():
    model = build("mlp", (4,), 3, weight_decay=0.1, widths=(2,))
    params = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    np.testing.assert_allclose(model.regularizer(params), 0.05 * 25, rtol=1e-6)
    assert build("mlp", (4,), 3).regularizer is None


def test_refuses_what_it_cannot_build():
    with pytest.raises(ValueError, match="choose one of mlp, cnn, resnet18"):
        build("vgg", (8, 8, 1), 10)
    with pytest.raises(ValueError, match="takes images of shape"):
        build("cnn", (64,), 10)
    with pytest.raises(ValueError, match="no attribute num_classes"):
        head_of(nn.Dense(3))
