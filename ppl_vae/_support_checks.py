"""The check that data lie in the support of a likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor

from ppl_vae._distributions import describe, innermost
from ppl_vae._draws import UnstoppedDraws
from ppl_vae._scopes import evaluation_mode, untouched_random_state
from ppl_vae._tensors import moved
from ppl_vae.data.survey import values_of
from ppl_vae.networks.binding import rows_at_once

if TYPE_CHECKING:
    from ppl_vae.data import Dataset

_GREY = "grey values under a Bernoulli: the value is not a likelihood"


def check_support(vae: Any, data: Dataset) -> str | None:
    """Return the caveat of a VAE on these data; see `VAE.check_support`."""
    like = next(vae.parameters(), torch.empty(0))
    with torch.no_grad(), evaluation_mode(vae), untouched_random_state():
        caveat, values = None, [False, False, False]  # whether the data hold 0, 1, other values
        allows_grey = getattr(vae.likelihood, "allow_grey", False)
        z = torch.zeros(1, *vae.latent_shape, device=like.device, dtype=like.dtype)
        y = None if vae.y_shape is None else torch.zeros(1, *vae.y_shape, device=z.device, dtype=z.dtype)
        p_x = vae.p_x(z, y)
        support = getattr(p_x, "support", None)
        if support is None:
            return None
        for split in (data.train, data.validation):
            if (known := values_of(split, support)) is not None:  # not in memory
                inside = known.surely_in(support, z.new_zeros(1, *split.x.shape[1:]))
                if inside or (allows_grey and known.grey and known.low >= 0 and known.high <= 1):
                    caveat = caveat if inside else _GREY
                    values = [True, True, values[2] or known.grey]
                    continue
            elif innermost(support) is torch.distributions.constraints.real and not isinstance(split.x, Tensor):
                continue  # of a source of the user's own only its batches are read
            for x, *_ in split.batches(rows_at_once(split)) if len(split) else ():
                x = moved(x, like.device, like.dtype)
                zero, one = x == 0, x == 1
                values = [
                    a or bool(b) for a, b in zip(values, (zero.any(), one.any(), (~(zero | one)).any()), strict=True)
                ]
                if support.check(x).all():
                    _check_missing(vae, x, y)
                    continue
                if not (allows_grey and ((x >= 0) & (x <= 1)).all()):
                    raise ValueError(_outside(vae.likelihood, support, x))
                caveat = _GREY
    if values == [True, True, False] and not getattr(support, "is_discrete", False):
        caveat = f"0/1 data under a {describe(p_x)}: the value is a density, which no probability is; use Bernoulli"
    return caveat


def _check_missing(vae: Any, x: Tensor, y: Tensor | None) -> None:
    """Refuse data with missing values (NaN) that the likelihood accepts and the encoder does not."""
    rows = x[x.flatten(1).isnan().any(1)][:1]
    if not len(rows):
        return
    with pyro.validation_enabled(False), UnstoppedDraws():  # validation would blame a NaN parameter, not the data
        try:
            q_z = vae.q_z(rows, y)
            finite = bool(q_z.log_prob(q_z.sample()).isfinite().all())
        except (RuntimeError, ValueError) as error:  # a network or a density that looks for NaN itself
            if "same device" in str(error):
                raise
            finite = False
    if not finite:
        raise ValueError(
            "the data have missing values (NaN), which the posterior's network does not take; put its network into "
            "networks.TableEncoder, which fills them"
        )


def _outside(likelihood: object, support: object, x: Tensor) -> str:
    name = getattr(likelihood, "__name__", type(likelihood).__name__)
    if hasattr(support, "explain"):  # names the column of a table
        return f"the data hold {support.explain(x)}, outside the support of {name}"
    if x.isnan().any():
        return (
            f"the data hold missing values (NaN), outside the support of {name}; likelihoods.Mixed takes them, with a "
            "posterior whose network is a networks.TableEncoder"
        )
    where = f"outside the support of {name} ({innermost(support)})"
    message = f"the data hold values from {x.min():.4g} to {x.max():.4g}, {where}"
    if hasattr(likelihood, "allow_grey"):
        message += (
            "; binarise them (binarize='threshold', 'dynamic' or 'fixed'), or accept grey values in [0, 1], "
            "which are no likelihood, with allow_grey=True"
        )
    if getattr(support, "is_discrete", False) and not hasattr(likelihood, "allow_grey"):
        fix = "give it as many levels as the data have (bins), or whole numbers where it is one of counts"
        return f"{message}; {fix}, or choose a likelihood for such data"
    return message + "; or choose a likelihood for such data, for instance Normal"
