r"""Questions about a whole program: gradients, the objective, the bound, capture."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from ppl_vae import objectives
from ppl_vae.checking import places
from ppl_vae.checking.asking import Findings, Unanswered
from ppl_vae.evidence.log_evidence import log_evidence
from ppl_vae.evidence.results import Evidence
from ppl_vae.objectives import NotPerDatumError, sample_log_weights
from ppl_vae.objectives.impossible import strange
from ppl_vae.objectives.losses import as_loss
from ppl_vae.svi import SVI
from ppl_vae.vae import VAE

Program = tuple[Callable[..., Any], Callable[..., Any]]

_JITTER = 0.02
_STEPS = 3
_REPEATS = 20
_PARTICLES = 200
_OF_BOUND = 6  # data at which the bound is held against log p(x)
_ROUNDING = 1e-4  # of |log p(x)|, in float32


def default_objective(posteriors: list[Any]) -> Any:
    """Return the ELBO; where a latent is not reparameterised, Pyro's, which has the score-function term."""
    return objectives.ELBO(2) if all(q.has_rsample for q in posteriors) else Trace_ELBO(2)


@contextmanager
def store_as_it_was() -> Iterator[None]:
    """Remove the parameters that a block adds to Pyro's store."""
    store = pyro.get_param_store()
    before = set(store.keys())
    try:
        yield
    finally:
        for name in set(store.keys()) - before:
            del store[name]


def ask_about_objective(findings: Findings, program: Program, objective: Any, args: tuple[Any, ...]) -> bool:
    """Ask whether the objective can be evaluated, and whether latents are reparameterised where it needs that."""

    def works() -> None:
        try:
            result = as_loss(objective)(program, *args)
        except ValueError as error:
            if "needs reparameterised latents" not in str(error):
                raise
            sentence, _, fix = str(error).partition("; ")
            findings.wrong("objective", "reparameterised", sentence, fix)
            return
        value = -float(result.loss) / float(result.weight)
        if not torch.tensor(value).isfinite():
            findings.wrong("objective", "finite", f"its value is {value} nats per datum")
            return
        findings.ok(
            "objective", "reparameterised", f"{_name(objective)} is {value:.4g} nats per datum, and takes q as it is"
        )

    findings.ask("objective", "runs", works)
    return not findings.is_wrong("objective")


def ask_about_gradients(
    findings: Findings, program: Program, objective: Any, args: tuple[Any, ...], pieces: Any
) -> None:
    """Ask whether every parameter is trained: whether its gradient exists, is finite and is not zero.

    A gradient counts as zero only if it is zero both at the given parameters and at parameters moved a little.

    Args:
        findings: Collects the answers.
        program: Model and guide.
        objective: The objective.
        args: The arguments of model and guide.
        pieces: The module that holds the parameters (its children named as the pieces), or None.
    """

    def gradients() -> None:
        silent: set[str] | None = None
        for jitter in (0.0, _JITTER):  # a layer that starts at zero hides the layers before it
            with _moved(pieces, jitter):
                svi = SVI(*program, functools.partial(torch.optim.Adam, lr=1e-3), objective, compile="off")
                svi.backward(*args, mean=True)
                found = _gradients(svi, pieces)
            for name, gradient in found.items():
                if gradient is not None and not gradient.isfinite().all():
                    _say_parameter(findings, pieces, name, "has a gradient that is not finite", cut=False)
            quiet = {name for name, g in found.items() if g is None or not g.count_nonzero()}
            silent = quiet if silent is None else silent & quiet
        assert silent is not None
        for names in _by_part(sorted(silent)).values():
            more = f" (and {len(names) - 1} more: {', '.join(names[1:4])})" if len(names) > 1 else ""
            _say_parameter(
                findings, pieces, names[0], f"is trained by nothing: its gradient is zero{more}", cut=len(names) > 1
            )
        if not silent and not any(f.status == "wrong" and f.name == "gradients" for f in findings.found):
            findings.ok("program", "gradients", f"finite, and reach all {len(found)} parameters")

    findings.ask("program", "gradients", gradients)


def _gradients(svi: SVI, module: nn.Module | None) -> dict[str, Tensor | None]:
    if module is None:
        return {name: leaf.grad for name, leaf in svi.parameters.items()}
    own = dict(module.named_parameters())
    found = {name: p.grad for name, p in own.items() if p.requires_grad}
    known = {id(p) for p in own.values()}
    return found | {name: leaf.grad for name, leaf in svi.parameters.items() if id(leaf) not in known}


@contextmanager
def _moved(module: nn.Module | None, size: float) -> Iterator[None]:
    """Move all parameters a little within a block, and move them back afterwards."""
    kept = [(p, p.detach().clone()) for p in ([] if module is None else module.parameters())]
    try:
        with torch.no_grad():
            for p, _ in kept if size else ():
                p.add_(size * torch.randn_like(p))
        for p, _ in kept:
            p.grad = None
        yield
    finally:
        with torch.no_grad():
            for p, value in kept:
                p.grad = None
                if size:
                    p.copy_(value)


def _by_part(names: list[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(name.partition(".")[0], []).append(name)
    return parts


def _say_parameter(findings: Findings, module: nn.Module | None, name: str, what: str, *, cut: bool) -> None:
    role = name.partition(".")[0]
    part = role if role in ("prior", "likelihood", "posterior") else "program"
    place = ""
    if module is not None:
        piece = getattr(module, role, None)
        place = places.of_cut(piece) if cut and piece is not None else places.of_parameter(module, name)
        place = place or (places.of_cut(piece) if piece is not None else "")
    fix = "use it in what the piece returns, without .detach() or torch.no_grad on the way; or remove it"
    findings.wrong(part, "gradients", f"parameter {name} {what}", fix, place)


def ask_about_terms(findings: Findings, program: Program, args: tuple[Any, ...]) -> None:
    """Ask whether a model can give these log p(x|z) and sampled KL, and whether the KL is near the analytic one."""

    def terms() -> None:
        if first := findings.spoils_numbers("prior", "likelihood", "posterior"):
            raise Unanswered(f"mend {first!r} first")
        try:
            with torch.no_grad():
                log_weights = sample_log_weights(*program, *args, num_particles=_REPEATS)
        except NotPerDatumError as error:
            raise Unanswered(str(error)) from error
        wrong, alarm = strange(log_weights, digits=False)
        if sentence := wrong or alarm:
            findings.wrong("program", "terms", sentence, "score a draw by the density that it was drawn from")
            return
        log_lik, kl = log_weights.log_lik.mean(), log_weights.kl.mean()
        findings.ok("program", "terms", f"E log p(x|z) is {log_lik:.4g}, the sampled KL {kl:.4g} nats per datum")

    findings.ask("program", "terms", terms)


def ask_about_bound(findings: Findings, program: VAE | Program, objective: Any, args: tuple[Any, ...]) -> None:
    """Ask whether the ELBO lies below log p(x), and the objective too if it claims to be a lower bound."""

    def bound() -> None:
        if first := findings.spoils_numbers("prior", "likelihood", "posterior", "objective"):
            raise Unanswered(f"mend {first!r} first: with it neither number means anything")
        few = _few(args)
        pair = (program.model, program.guide) if isinstance(program, VAE) else program
        try:
            evidence = _evidence(program, few)
        except NotPerDatumError as error:
            raise Unanswered(str(error)) from error
        with torch.no_grad():
            log_w = sample_log_weights(*pair, *few, num_particles=_PARTICLES).log_w.double()
        found = [("the ELBO", log_w.mean(), log_w.mean(1).std() / _PARTICLES**0.5)]
        values = _values(objective, pair, few)
        if values is not None:
            found.append((_name(objective), values.mean(), values.std() / len(values) ** 0.5))
        best, known_to = evidence.log_evidence.mean(), evidence.error[evidence.error.isfinite()].sum() / len(log_w[0])
        kind = "log p(x)" if evidence.kind == "exact" else "the best estimate of log p(x)"
        for name, value, se in found:
            slack = 5 * (se + known_to) + _ROUNDING * best.abs()
            if not value <= best + slack:
                part = "program" if name == "the ELBO" else "objective"
                findings.wrong(
                    part,
                    "bound",
                    f"{name}, {value:.3f} +- {se:.3f} nats per datum, is above {kind}, {best:.3f} ({evidence.method})",
                    "it is no bound: look for a term that is left out, a scale on one side alone, or a sum over K that "
                    "is no average",
                    "" if part == "program" else places.of_call(objective),
                )
                return
        numbers = ", ".join(f"{name} {value:.2f}" for name, value, _ in found)
        findings.ok("program", "bound", f"{numbers} <= {kind} {best:.2f} ({evidence.method}), nats per datum")

    findings.ask("program", "bound", bound)


def _few(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return a few data, all of one condition if there are conditions: each condition has an evidence of its own."""
    if len(args) == 2:
        same = (args[1] == args[1][:1]).flatten(1).all(1) if args[1].dim() > 1 else args[1] == args[1][0]
        args = tuple(a[same] for a in args)
    return tuple(a[:_OF_BOUND] for a in args)


def _evidence(program: VAE | Program, args: tuple[Any, ...]) -> Evidence:
    """Return exact evidence if possible, else importance sampling from q, whose mean lies above the ELBO for any q."""
    if isinstance(program, VAE):
        try:
            return log_evidence(program, *args, method="exact", tolerance=1e-2)
        except (ValueError, NotImplementedError):
            pass
    if len(args) > 1 and not isinstance(program, VAE):
        raise Unanswered("log p(x) of a program of several arguments is not estimated")
    return log_evidence(program, *args, method="posterior", num_particles=(2000,))


def _values(objective: Any, pair: Program, args: tuple[Any, ...]) -> Tensor | None:
    """Return repeated values per datum of an objective that claims to be a lower bound; None for any other."""
    loss = as_loss(objective)
    if not isinstance(objective, PyroELBO):
        weights = sample_log_weights(*pair, *args, num_particles=getattr(objective, "num_particles", 1))
        if getattr(objective(weights), "kind", "neither") != "lower":
            return None
    elif getattr(objective, "alpha", 0.0) < 0:
        return None  # Renyi's upper bounds
    with torch.no_grad():
        found = [loss(pair, *args) for _ in range(_REPEATS)]
    return torch.stack([-torch.as_tensor(b.loss, dtype=torch.float64) / b.weight for b in found])


def ask_about_capture(findings: Findings, vae: VAE, objective: Any, args: tuple[Any, ...]) -> None:
    """Ask whether a training step can be captured as one graph, and whether it then equals the eager step."""

    def captured() -> None:
        if first := findings.spoils_numbers("prior", "likelihood", "posterior", "objective", "program"):
            raise Unanswered(f"mend {first!r} first")
        runs = []
        for level in ("off", "graph"):
            try:
                mine = copy.deepcopy(vae).train()
            except Exception as error:
                raise Unanswered(f"the program cannot be copied ({type(error).__name__}: {error})") from error
            svi = SVI(mine.model, mine.guide, functools.partial(torch.optim.Adam, lr=1e-3), objective, compile=level)  # type: ignore[arg-type]
            torch.manual_seed(1)
            losses = [svi.step(*args) for _ in range(_STEPS)]
            runs.append((losses, [v.detach().clone() for v in svi.parameters.values()], svi.why_eager))
        (_, expected, _), (losses, state, why) = runs
        if why is not None:
            findings.ok("program", "capture", f"not captured, and trains as it is written, slower: {why}"[:300])
            return
        if all(torch.equal(a, b) for a, b in zip(state, expected, strict=True)):
            findings.ok(
                "program", "capture", f"captured as one graph; {_STEPS} steps equal those as written, bit for bit"
            )
            return
        far = max((a - b).abs().max().item() for a, b in zip(state, expected, strict=True))
        findings.wrong(
            "program",
            "capture",
            f"{_STEPS} captured steps (last loss {losses[-1]:.6g}) leave other parameters than steps as written, by "
            f"up to {far:.2g}",
            "keep what changes from step to step in tensors or buffers, not in Python values; or use compile='off'",
        )

    findings.ask("program", "capture", captured)


def _name(objective: Any) -> str:
    return places.name_of(objective)
