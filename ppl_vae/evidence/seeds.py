"""Draws that are the same in every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppl_vae._scopes import untouched_random_state


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from this seed on the way, and leave the global random state alone."""
    with untouched_random_state():
        torch.manual_seed(seed)
        yield
