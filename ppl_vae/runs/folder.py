"""The folder of a run: the files that training writes, and a function that loads the model from them."""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ppl_vae import _files, checkpoints, plots
from ppl_vae._machine import processor
from ppl_vae._scopes import untouched_random_state
from ppl_vae._validation import check_positive
from ppl_vae.configuration.resolving import CHECKPOINT_EVERY
from ppl_vae.data import Split
from ppl_vae.data.streams import Stream
from ppl_vae.plots.latent import MOST_CLASSES
from ppl_vae.saving.files import like
from ppl_vae.training import Callback, DivergedError, Progress, Run, resolve_device
from ppl_vae.vae import VAE

_PACKAGES = ("ppl-vae", "torch", "pyro-ppl", "numpy", "torchvision", "scikit-learn", "matplotlib")
_SHOWN = 32  # images in a picture of reconstructions


class RunFolder(Callback):
    """A callback that writes a run's folder during training.

    ===================  ============================================================================================
    ``config.yaml``      the resolved config; ``ppl-vae train --config`` with it gives the same run
    ``run.json``         versions, machine, device, seed, the data's name, shape and hash
    ``metrics.jsonl``    one record per epoch, as in ``Run.history``
    ``events.out...``    TensorBoard: the figures, input and reconstructed images, the latent grid
    ``checkpoint.pt``    the state to resume from; it loads without executing code
    ``result.json``      the last figures, why the run ended, the seconds, the caveat
    ``*.png``            training curves, reconstructions, samples; for a 2-D latent the grid and the scatter
    ``last_good.pt``     after a divergence: the last good state
    ===================  ============================================================================================

    Every file appears whole or not at all, except the two logs (metrics.jsonl and TensorBoard's). Images go to
    TensorBoard in epochs 1 to 10 and in every tenth epoch after that; if TensorBoard's file cannot be written, the run
    warns and goes on without it. A checkpoint is written at the start, when `checkpoint_every` seconds have passed
    since the last one (looked at every hundred steps and after each epoch), and at the end. One process at a time
    writes to a folder.

    Args:
        path: The folder, made when training starts. The last part of its name changes to ``NAME-2``, ``NAME-3``, ...
            if it is taken and `numbered` is true.
        config: The resolved config as YAML, or None for a run that was put together in Python.
        checkpoint_every: Seconds between checkpoints.
        numbered: Whether to take the next free name.

    Raises:
        FileExistsError: If the folder holds a run.
        OSError: If the folder cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        config: str | None = None,
        *,
        checkpoint_every: float = CHECKPOINT_EVERY,
        numbered: bool = False,
    ) -> None:
        self.path = Path(path)
        self.numbered = numbered
        self.check(next_free(self.path) if numbered else self.path)
        self.config = config
        self.checkpoint_every = check_positive(checkpoint_every, "checkpoint_every")
        self.pictures: list[Path] = []
        self._lock: _files.Lock | None = None
        self._metrics: Any = None
        self._writer: Any = None

    @staticmethod
    def check(path: str | Path) -> None:
        """Raise if a run cannot be written to this folder."""
        path = Path(path)
        if path.is_dir():
            if any((path / name).exists() for name in ("run.json", "config.yaml", "checkpoint.pt")):
                raise FileExistsError(f"{path} already holds a run; choose another --out, or resume it with --resume")
            nearest = path
        elif path.exists():
            raise FileExistsError(f"{path} is a file; --out expects a folder for the run")
        else:
            nearest = next(parent for parent in path.absolute().parents if parent.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise PermissionError(
                f"cannot write a run to {path}: {nearest} is not a writable folder; choose another --out"
            )

    def on_start(self, run: Run) -> None:
        """Make the folder and write the files that are known before the first step."""
        self._make_folder()
        self._run = run
        if self.config is not None:
            _files.write(self.path / "config.yaml", self.config)
        _files.write(self.path / "run.json", _files.to_json(_facts(run), indent=2) + "\n")
        self._tensorboard(self._open_tensorboard)
        self._metrics = (self.path / "metrics.jsonl").open("w", encoding="utf-8", buffering=1)
        for record in run.history:  # of the run that this one resumes
            self._metrics.write(_files.to_json(record) + "\n")
        self._save()

    def on_progress(self, progress: Progress) -> None:
        """Write a checkpoint when it is due."""
        if time.perf_counter() - self._saved > self.checkpoint_every:
            self._save()

    def on_epoch(self, run: Run, record: dict[str, float]) -> None:
        """Append the record, and write images and a checkpoint when they are due."""
        with _files.naming(self.path / "metrics.jsonl"):
            self._metrics.write(_files.to_json(record) + "\n")
        self._tensorboard(lambda: self._log_epoch(run, record))
        if time.perf_counter() - self._saved > self.checkpoint_every:
            self._save()

    def on_end(self, run: Run) -> None:
        """Write the checkpoint, the result and the pictures."""
        self._save()
        result = {"stopped": run.stopped, "seconds": run.seconds, "caveat": run.caveat, "best_epoch": run.best_epoch}
        result["why_eager"] = run.why_eager
        _files.write(self.path / "result.json", _files.to_json({**result, **run.final}, indent=2) + "\n")
        self.pictures = draw(run, self.path)
        self._close()

    def on_error(self, run: Run, error: BaseException) -> None:
        """Save the last good state after a divergence, and the state where it stands after another error."""
        if self._lock is None:
            return
        with suppress(OSError):  # the error itself may be that nothing can be written
            if isinstance(error, DivergedError):
                state = {**error.good_state, "data": run.data.fingerprint}
                checkpoints.save(state, self.path / "last_good.pt")
            elif isinstance(error, OSError | MemoryError):
                self._save()
        with suppress(OSError):
            self._close()

    def _make_folder(self) -> None:
        """Make the folder and lock it, under the next free name if asked."""
        while True:
            path = next_free(self.path) if self.numbered else self.path
            self.check(path)
            try:
                path.mkdir(parents=True, exist_ok=not self.numbered)
                lock = _files.Lock(path)
                try:
                    self.check(path)  # another process may have come between
                except OSError:
                    lock.release()
                    raise
            except FileExistsError:
                if self.numbered:
                    continue
                raise
            except OSError as error:  # access rights do not show it, as in /proc
                message = f"cannot write a run to {path} ({error.strerror}); choose another --out"
                raise PermissionError(message) from error
            self.path, self._lock = path, lock
            return

    def _save(self) -> None:
        checkpoints.save(self._run.state(), self.path / "checkpoint.pt")
        self._saved = time.perf_counter()

    def _tensorboard(self, log: Callable[[], None]) -> None:
        """Log to TensorBoard; its first failure ends the logging, with a warning, and not the run."""
        if self._writer is False:
            return
        try:
            log()
        except OSError as error:
            self._writer = False
            warnings.warn(f"no more is logged to TensorBoard, since its file cannot be written: {error}", stacklevel=2)

    def _open_tensorboard(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        run = self._run
        self._writer = SummaryWriter(str(self.path))
        if run.caveat:
            self._writer.add_text("caveat", run.caveat)
        if isinstance(run.program, VAE) and run.data.is_image:
            shown = run.data.validation if len(run.data.validation) else run.data.train
            self._inputs = _first(shown)
            self._writer.add_images("inputs", _images(self._inputs[0]).clamp(0, 1), 0)

    def _log_epoch(self, run: Run, record: dict[str, float]) -> None:
        epoch = int(record["epoch"])
        for name, value in record.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name.replace("validation_", "validation/"), value, epoch)
        if isinstance(run.program, VAE) and run.data.is_image and (epoch <= 10 or epoch % 10 == 0):
            reconstructions = _images(run.program.reconstruct(*self._inputs)).clamp(0, 1)
            self._writer.add_images("reconstructions", reconstructions, epoch)
            if run.program.latent_shape == (2,) and run.program.y_shape is None:
                self._writer.add_image("latent_grid", _one_image(_decoded_grid(run.program, run)), epoch)
        self._writer.flush()

    def _close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
        if self._writer:
            self._tensorboard(self._writer.close)
        if self._lock is not None:
            self._lock.release()


def draw(run: Run, path: str | Path) -> list[Path]:
    """Draw a run's pictures into a folder and return their paths.

    Every program gets training curves. A `VAE` of images also gets reconstructions beside their inputs, and samples
    from the prior; with a 2-D latent and no conditions, it gets the article's grid too. Every `VAE` with a 2-D latent
    gets the means of q(z|x) of the test data (else of the validation or training data), coloured by label where there
    are no more labels than can be told apart.
    """
    path = Path(path)
    figures: dict[str, Any] = {}
    if run.history:
        figures["training_curves"] = plots.training_curves(run.history, caveat=run.caveat)
    vae = run.program
    if isinstance(vae, VAE):
        split = next((s for s in (run.data.test, run.data.validation) if len(s)), run.data.train)
        if isinstance(split, Stream):  # its first batch stands for it
            split = split.head(len(split.columns[0]))
        if run.data.is_image:
            columns = _first(split)
            figures["reconstructions"] = plots.reconstructions(
                _images(columns[0]), _images(vae.reconstruct(*columns)), caveat=run.caveat
            )
            y = example_conditions(vae, split, 100)
            figures["samples"] = plots.samples(_images(vae.sample(100, y=y)), caveat=run.caveat)
        if vae.latent_shape == (2,):
            if run.data.is_image and vae.y_shape is None:  # every condition would need a grid
                figures["latent_grid"] = plots.latent_grid(_decoded_grid(vae, run), caveat=run.caveat)
            means = torch.cat([vae.encode(*batch) for batch in split.batches(min(1000, len(split)), device=run.device)])
            labels = split.labels if split.labels is None or len(split.labels.unique()) <= MOST_CLASSES else None
            figures["latent_scatter"] = plots.latent_scatter(means.cpu(), labels, caveat=run.caveat)
    return [plots.save(figure, path / f"{name}.png") for name, figure in figures.items()]


def load_run(path: str | Path, *, trust: bool = False, device: str | torch.device = "cpu") -> VAE:
    """Build the VAE of a run's folder from its config and load its weights, in evaluation mode.

    Args:
        path: The run's folder, ``runs/<name>``, or a checkpoint in it such as ``runs/<name>/last_good.pt``.
        trust: Whether to import and run what the run's config names from outside of this package, torch.nn, torch.optim
            and Pyro. A run that you trained yourself, on this machine, is trusted.
        device: Where the VAE is put: a torch device, or ``"auto"`` (cuda, else mps, else cpu).

    Raises:
        FileNotFoundError: If the folder holds no run of the command line.
        ValueError: If a file is damaged, the config names foreign code that is not trusted, the device cannot be used,
            or the checkpoint is of another model or holds parameters outside the model.
    """
    from ppl_vae.configuration.config import CONFIG_LIMIT, Config

    device, path = resolve_device(device), Path(path)
    folder, checkpoint = (path.parent, path) if path.is_file() else (path, path / "checkpoint.pt")
    if not (folder / "config.yaml").is_file() or not (folder / "run.json").is_file():
        raise FileNotFoundError(
            f"{folder} is no run's folder: config.yaml and run.json, written by ppl-vae train, are missing"
        )
    facts = read_facts(folder)
    text = _files.read_text(folder / "config.yaml", CONFIG_LIMIT)
    with untouched_random_state():
        vae = Config.from_yaml(text, str(folder / "config.yaml"), trust=trust).build_vae(
            like(facts["data"]["x_shape"], facts["data"].get("y_shape"))
        )
    vae.data_mean = None  # the run does not keep it
    state = checkpoints.load(checkpoint)
    modules, parameters = state.get("modules"), state.get("parameters")
    if not isinstance(modules, list) or not modules or not isinstance(parameters, dict):
        raise ValueError(f"{checkpoint} is no checkpoint of a run: it lacks the parameters of a program")
    if parameters:
        raise ValueError(
            f"{checkpoint} holds parameters of pyro.param ({', '.join(map(str, parameters))}), which "
            "live in Pyro's store and not in the VAE; take them up with fit(resume=...), or make the piece an "
            "nn.Module that owns them"
        )
    checkpoints.load_module(vae, modules[0], source=str(checkpoint))
    return vae.to(device).eval()


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the content of a run's run.json, whose entries on the data have been checked.

    Raises:
        ValueError: If it is damaged.
        OSError: If it cannot be read.
    """
    path = folder / "run.json"
    facts = _files.read_json(path)
    data = facts.get("data")
    if not isinstance(data, dict):
        raise ValueError(f"{path} is damaged: it says nothing of the data")
    shapes = [data.get("x_shape"), data.get("y_shape") or [1]]
    if not all(isinstance(s, list) and s and all(type(n) is int and n > 0 for n in s) for s in shapes):
        raise ValueError(f"{path} is damaged: it does not say the shape of the data")
    if not isinstance(data.get("fingerprint"), str):
        raise ValueError(f"{path} is damaged: it does not have the fingerprint of the data")
    return facts


def next_free(base: str | Path) -> Path:
    """Return `base` if this path is free, else the first free path of ``base-2``, ``base-3``, ..."""
    base = Path(base)
    candidates = (base if n == 1 else base.with_name(f"{base.name}-{n}") for n in range(1, sys.maxsize))
    return next(path for path in candidates if not path.exists())


def _facts(run: Run) -> dict[str, Any]:
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if run.device.startswith("cuda") else None,
        },
        "device": run.device,
        "compile": run.compile,
        "seed": run.seed,
        "data": {
            "name": run.data.name,
            "x_shape": list(run.data.x_shape),
            "y_shape": None if len(run.data.train.columns) < 2 else list(run.data.train.columns[1].shape[1:]),
            "train": None if isinstance(run.data.train, Stream) else len(run.data.train),
            "validation": len(run.data.validation),
            "test": len(run.data.test),
            "fingerprint": run.data.fingerprint,
        },
        "caveat": run.caveat,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _first(split: Split) -> tuple[torch.Tensor, ...]:
    return split.head(_SHOWN).first(_SHOWN)


def labels_in_turn(size: int, num_labels: int) -> torch.Tensor:
    """Return the labels to draw examples under, (size,): ten of each in turn, which fill a row of a picture."""
    return torch.arange(size) // 10 % num_labels


def example_conditions(vae: VAE, split: Split, size: int) -> torch.Tensor | None:
    """Return conditions to draw examples under, (size, k), or None for a model without conditions.

    One-hot labels come in turn, ten of each. Other conditions are those of the first data.
    """
    if vae.y_shape is None:
        return None
    (k,) = vae.y_shape
    y = next(split.batches(min(size, len(split))))[1]
    if bool(((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all()):
        return torch.eye(k)[labels_in_turn(size, k)].to(y)
    return y.repeat(-(-size // len(y)), 1)[:size]


def _images(x: torch.Tensor) -> torch.Tensor:
    """Return images on the CPU, (n, channels, height, width)."""
    x = x.detach().cpu()
    return x.unsqueeze(1) if x.dim() == 3 else x


def _decoded_grid(vae: VAE, run: Run) -> torch.Tensor:
    """Decode the article's 20 x 20 grid of z: (400, channels, height, width)."""
    return _images(vae.decode(plots.grid_points().reshape(-1, 2).to(run.device)))


def _one_image(grid: torch.Tensor) -> torch.Tensor:
    """Return the decoded grid as one image (channels, 20 * height, 20 * width), clamped to [0, 1] for display."""
    _, c, h, w = grid.shape
    return grid.clamp(0, 1).reshape(20, 20, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, 20 * h, 20 * w)
