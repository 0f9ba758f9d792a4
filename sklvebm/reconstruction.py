r"""Rows back from what ``transform`` says of them: E[x | E[z | x] = t].

A posterior mean varies less than the latents themselves, so the mean of x given z = t is too small
a guess of x: of a linear-Gaussian model it is W t, where the least-squares one is W(WᵀW)⁻¹M t with
M = σ²I + WᵀW (Tipping and Bishop 1999, "Probabilistic principal component analysis", JRSS B 61(3),
section 3.3). Elsewhere what E[x | z = t] leaves over is regressed on t, over rows of the model's
own: a linear part, and a kernel's (Williams and Seeger 2001, "Using the Nyström method to speed up
kernel machines", NIPS 13).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler

_GAMMAS = (0.03, 0.1, 0.3, 1.0)
_ALPHAS = np.logspace(-4, 4, 17)
_N_BASES = 128


def fit_remainder(T: NDArray, remainder: NDArray, *, seed: int) -> RegressorMixin:
    """Regression of ``remainder (n, d)`` on ``T (n, k)``, its penalty and width by leave-one-out.

    Where T tells nothing the penalty grows until the prediction is the mean.
    """
    fits = []
    for gamma in _GAMMAS:
        kernel = Nystroem(
            gamma=gamma / T.shape[1], n_components=min(_N_BASES, len(T)), random_state=seed
        )
        features = make_union(FunctionTransformer(), kernel)
        model = make_pipeline(StandardScaler(), features, RidgeCV(_ALPHAS))
        fits.append(model.fit(T, remainder))
    return max(fits, key=lambda model: model[-1].best_score_)
