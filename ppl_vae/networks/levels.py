"""The networks of a latent of several levels, z = (z_1, ..., z_L): their number, their names, their normals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._validation import check_positive_int
from ppl_vae.distributions.normal import Normal
from ppl_vae.networks.parameters import ParameterNetwork


def check_dims(dims: object, name: str) -> tuple[int, ...]:
    """Return the dimensions of the levels, from z_1 up, or raise if they are not two positive integers or more."""
    if isinstance(dims, str) or not isinstance(dims, Sequence) or len(dims) < 2:
        raise ValueError(f"{name} is {dims!r}; expected those of two levels or more, from z_1 up, such as [8, 4, 2]")
    return tuple(check_positive_int(dim, f"{name}: one of {list(dims)}") for dim in dims)


def two_dims(latent_dim: int, top_dim: int, name: str) -> tuple[int, int]:
    """Return the dimensions of two levels, the second of which has `top_dim` of them."""
    if check_positive_int(top_dim, f"{name}: top_dim") >= check_positive_int(latent_dim, f"{name}: latent_dim"):
        raise ValueError(
            f"{name}: top_dim is {top_dim} of a latent of {latent_dim} dimensions; expected less, so that the "
            "likelihood has something to read"
        )
    return latent_dim - top_dim, top_dim


class _Levels:
    """A mix-in of modules with a `ParameterNetwork` for each of several levels."""

    def name_of(self, level: int) -> str:
        """Return the name of a level's network, which is part of the names in checkpoints."""
        return f"level_{level + 1}"

    def add_networks(self: Any, networks: Any, levels: Sequence[int]) -> None:
        """Hold a network for the mean and raw scale of each of these levels: one of a list, or one from one factory."""
        if not isinstance(networks, Sequence):
            networks = [networks] * (1 if isinstance(networks, nn.Module) else len(levels))
        if len(networks) != len(levels):
            raise ValueError(
                f"{self.owner} was given {len(networks)} networks for {len(levels)} levels; expected a list of as many "
                "(one nn.Module in each place to share its weights), or a factory such as networks.MLP([64])"
            )
        for level, network in zip(levels, networks, strict=True):
            owner = f"{self.owner}, level {level + 1}"
            self.add_module(self.name_of(level), ParameterNetwork(network, owner, count=2))

    def network_of(self: Any, level: int) -> ParameterNetwork:
        """Return the network of a level, counted from 0."""
        return getattr(self, self.name_of(level))

    def normal(self: Any, level: int, *inputs: Tensor | None) -> Any:
        """Return the normal of a level at the inputs of its network, event (dim,)."""
        mean, raw = self.network_of(level)(*inputs)
        return Normal(mean, softplus(raw) + self.floor).to_event(1)
