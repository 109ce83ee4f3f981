"""Moved to `ppl_vae.comparison.races.outcome`."""

from ppl_vae.comparison.races.outcome import Race

__all__ = ["Race"]
