r"""A row's posterior p(z | x) and its evidence ∫ exp(−E(x, z)) dz, by importance sampling.

Every row gets the effort that it needs: chains find its posterior, a Student-t fitted to them
proposes, and where the weights stay uneven more draws follow, then an annealed path from the
proposal to the posterior. What is done for a row depends on that row alone.

How much is done is decided by pilot draws that do not count: an answer kept because its own draws
look good would be high on average. So the evidence is unbiased whatever the effort, and its
logarithm is low in expectation (Jensen), by about half its squared standard error; so is a row
whose proposal missed a mode. These errors lower the score, never raise it on average.

References
----------
O. Cappé, R. Douc, A. Guillin, J.-M. Marin and C. P. Robert (2008), "Adaptive importance sampling in
general mixture classes", Statistics and Computing 18. R. M. Neal (2001), "Annealed importance
sampling", Statistics and Computing 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .langevin import (
    LogDensity,
    Noise,
    Preconditioner,
    State,
    StepSize,
    init,
    langevin_step,
    regularised,
)
from .particles import ACCEPTANCE

# Degrees of freedom of the Student-t proposals: heavy enough for a posterior twice as wide.
_PROPOSAL_DOF = 8.0
_INFLATION = 1.2
# Keeps uniforms off 0 and 1 in single precision.
_TINY = 1e-7
# Draws of the round that a proposal is fitted by, and of the round that counts; the same for rows
# that want more.
_PILOT, _SIZE, _MORE_PILOT, _MORE = 256, 256, 1024, 2048
# Standard errors of a pilot, in nats, beyond which a row gets more draws, and the annealed path.
_WANTS_MORE, _WANTS_ANNEALING = 0.2, 0.4
# Effective draws that moments need for each dimension before they count as much as the guess.
_ROWS_A_DIMENSION = 10
_N_ANNEALED, _N_TEMPERATURES = 128, 32
_CHUNK = 8


class Posterior(NamedTuple):
    """What is known of p(z | x) for each of n rows.

    ``log_evidence (n,)`` is log ∫ exp(−E(x, z)) dz and ``std (n,)`` its standard error in nats;
    ``mean (n, k)`` is E[z | x]; ``draws (n, s, k)`` carry ``weights (n, s)`` that sum to one a row.
    """

    log_evidence: Tensor
    std: Tensor
    mean: Tensor
    draws: Tensor
    weights: Tensor

    def updated(self, rows: Tensor, other: Posterior) -> Posterior:
        """With the answers of ``other`` for the indices ``rows``."""
        return Posterior(
            *(mine.index_copy(0, rows, new) for mine, new in zip(self, other, strict=True))
        )

    def refitted(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the draws, shrunk to the guess that these were drawn from.

        The fewer draws carry the weight, the less their moments say: modes that the guess covers
        must not be dropped because no draw happened to fall on them.
        """
        found, within = moments(self.draws, self.weights)
        effective = 1 / self.weights.square().sum(1)
        trust = (effective / (effective + _ROWS_A_DIMENSION * mean.shape[1]))[:, None]
        centre = trust * found + (1 - trust) * mean
        spread = [
            part + (apart[..., None] @ apart[:, None])
            for part, apart in ((within, found - centre), (covariance, mean - centre))
        ]
        trust = trust[..., None]
        return centre, trust * spread[0] + (1 - trust) * spread[1]

    def thinned(self, size: int) -> Posterior:
        """With ``size`` draws of equal weight a row, by systematic resampling."""
        weights = self.weights
        if weights.shape[1] == size:
            return self
        points = (torch.arange(size, dtype=weights.dtype, device=weights.device) + 0.5) / size
        points = points.expand(len(weights), size).contiguous()
        picks = torch.searchsorted(weights.cumsum(1), points).clamp(max=weights.shape[1] - 1)
        return self._replace(
            draws=self.draws.take_along_dim(picks[..., None], 1),
            weights=weights.new_full(picks.shape, 1 / size),
        )


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


def moments(draws: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(Weighted) mean ``(n, k)`` and covariance ``(n, k, k)`` of ``draws (n, s, k)``."""
    if weights is None:
        weights = draws.new_full(draws.shape[:2], 1 / draws.shape[1])
    mean = (weights[..., None] * draws).sum(1)
    centred = draws - mean[:, None]
    return mean, (weights[..., None] * centred).transpose(1, 2) @ centred


def guess_from(particles: Tensor, spread: Tensor, n_heavy: int | None) -> tuple[Tensor, Tensor]:
    """Mean ``(n, m)`` and covariance ``(n, m, m)`` of ``particles (n, p, m)``.

    Where ``n_heavy`` says that coordinates of missing features follow the latents, few particles
    say little of how so many vary together: the covariance leans on ``spread``.
    """
    mean, covariance = moments(particles)
    if n_heavy is not None:
        n, m = particles.shape[1:]
        covariance = torch.lerp(spread, covariance, n / (n + _ROWS_A_DIMENSION * m))
    return mean, covariance


class StudentT:
    """Student-t proposals of n rows, with unit-scale draws shared between them.

    Parameters
    ----------
    mean : Tensor of shape (n, m)
    covariance : Tensor of shape (n, m, m)
        Scale matrices.
    n_heavy : int or None
        The leading coordinates that are Student-t; the others are Gaussian given these. A tail in
        every one of many coordinates would cost most of the effective draws.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, n_heavy: int | None = None) -> None:
        self.mean = mean
        self.n_heavy = mean.shape[1] if n_heavy is None else n_heavy
        self.preconditioner = Preconditioner.from_covariance(regularised(covariance))
        factor = self.preconditioner.factor
        self.log_det = torch.diagonal(factor, dim1=1, dim2=2).log().sum(-1)

    def _unit_log_prob(self, t: Tensor) -> Tensor:
        k, dof = self.n_heavy, _PROPOSAL_DOF
        constant = math.lgamma((dof + k) / 2) - math.lgamma(dof / 2)
        constant -= 0.5 * k * math.log(dof * math.pi)
        square = t.square()
        heavy = 0.5 * (dof + k) * torch.log1p(square[..., :k].sum(-1) / dof)
        if k < t.shape[-1]:
            heavy = heavy + 0.5 * (square[..., k:] + math.log(2 * math.pi)).sum(-1)
        return constant - heavy

    def sample(self, size: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """Draws ``(n, size, k)`` and their log-densities ``(n, size)``."""
        m, half = self.mean.shape[1], int(_PROPOSAL_DOF) // 2
        like = self.mean.new_empty(1, 1, 1).expand(len(self.mean), size, m + half)
        uniforms = noise.points(like).clamp(_TINY, 1 - _TINY)
        normal = torch.special.ndtri(uniforms[..., :m])
        # χ²_ν for even ν is twice a sum of ν/2 unit exponentials.
        chi2 = -2 * uniforms[..., m:].log().sum(-1, keepdim=True)
        heavy = normal[..., : self.n_heavy] * torch.rsqrt(chi2 / _PROPOSAL_DOF)
        t = torch.cat([heavy, normal[..., self.n_heavy :]], -1)
        draws = self.mean[:, None] + t @ self.preconditioner.factor.transpose(1, 2)
        return draws, self._unit_log_prob(t) - self.log_det[:, None]

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-densities ``(n, s)`` of ``z (n, s, k)``."""
        t = (z - self.mean[:, None]) @ self.preconditioner.inverse_factor.transpose(1, 2)
        return self._unit_log_prob(t) - self.log_det[:, None]


def _proposal(
    mean: Tensor, covariance: Tensor, spread: Tensor, n_heavy: int | None = None
) -> StudentT:
    """A little of the typical posterior covariance keeps a row with few draws regular."""
    return StudentT(mean, _INFLATION * covariance + 0.05 * spread, n_heavy)


def _weighted(log_weights: Tensor, draws: Tensor) -> Posterior:
    """The answers that log-weights ``(n, s)`` of ``draws (n, s, k)`` give."""
    # A draw that underflows gets the least finite number, not −∞: a row so far out that all of
    # its draws do keeps equal weights, and scores as low as a float can.
    least = torch.finfo(log_weights.dtype).min
    log_weights = torch.nan_to_num(log_weights, nan=least, neginf=least)
    weights = torch.softmax(log_weights, 1)
    n = weights.shape[1]
    variance = (weights.square().sum(1) - 1 / n).clamp(min=0)
    log_evidence = torch.logsumexp(log_weights, 1) - math.log(n)
    mean = (weights[..., None] * draws).sum(1)
    return Posterior(log_evidence, variance.sqrt(), mean, draws, weights)


def importance(
    log_density: LogDensity,
    mean: Tensor,
    covariance: Tensor,
    *,
    spread: Tensor,
    sizes: tuple[int, ...],
    noise: Noise,
    n_draws: int | None = None,
    n_heavy: int | None = None,
) -> Posterior:
    """Adaptive importance sampling of each row from a Student-t.

    Parameters
    ----------
    log_density : callable
        log p(x, z) for ``z (n, s, k)``.
    mean, covariance : Tensor of shape (n, k) and (n, k, k)
        Guess of each row's posterior.
    spread : Tensor of shape (k, k) or (n, k, k)
        A typical posterior covariance.
    sizes : tuple of int
        Draws of each round; a round's proposal is fitted to the round before, the last one counts.
    noise : Noise
    n_draws : int, optional
        Draws that the answer keeps; all of the last round by default.
    n_heavy : int, optional
        Leading coordinates whose proposals have heavy tails; all by default.
    """
    found = None
    for size in sizes:
        if found is not None:
            mean, covariance = found.refitted(mean, covariance)
        draws, log_q = _proposal(mean, covariance, spread, n_heavy).sample(size, noise)
        with torch.no_grad():
            log_weights = log_density(draws) - log_q
        found = _weighted(log_weights, draws)
    assert found is not None
    return found.thinned(n_draws or sizes[-1])


def annealed(
    log_density: LogDensity,
    mean: Tensor,
    covariance: Tensor,
    *,
    spread: Tensor,
    noise: Noise,
    n_draws: int,
    n_heavy: int | None = None,
) -> Posterior:
    """Annealed importance sampling of each row, from a Student-t q along q^{1−β} p^β.

    A first walk with few particles sets the step sizes, one a row and temperature; the walk that
    counts keeps them fixed.
    """
    proposal = _proposal(mean, covariance, spread, n_heavy)
    betas = (torch.arange(_N_TEMPERATURES + 1, dtype=torch.float64) / _N_TEMPERATURES).square()
    adapting = StepSize(
        "auto", initial=mean.new_full((len(mean),), 0.3), target=ACCEPTANCE["mala"], rate=0.5
    )
    steps: list[Tensor] = []
    for counts in (False, True):
        z, log_q = proposal.sample(_N_ANNEALED if counts else 16, noise)
        state = init(z, lambda z: log_density(z) - proposal.log_prob(z))
        log_weights = torch.zeros_like(log_q)
        for t, gap in enumerate(betas.diff().tolist()):
            log_weights = log_weights + gap * state.log_density
            beta = float(betas[t + 1])
            step_size = steps[t] if counts else adapting.value
            state, info = _tempered_step(state, log_density, proposal, beta, step_size, noise)
            if not counts:
                adapting.update(info)
                steps.append(adapting.value)
    return _weighted(log_weights, state.position).thinned(n_draws)


def _tempered_step(state, log_density, proposal, beta, step_size, noise):
    """A MALA step on q^{1−β} p^β; the state carries log p/q, what the weights need."""

    def tempered(z: Tensor) -> Tensor:
        log_q = proposal.log_prob(z)
        return log_q + beta * (log_density(z) - log_q)

    moved, info = langevin_step(
        init(state.position, tempered),
        tempered,
        step_size=step_size[:, None],
        noise=noise,
        metropolis=True,
        preconditioner=proposal.preconditioner,
    )
    with torch.no_grad():
        ratio = log_density(moved.position) - proposal.log_prob(moved.position)
    return State(moved.position, ratio, moved.gradient), info


def row_posterior(
    density_of: Callable[[Tensor], LogDensity],
    x: Tensor,
    particles: Tensor,
    *,
    spread: Tensor,
    noise: Callable[[int], Noise],
    n_heavy: int | None = None,
) -> Posterior:
    """The posterior of each row of ``x (n, d)``, with the effort that each one needs.

    Parameters
    ----------
    density_of : callable
        ``density_of(x)`` is log p(x, z) as a function of ``z (n, s, k)``.
    x : Tensor of shape (n, d)
    particles : Tensor of shape (n, p, k)
        Where chains have found the posterior of each row.
    spread : Tensor of shape (k, k) or (n, k, k)
        A typical posterior covariance.
    noise : callable
        ``noise(i)`` is the noise of round i, anew at each call: a row's answer then does not
        depend on which other rows need that round.
    n_heavy : int, optional
        Leading coordinates whose proposals have heavy tails; all by default.
    """
    spread = spread.expand(len(x), *spread.shape[-2:])
    density, guess = density_of(x), guess_from(particles, spread, n_heavy)
    options: dict[str, Any] = {"spread": spread, "n_heavy": n_heavy}
    pilot = importance(density, *guess, sizes=(_PILOT,), noise=noise(1), **options)
    guess = pilot.refitted(*guess)
    found = importance(density, *guess, sizes=(_SIZE,), noise=noise(2), **options)
    for rows in _few(pilot.std > _WANTS_MORE):
        density, at = density_of(x[rows]), tuple(part[rows] for part in guess)
        options = {"spread": spread[rows], "n_heavy": n_heavy}
        pilot = importance(density, *at, sizes=(_MORE_PILOT,), noise=noise(3), **options)
        at = pilot.refitted(*at)
        more = importance(density, *at, sizes=(_MORE,), noise=noise(4), n_draws=_SIZE, **options)
        found = found.updated(rows, more)
        hard = pilot.std > _WANTS_ANNEALING
        if bool(hard.any()):
            last = annealed(
                density_of(x[rows[hard]]),
                *(part[hard] for part in at),
                spread=spread[rows[hard]],
                noise=noise(5),
                n_draws=_SIZE,
                n_heavy=n_heavy,
            )
            found = found.updated(rows[hard], last)
    return found


def _few(mask: Tensor) -> Iterator[Tensor]:
    """Indices of the rows of ``mask``, a few at a time: these rounds take much memory a row."""
    for rows in torch.nonzero(mask)[:, 0].split(_CHUNK):
        if len(rows):
            yield rows
