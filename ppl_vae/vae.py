r"""The variational autoencoder as a probabilistic program.

`VAE` puts a prior p(z), a likelihood p(x|z) and a posterior q(z|x) together into a Pyro model and guide. Everything
that trains or evaluates takes any ``(model, guide)`` pair; the class is a convenience around those two functions.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.params import param_with_module_name
from torch import Tensor, nn

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

    Args:
        data: The data set (sizes follow from it), or the shape of one datum.
        prior: ``prior()`` -> p(z), batch shape (), event shape (latent,).
        likelihood: ``likelihood(z)`` -> p(x|z), batch shape ``z.shape[:-1]``, event shape of one datum.
        posterior: ``posterior(x)`` -> q(z|x), batch shape (batch,), event shape (latent,).

    Raises:
        TypeError: If a piece does not return a Pyro distribution.
        ValueError: If its shapes do not fit, or its parameters are out of sight.

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
    ) -> None:
        super().__init__()
        self.x_shape: Shape = _x_shape(data)
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior
        self.latent_shape = self._bind()

    @property
    def name(self) -> str:
        """The name under which Pyro keeps the parameters: unique in the process, a copy gets its own."""
        if self not in _names:
            _names[self] = f"vae_{next(_counter)}"
        return _names[self]

    def model(self, x: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Run p(x, z): score `x`, or sample `size` data where there is no `x`."""
        self._register()
        prior = self.prior()  # outside the plate: its parameters are not per datum
        with pyro.plate("data", self._size(x, size), dim=-1):
            z = pyro.sample("z", prior)
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor, *, size: int | None = None) -> Tensor:
        """Run q(z|x)."""
        self._register()
        with pyro.plate("data", self._size(x, size), dim=-1):
            return pyro.sample("z", self.posterior(x))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the mean of q(z|x), shape (batch, latent), in evaluation mode."""
        with evaluation_mode(self):
            return self.posterior(x).mean

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x|z), shape ``(*z.shape[:-1], *x_shape)``, in evaluation mode."""
        with evaluation_mode(self):
            return self.likelihood(z).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the mean of p(x|z) at the mean of q(z|x), shape (batch, *x_shape): no noise is drawn."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def sample(self, size: int = 16, *, mean: bool = True) -> Tensor:
        """Return data from the model, shape (size, *x_shape).

        Args:
            size: How many.
            mean: Return the mean of p(x|z) at z ~ p(z), as is usual for pictures; else draw x ~ p(x|z) as well.
        """
        with evaluation_mode(self):
            likelihood = self.likelihood(self.prior().sample((size,)))
            return likelihood.mean if mean else likelihood.sample()

    def score(self, x: Tensor) -> Tensor:
        """Return log p(x) of each datum, (batch,), float64, in nats: exact where it can be, else an estimate.

        `ppl_vae.evaluation.log_evidence` says which it is, with its error.
        """
        from ppl_vae.evaluation.log_evidence import log_evidence  # evaluation is built on this module

        return log_evidence(self, x).log_evidence

    def check_support(self, data: Dataset) -> str | None:
        """Hold training and validation data against the support of the likelihood.

        Returns:
            The caveat that every figure must carry where data outside the support are accepted on request, else None.

        Raises:
            ValueError: If data lie outside the support.
        """
        like = next(self.parameters(), torch.empty(0))
        with torch.no_grad(), evaluation_mode(self), untouched_random_state():
            caveat = None
            z = torch.zeros(1, *self.latent_shape, device=like.device, dtype=like.dtype)
            support = getattr(self.likelihood(z), "support", None)
            if support is None:
                return None
            for split in (data.train, data.validation):
                if _is_everything(support) and not isinstance(split.x, Tensor):
                    continue  # read from disk, where loading has looked for NaN already
                for x, *_ in split.batches(min(4096, len(split)), device=like.device) if len(split) else ():
                    if support.check(x).all():
                        continue
                    if not (getattr(self.likelihood, "allow_grey", False) and ((x >= 0) & (x <= 1)).all()):
                        raise ValueError(_outside_support(self.likelihood, support, x))
                    caveat = "grey values under a Bernoulli: the value is not a likelihood"
        return caveat

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

    def _bind(self) -> Shape:
        """Size the pieces and try each on two zeros; return the prior's event shape."""
        for role, piece in (("prior", self.prior), ("likelihood", self.likelihood), ("posterior", self.posterior)):
            if isinstance(piece, type) or not callable(piece):
                raise TypeError(
                    f"{role} is {piece!r}; expected an object or a function that returns a Pyro distribution, "
                    "such as priors.StandardNormal(latent_dim=2)"
                )
        p_z = self._try("prior", self.prior)
        latent_shape = tuple(p_z.event_shape)
        if len(latent_shape) != 1 or latent_shape[0] < 1:
            raise ValueError(
                f"prior returned a distribution of event_shape {latent_shape}; expected (latent,), a vector of at "
                "least one dimension, for instance Normal(loc, scale).to_event(1)"
            )
        for piece in (self.prior, self.likelihood, self.posterior):
            bind = getattr(piece, "bind", None)
            if bind is not None:
                bind(Binding(self.x_shape, latent_shape))
        like = next(self.parameters(), torch.empty(0))
        x = torch.zeros(2, *self.x_shape, device=like.device, dtype=like.dtype)
        z = torch.zeros(2, *latent_shape, device=like.device, dtype=like.dtype)
        self._try("posterior", self.posterior, x, event_shape=latent_shape)
        self._try("likelihood", self.likelihood, z, event_shape=self.x_shape)
        return latent_shape

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
            _check_distribution(role, result, tuple(len(a) for a in arguments), event_shape)
            known = {id(p) for p in self.parameters()}
            if known != {id(p) for p in before}:
                raise ValueError(
                    f"{role} has taken over parameters of another module from Pyro's store (PyroModules without a name "
                    "share theirs): give it a name of its own, as in super().__init__('my_prior')"
                )
            known |= {id(cast(Any, site["value"]).unconstrained()) for site in tracer.trace.nodes.values()}
            if any(id(leaf) not in known for leaf in _leaves(result.log_prob(result.sample()))):
                raise ValueError(
                    f"{role} depends on a parameter that the VAE cannot see, so that nothing would train it: make it "
                    "an nn.Module that owns its networks and parameters, or declare it with pyro.param"
                )
        return result


def _x_shape(data: Dataset | Shape) -> Shape:
    shape = data if isinstance(data, (tuple, list)) else getattr(data, "x_shape", ())
    if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        given = shape if shape else type(data).__name__
        raise ValueError(
            f"VAE: the shape of one datum is {given}; expected positive sizes such as (1, 28, 28), or a Dataset"
        )
    return tuple(shape)


def _is_everything(support: Any) -> bool:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is torch.distributions.constraints.real


def _outside_support(likelihood: object, support: object, x: Tensor) -> str:
    name = getattr(likelihood, "__name__", type(likelihood).__name__)
    message = f"the data hold values from {x.min():.4g} to {x.max():.4g}, outside the support of {name} ({support})"
    if hasattr(likelihood, "allow_grey"):
        message += (
            "; binarise them (binarize='threshold', 'dynamic' or 'fixed'), or accept grey values in [0, 1], "
            "which are no likelihood, with allow_grey=True"
        )
    return message + "; or choose a likelihood for such data, for instance Normal"


def _check_distribution(role: str, result: object, batch_shape: Shape, event_shape: Shape | None) -> None:
    if not isinstance(result, dist.Distribution):
        what = f"{type(result).__module__}.{type(result).__qualname__}"
        is_torch = isinstance(result, torch.distributions.Distribution)
        fix = "use its counterpart in pyro.distributions" if is_torch else "return one"
        raise TypeError(f"{role} returned {what}; expected a Pyro distribution ({fix})")
    for name, shape in (("batch_shape", batch_shape), ("event_shape", event_shape)):
        given = tuple(getattr(result, name))
        if shape is not None and given != shape:
            raise ValueError(
                f"{role} returned a distribution of {name} {given}; expected {shape}: the dimensions of one datum or "
                "latent vector belong to the event, .to_event(n), all others to the batch"
            )


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the leaf tensors that require a gradient and that `tensor` was computed from."""
    seen, stack = set(), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(parent for parent, _ in node.next_functions)
