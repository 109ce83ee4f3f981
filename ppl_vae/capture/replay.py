"""A step's graph on a GPU, launched as a whole: hundreds of small kernels for the price of one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class CudaReplay:
    """A function of tensors as one CUDA graph, for inputs of the shapes that it was made with.

    Inputs are copied into memory of the graph's own, and outputs lie in memory that the next call writes over: use or
    copy them before. Random numbers come from torch's generator, as many as the function itself would draw.

    Args:
        function: Launches the same kernels on every call, and waits for none.
        tensors: Inputs to record it with. It runs three times on them first, as CUDA graphs demand, so that what it
            writes into (buffers, the random state) should be put back by the caller.

    Raises:
        RuntimeError: If the function waits for the GPU, or uses memory in a way that cannot be recorded.

    Reference:
        https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]) -> None:
        self._inputs = [t.clone() for t in tensors]
        self._device = tensors[0].device if tensors else torch.device("cuda", torch.cuda.current_device())
        with torch.cuda.device(self._device):
            self._record(function)

    def _record(self, function: Callable[..., Sequence[Tensor]]) -> None:
        aside, now = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(now)
        with torch.cuda.stream(aside), torch.no_grad():
            for _ in range(3):
                function(*self._inputs)
        now.wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), torch.no_grad():
            self._outputs = tuple(function(*self._inputs))

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Launch the graph, and return its outputs."""
        if tensors:
            torch._foreach_copy_(self._inputs, list(tensors))
        with torch.cuda.device(self._device):
            self._graph.replay()
        return self._outputs
