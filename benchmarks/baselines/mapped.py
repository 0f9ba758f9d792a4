"""A peer behind the maps of single features that our own fits may take."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils.metaestimators import available_if

from sklvebm.marginals import MarginalMaps


def _has_transform(model) -> bool:
    return hasattr(model.estimator, "transform")


class Mapped(BaseEstimator):
    """``estimator`` on y = map(x), each feature mapped as :mod:`sklvebm.marginals` would.

    Densities are of x: log p(y) plus the log-slopes of the maps. Rows come standardised.
    """

    def __init__(self, estimator):
        self.estimator = estimator

    def fit(self, X, y=None):
        """Fit the maps, then the estimator to what they make of ``X``."""
        X = np.asarray(X)
        self.maps_ = MarginalMaps.fitted(X, np.ones(len(X)))
        self.estimator_ = clone(self.estimator).fit(self.maps_.forward(X))
        return self

    def score_samples(self, X):
        """log p(x)."""
        Y = self.maps_.forward(np.asarray(X))
        return self.estimator_.score_samples(Y) + self.maps_.log_slope(Y).sum(1)

    @available_if(_has_transform)
    def transform(self, X):
        """Latents."""
        return self.estimator_.transform(self.maps_.forward(np.asarray(X)))
