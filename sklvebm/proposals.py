r"""Laws that draws of joint coordinates v are proposed from, whole and at once.

A tilted law N(v; 0, I) exp(ℓ(v)) is proposed from a mixture q of N(0, I) and of Gaussians fitted to
where the law should be: the data, or a pool. The log-weights log N(v; 0, I) + ℓ(v) − log q(v) serve
the Metropolis test of an independence sampler, and average to Z as exponentials.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ._products import affine
from ._threads import undivided
from .langevin import LogDensity, Noise, Preconditioner, regularised
from .state import Stateful

# Rows that a component with full covariance needs for each dimension, and the most components.
_ROWS_A_DIMENSION, _MAX_COMPONENTS = 10, 20
# Those that it must have for each dimension where it is to show how far its region reaches.
_FULL_ROWS_A_DIMENSION = 5
# Share of N(0, I), which bounds the weights wherever those of N(0, I) itself are bounded.
_DEFENSIVE = 0.5
_MAX_FITTED = 2048
# Of the covariance of a component added by hand: wider than what it covers, so weights are even.
_INFLATION = 1.5
_CHUNK = 4096


class _RoughMixture(GaussianMixture):
    """A mixture that says nothing of a fit cut short: it proposes as well.

    Its overlap with the target says how well. To silence the warning would take the filters of the
    whole process, which fits in other threads must not find changed.
    """

    @property
    def converged_(self) -> bool:
        return True

    @converged_.setter
    def converged_(self, value: bool) -> None:
        pass


class Proposal(Stateful):
    """q(v) = Σ_c w_c N(v; m_c, C_c).

    Parameters
    ----------
    weights : Tensor of shape (c,)
    means : Tensor of shape (c, m)
    covariances : Tensor of shape (c, m, m)
    """

    STATE = ("weights", "means", "shapes", "_offsets", "_shifts")

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.weights, self.means = weights, means
        self.shapes = Preconditioner.from_covariance(covariances)
        log_dets = torch.diagonal(self.shapes.factor, dim1=1, dim2=2).log().sum(-1)
        self._offsets = weights.log() - log_dets
        # Where the means come to lie as the components are made white.
        self._shifts = (self.shapes.inverse_factor @ means[..., None]).flatten()

    @classmethod
    def reference(cls, like: Tensor) -> Proposal:
        """N(0, I) in the dimension of ``like (..., m)``."""
        m = like.shape[-1]
        eye = torch.eye(m, dtype=like.dtype, device=like.device)
        return cls(like.new_ones(1), like.new_zeros(1, m), eye[None])

    @classmethod
    def fitted(cls, members: Tensor, noise: Noise, *, full: bool = False) -> Proposal:
        """N(0, I) and a Gaussian mixture fitted to ``members (n, m)``; N(0, I) if they are few.

        ``full`` leaves out components of too few members to show how far their region reaches: a
        spike about one member says that the draws find a region of which they find a point.
        """
        n, m = members.shape
        n_components = min(_MAX_COMPONENTS, n // (_ROWS_A_DIMENSION * m))
        reference = cls.reference(members)
        if n_components == 0:
            return reference
        generator = noise.generator
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        rows = members[:: -(-n // _MAX_FITTED)].double().cpu().numpy()
        fit = _RoughMixture(n_components, reg_covar=1e-3, max_iter=20, random_state=seed)
        with undivided():
            fit.fit(rows)
        kept = fit.weights_ * len(rows) >= (_FULL_ROWS_A_DIMENSION * m if full else 0)
        if not kept.any():
            return reference
        shares = fit.weights_[kept] / fit.weights_[kept].sum()

        def joined(of_fit: NDArray, of_reference: Tensor) -> Tensor:
            return torch.cat([torch.as_tensor(of_fit).to(of_reference), of_reference])

        return cls(
            joined((1 - _DEFENSIVE) * shares, _DEFENSIVE * reference.weights),
            joined(fit.means_[kept], reference.means),
            joined(fit.covariances_[kept], torch.eye(m).to(members)[None]),
        )

    def with_component(self, members: Tensor) -> Proposal:
        """The mixture of this one and, at a share of a tenth, a Gaussian fitted to ``members``."""
        covariance = torch.cov(members.T).reshape(members.shape[1], -1)
        covariances = self.shapes.factor @ self.shapes.factor.transpose(1, 2)
        return Proposal(
            torch.cat([0.9 * self.weights, self.weights.new_tensor([0.1])]),
            torch.cat([self.means, members.mean(0, keepdim=True)]),
            torch.cat([covariances, regularised(_INFLATION * covariance)[None]]),
        )

    def draw(self, n: int, noise: Noise) -> Tensor:
        """Independent draws ``(n, m)``."""
        white = noise.normal(self.means[:1].expand(n, -1))
        if len(self.weights) == 1:
            return white
        picks = torch.multinomial(self.weights, n, True, generator=noise.generator)
        # Every component moves every draw: few operations, and none of a size that is itself drawn.
        moved = [
            self._by_component(part, self.shapes.factor)[
                torch.arange(len(pick), device=pick.device), pick
            ]
            for part, pick in zip(white.split(_CHUNK), picks.split(_CHUNK), strict=True)
        ]
        return self.means[picks] + torch.cat(moved)

    @staticmethod
    def _by_component(v: Tensor, matrices: Tensor, shifts: Tensor | None = None) -> Tensor:
        """Each of ``matrices (c, m, m)`` times each of ``v (n, m)``, plus ``shifts (c m,)``.

        Shape ``(n, c, m)``: one product of all, not one for each component.
        """
        return affine(v, matrices.flatten(0, 1), shifts).unflatten(1, matrices.shape[:2])

    def log_prob(self, v: Tensor) -> Tensor:
        """log q of ``v (n, m)``."""
        white = self._by_component(v, self.shapes.inverse_factor, -self._shifts)
        terms = self._offsets - 0.5 * white.square().sum(-1)
        return torch.logsumexp(terms, 1) - 0.5 * v.shape[1] * math.log(2 * math.pi)

    @torch.no_grad()
    def log_weight(self, v: Tensor, log_tilt: LogDensity) -> Tensor:
        """log N(v; 0, I) + ℓ(v) − log q(v) of ``v (n, m)``."""
        return log_tilt(v) + self.log_excess(v)

    @torch.no_grad()
    def log_excess(self, v: Tensor) -> Tensor:
        """log N(v; 0, I) − log q(v) of ``v (n, m)``."""
        if len(self.weights) == 1:
            # N(0, I) itself: the two cancel.
            return v.new_zeros(len(v))
        constant = 0.5 * v.shape[1] * math.log(2 * math.pi)
        return -0.5 * v.square().sum(-1) - constant - self.log_prob(v)

    def log_weights(self, v: Tensor, log_tilt: LogDensity) -> NDArray:
        """:meth:`log_weight` as an array, a few rows at a time; −∞ where it is undefined."""
        parts = [self.log_weight(part, log_tilt) for part in v.split(_CHUNK)]
        values = torch.cat(parts).double().cpu().numpy()
        return np.nan_to_num(values, nan=-math.inf, neginf=-math.inf, posinf=math.inf)
