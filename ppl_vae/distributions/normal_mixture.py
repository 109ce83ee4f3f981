r"""Mixtures of diagonal normals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import constraints
from torch import Size, Tensor

from ppl_vae._draws import classes
from ppl_vae.distributions._expanding import Expanding

if TYPE_CHECKING:
    from jaxtyping import Float

_LOG_2PI = 1.8378770664093453
_LARGEST = 40.0  # the largest logarithm of a velocity: its products with other gradients are finite in float32


class NormalMixture(Expanding):
    r"""A mixture of normals with diagonal covariances, with pathwise gradients for every parameter.

    .. math::
        p(z) = \sum_c \pi_c \prod_i \mathcal N(z_i; \mu_{ci}, \sigma_{ci}^2).

    The gradient for the weights is the weak one. Weight that moves from one component to another moves mass through the
    space between them; a draw there is rare and moves far (by 1/p). This gradient is unbiased. Between components many
    standard deviations apart, however, no draw falls in the gap, and the weights hardly learn. Means and scales have no
    such trouble. One draw with gradients costs :math:`O(C^2 d)`, a density :math:`O(C d)`.

    With responsibilities :math:`r_c(z) = \pi_c \mathcal N_c(z) / p(z)`, a draw z carries the velocities

    .. math::
        \frac{\partial z_i}{\partial \mu_{ci}} = r_c, \qquad
        \frac{\partial z_i}{\partial \sigma_{ci}} = r_c \frac{z_i - \mu_{ci}}{\sigma_{ci}}, \qquad
        \frac{\partial z_i}{\partial \pi_c} = \sum_j \pi_j \frac{\Phi_{ji} - \Phi_{ci}}{p(z)}
        \prod_{k < i} \mathcal N_{jk} \prod_{k > i} \mathcal N_{ck},

    each of which solves the transport equation :math:`\partial_\theta p + \nabla \cdot (p\, \partial_\theta z) = 0`
    (the last along :math:`\sum_c d\pi_c = 0`; its sum telescopes :math:`\mathcal N_c - \mathcal N_j` over dimensions).

    Where one set of components serves many z in float32, the squares are expanded: the density then takes two matrix
    products instead of an array of shape (n, C, d). The products are taken in float64. With r = |z| / sigma their
    rounding error is of the order of :math:`10^{-16} r^2`. It stays below the :math:`6 \cdot 10^{-8} r` that the
    rounding of z itself costs.

    Args:
        logits: Logarithms of the weights up to a constant, (*batch, C).
        loc: Means, (*batch, C, d).
        scale: Standard deviations, (*batch, C, d).
        validate_args: As in `torch.distributions`.

    Reference:
        Pathwise Derivatives Beyond the Reparameterization Trick (Jankowiak & Obermeyer, 2018),
        https://arxiv.org/abs/1806.01851

    Example:
        >>> NormalMixture(torch.zeros(2), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1)).log_prob(torch.zeros(1))
        tensor(-1.4189)
    """

    arg_constraints = {  # noqa: RUF012
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
    }
    support = constraints.real_vector
    has_rsample = True
    broadcasts = True

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits.log_softmax(-1)
        self.loc = loc
        self.scale = scale
        batch_shape = torch.broadcast_shapes(logits.shape[:-1], loc.shape[:-2], scale.shape[:-2])
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "*batch d"]:
        """The mean."""
        mean = (self.logits.exp().unsqueeze(-1) * self.loc).sum(-2)
        return mean.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Float[Tensor, "*batch d"]:
        """The variance of each dimension."""
        weights = self.logits.exp().unsqueeze(-1)
        mean = (weights * self.loc).sum(-2, keepdim=True)
        variance = (weights * (self.scale.square() + (self.loc - mean).square())).sum(-2)
        return variance.expand(self.batch_shape + self.event_shape)

    def _log_prob(self, value: Tensor) -> Tensor:
        log_prob = (self.logits + self._component_log_prob(value)).logsumexp(-1)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "*sample_and_batch d"]:
        """Return draws that carry the gradient."""
        z = self.sample(sample_shape)
        learned = self.logits.requires_grad
        if not torch.is_grad_enabled() or not (learned or self.loc.requires_grad or self.scale.requires_grad):
            return z
        loc, scale = self.loc.detach(), self.scale.detach()
        with torch.no_grad():
            log_terms = self.logits + self._component_log_prob(z)
            responsibility = log_terms.softmax(-1).unsqueeze(-1)  # (..., C, 1)
            standard = (z.unsqueeze(-2) - loc) / scale
        moved = responsibility * (self.loc - loc + standard * (self.scale - scale))
        if learned:  # this takes C x C x d numbers for each draw
            with torch.no_grad():
                weight_velocity = self._weight_velocity(standard, scale, log_terms.logsumexp(-1))
            moved = moved + weight_velocity * (self.logits - self.logits.detach()).unsqueeze(-1)
        return z + moved.sum(-2)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "*sample_and_batch d"]:
        """Return draws."""
        shape = self._extended_shape(sample_shape)[:-1]
        probs = self.logits.exp()
        noise = torch.randn(shape + self.event_shape, dtype=self.loc.dtype, device=self.loc.device)
        if self.loc.dim() == 2 and self.scale.dim() == 2 and probs.dim() == 1:
            index = classes(probs, shape.numel()).reshape(shape)
            return self.loc[index] + self.scale[index] * noise
        batch_shape, count, dim = self.batch_shape, self.loc.shape[-2], self.loc.shape[-1]
        n = Size(sample_shape).numel()
        probs = probs.expand(*batch_shape, count).reshape(-1, count)
        index = classes(probs, n).t().reshape(shape)[..., None, None]
        index = index.expand(*shape, 1, dim)
        loc = self.loc.expand(*shape, count, dim).gather(-2, index).squeeze(-2)
        scale = self.scale.expand(*shape, count, dim).gather(-2, index).squeeze(-2)
        return loc + scale * noise

    def _component_log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of each component at each value, (*value.shape[:-1], C)."""
        dim = self.loc.shape[-1]
        shared = self.loc.dim() == 2 and self.scale.dim() == 2
        if shared and self.loc.dtype == torch.float32 and self.loc.device.type != "mps":  # mps has no float64
            z, loc, precision = value.double(), self.loc.double(), self.scale.double().square().reciprocal()
            # (z - mu)^2 / sigma^2, expanded
            cross = z @ (loc * precision).t()
            squares = z.square() @ precision.t() - 2 * cross + (loc.square() * precision).sum(-1)
            log_det = self.scale.double().log().sum(-1)
            return (-0.5 * (squares + dim * _LOG_2PI) - log_det).to(value.dtype)
        squares = ((value.unsqueeze(-2) - self.loc) / self.scale).square().sum(-1)
        return -0.5 * (squares + dim * _LOG_2PI) - self.scale.log().sum(-1)

    def _weight_velocity(self, standard: Tensor, scale: Tensor, log_prob: Tensor) -> Tensor:
        """Return dz / d log(weight), (..., C, d)."""
        log_each = -0.5 * (standard.square() + _LOG_2PI) - scale.log()  # (..., C, d)
        before = log_each.cumsum(-1) - log_each  # of the dimensions k < i
        after = log_each.sum(-1, keepdim=True) - before - log_each  # k > i
        ones, others = standard.unsqueeze(-2), standard.unsqueeze(-3)  # (..., c, 1, d) and (..., 1, j, d)
        # Phi_j - Phi_c from the tails where both are small: near 1 their difference would lose all digits
        side = torch.where(ones + others > 0, -1.0, 1.0).to(ones.dtype)
        root_half = 0.7071067811865476
        difference = -0.5 * side * (torch.erfc(-side * ones * root_half) - torch.erfc(-side * others * root_half))
        log_size = difference.abs().log() + after.unsqueeze(-2) + before.unsqueeze(-3) - log_prob[..., None, None, None]
        weights = self.logits.exp()
        pairs = difference.sign() * log_size.clamp(max=_LARGEST).exp() * weights[..., None, :, None]
        return weights.unsqueeze(-1) * pairs.sum(-2)
