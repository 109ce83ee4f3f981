"""The first capture of a process: what torch imports meanwhile is nothing that a graph depends on."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import torch
import pyro.distributions as dist
import ppl_vae as pv
from ppl_vae import likelihoods, posteriors, priors

likelihood, posterior = likelihoods.Normal(), posteriors.DiagonalNormal()
vae = pv.VAE((6,), prior=priors.StandardNormal(2), likelihood=likelihood, posterior=posterior)
found = pv.compare(vae, torch.randn(4, 6), objectives=["ELBO"], particles=1, replicates=20, minibatch=False)
assert found.rows[0].why_eager is None, found.rows[0].why_eager
svi = pv.SVI(vae.model, vae.guide, torch.optim.Adam, pv.objectives.ELBO(), compile="graph")
for _ in range(4):
    svi.step(torch.randn(4, 6))
assert svi.why_eager is None, svi.why_eager
"""


@pytest.mark.ci
def test_a_fresh_process_captures_its_first_step():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
