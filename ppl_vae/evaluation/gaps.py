r"""The gap between log p(x) and the ELBO, split into the share of the family of q and that of the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_vae._home import at_home
from ppl_vae._scopes import seeded
from ppl_vae._validation import check_positive_int
from ppl_vae.evaluation.elbo import Method, draws_of, elbo, mean_and_error
from ppl_vae.evaluation.refinement import normals_to_refine, refine
from ppl_vae.evidence.blocks import MAX_BYTES, capacity, row_blocks
from ppl_vae.evidence.densities import Densities
from ppl_vae.evidence.normals import Normals
from ppl_vae.evidence.results import Evidence

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

APART = 3.0  # another start must be so many standard deviations (times sqrt(d)) from every optimum found
CLEARLY = 0.01  # another start must be so many nats better to count as another mode, not as a better ascent to the same
NEAR = 15.0  # a start may lie so many nats of log p(x, z) below the best optimum: it is coarse, and beside its mode


@dataclass(frozen=True)
class Gaps:
    r"""The gap of n data, in two parts, nats, float64.

    .. math::
        \log p(x) - \mathcal L(q) = \underbrace{\log p(x) - \mathcal L(q^*)}_{\text{approximation}}
        + \underbrace{\mathcal L(q^*) - \mathcal L(q)}_{\text{amortisation}}.

    Attributes:
        log_evidence: log p(x).
        evidence_error: The error of log p(x), as in `Evidence`.
        evidence_kind: ``"exact"``, ``"lower"`` or ``"upper"``: the side of the truth on which the approximation gap
            lies.
        elbo: The ELBO of the encoder's q.
        elbo_error: The error of `elbo`.
        refined_elbo: The ELBO of q*.
        refined_error: The error of `refined_elbo`.
        amortisation_error: The error of the amortisation gap. By Monte Carlo both ELBOs share their noise, and
            this error is smaller than theirs.
        refined: q* itself.
        elsewhere: Whether q* was reached from another start than the encoder's, with an ELBO better by more than
            0.01 nats: the encoder chose the wrong mode.
    """

    log_evidence: Float[Tensor, " n"]
    evidence_error: Float[Tensor, " n"]
    evidence_kind: str
    elbo: Float[Tensor, " n"]
    elbo_error: Float[Tensor, " n"]
    refined_elbo: Float[Tensor, " n"]
    refined_error: Float[Tensor, " n"]
    amortisation_error: Float[Tensor, " n"]
    refined: Normals
    elsewhere: Bool[Tensor, " n"]

    @property
    def gap(self) -> Float[Tensor, " n"]:
        """Log p(x) - ELBO(q) = KL(q(z|x) || p(z|x))."""
        return self.log_evidence - self.elbo

    @property
    def approximation_gap(self) -> Float[Tensor, " n"]:
        """Log p(x) - ELBO(q*): the cost of the family of q, whatever the encoder."""
        return self.log_evidence - self.refined_elbo

    @property
    def amortisation_gap(self) -> Float[Tensor, " n"]:
        """ELBO(q*) - ELBO(q): the cost of one encoder for all data."""
        return self.refined_elbo - self.elbo

    @property
    def approximation_error(self) -> Float[Tensor, " n"]:
        """The sum of the errors of evidence and refined ELBO; one may be a bound, the other a standard error."""
        return self.evidence_error + self.refined_error


@at_home("x", float64=True)
def gaps(
    densities: Densities,
    x: Float[Tensor, " n *x_shape"],
    evidence: Evidence,
    *,
    num_starts: int = 2,
    num_iterations: int = 50,
    num_samples: int = 1000,
    tolerance: float = 1e-3,
    max_bytes: int = MAX_BYTES,
    seed: int = 0,
) -> Gaps:
    r"""Return the approximation gap and the amortisation gap of each datum.

    q* is the best normal found for the datum by itself, of the same kind (diagonal or full) as the encoder's. It is a
    local optimum from the encoder's start (see `refine`). With `num_starts` above one, `gaps` also starts from the
    latents with the largest log p(x, z) among prior draws and the means of the other data, away from optima already
    found. Without these starts, a datum whose encoder chose the wrong mode shows an approximation gap, though a better
    normal exists; set ``num_starts=1`` for this decomposition, which is that of Cremer et al. The search misses an
    optimum that no start leads to. So the amortisation gap is a lower bound, and the approximation gap an upper bound.
    Where the evidence itself is a lower bound (importance sampling, AIS), the approximation gap is too small by the
    error of this bound, and can be negative.

    The ELBOs are not evaluated at the points with which q* was found. Up to three dimensions they are computed by
    Gauss-Hermite (tolerance 1e-4). Above, they are estimated by Monte Carlo, with one noise for the choice between q*
    and q and a fresh noise for the figures, which are therefore unbiased. q* is never worse than q: exactly so by
    Gauss-Hermite, up to noise by Monte Carlo. Other starts need `VAEDensities.likelihood_at`; a ``(model, guide)`` pair
    is refined from the encoder's start alone.

    Args:
        densities: The model, see `densities_of`; differentiable in z.
        x: The data.
        evidence: log p(x) of the same data.
        num_starts: Starts for each datum, including the encoder's.
        num_iterations: See `refine`.
        num_samples: Monte Carlo draws per datum.
        tolerance: The tolerance of the refinement, nats.
        max_bytes: About the most memory that decoded data may take.
        seed: The seed of prior draws and noise; the global random state is left alone.

    Raises:
        ValueError: If q(z|x) is not normal, or the evidence is of other data.

    Reference:
        Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018),
        https://arxiv.org/abs/1801.03558

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> from ppl_vae.evidence.densities import VAEDensities
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(torch.nn.Linear(2, 64)),
        ...           posterior=posteriors.DiagonalNormal(torch.nn.Linear(64, 4)))
        >>> x, zero = vae.sample(5, mean=False), torch.zeros(5).double()
        >>> found = gaps(VAEDensities(vae), x, Evidence(zero - 40.0, zero, "closed form"))
        >>> bool((found.amortisation_gap >= 0).all())
        True
        >>> torch.allclose(found.gap, found.approximation_gap + found.amortisation_gap)
        True
    """
    check_positive_int(num_starts, "gaps: num_starts")
    evidence.require_of(x, "gaps")
    q = normals_to_refine(densities, x)
    options = {"num_iterations": num_iterations, "tolerance": tolerance, "max_bytes": max_bytes, "seed": seed}
    exact = densities.latent_dim <= 3
    method: Method = "gauss-hermite" if exact else "monte carlo"
    bound_of = partial(elbo, densities, method=method, num_samples=num_samples, max_bytes=max_bytes, seed=seed)
    own = bound_of(x, posterior=q)
    best, best_elbo, best_error = q, own.elbo.clone(), own.error.clone()
    elsewhere = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if not hasattr(densities, "likelihood_at"):
        num_starts = 1
    pool = _pool(densities, x, q, seed) if num_starts > 1 else q
    start, rows = q, torch.arange(len(x), device=x.device)
    optima: list[Normals] = []
    for turn in range(num_starts):
        if turn:
            start, rows = _next_start(densities, x, pool, optima, max_bytes)
            if len(rows) == 0:
                break
        found = refine(densities, x[rows], start=start, **options)  # type: ignore[arg-type]
        optima.append(optima[0].put(rows, found) if turn else found)
        bound = bound_of(x[rows], posterior=found)
        better = bound.elbo > best_elbo[rows]
        taken = rows[better]
        best = best.put(taken, found[better])
        if turn:
            elsewhere[taken] |= bound.elbo[better] - best_elbo[taken] > CLEARLY
        best_elbo[taken], best_error[taken] = bound.elbo[better], bound.error[better]
    figures = [own.elbo, own.error, best_elbo, best_error, own.error + best_error]
    if not exact:
        figures = _with_fresh_noise(densities, x, q, best, num_samples, max_bytes, seed + 1)
    log_evidence, error = (value.to(figures[0]) for value in (evidence.log_evidence, evidence.error))
    return Gaps(log_evidence, error, evidence.kind, *figures, refined=best, elsewhere=elsewhere)  # type: ignore


def _with_fresh_noise(
    densities: Densities, x: Tensor, q: Normals, best: Normals, num_samples: int, max_bytes: int, seed: int
) -> list[Tensor]:
    """Return the ELBO of q with its error, that of `best` with its error, and the error of their difference."""
    parts = []
    for rows in row_blocks(x, max_bytes):
        draws = []
        for posterior in (q, best):  # the same noise for both
            with torch.no_grad(), seeded(seed + rows.start):
                draws.append(draws_of(densities, x[rows], posterior[rows], num_samples, max_bytes)[0])
        paired = mean_and_error(draws[1] - draws[0])[1]
        parts.append(torch.stack([*mean_and_error(draws[0]), *mean_and_error(draws[1]), paired]))
    return list(torch.cat(parts, dim=1))


@torch.no_grad()
def _pool(densities: Densities, x: Tensor, q: Normals, seed: int, size: int = 2048) -> Normals:
    """Return starts: prior draws with a typical scale, and some of the encoder's posteriors."""
    with seeded(seed):
        drawn = densities.prior_sample(x[:1], size)[:, 0]
        some = torch.randperm(len(x), device=x.device)[:size]
    typical = q.scale[some].median(0).values if q.diagonal else torch.diag_embed(q.std[some].median(0).values)
    loc = torch.cat([drawn.to(q.loc), q.loc[some]])
    return Normals(loc, torch.cat([typical.expand(len(drawn), *typical.shape), q.scale[some]]))


@torch.no_grad()
def _next_start(
    densities: Densities, x: Tensor, pool: Normals, optima: list[Normals], max_bytes: int
) -> tuple[Normals, Tensor]:
    """Return the pool's best start far from each datum's optima, for data that have a good one; and these data."""
    score = densities.likelihood_at(pool.loc)  # type: ignore[attr-defined]
    log_prior = densities.log_prior(x[:1], pool.loc[:, None]).reshape(1, -1)  # (1, G)
    step = max(1, capacity(x, max_bytes) // len(pool))
    rows, chosen = [], []
    for part in torch.arange(len(x), device=x.device).split(step):
        some = x[part]
        best = torch.full((len(part),), -torch.inf, device=x.device)
        log_joint = score(some) + log_prior  # (n, G)
        for optimum in optima:
            q = optimum[part]
            distance = q.whitened(pool.loc[:, None].expand(-1, len(part), -1)).norm(dim=-1).T
            log_joint = log_joint.masked_fill(distance < APART * q.latent_dim**0.5, -torch.inf)
            at = densities.log_likelihood(some, q.loc[None])[0] + densities.log_prior(some, q.loc[None])[0]
            best = torch.maximum(best, at.to(best))
        top, index = log_joint.max(dim=1)
        good = top > best - NEAR
        rows.append(part[good])
        chosen.append(index[good])
    return pool[torch.cat(chosen)], torch.cat(rows)
