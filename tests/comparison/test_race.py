"""The training race: the same start, order and noise for all; a clock for training alone; failures that stop nobody."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from ppl_vae import VAE, data, fit, likelihoods, networks, objectives, posteriors, priors
from ppl_vae.comparison.contenders import contenders
from ppl_vae.comparison.races.race import race, seeds_of
from ppl_vae.comparison.races.runs import Point
from ppl_vae.comparison.races.start import Entrant, Start, at_each_k, take_apart
from ppl_vae.comparison.races.watch import Evaluator, Watch
from ppl_vae.data import Split
from ppl_vae.evaluation import Evidence
from ppl_vae.evidence import importance, log_evidence
from ppl_vae.training import Progress, Run

EPOCHS = 2


@pytest.fixture(scope="module")
def digits():
    """Some digits: four steps an epoch."""
    whole = data.load("digits")
    return replace(whole, train=whole.train.head(500))


def make_vae(seed, latent_dim=1, **more) -> VAE:
    """A VAE at what torch's generator says, which the race has put at the seed."""
    return VAE(
        (1, 8, 8),
        prior=priors.StandardNormal(latent_dim),
        likelihood=likelihoods.Bernoulli(networks.MLP([16])),
        posterior=posteriors.DiagonalNormal(networks.MLP([16])),
        **more,
    )


def iwae(log_weights):
    """A user's own bound."""
    return log_weights.log_w.logsumexp(0) - math.log(len(log_weights.log_w))


def diverging(log_weights):
    """A bound that is not finite for the last batch of an epoch, which is smaller."""
    return log_weights.log_w.mean(0) * (math.nan if log_weights.log_w.shape[1] == 116 else 1.0)


def refusing(log_weights):
    raise RuntimeError("no such\nluck")


OPTIONS = dict(
    epochs=EPOCHS, num_particles=2, evaluation_size=20, evaluate_every=1, compile="off"
)  # a capture takes longer


@pytest.fixture(scope="module")
def found(digits):
    seen = []
    contenders = {"ELBO": objectives.ELBO, "again": objectives.ELBO, "IWAE": iwae}
    result = race(make_vae, digits, objectives=contenders, seeds=(3, 5), target=-35.0, progress=seen.append, **OPTIONS)
    return result, seen


def curves(result):
    """Everything but the seconds."""
    return {
        (*r.key, r.seed): [(p.step, p.epoch, p.log_evidence, p.log_evidence_error, p.elbo, p.bound) for p in r.points]
        for r in result.runs
    }


@pytest.mark.ci
def test_all_contenders_of_a_seed_start_from_the_same_parameters(found):
    result, _ = found
    starts = {seed: {r.points[0].log_evidence for r in result.runs if r.seed == seed} for seed in (3, 5)}
    assert all(len(values) == 1 for values in starts.values())
    assert starts[3] != starts[5]
    assert {r.kind for r in result.runs} == {"exact"}


def test_the_same_objective_twice_gives_the_same_curve_to_the_bit(found):
    by_key = curves(found[0])
    for seed in (3, 5):
        assert by_key["ELBO", 2, seed] == by_key["again", 2, seed]
        assert by_key["ELBO", 2, seed] != by_key["IWAE", 2, seed]
    assert [p[0] for p in by_key["ELBO", 2, 3]] == [0, 4, 8]


def test_a_run_is_what_fit_makes_of_the_start(found, digits):
    torch.manual_seed(5)
    vae = make_vae(5)
    x = digits.validation.x[:20]
    (run,) = (r for r in found[0].runs if r.key == ("ELBO", 2) and r.seed == 5)
    assert run.points[0].log_evidence == log_evidence(vae, x).mean
    history = fit(vae, digits, objective=objectives.ELBO(2), epochs=EPOCHS, seed=5, device="cpu").history
    assert run.points[-1].log_evidence == log_evidence(vae, x).mean
    assert [p.bound for p in run.points] == [None, *(record["bound"] for record in history)]
    own = objectives.sample_log_weights(vae.model, vae.guide, x, num_particles=2000).log_w.detach()
    spread = own.std(0).square().sum().sqrt().item() / 20 / 100**0.5  # of the race's 100 draws
    assert abs(run.points[-1].elbo - own.mean().item()) < 5 * spread * (1 + 0.05**0.5)


def test_runs_take_turns_and_tell_of_themselves(found):
    result, seen = found
    assert [(r.name, r.seed) for r in result.runs] == [
        ("ELBO", 3),
        ("again", 3),
        ("IWAE", 3),
        ("again", 5),
        ("IWAE", 5),
        ("ELBO", 5),
    ]
    assert result.contenders == [("ELBO", 2), ("again", 2), ("IWAE", 2)]
    assert len(seen) == 6 * 3
    assert seen[1].startswith("seed 3, ELBO at K = 2: epoch 1 of 2, log p(x) = -")
    assert result.settings["steps"] == 8
    assert all(r.stopped == "finished" and r.steps == 8 for r in result.runs)
    times = [r.column("seconds") for r in result.runs]
    assert all(t[0] == 0 < t[1] < t[2] < result.seconds for t in times)
    assert result.table()
    assert result.sentences()


def test_the_same_seed_gives_the_same_race_and_nothing_around_it_moves(found, digits):
    keep = pyro.param("mine", torch.ones(2))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = race(make_vae, digits, objectives={"IWAE": iwae, "ELBO": objectives.ELBO}, seeds=[5], **OPTIONS)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert pyro.param("mine") is keep
    first = curves(found[0])
    for key, curve in curves(again).items():
        assert curve == first[key]


def test_the_data_come_in_the_same_order(digits):
    orders = {}

    def make(seed):
        vae = make_vae(seed)

        def model(x):
            if vae.training and torch.is_grad_enabled():
                batches.append(x.flatten(1).sum(1).tolist())
            return vae.model(x)

        return model, vae.guide

    def keep(run, program):
        orders[run.name, run.seed] = list(batches)
        batches.clear()

    batches = []
    race(
        make,
        digits,
        objectives={"A": objectives.ELBO, "B": iwae, "C": functools.partial(objectives.MeanFieldELBO)},
        seeds=2,
        evidence_particles=10,
        on_run=keep,
        **OPTIONS,
    )
    for seed in (0, 1):
        assert orders["A", seed] == orders["B", seed] == orders["C", seed]
        assert [len(batch) for batch in orders["A", seed]] == 2 * [128, 128, 128, 116]
        assert orders["A", seed][:4] != orders["A", seed][4:]
    assert orders["A", 0] != orders["A", 1]


def test_runs_that_diverge_or_raise_are_recorded_and_the_others_go_on(digits, found):
    entries = {"refusing": refusing, "NaN": diverging, "ELBO": objectives.ELBO}
    with_failures = race(make_vae, digits, objectives=entries, seeds=[3, 5], **OPTIONS)
    by_key = {(r.name, r.seed): r for r in with_failures.runs}
    for seed in (3, 5):
        assert by_key["refusing", seed].reason == "RuntimeError: no such luck"
        assert by_key["refusing", seed].points == ()
        bad = by_key["NaN", seed]
        assert (bad.stopped, bad.steps, bad.column("step")) == ("failed", 4, [0])
        assert bad.reason == "diverged at step 4: the loss is nan"
        assert curves(with_failures)["ELBO", 2, seed] == curves(found[0])["ELBO", 2, seed]
    said = " ".join(with_failures.sentences())
    assert "NaN at K = 2 failed in 2 of 2 runs, seeds 3, 5" in said


def test_where_nobody_takes_a_step_the_reason_is_raised(digits):
    with pytest.raises(ValueError, match="no run took a step; refusing at K = 2: RuntimeError: no such luck"):
        race(make_vae, digits, objectives=[refusing], **OPTIONS)
    with pytest.raises(ValueError, match="'closed form' does not apply"):
        race(make_vae, digits, objectives=["ELBO"], evidence="closed form", **OPTIONS)


def test_each_run_has_an_objective_of_its_own(digits):
    moving = objectives.REINFORCE(2, baseline="moving_average")
    result = race(make_vae, digits, objectives={"A": moving, "B": moving}, seeds=1, **OPTIONS)
    a, b = curves(result).values()
    assert a == b
    # a learned baseline's parameters are no part of the program: they neither stay in the store nor start trained
    learned = {"A": "REINFORCE(baseline=learned)", "B": "REINFORCE(baseline=learned)"}
    result = race(make_vae, digits, objectives=learned, seeds=1, **OPTIONS)
    a, b = curves(result).values()
    assert a == b


@pytest.mark.parametrize(
    "make",
    [
        lambda: pyro.optim.Adam({"lr": 1e-2}),
        lambda: functools.partial(torch.optim.Adam, lr=torch.tensor(1e-2)),  # which torch's schedulers fill
    ],
    ids=["pyro", "lr"],
)
def test_each_run_has_an_optimiser_of_its_own(digits, make):
    decay = None if isinstance(make(), pyro.optim.PyroOptim) else functools.partial(ExponentialLR, gamma=0.1)
    few = replace(digits, train=digits.train.head(130))
    entries = {"A": objectives.ELBO, "B": objectives.ELBO}
    result = race(make_vae, few, objectives=entries, seeds=1, optimizer=make(), scheduler=decay, **OPTIONS)
    a, b = curves(result).values()
    assert a == b


def test_what_does_not_exist_at_a_k_is_left_out_and_said(digits):
    result = race(make_vae, digits, objectives=["ELBO", "VIMCO"], seeds=1, **{**OPTIONS, "num_particles": 1})
    assert [r.name for r in result.runs] == ["ELBO"]
    assert any(s.startswith("VIMCO does not exist at K = 1") for s in result.sentences())


def test_parameters_in_pyros_store_start_anew_for_every_run(digits):
    def make(seed):
        decoder = nn.Linear(2, 64)

        def model(x):
            pyro.module("decoder", decoder)
            loc = pyro.param("loc", lambda: torch.randn(2))  # drawn when it is first asked for
            scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
                logits = decoder(z).reshape(*z.shape[:-1], 1, 8, 8)
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

        def guide(x):
            encoder = pyro.param("encoder", lambda: 0.1 * torch.randn(64, 2))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x.flatten(1) @ encoder, 0.5).to_event(1))

        return model, guide

    trained = {}

    def keep(run, program):
        trained[run.key, run.seed] = pyro.param("scale").detach().clone()

    entries = {"A": objectives.ELBO, "B": iwae, "C": objectives.ELBO}
    options = {**OPTIONS, "evidence_particles": 50, "on_run": keep}
    result = race(make, digits, objectives=entries, seeds=2, **options)
    assert {r.method for r in result.runs} == {"importance sampling from q(z|x), K = 50"}
    for seed in (0, 1):
        a, b, c = (curves(result)[name, 2, seed] for name in "ABC")
        assert a[0] == b[0] == c[0]
        assert a == c != b
        assert torch.equal(trained[("A", 2), seed], trained[("C", 2), seed])
        assert not torch.equal(trained[("A", 2), seed], torch.ones(2))
    assert len({r.points[0].log_evidence for r in result.runs}) == 2


def test_an_entrant_brings_its_own_program_and_is_looked_at_as_another(digits):
    def nets():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), nn.Sequential(
            nn.Linear(4, 64), nn.Unflatten(-1, (1, 8, 8))
        )

    def bits(encoder, decoder):
        return VAE(
            (1, 8, 8),
            prior=priors.BernoulliVector(4),
            likelihood=likelihoods.Bernoulli(decoder),
            posterior=posteriors.BernoulliVector(encoder),
        )

    def relaxed(seed):
        encoder, decoder = nets()
        return VAE(
            (1, 8, 8),
            prior=priors.RelaxedBernoulliVector(4),
            likelihood=likelihoods.Bernoulli(decoder),
            posterior=posteriors.RelaxedBernoulliVector(encoder),
        )

    as_bits = functools.partial(_as_bits, bits)
    result = race(
        lambda seed: bits(*nets()),
        digits,
        objectives={
            "VIMCO": objectives.VIMCO,
            "relaxed": ("ELBO", relaxed, as_bits),
            "straight": Entrant(objectives.ELBO, relaxed),
        },
        seeds=1,
        **OPTIONS,
    )
    vimco, sampled, itself = result.runs
    assert (vimco.method, sampled.method) == ("enumeration", "enumeration")
    assert vimco.points[0].log_evidence == sampled.points[0].log_evidence  # the same networks, from the same seed
    assert sampled.points[-1].log_evidence > sampled.points[0].log_evidence
    assert itself.kind == "lower"
    assert any("not found in one way" in s for s in result.sentences())


def test_entrants_of_a_name_are_told_apart_by_k(digits):
    one, two = (Entrant(objectives.ELBO(k), make_vae) for k in (1, 2))
    bare, brought = take_apart([{"a": one}, {"a": two}, {"ELBO": one}, "ELBO", {"VIMCO": Entrant("VIMCO", make_vae)}])
    assert at_each_k(brought, 1) == {("a", 1): one, ("a", 2): two, ("ELBO", 1): one}  # VIMCO has no K = 1
    assert [c.key for c in contenders(bare, 8)] == [("a", 1), ("a", 2), ("ELBO", 1), ("ELBO", 8), ("VIMCO", 8)]
    made = []

    def maker(name):
        return lambda seed: (made.append(name), make_vae(seed))[1]

    few = replace(digits, train=digits.train.head(130))
    entries = [{"ELBO": (objectives.ELBO(1), maker("own"))}, "ELBO"]
    options = {**OPTIONS, "num_particles": iter([2]), "epochs": 1, "seeds": 1}
    race(maker("all"), few, objectives=entries, **options)
    assert made == ["own", "all"]


def _as_bits(bits, vae):
    networks_of = [m for m in vae.modules() if isinstance(m, nn.Sequential)]
    encoder = next(m for m in networks_of if isinstance(m[-1], nn.Linear))
    decoder = next(m for m in networks_of if isinstance(m[-1], nn.Unflatten))
    return bits(encoder, decoder)


def test_more_latents_are_weighed_by_the_posterior(digits):
    columns = digits.validation.head(15).columns
    torch.manual_seed(0)
    vae = make_vae(0, latent_dim=5)
    evaluator = Evaluator(columns, "auto", 40)
    method = evaluator.choose(vae)
    look, found = evaluator(vae, method)
    oracle = importance(vae, *columns, num_particles=40)
    assert (method, found.kind) == ("posterior", "lower")
    assert look.log_evidence == oracle.mean
    assert look.elbo == oracle.details["elbo"].mean().item()
    assert look.error == pytest.approx(oracle.details["standard_error"].square().sum().sqrt().item() / 15, rel=1e-10)
    assert evaluator.choose((vae.model, vae.guide)) == "posterior"
    assert evaluator.choose(make_vae(0, latent_dim=3)) == "posterior"
    assert evaluator.choose(make_vae(0, latent_dim=2)) == "exact"
    again, _ = evaluator(vae, method)
    assert again == look


def test_a_linear_gaussian_model_is_exact_in_any_dimension():
    oracle = LinearGaussian.random(x_dim=6, latent_dim=4)
    x = torch.randn(7, 6, dtype=torch.float64)
    evaluator = Evaluator((x,), "auto", 10)
    vae = oracle.vae()
    look, found = evaluator(vae, evaluator.choose(vae))
    assert (found.method, found.kind) == ("closed form", "exact")
    assert look.log_evidence == pytest.approx(oracle.log_evidence(x).mean().item(), rel=1e-10)
    draws = objectives.sample_log_weights(vae.model, vae.guide, x, num_particles=4000).log_w.detach()
    spread = draws.std(0).square().sum().sqrt().item() / 7 / 100**0.5  # of the look's 100 draws a datum
    assert abs(look.elbo - oracle.elbo(x).mean().item()) < 5 * spread


def test_conditions_go_along(digits):
    labelled = data.load("digits", conditional=True)
    labelled = replace(labelled, train=labelled.train.head(200))
    make = lambda seed: make_vae(seed, latent_dim=4, y_shape=(10,))  # noqa: E731
    result = race(make, labelled, objectives=["ELBO"], seeds=1, evidence_particles=20, **OPTIONS)
    assert result.runs[0].stopped == "finished"
    assert result.runs[0].points[-1].log_evidence > result.runs[0].points[0].log_evidence


def test_a_users_own_evidence_is_taken(digits):
    def evidence(program, x):
        return Evidence(torch.full((len(x),), -5.0).double(), torch.zeros(len(x)).double(), "oracle")

    result = race(make_vae, digits, objectives=["ELBO"], seeds=1, split="test", evidence=evidence, **OPTIONS)
    assert result.runs[0].method == "oracle"
    assert result.runs[0].column("log_evidence") == [-5.0] * 3


def test_a_figure_that_is_not_finite_is_a_failure(digits):
    def evidence(program, x):
        return Evidence(torch.full((len(x),), -math.inf).double(), torch.zeros(len(x)).double(), "oracle")

    with pytest.raises(ValueError, match=r"log p\(x\) is not finite for 20 of 20 data"):
        race(make_vae, digits, objectives=["ELBO"], seeds=1, evidence=evidence, **OPTIONS)


def test_a_run_out_of_time_stops_where_it_is(digits):
    result = race(make_vae, digits, objectives=["ELBO"], seeds=1, max_seconds=1e-9, **OPTIONS)
    (run,) = result.runs
    assert (run.stopped, run.steps) == ("out of time", 1)
    assert run.column("step") == [0, 1]
    assert run.points[-1].bound is None


def test_a_scheduler_that_looks_at_validation_data_finds_them(digits):
    plateau = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, factor=0.1, patience=0)
    rates = []

    def adam(parameters):
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        rates.append(optimizer)
        return optimizer

    result = race(make_vae, digits, objectives=["ELBO"], seeds=1, scheduler=plateau, optimizer=adam, **OPTIONS)
    assert result.runs[0].stopped == "finished"


class Clock:
    """A clock that goes by hand."""

    now = 0.0

    def __call__(self):
        return self.now


def test_the_clock_runs_while_training_alone():
    clock = Clock()

    class Slow:
        num_particles = 1

        def __call__(self, program, method):
            clock.now += 1000
            return (-1.0, 0.0, -2.0), Evidence(torch.zeros(1), torch.zeros(1), "oracle")

    watch = Watch(Slow(), None, "exact", every=2, epochs=3, max_seconds=7.5, clock=clock)
    run = Run(None, None, 0, "cpu")
    clock.now = 50.0
    watch.on_start(run)
    for epoch in (1, 2, 3):
        for _ in (1, 2):
            clock.now += 1.5
            stopping = watch.stop()
        watch.on_progress(Progress(epoch, 3, 2, 2, 0.0, 0.0, 0.0))
        clock.now += 100  # validation
        watch.on_epoch(run, {"epoch": epoch, "bound": -3.0})
        assert stopping == (epoch == 3)
    watch.on_end(run)
    assert [(p.epoch, p.step, p.seconds) for p in watch.points] == [(0, 0, 0.0), (2, 4, 6.0), (3, 6, 9.0)]
    assert watch.epoch_seconds == [3, 3, 3]
    assert watch.curve() == tuple(watch.points)


def test_what_the_first_epoch_takes_longer_is_not_training():
    watch = Watch(None, None, "exact", every=1, epochs=4)
    watch.points = [Point(i, 4 * i, t, -1.0, 0.0, -2.0) for i, t in enumerate((0.0, 21.0, 22.0, 24.0, 25.0))]
    watch.epoch_seconds = [21.0, 1.0, 2.0, 1.0]
    assert watch.setup == 20
    assert [p.seconds for p in watch.curve()] == [0, 1, 2, 4, 5]
    watch.epoch_seconds = [0.5, 1.0]
    assert watch.setup == 0
    watch.epoch_seconds = [21.0]
    assert watch.setup == 0


def test_a_start_is_put_back_whole():
    torch.manual_seed(1)
    batch = (torch.rand(4, 1, 8, 8).round(),)
    make = lambda seed: VAE(  # noqa: E731
        (1, 8, 8),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([8], batch_norm=True)),
        posterior=posteriors.DiagonalNormal(networks.MLP([8], batch_norm=True)),
    )
    with pyro.get_param_store().scope():
        start = Start(make, 3, batch, torch.device("cpu"))
        before = {k: v.clone() for k, v in start.program.state_dict().items()}
        tensors = {k: v for k, v in start.program.named_parameters()}
        x = torch.rand(100, 1, 8, 8).round()
        fit(start.program, x, epochs=2, batch_size=20, seed=0, device="cpu")
        pyro.param("of the objective", torch.ones(1))
        assert any(not torch.equal(v, before[k]) for k, v in start.program.state_dict().items())
        start.restore()
        assert all(torch.equal(v, before[k]) for k, v in start.program.state_dict().items())
        assert all(p is tensors[k] and p.grad is None for k, p in start.program.named_parameters())
        assert "of the objective" not in pyro.get_param_store()


class Counting(nn.Module):
    """A guide's network whose state has something beside tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.calls = nn.Parameter(torch.zeros(2)), [0]

    def get_extra_state(self) -> list[int]:
        return self.calls

    def set_extra_state(self, state: list[int]) -> None:
        self.calls = state

    def forward(self) -> dist.Distribution:
        self.calls[0] += 1
        return dist.Normal(self.loc, 1.0).to_event(1)


def test_a_start_puts_back_what_a_module_saves_beside_its_tensors():
    counting = Counting()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("counting", counting)
        with pyro.plate("data", len(x)):
            pyro.sample("z", counting())

    with pyro.get_param_store().scope():
        start = Start(lambda seed: (model, guide), 0, (torch.zeros(3, 2),), torch.device("cpu"))
        for _ in range(2):
            counting()
            assert counting.calls == [2]
            start.restore()
            assert counting.calls == [1]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(seeds=0), ValueError, "seeds is 0"),
        (dict(seeds=(1, 1)), ValueError, "different integers"),
        (dict(seeds="ab"), ValueError, "seeds is 'ab'"),
        (dict(epochs=0), ValueError, "epochs is 0"),
        (dict(split="validaton"), ValueError, "did you mean validation"),
        (dict(evidence="exactly"), ValueError, "evidence is 'exactly'"),
        (dict(objectives={"A": ("ELBO", 3)}), TypeError, r"objectives\['A'\]"),
        (dict(objectives=[Entrant("ELBO")]), TypeError, "without a name"),
        (dict(objectives=["IWEA"]), ValueError, "IWAE"),
        (dict(max_seconds=-1), ValueError, "max_seconds is -1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(digits, arguments, error, words):
    def never(seed):
        raise AssertionError("made")

    with pytest.raises(error, match=words):
        race(never, digits, **{**OPTIONS, "objectives": ["ELBO"], **arguments})


def test_the_wrong_data_or_program_is_named(digits):
    with pytest.raises(TypeError, match="data is a str; expected"):
        race(make_vae, "digits", objectives=["ELBO"], epochs=1)
    with pytest.raises(ValueError, match=r"split is 'validation', which is empty .* expected one of 'train'$"):
        race(make_vae, digits.train.x, objectives=["ELBO"], epochs=1)
    nothing = replace(digits, validation=Split((digits.train.x[:0],)))
    with pytest.raises(ValueError, match=r"split is 'validation', which is empty .* expected one of 'train', 'test'"):
        race(make_vae, nothing, objectives=["ELBO"], epochs=1)
    with pytest.raises(TypeError, match="make_program returned a Linear"):
        race(lambda seed: nn.Linear(1, 1), digits, objectives=["ELBO"], epochs=1)


def test_seeds():
    assert seeds_of(3) == (0, 1, 2)
    assert seeds_of([7, 1]) == (7, 1)
    for wrong in ([[1], [2]], 10**30, {0: 1}, "01", None):
        with pytest.raises(ValueError, match="expected how many, or different integers from 0"):
            seeds_of(wrong)
