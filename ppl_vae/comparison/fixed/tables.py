"""A comparison as lines of text, K by K: values and costs, then the gradient of each block."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from ppl_vae.comparison.fixed.results import Results, Row
from ppl_vae.comparison.fixed.summary import unclear_biases, without_figures
from ppl_vae.comparison.statistics.measured import Measured

WIDTH = 120

_GAP = 2


def table_of(comparison: Results) -> str:
    """Return the table, in lines of at most 120 characters."""
    lines = _heading(comparison)
    for k in dict.fromkeys(row.num_particles for row in comparison.rows):
        rows = [row for row in comparison.rows if row.num_particles == k]
        lines += ["", *_values(k, rows)]
        for block in dict.fromkeys(name for row in rows for name in row.blocks):
            lines += ["", *_gradients(k, block, rows)]
    unsaid = [*unclear_biases(comparison.rows), *without_figures(comparison)]
    eager = {row.why_eager: row.name for row in comparison.rows if row.why_eager}
    unsaid += [f"{name} ran as it is written, since its step cannot be captured: {why}" for why, name in eager.items()]
    notes = [line for text in (*unsaid, *comparison.notes) for line in textwrap.wrap(f"note: {text}", WIDTH)]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _heading(comparison: Results) -> list[str]:
    size, *shape = comparison.data_shape
    few = f"first {size:,} of {comparison.split_size:,} data" if comparison.split_size else ""
    data = few or f"{size:,} {'datum' if size == 1 else 'data'}"
    batch = f"{data} of {tuple(shape)}, {comparison.replicates:,} replicates"
    known = comparison.evidence
    if known is None:
        return [f"{batch}; log p(x) is not known"]
    how = f"exact to {known.error:.1g}" if known.exact else f"an estimate, standard error {known.error:.2g}"
    return [f"{batch}; log p(x) = {known.value:.6g} nats per datum ({known.method}, {how})"]


def _values(k: int, rows: Sequence[Row]) -> list[str]:
    ess = next((row.ess for row in rows if row.ess is not None), None)
    title = f"K = {k}" + (f", effective sample size {ess:.3g}" if ess is not None and k > 1 else "")
    lines = [["", "bound", "value", "s.e.", "- log p(x)", "ms a step", "MB kept", "reference"]]
    for row in rows:
        if row.failed:
            lines.append([row.name, row.kind, "failed", *[""] * 5])
            continue
        lines.append(
            [
                row.name,
                row.kind if row.kind != "neither" else "-",
                f"{row.value:.6g}",
                f"{row.value_se:.2g}",
                "-" if row.bias is None else _with_ends(row.bias),
                "-" if row.seconds is None else f"{1e3 * row.seconds.value:.3g}",
                "-" if row.bytes is None else f"{row.bytes / 1e6:.3g}",
                row.reference or "-",
            ]
        )
    return [title, *_aligned(lines)]


def _gradients(k: int, block: str, rows: Sequence[Row]) -> list[str]:
    found = [(row.name, row.blocks[block]) for row in rows if block in row.blocks]
    size, dead = found[0][1].size, min(b.dead for _, b in found)
    title = f"K = {k}, gradient of the {block}, {size:,} parameters"
    title += f", {dead:,} of which have none from these data" if dead else ""
    head = ["norm", "variance", "of data", "SNR [quartiles]", "bias", "p", "cosine", "s to 10%"]
    lines = [["", *head]]
    for name, b in found:
        quartiles = f" [{b.snr_quartiles[0]:.2g}, {b.snr_quartiles[1]:.2g}]"
        lines.append(
            [
                name,
                f"{b.norm.value:.3g}",
                f"{b.variance.value:.3g}",
                "-" if b.minibatch_variance is None else f"{b.minibatch_variance.value:.3g}",
                "-" if math.isnan(b.snr.value) else f"{b.snr.value:.2g}{quartiles}",
                "-" if b.bias is None else _with_ends(b.bias),
                "unclear" if b.bias_unclear else "-" if b.bias_p is None else _p_value(b.bias_p),
                "-" if b.cosine is None or math.isnan(b.cosine.value) else f"{b.cosine.value:.3f}",
                "-" if b.seconds_to_tenth is None else f"{b.seconds_to_tenth.value:.2g}",
            ]
        )
    return [title, *_aligned(lines)]


def _with_ends(figure: Measured) -> str:
    surely = figure.high - figure.low <= 1e-4 * abs(figure.value)
    return f"{figure.value:.5g}" if surely else str(figure)


def _p_value(p: float) -> str:
    return "<1e-6" if p < 1e-6 else f"{p:.1g}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Align all columns but the first to the right; a name too long for its line gets a line of its own."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    room = WIDTH - sum(widths[1:]) - _GAP * (len(widths) - 1)
    names = [len(line[0]) for line in lines if len(line[0]) <= room]
    widths[0] = max(names)
    text = []
    for first, *rest in lines:
        figures = "".join(f"{cell:>{width + _GAP}}" for cell, width in zip(rest, widths[1:], strict=True))
        if len(first) > room:
            text.append(first[:WIDTH])
            first = ""
        text.append((f"{first:<{widths[0]}}" + figures).rstrip())
    return text
