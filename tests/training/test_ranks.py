"""Several processes that train one program: they follow one process, or one sentence refuses."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rank_cases
import torch
import zoo

from ppl_vae import checkpoints

OBJECTIVES = [e for e in zoo.OBJECTIVES + zoo.PYRO_OBJECTIVES if not e.name.startswith("NVIL")]  # which is refused
FIRST = list({zoo.family(e): e for e in reversed(OBJECTIVES)}.values())[::6]  # of every sixth family
COUPLED = ["batch_norm", "OptimalSigmaNormal", "TableEncoder"]
OWN_NOISE = ["PowerSpherical", "VonMisesFisher"]
PROGRAMS = [p for p in zoo.programs() if not any(name in p.name for name in COUPLED + OWN_NOISE)]
NEVER = 10**9
Results = list[dict[tuple[Any, ...], dict[str, Any]]]


def same(ours: dict[str, Any], alone: dict[str, Any], rtol: float = 1e-10) -> None:
    """Assert that processes computed what one process computes."""
    assert "error" not in ours, ours
    assert not ours["warnings"]
    assert ours["stopped"] == alone["stopped"]
    assert ours["why_eager"] == alone["why_eager"]
    assert [list(record) for record in ours["history"]] == [list(record) for record in alone["history"]]
    for record, expected in zip(ours["history"], alone["history"], strict=True):
        assert record == pytest.approx(expected, rel=rtol, abs=rtol)
    for p, q in zip(ours["parameters"], alone["parameters"], strict=True):
        torch.testing.assert_close(p, q, rtol=100 * rtol, atol=100 * rtol)


def identical(results: Results, call: tuple[Any, ...]) -> None:
    """Assert that all processes end with the same parameters, bit by bit."""
    first, *rest = (found[call] for found in results)
    for other in rest:
        assert all(map(torch.equal, first["parameters"], other["parameters"]))


TWO: list[tuple[Any, ...]] = [
    *(("objective", e.name) for e in FIRST),
    ("objective", "ELBO", "float32", "graph"),
    ("program", "StandardNormal+Bernoulli+DiagonalNormal+MLP-silu-dropout", "graph"),
    ("optimiser",),
    ("items",),
    ("bare_parameters",),
    ("frozen",),
    ("failing_callback",),
]
REFUSED = {
    "batch norm": "BatchNorm1d takes its statistics from a batch",
    "OptimalSigmaNormal": "couples the data of a batch (OptimalSigmaNormal)",
    "TotalCorrelation": "couples the data of a batch",
    "InfoVAE": "couples the data of a batch",
    "FreeBits": "couples the data of a batch",
    "NVIL": "couples the data of a batch (",
    "a latent outside": "a latent outside the plate of the data",
    "loader": "whose batches 2 processes cannot share",
    "other data": "the processes have different data",
    "batch_size": "batch_size is 1, and 2 processes share a batch",
    "table": "couples the data of a batch (",
}
DIFFERING = {
    "shapes": "the processes of the run have parameters of other names or shapes",
    "arguments": "the processes of the run have other arguments of fit",
    "objectives": "the processes compute different losses of the same data",
    "one datum": "there are 1 training data, and 2 processes share a batch: give more data",
    "race": "race runs in one process, and torch.distributed joins 2",
}
ALSO: list[tuple[Any, ...]] = [
    *(("refused", name) for name in REFUSED),
    ("stopped", 6),
    ("stopped", 6, 1),
    ("stopped", NEVER),
    ("gone_on", 6),
    ("own_noise",),
    ("parted",),
    ("callbacks",),
    ("bf16",),
    ("changing_callback",),
    ("large",),
    ("coupled_late", 4),
    ("coupled_late", 6),
    *(("differing", what) for what in DIFFERING),
]


FOUR: list[tuple[Any, ...]] = [
    ("objective", "IWAE", "float64", "graph"),
    ("objective", "Trace_ELBO-vectorized"),  # as many particles as rows of a part, where processes are compared
    ("objective", "RWS-both"),
    ("dynamic",),
]


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Results]) -> Results:
    """Return what `make` makes in a folder, once for all processes that run tests."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (base / f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = base / f"{name}.pt"
        if not path.is_file():
            torch.save(make(factory.mktemp(name)), path)
    return torch.load(path, weights_only=False)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The results of four processes, of which two have no row of the last batch; one is killed."""
    calls = [*FOUR, ("stopped", 6), ("killed",)]
    return once(tmp_path_factory, "four", lambda folder: rank_cases.in_processes(4, folder / "ranks", calls))


@pytest.fixture(scope="module")
def two(four: Results, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The results of two processes, which also resume what four have begun."""

    def make(folder: Path) -> Results:
        checkpoints.save(four[0]["stopped", 6]["state"], folder / "checkpoint.pt")
        found = rank_cases.in_processes(2, folder / "ranks", [*TWO, *ALSO, ("resumed", str(folder))])
        return [{call[:1] if call[0] == "resumed" else call: result for call, result in r.items()} for r in found]

    return once(tmp_path_factory, "two", make)


@pytest.mark.ci
@pytest.mark.parametrize("call", TWO, ids=" ".join)
def test_two_processes_follow_one(two: Results, call: tuple[Any, ...]) -> None:
    float32 = "float32" in call
    same(two[0][call], rank_cases.run_case(call), 1e-5 if float32 else 1e-10)
    assert two[0][call]["processes"] == 2
    identical(two, call)


@pytest.mark.ci
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared_is_refused_in_one_sentence(two: Results, name: str) -> None:
    errors = [found["refused", name].get("error", "") for found in two]
    assert errors[-1].startswith(("ValueError", "CoupledError"))
    assert REFUSED[name] in errors[-1]
    assert "\n" not in errors[-1]


@pytest.mark.ci
def test_noise_that_cannot_be_split_leaves_the_gradient_right(two: Results) -> None:
    """The mean over runs of the gradient agrees with one process's within five standard errors."""
    ours = two[0]["own_noise",]
    assert any("draws noise of its own" in text for text in ours["warnings"])
    alone = rank_cases.run_case(("own_noise",))
    a, b = ours["gradients"], alone["gradients"]
    error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
    assert error.max() > 0
    assert ((a.mean(0) - b.mean(0)).abs() <= 5 * error + 1e-12).all()
    assert not torch.equal(a[0], b[0])


@pytest.mark.ci
def test_processes_that_part_are_stopped(two: Results) -> None:
    for found in two:
        assert "parameters have parted" in found["parted",]["error"]


@pytest.mark.ci
@pytest.mark.parametrize("what", DIFFERING)
def test_calls_that_differ_between_processes_are_refused_on_all(two: Results, what: str) -> None:
    for found in two:
        assert DIFFERING[what] in found["differing", what]["error"]


@pytest.mark.ci
def test_a_callback_that_changes_the_objective_on_one_process_is_found(two: Results) -> None:
    for found in two:
        assert "compute different losses of the same data" in found["changing_callback",]["error"]


@pytest.mark.ci
def test_a_variance_over_a_large_batch_is_refused(two: Results) -> None:
    assert "couples the data of a batch (OptimalSigmaNormal)" in two[0]["large",]["error"]


@pytest.mark.ci
def test_rounded_products_are_no_coupling(two: Results) -> None:
    same(two[0]["bf16",], rank_cases.run_case(("bf16",)), 1e-2)


@pytest.mark.ci
def test_data_that_are_coupled_late_are_told_of(two: Results) -> None:
    """In the next comparison, which the end of a run is too."""
    for found in two:
        late, ended = found["coupled_late", 6]["error"], found["coupled_late", 4]["warnings"]
        assert late.startswith("CoupledError: after epoch 4 the loss of a batch does not follow")
        assert late.endswith("from epoch 3 on the run may differ from that of one process")
        assert any(text.endswith("from epoch 3 on the run may differ from that of one process") for text in ended)


@pytest.mark.ci
def test_callbacks_run_on_the_first_process_alone(two: Results) -> None:
    assert [found["callbacks",]["calls"] for found in two] == [3, 0]


@pytest.mark.ci
@pytest.mark.parametrize("call", [("stopped", 6), ("stopped", 6, 1)], ids=["all ask", "one asks"])
def test_a_request_of_any_process_ends_all_after_one_more_step_at_most(two: Results, call: tuple[Any, ...]) -> None:
    for found in two:
        assert found[call]["stopped"] == "interrupted"
        assert found[call]["state"]["epoch"] == 1
        assert found[call]["state"]["step"] in (2, 3)


@pytest.mark.ci
def test_two_go_on_bit_for_bit(two: Results) -> None:
    gone_on, whole = two[0]["gone_on", 6], two[0]["stopped", NEVER]
    assert gone_on["history"] == whole["history"]
    assert all(map(torch.equal, gone_on["parameters"], whole["parameters"]))
    same(whole, rank_cases.run_case(("stopped", NEVER)))


@pytest.mark.ci
@pytest.mark.parametrize("call", FOUR, ids=" ".join)
def test_four_processes_follow_one(four: Results, call: tuple[Any, ...]) -> None:
    same(four[0][call], rank_cases.run_case(call))
    identical(four, call)


@pytest.mark.ci
def test_two_and_one_resume_four(two: Results, four: Results, tmp_path: Path) -> None:
    checkpoints.save(four[0]["stopped", 6]["state"], tmp_path / "checkpoint.pt")
    same(two[0]["resumed",], two[0]["stopped", NEVER])
    same(rank_cases.run_case(("resumed", str(tmp_path))), two[0]["stopped", NEVER])


def test_a_process_that_is_killed_ends_the_others_with_a_good_state(
    two: Results, four: Results, tmp_path: Path
) -> None:
    for found in four[:3]:  # the fourth is gone
        lost = found["killed",]
        assert "one of them has ended" in lost["error"]
        assert (lost["state"]["epoch"], lost["state"]["step"]) == (1, 0)
    checkpoints.save(four[1]["killed",]["state"], tmp_path / "checkpoint.pt")
    same(rank_cases.run_case(("resumed", str(tmp_path))), two[0]["stopped", NEVER])


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("compile", ["off", "graph"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_objective(count: int, compile: str, dtype: str, tmp_path: Path) -> None:
    calls = [("objective", e.name, dtype, compile) for e in OBJECTIVES]
    found = rank_cases.in_processes(count, tmp_path / "ranks", calls)
    for call in calls:
        same(found[0][call], rank_cases.run_case(call), 1e-5 if dtype == "float32" else 1e-10)


@pytest.mark.slow
def test_every_program(tmp_path: Path) -> None:
    calls = [("program", p.name) for p in PROGRAMS]
    found = rank_cases.in_processes(2, tmp_path / "ranks", calls)
    for call in calls:
        same(found[0][call], rank_cases.run_case(call))
