r"""Likelihoods with heavier tails than the normal: a few bad pixels do not pull the mean."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae._validation import check_positive
from ppl_vae.distributions.student_t import StudentT as StudentTDensity
from ppl_vae.likelihoods.location_scale import Learn, LocationScale
from ppl_vae.networks import NetworkFactory


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
        >>> import torch
        >>> likelihood = Laplace(nn.Linear(2, 64), scale=0.5)
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.zeros(5, 64)).shape
        torch.Size([5])
    """

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return p(x|z), batch shape ``z.shape[:-1]``."""
        location, scale, event_dim = self.location_and_scale(z, y)
        return dist.Laplace(location, scale).to_event(event_dim)


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
        >>> import torch
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
        self.df = check_positive(df, "likelihood StudentT: df")
        if self.df <= 1:
            raise ValueError(
                f"likelihood StudentT: df is {df!r}, for which there is no mean to draw; expected more than 1"
            )

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return p(x|z), batch shape ``z.shape[:-1]``."""
        location, scale, event_dim = self.location_and_scale(z, y)
        return StudentTDensity(self.df, location, scale).to_event(event_dim)
