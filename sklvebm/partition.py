r"""log Z: reference draws and the joint pool, joined, and what is believed when they disagree.

References
----------
C. H. Bennett (1976), "Efficient estimation of free energy differences from Monte Carlo data",
J. Comput. Phys. 22. M. R. Shirts and J. D. Chodera (2008), "Statistically optimal analysis of
samples from multiple equilibrium states", J. Chem. Phys. 129 (its error). P. V. Klimovich,
M. R. Shirts and D. L. Mobley (2015), "Guidelines for the analysis of free energy calculations",
J. Comput. Aided Mol. Des. 29 (overlap, and forward against reverse, as checks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logsumexp
from torch import Tensor

from .annealing import DIRECT, Path, adapted_path, walk
from .energies._joint import JointEnergy
from .evidence import Posterior
from .langevin import LogDensity, Noise

# Estimates this many standard errors apart disagree; differences below a tenth of a nat do not
# matter to anyone.
_N_ERRORS = 4.0
_NEGLIGIBLE = 0.1
# A standard error of log Z beyond this (nats) is no error to publish: two of them are added.
_LARGE_STD = 0.25
# Overlap below which, and errors (nats) beyond which the forward and the reverse estimate are too
# poor to check the joint one: the path is then annealed, by steps that keep half of their particles
# effective, and refined.
_MIN_OVERLAP, _MAX_STD = 0.4, 0.1
_PATH_CESS = 0.5
_MAX_REFINEMENTS = 3
_N_WALKS = 2048
_CHUNK = 4096


class Bennett(NamedTuple):
    """log Z, its standard error, and the overlap of the two samples (0 apart, 1 the same law)."""

    value: float
    std: float
    overlap: float


class LogPartition(NamedTuple):
    """log Z in nats: the joint estimate, its standard error, and what else bears on it.

    ``forward``, from the reference, is low in expectation; ``reverse``, from the pool, is high;
    each has its own standard error. ``overlap`` is Bennett's, ``n_temperatures`` the number of
    intermediate temperatures that it took. ``apart`` is the highest estimate from a part of the
    pool alone (members that started elsewhere), with its error. ``excess`` is what
    :func:`excess_tilt` found.
    """

    value: float
    std: float
    forward: float
    reverse: float
    forward_std: float = 0.0
    reverse_std: float = 0.0
    overlap: float = 1.0
    n_temperatures: int = 0
    apart: float = -math.inf
    apart_std: float = 0.0
    excess: float = 0.0

    @property
    def is_sharp(self) -> bool:
        """Whether the forward and the reverse estimate are good enough to check the joint one."""
        errors = self.std, self.forward_std, self.reverse_std
        return self.overlap >= _MIN_OVERLAP and max(errors) <= _MAX_STD

    @property
    def raises(self) -> dict[str, float]:
        """Nats by which each piece of evidence says that ``value`` is too low.

        Too low a log Z makes every score too high. Reference draws that find a well which the pool
        never visits push ``forward``, low in expectation, above the joint estimate; members of the
        pool that sit where no reference draw falls push ``reverse`` and ``apart``; data in a well
        that neither visits show in ``excess``.
        """
        raises = {}
        for name, value, std in (
            ("reference draws alone", self.forward, self.forward_std),
            ("the pool alone", self.reverse, self.reverse_std),
            ("chains that started apart", self.apart, self.apart_std),
        ):
            if value > self.value + max(_N_ERRORS * math.hypot(self.std, std), _NEGLIGIBLE):
                raises[name] = value - self.value
        if self.std > _LARGE_STD:
            raises["two of its own standard errors"] = 2 * self.std
        if self.excess > 0:
            raises["data deeper in the tilt than the pool explains"] = self.excess
        return raises

    @property
    def conservative(self) -> float:
        """``value``, raised where the evidence says that it is too low."""
        others = [v for name, v in self.raises.items() if not name.startswith("data")]
        return self.value + max(others, default=0.0) + self.excess

    @property
    def disagrees(self) -> bool:
        """Whether ``value`` is too low by the other evidence, beyond errors."""
        return bool(self.raises)


def bennett(forward: NDArray, reverse: NDArray) -> Bennett:
    r"""log Z by Bennett's acceptance ratio.

    Parameters
    ----------
    forward, reverse : ndarray
        Log-weights of walks from the reference and of walks from the tilted law (ℓ = −f at the
        draws themselves, where the path is direct). log Z is the root of
        Σ σ(W − log Z + log(n₁/n₀)) = n₁ over both.
    """
    both = np.concatenate([forward, reverse]).astype(np.float64)
    n0, n1 = len(forward), len(reverse)
    offset = math.log(n1 / n0)

    def excess(log_z: float) -> float:
        return float(expit(both - log_z + offset).sum() - n1)

    if both.min() == both.max():
        return Bennett(float(both[0]), 0.0, 1.0)
    finite = both[np.isfinite(both)]
    value = brentq(excess, finite.min() - 50.0, finite.max() + 50.0, xtol=1e-10, maxiter=500)
    p = expit(both - value + offset)
    shared = max(float((p * (1 - p)).sum()), 1e-300)
    variance = 1 / shared - 1 / n0 - 1 / n1
    return Bennett(float(value), math.sqrt(max(variance, 0.0)), shared * (n0 + n1) / (n0 * n1))


def joined(forward: NDArray, reverse: NDArray, *, groups: Sequence[slice] = ()) -> LogPartition:
    """The estimates from log-weights of both directions; ``groups`` are parts of ``reverse``."""
    value, std, overlap = bennett(forward, reverse)
    parts = [bennett(forward, reverse[group]) for group in groups]
    highest = max(parts, default=Bennett(-math.inf, 0.0, 0.0))
    return LogPartition(
        value,
        std,
        float(logsumexp(forward) - math.log(len(forward))),
        float(math.log(len(reverse)) - logsumexp(-reverse)),
        forward_std=_weights_std(forward),
        reverse_std=_weights_std(-reverse),
        overlap=overlap,
        apart=highest.value,
        apart_std=highest.std,
    )


def _weights_std(log_weights: NDArray) -> float:
    """Standard error of log mean exp, by the delta method."""
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.std() / weights.mean() / math.sqrt(len(weights)))


def direct_log_partition(
    energy: JointEnergy,
    members: Tensor,
    *,
    n_reference: int,
    noise: Noise,
    groups: Sequence[slice] = (),
) -> LogPartition:
    """log Z from ``n_reference`` fresh reference draws and the pool's ``members (m, k + d)``."""
    if energy.tilt is None:
        return LogPartition(0.0, 0.0, 0.0, 0.0)
    fresh = noise.normal(members[:1].expand(n_reference, members.shape[1]))
    with torch.no_grad():
        forward, reverse = (
            torch.cat([energy.log_tilt(part) for part in v.split(_CHUNK)]).double().cpu().numpy()
            for v in (fresh, members)
        )
    return joined(_without_nan(forward), reverse, groups=groups)


def log_partition(
    energy: JointEnergy,
    members: Tensor,
    *,
    n_reference: int,
    noise: Noise,
    groups: Sequence[slice] = (),
) -> LogPartition:
    """log Z from the reference and ``members (m, k + d)`` of a pool in equilibrium.

    Direct where reference and pool overlap enough. Where they do not, along an annealed path whose
    temperatures a pilot run sets, refined until the forward and the reverse estimate are sharp or
    the budget is spent; their errors then say what they are worth.

    Parameters
    ----------
    energy : JointEnergy
    members : Tensor of shape (m, k + d)
    n_reference : int
        Reference draws of the direct estimate.
    noise : Noise
    groups : sequence of slice
        Parts of the pool that started apart; each gives an estimate of its own.
    """
    estimate = direct_log_partition(
        energy, members, n_reference=n_reference, noise=noise, groups=groups
    )
    if estimate.is_sharp:
        return estimate
    path = adapted_path(
        energy.log_tilt, members.shape[1], cess=_PATH_CESS, like=members, noise=noise
    )
    for _ in range(1 + _MAX_REFINEMENTS):
        estimate = _annealed(energy.log_tilt, members, path, groups, noise)
        if estimate.is_sharp:
            break
        path = path.refined()
    return estimate


def _annealed(
    log_tilt: LogDensity, members: Tensor, path: Path, groups: Sequence[slice], noise: Noise
) -> LogPartition:
    fresh = noise.normal(members[:1].expand(_N_WALKS, members.shape[1]))
    forward, reverse = (
        walk(v, log_tilt, path, forward=way, n_moves=1, noise=noise).double().cpu().numpy()
        for v, way in ((fresh, True), (members, False))
    )
    found = joined(_without_nan(forward), reverse, groups=groups)
    return found._replace(n_temperatures=len(path.betas) - len(DIRECT.betas))


def _without_nan(log_weights: NDArray) -> NDArray:
    """NaN, where the tilted law cannot be evaluated, as −∞: it weighs nothing there."""
    return np.nan_to_num(log_weights, nan=-math.inf, neginf=-math.inf, posinf=math.inf)


@torch.no_grad()
def excess_tilt(energy: JointEnergy, x: Tensor, posterior: Posterior, pool: Tensor) -> float:
    r"""How far E[−f] over data exceeds E[−f] over the pool, beyond what can be believed, in nats.

    The gain of the model over its reference is E_data[−f] − log Z on the data and E_p[−f] − log Z
    on its own samples, so log Z drops out of the difference. Data that lie far deeper in the tilt
    than the model's own samples are the mark of wells that the pool has not found: log Z is then
    too low by about this much. Two standard deviations of f over the pool and two nats are let
    pass.
    """
    if energy.tilt is None:
        return 0.0
    over_pool = energy.log_tilt(pool)
    over_data = (posterior.weights * -energy.tilt(x[:, None], posterior.draws)).sum(1)
    margin = 2 + 2 * float(over_pool.std())
    return max(0.0, float(over_data.mean()) - float(over_pool.mean()) - margin)
