r"""Likelihoods p(x|z): callables ``likelihood(z)`` that return a Pyro distribution over one datum.

``likelihood(z)``, in a conditional model ``likelihood(z, y)``, has batch shape ``z.shape[:-1]`` and the event shape of
one datum. Each class states how many parameters it needs per dimension of x. It takes a network, or a factory of
networks, that computes them from z.
"""

from ppl_vae.likelihoods.bernoulli import Bernoulli, Binomial, ContinuousBernoulli
from ppl_vae.likelihoods.beta import Beta
from ppl_vae.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from ppl_vae.likelihoods.grid import Categorical, DiscretizedLogistic, DiscretizedLogisticMixture
from ppl_vae.likelihoods.location_scale import Laplace, StudentT
from ppl_vae.likelihoods.mixed import Mixed
from ppl_vae.likelihoods.normal import Normal, OptimalSigmaNormal
from ppl_vae.likelihoods.protocol import Likelihood

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Laplace",
    "Likelihood",
    "Mixed",
    "NegativeBinomial",
    "Normal",
    "OptimalSigmaNormal",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]
