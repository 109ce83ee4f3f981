r"""The likelihood of tables whose columns differ in kind, with missing entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae._columns import VALUES, split_kind, split_kinds
from ppl_vae._numbers import inverse_softplus
from ppl_vae._recorded import Recorded
from ppl_vae._scopes import untouched_random_state
from ppl_vae._validation import check_choice, check_positive
from ppl_vae.distributions.counts import NegativeBinomial
from ppl_vae.distributions.mixed import MixedColumns
from ppl_vae.distributions.normal import Normal
from ppl_vae.networks import Binding, NetworkFactory, ParameterNetwork, Shape

Scale = Literal["column", "network"]

_SCALED = ("real", "positive", "count")  # kinds with a scale beside their location
_START = inverse_softplus(1.0)
_ROWS = 4096  # data read at a time


class Mixed(Recorded):
    r"""Columns that differ in kind, independent given z; any entry may be missing.

    .. math::
        \log p(x_\text{obs}|z) = \sum_{j : x_j \text{ observed}} \log p_j(x_j | z).

    NaN in x marks a missing entry. Missing entries are integrated out exactly, so the bound is one on
    :math:`\log p(x_\text{obs})`. It is right if entries are missing at random, and biased if the value of an entry
    affects whether it is missing. All columns share one sum, in nats, so a few columns with sharp densities can drown
    the others. A column of rounded numbers declared as ``"real"`` or ``"positive"`` can be made as sharp as `floor`
    allows. Densities are in the units of the data: figures change when a column is measured in other units.

    ===================  ====================================================================================
    ``"real"``           normal; mean and scale in units of the column's standard deviation, about its mean
    ``"positive"``       log-normal; the same units, of the logarithm
    ``"count"``          negative binomial with a log mean and a dispersion; Poisson as the dispersion falls
    ``"binary"``         Bernoulli on 0 and 1; logits relative to that of the column's mean
    ``"categorical:C"``  one of the codes 0..C-1 in one column; logits relative to those of its frequencies
    ===================  ====================================================================================

    The units come from the observed training data when the VAE is made, and are kept as buffers: raw columns train,
    and nobody must undo a standardisation. In a VAE that is made from a shape alone they are mean zero and scale one
    until a checkpoint is loaded.

    ``mean`` gives the most likely code of a categorical column, and the mean of any other.

    Args:
        columns: The kind of each column; or one kind for all entries of data of any shape, such as images with missing
            pixels.
        network: Maps z to the parameters of all columns: C for a categorical column and one for any other, or two with
            ``scale="network"`` if the column has a scale; ``MLP()`` by default. With one kind for all entries, its
            output has the shape of the data, with that many times the channels.
        scale: ``"column"``: one learned scale (for a count: dispersion) per column, which cannot collapse onto single
            data; ``"network"``: a function of z, for noise that varies.
        floor: The smallest scale, as a share of the column's own.

    Raises:
        ValueError: For an unknown kind; when put into a VAE, for columns that are not those of the data, or training
            data outside a column's kind.

    Reference:
        Handling Incomplete Heterogeneous Data using VAEs (Nazabal, Olmos, Ghahramani & Valera, 2020),
        https://arxiv.org/abs/1807.03653; MIWAE (Mattei & Frellsen, 2019), https://arxiv.org/abs/1812.02633

    Example:
        >>> likelihood = Mixed(["real", "binary", "categorical:3"], nn.Linear(2, 5))
        >>> likelihood.bind(Binding((3,), (2,)))
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.tensor([[0.1, torch.nan, 2.0]]).expand(5, 3)).shape
        torch.Size([5])
    """

    location: Tensor
    unit: Tensor
    fill: Tensor
    spread: Tensor
    order: Tensor | None
    raw_scale: nn.Parameter | None

    def __init__(
        self,
        columns: Sequence[str] | str = "real",
        network: NetworkFactory | nn.Module | None = None,
        scale: Scale = "column",
        floor: float = 0.01,
    ) -> None:
        super().__init__()
        check_choice(scale, get_args(Scale), "likelihood Mixed: scale")
        self.columns = columns
        owner = "likelihood Mixed: columns"
        self._kinds = [split_kind(columns, owner)] if isinstance(columns, str) else split_kinds(columns, owner)
        self.scale = scale
        self.floor = check_positive(floor, "likelihood Mixed: floor")
        self._groups = {kind: [j for j, other in enumerate(self._kinds) if other == kind] for kind in self._kinds}
        count = self._outputs(self._kinds[0]) if isinstance(columns, str) else 1
        self.parameters_of_columns = ParameterNetwork(network, "likelihood Mixed", count)
        self._event_shape: Shape | None = None

    def bind(self, binding: Binding) -> None:
        """Size the network, and take the units of the columns from the training data."""
        shape = out_shape = binding.x_shape
        if isinstance(self.columns, str):
            self._groups = {self._kinds[0]: list(range(math.prod(shape)))}
        elif shape != (len(self._kinds),):
            raise ValueError(
                f"likelihood Mixed has {len(self._kinds)} columns and data of shape {shape}; expected the kind of "
                "each column, or one kind (a string) for all entries"
            )
        else:
            out_shape = (sum(map(self._outputs, self._kinds)),)
        self.parameters_of_columns.build(binding.latent_shape, out_shape, binding.y_shape)
        self._event_shape = shape
        self._start(binding)

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """Return p(x|z), batch shape ``z.shape[:-1]``."""
        outputs = self.parameters_of_columns(z, y)
        if self._event_shape is None:
            raise RuntimeError("likelihood Mixed has no sizes yet: put it into a VAE")
        batch = z.dim() - 1
        flat = torch.stack(outputs, -1).flatten(batch) if isinstance(self.columns, str) else outputs[0]
        flat = self.location + self.unit * flat
        spread = self.spread if self.raw_scale is None else self.spread * (softplus(self.raw_scale) + self.floor)
        spreads = iter(spread.split([len(places) for (name, _), places in self._groups.items() if name in _SCALED]))
        widths = [self._outputs(kind) * len(places) for kind, places in self._groups.items()]
        parts: list[Any] = []
        for (kind, places), own in zip(self._groups.items(), flat.split(widths, -1), strict=True):
            own = own.unflatten(-1, (len(places), -1))  # (..., k, size)
            scale = next(spreads) if kind[0] in _SCALED else None
            if scale is not None and self.raw_scale is None:
                scale = scale * (softplus(own[..., 1]) + self.floor)
            parts.append(_part(kind[0], own, scale))
        return MixedColumns(parts, self._event_shape, self.order, self.fill)

    def _outputs(self, kind: tuple[str, int]) -> int:
        """Return the number of network outputs for a column."""
        return kind[1] or (2 if self.scale == "network" and kind[0] in _SCALED else 1)

    def _start(self, binding: Binding) -> None:
        """Register the units of the columns, from the training data if there are any."""
        like = next(self.parameters_of_columns.parameters(), torch.empty(0))
        found = _Units(self._groups)
        if binding.train is not None and len(binding.train):
            with untouched_random_state():
                for x, *_ in binding.train.batches(min(_ROWS, len(binding.train))):
                    found.add(x.detach().double().cpu().flatten(1))
        locations, units, spreads, fills = [], [], [], []
        for kind, places in self._groups.items():
            size = self._outputs(kind)
            for j in places:
                location, unit, spread, fill = found.of(kind, j)
                if kind[0] in _SCALED and size == 2:
                    location, unit = [location[0], _START], [unit[0], 0.25]  # scales start near the column's own
                locations += location
                units += unit
                spreads += [spread] if kind[0] in _SCALED else []
                fills.append(fill)
        order = [j for places in self._groups.values() for j in places]
        buffers = {"location": locations, "unit": units, "spread": spreads, "fill": fills}
        for name, values in buffers.items():
            self.register_buffer(name, torch.tensor(values, dtype=like.dtype, device=like.device))
        arranged = None if order == sorted(order) else torch.tensor(order, device=like.device)
        self.register_buffer("order", arranged, persistent=False)
        learned = self.scale == "column" and spreads
        self.raw_scale = nn.Parameter(torch.full_like(self.spread, _START)) if learned else None


def _part(kind: str, own: Tensor, spread: Tensor | None) -> Any:
    """Return the distribution of a group of columns, from its parameters (..., k, size)."""
    first = own[..., 0]
    if kind == "real":
        return Normal(first, cast(Tensor, spread))
    if kind == "positive":
        return dist.LogNormal(first, cast(Tensor, spread))
    if kind == "count":
        log_concentration = -2 * cast(Tensor, spread).log()
        return NegativeBinomial(*torch.broadcast_tensors(first, log_concentration))
    if kind == "binary":
        return dist.Bernoulli(logits=first)
    return dist.Categorical(logits=own)


class _Units:
    """Location and scale of each column's observed entries, accumulated batch by batch in float64."""

    def __init__(self, groups: dict[tuple[str, int], list[int]]) -> None:
        self.groups = groups
        size = sum(map(len, groups.values()))
        self.count = torch.zeros(size, dtype=torch.float64)
        self.mean, self.squares = self.count.clone(), self.count.clone()  # of t(x); below, of x itself for counts
        self.raw_mean, self.raw_squares = self.count.clone(), self.count.clone()
        self.codes = {j: torch.zeros(c, dtype=torch.float64) for (_, c), places in groups.items() if c for j in places}

    def add(self, x: Tensor) -> None:
        """Add rows (n, columns), with NaN where missing; refuse entries outside a column's kind."""
        t = x.clone()
        for (kind, categories), places in self.groups.items():
            own = x[:, places]
            self._check(own, kind, categories, places)
            if kind in ("positive", "count"):
                t[:, places] = own.log() if kind == "positive" else own.log1p()
            for j in places if categories else ():
                seen = x[:, j][~x[:, j].isnan()].long()
                self.codes[j] += torch.bincount(seen, minlength=categories)
        seen = ~x.isnan()
        before, n = self.count, seen.sum(0)
        self.count = before + n
        self.mean, self.squares = _merged(self.mean, self.squares, before, t, n)
        self.raw_mean, self.raw_squares = _merged(self.raw_mean, self.raw_squares, before, x, n)

    def of(self, kind: tuple[str, int], j: int) -> tuple[list[float], list[float], float, float]:
        """Return location and unit of each parameter of a column, its unit of spread, and its fill value."""
        n, mean = float(self.count[j]), float(self.mean[j])
        name, categories = kind
        if categories:
            return ((self.codes[j] + 1) / (n + categories)).log().tolist(), [1.0] * categories, 1.0, 0.0
        if name == "binary":
            p = (n * mean + 1) / (n + 2)
            return [math.log(p / (1 - p))], [1.0], 1.0, 0.0
        sd = math.sqrt(float(self.squares[j]) / n) if n else 1.0
        sd = sd if sd > 1e-12 * abs(mean) else 1.0  # a constant column has no unit of its own
        if name != "count":
            return [mean], [sd], sd, mean if name == "real" else math.exp(mean)
        raw = float(self.raw_mean[j])
        if not n or raw == 0:
            return [0.0], [1.0], 1.0, 0.0
        excess = float(self.raw_squares[j]) / n - raw  # of the variance over that of a Poisson
        return [math.log(raw)], [sd], math.sqrt(max(excess / raw**2, 0.01)), 0.0

    def _check(self, x: Tensor, kind: str, categories: int, places: list[int]) -> None:
        bad = x.isinf()
        if kind == "positive":
            bad |= x <= 0
        elif kind != "real":
            top = {"count": math.inf, "binary": 1}.get(kind, categories - 1)
            bad |= (x < 0) | (x > top) | (x != x.round()) & ~x.isnan()
        if bad.any():
            row, column = bad.nonzero()[0].tolist()
            name = f"{kind}:{categories}" if categories else kind
            raise ValueError(
                f"likelihood Mixed: column {places[column]} is {name!r} and holds {float(x[row, column]):.6g} in the "
                f"training data; expected {VALUES[kind]}, or NaN where missing: give the column another kind, or "
                "mend it"
            )


def _merged(mean: Tensor, squares: Tensor, before: Tensor, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and sum of squared deviations after adding rows, without NaN (Chan, Golub & LeVeque)."""
    filled = torch.where(n > 0, x.nansum(0) / n.clamp(min=1), mean)
    deviations = torch.where(x.isnan(), 0.0, x - filled).square().sum(0)
    total = (before + n).clamp(min=1)
    gap = filled - mean
    return mean + gap * n / total, squares + deviations + gap.square() * before * n / total
