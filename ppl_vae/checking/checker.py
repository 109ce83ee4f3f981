r"""`check`: all questions about a piece, a VAE or any Pyro program."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ppl_vae._home import at_home, home_of
from ppl_vae._piece_checks import takes_y
from ppl_vae._scopes import evaluation_mode, kept_values, seeded
from ppl_vae._tensors import as_numbers, moved
from ppl_vae._validation import check_choice, check_seed
from ppl_vae._words import one_line
from ppl_vae.capture import buffers_of, modules_of
from ppl_vae.checking import places, programs
from ppl_vae.checking.asking import ROLES, Findings, wrong_by
from ppl_vae.checking.pieces import Piece, ask_about_piece, ask_about_space
from ppl_vae.checking.report import Report
from ppl_vae.checking.sites import check_pair
from ppl_vae.data import Dataset
from ppl_vae.data.forms import Form, form_of
from ppl_vae.data.held import split_of
from ppl_vae.distributions.foreign import as_pyro
from ppl_vae.networks import Binding
from ppl_vae.objectives.losses import Program
from ppl_vae.vae import VAE

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped


_BATCH = 64
_LATENT = 2
_CALLS = {"prior": "p_z", "likelihood": "p_x", "posterior": "q_z"}  # the methods of a VAE
_SUBJECTS = (  # of what `VAE` refuses, by the words of its message
    (r"batch_shape|event_shape|network maps", "shapes"),
    (r"mass outside|lives on|say its support", "space"),
    (r"cannot see|nothing would train", "gradients"),
)


@at_home(float64=True)
def check(
    program: VAE | Program | None = None,
    data: Any = None,
    *,
    prior: Any = None,
    likelihood: Any = None,
    posterior: Any = None,
    y: Shaped[Tensor, "n k"] | Int[Tensor, " n"] | None = None,
    z: Shaped[Tensor, "n latent"] | None = None,
    objective: Any = None,
    only: str | None = None,
    seed: int = 0,
) -> Report:
    r"""Run a piece, or a whole program, on a batch of real data, and report what is right and what is wrong.

    The questions about each density are:

    - What are its shapes?
    - Do its draws lie in its support?
    - Do its draws follow its ``log_prob``? This is tested along single coordinates, where the density alone gives the
      fraction of the mass below a draw.
    - Is its mass 1? The mass is found by quadrature or a sum for one or two coordinates, for independent coordinates
      and for few states, and by importance sampling otherwise.
    - Is it finite at the data, and as its parameters grow?
    - Do particles side by side give the same numbers as one by one?
    - Does it work in float64?

    The questions about a program are:

    - Do the data and the draws of q(z|x) lie in their supports?
    - Is the sampled KL possible: not below 0, and near the analytic KL?
    - Does the gradient reach every parameter?
    - Do the ELBO and the objective lie below log p(x)?
    - Can a training step be captured as one graph?

    The check looks at one batch, 64 data of a data set, and evaluates each density at three of them. It does not see
    faults elsewhere, faults smaller than 5.5 standard errors of 4,000 draws (a scale that is off by less than about
    5%), or wrong weights of modes that lie far apart in more than two dimensions. A question without an answer says
    why. The check takes seconds, or minutes for a piece whose density is slow (an autoregressive flow in its slow
    direction). It leaves parameters, buffers, gradients and the random state unchanged.

    Args:
        program: A `VAE`, or a ``(model, guide)`` pair of Pyro functions of the data. Without a program, give the
            pieces: all three (what `VAE` refuses about them is a finding), or one alone.
        data: A data set, whose first 64 training data are used, x itself, or data in any other form that
            `data.as_split` takes, whose first 64 are used.
        prior: A prior.
        likelihood: A likelihood; alone it is called with `z`, by default standard normal latents of two dimensions.
        posterior: A posterior; alone it needs `data`.
        y: The condition of a conditional model, a row or a label for each datum; by default the data set's second
            column.
        z: Latents for a likelihood alone.
        objective: The objective that the program is to be trained with; by default the ELBO.
        only: Ask about this piece of a VAE, or of the given pieces, alone: prior, likelihood or posterior.
        seed: The seed of all draws.

    Raises:
        TypeError: If there is nothing to check.
        ValueError: If data are missing, or `only` names no piece that is given.

    Example:
        >>> import pyro.distributions as dist
        >>> from ppl_vae import priors
        >>> bool(check(prior=priors.StandardNormal(2)))
        True
        >>> report = check(prior=lambda: dist.Normal(torch.zeros(3), 1.0))
        >>> [finding.name for finding in report.wrong]
        ['shapes']
    """
    pieces = {role: p for role, p in zip(ROLES, (prior, likelihood, posterior), strict=True) if p is not None}
    if only is not None:
        check_choice(only, ROLES, "check: only")
    if (program is None) == (not pieces):
        raise TypeError(
            "check was given no program, or one beside pieces; expected a VAE, a (model, guide) pair, or pieces"
        )
    if only is not None and not isinstance(program, VAE):
        if only not in pieces:
            what = f"no {only}" if pieces else "a model and a guide, which have sites and no pieces"
            raise ValueError(f"check was given only={only!r} and {what}; leave `only` out")
        pieces = pieces if len(pieces) == len(ROLES) else {only: pieces[only]}
    check_seed(seed, "check: seed")
    if not (data is None or isinstance(data, Tensor | Dataset)):
        part = split_of(data, form_of(program) if isinstance(program, VAE) else Form())
        data = Dataset.of("the data", part)
    x, y, of_data = _batch_of(data, y)
    if (like := home_of(tuple(pieces.values()) if program is None else program)) is not None:
        x, y, z = moved((x, y, z), like.device, like.dtype)
    if (pieces or isinstance(program, VAE)) and isinstance(x, Tensor) and not x.is_floating_point():  # as `fit` does
        x = as_numbers(x, torch.get_default_dtype() if like is None else like.dtype, "check: data")
    _check_batch(program, x, y)
    title = ", ".join(places.name_of(p) for p in pieces.values())
    findings = Findings()
    with seeded(seed), programs.store_as_it_was():
        if program is None and len(pieces) < len(ROLES):
            _check_alone(findings, pieces, x, y, z)
        elif x is None:
            what, example = ("three pieces", "data=..., prior=..., ...") if pieces else ("a program", "program, data")
            raise ValueError(f"check was given {what} and no data; give check({example}) a batch of what it is for")
        else:
            if program is None:
                title, program = "the pieces", _put_together(findings, pieces, data, x, y)
            if isinstance(program, VAE):
                title = " + ".join(places.name_of(getattr(program, role)) for role in ROLES)
                with evaluation_mode(program):
                    _check_vae(findings, program, x, y, objective, only)
            elif program is not None:
                title = " / ".join(places.name_of(part) for part in program)
                modules = modules_of(*program)
                with evaluation_mode(*modules), kept_values(buffers_of(modules)):
                    check_pair(findings, program, (x,) if y is None else (x, y), objective, modules)
    of_what = "" if x is None else f" on {len(x)} data{of_data}"
    return Report(title + of_what, tuple(findings.found))


def _batch_of(data: Any, y: Tensor | None) -> tuple[Tensor | None, Tensor | None, str]:
    if data is None or isinstance(data, Tensor):
        return data, moved(y, None), ""
    columns = data.train.head(_BATCH).columns
    if y is None and len(columns) > 1:
        y = columns[1]
    return columns[0], y, f" of {data.name}"


def _check_batch(program: Any, x: Tensor | None, y: Tensor | None) -> None:
    """Refuse data without a datum, and data or conditions that do not fit each other or the VAE."""
    if x is not None and not len(x):
        raise ValueError("check was given no data; expected at least one datum")
    if x is not None and y is not None and len(x) != len(y):
        raise ValueError(f"check was given {len(x)} data and {len(y)} conditions y; expected as many of both")
    if not isinstance(program, VAE) or x is None:
        return
    if tuple(x.shape[1:]) != program.x_shape:
        raise ValueError(
            f"check was given data of shape {tuple(x.shape[1:])} and a VAE for data of shape {program.x_shape}; give "
            "it the data that the VAE is for"
        )
    if program.y_shape is None and y is not None:
        raise ValueError(
            "check was given a condition (y, or a second column of data) and a VAE that was put together without; give "
            "it x alone, or VAE the conditional data set"
        )
    if program.y_shape is not None and (y is None or (y.dim() > 1 and tuple(y.shape[1:]) != program.y_shape)):
        what = "no condition" if y is None else f"conditions of shape {tuple(y.shape[1:])}"
        raise ValueError(
            f"check was given {what} and a conditional VAE; give y of shape (n, {program.y_shape[0]}), or labels (n,)"
        )


def _one_hot(y: Tensor) -> Tensor:
    """Return conditions (n, k); labels (n,) become one-hot, with k the largest label plus one."""
    return y if y.dim() > 1 else torch.nn.functional.one_hot(y.long()).to(torch.get_default_dtype())


class _Alone(nn.Module):
    """A single piece, called as in a VAE: with the condition y, its last argument, if the piece takes one."""

    def __init__(self, piece: Any) -> None:
        super().__init__()
        self.piece = piece
        self.takes_y = takes_y(piece)

    def forward(self, *given: Tensor | None) -> Any:
        """Return the piece's distribution."""
        return as_pyro(self.piece(*given if self.takes_y and given[-1] is not None else given[:-1]))


def _check_alone(
    findings: Findings, pieces: dict[str, Any], x: Tensor | None, y: Tensor | None, z: Tensor | None
) -> None:
    """Ask about pieces one by one, each without the others.

    Args:
        findings: Collects the answers.
        pieces: The pieces, by role.
        x: Data, or None.
        y: The condition, (n, k) or labels (n,), or None.
        z: Latents for a likelihood; by default draws from a standard normal of two dimensions.
    """
    if "posterior" in pieces and x is None:
        raise ValueError("check was given a posterior and no data; give check(data=x, posterior=...) what it reads")
    y = None if y is None else _one_hot(y)
    size = min((len(t) for t in (x, y, z) if t is not None), default=_BATCH)
    z = torch.randn(size, _LATENT) if z is None else z
    x, y, z = None if x is None else x[:size], None if y is None else y[:size], z[:size]
    x_shape, y_shape = (None if t is None else tuple(t.shape[1:]) for t in (x, y))
    for role, piece in pieces.items():
        if hasattr(piece, "bind"):
            if x_shape is None and role == "likelihood":
                raise ValueError("check was given a likelihood that is sized from the data, and no data; give data=x")
            latent_dim = getattr(piece, "latent_dim", z.shape[-1])
            piece.bind(Binding((1,) if x_shape is None else x_shape, (latent_dim,), y_shape))
        alone = _Alone(piece).eval()
        shape = x_shape if role == "likelihood" else None
        ask_about_piece(findings, Piece(role, piece, alone, alone), x, y, z, shape)


def _put_together(findings: Findings, pieces: dict[str, Any], data: Any, x: Tensor, y: Tensor | None) -> VAE | None:
    """Return the VAE of three pieces; a refusal by `VAE` becomes a finding, and the result is None."""
    y_shape = None if y is None else _one_hot(y).shape[1:]
    shape_or_data = data if isinstance(data, Dataset) else tuple(x.shape[1:])
    try:
        made = VAE(shape_or_data, **pieces, y_shape=y_shape)
    except (ValueError, TypeError, RuntimeError) as error:
        refusal = wrong_by(error)
        message = one_line(error)
        part = _part_of(message)
        place = places.of_error(error.__cause__ or error)
        if part in pieces:
            place = place or places.of_call(pieces[part])
        name = next((name for pattern, name in _SUBJECTS if re.search(pattern, message)), "runs")
        findings.wrong(part, name, refusal.sentence, refusal.fix, place)
        for role in ROLES:
            if role != part:
                findings.skipped(role, "shapes", f"mend {part!r} first: the VAE cannot be put together")
        return None
    return made.to(x.dtype) if x.is_floating_point() else made


def _part_of(message: str) -> str:
    """Return the part that an error of `VAE` is about."""
    if message.startswith("the prior") and "the posterior" in message:
        return "posterior"  # the two do not go together: the posterior is the one to change
    found = re.match(r"(?:the )?(prior|likelihood|posterior)\b", message)
    return found[1] if found else "program"


def _check_vae(findings: Findings, vae: VAE, x: Tensor, y: Tensor | None, objective: Any, only: str | None) -> None:
    z = _latents(findings, vae, x, y)
    for role, call in _CALLS.items():
        if only not in (None, role):
            continue
        if role == "likelihood" and z is None:
            findings.skipped(role, "shapes", "there are no latents to decode: mend the prior first")
            continue
        shape = vae.x_shape if role == "likelihood" else vae.latent_shape
        ask_about_piece(findings, Piece(role, getattr(vae, role), getattr(vae, call), vae), x, y, z, shape)
    if only is not None:
        return
    if not findings.is_wrong("prior", "posterior"):
        with torch.no_grad():
            ask_about_space(findings, vae.p_z(y), vae.q_z(x, y), vae.posterior)
    if findings.is_wrong(*ROLES, names=("runs", "shapes", "space", "finite", "draws", "support")):
        findings.skipped("program", "the rest", "mend its pieces first")
        return
    with torch.no_grad():
        posteriors = [vae.q_z(x, y)]
    args = (x,) if y is None else (x, y)
    programs.ask_about_program(findings, (vae.model, vae.guide), objective, posteriors, args, vae)


def _latents(findings: Findings, vae: VAE, x: Tensor, y: Tensor | None) -> Tensor | None:
    """Draw one z from p(z) for each datum; a failure becomes a finding, and the result is None."""
    try:
        with torch.no_grad():
            p_z = vae.p_z(y)
            return p_z.sample() if p_z.batch_shape else p_z.sample((len(x),))
    except Exception as error:
        place = places.of_error(error) or places.of_call(vae.prior)
        findings.wrong("prior", "runs", f"its draws fail: {type(error).__name__}: {error}", "", place)
        return None
