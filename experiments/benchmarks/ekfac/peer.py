"""kronfluence on one network, and its factors as a representation of this library."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # of the `benchmarks` extra
from jaxtyping import Float
from torch.utils.data import TensorDataset  # pyright: ignore[reportMissingImports]

from experiments.benchmarks.ekfac.setup import Problem, seconds_of
from jaxunlearn import curvature
from jaxunlearn.curvature.parameter_uses import matrix_form


def kronfluence_task() -> Any:
    """Cross-entropy, with labels drawn from the model for the factors."""
    from kronfluence.task import Task  # pyright: ignore[reportMissingImports]

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(batch[0])
            labels = batch[1]
            if sample:
                with torch.no_grad():
                    labels = torch.multinomial(torch.softmax(logits, dim=-1), 1).flatten()
            return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch, model):
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    return Classification()


class Kronfluence:
    """kronfluence on one network, with everything it writes in a folder."""

    def __init__(self, problem: Problem, batch: int, folder: str) -> None:
        from kronfluence.analyzer import Analyzer, prepare_model  # pyright: ignore[reportMissingImports]
        from kronfluence.arguments import FactorArguments  # pyright: ignore[reportMissingImports]

        task, rows = kronfluence_task(), len(problem.targets)
        self.analyzer = Analyzer(
            "benchmark",
            prepare_model(problem.build(), task),
            task,
            cpu=True,
            log_level=50,
            disable_tqdm=True,
            output_dir=folder,
        )  # fmt: skip
        self.dataset, self.batch = TensorDataset(problem.inputs, problem.targets), batch
        self.options = FactorArguments(
            strategy="ekfac", covariance_max_examples=rows, lambda_max_examples=rows, eigendecomposition_dtype=torch.float32
        )

    def fit(self, name: str, dataset: TensorDataset) -> dict[str, float]:
        """Seconds of every stage."""
        rows: dict[str, Any] = {"dataset": dataset, "per_device_batch_size": min(self.batch, len(dataset))}
        stages: dict[str, Callable[[], Any]] = {
            "covariances": partial(self.analyzer.fit_covariance_matrices, name, factor_args=self.options, **rows),
            "eigenvectors": partial(self.analyzer.perform_eigendecomposition, name, factor_args=self.options),
            "lambda": partial(self.analyzer.fit_lambda_matrices, name, factor_args=self.options, **rows),
        }
        return {stage: seconds_of(call)[1] for stage, call in stages.items()}

    def factors(self, name: str, like: curvature.Kronecker, params: Any) -> curvature.Kronecker:
        """What it fitted, read from its files, as a representation of this library."""
        eigen: Any = self.analyzer.load_eigendecomposition(name)
        fitted: Any = self.analyzer.load_lambda_matrices(name)
        layers, bases, values, leaves = [], [], [], jax.tree.leaves(params)
        for layer in like.layers:
            module, shape = layer.name.split("/")[0], leaves[layer.kernel].shape
            if len(shape) == 4:  # kernels [h, w, in, out] here, [out, in, h, w] there
                positions = np.arange(leaves[layer.kernel].size).reshape(shape).transpose(2, 0, 1, 3)
                form = matrix_form(positions.reshape(1, -1, shape[-1]))
                layer = dataclasses.replace(layer, form=form)
            layers.append(layer)
            vectors = (eigen[f"{side}_eigenvectors"][module].float().numpy() for side in ("activation", "gradient"))
            bases.append(tuple(jnp.asarray(x)[None] for x in vectors))
            mean = fitted["lambda_matrix"][module].double() / fitted["num_lambda_processed"][module]
            values.append(jnp.asarray(mean.float().numpy().T)[None])
        return curvature.Kronecker(tuple(layers), like.sharing, bases, values, (), [], (), [])

    def scores(self, name: str, factors: str, queries: TensorDataset, damping: float) -> Float[np.ndarray, "q n"]:
        """Influence of every row on every query."""
        from kronfluence.arguments import ScoreArguments  # pyright: ignore[reportMissingImports]

        self.analyzer.compute_pairwise_scores(
            name, factors, queries, self.dataset, per_device_query_batch_size=len(queries),
            per_device_train_batch_size=min(self.batch, len(self.dataset)), score_args=ScoreArguments(damping_factor=damping),
        )  # fmt: skip
        found: Any = self.analyzer.load_pairwise_scores(name)
        return found["all_modules"].numpy()
