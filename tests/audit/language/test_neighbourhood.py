"""Neighbours of tokens and of texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju

language = ju.audit.language
VOCABULARY = 11


@pytest.fixture(scope="module")
def embeddings():
    return np.random.default_rng(0).normal(size=(VOCABULARY, 4)).astype(np.float32)


def nearest(embeddings, count, allowed):
    z = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = np.where(allowed & ~np.eye(len(z), dtype=bool), z @ z.T, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]


def test_the_table_is_that_of_a_full_sort_in_blocks_or_not(embeddings):
    every = np.ones(VOCABULARY, bool)
    np.testing.assert_array_equal(language.neighbour_table(embeddings, 4), nearest(embeddings, 4, every))
    np.testing.assert_array_equal(language.neighbour_table(embeddings, 4, block=3), nearest(embeddings, 4, every))
    allowed = np.arange(VOCABULARY) > 2
    found = np.asarray(language.neighbour_table(embeddings, 7, allowed=allowed))
    np.testing.assert_array_equal(found[3:], nearest(embeddings, 7, allowed)[3:])
    assert found[3:].min() > 2
    with pytest.raises(ValueError, match="ask for at most 7"):
        language.neighbour_table(embeddings, 8, allowed=allowed)


def test_perturbing_has_its_limits_and_touches_what_it_may(embeddings):
    tokens, may = jnp.arange(10), jnp.arange(10) % 3 > 0
    one, four = (language.neighbour_table(embeddings, count) for count in (1, 4))

    @jax.jit
    def made(key, rate):
        return [language.perturb(tokens, may, table, key, rate=rate) for table in (one, four)]

    for value in made(jax.random.key(0), 0.0):
        np.testing.assert_array_equal(value, tokens)
    first, second = made(jax.random.key(0), 1.0)[0], made(jax.random.key(1), 1.0)[0]
    np.testing.assert_array_equal(first, second)  # one neighbour, every token: one variant
    np.testing.assert_array_equal(first, np.where(may, one[tokens, 0], tokens))
    several = np.stack([made(jax.random.key(seed), 0.5)[1] for seed in range(40)])
    assert np.all(several[:, ~np.asarray(may)] == np.arange(10)[~np.asarray(may)])
    changed = (several != np.arange(10))[:, np.asarray(may)].mean()
    assert abs(changed - 0.5) < 4 * np.sqrt(0.25 / (40 * 6))
    assert {tuple(x) for x in four.tolist()} == {tuple(x) for x in nearest(embeddings, 4, np.ones(VOCABULARY, bool)).tolist()}


@pytest.fixture(scope="module")
def asked(embeddings):
    """Losses that are linear in embeddings: the sum of a number for each token."""
    values = jnp.asarray(embeddings @ np.float32([1, -2, 3, 0.5]))
    table = language.neighbour_table(embeddings, 3)

    def ask(tokens, labels, may, key, scale=1.0, **options):
        def losses(part):
            return scale * jnp.sum(jnp.where(part.inputs >= 0, values[part.inputs], 0), axis=1)

        examples = ju.Examples(jnp.asarray(tokens), jnp.asarray(labels))
        distance = language.embedding_distance(embeddings)
        return language.neighbourhood(losses, examples, may, table, key, distance=distance, num_variants=6, **options)

    return values, table, ask


def test_a_linear_loss_has_the_gradient_worked_out_by_hand(asked, embeddings):
    values, table, ask = asked
    tokens = np.array([[0, 4, 2, 9], [7, 7, 1, 3]])
    may = np.array([[True, True, False, True], [True, True, True, False]])
    key = jax.random.key(3)
    found = ask(tokens, tokens, may, key, rate=0.6)
    z = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    slopes = np.zeros((2, 6))
    for row in range(2):
        keys = jax.random.split(jax.random.fold_in(key, row), 6)
        for k in range(6):
            variant = np.asarray(language.perturb(jnp.asarray(tokens[row]), jnp.asarray(may[row]), table, keys[k], rate=0.6))
            apart = np.where(may[row], 1 - (z[tokens[row]] * z[variant]).sum(-1), 0).sum() / may[row].sum() + 1e-8
            moved = np.asarray(values)[variant].sum() - np.asarray(values)[tokens[row]].sum()
            slopes[row, k] = abs(moved) / apart if np.any(variant != tokens[row]) else 0
            assert float(found.variants[row, k] - found.original[row]) == pytest.approx(moved, abs=1e-4)
    mean_gradient = language.remind_features(found)[:, language.FEATURES.index("mean_gradient")]
    np.testing.assert_allclose(mean_gradient, slopes.mean(1), rtol=1e-3, atol=1e-3)


def test_padding_and_chunks_change_nothing_and_models_see_the_same_variants(asked):
    _, _, ask = asked
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (5, 6))
    key, may = jax.random.key(0), np.ones((5, 6), bool)
    plain = ask(tokens, tokens, may, key)
    longer = np.pad(tokens, ((0, 0), (0, 3)), constant_values=-1)
    for other in (ask(longer, longer, longer >= 0, key), ask(tokens, tokens, may, key, chunk=2)):
        for values, others in zip(plain, other, strict=True):
            np.testing.assert_allclose(values, others, rtol=1e-5, atol=1e-6)
    twice = jax.vmap(lambda scale: ask(tokens, tokens, may, key, scale=scale))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(twice.variants[1], 2 * twice.variants[0], rtol=1e-5)
    np.testing.assert_array_equal(twice.distances[0], twice.distances[1])


def test_labels_follow_the_tokens_that_were_replaced(embeddings):
    tokens = jnp.array([[0, 1, 2, 3, 4]])
    labels = jnp.array([[-1, 2, 3, 9, 5]])  # 9 is not the token behind; nothing stands behind the last one
    table = language.neighbour_table(embeddings, 1)
    seen = []

    def losses(part):
        seen.append(part)
        return jnp.zeros(len(part.inputs))

    language.neighbourhood(
        losses, ju.Examples(tokens, labels), tokens >= 0, table, jax.random.key(0),
        distance=language.embedding_distance(embeddings), num_variants=2, rate=1.0,
    )  # fmt: skip
    made = np.asarray(table)[np.arange(5), 0]
    np.testing.assert_array_equal(seen[1].inputs[0], made)
    np.testing.assert_array_equal(seen[1].targets[0], [-1, made[2], made[3], 9, 5])


def test_what_does_not_fit_is_refused(asked):
    _, _, ask = asked
    tokens = np.zeros((2, 3), int)
    with pytest.raises(ValueError, match="expected tokens, labels and may_change"):
        ask(tokens, tokens[:, 1:], tokens >= 0, jax.random.key(0))
    with pytest.raises(ValueError, match="rate must lie"):
        ask(tokens, tokens, tokens >= 0, jax.random.key(0), rate=1.5)
