r"""Exact log p(x) by adaptive quadrature over a latent space of one to three dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_vae._home import at_home
from ppl_vae._scopes import seeded
from ppl_vae._validation import check_positive, check_positive_int, check_rows
from ppl_vae.evidence.adaptive import Integral
from ppl_vae.evidence.densities import VAEDensities
from ppl_vae.evidence.results import Evidence

if TYPE_CHECKING:
    from jaxtyping import Float

_BYTES_PER_DATUM = 50_000  # of its pairs with cells, before any is finished


@at_home("x", float64=True)
def quadrature(
    densities: VAEDensities,
    x: Float[Tensor, " n *x_shape"],
    *,
    tolerance: float = 1e-3,
    max_latents: int = 5_000_000,
    max_bytes: int = 2**30,
    seed: int = 0,
) -> Evidence:
    r"""Return the exact log evidence of each datum, by adaptive quadrature over z, with a measured error.

    .. math::
        \log p(x) = \log \sum_c \int_c e^{f_x(z)} p(z) \, dz, \qquad f_x(z) = \log p(x|z),

    over cells c. Each datum's cells are halved until halving changes nothing. A decoder bends over distances many times
    the width of a posterior. So a polynomial interpolates each :math:`f_x` on a cell from few decoded nodes, which all
    data share, and its exponential is integrated on more nodes, which cost no decoding. The parabola around a peak
    between the nodes finds the peak.

    **Wrong** where :math:`f_x` has structure narrower than the distance of the first nodes (0.06 scales of the prior in
    two dimensions) that leaves no trace at any of them; a spike at the mean of q(z|x) is searched for separately.
    **Slow** for more than two dimensions (cells grow as :math:`2^d`), for likelihoods other than Bernoulli and Normal
    (every pair of datum and latent is scored singly), and for decoders with kinks (ReLU), where the interpolant
    converges with the square of the cell's size. In float32, rounding limits the error to about 1e-4 nats; use a model
    in float64 for less.

    `error` is a bound per datum that adds up the following entries of `details`:

    - ``"change_on_halving"``: the change of the integral when each cell that holds mass was halved for the last time.
      The result uses the halved cells' value, which for a smooth prior is far better than this. (Edges of a prior's
      support that the support does not declare cut through cells, where a change may be small by chance. There the
      mass between the edge and the nodes is added.)
    - ``"dropped"``: the most that cells which were not halved any more may hold: their integral times the exponential
      of its doubt, which comes from the interpolant's coefficients (`interpolation.CellRule`).
    - ``"mass_beyond"``: the prior's mass beyond the outermost cells, if no latent there explains x better than the best
      node anywhere (or, more than three shells out, than the best node of the last shell).
    - ``"rounding"``: twice the largest change on 32 data's best cells when all is computed in float64 instead.

    An error above `tolerance` means that `max_latents` or the depth ran out, or that the rounding is too large. The
    error is infinite where the prior itself is not resolved (``"prior_mass"`` is not 1 within 1%).

    Args:
        densities: The model; its latent must have at most three dimensions.
        x: Data.
        tolerance: The error aimed at, nats per datum.
        max_latents: Stop halving once so many latents have been decoded. The count starts anew for each block of data
            that fits into `max_bytes` (some 20,000 data by default).
        max_bytes: About how much memory to use beyond the data and the model.
        seed: The seed of the draws from the prior that give its scale; the global random state is left alone.

    Returns:
        Evidence of kind ``"exact"``, method ``"quadrature"``. Further details are numbers: ``"num_latents"``, the
        latents decoded; ``"num_scores"``, the pairs of a datum and a latent scored; and ``"prior_mass"``, the integral
        of the prior by the same rule.

    Raises:
        ValueError: If the latent has more than three dimensions, is discrete or lies on a sphere or simplex, or if a
            likelihood is NaN.

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(1), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> evidence = quadrature(VAEDensities(vae), vae.sample(3, mean=False))
        >>> evidence.log_evidence.shape, bool((evidence.error < 1e-3).all())
        (torch.Size([3]), True)
    """
    return integrate(densities, x, tolerance, max_latents, max_bytes, seed)[-1]


@torch.no_grad()
def integrate(
    densities: VAEDensities, x: Tensor, tolerance: float, max_latents: int, max_bytes: int, seed: int
) -> tuple[Tensor, Tensor, Evidence]:
    """Return the mean, (n, d), and covariance, (n, d, d), of p(z|x), and the evidence; arguments as in `quadrature`."""
    check_positive(tolerance, "tolerance")
    check_positive_int(max_latents, "max_latents")
    check_positive_int(max_bytes, "max_bytes")
    if not isinstance(densities, VAEDensities):
        raise TypeError(
            f"quadrature was given {type(densities).__name__}; it needs the densities of a VAE, whose latents belong "
            "to no datum: VAEDensities(vae)"
        )
    if densities.latent_dim > 3:
        raise ValueError(
            f"quadrature was given a latent of {densities.latent_dim} dimensions; expected at most 3: "
            "use importance sampling or annealing"
        )
    check_rows([x], "quadrature")
    parts, moments = [], []
    for block in x.split(max(100, max_bytes // _BYTES_PER_DATUM)):
        with seeded(seed):
            integral = Integral(densities, block, tolerance, max_latents, max_bytes)
            parts.append(integral.evidence())
            moments.append(integral.moments())
    mean, covariance = (torch.cat(part) for part in zip(*moments, strict=True))
    return mean, covariance, Evidence.joined(parts)
