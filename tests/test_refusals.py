"""Answers put behind prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import refusals

ANSWERS = np.array([[8, 9, -1], [5, 6, 7]])
TOKENS = np.array([[1, 2, 3, 4, 1, 0], [1, 2, 3, 3, 3, 3], [4, 3, 2, 1, 0, 0], [1, 1, 1, 1, 1, 2]])
LABELS = np.array([[-1, 3, 4, 1, -1, -1], [-1, -1, -1, 3, 3, -1], [-1] * 6, [1, 1, -1, 1, 1, 2]])
STARTS = [1, 3, None, 0]


def expected(row, answer):
    """By hand: everything up to the first label stays, then comes the answer, then padding."""
    if STARTS[row] is None:
        return TOKENS[row], LABELS[row]
    start, words = STARTS[row], [x for x in answer if x >= 0]
    whole = [*TOKENS[row][: start + 1], *words, *[0] * 6][:6]
    labels = [*[-1] * start, *words, *[-1] * 6][:6]
    return np.array(whole), np.array(labels)


def test_an_answer_stands_behind_its_prompt_and_each_of_them_is_drawn():
    refuse, seen = jax.jit(refusals.after_prompt(ANSWERS)), set()
    for seed in range(8):
        new = refuse(ju.Examples(jnp.asarray(TOKENS), jnp.asarray(LABELS)), jax.random.key(seed))
        for row in range(4):
            hits = [
                i
                for i, x in enumerate(ANSWERS)
                if all(np.array_equal(a, b) for a, b in zip((new.inputs[row], new.targets[row]), expected(row, x), strict=True))
            ]
            assert hits
            seen |= {(row, i) for i in hits}
    assert len(seen) == 8
    assert new.inputs.dtype == jnp.asarray(TOKENS).dtype


def test_labels_are_the_tokens_that_come_next():
    new = refusals.after_prompt([[8, 9]], padding=3)(ju.Examples(jnp.asarray(TOKENS), jnp.asarray(LABELS)), jax.random.key(0))
    following = np.asarray(new.inputs)[:, 1:]
    labels = np.asarray(new.targets)[:, :-1]
    counted = (labels >= 0) & (np.arange(4) != 2)[:, None]
    np.testing.assert_array_equal(labels[counted], following[counted])
    assert np.all(np.asarray(new.inputs)[0, 4:] == 3)


@pytest.mark.parametrize("answers", [[], [[-1, 3]], np.ones((2, 2)), [1, 2]])
def test_answers_have_a_token_each(answers):
    with pytest.raises(ValueError, match="at least one token each"):
        refusals.after_prompt(answers)


def test_rows_that_are_no_tokens_are_refused():
    with pytest.raises(ValueError, match="arrays of integers"):
        refusals.after_prompt([[1]])(ju.Examples(jnp.ones((2, 3)), jnp.ones((2, 3), int)), jax.random.key(0))
