r"""The likelihood: log Z, and for each row its posterior and its evidence.

.. math:: \log p(x) = \log ∫ e^{−E(x, z)} dz − \log Z

References
----------
C. H. Bennett (1976), "Efficient estimation of free energy differences from Monte Carlo data",
J. Comput. Phys. 22. M. R. Shirts and J. D. Chodera (2008), "Statistically optimal analysis of
samples from multiple equilibrium states", J. Chem. Phys. 129 (its error). O. Cappé, R. Douc,
A. Guillin, J.-M. Marin and C. P. Robert (2008), "Adaptive importance sampling in general mixture
classes", Statistics and Computing 18.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logsumexp
from torch import Tensor

from .energies._joint import JointEnergy
from .langevin import LogDensity, Noise, Preconditioner, StepSize, init, langevin_step
from .particles import ACCEPTANCE, JointPool, regularised

# Degrees of freedom of the Student-t proposals: heavy enough for a posterior twice as wide.
_PROPOSAL_DOF = 8.0
_INFLATION = 1.2
_ENOUGH_RENEWALS = 5.0


class LogPartition(NamedTuple):
    """log Z in nats: the joint estimate, its standard error, and the one-sided estimates.

    ``forward``, from reference draws, is low in expectation; ``reverse``, from the pool, is high.
    ``excess`` is what :func:`excess_tilt` found.
    """

    value: float
    std: float
    forward: float
    reverse: float
    forward_std: float = 0.0
    excess: float = 0.0

    @property
    def conservative(self) -> float:
        """``value``, raised where the evidence says that it is too low.

        Too low a log Z makes every score too high. Reference draws that find a well which the pool
        never visits push ``forward``, low in expectation, above the joint estimate; data in a well
        that neither visits show in ``excess``.
        """
        error = 4 * math.hypot(self.std, self.forward_std)
        above = self.forward > self.value + max(error, 0.1)
        return (self.forward if above else self.value) + self.excess

    @property
    def disagrees(self) -> bool:
        """Whether ``value`` is too low by the other evidence, beyond errors."""
        return self.conservative > self.value


class Posterior(NamedTuple):
    """Importance-weighted draws of z for each row.

    ``log_evidence (n,)`` is log ∫ exp(−E(x, z)) dz and ``std (n,)`` its standard error in nats;
    ``draws (n, s, k)`` carry ``weights (n, s)`` that sum to one a row.
    """

    log_evidence: Tensor
    std: Tensor
    draws: Tensor
    weights: Tensor

    @property
    def mean(self) -> Tensor:
        """Posterior mean of z, ``(n, k)``."""
        return (self.weights[..., None] * self.draws).sum(1)


def explore(
    start: Tensor,
    log_density: LogDensity,
    *,
    preconditioner: Preconditioner,
    initial_step_size: float,
    n_burn: int,
    n_keep: int,
    noise: Noise,
) -> Tensor:
    """MALA from ``start (n, p, k)``, each row adapting a step size of its own while it burns in.

    Returns the positions of the last ``n_keep`` steps, ``(n, n_keep · p, k)``: the last p of them
    are where the chains stand.
    """
    state = init(start, log_density)
    initial = start.new_full((len(start),), initial_step_size)
    step_size = StepSize("auto", initial=initial, target=ACCEPTANCE["mala"], rate=0.3)
    kept = []
    for i in range(n_burn + n_keep):
        state, info = langevin_step(
            state,
            log_density,
            step_size=step_size.value[:, None],
            noise=noise,
            metropolis=True,
            preconditioner=preconditioner,
        )
        if i < n_burn:
            step_size.update(info)
        else:
            kept.append(state.position)
    return torch.cat(kept, 1)


def _moments(draws: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean ``(n, k)`` and covariance ``(n, k, k)`` of ``draws (n, s, k)``."""
    mean = (weights[..., None] * draws).sum(1)
    centred = draws - mean[:, None]
    return mean, (weights[..., None] * centred).transpose(1, 2) @ centred


def _student(noise: Noise, like: Tensor) -> tuple[Tensor, Tensor]:
    """Multivariate Student-t draws with unit scale matrix, and their log-density."""
    k, dof = like.shape[-1], _PROPOSAL_DOF
    normal = noise.normal(like)
    # χ²_ν for even ν is twice a sum of ν/2 unit exponentials.
    uniforms = noise.uniform(like[..., :1].expand(*like.shape[:-1], int(dof) // 2))
    chi2 = -2 * torch.log1p(-uniforms).sum(-1, keepdim=True)
    t = normal * torch.rsqrt(chi2 / dof)
    constant = math.lgamma((dof + k) / 2) - math.lgamma(dof / 2) - 0.5 * k * math.log(dof * math.pi)
    return t, constant - 0.5 * (dof + k) * torch.log1p(t.square().sum(-1) / dof)


def importance(
    log_density: LogDensity,
    particles: Tensor,
    spread: Tensor,
    *,
    sizes: tuple[int, ...],
    noise: Noise,
) -> Posterior:
    """Adaptive importance sampling of each row from a Student-t fitted to its particles.

    Parameters
    ----------
    log_density : callable
        log p(x, z) for ``z (n, s, k)``.
    particles : Tensor of shape (n, p, k)
    spread : Tensor of shape (k, k)
        A typical posterior covariance; a little of it keeps a row with few particles regular.
    sizes : tuple of int
        Draws of each round; a round's proposal is fitted to the round before, the last one counts.
    noise : Noise
    """
    n, p, k = particles.shape
    mean, covariance = _moments(particles, particles.new_full((n, p), 1 / p))
    for size in sizes:
        factor = torch.linalg.cholesky(regularised(_INFLATION * covariance + 0.05 * spread))
        t, log_q = _student(noise, particles.new_empty(1, size, k).expand(n, size, k))
        draws = mean[:, None] + t @ factor.transpose(1, 2)
        log_det = torch.diagonal(factor, dim1=1, dim2=2).log().sum(-1)
        with torch.no_grad():
            log_weights = log_density(draws) - log_q + log_det[:, None]
        # A draw that underflows gets the least finite number, not −∞: a row so far out that all
        # of its draws do keeps equal weights, and scores as low as a float can.
        least = torch.finfo(log_weights.dtype).min
        weights = torch.softmax(torch.nan_to_num_(log_weights, nan=least, neginf=least), 1)
        mean, covariance = _moments(draws, weights)
    ess = 1 / weights.square().sum(1)
    log_evidence = torch.logsumexp(log_weights, 1) - math.log(size)
    return Posterior(log_evidence, (1 / ess - 1 / size).clamp(min=0).sqrt(), draws, weights)


def bennett(forward: NDArray, reverse: NDArray) -> tuple[float, float]:
    r"""log Z and its standard error by Bennett's acceptance ratio.

    Parameters
    ----------
    forward, reverse : ndarray
        Log-tilts ℓ = −f at draws from N(0, I) and at draws from N(0, I) eˡ / Z. The root of
        Σ σ(ℓ − log Z + log(n₁/n₀)) = n₁ over both.
    """
    both = np.concatenate([forward, reverse]).astype(np.float64)
    n0, n1 = len(forward), len(reverse)
    offset = math.log(n1 / n0)

    def excess(log_z: float) -> float:
        return float(expit(both - log_z + offset).sum() - n1)

    low, high = both.min() - 50.0, both.max() + 50.0
    if both.min() == both.max():
        return float(both[0]), 0.0
    value = brentq(excess, low, high, xtol=1e-10)
    p = expit(both - value + offset)
    variance = 1 / max(float((p * (1 - p)).sum()), 1e-300) - 1 / n0 - 1 / n1
    return float(value), math.sqrt(max(variance, 0.0))


@torch.no_grad()
def log_partition(
    energy: JointEnergy, pool: JointPool, *, n_sweeps: int, n_reference: int, noise: Noise
) -> LogPartition:
    """log Z from fresh reference draws joined to the pool, after up to ``n_sweeps`` moves of it.

    The moves end early once every member has been replaced by an independent draw about
    five times over.
    """
    if energy.tilt is None:
        return LogPartition(0.0, 0.0, 0.0, 0.0)
    renewed = 0.0
    for _ in range(n_sweeps):
        pool.advance(slice(None), energy.log_tilt)
        renewed += pool.sweep_acceptance
        if renewed > _ENOUGH_RENEWALS:
            break
    m = pool.position.shape[1]
    fresh = noise.normal(pool.position[:1].expand(n_reference, m))
    forward, reverse = (
        torch.cat([energy.log_tilt(part) for part in v.split(4096)]).double().cpu().numpy()
        for v in (fresh, pool.position)
    )
    value, std = bennett(forward, reverse)
    return LogPartition(
        value,
        std,
        float(logsumexp(forward) - math.log(len(forward))),
        float(math.log(len(reverse)) - logsumexp(-reverse)),
        forward_std=_weights_std(forward),
    )


def _weights_std(log_weights: NDArray) -> float:
    """Standard error of log mean exp, by the delta method."""
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.std() / weights.mean() / math.sqrt(len(weights)))


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
