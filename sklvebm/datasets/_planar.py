"""Known densities in the plane: the usual test sets of density estimation."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
from scipy import stats
from scipy.special import logsumexp

from ._base import LOG_2PI, Array, KnownDensity
from ._densities import GaussianMixtureDensity


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


def eight_gaussians() -> GaussianMixtureDensity:
    """Eight Gaussians on a circle, as FFJORD draws them: entropy 2.832 nats.

    Radius 4/1.414 and standard deviation .5/1.414 (Grathwohl et al. 2019, arXiv 1810.01367).
    """
    angles = math.pi / 4 * np.arange(8)
    means = 4 / 1.414 * np.stack([np.cos(angles), np.sin(angles)], 1)
    covariances = np.tile((0.5 / 1.414) ** 2 * np.eye(2), (8, 1, 1))
    return GaussianMixtureDensity(np.full(8, 1 / 8), means, covariances)


class _NoisyCurve(KnownDensity):
    """Points of planar curves under isotropic Gaussian noise.

    The density is the mean over points that are dense along the curves, each as likely as the next.
    """

    n_features = 2
    n_arms = 1

    def __init__(self, noise: float) -> None:
        self.noise = noise
        u = (np.arange(1000) + 0.5) / 1000
        self.curve = np.concatenate([self._point(u, arm) for arm in range(self.n_arms)])

    @abstractmethod
    def _point(self, u: Array, arm) -> Array:
        """Points ``(n, 2)`` of curve ``arm`` at ``u (n,)``, uniform on [0, 1]."""

    def _draw(self, n, rng):
        X = self._point(rng.uniform(size=n), rng.randint(self.n_arms, size=n))
        return X + self.noise * rng.standard_normal((n, 2))

    def log_prob(self, X):
        X, curve = (np.asarray(points, float) / self.noise for points in (X, self.curve))
        norm = LOG_2PI + 2 * math.log(self.noise) + math.log(len(curve))
        lengths = 0.5 * (curve**2).sum(1)
        values = []
        for rows in np.array_split(X, max(1, len(X) // 500)):
            # −½‖x − c‖² + ½‖x‖²: one matrix product, and the exponential is taken in place.
            terms = rows @ curve.T - lengths
            highest = terms.max(axis=1, keepdims=True)
            terms -= highest
            total = np.exp(terms, out=terms).sum(1)
            values.append(np.log(total) + highest[:, 0] - 0.5 * (rows**2).sum(1) - norm)
        return np.concatenate(values)


class Moons(_NoisyCurve):
    """``sklearn.datasets.make_moons``: two half circles under Gaussian noise.

    Parameters
    ----------
    noise : float, default=0.1
        Entropy 1.008 nats at .1 and .290 at .05. (``make_moons`` takes angles from an even grid; in
        the limit they are uniform.)
    """

    n_arms = 2

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__(noise)

    def _point(self, u, arm):
        cos, sin = np.cos(math.pi * u), np.sin(math.pi * u)
        return np.stack([np.where(arm, 1 - cos, cos), np.where(arm, 0.5 - sin, sin)], 1)


class SwissRoll(_NoisyCurve):
    """The plane of ``sklearn.datasets.make_swiss_roll`` in which it rolls, divided by five.

    Parameters
    ----------
    noise : float, default=0.2
    """

    def __init__(self, noise: float = 0.2) -> None:
        super().__init__(noise)

    def _point(self, u, arm):
        t = 1.5 * math.pi * (1 + 2 * u)
        return np.stack([t * np.cos(t), t * np.sin(t)], 1) / 5


class Spirals(_NoisyCurve):
    """Two spirals of one and a half turns, point-symmetric to each other.

    Parameters
    ----------
    noise : float, default=0.15
    """

    n_arms = 2

    def __init__(self, noise: float = 0.15) -> None:
        super().__init__(noise)

    def _point(self, u, arm):
        t = 3 * math.pi * np.sqrt(u)
        points = np.stack([-t * np.cos(t), t * np.sin(t)], 1) / 3
        return points * np.where(arm, -1.0, 1.0).reshape(-1, 1)


def _turned(X: Array, angle: Array) -> Array:
    """Each row of ``X (n, 2)`` turned by its ``angle (n,)``."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * X[:, 0] - sin * X[:, 1], sin * X[:, 0] + cos * X[:, 1]], 1)


class Pinwheel(KnownDensity):
    """Arms of Gaussian noise, bent by a turn that grows with the radius.

    The turn keeps radii, hence areas, hence densities.

    Parameters
    ----------
    n_arms : int, default=5
    radial_std, tangential_std : float
    rate : float
        Turn in radians a unit of radius.
    """

    n_features = 2

    def __init__(self, n_arms=5, radial_std=0.35, tangential_std=0.1, rate=0.9) -> None:
        angles = 2 * math.pi * np.arange(n_arms) / n_arms
        turn = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], 1)
        turn = turn.reshape(n_arms, 2, 2)
        shape = np.diag([radial_std**2, tangential_std**2])
        self.straight = GaussianMixtureDensity(
            np.full(n_arms, 1 / n_arms), turn @ [1.5, 0.0], turn @ shape @ turn.transpose(0, 2, 1)
        )
        self.rate = rate

    def _draw(self, n, rng):
        X = self.straight._draw(n, rng)
        return _turned(X, self.rate * np.linalg.norm(X, axis=1))

    def log_prob(self, X):
        X = np.asarray(X, float)
        return self.straight.log_prob(_turned(X, -self.rate * np.linalg.norm(X, axis=1)))


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
