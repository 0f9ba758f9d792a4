r"""Probabilistic PCA by maximum likelihood, with or without missing entries. Numpy alone.

References
----------
M. E. Tipping and C. M. Bishop (1999), "Probabilistic principal component analysis", JRSS B 61(3).
A. Ilin and T. Raiko (2010), "Practical approaches to principal component analysis in the presence
of missing values", JMLR 11.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Expectation maximisation with missing entries, in standardised units.
_MAX_EM, _EM_TOL, _TINY_VARIANCE = 500, 1e-5, 1e-12
_EM_CHUNK = 2**22


class PPCA(NamedTuple):
    """Maximum-likelihood probabilistic PCA: ``weight (d, k)``, ``loc (d,)``, noise sd ``scale``."""

    weight: NDArray[np.float64]
    loc: NDArray[np.float64]
    scale: float


def fit_ppca(
    X: NDArray[np.floating], n_components: int, *, sample_weight=None, min_scale: float = 0.0
) -> PPCA:
    r"""Maximum likelihood of x = Wz + μ + σe (Tipping & Bishop 1999, eq. 7–8).

    σ² is the mean discarded eigenvalue of the covariance (divided by n) and W the leading
    eigenvectors times √(λ − σ²). At most d − 1 directions carry signal, so that σ is defined;
    surplus components get a zero column. Where entries of ``X`` are missing (NaN), expectation
    maximisation repeats the closed form until the likelihood of what is observed stands still.
    """
    X = np.asarray(X, dtype=np.float64)
    missing = np.isnan(X)
    loc = np.average(np.where(missing, 0.0, X), axis=0, weights=sample_weight)
    filled = np.where(missing, loc, X)
    covariance = np.atleast_2d(np.cov(filled.T, bias=True, aweights=sample_weight))
    ppca = _principal(loc, covariance, n_components, min_scale)
    if missing.any():
        weight = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, float)
        for _ in range(_MAX_EM):
            before = ppca
            ppca = _principal(*_completed_moments(X, weight, ppca), n_components, min_scale)
            if _largest_change(before, ppca) < _EM_TOL:
                break
    return ppca


def _completed_moments(X: NDArray, weight: NDArray, ppca: PPCA) -> tuple[NDArray, NDArray]:
    """Mean and covariance of the completed rows, the expectation under ``ppca`` given what is seen.

    A row adds E[x xᵀ | x_o]: that of its conditional mean, and in its missing block the conditional
    covariance W_m M_o⁻¹ W_mᵀ + σ²I, with M_o = I + W_oᵀW_o/σ².
    """
    missing = np.isnan(X)
    seen = np.where(missing, 0.0, 1.0)
    variance = max(ppca.scale**2, _TINY_VARIANCE)
    W = ppca.weight
    outer = (W[:, :, None] * W[:, None]).reshape(len(W), -1)
    k = W.shape[1]
    M = np.eye(k) + (seen @ outer).reshape(-1, k, k) / variance
    within = np.linalg.inv(M)
    residual = np.where(missing, 0.0, X - ppca.loc)
    z = np.einsum("nkl,nl->nk", within, residual @ W) / variance
    completed = np.where(missing, z @ W.T, residual)
    share = weight / weight.sum()
    mean = share @ completed
    centred = completed - mean
    covariance = (centred * share[:, None]).T @ centred
    covariance += np.diag(share @ (1 - seen)) * variance
    for rows in np.array_split(np.arange(len(X)), max(1, len(X) * W.size // _EM_CHUNK)):
        # Σ_i share_i D_i W C_i Wᵀ D_i, with D_i picking the missing features of row i.
        hidden = (1 - seen[rows])[:, :, None] * W
        factor = hidden @ np.linalg.cholesky(within[rows])
        factor *= np.sqrt(share[rows])[:, None, None]
        flat = factor.transpose(1, 0, 2).reshape(len(W), -1)
        covariance += flat @ flat.T
    return ppca.loc + mean, covariance


def _largest_change(before: PPCA, after: PPCA) -> float:
    """Largest change of an entry of mean or covariance: rotations of W do not count."""
    covariances = [p.weight @ p.weight.T + p.scale**2 * np.eye(len(p.loc)) for p in (before, after)]
    change = np.abs(covariances[0] - covariances[1]).max()
    return float(max(change, np.abs(before.loc - after.loc).max()))


def _principal(loc: NDArray, covariance: NDArray, n_components: int, min_scale: float) -> PPCA:
    """The maximum-likelihood PPCA of rows of this mean and covariance."""
    d = len(loc)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1].clip(min=0.0), vectors[:, ::-1]
    # Deterministic signs: the largest entry of each direction is positive.
    pivots = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[pivots, np.arange(d)])
    q = min(n_components, d - 1)
    variance = max(float(values[q:].mean()), min_scale**2)
    weight = np.zeros((d, n_components))
    weight[:, :q] = vectors[:, :q] * np.sqrt((values[:q] - variance).clip(min=0.0))
    return PPCA(weight, loc, math.sqrt(variance))
