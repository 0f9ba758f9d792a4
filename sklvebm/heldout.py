"""The held-out log-likelihood that training is judged by, from evaluation to evaluation."""

from __future__ import annotations

import math

import torch
from numpy.typing import NDArray
from torch import Tensor

from ._arrays import generator_from_seed, to_numpy
from .energies._joint import JointEnergy
from .evidence import Posterior, importance
from .langevin import Noise, regularised
from .laplace import laplace, starts
from .particles import JointPool
from .partition import direct_log_partition, excess_tilt
from .rows import Rows
from .saddle import Evaluation
from .state import Stateful

# A mean over a handful of rows says little: at least 20 rows, or a quarter of the table. More than
# a few hundred would cost more than they tell: the same rows are compared from evaluation to
# evaluation, with the same noise.
_MIN_ROWS, _MAX_SHARE, _MAX_ROWS = 20, 1 / 4, 256
# What a row gets at an evaluation: starts, the best of so many candidates but for the peak found
# last time; quasi-Newton steps from each; draws. And the reference draws of log Z.
_N_STARTS, _N_CANDIDATES, _N_CLIMB, _N_DRAWS = 3, 64, 10, 128
# Moves of the pool to the energy that is evaluated.
_N_MOVES = 3
_N_REFERENCE_DRAWS = 8192


def n_held_out(n: int, fraction: float) -> int:
    """How many of ``n`` rows are held out if a ``fraction`` is asked for; 0 if too few remain."""
    size = max(math.ceil(fraction * n), min(_MIN_ROWS, int(_MAX_SHARE * n)))
    size = min(size, _MAX_ROWS)
    return size if n - size >= 2 else 0


def which_held_out(weight: NDArray, fraction: float) -> list[int]:
    """The first rows, of these ``weight (n,)``, that may be held out; none if too few remain.

    As many as :func:`n_held_out` says, and no more than that share of the whole weight: a row that
    is most of a table cannot be left out of training.
    """
    size = n_held_out(len(weight), fraction)
    left = size / len(weight) * float(weight.sum()) * (1 + 1e-9)
    found: list[int] = []
    for row, mass in enumerate(weight.tolist()):
        if len(found) == size:
            break
        if mass <= left:
            found.append(row)
            left -= mass
    return found


def random_split(
    weight: NDArray, fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A random order of rows that count ``weight (n,)``, and which in that order are held out."""
    order = torch.randperm(len(weight), generator=generator, device=generator.device)
    held_out = torch.zeros(len(weight), dtype=torch.bool)
    held_out[which_held_out(weight[to_numpy(order)], fraction)] = True
    return order, held_out.to(generator.device)


class HeldOut(Stateful):
    """Held-out rows, and the modes of their posteriors, which follow the energy.

    Parameters
    ----------
    rows : Rows
    modes : Tensor of shape (n, m)
        First guesses of what is not seen of each row: the latents, m = k, and where entries of the
        table are missing, the features behind them, m = k + d.
    n_heavy : int or None
        As :func:`~sklvebm.evidence.importance` takes it.
    seed : int
        Of the draws, the same at every evaluation: their differences are less noisy.
    noise : Noise
        Of the candidates, new at every evaluation.

    Attributes
    ----------
    log_evidence : Tensor of shape (n,)
        log ∫ exp(−E(x, z)) dz of each row as the last evaluation found it; empty before the first.
    """

    STATE = ("modes",)

    def __init__(
        self, rows: Rows, modes: Tensor, *, n_heavy: int | None, seed: int, noise: Noise
    ) -> None:
        self.rows, self.modes = rows, modes
        self.log_evidence = modes.new_empty(0)
        self.n_heavy, self.seed, self.noise = n_heavy, seed, noise

    def evaluate(
        self,
        energy: JointEnergy,
        covariance: Tensor,
        members: Tensor | None,
        pool: JointPool,
    ) -> Evaluation:
        """Mean log p of the rows.

        ``covariance (m, m)`` is that of a row's posterior, pooled; ``members`` are those of the
        joint pool of all processes, ``pool`` this one's. Without members f ≡ 0, and Z = 1.
        """
        x, fixed = self.rows.x, Noise(generator_from_seed(self.seed, self.rows.x.device))
        posterior = self.posterior(energy, covariance, fixed)
        self.log_evidence = posterior.log_evidence
        log_z = 0.0
        if members is not None:
            members = _settled(members, energy, pool, fixed)
            found_z = direct_log_partition(
                energy, members, proposal=pool.proposal, n_draws=_N_REFERENCE_DRAWS, noise=fixed
            )
            excess = excess_tilt(energy, x, posterior, members)
            log_z = found_z._replace(excess=excess).conservative
        log_likelihood = self.rows.mean(posterior.log_evidence) - log_z
        return Evaluation(float(log_likelihood), float(log_z))

    def posterior(self, energy: JointEnergy, covariance: Tensor, noise: Noise) -> Posterior:
        """That of each row, from draws by ``noise``; its modes are where the next search starts."""
        x, spread, density = self.rows.x, regularised(covariance), energy.posterior(self.rows.x)
        like = x.new_empty(1, 1).expand(_N_CANDIDATES, self.modes.shape[1])
        begun = starts(self.modes, spread, self.noise.normal(like), density, _N_STARTS)
        found = laplace(begun, spread, density, n_steps=_N_CLIMB)
        # A view would hold, and a file would carry, all that was found.
        self.modes = found.mean[:, 0].clone()
        return importance(
            density, found, spread=spread, sizes=(_N_DRAWS,), noise=noise, n_heavy=self.n_heavy
        )


def _settled(members: Tensor, energy: JointEnergy, pool: JointPool, noise: Noise) -> Tensor:
    """The members a few moves on, under the energy that is evaluated.

    It is an average of the energies that they have followed in training, and log Z wants members of
    its own law.
    """
    step_size = float(pool.step_size.value)
    moving = JointPool(members, dynamics="mala", n_steps=1, step_size=step_size, noise=noise)
    moving.proposal = pool.proposal
    moving.settle(energy.log_tilt, _N_MOVES)
    return moving.position
