"""The sections of a report that are words and tables: summary, evaluation, gap, comparisons, configuration, data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppl_vae._interval import Interval
from ppl_vae.evaluation.figures import UNITS
from ppl_vae.report.curves import Chart, finite, histogram, of_race, placed
from ppl_vae.report.markup import Safe, joined, number, picture, table, tag
from ppl_vae.report.subject import Subject

_PARTS = ("train", "validation", "test")
_ROLES = ("prior", "likelihood", "posterior", "classifier", "objective")
_FIGURES = {  # of training
    "validation_elbo": "the ELBO on validation data",
    "elbo": "the ELBO on training data",
    "reconstruction_error": "the reconstruction error (mean L2 norm, validation)",
    "classification_error": "the classification error",
}
_OF_THE_GAP = {
    "gaps": "the gap in its parts",
    "true_posteriors": "true posteriors beside q",
    "evidence": "log p(x) of each datum",
}


def summary(subject: Subject) -> Safe:
    """Return what a run is and came to, in words, with its main figures."""
    about, said, trained = subject.about, list[str](), list[str]()
    if data := about.get("data"):
        shape = " \u00d7 ".join(map(str, data.get("x_shape") or ()))
        made = f", {data['binarize']}" if data.get("binarize") not in (None, "none") else ""
        parts = [f"{data[n]:,} {'training' if n == 'train' else n}" for n in _PARTS if data.get(n)]
        size = f"; {', '.join(parts)} data" if parts else ""
        said.append(f"A model of {data.get('name')} ({shape}{made}{size}).")
        if not data.get("validation"):
            said.append("There are no validation data: figures of training are those of data that it was fitted to.")
    if pieces := ", ".join(f"{role} {about[role]}" for role in _ROLES if about.get(role)):
        said.append(f"{pieces[0].upper()}{pieces[1:]}.")
    if "state" in about:
        trained.append(_training(about))
    known = {n: v for n in _FIGURES if (v := finite((about.get("figures") or {}).get(n))) is not None}
    if known:
        text = "; ".join(f"{_FIGURES[name]} is {number(value, '.5g')}" for name, value in known.items())
        trained.append(f"{text[0].upper()}{text[1:]} (nats per datum where it is a bound).")
    evaluated = [] if subject.evaluation is None else [_evaluated(subject.evaluation)]
    lines = [tag("p", " ".join(part)) for part in (said, trained, evaluated) if part]
    if subject.caveat:
        lines.append(tag("p", tag("strong", "Caveat. "), subject.caveat, class_="caveat"))
    return joined(_main(subject, known), *lines, *(tag("p", text, class_="absent") for text in subject.absent))


def _main(subject: Subject, known: Mapping[str, float]) -> Safe | None:
    """Return the main figures: those of an evaluation, else the last of training."""
    figures = (subject.evaluation or {}).get("figures") or {}
    shown = [(_label(n), *_figure(figures[n]).partition(" [")) for n in ("log_evidence", "elbo", "gap") if n in figures]
    if not shown:
        shown = [(_FIGURES[n].removeprefix("the "), number(v, ".5g"), "", "") for n, v in list(known.items())[:2]]
    parts = [
        tag("div", tag("dt", name), tag("dd", value, tag("small", f"95%: {rest[:-1]}" if rest else "")))
        for name, value, _, rest in shown
    ]
    return tag("dl", *parts, class_="figures") if parts else None


def _label(name: str) -> str:
    return UNITS.get(name, (name.replace("_", " "), ""))[0].replace(" - ", " \u2212 ")


def _training(about: Mapping[str, Any]) -> str:
    epochs, planned = about.get("epochs") or 0, about.get("epochs_planned")
    of = f" of {planned}" if planned not in (None, epochs) else ""
    state = {
        "finished": "finished",
        "early stopping": "stopped early",
        "interrupted": "was interrupted",
        "diverged": "diverged",
    }
    how = state.get(str(about["state"]), f"is not known to have ended ({about['state']})")
    seconds = finite(about.get("seconds"))
    took = "" if seconds is None else f", {seconds:,.0f} seconds"
    best = f"; the parameters are those of epoch {about['best_epoch']}" if about.get("best_epoch") else ""
    return (
        f"Training {how} after {epochs}{of} epochs{took}, on {about.get('device')} with seed {about.get('seed')}{best}."
    )


def _evaluated(evaluation: Mapping[str, Any]) -> str:
    figures = evaluation.get("figures") or {}
    parts = [f"{_label(n)} is {_figure(figures[n])}" for n in ("log_evidence", "elbo", "gap") if n in figures]
    exact = "exact" if evaluation.get("kind") == "exact" else f"a stochastic {evaluation.get('kind')} bound"
    where = f"{evaluation['num_data']:,} data" + (f" ({evaluation['data']})" if evaluation.get("data") else "")
    told = f"{'; '.join(parts)} nats per datum, 95% intervals over data"
    return f"On {where}, by {evaluation.get('method')} ({exact}): {told}."


def _figure(figure: Any) -> str:
    """Return a figure with its interval, as `Evaluation.table` writes it; a dash where it is not finite."""
    if not isinstance(figure, Mapping):
        return number(figure)
    value, *ends = (finite(figure.get(key)) for key in ("value", "low", "high"))
    if value is None or None in ends:
        return number(value)
    return str(Interval(*(float(figure[key]) for key in ("value", "low", "high")))).replace("-", "\u2212")


def evaluation_of(subject: Subject) -> Safe:
    """Return the table of an evaluation with its notes, or how to make one."""
    evaluation = subject.evaluation
    if evaluation is None:
        where = subject.name if subject.about else "RUN"
        return tag("p", f"This run is not evaluated: run ppl-vae evaluate {where} first.", class_="absent")
    rows = [
        [_label(name), _figure(figure), UNITS.get(name, ("", ""))[1]]
        for name, figure in (evaluation.get("figures") or {}).items()
    ]
    kl = [value for v in evaluation.get("kl_per_dimension") or () if (value := finite(v)) is not None]
    rows += [[f"KL of latent {i + 1}", number(v), "nats"] for i, v in enumerate(kl)][:16]
    if len(kl) > 16:
        rows.append([f"KL of the {len(kl) - 16} others, largest", number(max(kl[16:])), "nats"])
    exact = "exact" if evaluation.get("kind") == "exact" else f"a stochastic {evaluation.get('kind')} bound"
    title = (
        f"{evaluation['num_data']:,} data, log p(x) by {evaluation.get('method')} ({exact}); 95% intervals over data"
    )
    notes = [tag("li", note) for note in evaluation.get("notes") or ()]
    return joined(table(["", "value [95% interval]", "unit"], rows, title), tag("ul", *notes) if notes else None)


def gap_of(subject: Subject) -> Safe:
    """Return the gap between log p(x) and the ELBO of the data, and the pictures of it that the run's folder holds."""
    per_datum = subject.per_datum
    if not {"log_evidence", "elbo"} <= set(per_datum):
        return tag("p", "There is no figure of each datum: they come with ppl-vae evaluate.", class_="absent")
    gap = [a - b for a, b in zip(per_datum["log_evidence"], per_datum["elbo"], strict=True)]
    kind = (subject.evaluation or {}).get("kind")
    text = "The gap of a datum is log p(x) \u2212 ELBO = KL(q(z|x) || p(z|x)), what the bound loses by its q."
    text += "" if kind == "exact" else " Here log p(x) is itself estimated from below, and so is the gap."
    found = [
        picture(png, f"{_OF_THE_GAP[n]}, {subject.name}", "plot")
        for n, png in subject.pictures.items()
        if n in _OF_THE_GAP
    ]
    return joined(tag("p", text), histogram(gap, "log p(x) \u2212 ELBO, nats"), *found)


def comparisons_of(subject: Subject, charts: list[Chart]) -> Safe:
    """Return the comparisons and races of a folder: sentences, tables, curves and pictures."""
    if not subject.comparisons:
        hint = f": ppl-vae compare {subject.name} makes one" if subject.about else ""
        return tag("p", f"There is no comparison of estimators{hint}.", class_="absent")
    parts = []
    for found in subject.comparisons:
        content, race = found["content"], found["kind"] == "race"
        about = (
            f"{'A race of estimators while training' if race else 'Estimators at fixed parameters'}: {found['name']}"
        )
        parts.append(tag("h3", about))
        if content.get("caveat"):
            parts.append(tag("p", tag("strong", "Caveat. "), content["caveat"], class_="caveat"))
        parts.append(tag("ul", *(tag("li", text) for text in content.get("sentences") or ())))
        parts += _race(content, charts) if race else [_estimators(content)]
        shown = [
            picture(png, f"{name.replace('_', ' ')}, {found['name']}", "plot")
            for name, png in found["pictures"].items()
        ]
        parts.append(tag("details", tag("summary", f"{len(shown)} pictures"), *shown) if shown else Safe(""))
    return joined(*parts)


def _race(content: Mapping[str, Any], charts: list[Chart]) -> list[Safe]:
    parts = [placed([of_race(content)], charts)]
    for key, unit in (("equal_steps", "steps"), ("equal_time", "seconds")):
        of = content.get(key) or {}
        at = finite(of.get("step", of.get("seconds")))
        if at is None:
            continue
        rows = [
            [
                s["name"],
                str(s["num_particles"]),
                _figure(s["value"]),
                "best" if s["best"] else _figure(s["behind"]),
                str(len(s["seeds"])),
            ]
            for s in of["standings"]
        ]
        head = ["estimator", "K", "log p(x), nats", "behind the best, nats", "seeds"]
        parts.append(table(head, rows, f"After {number(at, ',.4g')} {unit}; 95% intervals over seeds"))
    failed = [
        f"{r['name']} at K = {r['num_particles']}, seed {r['seed']}: {r['reason']}"
        for r in content["runs"]
        if r.get("reason")
    ]
    return [*parts, *(tag("p", f"Failed: {text}.", class_="absent") for text in failed)]


def _estimators(content: Mapping[str, Any]) -> Safe:
    rows = content.get("rows") or ()
    blocks = list(dict.fromkeys(block for row in rows for block in row.get("blocks") or {}))
    of = {"SNR": "snr", "bias": "bias"}
    head = ["estimator", "K", "bound", "value, nats", "\u2212 log p(x), nats", "ms a step"]
    head += [f"{name}, {block}" for block in blocks for name in of]
    lines = []
    for row in rows:
        seconds = row.get("seconds")
        own = [row["name"], str(row["num_particles"]), row.get("kind") or "\u2013"]
        own += [number(row.get("value"), ".5g"), _figure(row.get("bias"))]
        own += [number(1000 * seconds["value"], ".3g") if seconds else "\u2013"]
        own += [_figure((row.get("blocks") or {}).get(block, {}).get(key)) for block in blocks for key in of.values()]
        lines.append(own)
    shape = content.get("data_shape") or [0]
    evidence = content.get("evidence") or {}
    known = finite(evidence.get("value"))
    title = f"{shape[0]} data, {content.get('replicates')} replicates; SNR and bias are those of gradients"
    title += "" if known is None else f"; log p(x) = {number(known, '.5g')}"
    return table(head, lines, title)


def configuration(subject: Subject) -> Safe:
    """Return the configuration as YAML."""
    if subject.config is None:
        return tag("p", "There is no configuration.", class_="absent")
    return tag("details", tag("summary", "the whole configuration, YAML"), tag("pre", subject.config, tabindex=0))


def data_and_versions(subject: Subject) -> Safe:
    """Return the data, the versions and the machine of training."""
    about = subject.about
    data = about.get("data") or {}
    rows = [["data", str(data.get("name"))]] if data else []
    rows += [[name.replace("_", " "), str(data[name])] for name in data if name != "name" and data[name] is not None]
    rows += [["fingerprint of the data", str(about["fingerprint"])]] if about.get("fingerprint") else []
    rows += [[name, str(value)] for name, value in subject.versions.items() if value is not None]
    return table(["", ""], rows, "As it was trained") if rows else tag("p", "The folder does not say.", class_="absent")


def caveats(subjects: Sequence[Subject]) -> Safe:
    """Return what a reader must know of all figures."""
    own = [f"{s.name}: {s.caveat}" for s in subjects if s.caveat]
    fingerprints = {s.about.get("fingerprint") for s in subjects if s.about}
    if len(fingerprints) > 1:
        own.append("These runs had different data, or splits of them: their figures cannot be compared.")
    own += [
        "Figures are in nats per datum. A bound on training data is that of data which the model was fitted to.",
        "Intervals over data cover the choice of test data, and not another training run.",
        "Distances in the plane are those of the latent space, which no likelihood fixes: two runs may turn it.",
    ]
    return tag("ul", *(tag("li", text) for text in own))
