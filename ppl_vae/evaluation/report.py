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
from ppl_vae._scopes import evaluation_mode, seeded
from ppl_vae._team import ALONE, Team
from ppl_vae._validation import check_count, check_positive_int, check_seed
from ppl_vae.data import Dataset, Split
from ppl_vae.data.conditions import same_labels
from ppl_vae.data.forms import form_of
from ppl_vae.data.held import split_of
from ppl_vae.data.streams import gathered
from ppl_vae.evaluation import parts
from ppl_vae.evaluation.elbo import bound_by_condition, elbo, label_log_prob
from ppl_vae.evaluation.figures import UNITS, Evaluation
from ppl_vae.evaluation.parts import Account
from ppl_vae.evaluation.practical import knn_accuracy
from ppl_vae.evidence.conditional import given
from ppl_vae.evidence.densities import VAEDensities
from ppl_vae.evidence.log_evidence import Method, log_evidence
from ppl_vae.evidence.results import Evidence
from ppl_vae.objectives import sample_log_weights
from ppl_vae.objectives.impossible import CHANCE, limits_of, strange
from ppl_vae.programs import SemiSupervisedVAE
from ppl_vae.vae import VAE

_LOOKED_AT, _LOOKS = 64, 32  # data, and draws for each, for the first check of the densities


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
    options = {"num_particles": tuple(num_particles), "bins": bins, "progress": progress, "team": team}
    return _evaluate(vae, rows, known, evidence, seed=seed, **sizes, **options)  # type: ignore[arg-type]


@at_home("data", "train", float64=True)
def _evaluate(
    vae: VAE,
    data: Split,
    train: Split | None,
    evidence: Method,
    *,
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
    whole = Split((x,) if y is None else (x, y))
    caveat = vae.check_support(Dataset.of("data", whole))
    labelled = vae if isinstance(vae, SemiSupervisedVAE) and y is not None else None
    if labelled is not None:
        labelled.given(labelled.one_hot(y)[labelled.one_hot(y).sum(-1).argmin()])  # refuses unknown labels at once
    alarms, discrete = _look(vae, x, y, seed)
    account = Account(seed, notes=[*([] if caveat is None else [caveat]), *alarms])
    clock = partial(_clock, account.seconds, progress)
    with clock("log p(x)"):
        found = log_evidence(vae, x, y, method=evidence, num_particles=num_particles, seed=seed, team=team)
    exact = found.kind == "exact"
    with clock("the ELBO"):
        find = lambda model, some: elbo(VAEDensities(model), some, seed=seed)  # noqa: E731
        bound = find(vae, x) if y is None else bound_by_condition(vae, x, y, find)
    if discrete:
        _refuse_above_zero(found)
    densities = VAEDensities(vae if y is None else given(vae, y[0]))
    num_bounds = gap_size
    if y is not None:
        gap_size = importance_size = imputation_size = 0
        what = "log p(x|y)" if labelled is None else "log p(x, y), in bits log p(x|y)"
        account.notes.append(
            f"a conditional model: log p(x) is {what}; the gap's parts, the latent code and imputation are looked "
            "at under one condition, evaluate(vae.given(y), x)"
        )
    gap = found.log_evidence - bound.elbo
    finite = found.log_evidence.isfinite() & bound.elbo.isfinite()
    if not finite.all():
        account.notes.append(f"{int((~finite).sum())} data without a finite value are left out of the averages")
    account.over_data(
        log_evidence=found.log_evidence, elbo=bound.elbo, gap=gap, distortion=bound.distortion, rate=bound.rate
    )
    if not account.figures:
        raise ValueError("fewer than two data have a finite log p(x) and ELBO: nothing can be said of this model")
    parts.add_error(found, finite, account)
    tasks: dict[str, Callable[[Account], None]] = {}
    if gap_size:
        first = slice(gap_size)
        if exact and densities.latent_dim <= 3 and found.method != "enumeration":
            checked = partial(parts.add_identity, densities, x[first], found[first], bound[first])
            tasks["the identity log p(x) = ELBO + KL"] = checked
        tasks["the gap"] = partial(parts.add_gap, densities, x[first], found[first], len(x))
    if importance_size and exact:
        few = slice(importance_size)
        tasks["importance sampling"] = partial(parts.add_sampling, densities, x[few], found[few], num_particles)
    if y is None:
        tasks["the latent code"] = partial(parts.add_latent_code, densities, x)
    if labelled is not None:
        tasks["labels"] = partial(parts.add_labels, labelled, x, y, num_bounds, exact, evidence)
    if imputation_size:
        tasks["imputation"] = partial(parts.add_imputation, vae, x[:imputation_size])
    results = _shared(tasks, seed, progress, team)
    imputed = results.pop("imputation", None)
    for result in results.values():
        account.add(result)
    log_p_x = found.log_evidence if labelled is None else found.log_evidence - label_log_prob(labelled, y)
    parts.add_bits(densities, x, log_p_x, bins, data.bins, account)
    if imputed is not None:
        account.add(imputed)
    if labels is not None and labels.is_floating_point() and (labels != labels.round()).any():
        account.notes.append("the labels are no classes: no nearest neighbours")
    elif labels is not None and train is not None and train.labels is not None and y is None:
        with clock("nearest neighbours"):
            means = vae.encode(_tensors(train)[0]), vae.encode(x)
            accuracy = knn_accuracy(means[0], train.labels, means[1], labels, seed=seed)
        account.figures["knn_accuracy"] = accuracy
    figures = {name: account.figures[name] for name in UNITS if name in account.figures}
    return Evaluation(figures, found, bound, **account.results, notes=tuple(account.notes), seconds=account.seconds)


def _shared(
    tasks: dict[str, Callable[[Account], None]], seed: int, progress: Callable[[str], None] | None, team: Team
) -> dict[str, Account]:
    """Return what each part tells; the processes of a team find some of the parts each."""

    def account_of(name: str) -> Account:
        account = Account(seed)
        with _clock(account.seconds, progress, name):
            tasks[name](account)
        return account

    found = team.share([partial(account_of, name) for name in tasks], "the parts of the evaluation")
    return dict(zip(tasks, found, strict=True))


@contextmanager
def _clock(seconds: dict[str, float], progress: Callable[[str], None] | None, name: str) -> Iterator[None]:
    """Report a part as it begins, and add its time to `seconds`."""
    if progress is not None:
        progress(name)
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


def _tensors(data: Split) -> tuple[Tensor, Tensor | None, Any]:
    """Return the data, their labels and their conditions."""
    columns = [torch.cat(column) for column in zip(*data.batches(min(4096, len(data))), strict=True)]
    return columns[0], data.labels, columns[1] if len(columns) > 1 else None


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
