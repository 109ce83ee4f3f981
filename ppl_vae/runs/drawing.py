"""The pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppl_vae import plots
from ppl_vae._scopes import seeded
from ppl_vae.data import Dataset, Split
from ppl_vae.data.streams import Stream
from ppl_vae.plots.figure import about
from ppl_vae.plots.latent import MOST_CLASSES, names_of, plane
from ppl_vae.training import Run
from ppl_vae.vae import VAE

_SHOWN = 32  # images in a picture of reconstructions
_TILES = 20  # on either side of a picture of the latent plane
_PRIOR = 10_000  # draws of the prior that say how far the latent plane reaches


def draw(run: Run, path: str | Path) -> list[Path]:
    """Draw a run's pictures into a folder and return their paths.

    Every program gets training curves. A `VAE` of images also gets reconstructions beside their inputs, and samples
    from the prior; with a 2-D latent and no conditions, the decoded latent plane too. Every `VAE` with a 2-D latent
    gets the means of q(z|x) of the test data (else of the validation or training data), coloured by label where there
    are no more labels than can be told apart. Both pictures of the plane then have the same axes, over 99% of these
    means and of the prior.
    """
    path = Path(path)
    figures: dict[str, Any] = {}

    def foot(of: str = "") -> str | None:
        return about(path.absolute().name, f"{run.data.name}{of}", run.caveat)

    if run.history:
        both = ", train and validation" if len(run.data.validation) else ", train"
        figures["training_curves"] = plots.training_curves(run.history, caveat=foot(both))
    vae = run.program
    if isinstance(vae, VAE):
        part, split = shown_part(run.data)
        whole, of_part = foot(), foot(f", {part}")
        if run.data.is_image:
            columns = first_images(split)
            figures["reconstructions"] = plots.reconstructions(
                as_images(columns[0]), as_images(vae.reconstruct(*columns)), caveat=of_part
            )
            y = example_conditions(vae, split, 100)
            figures["samples"] = plots.samples(as_images(vae.sample(100, y=y)), mean=True, caveat=whole)
        if vae.latent_shape == (2,):
            means = torch.cat([vae.encode(*batch) for batch in split.batches(min(1000, len(split)), device=run.device)])
            labels = split.labels if split.labels is None or len(split.labels.unique()) <= MOST_CLASSES else None
            more: dict[str, Any] = {"caveat": of_part, "class_names": None if labels is None else names_of(split)}
            if run.data.is_image and vae.y_shape is None and means.isfinite().all():  # a grid is of one condition
                points = _plane(vae, means)
                images = as_images(vae.decode(points.reshape(-1, 2)))
                figures["latent_grid"] = plots.latent_grid(images, points=points, caveat=whole)
                more["limits"] = figures["latent_grid"].axes[0].get_xlim()
            figures["latent_scatter"] = plots.latent_scatter(means.cpu(), labels, **more)
    return [plots.save(figure, path / f"{name}.png") for name, figure in figures.items()]


def shown_part(data: Dataset) -> tuple[str, Split]:
    """Return what pictures show of the data, with its name: test, else validation, else training data.

    The first batch of a stream stands for it.
    """
    name = next((name for name in ("test", "validation") if len(getattr(data, name))), "train")
    part = getattr(data, name)
    return name, part.head(len(part.columns[0])) if isinstance(part, Stream) else part


@torch.no_grad()
def _plane(vae: VAE, means: torch.Tensor) -> torch.Tensor:
    """Return a square grid of z over 99% of the means and of the prior, (20, 20, 2)."""
    with seeded(0):
        drawn = vae.p_z().sample((_PRIOR,))
    ends = np.stack([plane(z[z.isfinite().all(1)].double().cpu().numpy()) for z in (means, drawn)])  # (2, 2, 2)
    low, high = float(ends.min()), float(ends.max())
    step = (high - low) / _TILES or 0.1  # all in one place, if the posterior and the prior are
    z = low + (torch.arange(_TILES, device=means.device, dtype=means.dtype) + 0.5) * step
    return torch.stack(torch.meshgrid(z, z, indexing="ij"), -1)


def first_images(split: Split) -> tuple[torch.Tensor, ...]:
    """Return the columns of the first images of a split, as many as a picture shows."""
    return split.head(_SHOWN).first(_SHOWN)


def labels_in_turn(size: int, num_labels: int) -> torch.Tensor:
    """Return the labels to draw examples under, (size,): ten of each in turn, which fill a row of a picture."""
    return torch.arange(size) // 10 % num_labels


def example_conditions(vae: VAE, split: Split, size: int) -> torch.Tensor | None:
    """Return conditions to draw examples under, (size, k), or None for a model without conditions.

    One-hot labels come in turn, ten of each. Other conditions are those of the first data.
    """
    if vae.y_shape is None:
        return None
    (k,) = vae.y_shape
    y = next(split.batches(min(size, len(split))))[1]
    if bool(((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all()):
        return torch.eye(k)[labels_in_turn(size, k)].to(y)
    return y.repeat(-(-size // len(y)), 1)[:size]


def as_images(x: torch.Tensor) -> torch.Tensor:
    """Return images on the CPU, (n, channels, height, width)."""
    x = x.detach().cpu()
    return x.unsqueeze(1) if x.dim() == 3 else x


def decoded_grid(vae: VAE, run: Run) -> torch.Tensor:
    """Decode the article's 20 x 20 grid of z: (400, channels, height, width)."""
    return as_images(vae.decode(plots.grid_points().reshape(-1, 2).to(run.device)))


def one_image(grid: torch.Tensor) -> torch.Tensor:
    """Return the decoded grid as one image (channels, 20 * height, 20 * width), clamped to [0, 1] for display.

    z1 is to the right and z2 upwards, as in all pictures.
    """
    _, c, h, w = grid.shape
    upright = grid.clamp(0, 1).reshape(20, 20, c, h, w).transpose(0, 1).flip(0)  # z2 down, z1 across
    return upright.permute(2, 0, 3, 1, 4).reshape(c, 20 * h, 20 * w)
