"""What each program of the gallery computes, held in float64 against its formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from gallery_programs import drawn, small
from pyro import poutine
from scipy import stats
from torch.nn.functional import softplus

EXACT = {"rtol": 1e-10, "atol": 0.0}


def close(value, expected):
    torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(expected), **EXACT)


def normal(value, loc, scale):
    """log N(value; loc, scale), summed over the last dimension."""
    return (-0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def bits(x, logits):
    """Bernoulli log-probabilities, elementwise."""
    return x * logits - softplus(logits)


def loc_scale(output, floor):
    loc, raw = output.chunk(2, -1)
    return loc, softplus(raw) + floor


ONE = torch.tensor(1.0)


def test_vae():
    model, guide, loss, batches = small("vae")
    (x,) = batches(0)
    z, found = drawn(model, guide, loss, (x,))
    vae, z = model.__self__, z["z"]
    q = loc_scale(vae.encoder(x), 1e-4)
    elbo = bits(x, vae.decoder(z)).sum(-1) + normal(z, 0.0, ONE) - normal(z, *q)
    close(found, -elbo.sum())


@pytest.mark.ci
def test_vae_with_a_decoder_that_ignores_z_has_a_closed_form():
    """The mean of Trace_ELBO is then -sum log p(x) - KL, the KL of two normals, within 5 standard errors."""
    model, guide, loss, batches = small("vae")
    (x,), vae = batches(0), model.__self__
    with torch.no_grad():
        vae.decoder[0].weight.zero_()
        loc, scale = loc_scale(vae.encoder(x), 1e-4)
        kl = 0.5 * (loc**2 + scale**2 - 1).sum(-1) - scale.log().sum(-1)
        expected = (kl - bits(x, vae.decoder(loc)).sum(-1)).sum()
        draws = torch.tensor([loss.loss(model, guide, x) for _ in range(2000)])
    assert abs(draws.mean() - expected) < 5 * draws.std() / math.sqrt(len(draws))
    close(pyro.infer.TraceMeanField_ELBO().loss(model, guide, x), expected)


def test_conditional_vae():
    model, guide, loss, batches = small("conditional_vae")
    x, y = batches(0)
    z, found = drawn(model, guide, loss, (x, y))
    cvae, z = model.__self__, z["z"]
    guess = cvae.first_guess(x)
    p = loc_scale(cvae.prior(torch.cat([x, guess.sigmoid()], 1)), 1e-4)
    q = loc_scale(cvae.recognition(torch.cat([x, y], 1)), 1e-4)
    pixels = bits(y, guess + cvae.generation(z)).view(-1, 8, 8)
    hidden = pixels[:, :4].sum((1, 2)) + pixels[:, 4:, 4:].sum((1, 2))  # all but the quarter below on the left
    close(found, -(hidden + normal(z, *p) - normal(z, *q)).sum())
    assert torch.equal(x.view(-1, 8, 8)[:, 4:, :4], y.view(-1, 8, 8)[:, 4:, :4])
    assert (x.view(-1, 8, 8)[:, :4] == 0.5).all()


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_semi_supervised_vae():
    """The label summed out by hand, ten terms of q(y|x) [log p(x, y, z_y) - log q(y, z_y|x)], and one label given."""
    model, guide, loss, batches = small("semi_supervised_vae")
    vae, seen = model.__self__, []
    vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))

    def given(x, y, z):
        """log p(x, y, z) - log q(z|x, y) of each datum, log p(y) included."""
        q = loc_scale(vae.encoder(torch.cat([x, y], -1)), 1e-4)
        of_x = bits(x, vae.decoder[2](softplus(vae.decoder[0](torch.cat([z, y], -1))))).sum(-1)
        return of_x + normal(z, 0.0, ONE) - math.log(10) - normal(z, *q)

    (x,) = batches(1)
    found = loss.loss(model, guide, x)
    elbo = 0.0
    for label in range(10):
        z, y = seen[-1][label, :, :2], torch.eye(10)[label].expand(len(x), 10)
        log_q = vae.classifier(x).log_softmax(-1)[:, label]
        elbo = elbo + log_q.exp() * (given(x, y, z) - log_q)
    close(found, -elbo.sum())

    x, y = batches(0)
    found = loss.loss(model, guide, x, y)
    by_x = (vae.classifier(x).log_softmax(-1) * y).sum(-1)
    close(found, -(given(x, y, seen[-1][:, :2]) + 50.0 * by_x).sum())


def test_attend_infer_repeat():
    """log p(x, z) of a z that is drawn, by loops over pixels and a bilinear look-up of one's own."""
    model, guide, loss, batches = small("attend_infer_repeat")
    (x,) = batches(0)
    air = model.__self__
    z, _ = drawn(model, guide, loss, (x,))
    assert 0 < sum(z[f"present_{t}"].sum() for t in range(2)) < 2 * len(x)
    with torch.no_grad():
        found = poutine.trace(poutine.condition(model, data=z)).get_trace(x).log_prob_sum()
        windows = [air.decoder(z[f"what_{t}"]).sigmoid().view(-1, 4, 4).numpy() for t in range(2)]
    total = 0.0
    for n in range(len(x)):
        canvas, before = np.zeros((12, 12)), 1.0
        for t in range(2):
            present = float(z[f"present_{t}"][n])
            chance = min(max(0.4 * before, torch.finfo(torch.float64).eps), 1.0)  # torch keeps chances off zero
            total += math.log(chance if present else 1 - chance)
            if present:
                where, what = z[f"where_{t}"][n].numpy(), z[f"what_{t}"][n].numpy()
                total += stats.norm.logpdf(where, [2.5, 0.0, 0.0], [0.3, 0.7, 0.7]).sum()
                total += stats.norm.logpdf(what).sum()
                canvas += pasted(windows[t][n], where, 12)
            before = present
        total += stats.norm.logpdf(x[n].view(12, 12).numpy(), canvas, 0.3).sum()
    close(found, torch.tensor(total))


def pasted(window: np.ndarray, where: np.ndarray, side: int) -> np.ndarray:
    """A window on a canvas whose corners are -1 and 1: (u, v) = scale (column, row) + place, black outside."""
    canvas, size = np.zeros((side, side)), len(window)
    for row in range(side):
        for column in range(side):
            u = where[0] * ((2 * column + 1) / side - 1) + where[1]
            v = where[0] * ((2 * row + 1) / side - 1) + where[2]
            i, j = ((v + 1) * size - 1) / 2, ((u + 1) * size - 1) / 2
            for a in (math.floor(i), math.floor(i) + 1):
                for b in (math.floor(j), math.floor(j) + 1):
                    if 0 <= a < size and 0 <= b < size:
                        canvas[row, column] += window[a, b] * (1 - abs(i - a)) * (1 - abs(j - b))
    return canvas


def test_attend_infer_repeat_cuts_what_it_pastes():
    model, *_ = small("attend_infer_repeat")
    air, window = model.__self__, torch.rand(1, 4, 4)
    where = torch.tensor([[3.0, 0.0, 0.0]])  # on 12 pixels a window of 4, pixel on pixel
    canvas = air.paste(window.flatten(1), where)
    assert canvas.view(12, 12)[4:8, 4:8].allclose(window[0])
    assert air.cut(canvas, where).view(4, 4).allclose(window[0])


def test_prodlda():
    """The multinomial with its coefficient, the KL of normals in closed form, batch normalisation written out."""
    model, guide, loss, batches = small("prodlda")
    lda = model.__self__
    for i in range(5):
        loss.loss(model, guide, *batches(i))  # running means and variances move
    lda.eval()
    (docs,) = batches(0)
    z, found = drawn(model, guide, loss, (docs,))

    def normalised(layer, value):
        return (value - layer.running_mean) / (layer.running_var + layer.eps).sqrt()

    h = lda.encoder(docs)
    loc = normalised(lda.loc[1], lda.loc[0](h))
    scale = softplus(normalised(lda.scale[1], lda.scale[0](h))) + 1e-4
    kl = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum(-1)
    words = normalised(lda.normalised, z["theta"].softmax(-1) @ lda.beta.weight.T)
    of_docs = (docs * words.log_softmax(-1)).sum(-1) + (docs.sum(-1) + 1).lgamma() - (docs + 1).lgamma().sum(-1)
    close(found, (kl - of_docs).sum())
    assert not lda.normalised.running_mean.eq(0).any()


def test_sparse_gamma_def():
    """Poisson pixels and the KL of gammas written out; the layers hang together as the paper says."""
    model, guide, loss, batches = small("sparse_gamma_def")
    (x,) = batches(0)
    z, found = drawn(model, guide, loss, (x,))
    store = pyro.get_param_store()
    w = [z[f"w_{layer}"] for layer in range(3)]
    means = [z["z_1"] @ w[1] + 1e-6, z["z_2"] @ w[2] + 1e-6, torch.ones(len(x), 2)]

    def kl(name, prior_shape, prior_rate):
        shape = softplus(store[f"shape_{name}"]) + 0.1
        rate = shape / (softplus(store[f"mean_{name}"]) + 1e-3)
        terms = (shape - prior_shape) * shape.digamma() - shape.lgamma() + math.lgamma(prior_shape)
        return (terms + prior_shape * (rate / prior_rate).log() + shape * (prior_rate / rate - 1)).sum()

    kls = sum(
        kl(f"w_{layer}", 0.1, torch.tensor(0.3)) + kl(f"z_{layer}", 0.1, 0.1 / means[layer]) for layer in range(3)
    )
    mean = z["z_0"] @ w[0] + 1e-6
    pixels = x * mean.log() - mean - (x + 1).lgamma()
    close(found, kls - pixels.sum())


@pytest.mark.parametrize("shape", [0.1, 0.7, 3.0, 20.0])
def test_gammas_are_reparameterised_by_their_distribution_function(shape):
    """dz/d shape = -(dF/d shape) / f, by differences of SciPy's F; torch's own is an approximation, to 1e-3."""
    a = torch.tensor(shape, dtype=torch.float64, requires_grad=True)
    for _ in range(20):
        z = torch.distributions.Gamma(a, torch.tensor(1.0, dtype=torch.float64)).rsample()
        (gradient,) = torch.autograd.grad(z, a)
        z, step = z.item(), 1e-5 * shape
        if z < 1e-30:
            continue  # F is zero to rounding
        slope = (stats.gamma.cdf(z, shape + step) - stats.gamma.cdf(z, shape - step)) / (2 * step)
        assert gradient.item() == pytest.approx(-slope / stats.gamma.pdf(z, shape), rel=2e-3)


def test_causal_vae():
    """The heads of the treatment that was given, row by row."""
    model, guide, loss, batches = small("causal_vae")
    x, t, y = batches(0)
    assert 0 < t.sum() < len(t)
    z, found = drawn(model, guide, loss, (x, t, y))
    vae, z, total = model.__self__, z["z"], 0.0
    for n in range(len(x)):
        head = int(t[n])
        q = vae.q_z(torch.cat([x[n], y[n, None]]))[4 * head : 4 * head + 4]
        total = total + normal(z[n], 0.0, ONE) - normal(z[n], *loc_scale(q, 1e-3))
        total = total + normal(x[n], *loc_scale(vae.p_x(z[n]), 1e-3))
        total = total + bits(t[n], vae.p_t(z[n])[0]) + bits(y[n], vae.p_y(z[n])[head])
        total = total + bits(t[n], vae.q_t(x[n])[0]) + bits(y[n], vae.q_y(x[n])[head])
    close(found, -total)


def test_causal_data_have_the_effect_that_is_said():
    """The effect by adjusting for z, summed over its two values, and by 400,000 draws under each treatment."""
    torch.manual_seed(0)
    from gallery_programs import program

    (_, t, y), effect = program("causal_vae").data(400_000, 1)
    z = torch.bernoulli(torch.full((400_000,), 0.5))
    treated, not_treated = (torch.bernoulli((6 * z - 3 + s).sigmoid()) for s in (1, -1))
    error = math.sqrt((treated.var() + not_treated.var()) / len(z))
    assert abs((treated - not_treated).mean() - effect) < 5 * error
    assert y[t == 1].mean() - y[t == 0].mean() > effect + 10 * error  # the naive comparison is wrong


def test_bayesian_regression():
    """Given sigma the model is conjugate: at the exact posterior every draw's ELBO is the log evidence."""
    model, guide, loss, batches = small("bayesian_regression")
    x, y = batches(0)
    sigma = torch.tensor(0.7)
    known = poutine.condition(model, data={"sigma": sigma})
    guide = pyro.infer.autoguide.AutoMultivariateNormal(known)
    guide(x, y)
    # the autoguide's order: the weights, then the intercept
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    prior = torch.tensor([1.0] * x.shape[1] + [10.0]) ** 2
    covariance = torch.linalg.inv(design.T @ design / sigma**2 + torch.diag(1 / prior))
    lower = torch.linalg.cholesky(covariance)
    guide.loc.data = covariance @ design.T @ y / sigma**2
    guide.scale = lower.diagonal()
    guide.scale_tril = lower / lower.diagonal()[:, None]
    marginal = design @ torch.diag(prior) @ design.T + sigma**2 * torch.eye(len(x))
    evidence = stats.multivariate_normal.logpdf(y.numpy(), np.zeros(len(y)), marginal.numpy())
    for _ in range(5):
        close(loss.loss(known, guide, x, y), -(evidence - math.log(10)))  # and log p(sigma) = -log 10


def test_gaussian_mixture():
    """The assignments by logsumexp, the priors by SciPy."""
    model, guide, loss, batches = small("gaussian_mixture")
    (x,) = batches(0)
    found = loss.loss(model, guide, x)
    at = {name: value.detach() for name, value in guide(x).items()}
    parts = normal(x[:, None], at["locs"], at["scales"]) + at["weights"].log()
    prior = stats.dirichlet.logpdf(at["weights"].numpy(), [2.0] * 3) + stats.norm.logpdf(at["locs"].numpy(), 0, 2).sum()
    prior += stats.lognorm.logpdf(at["scales"].numpy(), 1.0, scale=math.exp(-1)).sum()
    close(found, -(parts.logsumexp(-1).sum() + prior))
