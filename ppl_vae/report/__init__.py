"""A report: one HTML file of a run, an evaluation or a comparison, with a live latent space.

The file opens without a server or a network. `Run.report` and `Evaluation.report` write one, and so does
``ppl-vae report``.
"""

from ppl_vae.report.page import write, write_report
from ppl_vae.report.subject import Subject, of_run

__all__ = ["Subject", "of_run", "write", "write_report"]
