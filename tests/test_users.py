"""What docs/users.md shows, runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "users.md").read_text()
PARTS = {
    heading: re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    for heading, part in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("heading", [heading for heading, blocks in PARTS.items() if blocks])
def test_each_kind_of_user_can_run_their_lines(heading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = PARTS[heading]
    for name in re.findall(r"^(?:import|from) (lightning|zuko|pandas)", block, re.MULTILINE):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (the extra test has it)")
    if "import zuko" in block:
        import zoo

        zoo.zuko()  # and torch's validation stays on for the tests that follow
    exec(block.replace("[1, 2]", "[1]"), {"__name__": "users"})  # one number of latents, where a search tries two


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_page_on_counts_runs():
    pytest.importorskip("anndata", reason="anndata is not installed (the extra test has it)")
    page = (Path(__file__).resolve().parent.parent / "docs" / "counts.md").read_text()
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), {"__name__": "counts"})
