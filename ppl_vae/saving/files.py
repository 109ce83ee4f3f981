"""A VAE in one file: how it was made, its weights, the shape and mean of its data, and the versions that wrote it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_vae import checkpoints
from ppl_vae._draws import UnstoppedDraws
from ppl_vae._machine import PACKAGES, Budget, versions
from ppl_vae._scopes import evaluation_mode, seeded, untouched_random_state
from ppl_vae.data import Dataset, Split
from ppl_vae.saving.describing import PLAIN, Builder, Describer

KIND = "vae"

Made = Any  # the class VAE or another of its kind, which stand above this module


def save(vae: Any, make: Made, path: str | Path) -> Path:
    """Write a VAE to one file, after a copy that is made from its content has been held against it.

    Args:
        vae: The VAE.
        make: The class of VAEs.
        path: The file.

    Raises:
        ValueError: If the copy differs, or a piece cannot be described; nothing is written.
        OSError: If the file cannot be written.
    """
    if type(vae) is not make:
        raise ValueError(
            f"VAE.save: {type(vae).__name__} is a class of your own; expected a VAE, its pieces yours or not"
        )
    path = Path(path)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OSError(
            f"VAE.save: {path} is {'a folder' if path.is_dir() else 'in no folder'}; expected a file to write"
        )
    describe = Describer()
    state = {
        "kind": KIND,
        "pieces": {role: describe(getattr(vae, role), role) for role in make.roles},
        "weights": {name: value.detach().clone() for name, value in vae.state_dict().items()},
        "frozen": [name for name, p in vae.named_parameters() if not p.requires_grad],
        "data": {
            "x_shape": list(vae.x_shape),
            "y_shape": vae.y_shape and list(vae.y_shape),
            "mean": vae.data_mean,
            "column_names": vae.column_names and list(vae.column_names),
            "categories": [list(values) for values in vae.categories],
            "conditions": list(vae.conditions),
        },
        "versions": versions(*PACKAGES),
    }
    try:
        copy = restore(make, state, str(path)).to(next(vae.parameters(), torch.empty(0)).device)
    except ValueError as error:
        raise ValueError(f"VAE.save: what the VAE was made with does not make it again ({error})") from error
    _require_equal(vae, copy)
    return checkpoints.save(state, path)


def restore(make: Made, state: dict[str, Any], source: str) -> Any:
    """Return the VAE of a file's state, in evaluation mode on the CPU. It imports and calls what the state names.

    Raises:
        ValueError: If the state is not whole, or its pieces cannot be made or do not take its weights.
    """
    try:
        data, weights, frozen = state["data"], state["weights"], set(state["frozen"])
        shapes = [tuple(data["x_shape"]), *([] if data["y_shape"] is None else [tuple(data["y_shape"])])]
        with untouched_random_state(), Budget("what the file asks for: it is damaged, or of a larger machine"):
            build = Builder()
            pieces = {role: build(state["pieces"][role]) for role in make.roles}
            vae = make(like(*shapes), **pieces)
        _take_dtypes(vae, weights)
        vae.data_mean = data["mean"]
        vae.column_names = tuple(data.get("column_names") or ()) or None
        vae.categories = tuple(map(tuple, data.get("categories") or ()))
        vae.conditions = tuple(data.get("conditions") or ())
    except Exception as error:  # whatever the constructors of a foreign or damaged file raise
        raise ValueError(f"{source}: its VAE cannot be put together: {error or type(error).__name__}") from error
    checkpoints.load_module(vae, weights, source)
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return vae.eval()


def like(x_shape: tuple[int, ...], y_shape: tuple[int, ...] | None = None) -> Dataset:
    """Return zeros in the shapes of data, for pieces that start from data: weights are loaded afterwards."""
    shapes = [shape for shape in (x_shape, y_shape) if shape is not None]
    columns = [torch.zeros(()).expand(2, *shape) for shape in shapes]  # of no size, whatever a file claims
    split = Split(tuple(columns))
    return Dataset("data", split, split, split)


def _take_dtypes(vae: nn.Module, weights: dict[str, Tensor]) -> None:
    floating = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(floating) == 1:
        vae.to(dtype=next(iter(floating)))  # fixed tensors that are no weights, too
    for name, value in _tensors(vae):
        if name in weights and value.dtype != weights[name].dtype:
            value.data = value.data.to(weights[name].dtype)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _require_equal(vae: Any, copy: Any) -> None:
    """Refuse a copy that does not draw and score as the original, or shares other tensors among its pieces."""
    shared, shared_in_copy = (
        {name: min(n for n, other in _tensors(v) if other is value) for name, value in _tensors(v)} for v in (vae, copy)
    )
    if shared != shared_in_copy:
        name = next(n for n in sorted({*shared, *shared_in_copy}) if shared.get(n) != shared_in_copy.get(n))
        raise ValueError(
            f"VAE.save: {name} is shared between modules, or is not, otherwise than the arguments of its pieces say; "
            "share whole modules, and set up tensors in constructors"
        )
    for (what, own), (_, made) in zip(_probe(vae), _probe(copy), strict=True):
        if own.shape != made.shape or not torch.allclose(own, made, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise ValueError(
                f"VAE.save: {what} of a VAE made with the same arguments and weights differs, so that the file would "
                "be of another model; a piece was changed after it was made (an attribute, a hook), or its class "
                "does not keep an argument as an attribute of the same name"
            )
    settings = _settings(copy)
    for name, value in _settings(vae).items():
        made = settings.get(name, value)
        if made != value and not (made != made and value != value):  # both NaN
            raise ValueError(
                f"VAE.save: {name} is {value!r}, and {made!r} in a VAE made with the same arguments; give it to the "
                "constructor, since a file keeps its arguments"
            )


def _settings(vae: nn.Module) -> dict[str, Any]:
    """Return the plain values that modules keep under the names of their constructors' arguments."""
    modules = [(name, module) for name, module in vae.named_modules() if module is not vae]
    return {
        f"{name}.{key}": vars(module)[key]
        for name, module in modules
        for key in inspect.signature(type(module)).parameters
        if type(vars(module).get(key, ...)) in PLAIN
    }


def _probe(vae: Any) -> list[tuple[str, Tensor]]:
    """Return draws of the three densities and their logarithms, from one seed."""
    like = next(vae.parameters(), torch.empty(0))
    y = None if vae.y_shape is None else torch.eye(*vae.y_shape).to(like)[torch.arange(3) % vae.y_shape[0]]
    unstopped = UnstoppedDraws()  # by NaN among the parameters
    with torch.no_grad(), evaluation_mode(vae), seeded(0), pyro.validation_enabled(False), unstopped:
        with poutine.trace(param_only=True) as trace:
            p_z = vae.p_z(y)
            z = p_z.sample(() if p_z.batch_shape else (3,))
            p_x = vae.p_x(z, y)
            x = p_x.sample()
            q_z = vae.q_z(x, y)
            code = q_z.sample()
        own = {id(p) for p in vae.parameters()}
        for name, site in trace.trace.nodes.items():
            if site["type"] == "param" and id(cast(Any, site["value"]).unconstrained()) not in own:
                raise ValueError(
                    f"VAE.save: {name} is a parameter of pyro.param, which lives in Pyro's store and not in the VAE; "
                    "make the piece an nn.Module that owns it"
                )
        return [
            *(("p(z)", value) for value in (z, p_z.log_prob(z))),
            *(("p(x|z)", value) for value in (x, p_x.log_prob(x))),
            *(("q(z|x)", value) for value in (code, q_z.log_prob(code))),
        ]
