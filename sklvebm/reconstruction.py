r"""Rows back from what ``transform`` says of them: E[x | E[z | x] = t].

A posterior mean varies less than the latents themselves, so the mean of x given z = t is too small
a guess of x: of a linear-Gaussian model it is W t, where the least-squares one is W(WᵀW)⁻¹M t with
M = σ²I + WᵀW (Tipping and Bishop 1999, "Probabilistic principal component analysis", JRSS B 61(3),
section 3.3). Elsewhere what E[x | z = t] leaves over is regressed on t, over rows that were trained
on, or draws of the model where these are few: by ridge regression, and by the mean over the nearest
of these rows of what that leaves. Far from all of them the prediction stays within what has been
seen, plus the linear part.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

# Rows to learn from: as many as have so many entries, since those of many features go through
# maps slowly, within limits.
_N_ENTRIES, FEWEST, _MOST = 2**17, 512, 4096
_ALPHAS = np.logspace(-4, 4, 17)
_N_NEIGHBORS = (5, 10, 20, 40, 80, 160, 320)
# Folds, and distinct rows that there must be to make them.
_CV, _FEWEST_GROUPS = 5, 10


class Remainder(NamedTuple):
    """A regression on t: what is linear in it, and what neighbours tell of the rest, if any."""

    linear: Pipeline
    local: Pipeline

    def predict(self, T: NDArray) -> NDArray:
        """Prediction ``(n, d)`` for ``T (n, k)``."""
        # Of a single feature some regressors predict a vector.
        linear, local = (part.predict(T).reshape(len(T), -1) for part in self)
        return linear + local


def affordable(n_features: int, most: int = _MOST) -> int:
    """How many rows to learn from, ``most`` at most."""
    return min(max(_N_ENTRIES // n_features, FEWEST), most)


def fit_remainder(T: NDArray, remainder: NDArray, *, seed: int) -> Remainder:
    """Regression of ``remainder (n, d)`` on ``T (n, k)``.

    Penalty and number of neighbours are chosen by cross-validation, in which rows that are equal
    stay together. Where T tells nothing, the first grows until the prediction is the mean; where it
    tells nothing more, or few rows differ, no neighbour is asked.
    """
    linear = make_pipeline(StandardScaler(), RidgeCV(_ALPHAS)).fit(T, remainder)
    left = remainder - linear.predict(T).reshape(remainder.shape)
    local = Pipeline([("regressor", DummyRegressor())])
    groups = np.unique(T, axis=0, return_inverse=True)[1].ravel()
    n_groups = groups.max() + 1
    if n_groups < _FEWEST_GROUPS:
        return Remainder(linear, local.fit(T, left))
    n_fitted = n_groups * (_CV - 1) // _CV
    neighbors = [KNeighborsRegressor(size) for size in _N_NEIGHBORS if size <= n_fitted]
    search = GridSearchCV(
        local,
        {"regressor": [DummyRegressor(), *neighbors]},
        cv=GroupKFold(_CV, shuffle=True, random_state=seed),
        scoring="neg_mean_squared_error",
    ).fit(T, left, groups=groups)
    return Remainder(linear, search.best_estimator_)
