"""The parts of an evaluation: each adds its figures, its notes and its results to an account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_vae._scopes import untouched_random_state
from ppl_vae._words import first_line
from ppl_vae.distributions.chain import Chain
from ppl_vae.evaluation.bits import bits_per_dim
from ppl_vae.evaluation.bootstrap import interval
from ppl_vae.evaluation.diagnostics import latent_use
from ppl_vae.evaluation.elbo import Bound
from ppl_vae.evaluation.figures import Figure
from ppl_vae.evaluation.gaps import gaps
from ppl_vae.evaluation.imputation import impute
from ppl_vae.evaluation.labels import label_values
from ppl_vae.evaluation.surgery import aggregate_posterior, surgery
from ppl_vae.evaluation.true_posterior import kl_to_posterior
from ppl_vae.evidence.densities import VAEDensities
from ppl_vae.evidence.importance import importance
from ppl_vae.evidence.results import Evidence
from ppl_vae.programs import SemiSupervisedVAE
from ppl_vae.vae import VAE

_MOST_PAIRS = 10_000  # data for ELBO surgery, whose cost is quadratic


@dataclass
class Account:
    """The account of an evaluation, as its parts find it.

    Attributes:
        seed: The seed of all draws.
        figures: By the names of `UNITS`.
        notes: Sentences that a reader must know.
        results: Other attributes of the `Evaluation`, by name.
        seconds: The time of each part.
    """

    seed: int
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def over_data(self, **values: Tensor) -> None:
        """Add intervals over the data for which all values are finite; none if there are fewer than two."""
        finite = torch.stack([value.isfinite() for value in values.values()]).all(0)
        if finite.sum() > 1:
            self.figures |= interval({name: value[finite] for name, value in values.items()}, seed=self.seed)

    def tried(self, what: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Return the result of a function, or add a note and return None if it does not apply to this model."""
        try:
            return function(*args, seed=self.seed, **options)
        except (ValueError, NotImplementedError) as error:
            self.notes.append(f"{what}: {first_line(error)[:200]}")
            return None

    def add(self, other: Account) -> None:
        """Add what stands in another."""
        self.figures |= other.figures
        self.notes += other.notes
        self.results |= other.results
        self.seconds |= other.seconds


def add_error(found: Evidence, finite: Tensor, account: Account) -> None:
    """Tell how far log p(x) may be off."""
    if found.kind == "exact":
        account.figures["log_evidence_error"] = float(found.error[finite].max())
    elif found.method in ("importance", "sumo"):
        bad = ~found.error.isfinite()
        account.figures["num_unreliable"] = int(bad.sum())
        if bad.any():
            account.notes.append(
                f"{int(bad.sum())} of {len(found)} estimates of log p(x) are unreliable (their Pareto k is too large): "
                "more likely too low than not"
            )
        if found.method == "sumo":
            account.notes.append("SUMO is nearly unbiased and has a heavy tail: rare repetitions decide its mean")
    else:
        account.notes.append(
            "annealing gives a standard error over its chains, which knows nothing of modes that all missed"
        )


def add_identity(densities: VAEDensities, x: Tensor, evidence: Evidence, bound: Bound, account: Account) -> None:
    """Compare log p(x) - ELBO with KL(q(z|x) || p(z|x))."""
    divergence = account.tried("log p(x) = ELBO + KL was not checked", kl_to_posterior, densities, x, evidence)
    if divergence is None:
        return
    residual = (evidence.log_evidence - bound.elbo - divergence.kl).abs()
    noise = 5 * bound.error if bound.method == "monte carlo" else torch.zeros_like(residual)
    finite = residual.isfinite()  # the KL is infinite where q leaves the support
    if finite.any():
        account.figures["identity_residual"] = float(residual[finite].max())
        if (residual > 1e-2 + noise)[finite].any():
            account.notes.append("the two sides of log p(x) = ELBO + KL differ: one of the integrals has not converged")


def add_gap(densities: VAEDensities, x: Tensor, evidence: Evidence, num_data: int, account: Account) -> None:
    """Take the gap of the first of all data apart."""
    found = account.results["gaps"] = account.tried("the gap was not taken apart", gaps, densities, x, evidence)
    if found is None:
        return
    if found.elsewhere.any():
        share = found.elsewhere.double().mean()
        account.notes.append(f"for {share:.1%} of these data a better q lies at another mode than the encoder's")
    account.over_data(approximation_gap=found.approximation_gap, amortisation_gap=found.amortisation_gap)
    if len(x) < num_data:
        account.notes.append(f"the gap was taken apart for the first {len(x)} data")


def add_sampling(
    densities: VAEDensities, x: Tensor, exact: Evidence, counts: tuple[int, ...], account: Account
) -> None:
    """Compare importance sampling from q(z|x), with these K, with the exact answer."""
    sampled = account.results["sampled"] = importance(densities, x, num_particles=counts, seed=account.seed)
    account.over_data(importance_error=exact.log_evidence - sampled.log_evidence)


def add_latent_code(densities: VAEDensities, x: Tensor, account: Account) -> None:
    """Tell of the use of each dimension, the rate's parts and the aggregate posterior, where they apply."""
    q = densities.posterior(x[:1])
    some = x[: _MOST_PAIRS // (20 if isinstance(q, Chain) and q.top_down else 1)]  # pairs run its networks
    use = account.tried("the use of each dimension is not told", latent_use, densities, x)
    split = account.tried("the rate was not taken apart", surgery, densities, some)
    aggregate = account.tried("the aggregate posterior is not told", aggregate_posterior, densities, some)
    account.results |= {"use": use, "surgery": split, "aggregate": aggregate}
    if use is not None:
        account.notes += use.alarms
        account.figures |= {"active_units": use.num_active, "effective_dim": use.effective_dim}
    if split is not None:
        account.figures |= {"mutual_information": split.mutual_information, "marginal_kl": split.marginal_kl}
        if split.saturated:
            account.notes.append(
                f"the mutual information is at its ceiling, log {split.num_data} = {split.ceiling:.2f} nats: it "
                "and KL(q(z) || p(z)) say little but that q(z|x) tells these data apart"
            )
    if aggregate is not None:
        account.figures["empty_share"] = aggregate.empty_share


def add_labels(
    vae: SemiSupervisedVAE, x: Tensor, y: Tensor, size: int, exact: bool, method: str, account: Account
) -> None:
    """Tell what the model knows of labels, and of the first `size` data without them."""
    for values in label_values(vae, x, y, size, exact, account.seed, method=method):
        account.over_data(**values)
    account.notes.append(f"figures without label are those of the first {min(size, len(x))} data")


def add_bits(
    densities: VAEDensities, x: Tensor, log_evidence: Tensor, stated: int | None, known: int | None, account: Account
) -> None:
    """Tell the bits per dimension where they are a code length; `stated` levels that give none are told of."""
    try:
        with untouched_random_state():
            p_x = densities.likelihood(densities.prior_sample(x[:1], 1)[0])  # at any z: only its support counts
        account.over_data(bits_per_dim=bits_per_dim(log_evidence, x, p_x, bins=known if stated is None else stated))
    except ValueError as error:
        if stated is not None:
            account.notes.append(f"there are no bits per dimension: {str(error).removeprefix('bits_per_dim: ')}")


def add_imputation(vae: VAE, x: Tensor, account: Account) -> None:
    """Impute half of the values, at random."""
    missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(account.seed)).to(x.device) < 0.5
    if x.isnan().any():
        account.notes.append("nothing was imputed: some values are missing, so that not all are there to compare with")
        return
    filled = account.tried("nothing was imputed", impute, vae, x, missing, num_steps=100)
    if filled is None:
        return
    binary = bool(((x == 0) | (x == 1)).all())
    errors = filled.share_wrong(x) if binary else filled.root_mean_square(x)
    errors = errors[missing.flatten(1).any(1)]  # of few values in a datum, none may be missing
    account.notes.append(
        f"imputation: half of the values missing at random, {len(errors)} of the first {len(x)} data; "
        + ("the share of missing values that is wrong" if binary else "the root mean squared error")
    )
    account.over_data(imputation_error=errors)
