r"""Questions about a whole program: gradients, the objective, the bound, capture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import groupby
from typing import Any

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from ppl_vae import objectives
from ppl_vae._scopes import kept_values
from ppl_vae._words import one_line
from ppl_vae.capture import buffers_of, modules_of
from ppl_vae.checking import places
from ppl_vae.checking.asking import ROLES, Findings, Unanswered, Wrong, copied, wrong_by
from ppl_vae.evidence.log_evidence import log_evidence
from ppl_vae.evidence.results import Evidence
from ppl_vae.objectives import NotPerDatumError, sample_log_weights
from ppl_vae.objectives.estimate import sampling_of
from ppl_vae.objectives.impossible import strange
from ppl_vae.objectives.log_weights import LogWeights
from ppl_vae.objectives.losses import Program, as_loss
from ppl_vae.svi import SVI
from ppl_vae.vae import VAE

_JITTER = 0.02
_STEPS = 3
_REPEATS = 20
_PARTICLES = 200
_OF_BOUND = 6  # data at which the bound is held against log p(x)
_OF_CAPTURE = 16  # data of a captured step
_ROUNDING = 1e-4  # of |log p(x)|, in float32

_adam = partial(torch.optim.Adam, lr=1e-3)


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


def ask_about_program(
    findings: Findings,
    program: Program,
    objective: Any,
    posteriors: list[Any],
    args: tuple[Tensor, ...],
    vae: VAE | None = None,
) -> None:
    """Ask about a model and a guide together.

    Args:
        findings: Collects the answers.
        program: Model and guide.
        objective: The objective. None is the ELBO; where a latent is not reparameterised, Pyro's, which has the
            score-function term.
        posteriors: The distributions of the latents.
        args: The arguments of model and guide.
        vae: The VAE whose program it is, or None.
    """
    if objective is None:
        objective = objectives.ELBO(2) if all(q.has_rsample for q in posteriors) else Trace_ELBO(2)
    modules = modules_of(*program)  # which an objective may hold too
    shared = [part for m in modules for part in (*m.modules(), *m.parameters(), *m.buffers())]
    with suppress(Exception):  # averages and baselines of the objective learn from what they are asked
        objective = copy.deepcopy(objective, {id(part): part for part in shared})

    def ask(name: str, question: Callable[..., str | None], *given: Any) -> None:
        findings.ask("program", name, partial(question, findings, *given))

    findings.ask("objective", "runs", lambda: _evaluated(findings, program, objective, args))
    if findings.is_wrong("objective"):
        return
    ask("terms", _terms, program, args)
    ask("gradients", _trained, program, objective, args, vae, [*modules, *modules_of(objective)])
    ask("bound", _bound, program, objective, args, vae)
    if vae is None:
        findings.skipped("program", "capture", "only a VAE can be copied to try it; SVI says why_eager while it trains")
    else:
        ask("capture", _captured, objective, tuple(a[:_OF_CAPTURE] for a in args), vae)


def _evaluated(findings: Findings, program: Program, objective: Any, args: tuple[Any, ...]) -> None:
    """Check that the objective can be evaluated, and that latents are reparameterised where it needs that."""
    try:
        result = as_loss(objective)(program, *args)
    except ValueError as error:
        if "needs reparameterised latents" not in str(error):
            raise
        raise wrong_by(error, name="reparameterised") from error
    value = -float(result.loss) / float(result.weight)
    if not torch.tensor(value).isfinite():
        raise Wrong(f"its value is {value} nats per datum", name="finite")
    sentence = f"{places.name_of(objective)} is {value:.4g} nats per datum, and takes q as it is"
    findings.ok("objective", "reparameterised", sentence)


def _terms(findings: Findings, program: Program, args: tuple[Any, ...]) -> str:
    """Check that a model can give these log p(x|z) and sampled KL, and that the KL is near the analytic one."""
    findings.require(*ROLES)
    log_weights = _weights(program, args, _REPEATS)
    wrong, alarm = strange(log_weights, digits=False)
    if sentence := wrong or alarm:
        raise Wrong(sentence, "score a draw by the density that it was drawn from")
    log_lik, kl = log_weights.log_lik.mean(), log_weights.kl.mean()
    return f"E log p(x|z) is {log_lik:.4g}, the sampled KL {kl:.4g} nats per datum"


def _trained(
    findings: Findings,
    program: Program,
    objective: Any,
    args: tuple[Any, ...],
    module: nn.Module | None,
    modules: list[nn.Module],
) -> str | None:
    """Check that every parameter is trained: that its gradient exists, is finite and is not zero.

    A gradient counts as zero only if it is zero both at the given parameters and at parameters moved a little: a layer
    that starts at zero hides the layers before it.
    """
    quiet = []
    hidden = 0  # gradients that data of zeros hide: those of the first weights that read them
    for jitter in (0.0, _JITTER):
        with moved_parameters(modules, jitter):
            svi = SVI(*program, _adam, objective, compile="off")
            svi.backward(*args, mean=True)
            found = _gradients(svi, module)
        for name, gradient in found.items():
            if gradient is not None and not gradient.isfinite().all():
                _say_parameter(findings, module, name, "has a gradient that is not finite", cut=False)
        zero = {name for name, g in found.items() if g is not None and not g.count_nonzero()}
        if not args[0].count_nonzero():
            hidden, zero = len(zero), set()
        quiet.append({name for name, g in found.items() if g is None} | zero)
    silent = sorted(quiet[0] & quiet[1])
    for _, group in groupby(silent, key=lambda name: name.partition(".")[0]):
        first, *rest = group
        more = f" (and {len(rest)} more: {', '.join(rest[:3])})" if rest else ""
        _say_parameter(findings, module, first, f"is trained by nothing: its gradient is zero{more}", cut=bool(rest))
    if silent or any(f.status == "wrong" and f.name == "gradients" for f in findings.found):
        return None
    if hidden:
        reached = f"{len(found) - hidden} of {len(found)}"
        return f"finite, and reach {reached} parameters; the others may read the data, all zero here"
    return f"finite, and reach all {len(found)} parameters"


def _gradients(svi: SVI, module: nn.Module | None) -> dict[str, Tensor | None]:
    own = {} if module is None else dict(module.named_parameters())
    found = {name: p.grad for name, p in own.items() if p.requires_grad}
    known = {id(p) for p in own.values()}
    return found | {name: leaf.grad for name, leaf in svi.parameters.items() if id(leaf) not in known}


@contextmanager
def moved_parameters(modules: list[nn.Module], size: float = _JITTER) -> Iterator[None]:
    """Move all parameters a little within a block, those of Pyro's store too; afterwards all is as it was."""
    stored = (p for _, p in pyro.get_param_store().named_parameters())
    parameters = {id(p): p for p in (*(p for m in modules for p in m.parameters()), *stored)}.values()
    gradients = [p.grad for p in parameters]
    with kept_values([*parameters, *buffers_of(modules)]):
        try:
            with torch.no_grad():
                for p in parameters:
                    p.grad = None
                    if size:
                        p.add_(size * torch.randn_like(p))
            yield
        finally:
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient


def _say_parameter(findings: Findings, module: nn.Module | None, name: str, what: str, *, cut: bool) -> None:
    role = name.partition(".")[0]
    part = role if role in ROLES else "program"
    piece = getattr(module, role, None)
    place = "" if module is None or (cut and piece is not None) else places.of_parameter(module, name)
    if not place and piece is not None:
        place = places.of_cut(piece)
    fix = "use it in what the piece returns, without .detach() or torch.no_grad on the way; or remove it"
    findings.wrong(part, "gradients", f"parameter {name} {what}", fix, place)


def _bound(
    findings: Findings, program: Program, objective: Any, args: tuple[Tensor, ...], vae: VAE | None
) -> str | None:
    """Check that the ELBO lies below log p(x), and the objective too if it claims to be a lower bound."""
    findings.require(*ROLES, "objective", why=": with it neither number means anything")
    few = _few(args)
    log_w = _weights(program, few, _PARTICLES).log_w.double()
    evidence = _evidence(program, few, vae)
    found = [("program", "the ELBO", log_w.mean(), log_w.mean(1).std() / _PARTICLES**0.5)]
    if (values := _values(objective, program, few)) is not None:
        found.append(("objective", places.name_of(objective), values.mean(), values.std() / len(values) ** 0.5))
    best, known_to = evidence.log_evidence.mean(), evidence.error[evidence.error.isfinite()].sum() / len(log_w[0])
    kind = "log p(x)" if evidence.kind == "exact" else "the best estimate of log p(x)"
    for part, name, value, se in found:
        if not value <= best + 5 * (se + known_to) + _ROUNDING * best.abs():
            findings.wrong(
                part,
                "bound",
                f"{name}, {value:.3f} +- {se:.3f} nats per datum, is above {kind}, {best:.3f} ({evidence.method})",
                "it is no bound: look for a term that is left out, a scale on one side alone, or a sum over K that "
                "is no average",
                "" if part == "program" else places.of_call(objective),
            )
            return None
    numbers = ", ".join(f"{name} {value:.2f}" for _, name, value, _ in found)
    return f"{numbers} <= {kind} {best:.2f} ({evidence.method}), nats per datum"


@torch.no_grad()
def _weights(program: Program, args: tuple[Tensor, ...], count: int) -> LogWeights:
    """Return log-weights of particles side by side, which an objective may need or not."""
    try:
        return sample_log_weights(*program, *args, num_particles=count)
    except NotPerDatumError as error:
        raise Unanswered(error) from error
    except Exception as error:
        message = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise Unanswered(f"the program fails with {count} particles side by side ({message})") from error


def _few(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return a few data, all of one condition if there are conditions: each condition has an evidence of its own."""
    if len(args) == 2:
        same = (args[1] == args[1][:1]).reshape(len(args[1]), -1).all(1)
        args = tuple(a[same] for a in args)
    return tuple(a[:_OF_BOUND] for a in args)


def _evidence(program: Program, args: tuple[Any, ...], vae: VAE | None) -> Evidence:
    """Return exact evidence if possible, else importance sampling from q, whose mean lies above the ELBO for any q."""
    if vae is not None:
        try:
            return log_evidence(vae, *args, method="exact", tolerance=1e-2)
        except (ValueError, NotImplementedError):
            pass
    elif len(args) > 1:
        raise Unanswered("log p(x) of a program of several arguments is not estimated")
    return log_evidence(program if vae is None else vae, *args, method="posterior", num_particles=(2000,))


def _values(objective: Any, program: Program, args: tuple[Any, ...]) -> Tensor | None:
    """Return repeated values per datum of an objective that claims to be a lower bound; None for any other."""
    loss = as_loss(objective)
    if not isinstance(objective, PyroELBO):
        weights = sample_log_weights(*program, *args, **sampling_of(objective))
        if getattr(objective(weights), "kind", "neither") != "lower":
            return None
    elif getattr(objective, "alpha", 0.0) < 0:
        return None  # Renyi's upper bounds
    with torch.no_grad():
        found = [loss(program, *args) for _ in range(_REPEATS)]
    return torch.stack([-torch.as_tensor(b.loss, dtype=torch.float64) / b.weight for b in found])


def _captured(findings: Findings, objective: Any, args: tuple[Any, ...], vae: VAE) -> str:
    """Check whether a training step can be captured as one graph, and that it then equals the eager step."""
    findings.require(*ROLES, "objective", "program")
    states = []
    for level in ("off", "graph"):
        mine = copied(vae, "the program").train()
        svi = SVI(mine.model, mine.guide, _adam, copy.deepcopy(objective), compile=level)  # type: ignore[arg-type]
        torch.manual_seed(1)
        losses = [svi.step(*args) for _ in range(_STEPS)]
        states.append([v.detach().clone() for v in svi.parameters.values()])
    if svi.why_eager is not None:
        return f"not captured, and trains as it is written, slower: {svi.why_eager}"[:300]
    pairs = list(zip(*states, strict=True))
    if all(torch.equal(a, b) for a, b in pairs):
        return f"captured as one graph; {_STEPS} steps equal those as written, bit for bit"
    far = max((a - b).abs().max().item() for a, b in pairs)
    raise Wrong(
        f"{_STEPS} captured steps (last loss {losses[-1]:.6g}) leave other parameters than steps as written, by "
        f"up to {far:.2g}",
        "keep what changes from step to step in tensors or buffers, not in Python values; or use compile='off'",
    )
