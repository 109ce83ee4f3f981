"""Training: epochs of SVI steps over a data set, with validation, schedules, early stopping and recovery from NaN.

`fit` trains a `VAE` or any ``(model, guide)`` pair of Pyro programs. It prints nothing and writes nothing: a `Callback`
sees every epoch (the callback `ppl_vae.runs.RunFolder` writes a run's folder).
"""

from ppl_vae.training.choosing import resolve_compile, resolve_device
from ppl_vae.training.fitting import fit
from ppl_vae.training.parts import CoupledError
from ppl_vae.training.ranks import RankLostError
from ppl_vae.training.run import Callback, Progress, Run
from ppl_vae.training.state import DivergedError

__all__ = [
    "Callback",
    "CoupledError",
    "DivergedError",
    "Progress",
    "RankLostError",
    "Run",
    "fit",
    "resolve_compile",
    "resolve_device",
]
