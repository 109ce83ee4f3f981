"""``ppl-vae sweep``: many trainings, in as many processes as there are, and one table over seeds.

usage: ppl-vae sweep SWEEP.yaml [--out DIR] [--jobs N] [--dry_run]

Train a model under many settings, each with several seeds, and compare them in one table.

SWEEP.yaml holds a base (a preset, a configuration file, or options of ppl-vae train by their dotted names), the seeds,
and what is varied: a grid, a list of settings, or random draws. Every option of every run is checked before the first
run starts.

  base: digits                      or {config: digits, epochs: 20, likelihood.network.hidden: [100]}
  seeds: 3                          how many, or which: [0, 1, 2]; 3 by default
  grid:                             every combination
    prior: [StandardNormal, {class: VampPrior, num_components: 50}]
    optimizer.lr: [1e-3, 3e-3]

  list: [{prior: StandardNormal}, {prior: VampPrior, optimizer.lr: 3e-3}]

  random: {draws: 20, seed: 0, options: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}, batch_size: [64, 128]}}

Each run is a folder as ppl-vae train makes it. Started again, a sweep keeps the runs that are over, goes
on with interrupted ones from their checkpoints and tries failed ones again; SWEEP.yaml may get further runs meanwhile.
Written are a table (sweep.csv), everything (sweep.json), what is printed (summary.txt) and a picture. The exit code is
1 if a run failed, and 130 after Ctrl-C.

options:
  SWEEP.yaml   The plan.
  --out DIR    The folder to write to; by default runs/<name of the plan>.
  --jobs N     Train in N processes; -1 for one on each core. By default 1, in this process. No figure depends on it.
  --threads N  The threads of each run; 1 by default. Figures depend on it in their last digits.
  --dry_run    List the runs, and train nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppl_vae._validation import check_positive_int
from ppl_vae.cli.errors import bad_input
from ppl_vae.cli.folders import folder_for
from ppl_vae.cli.signals import Signals
from ppl_vae.cli.telling import tell_taken, teller
from ppl_vae.cli.words import number, split

_OPTIONS = ("out", "jobs", "threads", "dry_run")


def run(argv: Sequence[str]) -> int:
    """Run the command, and return the exit code."""
    with bad_input():
        given = split(argv, flags=("dry_run",))
        given.check_options("sweep", _OPTIONS)
        source = given.only("sweep")
        if source is None:
            raise ValueError("sweep was given no plan; expected a file: ppl-vae sweep SWEEP.yaml")
        if not Path(source).is_file():
            raise FileNotFoundError(f"there is no file {source}; expected a plan: ppl-vae sweep SWEEP.yaml")
        jobs: Any = number(given.options["jobs"]) if "jobs" in given.options else None
        num_threads = check_positive_int(number(given.options.get("threads", "1")), "--threads")
        folder = folder_for(given.options.get("out"), Path("runs") / Path(source).stem)
        from ppl_vae import plots, sweeps  # they import torch
        from ppl_vae._jobs import check_jobs
        from ppl_vae.cli import estimators

        check_jobs(jobs, "--jobs")
        plan = sweeps.read(source)
        tell_taken({option: meant for run in plan.runs for option, meant in run.config.taken.items()})
        if "dry_run" in given.options:
            print("\n".join(_listed(plan, folder)))
            return 0
        with Signals() as stop:
            found = sweeps.sweep(plan, folder, jobs=jobs, num_threads=num_threads, progress=teller(log=True), stop=stop)
        caveat = next((run.caveat for run in found.finished if run.caveat), None)
        lines = estimators.write(
            found,
            folder,
            "sweep",
            title=f"{folder.name}: {len(found.settings)} settings, seeds {', '.join(map(str, found.seeds))}",
            facts={"plan": source},
            caveat=caveat,
            pictures={"sweep": plots.sweep_results},
            tell=teller(),
        )
    print("\n".join(lines))
    if stop():
        print(f"continue with: ppl-vae sweep {source} --out {folder}")
        return stop.exit_code
    return 1 if found.failed else 0


def _listed(plan: Any, folder: Path) -> list[str]:
    """Return a line for each run, with what there is of it."""
    from ppl_vae.sweeps.sweep import places_of
    from ppl_vae.sweeps.training import is_over

    lines = []
    for place in places_of(plan, folder.absolute()):
        begun = "to go on" if (place / "checkpoint.pt").is_file() else "to begin"
        lines.append(f"{place.name}  {'finished' if is_over(place) else begun}")
    return [*lines, f"{len(lines)} runs in {folder}; nothing was trained"]
