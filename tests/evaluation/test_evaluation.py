"""`evaluate` and `log_evidence`: the right method, figures that agree with one another, and notes where they do not."""

from __future__ import annotations

import json
import math

import pyro.distributions as dist
import pytest
import torch
import zoo
from linear_gaussian import LinearGaussian
from short_runs import small_vae
from torch import nn

from ppl_vae import VAE, data, fit, likelihoods, networks, posteriors, priors
from ppl_vae.evaluation import pictures
from ppl_vae.evaluation.bootstrap import Interval
from ppl_vae.evaluation.figures import UNITS
from ppl_vae.evaluation.pictures import draw
from ppl_vae.evaluation.report import evaluate
from ppl_vae.evaluation.true_posterior import kl_to_posterior
from ppl_vae.evidence.densities import VAEDensities
from ppl_vae.evidence.log_evidence import log_evidence
from ppl_vae.evidence.quadrature import quadrature


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits", binarize="threshold")


@pytest.fixture(scope="module")
def vae(digits) -> VAE:
    vae = small_vae(digits, 32)
    fit(vae, digits, epochs=15, seed=0)
    return vae


@pytest.fixture(scope="module")
def found(vae, digits):
    return evaluate(
        vae, digits.test, train=digits.train, size=60, gap_size=10, importance_size=20, imputation_size=10, seed=1
    )


def value(figure) -> float:
    return figure.value if isinstance(figure, Interval) else figure


@pytest.mark.ci
def test_figures_agree_with_one_another(found):
    f = {name: value(figure) for name, figure in found.figures.items()}
    assert f["log_evidence"] - f["elbo"] == pytest.approx(f["gap"], abs=1e-9)
    assert -f["distortion"] - f["rate"] == pytest.approx(f["elbo"], abs=1e-9)
    assert f["mutual_information"] + f["marginal_kl"] == pytest.approx(found.surgery.rate, rel=1e-9)
    assert f["bits_per_dim"] == pytest.approx(-f["log_evidence"] / (64 * math.log(2)))
    assert f["gap"] > 0
    assert f["importance_error"] > -0.05
    per_datum = found.per_datum()
    first = slice(0, 10)
    parts = per_datum["approximation_gap"] + per_datum["amortisation_gap"]
    gap = per_datum["log_evidence"] - per_datum["elbo"]
    assert torch.allclose(parts[first], gap[first], atol=1e-6)
    assert parts[10:].isnan().all()


def test_the_articles_identity_holds_for_each_datum(found):
    assert found.evidence.kind == "exact"
    assert found.figures["log_evidence_error"] < 1e-3
    assert found.figures["identity_residual"] < 1e-3


def test_the_identity_can_fail(vae, digits, monkeypatch):
    from ppl_vae.evaluation import report

    true = report.elbo
    monkeypatch.setattr(
        report,
        "elbo",
        lambda *a, **k: (b := true(*a, **k)).__class__(b.elbo + 0.01, b.rate, b.error, b.rate_error, "x"),
    )
    options = dict(size=10, gap_size=10, importance_size=0, imputation_size=0)
    assert evaluate(vae, digits.test, **options).figures["identity_residual"] > 9e-3


def test_the_table_has_every_figure_with_its_unit_and_every_note(found):
    lines = found.table().splitlines()
    assert lines[0].startswith("60 data, log p(x) by quadrature (exact)")
    for name in found.figures:
        assert any(line.startswith(UNITS[name][0]) and line.endswith(UNITS[name][1]) for line in lines)
    assert [line for line in lines if line.startswith("note: ")] == [f"note: {note}" for note in found.notes]
    assert any("taken apart for the first 10 data" in note for note in found.notes)


def test_what_is_written_is_json_and_holds_the_intervals(found):
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    figure = found.figures["log_evidence"]
    assert content["figures"]["log_evidence"] == {"value": figure.value, "low": figure.low, "high": figure.high}
    assert content["num_data"] == 60
    assert content["method"] == "quadrature"


def test_the_same_seed_gives_the_same_and_moves_no_random_state(vae, digits, found):
    before = torch.get_rng_state()
    again = evaluate(
        vae, digits.test, train=digits.train, size=60, gap_size=10, importance_size=20, imputation_size=10, seed=1
    )
    assert torch.equal(before, torch.get_rng_state())
    theirs = {k: value(v) for k, v in found.figures.items()}  # sums on a GPU are not always repeated to the last digit
    assert {k: value(v) for k, v in again.figures.items()} == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_a_model_of_grey_values_says_that_its_figures_are_no_likelihoods():
    grey = data.load("digits", binarize="none")
    vae = VAE(
        grey,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(allow_grey=True),
        posterior=posteriors.DiagonalNormal(),
    )
    found = evaluate(vae, grey.test, size=5, gap_size=0, importance_size=0, imputation_size=0)
    assert any("not a likelihood" in note for note in found.notes)
    assert "bits_per_dim" not in found.figures


def test_a_collapsed_model_raises_the_alarm(digits):
    encoder = nn.Linear(64, 4)
    nn.init.zeros_(encoder.weight), nn.init.zeros_(encoder.bias)
    flat = nn.Sequential(nn.Flatten(), encoder)
    vae = VAE(
        digits,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(),
        posterior=posteriors.DiagonalNormal(flat, scale="log_var"),
    )
    found = evaluate(vae, digits.test, size=20, gap_size=0, importance_size=0, imputation_size=0)
    assert found.figures["active_units"] == 0
    assert any("posterior collapse" in note for note in found.notes)


@pytest.mark.parametrize("size", [0, -1, True, 1])
def test_sizes_that_cannot_be_are_refused(vae, digits, size):
    with pytest.raises(ValueError, match=r"size|at least 2"):
        evaluate(vae, digits.test, size=size)


class Spins(nn.Module):
    """A prior of the user's own: independent bits."""

    def forward(self):
        return dist.Bernoulli(torch.full((3,), 0.4)).to_event(1)


class SpinPosterior(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Linear(6, 3)

    def forward(self, x):
        return dist.Bernoulli(logits=self.logits(x)).to_event(1)


def discrete(kind: str) -> VAE:
    if kind == "spins":
        return VAE((6,), prior=Spins(), likelihood=likelihoods.Bernoulli(), posterior=SpinPosterior())

    class OneHotPosterior(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Linear(6, 3)

        def forward(self, x):
            return dist.OneHotCategorical(logits=self.logits(x))

    return VAE(
        (6,),
        prior=lambda: dist.OneHotCategorical(torch.full((3,), 1 / 3)),
        likelihood=likelihoods.Bernoulli(),
        posterior=OneHotPosterior(),
    )


@pytest.mark.parametrize("kind", ["spins", "one-hot"])
def test_a_discrete_latent_is_evaluated_as_far_as_it_goes(kind, tmp_path):
    vae = discrete(kind)
    x = vae.sample(20, mean=False)
    found = evaluate(vae, x, gap_size=5, importance_size=5, imputation_size=5)
    assert found.evidence.method == "enumeration"
    assert found.figures["gap"].value > 0
    assert found.gaps is None
    assert "\n" not in "".join(found.notes)
    json.dumps(found.to_dict(), allow_nan=False)
    for name in ("gaps.png", "true_posteriors.png", "mine.png"):  # two of an earlier evaluation
        (tmp_path / name).touch()
    drawn = draw(vae, x, found, tmp_path)
    assert {path.name for path in drawn} >= {"evidence.png", "rate_distortion.png"}
    assert {*tmp_path.iterdir()} == {*drawn, tmp_path / "mine.png"}


@pytest.mark.slow
def test_labels_that_are_no_classes_are_left_alone(vae, digits, tmp_path):
    odd = data.Split(digits.test.columns, torch.linspace(0, 1, len(digits.test)))
    found = evaluate(vae, odd, train=odd, size=12, gap_size=4, importance_size=0, imputation_size=0)
    assert "knn_accuracy" not in found.figures
    assert any("no classes" in note for note in found.notes)
    x = digits.test.head(12).x
    assert draw(vae, x, found, tmp_path, labels=odd.labels[:12])


@pytest.mark.parametrize(("name", "scored"), [("SquashedNormal", True), ("PlanarFlow", False)])
def test_a_posterior_that_cannot_be_scored_everywhere_is_evaluated(name, scored):
    """Inside a box, or at its own draws alone: the nodes around q of the identity's KL are neither."""
    program = next(program for program in zoo.programs() if program.posterior.name == name)
    vae, x = program.vae((1, 2, 3), 2), program.likelihood.draw(6, 1, 2, 3)
    found = evaluate(vae, x, gap_size=3, importance_size=0, imputation_size=0)
    assert ("identity_residual" in found.figures) == scored
    assert any("was not checked: this flow has no inverse" in note for note in found.notes) != scored
    if scored:
        kl = kl_to_posterior(VAEDensities(vae), x, found.evidence)
        gap = found.evidence.log_evidence - found.bound.elbo
        assert ((kl.kl - gap).abs() <= kl.error + 5 * found.bound.error).all()


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])  # at 2 the density of q piles up at both ends
def test_the_kl_from_q_on_a_box_is_that_of_a_fine_grid(scale):
    torch.manual_seed(3)
    posterior = posteriors.SquashedNormal(lambda i, o: nn.Linear(3, 2))
    vae = VAE((3,), prior=priors.Uniform(1), likelihood=likelihoods.Bernoulli(networks.MLP([5])), posterior=posterior)
    vae = vae.double()
    with torch.no_grad():
        layer = next(module for module in vae.modules() if isinstance(module, nn.Linear) and module.in_features == 3)
        layer.bias.copy_(torch.tensor([0.4, math.log(math.expm1(scale))]))
        layer.weight[1] = 0
    x, densities = torch.eye(3).double(), VAEDensities(vae)
    found = kl_to_posterior(densities, x, quadrature(densities, x))
    edges = torch.linspace(-1, 1, 100_002, dtype=torch.float64)  # the default box
    z = ((edges[1:] + edges[:-1]) / 2)[:, None, None].expand(-1, 3, 1)
    with torch.no_grad():
        q, log_lik = vae.q_z(x).log_prob(z), densities.log_likelihood(x, z)
    log_joint = log_lik + vae.prior().log_prob(z)
    width = edges[1] - edges[0]
    exact = (q.exp() * (q - log_joint)).sum(0) * width + (log_joint.exp().sum(0) * width).log()
    assert ((found.kl - exact).abs() <= found.error + 1e-6).all()
    assert (found.error < 5e-3).all()


def test_bins_that_mean_nothing_are_told():
    vae = VAE(
        (3,),
        prior=priors.StandardNormal(1),
        likelihood=likelihoods.Bernoulli(networks.MLP([4])),
        posterior=posteriors.DiagonalNormal(networks.MLP([4])),
    )
    few = {"gap_size": 0, "importance_size": 0, "imputation_size": 0}
    found = evaluate(vae, vae.sample(8, mean=False), bins=256, **few)
    assert "bits_per_dim" not in found.figures
    assert any("no bits per dimension: bins is 256 with the discrete" in note for note in found.notes)


def test_pictures_of_the_first_data_say_so(vae, digits, found, monkeypatch, tmp_path):
    shown = {}
    monkeypatch.setattr(pictures, "_of_latents", lambda *_: {})
    monkeypatch.setattr(pictures.plots, "save", lambda figure, path: shown.setdefault(path.stem, figure))
    few = digits.test.head(60)
    names = {i: f"digit {i}" for i in range(10)}
    draw(vae, few.x, found, tmp_path, labels=few.labels, class_names=names, caveat="Run a")
    for name, of in {
        "gaps": " Here the first 10 of these 60 data.",
        "particles": " Here the first 20 of these 60 data.",
    }.items():
        assert shown[name].texts[-1].get_text() == f"Run a.{of}"
    assert all(word.get_text().startswith("digit ") for word in shown["gaps"].axes[0].get_yticklabels())
    assert "Here" not in shown["evidence"].texts[-1].get_text()


def test_a_picture_that_one_datum_cannot_give_is_left_out(tmp_path):
    vae = LinearGaussian.random(latent_dim=1).vae()
    x = vae.sample(12, mean=False)
    found = evaluate(vae, x, gap_size=0, importance_size=1, imputation_size=0, num_particles=(4,))
    (tmp_path / "particles.png").touch()
    drawn = draw(vae, x, found, tmp_path)
    assert {*tmp_path.iterdir()} == {*drawn}
    assert "particles.png" not in {path.name for path in drawn}


def test_earlier_pictures_stay_where_drawing_fails(vae, digits, found, monkeypatch, tmp_path):
    (tmp_path / "gaps.png").touch()
    monkeypatch.setattr(pictures.plots, "rate_distortion", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw(vae, digits.test.head(60).x, found, tmp_path)
    assert (tmp_path / "gaps.png").exists()


def test_one_datum_without_a_finite_value_does_not_end_the_evaluation(vae, digits, monkeypatch, tmp_path):
    from ppl_vae.evaluation import report

    true = report.log_evidence

    def broken(*args, **options):
        found = true(*args, **options)
        found.log_evidence[2] = -math.inf
        return found

    monkeypatch.setattr(report, "log_evidence", broken)
    found = evaluate(vae, digits.test, size=12, gap_size=6, importance_size=6, imputation_size=0)
    assert math.isfinite(found.figures["log_evidence"].value)
    assert any("1 data without a finite value" in note for note in found.notes)


def test_many_unused_dimensions_are_one_note(digits):
    torch.manual_seed(0)
    vae = VAE(
        digits,
        prior=priors.StandardNormal(6),
        likelihood=likelihoods.Bernoulli(),
        posterior=posteriors.DiagonalNormal(FirstOnly(), scale="log_var"),
    )
    found = evaluate(vae, digits.test, size=20, gap_size=0, importance_size=0, imputation_size=0, evidence="posterior")
    assert sum("unused" in note for note in found.notes) == 1
    assert any(
        "5 of 6 dimensions are unused (KL below 0.01 nats): z_2, z_3, z_4, z_5, z_6" in note for note in found.notes
    )


class FirstOnly(nn.Module):
    """Moves the first of six latents and leaves the others at the prior."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64))

    def forward(self, x):
        first = (x.flatten(1) @ self.weight)[:, None]
        return torch.cat([first, torch.zeros(len(x), 11)], -1)


def test_each_model_gets_its_method():
    exact = LinearGaussian.random()
    x = exact.sample(7)
    linear = exact.vae()
    by_form, by_grid = log_evidence(linear, x), log_evidence(linear, x, method="quadrature")
    assert (by_form.method, by_grid.method) == ("closed form", "quadrature")
    assert torch.allclose(by_form.log_evidence, exact.log_evidence(x), atol=1e-9)
    assert ((by_form.log_evidence - by_grid.log_evidence).abs() <= by_grid.error + by_form.error).all()

    spins = VAE((6,), prior=Spins(), likelihood=likelihoods.Bernoulli(), posterior=SpinPosterior())
    assert log_evidence(spins, spins.sample(4, mean=False)).method == "enumeration"

    wide = VAE(
        (6,), prior=priors.StandardNormal(5), likelihood=likelihoods.Bernoulli(), posterior=posteriors.DiagonalNormal()
    )
    x = wide.sample(4, mean=False)
    estimate = log_evidence(wide, x, num_particles=(10, 200))
    assert (estimate.method, estimate.kind) == ("importance", "lower")
    with pytest.raises(ValueError, match=r"method 'exact' does not apply to a VAE with 5 latents; use 'importance'"):
        log_evidence(wide, x, method="exact")
    pair = log_evidence((wide.model, wide.guide), x, num_particles=(10, 200))
    assert pair.kind == "lower"
    with pytest.raises(ValueError, match=r"method 'quadrature' does not apply to a \(model, guide\) pair"):
        log_evidence((wide.model, wide.guide), x, method="quadrature")
    with pytest.raises(ValueError, match="method is 'quad'"):
        log_evidence(wide, x, method="quad")


@pytest.mark.parametrize(
    "method", ["quadrature", "importance", "posterior", "sumo", pytest.param("ais", marks=pytest.mark.slow)]
)
def test_every_method_that_applies_gives_the_closed_form(method):
    exact = LinearGaussian.random(latent_dim=2)
    x = exact.sample(5)
    found = log_evidence(exact.vae(), x, method=method, num_particles=(5000,))
    error = found.error * (1 if found.kind == "exact" else 5) + 1e-6
    assert ((found.log_evidence - exact.log_evidence(x)).abs() <= error).all()


def test_an_estimate_counts_what_is_unreliable(digits):
    vae = VAE(
        digits,
        prior=priors.StandardNormal(8),
        likelihood=likelihoods.Bernoulli(),
        posterior=posteriors.DiagonalNormal(),
    )
    found = evaluate(vae, digits.test, size=5, gap_size=0, importance_size=5, imputation_size=0, evidence="posterior")
    assert found.figures["num_unreliable"] == (~found.evidence.error.isfinite()).sum()
    assert found.sampled is None
    assert "a stochastic lower bound" in found.table()


@pytest.mark.parametrize(
    ("likelihood", "x", "said"),
    [
        (likelihoods.Bernoulli, 0.5, "Bernoulli"),
        (likelihoods.Poisson, -1.0, "Poisson"),
        (likelihoods.Normal, math.nan, "NaN"),
    ],
)
def test_data_that_no_model_of_this_kind_gives_are_refused_in_one_line(likelihood, x, said):
    make = networks.MLP([4])
    vae = VAE(
        (3,),
        prior=priors.StandardNormal(2),
        likelihood=likelihood(make),
        posterior=posteriors.DiagonalNormal(make),
    )
    with pytest.raises(ValueError, match=said) as error:
        evaluate(vae, torch.full((6, 3), x))
    assert len(str(error.value).splitlines()) == 1


def test_a_table_of_two_columns_in_which_a_row_may_lack_none():
    torch.manual_seed(0)
    vae = VAE(
        (2,),
        prior=priors.StandardNormal(1),
        likelihood=likelihoods.Normal(networks.MLP([4])),
        posterior=posteriors.DiagonalNormal(networks.MLP([4])),
    )
    found = evaluate(vae, torch.randn(40, 2), gap_size=0, importance_size=0)
    assert math.isfinite(value(found.figures["imputation_error"]))
    (note,) = [note for note in found.notes if note.startswith("imputation")]
    assert 20 < int(note.split("random, ")[1].split()[0]) < 40


@pytest.mark.slow
def test_the_pictures_of_an_evaluation_are_the_same_whatever_was_drawn_before(tmp_path):
    def narrow(x):  # the prior alone decides the axes
        return dist.Normal(x.flatten(1)[:, :2], 0.1).to_event(1)

    vae = VAE((1, 3, 3), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(), posterior=narrow)
    x = vae.sample(12, mean=False)
    found = evaluate(vae, x, gap_size=4, importance_size=0, imputation_size=0)
    pictures = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        (tmp_path / str(seed)).mkdir()
        pictures.append({path.name: path.read_bytes() for path in draw(vae, x, found, tmp_path / str(seed))})
    assert "true_posteriors.png" in pictures[0]
    assert pictures[0] == pictures[1]
