"""``ppl-vae show``: several runs side by side, from the files in their folders, without a model or torch."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ppl_vae._interval import Interval
from ppl_vae._records import FIGURES, ROLES, TOLD, Record, describe
from ppl_vae.cli.errors import bad_input
from ppl_vae.cli.prose import fit
from ppl_vae.cli.telling import note
from ppl_vae.cli.words import find_run, split, wants_help, word_of

HELP = """\
usage: ppl-vae show RUN... [--all] [--json]

Show runs side by side: what they were made of, what they came to, and the figures of their evaluations.

Figures are those of the last epoch (of the chosen one, under early stopping), in nats per datum; elbo has one particle
and KL weight 1, bound is the objective's own value. Reconstruction error: mean L2 norm of x minus its reconstruction,
validation data, in units of x. Of an evaluation (ppl-vae evaluate): value [low, high]. '-' stands for what a run does
not have. Options (--batch_size) are listed at the end where the runs differ in them.

Rows in which all runs are equal are left out, and one line says what they share. The best run has a star where its
evaluation allows to say so: on the same data and of one likelihood, its 95% interval of log p(x), or of the ELBO
where log p(x) is only estimated, lies above those of all others.

options:
  RUN...  Runs' folders, or their names under runs; a column each, in as many blocks as the terminal's width needs.
  --all   Show every row.
  --json  Print a list of objects instead, one a run, all digits.

ppl-vae show runs/*                        every run
ppl-vae show digits digits-2 --json        for a program
"""  # no docstring, which python -OO leaves out: show reads no outlines, and so needs nothing heavy

MISSING = "-"
GAP = "  "
NARROWEST = 26  # characters of a column at least; runs that do not fit go under the others
_ALWAYS = ("prior", "likelihood", "posterior", "objective", "optimizer", "seconds", "compile", "device")  # rows
_MADE = {"dequantize": "dequantized", "conditional": "conditional", "library": "given the library size"}


def run(argv: Sequence[str]) -> int:
    """Run the command, and return the exit code."""
    with bad_input():
        if wants_help(argv):
            print(fit(HELP), end="")
            return 0
        given = split(argv, flags=("all", "json"))
        given.check_options("show", ("all", "json"))
        if not given.runs:
            raise ValueError("show was given no run; expected one or more: ppl-vae show runs/<name> ...")
        records, unread = [], []
        for path in [find_run(word) for word in dict.fromkeys(given.runs)]:
            try:
                records.append(describe(path))
            except (OSError, ValueError) as error:  # one damaged run does not hide the others
                unread.append(error)
        if not records:
            raise unread[0]
    notes = list[str]()
    if "json" in given.options:
        print(json.dumps(records, indent=2, allow_nan=False))
    else:
        print(_text(records, shutil.get_terminal_size().columns, everything="all" in given.options))
        if len({record["fingerprint"] for record in records}) > 1:
            notes.append("these runs had different data (or splits of them): their figures cannot be compared")
    for message in [*notes, *unread, *(record["damage"] for record in records if record["damage"])]:
        note(message)
    return 1 if unread else 0


def _rows(records: Sequence[Record]) -> dict[str, list[str]]:
    """Return the lines of the table: a name, and a cell for each run."""
    columns = [_column(record) for record in records]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = {name: [column.get(name, MISSING) for column in columns] for name in names}
    shown = {name: cells for name, cells in rows.items() if name in _ALWAYS or set(cells) != {MISSING}}
    return shown | _differences(records)


def _column(record: Record) -> dict[str, str]:
    """Return the cells of one run, by the names of their rows."""
    figures, seconds = record["figures"], record["seconds"]
    return {
        "data": _data(record["data"]),
        **{role: record[role] or MISSING for role in ROLES},
        "epochs": _epochs(record),
        **{title: _number(figures.get(name, MISSING), form) for name, (title, form) in FIGURES.items()},
        "seconds": MISSING if seconds is None else f"{seconds:,.0f}",
        "seed": str(record["seed"]),
        **{name: record[name] or MISSING for name in ("compile", "device", "caveat")},
        "evaluated": record["evaluated"]["checkpoint"] or MISSING,
        **{name.replace("_", " "): _interval(figure) for name, figure in record["evaluation"].items()},
    }


def _differences(records: Sequence[Record]) -> dict[str, list[str]]:
    """Return the options that differ between these runs and that no other row shows."""
    flat = [dict(_leaves(record["config"])) for record in records]
    shared = [name for name in flat[0] if all(name in values for values in flat)]
    told = ("class", "hidden", *TOLD, "epochs", "seed", "compile", "device", "name", "binarize")
    names = [n for n in shared if len({str(v[n]) for v in flat}) > 1 and n.rpartition(".")[2] not in told]
    return {f"--{name}": [word_of(values[name]) for values in flat] for name in names}


def _leaves(tree: Record, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(records: Sequence[Record], width: int, *, everything: bool) -> str:
    """Return the table, what the runs share, and which is best."""
    rows, names = _rows(records), [record["run"] for record in records]
    equal = {} if everything or len(names) < 2 else {n: cells[0] for n, cells in rows.items() if len(set(cells)) == 1}
    figure, best, verdict = _best(records)
    shown = {name: cells for name, cells in rows.items() if name not in equal}
    if best is not None and figure in shown:
        shown[figure] = [f"{cell} *" if i == best else cell for i, cell in enumerate(shown[figure])]
    said = [f"the same in all: {'; '.join(f'{n} {v}' for n, v in equal.items() if v != MISSING)}"] if equal else []
    lines = [textwrap.fill(s, width, subsequent_indent="  ", break_on_hyphens=False) for s in [*said, *verdict]]
    return "\n\n".join([_table({"run": names, **shown}, width), *lines])


def _best(records: Sequence[Record]) -> tuple[str | None, int | None, list[str]]:
    """Return the row to judge by, the best run, if its interval lies above all others, and a sentence on it."""
    exact = all(r["exact"] for r in records if "log_evidence" in r["evaluation"])
    name, title = ("log_evidence", "log p(x)") if exact else ("elbo", "the ELBO")
    found = {i: r["evaluation"].get(name, {}) for i, r in enumerate(records)}
    found = {i: f for i, f in found.items() if f and None not in (f["value"], f["low"], f["high"])}
    if len(found) < 2:
        return None, None, []
    row, some = name.replace("_", " "), [records[i] for i in found]
    on = [r["evaluated"] for r in some]
    known = {e["fingerprint"] for e in on} - {None}  # older evaluations have none
    named = {(r["fingerprint"], str(e["data"]), str(e["num_data"])) for r, e in zip(some, on, strict=True)}
    if len(known) > 1 or len(named) > 1:
        return row, None, [f"no best by {title}: the evaluations were made on different data"]
    if any(r["caveat"] for r in some):
        return row, None, [f"no best by {title}: the values are no likelihoods, as the caveat says"]
    if len(kinds := sorted({r["likelihood"].partition("(")[0] for r in some if r["likelihood"]})) > 1:
        why = f"different likelihoods ({', '.join(kinds)}) compare only if all are probabilities or all are densities"
        return row, None, [f"no best by {title}: {why}"]
    first, *rest = sorted(found, key=lambda i: -found[i]["value"])
    near = [records[i]["run"] for i in rest if found[i]["high"] >= found[first]["low"]]
    value = f"{records[first]['run']}, {_interval(found[first])}"
    if near:
        overlap = f"overlaps that of {', '.join(near)}"
        return row, None, [f"no best by {title}: the interval of the highest, {value}, {overlap}"]
    among = "all others" if len(found) == len(records) else "the others that are evaluated"
    return row, first, [f"* best by {title}: {value}; its 95% interval lies above those of {among}"]


def _table(rows: Mapping[str, Sequence[str]], width: int) -> str:
    """Return the runs as wrapped columns, side by side as far as they fit and the rest in further blocks."""
    count = len(rows["run"])
    first = max(map(len, rows))  # characters of the longest name
    room = max(NARROWEST, (width - first) // count - len(GAP))
    wrapped = {
        name: [textwrap.wrap(cell, room, break_on_hyphens=False) or [""] for cell in cells]
        for name, cells in rows.items()
    }
    widths = [max(len(line) for cells in wrapped.values() for line in cells[i]) for i in range(count)]
    blocks: list[list[int]] = []
    for i in range(count):
        if not blocks or first + sum(len(GAP) + widths[j] for j in [*blocks[-1], i]) > width:
            blocks.append([])
        blocks[-1].append(i)
    lines = []
    for block in blocks:
        for name, cells in wrapped.items():
            for parts in zip_longest([name], *(cells[i] for i in block), fillvalue=""):
                padded = map(str.ljust, parts, [first, *(widths[i] for i in block)])
                lines.append(GAP.join(padded).rstrip())
        lines.append("")
    return "\n".join(lines[:-1])


def _data(data: Mapping[str, Any]) -> str:
    shape = "x".join(map(str, data["x_shape"] or []))
    binarize = "" if data["binarize"] in (None, "none") else f", {data['binarize']}"
    made = "".join(f", {word}" for name, word in _MADE.items() if data.get(name))
    made += f", {data['labels']} labels" if data.get("labels") else ""
    return f"{data['name']} {shape}, {data['train']}/{data['validation']}/{data['test']}{binarize}{made}"


def _epochs(record: Record) -> str:
    planned, best = record["epochs_planned"], record["best_epoch"]
    text = f"{record['epochs']}" + ("" if planned in (None, record["epochs"]) else f" of {planned}")
    return f"{text}, {record['state']}" + (f", best {best}" if best else "")


def _interval(figure: Record) -> str:
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    if None in (value, low, high):
        return _number(value, ".6g")
    return str(Interval(value, low, high))


def _number(value: Any, form: str) -> str:
    if isinstance(value, str):
        return value
    return "not finite" if value is None else f"{value:{form}}"  # JSON cannot hold it as a number
