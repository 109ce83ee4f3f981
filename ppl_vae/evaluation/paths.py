r"""Decoded paths through the latent space between pairs of data."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ppl_vae._distributions import measure
from ppl_vae._home import at_home
from ppl_vae._validation import is_integer
from ppl_vae.vae import VAE

if TYPE_CHECKING:
    from jaxtyping import Float

TINY = 1e-6  # radians from opposite directions, between which all great circles are equally short


class Interpolation(NamedTuple):
    """Paths between pairs of data.

    Attributes:
        z: The latents.
        x: The means of p(x|z) there.
    """

    z: Float[Tensor, "pairs steps latent"]
    x: Float[Tensor, "pairs steps *x_shape"]


@at_home("x_from", "x_to")
def interpolate(
    vae: VAE,
    x_from: Float[Tensor, " pairs *x_shape"],
    x_to: Float[Tensor, " pairs *x_shape"],
    num_steps: int = 10,
    *,
    spherical: bool = False,
) -> Interpolation:
    """Decode latents on a path from the mean of q(z|x) of one datum to that of another.

    The ends are reconstructions, not the data. Steps of equal length in z are not equal changes of x. `path` describes
    the choice of path. No noise is drawn.

    Args:
        vae: The model; used in evaluation mode.
        x_from: The data at the start of the paths.
        x_to: The data at the end of the paths.
        num_steps: The number of points on a path, both ends included; at least 2.
        spherical: See `path`.

    Returns:
        The latents, (pairs, num_steps, latent), and the means of p(x|z) there, (pairs, num_steps, *x_shape).

    Raises:
        ValueError: If the data do not pair up or do not have the model's shape, or the path would leave the set on
            which the prior lives; else as `path`.

    Example:
        >>> from ppl_vae import likelihoods, posteriors, priors
        >>> vae = VAE((1, 8, 8), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> x_from, x_to = vae.sample(3), vae.sample(3)
        >>> z, x = interpolate(vae, x_from, x_to, num_steps=5)
        >>> z.shape, x.shape
        (torch.Size([3, 5, 2]), torch.Size([3, 5, 1, 8, 8]))
        >>> torch.equal(z[:, 0], vae.encode(x_from)), torch.equal(z[:, -1], vae.encode(x_to))
        (True, True)
    """
    for name, x in (("x_from", x_from), ("x_to", x_to)):
        if tuple(x.shape[1:]) != vae.x_shape or len(x) != len(x_from):
            raise ValueError(
                f"interpolate: {name} has shape {tuple(x.shape)}; expected {(len(x_from), *vae.x_shape)}, as many data "
                "at both ends, of the model's shape"
            )
    check_has_ways(vae, spherical)
    z = path(vae.encode(x_from), vae.encode(x_to), num_steps, spherical=spherical)
    return Interpolation(z, vae.decode(z))


def check_has_ways(vae: VAE, spherical: bool) -> None:
    """Refuse paths that leave the set on which the prior lives.

    Raises:
        ValueError: If the latents are discrete, or on a sphere or simplex and the path is of the other kind.
    """
    where = measure(vae.p_z())
    if where == "a discrete set":
        raise ValueError(f"interpolate: the prior lives on {where}, and there are no latents between its points")
    if where == ("the simplex" if spherical else "the unit sphere"):
        way = "great circles" if spherical else "straight lines"
        raise ValueError(f"interpolate: the prior lives on {where}, which {way} leave; set spherical {not spherical}")


@at_home("z_from", "z_to", program=None)
def path(
    z_from: Float[Tensor, "*batch latent"],
    z_to: Float[Tensor, "*batch latent"],
    num_steps: int = 10,
    *,
    spherical: bool = False,
) -> Float[Tensor, "*batch num_steps latent"]:
    r"""Return evenly spaced points from one latent to another.

    The points of the straight line, the default, come closer to the origin than its ends. In many dimensions a normal
    prior has its mass in a thin shell of radius :math:`\sqrt d`, and these points leave the shell. The points of the
    spherical path do not: their direction follows the great circle, by an equal angle per step, and their length
    changes evenly,

    .. math::
        z(t) = \bigl((1 - t) \lVert a \rVert + t \lVert b \rVert\bigr)
        \frac{\sin((1 - t)\omega)\, \hat a + \sin(t \omega)\, \hat b}{\sin \omega},
        \qquad \cos \omega = \hat a \cdot \hat b.

    For ends of equal length this is the usual slerp. For others, the usual slerp mixes a and b themselves, and diverges
    where they are nearly opposite. The spherical path makes sense only where the prior is centred at the origin and has
    no preferred direction. It makes little sense in two dimensions, where the centre of the plane is full of data.

    Args:
        z_from: a, (..., latent).
        z_to: b, of the same shape.
        num_steps: The number of points, both ends included; at least 2.
        spherical: Whether to follow the great circle instead of the straight line.

    Returns:
        The points, (..., num_steps, latent); the first and the last are a and b exactly.

    Raises:
        ValueError: If the shapes differ, if there are fewer than two steps, or if `spherical` is set in one dimension
            (where there is no great circle) or between opposite directions (where none is the shortest).

    Reference:
        Sampling Generative Networks (White, 2016), https://arxiv.org/abs/1609.04468

    Example:
        >>> a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
        >>> path(a, b, 3)[1], path(a, b, 3, spherical=True)[1]
        (tensor([1., 1.]), tensor([1.4142, 1.4142]))
    """
    if z_from.shape != z_to.shape or z_from.dim() == 0:
        raise ValueError(
            f"path: the ends have shapes {tuple(z_from.shape)} and {tuple(z_to.shape)}; expected two of (..., latent)"
        )
    if not is_integer(num_steps) or num_steps < 2:
        raise ValueError(f"path: num_steps is {num_steps!r}; expected an integer from 2, since both ends count")
    # (..., 1, latent); on the CPU, as not all devices have float64
    a, b = (z.to("cpu", torch.float64).unsqueeze(-2) for z in (z_from, z_to))
    t = torch.linspace(0, 1, num_steps, dtype=torch.float64).unsqueeze(-1)  # (steps, 1)
    points = (_great_circle(a, b, t) if spherical else (1 - t) * a + t * b).to(z_from)
    points[..., 0, :], points[..., -1, :] = z_from, z_to
    return points


def _great_circle(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    if a.shape[-1] < 2:
        raise ValueError("path: there is no great circle in a latent space of one dimension; leave spherical off")
    length_a, length_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    unit_a = torch.where(length_a > 0, a / length_a, b / length_b)  # the origin has no direction: take the other's
    unit_b = torch.where(length_b > 0, b / length_b, unit_a)
    unit_a, unit_b = unit_a.nan_to_num(), unit_b.nan_to_num()  # both ends at the origin
    # Kahan's angle, exact to rounding where arccos loses half the digits
    omega = 2 * torch.atan2((unit_a - unit_b).norm(dim=-1, keepdim=True), (unit_a + unit_b).norm(dim=-1, keepdim=True))
    if bool((omega > torch.pi - TINY).any()):
        raise ValueError(
            "path: two ends lie in opposite directions from the origin, between which no great circle is the shortest; "
            "leave spherical off"
        )
    # sin(t w) / sin(w) tends to t as w tends to 0
    share_a, share_b = (torch.where(omega > 0, torch.sin(s * omega) / torch.sin(omega), s) for s in (1 - t, t))
    return ((1 - t) * length_a + t * length_b) * (share_a * unit_a + share_b * unit_b)
