r"""Bits per dimension, where they are a code length."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ppl_vae._distributions import describe
from ppl_vae._home import at_home
from ppl_vae._validation import check_positive_int

if TYPE_CHECKING:
    from jaxtyping import Float


@at_home("x", program="likelihood", float64=True)
def bits_per_dim(
    log_evidence: Float[Tensor, " n"], x: Float[Tensor, " n *x_shape"], likelihood: Any, *, bins: int | None = None
) -> Float[Tensor, " n"]:
    r"""Return the code length of each datum in bits per dimension, and refuse figures that are no code length.

    .. math::
        -\frac{\log p(x)}{D \log 2} \text{ for discrete data}, \qquad
        -\frac{\log p(x)}{D \log 2} + \log_2 B \text{ for data dequantised to } [0, 1] \text{ from } B \text{ levels}.

    The density of (k + u) / B is B^D times the density of k + u. The integral of the latter over the unit cube at k is
    the probability of the levels k; hence the term log2 B. A likelihood of the levels themselves (discretised logistic,
    categorical, binomial: its support is the grid) is a probability already. It takes no such term, whatever the unit
    of x.

    A lower bound of log p(x) gives an upper bound of the bits. A density of data that were not dequantised is no code
    length: on a grid of values it can be driven to infinity, and its bits below zero. So the function refuses a
    continuous likelihood unless `bins` states that uniform noise of one level's width was added to integers. It also
    refuses data that visibly still lie on a grid. It cannot see whether other continuous data ever were levels, and
    relies on `bins` for that. With dequantised data the figure bounds the bits of the integers from above (Theis et
    al., section 3.1).

    Args:
        log_evidence: log p(x), nats.
        x: The data.
        likelihood: p(x|z) at any z, such as ``densities.likelihood(z)``; only its support is used.
        bins: B for dequantised data, 256 for `ppl_vae.data.load` (``dataset.bins``); None for discrete data.

    Returns:
        (n,), float64.

    Raises:
        ValueError: If the figure is no code length; the message gives the reason.

    Reference:
        A note on the evaluation of generative models (Theis, van den Oord & Bethge, 2015),
        https://arxiv.org/abs/1511.01844

    Example:
        >>> import torch
        >>> from pyro import distributions as dist
        >>> coin = dist.Bernoulli(torch.full((4,), 0.5)).to_event(1)
        >>> x = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
        >>> round(bits_per_dim(coin.log_prob(x), x, coin).item(), 6)
        1.0
    """
    size = math.prod(x.shape[1:])
    bits = -log_evidence.double() / (size * math.log(2))
    name, support = describe(likelihood), likelihood.support
    if support.is_discrete:
        if bins is not None:
            raise ValueError(
                f"bits_per_dim: bins is {bins} with the discrete likelihood {name}, which is none of "
                "dequantised data; leave it out"
            )
        if not bool(support.check(x).all()):
            raise ValueError(
                f"bits_per_dim: the data lie outside the support of {name}, whose value is then no likelihood and has "
                "no bits; binarise them, or choose a likelihood for such data"
            )
        return bits
    if bins is None:
        raise ValueError(
            f"bits_per_dim: {name} is a density, which is no code length (it changes with the unit of x); dequantise "
            "integer data, x = (k + u) / 256 with u uniform, train on that (dequantize=True), and give bins=256"
        )
    if check_positive_int(bins, "bits_per_dim: bins") < 2 or not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(
            f"bits_per_dim: data from {float(x.min()):.4g} to {float(x.max()):.4g} with bins={bins}; expected data "
            "dequantised to [0, 1] from at least 2 levels"
        )
    for steps in (bins, bins - 1):
        level = x.double() * steps
        if float(((level - level.round()).abs() < 1e-3).double().mean()) > 0.1:  # by chance 0.2%
            raise ValueError(
                f"bits_per_dim: most values lie on a grid of {steps} steps, so they were not dequantised, and the "
                f"density of {name} has no bound there; add uniform noise, x = (k + u) / {bins}, and train on that"
            )
    return bits + math.log2(bins)
