"""Moved to `ppl_vae.comparison.races.runs`."""

from ppl_vae.comparison.races.runs import Point, RaceRun

__all__ = ["Point", "RaceRun"]
