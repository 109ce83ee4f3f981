"""The way of batches to a device; to a GPU they are copied while it computes."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from ppl_vae._tensors import moved

_IN_FLIGHT = 2  # batches on the GPU beside the one that is being copied


class Sender:
    """Moves batches to a device, and to a GPU from pinned memory on a stream of its own, while the GPU computes.

    The GPU works behind Python: a batch is read and sent while the steps before it run. At most two batches wait there,
    so that their memory is bounded; then Python waits for the oldest step.

    Args:
        device: The device; None leaves tensors where they are.
        dtype: The dtype of floating numbers; None leaves it.

    Reference:
        https://pytorch.org/docs/stable/notes/cuda.html#use-pinned-memory-buffers
    """

    def __init__(self, device: torch.device | str | None, dtype: torch.dtype | None = None) -> None:
        self._device = None if device is None else torch.device(device)
        self._dtype = dtype
        self._stream: torch.cuda.Stream | None = None
        self._given: deque[torch.cuda.Event] = deque()  # after the steps of the batches before

    def __call__(self, batch: Any) -> Any:
        """Return the batch, a tensor or a tuple of tensors, on the device."""
        here = moved(batch, None, self._dtype)
        if isinstance(here, Tensor):
            return self((here,))[0]
        if self._device is None or self._device.type != "cuda" or all(part.is_cuda for part in here):
            return moved(here, self._device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        now = torch.cuda.current_stream(self._device)
        self._given.append(now.record_event())
        if len(self._given) > _IN_FLIGHT:
            self._given.popleft().synchronize()
        with torch.cuda.stream(self._stream):
            sent = tuple(map(self._sent, here))
        now.wait_stream(self._stream)
        for part in sent:
            part.record_stream(now)  # its memory is free again after the step, and not after the copy
        return sent

    def _sent(self, part: Tensor) -> Tensor:
        if part.device.type == "cpu":
            part = part.pin_memory()
        return part.to(self._device, non_blocking=True)
