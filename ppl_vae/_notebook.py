"""Results as HTML for notebooks: a line of text, and a picture where there is one."""

from __future__ import annotations

import base64
import functools
import html
import io
from typing import Any

import torch
from matplotlib.figure import Figure

from ppl_vae import plots
from ppl_vae._scopes import untouched_random_state
from ppl_vae.comparison import Comparison, Race
from ppl_vae.evaluation import Evaluation
from ppl_vae.plots.figure import join
from ppl_vae.training import Run
from ppl_vae.vae import VAE

_DPI = 80  # of a picture in a notebook
_DRAWS = 32


def html_of(thing: Any) -> str:
    """Return the `repr` of a result, its words where it has some, and its picture, as HTML."""
    parts = [f"<p><code>{html.escape(repr(thing))}</code></p>"]
    if isinstance(thing, (Comparison, Race)):
        parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in thing.sentences()) + "</ul>")
    try:
        figure = picture_of(thing)
    except (ValueError, RuntimeError, NotImplementedError) as error:  # a cell that shows no picture is no failure
        figure = None
        parts.append(f"<p><small>no picture: {html.escape(str(error))}</small></p>")
    return "".join([*parts, "" if figure is None else _image(figure)])


@functools.singledispatch
def picture_of(thing: Any) -> Figure | None:
    """Return the picture of a result, or None."""
    return None


@picture_of.register
def _(vae: VAE) -> Figure | None:
    if vae.y_shape is not None:
        return None  # a draw needs a condition
    with untouched_random_state():
        torch.manual_seed(0)
        x = vae.sample(_DRAWS).cpu()
    caveat = "the same draws of p(z) in every call"
    if x.dim() == 2:
        span = float(x.min()), float(x.max()) + 1e-9
        return plots.image_grid(x.T[None], title=f"{_DRAWS} means, one a column", caveat=caveat, value_range=span)
    span = min(0.0, float(x.min())), max(1.0, float(x.max()))
    return plots.samples(x, mean=True, caveat=caveat, value_range=span)


@picture_of.register
def _(run: Run) -> Figure | None:
    foot = join(f"Data {run.data.name}", run.caveat)
    return plots.training_curves(run.history, caveat=foot) if run.history else None


@picture_of.register
def _(evaluation: Evaluation) -> Figure | None:
    return plots.evidence_histogram(evaluation.evidence.log_evidence.cpu(), elbo=evaluation.bound.elbo.cpu())


@picture_of.register
def _(comparison: Comparison) -> Figure | None:
    return plots.estimator_values(comparison)


@picture_of.register
def _(race: Race) -> Figure | None:
    return plots.training_race(race)


def _image(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
