r"""What a semi-supervised model knows of labels: the error of its classifier, and its bound without them."""

from __future__ import annotations

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
    vae: SemiSupervisedVAE, x: Tensor, y: Tensor, size: int, exact: bool, seed: int, **options: Any
) -> list[dict[str, Tensor]]:
    r"""Return the figures of each datum by name: of the classifier for all data, and without labels for the first.

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
        log_q, known = vae.q_y(x).logits.squeeze(-2).double(), vae.q_y(x, y)
    label, loss = known.mode.argmax(-1), -known.label_log_prob.double()
    wrong = (log_q.argmax(-1) != label).double()
    found = [{"classification_error": wrong, "confidence": log_q.exp().amax(-1), "label_log_loss": loss}]
    if size:
        x, label, log_q = x[:size], label[:size], log_q[:size]
        given = [elbo(VAEDensities(vae.given(c)), x, seed=seed).elbo for c in range(log_q.shape[1])]
        bounds = torch.stack(given, 1) + vae.p_y().logits.squeeze(-2)
        found.append({"unlabelled_bound": expected(log_q.exp(), bounds - log_q).sum(-1)})
    if size and exact:
        joint = vae.log_joint(x, seed=seed, **options).log_evidence
        found[1] |= {"log_marginal": joint.logsumexp(-1), "model_error": (joint.argmax(-1) != label).double()}
        found[1]["unlabelled_gap"] = found[1]["log_marginal"] - found[1]["unlabelled_bound"]
    return found
