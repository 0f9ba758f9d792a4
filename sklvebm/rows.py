"""A table as a weighted set of distinct rows: what is trained on, and how it is visited.

A row that occurs w times and a row of weight w are the same thing here, to the bit, and the order
of the rows says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .state import Stateful


def distinct_rows(X: NDArray, sample_weight: NDArray | None = None) -> tuple[NDArray, NDArray]:
    """The distinct rows of ``X (n, d)``, sorted, and the weight of each.

    Rows of weight zero are left out; rows that share their missing entries (NaN) can be equal. The
    order is the same in any units.
    """
    weight = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    X, weight = X[weight > 0], weight[weight > 0]
    order = _lexicographic_order(X)
    X, weight = X[order], weight[order]
    first = np.flatnonzero(np.r_[True, _differs(X).any(1)])
    return X[first], np.add.reduceat(weight, first)


def _lexicographic_order(X: NDArray) -> NDArray:
    """``np.lexsort(X.T[::-1])``, but by no more columns than tell the rows apart."""
    order = np.argsort(X[:, 0], kind="stable")
    # Places in the order of rows that are equal so far, and which of them are equal to each other.
    places, group = np.arange(len(X)), np.zeros(len(X), dtype=np.intp)
    for before, column in zip(X.T, X.T[1:], strict=False):
        starts = np.r_[True, _differs(before[order[places]])] | (np.diff(group, prepend=-1) != 0)
        ends = np.append(starts[1:], True)
        tied = ~(starts & ends)
        if not tied.any():
            break
        places, group = places[tied], np.cumsum(starts)[tied]
        rows = order[places]
        order[places] = rows[np.lexsort((column[rows], group))]
    return order


def _differs(values: NDArray) -> NDArray:
    """Whether each but the first differs from the one before; NaN is equal to NaN."""
    return (values[1:] != values[:-1]) & ~(np.isnan(values[1:]) & np.isnan(values[:-1]))


@dataclass(frozen=True)
class Rows:
    """Rows ``x (n, d)``, standardised, NaN where missing, and their ``weight (n,)`` of mean one."""

    x: Tensor
    weight: Tensor

    @classmethod
    def weighted(cls, x: Tensor, weight: Tensor) -> Rows:
        """Rows with weights of any scale."""
        return cls(x, weight / weight.mean())

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, picks: Tensor) -> Rows:
        return Rows.weighted(self.x[picks], self.weight[picks])

    def mean(self, values: Tensor) -> float:
        """Weighted mean of a value per row."""
        return float((self.weight * values).mean())

    def order(self, generator: torch.Generator) -> Tensor:
        """n picks in random order, each row as often as its weight says: systematic resampling.

        Rows of equal weight are picked once each.
        """
        order = torch.randperm(len(self), generator=generator, device=self.x.device)
        ends = self.weight[order].double().cumsum(0)
        start = torch.rand(1, generator=generator, device=self.x.device, dtype=torch.float64)
        points = (torch.arange(len(self), device=self.x.device) + start) * (ends[-1] / len(self))
        picks = order[torch.searchsorted(ends, points).clamp(max=len(self) - 1)]
        return picks[torch.randperm(len(self), generator=generator, device=self.x.device)]

    def batches(self, size: int, generator: torch.Generator) -> Batches:
        """Endless passes over the rows, ``size`` at a time; what is left over is left out.

        Where ``size`` is more than the rows there are, it is so many whole passes as fit.
        """
        return Batches(self, size, generator)


class Batches(Stateful):
    """Endless batches of ``size`` picks: where a pass is, is a state that can be kept.

    Parameters
    ----------
    rows : Rows
    size : int
        Above the number of rows, it is cut to a multiple of that.
    generator : torch.Generator
        Of the order of each pass.
    """

    STATE = ("order", "start")

    def __init__(self, rows: Rows, size: int, generator: torch.Generator) -> None:
        self.rows, self.generator = rows, generator
        self.n_passes = max(1, size // len(rows))
        self.size = min(size, self.n_passes * len(rows))
        self.order = torch.empty(0, dtype=torch.long, device=rows.x.device)
        self.start = 0

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Tensor:
        if self.start + self.size > len(self.order):
            passes = [self.rows.order(self.generator) for _ in range(self.n_passes)]
            self.order, self.start = torch.cat(passes), 0
        self.start += self.size
        return self.order[self.start - self.size : self.start]
