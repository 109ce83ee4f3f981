r"""Questions about a prior, a likelihood and a posterior by themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae._distributions import check_same_space
from ppl_vae.checking import places
from ppl_vae.checking.asking import Findings, Unanswered
from ppl_vae.checking.questions import Asked, ask_about_data, ask_about_edges, ask_of_density

Call = Callable[..., Any]

FEW = 3  # data at which each distribution is asked about by itself
_PARTICLES = 3
_ROUNDING, _ROUNDING_64 = 1e-4, 1e-7  # of log-densities, in float32 and in float64
_SYMBOLS = {"prior": "p(z)", "likelihood": "p(x|z)", "posterior": "q(z|x)"}


@dataclass(frozen=True)
class Batch:
    """The arguments of the pieces.

    Attributes:
        x: Data, (n, *x_shape), or None where a prior or likelihood is asked about alone.
        z: Latents, (n, latent); None where the prior cannot draw them.
        y: The condition, (n, k), or None.
    """

    x: Tensor | None = None
    z: Tensor | None = None
    y: Tensor | None = None

    def few(self) -> Batch:
        """Return the first few data."""
        return Batch(*(None if t is None else t[:FEW] for t in (self.x, self.z, self.y)))

    def to(self, dtype: torch.dtype) -> Batch:
        """Return the batch in another floating-point type; integers stay integers."""
        return Batch(*(t if t is None or not t.is_floating_point() else t.to(dtype) for t in (self.x, self.z, self.y)))


@dataclass(frozen=True)
class Pieces:
    """The pieces that are asked about, and how to call them.

    Attributes:
        calls: The calls, by role: ``prior(y)``, ``likelihood(z, y)``, ``posterior(x, y)``.
        pieces: The pieces themselves, by role.
        module: The module that holds their parameters, or None.
    """

    calls: dict[str, Call]
    pieces: dict[str, Any]
    module: nn.Module | None

    def distribution(self, role: str, batch: Batch) -> Any:
        """Return the distribution of a piece for a batch."""
        if role == "prior":
            return self.calls[role](batch.y)
        return self.calls[role](batch.z if role == "likelihood" else batch.x, batch.y)


def ask_about_piece(findings: Findings, pieces: Pieces, role: str, batch: Batch, shape: tuple[int, ...] | None) -> None:
    """Ask all questions about one piece alone.

    Args:
        findings: Collects the answers.
        pieces: The pieces.
        role: The role of the piece to ask about.
        batch: The arguments to call it with.
        shape: The event shape that it must have; None allows any.
    """
    piece, few = pieces.pieces[role], batch.few()
    place = places.of_call(piece)
    with torch.no_grad():
        findings.ask(role, "shapes", lambda: _shapes(findings, pieces, role, batch, shape), place)
        if findings.is_wrong(role, names=("runs", "shapes")):
            return
        asked = Asked(role, _SYMBOLS[role], piece, pieces.distribution(role, few))
        precise = _in_float64(pieces, role, few)
        if role == "likelihood" and batch.x is not None:
            whole = Asked(role, _SYMBOLS[role], piece, pieces.distribution(role, batch))
            ask_about_data(findings, whole, batch.x)
        ask_of_density(findings, asked if precise is None else Asked(role, _SYMBOLS[role], piece, precise))
    if role == "likelihood" and batch.x is not None:
        assert few.z is not None
        assert few.x is not None
        ask_about_edges(findings, asked, lambda z: pieces.calls[role](z, few.y), few.z, few.x)
    if role == "likelihood":
        findings.ask(role, "uses z", lambda: _uses_latent(findings, pieces, few), place)
    if role == "posterior":
        findings.ask(role, "finite", lambda: _at_corners(findings, pieces, batch), place)
    if role != "prior":
        findings.ask(role, "batches", lambda: _batches(findings, pieces, role, batch), place)
    findings.ask(role, "float64", lambda: _float64(findings, pieces, role, few), place)


def _shapes(findings: Findings, pieces: Pieces, role: str, batch: Batch, shape: tuple[int, ...] | None) -> None:
    try:
        p = pieces.distribution(role, batch)
    except Exception as error:
        _say_failed(findings, pieces.pieces[role], role, batch, error)
        return
    lead = batch.z if role == "likelihood" else batch.x
    expected = () if role == "prior" else (len(lead),) if lead is not None else ()
    given = tuple(p.batch_shape), tuple(p.event_shape)
    of_each = role == "prior" and batch.y is not None and given[0] == (len(batch.y),)  # p(z|y)
    fits = of_each or given[0] == expected
    if fits and (shape is None or given[1] == shape):
        findings.ok(role, "shapes", f"{_SYMBOLS[role]} has batch {given[0]}, event {given[1]}")
        return
    count = len(shape) if shape is not None else 1
    findings.wrong(
        role,
        "shapes",
        f"{_SYMBOLS[role]} has batch {given[0]}, event {given[1]}; expected batch {expected}"
        + ("" if shape is None else f", event {shape}"),
        f"make the dimensions of one {'datum' if role == 'likelihood' else 'latent vector'} the event: "
        f".to_event({count})",
        places.of_call(pieces.pieces[role]),
    )


def _say_failed(findings: Findings, piece: Any, role: str, batch: Batch, error: Exception) -> None:
    fix = ""
    if role == "posterior" and batch.x is not None and batch.x.isnan().any():
        fix = "the data hold NaN, which a network makes NaN of: fill it first, as networks.TableEncoder does"
    message = " ".join(str(error).split())
    message = message if len(message) < 200 else message[:200] + " ..."
    findings.wrong(
        role,
        "runs",
        f"it fails when called with the data: {type(error).__name__}: {message}",
        fix,
        places.of_error(error) or places.of_call(piece),
    )


def _uses_latent(findings: Findings, pieces: Pieces, few: Batch) -> None:
    if few.z is None or not few.z.is_floating_point():
        raise Unanswered("its latents are whole numbers, without a derivative")
    z = few.z.detach().clone().requires_grad_()
    p = pieces.calls["likelihood"](z, few.y)
    with torch.no_grad():
        x = p.sample()
    log_p = p.log_prob(x)
    slope = torch.autograd.grad(log_p.sum(), z, allow_unused=True)[0] if log_p.requires_grad else None
    if slope is not None and slope.abs().max() > 0:
        findings.ok("likelihood", "uses z", "log p(x|z) has a derivative with respect to z")
        return
    depends = log_p.requires_grad and slope is None
    findings.wrong(
        "likelihood",
        "uses z",
        "log p(x|z) has no derivative with respect to z, so that q(z|x) learns nothing from the data"
        + ("" if depends else ": the path to z is cut"),
        "compute the parameters of p(x|z) from z without .detach(), .data, torch.no_grad or a rounding",
        places.of_cut(pieces.pieces["likelihood"]),
    )


def _at_corners(findings: Findings, pieces: Pieces, batch: Batch) -> None:
    x = batch.x
    assert x is not None
    if x.dim() == 2:  # columns of a table, each with a range of its own
        missing = x.isnan()
        ends = [torch.where(missing, torch.inf, x).amin(0), torch.where(missing, -torch.inf, x).amax(0)]
        corners = torch.stack([torch.where(missing.all(0), torch.nan, end) for end in ends])
    else:
        corners = torch.stack([torch.full_like(x[0], end) for end in (x.min().item(), x.max().item())])
    y = None if batch.y is None else batch.y[:2]
    with torch.no_grad():
        q = pieces.calls["posterior"](corners, y)
        z = q.sample((64,))
        log_q = q.log_prob(z)
    if log_q.isfinite().all() and z.isfinite().all():
        findings.ok("posterior", "finite", "q(z|x) is finite where all of x is at its least and at its largest value")
        return
    findings.wrong(
        "posterior",
        "finite",
        "log q(z|x) or its draws are not finite where all of x is at its least or its largest value",
        "bound the scale from below (softplus plus a floor), and work from log-scales",
        places.of_method(q, ("log_prob",), pieces.pieces["posterior"]),
    )


def _batches(findings: Findings, pieces: Pieces, role: str, batch: Batch) -> None:
    """Check that particles side by side equal particles one by one, and that the data of a batch do not interact."""
    few, symbol, tolerance = batch.few(), _SYMBOLS[role], _ROUNDING
    if _in_float64(pieces, role, few) is not None:  # in float32 rounding can exceed a fault
        pieces, few, tolerance = _doubled(pieces, role), few.to(torch.float64), _ROUNDING_64
    call = pieces.calls[role]
    with torch.no_grad():
        inputs = few.z if role == "likelihood" else few.x
        assert inputs is not None
        whole = call(inputs, few.y)
        value = whole.sample()
        together = whole.log_prob(value)
        alone = torch.cat(
            [
                call(inputs[i : i + 1], None if few.y is None else few.y[i : i + 1]).log_prob(value[i : i + 1])
                for i in range(len(inputs))
            ]
        )
        if not _close(together, alone, tolerance):
            findings.wrong(
                role,
                "batches",
                f"log {symbol} of a datum depends on the others in its batch, also in evaluation mode: "
                f"{together[0]:.6g} among {len(inputs)}, {alone[0]:.6g} alone",
                "compute the parameters of each datum from that datum alone",
                places.of_call(pieces.pieces[role]),
            )
            return
        if role == "posterior":
            findings.ok(role, "batches", f"log {symbol} of a datum is the same alone and in a batch")
            return
        particles = torch.stack([inputs * (1 - 0.1 * k) for k in range(_PARTICLES)])  # (K, n, latent)
        p = call(particles, few.y)
        expected = torch.stack([call(z, few.y).log_prob(value) for z in particles])
        given = p.log_prob(value) if tuple(p.batch_shape) == tuple(expected.shape) else None
        if given is None or not _close(given, expected, tolerance):
            what = f"batch {tuple(p.batch_shape)}" if given is None else f"log p {given[1, 0]:.6g}"
            wanted = f"{tuple(expected.shape)}" if given is None else f"{expected[1, 0]:.6g}"
            findings.wrong(
                role,
                "batches",
                f"for {_PARTICLES} particles side by side, z of shape {tuple(particles.shape)}, {symbol} has {what}; "
                f"one by one it is {wanted}",
                "leave leading dimensions alone: apply networks to z.reshape(-1, z.shape[-1]) and give the batch its "
                "shape back, and make events by .to_event(n)",
                places.of_call(pieces.pieces[role]),
            )
            return
    findings.ok(
        role,
        "batches",
        f"{_PARTICLES} particles side by side are the same as one by one, and a datum alone as in a batch",
    )


def _float64(findings: Findings, pieces: Pieces, role: str, few: Batch) -> None:
    if not isinstance(pieces.pieces[role], nn.Module) and role == "prior":
        raise Unanswered(
            "a prior that is no nn.Module cannot be told the type; register_buffer would let it follow .double()"
        )
    with torch.no_grad():
        p = _doubled(pieces, role).distribution(role, few.to(torch.float64))
        value = p.sample()
        log_p = p.log_prob(value)
        parts = {"draws": value, "log_prob": log_p}
        wrong = [f"{name} {tensor.dtype}" for name, tensor in parts.items() if tensor.dtype == torch.float32]
    if wrong:
        findings.wrong(
            role,
            "float64",
            f"in float64 its {' and its '.join(wrong)}".replace("torch.", ""),
            "make constants with the type of z or x (torch.zeros_like, register_buffer), not of a fixed type",
            places.of_call(pieces.pieces[role]),
        )
        return
    findings.ok(role, "float64", "works in float64")


def _doubled(pieces: Pieces, role: str) -> Pieces:
    """Return a copy of a piece in float64."""
    try:
        module, call = copy.deepcopy((pieces.module, pieces.calls[role]))
    except Exception as error:
        raise Unanswered(f"it cannot be copied ({type(error).__name__}: {error})") from error
    if module is None:
        raise Unanswered("no nn.Module to move to float64")
    return Pieces({role: call}, {role: pieces.pieces[role]}, module.double())


def _in_float64(pieces: Pieces, role: str, few: Batch) -> Any:
    """Return the distribution of a float64 copy, where rounding loses no mass at an edge; None if there is none."""
    try:
        p = _doubled(pieces, role).distribution(role, few.to(torch.float64))
        value = p.sample()
        whole = not value.is_floating_point() or value.dtype == torch.float64
        return p if whole and p.log_prob(value).dtype == torch.float64 else None
    except Exception:  # the question float64 says why
        return None


def ask_about_space(findings: Findings, prior: Any, posterior: Any, piece: Any) -> None:
    """Ask whether q(z|x) is a density on the space of p(z), with its draws in the support of p(z)."""

    def space() -> None:
        try:
            check_same_space(prior, posterior)
        except ValueError as error:
            sentence, _, fix = str(error).partition("; ")
            findings.wrong("posterior", "space", sentence, fix, places.of_call(piece))
        else:
            findings.ok("posterior", "space", "draws of q(z|x) lie in the support of p(z)")

    findings.ask("posterior", "space", space)


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    scale = b.abs().max().clamp(min=1.0)
    return bool(((a - b).abs() <= tolerance * scale).all())
