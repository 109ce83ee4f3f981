"""A stand-in for CUDA graphs on machines without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.capture import whole


class TracedReplay:
    """`CudaReplay` without a GPU: a trace, in which Python values and memory are those of the recording."""

    made = 0
    calls = 0

    def __init__(self, function: Callable[..., Any], tensors: Sequence[Tensor], state: Sequence[Tensor] = ()) -> None:
        TracedReplay.made += 1
        self.is_whole = isinstance(getattr(function, "__self__", None), whole.WholeStep)
        self._inputs = [t.detach().clone() for t in tensors]
        self._state = list(state)
        self._addresses = list(map(Tensor.data_ptr, self._state))
        with torch.no_grad():
            for _ in range(3):
                function(*self._inputs)
            self._graph = make_fx(lambda *inputs: tuple(function(*inputs)))(*self._inputs)
        self._outputs: tuple[Tensor, ...] | None = None

    def moved(self) -> bool:
        return list(map(Tensor.data_ptr, self._state)) != self._addresses

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        TracedReplay.calls += 1
        if tensors:
            torch._foreach_copy_(self._inputs, list(tensors))
        outputs = self._graph(*self._inputs)
        if self._outputs is None:
            self._outputs = tuple(t.clone() for t in outputs)
        for kept, new in zip(self._outputs, outputs, strict=True):
            kept.copy_(new)  # the next call overwrites them
        return self._outputs


def stand_in(monkeypatch: Any) -> type[TracedReplay]:
    """Let every tensor count as one on a GPU, and a trace as a CUDA graph."""
    for module in ("capture.step", "capture.whole", "comparison.fixed.joint"):
        monkeypatch.setattr(f"ppl_vae.{module}.CudaReplay", TracedReplay)
    for module in ("capture.step", "_optimizers", "_fused", "comparison.fixed.joint", "training.loop"):
        monkeypatch.setattr(f"ppl_vae.{module}.is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(TracedReplay, "made", 0)
    monkeypatch.setattr(TracedReplay, "calls", 0)
    return TracedReplay
