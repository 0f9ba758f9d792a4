"""Steps read nothing back from their device, so they need not wait for it.

Tensors on torch's "meta" device have shapes and no data: whatever would read a number, or take a
shape that data decide, raises there, and so does a mixture with tensors of the processor.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sklvebm.energies import CustomEnergy, FreeEnergy, LinearEnergy, TiltedEnergy
from sklvebm.energies._joint import JointEnergy
from sklvebm.langevin import Noise
from sklvebm.particles import GaussianPosteriors, JointPool, LangevinParticles, PointEstimates
from sklvebm.proposals import Proposal

N, D, K = 24, 3, 2


class Quartic(nn.Module):
    """A module of a user's, with a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, z):
        return self.scale * x.pow(4).sum(-1) + 0.5 * z.square().sum(-1)


ENERGIES = {
    "tilted": TiltedEnergy((8,), (8,)),
    "sheared": TiltedEnergy((8,), (8,), n_frequencies=0, mixing_rank=2),
    "isotropic": TiltedEnergy((8,), (8,), noise="isotropic"),
    "free": FreeEnergy((8,)),
    "linear": LinearEnergy(),
    "custom": CustomEnergy(lambda d, k: Quartic()),
}


def away(owner):
    """``owner``, a flow or a proposal, with all tensors of its state on the meta device."""
    for name in owner.STATE:
        if "." not in name:
            setattr(owner, name, moved(getattr(owner, name)))
    return owner


def moved(value):
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, tuple):
        return type(value)(*map(moved, value))
    return away(value) if hasattr(value, "STATE") else value


@pytest.fixture(params=ENERGIES)
def energy(request, generator) -> JointEnergy:
    built = ENERGIES[request.param].build(D, K, generator=generator)
    return built.to("meta").requires_grad_(False)


def flow(kind, noise):
    location, covariance = torch.zeros(N, K), torch.eye(K)
    if kind == "map":
        return PointEstimates(location, covariance, n_steps=2, step_size="auto")
    if kind == "variational":
        return GaussianPosteriors(
            location, covariance, n_particles=3, n_steps=2, step_size="auto", noise=noise
        )
    particles = location[:, None].repeat(1, 3, 1)
    return LangevinParticles(
        particles, covariance, dynamics=kind, n_steps=2, step_size="auto", noise=noise
    )


@pytest.mark.parametrize("kind", ["mala", "ula", "variational", "map"])
def test_conditional_flows(kind, energy, generator):
    moving = away(flow(kind, Noise(generator)))
    moving.covariance = moving.covariance.to("meta")
    rows = torch.empty(8, dtype=torch.long, device="meta")
    x = torch.empty(8, 1, D, device="meta")
    # Past the twentieth visit, where the preconditioner follows the covariance.
    for _ in range(21):
        moving.advance(rows, lambda z: -energy(x, z))
    assert moving.draws(rows).shape[::2] == (8, K)
    with pytest.raises(RuntimeError, match="meta"):
        float(moving.location.sum())


@pytest.mark.parametrize("energy", ["tilted", "free", "custom"], indirect=True)
@pytest.mark.parametrize("dynamics", ["mala", "ula"])
def test_the_joint_pool(dynamics, energy, generator):
    start = torch.randn(N, K + D, generator=generator)
    noise = Noise(generator)
    pool = JointPool(start, dynamics=dynamics, n_steps=2, step_size="auto", noise=noise)
    pool.proposal = Proposal.fitted(torch.randn(200, K + D, generator=generator), noise)
    assert len(pool.proposal.weights) > 1
    away(pool)
    rows = torch.empty(8, dtype=torch.long, device="meta")
    for _ in range(3):
        pool.advance(energy.log_tilt, rows)
    assert pool.settle(energy.log_tilt, 2).shape == (N, 2)
    with pytest.raises(RuntimeError, match="meta"):
        float(pool.acceptance)
