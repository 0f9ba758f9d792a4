"""The user's units and those that the energy sees, and the ways between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ._arrays import on_tensors
from .marginals import MarginalMaps


@dataclass(frozen=True)
class Units:
    """Features are standardised, and then mapped where there are maps.

    Parameters
    ----------
    scaler : StandardScaler
    maps : MarginalMaps or None
    """

    scaler: StandardScaler
    maps: MarginalMaps | None

    @property
    def marginals(self) -> str:
        """What features are taken for: ``"gaussian"``, or ``"mixture"`` where they are mapped."""
        return "gaussian" if self.maps is None else "mixture"

    def standardised(self, X: NDArray) -> NDArray:
        """Rows ``X (..., d)`` of the user, without maps."""
        return (X - self.scaler.mean_) / self.scaler.scale_

    def from_standardised(self, X: NDArray) -> NDArray:
        """Undo :meth:`standardised`."""
        return X * self.scaler.scale_ + self.scaler.mean_

    def to_model(self, X: NDArray) -> NDArray:
        """What the energy sees of rows ``X (..., d)`` of the user."""
        X = self.standardised(X)
        return X if self.maps is None else self.maps.forward(X)

    def from_model(self, x: NDArray) -> NDArray:
        """Undo :meth:`to_model`."""
        return self.from_standardised(x if self.maps is None else self.maps.inverse(x))

    @property
    def back(self) -> Callable[[Tensor], Tensor] | None:
        """From what the energy sees to standardised features; None where they are not mapped.

        Means are taken behind it, since they are not the maps of means.
        """
        return None if self.maps is None else on_tensors(self.maps.inverse)

    def log_slope(self, x: NDArray) -> NDArray | None:
        """What log p of each row ``x (n, d)`` that the energy sees gains in standardised units.

        None where features are not mapped.
        """
        return None if self.maps is None else np.nansum(self.maps.log_slope(x), 1)

    def log_jacobian(self, x: NDArray) -> NDArray:
        """What log p of each row ``x (n, d)``, of what is seen of it, loses in the user's units."""
        loss = np.log(self.scaler.scale_)
        if self.maps is not None:
            loss = loss - self.maps.log_slope(x)
        return np.where(np.isnan(x), 0.0, loss).sum(1)
