"""Proposals fitted to where a law should be: normalised, sampled, and weights that average to Z."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from statistical import assert_close_to, assert_rejects

from sklvebm import proposals
from sklvebm.langevin import Noise
from sklvebm.particles import JointPool
from sklvebm.proposals import Proposal

R = 32


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def two_clusters(generator, n):
    signs = torch.where(normal(generator, n, 1) > 0.5, 1.0, -1.0)
    return 0.4 * normal(generator, n, 2) + 2 * signs


def bimodal(v):
    """A tilt that leaves two narrow modes of N(0, I), at ±(2, 2)."""
    near = torch.stack([(v - 2).square().sum(-1), (v + 2).square().sum(-1)])
    return torch.logsumexp(-2 * near, 0) + 4.0


def test_a_fitted_proposal_integrates_to_one(generator):
    proposal = Proposal.fitted(two_clusters(generator, 400), Noise(generator))
    assert len(proposal.weights) == 1 + 400 // 20
    # Eight deviations of the widest component beyond the outermost mean leave out 1e-15. On steps
    # of the narrowest deviation the trapezoid rule errs by 4 exp(−2π²) at most (Poisson's sum).
    deviations = torch.linalg.svdvals(proposal.shapes.factor)
    reach = float(proposal.means.abs().max() + 8 * deviations.max())
    axis = np.arange(-reach, reach, float(deviations.min()))

    def log_density(points):
        return proposal.log_prob(torch.from_numpy(points)).numpy()

    assert oracles.log_integral(log_density, axis, axis) == pytest.approx(0.0, abs=2e-8)


def test_small_components_are_left_out_of_what_is_full(generator, monkeypatch):
    """What is left is normalised; where nothing is, that is N(0, I)."""
    members = two_clusters(generator, 400)
    monkeypatch.setattr(proposals, "_FULL_ROWS_A_DIMENSION", 10)
    whole, full = (Proposal.fitted(members, Noise(generator), full=full) for full in (False, True))
    assert 1 < len(full.weights) < len(whole.weights)
    assert full.weights.sum() == pytest.approx(1.0)
    monkeypatch.setattr(proposals, "_FULL_ROWS_A_DIMENSION", 1000)
    none = Proposal.fitted(members, Noise(generator), full=True)
    assert none.weights.tolist() == [1.0]


@pytest.mark.statistical
def test_its_draws_are_its_own(generator):
    proposal = Proposal.fitted(two_clusters(generator, 400), Noise(generator))
    draws = proposal.draw(R * 2000, Noise(generator)).reshape(R, 2000, 2)
    exact = (proposal.weights[:, None] * proposal.means).sum(0)
    assert_close_to(draws.mean(1), exact)
    second = proposal.shapes.factor @ proposal.shapes.factor.transpose(1, 2)
    second = second + proposal.means[:, :, None] * proposal.means[:, None]
    product = (draws[..., :, None] * draws[..., None, :]).mean(1)
    assert_close_to(product, (proposal.weights[:, None, None] * second).sum(0))


@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.statistical
def test_its_weights_average_to_the_partition_function(generator, fitted):
    """Where it is fitted badly too: here to a cluster of which the target knows nothing."""
    shift = 0.0 if fitted else 3.0
    proposal = Proposal.fitted(two_clusters(generator, 400) + shift, Noise(generator))
    v = proposal.draw(R * 4000, Noise(generator))
    weights = torch.exp(proposal.log_weight(v, bimodal)).reshape(R, 4000)
    # ∫ N(v; 0, I) e⁴ Σ exp(−2‖v ∓ 2‖²): a Gaussian integral of precision five.
    exact = 2 * math.exp(4.0) / 5 * math.exp(-0.8 * 4)
    assert_close_to(weights.mean(1), exact)
    assert_rejects(weights.mean(1), 2 * exact)


@pytest.mark.statistical
def test_a_fitted_proposal_lets_the_pool_jump_and_keeps_its_law(generator):
    """Started in one mode, the pool finds the other in its share; N(0, I) alone gets there late."""
    start = 0.4 * normal(generator, R * 64, 2) + 2.0

    def share_right(proposal, n_visits):
        pool = JointPool(
            start.clone(), dynamics="mala", n_steps=1, step_size="auto", noise=Noise(generator)
        )
        pool.proposal = proposal
        for _ in range(n_visits):
            pool.advance(bimodal)
        return (pool.position[:, 0] > 0).double().reshape(R, 64).mean(1)

    fitted = Proposal.fitted(two_clusters(generator, 400), Noise(generator))
    assert_close_to(share_right(fitted, 40), 0.5)
    assert_rejects(share_right(Proposal.reference(start), 5), 0.5)


def test_few_rows_get_the_reference(generator):
    proposal = Proposal.fitted(normal(generator, 30, 5), Noise(generator))
    v = normal(generator, 7, 5)
    exact = -0.5 * v.square().sum(-1) - 2.5 * math.log(2 * math.pi)
    torch.testing.assert_close(proposal.log_prob(v), exact)
    assert torch.equal(proposal.log_weight(v, bimodal), bimodal(v))
