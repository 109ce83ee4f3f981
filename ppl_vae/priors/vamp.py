r"""The VampPrior: a mixture of posteriors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae._distributions import describe, unwrapped
from ppl_vae._piece_checks import takes_y
from ppl_vae._scopes import evaluation_mode, untouched_random_state
from ppl_vae._validation import check_choice, check_positive_int
from ppl_vae.distributions.box import check_box
from ppl_vae.distributions.foreign import as_pyro
from ppl_vae.distributions.normal import Normal
from ppl_vae.distributions.normal_mixture import NormalMixture
from ppl_vae.networks import Binding, Shape
from ppl_vae.priors.protocol import _Prior

if TYPE_CHECKING:
    from jaxtyping import Float

Start = Literal["random", "data"]

_MARGIN = 0.01  # share of the range between its ends and the first pseudo-inputs, where a sigmoid still moves


class VampPrior(_Prior):
    r"""The variational mixture of posteriors at learned pseudo-inputs.

    .. math::
        p(z) = \sum_{c=1}^C \pi_c\, q(z|u_c), \qquad \pi_c = 1/C \text{ or learned}.

    With the training data as pseudo-inputs it would be the aggregate posterior, the prior that maximises the ELBO; C
    learned pseudo-inputs stand in for them. The prior overfits as C nears the number of data. The encoder runs on C
    more inputs at every step: C = 500 with a batch of 200 makes the encoder 3.5 times as expensive. The KL has no
    closed form, so ``MeanFieldELBO`` refuses this prior. The prior moves with the encoder, so everything that depends
    on a fixed p(z) is lost: a KL in closed form, latents comparable between models.

    The prior refers to the VAE's posterior without owning it: it adds only the pseudo-inputs (and weights) to the VAE's
    parameters. Gradients reach both. The encoder runs on pseudo-inputs in evaluation mode: batch normalisation learns
    its statistics from the data alone, and no unit drops out of the prior. With batch normalisation the prior's encoder
    therefore lags behind the one that the data see in training. The prior does not follow a posterior that is put in
    later (``vae.posterior = other``): make a new VAE.

    In a conditional model p(z) stays unconditional. If the posterior takes y, each pseudo-input has a learned
    pseudo-label, a softmax (a mixture of one-hot labels).

    Args:
        latent_dim: The dimension d of z.
        num_components: The number C of pseudo-inputs.
        start: The first pseudo-inputs; ``"random"``: from N(0, 1), through a sigmoid into the bounds if there are any;
            ``"data"``: training data (drawn by torch's global generator), kept 1% of the range away from the bounds.
        low: The smallest value of a pseudo-input, for data of bounded range: 0 for pictures.
        high: The largest value: 1 for pictures. Give both bounds or neither: without bounds pseudo-inputs are free, and
            may go where the encoder has seen no data.
        learn_weights: Whether :math:`\pi` is learned as well; in the paper each weight is 1/C.

    Raises:
        ValueError: For a number of components below one, an unknown `start`, one bound without the other, a `low` not
            below `high`, ``start="data"`` without data, or a posterior whose density cannot be evaluated at a z that it
            did not draw.

    Reference:
        VAE with a VampPrior (Tomczak & Welling, 2018), https://arxiv.org/abs/1705.07120

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors
        >>> prior = VampPrior(2, num_components=7, low=0.0, high=1.0)
        >>> vae = VAE((64,), prior=prior, likelihood=likelihoods.Bernoulli(), posterior=posteriors.DiagonalNormal())
        >>> prior.pseudo_inputs().shape, prior().log_prob(torch.zeros(3, 2)).shape
        (torch.Size([7, 64]), torch.Size([3]))
    """

    logits: Tensor

    def __init__(
        self,
        latent_dim: int = 2,
        num_components: int = 500,
        start: Start = "random",
        low: float | None = None,
        high: float | None = None,
        learn_weights: bool = False,
    ) -> None:
        super().__init__(latent_dim)
        self.num_components = check_positive_int(num_components, f"{self.owner}: num_components")
        check_choice(start, get_args(Start), f"{self.owner}: start")
        if (low is None) != (high is None):
            raise ValueError(f"{self.owner}: low is {low} and high is {high}; expected both bounds, or neither")
        if low is not None:
            low, high = check_box(low, high, self.owner)
        self.start = start
        self.low, self.high = low, high
        self.raw_inputs: nn.Parameter | None = None
        self.raw_labels: nn.Parameter | None = None
        self._hold(learn_weights, logits=torch.zeros(num_components))
        # in a tuple: as a submodule its parameters would count twice. A copy of the VAE copies its posterior once.
        self._posterior: tuple[Callable[..., Any], ...] = ()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickle's state; older ones hold the posterior bare, or None."""
        held = state.get("_posterior")
        super().__setstate__(state | {"_posterior": held if isinstance(held, tuple) else (held,) if held else ()})

    def bind(self, binding: Binding) -> None:
        """Make the pseudo-inputs for these data and keep a reference to the posterior."""
        if self._posterior:
            raise ValueError(f"{self.owner} already belongs to a VAE: make a new one for each VAE")
        posterior = binding.posterior
        if posterior is None:
            raise ValueError(f"{self.owner} is made of the posterior, and was given none; put it into a VAE")
        like = next(posterior.parameters(), self.logits) if isinstance(posterior, nn.Module) else self.logits
        if self.start == "data":
            raw = self._unbounded(binding.rows(self.num_components, self.owner).to(like))
        else:
            raw = torch.randn(self.num_components, *binding.x_shape).to(like)
        self.raw_inputs = nn.Parameter(raw.clone())
        if binding.y_shape is not None and takes_y(posterior):
            self.raw_labels = nn.Parameter(torch.randn(self.num_components, *binding.y_shape).to(like))
        self.logits.data = self.logits.data.to(like)
        self._check(posterior, binding.latent_shape)
        self._posterior = (posterior,)

    def pseudo_inputs(self) -> Float[Tensor, " num_components *x_shape"]:
        """Return the pseudo-inputs u.

        Raises:
            RuntimeError: If the prior belongs to no VAE yet.
        """
        if self.raw_inputs is None:
            raise RuntimeError(f"{self.owner} has no pseudo-inputs yet: put it into a VAE")
        if self.low is None or self.high is None:
            return self.raw_inputs
        return self.low + (self.high - self.low) * self.raw_inputs.sigmoid()

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (latent_dim,)."""
        if not self._posterior:
            raise RuntimeError(f"{self.owner} has no pseudo-inputs yet: put it into a VAE")
        components = self._components(*self._posterior)
        base = unwrapped(components)
        if type(base) in (dist.Normal, Normal) and base.batch_shape == components.batch_shape + components.event_shape:
            return NormalMixture(self.logits, base.loc, base.scale)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)

    def _components(self, posterior: Callable[..., Any]) -> Any:
        labels = () if self.raw_labels is None else (self.raw_labels.softmax(-1),)
        with evaluation_mode(posterior) if isinstance(posterior, nn.Module) else nullcontext():
            return as_pyro(posterior(self.pseudo_inputs(), *labels))

    def _unbounded(self, inputs: Tensor) -> Tensor:
        if self.low is None or self.high is None:
            return inputs
        return ((inputs - self.low) / (self.high - self.low)).clamp(_MARGIN, 1 - _MARGIN).logit()

    def _check(self, posterior: Callable[..., Any], latent_shape: Shape) -> None:
        """Refuse a posterior of wrong shapes, or one whose density cannot be evaluated at a z that it did not draw."""
        with torch.no_grad(), untouched_random_state():
            components = self._components(posterior)
            name = describe(components)
            shapes = (tuple(getattr(components, "batch_shape", ())), tuple(getattr(components, "event_shape", ())))
            if shapes != ((self.num_components,), latent_shape):
                raise ValueError(
                    f"{self.owner}: the posterior {name} has batch and event shapes {shapes} for "
                    f"{self.num_components} pseudo-inputs; expected {((self.num_components,), latent_shape)}"
                )
            z = components.sample()
            try:
                components.log_prob(z.roll(1, 0).clone())
            except Exception as error:
                raise ValueError(
                    f"{self.owner}: the density of the posterior {name} cannot be evaluated at a z that it did not "
                    f"draw ({error}), as a mixture of posteriors needs; choose another posterior, or another prior"
                ) from error
