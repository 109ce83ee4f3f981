"""A sweep: the runs of a plan, each trained into a folder of its own; started again, it goes on where it stopped."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppl_vae import _files
from ppl_vae._jobs import Lost, check_jobs, run_all, workers
from ppl_vae._records import describe
from ppl_vae._team import refuse_shared
from ppl_vae._validation import check_positive_int
from ppl_vae.comparison.sweeps import Sweep, SweepRun
from ppl_vae.sweeps import plan as plans
from ppl_vae.sweeps.plan import Plan, PlannedRun
from ppl_vae.sweeps.training import Ended, Training, check_same, is_over, rehearse

_PLAN = "plan.json"


def sweep(
    source: str | Path | Plan,
    out: str | Path,
    *,
    jobs: int | None = None,
    num_threads: int = 1,
    progress: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> Sweep:
    """Train every run of a plan into a folder below `out`, and return the results of all.

    Each folder is that of ``ppl-vae train``, and holds the same run bit for bit, at the same number of threads. Nothing
    depends on `jobs`, nor on the backend of joblib. A run that fails does not stop the others. Started again with the
    same folder, the sweep keeps the runs that are over, goes on with interrupted ones from their checkpoints, and tries
    failed ones again; a run that diverged begins anew. A plan with further runs adds them; a plan that lacks runs of
    the folder is refused.

    Args:
        source: The YAML file, see `plan`, or what `plan.read` made of it.
        out: The folder, made where it is missing; on a cluster one that all machines see under this path.
        jobs: How many processes train. 1 trains in this one; None too, unless a ``joblib.parallel_config`` is active:
            its backend then trains, on a cluster.
        num_threads: The threads of each run.
        progress: Called with a sentence when a run ends.
        stop: Called several times a second; once it is true, every run ends after its step, to be gone on with later.

    Raises:
        ValueError: If the plan does not fit, or lacks runs that the folder holds.
        FileExistsError: If another process sweeps into this folder, or it holds something else.
        OSError: If the folder cannot be written.
    """
    refuse_shared("a sweep")
    began = time.perf_counter()
    plan = source if isinstance(source, Plan) else plans.read(source)
    check_jobs(jobs)
    check_positive_int(num_threads, "num_threads")
    folder = Path(out).absolute()
    folders = places_of(plan, folder)
    _rehearse(run for run, place in zip(plan.runs, folders, strict=True) if not is_over(place))
    folder.mkdir(parents=True, exist_ok=True)
    lock = _files.Lock(folder)
    ended: dict[PlannedRun, Ended] = {}
    try:
        folders = places_of(plan, folder)  # another process may have come between
        _files.remove_leftovers(folder)
        _files.write(folder / _PLAN, _to_json(plan, folders))
        _files.write(folder / "sweep.yaml", plan.text)
        with _relayed(stop, folder / ".stop") as stop_file:
            waiting = []
            for run, place in zip(plan.runs, folders, strict=True):
                if is_over(place):
                    ended[run] = Ended("finished")
                else:
                    arguments = str(place), str(stop_file), os.getcwd(), num_threads, os.getpid()
                    waiting.append((run, Training(run.config.to_yaml(), *arguments, run.config.checkpoint_every)))
            if ended:
                progress(f"{len(ended)} of {len(plan.runs)} runs are there already")

            def done(i: int, result: Ended | Lost) -> None:
                run = waiting[i][0]
                ended[run] = how = Ended("failed", result.reason) if isinstance(result, Lost) else result
                reason = f": {how.reason}" if how.reason else ""
                progress(f"{len(ended)} of {len(plan.runs)}: {run.name}: {how.state}{reason}")
                for note in how.notes:
                    progress(f"note: {run.name}: {note}")

            run_all([training for _, training in waiting], done, jobs=jobs, told=progress)
    finally:
        lock.release()
    runs = tuple(_run_of(run, place, ended[run]) for run, place in zip(plan.runs, folders, strict=True))
    return Sweep(runs, plan.varied, plan.repeated, workers(jobs), time.perf_counter() - began)


def _rehearse(runs: Iterable[PlannedRun]) -> None:
    """Refuse a setting that cannot be trained, before any is; data that several share are loaded once."""
    held: tuple[Any, Any] = (None, None)
    for run in {run.label: run for run in runs}.values():
        data = run.config.values["data"]
        held = held if held[0] == data else (data, run.config.build_dataset())
        rehearse(run.config, held[1], run.label)


def places_of(plan: Plan, folder: Path) -> list[Path]:
    """Return the folder of each run: those that an earlier start gave, and new ones.

    Raises:
        ValueError: If runs of an earlier start are missing in the plan, or a run has other settings than the plan says.
        FileExistsError: If the folder holds something else than a sweep.
    """
    known: dict[str, str] = {}
    if (folder / _PLAN).is_file():
        content = _files.read_json(folder / _PLAN)
        try:
            known = {str(run["digest"]): Path(run["name"]).name for run in content["runs"]}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / _PLAN} is damaged: it does not list the runs of the sweep") from error
    elif folder.exists() and (not folder.is_dir() or any(p.name[0] != "." for p in folder.iterdir())):
        raise FileExistsError(f"{folder} holds something else than a sweep; choose another --out")
    digests = {run.digest for run in plan.runs}
    if lost := [name for digest, name in known.items() if digest not in digests]:
        raise ValueError(
            f"{folder} holds {len(lost)} runs that the plan does not have any more, such as {lost[0]}; a plan may only "
            "get further runs: choose another --out"
        )
    taken, places = set(known.values()), []
    for run in plan.runs:
        name = known.get(run.digest, run.name)
        if run.digest not in known and name in taken:
            name = f"{run.name},{run.digest[:8]}"
        taken.add(name)
        check_same(folder / name, run.config)
        places.append(folder / name)
    return places


def _run_of(run: PlannedRun, folder: Path, how: Ended) -> SweepRun:
    """Return what became of a run, from what its folder holds."""
    state, reason = how.state, how.reason
    try:
        record = describe(folder)
    except (OSError, ValueError) as error:
        record, state, reason = {}, "failed", str(error)
    figures = record.get("figures", {})
    if state == "finished" and None in (figures.get("validation_elbo", 0), figures.get("elbo", 0)):
        state, reason = "failed", "its ELBO is not finite"
    found: dict[str, Any] = {name: record.get(name) for name in ("epochs", "seconds", "fingerprint", "caveat")}
    likelihood = run.config.values["likelihood"]["class"]
    own = folder.name, run.label, run.setting, run.seed, state, reason, figures
    return SweepRun(*own, folder=str(folder), likelihood=likelihood, **found)


def _to_json(plan: Plan, folders: list[Path]) -> str:
    runs = [
        {"name": folder.name, "digest": run.digest, "setting": run.setting, "seed": run.seed}
        for run, folder in zip(plan.runs, folders, strict=True)
    ]
    return json.dumps({"runs": runs}, indent=1) + "\n"


@contextmanager
def _relayed(stop: Callable[[], bool], path: Path) -> Iterator[Path]:
    """Write the stop file, which all workers look for, once `stop` is true."""
    path.unlink(missing_ok=True)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            if stop():
                path.touch()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield path
    finally:
        over.set()
        watcher.join()
        path.unlink(missing_ok=True)
