"""Reports in a headless Chromium: what one sees and does there is what torch computes."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reported import HOSTILE, main

import ppl_vae as pv
from ppl_vae.data import Split
from ppl_vae.networks import MLP, GatedMLP
from ppl_vae.report import Subject, write

pytestmark = pytest.mark.ci

DESKTOP, PHONE = (1280, 900), (390, 844)
PAGES = ("plane", "line", "many", "labels", "convolutional", "table", "race")
STATE = "pplvae.spaces[0].state()"


@pytest.fixture(scope="session")
def pages(runs, browser, tmp_path_factory) -> Path:
    """A folder with the report of each run, and of two side by side."""
    folder = tmp_path_factory.mktemp("pages")
    for name in PAGES:
        main("report", str(runs / name), "--posteriors", "3", "--out", str(folder / f"{name}.html"))
    main("report", str(runs / "plane"), str(runs / "many"), "--posteriors", "2", "--out", str(folder / "two.html"))
    return folder


@pytest.fixture
def opened(browser):
    """Open a page: a function of its path; afterwards it must have had no error and made no request."""
    troubles: list[str] = []
    contexts = []

    def open_(path: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light"):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
        own = path.as_uri()
        page.on("request", lambda r: None if r.url.startswith(("data:", own)) else troubles.append(f"request: {r.url}"))
        page.goto(own)
        until(page, "window.pplvae !== undefined")
        frames(page)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []


def frames(page) -> None:
    """Wait until what was asked for is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def until(page, condition: str) -> None:
    """Wait for a condition; Playwright's own waiting evaluates text in the page, which the page's policy refuses."""
    for _ in range(500):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"ten seconds went by without {condition}")


def decoded(page, z: torch.Tensor, condition: int = 0, space: int = 0) -> torch.Tensor:
    found = page.evaluate("([z, k, n]) => z.map((one) => pplvae.decode(one, k, n))", [z.tolist(), condition, space])
    return torch.tensor(found)


def pixels(page, selector: str) -> np.ndarray:
    """Return the red channel of a canvas."""
    png = base64.b64decode(picture_of(page, selector).partition(",")[2])
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))[..., 0]


def picture_of(page, selector: str) -> str:
    return page.locator(selector).first.evaluate("(c) => c.toDataURL()")


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("name", [*PAGES, "two"])
def test_every_page_opens_without_an_error_and_fits(pages, opened, name, size):
    page = opened(pages / f"{name}.html", size, "dark" if name == "plane" else "light")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    headings = page.locator("main h2").all_inner_texts()
    assert headings[0] == "Summary"
    assert headings[-1] == "Caveats"
    assert len(headings) == (3 if name == "race" else 11)
    assert page.locator("nav a").count() == len(headings)


def test_the_pointer_changes_the_picture_to_what_torch_gives(runs, pages, opened):
    page, vae = opened(pages / "plane.html"), pv.load_run(runs / "plane")
    page.locator(".plane").scroll_into_view_if_needed()
    box = page.locator(".plane canvas").first.bounding_box()
    seen = []
    for across, up in ((0.3, 0.6), (0.8, 0.2)):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + (1 - up) * box["height"])
        frames(page)
        state = page.evaluate(STATE)
        side = state["high"] - state["low"]
        assert state["z"] == pytest.approx([state["low"] + across * side, state["low"] + up * side], abs=0.01 * side)
        mean = vae.decode(torch.tensor([state["z"]]).float()).flatten()
        torch.testing.assert_close(torch.tensor(state["last"]), mean, atol=1e-5, rtol=0)
        canvas = pixels(page, ".decoded canvas").ravel()
        np.testing.assert_allclose(canvas, 255 * mean.numpy(), atol=0.51)
        seen.append(canvas)
        label = page.locator(".decoded canvas").first.get_attribute("aria-label")
        assert label.startswith(f"Mean of p(x|z) at z1 {state['z'][0]:.2f}".replace("-", "−"))
    assert not np.array_equal(*seen)


@pytest.mark.parametrize("name", ["plane", "line", "many", "labels"])
def test_the_decoder_is_torchs(runs, pages, opened, name):
    page, vae = opened(pages / f"{name}.html"), pv.load_run(runs / name)
    z = 2 * torch.randn(20, *vae.latent_shape)
    for condition in (0, 7) if vae.y_shape else (0,):
        y = None if vae.y_shape is None else torch.eye(10)[[condition] * 20]
        mean = vae.decode(z, y).flatten(1)
        torch.testing.assert_close(decoded(page, z, condition), mean, atol=1e-5, rtol=0)
    assert "Held against PyTorch" in page.locator("[data-checked=true]").inner_text()


def subject(name: str, likelihood, x: torch.Tensor, latent_dim: int = 2) -> Subject:
    vae = pv.VAE(
        tuple(x.shape[1:]),
        prior=pv.priors.StandardNormal(latent_dim),
        likelihood=likelihood,
        posterior=pv.posteriors.DiagonalNormal(),
    )
    return Subject(name, vae=vae, data=Split((x,)), data_name="noise")


def test_every_activation_normalisation_and_link(opened, tmp_path):
    activations = ("softplus", "relu", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "tanh", "none")
    x = torch.rand(40, 7)
    made = {a: pv.likelihoods.Bernoulli(MLP([9, 8], activation=a), allow_grey=True) for a in activations}
    made["batch"] = pv.likelihoods.Normal(MLP([9, 8], batch_norm=True))
    made["layer"] = pv.likelihoods.Normal(MLP([9, 8], layer_norm=True), learn="datum")
    made["gated"] = pv.likelihoods.ContinuousBernoulli(GatedMLP([9, 8]))
    made["counts"] = pv.likelihoods.Poisson(MLP([9]))
    subjects = [subject(name, likelihood, x.round() if name == "counts" else x) for name, likelihood in made.items()]
    batch = subjects[activations.__len__()].vae
    batch.train().likelihood(torch.randn(64, 2) + 1)  # its running statistics are no longer 0 and 1
    batch.eval()
    write(tmp_path / "page.html", subjects, command="test", posteriors=0)
    page = opened(tmp_path / "page.html")
    z = 3 * torch.randn(30, 2)
    for i, one in enumerate(subjects):
        mean = one.vae.decode(z)
        found = decoded(page, z, space=i)
        torch.testing.assert_close(found, mean, atol=1e-5, rtol=1e-5, msg=lambda text, n=one.name: f"{n}: {text}")
        assert page.evaluate(f"pplvae.spaces[{i}].state().checked.good")


def test_a_decoder_that_differs_from_torch_says_so(pages, opened, tmp_path):
    text = (pages / "plane.html").read_text()
    (tmp_path / "page.html").write_text(text.replace('"link":"sigmoid"', '"link":"softplus"'))
    page = opened(tmp_path / "page.html")
    assert "do not trust the picture" in page.locator("[data-checked=false]").inner_text()


def test_a_grid_is_interpolated_and_said_to_be(runs, pages, opened):
    page, vae = opened(pages / "convolutional.html"), pv.load_run(runs / "convolutional")
    assert "Decoded means are interpolated" in page.locator("#latent-space").inner_text()
    space = page.evaluate("JSON.parse(document.getElementById('values').textContent).subjects[0].space.decoder")
    line = torch.linspace(space["low"], space["high"], space["size"])
    corners = torch.cartesian_prod(line[3:5], line[6:8])
    levels = (space["range"][1] - space["range"][0]) / 255 if space["range"] else 1e-4
    torch.testing.assert_close(
        decoded(page, corners), vae.decode(corners).flatten(1), atol=0.51 * levels + 1e-5, rtol=0
    )
    middle = decoded(page, corners.mean(0, keepdim=True))[0]
    torch.testing.assert_close(middle, decoded(page, corners).mean(0), atol=1e-4, rtol=0)


def test_categories_take_the_nearest_nodes_word(pages, opened):
    page = opened(pages / "table.html")
    z = torch.cartesian_prod(torch.linspace(-3, 3, 13), torch.linspace(-3, 3, 13))
    assert set(decoded(page, z)[:, 2].tolist()) <= {0.0, 1.0}
    rows = page.locator(".columns-list tbody th").all_inner_texts()
    assert rows == ["width", HOSTILE, "colour"]
    assert page.locator(".columns-list tbody td").all_inner_texts()[4] in ("<i>blue</i>", "red")


def test_keys_move_the_latent(pages, opened):
    page = opened(pages / "plane.html")
    page.locator(".plane").focus()
    page.keyboard.press("Home")
    before = page.evaluate(STATE)
    assert before["z"] == pytest.approx([(before["low"] + before["high"]) / 2] * 2, abs=1e-6)
    for key, axis, sign in (("ArrowRight", 0, 1), ("ArrowUp", 1, 1), ("ArrowLeft", 0, -1), ("ArrowDown", 1, -1)):
        page.keyboard.press(key)
        after = page.evaluate(STATE)
        moves = np.subtract(after["z"], before["z"])
        assert sign * moves[axis] == pytest.approx((before["high"] - before["low"]) / 80, rel=1e-4)
        assert moves[1 - axis] == 0
        before = after
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate(STATE)["z"][0] - before["z"][0] == pytest.approx(
        (before["high"] - before["low"]) / 16, rel=1e-4
    )
    page.keyboard.press("]")
    frames(page)
    assert page.evaluate(STATE)["chosen"] == 0
    until(page, "document.querySelector('.latent [role=status]').textContent.startsWith('Mean of p(x|z)')")


def test_controls_change_the_plane(pages, opened):
    page = opened(pages / "plane.html")
    pictures = {picture_of(page, ".plane canvas")}
    for name in ("data", "prior", "aggregate"):
        page.locator(f"[data-toggle={name}]").click()
        pictures.add(picture_of(page, ".plane canvas"))
    assert len(pictures) == 4


def test_densities_are_those_of_the_model(runs, pages, opened):
    page, vae = opened(pages / "plane.html"), pv.load_run(runs / "plane")
    state, found = page.evaluate(STATE), page.evaluate("pplvae.spaces[0].densities()")
    edges = torch.linspace(state["low"], state["high"], 97).double()
    q = vae.q_z(pv.data.load("digits").test.x)
    cdf = torch.distributions.Normal(q.mean[:, None].double(), q.stddev[:, None].double()).cdf(edges[None, :, None])
    mass = cdf.diff(dim=1)  # (n, cells, 2)
    whole = torch.einsum("ni,nj->ij", mass[..., 0], mass[..., 1]).detach()
    torch.testing.assert_close(
        torch.tensor(found["aggregate"]).double().view(96, 96), whole / whole.max(), atol=1e-4, rtol=0
    )
    middles = (edges[1:] + edges[:-1]) / 2
    normal = (-0.5 * (middles[:, None] ** 2 + middles**2)).exp()
    torch.testing.assert_close(
        torch.tensor(found["prior"]).double().view(96, 96), normal / normal.max(), atol=1e-2, rtol=0
    )


def test_a_datum_shows_its_posterior(runs, pages, opened):
    page, vae = opened(pages / "plane.html"), pv.load_run(runs / "plane")
    x = pv.data.load("digits").test.x
    page.locator("[data-act=datum]").select_option("2")
    frames(page)
    assert page.evaluate(STATE)["z"] == pytest.approx(vae.encode(x[2:3])[0].tolist(), abs=1e-5)
    np.testing.assert_array_equal(pixels(page, ".decoded .small canvas"), 255 * x[2, 0].numpy())
    said = page.locator(".told").inner_text()
    log_p = float(vae.score(x[2:3])[0])
    shown = float(re.search(r"log p\(x\) (\S+),", said)[1].replace("−", "-"))
    assert shown == pytest.approx(log_p, abs=5e-3)
    assert len(set(pixels(page, ".decoded .smooth").ravel())) > 20
    before = picture_of(page, ".plane canvas:nth-child(2)")
    page.locator("[data-toggle=posterior]").click()
    frames(page)
    assert picture_of(page, ".plane canvas:nth-child(2)") != before
    box = page.locator(".plane canvas").first.bounding_box()
    state = page.evaluate(STATE)
    z = vae.encode(x[1:2])[0].tolist()
    at = [(v - state["low"]) / (state["high"] - state["low"]) for v in z]
    page.locator(".plane").scroll_into_view_if_needed()
    box = page.locator(".plane canvas").first.bounding_box()
    page.mouse.click(box["x"] + at[0] * box["width"], box["y"] + (1 - at[1]) * box["height"])
    assert page.evaluate(STATE)["chosen"] == 1


def test_a_path_is_drawn_and_played(pages, opened):
    page = opened(pages / "plane.html")
    play = page.locator("[data-act=play]")
    assert play.is_disabled()
    page.locator("[data-act=draw]").click()
    page.locator(".plane").scroll_into_view_if_needed()
    box = page.locator(".plane canvas").first.bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"], steps=8)
    page.mouse.up()
    end = page.evaluate(STATE)
    assert end["path"] >= 8
    play.click()
    until(page, f"{STATE}.playing")
    frames(page)
    during = page.evaluate(STATE)
    until(page, f"!{STATE}.playing")
    after = page.evaluate(STATE)
    assert during["z"][0] < after["z"][0]
    assert after["z"] == pytest.approx(end["z"], abs=1e-5)
    page.locator("[data-act=clear]").click()
    page.locator(".plane").focus()
    for key in ("Home", "Enter", "Shift+ArrowUp", "Enter", "p"):
        page.keyboard.press(key)
    until(page, f"{STATE}.playing")


def test_sliders_and_axes_of_many_latents(pages, opened):
    page = opened(pages / "many.html")
    assert page.locator(".sliders input").count() == 20
    assert page.locator("details .sliders input").count() == 4
    before = page.evaluate(STATE)
    page.locator(".sliders input").nth(5).focus()
    page.keyboard.press("ArrowRight")
    after = page.evaluate(STATE)
    assert sum(a != b for a, b in zip(before["z"], after["z"], strict=True)) == 1
    other = next(u for u in range(20) if u not in before["pair"])
    page.locator("[data-act=up]").select_option(str(other))
    assert page.evaluate(STATE)["pair"] == [before["pair"][0], other]


def test_a_label_enters_the_decoder(runs, pages, opened):
    page, vae = opened(pages / "labels.html"), pv.load_run(runs / "labels")
    page.locator("[data-act=condition]").select_option("3")
    frames(page)
    state = page.evaluate(STATE)
    mean = vae.decode(torch.tensor([state["z"]]).float(), torch.eye(10)[[3]]).flatten()
    torch.testing.assert_close(torch.tensor(state["last"]), mean, atol=1e-5, rtol=0)


def test_curves_that_are_close_are_two_and_a_bound_that_is_the_elbo_is_one(opened, tmp_path):
    values = {"elbo": -0.02, "bound": -0.02, "kl": 0.001, "validation_kl": 0.003}
    history = [{"epoch": n, **{name: n * value for name, value in values.items()}} for n in (1, 2, 3)]
    write(tmp_path / "page.html", [Subject("small", history=history)], command="test")
    page = opened(tmp_path / "page.html")
    keys = page.locator(".chart .key").all_inner_texts()
    text = " ".join(keys)
    assert len(keys) == 2
    assert "validation KL" in text
    assert "KL, training" in text
    assert "bound" not in text


def test_a_mean_over_seeds_is_of_those_that_did_not_fail(opened, tmp_path):
    one = Subject("race")
    values = {"finished": [-150.0, -140.0, -130.0], "failed": [-1500.0, -1500.0]}
    runs = [
        {"name": "IWAE", "num_particles": 8, "seed": seed, "stopped": stopped, "reason": "diverged" * (seed == 2)}
        | {"points": [{"step": 100 * i, "log_evidence": value} for i, value in enumerate(values[stopped])]}
        for seed, stopped in enumerate(["finished", "finished", "failed"])
    ]
    one.comparisons = [{"kind": "race", "name": "race", "content": {"runs": runs}, "pictures": {}}]
    write(tmp_path / "page.html", [one], command="test")
    page = opened(tmp_path / "page.html")
    low, high = page.evaluate("pplvae.charts[0].frame()")["y"]
    assert -153 < low < -150 < -130 < high < -127
    assert "Failed: IWAE at K = 8, seed 2: diverged." in page.locator("main").inner_text()


def test_many_labels_keep_their_names(opened, tmp_path):
    one = subject("many", pv.likelihoods.Normal(), torch.rand(12, 7))
    one.data = Split(one.data.columns, torch.arange(12), label_names=tuple("abcdefghijkl"))
    write(tmp_path / "page.html", [one], command="test", posteriors=12)
    page = opened(tmp_path / "page.html")
    assert page.locator("[data-act=datum] option").all_inner_texts()[12] == "datum 12 (label l)"
    text = page.locator(".legend").inner_text()
    assert (text.split()[-1], text.count("a"), "11" in text) == ("l", 4, False)


@pytest.mark.parametrize(
    ("given", "said"), [("log p(x|y)", "log p(x|y)"), ("log p(x, y)", "log p(x, y)"), (None, "log p(x)")]
)
def test_the_evidence_of_a_conditional_model_has_its_name(opened, tmp_path, given, said):
    notes = ["no more"] if given is None else [f"a conditional model: log p(x) is {given}; the gap's parts, the latent"]
    figures = {name: {"value": -3.0, "low": -4.0, "high": -2.0} for name in ("log_evidence", "gap")}
    content = {"num_data": 2, "method": "quadrature", "kind": "exact", "figures": figures, "notes": notes}
    write(tmp_path / "page.html", [Subject("one", evaluation=content)], command="test")
    page = opened(tmp_path / "page.html")
    assert page.locator("#summary dt").all_inner_texts() == [said, f"{said} − ELBO"]
    assert page.locator("#summary p").first.inner_text().count(f"{said} ") == 3


def test_values_that_are_cut_are_told(opened, tmp_path):
    one = subject("wide", pv.likelihoods.Normal(scale=10.0), torch.rand(10, 1, 6, 5))
    write(tmp_path / "page.html", [one], command="test", posteriors=0)
    page = opened(tmp_path / "page.html")
    means, draws = page.locator("#samples figcaption").all_inner_texts()
    share = float(re.search(r"(\d+)% of the values lie outside 0 to 1, and are cut", draws)[1])
    assert share > 90
    assert means != draws
    one = subject("bits", pv.likelihoods.Bernoulli(), torch.rand(10, 1, 6, 5).round())
    write(tmp_path / "page.html", [one], command="test", posteriors=0)
    assert "cut" not in " ".join(opened(tmp_path / "page.html").locator("figcaption").all_inner_texts())


def test_a_close_up_holds_both_densities(opened, tmp_path):
    one = subject(
        "line", pv.likelihoods.Normal(scale=30.0), torch.rand(10, 7), latent_dim=1
    )  # a posterior that is wide
    write(tmp_path / "page.html", [one], command="test", posteriors=1)
    page = opened(tmp_path / "page.html")
    assert one.vae.q_z(one.data.x).stddev[0] < 0.9
    page.locator("[data-act=datum]").select_option("0")
    frames(page)
    drawn = pixels(page, ".decoded .smooth")
    assert len(np.unique(drawn[:8])) == 1  # no line leaves at the top
    assert len(np.unique(drawn)) > 2


def test_the_nearest_datum_is_so_in_all_latents(opened, tmp_path):
    one = subject("three", pv.likelihoods.Normal(), torch.rand(10, 7), latent_dim=3)
    one.data = Split(one.data.columns, torch.arange(10))
    write(tmp_path / "page.html", [one], command="test")
    page = opened(tmp_path / "page.html")
    points = one.vae.encode(one.data.x)
    seen = set()
    for number in range(3):
        slider = page.locator(".sliders input").nth(number)
        slider.focus()
        for key in ("Home", "End"):
            page.keyboard.press(key)
            frames(page)
            z = torch.tensor(page.evaluate(STATE)["z"])
            said = page.locator(".decoded figcaption").first.inner_text()
            seen.add(said[-4:])
            assert said.endswith(f"label {int((points - z).norm(dim=1).argmin())}.")
    assert len(seen) > 1


def test_curves_are_zoomed_and_read(runs, pages, opened):
    page = opened(pages / "plane.html")
    history = [json.loads(line) for line in (runs / "plane" / "metrics.jsonl").read_text().splitlines()]
    svg = page.locator(".chart > svg").first
    svg.scroll_into_view_if_needed()
    whole = page.evaluate("pplvae.charts[0].frame()")
    assert whole["x"] == [1, 3]
    svg.focus()
    page.keyboard.press("Home")
    key = page.locator(".key").first.inner_text()
    assert f"{history[0]['elbo']:.5g}".replace("-", "−") in key
    box = svg.bounding_box()
    page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 50)
    assert page.evaluate("pplvae.charts[0].reading()") == 1
    assert f"{history[1]['elbo']:.5g}".replace("-", "−") in page.locator(".key").first.inner_text()
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 60, steps=4)
    page.mouse.up()
    zoomed = page.evaluate("pplvae.charts[0].frame()")
    assert 1.5 < zoomed["x"][0] < 2 < zoomed["x"][1] < 3
    page.mouse.dblclick(box["x"] + 0.5 * box["width"], box["y"] + 50)
    assert page.evaluate("pplvae.charts[0].frame()") == whole
    page.keyboard.press("+")
    assert page.evaluate("pplvae.charts[0].frame()")["x"] != whole["x"]
    page.keyboard.press("Escape")
    assert page.evaluate("pplvae.charts[0].frame()") == whole


def test_two_runs_stand_side_by_side_and_on_a_phone_below_each_other(pages, opened):
    for size, beside in ((DESKTOP, True), (PHONE, False)):
        page = opened(pages / "two.html", size)
        first, second = (page.locator("#summary .column").nth(i).bounding_box() for i in (0, 1))
        assert (first["y"] == second["y"]) is beside
        assert page.evaluate("pplvae.spaces.length") == 2
        names = page.locator("#curves .key").first.locator("span").all_inner_texts()
        assert len(names) == 3  # the epoch, and a curve for each run


def test_dark_light_and_paper(pages, opened):
    grounds = {}
    for scheme in ("light", "dark"):
        page = opened(pages / "plane.html", DESKTOP, scheme)
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        before = picture_of(page, ".plane canvas")
        other = "light" if scheme == "dark" else "dark"
        page.emulate_media(color_scheme=other)
        frames(page)
        assert picture_of(page, ".plane canvas") != before
        assert not page.locator(".still").is_visible()
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator(".plane").is_visible()
        assert page.locator(".still canvas").is_visible()
        assert not page.locator("button").first.is_visible()
    assert grounds["light"] == "rgb(255, 255, 255)" != grounds["dark"]


def test_names_are_texts(opened, tmp_path):
    subjects = [
        Subject(
            HOSTILE,
            {"data": {"name": HOSTILE, "x_shape": [1]}, "state": "finished", "prior": HOSTILE},
            {HOSTILE: HOSTILE},
            config=HOSTILE,
            caveat=HOSTILE,
            absent=[HOSTILE],
        ),
        Subject("other", history=[{"epoch": i, "elbo": None if i == 2 else -1.0 * i} for i in (1, 2, 3)]),
    ]
    subjects[1].history[2]["kl"] = math.nan
    write(tmp_path / "page.html", subjects, command=HOSTILE)
    page = opened(tmp_path / "page.html")
    assert page.locator("h1").inner_text() == f"{HOSTILE}, other"
    assert page.locator("pre").first.text_content() == HOSTILE
    assert page.locator("script").count() == 2
    assert "1 values are missing or not finite" in page.locator("#curves").inner_text()


def test_the_page_cannot_ask_for_anything(browser, pages):
    page = browser.new_page()
    page.goto((pages / "plane.html").as_uri())
    refused = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.message)")
    assert refused != "sent"
    blocked = page.evaluate(
        """() => new Promise((done) => {
            document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));
            const script = document.createElement('script');
            script.textContent = 'window.entered = true';
            document.body.append(script);
            setTimeout(() => done('nothing'), 2000);
        })"""
    )
    assert blocked.startswith("script-src")
    assert page.evaluate("window.entered") is None
    page.close()


def test_the_articles_decoder_keeps_sixty_frames(opened, tmp_path):
    likelihood = pv.likelihoods.Bernoulli(MLP([150, 300, 500]), allow_grey=True)
    one = subject("article", likelihood, torch.rand(2000, 1, 28, 28))
    path = write(tmp_path / "page.html", [one], command="test", posteriors=0)
    assert path.stat().st_size < 5e6
    page = opened(path)
    z = torch.randn(5, 2)
    torch.testing.assert_close(decoded(page, z), one.vae.decode(z).flatten(1), atol=1e-5, rtol=0)
    assert page.evaluate("pplvae.spaces[0].milliseconds(40)") < 16  # the median; about 1 on a laptop
