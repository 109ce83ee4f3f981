"""`load`: a VAE from the file that `VAE.save` writes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch

from ppl_vae import checkpoints
from ppl_vae.configuration import foreign
from ppl_vae.programs import SemiSupervisedVAE
from ppl_vae.saving import describing, files
from ppl_vae.vae import VAE


def load(path: str | Path, *, device: str | torch.device = "cpu", trust: bool = False) -> VAE:
    """Return the VAE that `VAE.save` has written, in evaluation mode.

    The file is read after its checksum, as tensors, numbers and text. Then the classes that it names are imported and
    called: those of this package, ``torch.nn`` and Pyro, and no others unless you trust the file. A class of your own
    must be importable here as it was there.

    Args:
        path: The file.
        device: Where the VAE goes.
        trust: Whether to import and run what the file names from elsewhere, your own classes.

    Returns:
        The VAE. Its `x_shape`, `y_shape` and `data_mean` are those of the data that it was put together with.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds no VAE, names foreign code that is not trusted, or its VAE cannot be
            put together.

    Example:
        >>> import tempfile
        >>> from ppl_vae import likelihoods, posteriors, priors
        >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
        ...           posterior=posteriors.DiagonalNormal())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(vae.save(Path(folder) / "vae.pt"))
        >>> x = vae.sample(3)
        >>> bool((again.encode(x) == vae.encode(x)).all())
        True
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a file of VAE.save (of a run's folder, use ppl_vae.load_run)")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected one that VAE.save wrote")
    state = checkpoints.load(path)
    if state.get("kind") != files.KIND:
        raise ValueError(f"{path} holds no VAE but the state of a training run; use ppl_vae.load_run on its folder")
    named = dict.fromkeys(describing.names(state.get("pieces")))
    for name in named:
        if not foreign.is_path(name):
            raise ValueError(f"{path} is damaged: it names {name!r}, which is no import path")
    with foreign.answering(lambda *_: True) if trust else nullcontext():
        foreign.require({"names": list(named)}, "", str(path), remembered=False)
    make = SemiSupervisedVAE if "classifier" in (state.get("pieces") or ()) else VAE
    return files.restore(make, state, str(path)).to(device)
