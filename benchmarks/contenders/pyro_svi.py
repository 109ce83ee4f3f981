"""Pyro as its users write it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from contenders import Run
from contenders._torch import batches, mlp, repeated
from contenders.setting import Setting


def program(setting: Setting) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None], Any, Any]:
    """The model and the guide, in the manner of Pyro's VAE example, and the two networks."""
    encoder, decoder = mlp(setting.encoder_sizes, setting.device), mlp(setting.decoder_sizes, setting.device)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            loc, scale = x.new_zeros(len(x), setting.latent), x.new_ones(len(x), setting.latent)
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            mean, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, softplus(raw) + 1e-5).to_event(1))

    return model, guide, encoder, decoder


def make_svi(setting: Setting, model: Any, guide: Any) -> pyro.infer.SVI:
    """Pyro's SVI with Pyro's Adam; several particles at once."""
    several = setting.num_particles > 1
    elbo = pyro.infer.Trace_ELBO(setting.num_particles, vectorize_particles=several, max_plate_nesting=1)
    return pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo)


def svi(setting: Setting) -> Run:
    """Batches gathered from one tensor."""
    model, guide, *_ = program(setting)
    trainer = make_svi(setting, model, guide)
    draw = batches(setting)
    return repeated(lambda: trainer.step(draw()), setting)


def example(setting: Setting) -> Run:
    """Batches as in Pyro's VAE example: a DataLoader over a set of 8-bit pictures, each made a tensor on its way."""
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    pictures = (255 * setting.pixels()).astype("uint8").reshape(-1, 28, 28)

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> Tensor:
            return to_tensor(Image.fromarray(pictures[i]))

    model, guide, *_ = program(setting)
    trainer = make_svi(setting, model, guide)
    loader = torch.utils.data.DataLoader(Pictures(), batch_size=setting.batch_size, shuffle=True, drop_last=True)
    endless = itertools.chain.from_iterable(loader for _ in itertools.count())
    return repeated(lambda: trainer.step(next(endless).flatten(1).to(setting.device)), setting)
