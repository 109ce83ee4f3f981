"""A race and a comparison in several processes: the figures of one process, bit for bit; and a race that is ended."""

from __future__ import annotations

import dataclasses
import functools
import os
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppl_vae import VAE, cli, compare, data, likelihoods, networks, posteriors, priors, race
from ppl_vae._jobs import Lost
from ppl_vae._scopes import threads
from ppl_vae.comparison import Interrupted


def make_vae(seed: int) -> VAE:
    return VAE(
        (1, 8, 8),
        prior=priors.StandardNormal(1),
        likelihood=likelihoods.Bernoulli(networks.MLP([8])),
        posterior=posteriors.DiagonalNormal(networks.MLP([8])),
    )


def model(x):
    shift = pyro.param("shift", torch.zeros(3))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + shift, 1.0).to_event(1), obs=x)


def guide(x):
    slope = pyro.param("slope", torch.tensor(0.3))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(slope * x, 0.8).to_event(1))


ENCODER = nn.Linear(3, 3)  # of this module: the functions are pickled by name


def normal(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def encoded(x):
    pyro.module("encoder", ENCODER)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(ENCODER(x), 0.8).to_event(1))


@pytest.fixture(scope="module")
def digits():
    whole = data.load("digits")
    return dataclasses.replace(whole, train=whole.train.head(300))


@pytest.fixture
def run(digits):
    return functools.partial(
        race, make_vae, digits, objectives=["ELBO", "IWAE"], num_particles=2, seeds=2, epochs=1, evaluation_size=20
    )


def figures_of_race(found) -> list:
    return [(run.key, run.seed, [(p.step, p.log_evidence, p.elbo, p.bound) for p in run.points]) for run in found.runs]


def figures_of_comparison(found) -> list[str]:
    """All but times, and memory."""
    rows = []
    for row in map(dataclasses.asdict, found.rows):
        rows.append({k: v for k, v in row.items() if k not in ("seconds", "bytes", "blocks")})
        for block in row["blocks"].values():
            rows.append({k: v for k, v in block.items() if "seconds" not in k and k != "resampled"})
    return [repr(row) for row in rows]


@pytest.mark.ci
@pytest.mark.filterwarnings("default")
def test_the_figures_of_a_race_do_not_depend_on_jobs(run):
    said: list[str] = []
    with threads(1):
        here, there = run(), run(jobs=2, progress=said.append)
        assert figures_of_race(here) == figures_of_race(there)
        assert here.machine | {"jobs": 2} == there.machine
        assert "2 runs shared the machine at a time, so take the times as rough." in there.sentences()
        assert said[-1].startswith("4 of 4: seed ")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_figures_of_a_comparison_do_not_depend_on_jobs(digits):
    with threads(1):
        torch.manual_seed(0)
        vae, x = make_vae(0), digits.test.head(4).columns[0]
        # REINFORCE's moving average changes from step to step: it stays in this process
        some = {"objectives": ["ELBO", "STL", "REINFORCE(baseline=moving_average)"], "particles": [1, 2]}
        compared = [compare(vae, x, replicates=60, log_evidence=-1.0, jobs=jobs, **some) for jobs in (1, 2)]
        assert [row.failed for row in compared[1].rows] == [None] * len(compared[0].rows)
        assert figures_of_comparison(compared[0]) == figures_of_comparison(compared[1])
        with pyro.get_param_store().scope():  # bare parameters, away from their initial values
            x = torch.randn(5, 3)
            guide(x)
            model(x)
            with torch.no_grad():
                pyro.get_param_store()._params["shift"].add_(0.5)
                ENCODER.weight.copy_(torch.eye(3) / 2)
            more = {"objectives": "IWAE", "particles": 2, "replicates": 40, "log_evidence": -1.0}
            for pair in ((model, guide), (normal, encoded)):
                compared = [compare(pair, x, jobs=jobs, **more) for jobs in (1, 2)]
                assert figures_of_comparison(compared[0]) == figures_of_comparison(compared[1])


class AtHome:
    """The ELBO, which raises in other processes than the one that made it."""

    num_particles = 1

    def __init__(self) -> None:
        self.process = os.getpid()

    def __call__(self, log_weights):
        if os.getpid() != self.process:
            raise RuntimeError("away from home")
        return log_weights.log_w.mean(0)


@pytest.mark.ci
@pytest.mark.filterwarnings("default")
def test_an_estimator_that_raises_in_another_process_fails_alone():
    vae, x = make_vae(0), torch.rand(3, 1, 8, 8)
    options = {"replicates": 40, "log_evidence": -1.0, "minibatch": False, "particles": 1}
    found = compare(vae, x, objectives=[{"home": AtHome()}, "ELBO"], jobs=2, **options)
    assert [row.failed for row in found.rows] == ["RuntimeError: away from home", None]
    assert found.rows[1].blocks


@pytest.mark.ci
def test_an_interrupted_race_keeps_what_has_finished(run):
    def interrupted(text: str) -> None:
        if "seed 1" in text:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as raised:
        run(progress=interrupted)
    found = raised.value.race
    assert [(r.name, r.seed) for r in found.runs] == [("ELBO", 0), ("IWAE", 0)]
    assert "The race was ended before its end: 2 of 4 runs had finished." in found.sentences()
    assert isinstance(raised.value, KeyboardInterrupt)
    found.table()
    found.to_dict()

    def at_once(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        run(progress=at_once)
    assert not isinstance(raised.value, Interrupted)


@pytest.mark.ci
def test_the_command_writes_what_has_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    real = race

    def ended(*arguments, **options):
        def progress(text: str) -> None:
            if "seed 1" in text:
                raise KeyboardInterrupt

        return real(*arguments, **options | {"progress": progress})

    line = "compare --train true --objectives [ELBO,IWAE] --particles 2 --seeds 2 --epochs 1 --evaluation_size 20"
    line += " --likelihood.network.hidden [8] --posterior.network.hidden [8] --prior.latent_dim 1 --out race"
    with mock.patch("ppl_vae.comparison.race", ended):
        assert cli.main(line.split()) == 130
    assert "2 of 4 runs had finished" in capsys.readouterr().out
    assert (tmp_path / "race" / "race.json").is_file()


@pytest.mark.slow
def test_a_run_whose_process_died_each_time_has_failed(run):
    def lost(tasks, done, **options):
        for index, task in enumerate(tasks):
            done(index, Lost("its worker process died 3 times: killed") if index == 1 else task())

    with mock.patch("ppl_vae.comparison.races.race.run_all", lost):
        found = run()
    assert [r.failed for r in found.runs] == [False, True, False, False]
    assert "its worker process died 3 times" in found.table()


def test_what_jobs_refuse(run):
    with pytest.raises(ValueError, match="race: jobs is 0; expected a positive integer, or -1"):
        run(jobs=0)
    with pytest.raises(ValueError, match="race: on_run takes the trained program, which stays in another process"):
        run(jobs=2, on_run=lambda *_: None)
    with pytest.raises(ValueError, match="compare: jobs is -3"):
        compare(make_vae(0), torch.zeros(3, 1, 8, 8), objectives="ELBO", jobs=-3)
