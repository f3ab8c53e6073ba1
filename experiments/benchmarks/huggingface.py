"""Are models and adapters that other libraries write read as they mean them, and the other way round?

    pip install -e '.[benchmarks]' transformers peft
    python experiments/benchmarks/huggingface.py

Tiny models with random weights of transformers, saved by `save_pretrained`, against `experiments/common/weights.py` and
`decoder.py` on the same tokens, padding among them: largest difference of logits. Then what is written here is loaded there,
whole weights by `from_pretrained` and adapters by PEFT, and adapters of PEFT are loaded here. Settings that make another model
must be refused. Nothing is downloaded.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a script and as a module

import jax
import jax.numpy as jnp
import numpy as np
import peft  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
import tyro

from experiments.common import decoder, weights
from experiments.common.report import Column, Table, print_table
from jaxunlearn import frozen

TOLERANCE = 1e-4
VOCABULARY, LENGTH = 29, 11
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 32, "bos_token_id": 1,
    "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, grouped queries": ("Llama", LLAMA),
    "llama, tied": ("Llama", {**LLAMA, "tie_word_embeddings": True}),
    "llama, one head of keys": ("Llama", {**LLAMA, "num_key_value_heads": 1}),
    "llama, wide heads": ("Llama", {**LLAMA, "head_dim": 10}),
    "llama, biases": ("Llama", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama, theta": ("Llama", {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 70.0}}),
    "llama 3": ("Llama", {**LLAMA, "rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": None}),
    "qwen2": ("Qwen2", LLAMA),
    "qwen2, tied": ("Qwen2", {**LLAMA, "tie_word_embeddings": True}),
    "gpt2": ("GPT2", GPT2),
    "gpt2, untied": ("GPT2", {**GPT2, "tie_word_embeddings": False}),
    "gpt2, own width of the MLP": ("GPT2", {**GPT2, "n_inner": 40}),
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "yarn": ("Llama", {**LLAMA, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}),
    "linear positions": ("Llama", {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "dynamic positions": ("Llama", {**LLAMA, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
    "sliding window": ("Mistral", {**LLAMA, "sliding_window": 4}),
    "sliding window of some layers": (
        "Qwen2", {**LLAMA, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    ),
    "another activation": ("Llama", {**LLAMA, "hidden_act": "gelu"}),
    "gpt2 with another activation": ("GPT2", {**GPT2, "activation_function": "relu"}),
    "gpt2 without scaled scores": ("GPT2", {**GPT2, "scale_attn_weights": False}),
    "gpt2 scaled by layer": ("GPT2", {**GPT2, "scale_attn_by_inverse_layer_idx": True}),
}  # fmt: skip


@dataclass
class Config:
    """Command line of the benchmark."""

    seed: int = 0
    """Of weights and tokens."""
    out: Path | None = None
    """JSON file."""


def made(name: str, settings: dict[str, Any], seed: int) -> Any:
    """A model of transformers with random weights, none of which is as it begins."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def tokens_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens, and which of them count: padding stands behind."""
    random = np.random.default_rng(seed)
    counts = np.arange(LENGTH) < np.array([LENGTH, 7, 1])[:, None]
    return random.integers(1, VOCABULARY, counts.shape), counts


def theirs(model: Any, tokens: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Logits of their model, of tokens that count."""
    with torch.no_grad():
        found = model(torch.tensor(np.where(counts, tokens, 0)), attention_mask=torch.tensor(counts.astype(int)))
    return found.logits.float().numpy()[counts]


def ours(forward: Callable[..., Any], variables: Any, tokens: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Logits of our model, of tokens that count."""
    return np.asarray(jax.jit(forward)(variables, jnp.asarray(np.where(counts, tokens, -1))).logits)[counts]


def apart(first: np.ndarray, second: np.ndarray) -> float:
    """Largest difference, in units of the largest logit where that is above 1."""
    return float(np.max(np.abs(first - second)) / max(1.0, float(np.max(np.abs(first)))))


def loaded(folder: Path, **options: Any) -> Any:
    """Their model from a folder; nothing may be missing or left over."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    if any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise ValueError(f"{folder}: {told}")
    return model.eval()


def whole(name: str, folder: Path, seed: int) -> Iterator[tuple[str, float]]:
    """A model read, written back, in several files, and generating."""
    model, (tokens, counts) = made(*MODELS[name], seed), tokens_of(seed)
    model.save_pretrained(folder / "one")
    expected = theirs(model, tokens, counts)
    form, config, variables = weights.load(folder / "one")
    yield "read", apart(expected, ours(decoder.model(config).forward, variables, tokens, counts))
    weights.save(folder / "back", form, config, variables)
    yield "written back", apart(expected, theirs(loaded(folder / "back", dtype="float32"), tokens, counts))
    model.save_pretrained(folder / "shards", max_shard_size="4KB")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 1
    pairs = zip(*map(jax.tree.leaves, (variables, weights.load(folder / "shards").variables)), strict=True)
    yield "several files", max(apart(np.asarray(x), np.asarray(y)) for x, y in pairs)

    told = np.arange(7) >= np.array([0, 3])[:, None]  # prompts of two lengths, padded in front
    prompts = np.where(told, tokens[:2, :7], -1)
    generated = jax.jit(lambda v: decoder.generate(decoder.model(config).forward, config, v, jnp.asarray(prompts), 6))(
        variables
    )
    with torch.no_grad():
        options = {"attention_mask": torch.tensor(told.astype(int)), "max_new_tokens": 6, "do_sample": False}
        expected = model.generate(torch.tensor(np.where(told, prompts, 0)), **options)
    yield "generated tokens that differ", float(np.sum(np.asarray(generated) != expected[:, 7:].numpy()))


def in_bfloat16(name: str, folder: Path, seed: int) -> Iterator[tuple[str, float]]:
    """Files of bfloat16, read as they are and in float32."""
    model, (tokens, counts) = made(*MODELS[name], seed), tokens_of(seed)
    model.to(torch.bfloat16).save_pretrained(folder / "half")
    exact = theirs(loaded(folder / "half", dtype="float32"), tokens, counts)
    _, config, variables = weights.load(folder / "half", dtype="float32")
    yield "bfloat16 read in float32", apart(exact, ours(decoder.model(config).forward, variables, tokens, counts))
    form, config, variables = weights.load(folder / "half")
    assert config.dtype == "bfloat16"
    rounding = apart(exact, theirs(loaded(folder / "half", dtype="bfloat16"), tokens, counts))
    found = apart(exact, ours(decoder.model(config).forward, variables, tokens, counts))
    yield "bfloat16, beyond twice their rounding", max(0.0, found - 2 * rounding)
    weights.save(folder / "half back", form, config, variables)
    back = loaded(folder / "half back", dtype="auto")
    assert back.dtype == torch.bfloat16
    yield "bfloat16 written back", apart(exact, theirs(back.float(), tokens, counts))


def adapters(name: str, folder: Path, seed: int) -> Iterator[tuple[str, float]]:
    """Adapters of PEFT read, and ours written, over one base."""
    model, (tokens, counts) = made(*MODELS[name], seed), tokens_of(seed)
    model.save_pretrained(folder / "base")
    form, config, base = weights.load(folder / "base")
    whole, alpha = decoder.model(config), 6.0

    def on_base(part: Any, alpha: float) -> np.ndarray:
        rank = next(iter(part.params.values()))["a"].shape[-1]
        targets = "|".join(f"^{path}$" for path in part.params)
        parts = frozen.lora(whole, base, jnp.asarray(tokens), rank=rank, alpha=alpha, targets=targets)
        return ours(parts.on(base).forward, part, tokens, counts)

    targets = decoder.MATRICES if form != "gpt2" else "layers/(o|up|down)$"
    parts = frozen.lora(whole, base, jnp.asarray(tokens), rank=3, alpha=alpha, targets=targets)
    random = np.random.default_rng(seed)
    part = jax.tree.map(
        lambda x: x + 0.2 * random.normal(size=x.shape).astype(np.float32), parts.start(base, jax.random.key(0))
    )
    weights.save_adapter(folder / "ours", form, config, part, alpha=alpha, base=str(folder / "base"))
    over = peft.PeftModel.from_pretrained(loaded(folder / "base", dtype="float32"), folder / "ours").eval()
    expected = theirs(over, tokens, counts)
    yield "adapter written", apart(expected, on_base(part, alpha))
    weights.save(folder / "merged", form, config, parts.merge(base, part))
    yield "adapter merged and written", apart(expected, theirs(loaded(folder / "merged", dtype="float32"), tokens, counts))
    for title, options in (("adapter read", {}), ("adapter read, rank-stabilised", {"use_rslora": True})):
        chosen = ["c_attn", "c_proj", "c_fc"] if form == "gpt2" else PROJECTIONS
        settings = peft.LoraConfig(
            r=4, lora_alpha=alpha, target_modules=chosen, task_type="CAUSAL_LM", init_lora_weights=False,
            fan_in_fan_out=form == "gpt2", **options,
        )  # fmt: skip
        other = peft.get_peft_model(loaded(folder / "base", dtype="float32"), settings).eval()
        other.save_pretrained(folder / "theirs")
        yield title, apart(theirs(other, tokens, counts), on_base(*weights.load_adapter(folder / "theirs", form, config)))


def refused(name: str, folder: Path, seed: int) -> str:
    """What is said of a model that the decoder cannot be."""
    made(*REFUSED[name], seed).save_pretrained(folder)
    try:
        weights.load(folder)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{name} was read as if it were another model")


def trained_here(form: weights.Form, folder: Path, seed: int) -> float:
    """A fresh decoder in either form, loaded there."""
    kinds: dict[str, Any] = {
        "gpt2": {"norm": "layer", "mlp": "gelu", "rotary": False, "length": 32, "biases": ("q", "k", "v", "o", "up", "down")},
    }
    config = decoder.Config(VOCABULARY, width=24, groups=None if form == "gpt2" else 2, **kinds.get(form, {}))
    variables = decoder.init(config, jax.random.key(seed))
    weights.save(folder, form, config, variables)
    tokens, counts = tokens_of(seed)
    own = ours(decoder.model(config).forward, variables, tokens, counts)
    return apart(own, theirs(loaded(folder, dtype="float32"), tokens, counts))


def main(config: Config) -> dict[str, Any]:
    """Run all checks; returns what is written."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows: list[dict[str, Any]] = []

    def note(name: str, check: str, difference: float) -> None:
        rows.append({"model": name, "check": check, "difference": difference, "within": difference <= TOLERANCE})

    with tempfile.TemporaryDirectory() as place:
        at = Path(place)
        for number, name in enumerate(MODELS):
            for kind in (whole, in_bfloat16, adapters):
                for check, difference in kind(name, at / f"{number}", config.seed):
                    note(name, check, difference)
        for form in ("llama", "gpt2"):
            note(f"{form}, trained here", "written", trained_here(form, at / f"fresh {form}", config.seed))
        said = {name: refused(name, at / f"refused {name}", config.seed) for name in REFUSED}
    columns = [Column("model", "model"), Column("check", "check"), Column("difference", "largest difference", ".1e")]
    print_table(Table(columns, rows))
    found = {
        "transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__, "jax": jax.__version__,
        "tolerance": TOLERANCE, "checks": rows, "beyond": [row for row in rows if not row["within"]], "refused": said,
    }  # fmt: skip
    print(f"{len(rows)} checks, {len(found['beyond'])} beyond {TOLERANCE}; {len(said)} other models refused")
    if config.out is not None:
        config.out.write_text(json.dumps(found, indent=2) + "\n")
    return found


if __name__ == "__main__":
    if main(tyro.cli(Config, description=__doc__))["beyond"]:
        raise SystemExit("logits differ, see the table")
