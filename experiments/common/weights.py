"""Weights of published language models from a folder on this machine, and back: whole ones, and adapters as PEFT keeps them.

Read are `config.json` and `*.safetensors` of models of the forms of Llama (Mistral, Qwen2) and GPT-2; nothing is downloaded. A
setting that would make another model is refused. Adapters of `jaxunlearn.frozen.lora` are `adapter_config.json` and
`adapter_model.safetensors`. Metadata of a file has room for a manifest and its signature, see `signed`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from experiments.common import decoder, safetensors
from jaxunlearn import tree

Form: TypeAlias = Literal["llama", "mistral", "qwen2", "gpt2"]
MANIFEST, SIGNATURE = "jaxunlearn.manifest", "jaxunlearn.signature"
IGNORED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # no weights: they follow from the settings
LLAMA = {
    "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "q": "self_attn.q_proj",
    "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj",
    "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
GPT2 = {
    "attention_norm": "ln_1", "mlp_norm": "ln_2", "q": "attn.c_attn", "k": "attn.c_attn", "v": "attn.c_attn",
    "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj",
}  # fmt: skip


class Loaded(NamedTuple):
    """A model from a folder."""

    form: Form
    config: decoder.Config
    variables: ju.Variables


class Entry(NamedTuple):
    """Where a parameter of the decoder stands in the files; `{}` is the number of a layer."""

    path: str
    name: str
    flipped: bool = False  # stored as [outputs, inputs]
    third: int | None = None  # one of three that lie side by side along the outputs


def load(folder: str | Path, *, dtype: str | None = None) -> Loaded:
    """Read a model.

    Args:
        folder: with `config.json`, and `model.safetensors` or an index of several.
        dtype: of the weights, e.g. "bfloat16"; by default the one that they are stored in, or one that holds all of them.

    Returns:
        `Loaded`; padding of its inputs is -1.

    Raises:
        ValueError: settings of another kind of model, or tensors that are missing, left over or of another shape.
        FileNotFoundError: no such files.
    """
    folder = Path(folder)
    settings = json.loads((folder / "config.json").read_text())
    form, config = config_of(settings)
    tensors = _tensors(folder)
    prefix = "transformer." if form == "gpt2" and any(name.startswith("transformer.") for name in tensors) else ""
    used: set[str] = set()

    def read(entry: Entry, layer: int | None) -> np.ndarray:
        name = prefix * (entry.name != "lm_head.weight") + entry.name.format(layer)
        if name not in tensors:
            raise ValueError(f"{folder} has no tensor {name!r}")
        used.add(name)
        found = tensors[name]
        if entry.third is not None:
            found = np.split(found, 3, axis=-1)[entry.third]
        found = found.T if entry.flipped else found
        return found.astype(jnp.dtype(config.dtype))

    kinds = {x.dtype for name, x in tensors.items() if not name.endswith(IGNORED)}
    config = replace(config, dtype=dtype or str(jnp.result_type(*kinds)))
    like = jax.eval_shape(decoder.model(config).init, jax.random.key(0)).params  # type: ignore[misc]
    entries = {entry.path: entry for entry in entries_of(form, config)}

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        entry = entries[tree.path_of(path)]
        layers = range(config.layers) if "{}" in entry.name else [None]
        found = [read(entry, layer) for layer in layers]
        whole = np.stack(found) if "{}" in entry.name else found[0]
        if whole.shape != shape.shape:
            raise ValueError(f"{folder}: {entry.name} has shape {whole.shape}, config.json says {shape.shape}")
        return jnp.asarray(whole)

    params = jax.tree.map_with_path(leaf, like)
    left = {name for name in tensors if name not in used and not name.endswith(IGNORED)}
    if config.tied and "lm_head.weight" in left:  # some files hold it twice
        if not np.array_equal(tensors["lm_head.weight"], tensors[prefix + entries["embed"].name]):
            raise ValueError(f"{folder} has a head of its own, config.json says that the embedding is the head")
        left.remove("lm_head.weight")
    if left:
        raise ValueError(f"{folder} holds tensors that this form of model has not: {', '.join(sorted(left)[:5])}")
    return Loaded(form, config, ju.Variables(params))


def save(
    folder: str | Path, form: Form, config: decoder.Config, variables: ju.Variables, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a whole model, as `load` and other libraries read it.

    Args:
        folder: is made.
        form: as it was read, or "llama" or "gpt2" for a model that was trained here.
        config, variables: the model.
        metadata: of the file of weights, e.g. `signed(...)`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / "model.safetensors", tensors_of(form, config, variables), {"format": "pt", **(metadata or {})})
    (folder / "config.json").write_text(json.dumps(settings_of(form, config), indent=2) + "\n")


def tensors_of(form: Form, config: decoder.Config, variables: ju.Variables) -> dict[str, np.ndarray]:
    """The tensors of a model under their published names."""
    leaves = {tree.path_of(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(variables.params)}
    found: dict[str, Any] = {}
    for entry in entries_of(form, config):
        whole = leaves[entry.path]
        for layer in range(config.layers) if "{}" in entry.name else [None]:
            part = whole if layer is None else whole[layer]
            name = entry.name.format(layer)
            if entry.third is None:
                found[name] = part.T if entry.flipped else part
            else:
                found.setdefault(name, [None] * 3)[entry.third] = part
    return {name: np.concatenate(x, axis=-1) if isinstance(x, list) else x for name, x in found.items()}


def entries_of(form: Form, config: decoder.Config) -> list[Entry]:
    """Where all parameters of a model stand."""
    gpt2 = form == "gpt2"
    inner, outer = ("h.{}", "") if gpt2 else ("model.layers.{}", "model.")
    found = [
        Entry("embed", "wte.weight" if gpt2 else "model.embed_tokens.weight"),
        Entry("norm", f"{outer}{'ln_f' if gpt2 else 'norm'}.weight"),
    ]
    if not config.tied:
        found.append(Entry("head", "lm_head.weight", flipped=True))
    if not config.rotary:
        found.append(Entry("positions", "wpe.weight"))
    if config.norm == "layer":
        found.append(Entry("norm_bias", "ln_f.bias"))
    for path, name in (GPT2 if gpt2 else LLAMA).items():
        third = "qkv".index(path) if gpt2 and path in ("q", "k", "v") else None
        matrix = path in config.matrices
        found.append(Entry(f"layers/{path}", f"{inner}.{name}.weight", matrix and not gpt2, third))
        if path in config.biases or (not matrix and config.norm == "layer"):
            found.append(Entry(f"layers/{path}_bias", f"{inner}.{name}.bias", third=third))
    return found


def config_of(settings: Mapping[str, Any]) -> tuple[Form, decoder.Config]:
    """The form of a decoder from the settings that are published with a model.

    Raises:
        ValueError: they make another model than the decoder.
    """
    form = settings.get("model_type")
    if settings.get("quantization_config"):
        raise ValueError("the weights are quantised in a way of another library: publish them as floating-point numbers")
    if form == "gpt2":
        _require(
            settings, activation_function=("gelu_new", "gelu_pytorch_tanh"), scale_attn_by_inverse_layer_idx=(False,),
            scale_attn_weights=(True,), add_cross_attention=(False,),
        )  # fmt: skip
        width = settings["n_embd"]
        return form, decoder.Config(
            settings["vocab_size"], width=width, layers=settings["n_layer"], heads=settings["n_head"],
            hidden=settings.get("n_inner") or 4 * width, tied=settings.get("tie_word_embeddings", True), norm="layer",
            mlp="gelu", rotary=False, length=settings["n_positions"], epsilon=settings.get("layer_norm_epsilon", 1e-5),
            biases=("q", "k", "v", "o", "up", "down"),
        )  # fmt: skip
    if form not in ("llama", "mistral", "qwen2"):
        raise ValueError(f"config.json has model_type {form!r}; llama, mistral, qwen2 and gpt2 are known")
    _require(settings, hidden_act=("silu",))
    window = settings.get("sliding_window", 4096 if form == "mistral" else None)  # where nothing is said, it is that of Mistral
    if window is not None and (form == "mistral" or settings.get("use_sliding_window")):
        raise ValueError("the model attends to a sliding window, which the decoder does not")
    rope = {**(settings.get("rope_scaling") or {}), **(settings.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    _require(rope, partial_rotary_factor=(1.0,))
    if kind not in ("default", "llama3"):
        raise ValueError(f"rotary positions of type {kind!r} are not known; default and llama3 are")
    scaling = None
    if kind == "llama3":
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        scaling = decoder.RopeScaling(*(rope[key] for key in keys))
    attention = ("q", "k", "v") if form == "qwen2" else ("q", "k", "v", "o") if settings.get("attention_bias") else ()
    return form, decoder.Config(
        settings["vocab_size"], width=settings["hidden_size"], layers=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"], head_width=settings.get("head_dim"),
        groups=settings.get("num_key_value_heads", 8 if form == "mistral" else None),
        hidden=settings["intermediate_size"], tied=settings.get("tie_word_embeddings", False),
        biases=(*attention, *(("gate", "up", "down") if settings.get("mlp_bias") else ())),
        rope_base=rope.get("rope_theta", settings.get("rope_theta", 10000.0)), rope_scaling=scaling,
        epsilon=settings.get("rms_norm_eps", 1e-6),
    )  # fmt: skip


def settings_of(form: Form, config: decoder.Config) -> dict[str, Any]:
    """The settings that are published with a model of this form.

    Raises:
        ValueError: models of the form have other ones.
    """
    found: dict[str, Any] = {"model_type": form, "vocab_size": config.vocabulary, "tie_word_embeddings": config.tied}
    found["torch_dtype"] = config.dtype
    if form == "gpt2":
        found |= {
            "architectures": ["GPT2LMHeadModel"], "n_embd": config.width, "n_layer": config.layers, "n_head": config.heads,
            "n_inner": config.hidden, "n_positions": config.length, "layer_norm_epsilon": config.epsilon,
            "activation_function": "gelu_new",
        }  # fmt: skip
    else:
        architecture = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}[form]
        found |= {
            "architectures": [architecture], "hidden_size": config.width, "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads, "head_dim": config.head_size,
            "intermediate_size": config.hidden, "hidden_act": "silu", "rms_norm_eps": config.epsilon,
            "rope_theta": config.rope_base, "attention_bias": "o" in config.biases, "mlp_bias": "up" in config.biases,
        }  # fmt: skip
        if form == "mistral":
            found["sliding_window"] = None
        if (scaling := config.rope_scaling) is not None:
            found["rope_scaling"] = {
                "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low,
                "high_freq_factor": scaling.high, "original_max_position_embeddings": scaling.length,
            }  # fmt: skip
    if _form(config_of(found)[1]) != _form(config):
        raise ValueError(f"a model of the form {form} cannot be {config}")
    return found


def _form(config: decoder.Config) -> dict[str, Any]:
    """What settings say of a model; the rest is how it is run."""
    names = (
        "vocabulary", "width", "layers", "heads", "kv_heads", "head_size", "hidden", "tied", "norm", "mlp", "rotary", "biases",
        "rope_scaling", "epsilon",
    )  # fmt: skip
    found = {name: getattr(config, name) for name in names}
    return found | ({"rope_base": config.rope_base} if config.rotary else {"length": config.length})


def _require(settings: Mapping[str, Any], **allowed: tuple) -> None:
    for name, values in allowed.items():
        if settings.get(name, values[0]) not in values:
            raise ValueError(f"config.json has {name} {settings[name]!r}; the decoder has {' or '.join(map(repr, values))}")


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if strange := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{index} names a file outside of its folder: {strange[0]!r}")
    if not (folder / names[0]).exists():
        raise FileNotFoundError(f"{folder} has no {names[0]}: weights are read from safetensors files only")
    return {name: array for file in names for name, array in safetensors.read(folder / file).arrays.items()}


# Adapters


def save_adapter(
    folder: str | Path, form: Form, config: decoder.Config, part: ju.Variables, *, alpha: float, base: str = "",
    metadata: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write a part of `jaxunlearn.frozen.lora` as PEFT keeps adapters.

    Args:
        folder: is made.
        form, config: of the base.
        part: of one request.
        alpha: as given to `lora`.
        base: where the base is found, for the settings.
        metadata: of the file of weights, e.g. `signed(...)`.

    Raises:
        ValueError: a matrix that PEFT has not by itself: queries, keys and values of GPT-2 are one there.
    """
    tensors = adapter_tensors(form, config, part)
    parts = 2 if form == "gpt2" else 1  # c_proj by itself would be that of the MLP too
    modules = {".".join(name.split(".lora_")[0].split(".")[-parts:]) for name in tensors}
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": _rank(part), "lora_alpha": alpha,
        "target_modules": sorted(modules), "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": form == "gpt2",
        "inference_mode": True, "init_lora_weights": True, "use_rslora": False,
    }  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / "adapter_model.safetensors", tensors, {"format": "pt", **(metadata or {})})
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def adapter_tensors(form: Form, config: decoder.Config, part: ju.Variables) -> dict[str, np.ndarray]:
    """The factors of a part under their names in PEFT: A [rank, inputs] and B [outputs, rank]."""
    modules = _modules(form, config)
    found = {}
    for path, factors in part.params.items():
        module, third = modules[path]
        if third is not None:
            raise ValueError(
                f"{path} of GPT-2 is a third of one matrix in PEFT: write the merged weights, or adapt o, up and down only"
            )
        for side, factor in (("lora_A", factors["a"]), ("lora_B", factors["b"])):
            values = np.asarray(factor)
            for layer in range(config.layers) if "{}" in module else [None]:
                one = values if layer is None else values[layer]
                found[f"base_model.model.{module.format(layer)}.{side}.weight"] = np.ascontiguousarray(one.T)
    return found


def load_adapter(folder: str | Path, form: Form, config: decoder.Config) -> tuple[ju.Variables, float]:
    """Read an adapter; the part of `jaxunlearn.frozen.lora` for the targets that it has, and its alpha.

    Raises:
        ValueError: settings that make another adapter, or tensors that are missing or left over.
    """
    folder = Path(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    _require(
        settings, peft_type=("LORA",), bias=("none",), use_dora=(False,), use_qalora=(False,), layer_replication=(None,),
        alora_invocation_tokens=(None,), init_lora_weights=(True, False, "gaussian", "orthogonal", "eva"),  # others move it
    )  # fmt: skip
    if settings.get("rank_pattern") or settings.get("alpha_pattern"):
        raise ValueError("adapter_config.json has ranks or alphas of single matrices; lora has one for all")
    tensors = safetensors.read(folder / "adapter_model.safetensors").arrays
    used, params = set(), {}
    for path, (module, third) in _modules(form, config).items():
        names = [
            [f"base_model.model.{module.format(layer)}.{side}.weight" for side in ("lora_A", "lora_B")]
            for layer in (range(config.layers) if "{}" in module else [None])
        ]
        absent = [name for pair in names for name in pair if name not in tensors]
        if len(absent) == 2 * len(names):
            continue
        if absent:
            raise ValueError(f"{folder} changes {module} in some layers only: there is no {absent[0]}")
        used |= {name for pair in names for name in pair}
        down, up = ([tensors[pair[side]].T for pair in names] for side in (0, 1))
        if third is not None:
            up = [np.split(x, 3, axis=-1)[third] for x in up]
        pair = (np.stack(x) if "{}" in module else x[0] for x in (down, up))
        params[path] = dict(zip("ab", map(jnp.asarray, pair), strict=True))
    if left := set(tensors) - used:
        raise ValueError(f"{folder} changes what the decoder has not: {', '.join(sorted(left)[:5])}")
    part = ju.Variables(params)
    return part, settings["lora_alpha"] * (_rank(part) ** 0.5 if settings.get("use_rslora") else 1)


def _rank(part: ju.Variables) -> int:
    return next(iter(part.params.values()))["a"].shape[-1]


def _modules(form: Form, config: decoder.Config) -> dict[str, tuple[str, int | None]]:
    """Modules of the matrices by their paths, and which third of one they are."""
    found = {}
    for entry in entries_of(form, config):
        if entry.path.removeprefix("layers/") in config.matrices or entry.path == "head":
            prefix = "transformer." if form == "gpt2" and entry.path != "head" else ""
            found[entry.path] = prefix + entry.name.removesuffix(".weight"), entry.third
    return found


def signed(manifest: bytes, signature: bytes | None = None) -> dict[str, str]:
    """Metadata for a manifest, such as `jaxunlearn.certificates.manifest.write` makes, and its signature.

    Args:
        manifest: its content. The SHA-256 in it can be that of the tensors, `safetensors.digest(tensors_of(...))`, and not that
            of the file, in which it lies.
        signature: of the content.
    """
    found = {MANIFEST: manifest.decode()}
    return found if signature is None else {**found, SIGNATURE: signature.hex()}
