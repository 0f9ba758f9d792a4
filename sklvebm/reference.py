r"""The normalised reference p_0(x, z), and its closed-form start, probabilistic PCA.

.. math::

    z = a, \qquad x = g(z) + A\,(s(z) ∘ t(ε)), \qquad (a, ε) ∼ N(0, I)

with g(z) = Wz + μ + net(z), bounded log s(z), A = B⁻¹ for a B of determinant one, and t a
monotone, increasing map of each coordinate that sets the tails. The map v = (a, ε) ↔ (x, z) is a
bijection with a known Jacobian, so p_0 is normalised, sampled exactly, and read either way.

References
----------
M. E. Tipping and C. M. Bishop (1999), "Probabilistic principal component analysis", JRSS B 61(3).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import tails
from .networks import MLP

_LOG_2PI = math.log(2 * math.pi)
# Largest change of log s(z) about its mean: a factor e³ = 20 either way.
_LOG_SCALE_RANGE = 3.0


class PPCA(NamedTuple):
    """Maximum-likelihood probabilistic PCA: ``weight (d, k)``, ``loc (d,)``, noise sd ``scale``."""

    weight: NDArray[np.float64]
    loc: NDArray[np.float64]
    scale: float


def fit_ppca(
    X: NDArray[np.floating], n_components: int, *, sample_weight=None, min_scale: float = 0.0
) -> PPCA:
    r"""Closed-form maximum likelihood of x = Wz + μ + σe (Tipping & Bishop 1999, eq. 7–8).

    σ² is the mean discarded eigenvalue of the covariance (divided by n) and W the leading
    eigenvectors times √(λ − σ²). At most d − 1 directions carry signal, so that σ is defined;
    surplus components get a zero column.
    """
    X = np.asarray(X, dtype=np.float64)
    loc = np.average(X, axis=0, weights=sample_weight)
    d = X.shape[1]
    covariance = np.atleast_2d(np.cov(X, rowvar=False, bias=True, aweights=sample_weight))
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1].clip(min=0.0), vectors[:, ::-1]
    # Deterministic signs: the largest entry of each direction is positive.
    pivots = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[pivots, np.arange(d)])
    q = min(n_components, d - 1)
    variance = max(float(values[q:].mean()), min_scale**2)
    weight = np.zeros((d, n_components))
    weight[:, :q] = vectors[:, :q] * np.sqrt((values[:q] - variance).clip(min=0.0))
    return PPCA(weight, loc, math.sqrt(variance))


class Reference(nn.Module):
    r"""The reference density p_0(x, z).

    Parameters
    ----------
    n_features, n_components : int
        d and k.
    min_scale : float
        Lower bound of every s, in standardised units. It bounds the density, whose likelihood
        would otherwise be infinite on duplicated or constant columns.
    generator : torch.Generator
    hidden_layer_sizes : tuple of int or None
        Hidden layers of the network behind g and log s; None for the linear-Gaussian reference
        with one noise scale, x = Wz + μ + σε.
    mixing : bool
        Whether A is learned; otherwise it stays the identity.
    """

    def __init__(
        self,
        n_features: int,
        n_components: int,
        *,
        min_scale: float,
        generator: torch.Generator,
        hidden_layer_sizes: tuple[int, ...] | None = None,
        mixing: bool = False,
    ) -> None:
        super().__init__()
        d, k = n_features, n_components
        self.n_features, self.n_components = d, k
        self.min_log_scale = math.log(min_scale)
        self.weight = nn.Parameter(torch.zeros(d, k))
        self.loc = nn.Parameter(torch.zeros(d))
        self.is_linear = hidden_layer_sizes is None
        self.log_scale = nn.Parameter(torch.zeros(1 if self.is_linear else d))
        if hidden_layer_sizes is not None:
            self.net = MLP([k], hidden_layer_sizes, 2 * d, generator=generator)
            self.mixing = nn.Parameter(torch.zeros(d, d)) if mixing else None
            self.log_tail = nn.Parameter(torch.full((d,), -2.0))
            self.skew = nn.Parameter(torch.zeros(d))

    @torch.no_grad()
    def set_ppca_(self, ppca: PPCA) -> None:
        """Start at ``ppca``: the density is then PPCA's (tails and mixing at the identity)."""
        self.weight.copy_(torch.as_tensor(ppca.weight))
        self.loc.copy_(torch.as_tensor(ppca.loc))
        self.log_scale.fill_(max(math.log(max(ppca.scale, 1e-300)), self.min_log_scale))

    def conditional(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Location g(z) and log s(z), each broadcastable to ``(..., d)``."""
        loc = z @ self.weight.T + self.loc
        if self.is_linear:
            return loc, self.log_scale.clamp(min=self.min_log_scale)
        shift, change = self.net(z).split(self.n_features, dim=-1)
        log_scale = self.log_scale + _LOG_SCALE_RANGE * torch.tanh(change / _LOG_SCALE_RANGE)
        return loc + shift, log_scale.clamp(min=self.min_log_scale)

    def _unmix(self, residual: Tensor) -> Tensor:
        """B r with B = A⁻¹ unit lower times unit upper triangular: |det B| = 1, I at the start."""
        if self.mixing is None:
            return residual
        eye = torch.eye(self.n_features, dtype=residual.dtype, device=residual.device)
        return residual @ ((eye + self.mixing.tril(-1)) @ (eye + self.mixing.triu(1))).T

    def to_noise(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""ε of (x, z) and log\|∂ε/∂x\|: shapes ``(..., d)`` and ``(...)``."""
        loc, log_scale = self.conditional(z)
        residual = x - loc
        if self.is_linear:
            log_det = (-self.n_features * log_scale[0]).expand(residual.shape[:-1])
            return residual * torch.exp(-log_scale), log_det
        e = self._unmix(residual) * torch.exp(-log_scale)
        noise, log_slope = tails.to_normal(e, self.log_tail, self.skew)
        return noise, (log_slope - log_scale).sum(-1)

    def from_noise(self, noise: Tensor, z: Tensor) -> Tensor:
        """x of (ε, z): shapes ``(..., d)`` and ``(..., k)`` to ``(..., d)``."""
        loc, log_scale = self.conditional(z)
        if self.is_linear:
            return loc + noise * log_scale.exp()
        e = tails.from_normal(noise, self.log_tail, self.skew)
        return loc + self._mix(e * log_scale.exp())

    def _mix(self, scaled: Tensor) -> Tensor:
        """A r = B⁻¹ r for ``(..., d)``."""
        if self.mixing is None:
            return scaled
        rows = scaled.reshape(-1, self.n_features)
        for triangle, upper in ((self.mixing.tril(-1), False), (self.mixing.triu(1), True)):
            rows = torch.linalg.solve_triangular(
                triangle.T, rows, upper=not upper, left=False, unitriangular=True
            )
        return rows.reshape(scaled.shape)

    def mean(self, z: Tensor) -> Tensor:
        """E_0[x | z], ``(..., d)``."""
        loc, log_scale = self.conditional(z)
        if self.is_linear:
            return loc
        e = tails.mean(self.log_tail, self.skew)
        return loc + self._mix(e * log_scale.exp())

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p_0(x, z) in nats, ``(...)``; ``x (..., d)`` and ``z (..., k)`` broadcast."""
        constant = 0.5 * (self.n_features + self.n_components) * _LOG_2PI
        prior = 0.5 * z.square().sum(-1) + constant
        if self.is_linear:
            noise, log_det = self.to_noise(x, z)
            return log_det - 0.5 * noise.square().sum(-1) - prior
        loc, log_scale = self.conditional(z)
        residual = self._unmix(x - loc)
        return -prior - tails.energy(residual, log_scale, self.log_tail, self.skew)

    def linear_posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(n, k)`` and covariance ``(k, k)`` of z given x, for x = Wz + μ + σε.

        M⁻¹Wᵀ(x − μ)/σ² and M⁻¹, with M = I + WᵀW/σ² (Tipping & Bishop 1999, eq. 6). Exact where
        the reference is linear; elsewhere the networks are left out, and it is a first guess.
        """
        variance = torch.exp(2 * self.log_scale.clamp(min=self.min_log_scale).mean())
        eye = torch.eye(self.n_components, dtype=x.dtype, device=x.device)
        covariance = torch.linalg.inv(eye + self.weight.T @ self.weight / variance)
        return (x - self.loc) @ self.weight @ covariance / variance, covariance

    def linear_log_prob(self, x: Tensor) -> Tensor:
        """log N(x; μ, WWᵀ + σ²I) ``(n,)``, by way of M: no d × d matrix is inverted."""
        mean, covariance = self.linear_posterior(x)
        variance = torch.exp(2 * self.log_scale.clamp(min=self.min_log_scale).mean())
        residual = x - self.loc
        # xᵀΣ⁻¹x = xᵀ(x − W E[z|x])/σ² and log|Σ| = d log σ² + log|M|.
        square = (residual * (residual - mean @ self.weight.T)).sum(-1) / variance
        log_det = self.n_features * variance.log() - torch.linalg.slogdet(covariance)[1]
        return -0.5 * (square + log_det + self.n_features * _LOG_2PI)

    def split(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Joint coordinates v = (a, ε) to (x, z)."""
        z, noise = v.split([self.n_components, self.n_features], dim=-1)
        return self.from_noise(noise, z), z
