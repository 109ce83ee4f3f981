"""The pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ppl_vae import plots
from ppl_vae.data import Split
from ppl_vae.data.streams import Stream
from ppl_vae.plots.latent import MOST_CLASSES
from ppl_vae.training import Run
from ppl_vae.vae import VAE

_SHOWN = 32  # images in a picture of reconstructions


def draw(run: Run, path: str | Path) -> list[Path]:
    """Draw a run's pictures into a folder and return their paths.

    Every program gets training curves. A `VAE` of images also gets reconstructions beside their inputs, and samples
    from the prior; with a 2-D latent and no conditions, it gets the article's grid too. Every `VAE` with a 2-D latent
    gets the means of q(z|x) of the test data (else of the validation or training data), coloured by label where there
    are no more labels than can be told apart.
    """
    path = Path(path)
    figures: dict[str, Any] = {}
    if run.history:
        figures["training_curves"] = plots.training_curves(run.history, caveat=run.caveat)
    vae = run.program
    if isinstance(vae, VAE):
        split = next((s for s in (run.data.test, run.data.validation) if len(s)), run.data.train)
        if isinstance(split, Stream):  # its first batch stands for it
            split = split.head(len(split.columns[0]))
        if run.data.is_image:
            columns = first_images(split)
            figures["reconstructions"] = plots.reconstructions(
                as_images(columns[0]), as_images(vae.reconstruct(*columns)), caveat=run.caveat
            )
            y = example_conditions(vae, split, 100)
            figures["samples"] = plots.samples(as_images(vae.sample(100, y=y)), caveat=run.caveat)
        if vae.latent_shape == (2,):
            if run.data.is_image and vae.y_shape is None:  # every condition would need a grid
                figures["latent_grid"] = plots.latent_grid(decoded_grid(vae, run), caveat=run.caveat)
            means = torch.cat([vae.encode(*batch) for batch in split.batches(min(1000, len(split)), device=run.device)])
            labels = split.labels if split.labels is None or len(split.labels.unique()) <= MOST_CLASSES else None
            figures["latent_scatter"] = plots.latent_scatter(means.cpu(), labels, caveat=run.caveat)
    return [plots.save(figure, path / f"{name}.png") for name, figure in figures.items()]


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
    """Return the decoded grid as one image (channels, 20 * height, 20 * width), clamped to [0, 1] for display."""
    _, c, h, w = grid.shape
    return grid.clamp(0, 1).reshape(20, 20, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, 20 * h, 20 * w)
