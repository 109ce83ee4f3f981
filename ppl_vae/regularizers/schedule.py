r"""A weight that changes during training; it is a tensor, so a captured graph sees every change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from ppl_vae._validation import check_choice, check_positive_int

if TYPE_CHECKING:
    from jaxtyping import Float

Shape = Literal["constant", "linear", "cyclical", "sigmoid"]


class Schedule(nn.Module):
    r"""A weight that moves from `start` to `stop` over the first training steps and then stays at `stop`.

    With t, from 0 to 1, the fraction of `steps` already taken, the weight is:

    - ``"constant"``: `stop`.
    - ``"linear"``: start + t (stop - start).
    - ``"sigmoid"``: the linear form with :math:`\sigma(10 (2t - 1))` in place of t, rescaled to reach both ends: slow
      at the start and at the end.
    - ``"cyclical"``: `cycles` ramps within the steps, each linear over its first half and `stop` over its second.

    The schedule counts the training steps, which are the calls that record gradients, in a buffer that checkpoints
    keep. Evaluation does not change the count, and a second training run goes on from the first one's: use one object
    per run.

    Args:
        shape: The shape.
        stop: The last value.
        start: The first value.
        steps: The number of training steps of the schedule; every shape except the constant one needs it.
        cycles: The number of ramps of the cyclical shape.
        name: The name of the caller, for messages.

    Raises:
        ValueError: If the shape is unknown, or needs `steps` and has none.

    Reference:
        Generating Sentences from a Continuous Space (Bowman et al., 2016), https://arxiv.org/abs/1511.06349; Cyclical
        Annealing Schedule (Fu et al., 2019), https://arxiv.org/abs/1903.10145

    Example:
        >>> weight = Schedule("linear", stop=1.0, steps=4)
        >>> [round(weight().item(), 2) for _ in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    step: Tensor

    def __init__(
        self,
        shape: Shape = "constant",
        stop: float = 1.0,
        start: float = 0.0,
        steps: int | None = None,
        cycles: int = 4,
        name: str = "schedule",
    ) -> None:
        super().__init__()
        check_choice(shape, get_args(Shape), f"{name}: schedule")
        if shape != "constant" and steps is None:
            raise ValueError(f"{name}: schedule {shape!r} needs steps, the number of training steps that it takes")
        self.shape = shape
        self.start, self.stop = float(start), float(stop)
        self.steps = 1 if steps is None else check_positive_int(steps, f"{name}: steps")
        self.cycles = check_positive_int(cycles, f"{name}: cycles")
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def extra_repr(self) -> str:
        """Return the settings for ``repr``."""
        return f"{self.shape}, {self.start} to {self.stop} in {self.steps} steps"

    def forward(self) -> Float[Tensor, ""]:
        """Return the weight at this step, and count the step if gradients are recorded."""
        share = (self.step / self.steps).clamp(max=1.0)
        if self.shape == "constant":
            share = torch.ones_like(share)
        elif self.shape == "cyclical":
            within = torch.where(share < 1, (share * self.cycles) % 1, torch.ones_like(share))
            share = (2 * within).clamp(max=1.0)
        elif self.shape == "sigmoid":
            low, high = torch.sigmoid(share.new_tensor(-10.0)), torch.sigmoid(share.new_tensor(10.0))
            share = ((10 * (2 * share - 1)).sigmoid() - low) / (high - low)
        value = self.start + share * (self.stop - self.start)
        if torch.is_grad_enabled():
            with torch.no_grad():
                self.step.add_(1)
        return value
