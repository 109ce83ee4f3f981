"""Whether a piece, or a whole program, is what it claims to be, said in words: `check` and what it returns."""

from ppl_vae.checking.checker import check
from ppl_vae.checking.report import Finding, Report

__all__ = ["Finding", "Report", "check"]
