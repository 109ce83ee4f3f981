"""A module that knows the arguments it was made with, and can be pickled after training."""

from __future__ import annotations

from typing import Any, Self

from torch import nn


class Recorded(nn.Module):
    """The base of this package's pieces: it keeps the arguments of its constructor, by which `VAE.save` describes it.

    Attributes:
        made_with: The positional and the named arguments of the constructor.
    """

    made_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments, before any constructor sees them."""
        self = super().__new__(cls)
        self.__dict__["made_with"] = (args, kwargs)  # nn.Module takes attributes only after its own constructor
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle keeps."""
        return state_of(self)


def state_of(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module, without what Pyro hangs on its parameters: references that no pickle takes.

    Pyro hangs them anew each time it looks for a parameter.
    """
    for parameter in module.parameters():
        parameter.__dict__.pop("unconstrained", None)
    return dict(module.__dict__)
