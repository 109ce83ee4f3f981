"""One rule for devices and dtypes: computing happens at the parameters, answers come back to where the data were.

A stand-in (`stand_in`) pretends the device. It computes with the CPU's kernels, so figures are equal to the last bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from stand_in import places, pretends, stand_in
from torch import Tensor, nn

import ppl_vae as pv
import ppl_vae.comparison.fixed.steps
from ppl_vae import _home, closed_form, evaluation, evidence, likelihoods, networks, posteriors, priors
from ppl_vae.capture import CaptureError
from ppl_vae.evaluation.paths import path
from ppl_vae.evidence import VAEDensities, densities_of
from ppl_vae.programs import NotMIWAE, SelfMasking
from ppl_vae.training import fitting

N, D = 6, 4


def make(likelihood: Any = None, latent_dim: int = 1) -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(
        (D,),
        prior=priors.StandardNormal(latent_dim),
        likelihood=likelihood or likelihoods.Bernoulli(networks.MLP([4])),
        posterior=posteriors.DiagonalNormal(networks.MLP([4])),
    )


def conditional() -> pv.VAE:
    torch.manual_seed(0)
    piece = posteriors.DiagonalNormal(networks.MLP([4]))
    prior = priors.StandardNormal(1)
    return pv.VAE((D,), prior=prior, likelihood=likelihoods.Bernoulli(networks.MLP([4])), posterior=piece, y_shape=(3,))


def linear() -> pv.VAE:
    return make(likelihoods.Normal(networks.MLP([])))


def discrete() -> pv.VAE:
    torch.manual_seed(0)
    likelihood = likelihoods.Bernoulli(networks.MLP([4]))
    return pv.VAE((D,), prior=priors.BernoulliVector(3), likelihood=likelihood, posterior=posteriors.BernoulliVector())


def binary(size: int = N) -> Tensor:
    return torch.randint(2, (size, D), generator=torch.Generator().manual_seed(1)).float()


def pair(vae: pv.VAE) -> tuple[Any, Any]:
    return vae.model, vae.guide


def known(x: Any) -> evidence.Evidence:
    """Some log p(x), where the caller keeps it: on the device of the data."""
    zero = torch.zeros(len(x), dtype=torch.float64)
    return evidence.Evidence(zero - 5, zero, "closed form")


FEW = {"num_particles": (2, 5)}
# each takes a VAE and data x; the answer holds tensors, or numbers alone
CALLS: dict[str, tuple[Callable[[], pv.VAE], Callable[[pv.VAE, Any], Any]]] = {
    "encode": (make, lambda vae, x: vae.encode(x)),
    "decode": (make, lambda vae, x: vae.decode(x[:, :1])),
    "reconstruct": (make, lambda vae, x: vae.reconstruct(x)),
    "score": (make, lambda vae, x: vae.score(x)),
    "sample of labels": (conditional, lambda vae, x: vae.sample(y=x[:, :3])),
    "encode under conditions": (conditional, lambda vae, x: vae.encode(x, x[:, :3])),
    "score under conditions": (conditional, lambda vae, x: vae.score(x, x[:, :3])),
    "given": (conditional, lambda vae, x: vae.given(x[0, :3]).encode(x)),
    "quadrature": (make, lambda vae, x: evidence.quadrature(VAEDensities(vae), x)),
    "closed form": (linear, evidence.closed_form_evidence),
    "enumeration": (discrete, evidence.enumerate_evidence),
    "importance, q": (make, lambda vae, x: evidence.importance(vae, x, **FEW)),
    "importance, defensive": (make, lambda vae, x: evidence.importance(vae, x, proposal="defensive", **FEW)),
    "importance, pair": (make, lambda vae, x: evidence.importance(pair(vae), x, **FEW)),
    "sumo": (make, lambda vae, x: evidence.sumo(vae, x, repetitions=30, largest=4)),
    "importance, densities": (make, lambda vae, x: evidence.importance(densities_of(pair(vae), x), x, **FEW)),
    "importance, conditions": (conditional, lambda vae, x: evidence.importance(pair(vae), x, x[:, :3], **FEW)),
    "annealed": (
        make,
        lambda vae, x: evidence.annealed(vae, x, num_temperatures=4, num_chains=2, num_leapfrog=2),
    ),
    "annealed from q": (
        make,
        lambda vae, x: evidence.annealed(vae, x, num_temperatures=4, num_chains=2, num_leapfrog=2, start="posterior"),
    ),
    "elbo": (make, lambda vae, x: evaluation.elbo(VAEDensities(vae), x)),
    "elbo, sampled": (make, lambda vae, x: evaluation.monte_carlo_elbo(VAEDensities(vae), x, num_samples=5)),
    "gaps": (make, lambda vae, x: evaluation.gaps(VAEDensities(vae), x, known(x), num_iterations=3)),
    "gaps in 4-D": (
        lambda: make(latent_dim=4),
        lambda vae, x: evaluation.gaps(VAEDensities(vae), x, known(x), num_iterations=3, num_samples=8),
    ),
    "kl_per_dimension": (make, lambda vae, x: evaluation.kl_per_dimension(VAEDensities(vae), x)),
    "latent_use": (make, lambda vae, x: evaluation.latent_use(VAEDensities(vae), x)),
    "surgery": (make, lambda vae, x: evaluation.surgery(VAEDensities(vae), x)),
    "aggregate_posterior": (make, lambda vae, x: evaluation.aggregate_posterior(VAEDensities(vae), x, num_draws=50)),
    "posterior_moments": (make, lambda vae, x: evaluation.posterior_moments(VAEDensities(vae), x)),
    "kl_to_posterior": (make, lambda vae, x: evaluation.kl_to_posterior(VAEDensities(vae), x, known(x))),
    "log_posterior_grid": (
        lambda: make(latent_dim=2),
        lambda vae, x: evaluation.log_posterior_grid(
            VAEDensities(vae), x, [(-3, 3), (-3, 3)], 5, log_evidence=known(x).log_evidence
        ),
    ),
    "impute": (make, lambda vae, x: evaluation.impute(vae, x, x > 0.5, num_steps=3)),
    "impute by importance": (
        lambda: table(),
        lambda vae, x: evaluation.impute(vae, x, x > 0.5, num_steps=3, sampler="importance"),
    ),
    "impute under a mechanism": (
        lambda: masked(),
        lambda program, x: evaluation.impute(program, lost(x), x > 0.5, num_steps=3, num_draws=2, sampler="importance"),
    ),
    "interval of an imputation": (
        lambda: table(["real", "binary", "real", "binary"]),
        lambda vae, x: evaluation.impute(vae, x, x > 0.5, num_draws=4, num_steps=3, sampler="importance").interval(0.5),
    ),
    "errors of an imputation": (make, lambda vae, x: evaluation.impute(vae, x, x > 2, num_steps=3).share_wrong(x)),
    "column_errors": (make, lambda vae, x: evaluation.column_errors(x, 1 - x, x > 0.5, ["binary"] * D)),
    "bits_per_dim": (
        make,
        lambda vae, x: evaluation.bits_per_dim(vae.score(x), x, vae.p_x(vae.p_z().sample((1,)))),
    ),
    "interpolate": (make, lambda vae, x: pv.interpolate(vae, x[:3], x[3:], num_steps=3)),
    "path": (make, lambda vae, x: path(x[:3], x[3:], 3)),
    "knn_accuracy": (make, lambda vae, x: evaluation.knn_accuracy(x, x[:, 0] > 0, x, x[:, 0] > 0, k=2)),
    "interval": (make, lambda vae, x: evaluation.interval({"a": x[:, 0], "b": x[:, 1]})),
    "difference": (make, lambda vae, x: evaluation.difference(x[:, 0], x[:, 1])),
    "evaluate": (make, lambda vae, x: evaluation.evaluate(vae, x, **SMALL)),
    "evaluate, conditions": (conditional, lambda vae, x: evaluation.evaluate(vae, split(x, x[:, :3]), **SMALL)),
    "evaluate, labels": (make, lambda vae, x: evaluation.evaluate(vae, split(x), train=split(x), **SMALL)),
    "compare, pair": (make, lambda vae, x: figures_of(pv.compare(pair(vae), x, log_evidence=known(x), **FIXED))),
    "check": (make, lambda vae, x: statuses(pv.check(vae, x))),
    "cross_entropy": (make, lambda vae, x: closed_form.cross_entropy_from_logits(x, logits(vae)).cpu()),
    "squared_error": (make, lambda vae, x: closed_form.squared_error(x, logits(vae)).cpu()),
}
SMALL = {"gap_size": 1, "importance_size": 2, "imputation_size": 2, "num_particles": (2, 5)}
FIXED = {"objectives": ["ELBO", "IWAE"], "particles": 2, "replicates": 20, "minibatch": False}
NUMBERS = {"knn_accuracy", "interval", "difference", "surgery", "check", "compare", "compare, pair"}  # alone


def table(columns: Sequence[str] = ("binary",) * D) -> pv.VAE:
    torch.manual_seed(0)
    likelihood = likelihoods.Mixed(list(columns))
    encoder = posteriors.DiagonalNormal(networks.TableEncoder(list(columns)))
    return pv.VAE((D,), prior=priors.StandardNormal(2), likelihood=likelihood, posterior=encoder)


def lost(x: Any) -> Any:
    """Data whose larger entries are NaN."""
    return (torch if isinstance(x, torch.Tensor) else np).where(x > 0.5, float("nan"), x)


def masked() -> NotMIWAE:
    torch.manual_seed(0)
    x = torch.randn(9, D)
    holes = pv.data.Dataset("rows", *(pv.data.Split((part,)) for part in (x.where(x < 1, torch.nan), x[:0], x[:0])))
    encoder = posteriors.DiagonalNormal(networks.TableEncoder())
    vae = pv.VAE((D,), prior=priors.StandardNormal(2), likelihood=likelihoods.Mixed("real"), posterior=encoder)
    return NotMIWAE(vae, holes, SelfMasking("high"))


def split(x: Any, *more: Any) -> pv.data.Split:
    columns = tuple(torch.from_numpy(c) if isinstance(c, np.ndarray) else c for c in (x, *more))
    return pv.data.Split(columns, (columns[0][:, 0] > 0).long())


def logits(vae: pv.VAE) -> Tensor:
    return next(vae.parameters()).new_full((N, D), 0.5)


def statuses(report: Any) -> Any:
    return [(f.name, f.status) for f in report.findings]


def figures_of(comparison: Any) -> Any:
    return [(row.name, {n: (b.norm.value, b.variance.value) for n, b in row.blocks.items()}) for row in comparison.rows]


def numbers(value: Any) -> Any:
    """The numbers of an answer, without clocks."""
    if isinstance(value, Tensor):
        return value.detach().cpu().double().nan_to_num(-1).tolist()
    if isinstance(value, dict):
        return {str(k): numbers(v) for k, v in value.items() if k != "seconds"}
    if isinstance(value, (list, tuple)):
        return [numbers(v) for v in value]
    if is_dataclass(value):
        return {f.name: numbers(getattr(value, f.name)) for f in fields(value) if f.name != "seconds"}
    return value


WANTED: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def eager_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in sees what runs in Python; a captured graph hides it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise CaptureError("the stand-in watches")

    monkeypatch.setattr(ppl_vae.comparison.fixed.steps, "CapturedStep", refuse)


WHERE = ("array", "device")
ALL = [(name, WHERE[i % 2]) for i, name in enumerate(CALLS)] + [("encode", "cpu"), ("score", "cpu")]
ALL += [pytest.param(name, WHERE[1 - i % 2], marks=pytest.mark.slow) for i, name in enumerate(CALLS)]


@pytest.mark.parametrize(("name", "where"), ALL)
def test_data_may_be_anywhere(name: str, where: str) -> None:
    """The figures are those of the CPU alone, and the answer is where the data are."""
    build, call = CALLS[name]
    if name not in WANTED:
        torch.manual_seed(0)
        WANTED[name] = numbers(call(build(), binary()))
    with stand_in() as device:
        torch.manual_seed(0)
        vae = build().to(device)
        x = {"cpu": binary(), "array": binary().numpy().astype("f8"), "device": binary().to(device)}[where]
        found = call(vae, x)
        held = places(found)
        assert all(pretends(p) for p in vae.parameters())
        found = numbers(found)
    assert found == WANTED[name]
    if name not in NUMBERS and "entropy" not in name and name[-5:] != "error":
        assert held == {where == "device"}


@pytest.mark.parametrize("program", zoo.families(), ids=zoo.names)
def test_a_piece_of_every_family(program: zoo.Program) -> None:
    """A step of training, and what a VAE does, on a device that does not mix with the CPU."""
    torch.manual_seed(0)
    vae, x = program.vae(), program.likelihood.draw(3, 1, 2, 3)
    with torch.no_grad():
        vae.q_z(x)  # a first look at data, for pieces that take their sizes or moments from them
    twin = copy.deepcopy(vae)
    wanted = vae.encode(x), vae.reconstruct(x)
    with stand_in() as device:
        twin.to(device)
        found = twin.encode(x), twin.reconstruct(x)
        images = twin.sample(2)
        torch.manual_seed(0)
        objective = pv.objectives.ELBO() if program.posterior.reparameterised else pv.objectives.REINFORCE()
        run = pv.fit(twin, x, objective=objective, epochs=1, batch_size=3, seed=0, device=device, compile="off")
        assert pretends(images)
        assert not any(map(pretends, found))
        assert all(pretends(t) for t in (*twin.parameters(), *twin.buffers()))
        evidence.importance(twin, x, num_particles=3)
    assert torch.isfinite(torch.tensor(run.history[0]["elbo"]))
    assert all(map(torch.equal, found, wanted))


def test_training_elsewhere_is_the_same_and_goes_on() -> None:
    data = pv.data.from_tensors(binary(30), validation=0.2, test=0)
    options: dict[str, Any] = {"batch_size": 5, "seed": 0, "compile": "off"}
    here = make()
    pv.fit(here, data, epochs=3, device="cpu", **options)
    with stand_in() as device:
        there = make()
        state = pv.fit(there, data, epochs=1, device=device, **options).state()
        run = pv.fit(there, data, epochs=3, device=device, resume=state, **options)
        assert data.fingerprint == run.data.fingerprint
        values = [p.cpu() for p in there.parameters()]
    assert all(map(torch.equal, values, here.parameters()))


# Where `auto` trains


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A machine with a device that ``auto`` chooses."""
    with stand_in() as device:
        resolve = fitting.resolve_device
        monkeypatch.setattr(fitting, "resolve_device", lambda word: device if word == "auto" else resolve(word))
        yield device


def functions(
    loc: Callable[[Tensor], Tensor] = lambda x: torch.zeros(1), module: nn.Module | None = None
) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """A pair of functions with a constant and a parameter, which are made on the CPU unless `loc` says otherwise."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).expand([len(x), D]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        mean = pyro.param("mean", lambda: loc(x).clone())
        if module is not None:
            pyro.module("module", module)
            mean = mean + module(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))

    return model, guide


SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 3, "seed": 0, "compile": "off"}


def test_auto_trains_a_vae_on_the_accelerator(accelerator: torch.device) -> None:
    vae = make()
    assert pv.fit(vae, binary(), **SHORT).device == str(accelerator)
    assert all(map(pretends, vae.parameters()))


@pytest.mark.parametrize("module", [None, nn.Linear(D, 1)], ids=["parameters of pyro.param", "a module"])
def test_auto_trains_functions_where_their_parameters_are(accelerator: torch.device, module: nn.Module | None) -> None:
    """Nobody can move their constants, nor the initial values of parameters."""
    run = pv.fit(functions(module=module), binary(), **SHORT)
    assert run.device == "cpu"
    assert places(run.state()) == {False}


def test_auto_trains_functions_on_the_accelerator_where_their_module_is(accelerator: torch.device) -> None:
    module = nn.Linear(D, 1).to(accelerator)
    run = pv.fit(functions(lambda x: x.new_zeros(1), module), binary(), **SHORT)
    assert run.device == str(accelerator)
    assert all(map(pretends, module.parameters()))


def test_auto_trains_functions_without_parameters_of_modules_where_the_data_are(accelerator: torch.device) -> None:
    assert pv.fit(functions(lambda x: x.new_zeros(1)), binary().to(accelerator), **SHORT).device == str(accelerator)
    assert pretends(pyro.param("mean"))


def test_functions_move_where_one_says_so(accelerator: torch.device) -> None:
    module = nn.Linear(D, 1)
    run = pv.fit(functions(lambda x: x.new_zeros(1), module), binary(), device=accelerator, **SHORT)
    assert run.device == str(accelerator)
    assert all(map(pretends, (pyro.param("mean"), *module.parameters())))


def test_constants_on_another_device_are_refused_in_words(accelerator: torch.device) -> None:
    with pytest.raises(ValueError, match=r"than hpu:0, .*x\.new_zeros, .* else train with device='cpu'"):
        pv.fit(functions(), binary(), device=accelerator, **SHORT)
    pyro.clear_param_store()
    pyro.param("mean", torch.zeros(1, device=accelerator))
    with pytest.raises(ValueError, match=r"than cpu, .* pyro\.clear_param_store\(\) forgets those"):
        pv.fit(functions(), binary(), device="cpu", **SHORT)


@pytest.mark.parametrize("data", ["a tensor", "with missing values", "a generator"])
def test_auto_trains_a_vae_whose_constants_cannot_move_on_the_cpu(
    accelerator: torch.device, data: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A prior that is a function has nothing that says where the VAE is."""

    def prior() -> Any:
        return dist.Laplace(torch.zeros(1), torch.ones(1)).to_event(1)

    def build() -> pv.VAE:
        torch.manual_seed(0)
        filled = networks.TableEncoder(["real"] * D, networks.MLP([4]))
        likelihood = likelihoods.Mixed("real") if data == "with missing values" else likelihoods.Bernoulli()
        return pv.VAE((D,), prior=prior, likelihood=likelihood, posterior=posteriors.DiagonalNormal(filled))

    def given() -> Any:
        if data == "a generator":
            return (batch for batch in binary().split(3))
        return binary().index_fill(1, torch.tensor([1]), torch.nan) if data == "with missing values" else binary()

    vae, other = build(), build()
    run = pv.fit(vae, given(), **SHORT)
    assert run.device == "cpu"
    assert places(run.state()) == {False}
    assert "training on the CPU: the program holds tensors on another device than hpu:0" in caplog.text
    here = pv.fit(other, given(), device="cpu", **SHORT)
    assert run.final["elbo"] == here.final["elbo"]
    assert all(map(torch.equal, vae.parameters(), other.parameters()))
    with pytest.raises(ValueError, match="register_buffer"):
        pv.fit(vae, given(), device=accelerator, **SHORT)


def test_blocks_of_rows_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x, y = conditional(), binary(7), binary(7)[:, :3]
    z = torch.randn(7, 7, 1)  # as many particles as data: conditions belong to the second dimension
    whole = vae.encode(x, y), vae.reconstruct(x, y), vae.decode(z, y)
    monkeypatch.setattr(_home, "ROWS", 3)
    sizes: list[int] = []
    vae.posterior.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    assert all(map(torch.allclose, (vae.encode(x, y), vae.reconstruct(x, y), vae.decode(z, y)), whole))
    assert set(sizes) == {3, 1}


@pytest.mark.ci
def test_float64_throughout() -> None:
    """A model in float64 takes data in float32 or float64, trains, encodes, scores and evaluates, all in float64."""
    data = pv.data.from_tensors(binary(30), validation=0.2, test=0.2)
    vae = make().double()
    run = pv.fit(vae, data, epochs=2, batch_size=5, seed=0, device="cpu")
    assert run.why_eager is None
    assert run.data.fingerprint == data.fingerprint
    assert run.data.train.x.dtype is torch.float64
    assert {t.dtype for t in (*vae.parameters(), vae.encode(data.test.x), vae.sample(2))} == {torch.float64}
    assert torch.equal(vae.score(data.test.x), vae.score(data.test.x.double()))
    found = pv.evaluate(vae, data.test, train=data.train, **SMALL)
    assert found.evidence.error.max() < 1e-3
    assert pv.compare(vae, data.test, size=3, **FIXED).machine["dtype"] == "float64"


def test_arrays_train() -> None:
    x = binary(20)
    first, second = make(), make()
    pv.fit(first, x, epochs=1, batch_size=5, seed=0, device="cpu", compile="off")
    pv.fit(second, x.numpy().astype(">f8"), epochs=1, batch_size=5, seed=0, device="cpu", compile="off")
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_a_device_without_float64_leaves_figures_to_the_cpu() -> None:
    wanted = make().score(binary())
    with stand_in("mps") as device:
        vae, x = make().to(device), binary().to(device)
        assert pretends(vae.encode(x))
        with pytest.warns(UserWarning, match="log_evidence needs float64, which mps does not have: .* on the CPU"):
            found = vae.score(x)
        assert all(pretends(p) for p in vae.parameters())
        assert not pretends(found)  # float64 has no place there
    assert torch.equal(found, wanted)


def test_the_program_moves_nothing() -> None:
    with stand_in() as device:
        vae = make().to(device)
        for call in (vae.q_z, vae.guide, lambda x: vae.p_x(x[:, :1])):
            with pytest.raises(RuntimeError, match="same device"):
                call(binary())


@pytest.mark.parametrize("x", [[[0.0] * D], "digits"], ids=["list", "text"])
def test_other_kinds_of_data_are_refused(x: Any) -> None:
    with pytest.raises(TypeError, match=r"encode: x is a \w+; expected a tensor or a numpy array"):
        make().encode(x)


def test_a_program_without_parameters_computes_where_the_data_are() -> None:
    class Here:
        def __call__(self, x: Tensor) -> Any:
            return dist.Normal(x[:, :1], x.new_ones(1)).to_event(1)

    bare = pv.VAE(
        (D,),
        prior=lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1),
        posterior=Here(),
        likelihood=lambda z: dist.Normal(z.expand(*z.shape[:-1], D), z.new_ones(1)).to_event(1),
    )
    with stand_in() as device:
        assert pretends(bare.encode(binary().to(device)))
        assert not pretends(bare.encode(binary().numpy()))
