"""Encoder, decoder and log p(x|z) as graphs that run where there is no `ppl_vae` and no Pyro."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import pyro
import torch
from torch import Tensor, nn

from ppl_vae import _files
from ppl_vae._distributions import centre
from ppl_vae._scopes import evaluation_mode, seeded
from ppl_vae._validation import check_choice
from ppl_vae._words import first_line

Part = Literal["encoder", "decoder", "log_likelihood"]
_INPUTS = {"encoder": ("x",), "decoder": ("z",), "log_likelihood": ("x", "z")}
_OUTPUT = {"encoder": "z", "decoder": "x", "log_likelihood": "log_p"}
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def _bce(logits: Tensor, x: Tensor, weight: None = None, pos_weight: None = None, reduction: int = 1) -> Tensor:
    if weight is not None or pos_weight is not None or reduction != 0:
        raise ValueError("a weighted or reduced binary cross entropy is no density")
    return logits.clamp(min=0) - logits * x + (-logits.abs()).exp().log1p()


def _log_sigmoid(logits: Tensor) -> Tensor:
    return logits.clamp(max=0) - (-logits.abs()).exp().log1p()


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    return torch.maximum(a, b) + (-(a - b).abs()).exp().log1p()


_DECOMPOSITIONS = {  # in ONNX torch writes log(sigmoid(x)) and log(exp(a) + exp(b)), which are infinite far out
    torch.ops.aten.binary_cross_entropy_with_logits.default: _bce,
    torch.ops.aten.log_sigmoid.default: _log_sigmoid,
    torch.ops.aten.log_sigmoid_forward.default: lambda logits: (_log_sigmoid(logits), torch.zeros_like(logits)),
    torch.ops.aten.logaddexp.default: _logaddexp,
}


class _Graph(nn.Module):
    """One part of a VAE as a module of tensors alone."""

    def __init__(self, vae: Any, part: str) -> None:
        super().__init__()
        self.vae = vae
        self.part = part

    def forward(self, *inputs: Tensor) -> Tensor:
        count = len(_INPUTS[self.part])
        (*_, last), y = inputs[:count], inputs[count:]
        if self.part == "encoder":
            return centre(self.vae.q_z(last, *y))
        p_x = self.vae.p_x(last, *y)
        return p_x.mean if self.part == "decoder" else p_x.log_prob(inputs[0])


def export(vae: Any, path: str | Path, part: Part | None = None) -> Path:
    """Export a part of a VAE, as `VAE.export` says."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".pt2", ".onnx"):
        raise ValueError(
            f"VAE.export: path is {str(path)!r}; expected a name that ends in .pt2 (torch.export) or .onnx"
        )
    if part is None and path.stem not in get_args(Part):
        names = ", ".join(get_args(Part))
        raise ValueError(f"VAE.export: {path.name} names no part; call the file by one of {names}, or give part=")
    check_choice(chosen := path.stem if part is None else part, get_args(Part), "VAE.export: part")
    if suffix == ".onnx" and (missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]):
        raise ValueError(f"VAE.export: ONNX needs {', '.join(missing)}; install them, pip install 'ppl-vae[onnx]'")
    with torch.no_grad(), evaluation_mode(vae), seeded(0), pyro.validation_enabled(False):
        graph, inputs = _Graph(vae, chosen).eval(), _inputs(vae, chosen, 3)
        batch = torch.export.Dim("batch", min=1)
        try:
            dynamic_shapes = (tuple({0: batch} for _ in inputs),)
            program = torch.export.export(graph, inputs, dynamic_shapes=dynamic_shapes, strict=False)
            content, run = (_onnx if suffix == ".onnx" else _pt2)(program, chosen, len(inputs))
        except Exception as error:  # torch raises errors of many kinds about what it cannot trace
            reason = first_line(error)
            hint = "; len(x) fixes the batch size, write x.shape[0]" if "onstraints violated" in reason else ""
            raise ValueError(
                f"VAE.export: the {chosen} cannot be made a graph of any batch size: {reason}{hint}"
            ) from error
        for size, scale in ((1, 1.0), (5, 1.0), (5, 30.0)):  # far out, a sigmoid is 1 and its logarithm lost
            inputs = _inputs(vae, chosen, size, scale)
            expected, found = graph(*inputs), run(*inputs)
            if expected.shape != found.shape or not torch.allclose(
                found, expected, rtol=1e-5, atol=1e-6, equal_nan=True
            ):
                raise ValueError(
                    f"VAE.export: the graph of the {chosen} does not give what the VAE gives; it draws random numbers, "
                    "or depends on its inputs in ways that a graph does not keep"
                )
    return _files.write(path, content)


def _inputs(vae: Any, part: str, size: int, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Return a draw from the model to run a part on, with z so many times as far out."""
    like = next(vae.parameters(), torch.empty(0))
    y = () if vae.y_shape is None else (torch.eye(*vae.y_shape).to(like)[torch.arange(size) % vae.y_shape[0]],)
    p_z = vae.p_z(*y)
    z = p_z.sample(() if p_z.batch_shape else (size,))
    columns = {"x": vae.p_x(z, *y).sample(), "z": scale * z}
    return (*(columns[name] for name in _INPUTS[part]), *y)


def _pt2(program: torch.export.ExportedProgram, part: str, count: int) -> tuple[bytes, Callable[..., Tensor]]:
    """Return the file of a program, and what it computes once it is read again."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    content = buffer.getvalue()
    return content, torch.export.load(io.BytesIO(content)).module()


def _onnx(program: torch.export.ExportedProgram, part: str, count: int) -> tuple[bytes, Callable[..., Tensor]]:
    import onnxruntime

    program = program.run_decompositions(_DECOMPOSITIONS)
    names = [*_INPUTS[part], "y"][:count]
    exported = torch.onnx.export(program, input_names=names, output_names=[_OUTPUT[part]], dynamo=True, verbose=False)
    content = exported.model_proto.SerializeToString()  # type: ignore[union-attr]
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        arrays = {name: value.cpu().numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0]).to(inputs[0].device)

    return content, run
