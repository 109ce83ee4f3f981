"""What the contenders in PyTorch share: the networks, the batches, the loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from contenders import Run
from contenders.setting import Setting


def mlp(sizes: Sequence[int], device: str = "cpu") -> nn.Sequential:
    """The article's network: softplus between linear layers, weights and biases from N(0, 2 / fan-in)."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Softplus()]
        for parameter in layers[-2].parameters():
            nn.init.normal_(parameter, std=math.sqrt(2 / fan_in))
    return nn.Sequential(*layers[:-1]).to(device)


def batches(setting: Setting) -> Callable[[], Tensor]:
    """Draw a batch by random indices out of one tensor on the device, at each call."""
    data = torch.from_numpy(setting.pixels()).to(setting.device)
    shape = (setting.batch_size,)
    return lambda: data.index_select(0, torch.randint(len(data), shape, device=data.device))


def repeated(step: Callable[[], object], setting: Setting) -> Run:
    """Take `step` again and again, and wait for the device at the end."""

    def run(steps: int) -> int:
        for _ in range(steps):
            step()
        if setting.device == "cuda":
            torch.cuda.synchronize()
        return steps

    return run
