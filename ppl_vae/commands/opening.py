"""Moved to `ppl_vae.cli.opening`."""

from ppl_vae.cli.opening import DataOptions, OpenRun

__all__ = ["DataOptions", "OpenRun"]
