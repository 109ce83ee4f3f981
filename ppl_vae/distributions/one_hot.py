r"""One or several categorical variables as one-hot vectors whose joint states can be listed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.kl import register_kl

from ppl_vae._numbers import expected, impossible
from ppl_vae._validation import check_positive_int
from ppl_vae.distributions.binary_vector import Listed
from ppl_vae.distributions.relaxed import Blocks

if TYPE_CHECKING:
    from jaxtyping import Float


class OneHotVector(Listed, Blocks):
    r"""V independent categorical variables of C classes, as one vector of V one-hot blocks.

    .. math::
        p(z) = \prod_{v=1}^V \prod_{c=1}^C \pi_{vc}^{z_{vc}}.

    The event is flat, (V * C,), like the latent of a VAE. `enumerate_support` lists all :math:`C^V` joint states if
    there are at most 2^20, which Pyro's ``OneHotCategorical(...).to_event(1)`` does not do.

    With a `temperature` T the draws are straight-through: they are exact one-hot draws and carry the gradient of the
    relaxed draw :math:`\mathrm{softmax}((\ell + \epsilon) / T)`, where :math:`\epsilon` is Gumbel. **That gradient is
    biased** for any T.

    Args:
        logits: :math:`\ell`, (*batch, V, C), up to a constant for each variable.
        temperature: T, a tensor that broadcasts to `logits`; None for draws without a gradient.

    Reference:
        Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), https://arxiv.org/abs/1611.01144

    Example:
        >>> OneHotVector(torch.zeros(2, 2)).enumerate_support()
        tensor([[1., 0., 1., 0.],
                [1., 0., 0., 1.],
                [0., 1., 1., 0.],
                [0., 1., 0., 1.]])
    """

    block = constraints.one_hot

    @property
    def probs(self) -> Float[Tensor, "*batch V C"]:
        """The probabilities."""
        return self.logits.exp()

    @property
    def mean(self) -> Float[Tensor, "*batch V*C"]:
        """The probabilities, which are not a state."""
        return self.probs.flatten(-2)

    @property
    def variance(self) -> Tensor:
        """The variance of each entry."""
        return self.mean * (1 - self.mean)

    def _log_prob(self, value: Tensor) -> Tensor:
        return impossible(value * self.logits.flatten(-2)).sum(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Return the entropy, in nats."""
        return -(self.probs * self.logits).sum((-1, -2))

    @property
    def _sizes(self) -> tuple[int, int]:  # type: ignore[override]
        return self.num_variables, self.num_classes

    def _relaxed(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1).flatten(-2)

    def _nearest(self, scores: Tensor) -> Tensor:
        classes = torch.arange(self.num_classes, device=scores.device)
        return (scores.argmax(-1, keepdim=True) == classes).to(scores).flatten(-2)

    def _states(self, values: Tensor) -> Tensor:
        # not torch's one_hot, which reads its largest index, so that no graph holds it
        return (values.unsqueeze(-1) == torch.arange(self.num_classes, device=values.device)).long()


@register_kl(OneHotVector, OneHotVector)
def _kl_one_hot_vectors(q: OneHotVector, p: OneHotVector) -> Tensor:
    return -expected(q.probs, p.logits - q.logits).sum((-1, -2))


def check_blocks(latent_dim: int, num_classes: int | None, name: str) -> int:
    """Return the number of variables, `latent_dim` divided by `num_classes`."""
    classes = latent_dim if num_classes is None else check_positive_int(num_classes, f"{name}: num_classes")
    if classes < 2 or latent_dim % classes:
        raise ValueError(
            f"{name}: {classes} classes do not divide a latent of {latent_dim} dimensions into blocks of at least 2; "
            "choose latent_dim a multiple of num_classes"
        )
    return latent_dim // classes
