"""Every picture of the library, from plain tensors, arrays and lists (never from a model).

Each function returns a `matplotlib.figure.Figure` made without pyplot: nothing is shown, no backend is
chosen, no setting of matplotlib is changed, and no figure outlives the last reference to it. Show it in a
notebook by naming it, or write it with :func:`save`.

A ``caveat`` is a sentence written small at the foot of the picture, for what the reader must know and cannot
see, such as that grey values under a Bernoulli are no likelihood.

Example:
    >>> import torch
    >>> figure = image_grid(torch.rand(16, 1, 28, 28), title="noise")
    >>> figure.axes[0].get_title()
    'noise'
"""

from ppl_vae.plots.curves import training_curves
from ppl_vae.plots.figure import save
from ppl_vae.plots.images import image_grid, reconstructions, samples
from ppl_vae.plots.latent import grid_points, latent_grid, latent_scatter

__all__ = [
    "grid_points",
    "image_grid",
    "latent_grid",
    "latent_scatter",
    "reconstructions",
    "samples",
    "save",
    "training_curves",
]
