r"""Interpolation and integration of a likelihood on one cell of latent space, and sums over cells.

On each cell :math:`f(z) = \log p(x|z)` is evaluated at few nodes and interpolated by a polynomial. Its exponential may
be far narrower than the distance over which f bends, so it is integrated on many nodes, which need no decoding.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import chebyshev, legendre
from torch import Tensor


@dataclass(frozen=True)
class Measured:
    """The integral of exp(f) p(z) over P pairs of a datum's f and a cell; all float64.

    Attributes:
        log_mass: The log of the integral, (P,).
        doubt: The possible error of `log_mass` in nats, either way, estimated from f's coefficients, (P,).
        moments: Means of u and of u u' under the integrand, u in [-1, 1]^d, (P, d + d * d).
        top: The largest f at a node, (P,).
        log_edge: The log of the error that an edge of the prior's support inside the cell may cause, (P,).
        coefficients: Of f - top, in products of Chebyshev polynomials of u, (P, p^d), in f's own precision.
    """

    log_mass: Tensor
    doubt: Tensor
    moments: Tensor
    top: Tensor
    log_edge: Tensor
    coefficients: Tensor


class CellRule:
    r"""Interpolation of f at the Chebyshev nodes of a cell, and quadrature of :math:`e^{f(z)} p(z)` over it.

    With :math:`c_k` the coefficients of the interpolant in products of Chebyshev polynomials on [-1, 1]^d, the doubt is

    .. math::
        \delta = \sum_{\max_a k_a \ge p - 2} |c_k| + \sum_k |c_k| \sum_a \tfrac{g^2}{8} \tfrac{k_a^2 (k_a^2 - 1)}{3}:

    a sum of two terms. The first is the end of the expansion: the possible error of the interpolant. The second is the
    most that f can rise between two quadrature nodes g apart: :math:`g^2/8` times its second derivative. The doubt is
    an estimate and no bound: it misses structure of f that is narrower than the distance of the nodes and leaves no
    trace at any of them.

    Args:
        dim: d.
        num_nodes: p, the nodes of f along each axis.
        num_fine: m, the quadrature nodes along each axis.
        like: A tensor with the dtype and device of f.

    Reference:
        Approximation Theory and Approximation Practice (Trefethen, 2013), https://doi.org/10.1137/1.9781611975949

    Example:
        >>> rule = CellRule(dim=1, num_nodes=6, num_fine=14, like=torch.zeros(1, dtype=torch.float64))
        >>> f = -0.5 * rule.nodes.T.square() / 0.2**2  # a normal density on [-1, 1], in a cell of volume 2
        >>> mass = rule.measure(f, rule.log_weights + math.log(2)).log_mass.exp() / math.sqrt(2 * math.pi * 0.2**2)
        >>> bool((mass - 1).abs() < 1e-5)
        True
    """

    def __init__(self, dim: int, num_nodes: int, num_fine: int, like: Tensor) -> None:
        degrees = np.arange(num_nodes)
        nodes = -np.cos((degrees + 0.5) * math.pi / num_nodes)
        fine, weights = legendre.leggauss(num_fine)
        to_coefficients = np.linalg.inv(chebyshev.chebvander(nodes, num_nodes - 1)).T
        to_fine = to_coefficients @ chebyshev.chebvander(fine, num_nodes - 1).T
        k = _grid(degrees, dim)
        gap = np.diff(np.concatenate([[-1], fine, [1]])).max()
        rise = (gap**2 / 8 * k**2 * (k**2 - 1) / 3).sum(-1)
        tail = (k.max(-1) >= num_nodes - 2).astype(float)
        self.dim, self.num_nodes = dim, num_nodes
        self._gap = dim * gap / 2  # the largest share of a cell's volume between an edge and its nearest nodes
        self.nodes = torch.from_numpy(_grid(nodes, dim)).to(like.device)  # (p^d, d), float64
        self.fine = torch.from_numpy(_grid(fine, dim)).to(like.device)  # (m^d, d), float64
        self.log_weights = torch.from_numpy(np.log(_grid(weights / 2, dim)).sum(-1)).to(like.device)  # (m^d,)
        self.to_fine = torch.from_numpy(_power(to_fine, dim)).to(like)  # (p^d, m^d)
        self._to_coefficients = torch.from_numpy(_power(to_coefficients, dim)).to(like)
        self._doubt = torch.from_numpy(rise + tail).to(like)
        squares = (self.fine[:, :, None] * self.fine[:, None]).flatten(1)
        self._moments = torch.cat([torch.ones_like(self.fine[:, :1]), self.fine, squares], -1).to(like)

    def measure(self, f: Tensor, log_prior: Tensor) -> Measured:
        """Integrate exp(f) p(z) over each cell.

        Args:
            f: Log-likelihoods at `nodes`, (..., p^d); the leading dimensions are flattened to P.
            log_prior: log p(z) at `fine`, plus `log_weights`, plus the log of the cell's volume; broadcasts to
                (..., m^d).
        """
        top = f.amax(-1, keepdim=True).clamp(min=torch.finfo(f.dtype).min)
        f = f - top
        cliff = f.isneginf()
        if some_cliffs := bool(cliff.any()):
            # no polynomial follows a cliff: put level ground there, and keep the interpolant below top
            f = torch.where(cliff, f.masked_fill(cliff, 0.0).amin(-1, keepdim=True), f)
        log_p = f @ self.to_fine
        if some_cliffs:
            log_p = torch.where(cliff.any(-1, keepdim=True), log_p.clamp(max=0.0), log_p)
        log_p = log_p.add_(log_prior).flatten(0, -2)
        log_edge = torch.full((len(log_p),), -math.inf, dtype=torch.float64, device=log_p.device)
        if (outside := log_prior.isneginf()).any():
            at_edge = outside.any(-1).expand(f.shape[:-1]).flatten()
            density = (log_p - self.log_weights.to(log_p)).amax(-1) + top.flatten()
            log_edge[at_edge] = density[at_edge].double() + math.log(self._gap)
        peak = log_p.amax(-1, keepdim=True).clamp(min=-1e30)
        sums = log_p.sub_(peak).exp_() @ self._moments
        mass, f, top = sums[:, :1].double(), f.flatten(0, -2), top.flatten(0, -2)
        coefficients = f @ self._to_coefficients
        return Measured(
            log_mass=(mass.log() + peak.double() + top.double())[:, 0],
            doubt=(coefficients.abs() @ self._doubt).double() + cliff.any(-1).flatten(),
            moments=(sums[:, 1:].double() / mass).nan_to_num(0.0),
            top=top[:, 0].double(),
            log_edge=log_edge,
            coefficients=coefficients,
        )

    def interpolate(self, measured: Measured, u: Tensor, pairs: Tensor) -> Tensor:
        """Return the interpolants of the k pairs `pairs`, (k,), float64, each at one point u of [-1, 1]^d, (k, d)."""
        degrees = torch.arange(self.num_nodes, dtype=u.dtype, device=u.device)
        values = torch.cos(degrees * u.clamp(-1, 1).acos()[..., None])  # (k, d, p)
        basis = values[:, 0]
        for axis in range(1, self.dim):
            basis = (basis[:, :, None] * values[:, axis, None]).flatten(1)
        return (measured.coefficients[pairs] * basis).sum(-1) + measured.top[pairs]


def _grid(points: np.ndarray, dim: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[points] * dim, indexing="ij"), -1).reshape(-1, dim)


def _power(matrix: np.ndarray, dim: int) -> np.ndarray:
    return functools.reduce(np.kron, [matrix] * dim)


class LogSums:
    """Sums of exp(log_scale) * terms for each datum, (n, k), even outside the range of floating point.

    Args:
        size: n.
        device: The device of the sums.
        width: k.

    Example:
        >>> sums = LogSums(2, torch.device("cpu"))
        >>> sums.add(torch.tensor([0, 0]), torch.tensor([-5000.0, -5000.0], dtype=torch.float64))
        >>> sums.log()
        tensor([-4999.3069,       -inf], dtype=torch.float64)
    """

    def __init__(self, size: int, device: torch.device, width: int = 1) -> None:
        self._scale = torch.full((size,), -math.inf, dtype=torch.float64, device=device)
        self._sums = torch.zeros(size, width, dtype=torch.float64, device=device)

    def add(self, rows: Tensor, log_scale: Tensor, terms: Tensor | None = None) -> None:
        """Add exp(log_scale) (P,) times terms (P, k), or times ones, to the sums of `rows` (P,), which may repeat."""
        scale = self._scale.scatter_reduce(0, rows, log_scale, "amax")
        finite = scale.clamp(min=-1e300)
        self._sums *= (self._scale - finite).exp()[:, None]
        factor = (log_scale - finite[rows]).exp()[:, None]
        self._sums.index_add_(0, rows, factor.expand(-1, self._sums.shape[1]) if terms is None else factor * terms)
        self._scale = scale

    def log(self) -> Tensor:
        """Return the log of the first column, (n,)."""
        return self._scale + self._sums[:, 0].log()

    def ratios(self) -> Tensor:
        """Return the other columns divided by the first, (n, k - 1)."""
        return self._sums[:, 1:] / self._sums[:, :1]


def cheapest(rows: Tensor, log_cost: Tensor, log_budget: Tensor) -> Tensor:
    """Return a mask (P,) of the cheapest pairs of each datum that its budget pays for together.

    Args:
        rows: The datum of each pair, (P,).
        log_cost: The log cost of each pair, (P,).
        log_budget: The log budget of each datum, (n,).
    """
    order = log_cost.argsort()
    order = order[rows[order].argsort(stable=True)]
    ordered = rows[order]
    cost = (log_cost[order] - log_budget[ordered]).exp().clamp(max=2.0)  # in budgets: above one is too dear
    total = cost.cumsum(0)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    before = torch.where(starts, total - cost, 0.0).cummax(0).values  # the cost of all data before this one
    mask = torch.empty_like(starts)
    mask[order] = total - before <= 1
    return mask
