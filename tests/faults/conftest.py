"""Good files to damage, made once."""

from __future__ import annotations

import places
import processes
import pytest


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with good files: runs, data, images. Not to be written to."""
    folder = tmp_path_factory.mktemp("place") / "good"
    folder.mkdir()
    ended = processes.start(places.make, folder, folder=folder).end()
    assert ended.code == 0, ended.err
    return folder
