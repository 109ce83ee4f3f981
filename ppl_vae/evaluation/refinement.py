r"""The best normal posterior of each datum: natural-gradient ascent of the ELBO on its own mean and covariance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ppl_vae._distributions import describe
from ppl_vae._scopes import seeded
from ppl_vae._validation import check_positive, check_positive_int
from ppl_vae.evaluation.elbo import normals_of
from ppl_vae.evidence.blocks import MAX_BYTES, particle_blocks, row_blocks
from ppl_vae.evidence.densities import Densities
from ppl_vae.evidence.normals import Normals, tensor_nodes

Gradients = Callable[[Tensor, Normals], tuple[Tensor, Tensor, Tensor]]

ROTATIONS = 3  # sets of points, one after the other, above three dimensions
STRETCH = 10.0  # the largest factor by which one step changes a precision


def refine(
    densities: Densities,
    x: Tensor,
    *,
    start: Normals | None = None,
    num_iterations: int = 50,
    tolerance: float = 1e-3,
    max_bytes: int = MAX_BYTES,
    seed: int = 0,
) -> Normals:
    r"""Return the local optimum of the ELBO in q's family for each datum separately, from the encoder's start.

    .. math::
        (\mu^*, \Sigma^*) = \arg\max_{\mu, \Sigma}
        \mathbb E_{\mathcal N(z; \mu, \Sigma)}[\log p(x, z)] + \mathrm H[\mathcal N(\mu, \Sigma)],

    with a diagonal or a full covariance, as the encoder has. The optimum is *local*: where log p(x, z) has several
    modes, it belongs to the mode that the encoder chose, and the best q may be elsewhere (`gaps` tries other starts).
    Bounds that the encoder puts on a scale (a floor) do not apply to it. Slow: each iteration decodes 5^d latents per
    datum for d <= 3 and 2d above, forward and backward.

    The step is the natural gradient,

    .. math::
        \Sigma^{-1} \leftarrow (1 - \rho) \Sigma^{-1} - \rho\, \mathbb E_q[\nabla^2 \log p(x, z)], \qquad
        \mu \leftarrow \mu + \rho\, \Sigma\, \mathbb E_q[\nabla \log p(x, z)],

    a Newton step of the smoothed log-density for :math:`\rho = 1`. A nearly normal posterior takes a few such steps,
    where Adam takes hundreds. The expected Hessian comes from gradients alone, :math:`\mathbb E_q[\nabla^2 f] S =
    \mathbb E_\epsilon[\nabla f(\mu + S\epsilon)\, \epsilon^\top]`, so the decoder need not be twice differentiable.

    Every datum has its own :math:`\rho`, which shrinks when its ELBO falls. It stops when the expected gain of a whole
    step, :math:`\frac12 g^\top \Sigma g + \frac14 \lVert I + S^\top \mathbb E[\nabla^2] S \rVert^2`, is below
    `tolerance`. For a diagonal family with strongly correlated dimensions, the remaining gain can be several times
    that.

    The expectations are sums over points. For d <= 3 the points are Gauss-Hermite nodes, first 5 per dimension, then 9.
    Above, they are the 2d points :math:`\pm\sqrt d\, u_j` of a random rotation :math:`u` (exact for polynomials of
    degree 3), and then those of other rotations. These sums do not give the ELBO itself: evaluate it with `elbo`.

    Args:
        densities: The model, see `densities_of`; differentiable in z.
        x: The data, (n, *x_shape).
        start: The starting posteriors; the encoder's q(z|x) by default.
        num_iterations: The most iterations with each set of points.
        tolerance: Stop below this expected gain, nats.
        max_bytes: About the most memory that decoded data may take.
        seed: The seed of the rotations; the global random state is left alone.

    Returns:
        The refined posteriors.

    Raises:
        ValueError: If q(z|x) is not normal.

    Reference:
        Conjugate-Computation Variational Inference (Khan & Lin, 2017), https://arxiv.org/abs/1703.04265

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> from ppl_vae.evidence.densities import VAEDensities
        >>> from ppl_vae.evaluation.elbo import elbo
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(torch.nn.Linear(2, 64)),
        ...           posterior=posteriors.DiagonalNormal(torch.nn.Linear(64, 4)))
        >>> densities, x = VAEDensities(vae), vae.sample(5, mean=False)
        >>> best = refine(densities, x)
        >>> bool((elbo(densities, x, posterior=best).elbo >= elbo(densities, x).elbo).all())
        True
    """
    check_positive_int(num_iterations, "refine: num_iterations")
    check_positive(tolerance, "refine: tolerance")
    q = normals_to_refine(densities, x) if start is None else start
    q = Normals(q.loc.clone(), q.scale.clone())
    with seeded(seed):
        for points, weights in _point_sets(q):
            gradients = partial(_gradients, densities, points, weights, max_bytes // 4)
            for rows in row_blocks(x, max_bytes // 4, len(points)):  # a quarter: the graph keeps activations
                _ascend(x[rows], q[rows], gradients, num_iterations, tolerance)
    return q


def normals_to_refine(densities: Densities, x: Tensor) -> Normals:
    """Return q(z|x) as `Normals`.

    Raises:
        ValueError: If q(z|x) is not normal.
    """
    q = normals_of(densities, x)
    if q is None:
        raise ValueError(
            f"the posterior is {describe(densities.posterior(x[:1]))}, whose parameters cannot be refined for a datum "
            "by itself; expected Normal(...).to_event(1) or MultivariateNormal, as posteriors.DiagonalNormal gives"
        )
    return q


def _point_sets(q: Normals) -> Iterator[tuple[Tensor, Tensor]]:
    d = q.latent_dim
    if d <= 3:
        yield from (tensor_nodes(num_nodes, d, q.loc) for num_nodes in (5, 9))
        return
    for _ in range(ROTATIONS):
        u = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q * d**0.5
        weights = torch.full((2 * d,), 0.5 / d, dtype=torch.float64)
        yield torch.cat([u, -u]).to(q.loc), weights.to(q.loc.device)


def _ascend(x: Tensor, q: Normals, gradients: Gradients, num_iterations: int, tolerance: float) -> None:
    """Ascend the ELBO by its gradients for all data at once; the tensors of q keep the best posteriors."""
    value, mean_step, curvature = gradients(x, q)
    rho = torch.ones(len(x), dtype=q.loc.dtype, device=x.device)
    for _ in range(num_iterations):
        gain = 0.5 * mean_step.square().sum(-1) + 0.25 * curvature.square().flatten(1).sum(-1)
        rows = ((gain > tolerance) & (rho > 1e-4)).nonzero().squeeze(-1)
        if len(rows) == 0:
            break
        moved = _stepped(q[rows], mean_step[rows], curvature[rows], rho[rows])
        new = gradients(x[rows], moved)
        better = new[0] > value[rows]  # False for NaN
        accepted = rows[better]
        q.loc[accepted], q.scale[accepted] = moved.loc[better], moved.scale[better]
        value[accepted], mean_step[accepted], curvature[accepted] = (part[better] for part in new)
        rho[rows] = torch.where(better, (2 * rho[rows]).clamp_max(1), 0.3 * rho[rows])


def _gradients(
    densities: Densities, points: Tensor, weights: Tensor, max_bytes: int, x: Tensor, q: Normals
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ELBO (n,), S' E[grad] (n, d), and I + S' E[Hessian] S, its diagonal (n, d) or whole (n, d, d)."""
    value = q.entropy()
    step, curvature = torch.zeros_like(q.loc), torch.zeros_like(q.scale)
    for k in particle_blocks(len(points), x, max_bytes):
        noise, weight = points[k, None], weights[k]  # (K, 1, d)
        with torch.enable_grad():
            z = q.at(noise).detach().requires_grad_()
            log_joint = densities.log_likelihood(x, z) + densities.log_prior(x, z)
            (gradient,) = torch.autograd.grad(log_joint.sum(), z)  # (K, n, d)
        value = value + weight @ log_joint.detach().double()
        scaled = gradient * q.scale if q.diagonal else (q.scale.mT @ gradient.unsqueeze(-1)).squeeze(-1)
        scaled = scaled * weight.to(scaled)[:, None, None]
        step += scaled.sum(0)
        if q.diagonal:
            curvature += (scaled * noise).sum(0)
        else:
            curvature += torch.einsum("kni,kj->nij", scaled, noise.squeeze(1))
    if q.diagonal:
        return value, step, curvature + 1
    return value, step, 0.5 * (curvature + curvature.mT) + torch.eye(q.latent_dim).to(curvature)


def _stepped(q: Normals, mean_step: Tensor, curvature: Tensor, rho: Tensor) -> Normals:
    """Take the natural-gradient step of size rho: the precision times 1 - rho * curvature, in noise coordinates."""
    if q.diagonal:
        ratio = (1 - rho[:, None] * curvature).clamp(1 / STRETCH, STRETCH)
        scale = q.scale / ratio.sqrt()
        return Normals(q.loc + rho[:, None] * scale * mean_step / ratio.sqrt(), scale)
    eigenvalues, vectors = torch.linalg.eigh(curvature)
    ratio = (1 - rho[:, None] * eigenvalues).clamp(1 / STRETCH, STRETCH)
    inverse = (vectors / ratio.unsqueeze(-2)) @ vectors.mT  # the new covariance is S inverse S'
    loc = q.loc + rho[:, None] * (q.scale @ inverse @ mean_step.unsqueeze(-1)).squeeze(-1)
    return Normals(loc, q.scale @ torch.linalg.cholesky(inverse))
