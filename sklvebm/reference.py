r"""The normalised reference p_0(x, z), which starts as probabilistic PCA.

.. math::

    z = a, \qquad x = g(z) + A\,H(z)\,(s(z) ∘ t(ε)), \qquad (a, ε) ∼ N(0, I)

with g(z) = Wz + μ + net(z), bounded log s(z), A = B⁻¹ for a B of determinant one, shears H(z), and
t a monotone, increasing map of each coordinate that sets the tails (:class:`FlexibleReference`); or
x = g(z) + σε (:class:`IsotropicReference`). The map v = (a, ε) ↔ (x, z) is a bijection with a known
Jacobian, so p_0 is normalised, sampled exactly, and read either way.

References
----------
M. E. Tipping and C. M. Bishop (1999), "Probabilistic principal component analysis", JRSS B 61(3).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ._products import affine, times
from .networks import MLP
from .ppca import PPCA
from .residuals import Residuals
from .shears import Shear, Shears

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


class Reference(nn.Module, ABC):
    r"""The reference density p_0(x, z): z ∼ N(0, I), and x about g(z) = Wz + μ + net(z).

    Parameters
    ----------
    n_features, n_components : int
        d and k.
    n_scales : int
        Number of scales of the noise, whose logarithms are parameters.
    min_scale : float
        Lower bound of every scale, in standardised units. It bounds the density, whose likelihood
        would otherwise be infinite on duplicated or constant columns.
    """

    def __init__(
        self, n_features: int, n_components: int, n_scales: int, *, min_scale: float
    ) -> None:
        super().__init__()
        d, k = n_features, n_components
        self.n_features, self.n_components = d, k
        self.min_log_scale = math.log(min_scale)
        self.weight = nn.Parameter(torch.zeros(d, k))
        self.loc = nn.Parameter(torch.zeros(d))
        self.log_scale = nn.Parameter(torch.zeros(n_scales))
        self.net: MLP | None = None
        self.mixing: nn.Parameter | None = None
        self.shears: Shears | None = None

    @property
    def is_linear(self) -> bool:
        """Whether g is linear and the noise Gaussian: PPCA."""
        return self.net is None

    @property
    def starts_at_modes(self) -> bool:
        """Whether training begins with the latents of each row at their mode."""
        return False

    @torch.no_grad()
    def set_ppca_(self, ppca: PPCA) -> None:
        """Start at ``ppca``: the density is then PPCA's (tails and mixing at the identity)."""
        self.weight.copy_(torch.as_tensor(ppca.weight))
        self.loc.copy_(torch.as_tensor(ppca.loc))
        self.log_scale.fill_(max(math.log(max(ppca.scale, 1e-300)), self.min_log_scale))

    @torch.no_grad()
    def project_(self) -> None:
        """Go back to the nearest parameters that are allowed; here all are."""

    def conditional(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Location g(z) and log s(z), each broadcastable to ``(..., d)``."""
        return self._conditional_vjp(z)[:2]

    @abstractmethod
    def _conditional_vjp(self, z: Tensor) -> tuple[Tensor, Tensor, Pull]:
        """:meth:`conditional`, and the way back from gradients by both to one by z."""

    def residuals(self) -> Residuals | None:
        """The residuals at the parameters of now; None where nothing is to be worked out.

        Many calls that are given it, while the parameters stay, share what follows from these
        alone. No gradient by the parameters passes through it.
        """
        return None

    @abstractmethod
    def to_noise(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""ε of (x, z) and log\|∂ε/∂x\|: shapes ``(..., d)`` and ``(...)``."""

    @abstractmethod
    def from_noise(self, noise: Tensor, z: Tensor, residuals: Residuals | None = None) -> Tensor:
        """x of (ε, z): shapes ``(..., d)`` and ``(..., k)`` to ``(..., d)``."""

    @abstractmethod
    def mean(self, z: Tensor) -> Tensor:
        """E_0[x | z], ``(..., d)``."""

    @abstractmethod
    def log_prob(self, x: Tensor, z: Tensor, residuals: Residuals | None = None) -> Tensor:
        """log p_0(x, z) in nats, ``(...)``; ``x (..., d)`` and ``z (..., k)`` broadcast."""

    @abstractmethod
    def energy_by_latent(
        self, x: Tensor, z: Tensor, residuals: Residuals | None = None
    ) -> tuple[Tensor, Tensor]:
        """−log p_0(x, z) ``(...)`` and its gradient by z ``(..., k)``."""

    @abstractmethod
    def split_vjp(
        self, v: Tensor, residuals: Residuals | None = None
    ) -> tuple[Tensor, Tensor, Pull]:
        """:meth:`split`, and the way back from gradients by x and z to one by v."""

    def split(self, v: Tensor, residuals: Residuals | None = None) -> tuple[Tensor, Tensor]:
        """Joint coordinates v = (a, ε) to (x, z)."""
        z, noise = self._parts(v)
        return self.from_noise(noise, z, residuals), z

    def join(self, x: Tensor, z: Tensor) -> Tensor:
        """(x, z) to joint coordinates v = (a, ε): undoes :meth:`split`."""
        return torch.cat([z, self.to_noise(x, z)[0]], -1)

    def fill(self, x: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""``x (..., d)`` with its missing entries (NaN) put at noise coordinates ``y (..., d)``.

        A missing feature is g(z) + s(z) t(y), which makes y ∼ N(0, 1) under p_0 where A = I,
        whatever is observed. Returns the completed rows and Σ log \|∂x/∂y\| over what was missing.
        """
        missing = torch.isnan(x)
        loc, log_scale = self.conditional(z)
        e, log_slope = self._tailed(y)
        log_det = torch.where(missing, log_scale + log_slope, 0.0).sum(-1)
        return torch.where(missing, loc + e * log_scale.exp(), x), log_det

    def _tailed(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """t(ε) and log t′(ε), ``(..., d)``; here of the identity."""
        return noise, torch.zeros_like(noise)

    def _parts(self, v: Tensor) -> tuple[Tensor, ...]:
        return v.split([self.n_components, self.n_features], dim=-1)

    def _prior(self, z: Tensor) -> Tensor:
        """½‖z‖², and the constants of the Gaussians of z and ε."""
        constant = 0.5 * (self.n_features + self.n_components) * _LOG_2PI
        return 0.5 * z.square().sum(-1) + constant

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


class IsotropicReference(Reference):
    """x = g(z) + σε, one σ for all features and rows: PPCA, with a network for its mean or without.

    Parameters
    ----------
    n_features, n_components, min_scale
        As :class:`Reference` has them.
    generator : torch.Generator
    hidden_layer_sizes : tuple of int or None
        Hidden layers of the network behind g; None for none, where g is linear.
    """

    def __init__(
        self,
        n_features: int,
        n_components: int,
        *,
        min_scale: float,
        generator: torch.Generator,
        hidden_layer_sizes: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(n_features, n_components, 1, min_scale=min_scale)
        if hidden_layer_sizes is not None:
            inputs = [n_components]
            self.net = MLP(inputs, hidden_layer_sizes, n_features, generator=generator)

    @property
    def starts_at_modes(self) -> bool:
        """True of a curved g, which may fold where particles start far from it."""
        return self.net is not None

    def _conditional_vjp(self, z: Tensor) -> tuple[Tensor, Tensor, Pull]:
        net, loc = self.net, affine(z, self.weight, self.loc)
        log_scale = self.log_scale.clamp(min=self.min_log_scale)
        if net is None:
            return loc, log_scale, lambda by_loc, by_log_scale: times(by_loc, self.weight)
        output, pull_net = net.vjp(net.enter(z))

        def pull(by_loc: Tensor, by_log_scale: Tensor) -> Tensor:
            return times(by_loc, self.weight) + net.leave(pull_net(by_loc), 0)

        return loc + output, log_scale, pull

    def to_noise(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.conditional(z)
        residual = x - loc
        log_det = (-self.n_features * log_scale[0]).expand(residual.shape[:-1])
        return residual * torch.exp(-log_scale), log_det

    def from_noise(self, noise: Tensor, z: Tensor, residuals: Residuals | None = None) -> Tensor:
        loc, log_scale = self.conditional(z)
        return loc + noise * log_scale.exp()

    def mean(self, z: Tensor) -> Tensor:
        return self.conditional(z)[0]

    def log_prob(self, x: Tensor, z: Tensor, residuals: Residuals | None = None) -> Tensor:
        prior = self._prior(z)
        noise, log_det = self.to_noise(x, z)
        return log_det - 0.5 * noise.square().sum(-1) - prior

    def energy_by_latent(
        self, x: Tensor, z: Tensor, residuals: Residuals | None = None
    ) -> tuple[Tensor, Tensor]:
        loc, log_scale, pull = self._conditional_vjp(z)
        noise = (x - loc) * torch.exp(-log_scale)
        energy = 0.5 * noise.square().sum(-1) + self.n_features * log_scale
        return energy + self._prior(z), z - pull(noise * torch.exp(-log_scale), log_scale)

    def split_vjp(
        self, v: Tensor, residuals: Residuals | None = None
    ) -> tuple[Tensor, Tensor, Pull]:
        z, noise = self._parts(v)
        loc, log_scale, pull = self._conditional_vjp(z)
        scale = log_scale.exp()

        def pull_split(by_x: Tensor, by_z: Tensor) -> Tensor:
            return torch.cat([by_z + pull(by_x, scale), by_x * scale], -1)

        return loc + noise * scale, z, pull_split


def _idle(parameters: Iterable[Tensor]) -> bool:
    """Whether they are held at zero, as before the stage that learns them.

    On an accelerator the answer would have to be waited for, and is no.
    """
    return not any(p.requires_grad or p.device.type != "cpu" or p.any() for p in parameters)


class FlexibleReference(Reference):
    """x = g(z) + A H(z)(s(z) ∘ t(ε)): scales and shears that follow z, tails, a linear map.

    Parameters
    ----------
    n_features, n_components, min_scale
        As :class:`Reference` has them.
    generator : torch.Generator
    hidden_layer_sizes : tuple of int
        Hidden layers of the network behind g and log s.
    mixing : bool
        Whether A is learned; otherwise it stays the identity.
    mixing_rank : int
        Rank of each shear of H(z); 0 for the identity.
    """

    net: MLP

    def __init__(
        self,
        n_features: int,
        n_components: int,
        *,
        min_scale: float,
        generator: torch.Generator,
        hidden_layer_sizes: tuple[int, ...],
        mixing: bool = False,
        mixing_rank: int = 0,
    ) -> None:
        d = n_features
        super().__init__(d, n_components, d, min_scale=min_scale)
        self.net = MLP([n_components], hidden_layer_sizes, 2 * d, generator=generator)
        if mixing:
            self.mixing = nn.Parameter(torch.zeros(d, d))
        if mixing_rank:
            self.shears = Shears(d, n_components, mixing_rank, generator=generator)
        self.log_tail = nn.Parameter(torch.full((d,), -2.0))
        self.skew = nn.Parameter(torch.zeros(d))

    @torch.no_grad()
    def project_(self) -> None:
        """Go back to the nearest parameters that are allowed: every κ within ``MAX_TAIL``."""
        self.log_tail.clamp_(max=math.log(MAX_TAIL))

    def _conditional_vjp(self, z: Tensor) -> tuple[Tensor, Tensor, Pull]:
        loc = affine(z, self.weight, self.loc)
        output, pull_net = self.net.vjp(self.net.enter(z))
        shift, change = output.split(self.n_features, dim=-1)
        # tanh t = 2σ(2t) − 1: torch's own can take several times as long as its logistic function.
        bend = torch.sigmoid(change * (2 / _LOG_SCALE_RANGE))
        log_scale = torch.add(self.log_scale - _LOG_SCALE_RANGE, bend, alpha=2 * _LOG_SCALE_RANGE)

        def pull(by_loc: Tensor, by_log_scale: Tensor) -> Tensor:
            free = torch.ops.aten.threshold_backward(by_log_scale, log_scale, self.min_log_scale)
            by_change = torch.ops.aten.sigmoid_backward(free, bend).mul_(4.0)
            by_received = pull_net(torch.cat([by_loc, by_change], -1))
            return times(by_loc, self.weight) + self.net.leave(by_received, 0)

        return loc + shift, log_scale.clamp(min=self.min_log_scale), pull

    def _strengths(self, z: Tensor) -> Tensor | None:
        """Strengths of the shears at z, if there are any to be worked out."""
        shears = self._bending
        return None if shears is None else shears(z)

    def _strengths_vjp(self, z: Tensor) -> tuple[Tensor | None, Callable[[Tensor], Tensor]]:
        """:meth:`_strengths`, and the way back to z."""
        shears = self._bending
        return (None, torch.zeros_like) if shears is None else shears.vjp(z)

    @property
    def _bending(self) -> Shears | None:
        """The shears, unless they are idle."""
        shears = self.shears
        return None if shears is None or _idle(shears.net.last.parameters()) else shears

    @property
    def _turning(self) -> Tensor | None:
        """The parameters of A, unless they are idle."""
        return None if self.mixing is None or _idle([self.mixing]) else self.mixing

    def residuals(self) -> Residuals:
        with torch.no_grad():
            pair = self._pair()
        mixing = self._turning
        held = None if mixing is None else mixing.detach()
        return Residuals(self.log_tail.detach(), self.skew.detach(), held, pair)

    def _learned(self) -> Residuals:
        """The residuals as gradients by the parameters see them."""
        return Residuals(self.log_tail, self.skew, self._turning, self._pair())

    def _pair(self) -> tuple[Shear, Shear] | None:
        """What the shears read and write, if there are any to be worked out."""
        shears = self._bending
        return None if shears is None else shears.pair()

    def _tailed(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        tails = self._learned().tails
        return tails.from_normal(noise), tails.log_slope(noise)

    def to_noise(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        residuals = self._learned()
        loc, log_scale = self.conditional(z)
        unmixed = residuals.unmix(x - loc, self._strengths(z))
        e = unmixed * torch.exp(-log_scale)
        noise, log_slope = residuals.tails.to_normal(e)
        return noise, (log_slope - log_scale).sum(-1)

    def from_noise(self, noise: Tensor, z: Tensor, residuals: Residuals | None = None) -> Tensor:
        residuals = residuals or self._learned()
        loc, log_scale = self.conditional(z)
        scaled = residuals.tails.from_normal(noise) * log_scale.exp()
        return loc + residuals.mix(scaled, self._strengths(z))

    def mean(self, z: Tensor) -> Tensor:
        residuals = self._learned()
        loc, log_scale = self.conditional(z)
        return loc + residuals.mix(residuals.tails.mean() * log_scale.exp(), self._strengths(z))

    def log_prob(self, x: Tensor, z: Tensor, residuals: Residuals | None = None) -> Tensor:
        residuals = residuals or self._learned()
        prior = self._prior(z)
        loc, log_scale = self.conditional(z)
        return -prior - residuals.energy(x - loc, log_scale, self._strengths(z))

    def energy_by_latent(
        self, x: Tensor, z: Tensor, residuals: Residuals | None = None
    ) -> tuple[Tensor, Tensor]:
        residuals = residuals or self._learned()
        loc, log_scale, pull = self._conditional_vjp(z)
        strengths, pull_strengths = self._strengths_vjp(z)
        energy, by_residual, by_log_scale, by_strengths = residuals.energy_and_slopes(
            x - loc, log_scale, strengths
        )
        gradient = z + pull(by_residual.neg(), by_log_scale)
        if by_strengths is not None:
            gradient += pull_strengths(by_strengths)
        return energy + self._prior(z), gradient

    def split_vjp(
        self, v: Tensor, residuals: Residuals | None = None
    ) -> tuple[Tensor, Tensor, Pull]:
        of = residuals or self._learned()
        z, noise = self._parts(v)
        loc, log_scale, pull = self._conditional_vjp(z)
        scale = log_scale.exp()
        e, pull_tail = of.tails.from_normal_vjp(noise)
        scaled = e * scale
        strengths, pull_strengths = self._strengths_vjp(z)
        residual, pull_mix = of.mix_vjp(scaled, strengths)

        def pull_split(by_x: Tensor, by_z: Tensor) -> Tensor:
            by_scaled, by_strengths = pull_mix(by_x)
            by_z = by_z + pull(by_x, by_scaled * scaled)
            if by_strengths is not None:
                by_z += pull_strengths(by_strengths)
            return torch.cat([by_z, pull_tail(by_scaled * scale)], -1)

        return loc + residual, z, pull_split
