"""The restoration test: its limits, the published variant, and what it can and cannot see."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.audit import (
    SparseAutoencoder,
    decode,
    encode,
    experts,
    fit_sparse_autoencoder,
    judge_features,
    restoration_curve,
    restoration_rate,
    restore,
)

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
UNLEARNED, ORIGINAL = RNG.normal(size=(2, 7, 5, 6))  # a class token and four positions
WEIGHT = RNG.normal(size=(6, 3))
MASK = np.arange(9) % 2 == 0
MADE = SparseAutoencoder(*(RNG.normal(size=shape) for shape in ((6,), (6, 9), (9,), (9, 6))))


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def suffix(states):
    return jnp.tanh(states).mean(axis=1) @ WEIGHT


run = partial(restore, suffix, UNLEARNED, ORIGINAL, MADE, MASK)


def test_nothing_happens_at_strength_0_and_to_equal_models():
    np.testing.assert_array_equal(run(strength=0.0), suffix(UNLEARNED))
    for strength in (1.0, 10.0):
        same = restore(suffix, ORIGINAL, ORIGINAL, MADE, MASK, strength=strength)
        np.testing.assert_array_equal(same, suffix(ORIGINAL))


def test_the_published_variant_is_its_formula_and_changes_equal_models():
    captured = lambda states: states
    found = restore(captured, UNLEARNED, ORIGINAL, MADE, MASK, strength=5.0, mode="paper", class_token=True)
    b, e, _, g = MADE
    patches = (UNLEARNED - b) @ e @ g + b + 5 * ((ORIGINAL - UNLEARNED) @ e * MASK) @ g
    np.testing.assert_allclose(found[:, 1:], patches[:, 1:], atol=1e-10)
    np.testing.assert_allclose(found[:, 0], UNLEARNED[:, 0] + 5 * (ORIGINAL - UNLEARNED)[:, 0], atol=1e-10)
    at_one = restore(captured, UNLEARNED, ORIGINAL, MADE, MASK, strength=1.0, mode="paper", class_token=True)
    np.testing.assert_allclose(at_one[:, 0], ORIGINAL[:, 0], atol=1e-12)
    same = restore(captured, ORIGINAL, ORIGINAL, MADE, MASK, strength=1.0, mode="paper")
    np.testing.assert_allclose(same, (ORIGINAL - b) @ e @ g + b, atol=1e-10)
    assert np.max(np.abs(same - ORIGINAL)) > 1


def test_all_features_of_an_invertible_code_put_the_whole_state_back():
    encoder = RNG.normal(size=(6, 6))
    whole = SparseAutoencoder(RNG.normal(size=6), encoder, np.zeros(6), np.linalg.inv(encoder))
    found = restore(suffix, UNLEARNED, ORIGINAL, whole, np.ones(6, bool), strength=1.0)
    np.testing.assert_allclose(found, suffix(ORIGINAL), atol=1e-10)


def planted(seed=0):
    """States of three classes, an atom each, beside noise in three directions that belong to nobody."""
    rng = np.random.default_rng(seed)
    labels = np.arange(90) % 3
    atoms = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    states = 3 * atoms[labels] + rng.uniform(0, 1, size=(90, 3)) @ atoms[3:]
    return states, labels, atoms


def test_only_the_suffix_decides_what_can_be_restored():
    states, labels, atoms = planted()
    exact = SparseAutoencoder(np.zeros(6), atoms.T, np.zeros(6), atoms)
    mask = experts(encode(exact, states, sparsity=4), labels, num_classes=3, count=1)[0]
    rows = states[labels == 0]
    erased = rows - 3 * atoms[0] + 3 * atoms[1]  # the prefix sends class 0 to class 1
    read = lambda h: h @ atoms[:3].T
    silenced = lambda h: jnp.asarray(read(h)).at[:, 0].set(-jnp.inf)
    curve = partial(restoration_curve, autoencoder=exact, mask=mask, label=0, key=KEY, strengths=jnp.array([0.0, 1.0, 5.0]))
    for strength in (5.0,):
        prefix = curve(read, erased, rows)
        assert (float(prefix.unlearned), float(prefix.everything)) == (0, 1)
        assert float(prefix.restored[0]) == 0
        assert restoration_rate(prefix.restored[-1], prefix.unlearned, 1.0) == 1, strength
    head = curve(silenced, rows, rows)
    np.testing.assert_array_equal([*head.restored, head.everything], 0)  # the features are untouched, and cannot come through


def test_experts_restore_and_random_features_do_not():
    states, labels, atoms = planted()
    exact = SparseAutoencoder(np.zeros(6), atoms.T, np.zeros(6), atoms)
    mask = experts(encode(exact, states, sparsity=4), labels, num_classes=3, count=1)
    np.testing.assert_array_equal(mask, np.eye(3, 6, dtype=bool))
    rows = states[labels == 0]
    keys = jax.random.split(KEY, 40)
    found = jax.vmap(
        lambda key: restoration_curve(
            lambda h: h @ atoms[:3].T, rows - 3 * atoms[0], rows, exact, mask[0], 0, key, strengths=jnp.array([5.0])
        )
    )(keys)
    assert float(found.restored.min()) == 1
    assert float(found.random.mean()) < 0.5


def test_codes_keep_k_and_drop_what_is_not_positive():
    identity = SparseAutoencoder(np.zeros(5), np.eye(5), np.zeros(5), np.eye(5))
    np.testing.assert_array_equal(encode(identity, np.array([5.0, 4, 3, 2, 1]), sparsity=3), [5, 4, 3, 0, 0])
    np.testing.assert_array_equal(encode(identity, np.array([5.0, -4, -3, -2, -1]), sparsity=3), [5, 0, 0, 0, 0])
    np.testing.assert_array_equal(decode(identity, np.array([1.0, 0, 0, 0, 2])), [1, 0, 0, 0, 2])


def test_training_keeps_the_decoder_at_unit_length_and_reconstructs():
    states, labels, _ = planted()
    fit = jax.jit(partial(fit_sparse_autoencoder, width=12, sparsity=4, num_steps=600, batch_size=32))
    made = fit(jnp.asarray(states, jnp.float32), KEY)
    np.testing.assert_allclose(np.linalg.norm(made.decoder, axis=1), 1, rtol=1e-5)
    again = decode(made, encode(made, jnp.asarray(states, jnp.float32), sparsity=4))
    assert np.mean((again - states) ** 2) < 0.1 * np.mean((states - states.mean(axis=0)) ** 2)
    chosen = experts(encode(made, jnp.asarray(states, jnp.float32), sparsity=4), labels, num_classes=3, count=2)
    assert chosen.sum(axis=1).min() >= 1
    assert chosen.sum(axis=0).max() == 1


def test_a_rate_without_a_loss_is_unknown():
    np.testing.assert_allclose(restoration_rate(jnp.array([0.1, 0.5, 1.0]), 0.1, 0.9), [0, 0.5, 1])
    assert jnp.isnan(restoration_rate(0.9, 0.9, 0.9))


def test_words_say_what_outputs_and_features_tell():
    def values(output, probe, noise=0.1):
        drawn = noise * np.random.default_rng([int(10 + output), int(100 + 10 * probe)]).normal(size=(2, 12))
        return {"output": output + drawn[0], "probe": probe + drawn[1]}

    def word(output, probe):
        return judge_features(values(output, probe), values(0, 0.2), values(3, 3), KEY, outputs=["output"]).word

    assert word(3, 3) == "not forgotten"
    assert word(0, 3) == "suppressed"
    assert word(0, 0.2).startswith("removed, as far as")
    assert word(0, -2) == "removed, as far as these measures see; over-unlearned"
    nothing = {"output": np.full(12, np.nan), "probe": values(0, 0.2)["probe"]}
    assert judge_features(nothing, values(0, 0.2), values(3, 3), KEY, outputs=["output"]).word.startswith("unknown")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run(strength=1.0, mode="exact"), "mode must be"),
        (lambda: restore(suffix, UNLEARNED, ORIGINAL[:3], MADE, MASK, strength=1.0), "one shape"),
        (lambda: restore(suffix, UNLEARNED[:, 0], ORIGINAL[:, 0], MADE, MASK, strength=1.0, class_token=True), "class token"),
        (lambda: fit_sparse_autoencoder(UNLEARNED[:, 0], KEY, width=4, sparsity=5), "sparsity 5"),
        (lambda: fit_sparse_autoencoder(UNLEARNED[:, 0], KEY, width=0, sparsity=1), "width must be"),
        (lambda: judge_features({"a": np.ones(9)}, {"b": np.ones(9)}, {"a": np.ones(9)}, KEY, outputs=["a"]), "same measures"),
        (lambda: judge_features(*[{"a": np.ones(9)}] * 3, KEY, outputs=["b"]), "that are not there: b"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
