"""fit: the same seed, the same run; stopping, resuming, scheduling; and what goes wrong, said in words."""

from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from short_runs import small_vae
from torch import nn

import ppl_vae
from ppl_vae import VAE, data, likelihoods, networks, objectives, posteriors, priors, training
from ppl_vae.training import Callback, DivergedError, Run, checkpoints


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def make_vae(dataset, **given) -> VAE:
    return small_vae(dataset, 32, posterior=functools.partial(posteriors.DiagonalNormal, scale="std"), **given)


def fit(*args, **options) -> Run:
    """As it is written unless a test asks for a graph: that a graph gives the same bits is for test_fit_capture.py."""
    return ppl_vae.fit(*args, **{"compile": "off", **options})


def same_parameters(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def stop_after(steps: int):
    """A `stop` that says yes after so many steps."""
    taken = iter(range(1, 10**6))
    return lambda: next(taken) >= steps


def adam(lr):
    return functools.partial(torch.optim.Adam, lr=lr)


def test_the_elbo_rises_and_every_figure_is_there(digits):
    vae = make_vae(digits)
    run = fit(vae, digits, epochs=4, optimizer=adam(3e-3), seed=0)
    first, last = run.history[0], run.history[-1]
    assert [r["epoch"] for r in run.history] == [1, 2, 3, 4]
    assert last["step"] == 4 * math.ceil(len(digits.train) / 128)
    assert last["validation_elbo"] > first["validation_elbo"] + 1
    assert last["elbo"] > first["elbo"]
    for prefix in ("", "validation_"):
        assert last[f"{prefix}elbo"] == pytest.approx(last[f"{prefix}log_likelihood"] - last[f"{prefix}kl"], rel=1e-6)
        assert last[f"{prefix}loss"] == -last[f"{prefix}bound"]
    assert 0 < last["reconstruction_error"] < first["reconstruction_error"]
    assert last["lr"] == 3e-3
    assert run.stopped == "finished"
    assert run.final is last
    assert run.caveat is None
    assert not vae.training


def test_validation_figures_are_the_mean_over_the_validation_data(digits):
    vae = make_vae(digits)
    run = fit(vae, digits, epochs=1, seed=0)
    x = digits.validation.x.to(next(vae.parameters()).device)
    error = (x - vae.reconstruct(x)).flatten(1).norm(dim=1).mean()
    assert run.final["reconstruction_error"] == pytest.approx(error.item(), rel=1e-5)
    weights = objectives.sample_log_weights(vae.model, vae.guide, x, num_particles=2000)
    spread = weights.log_w.mean(1).std().item()  # of the mean over the data, from one particle each
    assert abs(run.final["validation_elbo"] - weights.log_w.mean().item()) < 5 * spread


def test_the_same_seed_gives_the_same_parameters_bit_by_bit(digits):
    vaes = [make_vae(digits) for _ in range(3)]
    histories = [fit(vae, digits, epochs=2, seed=seed).history for vae, seed in zip(vaes, (5, 5, 6), strict=True)]
    assert same_parameters(vaes[0], vaes[1])
    assert not same_parameters(vaes[0], vaes[2])
    measured = [[{k: v for k, v in r.items() if k not in ("seconds", "rate")} for r in h] for h in histories]
    assert measured[0] == measured[1]


def test_callbacks_that_draw_noise_change_nothing(digits):
    class Noisy(Callback):
        def on_progress(self, progress):
            torch.randn(1000)

        def on_epoch(self, run, record):
            run.program.sample(10)

    quiet, noisy = make_vae(digits), make_vae(digits)
    fit(quiet, digits, epochs=2, seed=5)
    fit(noisy, digits, epochs=2, seed=5, callbacks=[Noisy()])
    assert same_parameters(quiet, noisy)


def test_the_global_random_state_and_validation_stay_as_they_were(digits):
    vae = make_vae(digits)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    fit(vae, digits, epochs=1, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert pyro.infer.util.is_validation_enabled()


def test_without_a_seed_one_is_drawn_from_torchs_generator(digits):
    torch.manual_seed(1)
    a = fit(make_vae(digits, seed=1), digits, epochs=1)
    b = fit(make_vae(digits, seed=1), digits, epochs=1)
    assert a.seed == b.seed  # make_vae seeds torch
    assert fit(make_vae(digits, seed=2), digits, epochs=1).seed != a.seed


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.parametrize(("step", "level"), [(1, "off"), (12, "off"), (13, "graph"), (20, "off")])
def test_an_interrupted_run_goes_on_bit_by_bit(digits, step, level, tmp_path):
    schedule = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    straight, broken, resumed = (make_vae(digits, batch_norm=True) for _ in range(3))
    options = dict(epochs=3, scheduler=schedule, seed=4, compile=level)
    whole = fit(straight, digits, **options)
    part = fit(broken, digits, stop=stop_after(step), **options)
    assert part.stopped == "interrupted"
    path = checkpoints.save(part.state(), tmp_path / "checkpoint.pt")
    rest = fit(resumed, digits, resume=checkpoints.load(path), **options)
    assert same_parameters(straight, resumed)
    for a, b in zip(whole.history, rest.history, strict=True):
        assert a["loss"] == b["loss"]
        assert a["validation_elbo"] == b["validation_elbo"]
        assert a["lr"] == b["lr"]


def test_resuming_a_finished_run_trains_on(digits):
    straight, twice = make_vae(digits), make_vae(digits)
    fit(straight, digits, epochs=4, seed=4)
    half = fit(twice, digits, epochs=2, seed=4)
    run = fit(make_vae(digits, seed=9), digits, epochs=4, seed=4, resume=half.state())
    assert same_parameters(straight, run.program)
    assert [r["epoch"] for r in run.history] == [1, 2, 3, 4]


def test_a_state_of_another_model_is_refused_and_nothing_is_loaded(digits):
    state = fit(make_vae(digits), digits, epochs=1, seed=0).state()
    wider = VAE(
        digits,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([32])),
        posterior=posteriors.DiagonalNormal(networks.MLP([33])),
    )
    before = {k: v.clone() for k, v in wider.state_dict().items()}
    with pytest.raises(ValueError, match=r"another run.*posterior.*of shape"):
        fit(wider, digits, epochs=2, resume=state)
    assert all(torch.equal(before[k], v.cpu()) for k, v in wider.state_dict().items())


@pytest.mark.ci
def test_early_stopping_takes_the_best_parameters(digits):
    vae = make_vae(digits)
    states = {}

    class Keep(Callback):
        def on_epoch(self, run, record):
            states[record["epoch"]] = {k: v.clone() for k, v in vae.state_dict().items()}

    run = fit(
        vae, digits, epochs=500, optimizer=adam(0.05), early_stopping=3, seed=0, compile="graph", callbacks=[Keep()]
    )
    scores = [r["validation_elbo"] for r in run.history]
    assert run.stopped == "early stopping"
    assert run.best_epoch == 1 + scores.index(max(scores)) == len(scores) - 3
    assert all(torch.equal(states[run.best_epoch][k], v) for k, v in vae.state_dict().items())
    assert run.final["validation_elbo"] == max(scores)


def test_a_resumed_run_without_early_stopping_keeps_what_it_learnt(digits):
    stopped = fit(make_vae(digits), digits, epochs=3, early_stopping=5, seed=0)
    assert stopped.best_epoch is not None
    vae = make_vae(digits)
    last = {}

    class Keep(Callback):
        def on_epoch(self, run, record):
            last.update({k: v.clone() for k, v in vae.state_dict().items()})

    run = fit(vae, digits, epochs=5, resume=stopped.state(), callbacks=[Keep()])
    assert all(torch.equal(last[k], v) for k, v in vae.state_dict().items())
    assert run.best_epoch is None
    assert run.final["epoch"] == 5


def test_early_stopping_from_a_resumed_run_on_chooses_among_its_own_epochs(digits):
    state = fit(make_vae(digits), digits, epochs=4, seed=0).state()
    state["history"][-1]["validation_elbo"] = 0.0  # out of reach, and its parameters were not kept
    run = fit(make_vae(digits), digits, epochs=6, resume=state, early_stopping=5)
    assert run.best_epoch in (5, 6)


def test_an_interrupted_run_has_the_parameters_of_no_best_epoch(digits):
    steps = math.ceil(len(digits.train) / 128)
    run = fit(make_vae(digits), digits, epochs=9, early_stopping=8, seed=0, stop=stop_after(3 * steps + 2))
    assert run.stopped == "interrupted"
    assert run.best_epoch is None
    assert run.final["epoch"] == 3


def test_a_resumed_run_keeps_its_seed(digits):
    first = fit(make_vae(digits), digits, epochs=1, seed=4)
    whole = fit(make_vae(digits), digits, epochs=2, seed=4)
    again = fit(make_vae(digits), digits, epochs=2, resume=first.state())
    assert again.seed == 4
    assert again.history[-1]["validation_elbo"] == whole.history[-1]["validation_elbo"]
    with pytest.raises(ValueError, match="seed is 5, and that of the run to resume 4"):
        fit(make_vae(digits), digits, epochs=2, resume=first.state(), seed=5)


def test_a_state_in_the_midst_of_an_epoch_wants_its_batch_size(digits):
    state = fit(make_vae(digits), digits, epochs=2, seed=0, stop=stop_after(4)).state()
    for batch_size in (64, 500):
        with pytest.raises(ValueError, match=r"in the midst of an epoch of 12 steps.* the batch_size of the run"):
            fit(make_vae(digits), digits, epochs=2, batch_size=batch_size, resume=state)


def test_without_validation_data_nothing_can_look_at_them():
    digits = data.load("digits", validation=0)
    with pytest.raises(ValueError, match="early_stopping looks at validation data, and there are none"):
        fit(make_vae(digits), digits, early_stopping=3)
    with pytest.raises(ValueError, match="ReduceLROnPlateau looks at validation data"):
        fit(make_vae(digits), digits, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)


class Switched(Callback):
    """A program whose parameter `shift` takes part in some epochs, counted from 1; it observes its own training."""

    def __init__(self, epochs, wrong: bool = False) -> None:
        pyro.clear_param_store()
        self.epochs, self.wrong, self.shown, self.rates = epochs, wrong, 1 in epochs, []

    def model(self, x):
        with pyro.plate("data", len(x)):
            shift = pyro.param("shift", torch.tensor(0.0)) if self.shown else 0.0
            shift = shift.sqrt() * 0 if self.wrong and self.shown else shift  # of gradient NaN
            pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)) + shift, 1.0), obs=x)

    def guide(self, x):
        pass

    def on_epoch(self, run, record):
        self.shown = record["epoch"] + 1 in self.epochs
        self.rates.append([group["lr"] for group in run.state()["optimizer"]["param_groups"]])

    def fit(self, **options) -> Run:
        options = {"epochs": 5, "batch_size": 20, "seed": 0, "device": "cpu", "callbacks": [self]} | options
        return fit((self.model, self.guide), torch.full((20,), 9.0), **options)


SCHEDULES = [
    functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
    functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.5**epoch),
]


@pytest.mark.parametrize("epochs", [(3, 4, 5), (1, 3, 5)], ids=["appears late", "is left out at times"])
@pytest.mark.parametrize("scheduler", SCHEDULES, ids=["StepLR", "LambdaLR"])
@pytest.mark.parametrize("make", [lambda: adam(0.1), lambda: pyro.optim.Adam({"lr": 0.1})], ids=["torch", "pyro"])
def test_a_schedule_holds_for_a_parameter_that_is_not_in_every_epoch(make, scheduler, epochs):
    program = Switched(epochs)
    run = program.fit(optimizer=make(), scheduler=scheduler)
    assert program.rates == [[pytest.approx(0.1 * 0.5**n)] for n in range(1, 6)]
    assert [r["lr"] for r in run.history] == pytest.approx([0.1 * 0.5**n for n in range(5)])
    moved = sum(0.1 * 0.5 ** (epoch - 1) for epoch in epochs)
    assert pyro.param("shift").item() == pytest.approx(moved, rel=0.1)  # a step of Adam is of the size of its rate


@pytest.mark.parametrize("make", [lambda: adam(0.1), lambda: pyro.optim.Adam({"lr": 0.1})], ids=["torch", "pyro"])
def test_a_parameter_whose_first_step_goes_wrong_is_as_before_that_step(make):
    program = Switched((3, 4, 5), wrong=True)
    with pytest.raises(DivergedError, match="at step 1 of epoch 3: the gradient of shift is not finite") as caught:
        program.fit(optimizer=make())
    assert "shift" not in pyro.get_param_store()
    assert pyro.param("m").item() == caught.value.good_state["parameters"]["m"]


def test_validation_interval(digits):
    run = fit(make_vae(digits), digits, epochs=5, validate_every=2, seed=0)
    assert [("validation_elbo" in r) for r in run.history] == [False, True, False, True, True]


def test_schedulers_step_once_an_epoch(digits):
    run = fit(
        make_vae(digits),
        digits,
        epochs=4,
        optimizer=adam(1e-3),
        scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.1),
        seed=0,
    )
    assert [r["lr"] for r in run.history] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    plateau = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=1e9, factor=0.5)
    run = fit(make_vae(digits), digits, epochs=4, optimizer=adam(1e-3), scheduler=plateau, seed=0)
    assert run.history[-1]["lr"] < 1e-3


class _Break(nn.Module):
    """A decoder's network that makes its output, or only its gradient, bad from a certain call on."""

    def __init__(self, call: int, gradient: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 64)
        self.call = call
        self.gradient = gradient
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, z):
        logits = self.linear(z)
        if self.training:
            self.calls += 1
            if self.calls >= self.call:
                if self.gradient:
                    logits.register_hook(lambda g: g * math.inf)
                else:
                    logits = logits * math.nan
        return logits.unflatten(-1, (1, 8, 8))


@pytest.mark.parametrize("call", [17, 12])  # in the midst of the second epoch; at the last step of the first
@pytest.mark.parametrize(
    ("gradient", "term"),
    [(False, r"log p\(x\|z\) is nan"), (True, "the gradient of likelihood.logits.network.linear.*is not finite")],
)
def test_a_divergence_names_step_and_term_and_goes_back(digits, gradient, term, call):
    steps = math.ceil(len(digits.train) / 128)
    epoch, step = 1 + (call - 1) // steps, 1 + (call - 1) % steps
    vae = make_vae(digits, likelihood=lambda _: likelihoods.Bernoulli(_Break(call, gradient)))
    with pytest.raises(DivergedError, match=rf"diverged at step {step} of epoch {epoch}: {term}") as caught:
        fit(vae, digits, epochs=3, seed=0, compile="graph" if epoch == 2 else "off")
    assert (caught.value.epoch, caught.value.step) == (epoch, step)
    good = caught.value.good_state
    assert (good["epoch"], good["step"]) == (epoch - 1, 0)
    assert all(torch.equal(v, good["modules"][0][k]) for k, v in vae.state_dict().items())
    if epoch == 2:
        reference = make_vae(digits, likelihood=lambda _: likelihoods.Bernoulli(_Break(10**6, False)))
        fit(reference, digits, epochs=1, seed=0, compile="graph")
        assert same_parameters(vae, reference)


def test_a_divergence_where_there_are_no_terms_names_the_loss():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 0.1))

    def broken(x):
        calls.append(1)
        model(x * math.nan if len(calls) > 7 else x)

    calls = []
    with pytest.warns(UserWarning, match="Encountered NaN"), pytest.raises(DivergedError) as caught:
        fit(
            (broken, guide),
            torch.randn(20),
            objective=pyro.infer.Trace_ELBO(),
            epochs=9,
            batch_size=10,
            seed=0,
            compile="off",
        )
    assert "the loss is nan" in caught.value.term
    assert "log p" not in caught.value.term


def test_auto_compiles_what_is_long_enough_and_says_so(digits, monkeypatch):
    choose = functools.partial(training.resolve_compile, data=digits, batch_size=128)
    steps = math.ceil(len(digits.train) / 128)
    short, long = 10_000 // steps, 200_000 // steps
    assert choose("auto", epochs=short) == "graph"
    assert choose("auto", epochs=long) == "full"
    assert choose("auto", epochs=short, objective=objectives.ELBO(num_particles=500)) == "full"
    assert choose("off", epochs=long) == "off"
    monkeypatch.setattr(training.choosing.shutil, "which", lambda name: None)
    assert choose("auto", epochs=long) == "graph"
    assert fit(make_vae(digits), digits, epochs=1, compile="auto").compile == "graph"
    run = fit(make_vae(digits), digits, epochs=1, compile="off")
    assert (run.compile, run.why_eager) == ("off", "compile is 'off'")


def test_callbacks_are_told_everything_in_order(digits):
    told = []

    class Watch:
        def on_start(self, run):
            told.append("start")

        def on_progress(self, progress):
            told.append((progress.epoch, progress.step, progress.steps, progress.elbo < 0, progress.rate > 0))

        def on_epoch(self, run, record):
            told.append(record["epoch"])

        def on_end(self, run):
            told.append((run.stopped, run.seconds > 0))

    fit(make_vae(digits), digits, epochs=2, batch_size=14, seed=0, callbacks=[Watch()])
    steps = math.ceil(len(digits.train) / 14)
    assert steps > 100
    progress = [(e, s, steps, True, True) for e in (1, 2) for s in (100, steps)]
    assert told == ["start", *progress[:2], 1, *progress[2:], 2, ("finished", True)]


def test_an_error_is_told_and_raised(digits):
    told = []

    class Fail(Callback):
        def on_epoch(self, run, record):
            raise OSError("disk full")

        def on_error(self, run, error):
            told.append(str(error))

    with pytest.raises(OSError, match="disk full"):
        fit(make_vae(digits), digits, epochs=2, seed=0, callbacks=[Fail()])
    assert told == ["disk full"]


def test_grey_data_under_a_bernoulli():
    grey = data.load("digits", binarize="none")
    with pytest.raises(ValueError, match=r"outside the support of Bernoulli.*allow_grey=True"):
        fit(make_vae(grey), grey, epochs=1)
    vae = make_vae(grey, likelihood=functools.partial(likelihoods.Bernoulli, allow_grey=True))
    run = fit(vae, grey, epochs=1, seed=0)
    assert run.caveat == "grey values under a Bernoulli: the value is not a likelihood"
    binary = data.load("digits")
    vae = make_vae(binary, likelihood=functools.partial(likelihoods.Bernoulli, allow_grey=True))
    assert fit(vae, binary, epochs=1, seed=0).caveat is None


def test_dynamic_binarisation_trains_on_fresh_draws():
    dynamic = data.load("digits", binarize="dynamic")
    seen = []

    def model(x):
        seen.append(x)
        return vae.model(x)

    vae = make_vae(dynamic)
    fit((model, vae.guide), dynamic, epochs=2, batch_size=len(dynamic.train), validate_every=5, seed=0, compile="off")
    training = [x for x in seen if len(x) == len(dynamic.train)]
    assert all(set(x.unique().tolist()) == {0.0, 1.0} for x in training)
    assert not torch.equal(training[-1].sum(0), training[-2].sum(0))


@pytest.mark.ci
def test_any_program_and_any_columns():
    """A conditional program of the user's own, two columns, no VAE."""
    torch.manual_seed(0)
    y = torch.randint(2, (300,))
    x = torch.randn(300, 2) + 3.0 * y[:, None]

    def model(x, y):
        shift = pyro.param("shift", torch.zeros(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + shift * y[..., None], 1.0).to_event(1), obs=x)

    def guide(x, y):
        net = pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(torch.cat([x, y[:, None]], 1)), 0.7).to_event(1))

    encoder = nn.Linear(3, 2)
    run = fit((model, guide), (x, y.float()), epochs=60, batch_size=50, optimizer=adam(0.05), seed=0, compile="graph")
    assert isinstance(run, Run)
    assert "reconstruction_error" not in run.history[-1]
    torch.testing.assert_close(pyro.param("shift"), torch.full((2,), 3.0), atol=0.5, rtol=0)
    again = fit((model, guide), (x, y.float()), epochs=61, batch_size=50, seed=0, resume=run.state(), compile="graph")
    assert len(again.history) == 61


def test_a_pyro_objective_and_a_program_with_a_global_latent():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 200, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        pyro.sample("loc", dist.Normal(pyro.param("mean", torch.tensor(0.0)), scale))

    x = torch.randn(200) + 2.0
    options = dict(epochs=60, batch_size=50, optimizer=adam(0.05), compile="graph")
    run = fit((model, guide), x, objective=pyro.infer.Trace_ELBO(), **options)
    assert pyro.param("mean").item() == pytest.approx(x.mean().item(), abs=0.15)  # two of its posterior sd
    assert "elbo" not in run.history[-1]
    assert run.history[-1]["bound"] > run.history[0]["bound"]


BAD_ARGUMENTS = {
    "epochs is 0; expected a positive integer": dict(epochs=0),
    "batch_size is -1; expected a positive integer": dict(batch_size=-1),
    "validate_every is 0": dict(validate_every=0),
    "validate_every has more than 308 digits": dict(validate_every=10**400),
    "early_stopping is 0": dict(early_stopping=0),
    "clip_norm is nan; expected a finite number above zero": dict(clip_norm=math.nan),
    "seed is -1; expected an integer": dict(seed=-1),
    r"compile is 'of'; expected one of auto, off, graph, full \(did you mean off\?\)": dict(compile="of"),
    "device 'gpu' cannot be used": dict(device="gpu"),
}


@pytest.mark.parametrize("message", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_before_anything_moves(digits, message):
    vae = make_vae(digits)
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        fit(vae, digits, **BAD_ARGUMENTS[message])
    assert all(torch.equal(before[k], v) for k, v in vae.state_dict().items())


def test_data_of_no_known_kind_are_refused(digits):
    with pytest.raises(TypeError, match="data is a str; expected a Split, tensors, numpy arrays"):
        fit(make_vae(digits), "digits", epochs=1)


def test_a_last_batch_of_one_under_batch_norm_is_refused(digits):
    batch_size = len(digits.train) - 1
    for size in (batch_size, 1):
        with pytest.raises(ValueError, match="leave a last batch of one; choose another batch_size"):
            fit(make_vae(digits, batch_norm=True), digits, batch_size=size)
    fit(make_vae(digits), digits, batch_size=batch_size, epochs=1)


def test_the_rehearsal_leaves_batch_norm_alone(digits):
    vae = make_vae(digits, batch_norm=True)

    class Look(Callback):
        def on_start(self, run):
            assert all(v == 0 for k, v in vae.state_dict().items() if k.endswith("num_batches_tracked"))

    fit(vae, digits, epochs=1, seed=0, callbacks=[Look()], compile="graph")
    steps = math.ceil(len(digits.train) / 128)
    assert all(v == steps for k, v in vae.state_dict().items() if k.endswith("num_batches_tracked"))


def test_the_rehearsal_teaches_the_objective_nothing(digits):
    objective = objectives.REINFORCE(2, baseline="moving_average")
    steps = math.ceil(len(digits.train) / 128)
    fit(make_vae(digits), digits, objective=objective, epochs=1, seed=0, compile="off")
    assert objective.moving_average.weight.item() == pytest.approx(1 - objective.moving_average.decay**steps)


def test_modules_of_a_pair_of_functions_are_found(tmp_path):
    """Batch norm in a closure: rehearsal and validation leave it alone, and the state holds it."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    x = torch.randn(64, 3)
    dataset = data.Dataset("pair", train=data.Split((x,)), validation=data.Split((x,)), test=data.Split((x,)))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 0.7).to_event(1))

    run = fit((model, guide), dataset, epochs=2, batch_size=32, seed=0)
    assert encoder[1].num_batches_tracked == 4
    (state,) = run.state()["modules"]
    assert torch.equal(state["1.running_mean"], encoder[1].running_mean)
    assert not encoder.training
