"""Weights in the files of published models, against twins in NumPy that follow the published modelling code."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import decoder, safetensors, weights
from jaxunlearn import frozen

KEY, RANDOM = jax.random.key(0), np.random.default_rng(0)
TOKENS = RANDOM.integers(0, 13, (2, 7))
SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 13, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 6, "rms_norm_eps": 1e-6, "rope_theta": 500.0,
    "tie_word_embeddings": False, "rope_scaling": SCALING, "hidden_act": "silu",
}  # fmt: skip
QWEN = {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True, "rope_scaling": None}
GPT2 = {
    "model_type": "gpt2", "vocab_size": 13, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 8,
    "activation_function": "gelu_new",
}  # fmt: skip
FORMS = pytest.mark.parametrize("settings", [LLAMA, QWEN, GPT2], ids=["llama", "qwen2", "gpt2"])


def checkpoint(settings, folder, dtype=np.float32):
    """A checkpoint of random weights under the published names."""
    shapes = {}
    if settings["model_type"] == "gpt2":
        d = settings["n_embd"]
        shapes = {"wte.weight": (13, d), "wpe.weight": (8, d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
        for i in range(2):
            for name, shape in {
                "ln_1": (d,), "ln_2": (d,), "attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, 4 * d),
                "mlp.c_proj": (4 * d, d),
            }.items():  # fmt: skip
                shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[-1:]}
        shapes["h.0.attn.bias"] = (1, 1, 8, 8)  # the mask, which older files hold
    else:
        d, f, q, k = 12, 10, 18, 6
        shapes = {"model.embed_tokens.weight": (13, d), "model.norm.weight": (d,)}
        if not settings["tie_word_embeddings"]:
            shapes["lm_head.weight"] = (13, d)
        for i in range(2):
            layer = f"model.layers.{i}"
            shapes |= {f"{layer}.{x}_layernorm.weight": (d,) for x in ("input", "post_attention")}
            shapes |= {f"{layer}.self_attn.{x}_proj.weight": (q if x == "q" else k, d) for x in "qkv"}
            shapes[f"{layer}.self_attn.o_proj.weight"] = (d, q)
            shapes |= {f"{layer}.mlp.{x}_proj.weight": (f, d) for x in ("gate", "up")}
            shapes[f"{layer}.mlp.down_proj.weight"] = (d, f)
            if settings["model_type"] == "qwen2":
                shapes |= {f"{layer}.self_attn.{x}_proj.bias": (q if x == "q" else k,) for x in "qkv"}
    tensors = {name: (0.4 * RANDOM.normal(size=shape)).astype(dtype) for name, shape in shapes.items()}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    safetensors.write(folder / "model.safetensors", tensors, {"format": "pt"})
    return {name: x.astype(np.float64) for name, x in tensors.items()}


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def attended(q, k, v):
    """Causal attention of one row, [heads, t, k]."""
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    return softmax(np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)) @ v


def gpt2(w, tokens):
    def norm(x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["wte.weight"][tokens] + w["wpe.weight"][: len(tokens)]
    for i in range(2):
        q, k, v = (
            part.reshape(len(x), 3, 4).transpose(1, 0, 2)
            for part in np.split(linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, -1)
        )
        x = x + linear(attended(q, k, v).transpose(1, 0, 2).reshape(len(x), 12), f"h.{i}.attn.c_proj")
        u = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        x = x + linear(0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))), f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def llama(w, tokens, settings):
    def norm(x, name):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * w[f"{name}.weight"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    speed = 500.0 ** -(np.arange(0, 6, 2) / 6)
    if settings["rope_scaling"]:
        for j, s in enumerate(speed.copy()):  # as in the published code, one frequency after the other
            wavelength = 2 * np.pi / s
            if wavelength > 16 / 1.0:
                speed[j] = s / 8
            elif wavelength >= 16 / 4.0:
                smooth = (16 / wavelength - 1.0) / (4.0 - 1.0)
                speed[j] = (1 - smooth) * s / 8 + smooth * s
    angle = np.concatenate([np.outer(np.arange(len(tokens)), speed)] * 2, axis=-1)

    def turned(x):
        half = np.concatenate([-x[..., 3:], x[..., :3]], axis=-1)
        return x * np.cos(angle) + half * np.sin(angle)

    x = w["model.embed_tokens.weight"][tokens]
    for i in range(2):
        p = f"model.layers.{i}"
        seen = norm(x, f"{p}.input_layernorm")
        q, k, v = (linear(seen, f"{p}.self_attn.{n}_proj").reshape(len(x), -1, 6).transpose(1, 0, 2) for n in "qkv")
        q, k, v = turned(q), np.repeat(turned(k), 3, axis=0), np.repeat(v, 3, axis=0)
        x = x + linear(attended(q, k, v).transpose(1, 0, 2).reshape(len(x), 18), f"{p}.self_attn.o_proj")
        seen = norm(x, f"{p}.post_attention_layernorm")
        gate = linear(seen, f"{p}.mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(seen, f"{p}.mlp.up_proj"), f"{p}.mlp.down_proj")
    return norm(x, "model.norm") @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


@FORMS
def test_logits_are_those_of_a_twin_in_numpy(settings, tmp_path):
    w = checkpoint(settings, tmp_path)
    form, config, variables = weights.load(tmp_path)
    assert form == settings["model_type"]
    found = jax.jit(decoder.model(config).forward)(variables, jnp.asarray(TOKENS)).logits
    for row, tokens in enumerate(TOKENS):
        expected = gpt2(w, tokens) if form == "gpt2" else llama(w, tokens, settings)
        np.testing.assert_allclose(found[row], expected, rtol=1e-3, atol=2e-4)


@FORMS
def test_what_is_written_back_is_what_was_read(settings, tmp_path):
    checkpoint(settings, tmp_path / "one")
    form, config, variables = weights.load(tmp_path / "one")
    manifest = weights.signed(b'{"a":1}', b"\x01\x02")
    weights.save(tmp_path / "two", form, config, variables, manifest)
    first, second = (safetensors.read(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in second.arrays.items():
        np.testing.assert_array_equal(tensor, first.arrays[name])
    assert set(first.arrays) - set(second.arrays) <= {"h.0.attn.bias"}
    assert second.metadata == {"format": "pt", "jaxunlearn.manifest": '{"a":1}', "jaxunlearn.signature": "0102"}
    again = weights.load(tmp_path / "two")
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, again.variables, variables)
    assert safetensors.digest(second.arrays) == safetensors.digest(weights.tensors_of(form, config, variables))


def test_bfloat16_is_read_and_written(tmp_path):
    checkpoint(LLAMA, tmp_path, jnp.bfloat16)
    form, config, variables = weights.load(tmp_path)
    assert config.dtype == "bfloat16"
    assert {str(x.dtype) for x in jax.tree.leaves(variables)} == {"bfloat16"}
    weights.save(tmp_path / "two", form, config, variables)
    jax.tree.map(np.testing.assert_array_equal, weights.load(tmp_path / "two").variables, variables)
    assert weights.load(tmp_path, dtype="float32").variables.params["embed"].dtype == jnp.float32


def test_adapters_are_written_as_peft_adds_them(tmp_path):
    w = checkpoint(LLAMA, tmp_path)
    form, config, variables = weights.load(tmp_path)
    parts = frozen.lora(decoder.model(config), variables, jnp.asarray(TOKENS), rank=2, alpha=6.0, targets=decoder.MATRICES)
    part = jax.tree.map(lambda x: x + 0.1 * RANDOM.normal(size=x.shape).astype(np.float32), parts.start(variables, KEY))
    weights.save_adapter(tmp_path / "adapter", form, config, part, alpha=6.0, base="some/base")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down"))
    tensors = safetensors.read(tmp_path / "adapter" / "adapter_model.safetensors").arrays
    for name in [name for name in w if name.endswith("_proj.weight")]:  # W + (alpha / r) B A
        a, b = (tensors[f"base_model.model.{name.replace('weight', f'{side}.weight')}"] for side in ("lora_A", "lora_B"))
        assert a.shape[0] == b.shape[1] == settings["r"] == 2
        w[name] += settings["lora_alpha"] / settings["r"] * b.astype(float) @ a.astype(float)
    found = jax.jit(parts.on(variables).forward)(part, jnp.asarray(TOKENS)).logits
    np.testing.assert_allclose(found[0], llama(w, TOKENS[0], LLAMA), rtol=2e-3, atol=1e-3)
    read, alpha = weights.load_adapter(tmp_path / "adapter", form, config)
    assert alpha == 6.0
    jax.tree.map(np.testing.assert_array_equal, read, part)


def test_files_of_several_types_are_read_in_one_that_holds_all(tmp_path):
    checkpoint(LLAMA, tmp_path)
    tensors = dict(safetensors.read(tmp_path / "model.safetensors").arrays)
    mixed = {name: x if "norm" in name else x.astype(jnp.bfloat16) for name, x in tensors.items()}
    safetensors.write(tmp_path / "model.safetensors", mixed)
    _, config, variables = weights.load(tmp_path)
    assert config.dtype == "float32"
    assert {x.dtype.name for x in jax.tree.leaves(variables)} == {"float32"}
    np.testing.assert_array_equal(variables.params["norm"], tensors["model.norm.weight"])
    np.testing.assert_array_equal(variables.params["embed"], mixed["model.embed_tokens.weight"].astype(np.float32))


def peft_adapter(folder, shapes, **settings):
    """An adapter as PEFT writes it."""
    folder.mkdir(exist_ok=True)
    said = {"peft_type": "LORA", "bias": "none", "r": 2, "lora_alpha": 6.0, "init_lora_weights": True, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    tensors = {
        f"base_model.model.{module}.lora_{side}.weight": RANDOM.normal(size=shape).astype(np.float32)
        for module, (inputs, outputs) in shapes.items()
        for side, shape in (("A", (2, inputs)), ("B", (outputs, 2)))
    }
    safetensors.write(folder / "adapter_model.safetensors", tensors)
    return tensors


def test_an_adapter_of_one_matrix_of_queries_keys_and_values_is_three_here(tmp_path):
    w = checkpoint(GPT2, tmp_path)
    form, config, base = weights.load(tmp_path)
    shapes = {f"transformer.h.{layer}.attn.c_attn": (12, 36) for layer in range(2)}
    tensors = peft_adapter(tmp_path / "adapter", shapes, fan_in_fan_out=True, use_rslora=True)
    part, alpha = weights.load_adapter(tmp_path / "adapter", form, config)
    assert set(part.params) == {"layers/q", "layers/k", "layers/v"}
    np.testing.assert_allclose(alpha / 2, 6.0 / 2**0.5)  # rank-stabilised: over the root of the rank
    for layer in range(2):
        a, b = (tensors[f"base_model.model.transformer.h.{layer}.attn.c_attn.lora_{side}.weight"] for side in "AB")
        w[f"h.{layer}.attn.c_attn.weight"] += 6.0 / 2**0.5 * (b.astype(float) @ a.astype(float)).T
    parts = frozen.lora(decoder.model(config), base, jnp.asarray(TOKENS), rank=2, alpha=alpha, targets="layers/(q|k|v)$")
    found = jax.jit(parts.on(base).forward)(part, jnp.asarray(TOKENS)).logits
    np.testing.assert_allclose(found[0], gpt2(w, TOKENS[0]), rtol=2e-3, atol=1e-3)


def test_other_adapters_are_refused(tmp_path):
    checkpoint(GPT2, tmp_path)
    form, config, _ = weights.load(tmp_path)
    shapes = {f"transformer.h.{layer}.mlp.c_fc": (12, 48) for layer in range(2)}
    for wrong, words in (
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"rank_pattern": {"c_fc": 3}}, "single matrices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ):
        peft_adapter(tmp_path / "adapter", shapes, **wrong)
        with pytest.raises(ValueError, match=words):
            weights.load_adapter(tmp_path / "adapter", form, config)
    peft_adapter(tmp_path / "adapter", {"transformer.h.1.mlp.c_fc": (12, 48)})
    with pytest.raises(ValueError, match=r"in some layers only: there is no .*h\.0\.mlp"):
        weights.load_adapter(tmp_path / "adapter", form, config)
    peft_adapter(tmp_path / "adapter", {**shapes, "transformer.wte": (13, 12)})
    with pytest.raises(ValueError, match=r"changes what the decoder has not: .*wte"):
        weights.load_adapter(tmp_path / "adapter", form, config)


def test_thirds_of_one_matrix_are_no_adapters(tmp_path):
    checkpoint(GPT2, tmp_path)
    form, config, variables = weights.load(tmp_path)
    for targets, fine in (("layers/(o|up|down)$", True), ("layers/q$", False)):
        parts = frozen.lora(decoder.model(config), variables, jnp.asarray(TOKENS), rank=2, targets=targets)
        part = parts.start(variables, KEY)
        if fine:
            weights.save_adapter(tmp_path / "adapter", form, config, part, alpha=1.0)
            jax.tree.map(np.testing.assert_array_equal, weights.load_adapter(tmp_path / "adapter", form, config)[0], part)
            settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
            assert settings["target_modules"] == ["attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
        else:
            with pytest.raises(ValueError, match="a third of one matrix"):
                weights.save_adapter(tmp_path / "other", form, config, part, alpha=1.0)


def test_other_models_and_damaged_files_are_refused(tmp_path):
    for wrong, words in (
        ({"model_type": "mamba"}, "mamba"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn"),
        ({"model_type": "mistral", "sliding_window": 4}, "sliding window"),
        ({"model_type": "mistral"}, "sliding window"),  # Mistral's own default
        ({"rope_scaling": None, "rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({**GPT2, "scale_attn_weights": False}, "scale_attn_weights"),
    ):
        with pytest.raises(ValueError, match=words):
            weights.config_of({**LLAMA, **wrong})
    checkpoint(LLAMA, tmp_path)
    with pytest.raises(ValueError, match="cannot be"):
        weights.settings_of("gpt2", weights.load(tmp_path).config)
    path = tmp_path / "model.safetensors"
    tensors = dict(safetensors.read(path).arrays)
    safetensors.write(path, {**tensors, "model.layers.0.extra": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"model.layers.0.extra"):
        weights.load(tmp_path)
    safetensors.write(path, {name: x for name, x in tensors.items() if name != "lm_head.weight"})
    with pytest.raises(ValueError, match=r"no tensor 'lm_head.weight'"):
        weights.load(tmp_path)
    safetensors.write(path, {**tensors, "lm_head.weight": np.zeros((5, 5), np.float32)})
    with pytest.raises(ValueError, match=r"config.json says"):
        weights.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "tie_word_embeddings": True}))
    safetensors.write(path, tensors)
    with pytest.raises(ValueError, match=r"a head of its own"):
        weights.load(tmp_path)
    safetensors.write(path, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})  # some files hold it twice
    assert "head" not in weights.load(tmp_path).variables.params
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"0", whole[:40], b"", b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"safetensors|cut short|bytes behind"):
            safetensors.read(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="safetensors files only"):
        weights.load(tmp_path)


def test_a_model_that_was_trained_here_is_written_in_either_form(tmp_path):
    config = decoder.Config(13, width=12, heads=2, groups=1, hidden=8)
    weights.save(tmp_path / "a", "llama", config, decoder.init(config, KEY))
    loaded = weights.load(tmp_path / "a")
    assert dataclasses.replace(loaded.config, groups=1, head_width=None) == config
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, decoder.init(config, KEY))
