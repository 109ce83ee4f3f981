"""The launch of a step's graph on a GPU as a whole: hundreds of small kernels for the price of one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def is_on_gpu(tensor: Tensor) -> bool:
    """Whether what computes on this tensor can be recorded."""
    return tensor.is_cuda


class CudaReplay:
    """A function of tensors as one CUDA graph, for inputs of the shapes that it was made with.

    A call copies the inputs into memory of the graph's own. The outputs lie in memory that the next call overwrites:
    use or copy them before. Random numbers come from torch's generator, as many as the function itself would draw.

    A recorded kernel knows addresses, not tensors. The replay therefore keeps alive everything whose address was
    recorded: the function (its kernels read its constants), the storage of every tensor in `state`, the inputs, the
    generator. If a tensor is given another storage (``p.data = ...``), the replay still reads the *old* one: ask
    `moved` before a call.

    Args:
        function: Launches the same kernels on every call, and waits for none.
        tensors: Inputs to record it with. The function first runs three times on them, as CUDA graphs demand. The
            caller should put back what it writes into (buffers, the random state). A call without inputs computes with
            those of the call before.
        state: What the function reads or writes besides its inputs: parameters, buffers, constants.

    Raises:
        RuntimeError: If the function waits for the GPU, or uses memory in a way that cannot be recorded.

    Reference:
        https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    _generators = 0  # how often torch's generators were replaced

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], state: Sequence[Tensor] = ()
    ) -> None:
        self._inputs = [t.detach().clone() for t in tensors]
        self._device = next(t.device for t in (*tensors, *state))
        self._state = list(state)
        self._addresses = list(map(Tensor.data_ptr, self._state))
        self._owned: tuple[Any, ...] = (
            function,
            [t.untyped_storage() for t in self._state],
            torch.cuda.default_generators,
        )
        with torch.cuda.device(self._device):
            self._record(function)

    def _record(self, function: Callable[..., Sequence[Tensor]]) -> None:
        aside, now = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(now)
        with torch.cuda.stream(aside), torch.no_grad():
            function(*self._inputs)
            with _waiting_refused():
                for _ in range(2):
                    function(*self._inputs)
        now.wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph), torch.no_grad():
                self._outputs = tuple(function(*self._inputs))
        except RuntimeError:
            # torch leaves its generator in the recording state, where every later draw would fail. A clone takes its
            # place; graphs recorded before do not know the clone
            for generator in torch.cuda.default_generators:
                generator.graphsafe_set_state(generator.clone_state())
            CudaReplay._generators += 1
            raise
        self._made_with = CudaReplay._generators

    def moved(self) -> bool:
        """Whether a tensor of the state has moved since the recording, or torch has another generator."""
        moved = list(map(Tensor.data_ptr, self._state)) != self._addresses
        return moved or self._made_with != CudaReplay._generators

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Launch the graph, and return its outputs."""
        if tensors:
            torch._foreach_copy_(self._inputs, list(tensors))
        with torch.cuda.device(self._device):
            self._graph.replay()
        return self._outputs


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Raise where an operation waits for the GPU: to record such a wait fails and leaves torch's generator broken."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this mode does not find every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
