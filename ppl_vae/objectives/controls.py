r"""Estimators for discrete latents with control variates that follow the gradient of f = log w between the states.

- `DoubleCV`: leave-one-out with a second control variate, linear in z.
- `REBAR` and `RELAX`: a score-function gradient whose control variate is f at relaxed draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ppl_vae._validation import check_positive, check_positive_int
from ppl_vae.objectives.baselines import Coefficient, enter, leave_one_out, observed_rows, two_layers
from ppl_vae.objectives.enumeration import EnumeratedELBO
from ppl_vae.objectives.estimate import Estimate, ManyParticles, owner
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.logits import Drawing, Site
from ppl_vae.objectives.states import covariance, noisy_given

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class DoubleCV(ManyParticles):
    r"""The ELBO of discrete latents with the leave-one-out gradient and a second control variate.

    .. math::
        g = \frac1K \sum_k \Big(f_k + \alpha c_k - \frac{1}{K - 1} \sum_{j \ne k} (f_j + \alpha c_j)\Big) (z_k - \mu)
        - \alpha\, \mathrm{Cov}(z)\, \bar\nabla, \qquad c_k = \bar\nabla_{-k} \cdot (z_k - \mu),

    at the logits, with :math:`f = \log w`, :math:`\bar\nabla_{-k}` the mean of :math:`\nabla_z f` at the other draws
    and :math:`\bar\nabla` that at all. It is **unbiased** for every :math:`\alpha` that does not depend on the draws.
    Here :math:`\alpha` minimises the variance of earlier batches; the paper follows the gradient of the variance. It is
    0 at the first step, where this is REINFORCE with the leave-one-out baseline. The decoder must be differentiable in
    z. The cost beyond leave-one-out is a second backward pass to z. An object of this class holds :math:`\alpha`: use
    one object per training run.

    Args:
        num_particles: K, at least 2.

    Raises:
        ValueError: If there is only one particle.
        TypeError: If the program has another latent than one site of independent bits or one-hot variables.

    Reference:
        Double Control Variates for Gradient Estimation in Discrete Latent Variable Models (Titsias & Shi, 2022),
        https://arxiv.org/abs/2111.05300

    Example:
        >>> DoubleCV(4)
        DoubleCV(num_particles=4)
    """

    num_particles: int = 2
    reference: ClassVar[EnumeratedELBO] = EnumeratedELBO()  # whose gradient this one has in expectation
    coefficient: Coefficient = field(default_factory=Coefficient, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_several("REBAR")

    @property
    def latents(self) -> Drawing:
        """The handler that draws in place of the guide."""
        return Drawing(type(self).__name__, leaf=True)

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        site = Site.of(log_weights, self)
        f = log_weights.log_w.detach()
        mean = torch.full_like(f, 1 / len(f))
        if not torch.is_grad_enabled():
            return site.estimate(f.mean(0), mean, torch.zeros_like(site.score))
        slope = site.slope()
        first = ((f - leave_one_out(f)) / len(f)).unsqueeze(-1) * site.score
        linear = (leave_one_out(slope) * site.score).sum(2)
        second = ((linear - leave_one_out(linear)) / len(f)).unsqueeze(-1) * site.score
        spread = covariance(site.states, site.states.mean.detach(), slope.reshape(site.states.logits.shape))
        second = site.kept(second - spread / len(f))
        alpha = self.coefficient(first.sum(0), second.sum(0)).to(f)
        return site.estimate(f.mean(0), mean, first + alpha * second)


class REBAR:
    r"""The ELBO of discrete latents with a score-function gradient and f at relaxed draws as control variate.

    .. math::
        g = \frac1K \sum_k \big(f(z_k) - \eta\, c(\tilde s_k)\big) (z_k - \mu)
        + \eta\, \nabla_\ell c(s_k) - \eta\, \nabla_\ell c(\tilde s_k), \qquad c(s) = f(\sigma(s / \lambda)),

    at the logits :math:`\ell`, with :math:`f = \log w`, :math:`s_k` the noisy logits that make :math:`z_k`, and
    :math:`\tilde s_k` others that make the same :math:`z_k`. It is **unbiased** for every :math:`\eta` and
    :math:`\lambda`. They start at 1 and at `temperature`, and follow the gradient of the variance of g by the optimiser
    of the program. The decoder must be differentiable in z and defined between the states. **It is slow**: three
    decoder passes for each particle, and a second derivative of the decoder where it adapts. An object of this class
    holds its parameters: use one object per training run. A comparison at fixed parameters takes them as they are.

    Args:
        num_particles: K.
        temperature: The first :math:`\lambda`.
        adapt: Whether :math:`\eta` and :math:`\lambda` follow the gradient of the variance.

    Raises:
        ValueError: If the temperature is not positive.
        TypeError: If the program has another latent than one site of independent bits or one-hot variables.

    Reference:
        REBAR: Low-variance, unbiased gradient estimates for discrete latent variable models (Tucker et al., 2017),
        https://arxiv.org/abs/1703.07370

    Example:
        >>> REBAR(2, temperature=0.1)
        REBAR(num_particles=2, temperature=0.1)
    """

    reference: ClassVar[EnumeratedELBO] = EnumeratedELBO()  # whose gradient this one has in expectation

    def __init__(self, num_particles: int = 1, temperature: float = 0.5, adapt: bool = True) -> None:
        self.num_particles = check_positive_int(num_particles, f"{owner(self)}: num_particles")
        self.temperature = check_positive(temperature, f"{owner(self)}: temperature")
        self.adapt = adapt
        self.control = _Control(temperature)

    def __repr__(self) -> str:
        fixed = "" if self.adapt else ", adapt=False"
        return f"{type(self).__name__}(num_particles={self.num_particles}, temperature={self.temperature}{fixed})"

    @property
    def latents(self) -> Drawing:
        """The handler that draws in place of the guide."""
        return Drawing(type(self).__name__)

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        site = Site.of(log_weights, self)
        f = log_weights.log_w.detach()
        mean = torch.full_like(f, 1 / len(f))
        if not torch.is_grad_enabled():
            return site.estimate(f.mean(0), mean, torch.zeros_like(site.score))
        if log_weights.again is None or not getattr(log_weights.drawing, "noise", None):
            raise ValueError(
                f"{owner(self)} needs the noise of the draws; sample the log-weights with "
                f"latents={type(self).__name__}().latents"
            )
        self.control.ready(site)
        logits = site.states.logits.detach().requires_grad_()
        states = type(site.states)(logits)
        conditional = self.control(site, noisy_given(states, site.z.detach())[0])
        free = self.control(site, states.logits + log_weights.drawing.noise[site.name].reshape(logits.shape))
        (path,) = torch.autograd.grad((free - conditional).sum(), logits, create_graph=self.adapt)
        gradient = site.kept((f - conditional).unsqueeze(-1) * site.score + path.flatten(2)) / len(f)
        estimate = site.estimate(f.mean(0), mean, gradient)
        if self.adapt:
            fit = self.control.fit(gradient.sum(0)) / f.shape[1]
            estimate = estimate._replace(surrogate=estimate.surrogate + fit)
        return estimate


class RELAX(REBAR):
    r"""`REBAR` with a network r beside f in the control variate, :math:`c(s) = f(\sigma(s / \lambda)) + r(x, s)`.

    It is **unbiased** for every r, which follows the gradient of the variance and starts at 0. It costs as much as
    `REBAR`, and a small network more.

    Args:
        num_particles: K.
        temperature: The first :math:`\lambda`.
        adapt: Whether :math:`\eta`, :math:`\lambda` and r follow the gradient of the variance.
        hidden: The width of the two hidden layers of r.

    Raises:
        ValueError: If the temperature is not positive.
        TypeError: If the program has another latent than one site of independent bits or one-hot variables.

    Reference:
        Backpropagation through the Void: Optimizing control variates for black-box gradient estimation (Grathwohl et
        al., 2018), https://arxiv.org/abs/1711.00123

    Example:
        >>> RELAX()
        RELAX(num_particles=1, temperature=0.5)
    """

    def __init__(self, num_particles: int = 1, temperature: float = 0.5, adapt: bool = True, hidden: int = 100) -> None:
        super().__init__(num_particles, temperature, adapt)
        self.hidden = check_positive_int(hidden, f"{owner(self)}: hidden")
        self.control = _Control(temperature, hidden)


class _Control(nn.Module):
    r"""The control variate :math:`\eta\, (f(\sigma(s / \lambda)) + r(x, s))`, whose parameters reduce the variance.

    Args:
        temperature: The first :math:`\lambda`.
        hidden: The width of the two hidden layers of r; 0 for no r.
    """

    def __init__(self, temperature: float, hidden: int = 0) -> None:
        super().__init__()
        self.hidden = hidden
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature), dtype=torch.float64))
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.network: nn.Sequential | None = None

    def ready(self, site: Site) -> None:
        """Make the network, and let it and the other parameters take part in the program."""
        if self.hidden and self.network is None:
            self.network = two_layers(self._inputs(site, site.z).shape[-1], self.hidden)
            for parameter in self.network[-1].parameters():
                nn.init.zeros_(parameter)  # r starts at 0: RELAX starts as REBAR
        enter(self, site.z)

    def forward(self, site: Site, noisy: Tensor) -> Float[Tensor, "K batch"]:
        """Return the control variate at noisy logits."""
        states = type(site.states)(site.states.logits.detach())
        z = states._relaxed(noisy / self.log_temperature.exp())
        c = site.log_p(z) - states._log_prob(z)
        if self.network is not None:
            c = c + self.network(self._inputs(site, noisy)).squeeze(-1)
        return self.weight * c

    def _inputs(self, site: Site, noisy: Tensor) -> Float[Tensor, "K batch columns"]:
        rows = observed_rows(site.log_weights).to(noisy)
        return torch.cat([rows.expand(len(noisy), -1, -1), noisy.flatten(2)], -1)

    def fit(self, gradient: Tensor) -> Float[Tensor, ""]:
        """Return a term whose gradient at the parameters is that of minus the sum of squares of `gradient`."""
        parameters = list(self.parameters())
        found = torch.autograd.grad(gradient.square().sum(), parameters, retain_graph=True)
        return -sum(((p * g.detach()).sum() for p, g in zip(parameters, found, strict=True)), gradient.new_zeros(()))
