"""The layout: no ring of imports, and what has moved is still found where it was."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppl_vae

ROOT = Path(ppl_vae.__file__).parent
FILES = {
    ".".join(p.with_suffix("").relative_to(ROOT.parent).parts).removesuffix(".__init__"): p for p in ROOT.rglob("*.py")
}

MOVED = {
    "ppl_vae.training.checkpoints": ("ppl_vae.checkpoints", ["save", "load", "load_module", "FORMAT"]),
    "ppl_vae.training.fitting": ("ppl_vae.training.choosing", ["resolve_compile", "resolve_device"]),
    "ppl_vae.cli.records": ("ppl_vae._records", ["Record", "describe", "history"]),
    "ppl_vae.commands.opening": ("ppl_vae.cli.opening", ["DataOptions", "OpenRun"]),
    "ppl_vae.comparison.race_results": ("ppl_vae.comparison.races.outcome", ["Race"]),
    "ppl_vae.comparison.race_runs": ("ppl_vae.comparison.races.runs", ["Point", "RaceRun"]),
    "ppl_vae.comparison.contenders": ("ppl_vae.comparison.entries", ["FunctionOfLogWeights", "split_at_commas"]),
    "ppl_vae.comparison.slopes": ("ppl_vae.comparison.fixed.slopes", ["Slope", "slopes_of"]),
    "ppl_vae.plots.images": ("ppl_vae.plots.decoded_plane", ["grid_points", "latent_grid"]),
    "ppl_vae.evaluation.densities": ("ppl_vae.evidence.densities", ["VAEDensities", "densities_of"]),
}


def imported(name: str, path: Path) -> Iterator[str]:
    """The package's own modules that one of them imports, late or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import, which no test of the layout sees"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            while target and target not in FILES:
                target = target.rpartition(".")[0]
            if target not in ("", "ppl_vae", name):
                yield target


def rings(arrows: dict[str, set[str]]) -> list[set[str]]:
    """What can be reached from each node, and reaches it."""

    def reached(start: str) -> set[str]:
        found, left = set(), [start]
        while left:
            for target in arrows.get(left.pop(), ()):
                if target not in found:
                    found.add(target)
                    left.append(target)
        return found

    whole = {name: reached(name) for name in arrows}
    return [{n for n in whole if n in whole[name] and name in whole[n]} for name in whole if name in whole[name]]


def test_a_ring_is_seen() -> None:
    assert rings({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}, {"b", "c"}]
    assert rings({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_file_imports_itself_in_a_ring() -> None:
    assert not rings({name: set(imported(name, path)) for name, path in FILES.items()})


def test_no_room_imports_itself_in_a_ring() -> None:
    def room(name: str) -> str:
        return ".".join(name.split(".")[:2])

    arrows: dict[str, set[str]] = {}
    for name, path in FILES.items():
        own = {room(target) for target in imported(name, path)} - {room(name)}
        arrows.setdefault(room(name), set()).update(own)
    assert not rings(arrows)


@pytest.mark.parametrize(
    ("name", "forbidden"),
    [
        ("evidence", ("vae", "evaluation", "comparison", "training", "svi")),
        ("objectives", ("vae", "svi", "training", "capture", "evaluation")),
        ("capture", ("vae", "svi", "training")),
        ("distributions", ("priors", "posteriors", "likelihoods", "networks", "objectives", "vae")),
        ("training", ("runs", "plots", "cli", "evaluation")),
        ("comparison", ("plots", "runs", "cli", "sweeps")),
        ("sweeps", ("plots", "cli")),
        ("evaluation", ("runs", "cli", "training")),
    ],
)
def test_arrows_run_one_way(name: str, forbidden: tuple[str, ...]) -> None:
    own = [(module, path) for module, path in FILES.items() if f"{module}.".startswith(f"ppl_vae.{name}.")]
    assert own
    found = {(module, target) for module, path in own for target in imported(module, path)}
    wrong = {(m, t) for m, t in found for other in forbidden if f"{t}.".startswith(f"ppl_vae.{other}.")}
    assert not wrong


@pytest.mark.parametrize("old", MOVED)
def test_what_has_moved_is_found_where_it_was(old: str) -> None:
    new, names = MOVED[old]
    for name in names:
        assert getattr(importlib.import_module(old), name) is getattr(importlib.import_module(new), name)


@pytest.mark.parametrize("name", ppl_vae.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(ppl_vae, name) is not None
    module = getattr(ppl_vae, name)
    for inner in getattr(module, "__all__", []) if hasattr(module, "__path__") else []:
        assert hasattr(module, inner), f"ppl_vae.{name}.{inner}"
