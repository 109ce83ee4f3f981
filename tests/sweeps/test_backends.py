"""The same sweep in one process, in two, under Dask and under Ray: the same table; and a worker killed under each."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import joblib
import pytest

from ppl_vae import VAE, data, likelihoods, networks, posteriors, priors, race, sweeps
from ppl_vae._scopes import threads
from ppl_vae.comparison.sweeps import Sweep

PLAN = """
base: {config: digits, epochs: %d, likelihood.network.hidden: [32], posterior.network.hidden: [32],
       checkpoint_every: 0.2}
seeds: 3
grid:
  prior: [StandardNormal, {class: VampPrior, num_components: 20}, {class: MixtureOfNormals, num_components: 5}]
"""
SECONDS = 300


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; pip install 'ppl-vae[cluster]'")


@contextmanager
def loky() -> Iterator[int]:
    yield 2


@contextmanager
def dask() -> Iterator[int | None]:
    needs("distributed")
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):
        yield None


@contextmanager
def ray() -> Iterator[int | None]:
    needs("ray")
    import ray as engine
    from ray.util.joblib import register_ray

    here = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}  # where this file is imported from
    quiet = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    engine.init(num_cpus=2, runtime_env=here, **quiet)
    register_ray()
    try:
        with joblib.parallel_config("ray", n_jobs=-1):
            yield None
    finally:
        engine.shutdown()


BACKENDS: dict[str, Callable] = {"loky": loky, "dask": dask, "ray": ray}


def figures(found: Sweep) -> list:
    """All that a run comes to, but for times."""
    return [
        (run.name, run.seed, run.state, {k: v for k, v in run.figures.items() if k != "rate"}) for run in found.runs
    ]


def without_seconds(found: Sweep) -> list[str]:
    return [" ".join(line.split()[:-1]) for line in found.table().splitlines()]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory):
    def make(epochs: int) -> Path:
        path = tmp_path_factory.mktemp("plan") / "plan.yaml"
        path.write_text(PLAN % epochs)
        return path

    return make


@pytest.fixture(scope="module")
def alone(plan, tmp_path_factory: pytest.TempPathFactory):
    """The sweep in this process."""
    known: dict[int, Sweep] = {}

    def make(epochs: int) -> Sweep:
        if epochs not in known:
            known[epochs] = sweeps.sweep(plan(epochs), tmp_path_factory.mktemp("alone") / "out", jobs=1)
        return known[epochs]

    return make


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_table_is_the_same(backend, plan, alone, tmp_path):
    with BACKENDS[backend]() as jobs:
        found = sweeps.sweep(plan(2), tmp_path / "out", jobs=jobs)
    assert figures(found) == figures(alone(2))
    assert without_seconds(found) == without_seconds(alone(2))
    assert len(found.finished) == 9


def make_vae(seed: int) -> VAE:
    return VAE(
        (1, 8, 8),
        prior=priors.StandardNormal(1),
        likelihood=likelihoods.Bernoulli(networks.MLP([8])),
        posterior=posteriors.DiagonalNormal(networks.MLP([8])),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_race_is_the_same(backend):
    options = {"objectives": ["ELBO", "IWAE"], "num_particles": 2, "seeds": 2, "epochs": 1, "evaluation_size": 20}
    digits = data.load("digits")
    with threads(1):
        here = race(make_vae, digits, **options)
    with BACKENDS[backend]() as jobs:
        there = race(make_vae, digits, jobs=jobs, **options)
    assert there.machine["jobs"] == 2
    for mine, theirs in zip(here.runs, there.runs, strict=True):
        assert (mine.key, mine.seed) == (theirs.key, theirs.seed)
        assert mine.column("log_evidence") == theirs.column("log_evidence")


def kill_the_writer_of(folder: Path, killed: list[int]) -> None:
    """Kill the process that writes a run below a folder, once it has taken two epochs."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for path in folder.glob("*/metrics.jsonl"):
            if path.read_text().count("\n") >= 2 and not (path.parent / "result.json").exists():
                for process in Path("/proc").iterdir():
                    if process.name.isdigit() and int(process.name) != os.getpid() and _holds(process, path):
                        os.kill(int(process.name), signal.SIGKILL)
                        killed.append(int(process.name))
                        return
        time.sleep(0.02)


def _holds(process: Path, path: Path) -> bool:
    try:
        return any(os.readlink(link) == str(path) for link in (process / "fd").iterdir())
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the worker by the files that it holds")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_worker_that_is_killed_loses_its_run_only(backend, plan, alone, tmp_path):
    killed: list[int] = []
    said: list[str] = []
    out = tmp_path / "out"
    killer = threading.Thread(target=kill_the_writer_of, args=(out.resolve(), killed), daemon=True)
    with BACKENDS[backend]() as jobs:
        killer.start()
        found = sweeps.sweep(plan(20), out, jobs=jobs, progress=said.append)
    killer.join(10)
    assert len(killed) == 1, said
    assert figures(found) == figures(alone(20))
    assert len(found.finished) == 9
