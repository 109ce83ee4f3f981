"""Moved to `ppl_vae.evidence.densities`."""

from ppl_vae.evidence.densities import Densities, ProgramDensities, VAEDensities, densities_of

__all__ = ["Densities", "ProgramDensities", "VAEDensities", "densities_of"]
