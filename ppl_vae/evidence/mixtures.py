r"""Mixtures of Student t densities, one for each datum, and their fit to weighted draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae._draws import classes

_DOF = 5.0  # heavy enough to tolerate a covariance of half the size, light enough to waste few draws


@dataclass(frozen=True)
class StudentMixture:
    r"""A mixture of multivariate Student t densities for each of n data, all at once.

    .. math::
        f(z) = \sum_c \pi_c\, t_\nu(z; \mu_c, L_c L_c^\top).

    In many dimensions, draws of a t and of a normal with the same scale lie at different distances from the centre.
    Weights against a normal target therefore spread even where the fit is perfect.

    Attributes:
        log_weight: :math:`\log \pi_c`, (C, n), float64.
        loc: :math:`\mu_c`, (C, n, d), float64.
        scale_tril: :math:`L_c`, (C, n, d, d), float64.
        dof: :math:`\nu`.

    Example:
        >>> eye = torch.eye(2).double().expand(1, 3, 2, 2)
        >>> mixture = StudentMixture(torch.zeros(1, 3).double(), torch.zeros(1, 3, 2).double(), eye)
        >>> z = mixture.sample((4,))
        >>> z.shape, mixture.log_prob(z).shape
        (torch.Size([4, 3, 2]), torch.Size([4, 3]))
    """

    log_weight: Tensor
    loc: Tensor
    scale_tril: Tensor
    dof: float = _DOF

    def sample(self, sample_shape: torch.Size) -> Tensor:
        """Draw latents, (K, n, d), float64."""
        (size,), (_, n, d) = sample_shape, self.loc.shape
        noise = torch.randn(size, n, d, dtype=torch.float64, device=self.loc.device)
        chi2 = 2 * torch._standard_gamma(noise.new_full((size, n), 0.5 * self.dof))
        noise = noise * (self.dof / chi2).sqrt().unsqueeze(-1)
        component = classes(self.log_weight.exp().T, size).T  # (K, n)
        z = torch.empty_like(noise)
        for c, (loc, tril) in enumerate(zip(self.loc, self.scale_tril, strict=True)):
            draw = loc + (tril @ noise.permute(1, 2, 0)).permute(2, 0, 1)
            z = torch.where((component == c).unsqueeze(-1), draw, z)
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density of latents (K, n, d), as (K, n), float64."""
        return self.log_joint(_columns(z))[0].logsumexp(0).T

    def log_joint(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the log-densities :math:`\log \pi_c t_\nu(z; \mu_c, \Sigma_c)` and squared Mahalanobis distances.

        Both have the shape (C, n, K).

        Args:
            columns: Latents with the draws last, (n, d, K), float64.
        """
        d = columns.shape[1]
        eye = torch.eye(d, dtype=torch.float64, device=columns.device)
        whiten = torch.linalg.solve_triangular(self.scale_tril, eye.expand_as(self.scale_tril), upper=False)
        distance = torch.stack(
            [(w @ (columns - loc.unsqueeze(-1))).square().sum(1) for w, loc in zip(whiten, self.loc, strict=True)]
        )
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (C, n)
        half = 0.5 * (self.dof + d)
        constant = math.lgamma(half) - math.lgamma(0.5 * self.dof) - 0.5 * d * math.log(self.dof * math.pi)
        return (constant + self.log_weight - log_det).unsqueeze(-1) - half * torch.log1p(distance / self.dof), distance


def fit_student_mixture(
    z: Tensor, log_w: Tensor, variance: Tensor, num_components: int, num_steps: int = 6
) -> StudentMixture:
    r"""Fit a mixture of Student t densities to weighted draws of each datum, by expectation maximisation.

    The result is a local optimum. The centres start one by one where weight times squared distance to the nearest
    centre is largest. Covariances are shrunk towards their diagonal with the weight of d + 1 effective draws. They are
    also shrunk towards `variance`, with a weight of one over their number of effective draws, so that `variance`
    decides the width around a lone draw and nothing else.

    Args:
        z: Draws, (M, n, d).
        log_w: Their log-weights, (M, n); any constant in them cancels.
        variance: The variance around a lone draw, (n, d).
        num_components: C.
        num_steps: Steps of expectation maximisation.

    Reference:
        Robust Mixture Modelling Using the t Distribution (Peel & McLachlan, 2000),
        https://doi.org/10.1023/A:1008981510081

    Example:
        >>> _ = torch.manual_seed(0)
        >>> z = torch.cat([torch.randn(500, 1, 1) * 0.1 - 3, torch.randn(500, 1, 1) * 0.1 + 3])
        >>> mixture = fit_student_mixture(z, torch.zeros(1000, 1), torch.ones(1, 1), num_components=2)
        >>> sorted(round(m, 1) for m in mixture.loc.flatten().tolist())
        [-3.0, 3.0]
    """
    columns, weight, variance = _columns(z), log_w.double().softmax(0).T.contiguous(), variance.double()
    effective = weight.square().sum(-1).reciprocal()  # (n,)
    centres = _spread_centres(columns, weight, num_components)
    nearest = torch.stack([(columns - centre.unsqueeze(-1)).square().sum(1) for centre in centres]).argmin(0)  # (n, M)
    share = weight * torch.stack([nearest == c for c in range(num_components)])  # (C, n, M)
    mixture = _maximised(columns, share, torch.ones_like(share), effective, variance)
    for _ in range(num_steps):
        log_p, distance = mixture.log_joint(columns)
        pull = (mixture.dof + columns.shape[1]) / (mixture.dof + distance)
        mixture = _maximised(columns, weight * log_p.softmax(0), pull, effective, variance)
    return mixture


def _columns(z: Tensor) -> Tensor:
    """Return draws (K, n, d) as (n, d, K), float64, so that matrix products over draws need no copies."""
    return z.double().permute(1, 2, 0).contiguous()


def _spread_centres(columns: Tensor, weight: Tensor, count: int) -> Tensor:
    """Return centres (C, n, d): the heaviest draw, then each time the one with most weight times squared distance."""
    mean = (weight.unsqueeze(1) * columns).sum(-1, keepdim=True)
    spread = (weight.unsqueeze(1) * (columns - mean).square()).sum(-1, keepdim=True).clamp_min(1e-300)  # (n, d, 1)
    rows = torch.arange(len(columns), device=columns.device)
    centres = [columns[rows, :, weight.argmax(-1)]]
    distance = torch.full_like(weight, math.inf)
    while len(centres) < count:
        distance = torch.minimum(distance, ((columns - centres[-1].unsqueeze(-1)).square() / spread).sum(1))
        centres.append(columns[rows, :, (weight * distance).argmax(-1)])
    return torch.stack(centres)


def _maximised(columns: Tensor, share: Tensor, pull: Tensor, effective: Tensor, variance: Tensor) -> StudentMixture:
    """Return the mixture of largest likelihood for weights `share` (C, n, M), which sum to one over C and M."""
    d = columns.shape[1]
    mass = share.sum(-1)  # (C, n)
    pulled = share * pull
    locs = (pulled.unsqueeze(2) @ columns.mT).squeeze(2) / pulled.sum(-1).clamp_min(1e-300).unsqueeze(-1)  # (C, n, d)
    trils = []
    for part, loc, total in zip(pulled, locs, mass.clamp_min(1e-300), strict=True):
        centred = columns - loc.unsqueeze(-1)
        scatter = (centred * part.unsqueeze(1)) @ centred.mT / total[:, None, None]
        count = (effective * total)[:, None, None]  # effective draws of this component
        lone = 1 / count.clamp_min(1)  # a wide q must not widen a fit on which many narrow draws agree
        scatter = (count * scatter + lone * torch.diag_embed(variance)) / (count + lone)
        diagonal = torch.diag_embed(scatter.diagonal(dim1=-2, dim2=-1))
        trils.append(torch.linalg.cholesky((count * scatter + (d + 1) * diagonal) / (count + d + 1)))
    log_weight = (mass + 1e-6).log()  # a component without draws keeps a valid, negligible weight
    return StudentMixture(log_weight - log_weight.logsumexp(0), locs, torch.stack(trils))
