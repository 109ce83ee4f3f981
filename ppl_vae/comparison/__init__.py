"""Estimators side by side: at fixed parameters (`compare`) and while training.

`contenders` says what takes part: objectives by name, import path, class or instance, each at every K. The figures of
`compare` are in `results`; how they are made, in `statistics` (what is kept of each gradient), `moments` (norms,
variance, bias, cosine), `signal_to_noise`, `zero_bias` and `minibatch`.
"""

from ppl_vae.comparison.contenders import Contender, Contenders, Undefined, contenders
from ppl_vae.comparison.fixed import compare
from ppl_vae.comparison.race_results import Arrival, Band, Race, Standing
from ppl_vae.comparison.race_runs import Point, RaceRun
from ppl_vae.comparison.race_start import Entrant
from ppl_vae.comparison.racing import race
from ppl_vae.comparison.results import Block, Comparison, KnownEvidence, Measured, Row
from ppl_vae.comparison.slopes import Slope

__all__ = [
    "Arrival",
    "Band",
    "Block",
    "Comparison",
    "Contender",
    "Contenders",
    "Entrant",
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
