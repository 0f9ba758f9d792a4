r"""The normalised reference p_0(x, z), which starts as probabilistic PCA.

.. math::

    z = a, \qquad x = g(z) + A\,(s(z) ∘ t(ε)), \qquad (a, ε) ∼ N(0, I)

with g(z) = Wz + μ + net(z), bounded log s(z), A = B⁻¹ for a B of determinant one, and t a
monotone, increasing map of each coordinate that sets the tails; or, with isotropic noise,
x = g(z) + σε. The map v = (a, ε) ↔ (x, z) is a bijection with a known Jacobian, so p_0 is
normalised, sampled exactly, and read either way.

References
----------
M. E. Tipping and C. M. Bishop (1999), "Probabilistic principal component analysis", JRSS B 61(3).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import tails
from .networks import MLP
from .ppca import PPCA

_LOG_2PI = math.log(2 * math.pi)
# Largest κ of the residuals (sklvebm.tails). Columns that hold one value for most rows ask for ever
# heavier tails, whose draws and means soon lie far beyond all data: the standard deviation of a
# residual is √((e^{2κ²} − 1)/2)/κ scales, 4.4 here and 1,900 at κ = 3. A lognormal feature with a
# standard deviation of 1.5 about its log still fits in.
MAX_TAIL = 1.5
# Largest change of log s(z) about its mean: a factor e³ = 20 either way.
_LOG_SCALE_RANGE = 3.0

Pull = Callable[[Tensor, Tensor], Tensor]
"""The way back from gradients by two results to one by what they came from."""


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
        Hidden layers of the network behind g and log s; None for none, where g is linear.
    isotropic : bool
        Whether the noise is σε, with one σ for all features and rows; it is without a network.
    mixing : bool
        Whether A is learned; otherwise it stays the identity, as it does for isotropic noise.
    """

    def __init__(
        self,
        n_features: int,
        n_components: int,
        *,
        min_scale: float,
        generator: torch.Generator,
        hidden_layer_sizes: tuple[int, ...] | None = None,
        isotropic: bool = False,
        mixing: bool = False,
    ) -> None:
        super().__init__()
        d, k = n_features, n_components
        self.n_features, self.n_components = d, k
        self.min_log_scale = math.log(min_scale)
        self.weight = nn.Parameter(torch.zeros(d, k))
        self.loc = nn.Parameter(torch.zeros(d))
        self.is_linear = hidden_layer_sizes is None
        self.is_isotropic = isotropic or self.is_linear
        self.log_scale = nn.Parameter(torch.zeros(1 if self.is_isotropic else d))
        self.mixing: nn.Parameter | None = None
        if hidden_layer_sizes is not None:
            n_output = d if isotropic else 2 * d
            self.net = MLP([k], hidden_layer_sizes, n_output, generator=generator)
        if not self.is_isotropic:
            if mixing:
                self.mixing = nn.Parameter(torch.zeros(d, d))
            self.log_tail = nn.Parameter(torch.full((d,), -2.0))
            self.skew = nn.Parameter(torch.zeros(d))

    @torch.no_grad()
    def set_ppca_(self, ppca: PPCA) -> None:
        """Start at ``ppca``: the density is then PPCA's (tails and mixing at the identity)."""
        self.weight.copy_(torch.as_tensor(ppca.weight))
        self.loc.copy_(torch.as_tensor(ppca.loc))
        self.log_scale.fill_(max(math.log(max(ppca.scale, 1e-300)), self.min_log_scale))

    @torch.no_grad()
    def project_(self) -> None:
        """Go back to the nearest parameters that are allowed: every κ within ``MAX_TAIL``."""
        if not self.is_isotropic:
            self.log_tail.clamp_(max=math.log(MAX_TAIL))

    def conditional(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Location g(z) and log s(z), each broadcastable to ``(..., d)``."""
        return self._conditional_vjp(z)[:2]

    def _conditional_vjp(self, z: Tensor) -> tuple[Tensor, Tensor, Pull]:
        """:meth:`conditional`, and the way back from gradients by both to one by z."""
        loc = z @ self.weight.T + self.loc
        if self.is_linear:
            log_scale = self.log_scale.clamp(min=self.min_log_scale)
            return loc, log_scale, lambda by_loc, by_log_scale: by_loc @ self.weight
        output, pull_net = self.net.vjp(self.net.enter(z))
        if self.is_isotropic:

            def pull_mean(by_loc: Tensor, by_log_scale: Tensor) -> Tensor:
                return by_loc @ self.weight + self.net.leave(pull_net(by_loc), 0)

            return loc + output, self.log_scale.clamp(min=self.min_log_scale), pull_mean
        shift, change = output.split(self.n_features, dim=-1)
        bend = torch.tanh(change / _LOG_SCALE_RANGE)
        log_scale = self.log_scale + _LOG_SCALE_RANGE * bend

        def pull(by_loc: Tensor, by_log_scale: Tensor) -> Tensor:
            free = torch.where(log_scale > self.min_log_scale, by_log_scale, 0.0)
            by_change = torch.ops.aten.tanh_backward(free, bend)
            by_received = pull_net(torch.cat([by_loc, by_change], -1))
            return by_loc @ self.weight + self.net.leave(by_received, 0)

        return loc + shift, log_scale.clamp(min=self.min_log_scale), pull

    def _unmixing(self) -> Tensor | None:
        r"""B = A⁻¹, unit lower times unit upper triangular: \|det B\| = 1, I at the start."""
        if self.mixing is None:
            return None
        eye = torch.eye(self.n_features, dtype=self.mixing.dtype, device=self.mixing.device)
        return (eye + self.mixing.tril(-1)) @ (eye + self.mixing.triu(1))

    def _unmix(self, residual: Tensor) -> Tensor:
        """B r for ``(..., d)``."""
        unmixing = self._unmixing()
        return residual if unmixing is None else residual @ unmixing.T

    def to_noise(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""ε of (x, z) and log\|∂ε/∂x\|: shapes ``(..., d)`` and ``(...)``."""
        loc, log_scale = self.conditional(z)
        residual = x - loc
        if self.is_isotropic:
            log_det = (-self.n_features * log_scale[0]).expand(residual.shape[:-1])
            return residual * torch.exp(-log_scale), log_det
        e = self._unmix(residual) * torch.exp(-log_scale)
        noise, log_slope = tails.to_normal(e, self.log_tail, self.skew)
        return noise, (log_slope - log_scale).sum(-1)

    def from_noise(self, noise: Tensor, z: Tensor) -> Tensor:
        """x of (ε, z): shapes ``(..., d)`` and ``(..., k)`` to ``(..., d)``."""
        loc, log_scale = self.conditional(z)
        if self.is_isotropic:
            return loc + noise * log_scale.exp()
        e = tails.from_normal(noise, self.log_tail, self.skew)
        return loc + self._mix(e * log_scale.exp())

    def fill(self, x: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""``x (..., d)`` with its missing entries (NaN) put at noise coordinates ``y (..., d)``.

        A missing feature is g(z) + s(z) t(y), which makes y ∼ N(0, 1) under p_0 where A = I,
        whatever is observed. Returns the completed rows and Σ log \|∂x/∂y\| over what was missing.
        """
        missing = torch.isnan(x)
        loc, log_scale = self.conditional(z)
        e, log_slope = y, log_scale
        if not self.is_isotropic:
            e = tails.from_normal(y, self.log_tail, self.skew)
            log_slope = log_scale + tails.log_slope(y, self.log_tail, self.skew)
        completed = torch.where(missing, loc + e * log_scale.exp(), x)
        return completed, torch.where(missing, log_slope, 0.0).sum(-1)

    def _mix(self, scaled: Tensor, *, transposed: bool = False) -> Tensor:
        """A r = B⁻¹ r for ``(..., d)``; or Aᵀr, what a gradient by A r is by r."""
        if self.mixing is None:
            return scaled
        rows = scaled.reshape(-1, self.n_features)
        triangles = [(self.mixing.tril(-1), False), (self.mixing.triu(1), True)]
        for triangle, upper in reversed(triangles) if transposed else triangles:
            rows = torch.linalg.solve_triangular(
                triangle if transposed else triangle.T,
                rows,
                upper=upper == transposed,
                left=False,
                unitriangular=True,
            )
        return rows.reshape(scaled.shape)

    def mean(self, z: Tensor) -> Tensor:
        """E_0[x | z], ``(..., d)``."""
        loc, log_scale = self.conditional(z)
        if self.is_isotropic:
            return loc
        e = tails.mean(self.log_tail, self.skew)
        return loc + self._mix(e * log_scale.exp())

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p_0(x, z) in nats, ``(...)``; ``x (..., d)`` and ``z (..., k)`` broadcast."""
        constant = 0.5 * (self.n_features + self.n_components) * _LOG_2PI
        prior = 0.5 * z.square().sum(-1) + constant
        if self.is_isotropic:
            noise, log_det = self.to_noise(x, z)
            return log_det - 0.5 * noise.square().sum(-1) - prior
        loc, log_scale = self.conditional(z)
        residual = self._unmix(x - loc)
        return -prior - tails.energy(residual, log_scale, self.log_tail, self.skew)

    def energy_by_latent(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """−log p_0(x, z) ``(...)`` and its gradient by z ``(..., k)``."""
        loc, log_scale, pull = self._conditional_vjp(z)
        constant = 0.5 * (self.n_features + self.n_components) * _LOG_2PI
        prior = 0.5 * z.square().sum(-1) + constant
        if self.is_isotropic:
            noise = (x - loc) * torch.exp(-log_scale)
            energy = 0.5 * noise.square().sum(-1) + self.n_features * log_scale
            return energy + prior, z - pull(noise * torch.exp(-log_scale), log_scale)
        residual, unmixing = x - loc, self._unmixing()
        if unmixing is not None:
            residual = residual @ unmixing.T
        energy, by_residual, by_log_scale = tails.energy_and_slopes(
            residual, log_scale, self.log_tail, self.skew
        )
        by_loc = -by_residual if unmixing is None else -by_residual @ unmixing
        return energy + prior, z + pull(by_loc, by_log_scale)

    def linear_posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(n, k)`` and covariance of z given x, for x = Wz + μ + σε.

        M⁻¹Wᵀ(x − μ)/σ² and M⁻¹, with M = I + WᵀW/σ² (Tipping & Bishop 1999, eq. 6), over the
        features that are not missing (NaN). The covariance is ``(k, k)``, the same for all rows
        where nothing is missing, else ``(n, k, k)``. Exact where the reference is linear;
        elsewhere the networks are left out, and it is a first guess.
        """
        variance, residual, seen = self._linear_parts(x)
        eye = torch.eye(self.n_components, dtype=x.dtype, device=x.device)
        if seen is None:
            gram = self.weight.T @ self.weight
        else:
            outer = (self.weight[:, :, None] * self.weight[:, None]).flatten(1)
            gram = (seen @ outer).unflatten(1, eye.shape)
        covariance = torch.linalg.inv(eye + gram / variance)
        return (residual @ self.weight / variance)[:, None].matmul(covariance)[:, 0], covariance

    def linear_reconstruction(self, t: Tensor) -> Tensor:
        """W(WᵀW)⁺(σ²I + WᵀW)t + μ, ``(n, d)``: x from its posterior mean, by least squares."""
        variance = torch.exp(2 * self.log_scale.clamp(min=self.min_log_scale).mean())
        # (WᵀW)⁺(σ²I + WᵀW) t = t + σ²(WᵀW)⁺t, but for components that are not used.
        back = torch.linalg.pinv(self.weight).T
        return t @ (self.weight + variance * back).T + self.loc

    def linear_log_prob(self, x: Tensor) -> Tensor:
        """log N(x; μ, WWᵀ + σ²I) ``(n,)`` of what is not missing; no d × d matrix is inverted."""
        mean, covariance = self.linear_posterior(x)
        variance, residual, seen = self._linear_parts(x)
        n_seen = self.n_features if seen is None else seen.sum(-1)
        # xᵀΣ⁻¹x = xᵀ(x − W E[z|x])/σ² and log|Σ| = d log σ² + log|M|.
        square = (residual * (residual - mean @ self.weight.T)).sum(-1) / variance
        log_det = n_seen * variance.log() - torch.linalg.slogdet(covariance)[1]
        return -0.5 * (square + log_det + n_seen * _LOG_2PI)

    def _linear_parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """σ², x − μ with zeros where x is missing, and what is seen (None: everything)."""
        variance = torch.exp(2 * self.log_scale.clamp(min=self.min_log_scale).mean())
        missing = torch.isnan(x)
        if not bool(missing.any()):
            return variance, x - self.loc, None
        return variance, torch.where(missing, 0.0, x - self.loc), (~missing).to(x.dtype)

    def split(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Joint coordinates v = (a, ε) to (x, z)."""
        z, noise = v.split([self.n_components, self.n_features], dim=-1)
        return self.from_noise(noise, z), z

    def join(self, x: Tensor, z: Tensor) -> Tensor:
        """(x, z) to joint coordinates v = (a, ε): undoes :meth:`split`."""
        return torch.cat([z, self.to_noise(x, z)[0]], -1)

    def split_vjp(self, v: Tensor) -> tuple[Tensor, Tensor, Pull]:
        """:meth:`split`, and the way back from gradients by x and z to one by v."""
        z, noise = v.split([self.n_components, self.n_features], dim=-1)
        loc, log_scale, pull = self._conditional_vjp(z)
        scale = log_scale.exp()
        if self.is_isotropic:
            return (
                loc + noise * scale,
                z,
                lambda by_x, by_z: torch.cat([by_z + pull(by_x, scale), by_x * scale], -1),
            )
        e, pull_tail = tails.from_normal_vjp(noise, self.log_tail, self.skew)
        scaled = e * scale

        def pull_split(by_x: Tensor, by_z: Tensor) -> Tensor:
            by_scaled = self._mix(by_x, transposed=True)
            by_z = by_z + pull(by_x, by_scaled * scaled)
            return torch.cat([by_z, pull_tail(by_scaled * scale)], -1)

        return loc + self._mix(scaled), z, pull_split
