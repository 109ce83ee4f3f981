"""The programs of the gallery train under this SVI as under Pyro's, captured."""

from __future__ import annotations

import pyro
import pytest
import torch
from gallery_programs import GALLERY, PROGRAMS, program, small

from ppl_vae import SVI

STEPS = 30
LONG = {"attend_infer_repeat", "deep_markov_model"}  # whose graphs are large


def losses(name: str, kind: type, steps: int = STEPS, **options: str) -> tuple[list[float], object]:
    """The first losses of a program of the gallery, and the SVI."""
    pyro.clear_param_store()
    module = program(name)
    model, guide, loss, batches = module.make(0, "small")
    svi = kind(model, guide, module.optimiser(), loss, **options)
    pyro.set_rng_seed(1)
    return [svi.step(*batches(i)) for i in range(steps)], svi


def test_there_are_ten_programs_of_at_most_120_lines():
    assert len(PROGRAMS) == 10
    for name in PROGRAMS:
        text = (GALLERY / f"{name}.py").read_text()
        assert len(text.splitlines()) <= 120, name
        assert "https://arxiv.org/" in text or "https://papers.nips.cc/" in text
        assert "import ppl_vae" not in text  # plain Pyro: of this package the SVI alone
        assert "from ppl_vae import SVI" in text


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("name", PROGRAMS)
def test_captured_and_pyros_losses(name):
    steps = 12 if name in LONG else STEPS
    expected, _ = losses(name, pyro.infer.SVI, steps)
    found, svi = losses(name, SVI, steps)
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(set(found)) > steps / 2
    assert svi.why_eager is None
    assert repr(svi).startswith("SVI(captured in ")


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.slow
def test_compiled_and_pyros_losses(name):
    expected, _ = losses(name, pyro.infer.SVI)
    found, svi = losses(name, SVI, compile="full")
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-3)  # a loss near 0 has the rounding of its terms
    assert svi.why_eager is None


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("name", PROGRAMS)
def test_seeds_make_programs(name):
    """Two programs of a seed are alike, and those of two seeds are not."""
    first = []
    for seed in (0, 0, 1):
        pyro.clear_param_store()
        model, guide, loss, batches = small(name, seed)
        pyro.set_rng_seed(5)
        first.append(loss.loss(model, guide, *batches(0)))
    assert first[0] == first[1]
    assert first[0] != first[2] or name == "bayesian_regression"  # whose data and start are fixed
    torch.set_default_dtype(torch.float32)


@pytest.mark.ci
@pytest.mark.thinned(4)
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in PROGRAMS])
def test_they_run_alone(name, capsys):
    program(name).main(steps=40)
    assert "SVI(captured in " in capsys.readouterr().out


@pytest.mark.slow
def test_headers_keep_their_promises():
    """Those that train in seconds; seeds are fixed."""
    off = program("bayesian_regression").main()
    assert off.abs().max() < 1  # posterior deviations between the posterior's mean and the ridge regression
    pyro.clear_param_store()
    assert program("gaussian_mixture").main() > 0.9
    pyro.clear_param_store()
    true, found, naive = program("causal_vae").main()
    assert abs(found - true) < 0.3 * abs(naive - true)
