"""Whether a model finds more in the features as they are, or in what marginal maps make of them.

A map that widens the spikes of a feature bends what hangs together with others, and a long fit
learns most of what the map would have told it. So both are tried on two short fits each, of the
reference alone, one four times as long as the other. What held-out rows gain by the maps falls by
about as much with each doubling of the updates, and is carried on so to the length of the fit that
is to come.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._arrays import generator_from_seed, to_numpy
from .energies import EnergySpec
from .energies._joint import JointEnergy
from .marginals import MarginalMaps
from .saddle import DivergenceError
from .training import Options, Trainer

# Updates of the longer pilot at most, and how many times as long as the other it is.
_MOST_UPDATES, _RATIO = 200, 4
# Updates between evaluations, of which the best is kept.
_BETWEEN = 50
# Rows that a pilot sees at most, and the share of them that judges it, whatever a fit holds out.
_MOST_ROWS, _HELD_OUT = 4096, 1 / 4
# Standard errors of the gain that the maps must bring; and how far from the median, in robust
# standard deviations, that of a row may count: one row that gains much makes no mean less sure.
_SURE, _FARTHEST, _MAD_TO_STD = 2.0, 3.0, 1.4826
# A table has one answer, whatever the seed of the fit.
_SEED = 0


class _ReferenceAlone(EnergySpec):
    """Another specification's energy, without its tilt."""

    def __init__(self, spec):
        self.spec = spec

    def build(
        self, n_features: int, n_components: int, *, generator: torch.Generator
    ) -> JointEnergy:
        return self.spec.build(n_features, n_components, generator=generator).without_tilt()


class _Judged(NamedTuple):
    """Held-out rows ``x (n, d)``, their weights, and log p of each after a pilot."""

    x: NDArray
    weight: NDArray
    log_prob: NDArray


class Gain(NamedTuple):
    """What held-out rows gain by maps, ``value (n,)`` in nats, and their weights."""

    value: NDArray
    weight: NDArray


@dataclass(frozen=True)
class Pilots:
    """Short fits to a table, before the one that is to come.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Distinct rows, standardised, NaN where missing.
    weight : ndarray of shape (n,)
    spec, options : EnergySpec, Options
        Of the fit that is to come.
    device : torch.device
    """

    X: NDArray
    weight: NDArray
    spec: EnergySpec
    options: Options
    device: torch.device

    def knots(self, marginals: str) -> Tensor | None:
        """Of the maps that ``marginals`` stands for; None where it stands for none.

        For "auto" the pilots must prefer them.
        """
        if marginals == "gaussian":
            return None
        maps = MarginalMaps.fitted(self.X, self.weight)
        wanted = marginals == "mixture" or self.thinned().prefer(maps)
        return torch.from_numpy(maps.knots) if wanted else None

    def thinned(self) -> Pilots:
        """The same on no more than ``_MOST_ROWS`` rows."""
        n = len(self.X)
        if n <= _MOST_ROWS:
            return self
        some = np.sort(np.random.RandomState(_SEED).choice(n, _MOST_ROWS, replace=False))
        return replace(self, X=self.X[some], weight=self.weight[some])

    def prefer(self, maps: MarginalMaps) -> bool:
        """Whether held-out rows are to gain by ``maps``, by two standard errors of the mean."""
        total = self._reference_updates()
        long = max(2, min(_MOST_UPDATES, round(total)))
        short = max(1, long // _RATIO)
        try:
            early, late = (self.gain(maps, length) for length in (short, long))
        except DivergenceError:
            return False
        if early is None or late is None:
            return False
        further = max(0.0, math.log(total / long)) / math.log(long / short)
        share = late.weight / late.weight.sum()
        gain = _without_outliers(late.value + further * (late.value - early.value), share)
        mean = share @ gain
        return bool(mean > _SURE * np.sqrt(share**2 @ (gain - mean) ** 2))

    def _reference_updates(self) -> float:
        generator = generator_from_seed(_SEED, torch.device("cpu"))
        energy = self.spec.build(self.X.shape[1], self.options.n_components, generator=generator)
        return energy.reference_share * self.options.max_iter

    def gain(self, maps: MarginalMaps, n_updates: int) -> Gain | None:
        """The difference after ``n_updates``; None where the table is too small to hold out of."""
        plain, mapped = (self._judged(x, n_updates) for x in (self.X, maps.forward(self.X)))
        if plain is None or mapped is None:
            return None
        change = np.nansum(maps.log_slope(mapped.x), 1)
        return Gain(mapped.log_prob + change - plain.log_prob, plain.weight)

    def _judged(self, x: NDArray, n_updates: int) -> _Judged | None:
        options = replace(
            self.options,
            max_iter=n_updates,
            early_stopping=True,
            validation_fraction=max(self.options.validation_fraction, _HELD_OUT),
        )
        trainer = Trainer(
            x,
            self.weight,
            _ReferenceAlone(self.spec),
            options,
            random_state=_SEED,
            device=self.device,
            max_evaluations=max(1, n_updates // _BETWEEN),
        )
        held_out = trainer.held_out
        if held_out is None:
            return None
        found = []

        def note(row: dict, snapshot: Callable) -> bool:
            found.append((row["log_likelihood"], held_out.log_evidence))
            return False

        with warnings.catch_warnings():
            # Of a state that diverged and came back: the fit will tell what it meets itself.
            warnings.simplefilter("ignore")
            trainer.train(note)
        _, log_prob = max(found, key=lambda each: each[0])
        answers = held_out.rows.x, held_out.rows.weight, log_prob
        return _Judged(*(to_numpy(part).astype(np.float64) for part in answers))


def _without_outliers(values: NDArray, share: NDArray) -> NDArray:
    """``values``, none farther than ``_FARTHEST`` robust standard deviations from the median."""

    def median(some: NDArray) -> float:
        return np.quantile(some, 0.5, weights=share, method="inverted_cdf")

    middle = median(values)
    reach = _FARTHEST * _MAD_TO_STD * median(np.abs(values - middle))
    return np.clip(values, middle - reach, middle + reach)
