"""A peer whose latents lead back to rows by a regression on training rows, as ours do."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, clone

from sklvebm.reconstruction import affordable, fit_remainder


class Regressed(BaseEstimator):
    """``estimator``, and what its ``inverse_transform`` leaves over of rows regressed on latents.

    On as many training rows as a fit of ours keeps; see :mod:`sklvebm.reconstruction`.
    """

    def __init__(self, estimator, *, random_state=0):
        self.estimator = estimator
        self.random_state = random_state

    def fit(self, X, y=None):
        """Fit the estimator, and the regression on its latents of some of ``X``."""
        X = np.asarray(X)
        self.estimator_ = clone(self.estimator).fit(X)
        order = np.random.RandomState(self.random_state).permutation(len(X))
        rows = X[order[: affordable(X.shape[1])]]
        T = self.estimator_.transform(rows)
        left = rows - self.estimator_.inverse_transform(T)
        self.remainder_ = fit_remainder(T, left, seed=self.random_state)
        return self

    def transform(self, X):
        """Latents."""
        return self.estimator_.transform(X)

    def inverse_transform(self, Z):
        """Rows back."""
        return self.estimator_.inverse_transform(Z) + self.remainder_.predict(np.asarray(Z))
