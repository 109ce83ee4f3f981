"""Regularizers: penalties outside of the logarithm, with the gradient that their objective's draws allow."""

from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pyro.infer import Trace_ELBO
from short_runs import without_pictures
from torch import nn

import ppl_vae as pv
from ppl_vae import likelihoods, posteriors, priors, regularizers
from ppl_vae.objectives import (
    CUBO,
    ELBO,
    IWAE,
    PIWAE,
    REINFORCE,
    STL,
    DReG,
    EnumeratedELBO,
    MeanFieldELBO,
    Regularized,
    as_loss,
    sample_log_weights,
)
from ppl_vae.regularizers import Capacity, FreeBits, InfoVAE, KLWeight, Schedule, TotalCorrelation

NOTHING = [
    KLWeight(1.0),
    FreeBits(0.0),
    FreeBits(0.0, over="datum"),
    TotalCorrelation(100, beta=1.0),
    InfoVAE(0.0, 1.0),
]


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)


def gaussian():
    model = LinearGaussian.random()
    return model, model.vae(), model.sample(6)


def value_and_gradients(objective, vae, x, seed=0):
    torch.manual_seed(seed)
    loss = as_loss(objective)((vae.model, vae.guide), x)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(-loss.surrogate, parameters, allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return -loss.loss, torch.cat([g.flatten() for g in flat])


def replicated(objective, vae, x, batches=200, copies=40):
    """Mean gradient per datum over batches of copies of x, with its standard error."""
    gradients = torch.stack(
        [
            value_and_gradients(objective, vae, x.repeat(copies, 1), seed)[1] / (copies * len(x))
            for seed in range(batches)
        ]
    )
    return gradients.mean(0), gradients.std(0) / math.sqrt(batches)


def agree(a, b):
    (mean_a, se_a), (mean_b, se_b) = a, b
    assert ((mean_a - mean_b).abs() <= 5 * (se_a.square() + se_b.square()).sqrt() + 1e-12).all()


@pytest.mark.parametrize("regularizer", NOTHING, ids=repr)
@pytest.mark.parametrize("objective", [ELBO(3), MeanFieldELBO(3), STL(3), IWAE(3), DReG(3)], ids=repr)
def test_without_force_nothing_changes_to_the_last_bit(objective, regularizer):
    _, vae, x = gaussian()
    plain = value_and_gradients(objective, vae, x)
    regularized = value_and_gradients(Regularized(objective, regularizer), vae, x)
    assert torch.equal(plain[0], regularized[0])
    assert torch.equal(plain[1], regularized[1])


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_a_kl_weight_on_the_elbo_is_that_of_the_closed_form(beta):
    _, vae, x = gaussian()
    value, gradient = value_and_gradients(Regularized(MeanFieldELBO(2), KLWeight(beta)), vae, x)
    torch.manual_seed(0)
    log_weights = sample_log_weights(vae.model, vae.guide, x, num_particles=2)
    by_hand = (log_weights.log_lik.mean(0) - beta * log_weights.analytic_kl()[0]).sum()
    torch.testing.assert_close(value, by_hand.detach(), rtol=1e-10, atol=0.0)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(by_hand, parameters)])
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


def test_a_kl_weight_stays_outside_of_the_logarithm():
    _, vae, x = gaussian()
    torch.manual_seed(0)
    log_weights = sample_log_weights(vae.model, vae.guide, x, num_particles=5)
    estimate = Regularized(IWAE(5), KLWeight(3.0))(log_weights)
    bound = log_weights.log_w.logsumexp(0) - math.log(5)
    torch.testing.assert_close(
        estimate.value, (bound - 2 * log_weights.analytic_kl()[0]).detach(), rtol=1e-10, atol=0.0
    )
    assert estimate.kind == "lower"
    assert Regularized(IWAE(5), KLWeight(0.5))(log_weights).kind == "neither"


def mixture_vae():
    """A VAE whose KL has no closed form."""
    torch.manual_seed(0)
    return pv.VAE(
        (5,),
        prior=priors.MixtureOfNormals(2, num_components=3).double(),
        likelihood=likelihoods.Normal(nn.Linear(2, 5)),
        posterior=posteriors.DiagonalNormal(nn.Linear(5, 4)),
    )


@pytest.mark.parametrize("objective", [STL(3), DReG(3), PIWAE(4, 2)], ids=repr)
def test_a_sampled_kl_beside_a_weighted_path_has_the_gradient_of_the_plain_one(objective):
    vae, x = mixture_vae(), torch.randn(4, 5)
    penalty = KLWeight(3.0)

    def penalty_alone(base):
        """The penalty's own gradient: that of the whole less the objective's, at the same noise."""
        return lambda seed: (
            value_and_gradients(Regularized(base, penalty), vae, x, seed)[1]
            - value_and_gradients(base, vae, x, seed)[1]
        )

    plain = ELBO(objective.num_particles)
    for seed in range(3):
        torch.testing.assert_close(penalty_alone(objective)(seed), penalty_alone(plain)(seed), rtol=1e-9, atol=1e-9)


def bits_vae():
    torch.manual_seed(0)
    return pv.VAE(
        (4,),
        prior=priors.BernoulliVector(3, 0.3, learned=True).double(),
        likelihood=likelihoods.Bernoulli(nn.Linear(3, 4)),
        posterior=posteriors.BernoulliVector(nn.Linear(4, 3)),
    )


def bits_chain(x):
    """Two discrete sites, z1 and z2 given z1, so that the KL has no closed form."""
    modules = nn.ModuleDict({"q1": nn.Linear(4, 1), "q2": nn.Linear(5, 1), "p2": nn.Linear(1, 1), "p": nn.Linear(2, 4)})

    def program(observe):
        def run(x):
            for name, module in modules.items():
                pyro.module(name, module)
            with pyro.plate("data", len(x), dim=-1):
                if observe:
                    z1 = pyro.sample("z1", dist.Bernoulli(torch.full((len(x),), 0.4)))
                    z2 = pyro.sample("z2", dist.Bernoulli(logits=modules["p2"](z1[..., None])[..., 0]))
                    logits = modules["p"](torch.stack([z1, z2], -1))
                    pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)
                else:
                    z1 = pyro.sample("z1", dist.Bernoulli(logits=modules["q1"](x)[..., 0]))
                    joint = torch.cat([x.expand(*z1.shape, 4), z1[..., None]], -1)
                    pyro.sample("z2", dist.Bernoulli(logits=modules["q2"](joint)[..., 0]))

        return run

    return modules, program(True), program(False)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_a_kl_weight_on_latents_without_a_gradient_follows_the_score(num_particles):
    torch.manual_seed(3)
    x = torch.randint(2, (3, 4)).double()
    modules, model, guide = bits_chain(x)
    parameters = list(modules.parameters())

    def gradient(objective, copies, seed):
        torch.manual_seed(seed)
        loss = as_loss(Regularized(objective, KLWeight(3.0)))((model, guide), x.repeat(copies, 1))
        return torch.cat([g.flatten() for g in torch.autograd.grad(-loss.surrogate, parameters)]) / (copies * len(x))

    exact = gradient(EnumeratedELBO(), 1, 0)
    draws = torch.stack([gradient(REINFORCE(num_particles), 100, seed) for seed in range(150)])
    agree((draws.mean(0), draws.std(0) / math.sqrt(150)), (exact, torch.zeros_like(exact)))


@pytest.mark.parametrize("regularizer", [KLWeight(4.0), FreeBits(5.0, over="level")], ids=["weight", "free bits"])
def test_a_kl_of_a_drawn_label_and_a_path_follows_the_score_of_the_label_alone(regularizer):
    parameters = [torch.tensor(value, requires_grad=True) for value in (0.7, 0.3, -0.6, 0.2)]
    a, b, c, s = parameters

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.2 * torch.ones(())))
            z = pyro.sample("z", dist.Normal(2 * y, 1.0))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=a))
            pyro.sample("z", dist.Normal(b + c * y, s.exp()))

    def found(objective, copies=1000, batches=12):
        draws, loss = [], as_loss(Regularized(objective, regularizer))
        for seed in range(batches):
            torch.manual_seed(seed)
            surrogate = loss((model, guide), torch.full((copies,), 0.5)).surrogate
            draws.append(torch.stack(torch.autograd.grad(-surrogate / copies, parameters)))
        draws = torch.stack(draws)
        return draws.mean(0), draws.std(0) / math.sqrt(batches)

    agree(found(REINFORCE(2, "leave_one_out", paths=True)), found(EnumeratedELBO()))


def test_a_closed_kl_of_bits_needs_no_score():
    vae, x = bits_vae(), torch.randint(2, (3, 4)).double()
    exact = value_and_gradients(Regularized(EnumeratedELBO(), KLWeight(3.0)), vae, x)[1] / 3
    agree(
        replicated(Regularized(REINFORCE(4, "leave_one_out"), KLWeight(3.0)), vae, x), (exact, torch.zeros_like(exact))
    )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule("constant", 2.0), [2.0] * 6),
        (Schedule("linear", 2.0, 1.0, steps=4), [1.0, 1.25, 1.5, 1.75, 2.0, 2.0]),
        (Schedule("cyclical", 1.0, 0.0, steps=8, cycles=2), [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]),
    ],
    ids=repr,
)
def test_schedules(schedule, expected):
    torch.testing.assert_close(torch.stack([schedule() for _ in expected]), torch.tensor(expected))


def test_a_sigmoid_schedule_reaches_both_ends_and_half_in_the_middle():
    schedule = Schedule("sigmoid", 3.0, 1.0, steps=10)
    values = torch.stack([schedule() for _ in range(12)])
    torch.testing.assert_close(values[[0, 5, 10, 11]], torch.tensor([1.0, 2.0, 3.0, 3.0]))
    assert (values.diff()[:10] > 0).all()


def test_evaluation_does_not_move_a_schedule():
    schedule = Schedule("linear", 1.0, steps=4)
    schedule()
    with torch.no_grad():
        assert schedule().item() == schedule().item() == 0.25


def test_a_schedule_moves_within_one_captured_graph():
    torch.set_default_dtype(torch.float32)
    x = torch.randint(2, (8, 6)).float()

    def losses(level):
        torch.manual_seed(0)
        vae = pv.VAE(
            (6,),
            prior=priors.StandardNormal(2),
            likelihood=likelihoods.Bernoulli(nn.Linear(2, 6)),
            posterior=posteriors.DiagonalNormal(nn.Linear(6, 4)),
        )
        objective = Regularized(IWAE(3), KLWeight(4.0, "linear", steps=10))
        optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
        svi = pv.SVI(vae.model, vae.guide, optimizer, objective, compile=level)
        return [svi.step(x) for _ in range(15)], svi

    eager, captured = losses("off"), losses("graph")
    assert captured[1].why_eager is None
    assert len(captured[1]._graphs) == 1
    assert eager[0] == captured[0]


def test_free_bits_by_hand():
    _, vae, x = gaussian()
    torch.manual_seed(0)
    log_weights = sample_log_weights(vae.model, vae.guide, x, num_particles=2)
    q = vae.q_z(x).base_dist
    kl = torch.distributions.kl_divergence(q, dist.Normal(0.0, 1.0)).detach()
    floor = kl.mean(0).mean().item()  # between the two dimensions
    penalty = FreeBits(floor)(log_weights)
    expected = (floor - kl.mean(0)).clamp_min(0).sum().expand(len(x))
    torch.testing.assert_close(penalty.value, expected, rtol=1e-10, atol=0.0)
    each = FreeBits(floor, average="datum")(log_weights)
    torch.testing.assert_close(each.value, (floor - kl).clamp_min(0).sum(-1), rtol=1e-10, atol=0.0)
    whole = FreeBits(2 * floor, over="datum", average="datum")(log_weights)
    torch.testing.assert_close(whole.value, (2 * floor - kl.sum(-1)).clamp_min(0), rtol=1e-10, atol=1e-12)
    assert penalty.nonnegative


def test_a_free_dimension_has_no_gradient_of_its_kl():
    _, vae, x = gaussian()
    log_weights = sample_log_weights(vae.model, vae.guide, x)
    penalty = FreeBits(1e3)(log_weights)  # all are free: the penalty takes the KL's gradient away
    encoder = list(vae.posterior.parameters())
    taken = torch.autograd.grad(penalty.surrogate.sum(), encoder, retain_graph=True)
    kl = torch.autograd.grad(log_weights.analytic_kl()[0].sum(), encoder)
    for a, b in zip(taken, kl, strict=True):
        torch.testing.assert_close(a, -b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("nats", "sign"), [(1e-3, 1.0), (1e3, -1.0)])
def test_a_capacity_draws_the_kl_to_itself(nats, sign):
    _, vae, x = gaussian()
    log_weights = sample_log_weights(vae.model, vae.guide, x)
    kl = log_weights.analytic_kl()[0]
    penalty = Capacity(nats, gamma=7.0)(log_weights)
    mean = kl.detach().mean()
    torch.testing.assert_close(penalty.value, (7.0 * (mean - nats).abs() - mean).expand(len(x)), rtol=1e-10, atol=0.0)
    encoder = list(vae.posterior.parameters())
    gradient = torch.autograd.grad(penalty.surrogate.sum(), encoder, retain_graph=True)
    of_kl = torch.autograd.grad(kl.sum(), encoder)
    for a, b in zip(gradient, of_kl, strict=True):
        torch.testing.assert_close(a, (7.0 * sign - 1) * b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_the_parts_of_the_kl_add_up_and_are_those_written_out(num_particles):
    _, vae, x = gaussian()
    log_weights = sample_log_weights(vae.model, vae.guide, x, num_particles=num_particles)
    parts = regularizers.aggregate.decompose(log_weights, dataset_size=50)
    torch.testing.assert_close(sum(parts), log_weights.kl.mean(0), rtol=1e-10, atol=1e-10)
    q = vae.q_z(x).base_dist
    z = log_weights.z["z"].reshape(num_particles, len(x), 2)
    joint = torch.zeros(num_particles, len(x))
    marginal = torch.zeros(num_particles, len(x))
    for k in range(num_particles):
        for i in range(len(x)):
            density = q.log_prob(z[k, i]).exp()  # (batch of x, 2)
            joint[k, i] = (density.prod(-1).sum() / (50 * len(x))).log()
            marginal[k, i] = (density.sum(0) / (50 * len(x))).log().sum()
    torch.testing.assert_close(parts[1], (joint - marginal).mean(0), rtol=1e-9, atol=1e-9)
    penalty = TotalCorrelation(50, beta=3.0, alpha=0.5)(log_weights)
    torch.testing.assert_close(penalty.value, (2 * parts[1] - 0.5 * parts[0]).detach(), rtol=1e-10, atol=1e-10)


def gaussian_mmd(mean, std, d):
    """MMD^2 of N(mean, std^2 I) and N(0, I) under exp(-r^2 / (2d)), in closed form."""

    def expected(variance, shift):
        return (d / (d + variance)) ** (d / 2) * math.exp(-shift / (2 * (d + variance)))

    shift = d * mean**2
    return expected(2 * std**2, 0.0) + expected(2.0, 0.0) - 2 * expected(1 + std**2, shift)


@pytest.mark.ci
def test_the_discrepancy_is_unbiased_and_counts_per_datum():
    vae = pv.VAE(
        (3,),
        prior=priors.StandardNormal(2).double(),
        likelihood=likelihoods.Normal(nn.Linear(2, 3)),
        posterior=lambda x: dist.Normal(0.7 * torch.ones(len(x), 2), 0.6).to_event(1),
    )
    for batch in (4, 16):
        draws = []
        with torch.no_grad():
            for seed in range(600):
                torch.manual_seed(seed)
                log_weights = sample_log_weights(vae.model, vae.guide, torch.zeros(batch, 3), num_particles=2)
                draws.append(InfoVAE(0.0, 2.0, "rbf")(log_weights).value.mean())
        draws = torch.stack(draws)
        assert abs(draws.mean() - gaussian_mmd(0.7, 0.6, 2)) < 5 * draws.std() / math.sqrt(len(draws))


def test_one_penalty_of_several_may_couple_the_batch():
    assert Regularized(Regularized(ELBO(), InfoVAE()), KLWeight(2.0)).couples_batch
    assert Regularized(Regularized(ELBO(), KLWeight(2.0)), InfoVAE()).couples_batch
    assert not Regularized(Regularized(ELBO(), KLWeight(2.0)), KLWeight(2.0)).couples_batch


def test_an_mmd_vae_has_no_kl_left():
    _, vae, x = gaussian()
    torch.manual_seed(0)
    log_weights = sample_log_weights(vae.model, vae.guide, x)
    estimate = Regularized(MeanFieldELBO(), InfoVAE(alpha=1.0, weight=0.0))(log_weights)
    torch.testing.assert_close(estimate.value, log_weights.log_lik[0].detach(), rtol=1e-10, atol=1e-10)
    assert estimate.kind == "neither"


def test_what_is_reported_as_the_elbo_has_no_penalty():
    _, vae, x = gaussian()
    torch.manual_seed(0)
    plain = as_loss(ELBO())((vae.model, vae.guide), x)
    torch.manual_seed(0)
    weighted = as_loss(Regularized(ELBO(), KLWeight(5.0)))((vae.model, vae.guide), x)
    assert torch.equal(plain.log_likelihood - plain.kl, weighted.log_likelihood - weighted.kl)
    assert weighted.loss > plain.loss


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KLWeight(-1.0), "beta is -1.0; expected a finite number from 0"),
        (lambda: KLWeight(1.0, "linear"), "schedule 'linear' needs steps"),
        (lambda: KLWeight(1.0, "liner", steps=3), "did you mean linear"),
        (lambda: FreeBits(over="dimensions"), "did you mean dimension"),
        (lambda: Capacity(gamma=0.0), "gamma is 0.0"),
        (lambda: TotalCorrelation(0), "dataset_size is 0"),
        (lambda: InfoVAE(alpha=0.0, weight=0.5), "add up to less than 1"),
        (lambda: InfoVAE(alpha=2.0), "alpha is 2.0; expected at most 1"),
        (lambda: Regularized(Trace_ELBO(), KLWeight()), "one of Pyro's, which take none"),
        (lambda: Regularized(ELBO(), KLWeight), "regularizer is <class .*expected an object such as"),
        (lambda: Regularized(IWAE, KLWeight(4.0)), "objective is <class .*expected an object such as"),
        (lambda: Regularized("IWAE", KLWeight(4.0)), "objective is 'IWAE'; expected an object such as"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_what_does_not_fit_is_refused():
    _, vae, x = gaussian()
    detached = sample_log_weights(vae.model, vae.guide, x, num_particles=3, latents="detached")
    with pytest.raises(ValueError, match="an upper bound"):
        Regularized(CUBO(3), KLWeight(2.0))(detached)
    mixture = mixture_vae()
    with pytest.raises(ValueError, match="does not factorise over dimensions"):
        FreeBits()(sample_log_weights(mixture.model, mixture.guide, torch.randn(4, 5)))
    with pytest.raises(ValueError, match="at least 2"):
        InfoVAE()(sample_log_weights(vae.model, vae.guide, x[:1]))
    bits = bits_vae()
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="takes continuous latents, and q is Bernoulli"):
        TotalCorrelation(100)(sample_log_weights(bits.model, bits.guide, x, latents="detached"))
    with pytest.raises(ValueError, match="latents that carry a gradient"):
        InfoVAE()(sample_log_weights(bits.model, bits.guide, x, latents="detached"))


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    "make",
    [
        lambda: {"objective": ELBO(2), "regularizer": KLWeight(2.0, "linear", steps=30)},
        lambda: {"objective": REINFORCE(2, "moving_average")},
        lambda: {"objective": REINFORCE(2, "learned")},
    ],
)
def test_a_resumed_run_is_bit_by_bit_the_one_that_was_not_interrupted(make):
    torch.set_default_dtype(torch.float32)
    x = torch.randint(2, (64, 6)).float()

    def vae():
        torch.manual_seed(0)
        return pv.VAE(
            (6,),
            prior=priors.StandardNormal(2),
            likelihood=likelihoods.Bernoulli(nn.Linear(2, 6)),
            posterior=posteriors.DiagonalNormal(nn.Linear(6, 4)),
        )

    fit = functools.partial(pv.fit, batch_size=16, seed=1)
    whole = fit(vae(), x, epochs=6, **make())
    half = fit(vae(), x, epochs=3, **make())
    rest = fit(vae(), x, epochs=6, resume=half.state(), **make())
    assert rest.history[-1]["loss"] == whole.history[-1]["loss"]
    for a, b in zip(rest.program.parameters(), whole.program.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.ci
def test_a_regularizer_from_the_command_line(tmp_path, capsys):
    from ppl_vae.cli import main

    torch.set_default_dtype(torch.float32)
    out = tmp_path / "run"
    words = ["--epochs", "1", "--regularizer", "KLWeight", "--regularizer.beta", "4", "--objective", "IWAE"]
    with without_pictures():
        assert main(["train", *words, "--objective.num_particles", "3", "--out", str(out)]) == 0
    run = pv.load_run(out)
    assert "beta: 4.0" in (out / "config.yaml").read_text()
    assert run is not None
    assert main(["train", "--regularizer", "KLWeigth"]) == 2
    assert "did you mean KLWeight" in capsys.readouterr().err
    assert main(["train", "--regularizer", "FreeBits", "--objective", "Trace_ELBO", "--epochs", "1"]) == 2
    assert "one of Pyro's" in capsys.readouterr().err
