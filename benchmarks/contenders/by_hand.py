"""The model by hand in PyTorch, and the floor under everybody."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from contenders import Run
from contenders._torch import batches, mlp, repeated
from contenders.setting import Setting


def negative_elbo(encoder: nn.Module, decoder: nn.Module, x: Tensor, num_particles: int) -> Tensor:
    """Minus the ELBO with a sampled KL, mean over data and over `num_particles` draws of z: a scalar."""
    mean, raw = encoder(x).chunk(2, -1)
    std = softplus(raw) + 1e-5
    noise = torch.randn(num_particles, *mean.shape, device=x.device)
    z = mean + std * noise
    log_q = (-0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    log_p = (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(-1)
    logits = decoder(z)
    cross_entropy = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
    return (cross_entropy + log_q - log_p).mean()


def vae(setting: Setting, compile: bool, mode: str | None = None) -> Run:
    """One fused Adam; with `compile` the loss and its backward pass by `torch.compile`, for these shapes alone."""
    encoder, decoder = mlp(setting.encoder_sizes, setting.device), mlp(setting.decoder_sizes, setting.device)
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)
    draw = batches(setting)

    def loss(x: Tensor) -> Tensor:
        return negative_elbo(encoder, decoder, x, setting.num_particles)

    evaluate = torch.compile(loss, dynamic=False, mode=mode) if compile else loss

    def step() -> None:
        if mode is not None:
            torch.compiler.cudagraph_mark_step_begin()
        adam.zero_grad(set_to_none=True)
        evaluate(draw()).backward()
        adam.step()

    return repeated(step, setting)


def whole_step(setting: Setting, compile: bool) -> Run:
    """Gather, forward, backward and a capturable fused Adam, all in one CUDA graph that is replayed."""
    if setting.device != "cuda":
        raise ValueError("a CUDA graph needs a GPU")
    encoder, decoder = mlp(setting.encoder_sizes, "cuda"), mlp(setting.decoder_sizes, "cuda")
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True, capturable=True)
    draw = batches(setting)

    def loss(x: Tensor) -> Tensor:
        return negative_elbo(encoder, decoder, x, setting.num_particles)

    evaluate = torch.compile(loss, dynamic=False) if compile else loss

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        evaluate(draw()).backward()
        adam.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # before a recording all memory and states exist
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return repeated(graph.replay, setting)


def floor(setting: Setting) -> Run:
    """The matrix products of forward and backward, and one pass of Adam over the weights: nothing else.

    The gradient by the encoder's input is not computed, as in training.
    """
    device, batch_size = setting.device, setting.batch_size
    layers = [(a, b, batch_size, i > 0) for i, (a, b) in enumerate(itertools.pairwise(setting.encoder_sizes))]
    decoded = batch_size * setting.num_particles
    layers += [(a, b, decoded, True) for a, b in itertools.pairwise(setting.decoder_sizes)]
    weights = [torch.nn.Parameter(torch.randn(b, a, device=device)) for a, b, _, _ in layers]
    inputs = [torch.randn(rows, a, device=device) for a, _, rows, _ in layers]
    outputs = [torch.randn(rows, b, device=device) for _, b, rows, _ in layers]
    adam = torch.optim.Adam(weights, lr=1e-3, fused=True)

    @torch.no_grad()
    def step() -> None:
        for weight, x, g, (_, _, _, needs_input_gradient) in zip(weights, inputs, outputs, layers, strict=True):
            x @ weight.T
            weight.grad = g.T @ x
            if needs_input_gradient:
                g @ weight
        adam.step()

    return repeated(step, setting)
