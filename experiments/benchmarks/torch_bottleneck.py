"""The loop of Representation Unlearning in eager PyTorch, in a process of its own."""

from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # of the `benchmarks` extra

from experiments.benchmarks import timing


class Settings(NamedTuple):
    """What both sides share."""

    steps: int
    batch_size: int
    learning_rate: float
    beta: float
    noise: float
    threads: int


def serve(line: Any, features: np.ndarray, rows: np.ndarray, settings: Settings) -> None:
    """Answer names of calls until None comes; first of all the version of PyTorch goes out."""
    timing.set_torch_threads(settings.threads)
    z, forgotten = torch.from_numpy(features), torch.from_numpy(rows)
    retained = torch.from_numpy(np.setdiff1d(np.arange(len(features)), rows))

    def losses() -> tuple[float, float]:
        """Of the identity without noise: over all pairs with 2,000 rows, and with their centre in their place."""
        same, some = torch.nn.Identity(), z[:2000]
        references = (some, some.mean(dim=0, keepdim=True))
        both = [float(loss(same, z[forgotten], z[forgotten], x, 1.0, 0.0)) for x in references]
        return both[0], both[1]

    calls = {
        "losses": losses,
        "run": lambda: run(z, forgotten, retained, settings, pairs=False),
        "run over all pairs": lambda: run(z, forgotten, retained, settings, pairs=True),
    }
    line.send(torch.__version__)
    while (name := line.recv()) is not None:
        line.send(calls[name]())


def run(z: torch.Tensor, forgotten: torch.Tensor, retained: torch.Tensor, settings: Settings, *, pairs: bool) -> float:
    """The published loop on cached features; rows are drawn all at once. Returns the last loss."""
    width = z.shape[1]
    layer = torch.nn.Linear(width, width)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(width))
        layer.bias.zero_()
    optimizer = torch.optim.Adam(layer.parameters(), lr=settings.learning_rate, fused=True)
    shape = (settings.steps, settings.batch_size)
    forget_rows = forgotten[torch.randint(len(forgotten), shape)]
    retain_rows = retained[torch.randint(len(retained), shape)]
    reference_rows = torch.randint(len(z), shape)
    centre = z.mean(dim=0)
    found = torch.zeros(())
    for step in range(settings.steps):
        optimizer.zero_grad(set_to_none=True)
        references = z[reference_rows[step]] if pairs else centre[None]
        found = loss(layer, z[forget_rows[step]], z[retain_rows[step]], references, settings.beta, settings.noise)
        found.backward()
        optimizer.step()
    return float(found.detach())


def loss(
    layer: Any, forget: torch.Tensor, retain: torch.Tensor, references: torch.Tensor, beta: float, noise: float
) -> torch.Tensor:
    """Both terms, as published."""
    moved = layer(retain + noise * torch.randn_like(retain)) if noise else layer(retain)
    gone = layer(forget + noise * torch.randn_like(forget)) if noise else layer(forget)
    kept = torch.mean((moved - retain) ** 2)
    if len(references) == 1:
        return kept + beta * torch.mean(torch.sum((gone - references) ** 2, dim=1))
    return kept + beta * torch.mean(torch.sum((gone[:, None] - references[None]) ** 2, dim=2))
