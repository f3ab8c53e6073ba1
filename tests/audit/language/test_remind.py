"""REMIND: identities of its features, plateaus that it sees, and the controls beside it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju

language = ju.audit.language
PLACE = {name: place for place, name in enumerate(language.FEATURES)}
RETAINED, HELD_OUT, FORGOTTEN = range(3)


def around(original, variants, distances=None):
    arrays = [np.asarray(x, np.float32) for x in (original, variants)]
    return language.Neighbourhood(*arrays, np.ones_like(arrays[1]) if distances is None else np.asarray(distances, np.float32))


def features(*arguments):
    return {name: np.asarray(language.remind_features(around(*arguments)))[..., place] for name, place in PLACE.items()}


def test_features_follow_their_definitions_and_identities():
    rng = np.random.default_rng(0)
    original, variants, distances = rng.random(4), rng.random((4, 6)), rng.random((4, 6)) + 0.1
    found = features(original, variants, distances)
    increments = variants - original[:, None]
    slopes = np.abs(increments) / distances
    for name, expected in {
        "original_loss": original, "mean_neighbor_loss": variants.mean(1), "max_neighbor_loss": variants.max(1),
        "min_neighbor_loss": variants.min(1), "loss_variance": variants.var(1), "loss_std": variants.std(1),
        "mean_loss_increment": increments.mean(1), "max_loss_increment": increments.max(1),
        "min_loss_increment": increments.min(1), "mean_gradient": slopes.mean(1), "max_gradient": slopes.max(1),
        "gradient_variance": slopes.var(1), "loss_volatility": np.abs(np.diff(variants)).mean(1),
        "local_curvature": np.diff(variants, n=2).mean(1), "increment_variance": increments.var(1),
    }.items():  # fmt: skip
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(found["increment_variance"], found["loss_variance"])
    np.testing.assert_allclose(found["loss_std"] ** 2, found["loss_variance"], rtol=1e-5)
    np.testing.assert_allclose(found["mean_loss_increment"], found["mean_neighbor_loss"] - found["original_loss"], atol=1e-6)
    few = language.remind_features(around(original, variants, distances), drop_degenerate=True)
    np.testing.assert_array_equal(few, np.stack([found[name] for name in language.FEATURES if name != "increment_variance"], 1))


def test_a_constant_loss_has_no_spread_and_no_nan():
    flat = features(np.full(3, 0.7), np.full((3, 15), 0.7), np.full((3, 15), 1e-8))
    losses = {"original_loss", "mean_neighbor_loss", "max_neighbor_loss", "min_neighbor_loss"}
    for name, values in flat.items():
        np.testing.assert_allclose(values, 0.7 if name in losses else 0, rtol=1e-6, err_msg=name)
    single = language.remind_features(around([0.5], [[0.5]]))
    assert np.all(np.isfinite(single))


def test_spread_grows_with_curvature():
    steps = np.random.default_rng(1).normal(size=20)
    found = features(np.zeros(2), np.stack([0.1 * steps**2, 3 * steps**2]))
    for name in ("loss_variance", "mean_gradient", "max_gradient", "loss_volatility", "gradient_variance"):
        assert found[name][0] < found[name][1], name


def test_every_kind_gives_its_share_to_testing_whatever_stands_behind():
    kinds = np.repeat([0, 1, 2], [10, 20, 15])
    key = jax.random.key(0)
    chosen = np.asarray(language.held_back(kinds, key, share=0.2))
    assert [int(chosen[kinds == kind].sum()) for kind in range(3)] == [2, 4, 3]
    longer = language.held_back(np.pad(kinds, (0, 5), constant_values=-1), key, share=0.2)
    np.testing.assert_array_equal(longer, np.pad(chosen, (0, 5)))


def plateaus(seed, each=400, variants=15):
    """Losses of one law for all kinds; around forgotten texts the loss is cut off, around others it is not."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat([RETAINED, HELD_OUT, FORGOTTEN], each)
    original = rng.gamma(9, 0.3, 3 * each)
    changed = original[:, None] + np.abs(rng.normal(0, 1, (3 * each, variants))) + np.where(kinds == RETAINED, 0.5, 0)[:, None]
    flat = np.minimum(changed, original[:, None] + 0.1)
    distances = rng.uniform(0.5, 1.5, changed.shape)
    return around(original, np.where((kinds == FORGOTTEN)[:, None], flat, changed), distances), kinds


@pytest.fixture(scope="module")
def separate():
    return jax.jit(lambda x, kinds: language.separation(x, kinds, jax.random.key(0), test_share=0.5))


@pytest.mark.slow
def test_a_plateau_is_seen_where_the_loss_sees_nothing(separate):
    found = separate(*plateaus(0))
    assert found.features.forgotten_auc > 0.95
    assert found.features.unseen_auc > 0.95
    assert found.features.unseen_tpr > 0.9
    assert found.features.auc > 0.85
    assert abs(found.loss_alone.unseen_auc - 0.5) < 0.1
    assert abs(found.loss_alone.auc - 0.5) < 0.05
    assert found.gain > 0.4
    assert found.gradient_norm < 1e-3


@pytest.mark.slow
def test_the_fit_is_that_of_sklearn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    told, kinds = plateaus(2)
    key = jax.random.key(0)
    tested = np.asarray(language.held_back(kinds, key, share=0.5))
    z = np.asarray(language.remind_features(told), np.float64)
    z = (z - z[~tested].mean(0)) / z[~tested].std(0)
    probabilities = LogisticRegression(C=1, max_iter=3000, tol=1e-8).fit(z[~tested], kinds[~tested]).predict_proba(z[tested])
    found = language.separation(told, kinds, key, test_share=0.5, num_steps=300)
    assert float(found.features.auc) == pytest.approx(roc_auc_score(kinds[tested], probabilities, multi_class="ovr"), abs=2e-3)
    assert float(found.features.accuracy) == pytest.approx((probabilities.argmax(1) == kinds[tested]).mean(), abs=0.01)


@pytest.mark.slow
def test_shuffled_kinds_are_told_by_chance(separate):
    told, kinds = plateaus(1)
    found = separate(told, np.random.default_rng(0).permutation(kinds))
    for area, bound in ((found.features.auc, 0.08), (found.features.unseen_auc, 0.14), (found.loss_alone.auc, 0.08)):
        assert abs(area - 0.5) < bound


@pytest.mark.slow
def test_padding_changes_nothing_and_models_are_a_vmap():
    told, kinds = plateaus(3, each=60)
    more = jax.tree.map(lambda x: np.pad(x, ((0, 7), *[(0, 0)] * (x.ndim - 1)), constant_values=np.nan), told)
    once = jax.jit(lambda x, kinds: language.separation(x, kinds, jax.random.key(1)))
    plain, longer = once(told, kinds), once(more, np.pad(kinds, (0, 7), constant_values=-1))
    for values, others in zip(jax.tree.leaves(plain.features), jax.tree.leaves(longer.features), strict=True):
        np.testing.assert_allclose(values, others, atol=1e-3)
    other, _ = plateaus(4, each=60)
    both = jax.tree.map(lambda *x: np.stack(x), told, other)
    many = jax.jit(jax.vmap(lambda x: language.separation(x, kinds, jax.random.key(1))))(both)
    np.testing.assert_allclose(many.features.auc[0], plain.features.auc, atol=1e-3)


@pytest.mark.slow
def test_a_retrained_model_cannot_tell_forgotten_from_held_out_texts():
    """A language model of pairs of tokens, trained on retained and forgotten texts, which gradient ascent then forgets."""
    vocabulary, length, each = 30, 10, 150
    tokens = jax.random.randint(jax.random.key(0), (3 * each, length), 0, vocabulary)
    labels = jnp.concatenate([tokens[:, 1:], jnp.full((3 * each, 1), -1)], axis=1)
    kinds = jnp.repeat(jnp.arange(3), each)

    def losses(weights, part):
        # what stands two tokens before counts as well, so that texts can be remembered
        before = jnp.pad(part.inputs, ((0, 0), (1, 0)))[:, :-1]
        logits = weights["last"][part.inputs] + weights["before"][before]
        return -language.mean_log_probability(language.token_log_probabilities(logits, part.targets), part.targets)

    @partial(jax.jit, static_argnames="steps")
    def train(weights, seen, rate, steps):
        optimizer = optax.sgd(rate)
        part = ju.Examples(tokens, labels)
        loss = lambda w: jnp.sum(jnp.where(seen, losses(w, part), 0)) / jnp.sum(seen)

        def step(carry, _):
            weights, state = carry
            updates, state = optimizer.update(jax.grad(loss)(weights), state)
            return (optax.apply_updates(weights, updates), state), None

        return jax.lax.scan(step, (weights, optimizer.init(weights)), length=steps)[0][0]

    fresh = {name: jnp.zeros((vocabulary, vocabulary)) for name in ("last", "before")}
    original = train(fresh, kinds != HELD_OUT, 50.0, 100)
    unlearned = train(original, kinds == FORGOTTEN, -20.0, 10)
    retrained = train(fresh, kinds == RETAINED, 50.0, 100)
    embeddings = jax.random.normal(jax.random.key(1), (vocabulary, 8))
    table, distance = language.neighbour_table(embeddings, 5), language.embedding_distance(embeddings)

    def look(weights):
        return language.neighbourhood(
            lambda part: losses(weights, part),
            ju.Examples(tokens, labels),
            tokens >= 0,
            table,
            jax.random.key(2),
            distance=distance,
        )

    compare = jax.jit(lambda *models: language.remind(*map(look, models), kinds, jax.random.key(3), test_share=0.5))
    found = compare(unlearned, retrained)
    assert abs(found.retrained.features.unseen_auc - 0.5) < 3.5 * np.sqrt(1 / 6 / 75)
    assert found.unlearned.features.unseen_auc > 0.8
    assert found.excess == found.unlearned.features.unseen_auc - found.retrained.features.unseen_auc


def test_what_does_not_fit_is_refused():
    told, kinds = plateaus(0, each=5)
    with pytest.raises(ValueError, match="expected losses and kinds"):
        language.separation(told, kinds[1:], jax.random.key(0))
    with pytest.raises(ValueError, match="share must lie"):
        language.held_back(kinds, jax.random.key(0), share=1.0)
    with pytest.raises(ValueError, match="same texts and variants"):
        language.remind(told, jax.tree.map(lambda x: x[1:], told), kinds, jax.random.key(0))
    with pytest.raises(ValueError, match="k > 0"):
        language.remind_features(told._replace(variants=told.variants[:, :0], distances=told.distances[:, :0]))
