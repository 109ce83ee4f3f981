"""Counts with a library size, observed or latent, and a dispersion for each label, against numbers found otherwise."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy import sparse, stats
from torch import Tensor, nn

from ppl_vae import VAE, checking, data, evaluation, evidence, fit, likelihoods, load, networks, posteriors, priors
from ppl_vae.data import Dataset, from_cells, with_library_size
from ppl_vae.data.conditions import LIBRARY_SIZE, recoded, with_labels
from ppl_vae.distributions.counts import NegativeBinomial
from ppl_vae.objectives import IWAE, sample_log_weights

NAMES = ("Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial")
MLP = networks.MLP
BOUND_ALONE = {"gap_size": 0, "importance_size": 0, "imputation_size": 0}  # of an evaluation


def simulated(n: int = 120, genes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Counts, with a gene count of at least one in each cell, and the batch of each cell."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(1.0, 4.0, (1, genes)) * rng.lognormal(0, 0.6, (n, 1))
    counts = rng.poisson(rate)
    counts[counts.sum(1) == 0, 0] = 1
    return counts, np.arange(n) % 2


def cells(**options: Any) -> Dataset:
    counts, batch = simulated()
    return from_cells(counts, labels=batch, conditional=True, **options)


def make(dataset: Dataset, likelihood: Any, latent_dim: int = 2, counts: int | None = None) -> VAE:
    torch.manual_seed(0)
    encoder = networks.Log1p(MLP([9], "tanh", init="torch"), counts)
    return VAE(
        dataset,
        prior=priors.StandardNormal(latent_dim),
        likelihood=likelihood,
        posterior=posteriors.DiagonalNormal(encoder),
    )


def scipy_log_mass(vae: VAE, x: Tensor, mean: np.ndarray, log_r: np.ndarray) -> np.ndarray:
    r = np.exp(log_r)
    return stats.nbinom.logpmf(x.numpy(), r, r / (r + mean)).sum(-1)


# The density


def test_observed_size_and_dispersion_of_a_label_by_hand() -> None:
    dataset = cells(library=True)
    vae = make(dataset, likelihoods.NegativeBinomial(MLP([5]), "condition", library="condition")).double()
    nn.init.normal_(vae.likelihood.raw_dispersion)
    x, y = (column.double() for column in dataset.train.first(20))
    z = torch.randn(3, 20, 2, dtype=torch.float64)
    with torch.no_grad():
        (raw,) = vae.likelihood.parameters_of_z(z, y[:, 1:])
        found = vae.p_x(z, y).log_prob(x)
    share = raw.softmax(-1).numpy()
    mean = x.sum(1, keepdim=True).numpy() * share  # float32 in y: to 1e-7
    log_r = vae.likelihood.raw_dispersion.detach().numpy()[y[:, 2].int().numpy()]
    np.testing.assert_allclose(found.numpy(), scipy_log_mass(vae, x, mean, log_r), rtol=1e-6)
    size = y[:, :1].exp().numpy()
    np.testing.assert_allclose(size * share, vae.p_x(z, y).mean.detach().numpy(), rtol=1e-10)
    exact = scipy_log_mass(vae, x, size * share, log_r)
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-10)
    np.testing.assert_allclose(vae.likelihood.proportions(z, y).numpy(), share, rtol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("library", ["condition", "latent"])
def test_the_mean_is_the_size_times_proportions(name: str, library: Any) -> None:
    dataset = cells(library=library == "condition")
    vae = make(dataset, getattr(likelihoods, name)(MLP([5]), library=library), 3).double()
    y = dataset.train.columns[1][:20].double()
    z = torch.randn(20, 3, dtype=torch.float64)
    p_x = vae.p_x(z, y)
    kept = 1 if name != NAMES[2] else 1 - torch.sigmoid(p_x.base_dist.gate_logits)
    if library == "condition":
        size = y[:, :1].exp()
    else:
        mean, scale = (y @ t for t in (vae.likelihood.log_size_mean, vae.likelihood.log_size_scale))
        size = (mean + scale * z[:, 2:]).exp()
    shares = vae.likelihood.proportions(z, y)
    torch.testing.assert_close(p_x.mean, size * shares * kept, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(shares.sum(-1), torch.ones(20).double(), rtol=1e-10, atol=0.0)


def test_images_of_counts_share_one_size() -> None:
    dataset = with_library_size(data.from_tensors(torch.poisson(torch.full((30, 1, 2, 3), 2.0)) + 1, test=0))
    vae = make(dataset, likelihoods.NegativeBinomial(MLP([5]), library="condition"))
    z, y = torch.randn(4, 7, 2), dataset.train.columns[1][:7]
    mean = vae.p_x(z, y).mean
    assert mean.shape == (4, 7, 1, 2, 3)
    torch.testing.assert_close(mean.flatten(-3).sum(-1), y[:, 0].exp().expand(4, 7))


@pytest.mark.parametrize("total", [1.0, 30.0, 1e3, 1e6])
@pytest.mark.parametrize("r", [1e-2, 1.0, 1e3])
def test_single_precision_holds_for_all_totals(total: float, r: float) -> None:
    """Against mpmath at the same float32 parameters: the error is that of the inputs' last digit."""
    raw = torch.tensor([[0.0, -4.0, 3.0, -30.0, 1.5]])
    likelihood = likelihoods.NegativeBinomial(nn.Identity(), library="condition", start=r, dispersion="global")
    size = torch.tensor([[total]]).log()
    k = (total * raw.softmax(-1)).round()
    likelihood = likelihood.requires_grad_()
    raw.requires_grad_()
    p_x = likelihood(raw, size)
    log_mass = p_x.base_dist.log_prob(k)
    assert torch.autograd.grad(log_mass.sum(), raw)[0].isfinite().all()
    mpmath.mp.dps = 40
    for i in range(5):
        mean, dispersion = (
            mpmath.e ** mpmath.mpf(t.item()) for t in (p_x.base_dist.log_mean[0, i], likelihood.raw_dispersion)
        )
        count = mpmath.mpf(k[0, i].item())
        exact = (
            mpmath.loggamma(count + dispersion) - mpmath.loggamma(dispersion) - mpmath.loggamma(count + 1)
            + dispersion * mpmath.log(dispersion / (dispersion + mean)) + count * mpmath.log(mean / (dispersion + mean))
        )  # fmt: skip
        assert abs(log_mass[0, i].item() - float(exact)) < 2e-5 * (1 + abs(float(exact)))


# log p(x) with a latent size


@pytest.mark.ci
def test_a_latent_size_has_a_log_p_that_bounds_approach() -> None:
    """One latent factor and the size: an integral over both by a grid of this test, with scipy's masses."""
    counts, _ = simulated(40)
    dataset = from_cells(counts)
    vae = make(dataset, likelihoods.NegativeBinomial(MLP([4], "tanh", init="torch"), library="latent")).double()
    x = dataset.train.x[:6].double()
    log_total = np.log(dataset.train.x.double().sum(1).numpy())
    mean, scale = log_total.mean(), log_total.std()
    np.testing.assert_allclose(
        [vae.likelihood.log_size_mean.item(), vae.likelihood.log_size_scale.item()], [mean, scale]
    )
    nodes = np.linspace(-9, 9, 201)
    with torch.no_grad():
        (raw,) = vae.likelihood.parameters_of_z(torch.tensor(nodes)[:, None])
    share = raw.softmax(-1).numpy()  # (G, genes)
    size = mean + scale * nodes  # log N(mean, scale^2), by its standard score
    rate = share[:, None] * np.exp(size)[None, :, None]
    log_prior = stats.norm.logpdf(nodes)[:, None] + stats.norm.logpdf(size, mean, scale) + math.log(scale)
    area = 2 * math.log(nodes[1] - nodes[0])
    found = evidence.log_evidence(vae, x)
    assert found.method == "quadrature"
    for datum, value in zip(x, found.log_evidence, strict=True):
        log_p = scipy_log_mass(vae, datum, rate, np.zeros(7)) + log_prior
        assert value.item() == pytest.approx(
            np.logaddexp.reduce(log_p.ravel()) + area, abs=max(1e-6, found.error.max())
        )
    bounds = []
    for k in (1, 50):
        replicates = torch.stack(
            [IWAE(k)(sample_log_weights(vae.model, vae.guide, x, num_particles=k)).value.mean() for _ in range(60)]
        )
        bounds.append((replicates.mean(), replicates.std() / math.sqrt(60)))
    (elbo, error), (iwae, iwae_error) = bounds
    assert elbo + 5 * error < iwae < found.log_evidence.mean() + 5 * iwae_error


@pytest.mark.slow
def test_masses_sum_to_one_over_all_x() -> None:
    """The size is no function of x in the latent model, so that its log p(x) is one; an observed size makes p(x|l)."""
    counts, _ = simulated(40, genes=2)
    dataset = from_cells(np.minimum(counts, 1) + 1)
    vae = make(dataset, likelihoods.Poisson(MLP([4], "tanh", init="torch"), library="latent")).double()
    every = torch.tensor(list(itertools.product(range(14), repeat=2)), dtype=torch.float64)
    assert vae.score(every).exp().sum().item() == pytest.approx(1, abs=1e-5)


# Many conditions


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize("latent_dim", [1, 4])
def test_many_conditions_at_once_agree_with_one_after_another(latent_dim: int) -> None:
    dataset = cells(library=True, validation=0, test=0)
    vae = make(dataset, likelihoods.NegativeBinomial(MLP([5], "tanh", init="torch"), library="condition"), latent_dim)
    x, y = (column[:60] for column in dataset.train.columns)
    found = evidence.log_evidence(vae, x, y, method="posterior", num_particles=(2000,))
    few = slice(3)
    expected = evidence.log_evidence(vae, x[few], y[few], num_particles=(2000,))
    assert expected.method == ("quadrature" if latent_dim == 1 else "importance")
    error = found.details["standard_error"][few] + expected.error
    assert (error < 1).all()
    assert ((found.log_evidence[few] - expected.log_evidence).abs() < 5 * error + 1e-4).all()
    report = evaluation.evaluate(vae, dataset.train, size=60, num_particles=(100,), evidence="posterior", **BOUND_ALONE)
    assert len(report.bound.elbo) == len(report.evidence) == 60
    torch.testing.assert_close(-report.bound.rate - report.bound.distortion, report.bound.elbo)
    for i in range(3):
        single = evaluation.elbo(evidence.VAEDensities(vae.given(y[i])), x[i : i + 1])
        for name in ("elbo", "rate"):
            error = report.bound.error if name == "elbo" else report.bound.rate_error
            gap = getattr(report.bound, name)[i] - getattr(single, name)[0]
            assert abs(gap) < 5 * (error[i] + single.error[0])
    if latent_dim > 3:
        assert evidence.log_evidence(vae, x[:6], y[:6], num_particles=(10,)).log_evidence.isfinite().all()


# What is recovered


class OfLabel(nn.Module):
    """A network that sees the labels alone, behind the latents."""

    def __init__(self, genes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2, genes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs[:, -2:])


def most_likely(split: data.Split) -> np.ndarray:
    """The log r of each label and gene at the maximum of the likelihood, by L-BFGS."""
    x, y = (column.double() for column in split.columns)
    logits, log_r = (torch.zeros(2, x.shape[1], dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.LBFGS([logits, log_r], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_mean = y[:, :1] + y[:, 1:] @ logits.log_softmax(-1)
        value = -NegativeBinomial(log_mean, y[:, 1:] @ log_r).log_prob(x).sum() / len(x)
        value.backward()
        return value

    optimizer.step(loss)
    return log_r.detach().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_dispersions_of_genes_and_labels_are_found_within_their_errors(seeds: int) -> None:
    """Without factors and under known sizes the best ELBO is log p(x|y), so that r is the most likely one."""
    genes, n = 12, 1200
    rng = np.random.default_rng(1)
    share, log_r = rng.dirichlet(np.full(genes, 5.0), 2), rng.normal(1.0, 0.5, (2, genes))
    errors, apart = [], []
    for seed in range(seeds):
        rng = np.random.default_rng(100 + seed)
        batch, size = np.arange(n) % 2, rng.lognormal(np.log(300), 0.5, n)
        mean, r = size[:, None] * share[batch], np.exp(log_r)[batch]
        y = np.concatenate([np.log(size)[:, None], np.eye(2)[batch]], 1)
        dataset = data.from_tensors(rng.poisson(rng.gamma(r, mean / r)), y, validation=0, test=0)
        torch.manual_seed(seed)
        likelihood = likelihoods.NegativeBinomial(OfLabel(genes), "condition", library="condition")
        vae = make(dataset, likelihood, 1)
        fit(vae, dataset, epochs=60, batch_size=100, seed=seed, optimizer=lambda p: torch.optim.Adam(p, lr=3e-2),
            scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 60))  # fmt: skip
        dispersion = vae.cpu().likelihood.raw_dispersion.detach().numpy()
        errors.append(dispersion - log_r)
        apart.append(dispersion - most_likely(dataset.train))
        found = likelihood.proportions(torch.zeros(2, 1), torch.tensor([[0.0, 1, 0], [0.0, 0, 1]])).numpy()
        assert np.abs(found - share).sum(1).max() / 2 < 0.02
    assert np.abs(np.array(apart)).max() < 0.1  # of the last steps' noise
    if seeds > 1:
        mean, error = np.mean(errors, 0), np.std(errors, 0, ddof=1) / math.sqrt(seeds)
        assert np.median(error) < 0.06
        assert np.mean(np.abs(mean) < 5 * error) > 0.95  # P(|t| > 5) = 0.7% at four degrees of freedom


@pytest.mark.slow
def test_dispersions_and_proportions_of_a_known_model_are_found() -> None:
    """Two factors, a linear softmax decoder, two batches with an r per gene each: the errors over six data sets.

    Sampling explains 0.02 of an error in log r. The rest is the ELBO's: of a gene with large weights r is too low.
    """
    genes, n = 30, 3000
    rng = np.random.default_rng(1)
    weights, base, shift = rng.normal(0, 0.5, (2, genes)), rng.normal(0, 0.7, genes), rng.normal(0, 0.4, genes)
    log_r = rng.normal(1.0, 0.5, (2, genes))
    errors, distances, wrong = [], [], []
    for seed in range(6):
        rng = np.random.default_rng(100 + seed)
        z, batch = rng.normal(size=(n, 2)), np.arange(n) % 2
        logits = z @ weights + base + batch[:, None] * shift
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        mean = rng.lognormal(np.log(1500), 0.4, (n, 1)) * share
        r = np.exp(log_r)[batch]
        x = rng.poisson(rng.gamma(r, mean / r))
        dataset = from_cells(x, labels=batch, conditional=True, validation=0, test=0)
        torch.manual_seed(seed)
        vae = VAE(
            dataset,
            prior=priors.StandardNormal(3),
            likelihood=likelihoods.NegativeBinomial(
                MLP([], init="torch"), "condition", library="latent", start_from_data=True
            ),
            posterior=posteriors.DiagonalNormal(networks.Log1p(MLP([64], "relu", init="torch"))),
        )
        fit(
            vae,
            dataset,
            epochs=120,
            seed=seed,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
            scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120),
        )
        errors.append(vae.cpu().likelihood.raw_dispersion.detach().numpy() - log_r)
        found = vae.likelihood.proportions(vae.encode(*dataset.train.columns), dataset.train.columns[1]).numpy()
        distances.append(np.abs(found - share).sum(1).mean() / 2)
        wrong.append(np.abs(x / x.sum(1, keepdims=True) - share).sum(1).mean() / 2)
    print(np.mean(errors), np.sqrt(np.mean(np.square(errors))), distances, wrong)
    assert abs(np.mean(errors)) < 0.08  # q(z|x) is not p(z|x), and the ELBO takes what q misses for noise
    assert np.sqrt(np.mean(np.square(errors))) < 0.15  # log r varies by 0.5
    assert np.mean(distances) < 0.35 * np.mean(wrong)


# Data


def test_sizes_are_those_of_each_row_and_stay_first() -> None:
    counts, batch = simulated()
    words = np.array(["b", "a"])[batch]
    dataset = from_cells(counts, labels=words, conditional=True, library=True)
    for part in (dataset.train, dataset.validation, dataset.test):
        x, y = part.columns
        torch.testing.assert_close(y[:, 0], x.sum(1).log())
        assert part.conditions == (LIBRARY_SIZE, "a", "b")
        assert (y[:, 2] == torch.from_numpy(words == "b")[part.rows]).all()
        assert (y[:, 1:].sum(1) == 1).all()
        assert (part.labels == y[:, 2]).all()
        assert (x == torch.from_numpy(counts)[part.rows]).all()
    stays = with_library_size(with_labels(data.from_tensors(counts.astype(float), labels=batch, validation=0)))
    assert stays.train.conditions == (LIBRARY_SIZE, "0", "1")
    assert stays.validation.columns[1].shape == (0, 3)


def test_what_cells_may_be_held_in() -> None:
    counts, batch = simulated()
    obs = SimpleNamespace(index=np.array([f"c{i}" for i in range(120)]))
    expected = from_cells(counts, labels=batch, conditional=True).train
    annotated = SimpleNamespace(X=np.log1p(counts), obs=obs, layers={"counts": sparse.csr_matrix(counts)})
    for held, options in (
        (torch.tensor(counts), {}),
        (sparse.coo_matrix(counts), {}),
        (annotated, {"layer": "counts"}),
    ):
        found = from_cells(held, labels=batch, conditional=True, **options).train
        assert (found.x == expected.x).all()
        assert (found.columns[1] == expected.columns[1]).all()
    assert found.ids[0] == f"c{int(found.rows[0])}"
    with pytest.raises(ValueError, match=r"the cells hold \d\.\d+, where raw counts were expected.*layer='counts'"):
        from_cells(annotated)
    with pytest.raises(ValueError, match="layer is 'raw'; expected one of counts"):
        from_cells(annotated, layer="raw")
    with pytest.raises(ValueError, match="layer is 'raw'; expected one of an object with layers"):
        from_cells(counts, layer="raw")
    with pytest.raises(ValueError, match="cells hold -1"):
        from_cells(sparse.csr_matrix(-counts.clip(0, 1)))
    with pytest.raises(TypeError, match="data is a int"):
        from_cells(7)


def test_anndata_with_a_batch_and_a_layer() -> None:
    anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    counts, batch = simulated()
    obs = pandas.DataFrame({"donor": pandas.Categorical(np.array(["x", "w"])[batch], ["x", "w"]), "type": batch})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    held = anndata.AnnData(np.log1p(counts), obs, layers={"counts": sparse.csr_matrix(counts)})
    dataset = from_cells(held, layer="counts", labels="donor", conditional=True, library=True)
    assert dataset.train.conditions == (LIBRARY_SIZE, "x", "w")  # categories in their own order
    assert (dataset.train.columns[1][:, 2] == torch.from_numpy(batch)[dataset.train.rows]).all()  # w is the second
    vae = make(dataset, likelihoods.NegativeBinomial(MLP([5]), library="condition"), counts=7)
    fit(vae, dataset, epochs=1, batch_size=32, seed=0)
    with pytest.raises(ValueError, match="labels is 'doner'; expected a column of donor, type"):
        from_cells(held, layer="counts", labels="doner")


def test_cells_without_counts_are_refused_by_name() -> None:
    counts, _ = simulated()
    counts[3] = 0
    with pytest.raises(ValueError, match=r"cells has no counts in row \d+ \(1 such rows of a part\)"):
        from_cells(counts, library=True)
    with pytest.raises(ValueError, match=r"likelihood NegativeBinomial: row \d+ of the training data has no counts"):
        make(from_cells(counts, validation=0, test=0), likelihoods.NegativeBinomial(library="latent"))


@pytest.mark.slow
def test_conditions_with_a_size_mean_what_they_meant_in_training() -> None:
    counts, batch = simulated()
    trained = from_cells(counts, labels=np.array(["a", "b"])[batch], conditional=True, library=True)
    vae = make(trained, likelihoods.NegativeBinomial(MLP([5]), "condition", library="condition"))
    fit(vae, trained, epochs=1, batch_size=32, seed=0)
    assert vae.conditions == (LIBRARY_SIZE, "a", "b")
    alone = from_cells(
        counts[batch == 1], labels=["b"] * 60, conditional=True, library=True, validation=0, test=0
    ).train
    moved = recoded(alone, vae.conditions)
    torch.testing.assert_close(moved.columns[1][:, 0], alone.columns[1][:, 0])
    assert (moved.columns[1][:, 1] == 0).all()
    assert (moved.columns[1][:, 2] == 1).all()
    few: dict[str, Any] = {"size": 5, "evidence": "importance", "num_particles": (50,), **BOUND_ALONE}
    found = evaluation.evaluate(vae, alone, **few)
    torch.testing.assert_close(found.bound.elbo, evaluation.evaluate(vae, moved, **few).bound.elbo)
    without = from_cells(counts, labels=np.array(["a", "b"])[batch], conditional=True).train
    with pytest.raises(ValueError, match="not given with a library size, and the model was trained with"):
        evaluation.evaluate(vae, without, size=5)
    with pytest.raises(ValueError, match="have the label c"):
        recoded(from_cells(counts, labels=["c"] * 120, conditional=True, library=True).train, vae.conditions)


# Use


@pytest.mark.ci
@pytest.mark.thinned(4)
@pytest.mark.parametrize(
    ("library", "dispersion"), list(itertools.product(["condition", "latent"], ["feature", "condition"]))
)
def test_saved_and_loaded_it_is_the_same(library: Any, dispersion: Any, tmp_path: Any) -> None:
    dataset = cells(library=library == "condition")
    vae = make(dataset, likelihoods.NegativeBinomial(MLP([5]), dispersion, library=library), 3, counts=7)
    run = fit(vae, dataset, epochs=2, batch_size=32, seed=0, compile="graph")
    assert run.why_eager is None
    again = load(vae.cpu().save(tmp_path / "vae.pt"))
    x, y = dataset.test.columns
    z = torch.randn(len(x), 3)
    torch.testing.assert_close(again.p_x(z, y).log_prob(x), vae.p_x(z, y).log_prob(x), rtol=0, atol=0)
    torch.testing.assert_close(again.encode(x, y), vae.encode(x, y), rtol=0, atol=0)
    assert evidence.log_evidence(vae, x, y, method="posterior", num_particles=(20,)).log_evidence.isfinite().all()
    if (library, dispersion) == ("latent", "condition"):  # minutes for all four
        assert not checking.check(vae, x, y=y, only="likelihood").wrong


@pytest.mark.slow
def test_no_alarm_on_a_program_with_a_latent_size() -> None:
    dataset = cells()
    vae = make(dataset, likelihoods.NegativeBinomial(MLP([5]), "condition", library="latent"), 3, counts=7)
    x, y = dataset.test.columns
    assert not checking.check(vae, x, y=y).wrong


def test_sizes_of_each_label_and_of_labels_with_one_cell() -> None:
    counts, batch = simulated()
    names = np.array(["a", "b"])[batch]
    names[5] = "c"
    dataset = from_cells(counts, labels=names, conditional=True, validation=0, test=0)
    likelihood = make(dataset, likelihoods.NegativeBinomial(MLP([5]), library="latent"), 3).likelihood
    log_total = np.log(counts.sum(1))
    rows = [log_total[names == "a"], log_total[names == "b"], log_total]
    np.testing.assert_allclose(likelihood.log_size_mean[:, 0].numpy(), [r.mean() for r in rows], rtol=1e-6)
    np.testing.assert_allclose(likelihood.log_size_scale[:, 0].numpy(), [r.std() for r in rows], rtol=1e-6)
    same = from_cells(np.full((20, 3), 2), validation=0, test=0)
    assert make(
        same, likelihoods.Poisson(MLP([5]), library="latent")
    ).likelihood.log_size_scale.item() == pytest.approx(1e-2)


def test_the_means_start_at_the_pooled_proportions() -> None:
    dataset = cells(library=True)
    for name in NAMES:
        vae = make(dataset, getattr(likelihoods, name)(MLP([]), library="condition", start_from_data=True))
        y = dataset.train.columns[1][:5].clone()
        y[:, 1:] = 0
        pooled = dataset.train.x.sum(0) / dataset.train.x.sum()
        torch.testing.assert_close(vae.likelihood.proportions(torch.zeros(5, 2), y), pooled.expand(5, 7))


def test_the_posterior_sees_the_condition_or_not() -> None:
    dataset = cells(library=True)
    for counts, blind in ((7, True), (None, False)):
        vae = make(dataset, likelihoods.NegativeBinomial(MLP([5]), library="condition"), counts=counts)
        x, y = dataset.train.first(4)
        assert torch.equal(vae.encode(x, y), vae.encode(x, y + 1)) == blind
    with pytest.raises(ValueError, match="does not take an input of shape"):
        make(dataset, likelihoods.NegativeBinomial(MLP([5]), library="condition"), counts=99)
    with pytest.raises(ValueError, match="counts is 0; expected a positive integer"):
        networks.Log1p(counts=0)


def test_log1p_of_large_counts_and_of_any_condition() -> None:
    network = networks.Log1p(lambda i, o: nn.Identity())((3,), (3,))
    found = network(torch.tensor([[0.0, 1e6, -1.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, math.log(1e6 + 1), -math.log(2)]]))
    convolution = networks.Log1p(networks.Convolutional([3], [4]))
    assert convolution((1, 8, 8), (2,))(torch.ones(5, 1, 8, 8)).shape == (5, 2)


def test_what_goes_with_a_library_size_and_what_does_not() -> None:
    labelled, sized = cells(), cells(library=True)
    plain = from_cells(simulated()[0])
    for dataset, options, said in (
        (plain, {"library": "condition"}, r"reads the log library size from the first entry .* is not there"),
        (labelled, {"library": "condition"}, r"reads the log library size from the first entry .* is not there"),
        (plain, {"dispersion": "condition"}, r"values for each label, and the data have no one-hot labels"),
        (sized, {"library": "latent"}, r"values for each label, and the data have no one-hot labels"),
        (sized, {"dispersion": "condition"}, r"values for each label, and the data have no one-hot labels"),
        ((7,), {"library": "latent"}, r"the VAE was made from a shape alone"),
        (plain, {"library": "offset"}, r"likelihood NegativeBinomial: library"),
    ):
        with pytest.raises(ValueError, match=said):
            make(dataset, likelihoods.NegativeBinomial(MLP([5]), **options))
    vae = make(sized, likelihoods.NegativeBinomial(MLP([5]), library="condition"))
    x, _ = sized.test.columns
    other = make(sized, likelihoods.Poisson(MLP([5])))  # takes the library size as any condition
    other.conditions = sized.train.conditions  # as `fit` sets them
    labels = torch.zeros(len(x), dtype=torch.int64)
    for act in (lambda: vae.encode(x, labels), lambda: vae.given(1), lambda: other.sample(y=labels)):
        with pytest.raises(ValueError, match="was given labels, and its condition holds the log library size"):
            act()
    with pytest.raises(ValueError, match="was given no y; expected the log library size"):
        vae.likelihood.proportions(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"raw counts|outside the support"):
        fit(make(plain, likelihoods.NegativeBinomial(MLP([5]))), plain.train.x.log1p(), epochs=1, batch_size=32)


# Sparse


def test_sizes_are_those_of_the_values_that_programs_see(tmp_path: Path) -> None:
    """Of binarised rows of a sparse file, in memory or not; rows that are drawn afresh have none."""
    sparse.save_npz(tmp_path / "x.npz", sparse.csr_matrix(np.array([[0.9, 0.2, 0.8], [0.6, 0.1, 0.3]] * 4)))
    options: dict[str, Any] = {"library": True, "validation": 0, "test": 0}
    for limit in (4.0, 0.0):
        split = data.load(tmp_path / "x.npz", binarize="threshold", max_in_memory_gib=limit, **options).train
        assert torch.as_tensor(split.columns[1]).exp().flatten().tolist() == pytest.approx([2.0, 1.0] * 4)
    with pytest.raises(ValueError, match="x is drawn afresh for each batch, and so has no totals"):
        data.load(tmp_path / "x.npz", binarize="dynamic", **options)


def test_cells_that_leave_none_to_train_on_are_refused() -> None:
    with pytest.raises(ValueError, match=r"validation=2 .* leave nothing to train on of the 4 rows of the cells"):
        from_cells(np.ones((4, 3)), validation=2, test=2)


@pytest.mark.ci
def test_a_sparse_matrix_stays_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step makes more rows dense than a block; the same figures as from dense rows."""
    counts, batch = simulated(600)
    dense = from_cells(counts, labels=batch, conditional=True, library=True)
    monkeypatch.setattr("ppl_vae.data.held.memory", lambda: 0.0)
    kept = from_cells(sparse.csr_matrix(counts), labels=batch, conditional=True, library=True)
    assert not isinstance(kept.train.x, Tensor)
    found = []
    for dataset in (dense, kept):
        vae = make(dataset, likelihoods.NegativeBinomial(MLP([5]), "condition", library="condition"), 1)
        run = fit(vae, dataset, epochs=2, seed=0)
        figures = evaluation.evaluate(vae, dataset.test, size=4, **BOUND_ALONE).figures
        found.append((run.history[-1]["elbo"], figures["elbo"].value))
    assert found[0] == pytest.approx(found[1], rel=1e-6)  # a GPU need not repeat the last digits of a sum
