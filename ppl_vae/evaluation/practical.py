"""Nearest-neighbour accuracy in the latent space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ppl_vae._home import at_home
from ppl_vae._validation import check_positive_int
from ppl_vae.evaluation.bootstrap import Interval, interval
from ppl_vae.evaluation.imputation import Imputation, impute

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["Imputation", "impute", "knn_accuracy"]  # imputation was here


@at_home("train_means", "train_labels", "test_means", "test_labels", program=None)
def knn_accuracy(
    train_means: Float[Tensor, "m d"],
    train_labels: Int[Tensor, " m"],
    test_means: Float[Tensor, "n d"],
    test_labels: Int[Tensor, " n"],
    *,
    k: int = 5,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    r"""Return the accuracy of k-nearest-neighbour classification on latent means, with a bootstrap interval.

    The accuracy measures how well the latent space separates labels that the model never saw. Euclidean distance counts
    every dimension alike, so the accuracy depends on the scale of z, and unused dimensions add noise. The labelled data
    must be separate from the scored data: give the encoded training set and the encoded test set. The interval covers
    the choice of test data, not the choice of neighbours.

    Args:
        train_means: Means of q(z|x) of data with known labels, such as ``vae.encode(x)``.
        train_labels: Their labels, integers.
        test_means: The means of the scored data.
        test_labels: Their labels.
        k: The number of neighbours that vote, 1 to m.
        level: See `interval`.
        num_resamples: See `interval`.
        seed: See `interval`.

    Returns:
        The share of correct labels, in [0, 1].

    Raises:
        ValueError: If lengths or dimensions do not fit, or k exceeds m.

    Example:
        >>> means = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> knn_accuracy(means, labels, means + 0.02, labels, k=1).value
        1.0
    """
    if check_positive_int(k, "knn_accuracy: k") > len(train_means):
        raise ValueError(f"knn_accuracy: k is {k} with {len(train_means)} labelled data; expected at most as many")
    pairs = ((train_means, train_labels), (test_means, test_labels))
    if train_means.shape[1:] != test_means.shape[1:] or any(m.dim() != 2 or m.shape[:1] != t.shape for m, t in pairs):
        shapes = ", ".join(str(tuple(t.shape)) for pair in pairs for t in pair)
        raise ValueError(f"knn_accuracy was given shapes {shapes}; expected (m, d), (m,), (n, d), (n,)")
    arrays = [t.detach().cpu().numpy() for t in (train_means, train_labels, test_means)]
    classifier = KNeighborsClassifier(n_neighbors=k).fit(arrays[0], arrays[1])
    right = torch.from_numpy(classifier.predict(arrays[2])) == test_labels.cpu()
    return interval(right.double(), level=level, num_resamples=num_resamples, seed=seed)
