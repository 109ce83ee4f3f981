r"""The classification term of semi-supervised training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ppl_vae._distributions import unwrapped
from ppl_vae._validation import check_not_negative
from ppl_vae.distributions.partly_known import PartlyKnown
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.regularized import Penalty


@dataclass(frozen=True)
class LabelLikelihood:
    r"""The cross-entropy of the classifier q(y|x) on the data whose label is known.

    .. math::
        \mathcal J / N = \frac1N \Big(\sum_{\text{known}} \mathcal L(x, y) + \sum_{\text{others}} \mathcal U(x)\Big)
        + w\, \mathbb E_{\text{known}}[\log q(y|x)],

    the objective of the paper with :math:`\alpha = w N`. Without this term the classifier learns from unlabelled data
    alone: the bound of a labelled datum does not depend on it. **A batch without a known label has no such term**, so
    the effective w is smaller by the share of these batches: 1e-6 for batches of 128 with 10% of known labels
    (`data.conditions.with_few_labels`), 0.12 for batches of 20. Within a batch the mean over known labels is weighted
    by the scale of each datum. The value is a lower bound of log p(x) still, and says less about it: compare runs by
    `elbo`.

    Args:
        weight: w, nats of the bound for each nat of cross-entropy; 0.1 is the paper's.

    Raises:
        ValueError: If the weight is negative, or the program has no labels of which some are known.

    Reference:
        Semi-supervised Learning with Deep Generative Models (Kingma et al., 2014), https://arxiv.org/abs/1406.5298

    Example:
        >>> LabelLikelihood(0.1)
        LabelLikelihood(weight=0.1)
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        check_not_negative(self.weight, "regularizer LabelLikelihood: weight")

    def __call__(self, log_weights: LogWeights) -> Penalty | None:
        """Return the penalty of each datum."""
        if self.weight == 0:
            return None
        found = [q for q in map(unwrapped, log_weights.posterior.values()) if isinstance(q, PartlyKnown)]
        if len(found) != 1:
            raise ValueError(
                "regularizer LabelLikelihood needs one site of labels of which some are known, and the program has "
                f"{list(log_weights.posterior)}; use it with programs.SemiSupervisedVAE (--data.labels)"
            )
        log_q = found[0].label_log_prob
        scale = torch.ones_like(log_q) * log_weights.scale
        share = (scale * found[0].known).sum() / scale.sum()
        penalty = -self.weight * log_q / torch.where(share > 0, share, 1.0)
        return Penalty(penalty.detach(), penalty, True)
