"""The semi-supervised VAE (M2): p(y) p(z) p(x|y, z), labels summed out by TraceEnum_ELBO where there are none.

Semi-Supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling, 2014),
https://arxiv.org/abs/1406.5298

Expect a test error of 15.4% with 100 labels, where logistic regression on these alone has 20.8%.

    python examples/gallery/semi_supervised_vae.py      (29 seconds on one core of an Intel Xeon)
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.functional import one_hot, softplus

from ppl_vae import SVI

SIZES = {"full": {"hidden": 256, "latent": 10}, "small": {"hidden": 16, "latent": 2}}
BATCH = {"full": 100, "small": 20}
CLASSES, TEST, EVERY = 10, 500, 4  # every fourth batch is one of labelled data
ALPHA = 50.0  # the weight of the classification term, the paper's alpha


class SemiSupervisedVAE(nn.Module):
    """A classifier q(y|x), an encoder q(z|x, y), a decoder p(x|y, z)."""

    def __init__(self, hidden: int, latent: int, pixels: int = 64) -> None:
        super().__init__()
        self.latent = latent
        self.classifier = nn.Sequential(nn.Linear(pixels, hidden), nn.Softplus(), nn.Linear(hidden, CLASSES))
        self.encoder = nn.Sequential(nn.Linear(pixels + CLASSES, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent + CLASSES, hidden), nn.Softplus(), nn.Linear(hidden, pixels))

    def joined(self, a, b):
        """Side by side; labels that are enumerated have one more dimension, on the left."""
        batch = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
        return torch.cat([a.expand(*batch, -1), b.expand(*batch, -1)], -1)

    def model(self, x, y=None):
        pyro.module("semi", self)
        with pyro.plate("data", len(x)):
            zeros = x.new_zeros(len(x), self.latent)
            z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            flat = x.new_full((len(x), CLASSES), 1 / CLASSES)
            label = pyro.sample("y", dist.OneHotCategorical(flat), obs=y)
            logits = self.decoder(self.joined(z, label))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)
            if y is not None:
                with poutine.scale(scale=ALPHA):
                    pyro.sample("y_by_x", dist.OneHotCategorical(logits=self.classifier(x)), obs=y)

    def guide(self, x, y=None):
        pyro.module("semi", self)
        with pyro.plate("data", len(x)):
            if y is None:
                q_y = dist.OneHotCategorical(logits=self.classifier(x))
                y = pyro.sample("y", q_y, infer={"enumerate": "parallel"})
            loc, raw = self.encoder(self.joined(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(raw) + 1e-4).to_event(1))


def data(labels: int = 100):
    """Digits as bits: test pictures, labelled ones (so many), unlabelled ones; in an order that no seed changes."""
    packed = load_digits()
    x = torch.tensor(packed.data > 7.5, dtype=torch.get_default_dtype())
    y = torch.tensor(packed.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, rest = order[:TEST], order[TEST:]
    return (x[test], y[test]), (x[rest[:labels]], y[rest[:labels]]), x[rest[labels:]]


def make(seed: int = 0, size: str = "full"):
    """Return model, guide, loss, and the arguments of step i: (x, y) at each fourth, (x,) at the others."""
    pyro.set_rng_seed(seed)
    vae, batch = SemiSupervisedVAE(**SIZES[size]), BATCH[size]
    _, (known, labels), unknown = data()
    one = one_hot(labels, CLASSES).to(known)

    def batches(i: int):
        of = known if i % EVERY == 0 else unknown
        first = i // EVERY * batch % len(known) if of is known else i * batch % (len(unknown) - batch)
        rows = slice(first, first + batch)
        return (known[rows], one[rows]) if of is known else (unknown[rows],)

    return vae.model, vae.guide, TraceEnum_ELBO(max_plate_nesting=1), batches


def optimiser():
    """Return Pyro's optimiser."""
    return pyro.optim.Adam({"lr": 1e-3})


def main(steps: int = 3000) -> tuple[float, float]:
    """Train; print and return the test errors of q(y|x) and of logistic regression."""
    model, guide, loss, batches = make()
    svi = SVI(model, guide, optimiser(), loss)
    for i in range(steps):
        svi.step(*batches(i))
    (x, y), known, _ = data()
    error = float((model.__self__.classifier(x).argmax(-1) != y).double().mean())
    plain = 1 - LogisticRegression(max_iter=1000).fit(*known).score(x, y)
    print(svi)
    print(f"test error with 100 labels: {100 * error:.1f}%, of logistic regression on these alone: {100 * plain:.1f}%")
    return error, plain


if __name__ == "__main__":
    main()
