"""Losses of token sequences against sums by hand: what counts, what does not, and by blocks of the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.losses import blocked_cross_entropy, cross_entropy, sequence_cross_entropy, sequence_log_loss

RNG = np.random.default_rng(0)
ROWS, TOKENS, WORDS, WIDTH = 3, 5, 7, 4
HIDDEN = RNG.normal(size=(ROWS, TOKENS, WIDTH)).astype(np.float32)
KERNEL = RNG.normal(size=(WIDTH, WORDS)).astype(np.float32)
LOGITS = HIDDEN @ KERNEL
LABELS = np.array([[6, 0, 3, 2, 1], [-1, -1, 5, 4, -1], [-1] * 5])


def value(logits, labels=LABELS, loss=sequence_cross_entropy):
    return loss(ju.Outputs(jnp.asarray(logits)), ju.Examples((), jnp.asarray(labels)))


def slope(logits, labels=LABELS, loss=sequence_cross_entropy):
    return jax.grad(lambda z: jnp.sum(value(z, labels, loss)))(jnp.asarray(logits))


def by_hand():
    """Negative log-probabilities [b, t] of the labels, 0 where there is none."""
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    return np.where(LABELS >= 0, -np.take_along_axis(log_p, LABELS.clip(0)[..., None], -1)[..., 0], 0)


def test_it_is_the_mean_or_the_sum_over_the_positions_that_count():
    counts = np.maximum((LABELS >= 0).sum(1), 1)
    np.testing.assert_allclose(value(LOGITS), by_hand().sum(1) / counts, rtol=1e-5)
    np.testing.assert_allclose(value(LOGITS, loss=sequence_log_loss(reduction="sum")), by_hand().sum(1), rtol=1e-5)
    normaliser = np.where(LABELS >= 0, np.log(np.exp(LOGITS).sum(-1)), 0)
    with_z = value(LOGITS, loss=sequence_log_loss(z_loss=0.3))
    np.testing.assert_allclose(with_z, (by_hand() + 0.3 * normaliser**2).sum(1) / counts, rtol=1e-5)


def test_the_gradient_is_that_of_each_position_by_hand():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    counts = (LABELS >= 0)[..., None] / np.maximum((LABELS >= 0).sum(1), 1)[:, None, None]
    np.testing.assert_allclose(slope(LOGITS), (p - np.eye(WORDS)[LABELS.clip(0)]) * counts, atol=1e-6)


@pytest.mark.parametrize("content", [np.nan, np.inf, -np.inf, 1e30])
def test_what_stands_where_nothing_counts_changes_nothing(content):
    spoilt = np.where((LABELS >= 0)[..., None], LOGITS, content)
    np.testing.assert_array_equal(value(spoilt), value(LOGITS))
    np.testing.assert_array_equal(slope(spoilt), slope(LOGITS))
    assert value(spoilt)[2] == 0


def test_where_padding_stands_does_not_matter():
    order = RNG.permutation(TOKENS)
    np.testing.assert_allclose(value(LOGITS[:, order], LABELS[:, order]), value(LOGITS), rtol=1e-6)
    longer = np.pad(LABELS, [(0, 0), (0, 4)], constant_values=-1)
    np.testing.assert_allclose(value(np.pad(LOGITS, [(0, 0), (0, 4), (0, 0)]), longer), value(LOGITS), rtol=1e-6)


def test_one_token_is_a_label():
    labels = jnp.array([4, 0, 2])
    expected = cross_entropy(ju.Outputs(LOGITS[:, 0]), ju.Examples((), labels))
    np.testing.assert_allclose(value(LOGITS[:, :1], labels[:, None]), expected, rtol=1e-6)
    np.testing.assert_allclose(value(LOGITS[:, 0], labels), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_logits_of_half_precision_are_summed_in_float32(dtype):
    half = jnp.asarray(LOGITS, dtype)
    assert value(half).dtype == jnp.float32
    np.testing.assert_array_equal(value(half), value(half.astype(jnp.float32)))
    assert slope(half).dtype == dtype


@pytest.mark.parametrize("label", [WORDS, -100])
def test_labels_that_are_no_token_are_not_passed_over(label):
    labels = LABELS.copy()
    labels[0, 1] = label
    for wrong in (
        value(LOGITS, labels),
        slope(LOGITS, labels)[:, 1, 0],
        blocked_cross_entropy(HIDDEN, KERNEL, labels, block=3),
    ):
        assert np.isnan(wrong).tolist() == [True, False, False]


@pytest.mark.parametrize("block", [1, 3, 7, 100])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_by_blocks_it_has_the_same_value_and_gradients(block, reduction):
    weights = jnp.array([1.0, 2.0, 3.0])

    def plain(hidden, kernel):
        return value(hidden @ kernel, loss=sequence_log_loss(reduction=reduction, z_loss=0.1)) @ weights

    def blocked(hidden, kernel):
        return blocked_cross_entropy(hidden, kernel, LABELS, block=block, reduction=reduction, z_loss=0.1) @ weights

    ours, theirs = (jax.value_and_grad(f, argnums=(0, 1))(HIDDEN, KERNEL) for f in (blocked, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_by_blocks_second_derivatives_and_rows_side_by_side_are_the_same():
    direction = jnp.asarray(RNG.normal(size=KERNEL.shape).astype(np.float32))

    def curved(loss):
        return jax.jvp(jax.grad(loss), (jnp.asarray(KERNEL),), (direction,))[1]

    ours = curved(lambda w: blocked_cross_entropy(HIDDEN, w, LABELS, block=3).sum())
    np.testing.assert_allclose(ours, curved(lambda w: value(HIDDEN @ w).sum()), rtol=1e-4, atol=1e-5)
    kernels = jnp.stack([KERNEL, 2 * KERNEL])
    found = jax.vmap(lambda w: blocked_cross_entropy(HIDDEN, w, LABELS, block=2))(kernels)
    np.testing.assert_allclose(found, jax.vmap(lambda w: value(HIDDEN @ w))(kernels), rtol=1e-5)


def test_by_blocks_hidden_states_at_padding_reach_nothing_and_half_precision_serves():
    spoilt = np.where((LABELS >= 0)[..., None], HIDDEN, np.nan)
    loss = lambda hidden: blocked_cross_entropy(hidden, KERNEL, LABELS, block=3).sum()
    np.testing.assert_array_equal(jax.grad(loss)(spoilt), jax.grad(loss)(HIDDEN))
    half = blocked_cross_entropy(jnp.asarray(HIDDEN, jnp.bfloat16), jnp.asarray(KERNEL, jnp.bfloat16), LABELS, block=3)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, value(LOGITS), rtol=0.05)


def model(loss, width=16, words=2048):
    """A table of hidden states, logits and what a loss by blocks reads."""

    def forward(variables, inputs, *, train=False, key=None):
        hidden, kernel = variables.params["table"][inputs], variables.params["kernel"]
        return ju.Outputs(hidden @ kernel, {"hidden": hidden, "kernel": kernel})

    variables = ju.Variables({"table": jnp.ones((words, width)), "kernel": jnp.ones((width, words))})
    return ju.Model(forward, loss), variables


def test_by_blocks_no_array_of_all_logits_exists():
    """Compiled for a model whose forward pass returns the logits too: nothing reads them, so they are not made."""
    tokens, labels = jnp.zeros((4, 64), int), jnp.ones((4, 64), int)
    bytes_of = {}
    for name, loss in {
        "plain": sequence_cross_entropy,
        "blocked": lambda o, e: blocked_cross_entropy(o.features["hidden"], o.features["kernel"], e.targets, block=128),
    }.items():
        built, variables = model(loss)

        def mean(variables, built=built):
            return jnp.mean(built.loss(built.forward(variables, tokens), ju.Examples(tokens, labels)))

        bytes_of[name] = jax.jit(jax.value_and_grad(mean)).lower(variables).compile().memory_analysis().temp_size_in_bytes
    logits = 4 * 64 * 2048 * 4
    assert bytes_of["blocked"] < logits / 2 < logits < bytes_of["plain"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: value(LOGITS, LABELS[:, 1:]), ValueError, "already shifted"),
        (lambda: value(LOGITS, LABELS * 1.0), TypeError, "token numbers"),
        (lambda: sequence_log_loss(reduction="none"), ValueError, '"mean" or "sum"'),
        (lambda: sequence_log_loss(z_loss=-1.0), ValueError, "z_loss must lie in"),
        (lambda: blocked_cross_entropy(HIDDEN, KERNEL.T, LABELS), ValueError, r"kernel \[d, v\]"),
        (lambda: blocked_cross_entropy(HIDDEN, KERNEL, LABELS, block=0), ValueError, "block must be an integer"),
    ],
)
def test_bad_input_gets_a_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_tokens_of_eight_bits_are_tokens_all_256_of_them():
    """The last of them is no -1, and their number fits though it does not fit into them."""
    logits, tokens = jax.random.normal(jax.random.key(0), (1, 3, 256)), np.array([[0, 7, 255]])
    few, many = (
        sequence_cross_entropy(ju.Outputs(logits), ju.Examples((), jnp.asarray(tokens.astype(x)))) for x in (np.uint8, np.int32)
    )
    np.testing.assert_array_equal(few, many)
    assert jnp.isfinite(many[0])
