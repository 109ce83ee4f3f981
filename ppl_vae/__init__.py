"""Variational autoencoders as Pyro programs.

The public names below load on first use, so that importing the package, or asking its command line for help, imports
nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {  # the rest of __all__ are modules
    "SVI": "ppl_vae.svi",
    "VAE": "ppl_vae.vae",
    "check": "ppl_vae.checking",
    "compare": "ppl_vae.comparison",
    "evaluate": "ppl_vae.evaluation",
    "fit": "ppl_vae.training",
    "interpolate": "ppl_vae.evaluation.paths",
    "load": "ppl_vae.configuration.saved",
    "load_run": "ppl_vae.runs",
    "race": "ppl_vae.comparison",
}

__all__ = [
    "SVI",
    "VAE",
    "__version__",
    "check",
    "checking",
    "checkpoints",
    "closed_form",
    "compare",
    "comparison",
    "data",
    "evaluate",
    "evaluation",
    "evidence",
    "fit",
    "interpolate",
    "likelihoods",
    "load",
    "load_run",
    "networks",
    "objectives",
    "plots",
    "posteriors",
    "priors",
    "programs",
    "race",
    "regularizers",
    "report",
    "runs",
    "training",
]

if TYPE_CHECKING:
    from ppl_vae.checking import check
    from ppl_vae.comparison import compare, race
    from ppl_vae.configuration.saved import load
    from ppl_vae.evaluation import evaluate
    from ppl_vae.evaluation.paths import interpolate
    from ppl_vae.runs import load_run
    from ppl_vae.svi import SVI
    from ppl_vae.training import fit
    from ppl_vae.vae import VAE


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in __all__ or name == "sklearn":  # not in __all__: a star import would put it before the package sklearn
        return importlib.import_module(f"ppl_vae.{name}")
    raise AttributeError(f"module 'ppl_vae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
