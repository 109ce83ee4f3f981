r"""Tables whose entries are missing because of their values: a model of the mask beside that of the row.

`likelihoods.Mixed` integrates missing entries out, and `objectives.IWAE` on it is the bound of MIWAE for missing data
(Mattei & Frellsen, 2019; `objectives.MIWAE` is another method of that name). Both are right if entries are missing at
random. `NotMIWAE` is for entries that are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._distributions import describe
from ppl_vae._numbers import inverse_softplus
from ppl_vae._scopes import evaluation_mode, untouched_random_state
from ppl_vae._tensors import moved
from ppl_vae._validation import check_choice
from ppl_vae.networks import NetworkFactory, ParameterNetwork, Shape
from ppl_vae.vae import VAE

if TYPE_CHECKING:
    from jaxtyping import Float

    from ppl_vae.data import Dataset

Missing = Literal["high", "low", "either"]

_OF_A_VAE = ("x_shape", "y_shape", "latent_shape", "prior", "likelihood", "posterior", "data_mean")


@dataclass(frozen=True)
class SelfMasking:
    r"""A mechanism under which the value of an entry, and nothing else, decides whether it is missing.

    .. math::
        \operatorname{logit} p(s_j = 1 | x) = c_j - w_j t_j, \qquad b_j = c_j / w_j,

    with s = 1 where an entry is observed, and t the row as `NotMIWAE` standardises it. At t = b an entry is missing
    every other time. The data may fit one sign of w as well as the other, so **say which values are missing if you know
    it**; the wrong sign makes imputations worse than those of a VAE alone. The paper calls a known sign "self-masking
    known" and an unknown sign "self-masking".

    Args:
        missing: ``"high"``: large values are missing more often, w > 0; ``"low"``: small ones, w < 0; ``"either"``: the
            sign of each column is learned.

    Raises:
        ValueError: For any other word.

    Reference:
        not-MIWAE: Deep Generative Modelling with Missing not at Random Data (Ipsen, Mattei & Frellsen, 2021),
        https://arxiv.org/abs/2006.12871

    Example:
        >>> mechanism = SelfMasking("high")((2,), (2,))
        >>> mechanism(torch.tensor([[-1.0, 1.0]])).detach(), mechanism.threshold.detach()
        (tensor([[ 1., -1.]]), tensor([0., 0.]))
    """

    missing: Missing = "either"

    def __post_init__(self) -> None:
        check_choice(self.missing, get_args(Missing), "SelfMasking: missing")

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """Return the network for these sizes."""
        return _SelfMask(self.missing, out_shape)


class _SelfMask(nn.Module):
    def __init__(self, missing: Missing, shape: Shape) -> None:
        super().__init__()
        self.missing = missing
        self.raw = nn.Parameter(torch.full(shape, 0.0 if missing == "either" else inverse_softplus(1.0)))
        self.bias = nn.Parameter(torch.zeros(shape))

    @property
    def weight(self) -> Tensor:
        """W of each column."""
        return {"high": 1, "low": -1}[self.missing] * softplus(self.raw) if self.missing != "either" else self.raw

    @property
    def threshold(self) -> Tensor:
        """B of each column, the value that is missing every other time."""
        return self.bias / self.weight

    def forward(self, t: Tensor) -> Tensor:
        return self.bias - self.weight * t


class NotMIWAE(nn.Module):
    r"""A VAE of rows and a mechanism of the mask, for entries that are missing because of their values.

    .. math::
        p(x, s, z) = p(z)\, p(x|z)\, p(s|x), \qquad
        \log w = \log p(x_\text{obs}|z) + \log p(s | x_\text{obs}, x_\text{mis}) + \log p(z) - \log q(z|x_\text{obs}),

    with z from :math:`q(z|x_\text{obs})` and :math:`x_\text{mis}` from :math:`p(x_\text{mis}|z)`, so that the density
    of :math:`x_\text{mis}` cancels. With `objectives.IWAE` this is the bound of not-MIWAE on
    :math:`\log p(x_\text{obs}, s)`. The mask s is read from the data: 1 where an entry is no NaN.

    **No data can tell whether the mechanism is right**: a model that fits missing entries at random and one that
    fits them by value may explain the observed entries alike. A mechanism that is wrong makes imputations worse than
    without one. The bound is looser than that of the VAE alone, since :math:`x_\text{mis}` is drawn without looking at
    s; more particles tighten it.

    The program draws :math:`x_\text{mis}` as a transform of the latent site ``noise``, N(0, I) in model and guide, so
    gradients go through it, and every estimator for reparameterised latents applies.

    The mechanism sees t: each column standardised by the observed entries of the training data, of a positive column
    the logarithm. It gives one logit of being observed for each column. Only columns with a missing training entry are
    part of s. In any other column NaN counts as missing at random: it is integrated out, and has no part in p(s|x).

    This is a program, and no `VAE`: `fit`, `SVI` and `impute` take it as it is, and functions of any program take the
    pair ``(program.model, program.guide)``, such as ``evidence.importance(pair, x)`` for
    :math:`\log p(x_\text{obs}, s)`. What needs a `VAE` refuses it. The attribute `vae` is the model of rows alone: its
    figures leave p(s|x) out, as they should for complete rows.

    Args:
        vae: The model of rows. Its likelihood integrates missing entries out and has ``"real"`` and ``"positive"``
            columns alone (`likelihoods.Mixed`). Its posterior takes NaN (`networks.TableEncoder`).
        data: The data set to train on; columns, means and scales come from its training part.
        mechanism: p(s|x): a factory (in_shape, out_shape) -> nn.Module, or a module, from t, (n, columns), to the
            logits. `SelfMasking`, or for a mechanism of the whole row, which the paper calls agnostic,
            ``networks.MLP([])`` (linear) or ``networks.MLP([32])``.

    Attributes:
        mean: The mean of t before it is standardised, of each column.
        scale: Its standard deviation.
        columns: The columns that are part of s.

    Raises:
        TypeError: If `vae` is no VAE.
        ValueError: For a conditional VAE, columns of other kinds, data without a missing entry, or a mechanism of other
            sizes.

    Reference:
        not-MIWAE: Deep Generative Modelling with Missing not at Random Data (Ipsen, Mattei & Frellsen, 2021),
        https://arxiv.org/abs/2006.12871

    Example:
        >>> import ppl_vae as pv
        >>> x = torch.randn(200, 2).where(torch.rand(200, 2) > 0.3, torch.nan)
        >>> table = pv.data.from_table(x, ["real"] * 2)
        >>> vae = pv.VAE(table, prior=pv.priors.StandardNormal(1), likelihood=pv.likelihoods.Mixed(["real"] * 2),
        ...              posterior=pv.posteriors.DiagonalNormal(pv.networks.TableEncoder()))
        >>> program = NotMIWAE(vae, table, SelfMasking("high"))
        >>> run = pv.fit(program, table, objective=pv.objectives.IWAE(20), epochs=2)
        >>> pv.evaluation.impute(program, table.test.x, sampler="importance", num_steps=50).mean.isnan().any()
        tensor(False)
    """

    mean: Tensor
    scale: Tensor
    columns: Tensor
    logs: Tensor
    name: Any = VAE.name  # parameters are registered with Pyro as those of a VAE
    _register: Any = VAE._register

    def __init__(self, vae: VAE, data: Dataset, mechanism: NetworkFactory | nn.Module) -> None:
        super().__init__()
        if not isinstance(vae, VAE):
            raise TypeError(f"NotMIWAE: vae is a {type(vae).__name__}; expected a VAE, the model of rows")
        if vae.y_shape is not None:
            raise ValueError("NotMIWAE: the VAE is conditional; expected one without, such as vae.given(y)")
        if getattr(data, "x_shape", None) != vae.x_shape:
            what = f"a {type(data).__name__} of shape {getattr(data, 'x_shape', None)}"
            raise ValueError(f"NotMIWAE: data is {what}; expected a data set of shape {vae.x_shape}, that of the VAE")
        like = next(vae.parameters())
        with torch.no_grad(), untouched_random_state(), evaluation_mode(vae):
            p_x = vae.p_x(vae.p_z().sample((1,)))
            if not hasattr(p_x, "rows_of"):
                raise ValueError(f"NotMIWAE: {describe(p_x)} does not integrate NaN out; expected likelihoods.Mixed")
            p_x.rows_of(like.new_zeros(1, *vae.x_shape))  # refuses columns of other kinds
            logs = ~p_x.support.entries(like.new_full(vae.x_shape, -1.0)).cpu()  # what takes no -1 is positive
        vae.check_support(data)
        x = moved(data.train.head(len(data.train)).x, "cpu", torch.float64)
        t = torch.where(logs, x.log(), x)
        mean = t.nanmean(0)
        scale = (t - mean).square().nanmean(0).sqrt()
        vae.column_names, vae.categories = data.train.column_names, data.train.categories
        self.vae = vae
        self.mechanism = ParameterNetwork(mechanism, "NotMIWAE: mechanism")
        self.mechanism.build(vae.x_shape, vae.x_shape)
        self.register_buffer("mean", mean.nan_to_num(0.0).to(like))
        self.register_buffer("scale", torch.where(scale > 0, scale, 1.0).to(like))  # NaN and 0 become 1
        self.register_buffer("logs", logs.to(like.device))
        self.register_buffer("columns", x.isnan().any(0).flatten().nonzero()[:, 0].to(like.device))
        if not len(self.columns):
            raise ValueError("NotMIWAE: no entry of the training data is missing; train the VAE itself")
        self.mechanism.to(like)

    def __getattr__(self, name: str) -> Any:
        if hasattr(VAE, name) or name in _OF_A_VAE:
            raise AttributeError(
                f"NotMIWAE has no {name}: what needs a VAE would leave p(s|x) out; give program.vae, the model of rows "
                "alone, or (program.model, program.guide) to what takes a pair"
            )
        return super().__getattr__(name)

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        """Unpack as the pair of `model` and `guide`."""
        return iter((self.model, self.guide))

    def model(self, x: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Run p(x, s, z): score the rows `x` and their mask, or without `x` sample `size` rows, NaN where missing."""
        self._register()
        p_z = self.vae.p_z()
        with pyro.plate("data", self.vae._size(x, size), dim=-1):
            p_x = self.vae.p_x(pyro.sample("z", p_z))
            row = p_x.rows_of(pyro.sample("noise", self._noise()))
            if x is not None:
                row = torch.where(x.isnan(), row, pyro.sample("x", p_x, obs=x))
            s = pyro.sample("s", self.p_s(row), obs=None if x is None else self.observed(x))
        if x is not None:
            return x
        gone = torch.zeros_like(row.flatten(-len(self.mean.shape))).index_copy(-1, self.columns, 1 - s)
        return torch.where(gone.view_as(row) > 0.5, torch.nan, row)

    def guide(self, x: Tensor, *, size: int | None = None) -> None:
        """Run q(z|x_obs), and the noise of x_mis."""
        self._register()
        with pyro.plate("data", self.vae._size(x, size), dim=-1):
            pyro.sample("z", self.vae.q_z(x))
            pyro.sample("noise", self._noise())

    def p_s(self, row: Float[Tensor, " *batch *x_shape"]) -> Any:
        """Return p(s|x) of complete rows, the event being the entries of `columns`."""
        t = torch.where(self.logs, torch.where(self.logs, row, 1.0).log(), row)
        (logits,) = self.mechanism((t - self.mean) / self.scale)
        return dist.Bernoulli(logits=self._of_mask(logits)).to_event(1)

    def observed(self, x: Float[Tensor, " *batch *x_shape"]) -> Float[Tensor, "*batch m"]:
        """Return s, which is 1 where an entry of `columns` is no NaN."""
        return self._of_mask((~x.isnan()).to(self.mean))

    def _of_mask(self, values: Tensor) -> Tensor:
        return values.flatten(-len(self.mean.shape)).index_select(-1, self.columns)

    def _noise(self) -> Any:
        return dist.Normal(torch.zeros_like(self.mean), torch.ones_like(self.mean)).to_event(len(self.mean.shape))
