"""A small diffusion transformer over weights (flax.linen), and how it is trained on pairs of networks.

A token is a hidden unit: what enters it, its bias, and, in the last hidden layer, what leaves it; of the noised network and of
the one that it starts from. Tokens of a layer share their encoder and have no position, so that units in another order give the
same answer in that order. Blocks are those of DiT (Peebles, Xie: Scalable diffusion models with transformers, ICCV 2023, arXiv
2212.09748): step and condition shift, scale and gate them. G.pt cuts layers into chunks with positions instead, and learns from
millions of networks that the order of units does not matter; a few dozen do not teach it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxunlearn import hypernetworks
from jaxunlearn.tree import path_of

Layers = Sequence[Sequence[str]]  # of each layer the paths of kernel and bias, as `hypernetworks.permuted` takes them

FREQUENCIES = 6
CLIP, DECAY = 0.75, 0.998  # of the norm of gradients; of the moving mean of parameters


class Sizes(NamedTuple):
    """How large a denoiser is."""

    width: int = 64
    blocks: int = 3
    heads: int = 4


def unit_places(params: PyTree, layers: Layers) -> list[Int[Any, "t s"]]:
    """Where the parameters of tokens stand in the vector of a network of dense layers: a table for every hidden layer, in which
    a unit is a row, and one with a row for what belongs to the outputs alone.
    """
    paths = jax.tree.leaves_with_path(params)
    ends = np.cumsum([leaf.size for _, leaf in paths])
    leaves = np.split(np.arange(ends[-1]), ends[:-1])
    place = {path_of(path): x.reshape(leaf.shape) for (path, leaf), x in zip(paths, leaves, strict=True)}
    tables = [[place[kernel].T, *(place[path][:, None] for path in others)] for kernel, *others in layers[:-1]]
    tables[-1].append(place[layers[-1][0]])
    found = [np.concatenate(table, axis=1) for table in tables]
    if others := [place[path] for path in layers[-1][1:]]:
        found.append(np.concatenate(others)[None])
    missing = set(range(ends[-1])) - {int(x) for table in found for x in table.ravel()}
    if missing:
        raise ValueError(f"layers leave out {len(missing)} of {ends[-1]} parameters: name all kernels and biases in order")
    return found


def _features(values: Float[Array, " q"]) -> Float[Array, " f"]:
    """Scalars, and their sines and cosines."""
    waves = values[:, None] * 2.0 ** jnp.linspace(-2, 3, FREQUENCIES)
    return jnp.concatenate([values, jnp.sin(waves).ravel(), jnp.cos(waves).ravel()])


class Denoiser(nn.Module):
    """Predicts the clean vector of a network; it begins as the identity, because its decoders are zero.

    Attributes:
        places: see `unit_places`; tables as tuples.
        sizes: of the transformer.
        num_steps: of the diffusion.
    """

    places: tuple[tuple[tuple[int, ...], ...], ...]
    sizes: Sizes
    num_steps: int

    @nn.compact
    def __call__(
        self, noised: Float[Array, " p"], start: Float[Array, " p"], condition: Float[Array, " q"], step: Int[Array, ""]
    ) -> Float[Array, " p"]:
        tables, width = [np.asarray(table) for table in self.places], self.sizes.width
        told = _features(jnp.append(condition, step / self.num_steps))
        told = nn.silu(nn.Dense(width)(nn.silu(nn.Dense(width)(told))))
        groups = [nn.Dense(width)(jnp.concatenate([noised[table], start[table]], axis=1)) for table in tables]
        x = jnp.concatenate(groups) + nn.Dense(width)(told)
        for _ in range(self.sizes.blocks):
            x = self._block(x, told)
        parts = jnp.split(nn.LayerNorm()(x), np.cumsum([len(table) for table in tables])[:-1])
        # what is known of the clean vector without any unit is linear in both; the width need not carry it
        of_noised, of_start = nn.Dense(2, kernel_init=nn.initializers.zeros)(told)
        made = start + of_noised * noised + of_start * start
        for table, part in zip(tables, parts, strict=True):
            decoder = nn.Dense(table.shape[1], kernel_init=nn.initializers.zeros)
            made = made.at[table].add(decoder(part))
        return made

    def _block(self, x: Float[Array, "t w"], told: Float[Array, " w"]) -> Float[Array, "t w"]:
        width = self.sizes.width
        modulation = nn.Dense(6 * width, kernel_init=nn.initializers.zeros)(told)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = jnp.split(modulation, 6)
        seen = nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1 + scale) + shift
        x += (1 + gate) * nn.MultiHeadDotProductAttention(self.sizes.heads)(seen)
        seen = nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1 + scale_mlp) + shift_mlp
        return x + (1 + gate_mlp) * nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(seen)))


class Pairs(NamedTuple):
    """Networks, what they know, and which of them make a pair."""

    vectors: Float[Any, "n p"]  # not scaled
    losses: Float[Any, "n c"]  # mean over the training rows of each class
    counts: Float[Any, " c"]  # training rows of each class
    kinds: Sequence[Int[Any, "m 3"]]  # of each kind of pairs: start, goal, and the class that is asked for
    shares: Sequence[float]  # of each kind, in training


def sides(losses: Float[Array, " c"], counts: Float[Array, " c"], label: Int[Array, ""]) -> Float[Array, " 2"]:
    """Mean losses on the rows of all other classes, and on those of one class."""
    total, own = jnp.sum(losses * counts), losses[label] * counts[label]
    return jnp.stack([(total - own) / (jnp.sum(counts) - counts[label]), losses[label]])


def create(
    pairs: Pairs, like: PyTree, layers: Layers, sizes: Sizes, *, num_steps: int, key: PRNGKeyArray
) -> hypernetworks.Hypernetwork:
    """A denoiser that is not trained yet, for networks like those of the pairs.

    Args:
        pairs: they say how networks are scaled.
        like: parameters of one network.
        layers: its chain of dense layers.
        sizes: of the transformer.
        num_steps: of the diffusion.
        key: of its parameters.
    """
    places = tuple(tuple(map(tuple, table.tolist())) for table in unit_places(like, layers))
    module = Denoiser(places, sizes, num_steps)

    def denoise(params, noised, start, condition, step):
        return jnp.asarray(module.apply({"params": params}, noised, start, condition, step))

    vector, told = jnp.zeros(pairs.vectors.shape[1]), jnp.zeros(6 + len(pairs.counts))
    params = jax.jit(module.init)(key, vector, vector, told, jnp.int32(0))["params"]
    schedule = hypernetworks.linear_schedule(num_steps)
    return hypernetworks.Hypernetwork(denoise, params, float(hypernetworks.scale_of(pairs.vectors)), schedule)


def train(
    made: hypernetworks.Hypernetwork,
    pairs: Pairs,
    like: PyTree,
    layers: Layers,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    key: PRNGKeyArray,
) -> tuple[hypernetworks.Hypernetwork, Float[Array, " n"]]:
    """Train a denoiser with Adam, a cosine schedule and a moving mean of its parameters, in one compiled call.

    Args:
        made: see `create`.
        pairs: what it is trained on.
        like: parameters of one network.
        layers: its chain of layers, whose units are put in another order in every pair, see `hypernetworks.permuted`.
        num_steps, batch_size, learning_rate: of the training.
        key: of everything random.

    Returns:
        The trained hypernetwork, and the loss of every step.
    """
    tables = [jnp.asarray(kind) for kind in pairs.kinds]
    vectors, losses, counts = (jnp.asarray(x, jnp.float32) for x in pairs[:3])
    edges = jnp.asarray(np.cumsum(pairs.shares) / np.sum(pairs.shares), jnp.float32)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(num_steps // 20, 1), num_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(schedule))

    def drawn(key):
        kind_key, row_key, unit_key = jax.random.split(key, 3)
        kind = jnp.searchsorted(edges, jax.random.uniform(kind_key), side="right")
        rows = jnp.stack([table[(jax.random.uniform(row_key) * len(table)).astype(int)] for table in tables])
        start, goal, label = rows[jnp.minimum(kind, len(tables) - 1)]
        before, after = (sides(losses[x], counts, label) for x in (start, goal))
        told = hypernetworks.condition(before, after, jax.nn.one_hot(label, len(counts)))
        first, second = (
            hypernetworks.permuted(hypernetworks.to_params(vectors[x], like), layers, unit_key) for x in (start, goal)
        )
        return hypernetworks.to_vector(first, made.scale), hypernetworks.to_vector(second, made.scale), told

    def loss(params, key):
        pair_keys, noise_keys = (jax.random.split(x, batch_size) for x in jax.random.split(key))
        starts, goals, told = jax.vmap(drawn)(pair_keys)
        lost = partial(hypernetworks.denoising_loss, made._replace(params=params))
        return jnp.mean(jax.vmap(lost)(starts, goals, told, noise_keys))

    def step(carry, now):
        (params, mean, state), (place, key) = carry, now
        value, slope = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(slope, state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(DECAY, (1 + place) / (10 + place))
        return (params, optax.incremental_update(params, mean, 1 - decay), state), value

    @jax.jit
    def run(params, key):
        first = (params, params, optimizer.init(params))
        (_, mean, _), values = jax.lax.scan(step, first, (jnp.arange(num_steps), jax.random.split(key, num_steps)))
        return mean, values

    params, values = run(made.params, key)
    return made._replace(params=params), values
