"""Many trainings: a plan in YAML, its runs in as many processes as there are, and one table over seeds."""

from ppl_vae.comparison.sweeps import Sweep, SweepRun
from ppl_vae.sweeps.plan import Plan, PlannedRun, read
from ppl_vae.sweeps.sweep import sweep

__all__ = ["Plan", "PlannedRun", "Sweep", "SweepRun", "read", "sweep"]
