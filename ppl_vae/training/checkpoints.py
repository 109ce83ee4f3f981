"""Moved to `ppl_vae.checkpoints`."""

from ppl_vae.checkpoints import FORMAT, load, load_module, require, save

__all__ = ["FORMAT", "load", "load_module", "require", "save"]
