"""Figures that no model gives stop the run; figures that chance gives do not."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions.kl import register_kl

import ppl_vae
from ppl_vae import VAE, data, fit, likelihoods, networks, objectives, posteriors, priors
from ppl_vae.distributions.full_normal import FullNormal
from ppl_vae.evaluation import Evidence, evaluate
from ppl_vae.evaluation.report import _refuse_above_zero
from ppl_vae.objectives import sample_log_weights
from ppl_vae.objectives.impossible import Limits, alarm_of, impossible, limits_of, strange
from ppl_vae.training import DivergedError

DISCRETE = Limits("Bernoulli", ("Normal", "Normal"), lower=True)


@pytest.mark.parametrize(
    ("limits", "size", "terms", "words"),
    [
        (DISCRETE, 128, (-90.0, 20.0, -110.0), None),
        (DISCRETE, 128, (0.05, 20.0, -110.0), None),  # rounding
        (DISCRETE, 128, (0.2, 20.0, -110.0), "log p\\(x\\|z\\) is 0.2 nats .* likelihood Bernoulli is no probability"),
        (DISCRETE, 1, (-90.0, -39.0, -51.0), None),  # chance, if none that anybody meets
        (DISCRETE, 1, (-90.0, -41.0, -49.0), "KL.*is -41 nats .* posterior Normal or the prior Normal"),
        (DISCRETE, 128, (-90.0, -0.3, -89.7), None),
        (DISCRETE, 128, (-90.0, -0.4, -89.6), "KL"),
        (DISCRETE, 128, (-90.0, 20.0, 0.4), "the bound is 0.4 nats"),
        (DISCRETE, 1, (-90.0, -math.inf, math.inf), "KL"),
        (DISCRETE, 1, (-math.inf, math.inf, -math.inf), None),  # which is another fault
        (DISCRETE, 1, (math.nan, math.nan, math.nan), None),
        (DISCRETE, 1, (None, None, 41.0), "the bound"),
        (DISCRETE._replace(lower=False), 1, (-90.0, 20.0, 4e9), None),
        (Limits(None, ("Normal", "Normal"), True), 128, (300.0, 20.0, 280.0), None),  # a density
        (Limits(None, ("Normal", "Normal"), True), 128, (300.0, -20.0, 320.0), "KL"),
        (Limits(), 128, (300.0, -20.0, 320.0), None),
    ],
)
def test_what_is_impossible(limits: Limits, size: int, terms: tuple[Any, ...], words: str | None) -> None:
    log_likelihood, kl, bound = terms
    found = impossible(limits, size, log_likelihood=log_likelihood, kl=kl, bound=bound)
    if words is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(words, found)


def test_chance_is_bounded_as_claimed() -> None:
    """P(sum of log p / q > t) <= e^-t: for a q that is far too narrow and off its place, whose ratios are wild."""
    torch.manual_seed(0)
    q, p = torch.distributions.Normal(0.5, 0.4), torch.distributions.Normal(0.0, 1.0)
    z = q.sample((200_000, 3))
    total = (p.log_prob(z) - q.log_prob(z)).sum(1)
    for t in (0.1, 1.0, 2.0, 4.0):
        share = (total > t).double().mean().item()
        assert 0 < share <= math.exp(-t) or t > 1
        assert share <= math.exp(-t)


class Twisted(dist.Normal):
    """A normal distribution whose density is off by a constant a dimension."""

    def __init__(self, loc: Tensor, scale: Tensor, off: Tensor | float) -> None:
        self.off = off
        super().__init__(loc, scale)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Twisted:
        return Twisted(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.off)

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + self.off


@register_kl(Twisted, dist.Normal)
def _kl(q: Twisted, p: dist.Normal) -> Tensor:
    return torch.distributions.kl._kl_normal_normal(q, p)


class TwistedPosterior(nn.Module):
    """q(z|x) that is scored wrongly, by as much a step as `grows` says."""

    def __init__(self, off: float, grows: float = 0.0) -> None:
        super().__init__()
        self.network = nn.Linear(64, 4)
        self.register_buffer("off", torch.tensor(off))
        self.grows = grows

    def forward(self, x: Tensor) -> Any:
        mean, raw = self.network(x.flatten(1)).chunk(2, -1)
        if self.training:
            self.off.add_(self.grows)
        return Twisted(mean, raw.exp(), self.off.clone()).to_event(1)


class NoProbability(nn.Module):
    """A likelihood of bits that has forgotten its normaliser."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(2, 64)

    def forward(self, z: Tensor) -> Any:
        class Unnormalised(dist.Bernoulli):
            def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
                return Unnormalised(logits=self.logits.expand(batch_shape))

            def log_prob(self, value: Tensor) -> Tensor:
                return value * self.logits + 1.0

        return Unnormalised(logits=self.network(z).unflatten(-1, (1, 8, 8))).to_event(3)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits", binarize="threshold")


def make(digits: data.Dataset, posterior: Any = None, likelihood: Any = None) -> VAE:
    torch.manual_seed(0)
    return VAE(
        digits,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([16])) if likelihood is None else likelihood,
        posterior=posteriors.DiagonalNormal(networks.MLP([16])) if posterior is None else posterior,
    )


@pytest.mark.parametrize("objective", [objectives.ELBO(), objectives.IWAE(4), objectives.DReG(4)], ids=str)
def test_a_posterior_that_is_scored_wrongly_is_refused_before_the_first_step(digits, objective) -> None:
    vae = make(digits, TwistedPosterior(-20.0))
    before = [p.clone() for p in vae.parameters()]
    with pytest.raises(ValueError, match=r"no model gives: the sampled KL.*posterior Twisted or the prior Normal"):
        fit(vae, digits, objective=objective, epochs=1)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(before, vae.parameters(), strict=True))
    with pytest.raises(ValueError, match="no model gives: the sampled KL"):
        evaluate(vae, digits.test, size=20)
    report = ppl_vae.check(vae, digits)
    assert report.wrong


def test_pyros_objects_are_held_to_it_too(digits) -> None:
    from pyro.infer import Trace_ELBO

    with pytest.raises(ValueError, match="no model gives: the sampled KL"):
        fit(make(digits, TwistedPosterior(-20.0)), digits, objective=Trace_ELBO(), epochs=1)


def test_a_likelihood_that_is_no_probability_is_refused(digits) -> None:
    with pytest.raises(ValueError, match=r"log p\(x\|z\) is .* the likelihood Unnormalised is no probability"):
        fit(make(digits, likelihood=NoProbability()), digits, epochs=1)


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_what_becomes_impossible_stops_the_run_where_it_did(digits, compile) -> None:
    """The density of q drifts by 0.2 nats a dimension a step: at most a hundred steps later the run is stopped."""
    vae = make(digits, TwistedPosterior(0.0, grows=-0.2))
    with pytest.raises(DivergedError, match="the sampled KL") as caught:
        fit(vae, digits, epochs=50, compile=compile, seed=0)
    assert caught.value.epoch <= 9
    assert vae.posterior.off.item() > -25


@pytest.mark.ci
def test_a_wrong_density_that_chance_could_give_is_an_alarm(digits) -> None:
    """Off by 0.05 a dimension, the sampled KL is still positive, but 0.1 from the analytic one."""
    vae = make(digits, TwistedPosterior(0.05))
    found = evaluate(vae, digits.test, size=64, gap_size=0, importance_size=0, imputation_size=0)
    assert [note for note in found.notes if "from the analytic one" in note and "+0.1" in note]
    assert ppl_vae.check(vae, digits).wrong
    with pytest.warns(UserWarning, match=r"\+0\.1.* from the analytic one"):
        fit(vae, digits, epochs=1)
    right = evaluate(make(digits), digits.test, size=64, gap_size=0, importance_size=0, imputation_size=0)
    assert not [note for note in right.notes if "analytic" in note]


def test_a_posterior_that_is_sure_of_its_state_is_no_alarm() -> None:
    """All draws are one state, whose sampled KL has a standard error of zero and is not the analytic one."""
    logits = torch.tensor([[8.0, 0.0]]).expand(3, 2)
    q, p = (dist.OneHotCategorical(logits=values) for values in (logits, torch.zeros(2)))
    torch.manual_seed(0)
    drawn = q.sample((32,))
    assert (drawn[..., 0] == 1).all()
    analytic = torch.distributions.kl_divergence(q, p.expand((3,)))
    sampled = (q.log_prob(drawn) - p.log_prob(drawn)).mean(0)
    assert ((sampled - analytic) > 1e-3 * (1 + analytic)).all()  # by more than rounding
    torch.manual_seed(0)
    assert alarm_of(q, p) is None


@pytest.mark.parametrize(
    ("value", "error", "kind", "wrong"),
    [
        (0.05, 0.0, "exact", False),
        (0.2, 0.0, "exact", True),
        (0.2, 0.5, "exact", False),
        (30.0, 0.0, "lower", True),  # two of them: 60 nats above what chance gives
        (10.0, 0.0, "lower", False),
        (30.0, 0.0, "upper", False),
    ],
)
def test_an_evidence_above_zero_is_refused(value: float, error: float, kind: str, wrong: bool) -> None:
    values = torch.tensor([value, value, math.nan], dtype=torch.float64)
    evidence = Evidence(values, torch.full((3,), error, dtype=torch.float64), "quadrature", kind)
    with pytest.raises(ValueError, match="of discrete data it is at most 0") if wrong else nullcontext():
        _refuse_above_zero(evidence)


def test_limits_are_claimed_where_they_hold(digits) -> None:
    vae, x = make(digits), digits.train.x[:4]
    assert limits_of(sample_log_weights(vae.model, vae.guide, x), lower=True) == Limits(
        "Bernoulli", ("Normal", "Normal"), True
    )
    assert limits_of(sample_log_weights(vae.model, vae.guide, x), drawn=False).latents is None
    normal = make(digits, likelihood=likelihoods.Normal())
    assert limits_of(sample_log_weights(normal.model, normal.guide, x)).likelihood is None


def test_nan_is_left_to_what_looks_for_it(digits) -> None:
    vae = make(digits)
    log_weights = sample_log_weights(vae.model, vae.guide, digits.train.x[:4], num_particles=3)
    broken = replace(log_weights, log_q={"z": log_weights.log_q["z"] * math.nan})
    assert strange(log_weights) == strange(broken) == (None, None)


def test_a_posterior_too_ill_conditioned_for_its_floats_is_an_alarm(digits) -> None:
    """Its ELBO is right, from the noise of its own draws; what scores a rounded z is not."""

    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Any:
            factor = torch.tensor([[3.0, 0.0], [3e4, 1e-3]]).to(x)
            return FullNormal(self.network(x.flatten(1)), scale_tril=factor.expand(len(x), 2, 2))

    torch.manual_seed(0)
    vae = make(digits, Steep())
    log_weights = sample_log_weights(vae.model, vae.guide, digits.train.x[:64], num_particles=16)
    wrong, alarm = strange(log_weights)
    assert wrong is None
    assert alarm is not None
    assert "lost its digits in torch.float32" in alarm
    vae = vae.double()
    assert strange(sample_log_weights(vae.model, vae.guide, digits.train.x[:64].double(), num_particles=16))[1] is None
