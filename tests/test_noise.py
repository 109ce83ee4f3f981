"""The noise of some rows of a batch is those rows of the noise for the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from ppl_vae._noise import RowNoise

TOTAL, SHAPE = 11, (3, 2)  # rows of a batch, and the rest of a tensor's shape


def table(*leading: int) -> Tensor:
    """Probabilities, the same in every process."""
    return torch.rand(*leading, *SHAPE, generator=torch.Generator().manual_seed(3)) * 0.8 + 0.1


# a draw for some rows: a function of the rows' parameters, and of their number
DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "randn": lambda p: torch.randn(p.shape),
    "rand": lambda p: torch.rand(*p.shape),
    "rand_like": torch.rand_like,
    "randn_like": lambda p: torch.randn_like(p, dtype=torch.float64),
    "randint": lambda p: torch.randint(5, p.shape),
    "randint from": lambda p: torch.randint(2, 5, p.shape),
    "normal_": lambda p: torch.empty_like(p).normal_(1.0, 2.0),
    "uniform_": lambda p: torch.empty_like(p).uniform_(-1, 1),
    "exponential_": lambda p: torch.empty_like(p).exponential_(0.5),
    "cauchy_": lambda p: torch.empty_like(p).cauchy_(),
    "log_normal_": lambda p: torch.empty_like(p).log_normal_(),
    "geometric_": lambda p: torch.empty_like(p).geometric_(0.3),
    "random_": lambda p: torch.empty_like(p).random_(),
    "random_ to": lambda p: torch.empty_like(p).random_(9),
    "random_ from": lambda p: torch.empty_like(p).random_(3, 9),
    "bernoulli_": lambda p: torch.empty_like(p).bernoulli_(0.3),
    "bernoulli_ of p": lambda p: torch.empty_like(p).bernoulli_(p),
    "bernoulli": torch.bernoulli,
    "bernoulli of float64": lambda p: torch.bernoulli(p.double()),
    "bernoulli p": lambda p: torch.bernoulli(p, 0.3),
    "normal": lambda p: torch.normal(p, 2 * p),
    "normal mean": lambda p: torch.normal(p, 2.0),
    "normal std": lambda p: torch.normal(1.0, p),
    "normal size": lambda p: torch.normal(1.0, 2.0, p.shape),
    "multinomial": lambda p: torch.multinomial(p.reshape(-1, SHAPE[-1]), 1).reshape(p.shape[:-1]),
    "dropout": lambda p: torch.nn.functional.dropout(p, 0.4),
    "Normal": lambda p: td.Normal(p, p).rsample(),
    "Laplace": lambda p: td.Laplace(p, p).rsample(),
    "Gumbel": lambda p: td.Gumbel(p, p).rsample(),
    "Categorical": lambda p: td.Categorical(probs=p).sample(),
    "OneHotCategorical": lambda p: td.OneHotCategorical(probs=p).sample(),
    "RelaxedBernoulli": lambda p: td.RelaxedBernoulli(torch.tensor(0.5), probs=p).rsample(),
    "RelaxedOneHot": lambda p: td.RelaxedOneHotCategorical(torch.tensor(0.5), probs=p).rsample(),
    "MultivariateNormal": lambda p: td.MultivariateNormal(p, torch.eye(SHAPE[-1])).rsample(),
    "MixtureSameFamily": lambda p: td.MixtureSameFamily(
        td.Categorical(probs=p), td.Normal(p, p)
    ).sample(),
    "Weibull": lambda p: td.Weibull(p, p).rsample(),
}  # fmt: skip


@pytest.mark.parametrize("rows", [range(0, 5), range(5, 8), range(8, 11), range(10, 11)], ids=str)
@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("name", DRAWS)
def test_rows_are_those_of_the_whole_and_generators_stay_in_step(name: str, particles: int, rows: range) -> None:
    whole = table(particles, TOTAL) if particles > 1 else table(TOTAL)
    torch.manual_seed(0)
    expected = DRAWS[name](whole)
    state = torch.get_rng_state()
    dim = int(particles > 1)
    part = whole.narrow(dim, rows.start, len(rows))
    torch.manual_seed(0)
    with RowNoise(rows, TOTAL, particles):
        found = DRAWS[name](part)
    torch.testing.assert_close(found, expected.narrow(dim, rows.start, len(rows)), rtol=1e-6, atol=0)  # of logarithms
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["randn", "dropout", "multinomial", "bernoulli"])
def test_particles_that_lie_flat_in_front_of_the_data(name: str) -> None:
    particles, rows = 4, range(5, 8)
    whole = table(particles, TOTAL)
    torch.manual_seed(0)
    expected = DRAWS[name](whole.flatten(0, 1)).unflatten(0, (particles, TOTAL))
    torch.manual_seed(0)
    with RowNoise(rows, TOTAL, particles):
        found = DRAWS[name](whole[:, rows.start : rows.stop].flatten(0, 1))
    assert torch.equal(found, expected[:, rows.start : rows.stop].flatten(0, 1))


def test_classes_for_each_datum_from_the_same_probabilities() -> None:
    probs, rows = torch.tensor([0.2, 0.3, 0.5]), range(5, 8)
    torch.manual_seed(0)
    expected = torch.multinomial(probs, TOTAL, replacement=True)
    torch.manual_seed(0)
    with RowNoise(rows, TOTAL):
        found = torch.multinomial(probs, len(rows), replacement=True)
    assert torch.equal(found, expected[rows.start : rows.stop])


def test_noise_without_the_data_is_the_same_in_every_process() -> None:
    found = []
    for rows in (range(5), range(5, 11)):
        torch.manual_seed(0)
        with RowNoise(rows, TOTAL):
            found.append(torch.randn(7, 3))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", [*DRAWS, "Gamma", "Dirichlet", "Poisson", "Beta", "Binomial"])
def test_the_same_noise_for_every_row(name: str) -> None:
    """Then a draw for a row depends on the row's own parameters alone, also where torch draws by rejection."""
    if name.startswith("random_"):
        pytest.skip("an integer, not a variable")
    rejecting: dict[str, Callable[[Tensor], Tensor]] = {
        "Gamma": lambda p: td.Gamma(p, p).rsample(),
        "Dirichlet": lambda p: td.Dirichlet(p).rsample(),
        "Poisson": lambda p: torch.poisson(10 * p),
        "Beta": lambda p: td.Beta(p, p).rsample(),
        "Binomial": lambda p: td.Binomial(torch.tensor(9.0), p).sample(),
    }
    draw = (DRAWS | rejecting)[name]
    whole = table(TOTAL)
    torch.manual_seed(0)
    with RowNoise(range(TOTAL), None):
        expected = draw(whole)
    torch.manual_seed(0)
    with RowNoise(range(4, 7), None):
        torch.testing.assert_close(draw(whole[4:7]), expected[4:7], rtol=1e-6, atol=0)
