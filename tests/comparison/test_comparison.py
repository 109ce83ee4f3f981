"""The comparison at fixed parameters, against the closed forms of the linear-Gaussian model."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass, fields, replace
from unittest import mock

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from linear_gaussian import LinearGaussian
from replays import TracedReplay, stand_in
from torch import Tensor, nn

from ppl_vae import VAE, likelihoods, networks, posteriors, priors
from ppl_vae.capture import eager_step
from ppl_vae.comparison import compare
from ppl_vae.comparison.contenders import contenders
from ppl_vae.comparison.fixed.blocks import find_parameters
from ppl_vae.comparison.fixed.joint import JointStep
from ppl_vae.comparison.fixed.minibatch import minibatch_variance
from ppl_vae.comparison.fixed.results import Block, Row
from ppl_vae.comparison.fixed.steps import Stepper
from ppl_vae.comparison.statistics.measured import Measured
from ppl_vae.data import Split
from ppl_vae.objectives import ELBO, Estimate, LogWeights, MeanFieldELBO


def iwae(log_weights: LogWeights) -> Tensor:
    return log_weights.log_w.logsumexp(0) - math.log(log_weights.num_particles)


def elbo(log_weights: LogWeights) -> Tensor:
    return log_weights.log_w.mean(0)


def fails(log_weights: LogWeights) -> Tensor:
    raise RuntimeError("this one\nalways fails")


def not_a_number(log_weights: LogWeights) -> Tensor:
    return log_weights.log_w.mean(0) * math.nan


def branches(log_weights: LogWeights) -> Tensor:
    """The ELBO, written so that it cannot be captured."""
    return log_weights.log_w.mean(0) if log_weights.log_w.sum().item() < 1e9 else log_weights.log_w.sum(0)


class Cancelling:
    """The ELBO with a bias of its gradient by the latents' mean whose entries add up to zero."""

    reference = ELBO()
    num_particles = 1

    def __call__(self, log_weights: LogWeights) -> Tensor:
        z = log_weights.z["z"]
        return log_weights.log_w.mean(0) + 0.5 * (z[..., 0] - z[..., 1])


class Flaky:
    """The ELBO, which raises in one of its calls."""

    num_particles = 1

    def __init__(self, raises_in: int) -> None:
        self.raises_in = raises_in

    def __call__(self, log_weights: LogWeights) -> Tensor:
        self.raises_in -= 1
        if self.raises_in == 0:
            raise RuntimeError("now and then")
        return branches(log_weights)


def no_copies(log_weights: LogWeights) -> Tensor:
    """The ELBO of a batch whose data differ."""
    data = log_weights.observed["x"][1]
    if bool((data == data[:1]).all()):
        raise RuntimeError("all data are alike")
    return log_weights.log_w.mean(0)


@dataclass
class OfATensor:
    """The ELBO; two of these cannot be compared by ==."""

    weights: Tensor
    num_particles: int = 1

    def __call__(self, log_weights: LogWeights) -> Tensor:
        return log_weights.log_w.mean(0)


def scaled(encoder: nn.Linear, decoder: nn.Linear, held: Tensor | None):
    """A program that takes its scale as an argument, or holds it."""

    def model(x, scale=held):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)

    def guide(x, scale=held):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    return model, guide


@pytest.fixture(scope="module")
def model() -> LinearGaussian:
    return LinearGaussian.random()


@pytest.fixture(scope="module")
def x(model) -> Tensor:
    return model.sample(6)


@pytest.fixture(scope="module")
def found(model, x):
    """One comparison that many tests look at."""
    pyro.clear_param_store()
    entries = [
        "ELBO",
        "MeanFieldELBO",
        {"iwae": iwae},
        {"same": elbo},
        {"branches": branches},
        fails,
        not_a_number,
        pyro.infer.Trace_ELBO,
    ]
    return compare(model.vae(), x, objectives=entries, particles=(1, 8), replicates=200, reference="ELBO")


@pytest.fixture(scope="module")
def discrete():
    """A comparison on a discrete latent, and one of its estimators again by itself."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    vae = VAE(
        (8,),
        prior=priors.BernoulliVector(4),
        likelihood=likelihoods.Bernoulli(networks.MLP([6])),
        posterior=posteriors.BernoulliVector(networks.MLP([6])),
    )
    x = torch.bernoulli(torch.full((4, 8), 0.5))
    entries = ["EnumeratedELBO", "REINFORCE(baseline=moving_average)", "VIMCO", "ELBO"]
    options = {"replicates": 200, "minibatch": False}
    again = compare(vae, x, objectives=entries[1:2], particles=4, **options)
    return compare(vae, x, objectives=entries, particles=(1, 4), **options), again


def exact_gradients(model: LinearGaussian, x: Tensor) -> dict[str, Tensor]:
    """Of the mean ELBO, by autograd through the closed form, in the blocks of the VAE's parameters."""
    names = ("weight", "bias", "encoder_weight", "encoder_bias", "std")
    leaves = {name: getattr(model, name).clone().requires_grad_() for name in names}
    copy = LinearGaussian(scale=model.scale, **leaves)
    gradients = dict(zip(names, torch.autograd.grad(copy.elbo(x).mean(), list(leaves.values())), strict=True))
    # the VAE's encoder gives log s^2 by a layer with weights A' = 0 and a bias: d/d bias = d/d std * std / 2 ...
    log_variance = []
    for row in x:  # ... and d/d A' = sum over data of that times x
        std = model.std.clone().requires_grad_()
        one = LinearGaussian(**{**vars(model), "std": std}).elbo(row[None]).mean()
        log_variance.append(torch.autograd.grad(one, std)[0] * model.std / 2)
    per_datum = torch.stack(log_variance)
    encoder = [
        gradients["encoder_weight"].flatten(),
        gradients["encoder_bias"],
        (per_datum.T @ x / len(x)).flatten(),
        per_datum.mean(0),
    ]
    return {"encoder": torch.cat(encoder), "decoder": torch.cat([gradients["weight"].flatten(), gradients["bias"]])}


class TestAgainstClosedForms:
    @pytest.mark.ci
    @pytest.mark.parametrize("name", ["ELBO", "MeanFieldELBO", "same", "Trace_ELBO"])
    @pytest.mark.parametrize("k", [1, 8])
    def test_values_are_the_elbo(self, found, model, x, name, k):
        row = found.row(name, k)
        assert row.value_se > 0
        assert abs(row.value - float(model.elbo(x).mean())) < 5 * row.value_se
        gap = float((model.elbo(x) - model.log_evidence(x)).mean())
        assert row.bias.low <= row.bias.value <= row.bias.high
        assert abs(row.bias.value - gap) < 5 * row.value_se

    def test_the_evidence_is_exact(self, found, model, x):
        assert found.evidence.exact
        assert found.evidence.method == "closed form"
        assert found.evidence.value == pytest.approx(float(model.log_evidence(x).mean()), rel=1e-10)

    @pytest.mark.parametrize("k", [1, 8])
    def test_norms_are_those_of_the_exact_gradient(self, found, model, x, k):
        exact = exact_gradients(model, x)
        for name in ("ELBO", "MeanFieldELBO"):
            for block, gradient in exact.items():
                norm = found.row(name, k).blocks[block].norm
                half = max(norm.high - norm.value, norm.value - norm.low) / 1.96
                assert abs(norm.value - float(gradient.norm())) < 5 * half

    def test_moments_are_those_of_gradients_drawn_one_by_one(self, model, x):
        """The oracle: the same seeds, every gradient kept, plain Pyro."""
        vae = model.vae()
        found = compare(vae, x, objectives="Trace_ELBO", particles=1, replicates=40, minibatch=False)
        seeds = torch.randint(2**32, (40,), generator=torch.Generator().manual_seed(0)).tolist()
        gradients: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
        values = []
        for seed in seeds:
            torch.manual_seed(seed)
            vae.zero_grad()
            loss = pyro.infer.Trace_ELBO().differentiable_loss(vae.model, vae.guide, x) / len(x)
            loss.backward()
            values.append(-loss.item())
            for block, piece in (("encoder", vae.posterior), ("decoder", vae.likelihood)):
                gradients[block].append(torch.cat([p.grad.flatten() for p in piece.parameters()]))
        row = found.row("Trace_ELBO", 1)
        assert row.value == pytest.approx(sum(values) / 40, rel=1e-10)
        for block, several in gradients.items():
            g = torch.stack(several)
            n = len(g)
            gram, group = g @ g.T, torch.arange(n) // 2  # 20 groups of two
            apart = group[:, None] != group
            square = float(gram[apart].mean())
            assert row.blocks[block].norm.value == pytest.approx(math.sqrt(max(square, 0)), rel=1e-10)
            variance = float(g.square().sum(1).mean()) - square
            assert row.blocks[block].variance.value == pytest.approx(variance, rel=1e-10)
            ratios = ((g.mean(0) ** 2 / g.var(0) - 1 / n).clamp(min=0)).sqrt()
            assert row.blocks[block].snr.value == pytest.approx(float(ratios.quantile(0.5)), rel=1e-10)
            quartiles = [float(ratios.quantile(q)) for q in (0.25, 0.75)]
            assert row.blocks[block].snr_quartiles == pytest.approx(quartiles, rel=1e-10)

    def test_variance_falls_with_k_as_the_mean_of_k_does(self, found):
        for block in ("encoder", "decoder"):
            one, eight = (found.row("ELBO", k).blocks[block].variance for k in (1, 8))
            assert one.low / 8 < eight.high
            assert eight.low < one.high / 8

    @pytest.mark.ci
    def test_the_noise_of_data_is_that_of_exact_gradients(self, model, x):
        vae = model.vae()
        program = (vae.model, vae.guide)
        parameters = find_parameters(program, (x,), vae=vae)
        stepper = Stepper(contenders(MeanFieldELBO, 64)[0], program, parameters, (x,))
        found = minibatch_variance(stepper, (x,), parameters.blocks, replicates=600, seed=0)
        per_datum = [exact_gradients(model, row[None]) for row in x]
        for block, measured in found.items():
            exact = float(torch.stack([gradient[block] for gradient in per_datum]).var(0).sum()) / len(x)
            assert measured.value == pytest.approx(exact, rel=0.02)  # 600 x 64 draws a datum: less than 1% of noise
            assert measured.low < exact < measured.high

    @pytest.mark.parametrize("size", [2, 4])
    def test_the_noise_of_few_data_has_no_ends(self, model, x, size):
        """Some resamples are of one datum alone; those of two data are all alike otherwise."""
        found = compare(model.vae(), 100 * x[:size], objectives=ELBO(), replicates=20)
        for block in found.rows[0].blocks.values():
            noise = block.minibatch_variance
            assert (noise.low, noise.high) == (0.0, math.inf)
            assert noise.value > block.variance.high
        assert "choice of data" not in " ".join(found.sentences())

    @pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5, 1.0, 2.0])])
    def test_an_argument_without_rows_is_no_data(self, x, scale):
        x = x[:4, :3].float()
        layers = nn.Linear(3, 1), nn.Linear(1, 3)
        given, held = (
            compare(scaled(*layers, own), args, objectives=ELBO(), replicates=20, log_evidence=0.0)
            for own, args in ((None, (x, scale)), (scale, x))
        )
        for name, block in given.rows[0].blocks.items():
            assert block.minibatch_variance == held.rows[0].blocks[name].minibatch_variance

    def test_where_a_datum_depends_on_its_batch_the_noise_of_data_is_not_told(self, x):
        """Scales of features, of which there are as many as data, would be taken for rows."""
        x, scale = x[:3, :3].float(), torch.tensor([0.5, 1.0, 2.0])
        program = scaled(nn.Linear(3, 1), nn.Linear(1, 3), None)
        found = compare(program, (x, scale), objectives=ELBO(), replicates=20, log_evidence=0.0)
        assert all(block.minibatch_variance is None for block in found.rows[0].blocks.values())
        assert any("the log-weight of a datum depends on the rest of its batch" in note for note in found.notes)
        found = compare(program, (x, scale.new_ones(3, 1)), objectives=ELBO(), replicates=20, log_evidence=0.0)
        assert not found.notes
        assert all(block.minibatch_variance for block in found.rows[0].blocks.values())


class TestBias:
    def test_what_is_the_reference_is_told_so(self, found):
        for name in ("same", "Trace_ELBO", "branches"):
            for block in found.row(name, 8).blocks.values():
                assert block.is_reference
                assert block.bias == (0.0, 0.0, 0.0)
                assert block.bias_p == 1.0
                assert block.cosine == (1.0, 1.0, 1.0)
        assert found.row("ELBO", 8).reference is None
        assert found.row("ELBO", 8).blocks["encoder"].bias is None

    def test_no_bias_where_there_is_none(self, found):
        encoder = found.row("MeanFieldELBO", 8).blocks["encoder"]
        assert not encoder.is_reference
        assert encoder.bias.low == 0
        assert encoder.bias_p > 1e-3
        assert encoder.cosine.high == pytest.approx(1.0, abs=1e-3)

    def test_another_bound_has_another_gradient(self, found):
        for block in found.row("iwae", 8).blocks.values():
            assert block.bias.low > 0
            assert block.bias_p < 1e-6
        assert found.row("iwae", 1).blocks["decoder"].is_reference

    def test_a_bias_that_cancels_in_the_sum_is_found(self, model, x):
        """Its exact size: the gradient of E[z_1 - z_2] / 2 by the encoder's mean."""
        found = compare(model.vae(), x, objectives=[Cancelling()], replicates=200, minibatch=False)
        (row,) = found.rows
        assert row.reference == "ELBO"
        expected = 0.5 * math.sqrt(2 * (1 + float(x.mean(0).square().sum())))
        encoder = row.blocks["encoder"]
        assert encoder.bias.value == pytest.approx(expected, rel=0.05)
        assert encoder.bias.low <= expected <= encoder.bias.high
        assert encoder.bias_p < 1e-6
        assert row.blocks["decoder"].is_reference

    def test_no_reference_no_bias(self, model, x):
        found = compare(model.vae(), x, objectives=["MeanFieldELBO"], particles=1, replicates=20, reference=None)
        assert found.rows[0].reference is None
        assert found.rows[0].blocks["encoder"].bias is None

    def test_a_reference_that_fails_is_noted(self, model, x):
        found = compare(model.vae(), x, objectives="ELBO", particles=1, replicates=20, reference={"broken": fails})
        assert found.rows[0].failed is None
        assert found.rows[0].blocks["encoder"].bias is None
        assert any("broken" in note and "always fails" in note for note in found.notes)


class TestFailures:
    def test_a_failure_is_a_row_and_the_others_go_on(self, found):
        assert found.row("fails", 1).failed == "RuntimeError: this one always fails"
        assert "not finite" in found.row("not_a_number", 8).failed
        assert found.row("ELBO", 8).failed is None
        assert not found.row("fails", 8).blocks

    def test_a_failure_in_some_replicates_fails_the_estimator(self, model, x):
        """It runs eagerly, fails once in three calls, and may fail in the first replicate alone."""
        calls = iter(range(10**6))

        def fails_at_times(log_weights: LogWeights) -> Tensor:
            value = log_weights.log_w.mean(0)
            if value.sum().item() < 1e9 and next(calls) % 3 == 0:
                raise RuntimeError("at times")
            return value

        objectives = {"ELBO": ELBO(), "at_times": fails_at_times}
        found = compare(model.vae(), x, objectives=objectives, particles=1, replicates=20, minibatch=False)
        assert found.row("ELBO", 1).failed is None
        assert found.row("at_times", 1).failed == "RuntimeError: at times"

    def test_a_failure_leaves_the_figures_of_those_that_share_its_gradients(self, model, x):
        """One graph computes the gradients of both, and the first of them owns what is kept."""

        class Lost(ELBO):
            def __call__(self, log_weights: LogWeights) -> Estimate:
                estimate = super().__call__(log_weights)
                return estimate._replace(value=estimate.value * math.nan)

        def of(objectives):
            return compare(model.vae(), x, objectives=objectives, particles=1, replicates=40, reference=None)

        alone, beside = of({"good": ELBO()}), of({"lost": Lost(), "good": ELBO()})
        assert "not finite" in beside.row("lost", 1).failed
        for name, block in alone.row("good", 1).blocks.items():
            assert beside.row("good", 1).blocks[name].norm == block.norm
            assert beside.row("good", 1).blocks[name].variance == block.variance

    @pytest.mark.ci
    def test_a_failure_in_any_of_its_steps_fails_the_estimator(self, model, x):
        """First calls, times, replicates, memory: one after another."""
        counting = Flaky(-1)
        options = {"particles": 1, "replicates": 20, "log_evidence": 0.0, "minibatch": False}
        with mock.patch("copy.deepcopy", lambda objective: objective):
            compare(model.vae(), x, objectives=[{"counting": counting}], **options)
        calls = -1 - counting.raises_in
        assert calls > 60
        for at in (1, 20, calls - 10, calls):
            found = compare(model.vae(), x, objectives=["ELBO", {"flaky": Flaky(at)}], **options)
            assert [row.failed for row in found.rows] == [None, "RuntimeError: now and then"]
            assert found.rows[0].blocks

    def test_an_objective_that_takes_no_copies_has_the_other_figures(self, model, x):
        found = compare(model.vae(), x, objectives=["ELBO", no_copies], particles=1, replicates=20)
        assert [row.failed for row in found.rows] == [None, None]
        noise = [row.blocks["encoder"].minibatch_variance for row in found.rows]
        assert noise[0] is not None
        assert noise[1] is None
        told = "what the choice of data adds is not told of no_copies: RuntimeError: all data are alike"
        assert told in found.notes

    def test_objectives_that_cannot_be_compared_are_two(self, model, x):
        one, other = (OfATensor(torch.ones(2)) for _ in range(2))
        found = compare(model.vae(), x, objectives={"one": one}, replicates=20, reference=other, minibatch=False)
        assert found.rows[0].failed is None
        assert found.rows[0].blocks["encoder"].is_reference

    def test_what_cannot_be_captured_says_why_and_gives_the_same(self, found):
        row, captured = found.row("branches", 8), found.row("same", 8)
        assert "reads a number out of a tensor" in row.why_eager
        assert captured.why_eager is None
        assert row.value == pytest.approx(captured.value, rel=1e-10)
        for block in row.blocks:
            assert row.blocks[block].norm == pytest.approx(captured.blocks[block].norm, rel=1e-10)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"replicates": 5}, ValueError, "replicates is 5; expected at least 20"),
            ({"log_evidence": torch.zeros(3)}, ValueError, r"log_evidence has shape \(3,\); expected one number for"),
            ({"data": "digits"}, TypeError, "data is a str; expected a Split, tensors, numpy arrays"),
            ({"data": torch.zeros(0, 5)}, ValueError, "batch > 0"),
            ({"blocks": lambda name: None}, ValueError, "blocks leaves out every parameter"),
            ({"objectives": "ELBOO"}, ValueError, "did you mean ELBO"),
        ],
    )
    def test_errors(self, model, x, options, error, message):
        arguments = {"data": x, "objectives": "ELBO", "particles": 1, "replicates": 20} | options
        with pytest.raises(error, match=message):
            compare(model.vae(), arguments.pop("data"), **arguments)


class TestNothingIsTouched:
    @pytest.mark.ci
    def test_random_state_parameters_buffers_and_modes(self):
        class Counting:
            num_particles = 1

            def __init__(self) -> None:
                self.calls = 0

            def __call__(self, log_weights: LogWeights) -> Tensor:
                self.calls += 1
                return log_weights.log_w.mean(0)

        network = networks.MLP([8], batch_norm=True, dropout=0.1)
        vae = VAE(
            (6,),
            prior=priors.StandardNormal(2),
            likelihood=likelihoods.Bernoulli(network),
            posterior=posteriors.DiagonalNormal(network),
        )
        x = vae.sample(8, mean=False)
        before = {name: value.clone() for name, value in vae.state_dict().items()}
        random, counting = torch.random.get_rng_state(), Counting()
        for evaluation in (True, False):
            found = compare(
                vae,
                x,
                objectives=["ELBO", counting],
                particles=4,
                replicates=20,
                evaluation=evaluation,
                log_evidence=-4.0,
            )
            assert all(row.failed is None for row in found.rows)
            assert any("evaluation mode" in note for note in found.notes) == evaluation
        assert torch.equal(random, torch.random.get_rng_state())
        assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
        assert all(p.grad is None for p in vae.parameters())
        assert all(m.training for m in vae.modules())
        assert counting.calls == 0

    @pytest.mark.ci
    def test_again_is_the_same_again(self, model, x):
        first, second = (
            compare(model.vae(), x, objectives=["ELBO", "MeanFieldELBO"], particles=8, replicates=40) for _ in range(2)
        )
        for a, b in zip(first.rows, second.rows, strict=True):
            assert a.value == b.value
            assert all(a.blocks[name].norm == b.blocks[name].norm for name in a.blocks)
        other = compare(model.vae(), x, objectives="ELBO", particles=8, replicates=40, seed=1)
        assert other.rows[0].value != first.rows[0].value


class TestSteps:
    @pytest.mark.parametrize("replayed", [False, True])
    def test_together_they_are_what_each_is_alone_and_eagerly(self, model, x, replayed, monkeypatch):
        if replayed:
            stand_in(monkeypatch)
        vae = model.vae()
        program = (vae.model, vae.guide)
        parameters = find_parameters(program, (x,), vae=vae)
        chosen = contenders(["ELBO", MeanFieldELBO, {"iwae": iwae}, {"branches": branches}], 8)
        steppers = [Stepper(c, program, parameters, (x,)) for c in chosen]
        together = JointStep(steppers, (x,))
        assert together.alone == steppers[3:]  # which is not captured
        assert isinstance(together._graph, TracedReplay) == replayed
        steps, _ = together(5, x)
        found = [steps[stepper] for stepper in steppers]
        for i, contender in enumerate(chosen):
            torch.manual_seed(5)
            alone = steppers[i](x)
            torch.manual_seed(5)
            run = steppers[i]._run
            eager = eager_step(run, list(parameters.leaves.values()), [x], mean=True)
            for seen in (found[i], alone):
                assert torch.allclose(seen.value, -eager.loss.loss / eager.loss.weight, rtol=1e-10), contender.name
                for ours, theirs in zip(seen.gradients, eager.gradients, strict=True):
                    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12), contender.name
        decoder = parameters.blocks["decoder"]
        if not replayed:  # computed once for both ELBOs
            assert all(found[0].gradients[i] is found[1].gradients[i] for i in decoder)

    def test_memory_grows_with_k_and_leaves_parameters_out(self, found, x):
        one, eight = (found.row("ELBO", k).bytes for k in (1, 8))
        assert 6 * one < eight < 9 * one

    def test_seconds_and_sizes(self, found):
        for row in found.rows:
            if row.failed is None:
                assert 0 < row.seconds.low <= row.seconds.value <= row.seconds.high < 1
                cost = row.blocks["decoder"].seconds_to_tenth
                steps = 100 * row.blocks["decoder"].variance.value / row.blocks["decoder"].norm.value ** 2
                assert cost.value == pytest.approx(max(1, steps) * row.seconds.value, rel=1e-6)
        assert found.row("ELBO", 1).ess == 1.0
        assert 1 < found.row("ELBO", 8).ess < 8


class TestPrograms:
    @pytest.mark.ci
    def test_guide_model_and_shared_parameters_of_a_program(self):
        shared = nn.Linear(1, 1, bias=False)
        encoder = nn.Linear(2, 1)
        decoder = nn.Linear(1, 2)

        def model(x: Tensor) -> None:
            for module, name in ((shared, "shared"), (encoder, "encoder"), (decoder, "decoder")):
                pyro.module(name, module)  # all of them, as many programs do
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(decoder(shared(z)), 1.0).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            pyro.module("shared", shared)
            scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(shared(encoder(x)), scale).to_event(1))

        x = torch.randn(5, 2)
        found = find_parameters((model, guide), (x,))
        named = {b: {list(found.leaves)[i] for i in places} for b, places in found.blocks.items()}
        assert named == {
            "guide": {"encoder$$$weight", "encoder$$$bias", "scale"},
            "model": {"decoder$$$weight", "decoder$$$bias"},
            "shared": {"shared$$$weight"},
        }
        result = compare((model, guide), x, objectives=["ELBO", "Trace_ELBO"], particles=(1, 4), replicates=30)
        assert all(row.failed is None and row.why_eager is None for row in result.rows)
        assert set(result.rows[0].blocks) == {"guide", "model", "shared"}
        assert not result.evidence.exact  # importance sampling of a program
        assert any("estimate" in note for note in result.notes)

    def test_a_parameter_may_have_the_name_of_a_site(self):
        def model(x: Tensor) -> None:
            scale = pyro.param("w", torch.tensor(1.0))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z * scale, 1.0).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            slope = pyro.param("x", torch.tensor(0.5))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x * slope, 1.0).to_event(1))

        found = find_parameters((model, guide), (torch.randn(4, 1),))
        assert {b: [list(found.leaves)[i] for i in places] for b, places in found.blocks.items()} == {
            "guide": ["x"],
            "model": ["w"],
        }

    def test_blocks_of_the_users_own(self, model, x):
        seen = []

        def block(name: str) -> str | None:
            seen.append(name)
            return "weights" if name.endswith("weight") else None

        found = compare(model.vae(), x, objectives="ELBO", particles=1, replicates=20, blocks=block)
        assert {name.split(".")[0] for name in seen} == {"likelihood", "posterior"}
        assert found.rows[0].blocks["weights"].size == 10 + 20

    @pytest.mark.ci
    def test_a_vamp_priors_encoder_is_the_encoders(self):
        vae = VAE(
            (6,),
            prior=priors.VampPrior(2, num_components=3),
            likelihood=likelihoods.Bernoulli(networks.MLP([5])),
            posterior=posteriors.DiagonalNormal(networks.MLP([5])),
        )
        x = torch.bernoulli(torch.full((4, 6), 0.5))
        found = compare(vae, x, objectives="ELBO", particles=1, replicates=20, minibatch=False)
        blocks = found.rows[0].blocks
        assert list(blocks) == ["encoder", "decoder", "prior"]
        assert blocks["encoder"].size == sum(p.numel() for p in vae.posterior.parameters())
        assert sum(b.size for b in blocks.values()) == sum(p.numel() for p in vae.parameters())

    def test_a_split_gives_its_first_rows(self, model, x):
        split = Split((model.sample(30),))
        found = compare(model.vae(), split, objectives="ELBO", particles=1, replicates=20, size=4, minibatch=False)
        assert found.data_shape == (4, 5)
        same = compare(model.vae(), split.x[:4], objectives="ELBO", particles=1, replicates=20, minibatch=False)
        assert found.rows[0].value == same.rows[0].value

    def test_whole_numbers_of_a_vae_are_numbers(self, model):
        counts = torch.randint(0, 5, (4, 5), generator=torch.Generator().manual_seed(0))
        options = {"objectives": "ELBO", "particles": 1, "replicates": 20, "minibatch": False}
        values = [compare(model.vae(), some, **options).rows[0].value for some in (counts, counts.double())]
        assert values[0] == values[1]
        with pytest.raises(ValueError, match="compare: data holds rows of uint8, which may be pixels or counts"):
            compare(model.vae(), counts.byte(), **options)

    def test_dead_parameters_are_counted(self):
        vae = VAE(
            (6,),
            prior=priors.StandardNormal(2),
            likelihood=likelihoods.Bernoulli(networks.MLP([5])),
            posterior=posteriors.DiagonalNormal(networks.MLP([5])),
        )
        x = torch.ones(3, 6)
        x[:, :2] = 0  # two pixels are black in all data: their weights to 5 units have no gradient
        found = compare(vae, x, objectives="ELBO", particles=1, replicates=20, minibatch=False)
        assert found.rows[0].blocks["encoder"].dead == 2 * 5
        assert found.rows[0].blocks["decoder"].dead == 0


class TestDiscreteLatents:
    @pytest.mark.slow
    def test_a_sum_over_all_states_has_no_noise(self, discrete):
        row = discrete[0].row("EnumeratedELBO", 1)
        assert row.value_se == 0
        for block in row.blocks.values():
            assert block.variance == (0.0, 0.0, 0.0)
            assert block.snr.value == math.inf
            assert block.seconds_to_tenth.value == row.seconds.value  # one step
        assert discrete[0].evidence.method == "enumeration"

    @pytest.mark.ci
    def test_it_is_the_reference_of_scores(self, discrete):
        for k in (1, 4):
            row = discrete[0].row("REINFORCE(baseline=moving_average)", k)
            assert row.reference == "EnumeratedELBO"
            for block in row.blocks.values():
                assert block.bias.low == 0
                assert block.bias_p > 1e-4
                assert block.cosine.high > 0.9
        assert abs(row.value - discrete[0].row("EnumeratedELBO", 1).value) < 5 * row.value_se

    def test_what_is_not_there_is_said(self, discrete):
        assert [u[:2] for u in discrete[0].undefined] == [("VIMCO", 1)]
        assert "reparameterised" in discrete[0].row("ELBO", 4).failed
        assert discrete[0].row("VIMCO", 4).failed is None

    def test_a_moving_average_starts_afresh(self, discrete):
        first, second = (c.row("REINFORCE(baseline=moving_average)", 4).blocks["encoder"] for c in discrete)
        assert first.norm == second.norm  # however many steps were timed before


class TestWhatIsLeft:
    def test_tables_fit_a_screen(self, found):
        lines = found.table().splitlines()
        assert max(map(len, lines)) <= 120
        assert any(line.startswith("K = 8, gradient of the encoder") for line in lines)
        assert sum("failed at K = 1 and 8: RuntimeError" in line for line in lines) == 1

    def test_the_table_says_what_its_columns_are(self, found):
        legend = " ".join(found.table().split())
        for column in ("MB kept", "of data", "SNR", "bias", "p", "s to 10%"):
            assert f"{column}: " in legend
        nothing = replace(found, rows=tuple(row for row in found.rows if row.failed))
        assert nothing.rows
        assert "MB kept: " not in nothing.table()

    def test_dictionaries_hold_everything_json_can(self, found):
        content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        row = next(r for r in content["rows"] if r["name"] == "iwae" and r["num_particles"] == 8)
        ours = found.row("iwae", 8)
        assert row["blocks"]["encoder"]["bias"]["value"] == ours.blocks["encoder"].bias.value
        assert row["value"] == ours.value
        failed = next(r for r in content["rows"] if r["name"] == "fails")
        assert failed["value"] is None
        assert content["replicates"] == 200
        assert content["machine"]["dtype"] == "float64"

    def test_csv_has_a_line_for_every_estimator_k_and_block(self, found):
        lines = list(csv.DictReader(io.StringIO(found.to_csv())))
        assert len(lines) == 2 * (6 * 2 + 2)
        assert {"name", "num_particles", "block", "snr", "snr_low", "bias_p", "failed"} <= lines[0].keys()

    def test_csv_tells_the_bias_of_a_value_from_that_of_a_gradient(self, found):
        for line in csv.DictReader(io.StringIO(found.to_csv())):
            row = found.row(line["name"], int(line["num_particles"]))
            block = row.blocks.get(line["block"])
            for name, bias in (("value_bias", row.bias), ("bias", None if block is None else block.bias)):
                written = [line[f"{name}{end}"] for end in ("", "_low", "_high")]
                assert written == ([""] * 3 if bias is None else list(map(str, bias)))
        shared = {field.name for field in fields(Row)} & {field.name for field in fields(Block)}
        assert shared == {"bias"}  # any other needs another name, too

    def test_sentences_claim_what_the_numbers_bear_out(self, found):
        text = "\n".join(found.sentences())
        assert "iwae's decoder gradient is biased against ELBO's at K = 8" in text
        assert "No bias against ELBO's gradient was found in MeanFieldELBO." in text
        assert "fails failed at K = 1 and 8: RuntimeError: this one always fails." in text
        assert "same's" not in text.replace("same's decoder gradient goes", "")  # it is the reference: nothing to tell

    def test_a_bias_that_only_the_test_sees_is_told_by_its_upper_end(self, found):
        row = found.row("MeanFieldELBO", 8)
        block = replace(row.blocks["encoder"], bias=Measured(0.0, 0.0, 0.024), bias_p=1e-7, is_reference=False)
        alone = replace(found, rows=(replace(row, blocks={"encoder": block}),))
        (sentence,) = [sentence for sentence in alone.sentences() if "biased" in sentence]
        assert "by a norm of at most 0.024 (p < 1e-6 over 1 tests)" in sentence

    def test_slopes_are_those_of_a_mean_of_k(self, found):
        slopes = {(s.name, s.block): s for s in found.slopes()}
        for block in ("encoder", "decoder"):
            slope = slopes["ELBO", block]
            assert slope.particles == (1, 8)
            assert slope.low <= 0.5 <= slope.high
            assert slope.high - slope.low < 0.4


@pytest.mark.thinned(2)
@pytest.mark.parametrize("replicates", [20, 21, 39, 40])
def test_few_replicates_have_a_variance(model, x, replicates):
    found = compare(model.vae(), x, objectives=["ELBO", "IWAE"], particles=2, replicates=replicates, minibatch=False)
    for row in found.rows:
        assert row.value_se > 0
        assert all(block.variance.value > 0 for block in row.blocks.values())
