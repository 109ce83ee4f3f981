r"""Priors p(z): callables ``prior()`` that return a Pyro distribution with batch shape () and event shape (latent,).

A conditional prior, ``prior(y)``, returns batch shape (batch,) for y of shape (batch, k).
"""

from ppl_vae.priors.discrete import BernoulliVector, OneHotCategorical, RelaxedBernoulliVector, RelaxedOneHotCategorical
from ppl_vae.priors.flows import CouplingFlow, MaskedAutoregressiveFlow, SplineFlow
from ppl_vae.priors.hierarchical import Ladder, TwoLevel
from ppl_vae.priors.independent import DiagonalNormal, Laplace, StandardNormal, StudentT
from ppl_vae.priors.mixtures import MixtureOfNormals
from ppl_vae.priors.protocol import Prior
from ppl_vae.priors.uniform import HypersphericalUniform, Uniform
from ppl_vae.priors.vamp import VampPrior

__all__ = [
    "BernoulliVector",
    "CouplingFlow",
    "DiagonalNormal",
    "HypersphericalUniform",
    "Ladder",
    "Laplace",
    "MaskedAutoregressiveFlow",
    "MixtureOfNormals",
    "OneHotCategorical",
    "Prior",
    "RelaxedBernoulliVector",
    "RelaxedOneHotCategorical",
    "SplineFlow",
    "StandardNormal",
    "StudentT",
    "TwoLevel",
    "Uniform",
    "VampPrior",
]
