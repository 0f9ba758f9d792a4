r"""The tilts f_θ(x, z) of a joint energy, as torch modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .._products import affine, times
from ..networks import MLP
from ..reference import Reference

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
        of the reference, and a region that N reference draws all miss, which has at most about 3/N
        of the reference's mass, adds at most 3eᶜ/N to Z. None leaves f unbounded.
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

    def enter(self, x: Tensor) -> Tensor:
        """What the network's first layer receives from x ``(..., d)`` alone: ``(..., h)``."""
        return self.net.enter(self._features(x))

    def _features(self, x: Tensor) -> Tensor:
        if not self.frequencies.shape[1]:
            return x
        angles = times(x, self.frequencies)
        return torch.cat([x, angles.cos(), angles.sin()], -1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.vjp(self.enter(x), z)[0]

    def vjp(self, entered: Tensor, z: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """f ``(...)``, and its gradient by what the first layer receives, ``(..., h)``, on demand.

        ``entered`` is that of x. :meth:`by_latent` and :meth:`by_row` take the gradient further.
        """
        output, pull = self.net.vjp(entered + self.net.enter(z, start=1))
        value = output[..., 0]
        if self.bound is None:
            return value, lambda: pull(torch.ones_like(output))
        bend = torch.tanh(output / self.bound)
        slope = torch.ops.aten.tanh_backward(torch.ones_like(bend), bend)
        return self.bound * bend[..., 0], lambda: pull(slope)

    def by_latent(self, gradient: Tensor) -> Tensor:
        """The gradient by z, ``(..., k)``."""
        return self.net.leave(gradient, 1)

    def by_row(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient by x, ``(..., d)``."""
        by_features = self.net.leave(gradient, 0)
        n = self.frequencies.shape[1]
        if not n:
            return by_features
        by_x, by_cos, by_sin = by_features.split([x.shape[-1], n, n], -1)
        angles = times(x, self.frequencies)
        return by_x + affine(by_sin * angles.cos() - by_cos * angles.sin(), self.frequencies)


class ModuleTilt(nn.Module):
    """f(x, z) = E(x, z) + log p_0(x, z), for an energy E given as a whole by the user's module."""

    def __init__(self, module: nn.Module, reference: Reference) -> None:
        super().__init__()
        self.module = module
        # In a tuple, so that its parameters are not registered a second time.
        self._reference = (reference,)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.energy(x, z) + self._reference[0].log_prob(x, z)

    def energy(self, x: Tensor, z: Tensor) -> Tensor:
        """E itself, ``(...)`` for ``x (..., d)`` and ``z (..., k)``, which broadcast."""
        shape = torch.broadcast_shapes(x.shape[:-1], z.shape[:-1])
        flat_x = x.expand(*shape, x.shape[-1]).reshape(-1, x.shape[-1])
        flat_z = z.expand(*shape, z.shape[-1]).reshape(-1, z.shape[-1])
        energy = self.module(flat_x, flat_z)
        if energy.shape != flat_x.shape[:1]:
            raise ValueError(
                f"the energy module returned shape {tuple(energy.shape)} for {len(flat_x)} pairs "
                f"(x, z); it must return one energy per pair, shape ({len(flat_x)},)."
            )
        return energy.to(x.dtype).reshape(shape)
