"""The default energy: a learned, normalised reference and a free joint tilt."""

from __future__ import annotations

import math
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from ._spec import EnergySpec, checked_frequencies, checked_sizes

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from ..reference import Reference
    from ._joint import JointEnergy


# Shares of the updates that the reference gets. A tilt with Fourier features learns a density of
# few features by itself, and has less to undo the less the reference has learned; where nothing is
# compressed either, the reference stays the Gaussian that it starts as. Isotropic noise is for the
# sake of the latents, which the reference learns.
_SHARE, _SHARE_WITH_FREQUENCIES = 0.75, 0.25
_NOISES = ("flexible", "isotropic")
# Features up to which A is learned by default: it has a weight for every pair of them, in order.
_MIXED = 100
# Rank of its dependence on z by default, and how many features get it: two to four have but a few
# directions, and of more than thirty rows are too few for it, or it is no use.
_RANK, _RANKED = 32, range(5, 31)


class TiltedEnergy(EnergySpec):
    r"""E(x, z) = −log p_0(x, z) + f(x, z), both learned.

    p_0 draws z ∼ N(0, I) and x = g(z) + A(z)(s(z) ∘ t(ε)) with ε ∼ N(0, I); it starts as
    probabilistic PCA. f is a network of (x, z), zero at the start and bounded. p_0 is learned
    first, for three quarters of the updates; with Fourier features for a quarter, and not at all
    where there are as many latents as features, so that nothing is compressed. A(z) is learned in
    the last quarter of these updates, with the rest of p_0 held; in the last fifteenth, where it
    is the same for all z.

    What a feature's noise explains, the latents need not. ``noise="isotropic"`` gives all features
    the same: p_0 is then x = g(z) + σε, probabilistic PCA with a network for its mean, whose
    likelihood weighs the squared errors of all features and rows alike. It is learned from the
    modes of the latents at first, for a fifteenth of its updates, lest g folds. Latents then
    reconstruct more, and the likelihood of the fitted model is mostly lower.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(128, 128)
        Hidden layers of the network of p_0, which gives g and, where noise is flexible, log s.
    tilt_hidden_layer_sizes : tuple of int, default=(128, 128)
        Hidden layers of f.
    mixing : bool or "auto", default="auto"
        Learn the linear map A(z) of the residuals (of determinant one, the identity at the start).
        Without it features are independent given z under p_0, and every other dependence is left
        to f. A comes after the rest of p_0, so that what can pass through the latents does, and
        early stopping drops it where it does not help on held-out rows. "auto" learns it for up
        to 100 features, where noise is flexible.
    mixing_rank : int or "auto", default="auto"
        Rank by which A(z) follows the latents: A(z) = A H(z), where H(z) are two shears of this
        rank, between the halves of the features, whose strengths are a network of z. 0 for one A.
        "auto" is 32 for five to 30 features, where A is learned and there are no Fourier features.
    n_frequencies : int or "auto", default="auto"
        Number of random Fourier features of x that f sees beside x itself. "auto" takes 64 for up
        to four features and none above: they make sharp edges learnable in few dimensions, and
        training rows memorable in many.
    tilt_bound : float or None, default=10.0
        c of \|f\| ≤ c, in nats. A region that N reference draws all miss adds at most about 3eᶜ/N
        to Z (95 % confidence); e¹⁰ = 22,026 is near the number of draws that log Z is taken from,
        which bounds an error by about a nat. None leaves f unbounded, and the score to be trusted
        less.
    min_scale : float, default=1e-3
        Lower bound of s, or of σ, in standard deviations of a feature.
    noise : {"flexible", "isotropic"}, default="flexible"
        "flexible": each feature's noise has a scale s(z), tails and skewness of its own. For
        latents that tell most of the features' likelihood. "isotropic": σε, one σ for all. For
        latents that reconstruct; marginals are then left as they are by default, and the reference
        gets three quarters of the updates with Fourier features too.

    Examples
    --------
    >>> from sklvebm.energies import TiltedEnergy
    >>> TiltedEnergy(hidden_layer_sizes=(64,))
    TiltedEnergy(hidden_layer_sizes=(64,))
    """

    def __init__(
        self,
        hidden_layer_sizes=(128, 128),
        tilt_hidden_layer_sizes=(128, 128),
        mixing="auto",
        mixing_rank="auto",
        n_frequencies="auto",
        tilt_bound=10.0,
        min_scale=1e-3,
        noise="flexible",
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.tilt_hidden_layer_sizes = tilt_hidden_layer_sizes
        self.mixing = mixing
        self.mixing_rank = mixing_rank
        self.n_frequencies = n_frequencies
        self.tilt_bound = tilt_bound
        self.min_scale = min_scale
        self.noise = noise

    def _is_isotropic(self) -> bool:
        if not (isinstance(self.noise, str) and self.noise in _NOISES):
            raise ValueError(f"noise must be one of {_NOISES}, got {self.noise!r}.")
        return self.noise == "isotropic"

    def _checked_bound(self) -> float | None:
        bound = self.tilt_bound
        if bound is None:
            return None
        if not (isinstance(bound, Real) and 0 < float(bound) < math.inf):
            raise ValueError(f"tilt_bound must be a positive number or None, got {bound!r}.")
        return float(bound)

    def _mixes(self, n_features: int) -> bool:
        mixing, isotropic = self.mixing, self._is_isotropic()
        if isinstance(mixing, str) and mixing == "auto":
            mixing = n_features <= _MIXED and not isotropic
        if not isinstance(mixing, bool | np.bool_):
            raise ValueError(f"mixing must be True, False or 'auto', got {mixing!r}.")
        if mixing and isotropic:
            raise ValueError("mixing=True needs noise='flexible': there is one σ.")
        # One feature has nothing to be mixed with.
        return bool(mixing) and n_features > 1

    def _checked_rank(self, n_features: int, n_frequencies: int) -> int:
        rank, mixes = self.mixing_rank, self._mixes(n_features)
        if isinstance(rank, str) and rank == "auto":
            return _RANK if mixes and n_features in _RANKED and not n_frequencies else 0
        if isinstance(rank, bool) or not (isinstance(rank, int | np.integer) and rank >= 0):
            raise ValueError(f"mixing_rank must be 'auto' or an integer >= 0, got {rank!r}.")
        if rank and not mixes and n_features > 1:
            raise ValueError(f"mixing_rank must be 0 or 'auto' without mixing, got {rank}.")
        return int(rank) if mixes else 0

    def weighs_marginals(self, n_features: int) -> bool:
        """Where no Fourier features make the tilt learn the marginals, nor noise is isotropic.

        Squared errors of mapped features are not those of the features.
        """
        return checked_frequencies(self.n_frequencies, n_features) == 0 and not self._is_isotropic()

    @property
    def weighs_smoothing(self) -> bool:
        """Always: the networks of the reference learn few rows by heart."""
        return True

    def build(
        self, n_features: int, n_components: int, *, generator: torch.Generator
    ) -> JointEnergy:
        from ..reference import FlexibleReference, IsotropicReference
        from ._joint import JointEnergy
        from ._tilts import NetworkTilt

        n_frequencies = checked_frequencies(self.n_frequencies, n_features)
        sizes = checked_sizes("hidden_layer_sizes", self.hidden_layer_sizes)
        kind: Callable[..., Reference] = partial(
            FlexibleReference,
            mixing=self._mixes(n_features),
            mixing_rank=self._checked_rank(n_features, n_frequencies),
        )
        if self._is_isotropic():
            kind = IsotropicReference
        reference = kind(
            n_features,
            n_components,
            min_scale=self._checked_min_scale(),
            generator=generator,
            hidden_layer_sizes=sizes,
        )
        tilt = NetworkTilt(
            n_features,
            n_components,
            checked_sizes("tilt_hidden_layer_sizes", self.tilt_hidden_layer_sizes),
            n_frequencies=n_frequencies,
            bound=self._checked_bound(),
            generator=generator,
        )
        share = _SHARE
        if n_frequencies and n_components >= n_features:
            share = 0.0
        elif n_frequencies and not self._is_isotropic():
            share = _SHARE_WITH_FREQUENCIES
        return JointEnergy(reference, tilt, reference_share=share)
