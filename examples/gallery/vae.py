"""The VAE: p(z) p(x|z) and q(z|x), with Bernoulli pixels, a normal latent and Trace_ELBO.

Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

Expect -ELBO to fall from 261 nats an image in the first hundred steps to 79 in the last printed, in 1,400 steps.

    python examples/gallery/vae.py                      (16 seconds on one core of an Intel Xeon)
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


class VAE(nn.Module):
    """One hidden layer each way."""

    def __init__(self, side: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(side**2, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, side**2))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            zeros = x.new_zeros(len(x), self.latent)
            z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(raw) + 1e-4).to_event(1))


def digits(side: int) -> torch.Tensor:
    """Scikit-learn's digits, enlarged and made black and white; shape (1797, side * side)."""
    grey = torch.tensor(load_digits().images / 16, dtype=torch.get_default_dtype())
    return interpolate(grey[:, None], (side, side), mode="bilinear").flatten(1).gt(0.5).to(grey)


def make(seed: int = 0, size: str = "full"):
    """Return model, guide, loss, and the arguments of step i."""
    pyro.set_rng_seed(seed)
    vae = VAE(**SIZES[size])
    x, batch = digits(SIZES[size]["side"]), BATCH[size]
    x = x[torch.randperm(len(x))]
    steps = len(x) // batch

    def batches(i: int):
        first = i % steps * batch
        return (x[first : first + batch],)

    return vae.model, vae.guide, Trace_ELBO(), batches


def optimiser():
    """Return Pyro's optimiser."""
    return pyro.optim.Adam({"lr": 1e-3})


def main(steps: int = 1400) -> list[float]:
    """Train and print the loss of each hundred batches."""
    model, guide, loss, batches = make()
    svi = SVI(model, guide, optimiser(), loss)
    losses = [svi.step(*batches(i)) / BATCH["full"] for i in range(steps)]
    print(svi)
    for i in range(0, steps, 200):
        part = losses[i : i + 100]
        print(f"steps {i:4d} to {i + len(part):4d}: -ELBO {sum(part) / len(part):7.2f} nats per image")
    return losses


if __name__ == "__main__":
    main()
