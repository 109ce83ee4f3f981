"""Checks that a piece, or a whole program, is what it claims to be: `check`, and the `Report` that it returns."""

from ppl_vae.checking.checker import check
from ppl_vae.checking.report import Finding, Report

__all__ = ["Finding", "Report", "check"]
