"""`VAEDensity`: scikit-learn's own checks, its numbers against a density in closed form, and its use in scikit-learn."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import ppl_vae as pv
from ppl_vae.sklearn import VAEDensity

X = load_iris().data
SHORT = {"hidden": (8,), "epochs": 3, "device": "cpu", "random_state": 0, "training": {"compile": "off"}}

# The checks that cannot pass, and why
FAILS: dict[str, str] = {}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([VAEDensity(latent_dim=1, **SHORT)], expected_failed_checks=lambda estimator: FAILS)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
