"""VAE.save and load: the same model again, on its own word and no other's, or a refusal and no file."""

from __future__ import annotations

import functools
import io
import pickle
import sys
import textwrap

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from short_runs import small_vae
from stand_in import Asserting
from torch import nn

import ppl_vae
from ppl_vae import VAE, checkpoints, data, fit, likelihoods, networks, posteriors, priors
from ppl_vae.saving.describing import Builder, Describer, names

USERS_MODULE = """
    import pyro.distributions as dist
    import torch
    from torch import nn

    from ppl_vae.networks import MLP, ParameterNetwork


    class Mine(nn.Module):
        def __init__(self, network=None, scale=0.5, forgets=False):
            super().__init__()
            self.network = ParameterNetwork(MLP([4]) if network is None else network, "likelihood Mine")
            if not forgets:
                self.scale = scale
            self._scale = scale

        def bind(self, binding):
            self.network.build(binding.latent_shape, binding.x_shape, binding.y_shape)

        def forward(self, z):
            (mean,) = self.network(z)
            return dist.Normal(mean, self._scale).to_event(mean.dim() - z.dim() + 1)


    def wide_prior():
        return dist.Normal(torch.zeros(2), 2.0).to_event(1)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "users_own.py").write_text(textwrap.dedent(USERS_MODULE))
    monkeypatch.syspath_prepend(str(tmp_path))
    import users_own

    yield users_own
    sys.modules.pop("users_own", None)


def small(shape=(4,), **pieces):
    """A VAE whose weights are not those that it was born with."""
    parts = {
        "prior": priors.StandardNormal(2),
        "likelihood": likelihoods.Bernoulli(networks.MLP([4])),
        "posterior": posteriors.DiagonalNormal(networks.MLP([4])),
    }
    vae = VAE(shape, **(parts | pieces))
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return vae


def refused(vae, path, match):
    with pytest.raises(ValueError, match=match):
        vae.save(path)
    assert not path.exists()


OTHERS = [pytest.param(p, marks=pytest.mark.slow) for p in zoo.programs() if p not in zoo.families()]


@pytest.mark.parametrize("program", [*zoo.families(), *OTHERS], ids=zoo.names)
def test_every_piece_comes_back(program, tmp_path):
    images = program.network.images
    vae = program.vae((1, 4, 4) if images else (1, 1, 4), 3)
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.01 * torch.randn_like(p))
    if program.prior.name in ("ZukoMAF", "ZukoSpline"):  # given as zuko makes them
        refused(vae, tmp_path / "vae.pt", r"does not keep its argument 'features'.* in a class of your own around")
        return
    foreign = any(name in program.name for name in ("TorchNormal", "ZukoFlow"))
    state = torch.get_rng_state()
    again = ppl_vae.load(vae.save(tmp_path / "vae.pt"), trust=foreign)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn on the way
    z = torch.randn(5, *vae.latent_shape) if program.prior.space == "real" else vae.p_z().sample((5,))
    assert torch.equal(again.decode(z), vae.decode(z))
    assert again.state_dict().keys() == vae.state_dict().keys()
    assert again.name != vae.name
    assert not again.training


def test_a_trained_vae_comes_back_with_shape_mean_dtype_and_what_is_frozen(tmp_path):
    digits = data.load("digits", conditional=True)
    vae = VAE(
        digits,
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(networks.MLP([8]), start_from_data=True),
        posterior=posteriors.DiagonalNormal(networks.MLP([8], batch_norm=True)),
    )
    fit(vae, digits, epochs=1, compile="off")
    vae.cpu().double()  # it comes back on the CPU, and computes the same bits on the same device
    next(vae.parameters()).requires_grad_(False)
    again = ppl_vae.load(vae.save(tmp_path / "vae.pt"))
    x, y = (column[:20].double() for column in digits.test.columns)
    assert torch.equal(again.encode(x, y), vae.encode(x, y))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in vae.parameters()]
    torch.testing.assert_close(again.data_mean, digits.train.x.mean(0))
    assert checkpoints.load(tmp_path / "vae.pt")["versions"]["ppl-vae"] in (None, ppl_vae.__version__)
    fit(again.float(), digits, epochs=1, compile="off")  # it trains on


def test_a_vae_whose_weights_are_nan_is_saved(tmp_path):
    """Its draws are held against those of a copy, and torch draws from no NaN: on a GPU its kernel stops for good."""
    vae = small_vae((3,))
    for parameter in vae.parameters():
        parameter.data.fill_(torch.nan)
    with Asserting():
        vae.save(tmp_path / "vae.pt")
    again = ppl_vae.load(tmp_path / "vae.pt")
    assert all(torch.equal(a.isnan(), b.isnan()) for a, b in zip(vae.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("duplicate", ["pickle", "torch.save"])
def test_a_trained_vae_is_pickled(duplicate):
    digits = data.load("digits")
    vae = small((1, 8, 8))
    fit(vae, digits, epochs=1, compile="off")
    if duplicate == "pickle":
        again = pickle.loads(pickle.dumps(vae))
    else:
        file = io.BytesIO()
        torch.save(vae, file)
        again = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    x = digits.test.x[:9]
    assert torch.equal(again.encode(x), vae.encode(x))
    pickle.dumps(vae.likelihood)  # and each piece alone
    for one in (vae, again):  # both train on, each its own parameters
        before = one.encode(x)
        fit(one, digits, epochs=1, compile="off")
        assert not torch.equal(one.encode(x), before)


def test_ready_made_modules_and_shared_ones(tmp_path):
    act = nn.GELU("tanh")  # twice in one module, too
    shared = nn.Sequential(nn.Linear(4, 8, bias=False), act, nn.BatchNorm1d(8), act, nn.Linear(8, 4))
    vae = small(
        likelihood=likelihoods.Bernoulli(nn.Sequential(nn.Linear(2, 4), shared)),
        posterior=posteriors.DiagonalNormal(shared),
    )
    again = ppl_vae.load(vae.save(tmp_path / "vae.pt"))
    assert again.likelihood._network.network[1] is again.posterior._network.network
    assert len(list(again.parameters())) == len(list(vae.parameters()))
    x = torch.ones(3, 4)
    assert torch.equal(again.reconstruct(x), vae.reconstruct(x))


def test_own_classes_and_functions_need_trust(mine, tmp_path):
    vae = small(prior=mine.wide_prior, likelihood=mine.Mine(networks.MLP([3]), scale=0.3))
    path = vae.save(tmp_path / "vae.pt")
    sys.modules.pop("users_own")
    with pytest.raises(ValueError, match=r"vae\.pt names code .*users_own\.wide_prior, users_own\.Mine.*trust=True"):
        ppl_vae.load(path)
    assert "users_own" not in sys.modules  # not even imported
    again = ppl_vae.load(path, trust=True)
    assert again.likelihood.scale == 0.3
    z = torch.randn(3, 2)
    assert torch.equal(again.decode(z), vae.decode(z))
    with pytest.raises(ValueError, match="trust=True"):  # trust in one file is no trust in the next
        ppl_vae.load(path)


def test_an_own_class_that_forgets_an_argument_is_refused(mine, tmp_path):
    refused(
        small(likelihood=mine.Mine(scale=0.2, forgets=True)), tmp_path / "v.pt", r"p\(x\|z\) of a VAE made with the"
    )


def test_what_changed_after_it_was_made_is_refused(tmp_path):
    vae = small(posterior=posteriors.DiagonalNormal(networks.MLP([4]), floor=1e-5))
    vae.posterior.floor = 3.0
    refused(vae, tmp_path / "v.pt", r"q\(z\|x\) of a VAE made with the same arguments")


def test_a_setting_that_shows_only_in_training_is_held_against_the_copy(tmp_path):
    vae = small(likelihood=likelihoods.OptimalSigmaNormal(networks.MLP([4], dropout=0.5)))
    again = ppl_vae.load(vae.save(tmp_path / "as made.pt"))
    (dropout,) = (m for m in again.modules() if isinstance(m, nn.Dropout))
    dropout.p = 0.1
    refused(again, tmp_path / "v.pt", r"likelihood\..*\.p is 0\.1, and 0\.5 in a VAE made with the same arguments")
    vae.likelihood.momentum = 0.5
    refused(vae, tmp_path / "v.pt", r"likelihood\.momentum is 0\.5, and 0\.1 in a VAE made .* to the constructor")


@pytest.mark.parametrize(
    "value", [np.datetime64("2020-01-01"), np.longdouble(1), np.ones(2, np.longdouble), np.ones(2, complex)]
)
def test_values_of_numpy_that_no_file_keeps_are_refused(value):
    with pytest.raises(ValueError, match=r"scale is of NumPy's .*; give numbers of 64 bits"):
        Describer()(value, "scale")


@pytest.mark.parametrize("value", [np.float32(0.5), np.complex128(1j), np.bytes_(b"a"), np.array([1.0, 2.0], ">f8")])
def test_values_of_numpy_come_back(value, tmp_path):
    path = checkpoints.save({"value": Describer()(value, "scale")}, tmp_path / "v.pt")
    np.testing.assert_array_equal(Builder()(checkpoints.load(path)["value"]), value)


def test_a_hook_is_refused(tmp_path):
    vae = small()
    vae.likelihood._network.network.register_forward_hook(lambda module, inputs, output: output + 1)
    refused(vae, tmp_path / "v.pt", r"p\(x\|z\)")


def test_tied_tensors_are_refused(tmp_path):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 4))
    network[1].weight = network[0].weight
    refused(small(likelihood=likelihoods.Bernoulli(network)), tmp_path / "v.pt", "shared between modules")


@pytest.mark.parametrize(
    ("piece", "match"),
    [
        (lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1), "prior: .*lambda"),
        (lambda: dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1), "lambda"),
    ],
)
def test_lambdas_are_refused(piece, match, tmp_path):
    refused(small(prior=piece), tmp_path / "v.pt", match)


def test_a_parameter_of_pyros_store_is_refused(mine, tmp_path, monkeypatch):
    def stored():
        return dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1)

    stored.__module__, stored.__qualname__ = "users_own", "stored"
    monkeypatch.setattr(mine, "stored", stored, raising=False)
    refused(small(prior=stored), tmp_path / "v.pt", "pyro.param")


def test_a_model_at_one_condition_is_refused(tmp_path):
    vae = VAE((4,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(), y_shape=(3,),
              posterior=posteriors.DiagonalNormal())  # fmt: skip
    refused(vae.given(1), tmp_path / "v.pt", "save the conditional model")


def test_a_class_of_ones_own_is_refused(tmp_path):
    class Own(VAE):
        pass

    vae = small()
    vae.__class__ = Own
    refused(vae, tmp_path / "v.pt", "Own is a class of your own")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ppl_vae.load(tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match=r"is a folder.*load_run"):
        ppl_vae.load(tmp_path)
    with pytest.raises(ValueError, match=r"state of a training run; use ppl_vae.load_run"):
        ppl_vae.load(checkpoints.save({"modules": []}, tmp_path / "checkpoint.pt"))
    path = small().save(tmp_path / "vae.pt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        ppl_vae.load(path)


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "ppl_vae._files.write", "torch.nn.os", "my-file.x", "x"]
)
@pytest.mark.parametrize("key", ["class", "name"])
def test_a_hostile_file_imports_nothing(name, key, tmp_path):
    path = small().save(tmp_path / "vae.pt")
    state = checkpoints.load(path)
    state["pieces"]["prior"]["args"] = [{"list": [{key: name, "args": ["true"], "kwargs": {}}]}]
    checkpoints.save({k: v for k, v in state.items() if k != "format"}, path)
    with pytest.raises(ValueError, match=r"names code|no import path"):
        ppl_vae.load(path)


def test_a_state_that_is_not_whole_is_refused(tmp_path):
    path = small().save(tmp_path / "vae.pt")
    whole = {k: v for k, v in checkpoints.load(path).items() if k != "format"}
    for broken in (
        whole | {"pieces": {}},
        whole | {"data": None},
        whole | {"data": {**whole["data"], "x_shape": [10**9, 10**9]}},
        whole | {"pieces": whole["pieces"] | {"prior": {"same": 7}}},
        whole
        | {"pieces": whole["pieces"] | {"prior": {"class": "torch.nn.functional.relu", "args": [], "kwargs": {}}}},
        whole | {"weights": {}},
    ):
        checkpoints.save(broken, path)
        with pytest.raises(ValueError, match=r"vae\.pt"):
            ppl_vae.load(path)


def test_values_of_every_kind_come_back():
    values = [
        None,
        True,
        3,
        1.5,
        "text",
        (1, [2, {"a": {1, 2}}]),
        torch.float64,
        torch.nn.functional.softplus,
        nn.Linear,
    ]
    values += [functools.partial(networks.MLP, [3], activation="relu"), networks.MLP((5,), init="he_normal")]
    tree = Describer()(values, "values")
    again = Builder()(tree)
    assert again[:9] == values[:9]
    assert again[9].func is networks.MLP
    assert again[9].keywords == {"activation": "relu"}
    assert again[10] == values[10]
    assert set(names(tree)) == {"torch.nn.functional.softplus", "torch.nn.Linear", "ppl_vae.networks.MLP"}


def test_something_in_itself_is_refused():
    module = nn.Sequential(nn.Linear(1, 1))
    module[0].in_features = module
    with pytest.raises(ValueError, match="holds itself"):
        Describer()(module, "network")


@pytest.mark.parametrize("place", ["", "nowhere/vae.pt"])
def test_a_place_that_takes_no_file_is_named(place, tmp_path):
    with pytest.raises(OSError, match=r"VAE\.save: .* expected a file to write"):
        small().save(tmp_path / place)


@pytest.mark.parametrize("y_shape", [(), (2, 2), (0,), (1.5,)])
def test_a_condition_of_another_shape_is_refused(y_shape):
    with pytest.raises(ValueError, match=r"VAE: y_shape is .* expected \(k,\)"):
        VAE((3,), prior=priors.StandardNormal(2), likelihood=likelihoods.Normal(), posterior=None, y_shape=y_shape)
