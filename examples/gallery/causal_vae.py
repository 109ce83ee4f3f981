"""A causal effect with a hidden confounder, by a VAE: p(z) p(x|z) p(t|z) p(y|t, z), in the manner of CEVAE.

Data are a toy like the paper's: a bit z decides treatment and outcome, and x is a proxy of it.

Causal Effect Inference with Deep Latent-Variable Models (Louizos et al., 2017), https://arxiv.org/abs/1705.08821

Expect an effect of 0.08 where 0.10 is true, and where comparing treated with untreated gives 0.49.

    python examples/gallery/causal_vae.py               (10 seconds on one core of an Intel Xeon)
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.functional import softplus

from ppl_vae import SVI

SIZES = {"full": {"features": 20, "latent": 5, "hidden": 64}, "small": {"features": 3, "latent": 2, "hidden": 4}}
BATCH = {"full": 200, "small": 10}


def network(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """A network of one hidden layer."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, outputs))


class CausalVAE(nn.Module):
    """Two heads for each outcome, of the untreated and the treated, in the model and in the guide."""

    def __init__(self, features: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.latent = latent
        self.p_x = network(latent, hidden, 2 * features)
        self.p_t = network(latent, hidden, 1)
        self.p_y = network(latent, hidden, 2)  # logits of y for t = 0 and t = 1
        self.q_t = network(features, hidden, 1)
        self.q_y = network(features, hidden, 2)
        self.q_z = network(features + 1, hidden, 4 * latent)

    def outcome(self, heads, t):
        """The logit of y: the head of the treatment that was given."""
        return torch.where(t.bool(), heads[..., 1], heads[..., 0])

    def model(self, x, t, y):
        pyro.module("causal", self)
        with pyro.plate("data", len(x)):
            zeros = x.new_zeros(len(x), self.latent)
            z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            loc, raw = self.p_x(z).chunk(2, -1)
            pyro.sample("x", dist.Normal(loc, softplus(raw) + 1e-3).to_event(1), obs=x)
            pyro.sample("t", dist.Bernoulli(logits=self.p_t(z).squeeze(-1)), obs=t)
            pyro.sample("y", dist.Bernoulli(logits=self.outcome(self.p_y(z), t)), obs=y)
            # the paper's terms that train q(t|x) and q(y|x, t), which predict for new x
            pyro.sample("t_by_x", dist.Bernoulli(logits=self.q_t(x).squeeze(-1)), obs=t)
            pyro.sample("y_by_x", dist.Bernoulli(logits=self.outcome(self.q_y(x), t)), obs=y)

    def guide(self, x, t, y):
        pyro.module("causal", self)
        with pyro.plate("data", len(x)):
            heads = self.q_z(torch.cat([x, y[:, None]], -1)).view(len(x), 2, -1)
            loc, raw = torch.where(t.bool()[:, None], heads[:, 1], heads[:, 0]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(raw) + 1e-3).to_event(1))

    @torch.no_grad()
    def effect(self, x, draws: int = 100) -> float:
        """The mean of p(y = 1 | do(t = 1)) - p(y = 1 | do(t = 0)) over x, with t, y and z drawn from q in turn."""
        x = x.repeat(draws, 1)
        t = torch.bernoulli(self.q_t(x).squeeze(-1).sigmoid())
        y = torch.bernoulli(self.outcome(self.q_y(x), t).sigmoid())
        z = poutine.trace(self.guide).get_trace(x, t, y).nodes["z"]["value"]
        return float(self.p_y(z).sigmoid().diff(dim=-1).mean())


def data(number: int, features: int):
    """Draw x, t, y of the toy, and its average treatment effect."""
    z = torch.bernoulli(torch.full((number,), 0.5))
    spread = torch.where(z.bool(), 5.0, 3.0)
    x = z[:, None] + spread[:, None] * torch.randn(number, features) / 3
    t = torch.bernoulli(torch.where(z.bool(), 0.75, 0.25))
    y = torch.bernoulli((6 * z - 3 + 2 * t - 1).sigmoid())
    by_z = torch.tensor([[-4.0, -2.0], [2.0, 4.0]]).sigmoid().diff(dim=-1)  # (z, t)
    return (x, t, y), float(by_z.mean())


def make(seed: int = 0, size: str = "full"):
    """Return model, guide, loss, and the arguments of step i."""
    pyro.set_rng_seed(seed)
    batch, sizes = BATCH[size], SIZES[size]
    vae = CausalVAE(**sizes)
    vae.data, vae.truth = data(15 * batch, sizes["features"])

    def batches(i: int):
        return tuple(part[i % 15 * batch : (i % 15 + 1) * batch] for part in vae.data)

    return vae.model, vae.guide, Trace_ELBO(), batches


def optimiser():
    """Return Pyro's optimiser."""
    return pyro.optim.ClippedAdam({"lr": 1e-3, "lrd": 0.9995, "weight_decay": 1e-4})


def main(steps: int = 1500) -> tuple[float, float, float]:
    """Train; print and return the effect: as it is, by the model, and by comparing the treated with the others."""
    model, guide, loss, batches = make()
    svi = SVI(model, guide, optimiser(), loss)
    losses = [svi.step(*batches(i)) / BATCH["full"] for i in range(steps)]
    vae, (x, t, y) = model.__self__, model.__self__.data
    naive, found = float(y[t == 1].mean() - y[t == 0].mean()), vae.effect(x)
    print(f"{svi}\n-ELBO per datum: {losses[0]:.2f} at first, {sum(losses[-15:]) / 15:.2f} at last, nats")
    print(f"average effect of the treatment: {vae.truth:.3f} true, {found:.3f} by the model, {naive:.3f} by comparing")
    return vae.truth, found, naive


if __name__ == "__main__":
    main()
