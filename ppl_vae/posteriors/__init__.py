r"""Posteriors q(z|x): callables ``posterior(x)`` that return a Pyro distribution over z.

``posterior(x)``, in a conditional model ``posterior(x, y)``, has batch shape ``(batch,)``, event shape ``(latent,)``.
"""

from ppl_vae.posteriors.normal import DiagonalNormal
from ppl_vae.posteriors.protocol import Posterior

__all__ = ["DiagonalNormal", "Posterior"]
