r"""Priors p(z): callables ``prior()`` that return a Pyro distribution with batch shape () and event shape (latent,).

One that takes a condition, ``prior(y)``, returns batch shape (batch,) for y of shape (batch, k).
"""

from ppl_vae.priors.normal import StandardNormal
from ppl_vae.priors.protocol import Prior

__all__ = ["Prior", "StandardNormal"]
