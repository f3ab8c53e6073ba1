"""A study of language: a small decoder that learns texts about people who do not exist."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from experiments.common import decoder, text
from experiments.common.study import Study


def learned(
    *,
    num_rows: int,
    held_out: int,
    num_steps: int,
    width: int = 32,
    layers: int = 2,
    length: int = 48,
    batch_size: int = 16,
    learning_rate: float = 4e-3,
    seed: int = 0,
) -> Study:
    """Rows of characters and a decoder of the form of Llama, tied, whose loss is the mean over the characters of a row.

    Args:
        num_rows: of training.
        held_out: rows of other people, as `Study.test`.
        num_steps, batch_size, learning_rate: of training, with Adam.
        width, layers: of the decoder.
        length: of a row, in characters; the last row of a text is padded.
        seed: of the texts.
    """
    random = np.random.default_rng(seed)
    people = text.names(len(text.FIRST) * len(text.LAST), random)
    texts = text.register(people, random)
    tokenizer = text.Characters("".join(texts))
    rows = text.windows([tokenizer.encode(one) for one in texts], length)
    owners = np.asarray(rows.owners)
    last = int(owners[num_rows - 1])  # whoever fills the last training row is in no held-out row
    others = np.flatnonzero(owners > last)
    if len(others) < held_out:
        raise ValueError(f"{len(owners)} rows do not give {num_rows} for training and {held_out} of other people")
    train, test = (jax.tree.map(lambda x, at=at: x[at], rows.examples) for at in (np.arange(num_rows), others[:held_out]))
    config = decoder.Config(tokenizer.size, width=width, layers=layers, heads=4, hidden=2 * width, remat=False)
    likelihood = ju.likelihoods.categorical(ignore=text.PADDING, mean=True)
    model = decoder.model(config)._replace(likelihood=likelihood)
    data = ju.training_data(*jax.tree.map(jnp.asarray, train))
    return Study(model, data, jax.tree.map(jnp.asarray, test), 0, num_steps, min(batch_size, num_rows), learning_rate)
