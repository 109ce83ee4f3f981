"""Reports without a browser: what stands in the file, and how the command refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import arrays_of
from reported import HOSTILE
from torch import nn

import ppl_vae as pv
from ppl_vae import cli, plots
from ppl_vae.data.conditions import with_few_labels
from ppl_vae.evaluation.true_posterior import log_posterior_grid, posterior_moments
from ppl_vae.evidence.densities import VAEDensities
from ppl_vae.networks import MLP
from ppl_vae.report import Subject, write
from ppl_vae.report.decoder import LINKS, decoded_grid, layers_of, perceptron
from ppl_vae.report.latent import _box, _labels, columns_of, conditions_of, latent_space
from ppl_vae.report.markup import block, packed, plain
from ppl_vae.report.shown import examples


def values_of(path: Path) -> dict:
    """The values that a page holds."""
    text = path.read_text(encoding="utf-8")
    (inside,) = re.findall(r'<script type="application/json" id="values">(.*?)</script>', text, re.DOTALL)
    return json.loads(inside)


def unpacked(given: dict) -> np.ndarray:
    kind = np.dtype(given["kind"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(given["base64"]), kind).reshape(given["shape"])


def report(tmp_path: Path, *argv: str) -> dict:
    out = tmp_path / "page.html"
    assert cli.main(["report", *argv, "--out", str(out)]) == 0
    return values_of(out)


def test_the_page_is_one_file_that_asks_for_nothing(runs, tmp_path):
    report(tmp_path, str(runs / "plane"), "--posteriors", "2")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for name in ("style", "script"):
        (inside,) = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert not re.search(r"<link|<iframe|@import|\bfetch\(|XMLHttpRequest|(src|href)=\"(?!#)", text)
    assert len(re.findall("<script", text)) == 2
    assert " style=" not in text  # which the policy would not let in
    assert f"ppl_vae {pv.__version__} with torch {torch.__version__}" in text
    assert "ppl-vae report" in text


def test_what_it_holds_is_what_the_folder_holds(runs, tmp_path):
    (found,) = report(tmp_path, str(runs / "plane"), "--posteriors", "3", "--size", "50")["subjects"]
    written = json.loads((runs / "plane" / "evaluation" / "evaluation.json").read_text())
    for name, figure in written["figures"].items():
        assert found["evaluation"]["figures"][name]["value"] == figure["value"]
    shown = found["evaluation"]["figures"]["elbo"]
    table = pv.evaluation.Interval(*(shown[key] for key in ("value", "low", "high")))
    assert shown["text"] == str(table).replace("-", "\u2212")
    arrays = arrays_of(runs / "plane" / "evaluation" / "per_datum.npz")
    np.testing.assert_allclose(found["gap"], arrays["log_evidence"] - arrays["elbo"], rtol=1e-12)
    assert [record["epoch"] for record in found["history"]] == [1, 2, 3]
    assert found["config"] == (runs / "plane" / "config.yaml").read_text()
    assert [c["kind"] for c in found["comparisons"]] == ["comparison"]
    assert set(found["pictures"]) == {"gaps", "true_posteriors", "evidence"}
    assert found["absent"] == []


@pytest.mark.ci
def test_the_latent_space_is_the_models(runs, tmp_path):
    (found,) = report(tmp_path, str(runs / "plane"), "--posteriors", "3", "--size", "50")["subjects"]
    space, test = found["space"], pv.data.load("digits").test
    vae = pv.load_run(runs / "plane")
    rounding = {"rtol": 1e-5, "atol": 1e-6}  # the command may compute on a GPU
    np.testing.assert_allclose(unpacked(space["points"]), vae.encode(test.x[:50]).numpy(), **rounding)
    np.testing.assert_allclose(unpacked(space["spread"]), vae.q_z(test.x[:50]).stddev.detach().numpy(), **rounding)
    assert space["of"] == len(test)
    assert [space["labels"]["classes"][int(k)] for k in unpacked(space["labels"]["values"])] == [
        str(int(label)) for label in test.labels[:50]
    ]
    middles = space["low"] + (np.arange(96) + 0.5) * (space["high"] - space["low"]) / 96
    density = np.exp(-0.5 * (middles[:, None] ** 2 + middles**2))
    got = (unpacked(space["prior"]["density"])[0].reshape(96, 96) / 255.0) ** 2
    np.testing.assert_allclose(got, density / density.max(), atol=2 / 255)  # the root is kept to 1/255
    np.testing.assert_allclose(unpacked(space["data"]["x"]), 255 * test.x[:3].flatten(1).numpy())


@pytest.mark.ci
def test_the_true_posterior_has_its_moments(runs, tmp_path):
    (found,) = report(tmp_path, str(runs / "plane"), "--posteriors", "3")["subjects"]
    data, vae = found["space"]["data"], pv.load_run(runs / "plane")
    moments = posterior_moments(VAEDensities(vae), pv.data.load("digits").test.x[:3])
    np.testing.assert_allclose(unpacked(data["log_evidence"]), moments.evidence.log_evidence, atol=1e-3)
    for k, grid in enumerate(unpacked(data["density"])):
        weight = (grid / 255.0) ** 2
        low, high = unpacked(data["low"])[k], unpacked(data["high"])[k]
        axes = [np.linspace(low[u], high[u], len(grid)) for u in (0, 1)]
        mean = [(weight.sum(1 - u) * axes[u]).sum() / weight.sum() for u in (0, 1)]
        step = (high - low).max() / len(grid)
        np.testing.assert_allclose(
            mean, moments.mean[k], atol=step
        )  # the box and the root's 1/255 cost less than a cell


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_the_grid_of_a_posterior_has_mass_one(latent_dim):
    vae = pv.VAE(
        (6,),
        prior=pv.priors.StandardNormal(latent_dim),
        likelihood=pv.likelihoods.Bernoulli(),
        posterior=pv.posteriors.DiagonalNormal(),
    )
    log_p = log_posterior_grid(VAEDensities(vae), vae.sample(2, mean=False), [(-6, 6)] * latent_dim, size=241)
    assert log_p.shape == (2, *(241,) * latent_dim)
    mass = log_p.exp().flatten(1).sum(1) * 0.05**latent_dim
    torch.testing.assert_close(mass, torch.ones(2).double(), atol=1e-4, rtol=0)


def test_names_cannot_leave_the_data(tmp_path):
    subject = Subject(HOSTILE, {"data": {"name": HOSTILE}, "state": HOSTILE}, config=HOSTILE, absent=[HOSTILE])
    write(tmp_path / "page.html", [subject], command=HOSTILE)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in text
    assert len(re.findall("<script", text)) == 2
    assert text.count("<title>&lt;/script&gt;") == 1
    (found,) = values_of(tmp_path / "page.html")["subjects"]
    assert found["name"] == found["config"] == HOSTILE


def test_any_text_survives_the_block():
    text = "".join(map(chr, [*range(0x20, 0x300), 0x2028, 0x2029, 0x1F600]))
    assert json.loads(block({"text": text})) == {"text": text}
    assert not set("<>&\u2028\u2029") & set(block({"text": text}))


def test_numbers_without_a_value_are_null():
    assert plain({"a": [math.nan, 1.0, math.inf], "b": (2,)}) == {"a": [None, 1.0, None], "b": [2]}
    assert "text" not in plain({"value": 1.0, "low": math.nan, "high": 2.0})


# ---- decoders


def vae_with(network: object, likelihood=pv.likelihoods.Bernoulli, **more) -> pv.VAE:
    return pv.VAE(
        (6,),
        prior=pv.priors.StandardNormal(2),
        likelihood=likelihood(network, **more),
        posterior=pv.posteriors.DiagonalNormal(),
    )


def test_layers_are_those_of_the_network():
    vae = vae_with(MLP([5, 4], batch_norm=True, dropout=0.2, activation="tanh"))
    layers = perceptron(vae, torch.randn(8, 2), None)["layers"]
    assert [layer["op"] for layer in layers] == ["linear", "affine", "tanh", "linear", "affine", "tanh", "linear"]


def test_a_normal_of_two_outputs_keeps_the_means_rows():
    vae = vae_with(MLP([5]), pv.likelihoods.Normal, learn="datum")
    found = perceptron(vae, torch.randn(8, 2), None)
    assert found["link"] == "identity"
    assert found["layers"][-1]["weight"]["shape"] == [6, 5]


@pytest.mark.parametrize(
    ("likelihood", "link"),
    [
        (pv.likelihoods.Bernoulli, "sigmoid"),
        (pv.likelihoods.ContinuousBernoulli, "continuous_bernoulli"),
        (pv.likelihoods.Poisson, "softplus"),
        (pv.likelihoods.Normal, "identity"),
        (pv.likelihoods.Binomial, "sigmoid"),
    ],
)
def test_links_are_found_by_their_values(likelihood, link):
    assert link in LINKS
    assert perceptron(vae_with(MLP([5]), likelihood), torch.randn(8, 2), None)["link"] == link


def hooked() -> nn.Module:
    layer = nn.Linear(2, 6)
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return nn.Sequential(layer)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 6)

    def forward(self, z):
        return 2 * self.inner(z)


class Thrice(nn.Sequential):
    def forward(self, z):
        return 3 * super().forward(z)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (hooked(), "a hook"),
        (Thrice(nn.Linear(2, 6)), "no plain function"),
        (
            nn.Sequential(nn.Unflatten(1, (2, 1)), nn.Linear(1, 6), nn.Flatten(), nn.Linear(12, 6)),
            "one after the other",
        ),
        (nn.Sequential(nn.Linear(2, 6), nn.LeakyReLU(0.3), nn.Linear(6, 6)), "other settings"),
        (nn.Sequential(nn.Linear(2, 6), nn.Softmax(-1)), "a layer Softmax"),
        (Twice(), "a layer Twice"),
        (nn.Sequential(nn.Linear(2, 6), nn.Tanh()), "does not end in a linear layer"),
    ],
)
def test_what_the_page_cannot_compute_is_refused(network, why):
    with pytest.raises(ValueError, match=why):
        perceptron(vae_with(network), torch.randn(8, 2), None)


def test_a_mean_that_is_no_function_of_the_first_outputs_is_refused():
    with pytest.raises(ValueError, match="no plain function"):
        perceptron(vae_with(MLP([5]), pv.likelihoods.Beta), torch.randn(8, 2), None)


def test_a_module_that_is_no_layer_is_refused():
    with pytest.raises(ValueError, match="a layer Twice"):
        layers_of(Twice())


def test_the_grid_holds_the_means_at_its_nodes():
    vae = vae_with(MLP([5]))
    found = decoded_grid(vae, -2.0, 3.0, (0, 1), torch.zeros(2), None)
    values = unpacked(found["values"])[0].reshape(found["size"], found["size"], 6)
    line = torch.linspace(-2.0, 3.0, found["size"])
    torch.testing.assert_close(torch.from_numpy(values[4, 7].copy()), vae.decode(torch.stack([line[4], line[7]])))


@pytest.mark.parametrize(("latent_dim", "over"), [(1, ""), (2, ""), (3, " over the latents")])
def test_a_grid_over_any_number_of_latents(latent_dim, over):
    vae = pv.VAE(
        (6,),
        prior=pv.priors.StandardNormal(latent_dim),
        likelihood=pv.likelihoods.Beta(MLP([5])),
        posterior=pv.posteriors.DiagonalNormal(MLP([5])),
    )
    found, notes = latent_space(vae, pv.data.Split((torch.rand(9, 6),)), {"kind": "columns"}, size=9, posteriors=0)
    decoder = found["decoder"]
    assert len(decoder["axes"]) == min(2, latent_dim)
    z = torch.from_numpy(unpacked(decoder["start"]).copy())
    z[decoder["axes"]] = decoder["high"]
    torch.testing.assert_close(torch.from_numpy(unpacked(decoder["values"])[0, -1].copy()), vae.decode(z))
    assert f"nodes an axis{over}" in " ".join(notes)


def test_images_on_a_grid_are_rounded_to_256_levels():
    vae = pv.VAE(
        (1, 10, 10),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Bernoulli(),
        posterior=pv.posteriors.DiagonalNormal(),
    )
    found = decoded_grid(vae, -2.0, 2.0, (0, 1), torch.zeros(2), None)
    low, high = found["range"]
    got = low + unpacked(found["values"])[0, 0] / 255 * (high - low)
    np.testing.assert_allclose(got, vae.decode(torch.full((2,), -2.0)).flatten(), atol=0.51 * (high - low) / 255)


def test_packed_numbers_are_float32_of_this_shape():
    np.testing.assert_array_equal(unpacked(packed(torch.arange(6.0).reshape(2, 3))), np.arange(6.0).reshape(2, 3))


# ---- what there is not


def sentences(found: dict) -> str:
    return " ".join([*found["absent"], *found.get("notes", [])])


def test_a_run_that_stopped_half_way(runs, tmp_path):
    shutil.copytree(runs / "plane", tmp_path / "run", ignore=shutil.ignore_patterns("evaluation", "comparison"))
    run = tmp_path / "run"
    (run / "result.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(
        lines[0] + "\n" + re.sub(r'"elbo": [^,]*', '"elbo": NaN', lines[1]) + "\nbroken\n" + lines[2]
    )
    (found,) = report(tmp_path, str(run), "--posteriors", "0")["subjects"]
    assert found["about"]["state"] == "running or aborted"
    assert found["history"][1]["elbo"] is None
    assert len(found["history"]) == 3
    assert "line 3" in sentences(found)
    assert found["evaluation"] is None
    assert "gap" not in found


@pytest.mark.parametrize(
    ("name", "said"),
    [("checkpoint.pt", "The model cannot be loaded"), ("config.yaml", "The model cannot be loaded")],
)
def test_a_file_that_is_missing(runs, tmp_path, name, said):
    shutil.copytree(runs / "plane", tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    (found,) = report(tmp_path, str(tmp_path / "run"))["subjects"]
    assert said in sentences(found)
    assert "space" not in found
    assert found["evaluation"] is not None


def test_two_checkpoints_of_a_run_have_names_of_their_own(runs, tmp_path):
    shutil.copytree(runs / "line", tmp_path / "run")
    shutil.copy(tmp_path / "run" / "checkpoint.pt", tmp_path / "run" / "early.pt")
    both = [str(tmp_path / "run"), str(tmp_path / "run" / "early.pt")]
    found = report(tmp_path, *both, "--posteriors", "0", "--size", "5")["subjects"]
    assert [subject["name"] for subject in found] == both


def test_a_comparison_that_cannot_be_read(runs, tmp_path):
    shutil.copytree(runs / "plane", tmp_path / "run")
    (tmp_path / "run" / "comparison" / "comparison.json").write_text("{")
    (found,) = report(tmp_path, str(tmp_path / "run"), "--posteriors", "0")["subjects"]
    assert found["comparisons"] == []
    assert "comparison.json is not valid JSON" in sentences(found)


def test_data_that_are_gone(runs, tmp_path):
    shutil.copytree(runs / "table", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("table.csv", "gone.csv"))
    (found,) = report(tmp_path, str(tmp_path / "run"))["subjects"]
    assert "The data are not there" in sentences(found)


def test_labels_have_the_colours_of_the_pictures():
    style = (resources.files("ppl_vae.report") / "web" / "page.css").read_text()
    first = dict(reversed(re.findall(r"--c(\d): (#\w+);", style)))
    assert [first[str(i)].upper() for i in range(10)] == [
        f"#{c.lstrip('#').upper()}" for c in plots.latent.CLASS_COLOURS
    ]
    rows = torch.zeros(3, 6)
    for labels, colours in (([9, 4, 4], [4, 9]), ([3, 12, 3], [0, 1]), ([0.5, 1, 2], [0, 1, 2])):
        assert _labels(pv.data.Split((rows,), torch.tensor(labels)), 3)["colours"] == colours


def test_a_regularizer_is_named(runs, tmp_path):
    shutil.copytree(runs / "plane", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    text = config.read_text()
    assert "regularizer: null" in text
    config.write_text(text.replace("regularizer: null", "regularizer: {class: LabelLikelihood, weight: 3.0}"))
    (found,) = report(tmp_path, str(tmp_path / "run"), "--posteriors", "0")["subjects"]
    assert found["about"]["regularizer"] == "LabelLikelihood(weight 3.0)"


def test_data_that_have_changed(runs, tmp_path):
    shutil.copytree(runs / "table", tmp_path / "run")
    shutil.copy(runs / "table.csv", tmp_path / "table.csv")
    with (tmp_path / "table.csv").open("a") as table:
        table.write("0.1,0.2,red,a\n")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(runs / "table.csv"), str(tmp_path / "table.csv")))
    (found,) = report(tmp_path, str(tmp_path / "run"), "--posteriors", "0")["subjects"]
    assert "has changed since" in sentences(found)
    assert "may show data of training" in sentences(found)


def test_data_of_a_file_with_a_test_set_are_all_there(runs, tmp_path):
    x = (np.random.default_rng(0).random((25, 8, 8)) > 0.5).astype(np.float32)
    np.savez(tmp_path / "own.npz", x=x[:20], x_test=x[20:])
    (found,) = report(tmp_path, str(runs / "plane"), "--data", str(tmp_path / "own.npz"), "--posteriors", "0")[
        "subjects"
    ]
    assert found["data_name"] == "own, all"
    assert found["space"]["of"] == 25
    vae = pv.load_run(runs / "plane")
    np.testing.assert_allclose(
        unpacked(found["space"]["points"]), vae.encode(torch.from_numpy(x)[:, None]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.ci
def test_a_table_keeps_names_and_words(runs, tmp_path):
    (found,) = report(tmp_path, str(runs / "table"), "--posteriors", "2")["subjects"]
    form = found["form"]
    assert form["names"] == ["width", HOSTILE, "colour"]
    assert form["words"][2] == ["<i>blue</i>", "red"]
    assert found["space"]["decoder"]["kind"] == "grid"
    assert unpacked(found["space"]["decoder"]["steps"]).tolist() == [0, 0, 1]  # no value between two categories
    assert "interpolated" in sentences(found)
    assert found["space"]["labels"]["classes"] == ["</script>", "a"]


@pytest.mark.ci
def test_labels_are_conditions(runs, tmp_path):
    (found,) = report(tmp_path, str(runs / "labels"), "--posteriors", "3")["subjects"]
    space = found["space"]
    assert space["conditions"] == [str(i) for i in range(10)]
    np.testing.assert_array_equal(unpacked(space["values"]), np.eye(10))
    assert space["decoder"]["conditions"]
    assert space["data"]["density"]["shape"] == [3, 48, 48]


def test_many_latents_have_no_true_posterior(runs, tmp_path):
    (found,) = report(tmp_path, str(runs / "many"))["subjects"]
    assert "this one has 20" in sentences(found)
    assert found["space"]["prior"] == {"mean": [0.0] * 20, "std": [1.0] * 20}
    kl = pv.evaluation.kl_per_dimension(VAEDensities(pv.load_run(runs / "many")), pv.data.load("digits").test.x).mean(0)
    assert found["space"]["order"][0] == int(kl.argmax())


def test_the_plane_holds_the_data_and_says_what_it_leaves_out():
    means = torch.linspace(-9, 9, 1000)[:, None].expand(-1, 2)
    low, high = _box(means, torch.randn(100, 2))
    assert low < -9
    assert high > 9
    x = torch.rand(300, 6)
    x[7] *= 1e4
    vae = vae_with(MLP([5]))
    form = {"kind": "columns"}
    found, notes = latent_space(vae, pv.data.Split((x,)), form, size=300, posteriors=0)
    points = unpacked(found["points"])
    outside = ((points < found["low"]) | (points > found["high"])).any(1)
    assert outside.nonzero()[0].tolist() == [7]
    assert notes == ["1 of these points lie far from the others, outside the plane."]


def test_rows_of_samples_name_their_conditions():
    y = torch.eye(7)[torch.arange(21) % 7]
    vae = pv.VAE(
        (6,),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Normal(),
        posterior=pv.posteriors.DiagonalNormal(),
        y_shape=(7,),
    )
    data = pv.data.Split((torch.rand(21, 6), y), conditions=tuple("abcdefg"))
    assert examples(vae, data, {"kind": "columns"})["conditions"] == ["a", "b", "c", "e", "f"]


def test_weights_of_few_labels_are_no_conditions():
    data = with_few_labels(pv.data.load("digits"), 50)
    vae = pv.programs.SemiSupervisedVAE(
        data,
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Bernoulli(MLP([5])),
        posterior=pv.posteriors.DiagonalNormal(MLP([5])),
    )
    last = replace(data.train, columns=tuple(c[-20:] for c in data.train.columns), labels=None, rows=None)
    assert last.columns[1].max() < 1  # copies of data with labels, each with the weight of one
    x, y = columns_of(vae, last, 20)
    torch.testing.assert_close(y, (last.columns[1] > 0).float())
    torch.testing.assert_close(vae.decode(vae.encode(x, y), y), vae.reconstruct(*last.columns))
    values, names = conditions_of(vae, last, y)
    torch.testing.assert_close(values, torch.eye(10))
    assert names == [str(i) for i in range(10)]


def test_a_condition_of_one_number_is_offered_with_each_of_its_values():
    vae = pv.VAE(
        (6,),
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Bernoulli(MLP([5])),
        posterior=pv.posteriors.DiagonalNormal(MLP([5])),
        y_shape=(1,),
    )
    y = torch.tensor([[1.0], [0.0], [1.0]])
    values, names = conditions_of(vae, pv.data.Split((torch.rand(3, 6), y)), y)
    assert (values.tolist(), names) == ([[0.0], [1.0]], ["0", "1"])
    y = torch.rand(20, 1)
    values, names = conditions_of(vae, pv.data.Split((torch.rand(20, 6), y)), y)
    assert torch.equal(values, y[:10])
    assert names[0] == "that of datum 1"


def test_a_discrete_latent_has_no_plane():
    vae = pv.VAE(
        (6,),
        prior=pv.priors.BernoulliVector(3),
        likelihood=pv.likelihoods.Bernoulli(),
        posterior=pv.posteriors.BernoulliVector(),
    )
    with pytest.raises(ValueError, match="a discrete set"):
        latent_space(vae, pv.data.Split((torch.zeros(4, 6),)), {"kind": "columns"}, size=4, posteriors=0)


@pytest.mark.ci
def test_a_run_in_memory_and_its_evaluation(tmp_path):
    x = (torch.rand(60, 6) < 0.5).float()
    vae = vae_with(MLP([5]))
    run = pv.fit(vae, x, epochs=2, batch_size=30, device="cpu", compile="off")
    found = pv.evaluate(vae, x[:20], gap_size=0, importance_size=0, imputation_size=0)
    assert run.report(tmp_path / "a.html", found) == tmp_path / "a.html"
    (both,) = values_of(tmp_path / "a.html")["subjects"]
    assert both["space"]["points"]["shape"] == [60, 2]
    assert both["evaluation"]["num_data"] == 20
    found.report(tmp_path / "b.html")
    (alone,) = values_of(tmp_path / "b.html")["subjects"]
    assert "An evaluation holds no model" in sentences(alone)
    found.report(tmp_path / "b.html", run)
    assert values_of(tmp_path / "b.html")["subjects"][0]["space"]["dim"] == 2
    with pytest.raises(TypeError, match="str beside Run"):
        run.report(tmp_path / "c.html", "evaluation")
    assert not (tmp_path / "c.html").exists()


def test_a_pair_of_functions_has_no_model_to_show(tmp_path):
    vae = vae_with(MLP([5]))
    run = pv.fit((vae.model, vae.guide), torch.ones(20, 6), epochs=2, batch_size=10, device="cpu", compile="off")
    (found,) = values_of(run.report(tmp_path / "a.html"))["subjects"]
    assert "(model, guide) pair" in sentences(found)
    assert len(found["history"]) == 2


def test_a_comparison_alone_and_runs_side_by_side(runs, tmp_path):
    first, second = report(tmp_path, str(runs / "race"), str(runs / "plane"), "--posteriors", "0")["subjects"]
    assert "of a comparison, and of no run" in sentences(first)
    assert [c["kind"] for c in first["comparisons"]] == ["race"]
    assert second["space"]["data"]["number"] == 0


# ---- what it refuses


def refused(capsys, *argv: str) -> str:
    assert cli.main(["report", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_refusals_are_one_sentence(runs, tmp_path, capsys):
    plane = str(runs / "plane")
    assert "no run; expected one" in refused(capsys)
    assert "there is no run" in refused(capsys, str(tmp_path / "nothing"))
    assert "comparison.json and race.json" in refused(capsys, str(tmp_path))
    assert "ends in .html" in refused(capsys, plane, "--out", str(tmp_path))
    assert "ends in .html" in refused(capsys, plane, "--out", str(tmp_path / "page.pdf"))
    (tmp_path / "there.html").write_text("mine")
    assert "is there already" in refused(capsys, plane, "--out", str(tmp_path / "there.html"))
    assert (tmp_path / "there.html").read_text() == "mine"
    assert "no folder that can be written to" in refused(capsys, plane, "--out", str(tmp_path / "no" / "page.html"))
    assert "--size is 0" in refused(capsys, plane, "--size", "0")
    assert "--posteriors is -1" in refused(capsys, plane, "--posteriors", "-1")
    assert "--split is 'all'" in refused(capsys, plane, "--split", "all")
    assert "--sise" in refused(capsys, plane, "--sise", "3", "--colour", "red")


def test_help_names_every_option(capsys):
    assert cli.main(["report", "--help"]) == 0
    text = capsys.readouterr().out
    assert "RUN [RUN ...]" in text
    for option in ("--split", "--size", "--posteriors", "--seed", "--out", "--overwrite", "--device", "--data"):
        assert re.search(rf"{option} \S+\s+\S", text)


def test_a_report_is_never_replaced_unasked(runs, tmp_path):
    shutil.copytree(runs / "race", tmp_path / "race")
    for _ in range(2):
        assert cli.main(["report", str(tmp_path / "race")]) == 0
    assert {p.name for p in (tmp_path / "race").glob("*.html")} == {"report.html", "report-2.html"}
