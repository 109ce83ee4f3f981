"""The pictures of the library, from tensors, arrays, lists and results of comparisons (never from a model).

Each drawing function returns a `matplotlib.figure.Figure` made without pyplot: nothing is shown, no backend
is chosen, no setting of matplotlib is changed, and no figure outlives the last reference to it. Show a figure
in a notebook by naming it, or write it with :func:`save`. The look is that of ``style.mplstyle`` beside this module,
except for settings that you have changed from matplotlib's defaults.

In every picture of a latent plane z1 is to the right and z2 upwards.

A ``caveat`` is a sentence in small print at the foot of the picture. It says what the reader must know and
cannot see, such as that grey values under a Bernoulli are not a likelihood. The pictures that runs, evaluations and
commands write begin it with the run, the data set and its split.

Example:
    >>> import torch
    >>> figure = image_grid(torch.rand(16, 1, 28, 28), title="noise")
    >>> figure.axes[0].get_title()
    'noise'
"""

from ppl_vae.plots.aggregate import aggregate_posterior
from ppl_vae.plots.curves import training_curves, training_race
from ppl_vae.plots.decoded_plane import grid_points, latent_grid
from ppl_vae.plots.estimator_costs import cost_of_precision, estimator_values
from ppl_vae.plots.evaluation import evidence_by_particles, evidence_histogram
from ppl_vae.plots.figure import save
from ppl_vae.plots.gaps import gaps_by_class
from ppl_vae.plots.gradients import bias_variance, signal_to_noise
from ppl_vae.plots.images import image_grid, interpolations, reconstructions, samples
from ppl_vae.plots.latent import latent_map, latent_scatter
from ppl_vae.plots.posterior_grids import posterior_close_ups
from ppl_vae.plots.rate_distortion import rate_distortion
from ppl_vae.plots.sweeps import sweep_results
from ppl_vae.plots.true_posterior import true_posteriors

__all__ = [
    "aggregate_posterior",
    "bias_variance",
    "cost_of_precision",
    "estimator_values",
    "evidence_by_particles",
    "evidence_histogram",
    "gaps_by_class",
    "grid_points",
    "image_grid",
    "interpolations",
    "latent_grid",
    "latent_map",
    "latent_scatter",
    "posterior_close_ups",
    "rate_distortion",
    "reconstructions",
    "samples",
    "save",
    "signal_to_noise",
    "sweep_results",
    "training_curves",
    "training_race",
    "true_posteriors",
]
