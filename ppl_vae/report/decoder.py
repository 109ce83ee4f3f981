r"""A decoder as plain numbers: the layers of a multi-layer perceptron, or a grid of what it decodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppl_vae._scopes import evaluation_mode, untouched_random_state
from ppl_vae.distributions.continuous_bernoulli import ContinuousBernoulli
from ppl_vae.networks import ParameterNetwork
from ppl_vae.report.markup import packed
from ppl_vae.vae import VAE

TOLERANCE = 1e-5  # of a decoded mean, times the largest where that is above 1
MOST = 4_000_000  # numbers of a decoder that the page holds
GRID_BYTES = 600_000  # of a grid, before base64
_PROBES = 3

# what the page's scripts know, by class: each a name, and the attributes whose values must be these
_ACTIVATIONS: dict[type[nn.Module], tuple[str, dict[str, Any]]] = {
    nn.Softplus: ("softplus", {"beta": 1.0, "threshold": 20.0}),
    nn.ReLU: ("relu", {}),
    nn.LeakyReLU: ("leaky_relu", {"negative_slope": 0.01}),
    nn.ELU: ("elu", {"alpha": 1.0}),
    nn.GELU: ("gelu", {"approximate": "none"}),
    nn.SiLU: ("silu", {}),
    nn.Sigmoid: ("sigmoid", {}),
    nn.Tanh: ("tanh", {}),
    nn.GLU: ("glu", {"dim": 1}),
}
_SHAPES = (nn.Flatten, nn.Unflatten, nn.Dropout, nn.Identity)  # that leave a flat datum as it is, in evaluation mode

LINKS: dict[str, Callable[[Tensor], Tensor]] = {  # from a network's first outputs to a mean
    "identity": lambda outputs: outputs,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "softplus": functional.softplus,
    "continuous_bernoulli": lambda outputs: ContinuousBernoulli(outputs).mean,
}


def layers_of(network: nn.Module | None) -> list[dict[str, Any]]:
    """Return the layers of a perceptron as plain numbers, each with its ``module``.

    Raises:
        ValueError: If it has a layer of another kind.
    """
    found: list[dict[str, Any]] = []
    for module in [network] if not isinstance(network, nn.Sequential) else network:
        if module is None or module._forward_hooks or module._forward_pre_hooks:
            raise ValueError("a hook changes what a layer computes")
        before = len(found)
        if type(module) is nn.Sequential:
            found += layers_of(module)
        elif type(module) is nn.Linear:
            found.append({"op": "linear", "weight": module.weight, "bias": module.bias})
        elif type(module) is nn.BatchNorm1d and module.running_mean is not None and module.running_var is not None:
            scale = (module.running_var.double() + module.eps).rsqrt()
            scale = scale if module.weight is None else scale * module.weight.double()
            shift = -module.running_mean.double() * scale
            shift = shift if module.bias is None else shift + module.bias
            found.append({"op": "affine", "scale": scale, "shift": shift})
        elif type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
            found.append({"op": "layer_norm", "eps": module.eps, "scale": module.weight, "shift": module.bias})
        elif type(module) in _ACTIVATIONS:
            name, expected = _ACTIVATIONS[type(module)]
            if any(getattr(module, key) != value for key, value in expected.items()):
                raise ValueError(f"{module} has other settings than the page's scripts know")
            found.append({"op": name})
        elif type(module) not in _SHAPES:
            raise ValueError(f"its network has a layer {type(module).__name__}")
        for layer in found[before:]:
            layer.setdefault("module", module)
    return found


@torch.no_grad()
def perceptron(vae: VAE, points: Tensor, conditions: Tensor | None) -> dict[str, Any]:
    """Return a decoder that the page computes itself, with some of torch's means that the page checks itself against.

    Args:
        vae: The model.
        points: Latents, (n, latent), at which the mean must be a function of the network's outputs.
        conditions: Conditions, (n, k), or None.

    Raises:
        ValueError: If the mean of p(x|z) is no such function of a perceptron, in one clause that says why.
    """
    modules = vae.likelihood.modules() if isinstance(vae.likelihood, nn.Module) else ()
    networks = [module for module in modules if isinstance(module, ParameterNetwork)]
    if len(networks) != 1:
        raise ValueError("p(x|z) is not made of one network")
    layers, size = layers_of(networks[0].network), math.prod(vae.x_shape)
    if not layers or layers[-1]["op"] != "linear" or len(layers[-1]["weight"]) < size:
        raise ValueError("its network does not end in a linear layer with an output for each value")
    like = next(networks[0].parameters())
    points = points.to(like)
    y = None if conditions is None else conditions.to(like)
    with evaluation_mode(vae), untouched_random_state():
        mean = vae.decode(points, y).reshape(len(points), size)
        given = () if y is None or networks[0].y_shape is None else (y,)
        visible = points if vae._visible_dim is None else points[:, : vae._visible_dim]
        outputs = torch.cat((visible, *given), 1)
        try:
            for layer in layers:
                outputs = layer.pop("module")(outputs)
        except RuntimeError as error:
            raise ValueError("its layers do not take flat data one after the other") from error
    outputs = outputs[:, :size]
    bound = TOLERANCE / 10 * max(1.0, float(mean.abs().max()))
    same = outputs.shape == mean.shape
    links = [n for n, link in LINKS.items() if same and bool(((link(outputs) - mean).abs() <= bound).all())]
    if not links:
        raise ValueError("the mean of p(x|z) is no plain function of its network's outputs")
    parameters = sum(v.numel() for layer in layers for v in layer.values() if isinstance(v, Tensor))
    if parameters > MOST:
        raise ValueError(f"its {parameters:,} numbers would make a page too large; up to {MOST:,} fit")
    last = layers[-1]
    layers[-1] = last | {name: last[name][:size] for name in ("weight", "bias") if last[name] is not None}
    plain = [{n: packed(v.detach().cpu()) if isinstance(v, Tensor) else v for n, v in a.items()} for a in layers]
    return {
        "kind": "perceptron",
        "layers": plain,
        "link": links[0],
        "visible": visible.shape[1],
        "conditions": len(given) > 0,
        "parameters": parameters,
        "probes": {"z": packed(points[:_PROBES].cpu()), "mean": packed(mean[:_PROBES].cpu())}
        | ({} if y is None else {"y": packed(y[:_PROBES].cpu())}),
    }


def decoded_grid(
    vae: VAE, low: float, high: float, axes: tuple[int, ...], start: Tensor, conditions: Tensor | None
) -> dict[str, Any]:
    """Return a grid of decoded means over one or two latents, for a decoder that the page cannot compute.

    Args:
        vae: The model.
        low: The least value of each of these latents.
        high: The largest.
        axes: The latents.
        start: The values of the other latents, (latent,).
        conditions: The condition of each grid, (c, k), or None.
    """
    size, count = math.prod(vae.x_shape), 1 if conditions is None else len(conditions)
    exact = size <= 64  # float32, else 256 levels
    most = GRID_BYTES / (count * size * (4 if exact else 1))
    side = int(min(33 if len(axes) == 2 else 201, max(5, most ** (1 / len(axes)))))
    line = torch.linspace(low, high, side)
    nodes = torch.stack(torch.meshgrid(*[line] * len(axes), indexing="ij"), -1).reshape(-1, len(axes))
    z = start.cpu().float().repeat(len(nodes), 1)
    z[:, list(axes)] = nodes
    with untouched_random_state():
        means = [
            vae.decode(z, None if y is None else y.cpu().repeat(len(z), 1)).float().reshape(len(z), size)
            for y in ([None] if conditions is None else conditions)
        ]
    values = torch.stack(means)  # (c, nodes, size)
    steps = (values == values.round()).flatten(0, 1).all(0)  # codes of categories: no value lies between them
    low_x, high_x = float(values.min()), float(values.max())
    if not math.isfinite(high_x - low_x):
        raise ValueError("a decoded mean is not finite")
    kept = values if exact else ((values - low_x) / max(high_x - low_x, 1e-12) * 255).round()
    return {
        "kind": "grid",
        "axes": list(axes),
        "size": side,
        "low": low,
        "high": high,
        "start": packed(start.cpu()),
        "values": packed(kept.numpy(), "float32" if exact else "uint8"),
        "range": None if exact else [low_x, high_x],
        "steps": packed(steps.numpy(), "uint8"),
    }
