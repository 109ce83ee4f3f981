"""What results say of themselves: one short line, and HTML with a picture that opens."""

from __future__ import annotations

import base64
import io
import re

import pytest
import torch
from PIL import Image
from short_runs import small_vae

import ppl_vae as pv


@pytest.fixture(scope="module")
def run():
    digits = pv.data.load("digits")
    return pv.fit(small_vae(digits, 16), digits, epochs=2, seed=0, device="cpu")


@pytest.fixture(scope="module")
def results(run):
    few = {"gap_size": 0, "importance_size": 0, "imputation_size": 0}
    evaluation = pv.evaluate(run.program, run.data.test, size=12, **few)
    compared = pv.compare(run.program, run.data.test.x[:8], objectives=["ELBO", "STL"], particles=[2], replicates=40)
    return {"VAE": run.program, "Run": run, "Evaluation": evaluation, "Comparison": compared}


def pictures(text: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


@pytest.mark.ci
@pytest.mark.parametrize("name", ["VAE", "Run", "Evaluation", "Comparison"])
def test_one_line_and_a_picture(results, name):
    shown = repr(results[name])
    assert shown.startswith(f"{name}(")
    assert "\n" not in shown
    assert len(shown) < 300
    state = torch.get_rng_state()
    text = results[name]._repr_html_()
    assert torch.equal(state, torch.get_rng_state())
    (picture,) = pictures(text)
    picture.load()
    assert min(picture.size) > 100
    low, high = picture.convert("L").getextrema()
    assert low < high  # something is drawn
    assert len(text) < 300_000


def test_what_the_lines_say(results, run):
    assert repr(results["VAE"]) == (
        "VAE((1, 8, 8) from (2,): StandardNormal + Bernoulli + DiagonalNormal; 2,244 parameters)"
    )
    assert f"validation ELBO {run.final['validation_elbo']:.2f}" in repr(run)
    assert "2 epochs" in repr(run)
    assert "12 data; log p(x) -" in repr(results["Evaluation"])
    assert repr(results["Comparison"]) == "Comparison(ELBO, STL at K = 2; 40 replicates on 8 data)"


def test_names_are_escaped_and_tables_are_drawn():
    def odd(z):
        return torch.distributions.Independent(torch.distributions.Normal(z.repeat_interleave(2, -1), 1.0), 1)

    odd.__name__ = "<script>"
    vae = pv.VAE((4,), prior=pv.priors.StandardNormal(2), likelihood=odd, posterior=pv.posteriors.DiagonalNormal())
    text = vae._repr_html_()
    assert "<script>" not in text
    assert len(pictures(text)) == 1


def test_no_picture_is_no_failure(run):
    conditional = pv.VAE(
        (4,),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Normal(),
        posterior=pv.posteriors.DiagonalNormal(),
        y_shape=(3,),
    )
    assert "given (3,)" in repr(conditional)
    assert not pictures(conditional._repr_html_())
    early = pv.training.Run(run.program, run.data, 0, "cpu")
    assert "0 epochs" in repr(early)
    assert not pictures(early._repr_html_())


def test_a_picture_shows_itself_without_pyplot():
    figure = pv.plots.image_grid(torch.rand(4, 1, 8, 8))
    assert figure._repr_png_().startswith(b"\x89PNG")
