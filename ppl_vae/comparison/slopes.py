"""Moved to `ppl_vae.comparison.fixed.slopes`."""

from ppl_vae.comparison.fixed.slopes import Slope, slopes_of

__all__ = ["Slope", "slopes_of"]
