"""What takes part in a comparison, by name, import path, class, object, function."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pyro.infer
import pytest
import torch

from ppl_vae.comparison import Contender, contenders
from ppl_vae.objectives import ELBO, ArticleELBO, LogWeights, MeanFieldELBO


def mean_weight(log_weights: LogWeights) -> torch.Tensor:
    """A user's own objective: a bare function of log-weights."""
    return log_weights.log_w.mean(0)


@dataclass(frozen=True)
class Pairs:
    """A user's own objective that exists for an even K alone."""

    num_particles: int = 2
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.num_particles % 2:
            raise ValueError(f"num_particles is {self.num_particles}; expected an even number")

    def __call__(self, log_weights: LogWeights) -> torch.Tensor:
        return self.weight * log_weights.log_w.mean(0)


class Summed:
    """A user's own objective that takes no particles."""

    def __call__(self, log_weights: LogWeights) -> torch.Tensor:
        return log_weights.log_w.mean(0)


def names(*args, **kwargs) -> list[tuple[str, int]]:
    return [(c.name, c.num_particles) for c in contenders(*args, **kwargs)]


def test_names_and_classes_appear_at_every_k():
    assert names(["ELBO", MeanFieldELBO], (1, 8)) == [
        ("ELBO", 1),
        ("ELBO", 8),
        ("MeanFieldELBO", 1),
        ("MeanFieldELBO", 8),
    ]
    (first, *_) = contenders("ELBO", 4)
    assert first == Contender("ELBO", 4, ELBO(4))


def test_arguments_stand_in_brackets_and_in_the_name():
    (found,) = contenders("ArticleELBO(eps=0.0, normalize=true)", 2)
    assert found.objective == ArticleELBO(2, eps=0.0, normalize=True)
    assert found.name == "ArticleELBO(eps=0.0, normalize=True)"


def test_an_object_keeps_its_own_k_and_appears_once():
    assert names([ELBO(5), ArticleELBO(3, eps=0.0)], (1, 8)) == [("ELBO", 5), ("ArticleELBO(eps=0.0)", 3)]
    assert names("ELBO(num_particles=5)", (1, 8)) == [("ELBO", 5)]


def test_what_is_given_its_k_keeps_it_and_appears_once():
    def make(num_particles: int = 1) -> Pairs:
        return Pairs(num_particles)

    for entry in (make, Pairs, pyro.infer.Trace_ELBO):
        for given in (functools.partial(entry, num_particles=4), functools.partial(entry, 4)):
            assert names({"mine": given}, (1, 8)) == [("mine", 4)]
        assert names({"mine": functools.partial(entry)}, 8) == [("mine", 8)]


def test_numbers_in_brackets_are_those_of_configurations():
    assert names("IWAE(num_particles=010)") == [("IWAE", 10)]  # YAML 1.2, of which no number is octal by its zero


def test_what_takes_no_particles_appears_once():
    assert names([Summed, {"again": Summed()}], (1, 8, 64)) == [("Summed", 1), ("again", 1)]


def test_a_function_of_log_weights_is_given_every_k():
    mean_weight.reference = ELBO()
    try:
        found = contenders({"mine": mean_weight}, (1, 8))
        assert [(c.name, c.num_particles, c.objective.num_particles) for c in found] == [("mine", 1, 1), ("mine", 8, 8)]
        assert found[1].objective.reference == ELBO()
        assert found[1].objective.max_plate_nesting == 1
        weights = LogWeights.of(torch.ones(8, 3))
        assert torch.equal(found[1].objective(weights), torch.ones(3))
    finally:
        del mean_weight.reference


def test_factories_of_any_kind():
    entries = [functools.partial(Pairs, weight=2.0), lambda num_particles: Pairs(num_particles, weight=3.0)]
    found = contenders(entries, 4)
    assert [c.name for c in found] == ["Pairs(weight=2.0)", "<lambda>"]
    assert [c.objective.weight for c in found] == [2.0, 3.0]


def test_an_import_path_of_a_users_file(tmp_path, monkeypatch):
    (tmp_path / "own_objectives.py").write_text(
        "class Scaled:\n"
        "    def __init__(self, num_particles: int = 1, factor: float = 1.0):\n"
        "        self.num_particles, self.factor = num_particles, factor\n"
        "    def __call__(self, log_weights):\n"
        "        return self.factor * log_weights.log_w.mean(0)\n\n"
        "def bare(log_weights):\n"
        "    return log_weights.log_w.mean(0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = contenders(["own_objectives.Scaled(factor=2)", "own_objectives.bare"], (1, 8))
    assert [(c.name, c.num_particles) for c in found] == [
        ("Scaled(factor=2.0)", 1),
        ("Scaled(factor=2.0)", 8),
        ("bare", 1),
        ("bare", 8),
    ]
    assert found[1].objective.factor == 2.0


def test_pyros_classes_vectorise_their_particles():
    kinds = ("Trace_ELBO", pyro.infer.TraceMeanField_ELBO, pyro.infer.TraceGraph_ELBO, pyro.infer.TraceEnum_ELBO)
    found = contenders([*kinds, "RenyiELBO(alpha=0.5)"], (1, 8))
    assert [c.objective.vectorize_particles for c in found] == [False, True] * 5
    assert [c.objective.num_particles for c in found] == [1, 8] * 5
    assert found[-1].name == "RenyiELBO(alpha=0.5)"
    (loops,) = contenders("Trace_ELBO(vectorize_particles=false)", 8)
    assert not loops.objective.vectorize_particles
    (given,) = contenders("Trace_ELBO(num_particles=3)", 8)
    assert (given.num_particles, given.objective.vectorize_particles) == (3, True)


def test_what_is_not_defined_at_a_k_is_noted():
    found = contenders([Pairs, "ELBO"], (1, 8))
    assert [(c.name, c.num_particles) for c in found] == [("Pairs", 8), ("ELBO", 1), ("ELBO", 8)]
    assert found.undefined == (("Pairs", 1, "num_particles is 1; expected an even number"),)


@pytest.mark.parametrize(
    ("entry", "particles", "message"),
    [
        ("ELBOO", 1, r"objective is 'ELBOO'; expected one of .*did you mean ELBO\?"),
        ("ELBO(k=3)", 1, "objective ELBO: k is unknown: ELBO takes num_particles"),
        ("ELBO(num_particles=many)", 1, "objective ELBO: num_particles is 'many'; expected an integer"),
        ("ELBO(3)", 1, "where '3' is no argument; expected name=value"),
        ("MIWAE(groups=4, groups=2)", 8, "which has groups twice; expected each argument once"),
        ("MIWAE(groups=*four)", 8, r"where 'groups=\*four' is no YAML"),
        ("ELBO(", 1, "expected a name, with arguments in brackets"),
        ("nowhere.to_be_found", 1, "cannot be imported"),
        ("ReweightedWakeSleep", 1, "cannot be used"),
        (["ELBO", ELBO], 1, "objectives has two called 'ELBO' at K = 1"),
        ([], 1, "objectives leave nothing to compare"),
        (Pairs, (1, 3), "Pairs at K = 1: num_particles is 1; expected an even number"),
        ("ELBO", (), "particles is empty"),
        ("ELBO", (1, 0), "particles is 0; expected a positive integer"),
    ],
)
def test_errors_say_what_was_expected(entry, particles, message):
    with pytest.raises(ValueError, match=message):
        contenders(entry, particles)


def test_what_is_no_objective_is_refused():
    with pytest.raises(TypeError, match="objectives has 3; expected a name"):
        contenders([3])
    with pytest.raises(TypeError, match="two values or none"):
        contenders([pyro.infer.ReweightedWakeSleep], 2)
