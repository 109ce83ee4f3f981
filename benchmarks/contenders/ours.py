"""`ppl_vae`: its SVI at each level of compilation, and the whole training loop of `fit`."""

from __future__ import annotations

import functools
import math
import threading
from typing import Any

import pyro
import torch

import ppl_vae as pv
from contenders import Run
from contenders._torch import batches, repeated
from contenders.setting import PIXELS, Setting
from ppl_vae.training.run import Callback


def program(setting: Setting) -> pv.VAE:
    """The VAE of every contender, in the package's own pieces."""
    return pv.VAE(
        (PIXELS,),
        prior=pv.priors.StandardNormal(setting.latent),
        likelihood=pv.likelihoods.Bernoulli(pv.networks.MLP(setting.hidden[::-1])),
        posterior=pv.posteriors.DiagonalNormal(pv.networks.MLP(setting.hidden)),
    ).to(setting.device)


def svi(setting: Setting, compile: Any) -> Run:
    """`ppl_vae.SVI` as `fit` uses it."""
    vae = program(setting)
    adam = functools.partial(torch.optim.Adam, lr=1e-3)
    trainer = pv.SVI(vae.model, vae.guide, adam, pv.objectives.ELBO(setting.num_particles), compile=compile)
    draw = batches(setting)
    taken = 0

    def step() -> None:
        nonlocal taken
        trainer.update(draw())
        taken += 1
        if taken == 1:
            pyro.enable_validation(False)  # as in `fit`, after the first batch
        elif taken == 2 and compile != "off" and trainer.why_eager is not None:
            raise RuntimeError(f"not captured: {trainer.why_eager}")

    return repeated(step, setting)


def fit(setting: Setting, compile: str) -> Run:
    """`ppl_vae.fit`, by whole epochs: batches out of a permutation, figures noted, every loss looked at."""
    data = torch.from_numpy(setting.pixels()).to(setting.device)
    epochs = _Epochs()

    def train() -> None:
        try:
            pv.fit(
                program(setting),
                data,
                objective=pv.objectives.ELBO(setting.num_particles),
                epochs=10**9,
                batch_size=setting.batch_size,
                seed=0,
                device=setting.device,
                compile=compile,
                callbacks=[epochs],
                stop=lambda: epochs.over,
            )
        except BaseException as error:
            epochs.failed(error)

    training = threading.Thread(target=train, daemon=True)
    training.start()
    steps_per_epoch = math.ceil(len(data) / setting.batch_size)

    def run(steps: int) -> int:
        count = math.ceil(steps / steps_per_epoch)
        for _ in range(count):
            epochs.take()
        return count * steps_per_epoch

    def end() -> None:
        epochs.over = True
        epochs.go()
        training.join()

    run.end = end  # type: ignore[attr-defined]  # no other program runs in this process before it
    return run


class _Epochs(Callback):
    """Lets `fit`, which runs in a thread, take one epoch at a time."""

    def __init__(self) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self.over = False  # whether the training ends

    def go(self) -> None:
        """Let the training go on."""
        self._go.release()

    def take(self) -> None:
        """Let one epoch pass."""
        self.go()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def failed(self, error: BaseException) -> None:
        """Hand on what ended the training."""
        self._error = error
        self._done.release()

    def on_start(self, run: Any) -> None:
        """Wait for the first epoch's turn."""
        self._go.acquire()

    def on_epoch(self, run: Any, record: dict[str, float]) -> None:
        """Say that one is over (its figures were read: the device has finished), and wait for the next one's turn."""
        self._done.release()
        self._go.acquire()
