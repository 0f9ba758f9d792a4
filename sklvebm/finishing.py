"""From a trained energy to a model that answers: equilibrium, log Z, starts, diagnostics."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._arrays import to_numpy
from .axes import principal_axes
from .completion import apart
from .diagnostics import MAX_RHAT, conditional_mixing, joint_mixing
from .energies import EnergySpec
from .energies._joint import JointEnergy
from .evidence import Posterior, importance
from .langevin import Noise, regularised
from .laplace import laplace, starts
from .mixtures import moments
from .model import MANY_STARTS, Model, Moves
from .particles import JointPool
from .partition import LogPartition, excess_tilt, log_partition
from .reconstruction import FEWEST, affordable
from .rows import Rows

_N_CALIBRATION, _N_CANDIDATES, _N_CLIMB, _SIZES = 256, 64, 20, (64, 256)
# Nats that several starts of the search for a row's peaks must add to its evidence, in the mean
# over rows, for every row to get them.
_WORTH_STARTING = 0.01
_N_DIAGNOSED, _N_DIAGNOSED_DRAWS = 16, 50
# Share of the pool that starts from data: where it settles elsewhere, the pool is not mixing.
_SHARE_APART = 0.25
_N_SWEEPS, _MAX_ROUNDS = 60, 3
# Rows whose surroundings log Z is asked to cover.
_N_COVERED = 4096
# Rows among which those that miss nothing are sought, of each that the way back is learned from.
_N_SEARCHED = 4


class Guesses(NamedTuple):
    """Where the latents of each row are, ``location (n, m)``, and their ``covariance (m, m)``."""

    location: Tensor
    covariance: Tensor


def finish(
    spec: EnergySpec,
    energy: JointEnergy,
    rows: Rows,
    held_out: Rows | None,
    guesses: Guesses,
    pool: JointPool,
    *,
    seed: int,
    noise: Noise,
) -> tuple[Model, dict[str, float]]:
    """Freeze ``energy`` and make the model that answers from it.

    Parameters
    ----------
    spec : EnergySpec
    energy : JointEnergy
    rows : Rows
        What was trained on.
    held_out : Rows or None
    guesses : Guesses
    pool : JointPool
        The trained negatives.
    seed : int
        Of every deterministic answer of the model.
    noise : Noise

    Returns
    -------
    model : Model
    diagnostics : dict
        R-hat and ESS of both flows.
    """
    energy.eval().requires_grad_(False)
    k = energy.reference.n_components
    model = Model(
        spec,
        energy,
        rows.x.new_zeros(rows.x.shape[1] + 1, k),
        guesses.covariance[:k, :k],
        pool.position,
        LogPartition(0.0, 0.0, 0.0, 0.0),
        principal_axes(energy, seed=seed),
        seed,
    )
    order = rows.order(noise.generator)
    picks = order[:_N_CALIBRATION]
    seen, guess = _complete(model, rows.x[picks], guesses.location[picks, :k])
    if energy.is_gaussian:
        mean, model.covariance = energy.reference.linear_posterior(seen)
        model.start = _ridge(seen, mean)
        return model, {}
    model.rows = _kept(rows.x, order)
    _calibrate(model, seen, guess, noise)
    diagnostics = _diagnosed(model, rows.x[picks], noise)
    if energy.tilt is not None:
        n_apart = max(1, int(_SHARE_APART * len(pool.position)))
        started = _paired(model, rows.x[picks[:n_apart]], noise)
        model.pool, trace, step_size = equilibrated(energy, pool, started, n_apart, noise)
        diagnostics |= joint_mixing(trace, n_apart)
        data = _joint(energy, rows.x[order[:_N_COVERED]], guesses.location[order[:_N_COVERED], :k])
        log_z = log_partition(energy, model.pool, n_apart=n_apart, data=data, noise=noise)
        judged = rows[picks] if held_out is None else held_out
        excess = _excess(model, max(_apart(judged.x[:_N_CALIBRATION]), key=len))
        model.log_partition = log_z._replace(excess=excess)
        model.moves = _moves(energy, model.pool, step_size, noise)
    return model, diagnostics


def _kept(x: Tensor, order: Tensor) -> Tensor | None:
    """The first of ``x (n, d)``, in this order, that miss nothing; None if too few differ."""
    n_rows = affordable(x.shape[1])
    some = x[order[: _N_SEARCHED * n_rows]]
    complete = some[~torch.isnan(some).any(1)][:n_rows]
    return complete if len(complete.unique(dim=0)) >= FEWEST else None


def _complete(model: Model, x: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that miss nothing, and guesses of their latents: ``x``, or the pool where it does."""
    if not bool(torch.isnan(x).any()):
        return x, guess
    with torch.no_grad():
        return model.energy.reference.split(model.pool[:_N_CALIBRATION])


def _calibrate(model: Model, x: Tensor, guess: Tensor, noise: Noise) -> None:
    """Set where the search for a row's posterior starts, how far it reaches, and from how many."""
    density, spread = model.energy.posterior(x), regularised(model.covariance)
    candidates = noise.normal(guess[:1].expand(_N_CANDIDATES, -1))
    answers = []
    for n_starts in (MANY_STARTS, 1):
        begun = starts(guess, spread, candidates, density, n_starts)
        found = laplace(begun, spread, density, n_steps=_N_CLIMB)
        answers.append(importance(density, found, spread=spread, sizes=_SIZES, noise=noise))
    many, one = answers
    if float((many.log_evidence - one.log_evidence).mean()) > _WORTH_STARTING:
        model.n_starts = MANY_STARTS
    mean, within = moments(many.draws, many.weights)
    model.covariance, model.start = within.mean(0), _ridge(x, mean)


@torch.no_grad()
def _joint(energy: JointEnergy, x: Tensor, guess: Tensor) -> Tensor:
    """The rows that miss nothing, in the pool's coordinates, ``(n, k + d)``."""
    complete = ~torch.isnan(x).any(1)
    return energy.reference.join(x[complete], guess[complete])


def _apart(x: Tensor) -> list[Tensor]:
    return [x[rows] for rows in apart(x)]


@torch.no_grad()
def _paired(model: Model, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """A draw of the latents and of the missing entries of each row: x ``(n, d)``, z ``(n, k)``."""
    pairs = [
        model.energy.complete(part, model.explore(part, noise=noise)[:, -1:]) for part in _apart(x)
    ]
    x, z = (torch.cat(parts)[:, 0] for parts in zip(*pairs, strict=True))
    return x, z


def _excess(model: Model, x: Tensor) -> float:
    posterior = Posterior(*map(torch.cat, zip(*model.posterior(x), strict=True)))
    return excess_tilt(model.energy, x, posterior, model.pool)


def _diagnosed(model: Model, x: Tensor, noise: Noise) -> dict[str, float]:
    x = _apart(x)[-1][:_N_DIAGNOSED]
    draws = model.explore(x, noise=noise, n_keep=_N_DIAGNOSED_DRAWS)
    draws = draws.reshape(len(x), _N_DIAGNOSED_DRAWS, -1, draws.shape[-1]).transpose(1, 2)
    return conditional_mixing(to_numpy(draws))


def equilibrated(
    energy: JointEnergy,
    pool: JointPool,
    data: tuple[Tensor, Tensor],
    n_apart: int,
    noise: Noise,
) -> tuple[Tensor, np.ndarray, float]:
    """The pool with its last ``n_apart`` members started from data, after moves; and their trace.

    The moves go on while the two parts disagree, up to a limit. Returns the members
    ``(m, k + d)``, −f of each after each of the later moves, ``(m, n_draws)``, and the step size.
    """
    x, z = data
    rows = torch.arange(n_apart, device=x.device) % len(x)
    started = energy.reference.join(x[rows], z[rows])
    members = torch.cat([pool.position[: len(pool.position) - n_apart], started])
    moving = JointPool(members, dynamics="mala", n_steps=1, step_size="auto", noise=noise)
    moving.proposal = pool.proposal
    for _ in range(_MAX_ROUNDS):
        trace = moving.settle(energy.log_tilt, _N_SWEEPS)
        late = to_numpy(trace[:, _N_SWEEPS // 2 :]).astype(np.float64)
        if joint_mixing(late, n_apart)["rhat_joint"] <= MAX_RHAT:
            break
    return moving.position, late, float(moving.step_size.value)


def _moves(energy: JointEnergy, members: Tensor, step_size: float, noise: Noise) -> Moves:
    """The step size, and how often ``members`` take a fresh draw of the reference."""
    probe = JointPool(members, dynamics="mala", n_steps=1, step_size=step_size, noise=noise)
    probe.settle(energy.log_tilt, 1)
    return Moves(step_size, probe.sweep_acceptance)


def _ridge(x: Tensor, z: Tensor) -> Tensor:
    """Ridge regression of z on (x, 1), ``(d + 1, k)``; a start for chains, so its bias is free."""
    design = torch.cat([x, x.new_ones(len(x), 1)], 1).double()
    eye = torch.eye(design.shape[1], dtype=design.dtype, device=x.device)
    gram = design.T @ design + 1e-3 * len(x) * eye
    return torch.linalg.solve(gram, design.T @ z.double()).to(x.dtype)
