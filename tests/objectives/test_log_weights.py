"""Log-weights: per datum, with scales and masks where they belong, and refused where they do not factorise."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppl_vae import objectives
from ppl_vae.objectives import LogWeights, NotPerDatumError, as_loss, sample_log_weights
from ppl_vae.objectives.pathwise import ELBO


def chain(num_data=None, subsample=None, mask=None, scale=1.0, pixels=False):
    """z2 -> z1 -> x with a guide z1 -> z2; x of shape (batch, 3), its columns in a plate of their own if asked."""

    def plate(x):
        return pyro.plate("data", num_data or len(x), subsample_size=subsample, dim=-1)

    def model(x):
        with poutine.scale(scale=scale), plate(x) as index:
            x = x[index]
            with poutine.mask(mask=mask[index]) if mask is not None else poutine.scale(scale=1.0):
                z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                z1 = pyro.sample("z1", dist.Normal(0.5 * z2, 1.0).to_event(1))
                mean = z1.sum(-1)
                if pixels:
                    with pyro.plate("pixels", 3, dim=-2):
                        pyro.sample("x", dist.Normal(mean, 1.0), obs=x.T)
                else:
                    pyro.sample("x", dist.Normal(mean.unsqueeze(-1).expand(*mean.shape, 3), 1.0).to_event(1), obs=x)

    def guide(x):
        with poutine.scale(scale=scale), plate(x) as index:
            x = x[index]
            with poutine.mask(mask=mask[index]) if mask is not None else poutine.scale(scale=1.0):
                w = pyro.param("w", torch.tensor(0.3))
                z1 = pyro.sample("z1", dist.Normal(w * x[..., :2], 0.7).to_event(1))
                pyro.sample("z2", dist.Normal(0.4 * z1, 0.9).to_event(1))

    return model, guide


def by_hand(log_weights, x):
    """The same log-weights, written out."""
    z1, z2 = log_weights.z["z1"], log_weights.z["z2"]
    normal = lambda v, m, s: dist.Normal(m, s).to_event(1).log_prob(v)  # noqa: E731
    log_lik = normal(x, z1.sum(-1, keepdim=True).expand(*z1.shape[:-1], 3), 1.0)
    log_prior = normal(z2, torch.zeros(2), 1.0) + normal(z1, 0.5 * z2, 1.0)
    log_q = normal(z1, 0.3 * x[..., :2], 0.7) + normal(z2, 0.4 * z1, 0.9)
    return log_lik, log_prior, log_q


@pytest.mark.parametrize("num_particles", [1, 4])
def test_the_parts_of_a_chain_are_those_written_out(num_particles):
    x = torch.randn(5, 3)
    log_weights = sample_log_weights(*chain(), x, num_particles=num_particles)
    log_lik, log_prior, log_q = (v.expand(num_particles, 5) for v in by_hand(log_weights, x))
    assert log_weights.num_particles == num_particles
    torch.testing.assert_close(log_weights.log_lik, log_lik)
    torch.testing.assert_close(log_weights.log_prior["z1"] + log_weights.log_prior["z2"], log_prior)
    torch.testing.assert_close(log_weights.log_q["z1"] + log_weights.log_q["z2"], log_q)
    torch.testing.assert_close(log_weights.log_w, log_lik + log_prior - log_q)
    assert log_weights.scale == 1.0


def test_particles_are_independent_draws():
    log_weights = sample_log_weights(*chain(), torch.randn(5, 3), num_particles=6)
    assert len(log_weights.log_w.unique()) == 30


def test_a_nested_plate_is_summed_over():
    x = torch.randn(5, 3)
    torch.manual_seed(1)
    nested = sample_log_weights(*chain(pixels=True), x, num_particles=4, max_plate_nesting=2)
    log_lik, log_prior, log_q = by_hand(nested, x)
    squeezed = (log_lik + log_prior - log_q).squeeze(1)
    torch.testing.assert_close(nested.log_w, squeezed)


def test_the_scale_of_a_subsampled_plate_stays_outside():
    """RenyiELBO puts N/B inside the logsumexp (pyro 1.9.2); here the weights are those of one datum."""
    x = torch.randn(100, 3)
    log_weights = sample_log_weights(*chain(num_data=100, subsample=10), x, num_particles=3)
    _, batch = log_weights.observed["x"]
    assert batch.shape == (10, 3)
    log_lik, log_prior, log_q = by_hand(log_weights, batch)
    torch.testing.assert_close(log_weights.log_w, log_lik + log_prior - log_q)
    assert log_weights.scale == 10.0
    assert as_loss(ELBO())(chain(num_data=100, subsample=10), x).weight == 100.0
    torch.manual_seed(4)
    ours = as_loss(ELBO())(chain(num_data=100, subsample=10), x).loss
    torch.manual_seed(4)
    pyros = pyro.infer.Trace_ELBO().loss(*chain(num_data=100, subsample=10), x)
    assert ours.item() == pytest.approx(pyros, rel=1e-5)


def test_a_scale_of_the_whole_program_multiplies_sums_and_not_weights():
    x = torch.randn(5, 3)
    torch.manual_seed(1)
    scaled = as_loss(ELBO())(chain(scale=0.25), x)
    torch.manual_seed(1)
    plain = as_loss(ELBO())(chain(), x)
    torch.testing.assert_close(scaled.loss, 0.25 * plain.loss)
    assert scaled.weight == 0.25 * 5


def test_a_weight_for_each_datum_multiplies_its_own():
    x, weights = torch.randn(5, 3), torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0])
    torch.manual_seed(1)
    weighted = as_loss(ELBO())(chain(scale=weights), x)
    torch.manual_seed(1)
    value = ELBO()(sample_log_weights(*chain(), x)).value
    torch.testing.assert_close(weighted.loss, -(weights * value).sum())
    assert weighted.weight == 10.5


def test_a_masked_datum_has_weight_one():
    x, mask = torch.randn(5, 3), torch.tensor([True, False, True, True, False])
    torch.manual_seed(1)
    masked = sample_log_weights(*chain(mask=mask), x, num_particles=3).log_w
    torch.manual_seed(1)
    plain = sample_log_weights(*chain(), x, num_particles=3).log_w
    torch.testing.assert_close(masked, torch.where(mask, plain, 0.0))


def test_an_auxiliary_site_of_the_guide_counts_in_q():
    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u, log_density=0.0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(4)
    log_weights = sample_log_weights(model, guide, x)
    torch.testing.assert_close(log_weights.log_w[0], dist.Normal(log_weights.z["z"], 1.0).log_prob(x))  # p(z) = q(u)
    with pytest.raises(NotImplementedError, match="'u' is in the guide alone"):
        log_weights.analytic_kl()


def plate(x):
    return pyro.plate("data", len(x))


def observe(x, z):
    with plate(x):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def latent(name, x):
    with plate(x):
        return pyro.sample(name, dist.Normal(0.0, 1.0))


def weighted_latent(x):
    with plate(x):
        with poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def latent_and_datum(x):
    with plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def weighted_guide(x):
    with poutine.scale(scale=0.5):
        latent("z", x)


def observing_guide(x):
    with plate(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.ones(len(x)), has_rsample=False)


BAD_PROGRAMS = {
    "'loc' lies outside the plate 'data'": (
        lambda x: observe(x, pyro.sample("loc", dist.Normal(0.0, 1.0))),
        lambda x: pyro.sample("loc", dist.Normal(0.0, 1.0)),
    ),
    "observes nothing inside a plate": (lambda x: latent("z", x), lambda x: latent("z", x)),
    "the model samples 'z' and the guide does not": (latent_and_datum, lambda x: None),
    "the guide samples 'u' and the model does not": (lambda x: observe(x, 0.0), lambda x: latent("u", x)),
    "have the scales": (weighted_latent, lambda x: latent("z", x)),
    "'z' and 'z' have the scales 0.5 and 1.0": (latent_and_datum, weighted_guide),
    "the guide observes 'f'": (latent_and_datum, observing_guide),
}


@pytest.mark.parametrize("message", BAD_PROGRAMS)
def test_what_is_not_per_datum_is_refused(message):
    with pytest.raises(NotPerDatumError, match=message):
        sample_log_weights(*BAD_PROGRAMS[message], torch.randn(4))


@pytest.mark.parametrize("num_particles", [0, 1.5])
def test_particles_are_checked(num_particles):
    with pytest.raises(ValueError, match="expected a positive integer"):
        sample_log_weights(*chain(), torch.randn(4, 3), num_particles=num_particles)


@pytest.mark.ci
def test_iwae_from_log_weights_rises_with_particles_towards_the_evidence():
    """x ~ N(0, I) through z: log p(x) is known, and the bound with K particles must lie between ELBO and it."""
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    covariance = 2 * (1 + 0.25) * torch.ones(3, 3) + torch.eye(3)  # z1 sums two coordinates, each of variance 1.25
    exact = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)

    def bound(k):
        log_w = sample_log_weights(*chain(), x, num_particles=k).log_w
        return (log_w.logsumexp(0) - math.log(k)).mean()

    bounds = [bound(1), bound(10), bound(10_000)]
    assert bounds[0] < bounds[1] < bounds[2]
    log_w = sample_log_weights(*chain(), x, num_particles=10_000).log_w
    error = (log_w.logsumexp(0) - math.log(10_000) - exact).std() / math.sqrt(200)
    assert (bounds[2] - exact.mean()).abs() < 5 * error


def test_log_weights_made_by_hand_need_no_posterior():
    z = torch.randn(4, 3, 2, requires_grad=True)
    estimate = objectives.IWAE(4)(LogWeights(log_lik=z.sum(-1), z={"z": z}))
    torch.testing.assert_close(estimate.value, z.sum(-1).logsumexp(0) - math.log(4))


def test_an_objectives_own_options_are_not_a_programs_arguments():
    """Its 8 particles in groups, not 64: a program that takes an argument of this name is refused."""
    with pytest.raises(TypeError, match="multiple values for keyword argument 'num_particles'"):
        as_loss(objectives.MIWAE(8, 2))((lambda x: None, lambda x: None), torch.zeros(2), num_particles=64)
