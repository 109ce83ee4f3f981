"""Progress messages of a command: on one line of a terminal, or as lines of a log."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ppl_vae._words import one_line

if TYPE_CHECKING:
    from ppl_vae.vae import VAE


def teller(*, log: bool = False) -> Callable[[str], None]:
    """Return a function that shows a message, or clears the line for an empty one.

    Args:
        log: Whether to write lines where there is no terminal, for long work; if not, the function is silent there.
    """
    if sys.stderr.isatty():
        return _on_terminal
    return _as_line if log else lambda what: None


def _on_terminal(what: str) -> None:
    room = shutil.get_terminal_size().columns - 5
    what = what if len(what) <= room else f"{what[: room - 1]}…"
    text = f"{what} ..." if what else ""
    print(f"\r{text:{room + 4}}\r{text}", end="", file=sys.stderr, flush=True)


def _as_line(what: str) -> None:
    if what:
        print(what, file=sys.stderr, flush=True)


def note(message: object) -> None:
    """Say on stderr, on one line, what a user has to know."""
    print(f"note: {one_line(message)}", file=sys.stderr)


def tell_taken(taken: Mapping[str, str]) -> None:
    """Say on stderr which options were taken for others."""
    for option, meant in taken.items():
        note(f"--{option} is taken for --{meant}")


def not_drawn(names: Collection[str], drawn: Collection[Path], vae: VAE, otherwise: str) -> list[str]:
    """Return a line on the latent pictures that a run does not have, and why; none if it has all.

    Args:
        names: The pictures, by the stems of their files.
        drawn: The files that there are.
        vae: The model.
        otherwise: The reason for a model without conditions whose latent can be drawn.
    """
    lacking = [name for name in names if name not in {path.stem for path in drawn}]
    why = otherwise
    if vae.y_shape is not None:
        why = "each condition of a conditional model would need its own"
    if vae.latent_shape != (2,):
        size = "x".join(map(str, vae.latent_shape))
        why = f"a plane shows a latent of 2 numbers, and this one has {size} (ppl-vae encode writes them to a file)"
    return [f"not drawn: {', '.join(lacking)}: {why}"] if lacking else []
