"""A simplified graph computes what the graph does, to the bit, and with fewer operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.capture.simplify import simplify

NORM = nn.BatchNorm1d(3)


def written_view(x: Tensor) -> Tensor:
    y = x.clone()
    before = y * 1.0  # a copy: what is written into y later must not show here
    y.view(-1)[0] = 7.0
    return before + y.view(-1).view(4, 3)


def written_twice(x: Tensor) -> Tensor:
    y = torch.zeros(4, 3)
    first = y + x
    y += 1.0
    return first + (y + x)


def two_draws(x: Tensor) -> Tensor:
    return torch.randn_like(x) - torch.randn_like(x)


def dropout(x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.5) + nn.functional.dropout(x, 0.5)


def batch_norm(x: Tensor) -> Tensor:
    return NORM(x) + NORM(x)


def overlapping(x: Tensor) -> tuple[Tensor, Tensor]:
    windows = x.as_strided((2, 3), (3, 1), 1)
    return windows.clone(), x.as_strided((2, 3), (3, 1), 2) + windows


def kinds(x: Tensor) -> tuple[Tensor, ...]:
    whole = torch.arange(4) * 1
    return whole * 1.0, whole / 1, whole.double().sum(0, keepdim=True), x.sum(0, keepdim=True)[:, :1].sum(1)


def constants(x: Tensor) -> tuple[Tensor, Tensor]:
    ones = torch.ones(4, 3)
    steps = torch.arange(3.0)
    return ones + x * steps.exp(), torch.full((2,), 3.0)


def transposed(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.t().t() @ x.t(), torch.stack([x.t()]).sum(0)


def slices(x: Tensor) -> Tensor:
    a, b = x[:, :2].split(1, dim=1)
    return a[1:] * b[1:] - x[1:, :1] * x[1:, 1:2]


def negated_and_written(x: Tensor) -> Tensor:
    y = x.clone()
    twice = y.neg().neg()
    y.add_(1.0)
    return twice * 2


def conjugated(x: Tensor) -> Tensor:
    z = torch.complex(x, 2 * x)
    return (z * z.conj()).real + (z * z).imag


PROGRAMS = [
    negated_and_written,
    conjugated,
    written_view,
    written_twice,
    two_draws,
    dropout,
    batch_norm,
    overlapping,
    kinds,
    constants,
    transposed,
    slices,
]


def outputs(function, x: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    NORM.reset_running_stats()
    results = function(x)
    buffers = [b.clone() for b in NORM.buffers()]
    return [*(results if isinstance(results, (tuple, list)) else [results]), *buffers]


@pytest.mark.parametrize("program", PROGRAMS)
def test_values_are_those_of_the_program(program):
    x = torch.randn(4, 3)
    graph = make_fx(program)(x)
    simple = simplify(graph, x)
    for other in (x, torch.randn(4, 3)):
        for value, expected in zip(outputs(simple, other), outputs(program, other), strict=True):
            assert torch.equal(value, expected)
            assert value.stride() == expected.stride()
            assert value.dtype == expected.dtype
    assert len(simple.graph.nodes) <= len(graph.graph.nodes)


def test_what_is_repeated_or_does_nothing_goes():
    def program(x, w):
        kl = torch.zeros_like(x) + x.exp() - w.neg().neg()
        return (kl.unsqueeze(0).mean(0) * 1.0 / x.exp().view(4, 3).expand(4, 3)).sum()

    x, w = torch.randn(4, 3), torch.randn(4, 3)
    simple = simplify(make_fx(program)(x, w), x, w)
    assert torch.equal(simple(x, w), program(x, w))
    targets = [str(n.target) for n in simple.graph.nodes if n.op == "call_function"]
    assert targets == ["aten.exp.default", "aten.sub.Tensor", "aten.div.Tensor", "aten.sum.default"]


def test_a_parameter_stays_the_tensor_that_it_is():
    weight = nn.Parameter(torch.randn(3))
    simple = simplify(make_fx(lambda x: x * weight.view(1, 3).view(3))(torch.ones(4, 3)), torch.ones(4, 3))
    with torch.no_grad():
        weight.fill_(5.0)
    assert torch.equal(simple(torch.ones(4, 3)), torch.full((4, 3), 5.0))


def test_a_constant_that_is_returned_is_the_callers_own():
    simple = simplify(make_fx(constants)(torch.ones(4, 3)), torch.ones(4, 3))
    simple(torch.ones(4, 3))[1].fill_(0.0)
    assert torch.equal(simple(torch.ones(4, 3))[1], torch.full((2,), 3.0))
