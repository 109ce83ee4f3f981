r"""Likelihoods with a location and a scale: their base class, and those with heavier tails than the normal.

With heavier tails a few bad pixels do not pull the location.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._numbers import inverse_softplus
from ppl_vae._validation import check_choice, check_positive
from ppl_vae.distributions.student_t import StudentT as StudentTDensity
from ppl_vae.likelihoods.protocol import _Pixels
from ppl_vae.networks import Binding, NetworkFactory, ParameterNetwork

Learn = Literal["fixed", "global", "pixel", "datum"]


class LocationScale(_Pixels):
    r"""A location from a network, and a scale that is fixed, learned (one, or one per pixel) or computed from z.

    A learned scale is :math:`s = \text{floor} + \log(1 + e^r)`, where r is a parameter, or the network's second output
    plus a constant. It starts at `scale` (with ``learn="datum"``: where the network gives 0).

    Args:
        network: Maps z to one value per dimension of x, with ``learn="datum"`` to two; ``MLP()`` by default.
        scale: The scale; the initial value if it is learned.
        learn: Where the scale comes from.
        floor: The smallest learned scale.
        start_from_data: Start the location at the mean of the training data.

    Raises:
        ValueError: If an argument is out of range.
    """

    _density: Callable[..., Any]  # the distribution of the entries, from location and scale

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        scale: float = 1.0,
        learn: Learn = "fixed",
        floor: float = 1e-3,
        start_from_data: bool = False,
    ) -> None:
        super().__init__(start_from_data)
        self.scale = check_positive(scale, f"{self.owner}: scale")
        check_choice(learn, get_args(Learn), f"{self.owner}: learn")
        self.learn = learn
        self.floor = check_positive(floor, f"{self.owner}: floor")
        if learn != "fixed" and self.scale <= self.floor:
            raise ValueError(
                f"{self.owner}: scale is {scale!r}, which is not above the floor {floor!r} of a learned scale; start "
                "above it, or lower the floor"
            )
        self.mean = ParameterNetwork(network, self.owner, count=2 if learn == "datum" else 1)
        self._raw_start = 0.0 if learn == "fixed" else inverse_softplus(self.scale - self.floor)
        self.raw_scale: nn.Parameter | None = None
        if learn == "global":
            self.raw_scale = nn.Parameter(torch.tensor(self._raw_start))

    def bind(self, binding: Binding) -> None:
        """Size the network and the scale, and start from the data if asked to."""
        super().bind(binding)
        if self.learn == "pixel" and self.raw_scale is None:
            like = next(self.mean.parameters(), torch.empty(0))
            self.raw_scale = nn.Parameter(like.new_full(binding.x_shape, self._raw_start))

    def _pixels(self, location: Tensor, *raw: Tensor) -> Any:
        return self._density(location, self._scale(location, *raw))

    def _scale(self, location: Tensor, *raw: Tensor) -> Tensor:
        """Return the scale, of the location's shape, from the network's other output if it has one."""
        if self.learn == "fixed":
            return torch.full_like(location, self.scale)
        if self.learn == "datum":
            return softplus(raw[0] + self._raw_start) + self.floor
        if self.raw_scale is None:
            raise RuntimeError(f"{self.owner} has no sizes yet: put it into a VAE")
        return (softplus(self.raw_scale) + self.floor).expand_as(location)


class Laplace(LocationScale):
    r"""Independent Laplace pixels: the absolute error, as a likelihood.

    .. math::
        \log p(x|z) = -\sum_i \frac{|x_i - \mu_i(z)|}{b_i} + \log(2 b_i).

    The location is the median. It follows the majority of the values that x may take at this z, so edges come out
    sharper than under a normal. The gradient in the location is :math:`\pm 1/b` however small the error is, so training
    jitters at a large learning rate where the data are matched exactly. The density is wrong for data on a grid (8-bit
    pixels), and a learned scale has a floor: see `Normal` for both.

    Args:
        network: Maps z to one location per dimension of x, with ``learn="datum"`` to a scale as well; ``MLP()`` by
            default.
        scale: The scale b, in units of x; the initial value if it is learned. The standard deviation is b times the
            root of 2.
        learn: ``"fixed"``, ``"global"``, ``"pixel"`` or ``"datum"``, as for `Normal`.
        floor: The smallest learned b, in units of x.
        start_from_data: Start the location at the mean of the training data.

    Raises:
        ValueError: As for `Normal`.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Example:
        >>> likelihood = Laplace(nn.Linear(2, 64), scale=0.5)
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.zeros(5, 64)).shape
        torch.Size([5])
    """

    def _density(self, location: Tensor, scale: Tensor) -> Any:
        return dist.Laplace(location, scale)


class StudentT(LocationScale):
    r"""Independent Student-t pixels.

    .. math::
        \log p(x|z) = \sum_i \log \frac{\Gamma(\frac{\nu + 1}2)}{\Gamma(\frac\nu2) \sqrt{\pi\nu} \, s_i}
        - \frac{\nu + 1}2 \log\Big(1 + \frac{(x_i - \mu_i(z))^2}{\nu s_i^2}\Big).

    An error far beyond :math:`\sqrt\nu s` costs only its logarithm, and its gradient falls off: outliers are ignored.
    While the scale is much too small everything else is ignored too, and training stands still: begin with a `scale` of
    the size of the data's, or learn it. The density is wrong for data on a grid (8-bit pixels), and a learned scale has
    a floor: see `Normal` for both. The scale is not the standard deviation, which is :math:`s\sqrt{\nu/(\nu - 2)}` for
    :math:`\nu > 2` and infinite below.

    Args:
        network: Maps z to one location per dimension of x, with ``learn="datum"`` to a scale as well; ``MLP()`` by
            default.
        df: The degrees of freedom :math:`\nu`, above 1, so that there is a mean to show.
        scale: The scale s, in units of x; the initial value if it is learned.
        learn: ``"fixed"``, ``"global"``, ``"pixel"`` or ``"datum"``, as for `Normal`.
        floor: The smallest learned s, in units of x.
        start_from_data: Start the location at the mean of the training data.

    Raises:
        ValueError: As for `Normal`, and for `df` not above 1.

    Reference:
        Student-t Variational Autoencoder for Robust Density Estimation (Takahashi et al., 2018),
        https://www.ijcai.org/proceedings/2018/374

    Example:
        >>> likelihood = StudentT(nn.Linear(2, 64), df=3.0)
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.full((5, 64), 1e30)).isfinite().all()
        tensor(True)
    """

    def __init__(
        self,
        network: NetworkFactory | nn.Module | None = None,
        df: float = 4.0,
        scale: float = 1.0,
        learn: Learn = "fixed",
        floor: float = 1e-3,
        start_from_data: bool = False,
    ) -> None:
        super().__init__(network, scale, learn, floor, start_from_data)
        self.df = check_positive(df, f"{self.owner}: df")
        if self.df <= 1:
            raise ValueError(f"{self.owner}: df is {df!r}, for which there is no mean to draw; expected more than 1")

    def _density(self, location: Tensor, scale: Tensor) -> Any:
        return StudentTDensity(self.df, location, scale)
