r"""Posteriors q(z|x): callables ``posterior(x)`` that return a Pyro distribution over z.

``posterior(x)``, in a conditional model ``posterior(x, y)``, has batch shape ``(batch,)`` and event shape
``(latent,)``.
"""

from ppl_vae.posteriors.discrete import BernoulliVector, GumbelSoftmax, OneHotCategorical, RelaxedBernoulliVector
from ppl_vae.posteriors.flows import CouplingFlow, InverseAutoregressiveFlow, PlanarFlow, SplineFlow
from ppl_vae.posteriors.hierarchical import Ladder, TwoLevel
from ppl_vae.posteriors.mean_and_scale import DiagonalNormal, Laplace, SquashedNormal
from ppl_vae.posteriors.normal import FullCovarianceNormal, LowRankNormal, MixtureOfNormals
from ppl_vae.posteriors.protocol import Posterior
from ppl_vae.posteriors.sphere import PowerSpherical, VonMisesFisher

__all__ = [
    "BernoulliVector",
    "CouplingFlow",
    "DiagonalNormal",
    "FullCovarianceNormal",
    "GumbelSoftmax",
    "InverseAutoregressiveFlow",
    "Ladder",
    "Laplace",
    "LowRankNormal",
    "MixtureOfNormals",
    "OneHotCategorical",
    "PlanarFlow",
    "Posterior",
    "PowerSpherical",
    "RelaxedBernoulliVector",
    "SplineFlow",
    "SquashedNormal",
    "TwoLevel",
    "VonMisesFisher",
]
