"""The results of a comparison at fixed parameters, as a table, as sentences, for JSON and for CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ppl_vae.comparison.fixed.results import Block, Results, Row
from ppl_vae.comparison.fixed.slopes import Slope, slopes_of
from ppl_vae.comparison.fixed.summary import sentences_of
from ppl_vae.comparison.fixed.tables import table_of
from ppl_vae.comparison.statistics.measured import Measured


@dataclass(frozen=True)
class Comparison(Results):
    """Estimators side by side at fixed parameters; its attributes are those of `Results`."""

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Return lines of at most 120 characters: for each K the values, and the gradient of each block."""
        return table_of(self)

    def slopes(self) -> list[Slope]:
        """Return the exponents of the signal-to-noise in K, by estimator and block."""
        return slopes_of(self.rows)

    def sentences(self) -> list[str]:
        """Return the statements that the figures support, as sentences."""
        return sentences_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Return all results for JSON; infinite and undefined numbers are None."""
        content = {
            "rows": [_row(row) for row in self.rows],
            "undefined": [u._asdict() for u in self.undefined],
            "evidence": None if self.evidence is None else vars(self.evidence),
            "replicates": self.replicates,
            "seed": self.seed,
            "data_shape": list(self.data_shape),
            "split_size": self.split_size,
            "machine": dict(self.machine),
            "seconds": self.seconds,
            "slopes": [_plain(vars(slope)) for slope in self.slopes()],
            "sentences": self.sentences(),
            "notes": list(self.notes),
        }
        return json.loads(json.dumps(content), parse_constant=lambda _: None)

    def to_csv(self) -> str:
        """Return one line for each estimator, K and block, with a header; a field without a figure is empty."""
        lines = []
        for row in self.rows:
            own = _flat({k: v for k, v in vars(row).items() if k != "blocks"})
            for name, block in row.blocks.items() or [("", None)]:
                of_block = {} if block is None else _flat(_block(block))
                lines.append({**own, "block": name, **of_block})
        columns = list(dict.fromkeys(key for line in lines for key in line))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()


def _row(row: Row) -> dict[str, Any]:
    return _plain(vars(row)) | {"blocks": {name: _plain(_block(block)) for name, block in row.blocks.items()}}


def _block(block: Block) -> dict[str, Any]:
    return {name: value for name, value in vars(block).items() if name != "resampled"}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: v._asdict() if isinstance(v, Measured) else v for name, v in values.items()}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put each figure under its name, and the ends of its interval under ``_low`` and ``_high``."""
    flat: dict[str, Any] = {}
    for name, v in values.items():
        if isinstance(v, Measured):
            flat |= {name: v.value, f"{name}_low": v.low, f"{name}_high": v.high}
        elif name == "snr_quartiles":
            flat |= {"snr_quartile_low": v[0], "snr_quartile_high": v[1]}
        else:
            flat[name] = "" if v is None else v
    return flat
