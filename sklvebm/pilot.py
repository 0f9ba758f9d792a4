"""What short fits of the reference alone say of the fit that is to come: marginals and smoothing.

A map that widens the spikes of a feature bends what hangs together with others, and a long fit
learns most of what the map would have told it. So features as they are and mapped are tried on two
short fits each, one four times as long as the other. What held-out rows gain by the maps falls by
about as much with each doubling of the updates, and is carried on so to the length of the fit that
is to come.

Rows that are learned by heart want kernels about them, others lose by any. Few rows are learned by
heart soon, so that held-out rows lose again before a short fit ends; then wider kernels are tried
as long as held-out rows gain. While they still gain without kernels, a short fit knows no better:
what kernels do for it is not what they do for a long one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._arrays import draw_seed, generator_from_seed, to_numpy
from .energies import EnergySpec
from .energies._joint import JointEnergy
from .heldout import random_split
from .marginals import MarginalMaps
from .saddle import DivergenceError
from .training import Options, Trainer

# Updates of the longer pilot at most, and how many times as long as the other it is.
_MOST_UPDATES, _RATIO = 200, 4
# Updates between evaluations, of which the best is kept.
_BETWEEN = 50
# Rows that a pilot sees at most, and the share of them that judges it, whatever a fit holds out
# (256 rows at most).
_MOST_ROWS, _HELD_OUT = 4096, 1 / 4
# Without a tilt the pool is idle, but for the random numbers that it takes.
_POOL_SIZE = 512
# Standard errors of the gain that the maps must bring; and how far from the median, in robust
# standard deviations, that of a row may count: one row that gains much makes no mean less sure.
_SURE, _FARTHEST, _MAD_TO_STD = 2.0, 3.0, 1.4826
# Widths of kernels about rows, from none on.
_WIDTHS = (0.0, 0.2, 0.4)
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


# What tells one pilot from another: maps, updates, and the width of kernels.
_Pilot = tuple[MarginalMaps | None, int, float]


class _Judged(NamedTuple):
    """Held-out rows ``x (n, d)``, their weights, and log p of each after a pilot.

    ``peak`` and ``end (n,)`` are log p at the best and the last of the reference's own stage.
    """

    x: NDArray
    weight: NDArray
    log_prob: NDArray
    peak: NDArray
    end: NDArray

    @property
    def mean_peak(self) -> float:
        return float(np.average(self.peak, weights=self.weight))

    @property
    def learned_by_heart(self) -> bool:
        """Whether rows lose again while those that are trained on gain."""
        share = self.weight / self.weight.sum()
        return bool(share @ _without_outliers(self.peak - self.end, share) > 0)


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
    _found: dict[_Pilot, _Judged | None] = field(default_factory=dict, repr=False)

    def knots(self, marginals: str) -> Tensor | None:
        """Of the maps that ``marginals`` stands for; None where it stands for none.

        For "auto" the pilots must prefer them.
        """
        if marginals == "gaussian" or (marginals == "auto" and not self.thinned().prefer_maps()):
            return None
        return torch.from_numpy(MarginalMaps.fitted(self.X, self.weight).knots)

    def thinned(self) -> Pilots:
        """The same on no more than ``_MOST_ROWS`` rows."""
        n = len(self.X)
        if n <= _MOST_ROWS:
            return self
        some = np.sort(np.random.RandomState(_SEED).choice(n, _MOST_ROWS, replace=False))
        return replace(self, X=self.X[some], weight=self.weight[some], _found={})

    @cached_property
    def maps(self) -> MarginalMaps:
        """Fitted to the rows that pilots train on: those that judge maps have not shaped them."""
        generator = generator_from_seed(draw_seed(_SEED), self.device)
        order, held_out = random_split(self.weight, self._judging_share, generator)
        trained_on = to_numpy(order[~held_out])
        return MarginalMaps.fitted(self.X[trained_on], self.weight[trained_on])

    def prefer_maps(self) -> bool:
        """Whether held-out rows are to gain by maps, by two standard errors of the mean."""
        total, long = self._reference_updates(), self._most_updates()
        short = max(1, long // _RATIO)
        try:
            early, late = (self.gain(length) for length in (short, long))
        except DivergenceError:
            return False
        if early is None or late is None:
            return False
        further = max(0.0, math.log(total / long)) / math.log(long / short)
        share = late.weight / late.weight.sum()
        gain = _without_outliers(late.value + further * (late.value - early.value), share)
        mean = share @ gain
        return bool(mean > _SURE * np.sqrt(share**2 @ (gain - mean) ** 2))

    def smoothing(self, maps: MarginalMaps | None) -> float:
        """The width, of ``_WIDTHS``, up to which held-out rows gain ``tol`` or more by each.

        Under ``maps``, those of the fit that is to come: all widths are judged under the same.

        None at all where rows are not learned by heart, or the fit leaves the reference as it is.
        """
        pilots, n_updates, best, taken = self.thinned(), self._most_updates(), -math.inf, 0.0
        if self._reference_updates() < 1:
            return taken
        for width in _WIDTHS:
            try:
                judged = pilots._judged(maps, n_updates, width)
            except DivergenceError:
                break
            if judged is None or not judged.mean_peak > best + self.options.tol:
                break
            best, taken = judged.mean_peak, width
            if not width and not judged.learned_by_heart:
                break
        return taken

    def _most_updates(self) -> int:
        return max(2, min(_MOST_UPDATES, round(self._reference_updates())))

    def _reference_updates(self) -> float:
        generator = generator_from_seed(_SEED, torch.device("cpu"))
        energy = self.spec.build(self.X.shape[1], self.options.n_components, generator=generator)
        return energy.reference_share * self.options.max_iter

    def gain(self, n_updates: int) -> Gain | None:
        """The difference after ``n_updates``; None where the table is too small to hold out of."""
        width = self.options.smoothing
        plain, mapped = (self._judged(by, n_updates, width) for by in (None, self.maps))
        if plain is None or mapped is None:
            return None
        change = np.nansum(self.maps.log_slope(mapped.x), 1)
        return Gain(mapped.log_prob + change - plain.log_prob, plain.weight)

    def _judged(self, maps: MarginalMaps | None, n_updates: int, width: float) -> _Judged | None:
        """Held-out rows after a pilot on the features, or on what ``maps`` make of them."""
        key = maps, n_updates, width
        if key not in self._found:
            x = self.X if maps is None else maps.forward(self.X)
            self._found[key] = self._tried(x, n_updates, width)
        return self._found[key]

    @property
    def _judging_share(self) -> float:
        return max(self.options.validation_fraction, _HELD_OUT)

    def _tried(self, x: NDArray, n_updates: int, smoothing: float) -> _Judged | None:
        options = replace(
            self.options,
            smoothing=smoothing,
            max_iter=n_updates,
            early_stopping=True,
            validation_fraction=self._judging_share,
            pool_size=_POOL_SIZE,
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
        found: dict[str, list[tuple[float, Tensor]]] = {}

        def note(row: dict, snapshot: Callable) -> bool:
            stage = found.setdefault(row["stage"], [])
            stage.append((row["log_likelihood"], held_out.log_evidence))
            return False

        trainer.train(note)

        def best(evaluations: list[tuple[float, Tensor]]) -> tuple[float, Tensor]:
            return max(evaluations, key=lambda each: each[0])

        _, log_prob = best([best(stage) for stage in found.values()])
        (_, peak), (_, end) = best(found["reference"]), found["reference"][-1]
        answers = held_out.rows.x, held_out.rows.weight, log_prob, peak, end
        return _Judged(*(to_numpy(part).astype(np.float64) for part in answers))


def _without_outliers(values: NDArray, share: NDArray) -> NDArray:
    """``values``, none farther than ``_FARTHEST`` robust standard deviations from the median."""

    def median(some: NDArray) -> float:
        return np.quantile(some, 0.5, weights=share, method="inverted_cdf")

    middle = median(values)
    reach = _FARTHEST * _MAD_TO_STD * median(np.abs(values - middle))
    return np.clip(values, middle - reach, middle + reach)
