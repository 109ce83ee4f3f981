r"""The variational autoencoder as a probabilistic program.

`VAE` puts a prior p(z), a likelihood p(x|z) and a posterior q(z|x) together into a Pyro model and guide. Everything
that trains or evaluates takes any ``(model, guide)`` pair; the class is a convenience around those two functions.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_validation_enabled
from pyro.params import param_with_module_name
from torch import Tensor, nn

from ppl_vae._distributions import centre, check_same_space, describe, innermost
from ppl_vae._piece_checks import (
    GivenPiece,
    bind_piece,
    check_distribution,
    leaves,
    outside_support,
    takes_y,
    x_shape_of,
    y_shape_of,
)
from ppl_vae._scopes import evaluation_mode, untouched_random_state
from ppl_vae.networks import Binding, Shape

if TYPE_CHECKING:
    from ppl_vae.data import Dataset

# returns a Pyro distribution: see priors.Prior, likelihoods.Likelihood, posteriors.Posterior
Piece = Callable[..., Any]

_counter = itertools.count()
_names: weakref.WeakKeyDictionary[VAE, str] = weakref.WeakKeyDictionary()


class VAE(nn.Module):
    r"""p(x, z) = p(z) p(x|z) as a Pyro model, q(z|x) as its guide.

    .. math::
        \log p(x) = \underbrace{\mathbb E_{q(z|x)}[\log p(x, z) - \log q(z|x)]}_{\text{ELBO}}
        + \mathrm{KL}(q(z|x) \,\|\, p(z|x)).

    The pieces are callables that return Pyro distributions. Those with a method ``bind(binding)`` get their sizes
    from the data; all are tried once on two zeros, so that a piece that cannot work is refused before the first
    step. A piece with parameters must be an ``nn.Module`` (or use ``pyro.param``), or nothing would train it.

    In a conditional model, p(z|y) p(x|z, y) and q(z|x, y), each piece whose signature has a parameter ``y`` is given
    the condition as well, (batch, k); the others do without. The data set's second column is the condition, and
    `y_shape` says so where there is no data set. Labels (int64, (batch,)) may be given in place of one-hot rows.

    Args:
        data: The data set (sizes follow from it), or the shape of one datum.
        prior: ``prior()`` -> p(z), batch shape (), event shape (latent,). One with an attribute ``visible_dim`` shows
            the likelihood the first so many dimensions of z alone.
        likelihood: ``likelihood(z)`` -> p(x|z), batch shape ``z.shape[:-1]``, event shape of one datum.
        posterior: ``posterior(x)`` -> q(z|x), batch shape (batch,), event shape (latent,).
        y_shape: Shape ``(k,)`` of the condition of one datum; None for that of the data set's second column.

    Raises:
        TypeError: If a piece does not return a Pyro distribution.
        ValueError: If its shapes do not fit, its parameters are out of sight, q(z|x) puts mass where p(z) has none, or
            there is a condition that no piece takes.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Example:
        >>> from ppl_vae import likelihoods, networks, posteriors, priors
        >>> vae = VAE(
        ...     (1, 8, 8),
        ...     prior=priors.StandardNormal(latent_dim=2),
        ...     likelihood=likelihoods.Bernoulli(networks.MLP([32])),
        ...     posterior=posteriors.DiagonalNormal(networks.MLP([32])),
        ... )
        >>> x = vae.sample(3)
        >>> x.shape, vae.encode(x).shape, vae.reconstruct(x).shape
        (torch.Size([3, 1, 8, 8]), torch.Size([3, 2]), torch.Size([3, 1, 8, 8]))
        >>> vae.model(size=5).shape  # a draw of p(x), as Pyro runs it
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        data: Dataset | Shape,
        *,
        prior: Piece,
        likelihood: Piece,
        posterior: Piece,
        y_shape: Shape | None = None,
    ) -> None:
        super().__init__()
        self.x_shape: Shape = x_shape_of(data)
        self.y_shape = y_shape_of(data) if y_shape is None else tuple(y_shape)
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior
        self._takes_y = {role: takes_y(piece) for role, piece in self._pieces().items()}
        self.latent_shape = self._bind(None if isinstance(data, (tuple, list)) else data)

    @property
    def name(self) -> str:
        """The name under which Pyro keeps the parameters: unique in the process, a copy gets its own."""
        if self not in _names:
            _names[self] = f"vae_{next(_counter)}"
        return _names[self]

    def p_z(self, y: Tensor | None = None) -> Any:
        """Return p(z), batch shape (); in a conditional model p(z|y), batch shape (batch,) or ()."""
        return self.prior(*self._condition("prior", y))

    def p_x(self, z: Tensor, y: Tensor | None = None) -> Any:
        """Return p(x|z), in a conditional model p(x|z, y), batch shape ``z.shape[:-1]``."""
        visible = z if self._visible_dim is None else z[..., : self._visible_dim]
        return self.likelihood(visible, *self._condition("likelihood", y))

    def q_z(self, x: Tensor, y: Tensor | None = None) -> Any:
        """Return q(z|x), in a conditional model q(z|x, y), batch shape (batch,)."""
        return self.posterior(x, *self._condition("posterior", y))

    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Run p(x, z): score `x`, or sample `size` data where there is no `x` (as many as `y` has, by default)."""
        self._register()
        prior = self.p_z(y)  # outside the plate: its parameters are not per datum
        with pyro.plate("data", self._size(y if x is None else x, size), dim=-1):
            z = pyro.sample("z", prior)
            return pyro.sample("x", self.p_x(z, y), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Run q(z|x)."""
        self._register()
        with pyro.plate("data", self._size(x, size), dim=-1):
            return pyro.sample("z", self.q_z(x, y))

    @torch.no_grad()
    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the `centre` of q(z|x), shape (batch, latent), in evaluation mode: its mean where that is a latent."""
        with evaluation_mode(self):
            return centre(self.q_z(x, y))

    @torch.no_grad()
    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z), shape ``(*z.shape[:-1], *x_shape)``, in evaluation mode."""
        with evaluation_mode(self):
            return self.p_x(z, y).mean

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z) at the centre of q(z|x), shape (batch, *x_shape): no noise is drawn."""
        return self.decode(self.encode(x, y), y)

    @torch.no_grad()
    def sample(self, size: int = 16, *, y: Tensor | None = None, mean: bool = True) -> Tensor:
        """Return data from the model, shape (size, *x_shape).

        Args:
            size: How many; as many as `y` has, where there is a condition.
            y: The condition, (size, k), or labels (size,).
            mean: Return the mean of p(x|z) at z ~ p(z), as is usual for pictures; else draw x ~ p(x|z) as well.
        """
        with evaluation_mode(self):
            p_z = self.p_z(y)
            z = p_z.sample(() if p_z.batch_shape else (size if y is None else len(y),))
            p_x = self.p_x(z, y)
            return p_x.mean if mean else p_x.sample()

    def score(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x) of each datum, (batch,), float64, in nats: exact where it can be, else an estimate.

        In a conditional model log p(x|y). `ppl_vae.evidence.log_evidence` says which it is, with its error.
        """
        from ppl_vae.evidence.log_evidence import log_evidence  # evaluation is built on this module

        return log_evidence(self, x, y).log_evidence

    def given(self, y: Tensor | int) -> VAE:
        """Return the model of the data of one condition, p(z|y) p(x|z, y) with q(z|x, y), as a VAE of its own.

        Whatever takes a VAE takes it: exact evidence, pictures, imputation. It shares this one's modules, so that
        training either moves both.

        Args:
            y: One condition, (k,), or a label.

        Raises:
            ValueError: If the model has no condition, or `y` is not one.

        Example:
            >>> from ppl_vae import likelihoods, posteriors, priors
            >>> vae = VAE((64,), prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(),
            ...           posterior=posteriors.DiagonalNormal(), y_shape=(10,))
            >>> vae.given(7).sample(3).shape
            torch.Size([3, 64])
        """
        if self.y_shape is None:
            raise ValueError("VAE.given: the model has no condition; put it together with y_shape, or labelled data")
        like = next(self.parameters(), torch.empty(0))
        y = torch.as_tensor(y)
        if y.dim() == 0 and not y.is_floating_point():
            y = self._one_hot(y[None])[0]
        y = y.to(like)
        if y.shape != self.y_shape:
            raise ValueError(f"VAE.given: y has shape {tuple(y.shape)}; expected one condition, {self.y_shape}")
        dims = {"prior": 0, "likelihood": 1, "posterior": len(self.x_shape)}
        pieces = {
            role: GivenPiece(piece, y, dims[role]) if self._takes_y[role] else piece
            for role, piece in self._pieces().items()
        }
        given = copy.copy(self)
        for shared in ("_modules", "_parameters", "_buffers"):  # dictionaries that a shallow copy shares
            given.__dict__[shared] = dict(self.__dict__[shared])
        given.y_shape, given._takes_y = None, dict.fromkeys(pieces, False)
        for role, piece in pieces.items():
            setattr(given, role, piece)
        return given

    def check_support(self, data: Dataset) -> str | None:
        """Hold training and validation data against the support of the likelihood.

        Returns:
            The caveat that every figure must carry where data outside the support are accepted on request, or where
            data that are all 0 or 1 are given a density; else None.

        Raises:
            ValueError: If data lie outside the support.
        """
        like = next(self.parameters(), torch.empty(0))
        with torch.no_grad(), evaluation_mode(self), untouched_random_state():
            caveat, values = None, [False, False, False]  # 0, 1 and others that were seen
            z = torch.zeros(1, *self.latent_shape, device=like.device, dtype=like.dtype)
            y = None if self.y_shape is None else torch.zeros(1, *self.y_shape, device=z.device, dtype=z.dtype)
            p_x = self.p_x(z, y)
            support = getattr(p_x, "support", None)
            if support is None:
                return None
            for split in (data.train, data.validation):
                if innermost(support) is torch.distributions.constraints.real and not isinstance(split.x, Tensor):
                    continue  # read from disk, where loading has looked for NaN already
                for x, *_ in split.batches(min(4096, len(split)), device=like.device) if len(split) else ():
                    zero, one = x == 0, x == 1
                    values = [
                        a or bool(b)
                        for a, b in zip(values, (zero.any(), one.any(), (~(zero | one)).any()), strict=True)
                    ]
                    if support.check(x).all():
                        self._check_missing(x, y)
                        continue
                    if not (getattr(self.likelihood, "allow_grey", False) and ((x >= 0) & (x <= 1)).all()):
                        raise ValueError(outside_support(self.likelihood, support, x))
                    caveat = "grey values under a Bernoulli: the value is not a likelihood"
        if values == [True, True, False] and not getattr(support, "is_discrete", False):
            caveat = f"0/1 data under a {describe(p_x)}: the value is a density, which no probability is; use Bernoulli"
        return caveat

    def _check_missing(self, x: Tensor, y: Tensor | None) -> None:
        """Refuse data with missing values, NaN, that the likelihood takes and the encoder does not."""
        rows = x[x.flatten(1).isnan().any(1)][:1]
        if not len(rows):
            return
        with pyro.validation_enabled(False):  # which would say of a parameter that it is NaN
            try:
                q_z = self.q_z(rows, y)
                finite = bool(q_z.log_prob(q_z.sample()).isfinite().all())
            except (RuntimeError, ValueError):  # torch draws from no normal whose scale is NaN
                finite = False
        if not finite:
            raise ValueError(
                "the data have missing values (NaN), which the posterior's network does not take; put its network into "
                "networks.TableEncoder, which fills them"
            )

    def _register(self) -> None:
        """Do what `pyro.module` does, and refuse where Pyro would train another tensor in a parameter's place.

        Pyro keeps the first tensor that it was given under a name, and a contiguous copy of one that is not.
        """
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            trained = pyro.param(param_with_module_name(self.name, name), parameter)
            if trained is parameter or not isinstance(parameter, nn.Parameter) or torch.compiler.is_compiling():
                continue  # functional calls and captured graphs put stand-ins in the parameters' place
            fix = (
                "call pyro.clear_param_store() after replacing parameters, and start the optimiser afresh"
                if parameter.is_contiguous()
                else "make it contiguous: parameter.data = parameter.data.contiguous()"
            )
            raise ValueError(
                f"VAE: Pyro's store holds another tensor than the parameter {name!r}, which nothing would train; {fix}"
            )

    def _size(self, x: Tensor | None, size: int | None) -> int:
        if x is not None:
            return len(x)
        if size is None:
            raise ValueError("VAE.model was given neither x nor size; give x to score it, or size=n to sample n data")
        return size

    def _pieces(self) -> dict[str, Piece]:
        return {"prior": self.prior, "likelihood": self.likelihood, "posterior": self.posterior}

    def _condition(self, role: str, y: Tensor | None) -> tuple[Tensor, ...]:
        """What a piece is given of the condition: nothing if it does not take one."""
        if self.y_shape is None:
            if y is not None:
                raise ValueError("VAE was given a condition y, and none of its pieces was put together for one")
            return ()
        if y is None:
            raise ValueError(f"VAE is conditional: give y of shape (batch, {self.y_shape[0]}), or labels (batch,)")
        if not self._takes_y[role]:
            return ()
        if not y.is_floating_point() and y.dim() == 1:
            y = self._one_hot(y)
        return (y.to(next(self.parameters(), torch.empty(0)).dtype),)

    def _one_hot(self, labels: Tensor) -> Tensor:
        (k,) = cast(Shape, self.y_shape)
        if is_validation_enabled() and not bool(((labels >= 0) & (labels < k)).all()):
            raise ValueError(
                f"VAE was given labels from {int(labels.min())} to {int(labels.max())}; expected 0 to {k - 1}, or "
                f"conditions of shape (batch, {k})"
            )
        return labels[:, None] == torch.arange(k, device=labels.device)  # torch's one_hot cannot be captured

    def _bind(self, data: Dataset | None) -> Shape:
        """Size the pieces and try each on two zeros; return the prior's event shape.

        A prior that is sized from the data or the posterior cannot be asked before: it states its ``latent_dim``.
        """
        for role, piece in self._pieces().items():
            if isinstance(piece, type) or not callable(piece):
                raise TypeError(
                    f"{role} is {piece!r}; expected an object or a function that returns a Pyro distribution, "
                    "such as priors.StandardNormal(latent_dim=2)"
                )
        if self.y_shape is not None and not any(self._takes_y.values()):
            raise ValueError(
                "VAE is given a condition (y_shape, or a second column of data) that none of its pieces takes; "
                "expected likelihood(z, y) or posterior(x, y)"
            )
        like = next(self.parameters(), torch.empty(0))
        x = torch.zeros(2, *self.x_shape, device=like.device, dtype=like.dtype)
        y = () if self.y_shape is None else (torch.zeros(2, *self.y_shape, device=like.device, dtype=like.dtype),)
        given = {role: y if takes else () for role, takes in self._takes_y.items()}
        if hasattr(self.prior, "bind") and hasattr(self.prior, "latent_dim"):
            latent_shape: Shape = (self.prior.latent_dim,)
        else:
            latent_shape = self._event_shape(self._try("prior", self.prior, *given["prior"]))
        self._visible_dim: int | None = getattr(self.prior, "visible_dim", None)
        visible = latent_shape if self._visible_dim is None else (self._visible_dim,)
        binding = Binding(self.x_shape, latent_shape, self.y_shape, train=None if data is None else data.train)
        bind_piece(self.likelihood, replace(binding, latent_shape=visible))
        bind_piece(self.posterior, binding)
        bind_piece(self.prior, replace(binding, posterior=self.posterior))
        z = torch.zeros(2, *visible, device=like.device, dtype=like.dtype)
        q_z = self._try("posterior", self.posterior, x, *given["posterior"], event_shape=latent_shape)
        p_z = self._try("prior", self.prior, *given["prior"], event_shape=latent_shape)
        self._try("likelihood", self.likelihood, z, *given["likelihood"], event_shape=self.x_shape)
        check_same_space(p_z, q_z)
        return latent_shape

    def _event_shape(self, p_z: Any) -> Shape:
        shape = tuple(p_z.event_shape)
        if len(shape) != 1 or shape[0] < 1:
            raise ValueError(
                f"prior returned a distribution of event_shape {shape}; expected (latent,), a vector of at "
                "least one dimension, for instance Normal(loc, scale).to_event(1)"
            )
        return shape

    def _try(self, role: str, piece: Piece, *arguments: Tensor, event_shape: Shape | None = None) -> Any:
        """Call a piece once, in evaluation mode and without moving the random state, and check what it returns."""
        before = list(self.parameters())
        with untouched_random_state(), evaluation_mode(self), torch.enable_grad():
            with poutine.trace(param_only=True) as tracer:
                try:
                    result = piece(*arguments)
                except Exception as error:
                    shapes = ", ".join(str(tuple(a.shape)) for a in arguments) or "no argument"
                    raise ValueError(f"{role} failed when called with {shapes}: {error}") from error
            check_distribution(role, result, tuple(len(a) for a in arguments[:1]), event_shape)
            known = {id(p) for p in self.parameters()}
            if known != {id(p) for p in before}:
                raise ValueError(
                    f"{role} has taken over parameters of another module from Pyro's store (PyroModules without a name "
                    "share theirs): give it a name of its own, as in super().__init__('my_prior')"
                )
            known |= {id(cast(Any, site["value"]).unconstrained()) for site in tracer.trace.nodes.values()}
            if any(id(leaf) not in known for leaf in leaves(result.log_prob(result.sample()))):
                raise ValueError(
                    f"{role} depends on a parameter that the VAE cannot see, so that nothing would train it: make it "
                    "an nn.Module that owns its networks and parameters, or declare it with pyro.param"
                )
        return result
