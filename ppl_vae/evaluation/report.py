r"""The evaluation of a model: log p(x), the gap of the bound and its causes, the latent code, practical measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_vae._home import at_home
from ppl_vae._scopes import evaluation_mode, seeded, untouched_random_state
from ppl_vae._team import ALONE, Team
from ppl_vae._validation import check_count, check_positive_int, check_seed
from ppl_vae.data import Dataset, Split
from ppl_vae.data.conditions import same_labels
from ppl_vae.data.forms import form_of
from ppl_vae.data.held import split_of
from ppl_vae.data.streams import gathered
from ppl_vae.distributions.chain import Chain
from ppl_vae.evaluation.bits import bits_per_dim
from ppl_vae.evaluation.bootstrap import Interval, interval
from ppl_vae.evaluation.diagnostics import latent_use
from ppl_vae.evaluation.elbo import bound_by_condition, elbo, label_log_prob
from ppl_vae.evaluation.figures import UNITS, Evaluation, Figure
from ppl_vae.evaluation.gaps import gaps
from ppl_vae.evaluation.labels import label_values
from ppl_vae.evaluation.practical import impute, knn_accuracy
from ppl_vae.evaluation.surgery import aggregate_posterior, surgery
from ppl_vae.evaluation.true_posterior import kl_to_posterior
from ppl_vae.evidence.conditional import given
from ppl_vae.evidence.densities import VAEDensities
from ppl_vae.evidence.importance import importance
from ppl_vae.evidence.log_evidence import Method, log_evidence
from ppl_vae.evidence.results import Evidence
from ppl_vae.objectives import sample_log_weights
from ppl_vae.objectives.impossible import CHANCE, limits_of, strange
from ppl_vae.programs import SemiSupervisedVAE
from ppl_vae.vae import VAE

_LOOKED_AT, _LOOKS = 64, 32  # data, and draws for each, for the first check of the densities
_MOST_PAIRS = 10_000  # data for ELBO surgery, whose cost is quadratic


def evaluate(
    vae: VAE,
    data: Any,
    *,
    train: Any = None,
    evidence: Method = "auto",
    num_particles: Sequence[int] = (100, 1000, 5000),
    size: int | None = None,
    gap_size: int = 500,
    importance_size: int = 200,
    imputation_size: int = 200,
    bins: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    team: Team = ALONE,
) -> Evaluation:
    r"""Evaluate a model on data: log p(x), the gap of the bound, the latent code, practical measures.

    Intervals are 95% bootstrap intervals over data: they cover the choice of test data, not another training run. The
    evidence is exact where possible (`log_evidence`). In this case the first data also check the article's identity
    log p(x) = ELBO + KL(q(z|x) || p(z|x)), with the ELBO by a closed-form KL and Gauss-Hermite nodes, and the KL by
    quadrature over q's mass. (log p(x) itself enters both the left side and the KL; the tests compare it with other
    methods.) Where the evidence is an estimate, it is a lower bound in expectation, and so is the gap.

    For 10,000 images and a 2-D latent, the cost is about two minutes on two cores: one minute for the evidence, the
    rest for importance sampling and the refinement of the first data. All data are held in memory.

    Args:
        vae: The model, trained.
        data: The data, such as ``dataset.test``, with or without labels; or in any form that `data.as_split` takes: a
            tensor (n, *x_shape), an array, a frame, a loader, read once. A conditional model takes a second column with
            the conditions. Its figures are those of log p(x|y), and parts that
            need one condition are left out.
        train: Labelled data for the nearest-neighbour accuracy, such as ``dataset.train``, in the same forms.
        evidence: The method for log p(x), see `log_evidence`.
        num_particles: K of importance sampling. Several values give estimates side by side; the time is proportional to
            the largest.
        size: The number of data to use, from the first; all by default.
        gap_size: The number of first data whose gap is split (`gaps`) and whose identity is checked; 0 for none.
        importance_size: The number of first data for which importance sampling from q(z|x) with these K, the field's
            usual estimate, is run beside an exact answer; 0 for none.
        imputation_size: The number of first data to impute, with half of their values missing at random; 0 for none.
        bins: The levels of dequantised data, for bits per dimension. A split that was dequantised by ``ppl_vae.data``
            knows them; discrete data have none, and a note says so where they are given.
        seed: The seed of all draws; the global random state is left alone.
        progress: A function that is called with the name of each part as it begins.
        team: The processes that share the work: the data of log p(x), and the other parts among them. Each gets the
            same evaluation, with the figures of one process.

    Raises:
        ValueError: For fewer than two data, if the method does not apply to the model, or if a figure is impossible for
            any model: a sampled KL below 0, or log p(x) above 0 for discrete data, by more than chance allows.

    Example:
        >>> import ppl_vae as pv
        >>> digits = pv.data.load("digits")
        >>> vae = pv.VAE(digits, prior=pv.priors.StandardNormal(2), likelihood=pv.likelihoods.Bernoulli(),
        ...              posterior=pv.posteriors.DiagonalNormal())
        >>> found = evaluate(vae, digits.test, size=20, gap_size=0, importance_size=0, imputation_size=0)
        >>> found.evidence.kind, found.figures["gap"].value > 0
        ('exact', True)
    """
    if size is not None:
        check_positive_int(size, "evaluate: size")
    sizes = {"gap_size": gap_size, "importance_size": importance_size, "imputation_size": imputation_size}
    for name, value in sizes.items():
        check_count(value, f"evaluate: {name}")
    if bins is not None and check_positive_int(bins, "evaluate: bins") < 2:
        raise ValueError(f"evaluate: bins is {bins}; expected an integer from 2")
    check_seed(seed, "evaluate: seed")
    form = form_of(vae)
    rows = gathered(split_of(data, form), size)
    known = None if train is None or rows.labels is None else gathered(split_of(train, form))
    if known is not None:
        known, rows = same_labels(known, rows)
    return _evaluate(
        vae,
        rows,
        known,
        evidence,
        tuple(num_particles),
        gap_size,
        importance_size,
        imputation_size,
        bins,
        seed,
        progress,
        team,
    )


@at_home("data", "train", float64=True)
def _evaluate(
    vae: VAE,
    data: Split,
    train: Split | None,
    evidence: Method,
    num_particles: tuple[int, ...],
    gap_size: int,
    importance_size: int,
    imputation_size: int,
    bins: int | None,
    seed: int,
    progress: Callable[[str], None] | None,
    team: Team,
) -> Evaluation:
    x, labels, y = _tensors(data)
    if tuple(x.shape[1:]) != vae.x_shape:
        raise ValueError(f"evaluate was given data of shape {tuple(x.shape[1:])}; the VAE is for {vae.x_shape}")
    if len(x) < 2:
        raise ValueError(f"evaluate was given {len(x)} data; expected at least 2, for intervals over data")
    caveat = vae.check_support(_only(x if y is None else (x, y)))
    if isinstance(vae, SemiSupervisedVAE) and y is not None:
        vae.given(vae.one_hot(y)[vae.one_hot(y).sum(-1).argmin()])  # refuses an unknown label before the work
    seconds: dict[str, float] = {}
    clock = partial(_clock, seconds, progress)
    alarms, discrete = _look(vae, x, y, seed)
    with clock("log p(x)"):
        found = log_evidence(vae, x, y, method=evidence, num_particles=num_particles, seed=seed, team=team)
    exact = found.kind == "exact"
    with clock("the ELBO"):
        find = lambda model, some: elbo(VAEDensities(model), some, seed=seed)  # noqa: E731
        bound = find(vae, x) if y is None else bound_by_condition(vae, x, y, find)
    if discrete:
        _refuse_above_zero(found)
    notes = [*([] if caveat is None else [caveat]), *alarms]
    densities = VAEDensities(vae if y is None else given(vae, y[0]))
    num_bounds = gap_size
    if y is not None:
        gap_size = importance_size = imputation_size = 0
        what = "log p(x, y), in bits log p(x|y)" if isinstance(vae, SemiSupervisedVAE) else "log p(x|y)"
        notes.append(
            f"a conditional model: log p(x) is {what}; the gap's parts, the latent code and imputation are looked "
            "at under one condition, evaluate(vae.given(y), x)"
        )
    gap = found.log_evidence - bound.elbo
    finite = found.log_evidence.isfinite() & bound.elbo.isfinite()
    if not finite.all():
        notes.append(f"{int((~finite).sum())} data without a finite value are left out of the averages")
    rates = {"distortion": bound.distortion, "rate": bound.rate}
    figures: dict[str, Figure] = {}
    figures |= _over_data({"log_evidence": found.log_evidence, "elbo": bound.elbo, "gap": gap, **rates}, seed)
    if not figures:
        raise ValueError("fewer than two data have a finite log p(x) and ELBO: nothing can be said of this model")
    if exact:
        figures["log_evidence_error"] = float(found.error[finite].max())
    elif found.method in ("importance", "sumo"):
        bad = ~found.error.isfinite()
        figures["num_unreliable"] = int(bad.sum())
        if bad.any():
            notes.append(
                f"{int(bad.sum())} of {len(x)} estimates of log p(x) are unreliable (their Pareto k is too large): "
                "more likely too low than not"
            )
        if found.method == "sumo":
            notes.append("SUMO is nearly unbiased and has a heavy tail: rare repetitions decide its mean")
    else:
        notes.append("annealing gives a standard error over its chains, which knows nothing of modes that all missed")
    parts: dict[str, Callable[[list[str]], Any]] = {}  # what can be found independently, from a list for notes
    first, few = slice(gap_size), slice(importance_size)
    head = Evidence(found.log_evidence[first], found.error[first], found.method, found.kind)
    identity, code = "the identity log p(x) = ELBO + KL", "the latent code"
    if gap_size:
        if exact and densities.latent_dim <= 3 and found.method != "enumeration":
            parts[identity] = lambda _: kl_to_posterior(densities, x[first], head, seed=seed)
        parts["the gap"] = lambda notes: _tried(
            notes, "the gap was not taken apart", gaps, densities, x[first], head, seed=seed
        )
    if importance_size and exact:
        parts["importance sampling"] = lambda _: importance(densities, x[few], num_particles=num_particles, seed=seed)
    if y is None:
        parts[code] = lambda notes: _latent_code(notes, densities, x, seed)
    if isinstance(vae, SemiSupervisedVAE) and y is not None:
        parts["labels"] = lambda _: list(label_values(vae, x, y, num_bounds, exact, seed, method=evidence))
    if imputation_size:
        parts["imputation"] = lambda notes: _imputation(vae, x[:imputation_size], notes, seed)
    results = _shared(parts, clock, seconds, team)
    split = None
    if gap_size:
        if identity in results:
            residual = (gap[first] - results[identity][0].kl).abs()
            if (residual := residual[residual.isfinite()]).numel():  # the KL is infinite where q leaves the support
                figures["identity_residual"] = float(residual.max())
                if residual.max() > 1e-2:
                    notes.append("the two sides of log p(x) = ELBO + KL differ: one of the integrals has not converged")
        split, more = results["the gap"]
        notes += more
        if split is not None:
            if split.elsewhere.any():
                share = split.elsewhere.double().mean()
                notes.append(f"for {share:.1%} of these data a better q lies at another mode than the encoder's")
            sides = {"approximation_gap": split.approximation_gap, "amortisation_gap": split.amortisation_gap}
            figures |= _over_data(sides, seed)
            if len(split.gap) < len(x):
                notes.append(f"the gap was taken apart for the first {len(split.gap)} data")
    sampled = None
    if importance_size and exact:
        sampled, _ = results["importance sampling"]
        figures |= _over_data({"importance_error": found.log_evidence[few] - sampled.log_evidence}, seed)
    use = surgeon = aggregate = None
    if y is None:
        (use, surgeon, aggregate), more = results[code]
        notes += more
    if use is not None:
        notes += use.alarms
        figures |= {"active_units": use.num_active, "effective_dim": use.effective_dim}
    if surgeon is not None:
        figures |= {"mutual_information": surgeon.mutual_information, "marginal_kl": surgeon.marginal_kl}
        if surgeon.saturated:
            notes.append(
                f"the mutual information is at its ceiling, log {surgeon.num_data} = {surgeon.ceiling:.2f} nats: it "
                "and KL(q(z) || p(z)) say little but that q(z|x) tells these data apart"
            )
    if aggregate is not None:
        figures["empty_share"] = aggregate.empty_share
    if isinstance(vae, SemiSupervisedVAE) and y is not None:
        for values in results["labels"][0]:
            figures |= _over_data(values, seed)
        notes.append(f"figures without label are those of the first {min(num_bounds, len(x))} data")
    try:
        with untouched_random_state():
            p_x = densities.likelihood(densities.prior_sample(x[:1], 1)[0])  # at any z: only its support counts
        log_p_x = found.log_evidence
        if isinstance(vae, SemiSupervisedVAE) and y is not None:
            log_p_x = log_p_x - label_log_prob(vae, y)  # the label's bits are none of x
        bits = bits_per_dim(log_p_x, x, p_x, bins=data.bins if bins is None else bins)
        figures |= _over_data({"bits_per_dim": bits}, seed)
    except ValueError as error:  # where they mean nothing
        if bins is not None:
            notes.append(f"there are no bits per dimension: {str(error).removeprefix('bits_per_dim: ')}")
    if imputation_size:
        imputed, more = results["imputation"]
        figures |= imputed
        notes += more
    if labels is not None and labels.is_floating_point() and (labels != labels.round()).any():
        notes.append("the labels are no classes: no nearest neighbours")
    elif labels is not None and train is not None and train.labels is not None and y is None:
        with clock("nearest neighbours"):
            known, known_labels, _ = _tensors(train)
            assert known_labels is not None
            figures["knn_accuracy"] = knn_accuracy(vae.encode(known), known_labels, vae.encode(x), labels, seed=seed)
    ordered = {name: figures[name] for name in UNITS if name in figures}
    return Evaluation(ordered, found, bound, split, use, surgeon, aggregate, sampled, tuple(notes), seconds)


def _shared(
    parts: dict[str, Callable[[list[str]], Any]], clock: Callable[[str], Any], seconds: dict[str, float], team: Team
) -> dict[str, tuple[Any, list[str]]]:
    """Return the result of each part and its notes; the processes of a team find some of them each."""

    def task(name: str) -> tuple[Any, list[str], float]:
        notes: list[str] = []
        with clock(name):
            result = parts[name](notes)
        return result, notes, seconds[name]

    found = team.share([partial(task, name) for name in parts], "the parts of the evaluation")
    seconds |= {name: taken for name, (_, _, taken) in zip(parts, found, strict=True)}
    return {name: (result, notes) for name, (result, notes, _) in zip(parts, found, strict=True)}


def _latent_code(notes: list[str], densities: VAEDensities, x: Tensor, seed: int) -> tuple[Any, Any, Any]:
    """Return the use of each dimension, the surgery of the rate and the aggregate posterior, where they apply."""
    tried, q = partial(_tried, notes), densities.posterior(x[:1])
    some = x[: _MOST_PAIRS // (20 if isinstance(q, Chain) and q.top_down else 1)]  # pairs run its networks
    return (
        tried("the use of each dimension is not told", latent_use, densities, x, seed=seed),
        tried("the rate was not taken apart", surgery, densities, some, seed=seed),
        tried("the aggregate posterior is not told", aggregate_posterior, densities, some, seed=seed),
    )


def _over_data(values: dict[str, Tensor], seed: int) -> dict[str, Interval]:
    """Return intervals over the data for which all values are finite; none if there are fewer than two."""
    finite = torch.stack([value.isfinite() for value in values.values()]).all(0)
    return interval({name: value[finite] for name, value in values.items()}, seed=seed) if finite.sum() > 1 else {}


def _tried(notes: list[str], what: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return the result of a part, or add a note and return None if the part does not apply to this model."""
    try:
        return function(*args, **options)
    except (ValueError, NotImplementedError) as error:
        notes.append(f"{what}: {str(error).splitlines()[0][:200]}")
        return None


@contextmanager
def _clock(seconds: dict[str, float], progress: Callable[[str], None] | None, name: str) -> Iterator[None]:
    """Report a part as it begins, and add its time to `seconds`."""
    if progress is not None:
        progress(name)
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


def _tensors(data: Split) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the data, their labels and their conditions."""
    columns = [torch.cat(column) for column in zip(*data.batches(min(4096, len(data))), strict=True)]
    return columns[0], data.labels, columns[1] if len(columns) > 1 else None


def _only(x: Tensor | tuple[Tensor, ...]) -> Dataset:
    """Return a data set of these columns as training data, for `VAE.check_support`."""
    columns = x if isinstance(x, tuple) else (x,)
    nothing = Split(tuple(column[:0] for column in columns))
    return Dataset("data", Split(columns), nothing, nothing)


def _look(vae: VAE, x: Tensor, y: Tensor | None, seed: int) -> tuple[list[str], bool]:
    """Check some log-weights: return alarms about them, and whether the data are discrete.

    Raises:
        ValueError: If a figure is impossible for any model.
    """
    some = tuple(column[:_LOOKED_AT] for column in (x, y) if column is not None)
    with torch.no_grad(), seeded(seed), evaluation_mode(vae):
        log_weights = sample_log_weights(vae.model, vae.guide, *some, num_particles=_LOOKS)
    wrong, alarm = strange(log_weights)
    if wrong is not None:
        raise ValueError(
            f"evaluate: the model has a figure that no model gives: {wrong}; ppl_vae.check looks at each density"
        )
    return [] if alarm is None else [alarm], limits_of(log_weights).likelihood is not None


def _refuse_above_zero(found: Evidence) -> None:
    """Refuse log p(x) of discrete data that is above 0 by more than its error or chance allows."""
    finite = found.log_evidence.isfinite()
    values, error = found.log_evidence[finite], found.error[finite]
    wrong = bool((values > error + 0.1).any()) if found.kind == "exact" else float(values.sum()) > CHANCE
    if wrong and found.kind != "upper" and found.method != "sumo":  # whose estimates exceed the truth at times
        raise ValueError(
            f"evaluate: log p(x) is up to {values.max():.5g} nats by {found.method}, and of discrete data it is at "
            "most 0: p(x|z) or p(z) is no density; ppl_vae.check looks at each"
        )


def _imputation(vae: VAE, x: Tensor, notes: list[str], seed: int) -> dict[str, Figure]:
    missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device) < 0.5
    if x.isnan().any():
        notes.append("nothing was imputed: some values are missing, so that not all are there to compare with")
        return {}
    filled = _tried(notes, "nothing was imputed", impute, vae, x, missing, num_steps=100, seed=seed)
    if filled is None:
        return {}
    binary = bool(((x == 0) | (x == 1)).all())
    errors = filled.share_wrong(x) if binary else filled.root_mean_square(x)
    errors = errors[missing.flatten(1).any(1)]  # of few values in a datum, none may be missing
    notes.append(
        f"imputation: half of the values missing at random, {len(errors)} of the first {len(x)} data; "
        + ("the share of missing values that is wrong" if binary else "the root mean squared error")
    )
    return {"imputation_error": interval(errors, seed=seed)} if len(errors) > 1 else {}
