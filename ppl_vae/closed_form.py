r"""The article's formulas, each with its derivation, as plain functions of tensors (no Pyro).

The Pyro programs of this package do not need them: Pyro computes the same quantities from the distributions. They are
here for reading and for comparison with the programs. All values are nats per datum, except :func:`squared_error`.

**First derivation of the evidence lower bound: the KL divergence between two joint densities.** Both halves of a
variational autoencoder are joint densities over data and latent. One is the model
:math:`p(x, z) = p(z)\, p(x \mid z)`. The other is the inference side :math:`q(x, z) = q(x)\, q(z \mid x)`, with
:math:`q(x)` the distribution of the data. The KL divergence measures how far they differ:

.. math::
    \operatorname{KL}\bigl(q(x, z) \,\|\, p(x, z)\bigr)
    &= \mathbb{E}_{q(x)\, q(z \mid x)}\bigl[
        \log q(x) + \log q(z \mid x) - \log p(z) - \log p(x \mid z)\bigr] \\
    &= -H[q(x)] - \mathbb{E}_{q(x)}\bigl[\mathcal{L}(x)\bigr],

    \mathcal{L}(x) = \underbrace{\mathbb{E}_{q(z \mid x)}\bigl[\log p(x \mid z)\bigr]}_{\text{log-likelihood}}
    - \underbrace{\operatorname{KL}\bigl(q(z \mid x) \,\|\, p(z)\bigr)}_{\text{KL}} .

The entropy of the data depends on neither network. So to minimise this KL is to maximise :math:`\mathcal{L}`, the
ELBO, averaged over the data. This derivation does not use the intractable :math:`p(x)`.

**Second derivation: a decomposition of the evidence.** For one datum and any :math:`q(z \mid x)`, write
:math:`p(x) = p(x, z) / p(z \mid x)` and take the expectation under :math:`q(z \mid x)`:

.. math::
    \log p(x)
    = \mathbb{E}_{q(z \mid x)}\Bigl[\log \frac{p(x, z)}{q(z \mid x)}\Bigr]
    + \mathbb{E}_{q(z \mid x)}\Bigl[\log \frac{q(z \mid x)}{p(z \mid x)}\Bigr]
    = \mathcal{L}(x) + \operatorname{KL}\bigl(q(z \mid x) \,\|\, p(z \mid x)\bigr) \ge \mathcal{L}(x) .

This derivation gives the gap of the bound: the KL from :math:`q` to the true posterior. The identity that connects the
two derivations is
:math:`\operatorname{KL}(q(x, z) \| p(x, z)) = \operatorname{KL}(q(x) \| p(x))
+ \mathbb{E}_{q(x)}[\operatorname{KL}(q(z \mid x) \| p(z \mid x))]`.

**The terms to compute.** With :math:`q(z \mid x) = \mathcal{N}(\mu, \operatorname{diag} \sigma^2)` and
:math:`p(z) = \mathcal{N}(0, I)` the KL has a closed form (:func:`kl_std`, :func:`kl_log_var`). The log-likelihood of a
Bernoulli is minus the cross-entropy (:func:`cross_entropy_from_logits`). The log-likelihood of a Normal with fixed
variance is the squared error with a factor and a constant (:func:`normal_log_likelihood`).

Reference:
    Diederik P. Kingma and Max Welling, *Auto-Encoding Variational Bayes*, 2013 (the KL is its appendix B),
    https://arxiv.org/abs/1312.6114

Example:
    One draw of the ELBO of one datum, both terms in nats:

    >>> import torch
    >>> mean, std, noise = torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2)
    >>> z = mean + std * noise                                                    # (1, 2)
    >>> logits = z @ torch.ones(2, 3)                                             # (1, 3)
    >>> x = torch.tensor([[0.0, 1.0, 1.0]])
    >>> -cross_entropy_from_logits(x, logits) - kl_std(mean, std)                 # 3 log(1/2) - 0
    tensor([-2.0794])
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ppl_vae._tensors import moved

__all__ = [
    "cross_entropy",
    "cross_entropy_from_logits",
    "kl_log_var",
    "kl_std",
    "normal_log_likelihood",
    "squared_error",
]


def kl_std(mean: Tensor, std: Tensor, eps: float = 0.0, event_dim: int = 1) -> Tensor:
    r"""Return the KL divergence from N(mean, diag std^2) to the standard normal, from a standard deviation.

    .. math::
        \operatorname{KL} = \tfrac12 \sum_{i} \bigl(\mu_i^2 + \sigma_i^2 - 1 - \log \sigma_i^2\bigr)

    *Derivation.* Both densities are products, so the KL is a sum over coordinates. In one of them

    .. math::
        \mathbb{E}_{q}[\log q(z)] &= -\tfrac12 \log(2\pi\sigma^2)
            - \frac{\mathbb{E}_q[(z - \mu)^2]}{2 \sigma^2}
            = -\tfrac12 \log(2\pi) - \tfrac12 \log\sigma^2 - \tfrac12, \\
        \mathbb{E}_{q}[\log p(z)] &= -\tfrac12 \log(2\pi) - \tfrac12 \mathbb{E}_q[z^2]
            = -\tfrac12 \log(2\pi) - \tfrac12 (\mu^2 + \sigma^2),

    and the difference of the two is the summand. Its gradients are :math:`\partial_\mu = \mu` and
    :math:`\partial_\sigma = \sigma - 1/\sigma`.

    In the article ``std`` is the raw output of a network and may be negative. That is harmless here, because only its
    square enters. It is also harmless in ``z = mean + std * noise``, because the noise is symmetric. But
    ``Normal(mean, std)`` is then undefined, and its density is NaN.

    The article also takes :math:`\log(\epsilon + \sigma^2)`. With ``eps > 0`` the value is too small by
    :math:`\tfrac12 \log(1 + \epsilon / \sigma^2)` per coordinate, and may fall below zero (by at most ``eps / 2`` per
    coordinate). Its barrier against :math:`\sigma \to 0` is finite (8.7 nats at ``eps=1e-8`` and mean 0), and the
    gradient of the barrier vanishes there. The exact KL is infinite at :math:`\sigma = 0`.

    Args:
        mean: Means of q, of shape ``(..., latent)``.
        std: Standard deviations of either sign; broadcasts with ``mean``.
        eps: Added to the variance inside the logarithm, as in the article; 0 is exact.
        event_dim: The number of rightmost dimensions of one latent, to sum over.

    Returns:
        Nats per datum, of the broadcast shape without its last ``event_dim`` dimensions.

    Raises:
        ValueError: If ``eps`` is negative or not finite, the shapes do not broadcast, or ``event_dim`` does
            not fit them.

    Reference:
        Kingma and Welling, *Auto-Encoding Variational Bayes*, 2013, appendix B,
        https://arxiv.org/abs/1312.6114

    Example:
        >>> kl_std(torch.zeros(3, 2), -torch.ones(3, 2))                              # the sign is immaterial
        tensor([0., 0., 0.])
        >>> kl_std(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0]))                # 1/2 + (3/2 - log 2)
        tensor(1.3069)
    """
    _check_eps("kl_std", eps)
    _check_shapes("kl_std", event_dim, mean=mean, std=std)
    # with eps = 0, 2 log|std|: the square of a small std underflows
    log_variance = torch.log(eps + std.square()) if eps > 0 else 2 * torch.log(std.abs())
    return _sum_rightmost(0.5 * (mean.square() + std.square() - 1 - log_variance), event_dim)


def kl_log_var(mean: Tensor, log_var: Tensor, event_dim: int = 1) -> Tensor:
    r"""Return the KL divergence from N(mean, diag exp(log_var)) to the standard normal, from a log-variance.

    .. math::
        \operatorname{KL} = \tfrac12 \sum_{i} \bigl(\mu_i^2 + e^{\ell_i} - 1 - \ell_i\bigr),
        \qquad \ell_i = \log \sigma_i^2

    *Derivation.* Put :math:`\sigma^2 = e^{\ell}` into :func:`kl_std`. Its gradients are
    :math:`\partial_\mu = \mu` and :math:`\partial_\ell = \tfrac12 (e^{\ell} - 1)`. The latter stays above -1/2 as
    :math:`\sigma \to 0`, where the :math:`\sigma - 1/\sigma` of :func:`kl_std` explodes, but it grows exponentially in
    :math:`\ell`.

    The standard deviation of this KL is :math:`e^{\ell / 2}`. The article's commented alternative samples ``mean +
    exp(log_var) * 0.5 * noise``; it should be ``mean + exp(0.5 * log_var) * noise``. The article's line samples with
    the standard deviation :math:`\sigma^2 / 2`, for which this KL does not charge (the two agree only at
    :math:`\sigma = 2`). The sum of the two terms is then no bound on log p(x).

    Args:
        mean: Means of q, of shape ``(..., latent)``.
        log_var: Logarithms of the variances; broadcasts with ``mean``.
        event_dim: The number of rightmost dimensions of one latent, to sum over.

    Returns:
        Nats per datum, of the broadcast shape without its last ``event_dim`` dimensions.

    Raises:
        ValueError: If the shapes do not broadcast, or ``event_dim`` does not fit them.

    Reference:
        Kingma and Welling, *Auto-Encoding Variational Bayes*, 2013, appendix B,
        https://arxiv.org/abs/1312.6114

    Example:
        >>> log_var = torch.tensor([0.0, math.log(4.0)])
        >>> kl_log_var(torch.tensor([1.0, 0.0]), log_var)                             # as kl_std above
        tensor(1.3069)
    """
    _check_shapes("kl_log_var", event_dim, mean=mean, log_var=log_var)
    return _sum_rightmost(0.5 * (mean.square() + torch.expm1(log_var) - log_var), event_dim)


def cross_entropy(x: Tensor, probs: Tensor, eps: float = 1e-8, event_dim: int = 1) -> Tensor:
    r"""Return the article's cross-entropy of data and probabilities: minus the Bernoulli log-likelihood, clamped.

    .. math::
        -\sum_{i} \bigl(x_i \log(\epsilon + p_i) + (1 - x_i) \log(\epsilon + 1 - p_i)\bigr)

    *Derivation.* A Bernoulli pixel has :math:`p(x_i \mid z) = p_i^{x_i} (1 - p_i)^{1 - x_i}` for
    :math:`x_i \in \{0, 1\}`, and the pixels are independent given :math:`z`. Take minus the logarithm of the product,
    at :math:`\epsilon = 0`.

    This form is wrong in two ways, so keep it for comparison and train on :func:`cross_entropy_from_logits`:

    - *It saturates.* In float32 a sigmoid is exactly 1 from a logit of 17 on. A pixel that is 0 should then cost as
      many nats as the logit. This form costs :math:`-\log 10^{-8} = 18.42` for every such logit, and its gradient with
      respect to the logit is zero instead of 1: the worst pixels stop learning. A pixel that is 1 reaches the same cap
      as the logit falls below -18; there only ``eps`` causes it.
    - *Grey pixels have no likelihood.* With :math:`0 < x_i < 1` the formula is a finite number, but not the log of any
      density over [0, 1]: it lacks the normaliser of a continuous Bernoulli. Losses on grey images are comparable with
      each other, not with a log-likelihood.

    With ``eps=0`` it is exact, also at probabilities of exactly 0 and 1: :math:`0 \log 0 = 0`, an impossible pixel
    costs infinity, and the gradients of possible pixels are finite.

    Args:
        x: Data, 0 or 1 (bool and integers are taken too), of shape ``(..., event)``.
        probs: Probabilities in [0, 1]; broadcasts with ``x``.
        eps: Added inside both logarithms, as in the article; 0 is exact.
        event_dim: The number of rightmost dimensions of one datum, to sum over.

    Returns:
        Nats per datum, of the broadcast shape without its last ``event_dim`` dimensions. The log-likelihood
        is its negative.

    Raises:
        ValueError: If ``eps`` is negative or not finite, the shapes do not broadcast, or ``event_dim`` does
            not fit them.

    Reference:
        Kingma and Welling, *Auto-Encoding Variational Bayes*, 2013, appendix C.1,
        https://arxiv.org/abs/1312.6114

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> cross_entropy(x, torch.ones(2, 1))                                        # saturated: the cap
        tensor([18.4207,  0.0000])
        >>> cross_entropy(x, torch.ones(2, 1), eps=0.0)
        tensor([inf, 0.])
    """
    x = _data(x, probs)
    _check_eps("cross_entropy", eps)
    _check_shapes("cross_entropy", event_dim, x=x, probs=probs)
    summand = _x_log_y(x, eps + probs) + _x_log_y(1 - x, eps + (1 - probs))
    return _sum_rightmost(-summand, event_dim)


def cross_entropy_from_logits(x: Tensor, logits: Tensor, event_dim: int = 1) -> Tensor:
    r"""Return the exact cross-entropy of data and logits: minus the log-likelihood of a Bernoulli.

    .. math::
        -\sum_{i} \bigl(x_i \log p_i + (1 - x_i) \log(1 - p_i)\bigr)
        = \sum_{i} \bigl(\operatorname{softplus}(l_i) - x_i l_i\bigr),
        \qquad p_i = \operatorname{sigmoid}(l_i)

    *Derivation.* :math:`\log p = l - \operatorname{softplus}(l)` and
    :math:`\log(1 - p) = -\operatorname{softplus}(l)`, where
    :math:`\operatorname{softplus}(l) = \log(1 + e^l)`. Put them into :func:`cross_entropy`. The gradient is
    :math:`\partial_{l_i} = p_i - x_i`. It never vanishes on a wrong pixel, whereas that of the article's form is zero
    from logit 17 on.

    It is no likelihood of grey pixels either; see :func:`cross_entropy`.

    Args:
        x: Data, 0 or 1 (bool and integers are taken too), of shape ``(..., event)``.
        logits: Finite log-odds, log p - log(1 - p); broadcasts with ``x``.
        event_dim: The number of rightmost dimensions of one datum, to sum over.

    Returns:
        Nats per datum, of the broadcast shape without its last ``event_dim`` dimensions. The log-likelihood
        is its negative.

    Raises:
        ValueError: If the shapes do not broadcast, or ``event_dim`` does not fit them.

    Reference:
        Kingma and Welling, *Auto-Encoding Variational Bayes*, 2013, appendix C.1,
        https://arxiv.org/abs/1312.6114

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> cross_entropy_from_logits(x, torch.full((2, 1), 40.0))                    # 40 and exp(-40)
        tensor([4.0000e+01, 4.2484e-18])
    """
    x = _data(x, logits)
    _check_shapes("cross_entropy_from_logits", event_dim, x=x, logits=logits)
    # not softplus(l) - x l, which loses digits: torch's softplus drops exp(-l) above 20, and the difference cancels
    summand = x * F.logsigmoid(logits) + (1 - x) * F.logsigmoid(-logits)
    return _sum_rightmost(-summand, event_dim)


def squared_error(x: Tensor, mean: Tensor, event_dim: int = 1) -> Tensor:
    r"""Return the article's squared error: the log-likelihood of a Normal without its factor and its constant.

    .. math::
        \lVert x - \mu \rVert^2 = \sum_{i} (x_i - \mu_i)^2

    It is not in nats: do not add it to a KL, and do not compare it with a likelihood or across scales. The article's
    sum with the KL maximises, up to a constant, the ELBO of a Normal with :math:`2 \sigma^2 = 1`. That is an unstated
    choice of :math:`\sigma = 0.71` for pixels in [0, 1]. See :func:`normal_log_likelihood` for the derivation and the
    missing terms.

    Args:
        x: Data, of shape ``(..., event)``.
        mean: Predicted means; broadcasts with ``x``.
        event_dim: The number of rightmost dimensions of one datum, to sum over.

    Returns:
        Squared units of ``x`` per datum, of the broadcast shape without its last ``event_dim`` dimensions.

    Raises:
        ValueError: If the shapes do not broadcast, or ``event_dim`` does not fit them.

    Reference:
        Kingma and Welling, *Auto-Encoding Variational Bayes*, 2013, appendix C.2,
        https://arxiv.org/abs/1312.6114

    Example:
        >>> squared_error(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2))
        tensor([5.])
    """
    x = _data(x, mean)
    _check_shapes("squared_error", event_dim, x=x, mean=mean)
    return _sum_rightmost((x - mean).square(), event_dim)


def normal_log_likelihood(
    x: Tensor, mean: Tensor, scale: float | Tensor, event_dim: int = 1, check_scale: bool = True
) -> Tensor:
    r"""Return the log-likelihood of independent normals: the squared error with its factor and its constant.

    .. math::
        \log \mathcal{N}(x;\, \mu,\, \sigma^2 I)
        = -\frac{\lVert x - \mu \rVert^2}{2 \sigma^2} - \frac{D}{2} \log(2 \pi \sigma^2)

    *Derivation.* One coordinate has the density
    :math:`(2 \pi \sigma^2)^{-1/2} \exp\bigl(-(x_i - \mu_i)^2 / 2\sigma^2\bigr)`. Take the logarithm of the product over
    the :math:`D` coordinates. With a fixed :math:`\sigma` only the first term has a gradient, which leads to
    :func:`squared_error`. But :math:`\sigma^2` sets the weight of the KL against reconstruction, like the weight of a
    beta-VAE. And without the constant the value is not comparable with any other likelihood, nor between two values of
    :math:`\sigma`.

    The value is a log-density, so it may be positive, and it changes with the units of ``x``. If ``scale`` is learnt
    per coordinate, the value grows without bound on pixels that are constant in the data: keep ``scale`` above a floor.

    Args:
        x: Data, of shape ``(..., event)``.
        mean: Predicted means; broadcasts with ``x``.
        scale: Standard deviation, positive, in units of ``x``; a number, or a tensor that broadcasts with
            ``x``.
        event_dim: The number of rightmost dimensions of one datum, to sum over.
        check_scale: Whether to check the sign of a tensor's values, which waits for a GPU. A compiled graph skips the
            check.

    Returns:
        Nats per datum, of the broadcast shape without its last ``event_dim`` dimensions.

    Raises:
        ValueError: If ``scale`` is not positive, the shapes do not broadcast, or ``event_dim`` does not fit
            them.

    Reference:
        Kingma and Welling, *Auto-Encoding Variational Bayes*, 2013, appendix C.2,
        https://arxiv.org/abs/1312.6114

    Example:
        >>> x, mean = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
        >>> normal_log_likelihood(x, mean, scale=1.0)                                 # -5/2 - log(2 pi)
        tensor([-4.3379])
        >>> normal_log_likelihood(x, mean, scale=math.sqrt(0.5))                      # -5 - log(pi)
        tensor([-6.1447])
    """
    x = _data(x, mean)
    tensors = {"x": x, "mean": mean}
    if isinstance(scale, Tensor):
        tensors["scale"] = scale
        # capture of a graph cannot read a value
        if check_scale and not torch.compiler.is_compiling() and not bool((scale > 0).all()):
            raise ValueError(
                "normal_log_likelihood: scale holds values that are not positive; pass exp or softplus of it"
            )
        log_scale: float | Tensor = scale.log()
    else:
        if not 0 < scale < math.inf:
            raise ValueError(f"normal_log_likelihood: scale is {scale}; expected a positive finite number")
        log_scale = math.log(scale)
    _check_shapes("normal_log_likelihood", event_dim, **tensors)
    residual = (x - mean) / scale  # divide, then square: scale^2 underflows first
    return _sum_rightmost(-0.5 * residual.square() - log_scale - 0.5 * math.log(2 * math.pi), event_dim)


def _x_log_y(x: Tensor, y: Tensor) -> Tensor:
    """Return x log y with 0 log 0 = 0 and gradient 0 there, where the gradient of torch.xlogy is NaN."""
    return x * torch.log(torch.where((x == 0) & (y == 0), 1.0, y))


def _data(x: Tensor, like: Tensor) -> Tensor:
    """Return data beside `like`, as floats: binarised data may be bool, which torch cannot subtract."""
    x = moved(x, like.device)
    return x if x.is_floating_point() else x.to(like.dtype)


def _sum_rightmost(value: Tensor, event_dim: int) -> Tensor:
    """Return the sum over the last ``event_dim`` dimensions; for 0 no sum, since torch sums an empty tuple over all."""
    return value.sum(tuple(range(-event_dim, 0))) if event_dim > 0 else value


def _check_eps(function: str, eps: float) -> None:
    if not 0 <= eps < math.inf:
        raise ValueError(f"{function}: eps is {eps}; expected a finite number >= 0 (0 is exact, the article has 1e-8)")


def _check_shapes(function: str, event_dim: int, **tensors: Tensor) -> None:
    shapes = " and ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    try:
        rank = len(torch.broadcast_shapes(*(tensor.shape for tensor in tensors.values())))
    except RuntimeError:
        raise ValueError(f"{function}: the shapes {shapes} do not broadcast; pass tensors of one shape") from None
    if not 0 <= event_dim <= rank:
        raise ValueError(f"{function}: event_dim is {event_dim}; expected 0 to {rank} for {shapes}")
