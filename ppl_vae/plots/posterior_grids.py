"""Log densities of true posteriors on grids of a 2-D latent: their masses, and where to draw close-ups."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from ppl_vae.plots.arguments import ArrayLike, to_array, to_points

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

MOST_VIEWS = 3
MASSES = {1: 1 - math.exp(-0.5), 2: 1 - math.exp(-2.0)}  # of a normal in the plane, within 1 and 2 standard deviations


def posterior_close_ups(
    log_posterior: Shaped[ArrayLike, "n S S"],
    extents: ArrayLike,
    q_mean: Shaped[ArrayLike, "n 2"],
    q_covariance: Shaped[ArrayLike, "n 2 2"],
    *,
    mass: float = 0.999,
    num_sigmas: float = 3.0,
) -> Float[np.ndarray, "n 2 4"]:
    r"""Return the close-ups of each datum for :func:`true_posteriors`: a square for p(z|x) and q(z|x), or one for each.

    The box of p(z|x) comes from the smallest set of cells that holds the share `mass` of the grid. It surrounds the
    connected part of this set with the most mass. The box of q(z|x) surrounds its ellipse of `num_sigmas` standard
    deviations. If one square around both boxes is at most five times the size of the smaller box, it is the only
    close-up. Otherwise each box has its own close-up. Look for other modes in the first view.

    Compute the log densities anew on the grids of the close-ups. **Wrong** where the grid misses mass: beyond its ends,
    or between nodes further apart than two standard deviations of the posterior.

    Args:
        log_posterior: log p(z|x), normalised or not, on a grid for each datum; first index z1.
        extents: First and last nodes, (left, right, bottom, top): (4,) or (n, 4).
        q_mean: Means of q(z|x).
        q_covariance: Covariances of q(z|x).
        mass: The share of the posterior's mass to show.
        num_sigmas: The number of standard deviations of q to show.

    Returns:
        Extents (left, right, bottom, top), float64. Where one square holds both, the second of a datum is
        NaN. Otherwise the first is that of p(z|x) and the second that of q(z|x).

    Raises:
        ValueError: If the shapes do not fit, a log density is NaN, or a share is not between 0 and 1.

    Example:
        >>> z = np.linspace(-4, 4, 801)
        >>> log_p = -0.5 * ((z[:, None] - 1) ** 2 + z**2) / 0.1**2
        >>> q = np.array([[1.0, 0.0], [-2.0, 0.0]]), np.eye(2)[None].repeat(2, 0) * 0.1**2
        >>> posterior_close_ups(np.stack([log_p, log_p]), [-4, 4, -4, 4], *q).round(1)  # 3.7 sigma hold 99.9%
        array([[[ 0.6,  1.4, -0.4,  0.4],
                [ nan,  nan,  nan,  nan]],
        <BLANKLINE>
               [[ 0.6,  1.4, -0.4,  0.4],
                [-2.3, -1.7, -0.3,  0.3]]])
    """
    name = "posterior_close_ups"
    if not 0 < mass < 1 or not 0 < num_sigmas < math.inf:
        raise ValueError(
            f"{name}: mass is {mass} and num_sigmas {num_sigmas}; expected a share below 1 and a number above 0"
        )
    count, given = len(to_array(log_posterior, f"{name}: log_posterior")), to_array(extents, f"{name}: extents")
    grids, boxes = to_views(log_posterior, np.tile(given, (count, 1)) if given.ndim == 1 else given, count, name)
    mean, covariance = to_normals(q_mean, q_covariance, count, name)
    close_ups = np.full((count, 2, 4), np.nan)
    for i, (grid, box) in enumerate(zip(grids[:, 0], boxes[:, 0], strict=True)):
        of_p = _main_mode(grid, box, mass)
        reach = num_sigmas * np.sqrt(np.diagonal(covariance[i]))
        of_q = np.stack([mean[i] - reach, mean[i] + reach], -1)  # (2, 2)
        both = np.stack([np.minimum(of_p, of_q)[:, 0], np.maximum(of_p, of_q)[:, 1]], -1)
        sizes = [np.diff(sides).max() for sides in (of_p, of_q, both)]
        chosen = [both] if sizes[2] <= 5 * min(sizes[:2]) else [of_p, of_q]
        for v, sides in enumerate(chosen):
            half = 0.55 * np.diff(sides).max()
            close_ups[i, v] = (sides.mean(1, keepdims=True) + [-half, half]).ravel()
    return close_ups


def _main_mode(grid: np.ndarray, box: np.ndarray, share: float) -> np.ndarray:
    """Return the sides, (2, 2), of the connected part with the most mass among the densest cells with this share."""
    masses = np.exp(grid - grid.max())
    parts, num_parts = ndimage.label(grid >= _level(grid, masses, share), np.ones((3, 3)))
    heaviest = 1 + int(np.argmax(ndimage.sum_labels(masses, parts, range(1, num_parts + 1))))
    slices = ndimage.find_objects(parts)[heaviest - 1]
    low, high = box.reshape(2, 2).T[..., None]  # (2, 1) each
    ends = np.array([(part.start, part.stop) for part in slices])
    return low + (high - low) / (len(grid) - 1) * (ends - 0.5)


def to_views(log_posterior: ArrayLike, extents: ArrayLike, n: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return grids (n, V, S, S) and extents (n, V, 4)."""
    grids, boxes = (to_array(v, f"{name}: {w}") for v, w in ((log_posterior, "log_posterior"), (extents, "extents")))
    grids = grids[:, None] if grids.ndim == 3 else grids
    boxes = boxes[:, None] if boxes.ndim == 2 else boxes
    square = grids.ndim == 4 and grids.shape[2] == grids.shape[3] and grids.shape[2] > 1
    if not square or len(grids) != n or not 0 < grids.shape[1] <= MOST_VIEWS:
        raise ValueError(
            f"{name}: log_posterior has shape {grids.shape}; expected ({n}, S, S), or ({n}, V, S, S) for up to "
            f"{MOST_VIEWS} views"
        )
    if boxes.shape != (*grids.shape[:2], 4):
        raise ValueError(
            f"{name}: extents have shape {boxes.shape}; expected {(*grids.shape[:2], 4)}, (left, right, bottom, top) "
            "of each grid"
        )
    shown = ~np.isnan(boxes).any(-1)  # (n, V)
    rising = np.isfinite(boxes).all(-1) & (boxes[..., ::2] < boxes[..., 1::2]).all(-1)
    if not (shown[:, 0].all() and rising[shown].all()):
        raise ValueError(f"{name}: extents are not finite with left below right and bottom below top")
    if np.isnan(grids[shown]).any() or (grids[shown] == math.inf).any():
        raise ValueError(f"{name}: log_posterior holds NaN or infinity; expected log densities (-inf is no mass)")
    if not np.isfinite(grids[:, 0].max(axis=(1, 2))).all():
        raise ValueError(f"{name}: log_posterior is -inf on all of a datum's grid; expected some mass")
    return grids.astype(float), boxes.astype(float)


def to_normals(q_mean: ArrayLike, q_covariance: ArrayLike, n: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return means (n, 2) and covariances (n, 2, 2)."""
    mean, covariance = to_points(q_mean, f"{name}: q_mean", 2), to_array(q_covariance, f"{name}: q_covariance")
    if len(mean) != n or covariance.shape != (n, 2, 2):
        raise ValueError(
            f"{name}: q_mean has shape {mean.shape} and q_covariance {covariance.shape}; expected ({n}, 2) and "
            f"({n}, 2, 2)"
        )
    covariance = covariance.astype(float)
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise ValueError(f"{name}: q_mean or q_covariance holds NaN or infinity; has the training diverged?")
    if not (np.linalg.eigvalsh(covariance) > 0).all():
        raise ValueError(f"{name}: q_covariance is not positive definite")
    return mean, covariance


def levels_of(grids: np.ndarray, boxes: np.ndarray) -> tuple[dict[int, float], float]:
    """Return the log densities above which the masses of 1 and 2 sigma lie, and the mass of all.

    Both are of the view with mass nearest to one.
    """
    masses = [_cell_masses(*view) for view in zip(grids, boxes, strict=True)]
    best = min(range(len(masses)), key=lambda v: abs(masses[v].sum() - 1))
    levels = {sigma: _level(grids[best], masses[best], share) for sigma, share in MASSES.items()}
    return levels, float(masses[best].sum())


def held_by_q(grids: np.ndarray, boxes: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Return the mass of p(z|x) in q's 2-sigma ellipse, from the finest view that holds the ellipse."""
    reach = 2 * np.sqrt(np.diagonal(covariance))
    holds = (boxes[:, ::2] <= mean - reach).all(1) & (boxes[:, 1::2] >= mean + reach).all(1)  # NaN holds nothing
    view = min(np.flatnonzero(holds), key=lambda v: boxes[v, 1] - boxes[v, 0], default=0)
    masses = _cell_masses(grids[view], boxes[view])
    low, high = boxes[view].reshape(2, 2).T
    third = (high - low) / (len(masses) - 1) / 3  # of a cell, since the ellipse may cut a cell
    axes = (np.linspace(low - third, high + third, 3 * len(masses)) - mean).T  # (2, 3S)
    offset = np.stack(np.meshgrid(*axes, indexing="ij"), -1)  # (3S, 3S, 2)
    inside = np.einsum("ijk,kl,ijl->ij", offset, np.linalg.inv(covariance), offset) <= 4.0
    share = inside.reshape(len(masses), 3, len(masses), 3).mean((1, 3))  # of each cell, inside the ellipse
    return min(float((masses * share).sum()), 1.0)


def _cell_masses(grid: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the mass of each node's cell, (S, S)."""
    left, right, bottom, top = box
    log_area = math.log(right - left) + math.log(top - bottom) - 2 * math.log(len(grid) - 1)
    return np.exp(np.minimum(grid + log_area, 600.0))  # a density that is not normalised may be any number


def _level(grid: np.ndarray, masses: np.ndarray, share: float) -> float:
    """Return the log density above which this share of the grid's mass lies."""
    order = np.argsort(grid, axis=None)[::-1]
    reached = np.cumsum(masses.ravel()[order])
    return float(grid.ravel()[order][np.searchsorted(reached, share * reached[-1])])
