"""The MLP's options as the article has them, and the joint between a network and a piece."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from pyro import infer
from torch import Tensor, nn

from ppl_vae import VAE, likelihoods, networks, objectives, posteriors, priors
from ppl_vae._scopes import evaluation_mode
from ppl_vae.networks import MLP, Binding, ParameterNetwork
from ppl_vae.objectives import sample_log_weights


def linears(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def batch_norms(network: nn.Module) -> list[nn.BatchNorm1d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]


def built(network: Any, in_shape: tuple[int, ...], event_shape: tuple[int, ...], count: int = 1) -> ParameterNetwork:
    parameters = ParameterNetwork(network, "likelihood Foo", count)
    parameters.build(in_shape, event_shape)
    return parameters


# The MLP


def test_sizes() -> None:
    network = MLP([500, 300, 150])((1, 28, 28), (4,))
    assert [(layer.in_features, layer.out_features) for layer in linears(network)] == [
        (784, 500),
        (500, 300),
        (300, 150),
        (150, 4),
    ]
    assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 4)
    assert [(layer.in_features, layer.out_features) for layer in linears(MLP([])((2,), (1, 3, 3)))] == [(2, 9)]


def test_image_outputs_keep_the_order_of_pixels() -> None:
    flat, image = MLP([5])((2,), (12,)), MLP([5])((2,), (3, 2, 2))
    image.load_state_dict(flat.state_dict())
    z = torch.randn(4, 2)
    assert torch.equal(image(z).flatten(1), flat(z))


def assert_moments(sample: Tensor, variance: float) -> None:
    """Mean 0 and the given variance, within 5 of the standard errors measured on the sample; and normal."""
    n = sample.numel()
    assert abs(sample.mean()) < 5 * sample.std() / n**0.5
    squares = sample.flatten() ** 2
    assert abs(squares.mean() - variance) < 5 * squares.std() / n**0.5
    fourth = (sample.flatten() / variance**0.5) ** 4  # 3 for a normal, 1.8 for a uniform
    assert abs(fourth.mean() - 3) < 5 * fourth.std() / n**0.5


@pytest.mark.parametrize("fan_in", [50, 400])
def test_he_normal_draws_weights_and_biases_with_variance_two_over_fan_in(fan_in: int) -> None:
    network = MLP([20_000])((fan_in,), (2,))
    first, last = linears(network)
    assert_moments(first.weight.detach()[:2000], 2 / fan_in)
    assert_moments(first.bias.detach(), 2 / fan_in)
    assert_moments(last.weight.detach(), 2 / 20_000)
    biases = torch.cat([linears(MLP([fan_in])((3,), (1000,)))[1].bias.detach() for _ in range(20)])
    assert_moments(biases, 2 / fan_in)  # the article draws the output layer's like the others


def test_torch_init_is_that_of_linear() -> None:
    torch.manual_seed(0)
    expected = [nn.Linear(4, 3), nn.Linear(3, 2)]
    torch.manual_seed(0)
    network = MLP([3], init="torch")((4,), (2,))
    for layer, other in zip(linears(network), expected, strict=True):
        assert torch.equal(layer.weight, other.weight)
        assert torch.equal(layer.bias, other.bias)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("softplus", nn.functional.softplus),
        ("relu", torch.relu),
        ("sigmoid", torch.sigmoid),
        ("tanh", torch.tanh),
        ("none", lambda h: h),
        ("leaky_relu", lambda h: torch.where(h > 0, h, 0.01 * h)),
        ("elu", lambda h: torch.where(h > 0, h, h.exp() - 1)),
        ("gelu", lambda h: h * torch.special.ndtr(h)),
        ("silu", lambda h: h * torch.sigmoid(h)),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_forward_is_the_formula(activation: Any, function: Any, batch_norm: bool, training: bool) -> None:
    network = MLP([6, 5], activation=activation, batch_norm=batch_norm)((4,), (3,)).double().train(training)
    x = torch.randn(7, 4, dtype=torch.float64)
    h = x
    *hidden, last = linears(network)
    for layer, norm in zip(hidden, batch_norms(network) or [None, None], strict=True):
        h = h @ layer.weight.T + layer.bias
        if norm is not None:  # between the linear map and the activation
            mean, variance = (h.mean(0), h.var(0, unbiased=False)) if training else (0.0 * h[0], 0.0 * h[0] + 1)
            h = (h - mean) / (variance + 1e-3).sqrt()
        h = function(h)
    torch.testing.assert_close(network(x), h @ last.weight.T + last.bias, rtol=1e-10, atol=1e-12)


def test_without_activation_it_is_linear() -> None:
    network = MLP([6, 5], activation="none")((4,), (3,)).double()
    a, b, zero = torch.randn(2, 4).double(), torch.randn(2, 4).double(), torch.zeros(2, 4).double()
    torch.testing.assert_close(
        network(2 * a - 3 * b), 2 * network(a) - 3 * network(b) + 2 * network(zero), rtol=1e-10, atol=1e-12
    )


def test_batch_norm_is_the_articles() -> None:
    network = MLP([6, 5], batch_norm=True)((4,), (3,))
    kinds = [type(module).__name__ for module in network]
    assert kinds == ["Linear", "BatchNorm1d", "Softplus"] * 2 + ["Linear"]
    first = batch_norms(network)[0]
    assert [(norm.momentum, norm.eps, norm.affine) for norm in batch_norms(network)] == [(0.1, 1e-3, True)] * 2
    x = torch.randn(8, 4)
    h = linears(network)[0](x)
    network(x)  # decay 0.9: nine tenths of the old statistics stay
    torch.testing.assert_close(first.running_mean, 0.1 * h.mean(0))
    torch.testing.assert_close(first.running_var, 0.9 + 0.1 * h.var(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": [300, 0]}, r"MLP: hidden\[1\] is 0; expected a positive integer"),
        ({"hidden": [-5]}, r"MLP: hidden\[0\] is -5; expected a positive integer"),
        ({"hidden": [2.5]}, r"MLP: hidden\[0\] is 2.5; expected a positive integer"),
        ({"hidden": [True]}, r"MLP: hidden\[0\] is True; expected a positive integer"),
        ({"hidden": 300}, r"MLP: hidden is 300; expected a list of widths such as \[300, 150\]"),
        ({"activation": "Softplus"}, r"MLP: activation is 'Softplus'; .*\(did you mean softplus\?\)"),
        (
            {"activation": "swish"},
            r"expected one of softplus, relu, leaky_relu, elu, gelu, silu, sigmoid, tanh, none",
        ),
        ({"init": "he"}, r"MLP: init is 'he'; expected one of he_normal, torch"),
    ],
)
def test_bad_options_of_the_mlp(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(**arguments)


def test_a_factory_makes_a_new_network_each_time() -> None:
    factory = MLP([3])
    one, other = factory((2,), (2,)), factory((2,), (2,))
    assert not {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}
    assert pickle.loads(pickle.dumps(factory)) == factory


# ParameterNetwork


def test_parameters_are_the_networks_output_cut_along_the_first_dimension() -> None:
    network = nn.Sequential(nn.Linear(4, 12), nn.Unflatten(1, (4, 3)))
    parameters = built(network, (4,), (2, 3), count=2)
    x = torch.randn(5, 4)
    first, second = parameters(x)
    assert torch.equal(first, network(x)[:, :2])
    assert torch.equal(second, network(x)[:, 2:])


@pytest.mark.parametrize("batch_shape", [(), (5,), (2, 5), (3, 2, 5)])
def test_any_number_of_batch_dimensions(batch_shape: tuple[int, ...]) -> None:
    parameters = built(MLP([6]), (1, 2, 2), (3,), count=2)
    x = torch.randn(*batch_shape, 1, 2, 2)
    first, second = parameters(x)
    assert first.shape == second.shape == (*batch_shape, 3)
    assert parameters.network is not None
    expected = parameters.network(x.reshape(-1, 1, 2, 2))
    torch.testing.assert_close(torch.cat([first, second], -1).reshape(-1, 6), expected)


@pytest.mark.parametrize("shape", [(5, 4), (5, 2, 2, 1), (4,), (5, 1, 2, 3)], ids=str)
def test_other_shapes_are_refused_though_the_sizes_fit(shape: tuple[int, ...]) -> None:
    parameters = built(MLP([6]), (1, 2, 2), (3,))
    with pytest.raises(ValueError, match=r"likelihood Foo was given an input of shape .*; expected \(1, 2, 2\)"):
        parameters(torch.zeros(shape))


def test_a_factory_is_called_once() -> None:
    calls = []

    def factory(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
        calls.append((in_shape, out_shape))
        return nn.Linear(in_shape[0], out_shape[0])

    parameters = built(factory, (4,), (3,), count=2)
    assert calls == [((4,), (6,))]
    for in_shape, event_shape in (((4,), (3,)), ((5,), (3,))):
        with pytest.raises(
            ValueError,
            match=r"likelihood Foo already belongs to a VAE \(its network maps \(4,\) to \(3,\)\): make a new piece "
            "for each VAE, or hand both the same nn.Module",
        ):
            parameters.build(in_shape, event_shape)
    assert len(calls) == 1


def test_a_ready_made_module_may_be_built_again_for_the_same_sizes() -> None:
    network = nn.Linear(4, 3)
    parameters = built(network, (4,), (3,))
    parameters.build((4,), (3,))
    assert parameters.network is network
    with pytest.raises(ValueError, match="already belongs to a VAE"):
        parameters.build((4,), (3, 1))


def test_a_piece_with_a_factory_belongs_to_one_vae() -> None:
    pieces = {
        "prior": priors.StandardNormal(2),
        "likelihood": likelihoods.Bernoulli(nn.Linear(2, 6)),
        "posterior": posteriors.DiagonalNormal(MLP([3])),
    }
    VAE((6,), **pieces)
    with pytest.raises(ValueError, match="posterior DiagonalNormal already belongs to a VAE"):
        VAE((6,), **pieces)


def test_one_module_shares_its_weights_between_pieces_and_vaes() -> None:
    decoder = nn.Linear(2, 6)
    a, b = (
        VAE(
            (6,),
            prior=priors.StandardNormal(2),
            likelihood=likelihoods.Bernoulli(decoder),
            posterior=posteriors.DiagonalNormal(MLP([3])),
        )
        for _ in range(2)
    )
    z = torch.randn(4, 2)
    before = b.decode(z)
    with torch.no_grad():
        decoder.weight.add_(1.0)
    assert torch.equal(a.decode(z), b.decode(z))
    assert not torch.equal(before, b.decode(z))
    # twice in one VAE: a mixture of experts with one body, counted as one set of parameters
    shared = MLP([3])((2,), (4,))
    vae = VAE(
        (2,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Normal(nn.Sequential(shared, nn.Linear(4, 2))),
        posterior=posteriors.DiagonalNormal(shared),
    )
    assert len(list(vae.parameters())) == 4 + 2
    weights = sample_log_weights(vae.model, vae.guide, torch.randn(3, 2))
    objectives.ELBO()(weights).surrogate.sum().backward()
    assert all(p.grad is not None for p in vae.parameters())


def test_an_unbuilt_piece_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="likelihood Bernoulli has no sizes yet: put it into a VAE, or give it a"):
        likelihoods.Bernoulli(MLP([3]))(torch.zeros(4, 2))
    ready = likelihoods.Bernoulli(nn.Linear(2, 6))
    assert ready(torch.zeros(3, 4, 2)).batch_shape == (3, 4)


@pytest.mark.parametrize("network", [nn.Linear, 3, "MLP", MLP])
def test_what_is_no_network_is_refused(network: Any) -> None:
    with pytest.raises(TypeError, match=r"likelihood Bernoulli: network is .*; expected an nn.Module or a factory"):
        likelihoods.Bernoulli(network)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Linear(7, 3), r"likelihood Foo: its network does not take an input of shape \(4,\) per datum \(.*4.*7"),
        (nn.Linear(4, 2), r"likelihood Foo: its network maps \(4,\) to \(2,\) per datum; expected \(3,\)"),
        (nn.Conv2d(4, 3, 1), r"likelihood Foo: its network does not take an input of shape \(4,\)"),
        (
            nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1))),
            r"maps \(4,\) to \(3, 1\) per datum; expected \(3,\)",
        ),
        (nn.LSTM(4, 3), r"likelihood Foo: its network maps \(4,\) to tuple per datum; expected \(3,\)"),
        (lambda in_shape, out_shape: nn.Linear(4, 2), r"maps \(4,\) to \(2,\) per datum; expected \(3,\)"),
    ],
    ids=["input", "output", "rank", "event", "no tensor", "factory"],
)
def test_networks_that_do_not_fit(network: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(network, (4,), (3,))


@pytest.mark.parametrize("returned", [None, torch.zeros(3), lambda x: x])
def test_a_factory_that_returns_no_module(returned: Any) -> None:
    kind = type(returned).__name__
    with pytest.raises(TypeError, match=rf"likelihood Foo: the network factory .* returned {kind}; expected an nn.Mod"):
        built(lambda in_shape, out_shape: returned, (4,), (3,))


class Noisy(nn.Module):
    """Noise in evaluation mode too, dropout and batch normalisation: all that a look at the sizes could move."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(3).eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.frozen(self.dropout(self.norm(self.linear(x))))
        return h + torch.randn_like(h)


def test_the_look_at_the_sizes_leaves_no_trace() -> None:
    network = Noisy()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    built(network, (4,), (3,))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert {name: module.training for name, module in network.named_modules()} == {
        "": True,
        "linear": True,
        "norm": True,
        "dropout": True,
        "frozen": False,
    }
    assert all(p.grad is None for p in network.parameters())


def test_the_modes_return_where_the_look_fails() -> None:
    network = Noisy()
    with pytest.raises(ValueError, match="does not take an input"):
        built(network, (5,), (3,))
    assert network.training
    assert not network.frozen.training


@pytest.mark.parametrize("num_particles", [1, 4])
def test_batch_norm_learns_once_a_step_whatever_the_particles(num_particles: int) -> None:
    vae = VAE(
        (6,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(MLP([5], batch_norm=True)),
        posterior=posteriors.DiagonalNormal(MLP([5], batch_norm=True)),
    )
    encoder, decoder = batch_norms(vae.posterior)[0], batch_norms(vae.likelihood)[0]
    assert int(encoder.num_batches_tracked) == int(decoder.num_batches_tracked) == 0, "construction moved statistics"
    x = torch.randint(2, (8, 6)).float()
    seen = []
    decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    sample_log_weights(vae.model, vae.guide, x, num_particles=num_particles)
    assert int(encoder.num_batches_tracked) == int(decoder.num_batches_tracked) == 1
    h = linears(vae.posterior)[0](x).detach()
    torch.testing.assert_close(encoder.running_mean, 0.1 * h.mean(0))  # of the data alone, not of K copies
    torch.testing.assert_close(encoder.running_var, 0.9 + 0.1 * h.var(0))
    assert seen[0].shape == (num_particles * 8, 5)
    torch.testing.assert_close(decoder.running_var, 0.9 + 0.1 * seen[0].var(0))
    for _ in range(2):
        vae.reconstruct(x), vae.sample(3)
    assert int(encoder.num_batches_tracked) == int(decoder.num_batches_tracked) == 1, "evaluation moved statistics"


def test_batch_norm_under_pyros_vectorised_particles() -> None:
    """Where a network saw (K, batch, d), batch normalisation would fail, or normalise the wrong dimension."""
    vae = VAE(
        (6,),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(MLP([3], batch_norm=True)),  # as many channels as particles
        posterior=posteriors.DiagonalNormal(MLP([5], batch_norm=True)),
    )
    widths = []
    batch_norms(vae.likelihood)[0].register_forward_pre_hook(lambda m, inputs: widths.append(tuple(inputs[0].shape)))
    elbo = infer.Trace_ELBO(3, max_plate_nesting=1, vectorize_particles=True)
    elbo.differentiable_loss(vae.model, vae.guide, torch.ones(8, 6)).backward()
    assert widths == [(24, 3)]


def test_a_binding_is_all_that_a_piece_learns() -> None:
    seen = []

    class Prior(nn.Module):
        def bind(self, binding: Binding) -> None:
            seen.append(binding)

        def forward(self) -> Any:
            return priors.StandardNormal(2)()

    vae = VAE(
        (1, 2, 3),
        prior=Prior(),
        likelihood=likelihoods.Normal(MLP([3])),
        posterior=posteriors.DiagonalNormal(MLP([3])),
    )
    assert seen == [networks.Binding(x_shape=(1, 2, 3), latent_shape=(2,), posterior=vae.posterior)]


def test_evaluation_mode_restores_each_submodule() -> None:
    module = Noisy()
    inside = []
    with pytest.raises(KeyError), evaluation_mode(module):  # noqa: PT012
        inside = [m.training for m in module.modules()]
        raise KeyError
    assert not any(inside)
    assert module.training
    assert module.norm.training
    assert not module.frozen.training
