"""The folder that a command writes several files to."""

from __future__ import annotations

import os
from pathlib import Path


def folder_for(out: str | None, default: Path) -> Path:
    """Return the folder to write to, after a check that it can be written to.

    Args:
        out: The value of ``--out``.
        default: The folder if ``--out`` is not given.

    Raises:
        OSError: If the folder is a file, or cannot be made or written to.
    """
    folder = default if out is None else Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--out {folder} is a file; expected a folder")
    above = next(path for path in (folder, *folder.parents) if path.exists())
    near = above in (folder, folder.parent) or folder.parent == Path("runs")
    has_room = not hasattr(os, "statvfs") or os.statvfs(above).f_blocks > 0  # access rights do not show it, as in /proc
    if not (near and has_room and above.is_dir() and os.access(above, os.W_OK)):
        raise PermissionError(
            f"cannot write to {folder}: its parent is no folder that can be written to; choose an --out"
        )
    return folder
