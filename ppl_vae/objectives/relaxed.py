r"""The ELBO of discrete latents with gradients through relaxed draws: straight-through and its relatives.

All of them draw the discrete z itself, so that p and q see states and the **value is unbiased**. They differ in the
derivative that the draw gets by its logits. It is **biased** in all of them. Let :math:`\pi` be the probabilities, D
the draw, and :math:`J(\pi) = \mathrm{diag}(\pi) - \pi \pi^\top` the derivative of a softmax of value :math:`\pi`. Then
the derivative is

======================  ==============================================================================================
`StraightThroughELBO`   :math:`J(\pi)`, that of the mean
`GumbelSoftmaxELBO`     :math:`J(\mathrm{softmax}((\ell + g) / T)) / T`, with the Gumbel noise g that gave D
`GumbelRaoELBO`         the same, averaged over noise that gives this D
`ReinMaxELBO`           :math:`2 J((\pi + D) / 2) - \tfrac12 J(\pi)`
======================  ==============================================================================================

A bit of logit :math:`\ell` is the first of two classes with the logits :math:`(\ell, 0)`. Other latents, which must be
reparameterised, keep their own draws and their path.

How large the bias is depends on how far p(x|z) bends between states. ``benchmarks/discrete.py`` measures it beside the
variance: on a trained model of 8 bits the norm of the bias is 1.47, 1.17, 1.18 and 0.80 in the order of the table, on 4
variables of 8 classes 0.85, 0.55, 0.55 and 0.77.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ppl_vae._distributions import describe, is_discrete
from ppl_vae._validation import check_positive, check_positive_int
from ppl_vae.objectives.enumeration import EnumeratedELBO
from ppl_vae.objectives.estimate import Estimate, ManyParticles, owner
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.states import States, noisy_given, slope, states_of


@dataclass(frozen=True)
class _RelaxedELBO(ManyParticles):
    """The ELBO of bits and one-hot vectors whose draws carry a gradient that the subclass gives to them."""

    num_particles: int = 1
    reference: ClassVar[EnumeratedELBO] = EnumeratedELBO()  # whose gradient this one estimates with bias

    @property
    def latents(self) -> Messenger:
        """The handler that draws in place of the guide."""
        return _Relaxed(self)

    def __call__(self, log_weights: LogWeights) -> Estimate:
        """Return the estimate for each datum."""
        if log_weights.posterior and not any(map(is_discrete, log_weights.posterior.values())):
            raise _refusal(self, *next(iter(log_weights.posterior.items())))
        for name in log_weights.require_draws(self):
            if log_weights.log_q[name].requires_grad and not log_weights.z[name].requires_grad:
                raise ValueError(
                    f"{owner(self)} follows the gradient of relaxed draws, and z at site {name!r} carries none; sample "
                    f"the log-weights with latents={type(self).__name__}().latents"
                )
        value = log_weights.log_w.mean(0)
        return Estimate(value.detach(), value, "lower")

    def _draw(self, states: States) -> Tensor:
        """Return a draw that carries a gradient."""
        z = states.sample()
        smooth = self._smooth(states, z)
        return z + (smooth - smooth.detach())  # the bracket is 0 exactly

    def _smooth(self, states: States, z: Tensor) -> Tensor:
        """Return a finite tensor with the gradient of the draw z; its value means nothing."""
        raise NotImplementedError


@dataclass(frozen=True)
class StraightThroughELBO(_RelaxedELBO):
    r"""The ELBO of bits and one-hot vectors, with the gradient of the mean in place of the draw's.

    .. math::
        \frac{\partial z}{\partial \ell} := \frac{\partial \pi}{\partial \ell} = J(\pi), \qquad z \sim \pi.

    The gradient is **biased**: it replaces the differences of f = log w between states by its derivative at the drawn
    one. It is exact where f is linear in z. It has no temperature and no noise beyond the draw. `ReinMaxELBO` costs the
    same and is also exact where f is quadratic; `REINFORCE` has no bias. The value is unbiased for the ELBO.

    Args:
        num_particles: K.

    Raises:
        TypeError: If a latent is neither bits nor one-hot nor reparameterised, or none is bits or one-hot.

    Reference:
        Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation (Bengio, Leonard &
        Courville, 2013), https://arxiv.org/abs/1308.3432

    Example:
        >>> StraightThroughELBO(4)
        StraightThroughELBO(num_particles=4)
    """

    def _smooth(self, states: States, z: Tensor) -> Tensor:
        return states.mean


@dataclass(frozen=True)
class ReinMaxELBO(_RelaxedELBO):
    r"""The ELBO of bits and one-hot vectors, with the straight-through gradient of second order (ReinMax).

    .. math::
        \frac{\partial z}{\partial \ell} := 2 J\Big(\frac{\pi_T + D}{2}\Big) - \frac12 J(\pi), \qquad
        D \sim \pi = \mathrm{softmax}(\ell), \quad \pi_T = \mathrm{softmax}(\ell / T).

    At T = 1 its expectation is the exact gradient with each difference of f = log w between two states of a site
    replaced by the trapezoid of its derivatives at both (Heun's method). So it is **exact where f is quadratic in each
    site's block**, with any coupling between sites, for bits and for classes. It is **biased** else, and at any other T
    also there. A larger T has less noise. It costs as much as `StraightThroughELBO`. The value is unbiased for the
    ELBO.

    Args:
        num_particles: K.
        temperature: T, at least 1.

    Raises:
        ValueError: If the temperature is below 1.
        TypeError: If a latent is neither bits nor one-hot nor reparameterised, or none is bits or one-hot.

    Reference:
        Bridging Discrete and Backpropagation: Straight-Through and Beyond (Liu, Dong, Liu, Yu & Gao, 2023),
        https://arxiv.org/abs/2304.08612

    Example:
        >>> ReinMaxELBO(4)
        ReinMaxELBO(num_particles=4, temperature=1.0)
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if check_positive(self.temperature, f"{owner(self)}: temperature") < 1:
            raise ValueError(
                f"{owner(self)}: temperature is {self.temperature}; expected 1 (second order) or more (less noise); "
                "use GumbelSoftmaxELBO for one below 1"
            )

    def _smooth(self, states: States, z: Tensor) -> Tensor:
        middle = (states._relaxed(states.logits / self.temperature) + z) / 2
        return 2 * slope(states, middle) - 0.5 * slope(states, states.mean)


@dataclass(frozen=True)
class GumbelSoftmaxELBO(_RelaxedELBO):
    r"""The ELBO of bits and one-hot vectors, with gradients through relaxed draws of temperature T.

    .. math::
        \tilde z = \mathrm{softmax}((\log \pi + g) / T), \quad g \text{ Gumbel}, \qquad
        z = \mathrm{onehot}(\arg\max(\log \pi + g)),

    and for bits :math:`\sigma((\ell + \epsilon) / T)` with logistic noise. p and q see exact draws of the discrete z,
    so the **value** is an unbiased estimate of the ELBO. The **gradient** passes straight through to the relaxed draw
    and is **biased** for every T: a small T has less bias and more noise. For a bound over latents that are themselves
    relaxed, use a relaxed prior and posterior (`posteriors.GumbelSoftmax`).

    Args:
        num_particles: K.
        temperature: T.

    Raises:
        ValueError: If the temperature is not positive.
        TypeError: If a latent is neither bits nor one-hot nor reparameterised, or none is bits or one-hot.

    Reference:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), https://arxiv.org/abs/1611.01144; The
        Concrete Distribution (Maddison et al., 2017), https://arxiv.org/abs/1611.00712

    Example:
        >>> GumbelSoftmaxELBO(4, temperature=0.5)
        GumbelSoftmaxELBO(num_particles=4, temperature=0.5)
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.temperature, f"{owner(self)}: temperature")

    def _draw(self, states: States) -> Tensor:
        states.temperature = states.logits.new_tensor(self.temperature)
        return states.rsample()


@dataclass(frozen=True)
class GumbelRaoELBO(GumbelSoftmaxELBO):
    r"""`GumbelSoftmaxELBO` with its gradient averaged over noise that gives the same draw (Gumbel-Rao).

    .. math::
        \frac{\partial z}{\partial \ell} := \frac1M \sum_{m=1}^M \frac1T
        J\Big(\mathrm{softmax}\Big(\frac{\ell + g_m}{T}\Big)\Big), \qquad g_m \sim p(g \,|\, D),

    for the draw D. With :math:`\pi` normalised and Gumbel noise :math:`e`, the noisy logits given D = j are
    :math:`e_j` for class j and :math:`-\log(\exp(-e_i) / \pi_i + \exp(-e_j))` for the others. For a bit they are
    :math:`\pm \log(1 + \exp(\log(1 + e^{\pm\ell}) + \epsilon))` with logistic noise.

    By the Rao-Blackwell theorem its **expectation is that of `GumbelSoftmaxELBO`, and so is its bias**, and its
    variance is not larger; with M = 1 the law is the same. The derivative holds the noise fixed, as `GumbelSoftmaxELBO`
    does; the theorem needs this. M costs no further passes of p and q, only M relaxed states.

    Args:
        num_particles: K.
        temperature: T. As the noise of a small T is averaged away, T can be lower than without averaging.
        inner: M.

    Raises:
        ValueError: If the temperature is not positive.
        TypeError: If a latent is neither bits nor one-hot nor reparameterised, or none is bits or one-hot.

    Reference:
        Rao-Blackwellizing the Straight-Through Gumbel-Softmax Gradient Estimator (Paulus, Maddison & Krause, 2020),
        https://arxiv.org/abs/2010.04838

    Example:
        >>> GumbelRaoELBO(4, inner=32)
        GumbelRaoELBO(num_particles=4, temperature=0.5, inner=32)
    """

    inner: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_int(self.inner, f"{owner(self)}: inner")

    _draw = _RelaxedELBO._draw

    def _smooth(self, states: States, z: Tensor) -> Tensor:
        with torch.no_grad():
            noisy = noisy_given(states, z, self.inner)
        return slope(states, states._relaxed(noisy / self.temperature)).mean(0) / self.temperature


class _Relaxed(Messenger):
    """A handler that draws discrete latents with a gradient; it lies outside the trace's handler."""

    def __init__(self, objective: _RelaxedELBO) -> None:
        super().__init__()
        self.objective = objective

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        if (states := states_of(msg["fn"])) is not None:
            msg["value"], msg["done"] = self.objective._draw(states), True
        elif not msg["fn"].has_rsample:
            raise _refusal(self.objective, msg["name"], msg["fn"])


def _refusal(objective: object, name: str, fn: Any) -> TypeError:  # a ValueError would get all shapes from Pyro
    return TypeError(
        f"{owner(objective)} relaxes bits and one-hot vectors, and q at site {name!r} is {describe(fn)}; "
        "use REINFORCE or VIMCO"
    )
