"""Gradients of objectives: at one noise, over replicates, and held against each other within standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppl_vae.objectives import as_loss

Program = tuple[Callable[..., Any], Callable[..., Any]]


class Measured(NamedTuple):
    """A mean over replicates and its standard error, in one vector over all parameters."""

    mean: Tensor
    error: Tensor


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.reshape(-1) for g in gradients.values()])


def gradient_of(total: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """The gradient by every parameter of a module; zero where there is none."""
    parameters = dict(module.named_parameters())
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def block(module: nn.Module, part: str) -> Tensor:
    """Which entries of a vector over all parameters belong to those whose name starts with a word."""
    return torch.cat([torch.full((p.numel(),), name.startswith(part)) for name, p in module.named_parameters()])


def gradient_at(program: Program, module: nn.Module, objective: object, x: Tensor, seed: int = 11) -> dict[str, Tensor]:
    """The gradient of the value of an objective, summed over a batch, at the noise of a seed (to be ascended)."""
    torch.manual_seed(seed)
    surrogate = as_loss(objective)(program, x).surrogate
    assert surrogate is not None
    return gradient_of(-surrogate, module)


def value_at(program: Program, objective: object, x: Tensor, seed: int = 11) -> Tensor:
    """The value of an objective, summed over a batch, at the noise of a seed."""
    torch.manual_seed(seed)
    return -as_loss(objective)(program, x).loss


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-10) -> None:
    """Equal to `rtol` of the largest entry of each tensor."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(value, expected[name], rtol=0.0, atol=rtol * max(scale, 1.0), msg=name)


def measured(batches: list[Tensor]) -> Measured:
    """The mean of what independent batches gave, and its standard error."""
    samples = torch.stack(batches)
    return Measured(samples.mean(0), samples.std(0) / math.sqrt(len(samples)))


def mean_gradient(
    program: Program,
    module: nn.Module,
    objective: object,
    x: Tensor,
    repeats: int = 400,
    batches: int = 40,
    seed: int = 0,
) -> Measured:
    """The expected gradient for the data once, by `repeats` copies of the data in each of `batches` batches."""
    loss, copies = as_loss(objective), x.repeat(repeats, *(1,) * (x.dim() - 1))
    torch.manual_seed(seed)
    return measured([flat(gradient_of(-loss(program, copies).surrogate, module)) / repeats for _ in range(batches)])


def mean_value(
    program: Program, objective: object, x: Tensor, repeats: int = 400, batches: int = 40, seed: int = 0
) -> Measured:
    """The expected value of an objective for the data once, summed over them."""
    loss, copies = as_loss(objective), x.repeat(repeats, *(1,) * (x.dim() - 1))
    torch.manual_seed(seed)
    with torch.no_grad():
        return measured([-loss(program, copies).loss / repeats for _ in range(batches)])


def extrapolated(measure: Callable[[int, int], Measured], num_particles: int) -> Measured:
    """The limit of many particles of what has a bias of order 1/K: twice that at 2K minus that at K."""
    once, twice = measure(num_particles, 1), measure(2 * num_particles, 2)
    return Measured(2 * twice.mean - once.mean, (4 * twice.error**2 + once.error**2).sqrt())


def part_of(found: Measured, where: Tensor) -> Measured:
    return Measured(found.mean[where], found.error[where])


def distance(found: Measured, expected: Measured | Tensor) -> Tensor:
    """The largest difference in standard errors of it; what does not vary at all must be equal to rounding."""
    mean, error = expected if isinstance(expected, Measured) else (expected, torch.zeros_like(found.mean))
    floor = 1e-12 * (1 + mean.abs().max())
    return ((found.mean - mean).abs() / (found.error**2 + error**2 + floor**2).sqrt()).max()


def assert_within_errors(found: Measured, expected: Measured | Tensor) -> None:
    """Equal within 5 of their own measured standard errors."""
    error = distance(found, expected)
    assert error < 5, f"{error:.1f} standard errors apart: {found.mean} against {expected}"
