"""The decoder of the experiments in GPT-2's form as a PyTorch module, and kronfluence on it."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # of the `benchmarks` extra
from jaxtyping import Float
from torch.utils.data import TensorDataset  # pyright: ignore[reportMissingImports]

from experiments.common import decoder
from jaxunlearn import curvature

MATRICES = ("q", "k", "v", "o", "up", "down")


def as_tensor(x: Any) -> torch.Tensor:
    """An array of either library, copied."""
    return torch.from_numpy(np.array(x))


class Block(torch.nn.Module):
    """One layer."""

    def __init__(self, config: decoder.Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm, self.mlp_norm = (torch.nn.LayerNorm(config.width, eps=config.epsilon) for _ in range(2))
        for name, (inputs, outputs) in config.matrices.items():
            setattr(self, name, torch.nn.Linear(inputs, outputs))

    def forward(self, x):
        seen = self.attention_norm(x)
        q, k, v = (part(seen).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        read = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(read.transpose(1, 2).flatten(2))
        return x + self.down(torch.nn.functional.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class Decoder(torch.nn.Module):
    """The whole of it, with a head of its own."""

    def __init__(self, config: decoder.Config, params: Any) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(config.vocabulary, config.width)
        self.positions = torch.nn.Embedding(config.length, config.width)
        self.layers = torch.nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = torch.nn.LayerNorm(config.width, eps=config.epsilon)
        self.head = torch.nn.Linear(config.width, config.vocabulary, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(as_tensor(params["embed"]))
            self.positions.weight.copy_(as_tensor(params["positions"]))
            self.head.weight.copy_(as_tensor(params["head"]).T)
            norms = [(self.norm, params["norm"], params["norm_bias"])]
            for place, block in enumerate(self.layers):
                own = {name: value[place] for name, value in params["layers"].items()}
                norms += [(getattr(block, x), own[x], own[f"{x}_bias"]) for x in ("attention_norm", "mlp_norm")]
                for name in MATRICES:
                    getattr(block, name).weight.copy_(as_tensor(own[name]).T)
                    getattr(block, name).bias.copy_(as_tensor(own[f"{name}_bias"]))
            for norm, weight, bias in norms:
                norm.weight.copy_(as_tensor(weight))
                norm.bias.copy_(as_tensor(bias))

    def forward(self, tokens):
        x = self.embed(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.layers:
            x = block(x)
        return self.head(self.norm(x))


def task() -> Any:
    """Cross-entropy summed over the tokens of a row, with tokens drawn from the model for the factors."""
    from kronfluence.task import Task  # pyright: ignore[reportMissingImports]

    class Language(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(batch[0]).flatten(0, 1)
            labels = batch[1].flatten()
            if sample:
                with torch.no_grad():
                    labels = torch.multinomial(torch.softmax(logits, dim=-1), 1).flatten()
            return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    return Language()


class Kronfluence:
    """kronfluence on the decoder, with everything it writes in a folder."""

    def __init__(self, network: torch.nn.Module, dataset: TensorDataset, batch: int, folder: str) -> None:
        from kronfluence.analyzer import Analyzer, prepare_model  # pyright: ignore[reportMissingImports]
        from kronfluence.arguments import FactorArguments  # pyright: ignore[reportMissingImports]

        self.dataset, self.batch = dataset, batch
        options: dict[str, Any] = {"cpu": True, "log_level": 50, "disable_tqdm": True, "output_dir": folder}
        self.analyzer = Analyzer("benchmark", prepare_model(network, task()), task(), **options)
        self.options = FactorArguments(
            strategy="ekfac", covariance_max_examples=len(dataset), lambda_max_examples=len(dataset),
            eigendecomposition_dtype=torch.float32,
        )  # fmt: skip

    def fit(self, name: str) -> None:
        """Covariances, eigenvectors, eigenvalues, written to the folder as it always does."""
        rows: dict[str, Any] = {"dataset": self.dataset, "per_device_batch_size": self.batch}
        stages: list[Callable[[], Any]] = [
            partial(self.analyzer.fit_covariance_matrices, name, factor_args=self.options, **rows),
            partial(self.analyzer.perform_eigendecomposition, name, factor_args=self.options),
            partial(self.analyzer.fit_lambda_matrices, name, factor_args=self.options, **rows),
        ]
        for stage in stages:
            stage()

    def tables(self, name: str) -> dict[str, dict[str, np.ndarray]]:
        """What it fitted, by modules: eigenvectors of both sides, and means of the squared gradients."""
        eigen: Any = self.analyzer.load_eigendecomposition(name)
        fitted: Any = self.analyzer.load_lambda_matrices(name)
        sides = {side: eigen[f"{side}_eigenvectors"] for side in ("activation", "gradient")}
        found = {side: {module: x.float().numpy() for module, x in table.items()} for side, table in sides.items()}
        counts = fitted["num_lambda_processed"]
        return found | {"values": {module: (x / counts[module]).numpy() for module, x in fitted["lambda_matrix"].items()}}

    def scores(self, name: str, factors: str, queries: Any, damping: float) -> Float[np.ndarray, "q n"]:
        """Influence of every row on every query."""
        from kronfluence.arguments import ScoreArguments  # pyright: ignore[reportMissingImports]

        asked = TensorDataset(*map(torch.from_numpy, queries))
        self.analyzer.compute_pairwise_scores(
            name, factors, asked, self.dataset, per_device_query_batch_size=len(asked),
            per_device_train_batch_size=self.batch, score_args=ScoreArguments(damping_factor=damping),
        )  # fmt: skip
        found: Any = self.analyzer.load_pairwise_scores(name)
        return found["all_modules"].numpy()


def serve(line: Any, config: decoder.Config, params: Any, rows: Any, batch: int, threads: int, folder: str) -> None:
    """kronfluence in a process of its own: names of methods and arguments come in, results and their seconds go out."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = Decoder(config, params).eval()
    inputs, targets = (torch.from_numpy(x) for x in rows)
    with torch.no_grad():
        line.send((network(inputs).numpy(), 0.0))
    theirs = Kronfluence(network, TensorDataset(inputs, targets), batch, folder)
    while (call := line.recv()) is not None:
        start = time.process_time()
        result = getattr(theirs, call[0])(*call[1:])
        line.send((result, time.process_time() - start))


def factors(tables: dict[str, dict[str, np.ndarray]], like: curvature.Kronecker, params: Any) -> curvature.Kronecker:
    """kronfluence's fit as a representation of this library; solves are 0 where it fits nothing."""
    bases, values = [], []
    for layer in like.layers:
        if layer.uses != ("product",):
            continue
        _, _, last = layer.name.rpartition("/")
        modules = [f"layers.{place}.{last}" for place in range(layer.form.groups)] if "/" in layer.name else [last]
        left, right, found = (np.stack([tables[x][y] for y in modules]) for x in ("activation", "gradient", "values"))
        bases.append((jnp.asarray(left), jnp.asarray(right)))
        values.append(jnp.asarray(found.swapaxes(1, 2)))
    return dataclasses.replace(products_alone(like, params), bases=bases, values=values)


def products_alone(made: curvature.Kronecker, params: Any) -> curvature.Kronecker:
    """The layers of a fit that kronfluence knows; solves are 0 elsewhere."""
    kept = [place for place, layer in enumerate(made.layers) if layer.uses == ("product",)]
    layers = tuple(made.layers[place] for place in kept)
    taken = {leaf for layer in layers for leaf in (layer.kernel, layer.bias)}
    leaves = jax.tree.leaves(params)
    rest = tuple(leaf for leaf in range(len(leaves)) if leaf not in taken)
    return curvature.Kronecker(
        layers, tuple(made.sharing[place] for place in kept), [made.bases[place] for place in kept],
        [made.values[place] for place in kept], (), [], rest, [jnp.full(leaves[leaf].shape, jnp.inf) for leaf in rest],
    )  # fmt: skip
