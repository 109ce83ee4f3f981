"""The page: sections side by side, styles, scripts and values in one file that asks nothing of a network."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from ppl_vae import __version__, _files
from ppl_vae._validation import check_count, check_positive_int, check_seed
from ppl_vae.evaluation import Evaluation
from ppl_vae.report import sections, shown
from ppl_vae.report.curves import Chart, of_training, placed, together
from ppl_vae.report.latent import latent_space
from ppl_vae.report.markup import Safe, data_block, joined, tag
from ppl_vae.report.subject import Subject, of_run, with_evaluation
from ppl_vae.training import Run

_POLICY = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"  # no request ever leaves
_HINT = "Drag over a curve to zoom, double click for all of it; the pointer or the arrow keys read values."
_SCRIPTS = ("core.js", "decoder.js", "curves.js", "densities.js", "latent.js")


def write(
    path: str | os.PathLike[str],
    subjects: Sequence[Subject],
    *,
    command: str,
    size: int = 2000,
    posteriors: int = 50,
    seed: int = 0,
    to: Callable[[_files.Content], Path] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a report, whole or not at all, and return its path.

    Args:
        path: The file.
        subjects: What it shows, side by side.
        command: What made it, for its head.
        size: How many data are points of the latent space.
        posteriors: How many data get their true posterior, of a latent of one or two numbers.
        seed: The seed of all draws; the global random state is left alone.
        to: A function that writes the content; by default the file is written, and replaced if it is there.
        tell: A function that is called with the name of each part as it begins.

    Raises:
        ValueError: If there is nothing to show, or a number is none.
        OSError: If the file cannot be written.
    """
    check_positive_int(size, "report: size")
    check_count(posteriors, "report: posteriors")
    check_seed(seed, "report: seed")
    if not subjects:
        raise ValueError("report was given nothing to show; expected one run or more")
    text = html(subjects, command, size, posteriors, seed, tell)
    return _files.write(Path(path), text) if to is None else to(text)


def html(
    subjects: Sequence[Subject], command: str, size: int, posteriors: int, seed: int, tell: Callable[[str], None]
) -> Safe:
    """Return the whole page."""
    charts: list[Chart] = []
    spaces: list[dict[str, Any] | None] = []
    cells: dict[str, list[Safe]] = {}
    for subject in subjects:
        for title, content in _of(subject, charts, spaces, size, posteriors, seed, tell):
            cells.setdefault(title, []).append(content)
    trained = [(s.name, s.history) for s in subjects if s.history]
    same = len({str(s.about.get("fingerprint")) for s in subjects if s.history}) == 1
    overlaid = placed([together(trained)], charts) if same else None
    blocks = []
    for title, parts in cells.items():
        names = [s.name if len(subjects) > 1 else None for s in subjects]
        columns = [
            tag("div", None if n is None else tag("h3", n, class_="run"), p, class_="column")
            for n, p in zip(names, parts, strict=True)
        ]
        above = joined(tag("p", _HINT, class_="help live-help"), overlaid) if title == "Curves" else None
        side = tag("div", *columns, class_=f"columns of-{min(3, len(columns))}")
        blocks.append((title, tag("section", tag("h2", title), above, side, id=_anchor(title))))
    blocks.append(("Caveats", tag("section", tag("h2", "Caveats"), sections.caveats(subjects), id="caveats")))
    links = [tag("a", title, href=f"#{_anchor(title)}") for title, _ in blocks]
    about = f"Made {time.strftime('%Y-%m-%d %H:%M %z')} by ppl_vae {__version__} with torch {torch.__version__}."
    name = ", ".join(s.name for s in subjects)
    head = tag(
        "header",
        tag("p", "ppl_vae report", class_="kicker"),
        tag("h1", name),
        tag("p", about, " ", tag("code", command), class_="made"),
        tag("nav", *links, aria_label="sections"),
    )
    style = _read("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(_read(part) for part in _SCRIPTS) + "\n})();"
    policy = f"{_POLICY}; style-src {_hash(style)}; script-src {_hash(script)}"
    scripts = [Safe(f"<script>{script}</script>")]
    noscript = tag(
        "noscript",
        tag("p", "Curves and the live latent space need JavaScript; all other parts do not.", class_="absent"),
    )
    tell("")
    return Safe(
        "<!DOCTYPE html>\n"
        + tag(
            "html",
            tag(
                "head",
                tag("meta", charset="utf-8"),
                tag("meta", http_equiv="Content-Security-Policy", content=policy),
                tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
                tag("meta", name="color-scheme", content="light dark"),
                tag("title", f"{name} \u2013 ppl_vae report"),
                Safe(f"<style>{style}</style>"),
            ),
            tag(
                "body",
                head,
                noscript,
                tag("main", *(block for _, block in blocks)),
                data_block({"charts": charts, "spaces": spaces}, "values"),
                *scripts,
            ),
            lang="en",
        )
        + "\n"
    )


def _of(
    subject: Subject,
    charts: list[Chart],
    spaces: list[Any],
    size: int,
    posteriors: int,
    seed: int,
    tell: Callable[[str], None],
) -> list[tuple[str, Safe]]:
    """Return the sections of one subject, and add what the scripts draw to `charts` and `spaces`."""
    tell(f"{subject.name}: the model's pictures")
    parts = {"Summary": sections.summary(subject)}
    vae, data = subject.vae, subject.data
    alive, made, drawn = (tag("p", "There is no model to show it with.", class_="absent") for _ in range(3))
    if vae is not None and data is not None and len(data):
        form = shown.form_of(subject)
        made, drawn = shown.reconstructions(subject, form), shown.samples(subject, form, seed)
        tell(f"{subject.name}: the latent space")
        try:
            found, notes = latent_space(vae, data, form, size=size, posteriors=posteriors, seed=seed)
            alive = _live(subject, found, notes, len(spaces), len(data))
            alive = joined(alive, shown.printed_grid(vae, form, found))
            spaces.append(found)
        except (ValueError, NotImplementedError) as error:
            alive = tag("p", f"There is no live latent space: {str(error).splitlines()[0]}.", class_="absent")
    history = subject.history
    curves = placed(of_training(history, subject.caveat), charts)
    if not curves:
        curves = tag("p", f"There are no curves: {len(history)} epochs are recorded.", class_="absent")
    parts |= {
        "Latent space": alive,
        "Curves": curves,
        "Reconstructions": made,
        "Samples": drawn,
        "Evaluation": sections.evaluation_of(subject),
        "Gap and true posteriors": sections.gap_of(subject),
        "Comparison and race": sections.comparisons_of(subject, charts),
        "Configuration": sections.configuration(subject),
        "Data and versions": sections.data_and_versions(subject),
    }
    return list(parts.items())


def _live(subject: Subject, found: dict[str, Any], notes: Sequence[str], number: int, whole: int) -> Safe:
    """Return the place of a live latent space, with what it shows and lacks in words."""
    n, decoder = found["points"]["shape"][0], found["decoder"]
    of = f"all {n:,}" if n == whole else f"the first {n:,} of {whole:,}"
    said = [f"Points are the centres of q(z|x) of {of} data ({subject.data_name})."]
    if decoder["kind"] == "perceptron":
        said.append(
            "The picture is the mean of p(x|z), computed as you move by the decoder itself, its "
            f"{decoder['parameters']:,} numbers in float32."
        )
    return joined(
        tag("p", " ".join([*said, *notes])),
        tag("div", class_="latent", data_space=number, data_name=subject.name),
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _read(name: str) -> str:
    return (resources.files("ppl_vae.report") / "web" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def write_report(path: str | os.PathLike[str], thing: Run | Evaluation, other: Run | Evaluation | None = None) -> Path:
    """Write the report of a run, of an evaluation, or of both; `Run.report` and `Evaluation.report` call it.

    Raises:
        TypeError: If the other is not of the other kind.
    """
    run, evaluation = (thing, other) if isinstance(thing, Run) else (other, thing)
    if not isinstance(run, Run | None) or not isinstance(evaluation, Evaluation | None):
        raise TypeError(
            f"report was given {type(other).__name__} beside {type(thing).__name__}; expected the run of an "
            "evaluation, or the evaluation of a run"
        )
    if run is None:
        assert evaluation is not None
        subject = with_evaluation(Subject("evaluation"), evaluation)
        subject.absent.append("An evaluation holds no model: give its run, evaluation.report(path, run), for pictures.")
    else:
        subject = of_run(run, evaluation)
    return write(path, [subject], command=f"{type(thing).__name__}.report, ppl_vae {__version__}")
