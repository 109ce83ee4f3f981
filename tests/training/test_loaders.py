"""fit on loaders: their epochs, order and last batch are their own; what they cannot do is said."""

from __future__ import annotations

import math

import pytest
import torch
from short_runs import small_vae
from torch.utils.data import DataLoader, TensorDataset

import ppl_vae
from ppl_vae import VAE, likelihoods, posteriors, priors
from ppl_vae.data import Dataset, as_split
from ppl_vae.runs import RunFolder, read_facts
from ppl_vae.training import resolve_compile

X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))


def make_vae(likelihood=likelihoods.Normal, **given) -> VAE:
    return small_vae((3,), likelihood=likelihood, **given)


def fit(program, data, **options):
    return ppl_vae.fit(program, data, **{"compile": "off", "seed": 0, "device": "cpu", "epochs": 3, **options})


def weights(vae) -> torch.Tensor:
    return torch.cat([p.flatten() for p in vae.parameters()])


def loader(**options) -> DataLoader:
    return DataLoader(TensorDataset(X), **{"batch_size": 16, "shuffle": True, **options})


class Recorded:
    """Batches of 20, 20, 10 that remember what was read."""

    def __init__(self, passes: int = 10**6) -> None:
        self.read, self.passes = [], passes

    def __iter__(self):
        self.passes -= 1
        for part in X.split(20) if self.passes >= 0 else ():
            self.read.append(len(part))
            yield part


def test_each_batch_of_the_loader_is_one_step():
    batches = Recorded()
    run = fit(make_vae(), as_split(batches), validation=X)
    assert batches.read == [20] + 3 * [20, 20, 10]  # the first, looked at
    assert [record["step"] for record in run.history] == [3, 6, 9]
    assert all(math.isfinite(record["validation_elbo"]) for record in run.history)


def test_a_list_trains_as_the_rows_in_order_do():
    """The figures of an epoch weigh each datum alike, whatever the sizes of the batches."""
    vae, other = make_vae(), make_vae()
    frozen = dict(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-30), epochs=1)
    run = fit(vae, [X[:1], X[1:30], X[30:]], **frozen)
    by_hand = [fit(other, part, batch_size=len(part), **frozen).history[0] for part in (X[:1], X[1:30], X[30:])]
    sizes = [1, 29, 20]
    expected = sum(n * record["log_likelihood"] for n, record in zip(sizes, by_hand, strict=True)) / 50
    assert run.history[0]["log_likelihood"] == pytest.approx(expected, abs=2.0)  # other noise: the KL has none
    expected = sum(n * record["kl"] for n, record in zip(sizes, by_hand, strict=True)) / 50
    assert run.history[0]["elbo"] == pytest.approx(run.history[0]["log_likelihood"] - run.history[0]["kl"])


def test_the_same_seed_gives_the_same_run_and_leaves_the_random_state():
    state = torch.get_rng_state()
    vaes = [make_vae() for _ in range(2)]
    torch.set_rng_state(state)
    for vae in vaes:
        fit(vae, loader())
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(vaes[0]), weights(vaes[1]))


def test_resumes_bit_by_bit_at_the_end_of_an_epoch():
    whole, part = make_vae(), make_vae()
    fit(whole, loader(), epochs=4)
    run = fit(part, loader(), epochs=2)
    again = fit(part, loader(), epochs=4, seed=None, resume=run.state())
    assert torch.equal(weights(whole), weights(part))
    assert [record["step"] for record in again.history] == [4, 8, 12, 16]


def test_resumes_in_the_midst_with_the_epoch_from_its_beginning():
    taken = iter(range(100))
    run = fit(make_vae(), loader(), stop=lambda: next(taken) == 5)  # after two steps of the second epoch
    assert (run.stopped, run.state()["step"]) == ("interrupted", 2)
    stopped = weights(run.program)
    with pytest.warns(UserWarning, match=r"stopped after 2 steps of epoch 2.*begins again"):
        again = fit(run.program, loader(), seed=None, resume=run.state())
    assert [record["step"] for record in again.history] == [4, 8, 12]
    assert not torch.equal(stopped, weights(run.program))


def test_another_first_batch_is_no_other_data():
    """A loader that shuffles gives another first batch each time; its run is resumed, and written, all the same."""
    run = fit(make_vae(), loader(), epochs=1)
    torch.rand(7)  # another order
    fit(run.program, loader(), epochs=2, seed=None, resume=run.state())
    assert repr(run.data) == "Dataset(data: a loader's train, 0 validation, 0 test rows of (3,), binarize=none)"


def test_auto_asks_a_loader_for_its_batches_and_not_for_its_rows():
    for batches in (loader(), (b for b in loader())):
        stream = as_split(batches)
        dataset = Dataset("stream", stream, stream, stream)
        assert resolve_compile("auto", dataset, epochs=1) == "graph"
        long = resolve_compile("auto", dataset, epochs=10**7)
        assert long == ("full" if isinstance(batches, DataLoader) else "graph")


def test_a_run_of_a_loader_is_written(tmp_path):
    folder = RunFolder(tmp_path / "run", "{}")
    fit(make_vae(), loader(), epochs=1, callbacks=[folder])
    assert read_facts(tmp_path / "run")["data"]["train"] is None
    assert {path.name for path in folder.pictures} == {"training_curves.png", "latent_scatter.png"}


def test_workers_change_nothing():
    vaes = [make_vae() for _ in range(2)]
    fit(vaes[0], loader(), epochs=1)
    fit(vaes[1], loader(num_workers=1), epochs=1)
    assert torch.equal(weights(vaes[0]), weights(vaes[1]))


def test_a_generator_has_one_epoch():
    run = fit(make_vae(), (part for part in X.split(20)), epochs=1)
    assert run.history[0]["step"] == 3
    with pytest.raises(ValueError, match="a generator, which can be read once: give epochs=1"):
        fit(make_vae(), (part for part in X.split(20)), epochs=2)


def test_a_loader_that_ends_after_one_pass_is_said():
    with pytest.raises(ValueError, match="gave no batch in epoch 2: it can be read once"):
        fit(make_vae(), Recorded(passes=2))  # one is the look at the first batch


def test_batches_that_change_their_shape_are_refused():
    with pytest.raises(ValueError, match=r"batch 2 of the list has rows of shape \(2,\)"):
        fit(make_vae(), [X, X[:, :2]])


def test_data_outside_the_support_are_found_in_the_first_epoch():
    inside = (X > 0).float()
    for outside in (X, torch.full_like(X, math.nan)):
        with pytest.raises(ValueError, match="outside the support of Bernoulli"):
            fit(make_vae(likelihood=likelihoods.Bernoulli), [inside, outside])
    with pytest.raises(ValueError, match="missing values"):
        fit(make_vae(), [X, torch.full_like(X, math.nan)])


def test_a_step_that_is_not_finite_ends_the_run_at_the_last_good_state():
    with pytest.raises(ppl_vae.training.DivergedError, match="diverged at step") as caught:
        fit(make_vae(), [X] * 20, optimizer=lambda p: torch.optim.SGD(p, lr=1e6), epochs=2)
    assert caught.value.good_state["epoch"] == 0


def test_more_steps_than_a_look_back_are_all_counted():
    run = fit(make_vae(), [X[:5]] * 102, epochs=1, compile="graph")
    assert [record["step"] for record in run.history] == [102]
    assert math.isfinite(run.history[-1]["elbo"])


def test_what_needs_a_length_says_so():
    stream = as_split(loader())
    with pytest.raises(TypeError, match="not its number of rows"):
        len(stream)
    with pytest.raises(ValueError, match="order of its own"):
        next(stream.batches(4, order=torch.arange(4)))
    with pytest.raises(TypeError, match="in_memory=True"):
        ppl_vae.race(lambda seed: make_vae(), loader(), objectives=["ELBO"], epochs=1)
    with pytest.raises(TypeError, match="not its number of rows"):
        VAE(
            Dataset("mine", stream, stream.head(0), stream.head(0)),
            prior=priors.StandardNormal(2),
            likelihood=likelihoods.Mixed(["real"] * 3),
            posterior=posteriors.DiagonalNormal(),
        )
