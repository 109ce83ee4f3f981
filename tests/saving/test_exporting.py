"""VAE.export: the graphs give what the VAE gives, at any batch size, in a process without ppl_vae and Pyro."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pyro.distributions as dist
import pytest
import torch
import zoo
from torch import nn

from ppl_vae import VAE, likelihoods, networks, posteriors, priors

OLD = torch.__version__.startswith("2.6.")  # whose exporter is another
PARTS = ("encoder", "decoder", "log_likelihood")

ALONE = """
import sys
for name in ("ppl_vae", "pyro"):
    sys.modules[name] = None  # an import of it fails
import numpy, torch
for part, columns in torch.load("inputs.pt").items():
    *inputs, expected = columns
    found = {"pt2": torch.export.load(f"{part}.pt2").module()(*inputs)}
    if "onnx" in sys.argv:
        import onnxruntime
        session = onnxruntime.InferenceSession(f"{part}.onnx", providers=["CPUExecutionProvider"])
        arrays = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
        found["onnx"] = torch.from_numpy(session.run(None, arrays)[0])
    for kind, value in found.items():
        assert value.shape == expected.shape, (part, kind)
        worst = ((value - expected).abs() / expected.abs().clamp(min=1)).max().item()
        assert worst < 1e-6, (part, kind, worst)
        print(part, kind, worst)
"""


def example(**more):
    return VAE(
        (1, 8, 8),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([16])),
        posterior=posteriors.DiagonalNormal(networks.MLP([16], batch_norm=True)),
        **more,
    )


def onnx_is_there() -> bool:
    return all(__import__("importlib.util").util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.mark.ci
@pytest.mark.thinned(2)
@pytest.mark.skipif(OLD, reason="torch 2.6 reads a conditional graph only in a process that has made one")
@pytest.mark.parametrize("y_shape", [(3,), None], ids=["conditional", "plain"])
@pytest.mark.filterwarnings("ignore")  # torch's exporter of ONNX
def test_graphs_run_alone(y_shape, tmp_path):
    vae = example(y_shape=y_shape) if y_shape is None else VAE(
        (1, 8, 8), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(networks.MLP([16])),
        posterior=posteriors.DiagonalNormal(networks.MLP([16])), y_shape=y_shape,
    )  # fmt: skip
    with_onnx = onnx_is_there()
    y = () if y_shape is None else (torch.eye(3)[torch.arange(7) % 3],)
    x, z = (torch.rand(7, 1, 8, 8) > 0.5).float(), torch.tensor([0.1, 1, 1, 1, 1, 30, 300])[:, None] * torch.randn(7, 2)
    with torch.no_grad():
        log_p = vae.p_x(z, *y).log_prob(x)
    inputs = {
        "encoder": (x, *y, vae.encode(x, *y)),
        "decoder": (z, *y, vae.decode(z, *y)),
        "log_likelihood": (x, z, *y, log_p),
    }
    training = vae.training
    for part in PARTS:
        assert vae.export(tmp_path / f"{part}.pt2") == tmp_path / f"{part}.pt2"
        if with_onnx:
            vae.export(str(tmp_path / f"{part}.onnx"))
    assert vae.training == training
    torch.save(inputs, tmp_path / "inputs.pt")
    argv = [sys.executable, "-c", ALONE, *(["onnx"] if with_onnx else [])]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(PARTS) * (1 + with_onnx)


def test_the_part_may_be_said(tmp_path):
    vae = example()
    program = torch.export.load(vae.export(tmp_path / "mine.pt2", part="decoder"))
    z = torch.randn(4, 2)
    torch.testing.assert_close(program.module()(z), vae.decode(z), rtol=0, atol=1e-6)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "program", [pytest.param(p, marks=pytest.mark.slow) for p in zoo.families()], ids=zoo.names
)  # each a few seconds
def test_every_family_is_exported_or_refused(program, part, tmp_path):
    path = tmp_path / f"{part}.pt2"
    with contextlib.suppress(ValueError):
        program.vae((1, 4, 4), 3).export(path)
        assert path.exists()
        return
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "part", "match"),
    [
        ("decoder.pt", None, r"ends in \.pt2"),
        ("mine.pt2", None, "names no part"),
        ("decoder.pt2", "decode", "did you mean decoder"),
    ],
)
def test_bad_names_are_refused(name, part, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        example().export(tmp_path / name, part)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(OLD, reason="torch before 2.7 refuses it by another sentence")
def test_an_encoder_that_draws_is_refused(tmp_path):
    class Drawing(nn.Module):
        def forward(self, x):
            return dist.Normal(torch.randn_like(x[:, :2]), 1.0).to_event(1)

    vae = VAE((4,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(), posterior=Drawing())
    with pytest.raises(ValueError, match="draws random numbers"):
        vae.export(tmp_path / "encoder.pt2")


def test_a_batch_size_that_is_fixed_is_refused_with_the_fix(tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1)

    vae = VAE((4,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(), posterior=Fixed())
    with pytest.raises(ValueError, match=r"len\(x\) fixes the batch size"):
        vae.export(tmp_path / "encoder.pt2")


def test_a_part_that_depends_on_values_is_refused(tmp_path):
    class Branching(nn.Module):
        def forward(self, x):
            loc = x[:, :2] if x.sum() > 3 else x[:, 2:]
            return dist.Normal(loc, 1.0).to_event(1)

    vae = VAE((4,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(), posterior=Branching())
    with pytest.raises(ValueError, match="cannot be made a graph"):
        vae.export(tmp_path / "encoder.pt2")


def test_onnx_without_its_packages_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(ValueError, match=r"pip install 'ppl-vae\[onnx\]'"):
        example().export(tmp_path / "decoder.onnx")
