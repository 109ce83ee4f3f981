"""The result of an evaluation: its figures with their units, as a table and for JSON."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_vae._shown import Shown
from ppl_vae.evaluation.bootstrap import Interval
from ppl_vae.evaluation.diagnostics import LatentUse
from ppl_vae.evaluation.elbo import Bound
from ppl_vae.evaluation.gaps import Gaps
from ppl_vae.evaluation.surgery import AggregatePosterior, Surgery
from ppl_vae.evidence.results import Evidence

Figure = Interval | float

UNITS = {
    "log_evidence": ("log p(x)", "nats"),
    "log_evidence_error": ("its error, largest", "nats"),
    "elbo": ("ELBO", "nats"),
    "gap": ("log p(x) - ELBO", "nats"),
    "identity_residual": ("log p(x) - ELBO - KL(q || p(z|x)), largest", "nats"),
    "approximation_gap": ("of the gap: family of q (approximation)", "nats"),
    "amortisation_gap": ("of the gap: one encoder for all (amortisation)", "nats"),
    "importance_error": ("importance sampling from q is too low by", "nats"),
    "num_unreliable": ("data with an unreliable estimate", ""),
    "distortion": ("distortion, -E[log p(x|z)]", "nats"),
    "rate": ("rate, KL(q(z|x) || p(z))", "nats"),
    "mutual_information": ("of the rate: mutual information", "nats"),
    "marginal_kl": ("of the rate: KL(q(z) || p(z))", "nats"),
    "classification_error": ("classification error of q(y|x)", ""),
    "confidence": ("its confidence, largest q(y|x)", ""),
    "label_log_loss": ("its log loss, -log q(y|x)", "nats"),
    "model_error": ("classification error of p(y|x)", ""),
    "log_marginal": ("without label: log p(x)", "nats"),
    "unlabelled_bound": ("without label: bound U(x)", "nats"),
    "unlabelled_gap": ("without label: log p(x) - U(x)", "nats"),
    "bits_per_dim": ("bits per dimension", "bits"),
    "active_units": ("active units", ""),
    "effective_dim": ("effective dimensions", ""),
    "empty_share": ("share of the prior where no datum is", ""),
    "imputation_error": ("error of imputing half of the values", ""),
    "knn_accuracy": ("5-nearest-neighbour accuracy", ""),
}


@dataclass(frozen=True)
class Evaluation(Shown):
    """The evaluation of a model on some data; nats per datum.

    Attributes:
        figures: By the names of `UNITS`: an interval over data, or a number.
        evidence: log p(x) of each datum.
        bound: ELBO, rate and distortion of each datum.
        gaps: The gap of the first data in two parts; None if q cannot be refined, or if the gaps were not requested.
        use: The use of each latent dimension; None where it cannot be computed (a one-hot latent).
        surgery: The rate in two parts; None where it cannot be computed.
        aggregate: The aggregate posterior beside the prior; None where it cannot be computed.
        sampled: Importance sampling from q(z|x) on the first data, beside an exact answer; else None.
        notes: Sentences that a reader must know: caveats, alarms, unreliable data.
        seconds: The time of each part.
    """

    figures: dict[str, Figure]
    evidence: Evidence
    bound: Bound
    gaps: Gaps | None = None
    use: LatentUse | None = None
    surgery: Surgery | None = None
    aggregate: AggregatePosterior | None = None
    sampled: Evidence | None = None
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = [
            f"{UNITS[name][0]} {self.figures[name]!s}" for name in ("log_evidence", "elbo") if name in self.figures
        ]
        how = f"{self.evidence.method}, {self.evidence.kind}"
        return f"Evaluation({len(self.evidence):,} data; {'; '.join([*shown, how])}; {len(self.notes)} notes)"

    def table(self) -> str:
        """Return the figures as lines of text, with units and 95% intervals over data, and the notes."""
        n, width = len(self.evidence), max(len(UNITS[name][0]) for name in self.figures)
        kind = "exact" if self.evidence.kind == "exact" else f"a stochastic {self.evidence.kind} bound"
        lines = [f"{n:,} data, log p(x) by {self.evidence.method} ({kind}); 95% intervals over data"]
        for name, figure in self.figures.items():
            label, unit = UNITS[name]
            shown = str(figure) if isinstance(figure, Interval) else f"{figure:.4g}"
            lines.append(f"{label:<{width}}  {shown} {unit}".rstrip())
        for number, level in enumerate([] if self.use is None else self.use.levels, 1):
            label = f"level {number}, of {level['dim']} dimensions"
            lines.append(f"{label:<{width}}  KL {level['kl']:.4g} nats, {level['active']} active")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Return everything that is no tensor, for JSON; infinite and undefined numbers become None."""
        figures = {
            name: {"value": f.value, "low": f.low, "high": f.high} if isinstance(f, Interval) else {"value": f}
            for name, f in self.figures.items()
        }
        content = {
            "num_data": len(self.evidence),
            "method": self.evidence.method,
            "kind": self.evidence.kind,
            "figures": figures,
            "kl_per_dimension": None if self.use is None else self.use.kl.tolist(),
            "levels": [] if self.use is None else self.use.levels,
            "notes": list(self.notes),
            "seconds": self.seconds,
            "details": {
                k: float(v) for k, v in self.evidence.details.items() if not isinstance(v, Tensor) or not v.dim()
            },
        }
        return json.loads(json.dumps(content), parse_constant=lambda _: None)

    def per_datum(self) -> dict[str, Tensor]:
        """Return the figures of each datum by name, (n,); NaN where a part covers only the first data."""
        n = len(self.evidence)
        found = {"log_evidence": self.evidence.log_evidence, "log_evidence_error": self.evidence.error}
        found |= {name: v for name, v in self.evidence.details.items() if isinstance(v, Tensor) and v.dim()}
        found |= {"elbo": self.bound.elbo, "rate": self.bound.rate, "distortion": self.bound.distortion}
        if self.gaps is not None:
            for name in ("approximation_gap", "amortisation_gap"):
                found[name] = torch.cat([getattr(self.gaps, name).cpu(), torch.full((n,), math.nan).double()])[:n]
        return {name: value.detach().cpu().double() for name, value in found.items()}

    def report(self, path: str | Path, run: Any = None) -> Path:
        """Write one HTML file on the evaluation, and return its path; `ppl_vae.report` says what it shows.

        Args:
            path: The file, ``"report.html"``; one that is there is replaced.
            run: The run whose program was evaluated, to be shown as well, with a live latent space.

        Raises:
            TypeError: If `run` is no run.
            OSError: If the file cannot be written.
        """
        return importlib.import_module("ppl_vae.report").write_report(path, self, run)  # which stands above
