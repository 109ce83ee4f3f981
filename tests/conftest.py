"""Fixtures that every test file may ask for."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pyro
import pytest
import torch

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # a shell's background job ignores Ctrl-C, and so would a run in it
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tensors are small here: a second thread costs more than it brings

HERE = Path(__file__).resolve().parent


@pytest.hookimpl(tryfirst=True)  # before cases are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow all but each n-th case of a test that is ``thinned(n)``."""
    counts: dict[str, count[int]] = defaultdict(count)
    for item in items:
        mark = item.get_closest_marker("thinned")
        if mark and not item.get_closest_marker("slow") and next(counts[item.nodeid.split("[")[0]]) % mark.args[0]:
            item.add_marker("slow")


def real_data_root() -> Path | None:
    """The folder of real data sets: PPL_VAE_TEST_DATA, else ../shared/data beside the checkout."""
    given = os.environ.get("PPL_VAE_TEST_DATA")
    candidates = [Path(given)] if given else [HERE.parent.parent / "shared" / "data"]
    return next((path for path in candidates if (path / "MNIST").is_dir()), None)


@pytest.fixture(autouse=True)
def fresh_state():
    """Every test starts from the same seed, an empty parameter store and float32."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True, scope="session")
def state_home(tmp_path_factory):
    """What this user trusts is remembered in a folder of the tests' own, and not in the user's."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    yield
    os.environ.pop("XDG_STATE_HOME")
    if before is not None:
        os.environ["XDG_STATE_HOME"] = before


@pytest.fixture(scope="session")
def real_data(tmp_path_factory) -> Iterator[Path]:
    """Links to the real data sets; the test is skipped where there are none.

    The folder of MNIST's files is the tests' own and read-only: in one that can be written, loading unpacks them.
    """
    root = real_data_root()
    if root is None:
        pytest.skip("real data not found: set PPL_VAE_TEST_DATA to a folder with MNIST/raw in it")
    links = tmp_path_factory.mktemp("data")
    raw = links / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in root.iterdir():
        if path.name != "MNIST":
            (links / path.name).symlink_to(path.resolve())
    for path in (root / "MNIST" / "raw").iterdir():
        (raw / path.name).symlink_to(path.resolve())
    raw.chmod(0o555)
    yield links
    raw.chmod(0o755)
