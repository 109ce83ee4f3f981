"""Moved to `ppl_vae.cli`."""
