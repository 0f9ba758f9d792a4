"""The residuals x − g(z) = A(s ∘ t(ε)) of the reference, at parameters that stay.

A = B⁻¹, and t is the map of :mod:`sklvebm.tails`. What follows from the parameters alone is worked
out once for all answers that are asked of the same ones.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from . import tails
from ._products import affine, times
from .tails import Tails


class Residuals:
    r"""A(s ∘ t(ε)) at parameters that stay: A, B = A⁻¹ and the tails, each worked out when needed.

    Parameters
    ----------
    log_tail, skew : Tensor of shape (d,)
    mixing : Tensor of shape (d, d) or None
        What lies below the diagonal is that of a unit lower triangular matrix, what lies above that
        of a unit upper one, and B is their product: \|det B\| = 1. None for the identity.
    """

    def __init__(self, log_tail: Tensor, skew: Tensor, mixing: Tensor | None) -> None:
        self.tails = Tails(log_tail, skew)
        self._mixing = mixing

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

    def unmix(self, residual: Tensor) -> Tensor:
        """B r for ``(..., d)``."""
        return residual if self.unmixing is None else affine(residual, self.unmixing)

    def mix(self, scaled: Tensor) -> Tensor:
        """A r for ``(..., d)``."""
        return scaled if self.mixing is None else affine(scaled, self.mixing)

    def mix_transposed(self, gradient: Tensor) -> Tensor:
        """Aᵀr: what a gradient by A r is by r."""
        return gradient if self.mixing is None else times(gradient, self.mixing)

    def energy(self, residual: Tensor, log_scale: Tensor) -> Tensor:
        """−log density of ``residual (..., d)``, up to (d/2) log 2π: shape ``(...)``."""
        of = self.tails
        return tails.energy(self.unmix(residual), log_scale, of.log_tail, of.skew)

    def energy_and_slopes(
        self, residual: Tensor, log_scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`energy`, and its gradients by ``residual`` and ``log_scale``, ``(..., d)``."""
        energy, slope, by_log_scale = self.tails.energy_and_slopes(self.unmix(residual), log_scale)
        by_residual = slope if self.unmixing is None else times(slope, self.unmixing)
        return energy, by_residual, by_log_scale
