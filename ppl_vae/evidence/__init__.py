"""The evidence log p(x): quadrature, enumeration, closed form, importance sampling, roulette and annealing.

`log_evidence` chooses the best method that applies. This package does not import `VAE`: it takes any `densities.Model`
(an object with p_z, p_x and q_z), or a ``(model, guide)`` pair.
"""

from ppl_vae.evidence.annealing import annealed, bidirectional
from ppl_vae.evidence.densities import Densities, ProgramDensities, VAEDensities, densities_of
from ppl_vae.evidence.differentiable import dais
from ppl_vae.evidence.enumeration import enumerate_evidence
from ppl_vae.evidence.importance import importance
from ppl_vae.evidence.linear_gaussian import closed_form_evidence, linear_gaussian_evidence
from ppl_vae.evidence.log_evidence import log_evidence
from ppl_vae.evidence.proposals import Defensive
from ppl_vae.evidence.quadrature import quadrature
from ppl_vae.evidence.results import Evidence
from ppl_vae.evidence.sumo import sumo

__all__ = [
    "Defensive",
    "Densities",
    "Evidence",
    "ProgramDensities",
    "VAEDensities",
    "annealed",
    "bidirectional",
    "closed_form_evidence",
    "dais",
    "densities_of",
    "enumerate_evidence",
    "importance",
    "linear_gaussian_evidence",
    "log_evidence",
    "quadrature",
    "sumo",
]
