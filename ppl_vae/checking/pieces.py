r"""Questions about a prior, a likelihood and a posterior by themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ppl_vae._distributions import check_same_space
from ppl_vae._words import one_line
from ppl_vae.checking import places
from ppl_vae.checking.asking import Findings, Unanswered, Wrong, copied, wrong_by
from ppl_vae.checking.programs import moved_parameters
from ppl_vae.checking.questions import Asked, ask_about_data, ask_about_edges, ask_of_density

if TYPE_CHECKING:
    from jaxtyping import Shaped

Given = tuple[Tensor | None, ...]

FEW = 3  # data at which each distribution is asked about by itself
_PARTICLES = 3
ROUNDING, _ROUNDING_64 = 1e-4, 1e-7  # of log-densities, in float32 and in float64
_SYMBOLS = {"prior": "p(z)", "likelihood": "p(x|z)", "posterior": "q(z|x)"}


@dataclass(frozen=True)
class Piece:
    """A piece that is asked about, and how to call it.

    Attributes:
        role: prior, likelihood or posterior.
        piece: The piece itself.
        call: The call: ``prior(y)``, ``likelihood(z, y)`` or ``posterior(x, y)``; without a condition y is None.
        module: The module that holds its parameters.
    """

    role: str
    piece: Any
    call: Callable[..., Any]
    module: nn.Module

    @property
    def symbol(self) -> str:
        """The symbol of its distribution."""
        return _SYMBOLS[self.role]

    def doubled(self) -> Piece:
        """Return a copy in float64."""
        module, call = copied((self.module, self.call), "it")
        return Piece(self.role, self.piece, call, module.double())


def ask_about_piece(
    findings: Findings,
    piece: Piece,
    x: Shaped[Tensor, " n *x_shape"] | None,
    y: Shaped[Tensor, "n k"] | None,
    z: Shaped[Tensor, "n latent"] | None,
    shape: tuple[int, ...] | None,
) -> None:
    """Ask all questions about one piece alone.

    Args:
        findings: Collects the answers.
        piece: The piece.
        x: Data, or None where a prior or likelihood is asked about alone.
        y: The condition, or None.
        z: Latents.
        shape: The event shape that it must have. None allows any for a likelihood, and any vector for a latent.
    """
    role = piece.role
    given: Given = {"prior": (y,), "likelihood": (z, y), "posterior": (x, y)}[role]
    few = _few(given)
    place = places.of_call(piece.piece)

    def ask(name: str, question: Callable[..., str | None], *arguments: Any) -> None:
        findings.ask(role, name, partial(question, piece, *arguments), place)

    with torch.no_grad():
        ask("shapes", _shapes, given, shape)
        if findings.is_wrong(role, names=("runs", "shapes")):
            return
        asked = Asked(role, piece.symbol, piece.piece, piece.call(*few))
        precise = _in_float64(piece, few)
        if role == "likelihood" and x is not None:
            ask_about_data(findings, replace(asked, distribution=piece.call(*given)), x)
        ask_of_density(findings, asked if precise is None else replace(asked, distribution=precise))
    if role == "likelihood":
        if x is not None and z is not None:
            ask_about_edges(findings, asked, lambda z: piece.call(z, *few[1:]), z[:FEW], x[:FEW])
        ask("uses z", _uses_latent, *few)
    if role == "posterior":
        ask("finite", _at_corners, *given)
    if role != "prior":
        ask("batches", _batches, few)
    ask("float64", _float64, few)


def _few(given: Given) -> Given:
    return tuple(None if t is None else t[:FEW] for t in given)


def _double(given: Given) -> Given:
    return tuple(t.double() if t is not None and t.is_floating_point() else t for t in given)


def _shapes(piece: Piece, given: Given, shape: tuple[int, ...] | None) -> str:
    try:
        p = piece.call(*given)
    except Exception as error:
        raise _failed(piece, given, error) from error
    batch, event = tuple(p.batch_shape), tuple(p.event_shape)
    has = f"{piece.symbol} has batch {batch}, event {event}"
    *inputs, y = given
    expected = tuple(len(t) for t in inputs if t is not None)
    fits = batch == expected or (piece.role == "prior" and y is not None and batch == (len(y),))  # p(z|y)
    if shape is None and piece.role != "likelihood" and len(event) != 1:
        raise Wrong(f"{has}; expected an event (latent,), a vector", "make the latent vector the event: .to_event(1)")
    if fits and shape in (None, event):
        return has
    raise Wrong(
        f"{has}; expected batch {expected}" + ("" if shape is None else f", event {shape}"),
        f"make the dimensions of one {'datum' if piece.role == 'likelihood' else 'latent vector'} the event: "
        f".to_event({1 if shape is None else len(shape)})",
    )


def _failed(piece: Piece, given: Given, error: Exception) -> Wrong:
    fix, x = "", given[0]
    if piece.role == "posterior" and x is not None and x.isnan().any():
        fix = "the data hold NaN, which a network makes NaN of: fill it first, as networks.TableEncoder does"
    message = one_line(error)
    message = message if len(message) < 200 else message[:200] + " ..."
    sentence = f"it fails when called with the data: {type(error).__name__}: {message}"
    return Wrong(sentence, fix, places.of_error(error) or None, "runs")


def _uses_latent(piece: Piece, z: Tensor | None, y: Tensor | None) -> str:
    if z is None or not z.is_floating_point():
        raise Unanswered("its latents are whole numbers, without a derivative")
    z = z.detach().clone().requires_grad_()
    with moved_parameters([piece.module]):  # a layer that starts at zero hides z
        p = piece.call(z, y)
        with torch.no_grad():
            x = p.sample()
        log_p = p.log_prob(x)
        slope = torch.autograd.grad(log_p.sum(), z, allow_unused=True)[0] if log_p.requires_grad else None
    if slope is not None and slope.abs().max() > 0:
        return "log p(x|z) has a derivative with respect to z"
    depends = log_p.requires_grad and slope is None
    raise Wrong(
        "log p(x|z) has no derivative with respect to z, so that q(z|x) learns nothing from the data"
        + ("" if depends else ": the path to z is cut"),
        "compute the parameters of p(x|z) from z without .detach(), .data, torch.no_grad or a rounding",
        places.of_cut(piece.piece),
    )


def _at_corners(piece: Piece, x: Tensor, y: Tensor | None) -> str:
    if x.dim() == 2:  # columns of a table, each with a range of its own
        missing = x.isnan()
        ends = [torch.where(missing, torch.inf, x).amin(0), torch.where(missing, -torch.inf, x).amax(0)]
        corners = torch.stack([torch.where(missing.all(0), torch.nan, end) for end in ends])
    else:
        corners = torch.stack([torch.full_like(x[0], end) for end in (x.min().item(), x.max().item())])
    with torch.no_grad():
        q = piece.call(corners, None if y is None else y[:2])
        z = q.sample((64,))
        log_q = q.log_prob(z)
    if log_q.isfinite().all() and z.isfinite().all():
        return "q(z|x) is finite where all of x is at its least and at its largest value"
    raise Wrong(
        "log q(z|x) or its draws are not finite where all of x is at its least or its largest value",
        "bound the scale from below (softplus plus a floor), and work from log-scales",
        places.of_method(q, ("log_prob",), piece.piece),
    )


@torch.no_grad()
def _batches(piece: Piece, few: Given) -> str:
    """Check that particles side by side equal particles one by one, and that the data of a batch do not interact."""
    tolerance = ROUNDING
    if _in_float64(piece, few) is not None:  # in float32 rounding can exceed a fault
        piece, few, tolerance = piece.doubled(), _double(few), _ROUNDING_64
    inputs, y = few
    assert inputs is not None
    whole = piece.call(inputs, y)
    value = whole.sample()
    together = whole.log_prob(value)
    rows = [slice(i, i + 1) for i in range(len(inputs))]
    alone = torch.cat([piece.call(inputs[i], None if y is None else y[i]).log_prob(value[i]) for i in rows])
    if not close(together, alone, tolerance):
        raise Wrong(
            f"log {piece.symbol} of a datum depends on the others in its batch, also in evaluation mode: "
            f"{together[0]:.6g} among {len(inputs)}, {alone[0]:.6g} alone",
            "compute the parameters of each datum from that datum alone",
        )
    if piece.role == "posterior":
        return f"log {piece.symbol} of a datum is the same alone and in a batch"
    particles = torch.stack([inputs * (1 - 0.1 * k) for k in range(_PARTICLES)])  # (K, n, latent)
    p = piece.call(particles, y)
    expected = torch.stack([piece.call(z, y).log_prob(value) for z in particles])
    given = p.log_prob(value) if tuple(p.batch_shape) == tuple(expected.shape) else None
    if given is not None and close(given, expected, tolerance):
        return f"{_PARTICLES} particles side by side are the same as one by one, and a datum alone as in a batch"
    what = f"batch {tuple(p.batch_shape)}" if given is None else f"log p {given[1, 0]:.6g}"
    wanted = f"{tuple(expected.shape)}" if given is None else f"{expected[1, 0]:.6g}"
    raise Wrong(
        f"for {_PARTICLES} particles side by side, z of shape {tuple(particles.shape)}, {piece.symbol} has {what}; "
        f"one by one it is {wanted}",
        "leave leading dimensions alone: apply networks to z.reshape(-1, z.shape[-1]) and give the batch its "
        "shape back, and make events by .to_event(n)",
    )


@torch.no_grad()
def _float64(piece: Piece, few: Given) -> str:
    if not isinstance(piece.piece, nn.Module) and piece.role == "prior":
        raise Unanswered(
            "a prior that is no nn.Module cannot be told the type; register_buffer would let it follow .double()"
        )
    p = piece.doubled().call(*_double(few))
    value = p.sample()
    parts = {"draws": value, "log_prob": p.log_prob(value)}
    wrong = [f"{name} {tensor.dtype}" for name, tensor in parts.items() if tensor.dtype == torch.float32]
    if not wrong:
        return "works in float64"
    raise Wrong(
        f"in float64 its {' and its '.join(wrong)}".replace("torch.", ""),
        "make constants with the type of z or x (torch.zeros_like, register_buffer), not of a fixed type",
    )


def _in_float64(piece: Piece, few: Given) -> Any:
    """Return the distribution of a float64 copy, where rounding loses no mass at an edge; None if there is none."""
    try:
        p = piece.doubled().call(*_double(few))
        value = p.sample()
        whole = not value.is_floating_point() or value.dtype == torch.float64
        return p if whole and p.log_prob(value).dtype == torch.float64 else None
    except Exception:  # the question float64 says why
        return None


def ask_about_space(findings: Findings, prior: Any, posterior: Any, piece: Any) -> None:
    """Ask whether q(z|x) is a density on the space of p(z), with its draws in the support of p(z)."""

    def space() -> str:
        try:
            check_same_space(prior, posterior)
        except ValueError as error:
            raise wrong_by(error) from error
        return "draws of q(z|x) lie in the support of p(z)"

    findings.ask("posterior", "space", space, places.of_call(piece))


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether log-densities are equal up to a share of the largest."""
    scale = b.abs().max().clamp(min=1.0)
    return bool(((a - b).abs() <= tolerance * scale).all())
