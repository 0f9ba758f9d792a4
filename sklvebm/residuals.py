"""The residuals x − g(z) = A H(z) (s ∘ t(ε)) of the reference, at parameters that stay.

A = B⁻¹, H(z) are the shears of :mod:`sklvebm.shears`, and t is the map of :mod:`sklvebm.tails`.
What follows from the parameters alone is worked out once for all answers that are asked of the same
ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from . import tails
from ._products import affine, times
from .shears import Shear
from .tails import Tails

Pull = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""The way back from a gradient by what came out to those by what was mixed and by the strengths."""


class Residuals:
    r"""A H(s ∘ t(ε)) at parameters that stay: A, B = A⁻¹ and the tails, each when needed.

    Parameters
    ----------
    log_tail, skew : Tensor of shape (d,)
    mixing : Tensor of shape (d, d) or None
        What lies below the diagonal is that of a unit lower triangular matrix, what lies above that
        of a unit upper one, and B is their product: \|det B\| = 1. None for the identity.
    shears : pair of Shear or None
        Of H, in the order in which they are applied; each has half of the strengths ``(..., 2r)``
        that a method is given. None for the identity; the strengths are None then.
    """

    def __init__(
        self,
        log_tail: Tensor,
        skew: Tensor,
        mixing: Tensor | None,
        shears: tuple[Shear, Shear] | None = None,
    ) -> None:
        self.tails = Tails(log_tail, skew)
        self._mixing, self._shears = mixing, shears

    @cached_property
    def _triangles(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """The factors of B, and the identity."""
        if self._mixing is None:
            return None
        eye = torch.eye(len(self._mixing), dtype=self._mixing.dtype, device=self._mixing.device)
        return eye + self._mixing.tril(-1), eye + self._mixing.triu(1), eye

    @cached_property
    def unmixing(self) -> Tensor | None:
        """B, ``(d, d)``."""
        if self._triangles is None:
            return None
        lower, upper, _ = self._triangles
        return lower @ upper

    @cached_property
    def mixing(self) -> Tensor | None:
        """A, ``(d, d)``."""
        if self._triangles is None:
            return None
        lower, upper, eye = self._triangles
        solve = torch.linalg.solve_triangular
        half = solve(lower, eye, upper=False, unitriangular=True)
        return solve(upper, half, upper=True, unitriangular=True)

    def unmix(self, residual: Tensor, strengths: Tensor | None) -> Tensor:
        """H⁻¹B r for ``(..., d)``."""
        unmixed = residual if self.unmixing is None else affine(residual, self.unmixing)
        if self._shears is None or strengths is None:
            return unmixed
        (first, second), (c, after) = self._shears, strengths.neg().chunk(2, dim=-1)
        return first(second(unmixed, after), c)

    def mix(self, scaled: Tensor, strengths: Tensor | None) -> Tensor:
        """A H r for ``(..., d)``."""
        if self._shears is not None and strengths is not None:
            (first, second), (c, after) = self._shears, strengths.chunk(2, dim=-1)
            scaled = second(first(scaled, c), after)
        return scaled if self.mixing is None else affine(scaled, self.mixing)

    def mix_vjp(self, scaled: Tensor, strengths: Tensor | None) -> tuple[Tensor, Pull]:
        """:meth:`mix`, and the way back to gradients by ``scaled`` and ``strengths``."""
        mixing = self.mixing

        def pull(gradient: Tensor) -> Tensor:
            return gradient if mixing is None else times(gradient, mixing)

        if self._shears is None or strengths is None:
            return self.mix(scaled, None), lambda gradient: (pull(gradient), None)
        (first, second), (c, after) = self._shears, strengths.chunk(2, dim=-1)
        half, pull_first = first.vjp(scaled, c)
        whole, pull_second = second.vjp(half, after)

        def pull_all(gradient: Tensor) -> tuple[Tensor, Tensor]:
            by_half, by_after = pull_second(pull(gradient))
            by_scaled, by_c = pull_first(by_half)
            return by_scaled, torch.cat([by_c, by_after], -1)

        return whole if mixing is None else affine(whole, mixing), pull_all

    def _unmix_vjp(self, residual: Tensor, strengths: Tensor | None) -> tuple[Tensor, Pull]:
        """:meth:`unmix`, and the way back to gradients by ``residual`` and ``strengths``."""
        unmixing = self.unmixing

        def pull(gradient: Tensor) -> Tensor:
            return gradient if unmixing is None else times(gradient, unmixing)

        if self._shears is None or strengths is None:
            return self.unmix(residual, None), lambda gradient: (pull(gradient), None)
        (first, second), (c, after) = self._shears, strengths.neg().chunk(2, dim=-1)
        whole = residual if unmixing is None else affine(residual, unmixing)
        half, pull_second = second.vjp(whole, after)
        unmixed, pull_first = first.vjp(half, c)

        def pull_all(gradient: Tensor) -> tuple[Tensor, Tensor]:
            by_half, by_c = pull_first(gradient)
            by_whole, by_after = pull_second(by_half)
            return pull(by_whole), torch.cat([by_c, by_after], -1).neg_()

        return unmixed, pull_all

    def energy(self, residual: Tensor, log_scale: Tensor, strengths: Tensor | None) -> Tensor:
        """−log density of ``residual (..., d)``, up to (d/2) log 2π: shape ``(...)``."""
        of = self.tails
        return tails.energy(self.unmix(residual, strengths), log_scale, of.log_tail, of.skew)

    def energy_and_slopes(
        self, residual: Tensor, log_scale: Tensor, strengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """:meth:`energy`, and its gradients by ``residual``, ``log_scale`` and ``strengths``."""
        unmixed, pull = self._unmix_vjp(residual, strengths)
        energy, slope, by_log_scale = self.tails.energy_and_slopes(unmixed, log_scale)
        by_residual, by_strengths = pull(slope)
        return energy, by_residual, by_log_scale, by_strengths
