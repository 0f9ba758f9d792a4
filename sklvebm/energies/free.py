"""The paper's form: a free joint network on a frozen Gaussian reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._spec import EnergySpec, checked_frequencies, checked_sizes

if TYPE_CHECKING:
    import torch

    from ._joint import JointEnergy


class FreeEnergy(EnergySpec):
    r"""E(x, z) = −log N(x, z) + f(x, z) with a frozen Gaussian: probabilistic PCA.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(128, 128)
        Hidden layers of f, zero at the start.
    n_frequencies : int or "auto", default="auto"
        Number of random Fourier features of x that f sees beside x itself. "auto" takes 64 for up
        to four features and none above: they make sharp edges learnable in few dimensions, and
        training rows memorable in many.
    min_scale : float, default=1e-3
        Lower bound of the Gaussian's noise, in standard deviations of a feature.
    """

    def __init__(self, hidden_layer_sizes=(128, 128), n_frequencies="auto", min_scale=1e-3):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.n_frequencies = n_frequencies
        self.min_scale = min_scale

    def build(
        self, n_features: int, n_components: int, *, generator: torch.Generator
    ) -> JointEnergy:
        from ..reference import IsotropicReference
        from ._joint import JointEnergy
        from ._tilts import NetworkTilt

        reference = IsotropicReference(
            n_features, n_components, min_scale=self._checked_min_scale(), generator=generator
        )
        sizes = checked_sizes("hidden_layer_sizes", self.hidden_layer_sizes)
        tilt = NetworkTilt(
            n_features,
            n_components,
            sizes,
            n_frequencies=checked_frequencies(self.n_frequencies, n_features),
            bound=None,
            generator=generator,
        )
        return JointEnergy(reference, tilt, reference_share=0.0)
