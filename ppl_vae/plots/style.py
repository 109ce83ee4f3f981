"""The look of all pictures, from ``style.mplstyle`` beside this module."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

from matplotlib import rc_context, rc_params_from_file, rcParams, rcParamsDefault
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

P = ParamSpec("P")

STYLE: Any = rc_params_from_file(Path(__file__).with_name("style.mplstyle"), use_default_template=False)
COLOURS: tuple[str, ...] = tuple(STYLE["axes.prop_cycle"].by_key()["color"])
BLUE, VERMILION, GREEN, ORANGE, PINK, SKY, WINE, BLACK = COLOURS
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = (STYLE[f"{name}size"] for name in ("figure.title", "axes.label", "xtick.label"))
HALO = [withStroke(linewidth=2.2, foreground="#FFFFFF", alpha=0.7)]  # around lines and words that others cross


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let a function draw in this style, but for what the user has changed from matplotlib's defaults."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> Figure:
        now: Any = rcParams
        with rc_context({name: value for name, value in STYLE.items() if now[name] == rcParamsDefault[name]}):
            return draw(*args, **options)

    return drawn
