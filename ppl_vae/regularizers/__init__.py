"""Regularizers: penalties beside an objective that is maximised, outside of its logarithm.

`objectives.Regularized` joins the two.

``fit(..., regularizer=KLWeight(4.0))`` and ``ppl-vae train --regularizer KLWeight --regularizer.beta 4`` do so too. A
regularizer is a callable from `objectives.LogWeights` to an `objectives.Penalty`; your own inherits nothing.
"""

from ppl_vae.regularizers.aggregate import InfoVAE, TotalCorrelation
from ppl_vae.regularizers.kl import Capacity, FreeBits, KLWeight
from ppl_vae.regularizers.schedule import Schedule

__all__ = ["Capacity", "FreeBits", "InfoVAE", "KLWeight", "Schedule", "TotalCorrelation"]
