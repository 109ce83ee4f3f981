"""The deep Markov model: a chain of latents under sequences of different lengths, a guide that reads them backwards.

Structured Inference Networks for Nonlinear State Space Models (Krishnan, Shalit & Sontag, 2017),
https://arxiv.org/abs/1609.09869

Expect two graphs, for two padded lengths, and -ELBO to fall from 52.9 to 8.8 nats a chord (88 notes).

    python examples/gallery/deep_markov_model.py        (22 seconds on one core of an Intel Xeon)
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.functional import relu, softplus

from ppl_vae import SVI

SIZES = {"full": {"notes": 88, "latent": 32, "hidden": 64}, "small": {"notes": 5, "latent": 2, "hidden": 4}}
BATCH, LONGEST = {"full": 20, "small": 4}, {"full": 8, "small": 8}
ROUND = 4  # batches are padded to a multiple of it: there are two shapes, and as many graphs


class DeepMarkovModel(nn.Module):
    """A gated transition, an emission of independent notes, and a backward GRU."""

    def __init__(self, notes: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.emission = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, notes))
        self.gate = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, latent), nn.Sigmoid())
        self.proposed = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, latent))
        self.linear, self.scale = nn.Linear(latent, latent), nn.Linear(latent, latent)
        self.backward_rnn = nn.GRU(notes, hidden, batch_first=True)
        self.of_latent, self.of_both = nn.Linear(latent, hidden), nn.Linear(hidden, 2 * latent)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(latent)), nn.Parameter(torch.zeros(latent))

    def transition(self, z):
        gate, proposed = self.gate(z), self.proposed(z)
        return (1 - gate) * self.linear(z) + gate * proposed, softplus(self.scale(relu(proposed))) + 1e-4

    def model(self, x, lengths, annealing=1.0):
        """Pad x, of shape (sequences, time, notes), by anything finite."""
        pyro.module("dmm", self)
        alive = torch.arange(x.shape[1]) < lengths[:, None]
        z = self.z_0.expand(len(x), -1)
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=alive[:, t]):
                    loc, scale = self.transition(z)
                    with poutine.scale(scale=annealing):
                        z = pyro.sample(f"z_{t}", dist.Normal(loc, scale).to_event(1))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=self.emission(z)).to_event(1), obs=x[:, t])

    def guide(self, x, lengths, annealing=1.0):
        pyro.module("dmm", self)
        time = torch.arange(x.shape[1])
        alive = time < lengths[:, None]
        # a permutation of each sequence that turns it about and leaves the padding behind it; its own inverse
        turn = ((lengths[:, None] - 1 - time) % x.shape[1])[..., None]
        turned, _ = self.backward_rnn(x.gather(1, turn.expand_as(x)))
        future = turned.gather(1, turn.expand_as(turned))
        z = self.z_q_0.expand(len(x), -1)
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                both = (torch.tanh(self.of_latent(z)) + future[:, t]) / 2
                loc, raw = self.of_both(both).chunk(2, -1)
                with poutine.mask(mask=alive[:, t]), poutine.scale(scale=annealing):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, softplus(raw) + 1e-4).to_event(1))


def songs(number: int, longest: int, notes: int) -> list[torch.Tensor]:
    """Draw sequences of 2 to `longest` chords of three notes, whose root walks up or down."""
    found = []
    for length in torch.randint(2, longest + 1, (number,)).tolist():
        root = torch.randint(notes, ()) + torch.cumsum(torch.randint(-1, 2, (length,)), 0)
        chord = (root[:, None] + torch.tensor([0, 4, 7])) % notes
        found.append(torch.zeros(length, notes).scatter(1, chord, 1.0))
    return found


def pad(sequences: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sequences as one tensor, zeros behind the shorter ones, and their lengths."""
    lengths = torch.tensor([len(s) for s in sequences])
    x = sequences[0].new_zeros(len(sequences), -(-int(lengths.max()) // ROUND) * ROUND, sequences[0].shape[1])
    for row, sequence in zip(x, sequences, strict=True):
        row[: len(sequence)] = sequence
    return x, lengths


def make(seed: int = 0, size: str = "full"):
    """Return model, guide, loss, and the arguments of step i: padded sequences, their lengths, the annealing factor."""
    pyro.set_rng_seed(seed)
    dmm, batch = DeepMarkovModel(**SIZES[size]), BATCH[size]
    sequences = sorted(songs(12 * batch, LONGEST[size], SIZES[size]["notes"]), key=len)
    padded = [pad(sequences[i : i + batch]) for i in range(0, len(sequences), batch)]
    order = torch.randperm(len(padded)).tolist()
    return dmm.model, dmm.guide, Trace_ELBO(), lambda i: (*padded[order[i % len(order)]], min(1.0, 0.2 + i / 500))


def optimiser():
    """Return Pyro's optimiser."""
    return pyro.optim.ClippedAdam({"lr": 3e-3, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.9999})


def main(steps: int = 1200) -> list[float]:
    """Train and print -ELBO per note of the whole set."""
    model, guide, loss, batches = make()
    svi = SVI(model, guide, optimiser(), loss)
    losses = [svi.step(*batches(i)) / float(batches(i)[1].sum()) for i in range(steps)]
    print(f"{svi}\n-ELBO per chord: {sum(losses[:12]) / 12:.1f} at first, {sum(losses[-12:]) / 12:.1f} at last, nats")
    return losses


if __name__ == "__main__":
    main()
