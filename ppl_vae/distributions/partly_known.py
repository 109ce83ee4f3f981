r"""A categorical variable whose value is known for some rows: labels of which some are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_vae.distributions.one_hot import OneHotVector

if TYPE_CHECKING:
    from jaxtyping import Float


class PartlyKnown(OneHotVector):
    r"""One-hot labels of C classes: a point mass where the label is known, a categorical distribution elsewhere.

    .. math::
        q(y) = \begin{cases} 1[y = y^*] & \text{where } y^* \text{ is known} \\ \pi_y & \text{elsewhere.} \end{cases}

    A sum over all states weighted by q is then the term of the known label, whose log q is 0.

    Args:
        logits: The logits of pi, (*batch, C), up to a constant.
        label: y*, one-hot, (*batch, C), and a row of zeros where it is unknown.

    Attributes:
        known: Whether y* is known, (*batch).
        label_log_prob: log pi of y*, (*batch); 0 where it is unknown.

    Reference:
        Semi-supervised Learning with Deep Generative Models (Kingma et al., 2014), https://arxiv.org/abs/1406.5298

    Example:
        >>> q = PartlyKnown(torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        >>> q.probs.squeeze(-2)
        tensor([[0.0000, 1.0000],
                [0.5000, 0.5000]])
    """

    known: Tensor
    label_log_prob: Float[Tensor, "*batch"]

    def __init__(self, logits: Tensor, label: Tensor, validate_args: bool | None = None) -> None:
        self.known, self._class_logits = label.sum(-1) > 0, logits.unsqueeze(-2)
        self.label_log_prob = (label * logits.log_softmax(-1)).sum(-1)
        point = torch.where(label > 0, 0.0, -torch.inf)
        logits = torch.where(self.known.unsqueeze(-1), point.to(logits), logits)
        super().__init__(logits.unsqueeze(-2), validate_args=validate_args)

    @property
    def unlabelled(self) -> OneHotVector:
        """The distribution without y*, pi for all rows."""
        return OneHotVector(self._class_logits)
