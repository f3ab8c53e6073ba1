"""Which kernels are transposed, and that it is fine-tuning from there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from tests.methods.runs import DATA, KEY, REQUEST, answer
from tests.problems import convolutional, distance

MODEL = convolutional()
VARIABLES = MODEL.init(jax.random.key(1))
TURNED = VARIABLES._replace(
    params={**VARIABLES.params, "filters": np.asarray(VARIABLES.params["filters"]).transpose(1, 0, 2, 3)}
)


def turned(params, **options):
    """Parameters where the descent begins."""
    method = ju.convolution_transpose(MODEL, optax.sgd(0.1), **{"axes": (0, 1), **options})
    return method.init(ju.Variables(params), DATA, REQUEST, KEY)[1].variables.params


def test_it_is_finetuning_from_transposed_filters():
    own = answer("convolution_transpose", VARIABLES, static={"model": MODEL, "axes": (0, 1)}).variables
    assert distance(own, answer("finetune", TURNED, static={"model": MODEL}).variables) < 1e-6
    assert distance(own, answer("finetune", VARIABLES, static={"model": MODEL}).variables) > 1e-2


def test_only_kernels_of_four_axes_are_transposed_along_the_axes_that_are_named():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    tree = {
        "block": ({"kernel": normal(3, 3, 2, 4), "bias": normal(4)}, normal(5, 5)),
        "point": normal(1, 1, 2, 4),
    }
    after = turned(tree)
    np.testing.assert_array_equal(after["block"][0]["kernel"], tree["block"][0]["kernel"].transpose(1, 0, 2, 3))
    for kept, before in ((after["block"][0]["bias"], tree["block"][0]["bias"]), (after["block"][1], tree["block"][1])):
        np.testing.assert_array_equal(kept, before)
    np.testing.assert_array_equal(after["point"], tree["point"])
    outer = {"a": normal(4, 2, 3, 3), "b": normal(2, 2, 3, 3)}
    after = turned(outer, axes=(-2, -1), layers="a")
    np.testing.assert_array_equal(after["a"], outer["a"].transpose(0, 1, 3, 2))
    np.testing.assert_array_equal(after["b"], outer["b"])


def test_twice_is_not_at_all():
    assert distance(turned(turned(VARIABLES.params)), VARIABLES.params) == 0


def test_what_to_do_is_said():
    with pytest.raises(ValueError, match=r"needs parameters of four axes.*w float32\[4,3\]"):
        turned({"w": jnp.zeros((4, 3))})
    with pytest.raises(ValueError, match=r"shape \(4, 2, 3, 3\) is not square along axes \(0, 1\): name the spatial axes"):
        turned({"w": jnp.zeros((4, 2, 3, 3))})
    with pytest.raises(ValueError, match=r"larger than 1 along axes \(0, 1\): nothing to transpose"):
        turned({"w": jnp.zeros((1, 1, 3, 3))})  # [out, in, h, w]
    for axes in ((0, 0), (1, -3), (0, 4), (0, 1, 2)):
        with pytest.raises(ValueError, match="two spatial axes"):
            turned(VARIABLES.params, axes=axes)
