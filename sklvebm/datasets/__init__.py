"""Data whose distribution is known: exact densities, and physical systems with exact identities.

What a fitted density is held against: on fresh data no model scores above minus the entropy, on
average. A :class:`KnownDensity` has ``sample``, ``log_prob`` and ``entropy``, in nats; a
:class:`DynamicalSystem` has ``sample`` and its ``velocity``. Arrays are numpy's.
"""

from ._base import KnownDensity
from ._densities import GaussianMixtureDensity, MultivariateT, PhiFourChain, twonorm
from ._planar import Checkerboard, Moons, Pinwheel, Rings, Spirals, SwissRoll, eight_gaussians
from ._systems import (
    DoublePendulum,
    Duffing,
    DynamicalSystem,
    FitzHughNagumo,
    Lorenz63,
    LotkaVolterra,
    MuellerBrown,
)

__all__ = [
    "Checkerboard",
    "DoublePendulum",
    "Duffing",
    "DynamicalSystem",
    "FitzHughNagumo",
    "GaussianMixtureDensity",
    "KnownDensity",
    "Lorenz63",
    "LotkaVolterra",
    "Moons",
    "MuellerBrown",
    "MultivariateT",
    "PhiFourChain",
    "Pinwheel",
    "Rings",
    "Spirals",
    "SwissRoll",
    "eight_gaussians",
    "twonorm",
]
