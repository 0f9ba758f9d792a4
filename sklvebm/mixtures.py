r"""Mixtures of Student-t laws that propose each row's latents, and how draws improve them.

References
----------
O. Cappé, R. Douc, A. Guillin, J.-M. Marin and C. P. Robert (2008), "Adaptive importance sampling in
general mixture classes", Statistics and Computing 18.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .langevin import Noise, Preconditioner, regularised

# Degrees of freedom: heavy enough tails for a posterior twice as wide.
_DOF = 8.0
_INFLATION = 1.2
# Keeps uniforms off 0 and 1 in single precision.
_TINY = 1e-7
# Effective draws that moments need for each dimension before they count as much as the guess.
_DRAWS_A_DIMENSION = 10
# Share of the draws that goes to the components by their old weights: none dies by one bad round.
_KEPT = 0.1


class Guess(NamedTuple):
    """Components of each row's posterior: ``weights (n, c)``, ``mean (n, c, m)``, ``covariance``.

    The weights of a row sum to one; the covariances are ``(n, c, m, m)``.
    """

    weights: Tensor
    mean: Tensor
    covariance: Tensor

    @classmethod
    def single(cls, mean: Tensor, covariance: Tensor) -> Guess:
        """One component of ``mean (n, m)`` and ``covariance (n, m, m)`` a row."""
        return cls(mean.new_ones(len(mean), 1), mean[:, None], covariance[:, None])

    def at(self, rows: Tensor | slice) -> Guess:
        """Those of ``rows``."""
        return Guess(*(part[rows] for part in self))

    def updated(self, rows: Tensor | slice, other: Guess) -> Guess:
        """With the components of ``other`` for ``rows``."""
        parts = [mine.clone() for mine in self]
        for part, new in zip(parts, other, strict=True):
            part[rows] = new
        return Guess(*parts)


def moments(draws: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(Weighted) mean ``(..., k)`` and covariance ``(..., k, k)`` of ``draws (..., s, k)``."""
    if weights is None:
        weights = draws.new_full(draws.shape[:-1], 1 / draws.shape[-2])
    mean = (weights[..., None] * draws).sum(-2)
    centred = draws - mean[..., None, :]
    return mean, (weights[..., None] * centred).transpose(-1, -2) @ centred


class StudentMixture:
    """What a guess proposes: its components as Student-t laws, a little wider.

    Parameters
    ----------
    guess : Guess
    spread : Tensor of shape (k, k) or (n, k, k)
        A typical posterior covariance, a little of which keeps a row with few draws regular.
    n_heavy : int or None
        The leading coordinates that are Student-t; the others are Gaussian given these. A tail in
        every one of many coordinates would cost most of the effective draws.
    """

    def __init__(self, guess: Guess, spread: Tensor, n_heavy: int | None = None) -> None:
        self.guess, n = guess, len(guess.mean)
        self.n_heavy = guess.mean.shape[-1] if n_heavy is None else n_heavy
        self.spread = spread.expand(n, *spread.shape[-2:])
        scale = _INFLATION * guess.covariance + 0.05 * self.spread[:, None]
        self.shapes = Preconditioner.from_covariance(regularised(scale))
        log_det = torch.diagonal(self.shapes.factor, dim1=-2, dim2=-1).log().sum(-1)
        self._offsets = guess.weights.log() - log_det

    @property
    def preconditioner(self) -> Preconditioner:
        """The covariance of each row's mixture as a whole, ``(n, k, k)``."""
        _, between = moments(self.guess.mean, self.guess.weights)
        within = (self.guess.weights[..., None, None] * self.guess.covariance).sum(1)
        whole = _INFLATION * (within + between) + 0.05 * self.spread
        return Preconditioner.from_covariance(regularised(whole))

    def _unit_log_prob(self, t: Tensor) -> Tensor:
        k, dof = self.n_heavy, _DOF
        constant = math.lgamma((dof + k) / 2) - math.lgamma(dof / 2)
        constant -= 0.5 * k * math.log(dof * math.pi)
        square = t.square()
        heavy = 0.5 * (dof + k) * torch.log1p(square[..., :k].sum(-1) / dof)
        if k < t.shape[-1]:
            heavy = heavy + 0.5 * (square[..., k:] + math.log(2 * math.pi)).sum(-1)
        return constant - heavy

    def sample(self, size: int, noise: Noise) -> Tensor:
        """Draws ``(n, size, k)``."""
        n, _, m = self.guess.mean.shape
        half = int(_DOF) // 2
        like = self.guess.mean.new_empty(1, 1, 1).expand(n, size, m + half + 1)
        uniforms = noise.points(like).clamp(_TINY, 1 - _TINY)
        normal = torch.special.ndtri(uniforms[..., :m])
        # χ²_ν for even ν is twice a sum of ν/2 unit exponentials.
        chi2 = -2 * uniforms[..., m:-1].log().sum(-1, keepdim=True)
        heavy = normal[..., : self.n_heavy] * torch.rsqrt(chi2 / _DOF)
        t = torch.cat([heavy, normal[..., self.n_heavy :]], -1)
        # The first component whose cumulative weight exceeds the last uniform.
        ends = self.guess.weights.cumsum(1)[:, :-1]
        picks = (uniforms[..., -1:] >= ends[:, None]).sum(-1)
        draws = self._placed(t, 0)
        for c in range(1, self.guess.weights.shape[1]):
            draws = torch.where((picks == c)[..., None], self._placed(t, c), draws)
        return draws

    def _placed(self, t: Tensor, c: int) -> Tensor:
        return self.guess.mean[:, c, None] + t @ self.shapes.factor[:, c].transpose(1, 2)

    def _log_probs(self, z: Tensor) -> Tensor:
        """Of each component, with its weight: ``(n, c, s)``."""
        centred = z[:, None] - self.guess.mean[:, :, None]
        t = centred @ self.shapes.inverse_factor.transpose(-1, -2)
        return self._unit_log_prob(t) + self._offsets[..., None]

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-densities ``(n, s)`` of ``z (n, s, k)``."""
        parts = self._log_probs(z)
        return parts[:, 0] if parts.shape[1] == 1 else torch.logsumexp(parts, 1)

    def refitted(self, draws: Tensor, weights: Tensor) -> Guess:
        """Components from weighted draws, shrunk to those that the draws came from.

        An update of Cappé et al. (2008): each draw counts for a component by its share of the
        mixture's density there. The fewer draws carry the weight, the less their moments say: modes
        that the guess covers must not be dropped because no draw happened to fall on them.
        """
        shares = torch.softmax(self._log_probs(draws), 1) * weights[:, None]
        mass = shares.sum(-1)
        shares = shares / mass.clamp(min=1e-30)[..., None]
        found, within = moments(draws[:, None], shares)
        effective = mass.sign() / shares.square().sum(-1).clamp(min=1e-30)
        m = draws.shape[-1]
        trust = (effective / (effective + _DRAWS_A_DIMENSION * m)).clamp(0.0, 1.0)[..., None]
        mean, covariance = self.guess.mean, self.guess.covariance
        centre = trust * found + (1 - trust) * mean
        spread = [
            part + (apart[..., :, None] * apart[..., None, :])
            for part, apart in ((within, found - centre), (covariance, mean - centre))
        ]
        trust = trust[..., None]
        kept = torch.lerp(mass, self.guess.weights, _KEPT)
        return Guess(
            kept / kept.sum(1, keepdim=True),
            centre,
            trust * spread[0] + (1 - trust) * spread[1],
        )
