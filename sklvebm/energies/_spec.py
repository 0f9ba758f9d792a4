"""The base of the energy specifications, and the checks they share. Imports no torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
from sklearn.base import BaseEstimator

from .._links import DocumentedMixin

if TYPE_CHECKING:
    import torch

    from ._joint import JointEnergy


class EnergySpec(DocumentedMixin, BaseEstimator, ABC):
    """Hyper-parameters of an energy, and how to build it.

    A specification is to ``LVEBMEstimator`` what a kernel is to ``GaussianProcessRegressor``: it
    holds parameters only, so it clones, prints, pickles and nests (``energy__min_scale``).
    """

    min_scale: float

    @abstractmethod
    def build(
        self, n_features: int, n_components: int, *, generator: torch.Generator
    ) -> JointEnergy:
        """Make the torch module E(x, z).

        Parameters
        ----------
        n_features, n_components : int
            Sizes d of x and k of z.
        generator : torch.Generator
            Source of every random initial weight.

        Returns
        -------
        energy : JointEnergy
            A ``torch.nn.Module`` of this package. Energies of your own are modules that
            :class:`CustomEnergy` wraps, not subclasses of this.

        Raises
        ------
        ValueError
            If a hyper-parameter is out of range.
        """

    def weighs_marginals(self, n_features: int) -> bool:
        """Whether automatic marginals are asked for, or the features standardised and no more."""
        return False

    @property
    def weighs_smoothing(self) -> bool:
        """Whether automatic smoothing is asked for, or rows trained on as they are."""
        return False

    @property
    def is_decayed(self) -> bool:
        """Whether automatic weight decay is that of networks, or none."""
        return True

    def _checked_min_scale(self) -> float:
        value = self.min_scale
        if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
            raise ValueError(f"min_scale must be a positive number, got {value!r}.")
        return float(value)


def checked_sizes(name: str, sizes: int | Iterable[int]) -> tuple[int, ...]:
    """Hidden layer sizes as a tuple; a lone integer is one layer."""
    values = tuple(sizes) if isinstance(sizes, Iterable) else (sizes,)
    if not values or not all(isinstance(v, int | np.integer) and v > 0 for v in values):
        raise ValueError(f"{name} must hold one or more positive integers, got {sizes!r}.")
    return tuple(int(v) for v in values)


def checked_frequencies(value: int | str, n_features: int) -> int:
    """The number of Fourier features; "auto" is 64 up to four features and 0 above."""
    if isinstance(value, str) and value == "auto":
        return 64 if n_features <= 4 else 0
    if not (isinstance(value, int | np.integer) and value >= 0):
        raise ValueError(f"n_frequencies must be 'auto' or an integer >= 0, got {value!r}.")
    return int(value)
