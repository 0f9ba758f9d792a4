"""Known densities in any number of dimensions."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from scipy import stats
from scipy.special import logsumexp
from sklearn.utils import check_random_state

from ._base import LOG_2PI, Array, KnownDensity


class GaussianMixtureDensity(KnownDensity):
    """A mixture of Gaussians.

    Parameters
    ----------
    weights : array-like of shape (m,)
    means : array-like of shape (m, d)
    covariances : array-like of shape (m, d, d)
    """

    def __init__(self, weights, means, covariances) -> None:
        self.weights, self.means = np.asarray(weights, float), np.asarray(means, float)
        self.factors = np.linalg.cholesky(np.asarray(covariances, float))
        self.n_features = self.means.shape[1]

    @classmethod
    def random(cls, n_components: int, n_features: int, *, spread=2.0, random_state=None):
        """Random centres (standard deviation ``spread``), shapes and weights."""
        rng = check_random_state(random_state)
        means = spread * rng.standard_normal((n_components, n_features))
        bases = rng.standard_normal((n_components, n_features, n_features))
        covariances = bases @ bases.transpose(0, 2, 1) / n_features + 0.1 * np.eye(n_features)
        return cls(rng.dirichlet(np.full(n_components, 5.0)), means, covariances)

    def _draw(self, n, rng):
        labels = rng.choice(len(self.weights), n, p=self.weights)
        noise = rng.standard_normal((n, self.n_features))
        return self.means[labels] + np.einsum("nij,nj->ni", self.factors[labels], noise)

    def log_prob(self, X):
        terms = []
        for weight, mean, factor in zip(self.weights, self.means, self.factors, strict=True):
            white = np.linalg.solve(factor, (np.asarray(X, float) - mean).T)
            log_det = np.log(np.diag(factor)).sum()
            terms.append(math.log(weight) - 0.5 * (white**2).sum(0) - log_det)
        return logsumexp(terms, axis=0) - 0.5 * self.n_features * LOG_2PI


def twonorm(n_features: int = 20) -> GaussianMixtureDensity:
    """Breiman's twonorm: N(a, I) and N(−a, I) in equal parts, a = (2/√d, …, 2/√d)."""
    a = np.full(n_features, 2 / math.sqrt(n_features))
    eye = np.eye(n_features)
    return GaussianMixtureDensity([0.5, 0.5], np.stack([a, -a]), np.stack([eye, eye]))


class MultivariateT(KnownDensity):
    """Student-t with ``dof`` degrees of freedom and covariance-like ``shape (d, d)``."""

    def __init__(self, shape, dof: float = 3.0) -> None:
        self.law = stats.multivariate_t(shape=np.asarray(shape, float), df=dof)
        self.n_features = len(shape)

    def _draw(self, n, rng):
        return self.law.rvs(n, random_state=rng).reshape(n, self.n_features)

    def log_prob(self, X):
        return np.atleast_1d(self.law.logpdf(X))


class PhiFourChain(KnownDensity):
    r"""φ⁴ chain: p ∝ exp(−Σ ½(φ_i − φ_{i+1})² + (φ_i² − 1)²), periodic.

    Drawn and normalised through the transfer matrix on a fine grid; draws are spread evenly over
    their cells.

    Parameters
    ----------
    n_features : int, default=16
    """

    _GRID = np.linspace(-3.2, 3.2, 641)

    def __init__(self, n_features: int = 16) -> None:
        self.n_features = n_features

    @cached_property
    def _powers(self) -> list[Array]:
        phi = self._GRID
        step = phi[1] - phi[0]
        site = np.exp(-0.5 * (phi**2 - 1) ** 2)
        kernel = np.exp(-0.5 * (phi[:, None] - phi) ** 2) * site[:, None] * site * step
        powers = [np.eye(len(phi)), kernel]
        while len(powers) <= self.n_features:
            powers.append(powers[-1] @ kernel)
        return powers

    @property
    def log_partition(self) -> float:
        """log ∫ exp(−S): the trace of a power of the transfer matrix."""
        return float(np.log(np.trace(self._powers[self.n_features])))

    def _draw(self, n, rng):
        powers, d = self._powers, self.n_features
        size = len(self._GRID)
        diagonal = np.diag(powers[d])
        first = rng.choice(size, n, p=diagonal / diagonal.sum())
        sites = [first]
        for i in range(1, d):
            # p(φ_i | φ_{i−1}, φ_0) ∝ K(φ_{i−1}, φ_i) K^{d−i}(φ_i, φ_0)
            mass = powers[1][sites[-1]] * powers[d - i][:, first].T
            cumulative = mass.cumsum(1)
            level = rng.uniform(size=(n, 1)) * cumulative[:, -1:]
            sites.append((cumulative < level).sum(1).clip(max=size - 1))
        step = self._GRID[1] - self._GRID[0]
        return self._GRID[np.stack(sites, 1)] + step * (rng.uniform(size=(n, d)) - 0.5)

    def log_prob(self, X):
        X = np.asarray(X, float)
        coupling = 0.5 * (X - np.roll(X, -1, axis=1)) ** 2
        return -(coupling + (X**2 - 1) ** 2).sum(1) - self.log_partition
