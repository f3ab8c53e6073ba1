"""A decoder as plain functions over a tree of weights: Llama and GPT-2 by their settings, and generation with a cache.

Weights of layers are stacked, [layers, inputs, outputs], and a scan with remat goes along them. Every matrix enters one product
as it is stored, so that `jaxunlearn.frozen.lora` changes any of them; the embedding is looked up, which it leaves out. The
cache is an input of the same forward pass, so that generation serves adapters over a frozen base too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

import jaxunlearn as ju
from jaxunlearn.types import ExampleLoss, Scalar

Params: TypeAlias = dict[str, Any]
MATRICES = "layers/(q|k|v|o|gate|up|down)$"  # targets of adapters


class RopeScaling(NamedTuple):
    """How Llama 3 stretches the slow rotations of a model that was trained on shorter texts."""

    factor: float
    low: float  # turns over the old length up to which a rotation is slow
    high: float  # and from which it is fast
    length: int  # that the model was trained with before


@dataclass(frozen=True)
class Config:
    """Form of a decoder."""

    vocabulary: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    groups: int | None = None  # heads of keys and values; None: as many as heads
    head_width: int | None = None  # None: width / heads
    hidden: int = 176  # of the MLP
    tied: bool = True  # the embedding is the head
    norm: Literal["rms", "layer"] = "rms"
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    rotary: bool = True  # else learned positions
    length: int = 1024  # how many learned positions there are
    biases: tuple[str, ...] = ()  # matrices of a layer that have one
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    epsilon: float = 1e-5
    pad: int | None = None  # token that no position looks at; negative tokens never count
    features: tuple[int, ...] = ()  # layers whose outputs are features, as "layer_0" and so on
    remat: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} heads of keys and values")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"a width of {self.width} is not divided by {self.heads} heads: give head_width")
        if self.rotary and self.head_size % 2:
            raise ValueError(f"rotary positions turn pairs: a head width of {self.head_size} is odd")
        if strange := [layer for layer in self.features if not 0 <= layer < self.layers]:
            raise ValueError(f"features name layers {strange}; there are {self.layers}")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.groups is None else self.groups

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.width // self.heads if self.head_width is None else self.head_width

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the matrices of a layer."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        shapes = {"q": (self.width, queries), "k": (self.width, keys), "v": (self.width, keys), "o": (queries, self.width)}
        shapes |= {"gate": (self.width, self.hidden)} if self.mlp == "swiglu" else {}
        return shapes | {"up": (self.width, self.hidden), "down": (self.hidden, self.width)}


class Cached(NamedTuple):
    """Tokens that go on where a cache ends, as inputs of the forward pass; all rows are equally long, padding included."""

    tokens: Int[Array, "b s"]
    keys: Float[Array, "l b t g k"]
    values: Float[Array, "l b t g k"]
    seen: Bool[Array, "b t"]  # which places hold a token that counts
    place: Int[Array, ""]  # of the first of the tokens


class Patched(NamedTuple):
    """Tokens of which some states behind one layer are others, as inputs of the forward pass."""

    tokens: Int[Array, "b t"]
    layer: Int[Array, ""]
    states: Float[Array, "b t d"]
    where: Bool[Array, "b t"]


def model(config: Config, loss: ExampleLoss = ju.losses.sequence_cross_entropy) -> ju.Model:
    """The decoder as a `jaxunlearn.Model` with inputs Int[b, t], `Cached` or `Patched`, and logits Float[b, t, v] in float32.

    Its features are "final" [b, t, d], in front of the head, and those of `config.features`, behind the layer. With a cache
    there are "keys", "values" and "seen" for the next one.

    Args:
        config: form of the decoder.
        loss: one value per row.
    """
    return ju.Model(partial(forward, config), loss, partial(init, config))


def init(config: Config, key: PRNGKeyArray) -> ju.Variables:
    """Fresh weights; what a layer adds is smaller the more layers there are (Radford et al. 2019)."""
    dtype, count = jnp.dtype(config.dtype), config.layers

    def draw(name: str, shape: tuple[int, ...], scale: float) -> Array:
        place = sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 2**31
        return (scale * jax.random.normal(jax.random.fold_in(key, place), shape)).astype(dtype)

    layers = {}
    for name, (inputs, outputs) in config.matrices.items():
        scale = inputs**-0.5 / (math.sqrt(2 * count) if name in ("o", "down") else 1)
        layers[name] = draw(name, (count, inputs, outputs), scale)
        if name in config.biases:
            layers[f"{name}_bias"] = jnp.zeros((count, outputs), dtype)
    norms = {"attention_norm": (count, config.width), "mlp_norm": (count, config.width)}
    layers |= _norms(config, norms, dtype)
    params: Params = {"embed": draw("embed", (config.vocabulary, config.width), config.width**-0.5), "layers": layers}
    params |= _norms(config, {"norm": (config.width,)}, dtype)
    if not config.tied:
        params["head"] = draw("head", (config.width, config.vocabulary), config.width**-0.5)
    if not config.rotary:
        params["positions"] = draw("positions", (config.length, config.width), 0.1 * config.width**-0.5)
    return ju.Variables(params)


def _norms(config: Config, shapes: dict[str, tuple[int, ...]], dtype: Any) -> Params:
    found: Params = {name: jnp.ones(shape, dtype) for name, shape in shapes.items()}
    if config.norm == "layer":
        found |= {f"{name}_bias": jnp.zeros(shape, dtype) for name, shape in shapes.items()}
    return found


def forward(
    config: Config, variables: ju.Variables, inputs: Any, *, train: bool = False, key: PRNGKeyArray | None = None
) -> ju.Outputs:
    """The forward pass, see `model`."""
    params: Params = variables.params
    cache = inputs if isinstance(inputs, Cached) else None
    patch = inputs if isinstance(inputs, Patched) else None
    tokens = jnp.asarray(inputs.tokens if isinstance(inputs, (Cached, Patched)) else inputs)
    counts = (tokens >= 0) if config.pad is None else (tokens >= 0) & (tokens != config.pad)
    place = jnp.int32(0) if cache is None else cache.place
    seen = counts if cache is None else jax.lax.dynamic_update_slice(cache.seen, counts, (0, place))
    own = place + jnp.arange(tokens.shape[1])  # places of the tokens among those that are seen
    # padding in front does not count as a position
    positions = jnp.maximum(jnp.take(jnp.cumsum(seen, axis=1), own, axis=1) - 1, 0)
    places = jnp.arange(seen.shape[1])
    # a position that may look at nothing else looks at itself, so that no row of weights is empty
    mask = (places <= own[:, None]) & seen[:, None, :] | (places == own[:, None])  # [b, s, t]
    x = params["embed"][jnp.maximum(tokens, 0)]
    if not config.rotary:
        x = x + params["positions"][positions]
    turns = _turns(config, positions) if config.rotary else None
    layer = partial(_layer, config, mask, turns, place)
    held = None if cache is None else (cache.keys, cache.values)
    if patch is not None:
        layer = partial(_patched, layer, patch)
    layers = (params["layers"], held) if patch is None else (params["layers"], held, jnp.arange(config.layers))
    x, (between, held) = jax.lax.scan(jax.checkpoint(layer) if config.remat else layer, x, layers)
    x = _normed(config, params, "norm", x)
    features = {"final": x, **{f"layer_{place}": between[place] for place in config.features}}
    if cache is not None:
        features |= {"keys": held[0], "values": held[1], "seen": seen}
    if config.tied:
        logits = jnp.einsum("btd,vd->btv", x, params["embed"], preferred_element_type=jnp.float32)
    else:
        logits = jnp.einsum("btd,dv->btv", x, params["head"], preferred_element_type=jnp.float32)
    return ju.Outputs(logits, features, variables.state)


def _patched(layer: Callable, patch: Patched, x: Array, part: Any) -> tuple[Array, Any]:
    x, (between, held) = layer(x, part[:2])
    x = jnp.where((part[2] == patch.layer) & patch.where[..., None], patch.states.astype(x.dtype), x)
    return x, (None if between is None else x, held)


def _layer(config: Config, mask: Array, turns: Any, place: Array, x: Array, layer: Any) -> tuple[Array, Any]:
    weights, held = layer
    batch, size = x.shape[:2]

    def linear(x: Array, name: str) -> Array:
        y = x @ weights[name]
        return y + weights[f"{name}_bias"] if name in config.biases else y

    seen = _normed(config, weights, "attention_norm", x)
    q, k, v = (linear(seen, name).reshape(batch, size, -1, config.head_size) for name in ("q", "k", "v"))
    if turns is not None:
        q, k = (_turned(part, *turns) for part in (q, k))
    if held is not None:
        k, v = (jax.lax.dynamic_update_slice(old, new, (0, place, 0, 0)) for old, new in zip(held, (k, v), strict=True))
        held = k, v
    q = q.reshape(batch, size, config.kv_heads, -1, config.head_size)  # [b, s, g, heads of a group, k]
    scores = jnp.einsum("bsgmk,btgk->bgmst", q, k, preferred_element_type=jnp.float32) * config.head_size**-0.5
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    read = jnp.einsum("bgmst,btgk->bsgmk", jax.nn.softmax(scores).astype(x.dtype), v)
    x = x + linear(read.reshape(batch, size, -1), "o")
    seen = _normed(config, weights, "mlp_norm", x)
    up = linear(seen, "up")
    x = x + linear(jax.nn.silu(linear(seen, "gate")) * up if config.mlp == "swiglu" else jax.nn.gelu(up), "down")
    return x, (x if config.features else None, held)


def _normed(config: Config, weights: Params, name: str, x: Array) -> Array:
    wide = x.astype(jnp.float32)
    if config.norm == "layer":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + config.epsilon)
    y = wide.astype(x.dtype) * weights[name]
    return y + weights[f"{name}_bias"] if config.norm == "layer" else y


def _turns(config: Config, positions: Int[Array, "b s"]) -> tuple[Array, Array]:
    """Cosine and sine of the angle of every pair, [b, s, 1, k / 2]."""
    speed = config.rope_base ** -(jnp.arange(0, config.head_size, 2, dtype=jnp.float32) / config.head_size)
    if (scaling := config.rope_scaling) is not None:
        turns = scaling.length * speed / (2 * jnp.pi)  # over the old length
        fast = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
        speed = speed * (fast + (1 - fast) / scaling.factor)
    angle = (positions[..., None].astype(jnp.float32) * speed)[:, :, None]
    return jnp.cos(angle), jnp.sin(angle)


def _turned(x: Array, cosine: Array, sine: Array) -> Array:
    """Rotary positions (Su et al. 2021) on pairs of one entry of each half, as the weights of Llama are stored."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1).astype(x.dtype)


def generate(
    forward: Callable,
    config: Config,
    variables: ju.Variables,
    prompts: Int[Array, "b p"],
    num_tokens: int,
    *,
    key: PRNGKeyArray | None = None,
    temperature: Scalar = 1.0,
    stop: int | None = None,
) -> Int[Array, "b n"]:
    """Go on with prompts, one token at a time, in one scan over a cache; pure, so wrap it in `jax.jit`.

    Args:
        forward: of `model(config)`, or of an adapter over it: `parts.on(base).forward`.
        config: form of the decoder.
        variables: its weights, or those of the adapter.
        prompts: tokens, with padding on either side.
        num_tokens: how many more.
        key: draws them; without it the likeliest is taken.
        temperature: logits are divided by it before they are drawn from, positive.
        stop: a token behind which there are only -1.
    """
    count, size = prompts.shape
    pad = -1 if config.pad is None else config.pad
    valid = (prompts >= 0) & (prompts != pad)
    behind = jnp.argmax(valid[:, ::-1], axis=1)  # padding behind the last token goes in front of the first
    prompts = jnp.take_along_axis(jnp.where(valid, prompts, -1), (jnp.arange(size) - behind[:, None]) % size, axis=1)
    length = size + num_tokens
    if not config.rotary and length > config.length:
        raise ValueError(f"{size} + {num_tokens} tokens are more than the {config.length} learned positions")
    dtype = jax.eval_shape(lambda: forward(variables, prompts).features["final"]).dtype
    empty = jnp.zeros((config.layers, count, length, config.kv_heads, config.head_size), dtype)
    first = Cached(prompts, empty, empty, jnp.zeros((count, length), bool), jnp.int32(0))

    def ahead(cached: Cached, step: Int[Array, ""] | int, done: Bool[Array, " b"]) -> tuple[Cached, Array, Array]:
        outputs = forward(variables, cached)
        logits = outputs.logits[:, -1]
        if key is None:
            chosen = jnp.argmax(logits, axis=-1)
        else:
            chosen = jax.random.categorical(jax.random.fold_in(key, step), logits / temperature)
        told = jnp.where(done, -1, chosen.astype(prompts.dtype))
        done = done if stop is None else done | (told == stop)
        keys, values, seen = (outputs.features[name] for name in ("keys", "values", "seen"))
        return Cached(told[:, None], keys, values, seen, cached.place + cached.tokens.shape[1]), done, told

    def body(carry: tuple[Cached, Array], step: Array) -> tuple[tuple[Cached, Array], Array]:
        cached, done, told = ahead(carry[0], step, carry[1])
        return (cached, done), told

    cached, done, told = ahead(first, 0, jnp.zeros(count, bool))
    _, rest = jax.lax.scan(body, (cached, done), jnp.arange(1, num_tokens))
    return jnp.concatenate([told[:, None], rest.T], axis=1)
