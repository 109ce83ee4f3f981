"""Evaluation of a model: log p(x), the gap of the bound and its causes, and the quality of the latent code.

`evaluate` runs all of it for a `VAE`. `log_evidence` gives log p(x) by the best method that a model allows; the methods
themselves are in `ppl_vae.evidence`. The other measures have a module each: `elbo`, `gaps`, `true_posterior`,
`diagnostics`, `surgery`, `bits`, `practical`. `bootstrap` gives intervals over data.
"""

from ppl_vae import evidence
from ppl_vae._team import Team
from ppl_vae.evaluation.bits import bits_per_dim
from ppl_vae.evaluation.bootstrap import Interval, difference, interval
from ppl_vae.evaluation.diagnostics import LatentUse, kl_per_dimension, latent_use
from ppl_vae.evaluation.elbo import Bound, elbo, gauss_hermite_elbo, monte_carlo_elbo
from ppl_vae.evaluation.figures import Evaluation
from ppl_vae.evaluation.gaps import Gaps, gaps
from ppl_vae.evaluation.imputation import Imputation, impute
from ppl_vae.evaluation.practical import knn_accuracy
from ppl_vae.evaluation.report import evaluate
from ppl_vae.evaluation.surgery import AggregatePosterior, Surgery, aggregate_posterior, surgery
from ppl_vae.evaluation.table_errors import column_errors
from ppl_vae.evaluation.true_posterior import kl_to_posterior, log_posterior_grid, posterior_moments
from ppl_vae.evidence import *  # noqa: F403 - log p(x) and its methods are found here too

__all__ = [
    "AggregatePosterior",
    "Bound",
    "Evaluation",
    "Gaps",
    "Imputation",
    "Interval",
    "LatentUse",
    "Surgery",
    "Team",
    "aggregate_posterior",
    "bits_per_dim",
    "column_errors",
    "difference",
    "elbo",
    "evaluate",
    "gaps",
    "gauss_hermite_elbo",
    "impute",
    "interval",
    "kl_per_dimension",
    "kl_to_posterior",
    "knn_accuracy",
    "latent_use",
    "log_posterior_grid",
    "monte_carlo_elbo",
    "posterior_moments",
    "surgery",
]
__all__ += evidence.__all__
