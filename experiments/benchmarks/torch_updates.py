"""The updates of two methods in PyTorch, as pure functions of the weights; needs PyTorch alone."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import torch  # pyright: ignore[reportMissingImports]  # of the `benchmarks` extra
from torch.nn.functional import (  # pyright: ignore[reportMissingImports]
    conv2d,
    cross_entropy,
    kl_div,
    linear,
    log_softmax,
    pad,
)

LEARNING_RATE = 0.01
ALPHA = {"gradient_difference": 0.95, "scrub": 0.5}
GAMMA, TEMPERATURE = 1.0, 2.0
RETAIN, FORGET = 0, 1  # phases of SCRUB

Method: TypeAlias = Literal["gradient_difference", "scrub"]
Parameters: TypeAlias = tuple[torch.Tensor, ...]  # weight [out, in] or [out, in, 3, 3] and bias [out] of each layer
Forward: TypeAlias = Callable[[Parameters, torch.Tensor], torch.Tensor]
Step: TypeAlias = Callable[[Parameters, torch.Tensor, torch.Tensor], Parameters]  # weights, forgotten and retained rows


class Draws(NamedTuple):
    """Training rows of every step."""

    forget: torch.Tensor  # [R, steps, b]
    retain: torch.Tensor  # [R, steps, b]


class Problem(NamedTuple):
    """What every PyTorch variant starts from."""

    inputs: torch.Tensor  # [n, 64], or [n, channels, h, w]
    targets: torch.Tensor  # [n]
    trained: Parameters
    requests: list[torch.Tensor]  # rows of each
    phases: list[int]  # of each step: FORGET where SCRUB forgets


def forward(parameters: Parameters, inputs: torch.Tensor) -> torch.Tensor:
    """A network of dense layers as a function of its weights."""
    *hidden, last = zip(parameters[::2], parameters[1::2], strict=True)
    for weight, bias in hidden:
        inputs = torch.relu(linear(inputs, weight, bias))
    return linear(inputs, *last)


def convolutional(parameters: Parameters, inputs: torch.Tensor) -> torch.Tensor:
    """`experiments.common.models.SmallCNN`: 3x3 convolutions, all but the first with stride 2, then dense layers."""
    convolutions = sum(x.dim() > 2 for x in parameters)
    for layer in range(convolutions):
        weight, bias = parameters[2 * layer : 2 * layer + 2]
        around = (1, 1, 1, 1) if layer == 0 else (0, 1, 0, 1)  # SAME, for even sizes
        inputs = torch.relu(conv2d(pad(inputs, around), weight, bias, stride=1 if layer == 0 else 2))
    flat = inputs.permute(0, 2, 3, 1).flatten(1)  # channels last, as flax flattens them
    return forward(parameters[2 * convolutions :], flat)


def distance(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """`T^2 KL(teacher || student)`, a mean over rows."""
    p, q = log_softmax(teacher / TEMPERATURE, 1), log_softmax(student / TEMPERATURE, 1)
    return TEMPERATURE**2 * kl_div(q, p, reduction="batchmean", log_target=True)


def functional_steps(problem: Problem, method: Method, batch_size: int, forward: Forward = forward) -> dict[int, Step]:
    """One whole step as a pure function, for each phase."""
    alpha = ALPHA[method]
    signs = torch.cat([torch.full((batch_size,), -(1 - alpha) / batch_size), torch.full((batch_size,), alpha / batch_size)])
    signs = signs.to(problem.inputs.device)

    def difference(parameters, forget, retain):
        rows = torch.cat([forget, retain])
        losses = cross_entropy(forward(parameters, problem.inputs[rows]), problem.targets[rows], reduction="none")
        return torch.dot(signs, losses)

    def disobey(parameters, forget, retain):
        batch = problem.inputs[forget]
        return -distance(forward(problem.trained, batch), forward(parameters, batch))

    def obey(parameters, forget, retain):
        batch = problem.inputs[retain]
        logits = forward(parameters, batch)
        kl = distance(forward(problem.trained, batch), logits)
        return alpha * kl + GAMMA * cross_entropy(logits, problem.targets[retain])

    def step(objective, parameters, forget, retain):
        gradient = torch.func.grad(objective)(parameters, forget, retain)
        return tuple(p - LEARNING_RATE * g for p, g in zip(parameters, gradient, strict=True))

    if method == "gradient_difference":
        return {RETAIN: partial(step, difference)}
    return {RETAIN: partial(step, obey), FORGET: partial(step, disobey)}


def side_by_side(problem: Problem, draws: Draws, *, steps: dict[int, Step]) -> Parameters:
    """All requests in every step; every weight has a leading axis R."""
    requests = len(draws.forget)
    parameters = tuple(x.expand(requests, *x.shape).contiguous() for x in problem.trained)
    for forget, retain, phase in zip(draws.forget.unbind(1), draws.retain.unbind(1), problem.phases, strict=True):
        parameters = steps[phase](parameters, forget, retain)
    return parameters
