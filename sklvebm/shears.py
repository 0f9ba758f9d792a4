r"""Shears of the residuals whose strengths follow the latents: a covariance that depends on z.

.. math::

    H(z) = (I + V_2^⊤ D_2(z) U_2)(I + V_1^⊤ D_1(z) U_1), \qquad U_i V_i^⊤ = 0

The U_i ``(r, d)`` read one half of the features and the V_i ``(r, d)`` write to the other, so that
either factor has determinant one, is undone by −D_i, and has the transpose that swaps U_i and V_i.
The strengths, the diagonals of D_1(z) and D_2(z), are a network of z, zero at the start. Given z
it is the linear case of additive coupling layers.

References
----------
L. Dinh, D. Krueger and Y. Bengio (2015), "NICE: non-linear independent components estimation".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._products import affine, times
from .networks import MLP

_HIDDEN = (64,)


class Shear(NamedTuple):
    """I + Vᵀ diag(c) U for U and V ``(r, d)`` with UVᵀ = 0."""

    reads: Tensor
    writes: Tensor

    def __call__(self, w: Tensor, strengths: Tensor) -> Tensor:
        """``w (..., d)`` sheared by ``strengths (..., r)``."""
        return w + times(affine(w, self.reads) * strengths, self.writes)

    def vjp(
        self, w: Tensor, strengths: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """The same, and the way back: a gradient by it to those by ``w`` and ``strengths``."""
        read = affine(w, self.reads)

        def pull(gradient: Tensor) -> tuple[Tensor, Tensor]:
            written = affine(gradient, self.writes)
            return gradient + times(written * strengths, self.reads), read * written

        return w + times(read * strengths, self.writes), pull


Step = tuple[Shear, Tensor]
"""A shear and its strengths ``(..., r)``."""


def sheared(w: Tensor, steps: Sequence[Step]) -> Tensor:
    """``w (..., d)`` after every step in turn."""
    for shear, strengths in steps:
        w = shear(w, strengths)
    return w


def sheared_vjp(
    w: Tensor, steps: Sequence[Step]
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, list[Tensor]]]]:
    """:func:`sheared`, and the way back to gradients by ``w`` and by the strengths of each step."""
    pulls = []
    for shear, strengths in steps:
        w, pull = shear.vjp(w, strengths)
        pulls.append(pull)

    def pull_all(gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
        parts = []
        for pull in reversed(pulls):
            gradient, by_strengths = pull(gradient)
            parts.append(by_strengths)
        return gradient, parts[::-1]

    return w, pull_all


class Shears(nn.Module):
    """Two shears, from each half of the features to the other, and the network of their strengths.

    Parameters
    ----------
    n_features, n_components : int
        d of at least two, and k.
    rank : int
        r of each.
    generator : torch.Generator
    """

    def __init__(
        self, n_features: int, n_components: int, rank: int, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.rank = rank
        self.net = MLP([n_components], _HIDDEN, 2 * rank, generator=generator)
        half = n_features // 2

        def directions(n: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rank, n, generator=generator) / n**0.5)

        self.first, self.second = directions(half), directions(half)
        self.third, self.fourth = (directions(n_features - half) for _ in range(2))

    def pair(self) -> tuple[Shear, Shear]:
        """Both shears, in the order in which they are applied."""
        n_first, n_last = self.first.shape[1], self.third.shape[1]
        first, second = (nn.functional.pad(u, (0, n_last)) for u in (self.first, self.second))
        third, fourth = (nn.functional.pad(u, (n_first, 0)) for u in (self.third, self.fourth))
        return Shear(third, first), Shear(second, fourth)

    def vjp(self, z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Strengths ``(..., 2r)``, and the way back from a gradient by them to one by z."""
        strengths, pull = self.net.vjp(self.net.enter(z))
        return strengths, lambda gradient: self.net.leave(pull(gradient), 0)

    def forward(self, z: Tensor) -> Tensor:
        """The strengths of both at ``z (..., k)``, ``(..., 2r)``."""
        return self.net(z)
