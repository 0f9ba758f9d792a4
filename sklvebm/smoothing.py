"""Rows drawn anew about those of a table, as wide as their neighbours are far: small tables.

Few rows in many dimensions are soon learned by heart: a network makes its noise narrow at just
those. Rows that are drawn anew from a kernel about each, whenever it is visited, leave nothing to
learn by heart, and a kernel of the shape of the neighbourhood does not leave a thin sheet.

References
----------
P. Vincent and Y. Bengio (2003). Manifold Parzen windows. NIPS 15, 849-856.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ._arrays import to_numpy
from .rows import Rows

_N_NEIGHBORS = 10


@dataclass(frozen=True)
class ParzenWindows:
    r"""A Gaussian kernel about each row, of the covariance of its neighbours.

    About row i it is

    .. math:: N(x_i, h² S_i), \qquad S_i = \sum_j w_j (x_j - x_i)(x_j - x_i)^T / \sum_j w_j,

    over the ten nearest other rows and their weights. A neighbour says nothing of a feature that is
    missing (NaN) from it or from the row.

    Attributes
    ----------
    x : Tensor of shape (n, d)
        The rows that have a kernel.
    table : Tensor of shape (N, d)
        Their neighbours are among these.
    neighbors : Tensor of shape (n, m)
    share : Tensor of shape (n, m)
        Of the weight of a row's neighbours, that of each.
    width : float
        h.
    """

    x: Tensor
    table: Tensor
    neighbors: Tensor
    share: Tensor
    width: float

    @classmethod
    def of(cls, rows: Rows, width: float) -> ParzenWindows:
        """Kernels of ``width`` about ``rows``. One row alone has no width."""
        x, m = rows.x, min(_N_NEIGHBORS, len(rows) - 1)
        neighbors = torch.zeros(len(x), m, dtype=torch.long, device=x.device)
        if m:
            table = to_numpy(x).astype(np.float64)
            metric = "nan_euclidean" if np.isnan(table).any() else "euclidean"
            search = NearestNeighbors(n_neighbors=m, metric=metric).fit(table)
            neighbors = torch.from_numpy(search.kneighbors(return_distance=False)).to(x.device)
        weight = rows.weight[neighbors]
        return cls(x, x, neighbors, weight / weight.sum(1, keepdim=True), width)

    def sharded(self, shard: Callable[[Tensor], Tensor]) -> ParzenWindows:
        """The kernels about this process's rows; their neighbours may be another's."""
        x, neighbors, share = (shard(part) for part in (self.x, self.neighbors, self.share))
        return replace(self, x=x, neighbors=neighbors, share=share)

    def draw(self, picks: Tensor, generator: torch.Generator) -> Tensor:
        """One draw ``(b, d)`` about each of the rows ``picks (b,)``; what is missing stays so."""
        x, share = self.x[picks], self.share[picks]
        away = torch.nan_to_num(self.table[self.neighbors[picks]] - x[:, None])
        noise = torch.randn(share.shape, generator=generator, device=x.device, dtype=x.dtype)
        return x + self.width * ((share.sqrt() * noise)[..., None] * away).sum(1)
