"""The base classes of the distributions of this package: how they are scored, and expand to another batch shape."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution


class Scored:
    """A distribution whose density is `_log_prob`, of a value that is checked if the distribution validates."""

    def log_prob(self: Any, value: Tensor) -> Tensor:
        """Return log p(value), of the batch's shape, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value)

    def _log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError


class Expanding(Scored, TorchDistribution):
    """A distribution that expands to another batch shape: the copy keeps the attributes and expands the parameters.

    The parameters are those that `arg_constraints` names, and the distributions that it is made of. The copy does not
    keep the last draw or its noise.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    broadcasts: ClassVar[bool] = False  # True: `expand` leaves the parameters as they are; they broadcast in use

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """Return the distribution with another batch shape."""
        new: Any = self._get_checked_instance(type(self), _instance)
        batch_shape = torch.Size(batch_shape)
        for name, value in self.__dict__.items():
            if name != "_last":
                new.__dict__[name] = value.expand(batch_shape) if isinstance(value, Distribution) else value
        for name, constraint in self.arg_constraints.items() if not self.broadcasts else ():
            parameter = getattr(self, name)
            event = parameter.shape[parameter.dim() - constraint.event_dim :]
            setattr(new, name, parameter.expand(batch_shape + event))
        TorchDistribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new
