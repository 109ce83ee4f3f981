"""Regularizers: penalties subtracted from an objective, outside its logarithm.

`objectives.Regularized` joins an objective and a regularizer. So do ``fit(..., regularizer=KLWeight(4.0))`` and
``ppl-vae train --regularizer KLWeight --regularizer.beta 4``. A regularizer is a callable from `objectives.LogWeights`
to an `objectives.Penalty`; your own need not inherit from any class.
"""

from ppl_vae.regularizers.aggregate import InfoVAE, TotalCorrelation
from ppl_vae.regularizers.kl import Capacity, FreeBits, KLWeight
from ppl_vae.regularizers.labels import LabelLikelihood
from ppl_vae.regularizers.schedule import Schedule

__all__ = ["Capacity", "FreeBits", "InfoVAE", "KLWeight", "LabelLikelihood", "Schedule", "TotalCorrelation"]
