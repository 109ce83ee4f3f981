"""The conditional VAE: the rest of a picture from one quarter of it, p(z|x) p(y|x, z), with masked pixels.

Learning Structured Output Representation using Deep Conditional Generative Models (Sohn, Lee & Yan, 2015),
https://papers.nips.cc/paper/5775

Expect -ELBO of the hidden part to fall from 411 to 57 nats an image in 1,400 steps, and one draw of z to get 85% of
the hidden pixels right.

    python examples/gallery/conditional_vae.py          (46 seconds on one core of an Intel Xeon)
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import interpolate, softplus

from ppl_vae import SVI

SIZES = {"full": {"side": 28, "hidden": 400, "latent": 20}, "small": {"side": 8, "hidden": 16, "latent": 2}}
BATCH = {"full": 128, "small": 20}


def network(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """A network of one hidden layer."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class ConditionalVAE(nn.Module):
    """x is the picture with three quarters made grey, y all of it; scored is the hidden part."""

    def __init__(self, side: int, hidden: int, latent: int) -> None:
        super().__init__()
        pixels = side**2
        self.first_guess = network(pixels, hidden, pixels)  # the paper's baseline: logits of y without a latent
        self.prior = network(2 * pixels, hidden, 2 * latent)
        self.recognition = network(2 * pixels, hidden, 2 * latent)
        self.generation = network(latent, hidden, pixels)
        hidden_part = torch.ones(side, side, dtype=torch.bool)
        hidden_part[side // 2 :, : side // 2] = False  # what is seen: the quarter below on the left
        self.register_buffer("hidden_part", hidden_part.flatten())

    def normal(self, network, a, b):
        loc, raw = network(torch.cat([a, b], -1)).chunk(2, -1)
        return dist.Normal(loc, softplus(raw) + 1e-4).to_event(1)

    def model(self, x, y):
        pyro.module("cvae", self)
        with pyro.plate("data", len(x)):
            guess = self.first_guess(x)
            z = pyro.sample("z", self.normal(self.prior, x, guess.sigmoid()))
            pixels = dist.Bernoulli(logits=guess + self.generation(z)).mask(self.hidden_part)
            pyro.sample("y", pixels.to_event(1), obs=y)

    def guide(self, x, y):
        pyro.module("cvae", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.normal(self.recognition, x, y))


def make(seed: int = 0, size: str = "full"):
    """Return model, guide, loss, and the arguments of step i."""
    pyro.set_rng_seed(seed)
    side, batch = SIZES[size]["side"], BATCH[size]
    cvae = ConditionalVAE(**SIZES[size])
    grey = torch.tensor(load_digits().images / 16, dtype=torch.get_default_dtype())
    y = interpolate(grey[:, None], (side, side), mode="bilinear").flatten(1).gt(0.5).to(grey)
    y = y[torch.randperm(len(y))]
    x = torch.where(cvae.hidden_part, 0.5, y)
    steps = len(x) // batch

    def batches(i: int):
        rows = slice(i % steps * batch, (i % steps + 1) * batch)
        return x[rows], y[rows]

    return cvae.model, cvae.guide, Trace_ELBO(), batches


def optimiser():
    """Return Pyro's optimiser."""
    return pyro.optim.Adam({"lr": 1e-3})


def main(steps: int = 1400) -> float:
    """Train; print and return the share of hidden pixels that one draw of z from p(z|x) gets right."""
    model, guide, loss, batches = make()
    svi = SVI(model, guide, optimiser(), loss)
    losses = [svi.step(*batches(i)) / BATCH["full"] for i in range(steps)]
    cvae, (x, y) = model.__self__, batches(0)
    with torch.no_grad():
        guess = cvae.first_guess(x)
        z = cvae.normal(cvae.prior, x, guess.sigmoid()).sample()
        wrong = ((guess + cvae.generation(z) > 0) != y.bool()) & cvae.hidden_part
    right = 1 - float(wrong.sum() / (len(x) * cvae.hidden_part.sum()))
    late = losses[-steps // 7 :]
    print(svi)
    print(f"-ELBO of the hidden part: {losses[0]:.1f} at first, {sum(late) / len(late):.1f} at last, nats per image")
    print(f"hidden pixels that a draw of z gets right: {100 * right:.1f}%")
    return right


if __name__ == "__main__":
    main()
