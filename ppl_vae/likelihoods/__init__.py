r"""Likelihoods p(x|z): callables ``likelihood(z)`` that return a Pyro distribution over one datum.

``likelihood(z)``, in a conditional model ``likelihood(z, y)``, has batch shape ``z.shape[:-1]`` and the event shape of
one datum. Each class says how many parameters it needs per dimension of x and takes a network, or a factory of
networks, that computes them from z.
"""

from ppl_vae.likelihoods.bernoulli import Bernoulli
from ppl_vae.likelihoods.normal import Normal
from ppl_vae.likelihoods.protocol import Likelihood

__all__ = ["Bernoulli", "Likelihood", "Normal"]
