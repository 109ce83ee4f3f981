"""`fit` on captured steps: what callbacks change, trainings in threads, batch normalisation, NumPy's numbers."""

from __future__ import annotations

import functools
import threading

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from short_runs import small_vae
from torch import nn

from ppl_vae import SVI, VAE, data, fit, likelihoods, networks, objectives, posteriors, priors
from ppl_vae.capture import Guards
from ppl_vae.evidence import log_evidence
from ppl_vae.regularizers import KLWeight
from ppl_vae.training import Callback

X = (torch.rand(60, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def make_vae(seed: int = 0, latent_dim: int = 2) -> VAE:
    return small_vae((6,), seed=seed, latent_dim=latent_dim)


class Scaled:
    """A program with what a callback may change."""

    def __init__(self):
        torch.manual_seed(0)
        self.gain = 1.0
        self.mask = np.ones(5000)
        self.decoder = nn.Linear(2, 6)
        self.encoder = nn.Linear(6, 4)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            loc = self.decoder(z) * self.gain * float(self.mask[1])
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


@pytest.mark.thinned(2)
@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
@pytest.mark.parametrize("what", ["freeze", "gain", "layer", "hook", "bound"])
def test_what_a_callback_changes_is_followed(what):
    objective = objectives.ELBO()

    class Change(Callback):
        def __init__(self, program):
            self.program = program

        def on_epoch(self, run, record):
            if record["epoch"] not in (2, 4):
                return
            first = record["epoch"] == 2
            match what:
                case "freeze":
                    self.program.encoder.requires_grad_(not first)
                case "gain":
                    self.program.gain = 3.0 if first else 0.5
                case "layer":
                    torch.manual_seed(1)
                    self.program.decoder = nn.Linear(2, 6)
                case "hook":
                    self.program.decoder.register_forward_hook(lambda module, inputs, output: output + 1)
                case "bound":
                    object.__setattr__(objective, "num_particles", 2 if first else 1)

    found, states = [], []
    for level in ("off", "graph"):
        object.__setattr__(objective, "num_particles", 1)
        pyro.clear_param_store()
        program = Scaled()
        change = Change(program)
        run = fit(
            (program.model, program.guide),
            X,
            objective=objective,
            epochs=6,
            batch_size=10,
            seed=0,
            compile=level,
            callbacks=[change],
        )
        found.append([record["loss"] for record in run.history])
        states.append([p.clone() for p in (*program.encoder.parameters(), *program.decoder.parameters())])
    assert found[0] == found[1]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_without_callbacks_what_a_graph_depends_on_is_looked_at_once(monkeypatch):
    looked = []
    hold = Guards.hold

    def counted(self):
        looked.append(1)
        return hold(self)

    monkeypatch.setattr(Guards, "hold", counted)
    fit(make_vae(), X, epochs=20, batch_size=10, seed=0)
    assert len(looked) <= 1
    looked.clear()
    fit(make_vae(), X, epochs=20, batch_size=10, seed=0, stop=lambda: False)  # the user's own code, at every step
    assert len(looked) >= 118


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["loader", "rows"])
def test_what_the_code_that_reads_the_data_changes_is_followed(kind):
    class Rows:
        shape = X.shape

        def __init__(self, program):
            self.program, self.read = program, 0

        def __len__(self):
            return len(X)

        def __getitem__(self, index):
            self.read += 1
            self.program.gain = 1.0 if self.read < 25 else 3.0
            return X[index]

    class Loader:
        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return 10

        def __iter__(self):
            return (self.rows[index] for index in torch.arange(60).split(6))

    found = []
    for level in ("off", "graph"):
        pyro.clear_param_store()
        program = Scaled()
        rows = Rows(program)
        nothing = data.Split((X[:0],))
        train = Loader(rows) if kind == "loader" else data.Dataset("rows", data.Split((rows,)), nothing, nothing)
        run = fit((program.model, program.guide), train, epochs=4, batch_size=6, seed=0, compile=level)
        found.append([record["loss"] for record in run.history])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_change_that_no_guard_sees_is_found_within_a_stretch(caplog, tmp_path):
    class Filed(Scaled):
        def guide(self, x):
            super().guide(x * (1.0 + (tmp_path / "now").exists()))

    program = Filed()
    svi = SVI(program.model, program.guide, functools.partial(torch.optim.Adam, lr=1e-3), objectives.ELBO())
    svi.begin_stretch()
    for step in range(30):
        if step == 20:
            (tmp_path / "now").touch()
        svi.update(X[:10])
    assert "what no guard sees" not in caplog.text
    for _ in range(100):
        svi.update(X[:10])
    assert "what no guard sees" in caplog.text


@pytest.mark.ci
def test_a_change_that_no_guard_sees_is_found_after_the_callback_that_made_it(caplog):
    class Change(Callback):
        def on_epoch(self, run, record):
            if record["epoch"] == 25:
                program.mask[1] = 5.0

    found = []
    for level in ("off", "graph"):
        pyro.clear_param_store()
        program = Scaled()
        run = fit(
            (program.model, program.guide), X, epochs=60, batch_size=10, seed=0, compile=level, callbacks=[Change()]
        )
        found.append([record["loss"] for record in run.history])
    assert found[0][:25] == found[1][:25]
    assert found[0][25] != found[1][25]
    assert found[1][-1] == pytest.approx(found[0][-1], rel=0.1)
    assert [r for r in caplog.records if "depends on what no guard sees" in r.getMessage()]


def test_a_schedule_of_the_kl_weight_takes_one_graph(caplog):
    run = fit(make_vae(), X, regularizer=KLWeight(2.0, "linear", steps=30), epochs=10, batch_size=10, seed=0)
    assert run.why_eager is None
    assert not caplog.records


@pytest.mark.slow
def test_trainings_in_threads_are_what_they_are_alone():
    def train(seed):
        vae = make_vae(seed)
        fit(vae, X, epochs=3, batch_size=10, seed=seed)
        return [p.detach().clone() for p in vae.parameters()]

    alone = [train(seed) for seed in range(4)]
    made = [make_vae(seed) for seed in range(4)]
    errors: list[BaseException] = []

    def run(seed):
        try:
            fit(made[seed], X, epochs=3, batch_size=10, seed=seed)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for vae, parameters in zip(made, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), parameters, strict=True))


@pytest.mark.ci
def test_a_callback_may_train_another_program():
    class Nested(Callback):
        def on_epoch(self, run, record):
            fit(make_vae(5), X, epochs=1, batch_size=10, seed=1)

    vae, alone = make_vae(), make_vae()
    fit(vae, X, epochs=3, batch_size=10, seed=0, callbacks=[Nested()])
    fit(alone, X, epochs=3, batch_size=10, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), alone.parameters(), strict=True))


class Maps(nn.Module):
    """Batch normalisation of maps, which has many values in one datum."""

    def __init__(self, norm, size=4):
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), norm(3), nn.Flatten(), nn.Linear(3 * size**2, 4))

    def forward(self, x):
        return self.layers(x.reshape(-1, 1, self.size, self.size))


def norm_vae(norm, size=4):
    torch.manual_seed(0)
    return VAE(
        (1, size, size),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(networks.MLP([8])),
        posterior=posteriors.DiagonalNormal(Maps(norm, size)),
    )


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_batch_normalisation_of_maps_trains_on_one_datum(norm):
    x = torch.randn(11, 1, 4, 4)
    run = fit(norm_vae(norm), x, epochs=2, batch_size=10, seed=0, device="cpu")
    assert run.stopped == "finished"
    fit(norm_vae(norm), x, epochs=2, batch_size=1, seed=0, device="cpu")
    with pytest.raises(ValueError, match=f"{norm.__name__}.*cannot train on one datum"):
        fit(norm_vae(norm, 1), torch.randn(11, 1, 1, 1), epochs=2, batch_size=10, seed=0, device="cpu")


def test_numpy_numbers_are_numbers():
    vae, reference = make_vae(), make_vae()
    adam = functools.partial(torch.optim.Adam, lr=np.float32(1e-2))
    fit(
        vae,
        X,
        objective=objectives.IWAE(np.int64(3)),
        optimizer=adam,
        epochs=np.int64(3),
        batch_size=np.int32(10),
        clip_norm=np.float32(1.0),
        seed=np.uint8(3),
        validate_every=np.int16(2),
    )
    fit(
        reference,
        X,
        objective=objectives.IWAE(3),
        optimizer=functools.partial(torch.optim.Adam, lr=float(np.float32(1e-2))),
        epochs=3,
        batch_size=10,
        clip_norm=1.0,
        seed=3,
        validate_every=2,
    )
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), reference.parameters(), strict=True))
    assert objectives.Renyi(np.int64(3), np.float64(0.5)).alpha == 0.5
    for wrong in (True, 2.0, np.float64(2.0), np.bool_(True)):
        with pytest.raises(ValueError, match="expected a positive integer"):
            fit(make_vae(), X, epochs=wrong)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("objective", [objectives.ELBO(), objectives.IWAE(3), objectives.REINFORCE(3)])
@pytest.mark.parametrize("inside", [True, False])
def test_deterministic_has_no_log_weight_and_belongs_anywhere(objective, inside):
    vae = make_vae()

    def model(x):
        if not inside:
            pyro.deterministic("total", x.sum())
        vae.model(x)
        if inside:
            with pyro.plate("other", len(x), dim=-1):
                pyro.deterministic("twice", 2 * x, event_dim=1)

    reference = make_vae()
    torch.manual_seed(1)
    with_site = fit((model, vae.guide), X, objective=objective, epochs=2, batch_size=10, seed=0)
    without = fit((reference.model, reference.guide), X, objective=objective, epochs=2, batch_size=10, seed=0)
    assert [r["loss"] for r in with_site.history] == [r["loss"] for r in without.history]


def test_a_pyro_optimiser_goes_into_fit():
    digits = data.from_tensors(X, validation=10, test=0)
    run = fit(make_vae(), digits, optimizer=pyro.optim.Adam({"lr": 1e-2}), epochs=3, batch_size=10, seed=0)
    other = fit(make_vae(), digits, optimizer=functools.partial(torch.optim.Adam, lr=1e-2), epochs=3, batch_size=10,
                seed=0)  # fmt: skip
    assert [r["loss"] for r in run.history] == [r["loss"] for r in other.history]
    with pytest.raises(ValueError, match=r"an object of pyro\.optim with a schedule"):
        fit(make_vae(), digits, optimizer=pyro.optim.Adam({"lr": 1e-2}, {"clip_norm": 1.0}), epochs=1, batch_size=10)


def test_a_callback_that_asks_for_log_evidence_costs_no_graph(caplog):
    """Evidence works on a copy of the model, which takes off what Pyro hangs on its parameters."""
    vae, seen = make_vae(latent_dim=1), []

    class Asks(Callback):
        def on_epoch(self, run, record):
            seen.append(log_evidence(vae, X[:1]).mean)

    run = fit(vae, X, epochs=12, batch_size=30, compile="graph", callbacks=[Asks()], seed=0)
    assert run.why_eager is None
    assert len(seen) == 12
    assert not caplog.records
