r"""Questions about a piece without the other pieces of a VAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae._piece_checks import takes_y
from ppl_vae.checking import places
from ppl_vae.checking.asking import Findings
from ppl_vae.checking.pieces import Batch, Pieces, ask_about_piece
from ppl_vae.networks import Binding

_DATA = 64
_LATENT = 2


def one_hot(y: Tensor) -> Tensor:
    """Return conditions (n, k); labels (n,) become one-hot, with k the largest label plus one."""
    return y if y.dim() > 1 else torch.nn.functional.one_hot(y.long()).to(torch.get_default_dtype())


class _Alone(nn.Module):
    """A single piece, called as in a VAE: with the condition y if the piece takes one."""

    def __init__(self, piece: Any) -> None:
        super().__init__()
        self.piece = piece
        self.takes_y = takes_y(piece)

    def call(self, given: Tensor, y: Tensor | None = None) -> Any:
        """Call a likelihood or posterior."""
        return self.piece(given, y) if self.takes_y and y is not None else self.piece(given)

    def call_prior(self, y: Tensor | None = None) -> Any:
        """Call a prior."""
        return self.piece(y) if self.takes_y and y is not None else self.piece()


def check_alone(
    findings: Findings, pieces: dict[str, Any], x: Tensor | None, y: Tensor | None, z: Tensor | None
) -> None:
    """Ask about pieces one by one, each without the others.

    Args:
        findings: Collects the answers.
        pieces: The pieces, by role.
        x: Data, or None.
        y: The condition, (n, k) or labels (n,), or None.
        z: Latents for a likelihood; by default draws from a standard normal of two dimensions.

    Raises:
        ValueError: If a piece needs data and there are none.
    """
    if "posterior" in pieces and x is None:
        raise ValueError("check was given a posterior and no data; give check(data=x, posterior=...) what it reads")
    latent = z.shape[-1] if z is not None else _LATENT
    y = None if y is None else one_hot(y)
    size = _DATA if x is None else len(x)
    z = torch.randn(size, latent) if z is None else z
    if x is not None and len(x) != len(z):
        size = min(len(x), len(z))
        x, z, y = x[:size], z[:size], None if y is None else y[:size]
    for role, piece in pieces.items():
        alone = _Alone(piece).eval()
        if hasattr(piece, "bind"):
            if x is None and role == "likelihood":
                raise ValueError("check was given a likelihood that is sized from the data, and no data; give data=x")
            shape = (1,) if x is None else tuple(x.shape[1:])
            latent_dim = getattr(piece, "latent_dim", latent)
            piece.bind(Binding(shape, (latent_dim,), None if y is None else tuple(y.shape[1:])))
        call = alone.call_prior if role == "prior" else alone.call
        holder = Pieces({role: call}, {role: piece}, alone)
        shape_of = tuple(x.shape[1:]) if role == "likelihood" and x is not None else None
        before = len(findings.found)
        if role != "likelihood":
            findings.ask(role, "shapes", lambda: _one_dimensional(findings, holder, role, Batch(x, z, y)))  # noqa: B023
        if len(findings.found) == before:
            ask_about_piece(findings, holder, role, Batch(x, z, y), shape_of)


def _one_dimensional(findings: Findings, holder: Pieces, role: str, batch: Batch) -> None:
    """Check that the events of a prior or posterior are vectors."""
    given = holder.distribution(role, batch)
    if len(given.event_shape) != 1:
        findings.wrong(
            role,
            "shapes",
            f"it has batch {tuple(given.batch_shape)}, event {tuple(given.event_shape)}; expected an event (latent,), "
            "a vector",
            "make the latent vector the event: .to_event(1)",
            places.of_call(holder.pieces[role]),
        )
