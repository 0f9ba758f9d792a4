"""The user's units and those that the energy sees, and the ways between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ._arrays import on_tensors
from .marginals import MarginalMaps


def fitted_scaler(X: NDArray, weight: NDArray) -> StandardScaler:
    """Means and standard deviations of ``X (n, d)``, NaN where missing, in double precision.

    Raises
    ------
    ValueError
        If a feature is never seen, or its variance is too large or too small for a number.
    """

    def refuse(features: ArrayLike, why: str) -> None:
        if np.any(features):
            raise ValueError(why.format(np.flatnonzero(features).tolist()))

    refuse(np.isnan(X).all(axis=0), "features {} have no observed value.")
    with np.errstate(over="ignore", invalid="ignore"):
        scaler = StandardScaler().fit(X.astype(np.float64), sample_weight=weight)
    over = ~np.isfinite([scaler.mean_, scaler.scale_]).all(axis=0)
    # A variance of zero stands for a constant feature.
    varies = np.nanmax(X, axis=0) > np.nanmin(X, axis=0)
    under = varies & (scaler.var_ < np.finfo(np.float64).tiny)
    for features, beyond in ((over, "overflows"), (under, "underflows")):
        why = f"the variance of features {{}} {beyond} float64; rescale the columns of X."
        refuse(features, why)
    return scaler


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
