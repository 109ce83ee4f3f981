"""Moved to `ppl_vae._records`."""

from ppl_vae._records import NOT_FIGURES, TOLD, Record, describe, history

__all__ = ["NOT_FIGURES", "TOLD", "Record", "describe", "history"]
