r"""Bounds of log p(x) by the paths of a trained `objectives.DAIS`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_vae._home import at_home
from ppl_vae._scopes import evaluation_mode, seeded
from ppl_vae._validation import check_positive_int, check_rows
from ppl_vae.capture import modules_of
from ppl_vae.evidence.blocks import MAX_BYTES, capacity
from ppl_vae.evidence.densities import Model
from ppl_vae.evidence.importance import from_log_weights
from ppl_vae.evidence.results import Evidence
from ppl_vae.objectives import DAIS, sample_log_weights
from ppl_vae.objectives.losses import Program


@at_home("data")
def dais(
    program: Model | Program,
    *data: Tensor,
    objective: DAIS,
    num_particles: int = 64,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Evidence:
    r"""Estimate log p(x) by K paths of uncorrected annealing from q(z|x): a lower bound in expectation.

    The estimate is :math:`\log \frac1K \sum_k w_k` with the weights of `objectives.DAIS`, whose step size and schedule
    are those that it has been trained to. `annealed`, which rejects and adapts its steps, needs no training and is
    nearer to log p(x) for long paths; this is cheap for short ones. Like all that starts at q, it hardly leaves the
    modes that q covers, and `error` does not show it.

    Args:
        program: The `VAE`, or a ``(model, guide)`` pair.
        *data: The arguments of the program: x, (n, *x_shape), and further tensors of n rows.
        objective: The objective, trained or not.
        num_particles: K, which replaces the objective's.
        seed: The seed of all draws; the global random state is left alone.
        max_bytes: About the most memory that decoded data take at once. It decides how many data run side by side, and
            so which draws each datum gets.

    Returns:
        The evidence, method ``"dais"``, kind ``"lower"``, with the details of `from_log_weights`.

    Raises:
        TypeError: If the latent is not one site of real, unconstrained values.
        ValueError: If an argument does not fit, or a weight is not a number.

    Reference:
        Differentiable Annealed Importance Sampling and the Perils of Gradient Noise (Zhang et al., 2021),
        https://arxiv.org/abs/2107.10211

    Example:
        >>> from ppl_vae import VAE, likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> found = dais(vae, vae.sample(3, mean=False), objective=DAIS(transitions=2))
        >>> found.method, found.kind, len(found)
        ('dais', 'lower', 3)
    """
    check_positive_int(num_particles, "dais: num_particles")
    check_positive_int(max_bytes, "dais: max_bytes")
    check_rows(data, "dais")
    if isinstance(program, Model):
        vae: Any = program
        program = (vae.model, vae.guide)
    rows = max(1, capacity(data[0], max_bytes) // num_particles)
    parts = []
    with torch.no_grad(), seeded(seed), evaluation_mode(*modules_of(*program)):
        for block in zip(*(d.split(rows) for d in data), strict=True):
            start = sample_log_weights(*program, *block, num_particles=num_particles)
            parts.append(replace(from_log_weights(objective.log_weights(start)), method="dais"))
    return Evidence.joined(parts)
