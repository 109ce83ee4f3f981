"""ProdLDA: topics of documents by a VAE, a product of experts over words, with batch normalisation and dropout.

Autoencoding Variational Inference for Topic Models (Srivastava & Sutton, 2017), https://arxiv.org/abs/1703.01488

The number of words in `dist.Multinomial` is one for the whole corpus: it is only a limit to what may be scored, and one
for each batch would be a number read out of a tensor at every step.

Expect 88% of the ten commonest words of each true topic to be in the topic that matches it best.

    python examples/gallery/prodlda.py                  (17 seconds on one core of an Intel Xeon)
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn
from torch.nn.functional import softplus

from ppl_vae import SVI

SIZES = {
    "full": {"words": 1000, "topics": 10, "hidden": 100, "dropout": 0.2},
    "small": {"words": 30, "topics": 3, "hidden": 8, "dropout": 0.2},
}
BATCH = {"full": 100, "small": 10}
LENGTH = 200  # words in the longest document


class ProdLDA(nn.Module):
    """An encoder of word counts to a normal on the logits of topics, and a linear decoder."""

    def __init__(self, words: int, topics: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.topics = topics
        self.encoder = nn.Sequential(
            nn.Linear(words, hidden),
            nn.Softplus(),
            nn.Linear(hidden, hidden),
            nn.Softplus(),
            nn.Dropout(dropout),
        )
        self.loc = nn.Sequential(nn.Linear(hidden, topics), nn.BatchNorm1d(topics, affine=False))
        self.scale = nn.Sequential(nn.Linear(hidden, topics), nn.BatchNorm1d(topics, affine=False))
        self.dropout = nn.Dropout(dropout)
        self.beta = nn.Linear(topics, words, bias=False)
        self.normalised = nn.BatchNorm1d(words, affine=False)

    def model(self, docs):
        pyro.module("prodlda", self)
        with pyro.plate("documents", len(docs)):
            zeros = docs.new_zeros(len(docs), self.topics)
            logits = pyro.sample("theta", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            words = self.normalised(self.beta(self.dropout(logits.softmax(-1))))
            pyro.sample("words", dist.Multinomial(LENGTH, logits=words), obs=docs)

    def guide(self, docs):
        pyro.module("prodlda", self)
        with pyro.plate("documents", len(docs)):
            h = self.encoder(docs)
            pyro.sample("theta", dist.Normal(self.loc(h), softplus(self.scale(h)) + 1e-4).to_event(1))


def corpus(number: int, words: int, topics: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw documents of LDA, as counts, and the topics that they were drawn from: ten shares of words each."""
    beta = dist.Dirichlet(torch.full((words,), 0.02)).sample((topics,))
    theta = dist.Dirichlet(torch.full((topics,), 0.3)).sample((number,))
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (number,))
    rows = [dist.Multinomial(int(n), p).sample() for n, p in zip(lengths, theta @ beta, strict=True)]
    return torch.stack(rows), beta


def make(seed: int = 0, size: str = "full"):
    """Return model, guide, loss, and the arguments of step i."""
    pyro.set_rng_seed(seed)
    batch, sizes = BATCH[size], SIZES[size]
    lda = ProdLDA(**sizes)
    docs, lda.truth = corpus(20 * batch, sizes["words"], sizes["topics"])

    def batches(i: int):
        return (docs[i % 20 * batch : (i % 20 + 1) * batch],)

    return lda.model, lda.guide, TraceMeanField_ELBO(), batches


def optimiser():
    """Return Pyro's optimiser."""
    return pyro.optim.Adam({"lr": 5e-3, "betas": (0.95, 0.999)})


def main(steps: int = 2000) -> float:
    """Train; print and return the share of the ten commonest words of each true topic that its best match has too."""
    model, guide, loss, batches = make()
    svi = SVI(model, guide, optimiser(), loss)
    losses = [svi.step(*batches(i)) / BATCH["full"] for i in range(steps)]
    lda = model.__self__
    found = lda.eval().normalised(lda.beta(torch.eye(lda.topics))).topk(10).indices  # a document of one topic alone
    true = lda.truth.topk(10).indices
    shared = (true[:, None, :, None] == found[None, :, None, :]).any(-1).sum(-1)  # (true topic, found topic)
    share = float(shared.amax(1).double().mean()) / 10
    print(svi)
    print(f"-ELBO per document: {sum(losses[:20]) / 20:.1f} at first, {sum(losses[-20:]) / 20:.1f} at last, nats")
    print(f"of the ten commonest words of each true topic, {100 * share:.0f}% are in the topic that matches it best")
    return share


if __name__ == "__main__":
    main()
