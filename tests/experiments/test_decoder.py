"""The decoder of the experiments: masks, cache, adapters."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from experiments.common import decoder
from jaxunlearn import frozen

KEY = jax.random.key(0)
LLAMA = decoder.Config(11, width=12, layers=2, heads=4, groups=2, head_width=4, hidden=10, tied=False, features=(0,), pad=10)
GPT2 = decoder.Config(
    11, width=12, layers=2, heads=3, hidden=16, norm="layer", mlp="gelu", rotary=False, length=16, pad=10,
    biases=("q", "k", "v", "o", "up", "down"),
)  # fmt: skip
FORMS = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
TOKENS = jax.random.randint(KEY, (2, 6), 0, 10)


def moved(config, scale=0.3):
    """Weights none of which is 0 or 1."""
    variables = decoder.init(config, KEY)
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + scale * random.normal(size=x.shape).astype(np.float32), variables)


@partial(jax.jit, static_argnums=0)
def logits(config, variables, tokens):
    return decoder.model(config).forward(variables, tokens).logits


@partial(jax.jit, static_argnums=(0, 3), static_argnames="stop")
def generated(config, variables, prompts, count, **options):
    return decoder.generate(decoder.model(config).forward, config, variables, prompts, count, **options)


@FORMS
def test_no_position_sees_what_comes_later_or_padding_on_either_side(config):
    variables = moved(config)
    plain = logits(config, variables, TOKENS)
    later = np.array(TOKENS)
    later[:, 4:] = (later[:, 4:] + 1) % 10
    changed = logits(config, variables, later)
    np.testing.assert_array_equal(changed[:, :4], plain[:, :4])
    assert np.abs(changed - plain)[:, 4:].max() > 0.01
    for pad in (config.pad, -1):
        behind = logits(config, variables, np.pad(TOKENS, ((0, 0), (0, 3)), constant_values=pad))
        before = logits(config, variables, np.pad(TOKENS, ((0, 0), (3, 0)), constant_values=pad))
        np.testing.assert_allclose(behind[:, :6], plain, atol=2e-5)
        np.testing.assert_allclose(before[:, 3:], plain, atol=2e-5)
        assert np.isfinite(before).all()


@FORMS
def test_generation_with_a_cache_is_generation_without_one(config):
    variables, prompts = moved(config), np.array(TOKENS)
    prompts[1, 4:] = config.pad
    told = np.asarray(generated(config, variables, prompts, 5))
    whole = np.stack([[*prompts[0], *told[0]], [*prompts[1, :4], *told[1], -1, -1]])
    likeliest = np.argmax(logits(config, variables, whole), axis=-1)
    np.testing.assert_array_equal(told[0], likeliest[0, 5:10])
    np.testing.assert_array_equal(told[1], likeliest[1, 3:8])


def test_samples_stop_and_follow_their_temperature():
    variables = moved(LLAMA)
    cold, hot = (generated(LLAMA, variables, TOKENS, 6, key=KEY, temperature=x) for x in (1e-4, 100.0))
    greedy = np.asarray(generated(LLAMA, variables, TOKENS, 6))
    np.testing.assert_array_equal(greedy, cold)
    assert np.any(hot != greedy)
    stop = int(greedy[0, 1])
    stopped = np.asarray(generated(LLAMA, variables, TOKENS, 6, stop=stop))
    end = int(np.argmax(greedy[0] == stop))
    np.testing.assert_array_equal(stopped[0, : end + 1], greedy[0, : end + 1])
    assert np.all(stopped[0, end + 1 :] == -1)


def test_features_are_the_stream_behind_a_layer():
    variables = moved(LLAMA)
    features = jax.jit(decoder.model(LLAMA).forward)(variables, TOKENS).features
    one = decoder.model(dataclasses.replace(LLAMA, layers=1))
    first = variables._replace(params={**variables.params, "layers": jax.tree.map(lambda x: x[:1], variables.params["layers"])})
    np.testing.assert_allclose(features["layer_0"], jax.jit(one.forward)(first, TOKENS).features["layer_0"], atol=1e-6)
    assert features["final"].shape == (2, 6, 12)


@FORMS
def test_adapters_change_every_matrix_but_the_embedding_and_generate(config):
    base, model = moved(config), decoder.model(config)
    parts = frozen.lora(model, base, TOKENS, rank=2)
    part = parts.start(base, KEY)
    assert set(part.params) == {f"layers/{x}" for x in config.matrices} | ({"head"} if not config.tied else set())
    part = jax.tree.map(lambda x: x + 0.05, part)
    merged = parts.merge(base, part)
    found = jax.jit(parts.on(base).forward)(part, TOKENS).logits
    np.testing.assert_allclose(found, logits(config, merged, TOKENS), rtol=1e-3, atol=1e-3)
    told = jax.jit(lambda part: decoder.generate(parts.on(base).forward, config, part, TOKENS, 4))(part)
    np.testing.assert_array_equal(told, generated(config, merged, TOKENS, 4))


def test_bfloat16_and_a_base_of_integers():
    config = dataclasses.replace(LLAMA, dtype="bfloat16")
    variables = decoder.init(config, KEY)
    assert {str(x.dtype) for x in jax.tree.leaves(variables)} == {"bfloat16"}
    assert logits(config, variables, TOKENS).dtype == jnp.float32
    base = moved(LLAMA)
    small = base._replace(params=frozen.int8(base.params))
    parts = frozen.lora(decoder.model(LLAMA), small, TOKENS, rank=2)
    found = jax.jit(parts.on(small).forward)(parts.start(small, KEY), TOKENS).logits
    np.testing.assert_allclose(found, logits(LLAMA, parts.merge(small, parts.start(small, KEY)), TOKENS), rtol=1e-3, atol=1e-3)


def test_remat_changes_no_gradient_and_a_sentence_is_learnt():
    examples = ju.Examples(TOKENS[:, :-1], TOKENS[:, 1:].at[0, :2].set(-1))

    @partial(jax.jit, static_argnums=1)
    def loss(variables, config):
        return jnp.mean(decoder.model(config).loss(decoder.model(config).forward(variables, examples.inputs), examples))

    variables, plain = moved(LLAMA), dataclasses.replace(LLAMA, remat=False)
    ours, theirs = (jax.grad(loss)(variables, config) for config in (LLAMA, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)
    after = jax.tree.map(lambda w, g: w - 0.1 * g, variables, ours)
    assert loss(after, LLAMA) < loss(variables, LLAMA)


def test_forms_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="heads cannot share"):
        decoder.Config(5, heads=4, groups=3)
    with pytest.raises(ValueError, match="is odd"):
        decoder.Config(5, width=12, heads=4)
    with pytest.raises(ValueError, match="there are 2"):
        decoder.Config(5, features=(2,))
    with pytest.raises(ValueError, match="learned positions"):
        generated(GPT2, moved(GPT2), TOKENS, 12)
