"""Every measure beside retrained models: one number per model, judged on the scale of retrained against retrained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.audit.metrics import gap_of

language = ju.audit.language
MODELS, ROWS, LENGTH, VOCABULARY = 20, 12, 6, 8


def ensembles(leak):
    """Logits of retrained models and of candidates: one text for all and noise for each; a leak lifts the right tokens."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, VOCABULARY, (2 * ROWS, LENGTH))
    labels[:, -1] = -1
    lifted = np.eye(VOCABULARY)[np.maximum(labels, 0)] * (np.arange(2 * ROWS) < ROWS)[:, None, None]
    common = rng.normal(size=(*labels.shape, VOCABULARY))
    made = [common + 0.5 * rng.normal(size=(MODELS, *common.shape)) + lift * lifted for lift in (leak, 0, 3)]
    return [np.asarray(x, np.float32) for x in made], labels


def observe(logits, labels):
    """One number per model, of the first half of the rows (forgotten) or against the others (held out)."""
    log, scores, hits = (
        read(logits, labels) for read in (language.token_log_probabilities, language.token_scores, language.token_hits)
    )
    forgot = slice(ROWS)

    def area(values):
        return jax.vmap(lambda one: language.attack(one[forgot], one[ROWS:]).auc.estimate)(values)

    mean = language.mean_log_probability(log, labels)
    ratios = language.truth_ratio(mean[:, forgot], mean[:, ROWS:, None])
    return {
        "probability": language.probability(log, labels)[:, forgot],
        "truth ratio": jax.vmap(lambda x: language.truth_score(x, forget=True))(ratios),
        "exact memorisation": language.exact_memorisation(hits, labels)[:, forgot],
        "extraction strength": language.extraction_strength(hits, labels)[:, forgot],
        "min-k": area(language.min_k(log, labels, share=0.4)),
        "min-k++": area(language.min_k(scores, labels, share=0.4)),
        "loss": area(mean),
    }


@pytest.fixture(scope="module")
def judged():
    see = jax.jit(observe)

    def judge(leak):
        (candidate, retrained, original), labels = ensembles(leak)
        seen = [see(x, labels) for x in (candidate, retrained, original)]
        keys = jax.random.split(jax.random.key(0), len(seen[0]))
        return {
            name: ju.audit.judge(gap_of(name), *seen, key, alpha=0.05 / len(keys), num_permutations=399, num_bootstraps=20)
            for name, key in zip(seen[0], keys, strict=True)
        }

    return judge


@pytest.mark.slow
def test_retrained_models_are_inside_and_a_leak_is_outside(judged):
    """At a level of 5 % for all seven together."""
    verdicts = {name: int(found.verdict) for name, found in judged(0.0).items()}
    assert set(verdicts.values()) == {ju.audit.Verdict.INSIDE}, verdicts
    for name, found in judged(1.5).items():
        expected = ju.audit.Verdict.UNDER
        assert int(found.verdict) == expected, name
        assert float(found.p_value) <= 0.01, name


def test_one_measure_is_judged_like_any_other():
    (candidate, retrained, original), labels = ensembles(1.5)
    (fair, _, _), _ = ensembles(0.0)

    @jax.jit
    def see(logits):
        return {"strength": language.extraction_strength(language.token_hits(logits, labels), labels)[:, :ROWS]}

    leaking, fair, retrained, original = (see(x) for x in (candidate, fair, retrained, original))
    p = [
        ju.audit.permutation_p_value(gap_of("strength"), x, retrained, jax.random.key(1), two_sided=True)
        for x in (leaking, fair)
    ]
    assert p[0] <= 0.01 < 0.05 < p[1]


def test_ks_statistic_of_many_models_is_a_metric():
    rng = np.random.default_rng(3)
    questions = rng.normal(size=30)
    retrained, same, leaking = (
        np.float32(np.exp(questions + shift + 0.3 * rng.normal(size=(10, 30)))) for shift in (0.0, 0.0, 1.0)
    )
    alone = float(language.forget_quality(same[0], retrained[0]).p_value)
    assert alone > 0.5  # the same questions: far from uniform

    def statistic(candidate, reference):
        return language.forget_quality(jnp.mean(candidate, axis=0), jnp.mean(reference, axis=0)).statistic

    p = [ju.audit.permutation_p_value(statistic, x, retrained, jax.random.key(0), num_permutations=99) for x in (same, leaking)]
    assert p[1] <= 0.02 < 0.05 < p[0]


@pytest.mark.slow
def test_an_ensemble_keeps_log_probabilities_in_place_of_logits():
    def forward(variables, inputs, *, train=False, key=None):
        return ju.Outputs(variables.params["table"][inputs])

    def loss(outputs, examples):
        log = language.token_log_probabilities(outputs.logits, examples.targets)
        return -language.mean_log_probability(log, examples.targets)

    model = ju.Model(forward, loss, lambda key: ju.Variables({"table": 0.1 * jax.random.normal(key, (5, 5))}))
    tokens = jax.random.randint(jax.random.key(0), (20, 6), 0, 5)
    labels = jnp.concatenate([tokens[:, 1:], jnp.full((20, 1), -1)], axis=1)
    data = ju.training_data(tokens, labels)
    request = jax.tree.map(lambda x: x[0], ju.from_indices(data, [[0, 1, 2]]))
    retrain = ju.iterate(ju.retrain(model, optax.sgd(0.5)), num_steps=3, batch_size=4)
    variables = model.init(jax.random.key(1))
    made = ju.audit.ensemble(
        model, retrain, variables, data, request, jax.random.split(jax.random.key(2), 3),
        {"forget": ju.Examples(tokens[:3], labels[:3])},
        measure=lambda v, part: language.token_log_probabilities(forward(v, part.inputs).logits, part.targets),
    )  # fmt: skip
    log = made.logits["forget"]
    assert log.shape == (3, 3, 6)
    first = jax.tree.map(lambda x: x[0], made.variables)
    expected = -loss(forward(first, tokens[:3]), ju.Examples(tokens[:3], labels[:3]))
    np.testing.assert_allclose(language.mean_log_probability(log, labels[:3])[0], expected, rtol=1e-5)
