"""Objectives: estimates of log p(x) and of its gradient, from per-datum log-weights. One family a file."""

from ppl_vae.objectives.estimate import Estimate, Objective
from ppl_vae.objectives.log_weights import LogWeights, NotPerDatumError, sample_log_weights
from ppl_vae.objectives.losses import as_loss
from ppl_vae.objectives.pathwise import ELBO, ArticleELBO, MeanFieldELBO

__all__ = [
    "ELBO",
    "ArticleELBO",
    "Estimate",
    "LogWeights",
    "MeanFieldELBO",
    "NotPerDatumError",
    "Objective",
    "as_loss",
    "sample_log_weights",
]
