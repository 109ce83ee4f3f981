"""A run's folder: everything that training leaves, and the way back to the model."""

from __future__ import annotations

import io
import json
import math
import os

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from short_runs import small_vae, without_pictures

from ppl_vae import data, fit, likelihoods, load_run, networks, plots, posteriors, priors, runs
from ppl_vae.configuration.config import parse
from ppl_vae.training import DivergedError, checkpoints
from ppl_vae.vae import VAE

PICTURES = ["training_curves", "reconstructions", "samples", "latent_grid", "latent_scatter"]


def make_vae(dataset, latent_dim=2):
    torch.manual_seed(0)
    mlp = networks.MLP([16])
    return VAE(
        dataset,
        prior=priors.StandardNormal(latent_dim),
        likelihood=likelihoods.Bernoulli(mlp),
        posterior=posteriors.DiagonalNormal(mlp),
    )


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """A run of the command line's making: config, dataset, folder, run."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    config = parse(["--epochs", "3", "--likelihood.network.hidden", "[16]"])
    dataset = config.build_dataset()
    vae = config.build_vae(dataset)
    folder = runs.RunFolder(path, config.to_yaml())
    run = fit(vae, dataset, callbacks=[folder], **config.build_fit_arguments())
    return config, folder, run


@pytest.mark.ci
def test_the_folder_holds_everything(finished):
    config, folder, run = finished
    assert (folder.path / "config.yaml").read_text() == config.to_yaml()
    facts = json.loads((folder.path / "run.json").read_text())
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert facts["data"]["fingerprint"] == run.data.fingerprint
    assert facts["data"]["x_shape"] == [1, 8, 8]
    records = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert records == run.history
    result = json.loads((folder.path / "result.json").read_text())
    assert result["stopped"] == "finished"
    assert result["validation_elbo"] == run.final["validation_elbo"]
    assert [path.stem for path in folder.pictures] == PICTURES
    for path in folder.pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    assert not [path for path in folder.path.iterdir() if path.name.startswith(".")]


def test_tensorboard_events_can_be_read(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, folder, run = finished
    events = EventAccumulator(str(folder.path), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"loss", "elbo", "log_likelihood", "kl", "validation/elbo", "reconstruction_error"} <= set(tags["scalars"])
    images = {"inputs", "reconstructions", "samples", "latent_grid"}
    assert images <= {tag.split("/")[0] for tag in tags["images"]}
    assert [e.value for e in events.Scalars("elbo")] == pytest.approx([r["elbo"] for r in run.history], rel=1e-6)
    assert [e.step for e in events.Images("latent_grid")] == [1, 2, 3]


def image_of(event):
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("L")) / 255


def test_tensorboard_has_samples_and_a_latent_grid_of_the_model(finished):
    """The images of the last epoch, read back, are the means of the model at the same z, each at its place."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, folder, run = finished
    events = EventAccumulator(str(folder.path), size_guidance={"images": 0})
    events.Reload()
    assert [e.step for e in events.Images("samples/means")] == [1, 2, 3]
    drawn = image_of(events.Images("samples/means")[-1])  # 4 rows of 8
    torch.manual_seed(0)
    for i, mean in enumerate(run.program.sample(32).cpu()):
        top, left = 8 * (i // 8), 8 * (i % 8)
        np.testing.assert_allclose(drawn[top : top + 8, left : left + 8], mean[0].numpy(), atol=1.01 / 255)  # 8 bits
    grid = image_of(events.Images("latent_grid")[-1])
    for z1, z2 in ((-2.0, -2.0), (1.8, -2.0), (-2.0, 1.8), (0.4, -1.0)):
        column, row = round((z1 + 2) / 0.2), 19 - round((z2 + 2) / 0.2)  # z1 to the right, z2 upwards
        mean = run.program.decode(torch.tensor([[z1, z2]]))[0, 0].numpy()
        tile = grid[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_allclose(tile, mean, atol=1.01 / 255)


def test_tensorboard_has_the_config_of_the_run(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    _, folder, run = finished
    events = EventAccumulator(str(folder.path))
    events.Reload()
    content = events.SummaryMetadata
    assert len(list(folder.path.glob("events.out*"))) == 1
    start = metadata.parse_session_start_info_plugin_data(content(metadata.SESSION_START_INFO_TAG).plugin_data.content)
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert {name: values[name] for name in ("epochs", "objective", "optimizer.lr", "prior.latent_dim", "seed")} == {
        "epochs": 3,
        "objective": "ELBO",
        "optimizer.lr": 0.001,
        "prior.latent_dim": 2,
        "seed": 0,
    }
    assert values["likelihood.network.hidden"] == "[16]"
    assert (values["data"], values["device"]) == (run.data.name, run.device)
    experiment = metadata.parse_experiment_plugin_data(content(metadata.EXPERIMENT_TAG).plugin_data.content)
    judged = {info.name.tag for info in experiment.metric_infos}
    assert judged == {"validation/elbo", "elbo", "reconstruction_error"} <= set(events.Tags()["scalars"])
    ended = metadata.parse_session_end_info_plugin_data(content(metadata.SESSION_END_INFO_TAG).plugin_data.content)
    assert ended.status == 1  # success


def test_tensorboards_samples_leave_the_run_as_it_is(finished, digits):
    """A run without a folder, and so without samples on the way, ends at the same parameters to the last bit."""
    config, _, run = finished
    dataset = config.build_dataset()
    vae = config.build_vae(dataset)
    fit(vae, dataset, **config.build_fit_arguments())
    for one, other in zip(vae.parameters(), run.program.parameters(), strict=True):
        assert torch.equal(one, other)


def test_grid_and_scatter_of_a_run_lie_over_each_other(finished, tmp_path, monkeypatch):
    _, _, run = finished
    figures = {}
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.setdefault(path.stem, figure))
    runs.draw(run, tmp_path / "mine")
    grid, scatter = (figures[name].axes[0] for name in ("latent_grid", "latent_scatter"))
    assert grid.get_xlim() == grid.get_ylim() == scatter.get_xlim() == scatter.get_ylim()
    assert (grid.get_xlabel(), grid.get_ylabel()) == ("$z_1$", "$z_2$")
    (low, high), (image,) = grid.get_xlim(), grid.images
    means = run.program.encode(run.data.test.x)
    assert ((means > low) & (means < high)).double().mean() > 0.98
    assert low < -2.5 < 2.5 < high  # 99% of the prior
    pixels, step = np.asarray(image.get_array()), (high - low) / 20
    for row, column in ((0, 0), (3, 17), (19, 5)):
        z = torch.tensor([[low + (column + 0.5) * step, high - (row + 0.5) * step]], dtype=torch.float32)
        tile = pixels[9 * row : 9 * row + 8, 9 * column : 9 * column + 8]
        np.testing.assert_allclose(tile, run.program.decode(z)[0, 0].numpy(), atol=1e-5)
    offsets = np.asarray(scatter.collections[0].get_offsets())
    assert {tuple(z) for z in offsets.tolist()} == {tuple(z) for z in means.double().tolist()}
    feet = {name: " ".join(t.get_text() for t in figure.texts) for name, figure in figures.items()}
    assert {name: foot.replace("\n", " ") for name, foot in feet.items()} == {
        "training_curves": "Run mine; data digits, train and validation",
        "reconstructions": "Run mine; data digits, test",
        "samples": "Run mine; data digits",
        "latent_grid": "Run mine; data digits",
        "latent_scatter": "Run mine; data digits, test",
    }
    assert figures["samples"].axes[0].get_title() == "Samples from the prior: means of p(x|z)"


def test_a_run_comes_back_as_the_model_it_was(finished):
    _, folder, run = finished
    torch.manual_seed(5)
    state = torch.get_rng_state()
    vae = load_run(folder.path)
    assert torch.equal(torch.get_rng_state(), state)
    both = zip(vae.state_dict().values(), run.program.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs.cpu()) for ours, theirs in both)
    x = run.data.test.x
    torch.testing.assert_close(vae.reconstruct(x), run.program.reconstruct(x))  # the run's own may be on a GPU
    assert not vae.training


def test_its_checkpoint_resumes(finished):
    _, folder, run = finished
    longer = parse(["--config", str(folder.path / "config.yaml"), "--epochs", "4"])
    dataset = longer.build_dataset()
    vae = longer.build_vae(dataset)
    state = checkpoints.load(folder.path)
    again = fit(vae, dataset, resume=state, **longer.build_fit_arguments())
    assert len(again.history) == 4
    assert again.history[:3] == run.history


def test_a_folder_that_holds_a_run_is_refused(finished):
    _, folder, _ = finished
    with pytest.raises(FileExistsError, match="already holds a run; choose another --out, or resume it"):
        runs.RunFolder.check(folder.path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        runs.RunFolder.check(tmp_path / "file")
    with pytest.raises(OSError, match="not a writable folder"):
        runs.RunFolder.check(tmp_path / "file" / "run")
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError, match="not a writable folder"):
            runs.RunFolder.check(tmp_path / "run")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run's folder"):
        load_run(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(finished, digits, tmp_path):
    _, folder, _ = finished
    for name in ("config.yaml", "run.json"):
        (tmp_path / name).write_text((folder.path / name).read_text())
    checkpoints.save(fit(make_vae(digits), digits, epochs=1, seed=0).state(), tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is of another model"):
        load_run(tmp_path)


def test_nothing_is_written_before_every_check_has_passed(tmp_path):
    grey = data.load("digits", binarize="none")
    with pytest.raises(ValueError, match="outside the support"):
        fit(make_vae(grey), grey, callbacks=[runs.RunFolder(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_run_again_keeps_no_end_of_an_earlier_one_and_a_refused_one_touches_nothing(tmp_path):
    x, kind = torch.rand(20, 4).round(), {"epochs": 1, "batch_size": 20, "seed": 0, "device": "cpu"}
    folder = runs.RunFolder(tmp_path)
    with without_pictures():
        fit(small_vae((4,)), x, callbacks=[folder], **kind)
    first = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(FileExistsError, match="already holds a run"):
        fit(small_vae((4,), seed=1), x, callbacks=[folder], **kind)
    assert (tmp_path / "checkpoint.pt").read_bytes() == first
    (tmp_path / "last_good.pt").write_text("")
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "mine.txt").write_text("a file of the user's")

    class Stop:
        def on_start(self, run):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(small_vae((4,), seed=1), x, callbacks=[runs.RunFolder(tmp_path, again=True), Stop()], **kind)
    left = {path.name for path in tmp_path.iterdir()}
    assert "checkpoint.pt" in left
    assert not left & {"result.json", "last_good.pt", "evaluation"}
    assert (tmp_path / "evaluation-before" / "mine.txt").exists()


def test_one_numbered_folder_counts_its_runs(tmp_path):
    folder = runs.RunFolder(tmp_path / "a", numbered=True)
    for _ in range(3):
        with without_pictures():
            fit(small_vae((4,)), torch.zeros(20, 4), callbacks=[folder], epochs=1, batch_size=20, seed=0, device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a-2", "a-3"]


def test_a_divergence_leaves_the_last_good_state(digits, tmp_path):
    vae = make_vae(digits)
    folder = runs.RunFolder(tmp_path / "run")

    class Break:
        def on_epoch(self, run, record):
            with torch.no_grad():
                vae.likelihood.logits.network[-2].bias.fill_(math.nan)

    with pytest.raises(DivergedError, match="step 1 of epoch 2"):
        fit(vae, digits, epochs=2, seed=0, callbacks=[folder, Break()])
    good = checkpoints.load(tmp_path / "run" / "last_good.pt")
    assert good["epoch"] == 1
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.ci
def test_a_latent_of_more_dimensions_has_no_plane_to_draw(digits, tmp_path):
    folder = runs.RunFolder(tmp_path / "run")
    fit(make_vae(digits, latent_dim=5), digits, epochs=1, seed=0, callbacks=[folder])
    assert [path.stem for path in folder.pictures] == PICTURES[:3]


@pytest.mark.ci
def test_data_that_are_no_images_have_curves_and_a_scatter(tmp_path):
    dataset = data.from_tensors((torch.rand(200, 7) > 0.5).float())
    folder = runs.RunFolder(tmp_path / "run")
    fit(make_vae(dataset), dataset, epochs=1, batch_size=50, seed=0, callbacks=[folder])
    assert [path.stem for path in folder.pictures] == ["training_curves", "latent_scatter"]


def test_more_labels_than_can_be_told_apart_are_left_out(tmp_path):
    dataset = data.from_tensors((torch.rand(400, 7) > 0.5).float(), labels=range(400), test=0.5)
    folder = runs.RunFolder(tmp_path / "run")
    fit(make_vae(dataset), dataset, epochs=1, batch_size=50, seed=0, callbacks=[folder])
    assert folder.pictures[-1].stem == "latent_scatter"


def test_a_piece_with_parameters_in_pyros_store_does_not_come_back_untrained(finished, digits, tmp_path):
    _, folder, _ = finished
    for name in ("config.yaml", "run.json"):
        (tmp_path / name).write_text((folder.path / name).read_text())

    class Prior(torch.nn.Module):
        def forward(self):
            return dist.Normal(pyro.param("prior_loc", lambda: torch.zeros(2)), 1.0).to_event(1)

    vae = make_vae(digits)
    vae.prior = Prior()
    run = fit(vae, digits, epochs=1, seed=0)
    checkpoints.save(run.state(), tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"holds parameters of pyro.param \(prior_loc\)"):
        load_run(tmp_path)


def test_next_free(tmp_path):
    assert runs.next_free(tmp_path / "digits") == tmp_path / "digits"
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits-2").mkdir()
    assert runs.next_free(tmp_path / "digits") == tmp_path / "digits-3"
