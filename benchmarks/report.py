"""The results as tables in Markdown: medians, ratios with their quartiles, and what was aimed at."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from contenders import (
    EXAMPLE,
    FIT,
    FLOOR,
    FULL,
    GRAPH,
    NUMPYRO,
    PYRO,
    REFERENCE,
    WHOLE_STEP,
    WHOLE_STEP_COMPILED,
)

EPOCHS, STEPS_PER_EPOCH = 200, 469  # the article's run: 60,000 rows in batches of 128


@dataclass(frozen=True)
class Target:
    """What a ratio should reach, in the cells of a part that have these values in their setting."""

    part: str
    contender: str
    against: str
    at_most: float
    setting: tuple[tuple[str, Any], ...] = ()


_ARTICLE, _SMALL = ("hidden", (500, 300, 150)), ("hidden", (50,))
TARGETS = (
    Target("step", FULL, REFERENCE, 1.05),
    Target("step", FULL, NUMPYRO, 0.9),
    Target("step", FULL, PYRO, 0.48),
    Target("step", FULL, EXAMPLE, 0.25),
    Target("step", FULL, FLOOR, 1.45),
    Target("step", FIT, NUMPYRO, 0.95),
    Target("small", FIT, REFERENCE, 0.65),
    Target("small", GRAPH, PYRO, 0.38),
    Target("small", FULL, PYRO, 0.28),
    Target("particles", FULL, REFERENCE, 1.1, (("num_particles", 50),)),
    Target("gpu", FIT, WHOLE_STEP_COMPILED, 1.05),
    Target("gpu", FIT, NUMPYRO, 1.0),
    Target("gpu", FIT, PYRO, 1 / 30, (_ARTICLE, ("num_particles", 1))),
    Target("gpu", FULL, WHOLE_STEP, 1.3),
)
TITLES = {
    "step": "One step of the article's networks",
    "small": "One step of a small network, where overhead rules",
    "batch": "Cost against the batch size",
    "particles": "Cost against the number of particles K",
    "depth": "Cost against depth",
    "data": "Cost against the number of data",
    "start": "Start-up, compiling and memory",
    "gpu": "On a GPU",
}


def report(result: dict[str, Any]) -> str:
    """The tables of one part, as `run.py` leaves it."""
    lines = [f"## {TITLES[result['part']]}", "", machine_line(result), ""]
    if result["part"] == "start":
        lines += start_table(result["rounds"])
    for cell in result.get("cells", ()):
        lines += [setting_line(cell["setting"]), "", *cell_table(cell), ""]
        lines += [f"Left out: {name}: {why}" for name, why in cell["left_out"].items()]
        lines += target_table(result["part"], cell)
    lines += [f"Left out: {name}: {why}" for name, why in result.get("left_out", {}).items()]
    return "\n".join(lines).strip() + "\n"


def cell_table(cell: dict[str, Any]) -> list[str]:
    """One line a contender: the median over rounds, and the ratios of each round's pair with their quartiles."""
    rounds = {name: found["milliseconds"] for name, found in cell["contenders"].items()}
    against = [name for name in (REFERENCE, PYRO) if name in rounds]
    lines = ["| contender | ms per step | " + "".join(f"ratio to {name} (quartiles) | " for name in against)]
    lines += ["|---|---|" + "---|" * len(against)]
    for name, times in rounds.items():
        columns = [f"{statistics.median(times):.2f}"]
        for other in against:
            low, middle, high = quartiles(ratios(times, rounds[other]))
            columns.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {name} | {' | '.join(columns)} |")
    return [line.rstrip() for line in lines]


def target_table(part: str, cell: dict[str, Any]) -> list[str]:
    """What was aimed at in this cell, and what was reached."""
    rounds = {name: found["milliseconds"] for name, found in cell["contenders"].items()}
    setting = {**cell["setting"], "hidden": tuple(cell["setting"]["hidden"])}
    lines = []
    for target in TARGETS:
        fits = target.part == part and all(setting[name] == value for name, value in target.setting)
        if not fits or not {target.contender, target.against} <= rounds.keys():
            continue
        found = ratios(rounds[target.contender], rounds[target.against])
        low, high = interval(found)
        middle = statistics.median(found)
        met = "yes" if middle <= target.at_most else "no"
        what = f"{target.contender} / {target.against}"
        lines.append(f"| {what} | {target.at_most:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) | {met} |")
    if part == "gpu" and FIT in rounds and setting["hidden"] == _ARTICLE[1] and setting["num_particles"] == 1:
        seconds = [EPOCHS * STEPS_PER_EPOCH * time / 1e3 for time in rounds[FIT]]
        low, high = interval(seconds)
        middle = statistics.median(seconds)
        most = 20 if setting.get("matmul_precision") == "high" else 35
        met = "yes" if middle <= most else "no"
        lines.append(f"| {FIT}, {EPOCHS} epochs, seconds | {most} | {middle:.1f} ({low:.1f} to {high:.1f}) | {met} |")
    if not lines:
        return []
    spread = "95% interval of the median" if min(map(len, rounds.values())) >= 6 else "range"
    return [f"| target | at most | reached ({spread}) | met |", "|---|---|---|---|", *lines, ""]


def start_table(rounds: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Medians over fresh processes, in seconds, and the peak memory."""
    lines = [
        "Seconds of a fresh process, Inductor's cache empty; in the last column but one filled by the run before.",
        "Beyond steady: what the first three steps take more than three later ones (lazy imports, capture, compiling).",
        "",
        "| contender | import | start to first step | beyond steady | the same, cache filled | peak MiB |",
        "|---|---|---|---|---|---|",
    ]

    def median(figure: Callable[[dict[str, Any]], float], runs: list[dict[str, Any]], state: str = "cold") -> float:
        return statistics.median(figure(run[state]) for run in runs)

    for name, runs in rounds.items():
        filled = f"{median(beyond_steady, runs, 'warm'):.1f}" if "warm" in runs[0] else ""
        lines.append(
            f"| {name} | {median(lambda run: run['import'], runs):.1f} | {median(to_first_step, runs):.1f} "
            f"| {median(beyond_steady, runs):.1f} | {filled} | {median(lambda run: run['peak_mib'], runs):.0f} |"
        )
    return [*lines, ""]


def to_first_step(start: dict[str, Any]) -> float:
    """Seconds from the start of the process to the end of its first step."""
    return start["import"] + start["make"] + start["first_steps"][0]


def beyond_steady(start: dict[str, Any]) -> float:
    """Seconds that the first steps took beyond what they would have at a steady pace."""
    return max(0.0, sum(start["first_steps"]) - len(start["first_steps"]) * start["steady_step"])


def ratios(times: Sequence[float], others: Sequence[float]) -> list[float]:
    """Each round's time over the other's of the same round."""
    return [a / b for a, b in zip(times, others, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile, within the range of the values."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The order statistics that hold the median in at least 95% of cases; the whole range below six values."""
    values, n = sorted(values), len(values)
    outside, rank = 0.0, 0  # the chance that fewer than `rank` of n values lie below the median
    while rank < n / 2 - 1 and outside + math.comb(n, rank) / 2**n <= 0.025:
        outside += math.comb(n, rank) / 2**n
        rank += 1
    rank = max(rank, 1)
    return values[rank - 1], values[n - rank]


def setting_line(setting: dict[str, Any]) -> str:
    """A setting in words."""
    inner = list(setting["hidden"])
    latent, precision = setting.get("latent", 2), setting.get("matmul_precision", "highest")  # older results lack them
    widths = "-".join(str(width) for width in [784, *inner, latent, *inner[::-1], 784])
    if len(set(inner)) == 1 and len(inner) > 2:
        widths = f"784-{latent}-784 with {len(inner)} hidden layers of {inner[0]}"
    what = f"{widths}, batch {setting['batch_size']}, K = {setting['num_particles']}"
    products = "" if precision == "highest" else f", products in {precision} precision"
    return f"{what}, {setting['rows']:,} rows of {setting['data']} data, on the {setting['device']}{products}:"


def machine_line(result: dict[str, Any]) -> str:
    """When, on what machine, and with which versions."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    gpu = f", {result['gpu']}" if result.get("gpu") else ""
    return f"{result['date']}; {machine['cores']} cores of {machine['processor']}{gpu}; {versions}."
