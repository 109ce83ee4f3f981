"""`VAEDensity`: scikit-learn's own checks, its numbers against densities in closed form, its use in scikit-learn."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pyro
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import ppl_vae as pv
from ppl_vae import fit
from ppl_vae.sklearn import _FURTHER, VAEDensity

X = load_iris().data
SHORT = {"hidden": (8,), "epochs": 3, "device": "cpu", "random_state": 0, "training": {"compile": "off"}}

# With more than three latents log p(x) is sampled, and the draws of a row depend on the rows beside it: two checks ask
# for equality to 1e-7, where the two answers agree within their standard errors.
SAMPLED = {
    name: "importance sampling draws for all rows at once; the two answers agree within their errors"
    for name in ("check_methods_sample_order_invariance", "check_methods_subset_invariance")
}


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([VAEDensity(latent_dim=2, **SHORT)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([VAEDensity(latent_dim=4, **SHORT)], expected_failed_checks=lambda _: SAMPLED)
def test_scikit_learns_checks_where_log_p_is_sampled(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def fitted() -> VAEDensity:
    return VAEDensity(latent_dim=2, **SHORT).fit(X)


def test_a_linear_vae_is_factor_analysis():
    """log p(x) of linear means and one scale a column is a normal's, in the units of X."""
    scaled = X * [1.0, 100.0, 1e-3, 5.0] + [0.0, 1e4, 7.0, -3.0]
    vae = VAEDensity(latent_dim=2, **SHORT | {"hidden": (), "epochs": 30}).fit(scaled)
    with torch.no_grad():
        p_x = vae.vae_.p_x(torch.cat([torch.zeros(1, 2), torch.eye(2)]).double())
    bias, loadings = p_x.mean[0], p_x.mean[1:] - p_x.mean[0]
    scale = torch.tensor(vae.scaler_.scale_)
    covariance = loadings.T @ loadings + p_x.variance[0].diag()
    normal = torch.distributions.MultivariateNormal(
        bias * scale + torch.tensor(vae.scaler_.mean_), covariance * scale[:, None] * scale
    )
    expected = normal.log_prob(torch.tensor(scaled)).numpy()
    np.testing.assert_allclose(vae.score_samples(scaled), expected, rtol=1e-8)
    assert vae.evidence(scaled).method == "closed form"
    assert vae.score(scaled) == pytest.approx(expected.mean())
    draws = vae.sample(20_000, random_state=0)
    errors = draws.std(0) / len(draws) ** 0.5
    assert (np.abs(draws.mean(0) - normal.mean.numpy()) < 5 * errors).all()
    np.testing.assert_allclose(np.cov(draws.T), normal.covariance_matrix, rtol=0.1, atol=0.05 * draws.var(0).min())


def test_the_density_has_mass_one_in_the_units_of_the_data():
    x = np.random.default_rng(0).gamma(2.0, 300.0, size=(200, 1))
    vae = VAEDensity(latent_dim=1, **SHORT | {"epochs": 40}).fit(x)
    grid = np.linspace(-8000, 12000, 8001)[:, None]
    assert np.exp(vae.score_samples(grid)).sum() * (grid[1] - grid[0])[0] == pytest.approx(1.0, abs=2e-3)  # its error


@pytest.mark.slow
def test_it_is_better_than_a_normal_where_the_data_are_no_normal():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 600)
    ring = np.c_[np.cos(angle), np.sin(angle)] * 50 + rng.normal(size=(600, 2)) + 1000
    vae = VAEDensity(latent_dim=2, hidden=(32, 32), epochs=300, learning_rate=3e-3, device="cpu", random_state=0)
    assert vae.fit(ring[:400]).score(ring[400:]) > PCA(1).fit(ring[:400]).score(ring[400:]) + 0.5


@pytest.mark.ci
def test_in_a_pipeline_and_a_grid_search(fitted):
    pipeline = make_pipeline(StandardScaler(), VAEDensity(latent_dim=1, **SHORT))
    search = GridSearchCV(
        pipeline,
        {"vaedensity__latent_dim": [1, 2], "vaedensity__likelihood": [None, "StudentT"]},
        cv=2,
        error_score="raise",
    ).fit(X[::3])
    assert search.best_estimator_["vaedensity"].vae_.latent_shape == (search.best_params_["vaedensity__latent_dim"],)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert np.isfinite(cross_val_score(clone(fitted), X[::3], cv=2)).all()


def test_pandas_in_and_out(fitted):
    pd = pytest.importorskip("pandas", reason="pandas is not installed (the extra test has it)")
    frame = pd.DataFrame(X, columns=list("abcd"), index=[f"row{i}" for i in range(len(X))])
    vae = VAEDensity(latent_dim=2, **SHORT).set_output(transform="pandas").fit(frame)
    codes = vae.transform(frame)
    assert list(codes.columns) == ["vaedensity0", "vaedensity1"]
    assert list(codes.index) == list(frame.index)
    np.testing.assert_allclose(codes, fitted.transform(X))
    assert list(vae.feature_names_in_) == list("abcd")
    with pytest.raises(ValueError, match="feature names"):
        vae.transform(frame[list("dcba")])


def test_codes_and_back(fitted):
    codes = fitted.transform(X.astype(np.float32))
    assert codes.dtype == np.float32
    back = fitted.inverse_transform(codes.astype(np.float64))
    assert back.shape == X.shape
    scaled = torch.tensor(fitted.scaler_.transform(X))
    expected = fitted.scaler_.inverse_transform(fitted.vae_.reconstruct(scaled).numpy())
    np.testing.assert_allclose(back, expected, atol=1e-5)  # the codes were float32
    with pytest.raises(ValueError, match="X has 3 columns; expected 2 codes"):
        fitted.inverse_transform(np.zeros((5, 3)))


@pytest.mark.ci
def test_a_seed_is_the_whole_story(fitted):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = clone(fitted).fit(X)
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()
    assert (again.score_samples(X[:9]) == fitted.score_samples(X[:9])).all()
    assert (again.sample(3, random_state=1) == fitted.sample(3, random_state=1)).all()
    same = pickle.loads(pickle.dumps(fitted))
    assert (same.score_samples(X[:9]) == fitted.score_samples(X[:9])).all()


@pytest.mark.parametrize("changes", [{"prior": "StandardNormall"}, {"epochs": 0}])
def test_a_fit_that_fails_leaves_the_one_before(fitted, changes):
    vae = copy.deepcopy(fitted)
    with pytest.raises(ValueError, match=r"StandardNormall|epochs is 0"):
        vae.set_params(**changes).fit(100 * X[:, :3])
    np.testing.assert_array_equal(vae.transform(X), fitted.transform(X))
    np.testing.assert_array_equal(vae.scaler_.scale_, fitted.scaler_.scale_)


def test_nothing_of_a_fit_stays_in_pyros_store():
    VAEDensity(**SHORT).fit(X)
    assert not list(pyro.get_param_store())


@pytest.mark.ci
def test_pieces_by_name_and_as_objects_that_stay_as_they_were():
    counts = np.random.default_rng(0).poisson(3.0, size=(60, 4))
    prior = pv.priors.VampPrior(2, 5, start="data")
    vae = VAEDensity(prior=prior, likelihood="Poisson", posterior="FullCovarianceNormal", objective="IWAE", **SHORT)
    vae.fit(counts)
    assert vae.scaler_ is None  # counts are no points on the line
    assert prior.raw_inputs is None
    assert type(vae.vae_.posterior).__name__ == "FullCovarianceNormal"
    assert (vae.score_samples(counts[:12]) < 0).all()
    draws = vae.sample(5)
    assert (draws == np.rint(draws)).all()


def test_a_second_fit_starts_from_the_same_regularizer():
    regularizer = pv.regularizers.KLWeight(1.0, schedule="linear", steps=20)
    vae = VAEDensity(**SHORT | {"training": {"compile": "off", "regularizer": regularizer}})
    first, second = (vae.fit(X).history_[0]["loss"] for _ in range(2))
    assert first == second


def test_the_fitted_likelihood_says_whether_values_may_be_missing(fitted):
    rows = X[:2].copy()
    rows[0, 0] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        copy.deepcopy(fitted).set_params(likelihood="Mixed").transform(rows)


@pytest.mark.ci
def test_missing_values_where_the_likelihood_takes_them():
    holes = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X)
    with pytest.raises(ValueError, match="NaN"):
        VAEDensity(**SHORT).fit(holes)
    vae = VAEDensity(likelihood="Mixed", **SHORT).fit(holes)
    assert np.isfinite(vae.score_samples(holes[:30])).all()
    assert np.isfinite(vae.inverse_transform(vae.transform(holes))).all()


def test_early_stopping_sets_data_apart():
    vae = VAEDensity(early_stopping=2, validation_fraction=0.2, **SHORT | {"epochs": 6}).fit(X)
    assert "validation_elbo" in vae.history_[-1]
    assert vae.history_[-1]["step"] == 6 or len(vae.history_) < 6  # one step of the 120 that are left


def test_an_unreliable_estimate_warns(fitted, monkeypatch):
    found = fitted.evidence(X[:4])
    found.error[1] = np.inf
    monkeypatch.setattr(VAEDensity, "evidence", lambda self, rows: found)
    with pytest.warns(UserWarning, match="1 of 4 rows is unreliable"):
        fitted.score_samples(X[:4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 0}, "latent_dim is 0; expected a positive integer"),
        ({"prior": pv.priors.StandardNormal(3)}, "latent_dim is 2, and the prior has 3 dimensions; give that number"),
        ({"prior": "Norml"}, "prior is 'Norml'; expected one of"),
        ({"prior": "TwoLevel"}, "prior 'TwoLevel' needs more than its name"),
        ({"likelihood": "Bernoulli"}, "outside the support of Bernoulli"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"early_stopping": 3, "validation_fraction": 1.0}, "sets 150 of 150 data apart"),
        ({"evidence_method": "ouija"}, "method is 'ouija'"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        VAEDensity(**SHORT | changes).fit(X).score_samples(X)


def test_every_argument_of_fit_is_its_own_or_may_be_given():
    own = {"program", "data", "validation", "objective", "optimizer", "epochs", "batch_size", "early_stopping", "seed"}
    assert own | {"device"} | set(_FURTHER) == set(inspect.signature(fit).parameters)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"hidden": 64}, "hidden is 64; expected the widths"),
        ({"training": {"epochs": 2}}, "training holds 'epochs'; expected some of regularizer, .* sets the rest by"),
        ({"training": {"epoch": 2}}, "training holds 'epoch'; expected some of"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        VAEDensity(**arguments).fit(np.random.default_rng(0).normal(size=(30, 2)))


def test_rows_outside_the_support_are_named_when_they_are_scored():
    x = np.random.default_rng(0).poisson(2.0, (40, 2))
    vae = VAEDensity(1, likelihood="Poisson", hidden=(4,), epochs=1, random_state=0).fit(x)
    with pytest.raises(ValueError, match="Poisson"):
        vae.score_samples(x - 5)
