"""Conditional models, p(z|y) p(x|z, y) with q(z|x, y): in Python, trained, evaluated, and on the command line."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from archives import arrays_of
from torch import Tensor, nn

from ppl_vae import (
    SVI,
    VAE,
    cli,
    data,
    evaluation,
    fit,
    likelihoods,
    load_run,
    networks,
    objectives,
    posteriors,
    priors,
)
from ppl_vae.data.conditions import with_labels
from ppl_vae.training.run import Run

K_CLASSES = 10


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return with_labels(data.load("digits"))


def make(like: Any, latent_dim: int = 2, **changes: Any) -> VAE:
    mlp = networks.MLP([32], activation="tanh")
    pieces = {
        "prior": priors.StandardNormal(latent_dim),
        "likelihood": likelihoods.Bernoulli(mlp),
        "posterior": posteriors.DiagonalNormal(mlp),
    }
    return VAE(like, **(pieces | changes))


class LabelledPrior(nn.Module):
    """A foreign prior with a mean for each label."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.mean = nn.Linear(K_CLASSES, latent_dim)

    def forward(self, y: Tensor) -> dist.Distribution:
        mean = self.mean(y)
        return dist.Normal(mean, torch.ones_like(mean)).to_event(1)


# The data


def test_labels_become_a_column(digits: data.Dataset) -> None:
    for split in (digits.train, digits.validation, digits.test):
        assert split.labels is not None
        y = split.columns[1]
        assert isinstance(y, Tensor)
        assert torch.equal(y.argmax(1), split.labels)
        assert torch.equal(y.sum(1), torch.ones(len(split)))
    assert digits.fingerprint != data.load("digits").fingerprint


def test_labels_that_are_not_0_to_9() -> None:
    x, labels = torch.randn(40, 3), torch.tensor([7, -2, 7, 40] * 10)
    made = with_labels(data.from_tensors(x, labels=labels, validation=0))
    y, kept = made.train.columns[1], made.train.labels
    assert isinstance(y, Tensor)
    assert kept is not None
    assert torch.equal(y.argmax(1), kept)
    (rows,) = (made.train.x[torch.arange(len(kept))],)
    original = (rows[:, None] == x[None]).all(-1).float().argmax(1)
    assert torch.equal(torch.tensor([-2, 7, 40])[kept], labels[original])
    assert made.validation.columns[1].shape == (0, 3)


def test_what_cannot_be_conditions() -> None:
    with pytest.raises(ValueError, match="no labels for its train data"):
        with_labels(data.from_tensors(torch.randn(40, 3)))
    labelled = data.from_tensors(torch.randn(40, 3), torch.randn(40, 2), labels=torch.arange(40) % 2)
    with pytest.raises(ValueError, match="2 columns already"):
        with_labels(labelled)


# The program


def test_sizes_and_shapes(digits: data.Dataset) -> None:
    vae = make(digits)
    assert vae.y_shape == (K_CLASSES,)
    x, y = next(digits.train.batches(5))
    assert vae.q_z(x, y).batch_shape == (5,)
    assert vae.p_x(torch.zeros(3, 5, 2), y).batch_shape == (3, 5)
    assert vae.sample(y=torch.arange(10)).shape == (10, 1, 8, 8)
    assert vae.model(y=y).shape == (5, 1, 8, 8)
    assert torch.equal(vae.reconstruct(x, y), vae.decode(vae.encode(x, y), y))
    assert torch.equal(vae.encode(x, y), vae.encode(x, y.argmax(1)))
    weights = objectives.sample_log_weights(vae.model, vae.guide, x, y, num_particles=4)
    assert weights.log_w.shape == (4, 5)


def test_the_condition_matters_and_reaches_both_networks(digits: data.Dataset) -> None:
    vae = make(digits)
    x, y = next(digits.train.batches(5))
    other = y.roll(1, dims=1)
    assert not torch.equal(vae.encode(x, y), vae.encode(x, other))
    z = torch.zeros(5, 2)
    assert not torch.equal(vae.decode(z, y), vae.decode(z, other))


def test_a_piece_that_takes_no_condition_is_given_none(digits: data.Dataset) -> None:
    seen = []

    class Posterior(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> dist.Distribution:
            seen.append(x.shape)
            mean, log_std = self.net(x.flatten(-3)).chunk(2, -1)
            return dist.Normal(mean, log_std.exp()).to_event(1)

    vae = make(digits, posterior=Posterior())
    x, y = next(digits.train.batches(5))
    assert torch.equal(vae.encode(x, y), vae.encode(x, y.roll(1, dims=1)))
    assert seen


@pytest.mark.parametrize("images", [False, True])
def test_labels_join_images_as_planes_where_a_network_wants_images(digits: data.Dataset, images: bool) -> None:
    shapes = []

    class Factory:
        spatial = images

        def __call__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
            shapes.append(in_shape)
            return networks.MLP([8])(in_shape, out_shape)

    vae = make(digits, posterior=posteriors.DiagonalNormal(Factory()))
    assert shapes == [(11, 8, 8) if images else (74,)]
    x, y = next(digits.train.batches(3))
    if images:
        joined = []
        vae.posterior.mean_and_scale.network.register_forward_pre_hook(lambda module, inputs: joined.append(inputs[0]))
        vae.q_z(x, y)
        assert torch.equal(joined[0][:, :1], x)
        assert torch.equal(joined[0][:, 1:], y[:, :, None, None].expand(3, 10, 8, 8))


def test_what_is_refused(digits: data.Dataset) -> None:
    vae = make(digits)
    x, y = next(digits.train.batches(5))
    with pytest.raises(ValueError, match="VAE is conditional: give y"):
        vae.model(x)
    with pytest.raises(ValueError, match=r"given y of shape \(5, 3\); expected \(10,\)"):
        vae.encode(x, y[:, :3])
    with pytest.raises(ValueError, match="none of its pieces was put together for one"):
        make((1, 8, 8)).encode(x, y)
    with pytest.raises(ValueError, match="that none of its pieces takes"):
        VAE(
            (2,),
            prior=priors.StandardNormal(1),
            likelihood=lambda z: dist.Normal(z.expand(*z.shape[:-1], 2), 1.0).to_event(1),
            posterior=lambda x: dist.Normal(x[..., :1], 1.0).to_event(1),
            y_shape=(3,),
        )
    with pytest.raises(ValueError, match="labels from 10 to 10; expected 0 to 9"):
        vae.given(10)
    with pytest.raises(ValueError, match="labels from 3 to 12; expected 0 to 9"):
        vae.encode(x[:2], torch.tensor([3, 12]))
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="labels from -1 to -1; expected 0 to 9"):
        vae.given(-1)
    with pytest.raises(ValueError, match="has no condition"):
        make((1, 8, 8)).given(1)


@pytest.mark.parametrize("rows", [K_CLASSES, 5])
def test_a_vector_of_floats_is_no_condition_of_several_data(rows: int) -> None:
    """Ten of them may be ten labels or one condition of size 10."""
    vae = make((4,), y_shape=(K_CLASSES,), prior=LabelledPrior(2))
    x, y = torch.zeros(rows, 4), torch.arange(K_CLASSES) / 2
    calls = (
        lambda: vae.encode(x, y),
        lambda: vae.decode(torch.zeros(rows, 2), y),
        lambda: vae.sample(y=y),
        lambda: vae.guide(x, y),
        lambda: vae.model(x, y),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"y of shape \(10,\) and dtype torch.float32; expected conditions"):
            call()
    torch.testing.assert_close(vae.encode(x[0], y), vae.given(y).encode(x)[0])  # one datum has one
    torch.testing.assert_close(vae.decode(torch.zeros(2), y), vae.given(y).decode(torch.zeros(1, 2))[0])


# One condition


def test_given_a_condition_it_is_the_same_model(digits: data.Dataset) -> None:
    vae = make(digits, prior=LabelledPrior(2)).double()
    assert torch.equal(
        vae.given(torch.tensor(3)).decode(torch.zeros(1, 2).double()), vae.given(3).decode(torch.zeros(1, 2).double())
    )
    vae.posterior.eval()
    assert vae.given(3).training
    assert not vae.posterior.training, "to ask for a condition leaves the modes as they are"
    given, y = vae.given(3), torch.eye(10, dtype=torch.float64)[3]
    x, z = torch.rand(5, 1, 8, 8).double().round(), torch.randn(4, 5, 2, dtype=torch.float64)
    each = y.expand(5, 10)
    assert torch.equal(given.q_z(x).log_prob(z), vae.q_z(x, each).log_prob(z))
    assert torch.equal(given.p_x(z).log_prob(x), vae.p_x(z, each).log_prob(x))
    assert given.p_z().batch_shape == ()
    torch.testing.assert_close(given.p_z().log_prob(z), vae.p_z(each).log_prob(z), rtol=1e-12, atol=0)
    assert {id(p) for p in given.parameters()} == {id(p) for p in vae.parameters()}
    assert given.sample(2).shape == (2, 1, 8, 8)


def test_evidence_of_each_condition_is_that_of_the_model_given_it(digits: data.Dataset) -> None:
    vae = make(digits, 1)
    x, y = next(digits.test.batches(4))
    y = y[[0, 1, 2, 1]]  # one condition twice
    assert len(y.unique(dim=0)) == 3
    found = evaluation.log_evidence(vae, x, y)
    assert (found.kind, found.method) == ("exact", "quadrature")
    for i in (0, 3):
        alone = evaluation.log_evidence(vae.given(y[i]), x[i : i + 1])
        assert found.log_evidence[i] == pytest.approx(alone.log_evidence.item(), abs=1e-4)
    assert torch.equal(vae.score(x, y.argmax(1)), found.log_evidence)


def test_counts_of_all_conditions_add_up(digits: data.Dataset) -> None:
    vae = make(digits, latent_dim=5)
    x, y = next(digits.test.batches(40))
    found = evaluation.log_evidence(vae, x, y, method="posterior", num_particles=(20,))
    assert found.details["num_unreliable"] == float(found.error.isinf().sum()) > 0


@pytest.mark.ci
def test_evidence_against_importance_sampling_of_the_whole_program(digits: data.Dataset) -> None:
    vae = make(digits, 1, prior=LabelledPrior(1))
    fit(vae, digits, epochs=10, seed=0)  # before, q(z|x) is far from p(z|x), and its weights say nothing
    x, y = next(digits.test.batches(3))
    exact = evaluation.log_evidence(vae, x, y)
    sampled = evaluation.importance((vae.model, vae.guide), x, y, proposal="posterior", num_particles=2000)
    error = (exact.log_evidence - sampled.log_evidence).abs()
    assert bool((error < 5 * sampled.details["standard_error"] + exact.error).all())


def test_linear_gaussian_with_a_condition_has_the_closed_form() -> None:
    """x = W z + A y + e: given y a linear-Gaussian model with another mean."""
    torch.manual_seed(0)
    vae = VAE(
        (3,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(nn.Linear(2 + 4, 3), scale=0.5),
        posterior=posteriors.DiagonalNormal(nn.Linear(3 + 4, 4)),
        y_shape=(4,),
    ).double()
    x, y = torch.randn(7, 3).double(), torch.eye(4).double()[torch.arange(7) % 4]
    weight, bias = vae.likelihood.mean.network.weight, vae.likelihood.mean.network.bias
    covariance = weight[:, :2] @ weight[:, :2].T + 0.25 * torch.eye(3)
    expected = torch.distributions.MultivariateNormal(y @ weight[:, 2:].T + bias, covariance).log_prob(x)
    found = evaluation.log_evidence(vae, x, y)
    assert found.method == "closed form"
    torch.testing.assert_close(found.log_evidence, expected, rtol=1e-10, atol=0)


def test_evaluation_says_what_it_looked_at(digits: data.Dataset) -> None:
    vae = make(digits, 1)
    found = evaluation.evaluate(vae, digits.test, size=6)
    assert {"log_evidence", "elbo", "gap", "bits_per_dim"} <= found.figures.keys()
    assert any("under one condition" in note for note in found.notes)
    assert found.gaps is None
    bound = found.bound.elbo
    assert bool((found.evidence.log_evidence > bound - 1e-3).all())


def test_too_many_conditions_are_refused() -> None:
    vae = make((4,), y_shape=(1,))
    with pytest.raises(ValueError, match="1001 different conditions"):
        evaluation.log_evidence(vae, torch.zeros(1001, 4), torch.randn(1001, 1), method="quadrature")
    with pytest.raises(ValueError, match="5 data were given with 4 conditions"):
        evaluation.log_evidence(vae, torch.zeros(5, 4), torch.randn(4, 1))
    with pytest.raises(ValueError, match="takes data and conditions"):
        evaluation.log_evidence(vae, torch.zeros(5, 4))
    with pytest.raises(ValueError, match="at least one"):
        evaluation.log_evidence(vae, torch.zeros(0, 4), torch.zeros(0, 1))


@pytest.mark.parametrize("y_shape", [(1,), (3,)])
def test_fractions_are_no_labels(y_shape: tuple[int]) -> None:
    with pytest.raises(ValueError, match=r"a condition is the number 0\.2; expected labels of an integer type"):
        evaluation.log_evidence(make((4,), y_shape=y_shape), torch.zeros(3, 4), torch.tensor([0.2, 0.5, 0.9]))


# Training


@pytest.fixture(scope="module")
def plain(digits: data.Dataset) -> Run:
    """A training without the labels."""
    pyro.set_rng_seed(0)
    return fit(make(digits.x_shape), data.load("digits"), epochs=15, seed=0)


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize("prior", [lambda: priors.StandardNormal(2), lambda: LabelledPrior(2)])
def test_training_uses_the_labels(digits: data.Dataset, plain: Run, prior: Any) -> None:
    """Given its label a digit costs fewer nats, up to log 10 = 2.3 of them, of which a fifth must have come."""
    run = fit(make(digits, prior=prior()), digits, epochs=15, seed=0)
    assert run.history[-1]["validation_elbo"] > plain.history[-1]["validation_elbo"] + 0.5


@pytest.mark.parametrize("labels", [False, True])
def test_a_conditional_step_is_captured_bit_for_bit(digits: data.Dataset, labels: bool) -> None:
    x, y = next(digits.train.batches(16))
    y = y.argmax(1) if labels else y
    found = []
    for level in ("off", "graph"):
        pyro.set_rng_seed(0)
        vae = make(digits, prior=LabelledPrior(2))
        svi = SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=1e-3), objectives.ELBO(2), compile=level)
        losses = [svi.step(x, y) for _ in range(4)]
        assert level == "off" or svi.why_eager is None
        found.append((losses, [p.clone() for p in vae.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.ci
def test_copies_and_real_valued_conditions() -> None:
    torch.manual_seed(0)
    y = torch.randn(400, 2)
    x = torch.cat([y, -y], 1) + 0.1 * torch.randn(400, 4)
    toy = data.from_tensors(x, y, validation=0.2)
    pieces = {"likelihood": likelihoods.Normal(networks.MLP([16]), scale=0.2)}
    vae = make(toy, **pieces)
    fit(vae, toy, epochs=60, batch_size=32, optimizer=functools.partial(torch.optim.Adam, lr=1e-2), seed=0)
    copied = copy.deepcopy(vae)
    some, its_y = next(toy.validation.batches(20))
    assert torch.equal(copied.encode(some, its_y), vae.encode(some, its_y))
    decoded = vae.decode(torch.zeros(20, 2), its_y)
    assert (decoded - torch.cat([its_y, -its_y], 1)).square().mean().sqrt() < 0.5


# The command line


def command(*words: str) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "conditional"
    words = ("train", "--data", "digits", "--data.conditional", "true", "--epochs", "2", "--out", str(folder))
    assert command(*words) == 0
    return folder


@pytest.mark.ci
def test_train_writes_pictures_under_labels(run_folder: Path) -> None:
    assert (run_folder / "samples.png").is_file()
    assert (run_folder / "reconstructions.png").is_file()
    assert not (run_folder / "latent_grid.png").exists()
    assert json.loads((run_folder / "run.json").read_text())["data"]["y_shape"] == [10]


def test_a_run_can_be_loaded(run_folder: Path) -> None:
    vae = load_run(run_folder)
    assert vae.y_shape == (10,)
    assert vae.given(2).sample(2).shape == (2, 1, 8, 8)


@pytest.mark.ci
def test_commands_on_a_conditional_run(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "a.npz"
    assert command("sample", run_folder, "--size", "30", "--out", out) == 0
    assert arrays_of(out)["labels"].tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert command("sample", run_folder, "--label", "4", "--size", "3", "--out", tmp_path / "b.npz") == 0
    assert "labels" not in arrays_of(tmp_path / "b.npz")
    for name in ("encode", "reconstruct"):
        assert command(name, run_folder, "--out", tmp_path / f"{name}.npz") == 0
    vae, test = load_run(run_folder), with_labels(data.load("digits")).test
    x, y = next(test.batches(32))
    assert np.allclose(arrays_of(tmp_path / "encode.npz")["mean"][:32], vae.encode(x, y).numpy(), atol=1e-6)
    assert command("interpolate", run_folder, "--label", "4", "--out", tmp_path / "i.npz") == 0
    assert command("evaluate", run_folder, "--size", "6") == 0
    assert (run_folder / "evaluation" / "evaluation.json").is_file()
    capsys.readouterr()
    assert command("interpolate", run_folder) == 2
    assert "is a conditional model; expected 0 to 9" in capsys.readouterr().err
    assert command("sample", run_folder, "--label", "10") == 2


def test_a_condition_in_a_preset(tmp_path: Path) -> None:
    dataset = data.load("digits", conditional=True)
    assert torch.equal(
        torch.as_tensor(dataset.train.columns[1][torch.arange(5)]),
        torch.as_tensor(with_labels(data.load("digits")).train.columns[1][torch.arange(5)]),
    )
    assert replace(dataset).x_shape == (1, 8, 8)
