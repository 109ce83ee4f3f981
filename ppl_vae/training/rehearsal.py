"""The rehearsal before a training: all runs once, and what cannot work is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pyro
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ppl_vae._draws import UnstoppedDraws
from ppl_vae._machine import check_fits
from ppl_vae._scopes import evaluation_mode, kept_values, untouched_random_state
from ppl_vae.capture import buffers_of, modules_of
from ppl_vae.data import Split
from ppl_vae.data.streams import ItemSplit, Stream
from ppl_vae.objectives.impossible import Limits, alarm_of
from ppl_vae.svi import SVI
from ppl_vae.training.run import Run
from ppl_vae.training.state import Means
from ppl_vae.vae import VAE

CHECK = "ppl_vae.check looks at each density"


class StrangersError(ValueError):
    """A program that holds tensors on another device than that of its modules and data."""


def rehearse(run: Run, svi: SVI, modules: Sequence[nn.Module], batch_size: int) -> Limits:
    """Run everything once under full validation, without moving state, and return the limits of the figures.

    Raises:
        StrangersError: If the program holds tensors that do not move with its modules.
        ValueError: If the data do not fit the program, or a figure is one that no model gives.
    """
    data, train = run.data, run.data.train
    rows = None if isinstance(train, Stream) else len(train)
    parts = {id(b) for b in buffers_of(modules_of(svi.model, svi.guide))}
    learned = [b for b in buffers_of(modules) if id(b) not in parts and not is_lazy(b)]  # by the objective, in a step
    with (
        strangers_named(run.device),
        untouched_random_state(),
        kept_values(learned),
        evaluation_mode(*modules),
        batch_norm_checked(modules, batch_size, rows),
    ):
        batch = train.first(batch_size, run.device)
        particles = getattr(getattr(svi.loss, "objective", svi.loss), "num_particles", 1)
        what = f"batches of {len(batch[0])} with {particles} particles"
        check_fits(batch[0].numel() * particles, what, "batch_size or num_particles", run.device)
        if isinstance(vae := run.program, VAE):
            if data.x_shape != vae.x_shape:
                raise ValueError(
                    f"the data have rows of shape {data.x_shape}, and the VAE is for {vae.x_shape}: reshape them"
                )
            unseen = isinstance(train, Stream | ItemSplit)  # seen batch by batch, as they come
            run.caveat = vae.check_support(replace(data, train=Split(batch)) if unseen else data)
            y = batch[1:2]
            if alarm := alarm_of(vae.q_z(batch[0], *y), vae.p_z(*y)):
                warnings.warn(alarm, stacklevel=4)
        with pyro.validation_enabled():
            svi.draws = draws = UnstoppedDraws()
            first = svi.backward(*batch)
            if not draws.met:  # the mode sees every call of torch
                svi.draws = nullcontext()
            if term := Means.of([first]).impossible(first.limits, len(batch[0])):
                raise ValueError(f"the first batch has a figure that no model gives: {term}; {CHECK}")
            if all(parameter.grad is None for parameter in svi.parameters.values()):
                raise ValueError(
                    "the objective depends on no parameter that requires a gradient; register networks with "
                    "pyro.module (or make the program's pieces nn.Modules of a VAE) and unfreeze what should train"
                )
    return first.limits


@contextmanager
def strangers_named(device: str) -> Iterator[None]:
    """Say what to do where a program computes with tensors that `fit` has not moved to its device."""
    try:
        yield
    except RuntimeError as error:
        if "same device" not in str(error):
            raise
        other = "pyro.clear_param_store() forgets those" if device == "cpu" else "else train with device='cpu'"
        raise StrangersError(
            f"the program holds tensors on another device than {device}, where fit has put its data and its modules: "
            "make constants and the initial values of pyro.param where the data are (x.new_zeros, device=x.device), "
            f"and keep the constants of a module as its buffers (register_buffer); {other}"
        ) from error


@contextmanager
def batch_norm_checked(modules: Sequence[nn.Module], batch_size: int, num_data: int | None) -> Iterator[None]:
    """Refuse a batch of one datum where batch normalisation sees only one value for each channel in the first batch.

    Args:
        modules: The modules of the program, which runs on a first batch inside the context.
        batch_size: The size of the batches.
        num_data: The number of data, which tells the last batch; None where nothing does.
    """
    alone: list[nn.Module] = []

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = batch_size if num_data is None else min(batch_size, num_data)
        if inputs[0].numel() <= rows * inputs[0].shape[1]:
            alone.append(module)

    parts = {part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)}
    hooks = [part.register_forward_pre_hook(look) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if alone and 1 in (batch_size, 0 if num_data is None else num_data % batch_size):
        given = "the data" if num_data is None else f"{num_data} training data"
        raise ValueError(
            f"batch normalisation ({type(alone[0]).__name__}) cannot train on one datum, and {given} in batches of "
            f"{batch_size} leave a last batch of one; choose another batch_size"
        )
