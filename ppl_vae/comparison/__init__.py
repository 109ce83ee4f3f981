"""Estimators side by side: at fixed parameters (`compare`) and while training (`race`).

`contenders` makes the list of estimators: objectives by name, import path, class or instance, each at every K. `fixed`
holds the parts of `compare`, from one batch to its figures. `races` holds the parts of `race`. `statistics` holds the
tests and intervals of both.
"""

from ppl_vae._measured import Measured
from ppl_vae.comparison.contenders import Contender, Contenders, Undefined, contenders
from ppl_vae.comparison.fixed.compare import compare
from ppl_vae.comparison.fixed.comparison import Comparison
from ppl_vae.comparison.fixed.results import Block, KnownEvidence, Row
from ppl_vae.comparison.fixed.slopes import Slope
from ppl_vae.comparison.races.outcome import Race
from ppl_vae.comparison.races.race import Interrupted, race
from ppl_vae.comparison.races.results import Arrival, Band, Standing
from ppl_vae.comparison.races.runs import Point, RaceRun
from ppl_vae.comparison.races.start import Entrant

__all__ = [
    "Arrival",
    "Band",
    "Block",
    "Comparison",
    "Contender",
    "Contenders",
    "Entrant",
    "Interrupted",
    "KnownEvidence",
    "Measured",
    "Point",
    "Race",
    "RaceRun",
    "Row",
    "Slope",
    "Standing",
    "Undefined",
    "compare",
    "contenders",
    "race",
]
