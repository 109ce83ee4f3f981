"""Objectives: estimates of log p(x) and of its gradient from per-datum log-weights, one family per file."""

from ppl_vae.objectives.annealed import DAIS
from ppl_vae.objectives.antithetic import ARM, DisARM, LocalDisARM
from ppl_vae.objectives.combined import CIWAE, JVI, MIWAE, PIWAE
from ppl_vae.objectives.controls import REBAR, RELAX, DoubleCV
from ppl_vae.objectives.enumeration import EnumeratedELBO
from ppl_vae.objectives.estimate import Estimate, Objective
from ppl_vae.objectives.gdreg import GDReG
from ppl_vae.objectives.importance import IWAE, IWAESTL, DReG
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.losses import as_loss
from ppl_vae.objectives.ovis import OVIS, OVISMC, VIMCOStar
from ppl_vae.objectives.pathwise import ELBO, STL, ArticleELBO, MeanFieldELBO
from ppl_vae.objectives.regularized import Penalty, Regularized, Regularizer
from ppl_vae.objectives.relaxed import GumbelRaoELBO, GumbelSoftmaxELBO, ReinMaxELBO, StraightThroughELBO
from ppl_vae.objectives.renyi import Renyi, RenyiDReG, VRMax
from ppl_vae.objectives.sampling import sample_log_weights
from ppl_vae.objectives.score_function import NVIL, REINFORCE, VIMCO
from ppl_vae.objectives.thermodynamic import TVO
from ppl_vae.objectives.traces import NotPerDatumError
from ppl_vae.objectives.upper import CUBO, EUBO
from ppl_vae.objectives.wake_sleep import RWS, RWSDReG

__all__ = [
    "ARM",
    "CIWAE",
    "CUBO",
    "DAIS",
    "ELBO",
    "EUBO",
    "IWAE",
    "IWAESTL",
    "JVI",
    "MIWAE",
    "NVIL",
    "OVIS",
    "OVISMC",
    "PIWAE",
    "REBAR",
    "REINFORCE",
    "RELAX",
    "RWS",
    "STL",
    "TVO",
    "VIMCO",
    "ArticleELBO",
    "DReG",
    "DisARM",
    "DoubleCV",
    "EnumeratedELBO",
    "Estimate",
    "GDReG",
    "GumbelRaoELBO",
    "GumbelSoftmaxELBO",
    "LocalDisARM",
    "LogWeights",
    "MeanFieldELBO",
    "NotPerDatumError",
    "Objective",
    "Penalty",
    "RWSDReG",
    "Regularized",
    "Regularizer",
    "ReinMaxELBO",
    "Renyi",
    "RenyiDReG",
    "StraightThroughELBO",
    "VIMCOStar",
    "VRMax",
    "as_loss",
    "sample_log_weights",
]
