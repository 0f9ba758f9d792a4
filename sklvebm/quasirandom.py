"""Points that cover the unit cube evenly, as noise that all rows share."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ._arrays import generator_from_seed
from .langevin import Noise


class SharedRows(Noise):
    """Noise shared by all rows, the first dimension; points that cover the cube evenly.

    Scrambled Sobol points (A. B. Owen 1998, "Scrambling Sobol' and Niederreiter-Xing points", J.
    Complexity 14) are uniform each, so that estimates stay unbiased, and integrals of a few smooth
    dimensions are far more precise than with independent draws.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        super().__init__(generator_from_seed(seed, device), shared_dims=(0,))

    def points(self, like: Tensor) -> Tensor:
        seed = int(
            torch.randint(2**31, (1,), generator=self.generator, device=self.generator.device)
        )
        return _evenly(seed, *like.shape[-2:]).to(like)[None]


@lru_cache(maxsize=16)
def _evenly(seed: int, size: int, width: int) -> Tensor:
    """Scrambled Sobol points ``(size, width)``, kept since chunks of rows share them.

    In the order of the sequence every eighth point lies in one octant: what is thinned
    systematically must come in no order.
    """
    points = torch.quasirandom.SobolEngine(width, scramble=True, seed=seed).draw(
        size, dtype=torch.float64
    )
    return points[torch.randperm(size, generator=torch.Generator().manual_seed(seed))]
