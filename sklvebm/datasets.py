"""Densities that are known exactly: draws, log-densities and entropies, in nats.

What a fitted density is held against: on fresh data no model scores above minus the entropy, on
average. Each is an object with ``sample``, ``log_prob`` and ``entropy``; arrays are numpy's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import logsumexp
from sklearn.utils import check_random_state

__all__ = [
    "Checkerboard",
    "GaussianMixtureDensity",
    "KnownDensity",
    "Moons",
    "MultivariateT",
    "PhiFourChain",
    "Pinwheel",
    "Rings",
    "twonorm",
]

_LOG_2PI = math.log(2 * math.pi)
Array = NDArray[np.float64]


class KnownDensity(ABC):
    """A distribution on R^d whose density is known."""

    n_features: int

    def sample(self, n_samples: int = 1, random_state=None) -> Array:
        """Draw rows.

        Parameters
        ----------
        n_samples : int, default=1
        random_state : int, RandomState instance or None, default=None

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
        """
        return self._draw(n_samples, check_random_state(random_state))

    @abstractmethod
    def _draw(self, n: int, rng: np.random.RandomState) -> Array: ...

    @abstractmethod
    def log_prob(self, X) -> Array:
        """Log-density of each row of ``X (n, n_features)``, in nats: shape ``(n,)``."""

    def entropy(self, n_samples: int = 200_000, random_state=0) -> tuple[float, float]:
        """Entropy in nats and its standard error, by the mean of −log p over draws."""
        values = -self.log_prob(self.sample(n_samples, random_state))
        return float(values.mean()), float(values.std() / math.sqrt(n_samples))


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
        return logsumexp(terms, axis=0) - 0.5 * self.n_features * _LOG_2PI


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


class Checkerboard(KnownDensity):
    """Uniform on the eight dark squares of side 2 of [−4, 4]²: entropy log 32 = 3.466."""

    n_features = 2

    def _draw(self, n, rng):
        column, row = rng.randint(4, size=n), rng.randint(2, size=n)
        corner = np.stack([column, 2 * row + column % 2], 1) * 2.0 - 4.0
        return corner + 2 * rng.uniform(size=(n, 2))

    def log_prob(self, X):
        cells = np.floor((np.asarray(X, float) + 4) / 2)
        inside = ((cells >= 0) & (cells < 4)).all(1) & ((cells.sum(1) % 2) == 0)
        return np.where(inside, -math.log(32.0), -np.inf)

    def entropy(self, n_samples=0, random_state=None):
        """log 32, exactly."""
        return math.log(32.0), 0.0


class Moons(KnownDensity):
    """``sklearn.datasets.make_moons``: two half circles under Gaussian noise.

    Parameters
    ----------
    noise : float, default=0.1
    """

    n_features = 2

    def __init__(self, noise: float = 0.1) -> None:
        self.noise = noise
        # make_moons takes angles from an even grid; in the limit they are uniform.
        angles = (np.arange(1000) + 0.5) * math.pi / 1000
        outer = np.stack([np.cos(angles), np.sin(angles)], 1)
        inner = np.stack([1 - np.cos(angles), 0.5 - np.sin(angles)], 1)
        self.curve = np.concatenate([outer, inner])

    def _draw(self, n, rng):
        angles, lower = rng.uniform(0, math.pi, n), rng.uniform(size=n) < 0.5
        x = np.where(lower, 1 - np.cos(angles), np.cos(angles))
        y = np.where(lower, 0.5 - np.sin(angles), np.sin(angles))
        return np.stack([x, y], 1) + self.noise * rng.standard_normal((n, 2))

    def log_prob(self, X):
        X = np.asarray(X, float)
        square = ((X[:, None] - self.curve) ** 2).sum(-1) / (2 * self.noise**2)
        norm = _LOG_2PI + 2 * math.log(self.noise) + math.log(len(self.curve))
        return logsumexp(-square, axis=1) - norm


class _Swirled(KnownDensity):
    """A planar law turned by an angle that depends on the radius: areas, so densities, are kept."""

    n_features = 2

    def _angle(self, radius: Array) -> Array:
        raise NotImplementedError

    @staticmethod
    def _turned(X: Array, angle: Array) -> Array:
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([cos * X[:, 0] - sin * X[:, 1], sin * X[:, 0] + cos * X[:, 1]], 1)


class Pinwheel(_Swirled):
    """Arms of Gaussian noise, bent by a turn that grows with the radius.

    Parameters
    ----------
    n_arms : int, default=5
    radial_std, tangential_std : float
    rate : float
        Turn in radians a unit of radius.
    """

    def __init__(self, n_arms=5, radial_std=0.35, tangential_std=0.1, rate=0.9) -> None:
        angles = 2 * math.pi * np.arange(n_arms) / n_arms
        turn = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], 1)
        turn = turn.reshape(n_arms, 2, 2)
        shape = np.diag([radial_std**2, tangential_std**2])
        self.straight = GaussianMixtureDensity(
            np.full(n_arms, 1 / n_arms), turn @ [1.5, 0.0], turn @ shape @ turn.transpose(0, 2, 1)
        )
        self.rate = rate

    def _angle(self, radius):
        return self.rate * radius

    def _draw(self, n, rng):
        X = self.straight._draw(n, rng)
        return self._turned(X, self._angle(np.linalg.norm(X, axis=1)))

    def log_prob(self, X):
        X = np.asarray(X, float)
        return self.straight.log_prob(self._turned(X, -self._angle(np.linalg.norm(X, axis=1))))


class Rings(KnownDensity):
    """Concentric rings: a radius from a mixture of normals, the angle uniform.

    Parameters
    ----------
    radii : sequence of float, default=(1, 2, 3)
    noise : float, default=0.08
        Standard deviation of the radius, far below the smallest of ``radii``.
    """

    n_features = 2

    def __init__(self, radii=(1.0, 2.0, 3.0), noise: float = 0.08) -> None:
        self.radii, self.noise = np.asarray(radii, float), noise

    def _draw(self, n, rng):
        radius = rng.choice(self.radii, n) + self.noise * rng.standard_normal(n)
        angle = rng.uniform(0, 2 * math.pi, n)
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)

    def log_prob(self, X):
        radius = np.linalg.norm(np.asarray(X, float), axis=1)
        terms = stats.norm.logpdf(radius[:, None], self.radii, self.noise)
        log_radial = logsumexp(terms, axis=1) - math.log(len(self.radii))
        return log_radial - np.log(2 * math.pi * np.maximum(radius, 1e-300))


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
