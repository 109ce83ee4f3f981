"""Moved to `ppl_vae.training.checkpoints`."""

from ppl_vae.training.checkpoints import FORMAT, load, load_module, save

__all__ = ["FORMAT", "load", "load_module", "save"]
