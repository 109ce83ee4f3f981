"""A run folder of an earlier commit: it loads, is shown, is used, and goes on, whatever has moved since."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import pytest
import torch
from archives import arrays_of
from short_runs import without_pictures

from ppl_vae import cli, load_run

pytestmark = pytest.mark.skipif(
    "decoupled_weight_decay" not in inspect.signature(torch.optim.Adam).parameters,
    reason="the run keeps an option of Adam that this torch does not have",
)

FOLDER = Path(__file__).parent / "old_run"
X = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8).round()
# what the commit that wrote the run made of them
ENCODED = [[1.1971603631973267, -0.38396209478378296], [1.6086395978927612, 0.6231176257133484]]
MEANS = [0.42587724328041077, 0.4331098198890686]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "old_run"))


def test_it_loads_with_its_weights(run: Path) -> None:
    vae = load_run(run)
    torch.testing.assert_close(vae.encode(X), torch.tensor(ENCODED), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(vae.reconstruct(X).mean((1, 2, 3)), torch.tensor(MEANS), rtol=1e-5, atol=1e-6)


def test_commands_take_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(run)]) == 0
    assert "digits" in capsys.readouterr().out
    assert cli.main(["sample", str(run), "--size", "3", "--out", str(tmp_path / "x.npz")]) == 0
    assert arrays_of(tmp_path / "x.npz")["x"].shape == (3, 1, 8, 8)


def test_it_goes_on(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "next")
    with without_pictures():
        assert cli.main(["train", "--resume", str(run), "--epochs", "3", "--out", out]) == 0
    assert len((tmp_path / "next" / "metrics.jsonl").read_text().splitlines()) == 3
