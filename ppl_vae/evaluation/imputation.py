r"""Imputation: means, draws and intervals of missing values given the observed ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from ppl_vae._distributions import describe, unwrapped
from ppl_vae._home import at_home
from ppl_vae._scopes import evaluation_mode, seeded
from ppl_vae._tensors import as_numbers
from ppl_vae._validation import check_choice, check_positive_int, is_real
from ppl_vae.evaluation.table_errors import column_errors
from ppl_vae.programs import NotMIWAE
from ppl_vae.vae import VAE

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Sampler = Literal["metropolis", "pseudo-gibbs", "importance"]


@dataclass(frozen=True)
class Imputation:
    r"""Data with their missing values imputed.

    Attributes:
        mean: The data with the posterior mean :math:`\mathbb E[x_\text{mis} | x_\text{obs}]` at the missing values,
            (n, *x_shape). In a categorical column of a table, it is the most likely code.
        draws: The data with draws of :math:`p(x_\text{mis} | x_\text{obs})` at the missing values, as many as were
            asked for, (m, n, *x_shape): multiple imputation. They come from the chains in turn, the last state of each
            first.
        error: The standard error of `mean` from the differences between chains; in a categorical column,
            that of the code's probability. Zero where observed, NaN for one chain.
        missing: Which values were missing.
        acceptance: The share of accepted proposals; one for pseudo-Gibbs. For importance sampling, the effective
            share of the draws.
        is_code: Which values are categorical codes, which have no order, ``x_shape``; None if there are none.
    """

    mean: Float[Tensor, " n *x_shape"]
    draws: Float[Tensor, " m n *x_shape"]
    error: Float[Tensor, " n *x_shape"]
    missing: Bool[Tensor, " n *x_shape"]
    acceptance: Float[Tensor, " n"]
    is_code: Bool[Tensor, " *x_shape"] | None = None

    @property
    def draw(self) -> Float[Tensor, " n *x_shape"]:
        """The first of `draws`."""
        return self.draws[0]

    def interval(self, level: float = 0.9) -> tuple[Float[Tensor, " n *x_shape"], Float[Tensor, " n *x_shape"]]:
        r"""Return the lower and upper end of an interval that holds each missing value with probability `level`.

        The ends are order statistics of `draws`, interpolated at the places (m + 1)(1 - level) / 2 and
        (m + 1)(1 + level) / 2. Of independent draws of the true :math:`p(x_\text{mis} | x_\text{obs})` their coverage
        is then `level` at any m, exactly for a uniform density and nearly for others.
        It is as wrong as the model, and short where `acceptance` is low. An observed value is both of its ends. A
        categorical code has NaN, as codes have no order.

        Args:
            level: The probability, between 0 and 1.

        Raises:
            ValueError: For another level, or too few draws for its ends: 19 are the fewest for 0.9.
        """
        if not is_real(level) or not 0 < level < 1:
            raise ValueError(f"Imputation.interval: level is {level!r}; expected a number between 0 and 1")
        m = len(self.draws)
        places = [round((1 + sign * level) / 2 * (m + 1) - 1, 9) for sign in (-1, 1)]  # from 0
        if places[0] < 0:
            fewest = f"num_draws={math.ceil(round(2 / (1 - level) - 1, 9))}"
            raise ValueError(
                f"Imputation.interval: {m} draws are too few at level {level}; give impute {fewest} or more"
            )
        ordered = self.draws.sort(0).values
        ends = [ordered[int(p)].lerp(ordered[min(int(p) + 1, m - 1)], p - int(p)) for p in places]
        if self.is_code is not None:
            ends = [torch.where(self.is_code, torch.nan, end) for end in ends]
        return ends[0], ends[1]

    @at_home("x", program=None)
    def root_mean_square(self, x: Float[Tensor, " n *x_shape"]) -> Float[Tensor, " n"]:
        """Return the root mean squared error at the missing values; NaN where none was missing.

        Args:
            x: The true data.
        """
        x = as_numbers(x, self.mean.dtype, "root_mean_square: x")
        return self._over_missing((self.mean - x).square()).sqrt()

    @at_home("x", program=None)
    def share_wrong(self, x: Float[Tensor, " n *x_shape"]) -> Float[Tensor, " n"]:
        """Return the share of missing binary values that the rounded mean gets wrong; NaN where none was missing.

        Args:
            x: The true data, 0 or 1.
        """
        x = as_numbers(x, self.mean.dtype, "share_wrong: x")
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
    vae: VAE | NotMIWAE,
    x: Float[Tensor, " n *x_shape"],
    missing: Tensor | None = None,
    *,
    num_draws: int = 1,
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

    Multiple imputation is several `draws` in place of one mean: what is computed from each completed table, such as a
    variance or a regression, then varies as missing values make it vary, while on the table of means it is too certain.
    Draws of a Markov chain are its states at equal distances, and so depend on each other. By importance sampling
    each draw takes a z by its weight, and a low `acceptance` means few distinct z.

    A `NotMIWAE` is imputed by importance sampling. A draw is then a pair of z and :math:`x_\text{mis}`, its weight has
    the factor :math:`p(s|x_\text{obs}, x_\text{mis})`, and `mean` averages draws. Its mask is that of NaN: a `missing`
    that hides entries that are there is refused, since the mechanism would explain why they are missing.

    Args:
        vae: The model; its likelihood must have independent values. Or a `NotMIWAE`.
        x: The data. Entries at missing values are never read, and may be NaN.
        missing: A boolean mask, True where missing, of a shape that broadcasts to that of `x`; by default the mask of
            NaN entries.
        num_draws: The number of draws to return, at most ``num_steps * num_chains``.
        num_steps: The steps that are averaged.
        num_warmup: The steps before them, of which the first half is pseudo-Gibbs; by default a fifth of `num_steps`.
        num_chains: The chains per datum.
        sampler: ``"metropolis"``, ``"pseudo-gibbs"`` or ``"importance"``.
        seed: The seed of the draws; the global random state is left alone.

    Raises:
        TypeError: If `missing` is not boolean.
        ValueError: For shapes that do not fit, a likelihood whose values depend on each other, more draws than there
            are steps, or another sampler than importance sampling for a `NotMIWAE`.

    Reference:
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende, Mohamed & Wierstra,
        2014), https://arxiv.org/abs/1401.4082; Leveraging the Exact Likelihood of Deep Latent Variable Models
        (Mattei & Frellsen, 2018), https://arxiv.org/abs/1802.04826; MIWAE: Deep Generative Modelling and Imputation of
        Incomplete Data Sets (Mattei & Frellsen, 2019), https://arxiv.org/abs/1812.02633, whose imputation is
        ``sampler="importance"``; not-MIWAE (Ipsen, Mattei & Frellsen, 2021), https://arxiv.org/abs/2006.12871

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
    if check_positive_int(num_draws, "impute: num_draws") > (most := num_steps * num_chains):
        raise ValueError(f"impute: num_draws is {num_draws}; expected at most {most}, num_steps * num_chains")
    warmup = max(2, num_steps // 5) if num_warmup is None else check_positive_int(num_warmup, "impute: num_warmup")
    program, model = (vae, vae.vae) if isinstance(vae, NotMIWAE) else (None, vae)
    if program is not None and sampler != "importance":
        raise ValueError(f"impute: sampler {sampler!r} would leave p(s|x) of NotMIWAE out; expected 'importance'")
    holes = _checked(model, x, x.isnan() if missing is None else missing)
    if program is not None and bool((holes & ~x.isnan()).any()):
        raise ValueError(
            "impute: missing hides entries that are no NaN, of which NotMIWAE would explain the loss; set "
            "them to NaN if they are missing, or impute by program.vae"
        )
    chain = lambda t: t.repeat_interleave(num_chains, 0)  # noqa: E731
    each = -(-num_draws // num_chains)  # draws of a chain
    with seeded(seed), evaluation_mode(vae):
        likelihood = model.p_x(model.p_z().sample((2,)))
        if unwrapped(likelihood).event_shape and not _takes_missing(likelihood):
            raise ValueError(
                f"impute: under the likelihood {describe(likelihood)} values depend on each other given z, so that "
                "missing ones cannot be drawn by themselves; expected independent ones, such as "
                "Bernoulli(...).to_event(3)"
            )
        if sampler == "importance":
            moments, drawn, taken = _importance(
                model, program, chain(torch.where(holes, torch.nan, x)), num_steps, each
            )
        else:
            start = chain(torch.where(holes, 0.0, x).to(x))
            moments, drawn, taken = _markov(model, start, chain(holes), warmup, num_steps, sampler, each)
    chains, taken = (t.unflatten(0, (len(x), num_chains)) for t in (moments, taken))  # (n, chains, ...)
    draws = drawn.unflatten(1, (len(x), num_chains)).movedim(2, 1).flatten(0, 1)[:num_draws]
    mean = chains.mean(1)
    error = chains.std(1) / math.sqrt(num_chains) if num_chains > 1 else torch.full_like(mean, torch.nan)
    if _takes_missing(likelihood) and program is None:
        mean, error = likelihood.point(mean, error)
    return Imputation(
        mean=torch.where(holes, mean, x),
        draws=torch.where(holes, draws, x),
        error=torch.where(holes, error, 0.0),
        missing=holes,
        acceptance=taken.mean(1),
        is_code=likelihood.is_code.to(x.device) if _takes_missing(likelihood) else None,
    )


def _markov(
    vae: VAE, x: Tensor, hole: Tensor, warmup: int, num_steps: int, sampler: Sampler, num_draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the averaged moments of p(x|z), the last of spaced imputations first, and the share accepted."""
    filled = torch.where(hole, vae.p_x(vae.p_z().sample((len(hole),))).sample(), x)
    z = vae.q_z(filled).sample()
    likelihood, drawn = vae.p_x(z), list[Tensor]()
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
        left, rest = divmod(warmup + num_steps - 1 - step, num_steps // num_draws)
        if not rest and left < num_draws:
            drawn.append(filled)
    return total / num_steps, torch.stack(drawn[::-1]), taken / num_steps


def _importance(
    vae: VAE, program: NotMIWAE | None, x: Tensor, num_steps: int, num_draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weighted moments of p(x|z), imputations (their z drawn by weight) and the effective share, per chain.

    Of a `NotMIWAE`, what is averaged and drawn by weight is the row, not z.
    """
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
    total, squares = torch.zeros_like(top), torch.zeros_like(top)
    sums: Any = 0.0
    kept: Any = math.nan  # until a draw has a weight
    over = lambda t, like: t.reshape(*t.shape, *[1] * (like.dim() - 1))  # noqa: E731
    for _ in range(num_steps):
        z = q.sample()
        likelihood = vae.p_x(z)
        log_w = _log_weight(vae, likelihood, z, q, x)
        if program is None:
            state, held = z, _moments(likelihood)
        else:
            state = held = torch.where(x.isnan(), likelihood.sample(), x)
            log_w = log_w + program.p_s(state).log_prob(program.observed(x))
        now = torch.maximum(top, log_w)
        old, new = (top - now).exp(), (log_w - now).exp()
        total, squares = total * old + new, squares * old.square() + new.square()
        sums = sums * over(old, held) + over(new, held) * held
        # each draw is kept with the probability of its share of the weight; the first has all of it
        taken = torch.rand(num_draws, len(x), dtype=x.dtype, device=x.device) * total < new
        kept = torch.where(over(taken, state), state, kept)
        top = now
    drawn = kept if program is not None else vae.p_x(kept).sample()
    return sums / over(total, held), drawn, (total.square() / squares / num_steps).double()


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
