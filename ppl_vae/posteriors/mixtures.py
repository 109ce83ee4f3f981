r"""Mixture posteriors."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._validation import check_positive, check_positive_int
from ppl_vae.distributions.normal_mixture import NormalMixture
from ppl_vae.networks import MLP, Binding, NetworkFactory, ParameterNetwork


class MixtureOfNormals(nn.Module):
    r"""A reparameterised mixture of diagonal normals.

    .. math::
        q(z|x) = \sum_{c=1}^C \pi_c(x)\, \mathcal N(z; \mu_c(x), \mathrm{diag}\,\sigma_c(x)^2).

    The reparameterised gradient is unbiased for weights, means and scales. Where components are many standard
    deviations apart, rare draws between them carry the gradient of the weights, and training practically never sees
    it: such components keep the weights they have. The ELBO seeks modes, so under it components also tend to collapse
    onto one another; `objectives` with several particles inside the logarithm reward their spread. A draw costs
    :math:`O(C^2 d)`. The KL has no closed form, so ``MeanFieldELBO`` refuses this posterior.

    Args:
        network: Maps x to C logits, then C d means, then C d values r with
            :math:`\sigma = \log(1 + e^r) + \text{floor}`: together C (2 d + 1) values; ``MLP()`` by default.
        num_components: The number C of components.
        floor: The smallest standard deviation.

    Raises:
        ValueError: If `num_components` is not a positive integer, `floor` is not above zero, or the network does not
            have C (2 d + 1) outputs.

    Reference:
        Pathwise Derivatives Beyond the Reparameterization Trick (Jankowiak & Obermeyer,
        2018), https://arxiv.org/abs/1806.01851, for the gradient, and Implicit Reparameterization Gradients (Figurnov
        et al., 2018), https://arxiv.org/abs/1805.08498, for another

    Example:
        >>> import torch
        >>> posterior = MixtureOfNormals(nn.Linear(64, 3 * 5), num_components=3)
        >>> posterior(torch.zeros(4, 64)).rsample().shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        num_components: int = 3,
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        self.num_components = check_positive_int(num_components, "posterior MixtureOfNormals: num_components")
        self.floor = check_positive(floor, "posterior MixtureOfNormals: floor")
        self.components = ParameterNetwork(MLP() if network is None else network, "posterior MixtureOfNormals")

    def bind(self, binding: Binding) -> None:
        """Size the network."""
        (d,) = binding.latent_shape
        self.components.build(binding.x_shape, (self.num_components * (2 * d + 1),), binding.y_shape)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return q(z|x), batch shape (batch,), event shape (latent,)."""
        (outputs,) = self.components(x, y)
        count, width = self.num_components, outputs.shape[-1]
        d = (width // count - 1) // 2
        if d < 1 or count * (2 * d + 1) != width:
            raise ValueError(
                f"posterior MixtureOfNormals: its network has {width} outputs; expected {count} (2 d + 1) for a "
                f"latent of d dimensions, such as {5 * count} for d = 2"
            )
        logits, mean, raw = outputs.split([count, count * d, count * d], dim=-1)
        mean, raw = mean.unflatten(-1, (count, d)), raw.unflatten(-1, (count, d))
        return NormalMixture(logits, mean, softplus(raw) + self.floor)
