"""Short runs: a small VAE, and training on the command line without pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from ppl_vae import VAE, likelihoods, networks, posteriors, priors


def small_vae(
    data: Any,
    width: int = 8,
    *,
    seed: int = 0,
    latent_dim: int = 2,
    batch_norm: bool = False,
    likelihood: Callable[[networks.MLP], Any] = likelihoods.Bernoulli,
    posterior: Callable[[networks.MLP], Any] = posteriors.DiagonalNormal,
) -> VAE:
    """A VAE with one layer in each network, for a data set or a shape."""
    torch.manual_seed(seed)
    mlp = networks.MLP([width], batch_norm=batch_norm)
    return VAE(data, prior=priors.StandardNormal(latent_dim), likelihood=likelihood(mlp), posterior=posterior(mlp))


@contextlib.contextmanager
def without_pictures() -> Iterator[None]:
    """Train without a run's pictures, which take most of a short run's time."""
    with mock.patch("ppl_vae.runs.folder.draw", return_value=[]) as draw:
        yield
    assert draw.called, "the pictures are drawn by another name: they were drawn"
