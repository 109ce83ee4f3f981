"""The results of a comparison at fixed parameters, as a table, as sentences, for JSON and for CSV."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppl_vae._measured import Measured
from ppl_vae.comparison.fixed.results import Block, Results, Row, by_block
from ppl_vae.comparison.fixed.slopes import Slope, slopes_of
from ppl_vae.comparison.fixed.summary import sentences_of, unclear_biases, without_figures
from ppl_vae.comparison.words import WIDTH, aligned, for_json, plain, to_csv

_LEGEND = """\
MB kept: memory that a step keeps for its backward pass; on a GPU, the most that it allocates. of data: what the choice
of data adds to the variance. SNR: signal-to-noise, the median parameter. bias: the norm of the mean gradient's distance
from the reference's; p: of there being none. s to 10%: seconds of steps until their mean gradient has a standard error
of a tenth of its norm."""

_IN_CSV = {"bias": "value_bias"}  # names of a row that a block has for something else


@dataclass(frozen=True, repr=False)
class Comparison(Results):
    """Estimators side by side at fixed parameters; its attributes are those of `Results`."""

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Return lines of at most 120 characters: for each K the values, and the gradient of each block."""
        lines = [_heading(self)]
        for k in dict.fromkeys(row.num_particles for row in self.rows):
            rows = [row for row in self.rows if row.num_particles == k]
            lines += ["", *_values(k, rows)]
            for block, found in by_block(rows).items():
                lines += ["", *_gradients(k, block, found)]
        if any(not row.failed for row in self.rows):
            lines += ["", *textwrap.wrap(_LEGEND, WIDTH)]
        notes = [*unclear_biases(self.rows), *without_figures(self)]
        eager = {row.why_eager: row.name for row in self.rows if row.why_eager}
        notes += [
            f"{name} ran as it is written, since its step cannot be captured: {why}" for why, name in eager.items()
        ]
        wrapped = [line for text in (*notes, *self.notes) for line in textwrap.wrap(f"note: {text}", WIDTH)]
        return "\n".join([*lines, *([""] if wrapped else []), *wrapped])

    def slopes(self) -> list[Slope]:
        """Return the exponents of the signal-to-noise in K, by estimator and block."""
        return slopes_of(self.rows)

    def sentences(self) -> list[str]:
        """Return the statements that the figures support, as sentences."""
        return sentences_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Return all results for JSON; infinite and undefined numbers are None."""
        blocks = [{name: plain(_block(block)) for name, block in row.blocks.items()} for row in self.rows]
        further = {
            "rows": [plain(vars(row)) | {"blocks": own} for row, own in zip(self.rows, blocks, strict=True)],
            "undefined": [u._asdict() for u in self.undefined],
            "evidence": None if self.evidence is None else vars(self.evidence),
            "slopes": [vars(slope) for slope in self.slopes()],
            "sentences": self.sentences(),
        }
        return for_json(vars(self) | further)

    def to_csv(self) -> str:
        """Return one line for each estimator, K and block, with a header; a field without a figure is empty.

        ``bias`` is that of the block's gradient, and ``value_bias`` that of the value.
        """
        lines = []
        for row in self.rows:
            own = _flat({_IN_CSV.get(k, k): v for k, v in vars(row).items() if k != "blocks"})
            for name, block in row.blocks.items() or [("", None)]:
                lines.append({**own, "block": name, **({} if block is None else _flat(_block(block)))})
        return to_csv(lines)


def _block(block: Block) -> dict[str, Any]:
    return {name: value for name, value in vars(block).items() if name != "resampled"}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put each figure under its name, and the ends of its interval under ``_low`` and ``_high``."""
    flat: dict[str, Any] = {}
    for name, v in values.items():
        if isinstance(v, Measured):
            flat |= {name: v.value, f"{name}_low": v.low, f"{name}_high": v.high}
        elif name == "snr_quartiles":
            flat |= {"snr_quartile_low": v[0], "snr_quartile_high": v[1]}
        else:
            flat[name] = v
    return flat


def _heading(comparison: Results) -> str:
    size, *shape = comparison.data_shape
    few = f"first {size:,} of {comparison.split_size:,} data" if comparison.split_size else ""
    data = few or f"{size:,} {'datum' if size == 1 else 'data'}"
    batch = f"{data} of {tuple(shape)}, {comparison.replicates:,} replicates"
    known = comparison.evidence
    if known is None:
        return f"{batch}; log p(x) is not known"
    how = f"exact to {known.error:.1g}" if known.exact else f"an estimate, standard error {known.error:.2g}"
    return f"{batch}; log p(x) = {known.value:.6g} nats per datum ({known.method}, {how})"


def _values(k: int, rows: Sequence[Row]) -> list[str]:
    ess = next((row.ess for row in rows if row.ess is not None), None)
    title = f"K = {k}" + (f", effective sample size {ess:.3g}" if ess is not None and k > 1 else "")
    lines = [["", "bound", "value", "s.e.", "- log p(x)", "ms a step", "MB kept", "reference"]]
    for row in rows:
        cells = [
            row.kind if row.kind != "neither" else "-",
            f"{row.value:.6g}",
            f"{row.value_se:.2g}",
            "-" if row.bias is None else _with_ends(row.bias),
            "-" if row.seconds is None else f"{1e3 * row.seconds.value:.3g}",
            "-" if row.bytes is None else f"{row.bytes / 1e6:.3g}",
            row.reference or "-",
        ]
        lines.append([row.name, *([row.kind, "failed", *[""] * 5] if row.failed else cells)])
    return [title, *aligned(lines)]


def _gradients(k: int, name: str, found: Sequence[tuple[Row, Block]]) -> list[str]:
    dead = min(block.dead for _, block in found)
    title = f"K = {k}, gradient of the {name}, {found[0][1].size:,} parameters"
    title += f", {dead:,} of which have none from these data" if dead else ""
    lines = [["", "norm", "variance", "of data", "SNR [quartiles]", "bias", "p", "cosine", "s to 10%"]]
    for row, b in found:
        cells = [
            row.name,
            f"{b.norm.value:.3g}",
            f"{b.variance.value:.3g}",
            "-" if b.minibatch_variance is None else f"{b.minibatch_variance.value:.3g}",
            "-" if math.isnan(b.snr.value) else "{:.2g} [{:.2g}, {:.2g}]".format(b.snr.value, *b.snr_quartiles),
            "-" if b.bias is None else _with_ends(b.bias),
            "unclear" if b.bias_unclear else "-" if b.bias_p is None else _p_value(b.bias_p),
            "-" if b.cosine is None or math.isnan(b.cosine.value) else f"{b.cosine.value:.3f}",
            "-" if b.seconds_to_tenth is None else f"{b.seconds_to_tenth.value:.2g}",
        ]
        lines.append(cells)
    return [title, *aligned(lines)]


def _with_ends(figure: Measured) -> str:
    surely = figure.high - figure.low <= 1e-4 * abs(figure.value)
    return f"{figure.value:.5g}" if surely else str(figure)


def _p_value(p: float) -> str:
    return "<1e-6" if p < 1e-6 else f"{p:.1g}"
