"""Bayesian regression with an autoguide: coefficients as PyroSample, their posterior a full-covariance normal.

The textbook model, in the form of Pyro's modules (Bingham et al., 2019, https://arxiv.org/abs/1810.09538).

Expect posterior means within half a posterior deviation of the ridge regression of the same prior.

    python examples/gallery/bayesian_regression.py      (10 seconds on one core of an Intel Xeon)
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.nn import PyroModule, PyroSample
from sklearn.datasets import load_diabetes
from torch import nn

from ppl_vae import SVI

ROWS = {"full": 442, "small": 30}


class Regression(PyroModule):
    """y ~ Normal(x w + b, sigma), with normal priors on w and b and a uniform one on sigma."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](features, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, features]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)
        return mean


def make(seed: int = 0, size: str = "full"):
    """Return model, guide, loss, and the arguments of a step, the whole table each time, in standard units."""
    pyro.set_rng_seed(seed)
    columns = load_diabetes(return_X_y=True)
    x, y = (torch.tensor(c[: ROWS[size]], dtype=torch.get_default_dtype()) for c in columns)
    x, y = ((c - c.mean(0)) / c.std(0) for c in (x, y))
    model = Regression(x.shape[1])
    return model, AutoMultivariateNormal(model), Trace_ELBO(), lambda i: (x, y)


def optimiser():
    """Return Pyro's optimiser."""
    return pyro.optim.Adam({"lr": 0.01})


def main(steps: int = 3000) -> torch.Tensor:
    """Train; print and return each coefficient's posterior mean beside the ridge regression of the same prior."""
    model, guide, loss, batches = make()
    svi = SVI(model, guide, optimiser(), loss)
    losses = [svi.step(*batches(i)) for i in range(steps)]
    x, y = batches(0)
    draws = [guide(x, y) for _ in range(1000)]
    w = torch.stack([d["linear.weight"].flatten() for d in draws]).detach()
    sigma = torch.stack([d["sigma"] for d in draws]).mean().detach()
    exact = torch.linalg.solve(x.T @ x + sigma**2 * torch.eye(x.shape[1]), x.T @ y)
    print(svi)
    print(f"-ELBO {losses[0]:.0f} at first, {sum(losses[-100:]) / 100:.1f} at last, nats; sigma {sigma:.3f}")
    print(f"{'coefficient':>12}{'ridge':>9}{'posterior':>11}{'deviation':>11}")
    for i, row in enumerate(torch.stack([exact, w.mean(0), w.std(0)], 1).tolist()):
        print(f"{i:>12}{row[0]:>9.3f}{row[1]:>11.3f}{row[2]:>11.3f}")
    return (w.mean(0) - exact) / w.std(0)


if __name__ == "__main__":
    main()
