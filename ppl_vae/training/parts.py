"""Whether a program computes on the parts of a batch what it computes on the whole, so that processes can share it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppl_vae._scopes import untouched_random_state
from ppl_vae.capture.reach import buffers_of
from ppl_vae.objectives.losses import BatchLoss
from ppl_vae.svi import SVI

_FEW = (11, 15)  # rows: a coupling of data shows most in the figures of few
_GRADIENT = "the gradient of "
_SUSPECTS = (
    "a regularizer, a likelihood or a loss over the whole batch, a latent outside the plate of the data, or a value in "
    "Python that changes from call to call"
)


class CoupledError(ValueError):
    """A program of which processes cannot share the batches."""


class Parts(NamedTuple):
    """How processes can share the batches of a program.

    Attributes:
        own_noise: Whether each must draw noise of its own, since that of the whole batch cannot be split by rows.
        averaged: The buffers that a step moves towards a mean over the batch.
        terms: The loss of the batch and what is known of its terms, which every process must find.
    """

    own_noise: bool
    averaged: list[Tensor]
    terms: list[float]


def share_out(svi: SVI, modules: Sequence[nn.Module], batch: tuple[Tensor, ...]) -> Parts:
    """Take two steps on a batch, whole and in two parts with the noise of their rows, and compare the figures.

    The loss and its terms must be the sums over the parts; gradients and changed buffers their weighted means. Where
    they are not, noise may be the reason: then every row gets the same noise, and the figures are compared again.
    A few rows come first, since what couples data differs little between the halves of a large batch.

    Args:
        svi: The program, whose loss is a `PartLoss`. Its parameters and the modules' buffers end as they were.
        modules: The modules of the program, in the mode of training.
        batch: A batch of at least two rows.

    Raises:
        CoupledError: If the program couples the data of a batch in its present state. A coupling may show later only.
    """
    for module in modules:
        for part in module.modules():
            if isinstance(part, _BatchNorm):
                raise CoupledError(
                    f"{type(part).__name__} takes its statistics from a batch, of which each process has a part: use "
                    "networks without batch normalisation (nn.LayerNorm, nn.GroupNorm), or train in one process"
                )
    if getattr(svi.loss.objective, "couples_batch", False):  # type: ignore[attr-defined]
        raise CoupledError(
            f"{svi.loss.objective!r} couples the data of a batch, of which each process has a part: "  # type: ignore[attr-defined]
            "train in one process"
        )
    names = {id(buffer): name for module in modules for name, buffer in module.named_buffers()}
    buffers = buffers_of(modules)
    before = [b.clone() for b in buffers]
    gradients = {name: parameter.grad for name, parameter in svi.parameters.items()}
    with untouched_random_state():
        try:
            few = next(n for n in _FEW if tells_rows(n, svi.loss.particles))  # type: ignore[attr-defined]
            sizes = dict.fromkeys((min(few, len(batch[0])), len(batch[0])))
            some = [tuple(column[:size] for column in batch) for size in sizes]
            step = functools.partial(_difference, svi, buffers, [names[id(b)] for b in buffers])
            own_noise = any(step(rows, same=False) is not None for rows in some)
            found = next(filter(None, (step(rows, same=True) for rows in some)), None) if own_noise else None
            moved = [not torch.equal(b, old) for b, old in zip(buffers, before, strict=True)]
            _set(buffers, before)
            with torch.no_grad():
                whole = _terms(svi.loss((svi.model, svi.guide), *batch, rows=range(len(batch[0])), whole=range(0)))
            if found is not None:
                suspects = ", ".join(_owners(modules, [b for b, m in zip(buffers, moved, strict=True) if m]))
                raise CoupledError(
                    f"{found} of a batch does not follow from those of its parts: something couples the data of a "
                    f"batch ({suspects or _SUSPECTS}), of which each process has a part; train in one process"
                )
        finally:
            _set(buffers, before)
            for name, parameter in svi.parameters.items():
                parameter.grad = gradients.get(name)
    averaged = [b for b, m in zip(buffers, moved, strict=True) if m and b.is_floating_point()]
    return Parts(own_noise, averaged, [float(term) for term in whole.values()])


def tells_rows(size: int, particles: int) -> bool:
    """Whether noise for so many rows, and for their halves, shows by its shape which dimension is theirs."""
    half = size // 2 + 1
    return particles not in (half, size - half, size)


def _owners(modules: Sequence[nn.Module], buffers: Sequence[Tensor]) -> list[str]:
    """Return the names of the classes of the modules that hold some buffers."""
    wanted = {id(b) for b in buffers}
    parts = [part for module in modules for part in module.modules()]
    return sorted({type(p).__name__ for p in parts if any(id(b) in wanted for b in p.buffers(recurse=False))})


def _difference(svi: SVI, buffers: list[Tensor], names: list[str], batch: tuple[Tensor, ...], same: bool) -> str | None:
    """Return the first figure that the parts do not give, or None; leave the buffers as after two whole steps."""
    size = len(batch[0])
    cut = size // 2 + 1 if size > 2 else 1  # unequal parts, as those of a last batch
    for _ in range(2):  # a moving average counts from the second step on
        before, state = [b.clone() for b in buffers], torch.get_rng_state()
        devices = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
        whole = range(0) if same else range(size)
        parts = []
        for rows in (range(cut), range(cut, size), range(size)):
            _set(buffers, before)
            torch.set_rng_state(state)
            for device in devices:
                torch.cuda.set_rng_state(device)
            taken = tuple(column[rows.start : rows.stop] for column in batch)
            figures, weight = _figures(svi, taken, rows, whole)
            figures |= {f"the state {name}": b.clone() for name, b in zip(names, buffers, strict=True)}
            parts.append((figures, weight))
        (first, w1), (second, w2), (all_rows, w) = parts
        if abs(w1 + w2 - w) > 1e-5 * abs(w):
            return "the weight"
        gradients = [float(g.double().norm()) for name, g in all_rows.items() if name.startswith(_GRADIENT)]
        eps = max(torch.finfo(v.dtype).eps for v in all_rows.values() if v.is_floating_point())
        for name, value in all_rows.items():
            if not value.is_floating_point():
                if not torch.equal(first[name], value):
                    return name
                continue
            a, b = first[name] * w1 / w, second[name] * w2 / w
            scale = max(float(t.double().norm()) for t in (a, b, value))
            if name.startswith(_GRADIENT):  # one that is zero but for rounding
                scale = max(scale, 1e-3 * max(gradients))
            if not float((a + b - value).double().norm()) <= 2 * eps**0.5 * scale:  # NaN is a difference
                return name
    return None


def _figures(svi: SVI, batch: tuple[Tensor, ...], rows: range, whole: range) -> tuple[dict[str, Tensor], float]:
    """Return means per datum and gradients of a step, by their names in words, and the weight."""
    result = svi.backward(*batch, mean=True, rows=rows, whole=whole)
    weight = float(result.weight)
    figures = {name: term / weight for name, term in _terms(result).items()}
    for name, parameter in svi.parameters.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        figures[f"{_GRADIENT}{name.split('$$$')[-1]}"] = gradient.detach()
    return figures, weight


def _terms(result: BatchLoss) -> dict[str, Tensor]:
    """Return the loss and its terms as far as they are known, by their names in words."""
    terms = {"the loss": result.loss, "log p(x|z)": result.log_likelihood, "the KL": result.kl}
    return {name: term.detach() for name, term in terms.items() if term is not None}


def _set(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)
