"""The linear-Gaussian energy, for which everything is known in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._spec import EnergySpec

if TYPE_CHECKING:
    import torch

    from ._joint import JointEnergy


class LinearEnergy(EnergySpec):
    r"""E(x, z) = ‖x − Wz − μ‖² / 2σ² + ‖z‖² / 2 + const, normalised: log Z = 0.

    Parameters
    ----------
    init : {"ppca", "random"}, default="ppca"
        "ppca" starts at the closed-form maximum likelihood (Tipping and Bishop 1999), where
        ``inference="langevin"`` with ``dynamics="mala"`` and no smoothing has nothing left to learn
        and stops. "random" starts from a random W and gets there through the particles.
    min_scale : float, default=1e-3
        Lower bound of σ, in standard deviations of a feature.
    """

    def __init__(self, init="ppca", min_scale=1e-3):
        self.init = init
        self.min_scale = min_scale

    def build(
        self, n_features: int, n_components: int, *, generator: torch.Generator
    ) -> JointEnergy:
        from ..reference import IsotropicReference
        from ._joint import JointEnergy

        if self.init not in ("ppca", "random"):
            raise ValueError(f"init must be 'ppca' or 'random', got {self.init!r}.")
        reference = IsotropicReference(
            n_features, n_components, min_scale=self._checked_min_scale(), generator=generator
        )
        return JointEnergy(reference, None, reference_share=1.0)
