"""The benchmark: every contender does the same work and can be raced, and the tables say what was measured."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from short_runs import without_pictures

import ppl_vae as pv
from ppl_vae import cli

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import allreduce  # noqa: E402
import batches  # noqa: E402
import denormals  # noqa: E402
import gallery  # noqa: E402
import gpu  # noqa: E402
import inductor  # noqa: E402
import levels_race  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import scaling  # noqa: E402
from contenders import (  # noqa: E402  # noqa: E402
    BY_HAND,
    CONTENDERS,
    FIT,
    FLOOR,
    FULL,
    GALLERY,
    GALLERY_FULL,
    GALLERY_GRAPH,
    GALLERY_PYRO,
    GRAPH,
    NUMPYRO,
    OFF,
    PYRO,
    REFERENCE,
    by_hand,
    gallery_svi,
    ours,
    pyro_svi,
)
from contenders.setting import Setting  # noqa: E402
from race import Options, race  # noqa: E402
from run import OF_A_GPU  # noqa: E402

TINY = Setting(hidden=(4,), batch_size=8, rows=32)
COMPILED = {REFERENCE, FULL, FIT}
HERE = [name for name, contender in CONTENDERS.items() if contender.peer is None and name not in OF_A_GPU]


@pytest.fixture(autouse=True)
def validation_as_it_was():
    """A contender switches Pyro's validation off after its first step, in a process of its own."""
    with pyro.validation_enabled():
        yield


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in COMPILED else []) for name in HERE]
)
def test_every_contender_takes_steps(name):
    run = CONTENDERS[name].load()(TINY)
    assert run(3) in (3, 4)  # `fit` goes by epochs, of four steps
    assert run(1) >= 1
    getattr(run, "end", lambda: None)()


@pytest.mark.parametrize("num_particles", [1, 3])
def test_contenders_have_the_same_loss(num_particles):
    """By hand, in Pyro and in our pieces: one number for the same networks, data and noise."""
    setting = replace(TINY, num_particles=num_particles)
    model, guide, encoder, decoder = pyro_svi.program(setting)
    x = torch.from_numpy(setting.pixels())[: setting.batch_size]
    torch.manual_seed(1)
    expected = by_hand.negative_elbo(encoder, decoder, x, num_particles).item()
    torch.manual_seed(1)
    theirs = pyro_svi.make_svi(setting, model, guide).evaluate_loss(x) / len(x)
    vae = ours.program(setting)
    for mine, other in ((vae.posterior, encoder), (vae.likelihood, decoder)):
        for a, b in zip(mine.parameters(), other.parameters(), strict=True):
            a.data.copy_(b)
    svi = pv.SVI(vae.model, vae.guide, torch.optim.Adam, pv.objectives.ELBO(num_particles))
    torch.manual_seed(1)
    assert svi.evaluate_loss(x) / len(x) == pytest.approx(expected, rel=1e-5)  # float32
    assert theirs == pytest.approx(expected, rel=1e-5)


def test_the_floor_is_the_products_of_one_step(monkeypatch):
    """Counted: two products a layer and a third where the input is not data, of the sizes of the networks."""
    setting = replace(TINY, num_particles=3)
    shapes = []
    multiply = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: shapes.append((*a.shape, b.shape[1])) or multiply(a, b)
    )
    by_hand.floor(setting)(1)
    # (784-4-4) on 8 rows, then (2-4-784) on 24
    layers = [(784, 4, 8), (4, 4, 8), (2, 4, 24), (4, 784, 24)]
    expected = [product for a, b, rows in layers for product in ((rows, a, b), (b, rows, a), (rows, b, a))]
    expected.remove((8, 4, 784))  # the gradient by x
    assert shapes == expected


def test_fit_hands_on_its_error():
    with pytest.raises(UserWarning, match="batch_size is lowered from 64"):  # an error here, by the tests' settings
        CONTENDERS[FIT].load()(replace(TINY, batch_size=64))(1)


def test_data_are_the_same_bits_everywhere(tmp_path, monkeypatch):
    x = TINY.pixels()
    assert x.shape == (32, 784)
    assert x.dtype == "float32"
    assert set(x.ravel()) == {0.0, 1.0}
    assert (x == TINY.pixels()).all()
    monkeypatch.setenv("PPL_VAE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="set PPL_VAE_DATA"):
        replace(TINY, data="MNIST").pixels()


@pytest.mark.data
def test_mnist_is_the_packages_own(real_data, monkeypatch):
    monkeypatch.setenv("PPL_VAE_DATA", str(real_data))
    x = torch.from_numpy(Setting(rows=60_000, data="MNIST").pixels())
    theirs = pv.data.load("MNIST", binarize="threshold", root=real_data, validation=0).train.x
    assert torch.equal(x, theirs.reshape(-1, 784))


@pytest.mark.slow
def test_a_race(monkeypatch):
    """In processes: rounds are recorded, and who is missing or fails in its process is left out with the reason."""
    monkeypatch.setattr(peers, "python", lambda peer: None)
    options = Options(rounds=2, seconds=0.01, cores=1)
    cell = race(replace(TINY, data="nothing"), [FLOOR, BY_HAND, NUMPYRO], options)
    assert list(cell["contenders"]) == [FLOOR]  # which needs no data
    assert cell["left_out"] == {
        BY_HAND: "ValueError: data is 'nothing'; expected 'random' or 'MNIST'",
        NUMPYRO: "numpyro is not installed: python benchmarks/peers.py install numpyro",
    }
    found = cell["contenders"][FLOOR]
    assert len(found["milliseconds"]) == len(found["steps"]) == 2
    assert min(found["milliseconds"]) > 0
    assert min(found["steps"]) >= 3
    assert found["threads"] == 1
    assert found["peak_mib"] > 50
    assert len(found["first_steps"]) == 3


@pytest.mark.slow
def test_the_peers_take_part():
    installed = [name for name, contender in CONTENDERS.items() if contender.peer and peers.python(contender.peer)]
    if not installed:
        pytest.skip("no peer is installed: python benchmarks/peers.py install")
    cell = race(TINY, installed, Options(rounds=1, seconds=0.01, cores=1))
    assert cell["left_out"] == {}
    for name in installed:
        assert CONTENDERS[name].peer in cell["contenders"][name]["versions"]


def test_every_peer_has_a_contender():
    assert {contender.peer for contender in CONTENDERS.values() if contender.peer} | {"scvi"} == set(peers.PEERS)


def made_up_cell(**milliseconds: list[float]) -> dict:
    names = {"full": FULL, "reference": REFERENCE, "pyro": PYRO}
    setting = {"hidden": [500, 300, 150], "batch_size": 128, "num_particles": 1, "rows": 20480, "data": "random"}
    found = {names[key]: {"milliseconds": times} for key, times in milliseconds.items()}
    return {"setting": {**setting, "device": "cpu"}, "contenders": found, "left_out": {"somebody": "ill"}}


def test_table_pairs_the_rounds():
    """A machine that is slower in some rounds changes no ratio."""
    cell = made_up_cell(full=[2.0, 1.0, 4.0], reference=[4.0, 2.0, 8.0], pyro=[20.0, 10.0, 20.0])
    line = next(line for line in report.cell_table(cell) if FULL in line)
    assert line == f"| {FULL} | 2.00 | 0.50 (0.50 to 0.50) | 0.10 (0.10 to 0.15) |"


def test_targets_are_held_against_what_was_reached():
    lines = report.target_table("step", made_up_cell(full=[2.0] * 9, reference=[1.0] * 9, pyro=[8.0] * 9))
    assert f"| {FULL} / {REFERENCE} | 1.05 | 2.00 (2.00 to 2.00) | no |" in lines
    assert f"| {FULL} / {PYRO} | 0.48 | 0.25 (0.25 to 0.25) | yes |" in lines
    assert len([line for line in lines if FULL in line]) == 2  # the others did not take part
    assert report.target_table("small", made_up_cell(full=[2.0], reference=[1.0])) == []


def test_a_gpu_run_is_held_against_half_a_minute():
    cell = made_up_cell(full=[0.2] * 9)
    cell["contenders"][FIT] = {"milliseconds": [0.25] * 9}
    assert any("| 35 | 23.4 (23.4 to 23.4) | yes |" in line for line in report.target_table("gpu", cell))


@pytest.mark.parametrize(("n", "low", "high"), [(3, 1, 3), (6, 1, 6), (8, 1, 8), (9, 2, 8), (15, 4, 12), (20, 6, 15)])
def test_interval_of_the_median(n, low, high):
    """The ranks of the sign test, as tabulated; at least 95% of cases, checked by adding up the binomial."""
    assert report.interval(list(range(1, n + 1))) == (low, high)
    if n >= 6:
        outside = 2 * sum(math.comb(n, k) for k in range(low)) / 2**n
        assert outside <= 0.05
        assert outside + 2 * math.comb(n, low) / 2**n > 0.05  # and no narrower one has that


def test_report_of_start_up():
    cold = {"import": 2.0, "make": 0.5, "first_steps": [1.0, 7.0, 0.5], "steady_step": 0.5, "peak_mib": 700.4}
    result = {
        "part": "start",
        "date": "2026-01-01",
        "machine": {"processor": "a processor", "cores": 2},
        "versions": {"torch": "2"},
        "rounds": {FULL: [{"cold": cold, "warm": {**cold, "first_steps": [1.0, 2.0, 0.5]}}], GRAPH: [{"cold": cold}]},
        "left_out": {PYRO: "ill"},
    }
    text = report.report(result)
    assert f"| {FULL} | 2.0 | 3.5 | 7.0 | 2.0 | 700 |" in text
    assert f"| {GRAPH} | 2.0 | 3.5 | 7.0 |  | 700 |" in text
    assert f"Left out: {PYRO}: ill" in text


@pytest.mark.slow
def test_the_command_line_from_run_to_report(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "run.py")]
    options = ["--json", str(tmp_path), "--rounds", "1", "--seconds", "0.01", "--cores", "1"]
    done = subprocess.run([*command, "data", *options], capture_output=True, text=True, check=True)
    result = json.loads((tmp_path / "data.json").read_text())
    assert [cell["setting"]["rows"] for cell in result["cells"]] == [10_000, 60_000]
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]
    again = subprocess.run([*command, "report", "--json", str(tmp_path)], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == done.stdout.strip()
    assert f"| {OFF} |" not in done.stdout  # costs are compared between five
    assert f"| {FULL} |" in done.stdout


def test_the_rules_for_a_race_agree_where_nothing_is_chosen():
    rng = np.random.default_rng(0)
    noises = levels_race.NORMAL
    cells = [levels_race.cell("one best by 10", name, draw, 4, 10, 500, rng) for name, draw in noises.items()]
    steady = cells[0]
    assert steady.before.covered == steady.after.covered  # the best is found every time
    assert (steady.before.found, steady.hsu.found, steady.after.found) == (1, 1, 1)
    assert all(min(c.hsu.covered, c.after.covered) > 0.9 for c in cells)
    equal = levels_race.cell("all equal", "independent", noises["independent"], 12, 3, 500, rng)
    assert equal.hsu.behind > 0.3 > 0.05 > equal.after.behind


@pytest.mark.slow
def test_denormals_are_timed_on_a_run_of_the_command_line(tmp_path, monkeypatch, capsys):
    for name, value in {"BATCH": 8, "STEPS": 2, "ROUNDS": 2}.items():
        monkeypatch.setattr(denormals, name, value)
    folder = str(tmp_path / "run")
    with without_pictures():
        assert cli.main(["train", "--epochs", "1", "--likelihood.network.hidden", "[4]", "--out", folder]) == 0
    capsys.readouterr()
    try:
        denormals.main(folder)
    finally:
        torch.set_flush_denormal(False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["denormal probabilities", "as they are", "flushed"]


@pytest.mark.slow
def test_the_parts_of_a_gpu_go_on_where_they_stopped(tmp_path, monkeypatch, capsys):
    """What has succeeded is not repeated, what has failed is, a run is continued, and what does not fit is left."""
    python = [sys.executable, "-c"]
    mark = f"import pathlib; pathlib.Path({str(tmp_path / 'count')!r}).open('a').write('x')"
    signals = "import signal, sys; signal.signal(signal.SIGINT, lambda *_: sys.exit(130))"
    known = {
        "good": gpu.Part([*python, mark], 0.01),
        "bad": gpu.Part([*python, "raise SystemExit('no device')"], 0.01),
        "long": gpu.Part([*python, "import time; time.sleep(100)"], 100),
        "run": gpu.Part([*python, f"{signals}; print('epoch 1', flush=True); signal.pause()"], 0.02, resumable=True),
        "after": gpu.Part([*python, mark], 0.01, needs="nowhere"),
    }
    monkeypatch.setattr(gpu, "parts", lambda *_: known)
    words = ["--data", str(tmp_path), "--out", str(tmp_path), "--minutes", "5"]
    for call in (1, 2):
        assert gpu.main(words) == 1
        found = gpu.results(tmp_path)
        states = {name: result["state"] for name, result in found.items()}
        assert states == {"good": "done", "bad": "failed", "run": "to be continued"}
        assert (tmp_path / "count").read_text() == "x"
        assert found["run"]["seconds"] >= 1.2 * call  # of all calls
    said = capsys.readouterr().out
    assert "long: left for the next call" in said
    assert "after: left for the next call, nowhere has left no run" in said
    assert "no device" in said


@pytest.mark.ci
@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == GALLERY_FULL)) for n in GALLERY])
def test_every_way_through_the_gallery_takes_the_same_steps(name):
    setting = Setting(program="gaussian_mixture")
    expected = gallery_svi.svi(setting, None, size="small").facts()
    run = GALLERY[name].load()(setting, size="small")
    assert run.facts()["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert run(2) == 2
    assert ("why_eager" in run.facts()) == (name in gallery.OURS.values())


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_a_round_of_the_gallery_is_a_whole_number_of_turns():
    """Each way meets the same mix of batches, however many steps its round has."""
    run = gallery_svi.svi(Setting(program="semi_supervised_vae"), "off", size="small")
    assert (run(1), run(5)) == (4, 8)
    _, _, _, batches = load_gallery("deep_markov_model").make(0, "full")
    shapes = [batches(i)[0].shape[1] for i in range(24)]
    assert shapes[:12] == shapes[12:]
    assert set(shapes) == {4, 8}


def load_gallery(name):
    sys.path.insert(0, str(gallery_svi.FOLDER))
    try:
        return __import__(name)
    finally:
        sys.path.pop(0)


def made_up_gallery(why: str | None = None) -> dict:
    way = {"milliseconds": [2.0, 1.0, 4.0], "largest_difference": 2e-7, "compared": 100}
    ours = {**way, "why_eager": why, "said": "SVI(captured in 3 graphs)"}
    ways = {
        GALLERY_PYRO: {**way, "milliseconds": [8.0, 4.0, 8.0], "largest_difference": 0.0},
        GALLERY_GRAPH: ours,
        GALLERY_FULL: {**ours, "largest_difference": 3e-6},
    }
    return {
        "programs": {"vae": {"ways": ways, "left_out": {}}},
        "options": {"rounds": 3, "seconds": 0.3},
        "minutes": 7.4,
        "load": 0.26,
        "command": "python benchmarks/gallery.py",
        "date": "2026-01-01",
        "machine": {"processor": "a processor", "cores": 2},
        "versions": {"torch": "2"},
    }


def test_the_table_of_the_gallery():
    lines = gallery.report(made_up_gallery())
    assert (
        "| [vae](../examples/gallery/vae.py) | in 3 graphs | 3e-06 | 8.00 |  |  | 2.00 (0.25) | 2.00 (0.25) |" in lines
    )
    assert any("Captured at both levels: 1 of 1" in line and "first 100 steps" in line for line in lines)
    assert lines[-1].startswith(
        "`python benchmarks/gallery.py`, 7 minutes, load 0.3 when it began; 2026-01-01; 2 cores of a processor"
    )
    lines = gallery.report(made_up_gallery("it is odd"))
    assert any("| no: it is odd |" in line for line in lines)
    assert any("Captured at both levels: 0 of 1" in line for line in lines)


def test_the_table_goes_between_the_marks():
    page = f"before\n{gallery.BEGIN}\nold\n{gallery.END}\nafter\n"
    once = gallery.inserted(page, "new")
    assert once == f"before\n{gallery.BEGIN}\n\nnew\n\n{gallery.END}\nafter\n"
    assert gallery.inserted(once, "new") == once
    gallery.inserted(gallery.PAGE.read_text(), "new")  # the page has the marks
    with pytest.raises(ValueError, match="has not both marks once"):
        gallery.inserted("no marks", "new")


def test_the_table_in_the_docs_is_of_the_results():
    if not gallery.RESULT.exists():
        pytest.skip("there are no results yet: python benchmarks/gallery.py")
    result = json.loads(gallery.RESULT.read_text())
    assert set(result["programs"]) == set(gallery.PROGRAMS)
    assert "\n".join(gallery.report(result)) in gallery.PAGE.read_text()
    ways = [kept["ways"] for kept in result["programs"].values()]
    captured = [w for w in ways if w[GALLERY_GRAPH]["why_eager"] is w[GALLERY_FULL]["why_eager"] is None]
    assert len(captured) >= 8
    for way in ways:
        assert max(way[GALLERY_GRAPH]["largest_difference"], way[GALLERY_FULL]["largest_difference"]) < 1e-5


@pytest.mark.slow
def test_the_gallery_is_raced_in_processes(capsys, monkeypatch):
    monkeypatch.setattr(gallery, "GALLERY", {name: GALLERY[name] for name in (GALLERY_PYRO, GALLERY_GRAPH)})
    gallery.main(["--only", "bayesian_regression", "--rounds", "1", "--seconds", "0.01", "--cores", "1"])
    assert "(../examples/gallery/bayesian_regression.py) | in 1 graph | " in capsys.readouterr().out


@pytest.mark.slow
def test_batch_sizes_go_on_where_they_stopped(tmp_path, monkeypatch, capsys):
    """What is in the file is not run again; equal epochs, fewer steps, the rates of the rules."""
    out, picture = tmp_path / "batches.json", tmp_path / "batches.png"
    words = ["--quick", "--epochs", "2", "--out", str(out), "--targets", "-25"]
    batches.main([*words, "--seeds", "1"])
    result = json.loads(out.read_text())
    rows = len(batches.load(batches.QUICK, None).train)
    assert len(result["runs"]) == 7  # one at the base, three at the two others
    for run in result["runs"]:
        assert len(run["validation"]) == 1 + len(run["training"]) == 3
        assert run["steps_per_epoch"] == math.ceil(rows / run["size"])
        assert run["learning_rate"] == pytest.approx(1e-2 * (run["size"] / 64) ** batches.RULES[run["rule"]])
        assert run["validation"][-1] > run["validation"][0]
    assert result["machine"]["threads"] == torch.get_num_threads()
    monkeypatch.setattr(batches, "train", lambda *_: pytest.fail("a run that is there was repeated"))
    capsys.readouterr()
    batches.main([*words, "--seeds", "1", "--picture", str(picture)])
    assert capsys.readouterr().out.count("\n| 64 |") == 2
    assert picture.stat().st_size > 10_000
    with pytest.raises(SystemExit, match="of another setting"):
        batches.main(["--quick", "--epochs", "3", "--out", str(out)])


def test_a_run_that_diverges_is_kept_and_told(monkeypatch):
    """It has a place in the table, and no figure."""
    setting = replace(batches.QUICK, rate=1e30, epochs=1, sizes=(256,))
    run = batches.train(setting, batches.load(setting, None), 256, "constant", 0)
    assert run["diverged"]["epoch"] == 1
    assert run["test"] is None
    result = {"setting": {"sizes": [256], "epochs": 1}, "runs": [run]}
    assert batches.table(result, [-1.0]).count(" - |") == 9


def test_epochs_to_a_bound():
    run = {"validation": [-200.0, -120.0, -110.0, -112.0], "steps_per_epoch": 10}
    assert batches.epochs_to(run, -160.0) == 0.5
    assert batches.steps_to(run, -115.0) == 15.0
    assert batches.epochs_to(run, -200.0) == 0.0
    assert batches.epochs_to(run, -100.0) is None
    assert batches.shown([1.0, 3.0], 1) == "2.0 ± 1.0"
    assert batches.shown([1.0, None], 0) == "1 (1 of 2)"
    assert batches.shown([None], 0) == "-"


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch is built without gloo")
def test_an_all_reduce_is_timed(tmp_path, capsys):
    out = tmp_path / "allreduce.json"
    allreduce.main(["--processes", "2", "--floats", "1000", "50000", "--repeats", "6", "--out", str(out)])
    (cell,) = json.loads(out.read_text())["cells"]
    assert [row["floats"] for row in cell["rows"]] == [1000, 50000]
    assert all(0 < row["least"] <= row["low"] <= row["median"] <= row["high"] for row in cell["rows"])
    assert "| 50,000 |" in capsys.readouterr().out


def test_latency_and_bandwidth_are_found_again():
    """By hand: 4 processes send 6 bytes a float each; times made of 30 us and 2 GB/s."""
    rows = [{"floats": n, "median": 30e-6 + 6 * n / 2e9} for n in allreduce.FLOATS]
    found = allreduce.fit(4, rows)
    assert found["latency"] == pytest.approx(30e-6)
    assert found["bandwidth"] == pytest.approx(2e9)
    assert found["error"] < 1e-9


def test_the_arithmetic_of_scaling():
    """Each formula of docs/scale.md by hand, at round numbers."""
    widths = (784, 500, 300, 150)
    encoder = sum((a + 1) * b for a, b in pairwise(widths)) + 151 * 4
    decoder = 3 * 150 + 151 * 300 + 301 * 500 + 501 * 784
    counted = scaling.count(scaling.MODELS["article"])
    assert counted["parameters"] == encoder + decoder
    products = [(784, 500), (500, 300), (300, 150), (150, 4), (2, 150), (150, 300), (300, 500), (500, 784)]
    assert counted["operations"] == 2 * (3 * sum(a * b for a, b in products) - 784 * 500)  # none by x
    assert scaling.latency(1) == 0
    assert scaling.latency(8) == pytest.approx(14e-6 + 2 * 7 * 1.25e-6)
    assert scaling.latency(1024) == pytest.approx(14e-6 + 2 * (7 * 1.25e-6 + 7 * 8.5e-6))
    assert scaling.all_reduce(8, 370e9) - scaling.latency(8) == pytest.approx(2 * 7 / 8)
    assert scaling.step("article", counted, 128) == pytest.approx(0.311e-3)
    more = scaling.step("article", counted, 1128) - scaling.step("article", counted, 128)
    assert more == pytest.approx(1000 * counted["operations"] / (0.4 * 67e12))
    found = scaling.scaled("article", counted, 8, 128)
    seconds = 0.311e-3 + scaling.all_reduce(8, 4 * counted["parameters"])
    assert found["images"] == pytest.approx(8 * 128 / seconds)
    assert found["hours"] == pytest.approx(1e9 * seconds / (8 * 128) / 3600)
    assert found["read"] == pytest.approx(784 * found["images"])
    assert scaling.all_reduce(1, 1e9) == 0


def test_published_all_reduces_are_near_the_formula():
    """What docs/scale.md says of them: near at both ends, too low by 1.5 to 1.8 from 1 to 10 MiB."""
    for gpus, size, seconds, _ in scaling.PUBLISHED:
        ratio = seconds / scaling.all_reduce(gpus, size)
        low, high = (1.5, 1.85) if 2**20 <= size <= 10 * 2**20 else (0.8, 1.2)
        assert low < ratio < high


def test_the_page_on_scale_is_of_the_results():
    page = scaling.PAGE.read_text()
    assert scaling.inserted(page, scaling.load()) == page
    with pytest.raises(ValueError, match="has not both marks once"):
        scaling.inserted("no marks", scaling.load())


def test_rows_are_read_at_a_rate():
    low, median, high = scaling.reading(784, total=2**20, seconds=0.05)
    assert 1000 < low <= median <= high


def test_adam_written_out_is_torchs_own():
    values = [torch.randn(3, 4), torch.randn(5)]
    parameters = [torch.nn.Parameter(value.clone()) for value in values]
    own = torch.optim.Adam(parameters, lr=1e-3)
    state, count = [(torch.zeros_like(v), torch.zeros_like(v)) for v in values], torch.zeros(())
    for _ in range(3):
        gradients = [torch.randn_like(v) for v in values]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        own.step()
        inductor.adam(values, gradients, state, count)
    for value, parameter in zip(values, parameters, strict=True):
        assert torch.allclose(value, parameter, rtol=1e-6, atol=1e-7)
