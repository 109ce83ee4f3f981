"""The semi-supervised VAE: its objective by hand, its evidence by quadrature, its labels, its command."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from archives import arrays_of
from pyro.infer import TraceEnum_ELBO
from replicates import assert_same, assert_within_errors, flat, gradient_of, measured
from short_runs import without_pictures
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

import ppl_vae
from ppl_vae import SVI, checkpoints, cli, data, evaluate, fit, likelihoods, load_run, posteriors, priors, regularizers
from ppl_vae.data.conditions import with_few_labels
from ppl_vae.data.rows import LazyRows
from ppl_vae.evidence.results import Evidence
from ppl_vae.networks import MLP
from ppl_vae.objectives import (
    ELBO,
    REINFORCE,
    RWS,
    EnumeratedELBO,
    GumbelSoftmaxELBO,
    LogWeights,
    Regularized,
    as_loss,
    sample_log_weights,
)
from ppl_vae.programs import SemiSupervisedVAE
from ppl_vae.regularizers import LabelLikelihood
from ppl_vae.vae import VAE

X = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)  # 8 data of 3 bits
C = 3
Y = one_hot(torch.tensor([2, 0, 1]), C).double()
KNOWN = torch.cat([Y, torch.zeros(5, C, dtype=torch.float64)])  # labels of the first three data
NET = functools.partial(MLP, [4], "tanh", init="torch")


def make(**changes: Any) -> SemiSupervisedVAE:
    torch.manual_seed(3)
    pieces = {
        "prior": priors.StandardNormal(2),
        "likelihood": likelihoods.Bernoulli(NET()),
        "posterior": posteriors.DiagonalNormal(NET()),
        "classifier": NET(),
        "class_probs": [0.5, 0.2, 0.3],
        "y_shape": (C,),
    }
    return SemiSupervisedVAE((3,), **(pieces | changes)).double()


def bits(**changes: Any) -> SemiSupervisedVAE:
    """A program of discrete latents alone, in which nothing is drawn."""
    pieces = {"prior": priors.BernoulliVector(2, 0.3, learned=True), "posterior": posteriors.BernoulliVector(NET())}
    return make(**(pieces | changes))


def log_normal(z: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    scale = torch.as_tensor(scale, dtype=z.dtype)
    return (-0.5 * ((z - loc) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def log_classifier(vae: SemiSupervisedVAE, x: Tensor) -> Tensor:
    return vae.classifier.network(x).log_softmax(-1)


def log_prior(vae: SemiSupervisedVAE) -> Tensor:
    return vae.class_logits.log_softmax(-1)


def given_class(c: int, n: int) -> Tensor:
    return one_hot(torch.full((n,), c), C).double()


def labelled_bounds(vae: SemiSupervisedVAE, noise: Tensor) -> Tensor:
    """L(x, y) of every label at one noise, (C, n), from the networks alone."""
    found = []
    for c in range(C):
        y = given_class(c, len(X))
        q = vae.given(c).q_z(X).base_dist
        z = q.loc + q.scale * noise[c]
        logits = vae.likelihood.logits.network(torch.cat([z, y], -1))
        log_lik = -binary_cross_entropy_with_logits(logits, X, reduction="none").sum(-1)
        log_p = log_lik + log_normal(z, 0.0, 1.0) + log_prior(vae)[c]
        found.append(log_p - log_normal(z, q.loc, q.scale))
    return torch.stack(found)


def noise_of(vae: SemiSupervisedVAE, y: Tensor, seed: int) -> Tensor:
    """The noise of z that the objective draws at this seed, (C, n, 2)."""
    torch.manual_seed(seed)
    z = sample_log_weights(vae.model, vae.guide, X, y, latents="enumerated").z["z"].detach()
    q = [vae.given(c).q_z(X).base_dist for c in range(C)]
    return torch.stack([(z[c] - q[c].loc) / q[c].scale for c in range(C)]).detach()


def test_value_and_gradient_are_those_of_the_sum_by_hand() -> None:
    vae = make()
    noise = noise_of(vae, KNOWN, 5)
    torch.manual_seed(5)
    loss = as_loss(Regularized(EnumeratedELBO(), LabelLikelihood(0.1)))((vae.model, vae.guide), X, KNOWN)
    bounds, log_q = labelled_bounds(vae, noise), log_classifier(vae, X).T  # (C, n)
    unlabelled = (log_q.exp() * (bounds - log_q)).sum(0)
    labels = KNOWN[:3].argmax(-1)
    terms = torch.cat([bounds[labels, torch.arange(3)], unlabelled[3:]])
    alpha = 0.1 * len(X)
    objective = terms.sum() + alpha * log_q[labels, torch.arange(3)].mean()  # J of the paper
    torch.testing.assert_close(-loss.loss, objective.detach(), rtol=1e-10, atol=0.0)
    torch.testing.assert_close(loss.log_likelihood - loss.kl, terms.sum().detach(), rtol=1e-10, atol=0.0)  # the ELBO
    assert_same(gradient_of(-loss.surrogate, vae), gradient_of(objective, vae))
    assert loss.weight == pytest.approx(8)


def test_copies_of_labelled_data_count_once() -> None:
    vae = bits()
    loss = as_loss(Regularized(EnumeratedELBO(), LabelLikelihood(0.1)))
    rows = torch.cat([torch.arange(8), torch.tensor([0, 1, 2] * 3)])
    weighted = torch.cat([KNOWN[:3] / 4, KNOWN[3:]])
    once, copies = (loss((vae.model, vae.guide), X[i], y[i]) for i, y in ((range(8), KNOWN), (rows, weighted)))
    for name in ("loss", "weight", "kl", "log_likelihood"):
        torch.testing.assert_close(getattr(copies, name), getattr(once, name), rtol=1e-10, atol=0.0)
    assert_same(gradient_of(copies.surrogate, vae), gradient_of(once.surrogate, vae))


def test_all_latents_enumerated_is_the_exact_bound_by_hand() -> None:
    vae = bits()
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=torch.float64)
    log_q, total = log_classifier(vae, X), 0.0
    for c, z in itertools.product(range(C), states):
        one = vae.given(c)
        log_qz = one.q_z(X).log_prob(z.expand(8, 2))
        log_p = one.p_x(z.expand(8, 2)).log_prob(X) + one.p_z().log_prob(z) + log_prior(vae)[c]
        total = total + (log_q[:, c] + log_qz).exp() * (log_p - log_q[:, c] - log_qz)
    weights = sample_log_weights(vae.model, vae.guide, X, latents="enumerated")
    assert weights.enumerated == ("y", "z")
    torch.testing.assert_close(EnumeratedELBO()(weights).value, total.detach(), rtol=1e-10, atol=0.0)
    posterior = weights.normalized.unflatten(0, (C, 4)).sum(1)  # exact p(y|x)
    torch.testing.assert_close(posterior.T, vae.log_joint(X).log_evidence.softmax(-1), rtol=1e-8, atol=0.0)


def test_states_without_probability_count_nothing() -> None:
    vae = make()
    with torch.no_grad():
        list(vae.classifier.parameters())[-1][1] = -math.inf  # the bias of a class
    two = torch.tensor([0, 2])
    noise = noise_of(vae, torch.zeros(8, C), 7)
    torch.manual_seed(7)
    loss = as_loss(EnumeratedELBO())((vae.model, vae.guide), X)
    bounds, log_q = labelled_bounds(vae, noise)[two], log_classifier(vae, X).T[two]
    value = (log_q.exp() * (bounds - log_q)).sum()
    torch.testing.assert_close(-loss.loss, value.detach(), rtol=1e-10, atol=0.0)
    found, expected = gradient_of(-loss.surrogate, vae), gradient_of(value, vae)
    assert all(g.isfinite().all() for g in found.values())
    assert_same(found, {name: g.nan_to_num() for name, g in expected.items()})


@pytest.mark.parametrize("worst", [math.inf, -math.inf, math.nan])
def test_an_expectation_over_states_ignores_what_has_no_probability(worst: float) -> None:
    log_q = torch.tensor([[0.0], [-math.inf]], requires_grad=True)
    values = torch.tensor([[2.0], [worst]], requires_grad=True)
    found = LogWeights(torch.zeros(2, 1), log_q={"y": log_q}, enumerated=("y",)).expectation(values)
    found.sum().backward()
    assert found.item() == 2
    assert values.grad.tolist() == [[1.0], [0.0]]
    assert log_q.grad.tolist() == [[2.0], [0.0]]


def test_the_kl_of_partly_enumerated_latents_is_weighted_by_states() -> None:
    vae = make()
    noise = noise_of(vae, KNOWN, 5)
    torch.manual_seed(5)
    objective = Regularized(EnumeratedELBO(), regularizers.KLWeight(3.0))
    loss = as_loss(objective)((vae.model, vae.guide), X, KNOWN)
    torch.testing.assert_close(-loss.loss, loss.log_likelihood - 3 * loss.kl, rtol=1e-10, atol=0.0)
    assert noise.shape == (C, 8, 2)


# Evidence


def by_hand(vae: SemiSupervisedVAE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log p(x, y), (n, C), log p(x), L(x, y), (n, C), and U(x), by sums over a grid of z."""
    axis = torch.linspace(-9, 9, 361, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    log_cell = 2 * math.log(float(axis[1] - axis[0]))
    joint, bounds = [], []
    for c in range(C):
        logits = vae.likelihood.logits.network(torch.cat([z, given_class(c, len(z))], -1))
        log_lik = X @ logits.T - nn.functional.softplus(logits).sum(-1)  # (n, grid)
        log_p = log_lik + log_normal(z, 0.0, 1.0) + log_prior(vae)[c]
        joint.append(log_p.logsumexp(-1) + log_cell)
        q = vae.given(c).q_z(X).base_dist
        log_q = log_normal(z, q.loc[:, None], q.scale[:, None])  # (n, grid)
        bounds.append(((log_q + log_cell).exp() * (log_p - log_q)).sum(-1))
    log_q = log_classifier(vae, X)
    unlabelled = (log_q.exp() * (torch.stack(bounds, 1) - log_q)).sum(-1)
    return torch.stack(joint, 1), torch.stack(joint, 1).logsumexp(-1), torch.stack(bounds, 1), unlabelled


@pytest.mark.ci
@torch.no_grad()
def test_evidence_and_both_bounds_are_those_of_a_sum_over_labels_and_a_grid() -> None:
    vae = make()
    joint, marginal, bounds, unlabelled = by_hand(vae)
    found = vae.log_joint(X, tolerance=1e-7)
    assert found.kind == "exact"
    assert found.error.max() < 1e-6
    torch.testing.assert_close(found.log_evidence, joint, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(vae.score(X), marginal, rtol=0.0, atol=1e-6)
    known = torch.cat([joint[torch.arange(3), Y.argmax(-1)], marginal[3:]])
    torch.testing.assert_close(vae.score(X, 0.5 * KNOWN), known, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(vae.given(1).score(X), joint[:, 1] - log_prior(vae)[1], rtol=0.0, atol=1e-6)
    assert float(marginal.exp().sum()) == pytest.approx(1.0, abs=1e-8)  # over all 8 data
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    figures = evaluate(vae, (X, one_hot(labels, C).double()), gap_size=8, importance_size=0, imputation_size=0).figures
    assert figures["log_marginal"].value == pytest.approx(float(marginal.mean()), abs=1e-5)
    assert figures["log_evidence"].value == pytest.approx(float(joint[torch.arange(8), labels].mean()), abs=1e-5)
    assert figures["gap"].value == pytest.approx(figures["log_evidence"].value - figures["elbo"].value)
    assert figures["elbo"].value == pytest.approx(float(bounds[torch.arange(8), labels].mean()), abs=1e-3)
    assert figures["unlabelled_bound"].value == pytest.approx(float(unlabelled.mean()), abs=1e-3)
    assert 0 < figures["unlabelled_gap"].value == pytest.approx(float((marginal - unlabelled).mean()), abs=1e-3)
    wrong = (log_classifier(vae, X).argmax(-1) != labels).double().mean()
    assert figures["classification_error"].value == pytest.approx(float(wrong))
    by_model = (joint.argmax(-1) != labels).double().mean()
    assert figures["model_error"].value == pytest.approx(float(by_model))
    assert (unlabelled < marginal).all()


@pytest.mark.ci
def test_the_bound_of_more_labels_than_are_looked_at_one_by_one_scores_each_once() -> None:
    many = 51
    prior, q = priors.BernoulliVector(1), posteriors.BernoulliVector(NET())
    vae = make(y_shape=(many,), class_probs=None, prior=prior, posterior=q)
    x, y = X.repeat(7, 1)[:many], torch.eye(many, dtype=torch.float64)
    exact = EnumeratedELBO()(sample_log_weights(vae.model, vae.guide, x, y, latents="enumerated"))
    found = evaluate(vae, (x, y), gap_size=0, importance_size=0, imputation_size=0)
    assert found.bound.method == "monte carlo"
    assert ((found.bound.elbo - exact.value).abs() < 5 * found.bound.error).all()
    assert ((found.bound.rate - exact.kl).abs() < 5 * found.bound.rate_error + 1e-9).all()
    log_p_x = found.evidence.log_evidence.mean() + math.log(many)  # of x given its label
    assert found.figures["bits_per_dim"].value == pytest.approx(float(-log_p_x / (3 * math.log(2))))


@pytest.mark.slow
@torch.no_grad()
def test_the_sampled_bound_of_unlabelled_data_has_the_exact_one_as_its_mean() -> None:
    vae = make()
    *_, unlabelled = by_hand(vae)
    torch.manual_seed(0)
    values = [
        EnumeratedELBO()(sample_log_weights(vae.model, vae.guide, X, latents="enumerated")).value for _ in range(400)
    ]
    assert_within_errors(measured(values), unlabelled)


@torch.no_grad()
def test_pyros_enumeration_has_the_same_bound() -> None:
    vae = make()
    vae_program, x, y = (vae.model, vae.guide), X.repeat(100, 1), KNOWN.repeat(100, 1)
    torch.manual_seed(0)
    ours, pyros = (
        measured([as_loss(objective)(vae_program, x, y).loss / 100 for _ in range(40)])
        for objective in (EnumeratedELBO(), TraceEnum_ELBO(max_plate_nesting=1))
    )
    assert_within_errors(pyros, ours)


# Estimators in the place of enumeration


@pytest.mark.ci
@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    "objective",
    [REINFORCE(4, "leave_one_out", paths=True), REINFORCE(4, "leave_one_out"), REINFORCE(2, paths=True)],
    ids=["paths", "all scored", "no baseline"],
)
def test_the_score_function_has_the_gradient_of_enumeration(objective: REINFORCE) -> None:
    vae = make()

    def gradient(one: object) -> Any:
        torch.manual_seed(1)
        x, y = X.repeat(200, 1), KNOWN.repeat(200, 1)
        loss = as_loss(one)
        return measured(
            [flat(gradient_of(-loss((vae.model, vae.guide), x, y).surrogate, vae)) / 200 for _ in range(40)]
        )

    exact, found = gradient(EnumeratedELBO()), gradient(objective)
    assert_within_errors(found, exact)


@pytest.mark.slow
def test_paths_leave_less_variance_and_change_nothing_where_all_are_discrete() -> None:
    vae = make()

    def spread(objective: object) -> float:
        torch.manual_seed(1)
        loss = as_loss(objective)
        draws = [flat(gradient_of(loss((vae.model, vae.guide), X).surrogate, vae.posterior)) for _ in range(200)]
        return float(torch.stack(draws).var(0).sum())

    assert spread(REINFORCE(2, "leave_one_out", paths=True)) < 0.5 * spread(REINFORCE(2, "leave_one_out"))
    discrete = bits()
    found = []
    for paths in (True, False):
        torch.manual_seed(2)
        loss = as_loss(REINFORCE(3, "leave_one_out", paths=paths))((discrete.model, discrete.guide), X)
        found.append(gradient_of(loss.surrogate, discrete))
    assert_same(*found)
    with pytest.raises(ValueError, match="was given log-weights of all states"):
        REINFORCE(2, paths=True)(sample_log_weights(vae.model, vae.guide, X, latents="enumerated"))


@pytest.mark.slow
def test_relaxed_labels_keep_the_value_and_the_path_of_z() -> None:
    vae = make()
    objective = GumbelSoftmaxELBO(3, temperature=0.5)
    weights = sample_log_weights(vae.model, vae.guide, X, KNOWN, num_particles=3, latents=objective.latents)
    assert weights.z["z"].requires_grad
    assert weights.z["y"].requires_grad
    assert torch.equal(weights.z["y"][:, :3].detach(), Y.expand(3, 3, C))  # known labels are themselves
    total = objective(weights).surrogate.sum()
    gradients = gradient_of(total, vae)
    assert all(g.isfinite().all() and g.abs().max() > 0 for name, g in gradients.items() if "classifier" in name)
    with torch.no_grad():
        *_, unlabelled = by_hand(vae)
        values = [
            objective(sample_log_weights(vae.model, vae.guide, X, num_particles=3, latents=objective.latents)).value
            for _ in range(400)
        ]
    assert_within_errors(measured(values), unlabelled)


def test_the_classifier_sleeps_on_dreamt_labels_whatever_is_known() -> None:
    vae = make()

    def asleep(y: Tensor) -> Tensor:
        torch.manual_seed(0)
        loss = as_loss(RWS(2, "sleep"))((vae.model, vae.guide), X[:3], y)
        assert loss.surrogate is not None
        return flat(gradient_of(loss.surrogate, nn.ModuleList([vae.classifier, vae.posterior])))

    torch.testing.assert_close(asleep(Y), asleep(torch.zeros_like(Y)), rtol=1e-10, atol=1e-12)


def test_an_objective_without_the_score_of_the_label_is_refused() -> None:
    vae = make()
    with pytest.raises(ValueError, match=r"needs reparameterised latents, and q at site 'y' .*EnumeratedELBO"):
        as_loss(ELBO())((vae.model, vae.guide), X, KNOWN)
    plain = vae.given(1)
    with pytest.raises(TypeError, match="relaxes bits and one-hot vectors"):
        as_loss(GumbelSoftmaxELBO())((plain.model, plain.guide), X)


def test_a_latent_that_neither_lists_its_states_nor_has_a_path_is_refused() -> None:
    def without_path(x: Tensor) -> Any:
        q: Any = dist.Normal(x[..., :2], 1.0).to_event(1)
        q.base_dist.__class__ = type("Opaque", (dist.Normal,), {"has_rsample": False})
        return q

    vae = make(posterior=without_path)
    with pytest.raises(ValueError, match=r"q at site 'z' \(Opaque\) lists no states"):
        sample_log_weights(vae.model, vae.guide, X, latents="enumerated")


# Capture


def steps(level: str, seed: int = 1) -> tuple[list[float], SVI]:
    vae = make()
    objective = Regularized(EnumeratedELBO(), LabelLikelihood(0.1))
    svi = SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=1e-2), objective, compile=level)
    torch.manual_seed(seed)
    return [svi.step(X, KNOWN) for _ in range(6)], svi


@pytest.mark.ci
@pytest.mark.parametrize("level", ["graph", pytest.param("full", marks=pytest.mark.slow)])
def test_a_step_is_captured(level: str) -> None:
    losses, svi = steps(level)
    assert svi.why_eager is None
    assert losses == pytest.approx(steps("off")[0], rel=1e-12)


def test_scales_that_differ_are_refused_before_capture() -> None:
    vae = make()
    svi = SVI(vae.model, lambda x, y: vae.guide(x, 2 * y), functools.partial(torch.optim.Adam), EnumeratedELBO())
    with pytest.raises(ValueError, match="have the scales"):
        svi.step(X, KNOWN)


# Data


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits", labels=35)


def test_few_labels_are_balanced_copied_and_weighted(digits: data.Dataset) -> None:
    whole = data.load("digits", conditional=True)
    y, train = digits.train.columns[1], digits.train
    known = y.sum(1) > 0
    rows = train.rows[known].unique()
    assert len(rows) == 35
    first = torch.isin(whole.train.rows, rows)
    counts = whole.train.columns[1][first].sum(0)
    assert counts.sum() == 35
    assert counts.min() == 3
    assert counts.max() == 4
    assert float(y.sum()) == pytest.approx(35.0, rel=1e-6)  # float32
    assert 0.09 < known.double().mean() < 0.11
    place = {int(row): i for i, row in enumerate(whole.train.rows)}
    source = torch.tensor([place[int(row)] for row in train.rows])
    assert torch.equal(train.x, whole.train.x[source])
    assert torch.equal(train.labels, whole.train.labels[source])
    assert torch.equal(y[known] > 0, whole.train.columns[1][source][known] > 0)
    for part in ("validation", "test"):
        assert torch.equal(getattr(digits, part).columns[1], getattr(whole, part).columns[1])
    again, other = (with_few_labels(whole, 35, seed=s) for s in (0, 1))
    assert again.fingerprint == digits.fingerprint != other.fingerprint
    plain = with_few_labels(whole, 35, share=0.0).train
    assert len(plain) == len(whole.train)
    assert plain.columns[1].sum() == 35


def test_few_labels_of_rows_that_are_read_when_used(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((60, 4), dtype=np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(60) % 3)
    dataset = data.load(tmp_path / "x.npz", labels=6, validation=0, test=0)
    lazy = replace(dataset.train, columns=(LazyRows(dataset.train.x, torch.arange(len(dataset.train))),))
    with pytest.raises(ValueError, match="conditions"):
        with_few_labels(replace(dataset, train=replace(lazy, conditions=(), labels=None)), 6)
    assert len(dataset.train) == 60
    assert float(dataset.train.columns[1].sum()) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (9, "labels is 9, of which each class keeps as many or one more; expected 10, one for each class of digits"),
        (1456, "to 1455, all training data"),
        (0, "labels"),
        (1450, "no more than the smallest class has"),
    ],
)
def test_numbers_of_labels_that_cannot_be_kept_are_refused(labels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load("digits", labels=labels)


def test_a_row_that_is_no_label_is_refused(digits: data.Dataset) -> None:
    y = torch.zeros(20, C)
    y[3, :2] = 0.5
    vae = make().float()
    with pytest.raises(ValueError, match=r"row 3 of the labels is \[0.5, 0.5, 0.0\]; expected a one-hot row"):
        fit(
            vae,
            data.from_tensors(X.float().repeat(3, 1)[:20], y, validation=0, test=0),
            objective=EnumeratedELBO(),
            batch_size=20,
        )
    for use in (make().encode, make().reconstruct, make().score, make().mistakes):  # not in training alone
        with pytest.raises(ValueError, match=r"row 1 of the labels is \[1.0, 1.0, 0.0\]"):
            use(X[:2], torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]).double())
    with pytest.raises(ValueError, match="was given no data"):
        make().score(X[:0])
    with pytest.raises(ValueError, match="whose label is unknown"):
        evaluate(make(), (X, KNOWN))
    with pytest.raises(ValueError, match="whose label is unknown"):
        make().given(torch.zeros(C))


def test_the_error_of_a_label_without_a_share_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreliable estimate has an infinite error, which times a share of zero is no number."""
    vae = make()
    joint = Evidence(
        torch.tensor([[-5.0, -2000.0, -6.0]]).double(), torch.tensor([[0.1, torch.inf, 0.2]]).double(), "", ""
    )
    monkeypatch.setattr(SemiSupervisedVAE, "log_joint", lambda *_, **__: joint)
    share = torch.tensor([-5.0, -6.0]).double().softmax(0)
    torch.testing.assert_close(vae.evidence(X[:1]).error, (share @ torch.tensor([0.1, 0.2]).double())[None])


# The model as a VAE


def test_it_is_a_vae_given_labels_and_labels_that_are_unknown_are_classified() -> None:
    vae = make()
    guessed = one_hot(vae.classify(X).argmax(-1), C).double()
    assert torch.equal(vae.encode(X), vae.encode(X, guessed))
    assert torch.equal(vae.encode(X, 0.25 * KNOWN), vae.encode(X, KNOWN))  # a weight is no other condition
    torch.testing.assert_close(vae.encode(X, KNOWN)[:3], vae.encode(X[:3], Y), rtol=1e-12, atol=0.0)
    assert torch.equal(vae.encode(X, KNOWN)[3:], vae.encode(X, guessed)[3:])
    assert torch.equal(vae.reconstruct(X), vae.reconstruct(X, guessed))
    assert torch.equal(vae.encode(X[:3], Y.argmax(-1)), vae.encode(X[:3], Y))
    torch.testing.assert_close(vae.encode(X[:1], Y[:1]), vae.given(2).encode(X[:1]), rtol=1e-12, atol=0.0)
    assert type(vae.given(2)) is VAE
    assert "classifier" not in dict(vae.given(2).named_children())
    assert torch.equal(vae.mistakes(X[:3], Y), guessed[:3].argmax(-1) != Y.argmax(-1))
    assert torch.equal(vae.mistakes(X[:3], Y.argmax(-1)), vae.mistakes(X[:3], Y))
    assert len(vae.mistakes(X, KNOWN)) == 3
    assert len(vae.mistakes(X[3:], KNOWN[3:])) == 0
    assert vae.classify(X[:0]).shape == (0, C)
    assert vae.sample(5).shape == (5, 3)
    assert vae.sample(y=Y).shape == (3, 3)
    assert vae.model(size=4).shape == (4, 3)
    assert "SemiSupervisedVAE" in repr(vae)


def test_samples_have_labels_of_their_prior() -> None:
    vae = make(likelihood=lambda z, y: likelihoods.Bernoulli(nn.Identity())(8 * y - 4))
    x = vae.sample(4000, mean=True)
    assert_within_errors(measured(list((x > 0.5).double())), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64))


def test_it_is_saved_with_its_classifier(tmp_path: Path) -> None:
    vae = make()
    again = ppl_vae.load(vae.save(tmp_path / "vae.pt"))
    assert type(again) is SemiSupervisedVAE
    assert torch.equal(again.classify(X), vae.classify(X))
    assert torch.equal(again.class_logits, vae.class_logits)
    assert torch.equal(copy.deepcopy(vae).classify(X), vae.classify(X))


def test_what_is_no_set_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"y_shape is None; expected \(C,\)"):
        make(y_shape=None, posterior=posteriors.DiagonalNormal(NET()))
    for probs in ([0.5, 0.5], [1.0, 0.0, 0.0], [math.inf, 1.0, 1.0]):
        with pytest.raises(ValueError, match="class_probs"):
            make(class_probs=probs)
    counts = make(class_probs=[5, 2, 3]).p_y().probs
    torch.testing.assert_close(counts, make().p_y().probs)
    with pytest.raises(ValueError, match=r"is \[0.0, -1.0, 0.0\]; expected a one-hot row"):
        make().given(torch.tensor([0.0, -1.0, 0.0]))
    with pytest.raises(ValueError, match=r"y of shape \(3,\)"):
        make().encode(X[:3], torch.tensor([0.0, 1.0, 0.0]))


def test_the_label_likelihood_needs_labels() -> None:
    plain = make().given(0)
    with pytest.raises(ValueError, match="needs one site of labels of which some are known"):
        as_loss(Regularized(ELBO(), LabelLikelihood()))((plain.model, plain.guide), X)
    assert LabelLikelihood(0.0)(None) is None  # type: ignore[arg-type]
    none = as_loss(Regularized(EnumeratedELBO(), LabelLikelihood()))((make().model, make().guide), X)
    assert none.loss.isfinite()  # no label in this batch: no term


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "few"
    options = ["--data.labels", "40", "--epochs", "2", "--classifier.hidden", "[16]", "--prior.latent_dim", "1"]
    assert cli.main(["train", *options, "--out", str(path)]) == 0
    return path


def run(*words: object) -> None:
    assert cli.main([str(word) for word in words]) == 0


@pytest.mark.slow
def test_a_run_tells_its_classification_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    vae = load_run(folder)
    assert isinstance(vae, SemiSupervisedVAE)
    held = data.load("digits", labels=40).validation
    assert record["classification_error"] == pytest.approx(float(vae.mistakes(*held.columns).double().mean()))
    text = (folder / "config.yaml").read_text()
    assert "class: EnumeratedELBO" in text
    assert "class: LabelLikelihood" in text
    assert "labels: 40" in text
    run("show", folder)
    out = capsys.readouterr().out
    assert "40 labels" in out
    assert "MLP(16" in out
    assert "classification error" in out


@pytest.mark.ci
def test_the_commands_on_a_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--size", "6", "--gaps", "2", "--importance", "2", "--imputation", "2"]
    run("evaluate", folder, *few, "--out", tmp_path / "evaluation")
    out = capsys.readouterr().out
    for line in ("classification error of q(y|x)", "without label: bound U(x)", "log p(x) is log p(x, y)"):
        assert line in out
    run("sample", folder, "--size", "20", "--out", tmp_path / "s.npz")
    run("encode", folder, "--split", "train", "--out", tmp_path / "z.npz")
    run("encode", folder, "--split", "all", "--out", tmp_path / "all.npz")
    rows = arrays_of(tmp_path / "all.npz")
    assert len(rows["mean"]) == 1797
    assert (rows["splits"] == "train").sum() == 1455
    np.save(tmp_path / "x.npy", data.load("digits").test.x[:5].numpy())
    run("encode", folder, "--data", tmp_path / "x.npy", "--out", tmp_path / "unlabelled.npz")  # classified first
    run("score", folder, "--data", tmp_path / "x.npy", "--out", tmp_path / "marginal.npz")
    marginal = load_run(folder).score(data.load("digits").test.x[:5])
    np.testing.assert_allclose(arrays_of(tmp_path / "marginal.npz")["log_p"], marginal, atol=1e-4)
    run("reconstruct", folder, "--out", tmp_path / "r.npz")
    capsys.readouterr()
    run("score", folder, "--size", "5", "--out", tmp_path / "p.npz")
    out = capsys.readouterr().out
    assert "5 data of digits, test: log p(x, y) by" in out
    assert "no label" not in out
    run("score", folder, "--split", "train", "--size", "1455", "--evidence", "quadrature", "--out", tmp_path / "t.npz")
    assert "note: 1415 of 1455 rows have no label: theirs is log p(x)" in capsys.readouterr().out
    assert cli.main(["evaluate", str(folder), "--split", "train", "--size", "30"]) == 2
    assert "whose label is unknown" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_goes_on_where_it_stood(folder: Path, tmp_path: Path) -> None:
    with without_pictures():
        run("train", "--resume", folder, "--epochs", "3", "--out", tmp_path / "resumed")
        whole = ["--data.labels", "40", "--epochs", "3", "--classifier.hidden", "[16]", "--prior.latent_dim", "1"]
        run("train", *whole, "--out", tmp_path / "whole")
    first, second = (checkpoints.load(tmp_path / n / "checkpoint.pt")["modules"][0] for n in ("resumed", "whole"))
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classifier", "MLP"], "--classifier is given without --data.labels"),
        (["--data.labels", "40", "--classifier", "null"], "--classifier is null, and few labels are kept"),
        (["--data.labels", "5"], "expected 10, one for each class"),
        (["--data.labels", "40", "--objective", "ELBO"], "EnumeratedELBO"),
        (["--regularizer", "LabelLikelihood"], "needs one site of labels"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *options, "--epochs", "1", "--out", str(tmp_path / "no")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_the_regularizer_can_be_left_out(tmp_path: Path) -> None:
    with without_pictures():
        run("train", "--data.labels", "40", "--regularizer", "null", "--epochs", "1", "--out", tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "regularizer: null" in text
    assert "class: EnumeratedELBO" in text
