"""States of other models in the original one, beside those of retrained models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from experiments.common import decoder

language = ju.audit.language


def test_the_depth_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    retrained, other = rng.normal(0.3, 1, (5, 6)), rng.normal(0.3, 1, (5, 6))
    retrained[:, 2] = 0.01  # no layer knows it
    expected = np.full(6, np.nan)
    for row in range(6):
        layers = [layer for layer in range(5) if retrained[layer, row] > 0.05]
        if layers:
            shares = [retrained[x, row] * np.clip(other[x, row] / retrained[x, row], 0, 1) for x in layers]
            expected[row] = sum(shares) / sum(retrained[x, row] for x in layers)
    found = jax.jit(language.unlearning_depth)(jnp.asarray(retrained), jnp.asarray(other))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isnan(found[2])
    with pytest.raises(ValueError, match="threshold"):
        language.unlearning_depth(retrained, other, threshold=-1.0)


FORM = decoder.Config(11, width=8, layers=3, heads=2, hidden=8, features=(0, 1, 2), remat=False)
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 11, (3, 6)))


@jax.jit
def states(variables):
    features = decoder.forward(FORM, variables, TOKENS).features
    return jnp.stack([features[f"layer_{place}"] for place in range(3)])


def drawn(seed):
    return jax.tree.map(lambda x: 2 * x, decoder.init(FORM, jax.random.key(seed)))


@pytest.mark.slow
def test_patched_states_are_those_that_the_rest_reads_and_cells_are_ordered():
    original, others = drawn(0), [drawn(seed) for seed in (1, 2, 3)]
    whole = decoder.forward(FORM, original, TOKENS)
    where = jnp.zeros((3, 6), bool).at[:, 3:].set(True)

    @jax.jit
    def patched(layer, other, where):
        return decoder.forward(FORM, original, decoder.Patched(TOKENS, layer, other, where)).logits

    every = states(original), states(others[0])
    np.testing.assert_allclose(patched(1, every[0][1], where), whole.logits, rtol=1e-5, atol=1e-6)  # its own
    mixed = patched(1, every[1][1], where)
    np.testing.assert_allclose(mixed[:, :3], whole.logits[:, :3], rtol=1e-5, atol=1e-6)  # nothing looks ahead
    assert np.abs(mixed - whole.logits)[:, 3:].max() > 1e-2
    last = decoder.forward(FORM, others[0], TOKENS).features["final"] @ original.params["embed"].T  # norms are equal
    np.testing.assert_allclose(patched(2, every[1][2], where | True), last, rtol=1e-4, atol=1e-5)
    # of what the original says itself, all is known to its own states and little to others
    labels = jnp.where(where, jnp.argmax(whole.logits, axis=-1), -1)
    stacked = [jax.tree.map(lambda *x: jnp.stack(x), *models) for models in ([original, others[0]], others[1:])]
    run = jax.jit(lambda u, r: language.patching(patched, states, original, u, r, labels, jax.random.key(0)))
    found = run(*stacked)
    np.testing.assert_allclose(found.unlearned[0], 1, atol=1e-4)
    assert float(found.unlearned[1]) < 0.6
    assert np.all((np.asarray(found.retrained) >= 0) & (np.asarray(found.retrained) < 0.6))
    np.testing.assert_allclose(found.gap, found.unlearned.mean() - found.retrained.mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="two or more"):
        language.patching(
            patched, states, original, stacked[0], jax.tree.map(lambda x: x[:1], stacked[1]), labels, jax.random.key(0)
        )
