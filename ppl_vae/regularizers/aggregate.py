r"""Penalties on the aggregate posterior q(z): its total correlation, and its distance from the prior in MMD."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from torch import Tensor

from ppl_vae._validation import check_choice, check_not_negative, check_positive_int
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.regularized import Penalty
from ppl_vae.regularizers.terms import factors, kl, log_prior, one_site

Kernel = Literal["imq", "rbf"]


class TotalCorrelation:
    r"""The decomposition of the KL into three parts, each with its own weight: beta-TC-VAE.

    .. math::
        \mathbb E_x\, \mathrm{KL}(q(z|x) \,\|\, p(z)) = I(x; z) + \mathrm{KL}\Big(q(z) \,\Big\|\, \prod_j q(z_j)\Big)
        + \sum_j \mathrm{KL}(q(z_j) \,\|\, p(z_j)),

    with the weights alpha, beta and gamma; when all three are one, nothing changes. The penalty is the difference that
    the weights make. Minibatch-weighted sampling estimates the densities of the aggregate posterior q(z) from the
    batch, :math:`\log q(z_i) \approx \log \frac{1}{NB} \sum_j q(z_i|x_j)`. **This estimate is biased**: it is too low
    by log B to log N, which is mostly a constant for the gradient. So do not read the three parts as nats; the value is
    no bound. The cost is K B^2 d numbers. The program must have a single latent site whose q and p factorise over
    dimensions, drawn with a gradient.

    Args:
        dataset_size: N, the number of training data.
        beta: The weight of the total correlation.
        alpha: The weight of the mutual information.
        gamma: The weight of the dimension-wise KL.

    Raises:
        ValueError: If a weight is negative, or the latents are not as required.

    Reference:
        Isolating Sources of Disentanglement in Variational Autoencoders (Chen et al., 2018),
        https://arxiv.org/abs/1802.04942

    Example:
        >>> TotalCorrelation(dataset_size=60_000, beta=6.0).beta
        6.0
    """

    couples_batch = True

    def __init__(self, dataset_size: int, beta: float = 6.0, alpha: float = 1.0, gamma: float = 1.0) -> None:
        self.dataset_size = check_positive_int(dataset_size, "regularizer TotalCorrelation: dataset_size")
        self.beta = check_not_negative(beta, "regularizer TotalCorrelation: beta")
        self.alpha = check_not_negative(alpha, "regularizer TotalCorrelation: alpha")
        self.gamma = check_not_negative(gamma, "regularizer TotalCorrelation: gamma")

    def __repr__(self) -> str:
        weights = f"beta={self.beta}, alpha={self.alpha}, gamma={self.gamma}"
        return f"TotalCorrelation(dataset_size={self.dataset_size}, {weights})"

    def __call__(self, log_weights: LogWeights) -> Penalty | None:
        """Return the penalty of each datum."""
        if self.alpha == self.beta == self.gamma == 1:
            return None
        information, correlation, dimensions = decompose(log_weights, self.dataset_size)
        penalty = (self.alpha - 1) * information + (self.beta - 1) * correlation + (self.gamma - 1) * dimensions
        return Penalty(penalty.detach(), penalty, False)


def decompose(log_weights: LogWeights, dataset_size: int) -> tuple[Tensor, ...]:
    r"""Return the mutual information, total correlation and dimension-wise KL of each datum, (batch,).

    Their sum is exactly the sampled KL.
    """
    owner = "regularizer TotalCorrelation"
    q, _ = factors(log_weights, owner)
    if not hasattr(q, "loc"):
        raise ValueError(f"{owner} takes continuous latents, and q is {type(q).__name__}; use another regularizer")
    _, z = one_site(log_weights, owner)
    k, batch = log_weights.log_lik.shape
    z = z.reshape(k, batch, 1, -1)
    first = type(q)(*(parameter.reshape(-1, batch, z.shape[-1])[0] for parameter in (q.loc, q.scale)))
    log_q = first.log_prob(z)  # (K, batch of z, batch of x, d)
    offset = math.log(dataset_size) + math.log(batch)
    joint = log_q.sum(-1).logsumexp(-1) - offset
    marginals = (log_q.logsumexp(-2) - offset).sum(-1)
    own = log_weights.joint_log_q
    parts = own - joint, joint - marginals, marginals - log_prior(log_weights)
    return tuple(part.mean(0) for part in parts)


class InfoVAE:
    r"""A weight on the KL, and another on the maximum mean discrepancy between q(z) and p(z).

    .. math::
        \mathrm{penalty} = -\alpha\, \mathrm{KL}(q(z|x) \,\|\, p(z)) + (\alpha + \lambda - 1)\, \mathrm{MMD}^2(q(z),
        p(z)).

    alpha = 0 and lambda = 1 change nothing; alpha = 1 removes the KL altogether (an MMD-VAE). The value is **no
    bound**. The MMD is the unbiased estimate from the batch and equally many draws of p(z). It is split over the data
    so that its mean over the batch is the estimate: it is a term per datum like the others, for every batch size. A
    batch needs at least two data. The cost is 3 B^2 d numbers. The program must have a single latent site, drawn with a
    gradient.

    Args:
        alpha: The share of the KL to remove, at most 1.
        weight: :math:`\lambda`.
        kernel: ``"imq"``, :math:`2dc / (2dc + r^2)` with c = 1, as usual for normal latents, or ``"rbf"``,
            :math:`\exp(-r^2 / (2d))`.

    Raises:
        ValueError: If a number is out of range, or the latents are not as required.

    Reference:
        InfoVAE: Balancing Learning and Inference in Variational Autoencoders (Zhao et al., 2019),
        https://arxiv.org/abs/1706.02262

    Example:
        >>> InfoVAE(alpha=1.0, weight=10.0)
        InfoVAE(alpha=1.0, weight=10.0, kernel='imq')
    """

    couples_batch = True

    def __init__(self, alpha: float = 0.0, weight: float = 10.0, kernel: Kernel = "imq") -> None:
        self.alpha = check_not_negative(alpha, "regularizer InfoVAE: alpha")
        if alpha > 1:
            raise ValueError(f"regularizer InfoVAE: alpha is {alpha}; expected at most 1, where the KL is gone")
        self.weight = check_not_negative(weight, "regularizer InfoVAE: weight")
        if alpha + weight < 1:
            raise ValueError(
                f"regularizer InfoVAE: alpha {alpha} and weight {weight} add up to less than 1, so the discrepancy "
                "would be maximised; raise weight"
            )
        check_choice(kernel, get_args(Kernel), "regularizer InfoVAE: kernel")
        self.kernel: Kernel = kernel

    def __repr__(self) -> str:
        return f"InfoVAE(alpha={self.alpha}, weight={self.weight}, kernel={self.kernel!r})"

    def __call__(self, log_weights: LogWeights) -> Penalty | None:
        """Return the penalty of each datum."""
        if self.alpha == 0 and self.weight == 1:
            return None
        discrepancy = self._discrepancy(log_weights)
        term = kl(log_weights)
        share = self.alpha + self.weight - 1
        value = share * discrepancy.detach() - self.alpha * term.value
        return Penalty(value, share * discrepancy - self.alpha * term.surrogate, False)

    def _discrepancy(self, log_weights: LogWeights) -> Tensor:
        """Return MMD^2, split over the data, (batch,)."""
        name, z = one_site(log_weights, "regularizer InfoVAE")
        k, batch = log_weights.log_lik.shape
        if batch < 2:
            raise ValueError("regularizer InfoVAE compares the data of a batch with each other; expected at least 2")
        p: Any = log_weights.prior[name]
        y = (p.rsample if p.has_rsample else p.sample)().reshape(-1, batch, z.shape[-1])[0]
        z = z.reshape(k, batch, -1)
        within_z = _others(self._similarity(z, z))
        within_y = _others(self._similarity(y, y)).mean(-1, keepdim=True)
        return (within_z + within_y - 2 * self._similarity(z, y).mean(-1)).mean(0)

    def _similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the kernel of every pair, (..., n, m)."""
        d = a.shape[-1]
        square = (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
        return 2 * d / (2 * d + square) if self.kernel == "imq" else (-square / (2 * d)).exp()


def _others(similarity: Tensor) -> Tensor:
    """Return the mean over the last dimension without the point itself, whose similarity to itself is one."""
    return (similarity.sum(-1) - 1) / (similarity.shape[-1] - 1)
