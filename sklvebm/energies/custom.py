"""A user's own torch module as the energy."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from ._spec import EnergySpec

if TYPE_CHECKING:
    import torch

    from ._joint import JointEnergy


# The global generator is lent to one factory at a time, whatever thread calls it.
_LENT = Lock()


class CustomEnergy(EnergySpec):
    """E(x, z) given by a module of the user's; proposals come from a Gaussian fitted to the data.

    Parameters
    ----------
    factory : callable
        A ``torch.nn.Module`` class, or a function that returns a module, called as
        ``factory(n_features, n_components)``. The module maps ``x (n, n_features)``, standardised
        (and mapped, with ``marginals="mixture"``), and ``z (n, n_components)`` to energies ``(n,)``
        in nats. exp(−E) must be integrable. Its parameters are not decayed unless ``weight_decay``
        is a number.
    min_scale : float, default=1e-3
        Lower bound of the Gaussian's noise, in standard deviations of a feature.
    """

    def __init__(self, factory, min_scale=1e-3):
        self.factory = factory
        self.min_scale = min_scale

    @property
    def is_decayed(self) -> bool:
        """What a user's parameters mean is not known, nor where they should go without data."""
        return False

    def build(
        self, n_features: int, n_components: int, *, generator: torch.Generator
    ) -> JointEnergy:
        import torch

        from ..reference import IsotropicReference
        from ._joint import JointEnergy
        from ._tilts import ModuleTilt

        # The user's layers draw from the global generator: lend them ours, then give it back.
        seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        # torch.manual_seed seeds the generators of all devices: only those that are there to be
        # given back are lent as well.
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with _LENT, torch.random.fork_rng(devices):
            (torch.manual_seed if devices else torch.default_generator.manual_seed)(seed)
            module = self.factory(n_features, n_components)
        if not isinstance(module, torch.nn.Module):
            raise TypeError(
                "energy must return a torch.nn.Module when called with (n_features, "
                f"n_components), got {type(module).__name__}."
            )
        reference = IsotropicReference(
            n_features, n_components, min_scale=self._checked_min_scale(), generator=generator
        )
        return JointEnergy(reference, ModuleTilt(module, reference), reference_share=0.0)
