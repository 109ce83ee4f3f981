"""Arrays of an .npz file that a test reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def arrays_of(path: Path | str) -> dict[str, np.ndarray]:
    """Return all arrays of the archive, by name, and close it: an open one warns when its memory is reclaimed."""
    with np.load(path) as archive:
        return dict(archive.items())
