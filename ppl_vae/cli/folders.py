"""The folder that a command writes several files to."""

from __future__ import annotations

import tempfile
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
    try:
        if not near:
            raise NotADirectoryError(f"{folder.parent} does not exist")
        # access rights do not show it, as in /proc
        tempfile.TemporaryDirectory(dir=above, prefix=".ppl_vae-").cleanup()
    except OSError as error:
        message = f"cannot write to {folder}: its parent is no folder that can be written to; choose an --out"
        raise PermissionError(message) from error
    return folder
