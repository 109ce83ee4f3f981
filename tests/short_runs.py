"""Short runs on the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def without_pictures() -> Iterator[None]:
    """Train without a run's pictures, which take most of a short run's time."""
    with mock.patch("ppl_vae.runs.folder.draw", return_value=[]) as draw:
        yield
    assert draw.called, "the pictures are drawn by another name: they were drawn"
