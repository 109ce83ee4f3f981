"""Pyro's gallery under Pyro's SVI and under ours: what is captured, whether losses agree, and what a step costs.

    python benchmarks/gallery.py                                # all; the minutes are under the table
    python benchmarks/gallery.py --only vae prodlda --rounds 3  # some; prints the table and writes nothing

The whole run writes benchmarks/results/gallery.json, and the table between the marks in docs/from-pyro.md. Each way of
training has a process of its own (`worker.py`), takes the first 100 steps from one seed, and then rounds in turn with
the others (`race.py`); ratios are those of two ways in the same round.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contenders import GALLERY, GALLERY_FULL, GALLERY_GRAPH, GALLERY_OFF, GALLERY_PYRO, GALLERY_PYRO_QUIET
from contenders.setting import Setting
from race import Options, race, say
from report import machine_line, ratios
from run import machine

HERE = Path(__file__).resolve().parent
RESULT, PAGE = HERE / "results" / "gallery.json", HERE.parent / "docs" / "from-pyro.md"
BEGIN, END = "<!-- gallery: written by benchmarks/gallery.py -->", "<!-- end of gallery -->"
FOLDER = HERE.parent / "examples" / "gallery"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py"))
OURS = {"off": GALLERY_OFF, "graph": GALLERY_GRAPH, "full": GALLERY_FULL}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, metavar="PROGRAM", help=f"of {', '.join(PROGRAMS)}")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a round, about (default: 0.3)")
    parser.add_argument("--cores", type=int, help="pin every process to so many cores (default: all)")
    parser.add_argument("--verbose", action="store_true", help="show what the libraries print")
    given = parser.parse_args(arguments)
    options = Options(given.rounds, given.seconds, given.cores, given.verbose)
    result = measure(given.only or PROGRAMS, options)
    text = "\n".join(report(result))
    print(text)
    if given.only is None:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        PAGE.write_text(inserted(PAGE.read_text(), text))


def measure(programs: Sequence[str], options: Options) -> dict[str, Any]:
    """Race all ways of training on each program."""
    began = time.perf_counter()
    result: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": machine(options), "programs": {}}
    result["load"] = os.getloadavg()[0]  # of the last minute: what else the machine did
    result["command"] = " ".join(["python benchmarks/gallery.py", *sys.argv[1:]])
    versions: dict[str, str] = {}
    for program in programs:
        say(f"{program}:")
        cell = race(Setting(program=program), list(GALLERY), options)
        for found in cell["contenders"].values():
            versions |= found["versions"]
        result["programs"][program] = row(cell["contenders"], cell["left_out"])
    minutes = (time.perf_counter() - began) / 60
    return result | {"options": dataclasses.asdict(options), "versions": versions, "minutes": minutes}


def row(found: dict[str, dict[str, Any]], left_out: dict[str, str]) -> dict[str, Any]:
    """What is kept of one program: rounds, largest relative differences of losses, reasons."""
    pyros = found.get(GALLERY_PYRO, {}).get("losses", ())
    kept: dict[str, Any] = {"ways": {}, "left_out": left_out}
    for name, way in found.items():
        keys = "milliseconds", "steps", "make", "first_steps", "peak_mib", "why_eager", "said"
        kept["ways"][name] = {key: way[key] for key in keys if key in way}
        differences = [abs(a - b) / abs(b) for a, b in zip(way["losses"], pyros, strict=False)]
        kept["ways"][name]["largest_difference"] = max(differences, default=None)
        kept["ways"][name]["compared"] = len(differences)
    return kept


def report(result: dict[str, Any]) -> list[str]:
    """The table, with the machine and the minutes under it."""
    lines = [
        "| program | captured | losses differ by | Pyro's SVI, ms | its validation off | `off` | `graph` | `full` |",
        "|---|---|---|---|---|---|---|---|",
    ]
    captured = 0
    for program, kept in result["programs"].items():
        ways = kept["ways"]
        pyros = ways.get(GALLERY_PYRO)
        levels = {level: ways[name] for level, name in OURS.items() if name in ways and level != "off"}
        reasons = {way["why_eager"] for way in levels.values() if way["why_eager"]}
        reasons |= {why for name, why in kept["left_out"].items() if name in OURS.values()}
        captured += not reasons
        said = "no: " + "; ".join(sorted(reasons)) if reasons else levels["graph"]["said"].split("captured ")[-1][:-1]
        differences = [way["largest_difference"] for way in levels.values() if way["largest_difference"] is not None]
        cells = [f"[{program}](../examples/gallery/{program}.py)", said]
        cells.append(f"{max(differences):.0e}" if differences else "")
        cells.append(f"{statistics.median(pyros['milliseconds']):.2f}" if pyros else "")
        cells += [timed(ways.get(name), pyros) for name in (GALLERY_PYRO_QUIET, *OURS.values())]
        lines.append(f"| {' | '.join(cells)} |")
    options, rounds = result["options"], result["options"]["rounds"]
    compared = max(way["compared"] for kept in result["programs"].values() for way in kept["ways"].values())
    lines += [
        "",
        f"Captured at both levels: {captured} of {len(result['programs'])}. Losses: the largest relative difference "
        f"to Pyro's over the first {compared} steps from the same seed, at either level. In brackets: the ratio to "
        f"Pyro's SVI with validation as it is by default, the median of {rounds} rounds of {options['seconds']} s, in "
        "each of which all five ways take their turn. Optimiser, settings and batches are the same in all five.",
        "",
        f"`{result['command']}`, {result['minutes']:.0f} minutes, load {result['load']:.1f} when it began; "
        f"{machine_line(result)}",
    ]
    return lines


def timed(way: dict[str, Any] | None, pyros: dict[str, Any] | None) -> str:
    """Milliseconds a step, and the ratio to Pyro's."""
    if way is None:
        return ""
    middle = f"{statistics.median(way['milliseconds']):.2f}"
    if pyros is None:
        return middle
    return f"{middle} ({statistics.median(ratios(way['milliseconds'], pyros['milliseconds'])):.2f})"


def inserted(page: str, text: str) -> str:
    """The page with the text between the marks.

    Raises:
        ValueError: If a mark is missing.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{PAGE.name} has not both marks once: {BEGIN} and {END}")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    sys.exit(main())
