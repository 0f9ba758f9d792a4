"""E[x | z], the way from latents to a row.

The reference's mean where there is no tilt. Otherwise reference draws of x given z weighted by
exp(−f), as a correction to that mean; rows whose weights are too uneven are answered by Langevin
chains on the residual coordinates instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .energies._joint import JointEnergy
from .evidence import CHUNK
from .langevin import ACCEPTANCE, Noise, StepSize, gaussian_step, init

_N_DRAWS, _MIN_ESS = 512, 32.0
_N_CHAINS, _N_BURN, _N_KEEP = 32, 60, 20


@torch.no_grad()
def conditional_mean(energy: JointEnergy, z: Tensor, *, noise: Callable[[], Noise]) -> Tensor:
    """E[x | z], ``(n, d)``, for ``z (n, k)``; ``noise`` makes that of a few rows, always anew."""
    if energy.tilt is None:
        return energy.reference.mean(z)
    return torch.cat([_weighted_mean(energy, rows, noise()) for rows in z.split(CHUNK)])


def _weighted_mean(energy: JointEnergy, z: Tensor, noise: Noise) -> Tensor:
    reference, tilt = energy.reference, energy.tilt
    assert tilt is not None
    n, d = len(z), reference.n_features
    half = noise.normal(z.new_empty(1, _N_DRAWS // 2, d).expand(n, -1, -1))
    eps = torch.cat([half, -half], 1).expand(n, -1, -1)
    x = reference.from_noise(eps, z[:, None])
    weights = torch.softmax(-tilt(x, z[:, None]), 1)
    mean = reference.mean(z) + ((weights - 1 / _N_DRAWS)[..., None] * x).sum(1)
    poor = 1 / weights.square().sum(1) < _MIN_ESS
    if bool(poor.any()):
        mean[poor] = _chained_mean(energy, z[poor], noise)
    return mean


def _chained_mean(energy: JointEnergy, z: Tensor, noise: Noise) -> Tensor:
    reference, tilt = energy.reference, energy.tilt
    assert tilt is not None

    def log_tilt(eps: Tensor) -> Tensor:
        return -tilt(reference.from_noise(eps, z[:, None]), z[:, None])

    like = z.new_empty(1, _N_CHAINS, reference.n_features).expand(len(z), -1, -1)
    state = init(noise.normal(like).expand_as(like), log_tilt)
    start = z.new_full((len(z),), 0.1)
    step_size = StepSize("auto", initial=start, target=ACCEPTANCE["mala"], rate=0.2)
    total = torch.zeros_like(reference.loc.expand(len(z), -1))
    for i in range(_N_BURN + _N_KEEP):
        state, info = gaussian_step(
            state, log_tilt, step_size=step_size.value[:, None], noise=noise
        )
        if i < _N_BURN:
            step_size.update(info)
        else:
            total = total + reference.from_noise(state.position, z[:, None]).mean(1)
    return total / _N_KEEP
