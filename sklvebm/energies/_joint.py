r"""The joint energy E_θ(x, z) = −log p_0(x, z) + f_θ(x, z) as a torch module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..langevin import Differentiated, LogDensity
from ..reference import Reference
from ._tilts import ModuleTilt, NetworkTilt

_LOG_2PI = math.log(2 * math.pi)
# Numbers of an array that the processor works on at once: some twenty such take turns in its cache.
_AT_ONCE = 2**19


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
        networks = (reference.net, getattr(tilt, "net", None))
        # Numbers a pair (x, z) in the widest array on the way to an answer.
        self._width = max([reference.n_features, *(net.width for net in networks if net)])

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Energies ``(...)`` of ``x (..., d)`` and ``z (..., k)``, which broadcast."""
        if isinstance(self.tilt, ModuleTilt):
            # −log p_0 + f would lose to rounding what the two do not share.
            return self.tilt.energy(x, z)
        energy = -self.reference.log_prob(x, z)
        return energy if self.tilt is None else energy + self.tilt(x, z)

    def without_tilt(self) -> JointEnergy:
        """p_0 alone, the same module: all that there is while f ≡ 0."""
        return JointEnergy(self.reference, None, reference_share=self.reference_share)

    @property
    def is_ours(self) -> bool:
        """Whether no module of a user's is part of it."""
        return not isinstance(self.tilt, ModuleTilt)

    @property
    def starts_at_modes(self) -> bool:
        """Whether p_0 is learned, and at first from the modes of the latents."""
        return self.reference_share > 0 and self.reference.starts_at_modes

    @property
    def is_gaussian(self) -> bool:
        """Whether E is linear-Gaussian, so that posterior and evidence have closed forms."""
        return self.tilt is None and self.reference.is_linear

    @property
    def log_tilt(self) -> LogDensity:
        """−f at joint coordinates ``v (..., k + d)``, where p(v) ∝ N(v; 0, I) exp(−f)."""
        tilt: nn.Module | None = self.tilt
        residuals = self.reference.residuals()
        if tilt is None:
            return lambda v: v.new_zeros(v.shape[:-1])

        def value(v: Tensor) -> tuple[Tensor]:
            return (-tilt(*self.reference.split(v, residuals)),)

        if not isinstance(tilt, NetworkTilt):
            return lambda v: value(v)[0]

        def both(v: Tensor) -> tuple[Tensor, Tensor]:
            x, z, pull = self.reference.split_vjp(v, residuals)
            found, slope = tilt.vjp(tilt.enter(x), z)
            gradient = slope().neg_()
            return -found, pull(tilt.by_row(gradient, x), tilt.by_latent(gradient))

        return self._in_parts(value, both, lambda v: (v,))

    def posterior(self, x: Tensor, *, complete: bool | None = None) -> LogDensity:
        r"""Log-density of what is not observed of each row of ``x (n, d)``, up to a constant.

        A function of ``u (n, p, k)``, the latents z; or of ``u (n, p, k + d)``, for rows that miss
        entries (NaN): z and a noise coordinate y for each feature, by which the reference places
        the missing ones. Those of observed features are idle, N(0, 1) and independent of all, so
        that every row has as many coordinates and ∫ exp(·) du = ∫ exp(−E) dz dx_m. ``complete``
        says that nothing is missing, or that something may be; None looks.
        """
        rows = x[:, None]
        observed = ~torch.isnan(rows)
        if complete is None:
            complete = bool(observed.all())
        if complete and self.is_ours:
            return self._posterior_of_complete(rows)

        def log_density(u: Tensor) -> Tensor:
            if u.shape[-1] == self.reference.n_components:
                return -self(rows, u)
            z, y = self._parts(u)
            completed, log_det = self.reference.fill(rows, z, y)
            idle = torch.where(observed, _log_normal(y), 0.0).sum(-1)
            return log_det + idle - self(completed, z)

        return log_density

    @torch.no_grad()
    def _posterior_of_complete(self, rows: Tensor) -> LogDensity:
        """What depends on x or on θ alone is computed once, for ``rows (n, 1, d)``."""
        residuals = self.reference.residuals()
        tilt = self.tilt if isinstance(self.tilt, NetworkTilt) else None
        k = self.reference.n_components
        # Of each row, and what the tilt's first layer receives from it.
        known = (rows,) if tilt is None else (rows, tilt.enter(rows))

        def value(u: Tensor, x: Tensor, *entered: Tensor) -> tuple[Tensor]:
            z = u[..., :k]
            found = self.reference.log_prob(x, z, residuals)
            if tilt is not None:
                found = found - tilt.vjp(entered[0], z)[0]
            if u.shape[-1] > k:
                # Rows that miss nothing, among others that do.
                found = found + _log_normal(u[..., k:]).sum(-1)
            return (found,)

        def both(u: Tensor, x: Tensor, *entered: Tensor) -> tuple[Tensor, Tensor]:
            z = u[..., :k]
            energy, gradient = self.reference.energy_by_latent(x, z, residuals)
            if tilt is not None:
                found, slope = tilt.vjp(entered[0], z)
                energy, gradient = energy + found, gradient + tilt.by_latent(slope())
            if u.shape[-1] == k:
                return -energy, -gradient
            y = u[..., k:]
            return _log_normal(y).sum(-1) - energy, -torch.cat([gradient, y], -1)

        return self._in_parts(value, both, lambda u: (u.expand(len(rows), -1, -1), *known))

    def _in_parts(
        self,
        value: Callable[..., Sequence[Tensor]],
        both: Callable[..., Sequence[Tensor]],
        inputs: Callable[[Tensor], Sequence[Tensor]],
    ) -> Differentiated:
        """The log-density that ``value`` finds, and ``both`` with its gradient, row by row.

        Of ``inputs(u)``, whose first is ``u (n, ..., m)`` and all of ``n`` rows. A processor is
        given a few of these at a time.
        """

        def answer(function: Callable[..., Sequence[Tensor]], u: Tensor) -> Sequence[Tensor]:
            each = inputs(u)
            n_rows = self._rows_at_once(math.prod(each[0].shape[1:-1]))
            if u.device.type != "cpu" or n_rows >= len(each[0]):
                return function(*each)
            found = [function(*some) for some in zip(*(e.split(n_rows) for e in each), strict=True)]
            return [torch.cat(parts) for parts in zip(*found, strict=True)]

        def log_density_and_gradient(u: Tensor) -> tuple[Tensor, Tensor]:
            log_density, gradient = answer(both, u)
            return log_density, gradient

        return Differentiated(lambda u: answer(value, u)[0], log_density_and_gradient)

    def _rows_at_once(self, n_particles: int) -> int:
        """Of how many rows that many particles each are worked on together by a processor.

        As many as fit its cache: a power of two, so that arrays of one shape fall into arrays of
        one shape.
        """
        return 1 << max(0, (_AT_ONCE // (self._width * n_particles)).bit_length() - 1)

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
        """Parameters of p_0 that are learned, but A's and H's; none where it is frozen."""
        learned = _trainable(self.reference if self.reference_share else None)
        last = set(map(id, self.mixing_parameters()))
        return (p for p in learned if id(p) not in last)

    def mixing_parameters(self) -> Iterator[nn.Parameter]:
        """Those of A and H, which are learned last of p_0."""
        if self.reference_share and self.reference.mixing is not None:
            yield self.reference.mixing
        if self.reference_share and self.reference.shears is not None:
            yield from self.reference.shears.parameters()

    def tilt_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of f."""
        return _trainable(self.tilt)

    def tilt_buffers(self) -> Iterator[Tensor]:
        """What a user's module keeps beside its parameters; our own tilts change nothing there."""
        return self.tilt.module.buffers() if isinstance(self.tilt, ModuleTilt) else iter(())

    def decayed_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that weight decay pulls to zero: matrices of networks, A and H."""
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2 and name != "reference.weight":
                yield parameter


def _log_normal(y: Tensor) -> Tensor:
    """log N(y; 0, 1) of each entry."""
    return -0.5 * (y.square() + _LOG_2PI)


def _trainable(module: nn.Module | None) -> Iterator[nn.Parameter]:
    """Parameters that a user's module does not hold fixed."""
    return (p for p in (() if module is None else module.parameters()) if p.requires_grad)
