r"""Questions about a piece without the other pieces of a VAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae._piece_checks import takes_y
from ppl_vae.checking.asking import Findings
from ppl_vae.checking.pieces import Piece, ask_about_piece
from ppl_vae.networks import Binding

_DATA = 64
_LATENT = 2


def one_hot(y: Tensor) -> Tensor:
    """Return conditions (n, k); labels (n,) become one-hot, with k the largest label plus one."""
    return y if y.dim() > 1 else torch.nn.functional.one_hot(y.long()).to(torch.get_default_dtype())


class _Alone(nn.Module):
    """A single piece, called as in a VAE: with the condition y, its last argument, if the piece takes one."""

    def __init__(self, piece: Any) -> None:
        super().__init__()
        self.piece = piece
        self.takes_y = takes_y(piece)

    def forward(self, *given: Tensor | None) -> Any:
        """Return the piece's distribution."""
        return self.piece(*given if self.takes_y and given[-1] is not None else given[:-1])


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
    y = None if y is None else one_hot(y)
    z = torch.randn(_DATA if x is None else len(x), _LATENT) if z is None else z
    if x is not None:
        size = min(len(x), len(z))
        x, z, y = x[:size], z[:size], None if y is None else y[:size]
    x_shape, y_shape = (None if t is None else tuple(t.shape[1:]) for t in (x, y))
    for role, piece in pieces.items():
        if hasattr(piece, "bind"):
            if x_shape is None and role == "likelihood":
                raise ValueError("check was given a likelihood that is sized from the data, and no data; give data=x")
            latent_dim = getattr(piece, "latent_dim", z.shape[-1])
            piece.bind(Binding((1,) if x_shape is None else x_shape, (latent_dim,), y_shape))
        alone = _Alone(piece).eval()
        shape = x_shape if role == "likelihood" else None
        ask_about_piece(findings, Piece(role, piece, alone, alone), x, y, z, shape)
