"""The variance of gradient estimators at the logits of discrete latents, exact where all noise is the draw.

Two models of scikit-learn's digits, trained by VIMCO: 8 bits (256 states) and 4 variables of 8 classes (4,096). For
each estimator at about two decoder passes: the variance of the gradient at the logits of q, summed over the logits and
averaged over data; its bias; and the time of a captured step of 8 data. For 8 bits the mean and the variance of those
whose noise is the draw alone are sums over all 65,536 pairs of draws. The others are means over 40,000 draws with
standard errors, as all are for 4,096 states. The reference is the gradient of the ELBO, summed over states.

    python benchmarks/discrete.py --out benchmarks/results/discrete.json    # prints the tables of docs/estimators.md
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ppl_vae as pv
from ppl_vae import data, likelihoods, objectives, posteriors, priors
from ppl_vae._machine import processor
from ppl_vae.comparison.contenders import contenders
from ppl_vae.comparison.fixed.blocks import find_parameters
from ppl_vae.comparison.fixed.steps import Stepper
from ppl_vae.networks import MLP
from ppl_vae.objectives import sample_log_weights
from ppl_vae.objectives.logits import Drawing

DRAWS, ROWS = 40_000, 4
MADE = {
    "REINFORCE": lambda: objectives.REINFORCE(2),
    "REINFORCE, leave-one-out": lambda: objectives.REINFORCE(2, "leave_one_out"),
    "ARM": lambda: objectives.ARM(2),
    "DisARM": lambda: objectives.DisARM(2),
    "DoubleCV": lambda: objectives.DoubleCV(2),
    "REBAR, K = 1": lambda: objectives.REBAR(1),
    "RELAX, K = 1": lambda: objectives.RELAX(1),
    "StraightThroughELBO": lambda: objectives.StraightThroughELBO(2),
    "ReinMaxELBO": lambda: objectives.ReinMaxELBO(2),
    "GumbelSoftmaxELBO": lambda: objectives.GumbelSoftmaxELBO(2),
    "GumbelRaoELBO": lambda: objectives.GumbelRaoELBO(2),
}
DRAW_ALONE = ("REINFORCE", "REINFORCE, leave-one-out", "DoubleCV", "StraightThroughELBO", "ReinMaxELBO", "DisARM")


class Given(Drawing):
    """Draws that are given, for sums over all of them."""

    def __init__(self, z: Tensor, antithetic: bool = False, leaf: bool = False) -> None:
        super().__init__("given", antithetic=antithetic, leaf=leaf)
        self.value = z.clone().requires_grad_() if leaf else z

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "z":
            msg["value"], msg["done"] = self.value, True


def model(kind: str, digits: Any, epochs: int) -> Any:
    """A VAE of the digits, trained by VIMCO."""
    torch.manual_seed(0)
    latent = {
        "8 bits": lambda: (
            priors.BernoulliVector(8),
            posteriors.BernoulliVector(MLP([200, 200], "tanh", init="torch")),
        ),
        "4 x 8 classes": lambda: (
            priors.OneHotCategorical(32, num_classes=8),
            posteriors.OneHotCategorical(MLP([200, 200], "tanh", init="torch"), num_classes=8),
        ),
    }
    prior, posterior = latent[kind]()
    likelihood = likelihoods.Bernoulli(MLP([200, 200], "tanh", init="torch"))
    adam = functools.partial(torch.optim.Adam, lr=1e-3)
    vae = pv.VAE(digits, prior=prior, likelihood=likelihood, posterior=posterior)
    pv.fit(vae, digits, objective=objectives.VIMCO(8), epochs=epochs, batch_size=97, optimizer=adam, seed=0)
    return vae.double()


def free(gradient: Tensor, q: Any) -> Tensor:
    """The gradient at free logits of one at normalised ones."""
    if gradient.dim() == 2:
        return gradient
    return (gradient - q.probs.detach() * gradient.sum(-1, keepdim=True)).flatten(1)


def at_logits(vae: Any, objective: Any, x: Tensor, drawing: Any = None) -> Tensor:
    """The gradient of an objective at the logits of each row, (rows, logits)."""
    latents = getattr(objective, "latents", "pathwise") if drawing is None else drawing
    k = objective.num_particles
    weights = sample_log_weights(vae.model, vae.guide, x, num_particles=k, latents=latents)
    logits = weights.posterior["z"].logits
    (found,) = torch.autograd.grad(objective(weights).surrogate.sum(), logits)
    return free(found.sum(0) if k > 1 else found, vae.q_z(x))


def exact_gradient(vae: Any, x: Tensor) -> Tensor:
    """The gradient of the ELBO of one datum at its logits, by the sum over all states."""
    q = vae.q_z(x)
    z = q.enumerate_support()  # (states, 1, n)
    log_q = q.log_prob(z)
    log_p = (vae.p_x(z).log_prob(x) + vae.p_z().log_prob(z)).detach()
    (found,) = torch.autograd.grad((log_q.exp() * (log_p - log_q)).sum(), q.logits)
    return free(found, q)[0]


def all_draws(vae: Any, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """All pairs of draws of 8 bits, (2, pairs, 8), and their probabilities."""
    q = vae.q_z(x)
    if name != "DisARM":
        z = q.enumerate_support()[:, 0]
        pairs = torch.cartesian_prod(torch.arange(len(z)), torch.arange(len(z)))
        return z[pairs.T], q.log_prob(z).detach()[pairs].sum(1).exp()
    p = q.probs[0].detach()
    differ = torch.minimum(p, 1 - p)
    table = torch.stack([(1 - 2 * p).clamp_min(0), differ, differ, (2 * p - 1).clamp_min(0)])
    pairs = torch.cartesian_prod(*[torch.arange(4)] * len(p))
    return torch.stack([pairs // 2, pairs % 2]).to(p), table.gather(0, pairs).prod(1)


def warmed(vae: Any, objective: Any, x: Tensor) -> Any:
    """An objective that has learned what it learns: its coefficient, or the parameters of its control variate."""
    control = getattr(objective, "control", None)
    loss = objectives.as_loss(objective)
    loss((vae.model, vae.guide), x)
    optimizer = torch.optim.Adam(control.parameters(), lr=0.01) if control is not None else None
    for _ in range(300 if control is not None else 30):
        surrogate = loss((vae.model, vae.guide), x).surrogate
        if optimizer is not None:
            optimizer.zero_grad()
            surrogate.backward()
            optimizer.step()
    return objective


def row(vae: Any, kind: str, name: str, x: Tensor, train: Tensor) -> dict[str, Any]:
    """Variance, bias and time of one estimator."""
    torch.manual_seed(1)
    objective = MADE[name]()
    if name in ("DoubleCV",) or hasattr(objective, "control"):
        objective = warmed(vae, objective, train)
    exact = kind == "8 bits" and name in DRAW_ALONE
    variances, errors, biases, noise = [], [], [], []
    for datum in x.unsqueeze(1):
        truth = exact_gradient(vae, datum)
        if exact:
            z, probability = all_draws(vae, datum, name)
            drawing = Given(z, name == "DisARM", name in ("DoubleCV", "StraightThroughELBO", "ReinMaxELBO"))
            copies = datum.expand(len(probability), *datum.shape[1:])
            if name in ("StraightThroughELBO", "ReinMaxELBO"):
                found = relaxed_at(vae, objective, copies, z)
            else:
                found = at_logits(vae, objective, copies, drawing)
            mean = probability @ found
            variances.append(float((probability @ (found - mean).square()).sum()))
            errors.append(0.0)
            noise.append(0.0)
        else:
            found = torch.cat(
                [at_logits(vae, objective, datum.expand(4000, *datum.shape[1:])) for _ in range(DRAWS // 4000)]
            )
            mean = found.mean(0)
            squares = (found - mean).square().sum(1)
            variances.append(float(squares.mean()))
            errors.append(float(squares.std()) / math.sqrt(DRAWS))
            noise.append(float((found.var(0) / DRAWS).sum()))
        biases.append(float((mean - truth).square().sum()))
    seconds = step_seconds(vae, objective, train[:8])
    return {
        "estimator": name,
        "exact": exact,
        "variance": sum(variances) / len(x),
        "variance_error": math.sqrt(sum(e * e for e in errors)) / len(x),
        # of the squared bias, what the noise of the mean explains is taken away
        "bias": math.sqrt(max(0.0, sum(biases) - sum(noise)) / len(x)),
        "bias_resolved": math.sqrt(max(sum(noise), 1e-30) / len(x)),
        "milliseconds": 1000 * seconds,
    }


def relaxed_at(vae: Any, objective: Any, x: Tensor, z: Tensor) -> Tensor:
    """The gradient of a straight-through estimator at given draws."""
    drawn = objective.latents.objective

    class Fixed(type(drawn)):  # type: ignore[misc]
        def _draw(self, states: Any) -> Tensor:
            smooth = self._smooth(states, z)
            return z + (smooth - smooth.detach())

    return at_logits(vae, Fixed(objective.num_particles), x)


def step_seconds(vae: Any, objective: Any, x: Tensor) -> float:
    """The median time of a captured step in float32."""
    vae.float()
    pair, x = (vae.model, vae.guide), x.float()
    if hasattr(objective, "control"):
        objective.control.float()
    parameters = find_parameters(pair, (x,), vae=vae, name_block=None)
    stepper = Stepper(contenders([objective], [objective.num_particles])[0], pair, parameters, (x,))
    times = []
    for _ in range(60):
        began = time.perf_counter()
        stepper(x)
        times.append(time.perf_counter() - began)
    vae.double()
    return sorted(times)[30]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown; time to a precision is the variance times the time of a step, relative to DisARM's."""
    base = next(r for r in rows if r["estimator"].startswith("REINFORCE, leave"))
    lines = [
        "| estimator | variance | relative to leave-one-out | bias | ms a step | time to a given precision |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        error = "" if r["exact"] else f" +- {r['variance_error']:.2g}"
        bias = "0" if r["bias"] < max(3 * r["bias_resolved"], 1e-9) else f"{r['bias']:.3g}"
        cost = r["variance"] * r["milliseconds"] / (base["variance"] * base["milliseconds"])
        relative = r["variance"] / base["variance"]
        shown, took = f"{cost:.2f}" if bias == "0" else f"({cost:.2f})", f"{r['milliseconds']:.2f}"
        lines.append(f"| {r['estimator']} | {r['variance']:.4g}{error} | {relative:.2f} | {bias} | {took} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the results, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("discrete.json"))
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    began = time.time()
    digits = data.load("digits", binarize="threshold")
    found: dict[str, Any] = {}
    for kind in ("8 bits", "4 x 8 classes"):
        vae = model(kind, digits, options.epochs)
        x, train = digits.test.x[:ROWS].double(), digits.train.x[:100].double()
        names = [name for name in MADE if kind == "8 bits" or name not in ("ARM", "DisARM")]
        found[kind] = [row(vae, kind, name, x, train) for name in names]
        print(f"\n{kind}\n\n{table(found[kind])}", flush=True)
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    result = {"machine": machine, "seconds": time.time() - began, "epochs": options.epochs, "tables": found}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{result['seconds']:.0f} s on {machine['processor']}")


if __name__ == "__main__":
    main()
