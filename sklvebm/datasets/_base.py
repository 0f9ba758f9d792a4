"""What every distribution and every known density answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

LOG_2PI = math.log(2 * math.pi)
Array = NDArray[np.float64]


class Drawn(ABC):
    """A distribution on R^d that rows can be drawn from."""

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


class KnownDensity(Drawn):
    """A distribution on R^d whose density is known."""

    @abstractmethod
    def log_prob(self, X) -> Array:
        """Log-density of each row of ``X (n, n_features)``, in nats: shape ``(n,)``."""

    def entropy(self, n_samples: int = 200_000, random_state=0) -> tuple[float, float]:
        """Entropy in nats and its standard error, by the mean of −log p over draws."""
        values = -self.log_prob(self.sample(n_samples, random_state))
        return float(values.mean()), float(values.std() / math.sqrt(n_samples))
