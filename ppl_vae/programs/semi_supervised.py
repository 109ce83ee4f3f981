r"""A conditional VAE that learns from data of which few have labels: the model M2 of Kingma et al. (2014)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_validation_enabled
from torch import Tensor, nn

from ppl_vae._home import at_home
from ppl_vae._scopes import evaluation_mode
from ppl_vae.distributions.one_hot import OneHotVector
from ppl_vae.distributions.partly_known import PartlyKnown
from ppl_vae.evidence.log_evidence import log_evidence
from ppl_vae.evidence.results import Evidence
from ppl_vae.networks import NetworkFactory, ParameterNetwork, Shape
from ppl_vae.vae import VAE

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from ppl_vae.data import Dataset


class SemiSupervisedVAE(VAE):
    r"""p(y) p(z) p(x|z, y) with q(y|x) q(z|x, y), where the label y of most data is unknown.

    .. math::
        \log p(x, y) \ge \mathcal L(x, y) = \mathbb E_{q(z|x,y)}[\log p(x|z,y) + \log p(y) + \log p(z) - \log q(z|x,y)],
        \qquad
        \log p(x) \ge \mathcal U(x) = \sum_y q(y|x)\, (\mathcal L(x, y) - \log q(y|x)).

    A row of zeros in y is an unknown label. Objective `EnumeratedELBO` is L for a datum with a label and U for one
    without, and regularizer `LabelLikelihood` the classification term of the paper: **without it the labels hardly
    reach the classifier**. A step costs about C steps of a conditional VAE, since all C labels are decoded. With few
    labels the classes that the model finds need not be those of the labels. **The probabilities of the classifier are
    often too sure**; `log_joint` gives the model's own, p(y|x).

    It is a conditional `VAE` besides: `given` is the model of one label. Evidence is that of what the program scores,
    log p(x, y) where the label is known and log p(x) elsewhere. Where a label is unknown, `encode` and
    `reconstruct` take the most probable one. A row of y may be a multiple of a one-hot row: its sum is the weight of
    the datum in a sum over data, by which copies of a datum count once (`data.conditions.with_few_labels`).

    Args:
        data: The data set, with one-hot labels as second column, or the shape of one datum.
        classifier: The network of q(y|x), x to C logits: a factory or an ``nn.Module``; ``MLP()`` by default.
        class_probs: p(y) up to a factor, such as the counts of the classes, (C,); uniform by default.
        **pieces: prior, likelihood, posterior and `y_shape`, as in `VAE`.

    Raises:
        ValueError: If there are no labels, p(y) is not a finite number above 0 for each, or as in `VAE`.

    Reference:
        Semi-supervised Learning with Deep Generative Models (Kingma et al., 2014), https://arxiv.org/abs/1406.5298

    Example:
        >>> from ppl_vae import likelihoods, posteriors, priors
        >>> vae = SemiSupervisedVAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...                         posterior=posteriors.DiagonalNormal(), y_shape=(10,))
        >>> x = vae.sample(3)
        >>> vae.classify(x).shape, vae.encode(x).shape, vae.given(7).sample(2).shape
        (torch.Size([3, 10]), torch.Size([3, 2]), torch.Size([2, 64]))
    """

    roles: ClassVar[tuple[str, ...]] = (*VAE.roles, "classifier")
    class_logits: Tensor

    def __init__(
        self,
        data: Dataset | Shape,
        *,
        classifier: NetworkFactory | nn.Module | None = None,
        class_probs: Sequence[float] | None = None,
        **pieces: Any,
    ) -> None:
        super().__init__(data, **pieces)
        if self.y_shape is None or self.y_shape[0] < 2:
            raise ValueError(f"SemiSupervisedVAE: y_shape is {self.y_shape}; expected (C,), or data with C >= 2 labels")
        made = classifier if isinstance(classifier, ParameterNetwork) else ParameterNetwork(classifier, "classifier")
        self.classifier: ParameterNetwork = made
        self.classifier.build(self.x_shape, self.y_shape)
        probs = torch.ones(self.y_shape) if class_probs is None else torch.as_tensor(class_probs)
        if probs.shape != self.y_shape or not bool(((probs > 0) & probs.isfinite()).all()):
            raise ValueError(
                f"SemiSupervisedVAE: class_probs is {class_probs!r}; expected a finite number above 0 for each class"
            )
        self.register_buffer("class_logits", probs.log().log_softmax(-1).to(torch.get_default_dtype()))

    def p_y(self) -> OneHotVector:
        """Return p(y) over one-hot labels, batch shape ()."""
        return OneHotVector(self.class_logits.unsqueeze(-2))

    def q_y(self, x: Float[Tensor, " batch *x_shape"], y: Tensor | None = None) -> PartlyKnown:
        """Return q(y|x), batch shape (batch,): a point mass where the label is known."""
        (logits,) = self.classifier(x)
        y = torch.zeros_like(logits) if y is None else self.one_hot(y).to(logits)
        return PartlyKnown(logits, y / _sums(y))

    def q_z(self, x: Tensor, y: Tensor | None = None) -> Any:
        """Return q(z|x, y), batch shape (batch,), with the most probable label where it is unknown."""
        return super().q_z(x, self.q_y(x, y).mode)

    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Run p(x, y, z): score `x` and the labels that are known, or without `x` sample `size` data."""
        self._register()
        rows = pyro.plate("data", self._size(y if x is None else x, size), dim=-1)
        with rows, self._weighted(y):
            label = pyro.sample("y", self.p_y())
        prior = self.p_z(label)  # outside the plate: its parameters are not per datum
        with rows, self._weighted(y):
            z = pyro.sample("z", prior)
            return pyro.sample("x", self.p_x(z, label), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Run q(y|x) q(z|x, y)."""
        self._register()
        with pyro.plate("data", self._size(x, size), dim=-1), self._weighted(y):
            label = pyro.sample("y", self.q_y(x, y))
            batch = torch.broadcast_shapes(label.shape[:-1], x.shape[:1])
            q_z = super().q_z(x.expand(*batch, *self.x_shape), label.expand(*batch, -1))
            return pyro.sample("z", q_z)

    @at_home("x", rows=True)
    @torch.no_grad()
    def classify(self, x: Float[Tensor, " batch *x_shape"]) -> Float[Tensor, "batch C"]:
        """Return q(y|x), the probability of each class, in evaluation mode."""
        with evaluation_mode(self):
            return self.q_y(x).probs.squeeze(-2)

    def mistakes(self, x: Float[Tensor, " batch *x_shape"], y: Tensor) -> Bool[Tensor, " known"]:
        """Return for each datum with a known label whether another class is the most probable."""
        label = self.one_hot(y).to(self.class_logits)
        known = label.sum(-1) > 0
        return self.classify(x[known]).argmax(-1) != label[known].argmax(-1)

    @at_home("x", "y", rows=True)
    def reconstruct(
        self, x: Float[Tensor, " batch *x_shape"], y: Tensor | None = None
    ) -> Float[Tensor, " batch *x_shape"]:
        """Return the mean of p(x|z, y) at the centre of q(z|x, y), with the most probable label where it is unknown."""
        with evaluation_mode(self), torch.no_grad():
            return self.decode(self.encode(x, y), self.q_y(x, y).mode)

    def sample(self, size: int = 16, *, y: Tensor | None = None, mean: bool = True) -> Float[Tensor, " size *x_shape"]:
        """Return data from the model, as `VAE.sample`; without `y` of labels drawn from p(y)."""
        return super().sample(y=self.p_y().sample((size,)) if y is None else y, mean=mean)

    @at_home("x", "y", float64=True)
    def log_joint(self, x: Float[Tensor, " n *x_shape"], y: Tensor | None = None, **options: Any) -> Evidence:
        """Return log p(x, y) of each datum with every label, (n, C), and its error.

        Args:
            x: The data.
            y: Labels; with a known one the datum has no other label, of which log p(x, y) is then minus infinity.
            **options: Those of `log_evidence`, which finds log p(x|y) for each label: exact where possible.
        """
        possible = torch.ones(len(x), len(self.class_logits), dtype=torch.bool, device=x.device)
        if y is not None:
            label = self.one_hot(y) > 0
            possible = label | ~label.any(-1, keepdim=True)
        values = torch.full(possible.shape, -torch.inf, dtype=torch.float64, device=x.device)
        errors, parts = torch.zeros_like(values), list[Evidence]()
        for c, rows in enumerate(possible.T):
            if rows.any() or not len(x):  # no data: refused there
                parts.append(log_evidence(self.given(c), x[rows], **options))
                values[rows, c], errors[rows, c] = parts[-1].log_evidence, parts[-1].error
        return Evidence(values + self.p_y().logits.squeeze(-2), errors, parts[0].method, parts[0].kind)

    def evidence(self, x: Float[Tensor, " n *x_shape"], y: Tensor | None = None, **options: Any) -> Evidence:
        """Return log p(x, y) of data with a known label and log p(x) of others, of which L and U are the bounds.

        `log_evidence` calls this method. For log p(x|y) use ``log_evidence(vae.given(y), x)``.
        """
        joint = self.log_joint(x, y, **options)
        log_p = joint.log_evidence.logsumexp(-1)
        share = joint.log_evidence.softmax(-1)  # of a label that is as good as impossible its error is no matter
        error = torch.where(share > 0, share * joint.error, 0.0).sum(-1)
        return replace(joint, log_evidence=log_p, error=error)

    def given(self, y: Tensor | int) -> VAE:
        """Return the model at one label, p(z) p(x|z, y) with q(z|x, y), as an unconditional `VAE`."""
        value = torch.as_tensor(y)
        if value.dim() and (value != 0).sum() != 1:
            raise ValueError(f"SemiSupervisedVAE.given: y is {y}, whose label is unknown; expected a one-hot row")
        _check_rows(torch.atleast_2d(value))
        given = super().given(value / _sums(value) if value.dim() else y)
        given.__class__ = VAE
        del given.classifier, given.class_logits
        return given

    def check_support(self, data: Dataset) -> str | None:
        """Check as `VAE.check_support`, and that each row of y is a multiple of a one-hot row, or zeros.

        Raises:
            ValueError: If data lie outside the support, or a row of y is no label.
        """
        for y in (split.columns[1] for split in (data.train, data.validation) if len(split.columns) > 1):
            if isinstance(y, Tensor) and y.dim() == 2:
                _check_rows(y)
        return super().check_support(data)

    def _condition(self, role: str, y: Tensor | None, one: bool = False) -> tuple[Tensor, ...]:
        return tuple(value / _sums(value) for value in super()._condition(role, y, one))

    def one_hot(self, y: Tensor) -> Tensor:
        """Return labels (batch,) as one-hot rows, and rows as they are.

        Raises:
            ValueError: If `y` is neither, or Pyro's validation is on and a row is no multiple of a one-hot row.
        """
        if not y.is_floating_point() and y.dim() == 1:
            return self._one_hot(y)
        self._check_rows_of(y)
        if is_validation_enabled():
            _check_rows(y)
        return y

    def _weighted(self, y: Tensor | None) -> Any:
        """Return the handler of the weights of data, which the rows of y sum to."""
        return poutine.scale(scale=1.0 if y is None else _sums(self.one_hot(y).to(self.class_logits)).squeeze(-1))


def _check_rows(y: Tensor) -> None:
    """Refuse rows, (n, C), of which one is neither a multiple of a one-hot row nor zeros."""
    bad = ~((y >= 0) & y.isfinite()).all(-1) | ((y != 0).sum(-1) > 1)
    if bad.any():
        raise ValueError(
            f"row {int(bad.nonzero()[0, 0])} of the labels is {y[bad][0].tolist()}; expected a one-hot row times the "
            "weight of the datum, or zeros where the label is unknown"
        )


def _sums(y: Tensor) -> Tensor:
    """Return the sums of rows, (..., 1), and 1 for rows of zeros; without a gradient."""
    total = y.detach().sum(-1, keepdim=True)
    return torch.where(total > 0, total, 1.0)
