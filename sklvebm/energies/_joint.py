r"""The joint energy E_θ(x, z) = −log p_0(x, z) + f_θ(x, z) as a torch module, and its tilts f_θ."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..langevin import LogDensity
from ..networks import MLP
from ..reference import Reference

_LOG_2PI = math.log(2 * math.pi)
# Standard deviation of the frequencies times √(d + k): 2.25 radians a standard deviation for two
# features and two latents.
_FREQUENCY_SCALE = 4.5


class NetworkTilt(nn.Module):
    r"""f(x, z) = network of (x, z, cos Ωx, sin Ωx), zero at the start.

    The random frequencies Ω make sharp changes in x learnable (Tancik et al. 2020, "Fourier
    features let networks learn high frequency functions in low dimensional domains").

    Parameters
    ----------
    n_frequencies : int
        Number of rows of Ω; 0 leaves the features out.
    bound : float or None
        c of f = c tanh(network / c). Where \|f\| ≤ c, Z lies between e⁻ᶜ and eᶜ whatever the tails
        of the reference, and a well that N reference draws all miss adds at most about eᶜ/N to
        Z: no well can be both deep and hidden. None leaves f unbounded.
    """

    frequencies: Tensor

    def __init__(
        self,
        n_features: int,
        n_components: int,
        hidden_layer_sizes: tuple[int, ...],
        *,
        n_frequencies: int,
        bound: float | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.bound = bound
        scale = _FREQUENCY_SCALE / (n_features + n_components) ** 0.5
        frequencies = scale * torch.randn(n_features, n_frequencies, generator=generator)
        self.register_buffer("frequencies", frequencies)
        inputs = [n_features + 2 * n_frequencies, n_components]
        self.net = MLP(inputs, hidden_layer_sizes, 1, generator=generator)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        if self.frequencies.shape[1]:
            angles = x @ self.frequencies
            x = torch.cat([x, angles.cos(), angles.sin()], -1)
        value = self.net(x, z)[..., 0]
        return value if self.bound is None else self.bound * torch.tanh(value / self.bound)


class ModuleTilt(nn.Module):
    """f(x, z) = E(x, z) + log p_0(x, z), for an energy E given as a whole by the user's module."""

    def __init__(self, module: nn.Module, reference: Reference) -> None:
        super().__init__()
        self.module = module
        # In a tuple, so that its parameters are not registered a second time.
        self._reference = (reference,)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(x.shape[:-1], z.shape[:-1])
        flat_x = x.expand(*shape, x.shape[-1]).reshape(-1, x.shape[-1])
        flat_z = z.expand(*shape, z.shape[-1]).reshape(-1, z.shape[-1])
        energy = self.module(flat_x, flat_z)
        if energy.shape != flat_x.shape[:1]:
            raise ValueError(
                f"the energy module returned shape {tuple(energy.shape)} for {len(flat_x)} pairs "
                f"(x, z); it must return one energy a pair, shape ({len(flat_x)},)."
            )
        return energy.to(x.dtype).reshape(shape) + self._reference[0].log_prob(x, z)


class JointEnergy(nn.Module):
    """E_θ(x, z) in nats, in standardised units.

    Parameters
    ----------
    reference : Reference
    tilt : module (x, z) → f, or None
        None means f ≡ 0: the energy is normalised.
    reference_share : float
        Share of the updates that learn p_0 before f is learned; 0 freezes p_0 where it starts.
    """

    def __init__(
        self, reference: Reference, tilt: nn.Module | None, *, reference_share: float
    ) -> None:
        super().__init__()
        self.reference = reference
        self.tilt = tilt
        self.reference_share = reference_share

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Energies ``(...)`` of ``x (..., d)`` and ``z (..., k)``, which broadcast."""
        energy = -self.reference.log_prob(x, z)
        return energy if self.tilt is None else energy + self.tilt(x, z)

    @property
    def is_gaussian(self) -> bool:
        """Whether E is linear-Gaussian, so that posterior and evidence have closed forms."""
        return self.tilt is None and self.reference.is_linear

    def log_tilt(self, v: Tensor) -> Tensor:
        """−f at joint coordinates ``v (..., k + d)``, where p(v) ∝ N(v; 0, I) exp(−f)."""
        if self.tilt is None:
            return v.new_zeros(v.shape[:-1])
        return -self.tilt(*self.reference.split(v))

    def posterior(self, x: Tensor) -> LogDensity:
        r"""Log-density of what is not observed of each row of ``x (n, d)``, up to a constant.

        A function of ``u (n, p, k)``, the latents z; or of ``u (n, p, k + d)``, for rows that miss
        entries (NaN): z and a noise coordinate y for each feature, by which the reference places
        the missing ones. Those of observed features are idle, N(0, 1) and independent of all, so
        that every row has as many coordinates and ∫ exp(·) du = ∫ exp(−E) dz dx_m.
        """
        rows = x[:, None]
        observed = ~torch.isnan(rows)

        def log_density(u: Tensor) -> Tensor:
            if u.shape[-1] == self.reference.n_components:
                return -self(rows, u)
            z, y = self._parts(u)
            completed, log_det = self.reference.fill(rows, z, y)
            idle = torch.where(observed, -0.5 * (y.square() + _LOG_2PI), 0.0).sum(-1)
            return log_det + idle - self(completed, z)

        return log_density

    def complete(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and latents ``(n, p or 1, d)``, ``(n, p, k)`` from what :meth:`posterior` reads."""
        if u.shape[-1] == self.reference.n_components:
            return x[:, None], u
        z, y = self._parts(u)
        return self.reference.fill(x[:, None], z, y)[0], z

    def _parts(self, u: Tensor) -> tuple[Tensor, ...]:
        return u.split([self.reference.n_components, self.reference.n_features], dim=-1)

    @torch.no_grad()
    def first_guess(self, x: Tensor, *, complete: bool) -> tuple[Tensor, Tensor]:
        """Mean ``(n, m)`` and a typical covariance ``(m, m)`` of the coordinates of each row.

        The reference's linear posterior; the coordinates of features are N(0, 1). ``complete``
        says whether there are none (m = k), or m = k + d.
        """
        mean, covariance = self.reference.linear_posterior(x)
        covariance = covariance.reshape(-1, *covariance.shape[-2:]).mean(0)
        if complete:
            return mean, covariance
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return torch.cat([mean, torch.zeros_like(x)], -1), torch.block_diag(covariance, eye)

    def reference_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of p_0 that are learned; none where it is frozen."""
        return _trainable(self.reference if self.reference_share else None)

    def tilt_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of f."""
        return _trainable(self.tilt)

    def decayed_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that weight decay pulls to zero: network matrices and the mixing."""
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2 and name != "reference.weight":
                yield parameter


def _trainable(module: nn.Module | None) -> Iterator[nn.Parameter]:
    """Parameters that a user's module does not hold fixed."""
    return (p for p in (() if module is None else module.parameters()) if p.requires_grad)
