"""States: what goes back to one goes on from it to the bit, and shares nothing with it."""

import io

import pytest
import torch

from sklvebm.langevin import Noise
from sklvebm.particles import GaussianPosteriors, JointPool, LangevinParticles, PointEstimates
from sklvebm.proposals import Proposal
from sklvebm.rows import Rows


def log_density(u):
    return u.cos().sum(-1) - 0.5 * u.square().sum(-1)


def flow(kind, noise):
    loc, covariance = torch.full((40, 2), 0.3), torch.tensor([[0.5, 0.2], [0.2, 0.4]])
    if kind == "map":
        return PointEstimates(loc.clone(), covariance, n_steps=2, step_size="auto")
    if kind == "variational":
        return GaussianPosteriors(
            loc.clone(), covariance, n_particles=3, n_steps=2, step_size="auto", noise=noise
        )
    particles = loc[:, None].repeat(1, 3, 1)
    return LangevinParticles(
        particles, covariance, dynamics=kind, n_steps=2, step_size="auto", noise=noise
    )


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_replays(moving, advance, generator):
    """Whether ``moving``, brought back after some moves, makes the same moves again."""
    for _ in range(5):
        advance()
    state, position = moving.state_dict(), generator.get_state()
    for _ in range(30):
        advance()
    first = moving.state_dict()
    assert not torch.equal(next(iter(first.values())), next(iter(state.values())))
    moving.load_state_dict(through_a_file(state))
    generator.set_state(position)
    for _ in range(30):
        advance()
    torch.testing.assert_close(moving.state_dict(), first, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["mala", "ula", "variational", "map"])
def test_conditional_flows(kind, generator):
    moving = flow(kind, Noise(generator))
    rows = torch.arange(0, 40, 2)
    assert_replays(moving, lambda: moving.advance(rows, log_density), generator)


@pytest.mark.parametrize("dynamics", ["mala", "ula"])
def test_the_pool_and_its_proposal(dynamics, generator):
    noise = Noise(generator)
    start = torch.randn(200, 3, generator=generator)
    moving = JointPool(start, dynamics=dynamics, n_steps=1, step_size="auto", noise=noise)

    def advance():
        moving.advance(log_density)
        moving.proposal = Proposal.fitted(moving.position, noise)

    assert_replays(moving, advance, generator)


def test_batches(generator):
    batches = Rows(torch.zeros(50, 1), torch.ones(50)).batches(8, generator)
    assert_replays(batches, lambda: next(batches), generator)


def test_batches_of_more_than_all_rows_are_whole_passes(generator):
    """Each row as often as any other, pass after pass, and no more of them than asked for."""
    batches = Rows(torch.zeros(50, 1), torch.ones(50)).batches(170, generator)
    for _ in range(3):
        picks = next(batches)
        assert torch.equal(picks.bincount(), torch.full((50,), 3))
        assert torch.equal(picks[:50].sort().values, torch.arange(50))


def test_batches_are_passes(generator):
    """Each pass picks every row at most once, and leaves out less than a batch."""
    batches = Rows(torch.zeros(50, 1), torch.ones(50)).batches(8, generator)
    for _ in range(3):
        picks = torch.cat([next(batches) for _ in range(6)])
        assert len(picks.unique()) == 48
    assert len(next(Rows(torch.zeros(5, 1), torch.ones(5)).batches(8, generator))) == 5


def test_a_state_shares_nothing(generator):
    moving = flow("mala", Noise(generator))
    state = moving.state_dict()
    kept = state["position"].clone()
    moving.advance(slice(None), log_density)
    assert torch.equal(state["position"], kept)
    moving.load_state_dict(state)
    moving.advance(slice(None), log_density)
    assert torch.equal(state["position"], kept)
