"""What both comparisons write in the same way: lists of names, aligned columns, plain dictionaries, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ppl_vae._measured import Measured
from ppl_vae._words import one_line

WIDTH = 120

_GAP = 2


def at_k(entry: Any) -> str:
    """Return the name and the K of a contender, a row, a run or a standing: ``"IWAE at K = 8"``."""
    return f"{entry.name} at K = {entry.num_particles}"


def cut(text: str, most: int = WIDTH) -> str:
    """Return a text of at most so many letters; a longer one ends in dots."""
    return text if len(text) <= most else text[: most - 3] + "..."


def reason_of(error: BaseException) -> str:
    """Return an error's message in one line, with the kind of error unless it is a `ValueError` with a message."""
    words = one_line(error)
    return words if isinstance(error, ValueError) and words else f"{type(error).__name__}: {words}".rstrip(": ")


def shown(figure: Measured | None) -> str:
    """Return a figure with its interval; without one if the interval is infinite, as for a single seed."""
    if figure is None:
        return "-"
    return f"{figure.value:.5g}" if math.isinf(figure.low) or math.isinf(figure.high) else str(figure)


def seconds_in_words(seconds: float) -> str:
    """Return a time with three digits: ``"12.3 s"``, ``"1,234 s"``."""
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Align all columns but the first to the right; a name too long for its line gets a line of its own."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = WIDTH - sum(widths[1:]) - _GAP * (len(widths) - 1)
    widths[0] = max((len(line[0]) for line in lines if len(line[0]) <= room), default=0)
    text = []
    for first, *rest in lines:
        figures = "".join(f"{cell:>{width + _GAP}}" for cell, width in zip(rest, widths[1:], strict=True))
        if len(first) > room:
            text.append(first[:WIDTH])
            first = ""
        text.append((f"{first:<{widths[0]}}" + figures).rstrip())
    return text


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with each figure as a dictionary of its number and its interval."""
    return {name: v._asdict() if isinstance(v, Measured) else v for name, v in values.items()}


def for_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return content as JSON holds it; infinite and undefined numbers are None."""
    return json.loads(json.dumps(content, default=dict), parse_constant=lambda _: None)


def to_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return lines with a header of all their names; a field without a figure is empty."""
    text = io.StringIO()
    columns = dict.fromkeys(name for line in lines for name in line)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
