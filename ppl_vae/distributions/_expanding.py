"""What distributions with parameters of their own have in common: how they are expanded."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from pyro.distributions import TorchDistribution


class Expanding(TorchDistribution):
    """A distribution whose copy with another batch shape has the same attributes, and its parameters expanded.

    Its parameters are what `arg_constraints` names. What the last draw was made of stays with the original.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    broadcasts: ClassVar[bool] = False  # whether parameters stay as they are, and are broadcast when they are used

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """Return the distribution with another batch shape."""
        new: Any = self._get_checked_instance(type(self), _instance)
        batch_shape = torch.Size(batch_shape)
        new.__dict__.update({name: value for name, value in self.__dict__.items() if name != "_last"})
        for name, constraint in self.arg_constraints.items() if not self.broadcasts else ():
            parameter = getattr(self, name)
            event = parameter.shape[parameter.dim() - constraint.event_dim :]
            setattr(new, name, parameter.expand(batch_shape + event))
        TorchDistribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new
