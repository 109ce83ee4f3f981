r"""Exact log p(x) of the linear-Gaussian model, in closed form."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import likelihoods
from ppl_vae._distributions import unwrapped
from ppl_vae._home import at_home
from ppl_vae._piece_checks import GivenPiece
from ppl_vae._scopes import evaluation_mode
from ppl_vae.evidence.densities import Model, VAEDensities
from ppl_vae.evidence.results import Evidence

if TYPE_CHECKING:
    from jaxtyping import Float

_AFFINE = (nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten)


@at_home("x", program="weight", float64=True)
def linear_gaussian_evidence(
    weight: Float[Tensor, "D d"], bias: Float[Tensor, " D"], scale: float | Float[Tensor, " D"], x: Float[Tensor, "n D"]
) -> Float[Tensor, " n"]:
    r"""Return the log evidence of the linear-Gaussian model (probabilistic PCA), float64, nats.

    With p(z) = N(0, I) and p(x|z) = N(W z + b, diag(s^2)), and m(x) the mean of p(z|x),

    .. math::
        \log p(x) = -\tfrac12 \Big( \lVert (x - b - W m) / s \rVert^2 + \lVert m \rVert^2
        + \log \det(I + W' S^{-2} W) + \sum_i \log(2 \pi s_i^2) \Big).

    The Woodbury identity leaves one Cholesky decomposition of a d x d matrix. In this form the squared residual does
    not cancel where s is small.

    Args:
        weight: W.
        bias: b.
        scale: s, a number or (D,).
        x: Data.

    Raises:
        ValueError: If the scale is not above zero.

    Reference:
        Probabilistic Principal Component Analysis (Tipping & Bishop, 1999), https://doi.org/10.1111/1467-9868.00196

    Example:
        >>> x = torch.zeros(1, 3)
        >>> linear_gaussian_evidence(torch.zeros(3, 2), torch.zeros(3), 1.0, x)  # nothing but N(0, I)
        tensor([-2.7568], dtype=torch.float64)
    """
    bias, x = bias.double(), x.double()
    s = torch.as_tensor(scale, dtype=torch.float64, device=x.device).expand(bias.shape)
    if not (s > 0).all():
        raise ValueError(f"linear_gaussian_evidence: scale is {scale!r}; expected a number or numbers above zero")
    w, residual = weight.double() / s[:, None], (x - bias) / s
    factor = torch.linalg.cholesky(torch.eye(w.shape[1], dtype=w.dtype, device=w.device) + w.T @ w)
    mean = torch.cholesky_solve(w.T @ residual.T, factor).T
    quadratic = (residual - mean @ w.T).square().sum(-1) + mean.square().sum(-1)
    return -0.5 * quadratic - factor.diagonal().log().sum() - (s.log() + 0.5 * math.log(2 * math.pi)).sum()


@at_home("x", float64=True)
@torch.no_grad()
def closed_form_evidence(vae: Model, x: Float[Tensor, " n *x_shape"]) -> Evidence | None:
    """Return the exact log evidence of a linear-Gaussian model, or None for any other model.

    A model counts as linear-Gaussian if it has a normal prior with diagonal covariance, a likelihood `Normal` whose
    scale does not depend on z, and a decoder of linear layers alone (and layers that reshape their output), such as
    ``networks.MLP([])``.

    Args:
        vae: The model.
        x: Data.

    Returns:
        Evidence of kind ``"exact"``, method ``"closed form"``, with float64's rounding as `error`; or None.

    Example:
        >>> from ppl_vae import VAE, networks, posteriors, priors
        >>> vae = VAE((5,), prior=priors.StandardNormal(2), likelihood=likelihoods.Normal(networks.MLP([])),
        ...           posterior=posteriors.DiagonalNormal())
        >>> closed_form_evidence(vae, vae.sample(3)).method
        'closed form'
    """
    prior = VAEDensities(vae).prior()
    base = unwrapped(prior)
    likelihood: Any = getattr(vae, "likelihood", None)
    likelihood = likelihood.piece if isinstance(likelihood, GivenPiece) else likelihood
    if type(base) is not dist.Normal or type(likelihood) is not likelihoods.Normal or likelihood.learn == "datum":
        return None
    network = likelihood.mean.network
    if network is None or not all(type(m) in (*_AFFINE, nn.Sequential) for m in network.modules()):
        return None
    precise, loc, spread = copy.deepcopy(vae).double(), base.loc.double(), base.scale.double()
    with evaluation_mode(precise):
        p_x = unwrapped(precise.p_x(loc[None]))
        bias = p_x.mean.reshape(-1)
        shifted = precise.p_x(loc + torch.diag(spread.expand(loc.shape))).mean.reshape(len(loc), -1)
    log_p = linear_gaussian_evidence((shifted - bias).T, bias, p_x.scale.reshape(-1), x.reshape(len(x), -1))
    return Evidence(log_p, 1e-12 * (log_p.abs() + x[0].numel()), "closed form", "exact", {})
