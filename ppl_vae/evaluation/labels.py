r"""What a semi-supervised model knows of labels: the error of its classifier, and its bound without them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ppl_vae._numbers import expected
from ppl_vae._scopes import evaluation_mode
from ppl_vae.evaluation.elbo import elbo
from ppl_vae.evidence.densities import VAEDensities
from ppl_vae.programs import SemiSupervisedVAE


@torch.no_grad()
def label_values(
    vae: SemiSupervisedVAE, x: Tensor, y: Tensor, *, size: int, exact: bool, seed: int = 0, **options: Any
) -> Iterator[dict[str, Tensor]]:
    r"""Yield the figures of each datum by name: of the classifier for all data, then without labels for the first.

    With the bound :math:`\mathcal L(x, y)` of every label, that of log p(x) is
    :math:`\mathcal U(x) = \sum_y q(y|x) (\mathcal L(x, y) - \log q(y|x))`.

    Args:
        vae: The model.
        x: The data.
        y: Their labels, all known.
        size: The number of first data for which the label is forgotten, which costs C evaluations; 0 for none.
        exact: Whether log p(x|y) is exact, so that log p(x) is worth its cost.
        seed: The seed of Monte Carlo.
        **options: Those of `log_evidence`.
    """
    with evaluation_mode(vae):
        q_y = vae.q_y(x, y)
        log_q = vae.q_y(x).logits.squeeze(-2).double()  # (n, C)
    yield {
        "classification_error": vae.mistakes(x, y).double(),
        "confidence": log_q.exp().amax(-1),
        "label_log_loss": -q_y.label_log_prob.double(),
    }
    if not size:
        return
    some, label, log_q = x[:size], q_y.mode[:size].argmax(-1, keepdim=True), log_q[:size]
    classes = range(log_q.shape[1])
    bounds = torch.stack([elbo(VAEDensities(vae.given(c)), some, seed=seed).elbo for c in classes], 1)
    bounds = bounds + vae.p_y().logits.squeeze(-2)
    values = {"unlabelled_bound": expected(log_q.exp(), bounds - log_q).sum(-1)}
    if exact:
        joint = vae.log_joint(some, seed=seed, **options).log_evidence
        values["log_marginal"] = joint.logsumexp(-1)
        values["unlabelled_gap"] = values["log_marginal"] - values["unlabelled_bound"]
        values["model_error"] = (joint.argmax(-1, keepdim=True) != label).squeeze(-1).double()
    yield values
