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
from .shears import Shear, Step, sheared, sheared_vjp
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

    def _steps(self, strengths: Tensor | None, *, back: bool = False) -> list[Step]:
        """The shears of H in order, each with its strengths; of H⁻¹, where they go ``back``."""
        if self._shears is None or strengths is None:
            return []
        steps = list(zip(self._shears, strengths.chunk(2, dim=-1), strict=True))
        return [(shear, -strength) for shear, strength in reversed(steps)] if back else steps

    def unmix(self, residual: Tensor, strengths: Tensor | None) -> Tensor:
        """H⁻¹B r for ``(..., d)``."""
        unmixed = residual if self.unmixing is None else affine(residual, self.unmixing)
        return sheared(unmixed, self._steps(strengths, back=True))

    def mix(self, scaled: Tensor, strengths: Tensor | None) -> Tensor:
        """A H r for ``(..., d)``."""
        mixed = sheared(scaled, self._steps(strengths))
        return mixed if self.mixing is None else affine(mixed, self.mixing)

    def mix_vjp(self, scaled: Tensor, strengths: Tensor | None) -> tuple[Tensor, Pull]:
        """:meth:`mix`, and the way back to gradients by ``scaled`` and ``strengths``."""
        mixed, pull_shears = sheared_vjp(scaled, self._steps(strengths))

        def pull(gradient: Tensor) -> tuple[Tensor, Tensor | None]:
            by_mixed = gradient if self.mixing is None else times(gradient, self.mixing)
            by_scaled, parts = pull_shears(by_mixed)
            return by_scaled, torch.cat(parts, -1) if parts else None

        return mixed if self.mixing is None else affine(mixed, self.mixing), pull

    def _unmix_vjp(self, residual: Tensor, strengths: Tensor | None) -> tuple[Tensor, Pull]:
        """:meth:`unmix`, and the way back to gradients by ``residual`` and ``strengths``."""
        unmixed = residual if self.unmixing is None else affine(residual, self.unmixing)
        unmixed, pull_shears = sheared_vjp(unmixed, self._steps(strengths, back=True))

        def pull(gradient: Tensor) -> tuple[Tensor, Tensor | None]:
            by_unmixed, parts = pull_shears(gradient)
            by_strengths = torch.cat(parts[::-1], -1).neg_() if parts else None
            if self.unmixing is None:
                return by_unmixed, by_strengths
            return times(by_unmixed, self.unmixing), by_strengths

        return unmixed, pull

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
