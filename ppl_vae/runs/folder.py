"""The folder of a run: the files that training writes."""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from ppl_vae import _files, checkpoints
from ppl_vae._machine import PACKAGES, processor, versions
from ppl_vae._scopes import seeded
from ppl_vae._team import launch
from ppl_vae._validation import check_positive
from ppl_vae.configuration.resolving import CHECKPOINT_EVERY, leaves
from ppl_vae.data.streams import Stream
from ppl_vae.runs.drawing import as_images, decoded_grid, draw, example_conditions, first_images, one_image
from ppl_vae.training import Callback, CoupledError, DivergedError, Progress, RankLostError, Run
from ppl_vae.vae import VAE

_JUDGED = ("validation/elbo", "elbo", "reconstruction_error")  # what TensorBoard compares runs by
_SAMPLES = 32


class RunFolder(Callback):
    """A callback that writes a run's folder during training.

    ===================  ============================================================================================
    ``config.yaml``      the resolved config; ``ppl-vae train --config`` with it gives the same run
    ``run.json``         versions, machine, device, seed, the data's name, shape and hash
    ``metrics.jsonl``    one record per epoch, as in ``Run.history``
    ``events.out...``    TensorBoard: config, figures, inputs, reconstructions, samples, the article's latent grid
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
        again: Whether the folder may hold a run, whose files this run then replaces. At the start its result and its
            last good state are removed, and its evaluation is renamed to ``evaluation-before``.

    Raises:
        FileExistsError: If the folder holds a run and `again` is false, or another process writes to it.
        OSError: If the folder cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        config: str | None = None,
        *,
        checkpoint_every: float = CHECKPOINT_EVERY,
        numbered: bool = False,
        again: bool = False,
    ) -> None:
        self.path = self._asked = Path(path)
        self.numbered = numbered
        self.again = again
        self.check(next_free(self.path) if numbered else self.path, again)
        self.config = config
        self.checkpoint_every = check_positive(checkpoint_every, "checkpoint_every")
        self.pictures: list[Path] = []
        self._lock: _files.Lock | None = None
        self._metrics: Any = None
        self._writer: Any = None

    @staticmethod
    def check(path: str | Path, again: bool = False) -> None:
        """Raise if a run cannot be written to this folder."""
        path = Path(path)
        if path.is_dir():
            if not again and any((path / name).exists() for name in ("run.json", "config.yaml", "checkpoint.pt")):
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
        self._writer = None
        if self.config is not None:
            _files.write(self.path / "config.yaml", self.config)
        _files.write(self.path / "run.json", _files.to_json(_facts(run), indent=2) + "\n")
        self._tensorboard(self._open_tensorboard)
        self._metrics = (self.path / "metrics.jsonl").open("w", encoding="utf-8", buffering=1)
        for record in run.history:  # of the run that this one resumes
            self._metrics.write(_files.to_json(record) + "\n")
        self._save()
        if self.again:  # what an earlier run ended with, and what was made of it, is not this one's
            for name in ("result.json", "last_good.pt"):
                (self.path / name).unlink(missing_ok=True)
            if (evaluation := self.path / "evaluation").exists():
                evaluation.rename(next_free(self.path / "evaluation-before"))

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
        self._tensorboard(lambda: self._writer.file_writer.add_summary(self._ended))
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
            elif isinstance(error, RankLostError) and error.good_state:
                checkpoints.save(error.good_state, self.path / "checkpoint.pt")
            elif isinstance(error, OSError | MemoryError | CoupledError):
                self._save()
        with suppress(OSError):
            self._close()

    def _make_folder(self) -> None:
        """Make the folder and lock it, under the next free name if asked."""
        while True:
            path = next_free(self._asked) if self.numbered else self.path
            self.check(path, self.again)
            try:
                path.mkdir(parents=True, exist_ok=not self.numbered)
                lock = _files.Lock(path)
                try:
                    self.check(path, self.again)  # another process may have come between
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
        from torch.utils.tensorboard.summary import hparams

        run = self._run
        self._writer = SummaryWriter(str(self.path))
        values = dict(leaves(yaml.safe_load(self.config))) if self.config is not None else {}
        values |= {"data": run.data.name, "seed": run.seed, "device": run.device, "compile": run.compile}
        known = {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in values.items()}
        *begun, self._ended = hparams(known, dict.fromkeys(_JUDGED))
        for summary in begun:
            self._writer.file_writer.add_summary(summary)  # add_hparams would begin another file
        if run.caveat:
            self._writer.add_text("caveat", run.caveat)
        if isinstance(run.program, VAE) and run.data.is_image:
            shown = run.data.validation if len(run.data.validation) else run.data.train
            self._inputs = first_images(shown)
            self._y = example_conditions(run.program, shown.head(_SAMPLES), _SAMPLES)
            self._writer.add_images("inputs", as_images(self._inputs[0]).clamp(0, 1), 0)

    def _log_epoch(self, run: Run, record: dict[str, float]) -> None:
        epoch = int(record["epoch"])
        for name, value in record.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name.replace("validation_", "validation/"), value, epoch)
        if isinstance(run.program, VAE) and run.data.is_image and (epoch <= 10 or epoch % 10 == 0):
            reconstructions = as_images(run.program.reconstruct(*self._inputs)).clamp(0, 1)
            self._writer.add_images("reconstructions", reconstructions, epoch)
            with suppress(NotImplementedError), seeded(0):  # a prior that cannot draw; the same z in every epoch
                samples = as_images(run.program.sample(_SAMPLES, y=self._y)).clamp(0, 1)
                self._writer.add_images("samples/means", samples, epoch)
            if run.program.latent_shape == (2,) and run.program.y_shape is None:
                self._writer.add_image("latent_grid", one_image(decoded_grid(run.program, run)), epoch)
        self._writer.flush()

    def _close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
        if self._writer:
            self._tensorboard(self._writer.close)
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def next_free(base: str | Path) -> Path:
    """Return `base` if this path is free, else the first free path of ``base-2``, ``base-3``, ..."""
    base = Path(base)
    candidates = (base if n == 1 else base.with_name(f"{base.name}-{n}") for n in range(1, sys.maxsize))
    return next(path for path in candidates if not path.exists())


def _facts(run: Run) -> dict[str, Any]:
    return {
        "versions": versions(*PACKAGES, "torchvision", "scikit-learn", "matplotlib"),
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if run.device.startswith("cuda") else None,
        },
        "device": run.device,
        "compile": run.compile,
        "processes": run.processes,
        "launch": launch(),
        "seed": run.seed,
        "data": {
            "name": run.data.name,
            "x_shape": list(run.data.x_shape),
            "y_shape": None if len(run.data.train.columns) < 2 else list(run.data.train.columns[1].shape[1:]),
            "train": None if isinstance(run.data.train, Stream) else len(run.data.train),
            "validation": len(run.data.validation),
            "test": len(run.data.test),
            "column_names": getattr(run.program, "column_names", None),
            "categories": getattr(run.program, "categories", ()),
            "conditions": list(run.data.train.conditions),
            "fingerprint": run.data.fingerprint,
        },
        "caveat": run.caveat,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
