"""Curves for the page's scripts: of training, and of a race."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ppl_vae.report.markup import Safe, joined, number, tag

_CHARTS = {  # title: the figures of a record
    "Bounds, nats per datum": ("elbo", "validation_elbo", "bound", "validation_bound"),
    "KL(q(z|x) || p(z)), nats per datum": ("kl", "validation_kl"),
    "Reconstruction error, mean L2 norm": ("reconstruction_error",),
    "Classification error": ("classification_error", "validation_classification_error"),
}
_CLOSE = 5e-3  # nats: a bound that is the ELBO but for rounding gets no curve of its own

Chart = dict[str, Any]


def of_training(history: Sequence[Mapping[str, Any]], caveat: str | None = None) -> list[Chart]:
    """Return the curves of a history, a chart for each kind of figure."""
    epochs = [finite(record.get("epoch")) for record in history]
    charts = []
    for title, names in _CHARTS.items():
        series: list[Chart] = []
        for name in names:
            values = [finite(record.get(name)) for record in history]
            told = (
                name.replace("validation_", "validation ").replace("_", " ").replace("elbo", "ELBO").replace("kl", "KL")
            )
            if any(v is not None for v in values) and not any(_same(values, s["values"]) for s in series):
                series.append(
                    {"name": told if "validation" in name or "error" in name else f"{told}, training", "values": values}
                )
        if series and len(epochs) > 1:
            charts.append({"title": title, "x": "epoch", "at": epochs, "series": series, "caveat": caveat})
    return charts


def together(named: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> Chart | None:
    """Return the ELBO of several runs in one chart, on validation data where all have it; None without one."""
    name = next((n for n in ("validation_elbo", "elbo") if all(any(n in r for r in h) for _, h in named)), None)
    if name is None or len(named) < 2:
        return None
    epochs = sorted({e for _, history in named for r in history if (e := finite(r.get("epoch"))) is not None})
    series = []
    for run, history in named:
        known = {finite(record.get("epoch")): finite(record.get(name)) for record in history}
        series.append({"name": run, "values": [known.get(epoch) for epoch in epochs]})
    where = "validation" if name == "validation_elbo" else "training"
    return {
        "title": f"ELBO on {where} data, nats per datum",
        "x": "epoch",
        "at": epochs,
        "series": series,
        "caveat": None,
    }


def of_race(content: Mapping[str, Any]) -> Chart | None:
    """Return the mean log p(x) over seeds of each contender of a race, at the steps at which all seeds have one."""
    found: dict[str, dict[float, list[float]]] = {}
    seeds: dict[str, int] = {}
    for run in content.get("runs", ()):
        name = f"{run['name']} at K = {run['num_particles']}"
        seeds[name] = seeds.get(name, 0) + 1
        for point in run["points"]:
            if (value := finite(point.get("log_evidence"))) is not None:
                found.setdefault(name, {}).setdefault(point["step"], []).append(value)
    steps = sorted({step for points in found.values() for step in points})
    if len(steps) < 2:
        return None
    series = []
    for name, points in found.items():
        whole = {step: sum(v) / len(v) for step, v in points.items() if len(v) == seeds[name]}
        series.append({"name": name, "values": [whole.get(step) for step in steps]})
    title = "log p(x), nats per datum, mean over seeds"
    return {"title": title, "x": "step", "at": steps, "series": series, "caveat": content.get("caveat")}


def placed(charts: Sequence[Chart | None], kept: list[Chart]) -> Safe:
    """Return the places of charts, which the scripts draw, with their last values in words; keep what they draw."""
    figures = []
    for chart in charts:
        if chart is None:
            continue
        last = [(s["name"], next((v for v in reversed(s["values"]) if v is not None), None)) for s in chart["series"]]
        ends = f"{chart['x']} {chart['at'][0]:g} to {chart['at'][-1]:g}" if None not in chart["at"] else chart["x"]
        values = "; ".join(f"{name} {number(v, '.5g')}" for name, v in last)
        said = f"{chart['title']}, {ends}. Last: {values}."
        gaps = sum(v is None for s in chart["series"] for v in s["values"])
        more = [f"{gaps} values are missing or not finite: the curve has gaps there."] if gaps else []
        more += [chart["caveat"]] if chart["caveat"] else []
        caption = tag("figcaption", tag("span", said, class_="hidden"), " ".join(more))
        figures.append(tag("figure", tag("div", class_="chart", data_chart=len(kept)), caption))
        kept.append(chart)
    return joined(*figures)


def histogram(values: Sequence[float], label: str, bins: int = 40) -> Safe | None:
    """Return a histogram as a picture of lines; None for fewer than two finite values."""
    known = sorted(v for v in values if finite(v) is not None)
    if len(known) < 2 or known[-1] <= known[0]:
        return None
    low, high = known[0], known[-1]
    counts = [0] * bins
    for v in known:
        counts[min(bins - 1, int((v - low) / (high - low) * bins))] += 1
    top, width, height = max(counts), 640, 160
    bars = [
        tag(
            "rect",
            x=f"{i * width / bins:.2f}",
            y=f"{height - c * height / top:.2f}",
            width=f"{width / bins - 1:.2f}",
            height=f"{c * height / top:.2f}",
            class_="bar",
        )
        for i, c in enumerate(counts)
    ]
    middle = known[len(known) // 2]
    said = f"{label}: {len(known):,} data, from {number(low)} to {number(high)}, median {number(middle)}."
    drawn = tag("svg", *bars, viewBox=f"0 0 {width} {height}", role="img", aria_label=said, class_="histogram")
    ends = tag(
        "div",
        tag("span", number(low)),
        tag("span", label),
        tag("span", number(high)),
        class_="ends",
        aria_hidden="true",
    )
    return tag("figure", drawn, ends, tag("figcaption", said))


def finite(value: object) -> float | None:
    """Return a number to six digits, and None for what is none or is not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(f"{value:.7g}")


def _same(values: Sequence[float | None], others: Sequence[float | None]) -> bool:
    return all(
        (a is None) == (b is None) and (a is None or b is None or abs(a - b) < _CLOSE)
        for a, b in zip(values, others, strict=True)
    )
