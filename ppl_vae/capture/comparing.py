"""The comparison of two steps, up to the rounding errors of the ways in which they are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.capture.eager import Step
from ppl_vae.capture.replay import is_on_gpu
from ppl_vae.capture.state import Snapshot
from ppl_vae.objectives.losses import BatchLoss

# relative differences that rounding explains: a sum in float32 where Pyro adds in float64; a compiler or a GPU, which
# add up a gradient over thousands of rows in another order (the terms cancel: 1e-5 was seen for K = 50); factors of few
# bits (bf16, TF32), of which another last bit of float32 makes other ones (over 1e-4 was seen in TF32)
_TRACED, _COMPILED, _FEW_BITS = 1e-5, 1e-4, 2e-2
_SUMS_OF_TF32 = 2e-3  # two roundings: of losses and of what a step leaves behind, in which nothing cancels
# a gradient that is zero in exact arithmetic (of a bias before batch normalisation) was seen at 0.8 roundings of the
# largest gradient of the step; it is held against those of its own module, which are no larger
_ROUNDINGS = 8
# what roundings of the parameters change, at most: 0.9 was seen on a CPU, where Inductor rounds nearly as torch does.
# One datum may rule a gradient, and one way to round change it little by chance
_MOST_ROUNDINGS, _WAYS = 32, 4
_TF32 = 2.0**-10  # the difference between 1 and the next number of TF32


class Outcome(NamedTuple):
    """A step, and a snapshot of what it left behind."""

    step: Step
    after: Snapshot


class Comparison:
    """The tolerances within which a graph's step and the program's step count as equal.

    Args:
        expected: The program's step when the graph was made. It sets the scale of each gradient, since a gradient that
            has become small is still a difference of terms of its old size.
        leaves: The parameters.
        names: Their names.
        full: Whether the graph is compiled.
        autocast: Whether it computes in 16 bits.
    """

    def __init__(
        self, expected: Step, leaves: Sequence[Tensor], names: Sequence[str], *, full: bool, autocast: bool
    ) -> None:
        self._names, self._leaves = names, leaves
        self._tolerance = _COMPILED if full or any(map(is_on_gpu, leaves)) else _TRACED
        self._rounding = _TF32 if any(map(_may_be_tf32, leaves)) else 0.0
        self._of_values = self._tolerance
        if autocast and full:
            self._tolerance = self._of_values = _FEW_BITS
        elif self._rounding:
            self._tolerance, self._of_values = _FEW_BITS, _SUMS_OF_TF32
        self._scales = [0.0 if g is None else 0.1 * float(g.norm()) for g in expected.gradients]

    def difference(self, graph: Outcome, program: Outcome, rounded: Callable[[int], Step]) -> str | None:
        """Say where two steps, or what they have left behind, differ; return None where they agree.

        Args:
            graph: The graph's.
            program: The program's.
            rounded: Takes the program's step with parameters that are `off_by_a_rounding`, in one of several ways. What
                this changes in a gradient (much, where a scale is near zero) is no difference between the two.
        """
        ours, theirs = graph.step, program.step
        for a, b in zip(graph.after.copies, program.after.copies, strict=True):
            if not _close(a, b, self._of_values):
                return "the graph leaves a buffer or a tensor that the program writes to other than the program does"
        if not self._close_losses(ours.loss, theirs.loss):
            return f"the graph's loss is {float(ours.loss.loss)}, the program's {float(theirs.loss.loss)}"
        if len(ours.others) != len(theirs.others):
            return "the program differentiates by other tensors than the graph"
        mine = [*ours.gradients, *(gradient for _, gradient in ours.others)]
        other = [*theirs.gradients, *(gradient for _, gradient in theirs.others)]
        again: list[list[Tensor | None]] = []
        for i, (x, y) in enumerate(zip(mine, other, strict=True)):
            scale = self._scales[i] if i < len(self._scales) else 0.0
            if self._close_gradients(x, y, scale, [other[j] for j in self._beside(i)]):
                continue
            if not again and x is not None and y is not None:
                steps = map(rounded, range(_WAYS))
                again = [[*step.gradients, *(gradient for _, gradient in step.others)] for step in steps]
            most = 1 if self._rounding else _MOST_ROUNDINGS  # the roundings of TF32 are large already
            if not _is_rounding(x, y, [gradients[i] for gradients in again if i < len(gradients)], most):
                return f"the graph's gradient of {self._name(i)} is another than the program's"
        if not torch.equal(graph.after.random, program.after.random):
            return "the graph leaves another random state than the program"
        return None

    @contextmanager
    def off_by_a_rounding(self, way: int) -> Iterator[None]:
        """Multiply every number of the parameters by 1 + eps or 1 - eps meanwhile; eps is their rounding.

        Args:
            way: Which signs these are, a seed.
        """
        kept, generator = [leaf.detach().clone() for leaf in self._leaves], torch.Generator().manual_seed(way)
        try:
            with torch.no_grad():
                for leaf in self._leaves:
                    if leaf.is_floating_point() or leaf.is_complex():
                        signs = 2 * torch.randint(2, leaf.shape, generator=generator, dtype=torch.float64) - 1
                        leaf.mul_((1 + max(torch.finfo(leaf.dtype).eps, self._rounding) * signs).to(leaf))
            yield
        finally:
            with torch.no_grad():
                for leaf, value in zip(self._leaves, kept, strict=True):
                    leaf.copy_(value)

    def _name(self, i: int) -> str:
        if i < len(self._names):
            return f"parameter {self._names[i].split('$$$')[-1]!r}"
        return f"parameter {i}" if i < len(self._leaves) else "an argument, or a tensor that the program holds,"

    def _beside(self, i: int) -> list[int]:
        """Return the places of the parameters of the same module: those whose names begin alike."""
        if i >= len(self._names):
            return []
        module = self._names[i].rpartition(".")[0]
        return [j for j, name in enumerate(self._names) if name.rpartition(".")[0] == module]

    def _close_gradients(
        self, a: Tensor | None, b: Tensor | None, scale: float, beside: Sequence[Tensor | None]
    ) -> bool:
        """Whether two gradients agree, or are zero but for rounding, of which a compiler or a GPU makes other noise.

        Rounding is that of the gradients beside them, of the same module: a small gradient elsewhere is no noise.
        """
        if a is None or b is None:
            return a is b
        if _close(a, b, self._tolerance, scale):
            return True
        if self._tolerance == _TRACED or not b.is_floating_point():
            return False
        largest = max((_norm(g) for g in beside if g is not None), default=0.0)
        noise = _ROUNDINGS * max(torch.finfo(b.dtype).eps, self._rounding) * largest
        return math.isfinite(noise) and max(_norm(a), _norm(b)) <= noise

    def _close_losses(self, ours: BatchLoss, theirs: BatchLoss) -> bool:
        """Whether two losses agree up to the rounding of their terms, taken as a nat per datum if they are unknown."""
        scale = float(theirs.weight)
        if theirs.log_likelihood is not None and theirs.kl is not None:
            scale = max(scale, float(theirs.log_likelihood.abs() + theirs.kl.abs()))
        return _close(ours.loss, theirs.loss, self._of_values, scale if scale < float("inf") else 0.0)


def _is_rounding(a: Tensor | None, b: Tensor | None, rounded: Sequence[Tensor | None], count: float) -> bool:
    """Whether two gradients differ by what so many roundings of the parameters change in the second."""
    if a is None or b is None or a.shape != b.shape:
        return False
    difference = _norm(a - b)
    changes = [_norm(r - b) for r in rounded if r is not None and r.shape == b.shape]
    most = max(filter(math.isfinite, changes), default=0.0)
    return math.isfinite(difference) and difference <= count * most


def _may_be_tf32(leaf: Tensor) -> bool:
    """Whether products with this parameter may round their factors to TF32; convolutions do by torch's default."""
    if not is_on_gpu(leaf) or leaf.dtype is not torch.float32:
        return False
    return torch.get_float32_matmul_precision() != "highest" or (leaf.dim() > 2 and _convolutions_may())


def _convolutions_may() -> bool:
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the user has set it by torch's newer words, beside which it refuses to say
        return True


def _close(a: Tensor, b: Tensor, tolerance: float = _TRACED, scale: float = 0.0) -> bool:
    """Whether a differs from b by a small share of b's norm or a scale; integers, NaN and infinities must match."""
    if a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b):
        return True
    if not (a.is_floating_point() or a.is_complex()):
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    a, b = a.detach().to(b.device), b.detach()
    if a.dtype != b.dtype:
        a, b = a.cpu().double(), b.cpu().double()
    difference = _norm(a - b)
    if not math.isfinite(difference):  # the program itself may give infinities and NaN
        finite = b.isfinite()
        if not torch.equal(finite, a.isfinite()) or not torch.allclose(a[~finite], b[~finite], equal_nan=True):
            return False
        a, b = a[finite], b[finite]
        difference = _norm(a - b)
    return difference <= tolerance * max(_norm(b), scale) + 1e-12


def _norm(tensor: Tensor) -> float:
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    wide = None if tensor.device.type == "mps" else torch.float64
    return float(torch.linalg.vector_norm(tensor, dtype=wide))
