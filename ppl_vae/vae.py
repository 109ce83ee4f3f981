r"""The variational autoencoder as a probabilistic program.

`VAE` joins a prior p(z), a likelihood p(x|z) and a posterior q(z|x) into a Pyro model and guide. The class is a
convenience around these two functions: the objectives, training and `log_evidence` take any ``(model, guide)`` pair.
`evaluate` and exact evidence need a `VAE`.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pyro
import torch
from pyro.distributions.util import is_validation_enabled
from pyro.params import param_with_module_name
from torch import Tensor, nn

from ppl_vae._distributions import centre, check_same_space, expectation
from ppl_vae._home import at_home
from ppl_vae._piece_checks import (
    GivenPiece,
    bind_piece,
    check_callable,
    event_shape_of,
    mean_of,
    takes_y,
    tried,
    x_shape_of,
    y_shape_of,
)
from ppl_vae._recorded import state_of
from ppl_vae._scopes import evaluation_mode
from ppl_vae._shown import Shown
from ppl_vae._support_checks import check_support
from ppl_vae._validation import is_integer
from ppl_vae.data.conditions import LIBRARY_SIZE
from ppl_vae.distributions.foreign import as_pyro
from ppl_vae.networks import Binding, Shape

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

    from ppl_vae.data import Dataset

# returns a distribution of Pyro, torch or zuko: see priors.Prior, likelihoods.Likelihood, posteriors.Posterior
Piece = Callable[..., Any]

_counter = itertools.count()
_names: weakref.WeakKeyDictionary[VAE, str] = weakref.WeakKeyDictionary()


class VAE(nn.Module, Shown):
    r"""p(x, z) = p(z) p(x|z) as a Pyro model, q(z|x) as its guide.

    .. math::
        \log p(x) = \underbrace{\mathbb E_{q(z|x)}[\log p(x, z) - \log q(z|x)]}_{\text{ELBO}}
        + \mathrm{KL}(q(z|x) \,\|\, p(z|x)).

    The pieces are callables that return distributions, of Pyro, of torch or of zuko (`distributions.foreign.as_pyro`
    makes them Pyro's). A piece with a method ``bind(binding)`` takes its sizes
    from the data. `VAE` calls every piece once on two zeros and refuses a piece that fails, before the first training
    step. A piece with parameters must be an ``nn.Module`` or use ``pyro.param``; otherwise nothing would train it.

    A conditional model is p(z|y) p(x|z, y) with q(z|x, y). Each piece whose signature has a parameter ``y`` also
    receives the condition, (batch, k); the other pieces do not. The condition is the second column of the data set;
    without a data set, `y_shape` gives its shape. Labels (int64, (batch,)) may replace one-hot rows.

    Args:
        data: The data set (sizes follow from it), or the shape of one datum.
        prior: ``prior()`` -> p(z), batch shape (), event shape (latent,). If it has an attribute ``visible_dim``, the
            likelihood sees only the first ``visible_dim`` dimensions of z.
        likelihood: ``likelihood(z)`` -> p(x|z), batch shape ``z.shape[:-1]``, event shape of one datum.
        posterior: ``posterior(x)`` -> q(z|x), batch shape (batch,), event shape (latent,).
        y_shape: Shape ``(k,)`` of the condition of one datum; None for that of the data set's second column.

    Attributes:
        column_names: The names of the columns of a frame or table that it was trained on; None for other data.
        categories: The values behind the codes 0, 1, ... of each of these columns; empty where values are as given.
        conditions: The label that each entry of a condition stands for, where it was trained on labels; else empty.
        data_mean: The mean of the training data that it was put together with, ``x_shape``, over the values that are
            there; None without such data, and for data that are read from disk.

    Raises:
        TypeError: If a piece does not return a distribution, or one that cannot expand.
        ValueError: If the shapes of a piece do not fit, if the VAE cannot see its parameters, if q(z|x) puts mass where
            p(z) has none, or if no piece takes the condition.

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

    roles: ClassVar[tuple[str, ...]] = ("prior", "likelihood", "posterior")  # the parts that make one, by argument
    column_names: tuple[str, ...] | None = None
    categories: tuple[tuple[Any, ...], ...] = ()
    conditions: tuple[str, ...] = ()

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
        if self.y_shape is not None and [is_integer(k) and k > 0 for k in self.y_shape] != [True]:
            raise ValueError(f"VAE: y_shape is {y_shape!r}; expected (k,), the size of one condition")
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior
        self.data_mean = mean_of(data)
        self._takes_y = {role: takes_y(piece) for role, piece in self._pieces().items()}
        self.latent_shape = self._bind(None if isinstance(data, (tuple, list)) else data)

    def __repr__(self) -> str:
        pieces = " + ".join(getattr(piece, "__name__", type(piece).__name__) for piece in self._pieces().values())
        given = "" if self.y_shape is None else f" given {self.y_shape}"
        size = sum(parameter.numel() for parameter in self.parameters())
        return f"{type(self).__name__}({self.x_shape}{given} from {self.latent_shape}: {pieces}; {size:,} parameters)"

    @property
    def name(self) -> str:
        """The name under which Pyro keeps the parameters: unique in the process; a copy has its own name."""
        if self not in _names:
            _names[self] = f"vae_{next(_counter)}"
        return _names[self]

    def p_z(self, y: Tensor | None = None) -> Any:
        """Return p(z), batch shape (), or in a conditional model p(z|y), batch shape (batch,) or ()."""
        return as_pyro(self.prior(*self._condition("prior", y)))

    def p_x(self, z: Float[Tensor, "*batch latent"], y: Tensor | None = None) -> Any:
        """Return p(x|z), or in a conditional model p(x|z, y), batch shape ``z.shape[:-1]``."""
        visible = z if self._visible_dim is None else z[..., : self._visible_dim]
        return as_pyro(self.likelihood(visible, *self._condition("likelihood", y, one=z.dim() == 1)))

    def q_z(self, x: Float[Tensor, " batch *x_shape"], y: Tensor | None = None) -> Any:
        """Return q(z|x), or in a conditional model q(z|x, y), batch shape (batch,)."""
        return as_pyro(self.posterior(x, *self._condition("posterior", y, one=x.dim() == len(self.x_shape))))

    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Run p(x, z): score `x`, or without `x` sample `size` data (by default one for each row of `y`)."""
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

    @at_home("x", "y", rows=True)
    @torch.no_grad()
    def encode(self, x: Float[Tensor, " batch *x_shape"], y: Tensor | None = None) -> Float[Tensor, "batch latent"]:
        """Return the centre of q(z|x), in evaluation mode.

        The centre is the mean of q(z|x) where the mean lies in the support, and the mode on a sphere or discrete set.
        """
        with evaluation_mode(self):
            return centre(self.q_z(x, y))

    @at_home("z", "y", rows=True)
    @torch.no_grad()
    def decode(self, z: Float[Tensor, "*batch latent"], y: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z), shape ``(*z.shape[:-1], *x_shape)``, in evaluation mode.

        Without a closed form (a flow as likelihood) it is the mean of 256 draws, which are the same in every call.
        """
        with evaluation_mode(self):
            return expectation(self.p_x(z, y))

    @at_home("x", "y", rows=True)
    def reconstruct(
        self, x: Float[Tensor, " batch *x_shape"], y: Tensor | None = None
    ) -> Float[Tensor, " batch *x_shape"]:
        """Return the mean of p(x|z) at the centre of q(z|x), without drawing noise."""
        return self.decode(self.encode(x, y), y)

    @at_home("y")
    @torch.no_grad()
    def sample(self, size: int = 16, *, y: Tensor | None = None, mean: bool = True) -> Float[Tensor, " size *x_shape"]:
        """Return data from the model.

        Args:
            size: The number of data; a condition `y` replaces it by the number of its rows.
            y: The condition, (size, k), or labels (size,).
            mean: Return the mean of p(x|z) at z ~ p(z), as is usual for pictures; otherwise also draw x ~ p(x|z).
        """
        if size == 0 and y is None:
            return self.sample(1, mean=mean)[:0]  # many densities have no draws of that shape
        with evaluation_mode(self):
            p_z = self.p_z(y)
            z = p_z.sample(() if p_z.batch_shape else (size if y is None else len(y),))
            p_x = self.p_x(z, y)
            return expectation(p_x) if mean else p_x.sample()

    def score(self, x: Float[Tensor, " batch *x_shape"], y: Tensor | None = None) -> Float64[Tensor, " batch"]:
        """Return log p(x) of each datum, in nats: exact where possible, otherwise an estimate.

        A conditional model returns log p(x|y). `ppl_vae.evidence.log_evidence` also returns the method and its error.
        """
        from ppl_vae.evidence.log_evidence import log_evidence  # here: evidence is a layer above this module

        return log_evidence(self, x, y).log_evidence

    def save(self, path: str | Path) -> Path:
        """Write this VAE to one file, from which `ppl_vae.load` gives it back on any machine and device.

        The file holds the weights, the class and the constructor's arguments of each piece, the shape and mean of the
        data, and the versions of the packages. It is written whole or not at all, and only after a VAE made from its
        content has given the same draws and densities.

        A class of your own is saved by its import path and its arguments, and ``load`` wants ``trust=True`` for it. It
        keeps each argument of its constructor as an attribute of the same name (``self.scale = scale``). Modules of
        ``torch.nn`` and functions at the top of a module are saved in the same way.

        Args:
            path: The file, ``"vae.pt"``.

        Returns:
            The path.

        Raises:
            ValueError: If the VAE cannot be made again: a lambda or a class of a script or notebook, an argument that
                its class does not keep, a piece that was changed after it was made, a parameter of ``pyro.param``.
            OSError: If the file cannot be written.
        """
        from ppl_vae.saving import files  # here: few programs save

        return files.save(self, type(self) if "roles" in vars(type(self)) else VAE, path)

    def export(self, path: str | Path, part: Literal["encoder", "decoder", "log_likelihood"] | None = None) -> Path:
        r"""Write the encoder, the decoder or log p(x|z) as a graph that runs without `ppl_vae` and Pyro.

        The graph takes any batch size of at least one, in the model's dtype and on its device. It is written after it
        has been read again and has given what the VAE gives. Parts that draw random numbers, and distributions whose
        computation depends on values, are refused.

        ==================  ====================  ==============================================================
        part                inputs                output
        ==================  ====================  ==============================================================
        ``encoder``         x                     the centre of q(z|x), as `encode`, (batch, latent)
        ``decoder``         z                     the mean of p(x|z), as `decode`, ``(batch, *x_shape)``
        ``log_likelihood``  x, z                  :math:`\log p(x|z)` in nats, (batch,)
        ==================  ====================  ==============================================================

        A conditional model takes y of shape (batch, k) as its last input.

        Args:
            path: ``"decoder.pt2"`` for a program of ``torch.export`` (``torch.export.load(path).module()(z)``), or
                ``"decoder.onnx"`` for ONNX, which needs ``pip install 'ppl-vae[onnx]'``.
            part: The part; by default the one that the file is called by.

        Returns:
            The path.

        Raises:
            ValueError: If the name ends otherwise, says no part, or the part cannot be exported.
            OSError: If the file cannot be written.
        """
        from ppl_vae.saving import exporting

        return exporting.export(self, path, part)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle, ``copy`` and ``torch.save`` keep."""
        return state_of(self)

    def given(self, y: Tensor | int) -> VAE:
        """Return the model at one fixed condition, p(z|y) p(x|z, y) with q(z|x, y), as an unconditional VAE.

        Every function of a VAE accepts the result: exact evidence, pictures, imputation. The two VAEs share their
        modules, so training either one changes both.

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
            y = self._one_hot(y[None], check=True)[0]
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
        """Check that the training and validation data lie in the support of the likelihood.

        Returns:
            A caveat that every figure must carry, or None. There is a caveat if the user accepts data outside the
            support, and if the likelihood is a density and all data are 0 or 1.

        Raises:
            ValueError: If data lie outside the support.
        """
        return check_support(self, data)

    def _register(self) -> None:
        """Register the parameters as `pyro.module` does, and refuse a parameter that Pyro would not train.

        Pyro's store keeps the first tensor that is registered under a name. Of a tensor that is not contiguous it
        keeps a contiguous copy. In both cases Pyro can hold, and train, another tensor than the parameter.
        """
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            trained = pyro.param(param_with_module_name(self.name, name), parameter)
            if trained is parameter or not isinstance(parameter, nn.Parameter) or torch.compiler.is_compiling():
                continue  # functional calls and captured graphs replace parameters by stand-ins
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

    def _condition(self, role: str, y: Tensor | None, one: bool = False) -> tuple[Tensor, ...]:
        """Return the condition, of `one` datum or of rows, as extra arguments of a piece; none if it takes none."""
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
        elif not one:
            self._check_rows_of(y)
        return (y.to(next(self.parameters(), torch.empty(0)).dtype),)

    def _check_rows_of(self, y: Tensor) -> None:
        """Refuse a vector, which may be labels of several data or one condition."""
        if y.dim() < 2:
            raise ValueError(
                f"VAE was given y of shape {tuple(y.shape)} and dtype {y.dtype}; expected conditions (batch, "
                f"{cast(Shape, self.y_shape)[0]}), or labels (batch,) of an integer type, such as y.long(); for one "
                "condition of all data use vae.given(y)"
            )

    def _one_hot(self, labels: Tensor, check: bool = False) -> Tensor:
        (k,) = cast(Shape, self.y_shape)
        if getattr(self.likelihood, "library", None) == "condition" or LIBRARY_SIZE in self.conditions:
            raise ValueError(
                "VAE was given labels, and its condition holds the log library size; give conditions of shape "
                f"(batch, {k}), as data.with_library_size makes them"
            )
        if (check or is_validation_enabled()) and not bool(((labels >= 0) & (labels < k)).all()):
            raise ValueError(
                f"VAE was given labels from {int(labels.min())} to {int(labels.max())}; expected 0 to {k - 1}, or "
                f"conditions of shape (batch, {k})"
            )
        return labels[:, None] == torch.arange(k, device=labels.device)  # a graph cannot capture torch's one_hot

    def _bind(self, data: Dataset | None) -> Shape:
        """Give the pieces their sizes, call each on two zeros, and return the prior's event shape.

        A prior with a method ``bind`` cannot be called before it is bound, so its event shape comes from its
        ``latent_dim`` if it has one.
        """
        for role, piece in self._pieces().items():
            check_callable(role, piece)
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
            latent_shape = event_shape_of(tried(self, "prior", *given["prior"]))
        self._visible_dim: int | None = getattr(self.prior, "visible_dim", None)
        visible = latent_shape if self._visible_dim is None else (self._visible_dim,)
        binding = Binding(self.x_shape, latent_shape, self.y_shape, train=None if data is None else data.train)
        bind_piece(self.likelihood, replace(binding, latent_shape=visible))
        bind_piece(self.posterior, replace(binding, prior=self.prior))
        bind_piece(self.prior, replace(binding, posterior=self.posterior))
        z = torch.zeros(2, *visible, device=like.device, dtype=like.dtype)
        q_z = tried(self, "posterior", x, *given["posterior"], event_shape=latent_shape)
        p_z = tried(self, "prior", *given["prior"], event_shape=latent_shape)
        tried(self, "likelihood", z, *given["likelihood"], event_shape=self.x_shape)
        check_same_space(p_z, q_z)
        return latent_shape
