"""Gated and convolutional networks, dropout, normalisation, labels, and the start of the output bias from data."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, elu, one_hot

from ppl_vae import SVI, VAE, likelihoods, objectives, posteriors, priors
from ppl_vae.networks import MLP, Convolutional, GatedMLP, ParameterNetwork, ResidualConvolutional
from ppl_vae.objectives import sample_log_weights

SMALL: dict[str, Callable[..., Any]] = {
    "MLP": functools.partial(MLP, [6, 5]),
    "GatedMLP": functools.partial(GatedMLP, [6, 5]),
    "Convolutional": functools.partial(Convolutional, [3, 4], [6]),
    "ResidualConvolutional": functools.partial(ResidualConvolutional, [3, 4], [6]),
}
IMAGES = ["Convolutional", "ResidualConvolutional"]
every_network = pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
for_images = pytest.mark.parametrize("make", [SMALL[name] for name in IMAGES], ids=IMAGES)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def of_kind(module: nn.Module, *kinds: type[nn.Module]) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, kinds)]


def built(network: Any, in_shape: tuple[int, ...], event_shape: tuple[int, ...], **options: Any) -> ParameterNetwork:
    parameters = ParameterNetwork(network, "likelihood Foo", options.pop("count", 1))
    parameters.build(in_shape, event_shape, **options)
    return parameters


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


# Sizes


@for_images
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 3), (2, 3), (7, 7), (8, 8), (9, 14), (13, 8), (28, 28), (28, 20), (31, 33), (33, 17)], ids=str
)
def test_any_image_goes_in_and_comes_out(make: Any, channels: int, size: tuple[int, int]) -> None:
    image = (channels, *size)
    for other in ((4,), (2, 3)):
        assert make()(image, other)(torch.randn(2, *image)).shape == (2, *other)
        assert make()(other, image)(torch.randn(2, *other)).shape == (2, *image)
    assert make()((2, 5, 6), image)(torch.randn(2, 2, 5, 6)).shape == (2, *image)


@for_images
def test_every_small_size(make: Any) -> None:
    for height, width in itertools.product(range(1, 12), (1, 2, 5)):
        image = (1, height, width)
        assert make()(image, (2,))(torch.zeros(1, *image)).shape == (1, 2)
        assert make()((2,), image)(torch.zeros(1, 2)).shape == (1, *image)


def test_sizes_are_halved_rounding_up_and_met_again_on_the_way_back() -> None:
    seen = []
    for network, x in (
        (Convolutional([3, 4, 5])((1, 21, 6), (2,)), torch.zeros(1, 1, 21, 6)),
        (Convolutional([3, 4, 5])((2,), (1, 21, 6)), torch.zeros(1, 2)),
    ):
        for convolution in of_kind(network, nn.Conv2d):
            convolution.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
        network(x)
    assert seen == [(3, 11, 3), (4, 6, 2), (5, 3, 1), (4, 6, 2), (3, 11, 3), (1, 21, 6)]


def test_a_dimension_of_one_has_kernels_of_one() -> None:
    network = Convolutional([3, 4])((2, 1, 9), (2,))
    assert [tuple(c.kernel_size) for c in of_kind(network, nn.Conv2d)] == [(1, 3), (1, 3)]
    network = ResidualConvolutional([3, 4])((2,), (2, 1, 1))
    assert {tuple(c.kernel_size) for c in of_kind(network, nn.Conv2d)} == {(1, 1)}


def test_parameter_counts() -> None:
    def linear(fan_in: int, fan_out: int) -> int:
        return (fan_in + 1) * fan_out

    def conv(fan_in: int, fan_out: int, kernel: int = 3) -> int:
        return (kernel**2 * fan_in + 1) * fan_out

    assert count(GatedMLP([30, 20])((1, 2, 3), (4,))) == linear(6, 60) + linear(30, 40) + linear(20, 4)
    assert count(MLP([30], layer_norm=True)((6,), (4,))) == linear(6, 30) + 2 * 30 + linear(30, 4)
    factory = Convolutional([32, 64], [256])
    dense = linear(64 * 49, 256) + linear(256, 80)
    assert count(factory((1, 28, 28), (80,))) == conv(1, 32) + conv(32, 64) + dense
    dense = linear(40, 256) + linear(256, 64 * 49)
    assert count(factory((40,), (2, 28, 28))) == dense + conv(64, 32) + conv(32, 2)
    # without biases before batch normalisation, which has two parameters a channel
    normed = Convolutional([32, 64], [256], kernel=5, batch_norm=True)((1, 28, 28), (80,))
    assert count(normed) == 25 * 32 + 64 + 25 * 32 * 64 + 128 + 64 * 49 * 256 + 512 + linear(256, 80)
    residual = ResidualConvolutional([8, 16], [], blocks=2)
    blocks = 4 * conv(8, 8) + conv(8, 16) + 3 * conv(16, 16) + conv(8, 16, 1)
    assert count(residual((1, 28, 28), (80,))) == conv(1, 8) + blocks + linear(16 * 49, 80)
    blocks = 2 * conv(16, 16) + conv(16, 8) + conv(8, 8) + conv(16, 8, 1) + 4 * conv(8, 8)
    assert count(residual((40,), (2, 28, 28))) == linear(40, 16 * 49) + blocks + conv(8, 2)


# What they compute


def test_gated_layers_are_the_formula() -> None:
    network = GatedMLP([6, 5])((2, 2), (3,)).double()
    x = torch.randn(7, 2, 2, dtype=torch.float64)
    h = x.flatten(1)
    *hidden, last = of_kind(network, nn.Linear)
    for layer in hidden:
        (a, c), (b, d) = layer.weight.chunk(2), layer.bias.chunk(2)
        h = (h @ a.T + b) * torch.sigmoid(h @ c.T + d)
    close(network(x), h @ last.weight.T + last.bias)


def test_layer_norm_is_the_formula() -> None:
    network = MLP([6], activation="tanh", layer_norm=True)((4,), (3,)).double()
    first, last = of_kind(network, nn.Linear)
    (norm,) = of_kind(network, nn.LayerNorm)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(7, 4, dtype=torch.float64)
    h = x @ first.weight.T + first.bias
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    h = torch.tanh(h * norm.weight + norm.bias)
    close(network(x), h @ last.weight.T + last.bias)


def test_convolutional_layers_are_the_formula() -> None:
    x, z = torch.randn(3, 2, 5, 4, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    network = Convolutional([3], [6], activation="elu")((2, 5, 4), (2,)).double()
    (conv,), (first, last) = of_kind(network, nn.Conv2d), of_kind(network, nn.Linear)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    places = [[padded[:, :, i : i + 3, j : j + 3].flatten(1) for j in (0, 2)] for i in (0, 2, 4)]
    maps = torch.stack([torch.stack([p @ conv.weight.flatten(1).T + conv.bias for p in r], -1) for r in places], -2)
    h = elu(elu(maps).flatten(1) @ first.weight.T + first.bias)
    close(network(x), h @ last.weight.T + last.bias)
    network = Convolutional([3], [6], activation="elu")((2,), (2, 5, 4)).double()
    (conv,), (first, last) = of_kind(network, nn.Conv2d), of_kind(network, nn.Linear)
    h = elu(elu(z @ first.weight.T + first.bias) @ last.weight.T + last.bias).reshape(3, 3, 3, 2)
    h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :5, :4]
    close(network(z), conv2d(h, conv.weight, conv.bias, padding=1))


def test_residual_blocks_are_the_formula() -> None:
    x, z = torch.randn(3, 2, 5, 4, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    network = ResidualConvolutional([3, 4], [], activation="elu", blocks=1)((2, 5, 4), (2,)).double()
    stem, *convs = of_kind(network, nn.Conv2d)
    (last,) = of_kind(network, nn.Linear)

    def apply(conv: nn.Conv2d, h: Tensor, stride: int = 1) -> Tensor:
        return conv2d(h, conv.weight, conv.bias, padding=[k // 2 for k in conv.weight.shape[2:]], stride=stride)

    h = apply(stem, x)
    h = avg_pool2d(h, 2, ceil_mode=True) + apply(convs[1], elu(apply(convs[0], elu(h), 2)))
    h = apply(convs[2], avg_pool2d(h, 2, ceil_mode=True)) + apply(convs[4], elu(apply(convs[3], elu(h), 2)))
    close(network(x), elu(h).flatten(1) @ last.weight.T + last.bias)

    network = ResidualConvolutional([3, 4], [], activation="elu", blocks=1)((2,), (2, 5, 4)).double()
    *convs, end = of_kind(network, nn.Conv2d)
    (first,) = of_kind(network, nn.Linear)

    def twice(h: Tensor, height: int, width: int) -> Tensor:
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width]

    h = (z @ first.weight.T + first.bias).reshape(3, 4, 2, 1)
    h = twice(apply(convs[0], h), 3, 2) + apply(convs[2], elu(apply(convs[1], twice(elu(h), 3, 2))))
    h = twice(h, 5, 4) + apply(convs[4], elu(apply(convs[3], twice(elu(h), 5, 4))))
    close(network(z), apply(end, elu(h)))


def test_a_mean_over_two_by_two_places_takes_what_there_is_at_an_odd_edge() -> None:
    network = ResidualConvolutional([3], blocks=1)((1, 3, 3), (2,))
    (pool,) = of_kind(network, nn.AvgPool2d)
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert torch.equal(pool(x), torch.tensor([[[[2.0, 3.5], [6.5, 8.0]]]]))


@for_images
def test_every_pixel_is_seen_and_every_latent_reaches_every_pixel(make: Any) -> None:
    factory = make(activation="softplus")
    x = torch.randn(1, 2, 13, 9, dtype=torch.float64, requires_grad=True)
    encoder = factory((2, 13, 9), (3,)).double()
    for output in encoder(x)[0]:
        (gradient,) = torch.autograd.grad(output, x, retain_graph=True)
        assert (gradient != 0).all()
    z = torch.randn(3, dtype=torch.float64)
    decoder = factory((3,), (2, 13, 9)).double()
    assert (torch.autograd.functional.jacobian(lambda z: decoder(z[None])[0], z) != 0).all()


@for_images
def test_a_constant_image_is_decoded_without_checkerboard(make: Any) -> None:
    """With the same in all places at the start, the middle stays the same: a transposed convolution's would not."""
    decoder = make()((2,), (1, 80, 80)).double()
    start = of_kind(decoder, nn.Linear)[-1]
    with torch.no_grad():
        for values in (start.weight.view(4, 400, -1), start.bias.view(4, 400, 1)):
            values.copy_(values[:, :1].expand_as(values).clone())
        middle = decoder(torch.randn(3, 2).double())[:, :, 38:42, 38:42]
    close(middle, middle[:, :, :1, :1].expand_as(middle))


@for_images
def test_an_encoder_notices_a_shift_as_a_convolution_does(make: Any) -> None:
    """The last maps of a picture moved by a whole stride are the maps, moved."""
    encoder = make()((1, 96, 96), (2,)).double()
    body = encoder[: next(i for i, layer in enumerate(encoder) if isinstance(layer, nn.Flatten))]
    x = torch.randn(2, 1, 96, 96, dtype=torch.float64)
    close(body(x.roll(4, -1))[..., 11:13, 11:13], body(x)[..., 11:13, 10:12])


# Starting weights


@pytest.mark.parametrize("image", [(5, 40, 40), (5, 3, 40)], ids=str)
def test_he_normal_has_the_fan_in_of_a_kernel(image: tuple[int, int, int]) -> None:
    for kernel in (3, 5):
        conv, *_ = of_kind(Convolutional([4000], [], kernel=kernel)(image, (2,)), nn.Conv2d)
        fan_in = 5 * kernel**2
        for values in (conv.weight.detach().flatten()[:50_000], conv.bias.detach()):
            squares = values**2 * fan_in / 2
            assert abs(squares.mean() - 1) < 5 * squares.std() / squares.numel() ** 0.5


def test_depth_does_not_blow_a_residual_network_up() -> None:
    x = torch.randn(20, 3, 16, 16)
    spread = [
        ResidualConvolutional([16, 16], [], blocks=blocks)((3, 16, 16), (50,))(x).std().item() for blocks in (1, 12)
    ]
    assert spread[1] < 3 * spread[0]  # twelve times the blocks; unscaled, the variance would double 22 times


@every_network
def test_the_seed_decides(make: Any) -> None:
    def state(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return [p for p in make()((4,), (1, 4, 5)).parameters()]

    assert all(torch.equal(a, b) for a, b in zip(state(3), state(3), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(state(3), state(4), strict=True))


def test_dropout_of_zero_changes_nothing() -> None:
    """Published figures depend on the draws of an MLP staying what they were."""
    torch.manual_seed(0)
    network = MLP([3], dropout=0.0, layer_norm=False)((4,), (2,))
    torch.manual_seed(0)
    for sizes in ((4, 3), (3, 2)):
        layer = nn.Linear(*sizes)
        nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
        nn.init.normal_(layer.bias, std=(2 / layer.in_features) ** 0.5)
        mine = of_kind(network, nn.Linear)[layer.in_features == 3]
        assert torch.equal(mine.weight, layer.weight)
        assert torch.equal(mine.bias, layer.bias)
    assert list(network.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


# Options


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("option", ["batch_norm", "layer_norm", "dropout", "torch"])
@pytest.mark.parametrize("decoding", [False, True])
def test_gradients_reach_every_parameter(name: str, option: str, decoding: bool) -> None:
    options = {"dropout": {"dropout": 0.1}, "torch": {"init": "torch"}}.get(option, {option: True})
    if name == "GatedMLP" and option.endswith("norm"):
        return
    shapes: Any = ((3,), (2, 6, 5)) if decoding else ((2, 6, 5), (3,))
    smooth = {} if name == "GatedMLP" else {"activation": "softplus"}
    network = SMALL[name](**options, **smooth)(*shapes).double()
    x = torch.randn(8, *shapes[0], dtype=torch.float64)
    (network(x) * torch.randn(8, *shapes[1], dtype=torch.float64)).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.dtype == torch.float64
        assert parameter.grad is not None
        # in training as well: no bias before batch normalisation, but in an MLP, which is the article's
        if not (name == "MLP" and option == "batch_norm" and key.endswith("bias")):
            assert parameter.grad.abs().max() > 1e-8, key


@every_network
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_and_pickles(make: Any, duplicate: Callable[[Any], Any]) -> None:
    assert duplicate(make()) == make()
    for shapes in (((4,), (1, 5, 4)), ((1, 5, 4), (4,))):
        network = make()(*shapes)
        other = duplicate(network)
        x = torch.randn(3, *shapes[0])
        assert torch.equal(other(x), network(x))
        with torch.no_grad():
            next(other.parameters()).add_(1.0)
        assert not torch.equal(other(x), network(x))


@every_network
def test_dropout_draws_masks_while_training_alone(make: Any) -> None:
    network = make(dropout=0.5)((4,), (1, 4, 5))
    z = torch.randn(6, 4)
    assert not torch.equal(network(z), network(z))
    network.eval()
    assert torch.equal(network(z), network(z))
    kinds = {type(part).__name__ for part in of_kind(network, nn.Dropout, nn.Dropout2d)}
    assert kinds == ({"Dropout"} if make.func in (MLP, GatedMLP) else {"Dropout", "Dropout2d"})


def test_dropout_keeps_the_mean_and_drops_at_its_rate() -> None:
    network = MLP([4000], dropout=0.3)((2,), (2,))
    seen = []
    of_kind(network, nn.Dropout)[0].register_forward_hook(lambda m, inputs, output: seen.append((inputs[0], output)))
    network(torch.randn(20, 2))
    ((before, after),) = seen
    dropped = (after == 0).double()
    assert abs(dropped.mean() - 0.3) < 5 * (0.21 / dropped.numel()) ** 0.5
    torch.testing.assert_close(after[after != 0], before[after != 0] / 0.7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(dropout=1.0), r"MLP: dropout is 1.0; expected a probability from 0 up to, not including, 1"),
        (lambda: MLP(dropout=-0.1), r"MLP: dropout is -0.1; expected a probability"),
        (lambda: MLP(dropout=True), r"MLP: dropout is True; expected a probability"),
        (lambda: MLP(batch_norm=True, layer_norm=True), r"MLP: batch_norm and layer_norm are both set; expected one"),
        (lambda: GatedMLP(300), r"GatedMLP: hidden is 300; expected a list of widths such as \[300, 300\]"),
        (lambda: GatedMLP("12"), r"GatedMLP: hidden is '12'; expected a list"),
        (lambda: GatedMLP([0]), r"GatedMLP: hidden\[0\] is 0; expected a positive integer"),
        (lambda: GatedMLP(init="he"), r"GatedMLP: init is 'he'; expected one of he_normal, torch"),
        (lambda: GatedMLP(dropout=2), r"GatedMLP: dropout is 2; expected a probability"),
        (lambda: Convolutional([]), r"Convolutional: channels is empty; expected one entry for each halving, or use"),
        (lambda: Convolutional(32), r"Convolutional: channels is 32; expected a list of numbers of channels such as"),
        (lambda: Convolutional([4, 0]), r"Convolutional: channels\[1\] is 0; expected a positive integer"),
        (lambda: Convolutional(hidden=[-1]), r"Convolutional: hidden\[0\] is -1; expected a positive integer"),
        (lambda: Convolutional(kernel=4), r"Convolutional: kernel is 4; expected an odd number of at least 3"),
        (lambda: Convolutional(kernel=1), r"Convolutional: kernel is 1; expected an odd number of at least 3"),
        (lambda: Convolutional(kernel=3.0), r"Convolutional: kernel is 3.0; expected a positive integer"),
        (lambda: Convolutional(activation="ReLu"), r"Convolutional: activation is 'ReLu'; .*did you mean relu"),
        (lambda: ResidualConvolutional(blocks=0), r"ResidualConvolutional: blocks is 0; expected a positive integer"),
        (
            lambda: ResidualConvolutional(batch_norm=True, layer_norm=True),
            r"ResidualConvolutional: batch_norm and layer_norm are both set",
        ),
        (
            lambda: Convolutional()((784,), (4,)),
            r"Convolutional: neither its input \(784,\) nor its output \(4,\) is an image \(channels, height, width\); "
            r"use MLP, or give pictures without channels the shape \(1, height, width\)",
        ),
        (lambda: ResidualConvolutional()((28, 28), (4,)), r"ResidualConvolutional: neither its input \(28, 28\)"),
    ],
)
def test_refusals(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Normalisation under particles


def conv_vae(network: Callable[[], Any], x_shape: tuple[int, ...] = (1, 7, 6), **given: Any) -> VAE:
    parts = {
        "prior": priors.StandardNormal(2),
        "likelihood": likelihoods.Bernoulli(network()),
        "posterior": posteriors.DiagonalNormal(network()),
    }
    return VAE(x_shape, **(parts | given))


@for_images
@pytest.mark.parametrize("num_particles", [1, 4])
def test_batch_norm_of_images_under_particles(make: Any, num_particles: int) -> None:
    vae = conv_vae(functools.partial(make, batch_norm=True)).double()
    x = torch.randint(2, (8, 1, 7, 6)).double()
    encoder, decoder = (of_kind(piece, nn.BatchNorm2d)[0] for piece in (vae.posterior, vae.likelihood))
    assert int(encoder.num_batches_tracked) == int(decoder.num_batches_tracked) == 0, "construction moved statistics"
    seen = []
    for norm in (encoder, decoder):
        norm.register_forward_hook(lambda m, inputs, output: seen.append((inputs[0].detach(), output.detach())))
    sample_log_weights(vae.model, vae.guide, x, num_particles=num_particles)
    assert [len(given) for given, _ in seen] == [8, 8 * num_particles]  # the data once; every particle of each
    for norm, (h, output) in zip((encoder, decoder), seen, strict=True):
        over = (0, 2, 3)
        mean, variance = h.mean(over), h.var(over, unbiased=False)
        close(output, (h - mean[:, None, None]) / (variance[:, None, None] + 1e-3).sqrt())
        close(norm.running_mean, 0.1 * mean)
        close(norm.running_var, 0.9 + 0.1 * h.var(over))
    statistics = [b.clone() for b in vae.buffers()]
    vae.eval()
    seen.clear()
    sample_log_weights(vae.model, vae.guide, x, num_particles=num_particles)
    for norm, (h, output) in zip((encoder, decoder), seen, strict=True):
        mean, variance = norm.running_mean[:, None, None], norm.running_var[:, None, None]
        close(output, (h - mean) / (variance + 1e-3).sqrt())
    assert all(torch.equal(a, b) for a, b in zip(statistics, vae.buffers(), strict=True)), "evaluation moved them"


@for_images
@pytest.mark.parametrize("option", [{}, {"layer_norm": True}], ids=str)
def test_data_do_not_depend_on_each_other_without_batch_norm(make: Any, option: dict[str, bool]) -> None:
    network = make(**option)((1, 7, 6), (3,)).double()
    x = torch.randn(5, 1, 7, 6, dtype=torch.float64)
    close(network(x), torch.cat([network(row[None]) for row in x]))


# Captured


def trained(network: Callable[[], Any], level: Any, x: Tensor, particles: int = 2) -> tuple[Any, ...]:
    torch.manual_seed(0)
    vae = conv_vae(network)
    svi = SVI(
        vae.model,
        vae.guide,
        functools.partial(torch.optim.Adam, lr=1e-3),
        objectives.ELBO(particles),
        compile=level,
    )
    torch.manual_seed(1)
    losses = [svi.step(x) for _ in range(5)]
    return losses, {name: value.clone() for name, value in vae.state_dict().items()}, svi


@pytest.mark.thinned(2)
@every_network
def test_captured_steps_are_the_eager_ones_bit_for_bit(make: Any) -> None:
    """Running statistics and masks included."""
    x = torch.randint(2, (8, 1, 7, 6)).float()
    norm = {} if make.func is GatedMLP else {"batch_norm": True}
    network = functools.partial(make, dropout=0.3, **norm)
    losses, state, svi = trained(network, "graph", x)
    expected_losses, expected, _ = trained(network, "off", x)
    assert svi.why_eager is None
    assert losses == expected_losses
    for key, value in state.items():
        assert torch.equal(value, expected[key]), key
    counts = {int(value) for key, value in state.items() if key.endswith("num_batches_tracked")}
    assert counts == ({5} if norm else set()), "statistics are learnt once a step"


@pytest.mark.parametrize(("dropout", "different"), [(0.0, 1), (0.5, 6)])
def test_a_captured_graph_draws_new_masks_at_every_step(dropout: float, different: int) -> None:
    """z is not read and nothing is trained: log p(x|z) varies with the masks alone."""
    vae = conv_vae(lambda: MLP([50], dropout=dropout))
    nn.init.zeros_(of_kind(vae.likelihood, nn.Linear)[0].weight)
    x = torch.randint(2, (8, 1, 7, 6)).float()
    svi = SVI(vae.model, vae.guide, functools.partial(torch.optim.SGD, lr=0.0), objectives.ELBO(), compile="graph")
    values = [float(svi.update(x).log_likelihood) for _ in range(6)]
    assert svi.why_eager is None
    assert len(set(values)) == different


# The start of the output bias


@every_network
@pytest.mark.parametrize("how_many", [1, 2])
def test_outputs_start_at_the_values(make: Any, how_many: int) -> None:
    """With the last layer's weights at zero the parameters are the values: the mean over places for a convolution."""
    event_shape = (2, 3, 5)
    parameters = built(make(), (4,), event_shape, count=how_many).double()
    values = [torch.randn(event_shape, dtype=torch.float64) for _ in range(how_many)]
    before = parameters(torch.ones(1, 4).double())
    parameters.start_at(*values)
    last = of_kind(parameters, nn.Linear, nn.Conv2d)[-1]
    nn.init.zeros_(last.weight)
    for value, parameter in zip(values, parameters(torch.randn(7, 4).double()), strict=True):
        expected = value.mean((1, 2), keepdim=True) if isinstance(last, nn.Conv2d) else value
        close(parameter, expected.expand(7, *event_shape))
    if how_many == 2:
        other = built(make(), (4,), event_shape, count=2)
        other.load_state_dict({k: v.float() for k, v in parameters.state_dict().items()})
        other.start_at(torch.tensor(3.0), None)  # a number for all; the other stays
        assert (other(torch.ones(1, 4))[0] == 3).all()
        torch.testing.assert_close(other(torch.ones(1, 4))[1], parameters(torch.ones(1, 4).double())[1].float())
    assert len(before) == how_many


@for_images
def test_the_mean_over_places_is_taken_before_the_link(make: Any) -> None:
    """Else dark margins would decide: the best constant logit of a picture is the logit of its mean."""
    probs = torch.tensor([[0.001, 0.001, 0.5], [0.001, 0.9, 0.6]], dtype=torch.float64)[None]
    parameters = built(make(), (4,), (1, 2, 3)).double()
    parameters.start_at(probs, link=torch.logit)
    last = of_kind(parameters, nn.Conv2d)[-1]
    close(last.bias.detach(), probs.mean().logit()[None])
    parameters = built(MLP([3]), (4,), (1, 2, 3)).double()
    parameters.start_at(probs, link=torch.logit)
    close(of_kind(parameters, nn.Linear)[-1].bias.detach(), probs.logit().flatten())


@every_network
@pytest.mark.parametrize("option", ["batch_norm", "layer_norm", "dropout"])
def test_the_start_leaves_everything_else(make: Any, option: str) -> None:
    if make.func is GatedMLP:
        option = "dropout"
    parameters = built(make(**{option: 0.5 if option == "dropout" else True}), (4,), (1, 3, 5), count=2, y_shape=(2,))
    state, random = {k: v.clone() for k, v in parameters.state_dict().items()}, torch.get_rng_state()
    parameters.start_at(torch.tensor(5.0), torch.tensor(-3.0))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in parameters.modules())
    changed = [k for k, v in parameters.state_dict().items() if not torch.equal(v, state[k])]
    assert changed == [list(dict(parameters.named_parameters()))[-1]]


class Backwards(nn.Module):
    """Its last layer is made first; both have as many biases as there are outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 3)
        self.first = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Shuffled(nn.Module):
    """A convolution of four channels whose places are spread over a picture of two by two."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 4, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).flip(-1)


def _rectified(bias: float) -> nn.Module:
    """Return a network whose last activation passes every output of a high bias, and cuts one of a low bias off."""
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU())
    nn.init.constant_(network[1].bias, bias)
    return network


@pytest.mark.parametrize(
    ("network", "event_shape", "layer"),
    [
        (Backwards(), (3,), "Linear"),
        (nn.Sequential(nn.Linear(4, 3), nn.Tanh()), (3,), "Linear"),
        (_rectified(0.0), (3,), "BatchNorm1d"),
        (_rectified(9.0), (3,), "BatchNorm1d"),
        (Shuffled(), (1, 2, 2), "Conv2d"),
    ],
    ids=["order", "activation", "norm", "norm above zero", "shuffled"],
)
def test_a_bias_that_does_not_come_out_is_refused_and_left(network: Any, event_shape: Any, layer: str) -> None:
    parameters = built(network, (4,), event_shape)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(
        ValueError, match=rf"likelihood Foo: the bias of {layer}, the last layer made for its network, is not added to"
    ):
        parameters.start_at(torch.arange(4.0)[: event_shape[0]].view(-1, *[1] * (len(event_shape) - 1)) + 1)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_biases_that_come_out_by_another_way() -> None:
    for network in (
        nn.Sequential(nn.Linear(4, 12), nn.Unflatten(1, (3, 2, 2))),
        nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1, 1)), nn.Upsample((2, 2))),  # as many as channels
        nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.ConvTranspose2d(4, 3, 2)),
    ):
        values = torch.randn(3, 2, 2)
        parameters = built(network, (4,), (3, 2, 2))
        before = parameters(torch.ones(1, 4))[0]
        bias = list(network.parameters())[-1].detach().clone()
        parameters.start_at(values)
        moved = values - bias.view(3, 2, 2) if len(bias) == 12 else (values.mean((1, 2)) - bias)[:, None, None]
        torch.testing.assert_close(parameters(torch.ones(1, 4))[0], before + moved)


@pytest.mark.parametrize(("network", "shape"), [(nn.Linear(4, 3, bias=False), (3,)), (nn.Identity(), (4,))])
def test_no_bias_at_the_end(network: nn.Module, shape: tuple[int, ...]) -> None:
    parameters = built(network, (4,), shape)
    with pytest.raises(ValueError, match="likelihood Foo: the last layer of its network has no bias for each output"):
        parameters.start_at(torch.zeros(shape))


# Labels, and networks of the user's own


@for_images
def test_labels_are_planes_behind_the_channels(make: Any) -> None:
    parameters = built(make(), (2, 5, 4), (3,), y_shape=(3,)).double()
    x = torch.randn(6, 2, 5, 4, dtype=torch.float64)
    y = one_hot(torch.arange(6) % 3).double()
    (out,) = parameters(x, y)
    network: Any = parameters.network
    planes = torch.stack([torch.stack([torch.full((5, 4), float(v)) for v in row]) for row in y]).double()
    close(out, network(torch.cat([x, planes], 1)))
    assert of_kind(parameters, nn.Conv2d)[0].in_channels == 5
    (flat,) = built(MLP([3]), (2, 5, 4), (3,), y_shape=(3,)).double()(x, y)
    assert flat.shape == (6, 3)


class UsersDecoder:
    """A factory from elsewhere: no `spatial`, since its input is no picture."""

    def __call__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
        (width,), (channels, height, _) = in_shape, out_shape
        return nn.Sequential(
            nn.Linear(width, 5 * (height // 2) ** 2),
            nn.Unflatten(1, (5, height // 2, height // 2)),
            nn.ReLU(),
            nn.ConvTranspose2d(5, channels, 2, stride=2),
        )


class UsersEncoder(nn.Module):
    """A ready-made module for 6 x 6 pictures of one channel with or without two planes of labels."""

    def __init__(self, spatial: bool, labels: int, out: int = 4) -> None:
        super().__init__()
        self.spatial = spatial
        self.conv = nn.Conv2d(1 + labels * spatial, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.out = nn.Linear(5 * 36 + labels * (not spatial), out)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape[1:]))
        pictures = x if self.spatial else x[:, :36].reshape(-1, 1, 6, 6)
        h = torch.relu(self.norm(self.conv(pictures))).flatten(1)
        return self.out(h if self.spatial else torch.cat([h, x[:, 36:]], 1))


@pytest.mark.parametrize(("spatial", "shape"), [(True, (3, 6, 6)), (False, (38,))])
def test_a_users_networks_with_labels(spatial: bool, shape: tuple[int, ...]) -> None:
    encoder = UsersEncoder(spatial, labels=2)
    vae = VAE(
        (1, 6, 6),
        prior=priors.StandardNormal(2),
        likelihood=likelihoods.Bernoulli(UsersDecoder()),
        posterior=posteriors.DiagonalNormal(encoder),
        y_shape=(2,),
    )
    assert of_kind(vae.likelihood, nn.Linear)[0].in_features == 4
    x, y = torch.randint(2, (8, 1, 6, 6)).float(), torch.arange(8) % 2
    sample_log_weights(vae.model, vae.guide, x, y, num_particles=3)
    assert set(encoder.seen) == {shape}
    svi = SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=1e-2), objectives.ELBO(3))
    losses = [svi.step(x, y) for _ in range(20)]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert vae.sample(y=y).shape == vae.reconstruct(x, y).shape == (8, 1, 6, 6)


def test_a_users_networks_without_labels() -> None:
    encoder = UsersEncoder(True, labels=0)
    vae = conv_vae(UsersDecoder, (1, 6, 6), posterior=posteriors.DiagonalNormal(encoder))
    encoder.seen.clear()
    vae.encode(torch.zeros(3, 1, 6, 6))
    assert encoder.seen == [(1, 6, 6)]


@for_images
def test_a_conditional_vae_of_convolutions_trains_and_is_captured(make: Any) -> None:
    x, y = torch.randint(2, (8, 1, 7, 6)).float(), one_hot(torch.arange(8) % 3).float()

    def run(level: Any) -> tuple[list[float], SVI]:
        torch.manual_seed(0)
        vae = conv_vae(make, y_shape=(3,))
        optimizer = functools.partial(torch.optim.Adam, lr=1e-2)
        svi = SVI(vae.model, vae.guide, optimizer, objectives.ELBO(2), compile=level)
        torch.manual_seed(1)
        return [svi.step(x, y) for _ in range(8)], svi

    losses, svi = run("graph")
    assert svi.why_eager is None
    assert losses == run("off")[0]
    assert sum(losses[-3:]) < sum(losses[:3])
