"""E[x | z], the way from latents to a row; or the mean of what x stands for.

The reference's mean where there is no tilt and x stands for itself. Otherwise reference draws of x
given z weighted by exp(−f), for x itself as a correction to that mean; rows whose weights are too
uneven are answered by Langevin chains on the residual coordinates instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .energies._joint import JointEnergy
from .evidence import CHUNK, at_once
from .langevin import ACCEPTANCE, Noise, StepSize, gaussian_step, init

_N_DRAWS, _MIN_ESS = 512, 32.0
_N_CHAINS, _N_BURN, _N_KEEP = 32, 60, 20


Back = Callable[[Tensor], Tensor]
"""From x as the energy sees it to what it stands for, entry by entry."""


@torch.no_grad()
def conditional_mean(
    energy: JointEnergy, z: Tensor, back: Back | None = None, *, noise: Callable[[], Noise]
) -> Tensor:
    """E[back(x) | z], ``(n, d)``, for ``z (n, k)``; ``back`` is the identity by default.

    ``noise`` makes that of a few rows, always anew.
    """
    if energy.tilt is None and back is None:
        return energy.reference.mean(z)
    parts = z.split(at_once(CHUNK, z.device))
    return torch.cat([_weighted_mean(energy, rows, back, noise()) for rows in parts])


def _weighted_mean(energy: JointEnergy, z: Tensor, back: Back | None, noise: Noise) -> Tensor:
    reference, tilt = energy.reference, energy.tilt
    n, d = len(z), reference.n_features
    half = noise.normal(z.new_empty(1, _N_DRAWS // 2, d).expand(n, -1, -1))
    eps = torch.cat([half, -half], 1).expand(n, -1, -1)
    x = reference.from_noise(eps, z[:, None])
    weights = x.new_full(x.shape[:2], 1 / _N_DRAWS)
    if tilt is not None:
        weights = torch.softmax(-tilt(x, z[:, None]), 1)
    if back is None:
        mean = reference.mean(z) + ((weights - 1 / _N_DRAWS)[..., None] * x).sum(1)
    else:
        mean = (weights[..., None] * back(x)).sum(1)
    poor = 1 / weights.square().sum(1) < _MIN_ESS
    if bool(poor.any()):
        mean[poor] = _chained_mean(energy, z[poor], back, noise)
    return mean


def _chained_mean(energy: JointEnergy, z: Tensor, back: Back | None, noise: Noise) -> Tensor:
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
            x = reference.from_noise(state.position, z[:, None])
            total = total + (x if back is None else back(x)).mean(1)
    return total / _N_KEEP
