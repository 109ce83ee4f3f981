"""Attend, infer, repeat: how many digits a canvas has, where and what they are, by TraceGraph_ELBO with baselines.

Attend, Infer, Repeat: Fast Scene Understanding with Generative Models (Eslami et al., 2016),
https://arxiv.org/abs/1603.08575

Expect the digits of 88% of new canvases to be counted rightly, and -ELBO to fall from -61 to -132 nats a canvas.
    python examples/gallery/attend_infer_repeat.py      (86 seconds on one core of an Intel Xeon)
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import affine_grid, grid_sample, softplus

from ppl_vae import SVI

SIZES = {"full": (24, 8, 3, 8, 128), "small": (12, 4, 2, 2, 8)}  # side, window, steps, what, hidden
BATCH = {"full": 64, "small": 6}
PRESENT, SIGMA = 0.4, 0.3  # p(one more digit), the standard deviation of a pixel
WHERE = (2.5, 0.0, 0.0), (0.3, 0.7, 0.7)  # scale (canvas over window) and place: means, deviations


class AIR(nn.Module):
    def __init__(self, side: int, window: int, steps: int, what: int, hidden: int) -> None:
        super().__init__()
        self.side, self.window, self.steps, self.what = side, window, steps, what
        seen = side**2 + 1 + 3 + what  # the canvas, and what was found last
        self.rnn, self.present_where = nn.LSTMCell(seen, hidden), nn.Linear(hidden, 1 + 3 + 3)
        self.encoder = nn.Sequential(nn.Linear(window**2, hidden), nn.ReLU(), nn.Linear(hidden, 2 * what))
        self.decoder = nn.Sequential(nn.Linear(what, hidden), nn.ReLU(), nn.Linear(hidden, window**2))
        self.baseline = nn.Sequential(nn.Linear(seen, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.present_where.bias.data = torch.tensor([0.0, *WHERE[0], -2.0, -2.0, -2.0])  # q begins near p
        self.decoder[-1].bias.data.fill_(-2.0)  # and with dark windows

    def resampled(self, pictures, scale, place, side):
        """Sample squares at scale * (column, row) + place, their corners -1 and 1, with black outside."""
        size, (across, down) = self.side + self.window - side, place.unbind(1)
        theta = torch.stack([scale, 0 * scale, across, 0 * scale, scale, down], 1).view(-1, 2, 3)
        grid = affine_grid(theta, [len(pictures), 1, side, side], align_corners=False)
        return grid_sample(pictures.view(-1, 1, size, size), grid, align_corners=False).flatten(1)

    def paste(self, windows, where):
        return self.resampled(windows, where[:, 0], where[:, 1:], self.side)

    def cut(self, x, where):
        scale = where[:, :1].clamp(min=1.0)  # no window is larger than the canvas
        return self.resampled(x, 1 / scale[:, 0], -where[:, 1:] / scale, self.window)

    def model(self, x):
        pyro.module("air", self)
        canvas, present, zeros = torch.zeros_like(x), x.new_ones(len(x)), x.new_zeros(len(x), self.what)
        with pyro.plate("data", len(x)):
            for t in range(self.steps):
                present = pyro.sample(f"present_{t}", dist.Bernoulli(PRESENT * present))
                with poutine.mask(mask=present.bool()):
                    where = pyro.sample(f"where_{t}", dist.Normal(*map(x.new_tensor, WHERE)).to_event(1))
                    what = pyro.sample(f"what_{t}", dist.Normal(zeros, 1.0).to_event(1))
                canvas = canvas + present[:, None] * self.paste(self.decoder(what).sigmoid(), where)
            pyro.sample("x", dist.Normal(canvas, SIGMA).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("air", self)
        found, present, state = x.new_zeros(len(x), 1 + 3 + self.what), x.new_ones(len(x)), None
        with pyro.plate("data", len(x)):
            for t in range(self.steps):
                seen = torch.cat([x, found], 1)
                state = self.rnn(seen, state)
                logit, loc, raw = self.present_where(state[0]).split([1, 3, 3], 1)
                baseline = {"baseline_value": self.baseline(seen.detach()).squeeze(1) * present}
                q_present = dist.Bernoulli(logit.squeeze(1).sigmoid() * present)
                present = pyro.sample(f"present_{t}", q_present, infer={"baseline": baseline})
                with poutine.mask(mask=present.bool()):
                    where = pyro.sample(f"where_{t}", dist.Normal(loc, softplus(raw) + 1e-3).to_event(1))
                    loc, raw = self.encoder(self.cut(x, where)).chunk(2, 1)
                    what = pyro.sample(f"what_{t}", dist.Normal(loc, softplus(raw) + 1e-3).to_event(1))
                found = torch.cat([present[:, None], where, what], 1)


def scenes(number: int, side: int, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw canvases with 0 to `most` digits, and how many there are."""
    sprites = torch.tensor(load_digits().images / 16, dtype=torch.get_default_dtype())
    counts, canvas = torch.randint(most + 1, (number,)), torch.zeros(number, side, side)
    for picture, count in zip(canvas, counts.tolist(), strict=True):
        for top, left in torch.randint(side - 7, (count, 2)).tolist():
            picture[top : top + 8, left : left + 8] += sprites[torch.randint(len(sprites), ())]
    return canvas.clamp(max=1.0).flatten(1), counts


def make(seed: int = 0, size: str = "full"):
    """Return model, guide, loss, and the arguments of step i."""
    pyro.set_rng_seed(seed)
    air, batch = AIR(*SIZES[size]), BATCH[size]
    x, _ = scenes(20 * batch, air.side, air.steps - 1)
    return air.model, air.guide, TraceGraph_ELBO(), lambda i: (x[i % 20 * batch : (i % 20 + 1) * batch],)


def optimiser():
    """Return Pyro's optimiser: baselines learn faster, by the name of the parameter."""
    return pyro.optim.Adam(lambda name: {"lr": 3e-3 if "baseline" in name else 1e-3})


def main(steps: int = 3000) -> float:
    """Train; print and return the share of new canvases whose digits are counted rightly."""
    model, guide, loss, batches = make()
    svi = SVI(model, guide, optimiser(), loss)
    losses = [svi.step(*batches(i)) / BATCH["full"] for i in range(steps)]
    x, counts = scenes(1000, 24, 2)
    nodes = poutine.trace(guide).get_trace(x).nodes
    right = float((sum(nodes[f"present_{t}"]["value"] for t in range(3)) == counts).double().mean())
    print(f"{svi}\n-ELBO per canvas: {losses[0]:.1f} at first, {sum(losses[-20:]) / 20:.1f} at last, nats")
    print(f"digits counted rightly on {100 * right:.1f}% of 1,000 new canvases")
    return right


if __name__ == "__main__":
    main()
