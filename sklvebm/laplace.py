r"""Where the posterior of each row peaks, and how it curves there, by quasi-Newton ascent.

All rows climb at once, from one or several starts, each with its own estimate H of the inverse
curvature (BFGS), which begins at a typical posterior covariance and ends as the covariance of a
Gaussian approximation of a peak of p(z | x): a proposal for importance sampling that costs a
gradient a step.

References
----------
J. Nocedal and S. J. Wright (2006), "Numerical Optimization", 2nd ed., chapter 6. L. Zhang,
B. Carpenter, A. Gelman and A. Vehtari (2022), "Pathfinder: parallel quasi-Newton variational
inference", JMLR 23 (Gaussians from quasi-Newton paths, several of them for several modes).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .langevin import LogDensity, Preconditioner, State, either, init, regularised, values
from .mixtures import Guess

# Least distance between two starts, in typical standard deviations.
_APART = 2.0
# Longest step, in standard deviations of the current estimate.
_MAX_STEP = 4.0
# A step along which the curvature is less than this share of what H says teaches nothing: H would
# stretch without bound where the density is flat or bends outwards.
_MIN_CURVATURE = 0.02
# Nor does a step shorter than this, in standard deviations: near a peak rounding takes over.
_MIN_STEP = 0.001
_SHRINK, _GROW = 0.3, 2.0
# Share of the draws that goes to the peaks in equal parts, whatever their estimated mass.
_EVEN = 0.5


def starts(
    guess: Tensor, covariance: Tensor, candidates: Tensor, log_density: LogDensity, n_starts: int
) -> Tensor:
    """``guess (n, m)`` and dense ones of ``candidates (p, m)`` for each row: ``(n, c, m)``.

    One after the other, each the densest of those that lie apart from all before, by the metric of
    ``covariance (m, m)`` or ``(n, m, m)``: the densest of all may share one peak.
    """
    begun = [guess]
    if n_starts > 1:
        factor = Preconditioner.from_covariance(regularised(covariance)).inverse_factor
        offered = candidates.expand(len(guess), *candidates.shape)
        value = values(log_density, offered)
        value = torch.nan_to_num(value, nan=-torch.inf, posinf=-torch.inf)
        for _ in range(n_starts - 1):
            gap = (offered - begun[-1][:, None]) @ factor.transpose(-1, -2)
            value = value.masked_fill(gap.square().sum(-1) < _APART**2, -torch.inf)
            begun.append(offered.take_along_dim(value.argmax(1)[:, None, None], 1)[:, 0])
    return torch.stack(begun, 1)


def laplace(
    start: Tensor, covariance: Tensor, log_density: LogDensity, *, n_steps: int, tol: float = 0.0
) -> Guess:
    """Climb from ``start`` by BFGS; the peaks found, the highest first.

    Parameters
    ----------
    start : Tensor of shape (n, c, m)
    covariance : Tensor of shape (m, m) or (n, m, m)
        First guess of the inverse curvature, symmetric and positive definite; stays so.
    log_density : callable
        Of positions ``(n, c, m)``.
    n_steps : int
        Gradients taken at most; a step that lowers the density is not gone, but its curvature is
        learned.
    tol : float
        A climber stays where H says that the peak is nearer than so many standard deviations,
        whatever the others do.

    Returns
    -------
    guess : Guess
        A component a start. Those that climbed a peak which another one climbed have no weight.
    """
    n, c, m = start.shape
    first = covariance.expand(n, m, m)[:, None].expand(n, c, m, m)
    state, inverse, length = init(start, log_density), first, start.new_ones(n, c)
    climbs = torch.ones_like(length, dtype=torch.bool)
    for _ in range(n_steps):
        direction = _times(inverse, state.gradient)
        size = (direction * state.gradient).sum(-1).clamp(min=1e-12)
        climbs = climbs & (size >= tol**2)
        if not climbs.any():
            break
        scale = torch.minimum(length, _MAX_STEP * size.rsqrt())
        step = scale[..., None] * direction
        proposal = init(state.position + step, log_density)
        change = torch.nan_to_num(state.gradient - proposal.gradient, posinf=0.0, neginf=0.0)
        # The step's squared length by H, which a quadratic of inverse curvature H has as sᵀy.
        expected = scale.square() * size
        inverse = _learned(inverse, step, change, expected, climbs)
        better = climbs & (proposal.log_density >= state.log_density)
        state = either(better, proposal, state)
        length = torch.where(better, (_GROW * length).clamp(max=1.0), _SHRINK * length)
    return _peaks(state, inverse, first)


def _learned(
    inverse: Tensor, step: Tensor, change: Tensor, expected: Tensor, climbs: Tensor
) -> Tensor:
    """The BFGS update of H (Nocedal and Wright, eq. 6.17), where sᵀy says something."""
    curvature = (step * change).sum(-1)
    learns = climbs & (curvature > _MIN_CURVATURE * expected) & (expected > _MIN_STEP**2)
    rho = torch.where(learns, 1 / curvature.clamp(min=1e-30), 0.0)
    moved = _times(inverse, change)
    along = (1 + rho * (change * moved).sum(-1)) * rho
    cross = step[..., :, None] * (rho[..., None] * moved)[..., None, :]
    grown = along[..., None, None] * step[..., :, None] * step[..., None, :]
    updated = inverse + grown - cross - cross.transpose(-1, -2)
    # Where nothing is learned a step may not be finite either.
    return torch.where((rho > 0)[..., None, None], updated, inverse)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _peaks(state: State, inverse: Tensor, first: Tensor) -> Guess:
    """Where the climbers stand as a mixture, weighted by the mass that each peak seems to have."""
    inverse = regularised(inverse)
    factor, failed = torch.linalg.cholesky_ex(inverse)
    # Rounding can cost the estimate its definiteness where the density is steep.
    inverse = torch.where((failed != 0)[..., None, None], first, inverse)
    log_det = torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
    least = torch.finfo(inverse.dtype).min
    height = torch.nan_to_num(state.log_density, nan=least, neginf=least)
    order = height.argsort(dim=1, descending=True, stable=True)
    height, log_det = (part.gather(1, order) for part in (height, torch.nan_to_num(log_det)))
    position = state.position.take_along_dim(order[..., None], 1)
    inverse = inverse.take_along_dim(order[..., None, None], 1)
    distinct = torch.ones_like(height, dtype=torch.bool)
    for i in range(1, height.shape[1]):
        gap = position[:, i : i + 1] - position[:, :i]
        distance = (gap * _times(torch.linalg.inv(inverse[:, :i]), gap)).sum(-1)
        distinct[:, i] = ~((distance < 1) & distinct[:, :i]).any(1)
    mass = torch.softmax((height + log_det - height[:, :1]).masked_fill(~distinct, -torch.inf), 1)
    even = distinct / distinct.sum(1, keepdim=True)
    return Guess(torch.lerp(mass, even.to(mass), _EVEN), position, inverse)
