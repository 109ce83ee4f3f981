r"""Questions about one distribution that a piece returns: its support, finiteness, samples and total mass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor

from ppl_vae._distributions import describe, unwrapped
from ppl_vae._words import one_line
from ppl_vae.checking import places
from ppl_vae.checking.asking import Findings, Wrong, reason
from ppl_vae.checking.density import Density, support_of
from ppl_vae.checking.normalisation import total_mass
from ppl_vae.checking.sampling import deviation

_DRAWS = 4000
_DRAWN_NUMBERS = 20_000_000  # at most: large data get fewer draws
_SATURATION = 60.0  # nats of one number: exp overflows float32 at 88, log(sigmoid) fails at 17
_SATURATION_MEAN = 25.0  # the same as a mean over numbers, where only their sum is known


@dataclass(frozen=True)
class Asked:
    """A distribution that is asked about, with its name and the piece that returned it.

    Attributes:
        part: prior, likelihood, posterior or a site.
        symbol: The symbol of the distribution, ``"p(x|z)"``.
        piece: The piece that returned it.
        distribution: The distribution for a few data.
    """

    part: str
    symbol: str
    piece: Any
    distribution: Any

    @property
    def family(self) -> str:
        """The family of the distribution."""
        return describe(self.distribution)

    def wrong(self, sentence: str, fix: str, *methods: str, name: str = "") -> Wrong:
        """Return a fault of some methods of the distribution, in order of preference."""
        return Wrong(sentence, fix, places.of_method(self.distribution, methods, self.piece), name)

    def ask(self, findings: Findings, name: str, question: Callable[[], str | None]) -> None:
        """Ask a question about the distribution."""
        findings.ask(self.part, name, question, places.of_call(self.piece))


def ask_of_density(findings: Findings, asked: Asked) -> None:
    """Ask whether draws lie in the support, with finite log p, and follow the density, and whether its mass is one."""
    made: list[Density] = []

    def skip_the_rest(why: str) -> None:
        for name in ("sampling", "normalised"):
            findings.skipped(asked.part, name, why)

    def finite() -> str | None:
        p = asked.distribution
        size = max(1, p.batch_shape.numel() * p.event_shape.numel())
        density = Density(p, max(200, min(_DRAWS, _DRAWN_NUMBERS // size)))
        try:
            sentence = _finite_draws(asked, density)
        except (NotImplementedError, KeyError) as error:  # the other two questions need scores
            findings.skipped(asked.part, "draws", reason(error))
            skip_the_rest("it cannot score a given value: see draws")
            return None
        made.append(density)
        return sentence

    asked.ask(findings, "draws", finite)
    if made and _is_masked(asked.distribution):
        skip_the_rest("a mask leaves a part of it out: the rest is no density of the whole")
    elif made:
        asked.ask(findings, "sampling", lambda: _sampling(asked, *made))
        asked.ask(findings, "normalised", lambda: _normalised(findings, asked, *made))


def _is_masked(distribution: Any) -> bool:
    while not isinstance(distribution, MaskedDistribution) and hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return isinstance(distribution, MaskedDistribution)


def _finite_draws(asked: Asked, density: Density) -> str:
    inside = density.in_support(density.draws)
    if not inside.all():
        raise asked.wrong(
            f"{(~inside).double().mean():.1%} of the draws of {asked.symbol} lie outside of the support it states, "
            f"{density.support}",
            "state the support of what is drawn (a property support), or draw inside it",
            *("support", "rsample", "sample"),
        )
    log_p = density.log_prob(density.draws)
    bad = ~log_p.isfinite()
    if bad.any():
        where = density.draws[bad][0]
        raise asked.wrong(
            f"log_prob of {asked.symbol} is {log_p[bad][0]} at {bad.double().mean():.1%} of its own draws, such as "
            f"values from {where.min():.4g} to {where.max():.4g}",
            "work from logits or log-scales, and mask with torch.where before the logarithm",
            "log_prob",
            name="finite",
        )
    return f"{len(log_p)} draws of {asked.symbol} lie in its support, log p finite at each"


def _sampling(asked: Asked, density: Density) -> str:
    found = deviation(density)
    if found.agrees:
        worst = f", at most {found.errors:.1f} standard errors off" if found.errors else ""
        return f"draws of {asked.symbol} follow its log_prob{worst}"
    raise asked.wrong(
        f"draws of {asked.symbol} ({asked.family}) do not follow its log_prob: {found.what}",
        "use the same parameters in sample, rsample and log_prob; a standard deviation from a log-variance is "
        "exp(0.5 * log_var), not 0.5 * exp(log_var)",
        *("rsample", "sample", "log_prob"),
    )


def _normalised(findings: Findings, asked: Asked, density: Density) -> str:
    found = total_mass(density)
    if found.how.startswith("by importance"):
        findings.require(asked.part, names=("sampling",), why=": the mass is estimated from draws")
    value = f"exp({found.log_mass:.4g})" if abs(found.log_mass) > 5 else f"{torch.tensor(found.log_mass).exp():.4f}"
    if found.is_one:
        return f"{asked.symbol} {found.how} has mass {value}"
    raise asked.wrong(
        f"{asked.symbol} ({asked.family}) {found.how} has mass {value}, not 1: it is no density",
        f"subtract log of the mass, {found.log_mass:.5g} nats, from log_prob there: its normalising constant is "
        "missing or wrong",
        "log_prob",
    )


def ask_about_data(findings: Findings, asked: Asked, x: Tensor) -> None:
    """Ask whether data lie in the support of the likelihood."""
    asked.ask(findings, "support", lambda: _support(asked, x))


def _support(asked: Asked, x: Tensor) -> str:
    stated = support_of(asked.distribution)
    inside = stated.check(x)
    if inside.all():
        return f"all {len(x)} data lie in the support of p(x|z)"
    known = x[~x.isnan()]
    missing = x.numel() - len(known)
    what = f"values from {known.min():.4g} to {known.max():.4g}" if len(known) else "no values"
    what += f" and {missing} missing (NaN)" if missing else ""
    fix = "choose a likelihood for such data (Normal, ContinuousBernoulli, ...)"
    if hasattr(stated, "explain"):  # which column of a table it is
        what = str(stated.explain(x))
    elif missing:
        fix = "choose a likelihood that leaves missing values out (likelihoods.Mixed), or fill them"
    if not missing and ((known >= 0) & (known <= 1)).all() and _on_two_points(asked.distribution):
        fix = "binarise the data (binarize='threshold', 'dynamic' or 'fixed'), or " + fix
    raise Wrong(
        f"{(~inside).sum()} of {len(x)} data lie outside of the support of p(x|z) ({asked.family}, {stated}), "
        f"{what}: their log_prob is no log-density",
        fix,
    )


def _on_two_points(distribution: Any) -> bool:
    try:
        return unwrapped(distribution).support.check(torch.tensor([0.0, 0.5, 1.0])).tolist() == [True, False, True]
    except RuntimeError:
        return False


def ask_about_edges(findings: Findings, asked: Asked, p_x: Any, z: Tensor, x: Tensor) -> None:
    """Ask whether log p and its gradient are finite at the data, on edges of the support too, and as parameters grow.

    The latents are stretched until log p or its gradient is no longer finite. If that happens suddenly, while no number
    of x is improbable yet, the density saturates. Plain overflow comes only at far lower log-densities.
    """

    def edges() -> str:
        findings.require(asked.part, names=("support",))
        with torch.no_grad():
            log_p = p_x(z).log_prob(x)
        if not log_p.isfinite().all():
            bad = int((~log_p.isfinite()).nonzero()[0])
            raise asked.wrong(
                f"log p(x|z) is {log_p[bad]} at datum {bad} of the batch, values from {x[bad].min():.4g} to "
                f"{x[bad].max():.4g}, which lies in the support",
                "compute log_prob so that it is finite on all of the support: no log of 0, no atanh of 1",
                "log_prob",
            )
        reached, fault = _stretch(p_x, z, x)
        if fault is None:
            return f"log p(x|z) and its gradient are finite for latents up to {reached:.3g} times as large"
        raise asked.wrong(
            f"{fault[0]} once the parameters grow ({reached:.3g} times the latents), while log p of a number of x is "
            f"still {-fault[1]:.3g}: it saturates",
            "work from logits (binary_cross_entropy_with_logits, logsigmoid) or logsumexp instead of the log of a "
            "probability",
            "log_prob",
        )

    asked.ask(findings, "finite", edges)


def _stretch(p_x: Any, z: Tensor, x: Tensor) -> tuple[float, tuple[str, float] | None]:
    """Return how far latents can be stretched; if the density saturates, also what failed, and the level of log p."""
    scales = [2.0**i for i in range(13)]
    high = next((scale for scale in scales if _failure(p_x, z * scale, x) is not None), None)
    if high is None:
        return scales[-1], None
    low = max(1.0, high / 2)
    for _ in range(16):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _failure(p_x, z * middle, x) is None else (low, middle)
    level, limit = _level(p_x, z * low, x)
    failed = _failure(p_x, z * high, x) if level < limit else None
    return low, None if failed is None else (failed, level)


def _failure(p_x: Any, z: Tensor, x: Tensor) -> str | None:
    """Return what is not finite at these latents: log p of the data or of own draws, or the gradient at the data."""
    leaf = z.detach().clone().requires_grad_()
    try:
        p = p_x(leaf)
        log_p = p.log_prob(x)
        if not log_p.isfinite().all():
            return f"log p of the data is {log_p[~log_p.isfinite()][0].item()}"
        with torch.no_grad():
            own = p.log_prob(p.sample())
        if not own.isfinite().all():
            return f"log p of its own draws is {own[~own.isfinite()][0].item()}"
        if log_p.requires_grad:
            (slope,) = torch.autograd.grad(log_p.sum(), leaf, allow_unused=True)
            if slope is not None and not slope.isfinite().all():
                return "the gradient of log p of the data is not finite"
    except (ValueError, RuntimeError) as error:  # validation refuses parameters that overflowed
        return f"it fails ({one_line(error)[:80]})"
    return None


@torch.no_grad()
def _level(p_x: Any, z: Tensor, x: Tensor) -> tuple[float, float]:
    """Return the largest |log p| of a number of x, and the limit above which overflow is no fault of the density."""
    p = p_x(z)
    base = unwrapped(p)
    if not base.event_shape and base.batch_shape == p.batch_shape + p.event_shape:
        return base.log_prob(x).abs().max().item(), _SATURATION
    return p.log_prob(x).abs().max().item() / max(1, p.event_shape.numel()), _SATURATION_MEAN
