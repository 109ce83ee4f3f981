r"""Practical measures: imputation of missing values, and nearest-neighbour accuracy in the latent space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ppl_vae._distributions import describe, unwrapped
from ppl_vae._home import at_home
from ppl_vae._scopes import evaluation_mode, seeded
from ppl_vae._validation import check_choice, check_positive_int
from ppl_vae.evaluation.bootstrap import Interval, interval
from ppl_vae.evaluation.table_errors import column_errors
from ppl_vae.vae import VAE

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Sampler = Literal["metropolis", "pseudo-gibbs", "importance"]


@dataclass(frozen=True)
class Imputation:
    r"""Data with their missing values imputed.

    Attributes:
        mean: The data with the posterior mean :math:`\mathbb E[x_\text{mis} | x_\text{obs}]` at the missing values,
            (n, *x_shape). In a categorical column of a table, it is the most likely code.
        draw: The data with one draw of :math:`p(x_\text{mis} | x_\text{obs})` at the missing values, the last of the
            first chain.
        error: The standard error of `mean` from the differences between chains; in a categorical column,
            that of the code's probability. Zero where observed, NaN for one chain.
        missing: Which values were missing.
        acceptance: The share of accepted proposals; one for pseudo-Gibbs. For importance sampling, the effective
            share of the draws.
    """

    mean: Float[Tensor, " n *x_shape"]
    draw: Float[Tensor, " n *x_shape"]
    error: Float[Tensor, " n *x_shape"]
    missing: Bool[Tensor, " n *x_shape"]
    acceptance: Float[Tensor, " n"]

    @at_home("x", program=None)
    def root_mean_square(self, x: Float[Tensor, " n *x_shape"]) -> Float[Tensor, " n"]:
        """Return the root mean squared error at the missing values; NaN where none was missing.

        Args:
            x: The true data.
        """
        return self._over_missing((self.mean - x).square()).sqrt()

    @at_home("x", program=None)
    def share_wrong(self, x: Float[Tensor, " n *x_shape"]) -> Float[Tensor, " n"]:
        """Return the share of missing binary values that the rounded mean gets wrong; NaN where none was missing.

        Args:
            x: The true data, 0 or 1.
        """
        return self._over_missing(((self.mean > 0.5) != (x > 0.5)).to(self.mean))

    def column_errors(self, x: Float[Tensor, "n columns"], columns: Sequence[str]) -> Float[Tensor, " columns"]:
        """Return `column_errors` of the mean over the missing entries.

        Args:
            x: The true data; NaN where the truth is unknown.
            columns: The kind of each column.
        """
        return column_errors(self.mean, x, self.missing, columns)

    def _over_missing(self, values: Tensor) -> Tensor:
        held = torch.where(self.missing, values, 0.0).flatten(1).sum(-1)
        return held.double() / self.missing.flatten(1).sum(-1)


@at_home("x", "missing", float64=True)
@torch.no_grad()
def impute(
    vae: VAE,
    x: Float[Tensor, " n *x_shape"],
    missing: Tensor | None = None,
    *,
    num_steps: int = 1000,
    num_warmup: int | None = None,
    num_chains: int = 4,
    sampler: Sampler = "metropolis",
    seed: int = 0,
) -> Imputation:
    r"""Impute the missing values of each datum from :math:`p(x_\text{mis} | x_\text{obs})`, by Markov chains.

    Each step of a chain encodes the datum with its present imputation, draws z from q(z|x), and draws the missing
    values from p(x|z). Pseudo-Gibbs accepts every z. Its limit is wrong by as much as q(z|x) differs from p(z|x).
    Metropolis-within-Gibbs replaces the chain's z by z' with probability

    .. math::
        \min\Big(1, \frac{p(x|z')\,p(z')\,q(z|x)}{p(x|z)\,p(z)\,q(z'|x)}\Big)

    and is exact in the limit. Both may be slow where q(z|x) misses a mode. Chains that start in the wrong mode stay
    there; a low `acceptance` and a large `error` between chains show this. The chains start with pseudo-Gibbs steps, as
    Mattei & Frellsen advise, from prior draws at the missing values. A step encodes the data of all chains once and
    decodes them twice.

    Importance sampling draws z from :math:`q(z|x_\text{obs})` alone and weighs the draws by
    :math:`p(x_\text{obs}|z)\,p(z)/q(z|x_\text{obs})`. Each chain is then `num_steps` independent draws. The result is
    biased by O(1 / steps), and poor where `acceptance` is low. The likelihood and the encoder must accept NaN
    (`likelihoods.Mixed`, `networks.TableEncoder`). This suits an encoder that was trained on incomplete rows; such an
    encoder does not suit filled rows.

    `mean` averages the means of p(x|z) along the chain (Rao-Blackwell), not draws of x.

    Args:
        vae: The model; its likelihood must have independent values.
        x: The data. Entries at missing values are never read, and may be NaN.
        missing: A boolean mask, True where missing, of a shape that broadcasts to that of `x`; by default the mask of
            NaN entries.
        num_steps: The steps that are averaged.
        num_warmup: The steps before them, of which the first half is pseudo-Gibbs; by default a fifth of `num_steps`.
        num_chains: The chains per datum.
        sampler: ``"metropolis"``, ``"pseudo-gibbs"`` or ``"importance"``.
        seed: The seed of the draws; the global random state is left alone.

    Raises:
        TypeError: If `missing` is not boolean.
        ValueError: For shapes that do not fit, or a likelihood whose values depend on each other.

    Reference:
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende, Mohamed & Wierstra,
        2014), https://arxiv.org/abs/1401.4082; Leveraging the Exact Likelihood of Deep Latent Variable Models
        (Mattei & Frellsen, 2018), https://arxiv.org/abs/1802.04826; MIWAE: Deep Generative Modelling and Imputation of
        Incomplete Data Sets (Mattei & Frellsen, 2019), https://arxiv.org/abs/1812.02633

    Example:
        >>> from ppl_vae import likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(torch.nn.Linear(2, 64)),
        ...           posterior=posteriors.DiagonalNormal(torch.nn.Linear(64, 4)))
        >>> x, missing = torch.ones(3, 64), torch.arange(64) < 32
        >>> filled = impute(vae, x, missing, num_steps=10)
        >>> torch.equal(filled.mean[:, 32:], x[:, 32:]), filled.root_mean_square(x).shape
        (True, torch.Size([3]))
    """
    check_choice(sampler, get_args(Sampler), "impute: sampler")
    check_positive_int(num_steps, "impute: num_steps")
    check_positive_int(num_chains, "impute: num_chains")
    warmup = max(2, num_steps // 5) if num_warmup is None else check_positive_int(num_warmup, "impute: num_warmup")
    holes = _checked(vae, x, x.isnan() if missing is None else missing)
    chain = lambda t: t.repeat_interleave(num_chains, 0)  # noqa: E731
    with seeded(seed), evaluation_mode(vae):
        likelihood = vae.p_x(vae.p_z().sample((2,)))
        if unwrapped(likelihood).event_shape and not _takes_missing(likelihood):
            raise ValueError(
                f"impute: under the likelihood {describe(likelihood)} values depend on each other given z, so that "
                "missing ones cannot be drawn by themselves; expected independent ones, such as "
                "Bernoulli(...).to_event(3)"
            )
        if sampler == "importance":
            moments, filled, taken = _importance(vae, chain(torch.where(holes, torch.nan, x)), num_steps)
        else:
            start = chain(torch.where(holes, 0.0, x).to(x))
            moments, filled, taken = _markov(vae, start, chain(holes), warmup, num_steps, sampler)
    chains, draws, taken = (t.unflatten(0, (len(x), num_chains)) for t in (moments, filled, taken))  # (n, chains, ...)
    mean = chains.mean(1)
    error = chains.std(1) / math.sqrt(num_chains) if num_chains > 1 else torch.full_like(mean, torch.nan)
    if _takes_missing(likelihood):
        mean, error = likelihood.point(mean, error)
    return Imputation(
        mean=torch.where(holes, mean, x),
        draw=torch.where(holes, draws[:, 0], x),
        error=torch.where(holes, error, 0.0),
        missing=holes,
        acceptance=taken.mean(1),
    )


def _markov(
    vae: VAE, x: Tensor, hole: Tensor, warmup: int, num_steps: int, sampler: Sampler
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the averaged moments of p(x|z), the last imputation and the share accepted, of each chain."""
    filled = torch.where(hole, vae.p_x(vae.p_z().sample((len(hole),))).sample(), x)
    z = vae.q_z(filled).sample()
    likelihood = vae.p_x(z)
    total, taken = torch.zeros_like(_moments(likelihood)), torch.zeros(len(hole), dtype=torch.float64, device=x.device)
    for step in range(warmup + num_steps):
        q = vae.q_z(filled)
        proposed = q.sample()
        proposal = vae.p_x(proposed)
        if sampler == "pseudo-gibbs" or step < warmup // 2:
            accepted = torch.ones(len(hole), dtype=torch.bool, device=x.device)
        else:
            ratio = _log_weight(vae, proposal, proposed, q, filled) - _log_weight(vae, likelihood, z, q, filled)
            accepted = torch.rand_like(ratio).log() < ratio
        z = torch.where(accepted[:, None], proposed, z)
        likelihood = vae.p_x(z)
        filled = torch.where(hole, likelihood.sample(), filled)
        if step >= warmup:
            total += _moments(likelihood)
            taken += accepted
    return total / num_steps, filled, taken / num_steps


def _importance(vae: VAE, x: Tensor, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return weighted moments of p(x|z), one imputation (its z drawn by weight) and the effective share, per chain."""
    if not _takes_missing(vae.p_x(vae.p_z().sample((2,)))):
        raise ValueError(
            "impute: sampler 'importance' needs a likelihood that integrates missing values out, such as Mixed; "
            "expected 'metropolis' for this one"
        )
    try:
        q = vae.q_z(x)
        broken = bool(q.sample().isnan().any())
    except ValueError:  # Pyro's validation of its parameters
        broken = True
    if broken:
        raise ValueError(
            "impute: sampler 'importance' encodes rows with NaN, and the posterior does not take them; give it "
            "networks.TableEncoder, or choose 'metropolis'"
        )
    top = torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device)
    total, squares, kept = torch.zeros_like(top), torch.zeros_like(top), q.sample()
    sums = torch.zeros_like(_moments(vae.p_x(kept)))
    spread = lambda t: t.reshape(-1, *[1] * (sums.dim() - 1))  # noqa: E731
    for _ in range(num_steps):
        z = q.sample()
        likelihood = vae.p_x(z)
        log_w = _log_weight(vae, likelihood, z, q, x)
        now = torch.maximum(top, log_w)
        old, new = (top - now).exp(), (log_w - now).exp()
        total, squares = total * old + new, squares * old.square() + new.square()
        sums = sums * spread(old) + spread(new) * _moments(likelihood)
        # each draw is kept with the probability of its share of the weight
        kept = torch.where((torch.rand_like(total) * total < new)[:, None], z, kept)
        top = now
    return sums / spread(total), vae.p_x(kept).sample(), (total.square() / squares / num_steps).double()


@at_home("train_means", "train_labels", "test_means", "test_labels", program=None)
def knn_accuracy(
    train_means: Float[Tensor, "m d"],
    train_labels: Int[Tensor, " m"],
    test_means: Float[Tensor, "n d"],
    test_labels: Int[Tensor, " n"],
    *,
    k: int = 5,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    r"""Return the accuracy of k-nearest-neighbour classification on latent means, with a bootstrap interval.

    The accuracy measures how well the latent space separates labels that the model never saw. Euclidean distance counts
    every dimension alike, so the accuracy depends on the scale of z, and unused dimensions add noise. The labelled data
    must be separate from the scored data: give the encoded training set and the encoded test set. The interval covers
    the choice of test data, not the choice of neighbours.

    Args:
        train_means: Means of q(z|x) of data with known labels, such as ``vae.encode(x)``.
        train_labels: Their labels, integers.
        test_means: The means of the scored data.
        test_labels: Their labels.
        k: The number of neighbours that vote, 1 to m.
        level: See `interval`.
        num_resamples: See `interval`.
        seed: See `interval`.

    Returns:
        The share of correct labels, in [0, 1].

    Raises:
        ValueError: If lengths or dimensions do not fit, or k exceeds m.

    Example:
        >>> means = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> knn_accuracy(means, labels, means + 0.02, labels, k=1).value
        1.0
    """
    if check_positive_int(k, "knn_accuracy: k") > len(train_means):
        raise ValueError(f"knn_accuracy: k is {k} with {len(train_means)} labelled data; expected at most as many")
    pairs = ((train_means, train_labels), (test_means, test_labels))
    if train_means.shape[1:] != test_means.shape[1:] or any(m.dim() != 2 or m.shape[:1] != t.shape for m, t in pairs):
        shapes = ", ".join(str(tuple(t.shape)) for pair in pairs for t in pair)
        raise ValueError(f"knn_accuracy was given shapes {shapes}; expected (m, d), (m,), (n, d), (n,)")
    arrays = [t.detach().cpu().numpy() for t in (train_means, train_labels, test_means)]
    classifier = KNeighborsClassifier(n_neighbors=k).fit(arrays[0], arrays[1])
    right = torch.from_numpy(classifier.predict(arrays[2])) == test_labels.cpu()
    return interval(right.double(), level=level, num_resamples=num_resamples, seed=seed)


def _checked(vae: VAE, x: Tensor, missing: Tensor) -> Tensor:
    """Return the mask in the shape of the data, after checks."""
    if missing.dtype != torch.bool:
        raise TypeError(f"impute: missing has dtype {missing.dtype}; expected a boolean mask, True where missing")
    if tuple(x.shape[1:]) != vae.x_shape:
        raise ValueError(f"impute: x has shape {tuple(x.shape)}; expected (n, *{vae.x_shape})")
    try:
        holes = missing.expand(x.shape)
    except RuntimeError as error:
        raise ValueError(
            f"impute: missing has shape {tuple(missing.shape)}; expected that of x, {tuple(x.shape)}"
        ) from error
    if not bool(torch.isfinite(x[~holes]).all()):
        raise ValueError("impute: an observed value is NaN or infinite; mark it in missing")
    return holes


def _takes_missing(likelihood: Any) -> bool:
    """Return whether a distribution integrates NaN out, as `MixedColumns` does; its values are then independent."""
    return bool(getattr(likelihood, "takes_missing", False))


def _moments(likelihood: Any) -> Tensor:
    """Return the moments that are averaged over z: the mean, or those of a table's columns."""
    return likelihood.moments if _takes_missing(likelihood) else likelihood.mean


def _log_weight(vae: VAE, likelihood: Any, z: Tensor, q: Any, x: Tensor) -> Tensor:
    """Return log p(x|z) + log p(z) - log q(z|x), (n,)."""
    return likelihood.log_prob(x) + vae.p_z().log_prob(z) - q.log_prob(z)
