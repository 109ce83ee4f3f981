"""The batch of a comparison, and its log p(x)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppl_vae._validation import check_positive_int
from ppl_vae.comparison.fixed.results import KnownEvidence
from ppl_vae.data import Split
from ppl_vae.evidence.log_evidence import log_evidence as find_log_evidence
from ppl_vae.evidence.results import Evidence
from ppl_vae.objectives.losses import Program
from ppl_vae.vae import VAE


class Batch(NamedTuple):
    """The arguments of the program."""

    tensors: tuple[Tensor, ...]

    @property
    def x(self) -> Tensor:
        """The data, (batch, *x_shape)."""
        return self.tensors[0]


def take_batch(data: Tensor | tuple[Tensor, ...] | Split, size: int, modules: Sequence[nn.Module]) -> Batch:
    """Return the batch, on the device of the parameters.

    Args:
        data: One tensor, several, or a split.
        size: The number of rows taken from a split.
        modules: The modules of the program.

    Raises:
        TypeError: If the data are none of these.
        ValueError: If the data are empty.
    """
    if isinstance(data, Split):
        columns = data.head(check_positive_int(size, "compare: size")).columns
        tensors = tuple(column for column in columns if isinstance(column, Tensor))
    else:
        tensors = (data,) if isinstance(data, Tensor) else tuple(data) if isinstance(data, (tuple, list)) else ()
    if not tensors or not all(isinstance(t, Tensor) for t in tensors):
        raise TypeError(
            f"compare: data is a {type(data).__name__}; expected the batch as a tensor, a tuple of tensors, or a split "
            "such as data.load('digits').test"
        )
    if not tensors[0].dim() or not len(tensors[0]):
        raise ValueError(f"compare: data has shape {tuple(tensors[0].shape)}; expected (batch, ...), batch > 0")
    like = next((p for module in modules for p in module.parameters()), torch.empty(0))
    return Batch(tuple(t.detach().to(like.device).contiguous() for t in tensors))


def known_evidence(
    program: VAE | Program, batch: Batch, given: Tensor | Evidence | float | None, seed: int
) -> tuple[KnownEvidence | None, str | None]:
    """Return the mean of log p(x) over the batch, and a note for the reader if it is not exact.

    Args:
        program: The `VAE`, or model and guide.
        batch: The data.
        given: log p(x) if it is known: the mean, one number for each datum, or an `Evidence` with its error.
        seed: For an estimate.

    Raises:
        ValueError: If `given` has another number of data.
    """
    if given is not None and not isinstance(given, Evidence):
        values = torch.as_tensor(given).detach().double()
        if values.dim() and values.shape != (len(batch.x),):
            raise ValueError(
                f"compare: log_evidence has shape {tuple(values.shape)}; expected one number for each datum, "
                f"({len(batch.x)},), or their mean"
            )
        return KnownEvidence(float(values.mean()), "given", 0.0, True), None
    if given is None:
        try:
            given = find_log_evidence(program, *batch.tensors[:2], seed=seed)
        except Exception as error:  # a program that trains but has no log p(x): the other figures remain
            return None, f"log p(x) could not be had: {' '.join(str(error).split())}"
    if len(given) != len(batch.x):
        raise ValueError(f"compare: log_evidence is of {len(given)} data; expected the {len(batch.x)} of the batch")
    exact = given.kind == "exact"
    n = len(given)
    wrong = float(given.error.mean()) if exact else float(given.error.square().sum().sqrt()) / n
    note = None
    if not exact:
        bad = int((~given.error.isfinite()).sum())
        unreliable = f", unreliable for {bad} of {n} data" if bad else ""
        note = f"log p(x) is an estimate by {given.method}, a {given.kind} bound in expectation{unreliable}"
    return KnownEvidence(given.mean, given.method, wrong if not math.isnan(wrong) else math.inf, exact), note
