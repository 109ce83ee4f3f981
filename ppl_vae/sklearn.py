r"""A variational autoencoder as a scikit-learn estimator: a density, and a transformer to its codes.

`VAEDensity` follows scikit-learn's conventions (``clone``, ``Pipeline``, ``GridSearchCV``, ``set_output``). For labels,
images of several channels, data that do not fit into memory, or any other control, use `ppl_vae.VAE` and `ppl_vae.fit`;
a fitted estimator holds the `VAE` as ``vae_``.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyro
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ppl_vae import likelihoods, networks, posteriors, priors
from ppl_vae._distributions import innermost
from ppl_vae._scopes import seeded
from ppl_vae._validation import check_positive, check_positive_int, is_integer
from ppl_vae.configuration.pieces import KINDS
from ppl_vae.data import Dataset, Split
from ppl_vae.evidence import Evidence, log_evidence
from ppl_vae.training import fit
from ppl_vae.vae import VAE

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

_STEPS, _EPOCHS = 3000, 20  # of a training whose length is not given: at least
_START = 0.3  # of a scale, in columns of unit variance: from 1 the posterior of a ring or two moons stays at the prior
_OWN = ("program", "data", "validation", "objective", "optimizer", "epochs", "batch_size", "early_stopping", "seed")
_FURTHER = [name for name in signature(fit).parameters if name not in (*_OWN, "device")]  # what `training` may hold
_ROWS = 8192  # coded or decoded at a time


class VAEDensity(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    r"""Density estimation and dimension reduction by a variational autoencoder.

    .. math:: p(x) = \int p(x|z)\, p(z)\, dz, \qquad q(z|x) \approx p(z|x).

    `score_samples` returns :math:`\log p(x)`, not the ELBO: by a closed form, a sum over states, or quadrature where
    the latent has up to three dimensions; above, by importance sampling, which is too low in expectation and warns of
    data where it is unreliable. `evidence` also returns the method and the error of each datum.

    **Slow** beside a PCA: 3,000 steps take a few seconds, and quadrature takes up to 10 milliseconds a datum.
    **Overfits** small data: compare held-out scores (``cross_val_score``), widen nothing without them, or set
    `early_stopping`. A density has no upper bound: a column that is constant or rounded makes scores that mean
    nothing, as in any density of continuous data.

    Args:
        latent_dim: The number of codes.
        prior: p(z): None for a standard normal, a name of ``ppl-vae pieces`` (``"MixtureOfNormals"``), or a piece with
            its own latent dimension.
        likelihood: p(x|z): None for normals with one learned scale a column, a name (``"StudentT"``, ``"Bernoulli"``,
            ``"Poisson"``), or a piece.
        posterior: q(z|x): None for a diagonal normal, a name, or a piece.
        hidden: The widths of the encoder's hidden layers; the decoder has them in reverse. Unused by pieces that are
            given, which have their own networks.
        objective: What is maximised: None for the ELBO, a name (``"IWAE"``), or an objective of `ppl_vae.objectives`.
        epochs: Passes over the data; None for at least 20, and at least 3,000 steps.
        batch_size: Data a step, or all of them where they are fewer.
        learning_rate: Of Adam.
        early_stopping: End after so many epochs without a better ELBO of the validation data, and take the best
            parameters; None trains on all data to the end.
        validation_fraction: The share of the data set apart for `early_stopping`; unused without it.
        standardize: Train on columns of mean 0 and standard deviation 1 where the likelihood lives on the real line.
            Scores, samples and reconstructions are in the units of X in any case. The scale of a given likelihood is
            one of standardised columns.
        evidence_method: The method of `score_samples`, see `ppl_vae.evidence.log_evidence`.
        training: Further arguments of `ppl_vae.fit`, such as ``{"clip_norm": 5.0, "compile": "full"}``.
        device: Where to compute; ``"auto"`` takes a GPU where there is one.
        random_state: Seed of the parameters, the training, and the draws of the evidence.

    Attributes:
        vae_: The trained `VAE`, in evaluation mode and float64; it sees the columns as `scaler_` transforms them.
        scaler_: The `StandardScaler`, or None where columns are not standardised.
        history_: The record of each epoch, see `ppl_vae.training.Run`.
        n_features_in_: The number of columns.
        feature_names_in_: Their names, where X has them.

    Raises:
        ValueError: If an argument is out of range, or X holds values outside the support of the likelihood.

    Reference:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), https://arxiv.org/abs/1312.6114

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X = load_iris().data
        >>> vae = VAEDensity(latent_dim=1, hidden=(16,), epochs=100, random_state=0).fit(X)
        >>> vae.transform(X).shape, vae.sample(5).shape, vae.score_samples(X).shape
        ((150, 1), (5, 4), (150,))
        >>> vae.evidence(X[:3]).method
        'quadrature'
    """

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        prior: Any = None,
        likelihood: Any = None,
        posterior: Any = None,
        hidden: Sequence[int] = (64, 64),
        objective: Any = None,
        epochs: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        early_stopping: int | None = None,
        validation_fraction: float = 0.1,
        standardize: bool = True,
        evidence_method: str = "auto",
        training: dict[str, Any] | None = None,
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.latent_dim = latent_dim
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior
        self.hidden = hidden
        self.objective = objective
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.standardize = standardize
        self.evidence_method = evidence_method
        self.training = training
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> Self:  # noqa: N803
        """Train the VAE on the rows of X, (n, d); y is ignored. A fit that fails leaves an earlier one as it is."""
        before = dict(self.__dict__)
        try:
            return self._fit(X)
        except BaseException:
            self.__dict__ = before
            raise

    def _fit(self, X: Any) -> Self:  # noqa: N803
        check_positive_int(self.latent_dim, "latent_dim")
        check_positive(self.learning_rate, "learning_rate")
        if isinstance(self.hidden, int) or not all(map(is_integer, self.hidden)):
            raise ValueError(f"hidden is {self.hidden!r}; expected the widths of the layers, such as (64, 64)")
        if unknown := next((name for name in self.training or {} if name not in _FURTHER), None):
            raise ValueError(
                f"training holds {unknown!r}; expected some of {', '.join(_FURTHER)}: VAEDensity sets the rest by its "
                "own arguments"
            )
        X = self._checked(X, reset=True)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        self.scaler_ = None
        with seeded(seed):
            data = self._split(X, seed)
            vae = self._program(data)
            real = innermost(vae.p_x(torch.zeros(1, *vae.latent_shape)).support) is torch.distributions.constraints.real
            if self.standardize and real:
                self.scaler_ = StandardScaler().fit(X.astype(np.float64))
                torch.manual_seed(seed)
                data = self._split(self._scaled(X), seed)
                vae = self._program(data)
        if vae.latent_shape != (self.latent_dim,):
            raise ValueError(
                f"latent_dim is {self.latent_dim}, and the prior has {vae.latent_shape[0]} dimensions; give that number"
            )
        batch_size = min(check_positive_int(self.batch_size, "batch_size"), len(data.train))
        steps = math.ceil(len(data.train) / batch_size)
        training = dict(self.training or {})
        if "regularizer" in training:  # whose schedule counts steps
            training["regularizer"] = copy.deepcopy(training["regularizer"])
        run = fit(
            vae,
            data,
            objective=_named("objective", self.objective),
            optimizer=partial(torch.optim.Adam, lr=self.learning_rate),
            epochs=max(_EPOCHS, math.ceil(_STEPS / steps)) if self.epochs is None else self.epochs,
            batch_size=batch_size,
            early_stopping=self.early_stopping,
            seed=seed,
            device=self.device,
            **training,
        )
        if run.caveat:
            warnings.warn(f"VAEDensity: {run.caveat}", UserWarning, stacklevel=3)
        store = pyro.get_param_store()  # holds the parameters of every VAE that was trained, for good
        for name in [name for name in store.keys() if name.startswith(f"{vae.name}$")]:  # noqa: SIM118
            del store[name]
        # float64, so that a row's figures do not depend on the rows beside it by rounding; mps has none
        self.vae_ = vae.eval().to("cpu" if run.device == "mps" else run.device, torch.float64)
        self.history_ = run.history
        self._seed = seed
        self._n_features_out = self.latent_dim
        return self

    def transform(self, X: Any) -> Float[ndarray, "n latent"]:  # noqa: N803
        """Return the codes of X, (n, latent_dim): the centres of q(z|x)."""
        check_is_fitted(self)
        X = self._checked(X)
        return _array([self.vae_.encode(x) for x in self._tensor(self._scaled(X)).split(_ROWS)], X.dtype)

    def inverse_transform(self, X: Any) -> Float[ndarray, "n d"]:  # noqa: N803
        """Return the means of p(x|z), (n, d), in the units of the data, at the codes X, (n, latent_dim)."""
        check_is_fitted(self)
        codes = check_array(X, dtype=[np.float64, np.float32])
        if codes.shape[1] != self._n_features_out:
            raise ValueError(
                f"inverse_transform: X has {codes.shape[1]} columns; expected {self._n_features_out} codes"
            )
        return self._unscaled([self.vae_.decode(z) for z in self._tensor(codes).split(_ROWS)], codes.dtype)

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Float[ndarray, "n_samples d"]:
        """Return draws of p(x), noise of p(x|z) included, (n_samples, d), in the units of the data."""
        check_is_fitted(self)
        check_positive_int(n_samples, "n_samples")
        with seeded(check_random_state(random_state).randint(2**31 - 1)):
            return self._unscaled([self.vae_.sample(int(n_samples), mean=False)], np.dtype(np.float64))

    def evidence(self, X: Any) -> Evidence:  # noqa: N803
        """Return log p(x) of each row with its error and the method, nats, in the units of X."""
        check_is_fitted(self)
        x = self._tensor(self._scaled(self._checked(X)))
        rows = Split((x,))
        self.vae_.check_support(Dataset.of("X", rows))
        found = log_evidence(self.vae_, x, method=self.evidence_method, seed=self._seed)  # type: ignore[arg-type]
        if self.scaler_ is None:
            return found
        shift = float(np.log(self.scaler_.scale_).sum())  # of the change of variables
        details = {
            name: value - shift if name == "elbo" or name.startswith("log_evidence_") else value
            for name, value in found.details.items()
        }
        return replace(found, log_evidence=found.log_evidence - shift, details=details)

    def score_samples(self, X: Any) -> Float[ndarray, " n"]:  # noqa: N803
        """Return log p(x) of each row, (n,), nats, in the units of X.

        Exact up to 0.001 (`evidence` says how well) with up to three latents; above, an estimate by importance
        sampling.

        Warns:
            UserWarning: If the estimate is unreliable for some rows.
        """
        found = self.evidence(X)
        bad = int((~found.error.isfinite()).sum())
        if bad:
            warnings.warn(
                f"log p(x) of {bad} of {len(found)} rows is unreliable (by {found.method}, which may miss mass); see "
                "VAEDensity.evidence, or set evidence_method='ais'",
                UserWarning,
                stacklevel=2,
            )
        return found.log_evidence.cpu().numpy()

    def score(self, X: Any, y: object = None) -> float:  # noqa: N803
        """Return the mean of log p(x) over the rows of X, nats, as `PCA` and `GaussianMixture` do; y is ignored."""
        return float(self.score_samples(X).mean())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = self._takes_missing
        return tags

    @property
    def _takes_missing(self) -> bool:
        return self.likelihood == "Mixed" or isinstance(self.likelihood, likelihoods.Mixed)

    def _checked(self, X: Any, reset: bool = False) -> ndarray:  # noqa: N803
        missing = self._takes_missing if reset else isinstance(self.vae_.likelihood, likelihoods.Mixed)
        finite = "allow-nan" if missing else True
        return validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite=finite, reset=reset)

    def _split(self, X: ndarray, seed: int) -> Dataset:  # noqa: N803
        rows, x = np.random.default_rng(seed).permutation(len(X)), torch.tensor(X, dtype=torch.float32)
        held = 0
        if self.early_stopping is not None:
            held = round(len(X) * check_positive(self.validation_fraction, "validation_fraction"))
            if not 0 < held < len(X):
                raise ValueError(
                    f"validation_fraction is {self.validation_fraction}, which sets {held} of {len(X)} data apart; "
                    "expected some for validation and some for training"
                )
        train, validation, test = (Split((part,)) for part in (x[rows[held:]], x[rows[:held]], x[:0]))
        return Dataset("X", train, validation, test)

    def _program(self, data: Dataset) -> VAE:
        make = partial(networks.MLP, activation="silu", init="torch")
        encoder: Any = make(list(self.hidden))
        if self._takes_missing:
            encoder = networks.TableEncoder(network=encoder)
        decoder = make(list(self.hidden)[::-1])
        return VAE(
            data,
            prior=_named("prior", self.prior, latent_dim=self.latent_dim) or priors.StandardNormal(self.latent_dim),
            likelihood=_named("likelihood", self.likelihood, network=decoder)
            or likelihoods.Normal(decoder, _START, learn="pixel"),
            posterior=_named("posterior", self.posterior, network=encoder) or posteriors.DiagonalNormal(encoder),
        )

    def _scaled(self, X: ndarray) -> ndarray:  # noqa: N803
        return X if self.scaler_ is None else self.scaler_.transform(X.astype(np.float64))

    def _unscaled(self, blocks: Sequence[Tensor], dtype: Any) -> ndarray:
        x = _array(blocks, np.float64)
        return (x if self.scaler_ is None else self.scaler_.inverse_transform(x)).astype(dtype)

    def _tensor(self, values: ndarray) -> Tensor:
        return torch.tensor(values).to(next(self.vae_.parameters()))


def _named(kind: str, given: Any, **arguments: Any) -> Any:
    """Return a piece by its name, or a copy of a piece that is given: training must not change the parameter."""
    if not isinstance(given, str):
        return copy.deepcopy(given)
    target = KINDS[kind].find(given, kind)
    try:
        return target(**arguments)
    except TypeError as error:
        raise ValueError(f"{kind} {given!r} needs more than its name ({error}); give the object itself") from error


def _array(blocks: Sequence[Tensor], dtype: Any) -> ndarray:
    return torch.cat(list(blocks)).cpu().numpy().astype(dtype)
