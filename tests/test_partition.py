"""log Z, its error and its warnings, on targets known exactly."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from scipy.special import logsumexp
from statistical import (
    assert_at_least,
    assert_at_most,
    assert_calibrated,
    assert_close_to,
    assert_rejects,
)
from targets import UNIT, banana_case, build, linear_case, moved, normal
from torch import nn

from sklvebm.energies import LinearEnergy
from sklvebm.evidence import importance
from sklvebm.langevin import Noise
from sklvebm.mixtures import Guess, moments
from sklvebm.partition import (
    LogPartition,
    bennett,
    covering,
    direct_log_partition,
    excess_tilt,
    joined,
    log_partition,
)
from sklvebm.proposals import Proposal

R = 32


class Wide(nn.Module):
    """x ∼ N(0, 3²) and an independent latent."""

    def forward(self, x, z):
        return 0.5 * (x / 3).square().sum(-1) + 0.5 * z.square().sum(-1)


class Half(nn.Module):
    """A standard normal that cannot be evaluated left of x = 0."""

    def forward(self, x, z):
        energy = 0.5 * x.square().sum(-1) + 0.5 * z.square().sum(-1) + oracles.LOG_2PI
        return torch.where(x[..., 0] < 0, math.nan, energy)


class Well(nn.Module):
    """A standard normal with a well in x; at 6, where neither reference nor pool ever looks."""

    def __init__(self, depth, centre=6.0):
        super().__init__()
        self.depth, self.centre = depth, centre

    def forward(self, x, z):
        well = self.depth * torch.exp(-0.5 * ((x[..., 0] - self.centre) / 0.2).square())
        return 0.5 * x.square().sum(-1) + 0.5 * z.square().sum(-1) + oracles.LOG_2PI - well


def exact_linear_draws(energy, weight, bias, sigma, n, generator):
    """Draws of the linear-Gaussian model in the reference's coordinates."""
    z, noise = normal(generator, n, 2), normal(generator, n, 3)
    x = z @ torch.tensor(weight).T + torch.tensor(bias) + sigma * noise
    return energy.reference.join(x, z)


def exact_draws(energy, log_density, axes, n, generator):
    """Draws of x and z from the trapezoid rule's nodes, and the same in v."""
    points = oracles.grid(*axes)
    log_p = log_density(points)
    weights = torch.from_numpy(np.exp(log_p - logsumexp(log_p)))
    picks = torch.multinomial(weights, n, True, generator=generator)
    x, z = torch.from_numpy(points[picks.numpy()]).split(1, dim=1)
    return x, energy.reference.join(x, z)


def direct(energy, members, *, noise, n_draws=1024):
    """From reference draws and the pool, no more than asked for."""
    proposal = Proposal.reference(members)
    return direct_log_partition(energy, members, proposal=proposal, n_draws=n_draws, noise=noise)


def estimates(energy, pools, generator, *, estimate=log_partition):
    """A LogPartition from each of the ``pools (R, m, k + d)`` in equilibrium."""
    return [estimate(energy, v, noise=Noise(generator)) for v in pools]


def columns(estimates):
    """Values, standard errors, forward and reverse estimates as arrays."""
    return np.array([estimate[:4] for estimate in estimates]).T


ESTIMATES = pytest.mark.parametrize("estimate", [direct, log_partition])


# -- log Z ---------------------------------------------------------------------------------------


@ESTIMATES
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.statistical
def test_linear_gaussian_log_partition(rng, generator, scale, estimate):
    """Case 1: ((d + k)/2) log 2π + d log σ, whatever W.

    An estimate that is smooth in means is biased by the order of its variance: the slack.
    """
    energy, weight, bias, sigma = linear_case(rng, generator, scale)
    v = exact_linear_draws(energy, weight, bias, sigma, R * 512, generator)
    found = estimates(energy, v.reshape(R, 512, 5), generator, estimate=estimate)
    value, std, forward, reverse = columns(found)
    exact = oracles.linear_log_partition(3, 2, sigma)
    assert_close_to(value, exact, slack=np.mean(std**2))
    assert_calibrated(value, std, exact)
    assert_at_most(forward, exact)
    assert_at_least(reverse, exact)
    assert_rejects(value, oracles.linear_log_partition(3, 2, 1.1 * sigma))


@ESTIMATES
@pytest.mark.statistical
def test_log_partition_against_quadrature(generator, estimate):
    """Case 7: a fixed energy with d + k = 2. Pools start at the reference and move for long."""
    energy, log_density, axes = banana_case(generator)
    exact = oracles.log_integral(log_density, *axes)
    pools = moved(normal(generator, R * 512, 2), energy, generator, n_visits=150)
    found = estimates(energy, pools.reshape(R, 512, 2), generator, estimate=estimate)
    value, std, forward, reverse = columns(found)
    assert_close_to(value, exact, slack=np.mean(std**2))
    assert_calibrated(value, std, exact)
    assert_rejects(value, exact + 0.2)
    assert_at_most(forward, exact)
    assert_at_least(reverse, exact)


@pytest.mark.statistical
def test_the_forward_estimate_knows_its_error(generator):
    """Neither too small nor too large by a factor of 1.25; the pool has no part in it.

    Unbiased as a ratio, so low as a logarithm (Jensen).
    """
    energy, log_density, axes = banana_case(generator)
    cold = normal(generator, 8 * R, 8, 2)
    found = estimates(energy, cold, generator, estimate=direct)
    exact = oracles.log_integral(log_density, *axes)
    forward = np.array([p.forward for p in found])
    assert_calibrated(forward, [p.forward_std for p in found], exact)
    assert_close_to(np.exp(forward - exact), 1.0)


@pytest.mark.statistical
def test_log_partition_needs_a_pool_in_equilibrium(generator):
    """Fifty visits from reference draws are enough for errors that are honest; none are not."""
    energy, log_density, axes = banana_case(generator)
    exact = oracles.log_integral(log_density, *axes)
    cold = normal(generator, R * 512, 2)
    pools = moved(cold, energy, generator, n_visits=50, n_steps=2)
    value, std, *_ = columns(estimates(energy, pools.reshape(R, 512, 2), generator))
    assert_calibrated(value, std, exact)
    # Left where they are, the reference's draws are no sample of the model.
    value, _, _, reverse = columns(
        estimates(energy, cold.reshape(R, 512, 2), generator, estimate=direct)
    )
    assert_rejects(value, exact)
    assert_rejects(reverse, exact)


@pytest.mark.statistical
def test_log_partition_where_the_reference_is_too_narrow(generator):
    """x ∼ N(0, 3²) from a reference N(0, 1): fresh draws are rarely as far out as a third of the
    members should be, and their weights have no variance.

    The errors stay honest, and pools that have not come so far are seen to be wrong.
    """
    energy = build(Wide(), 1, 1, UNIT, generator)
    exact = oracles.LOG_2PI + math.log(3.0)
    cold = normal(generator, R * 512, 2)
    pools = moved(cold, energy, generator, n_visits=150, n_steps=2)
    value, std, *_ = columns(estimates(energy, pools.reshape(R, 512, 2), generator))
    assert_close_to(value, exact, slack=np.mean(std**2))
    assert_calibrated(value, std, exact)
    value, *_ = columns(estimates(energy, cold.reshape(R, 512, 2), generator, estimate=direct))
    assert_rejects(value, exact)


@ESTIMATES
@pytest.mark.statistical
def test_draws_that_cannot_be_evaluated_weigh_nothing(generator, estimate):
    """Half of the reference's draws fall where the energy is NaN: log Z = log ½."""
    energy = build(Half(), 1, 1, UNIT, generator)
    pools = normal(generator, R, 512, 2)
    pools[..., 1] = pools[..., 1].abs()
    value, std, *_ = columns(estimates(energy, pools, generator, estimate=estimate))
    assert_close_to(value, math.log(0.5), slack=np.mean(std**2))
    assert_calibrated(value, std, math.log(0.5))


@pytest.mark.parametrize(("n_wells", "n_added"), [(0, 0), (1, 1), (3, 3), (40, 1)])
def test_wells_that_the_draws_miss_are_covered_while_they_are_few(generator, n_wells, n_added):
    """A member in each of some wells of width .03, four standard deviations out.

    More wells than a mixture can hold are left to the annealed path, after one attempt.
    """
    angles = torch.arange(n_wells).double() * (2 * math.pi / max(n_wells, 1))
    wells = 4 * torch.stack([angles.cos(), angles.sin()], -1)
    mass = 0.01 * n_wells

    def log_tilt(v):
        base = math.log1p(-mass) - 0.5 * v.square().sum(-1)
        square = (v[..., None, :] - wells).square().sum(-1) / 0.03**2
        deep = torch.logsumexp(-0.5 * square, -1) + math.log(0.01 / 0.03**2)
        return torch.logaddexp(base, deep) + 0.5 * v.square().sum(-1)

    members = torch.cat([normal(generator, 1000, 2), wells])
    noise = Noise(generator)
    proposal = Proposal.reference(members)
    found = covering(proposal, log_tilt, members, n_draws=2**16, noise=noise)
    assert len(found.weights) == 1 + n_added


@ESTIMATES
def test_a_normalised_energy_has_no_partition_function(generator, estimate):
    energy = LinearEnergy().build(2, 1, generator=generator)
    found = estimate(energy, torch.zeros(4, 3), noise=Noise(generator))
    assert found == pytest.approx(tuple(LogPartition(0.0, 0.0, 0.0, 0.0)), abs=1e-12)


# -- Bennett's acceptance ratio ------------------------------------------------------------------


SLOPE, SHIFT = 1.5, 0.3
LINEAR = SLOPE**2 / 2 - SHIFT


def linear_weights(rng, n0, n1, slope=SLOPE):
    """ℓ(v) = slope · v − shift at exact draws from N(0, 1) and from the tilted law."""
    forward, reverse = rng.standard_normal(n0), slope + rng.standard_normal(n1)
    return slope * forward - SHIFT, slope * reverse - SHIFT


SIZES = pytest.mark.parametrize(("n0", "n1"), [(800, 800), (400, 1600), (1600, 400)])


@SIZES
@pytest.mark.statistical
def test_bennett_against_a_known_ratio(rng, n0, n1):
    """ℓ(v) = 1.5v − 0.3 on N(0, 1): log Z = 1.5²/2 − 0.3, draws exact on both sides.

    The overlap is (n₀ + n₁) ∫ π₀π₁/(n₀π₀ + n₁π₁).
    """
    found = [bennett(*linear_weights(rng, n0, n1)) for _ in range(4 * R)]
    value, std, overlap = np.array(found).T
    assert_close_to(value, LINEAR, slack=np.mean(std**2))
    # The asymptotic error is right to a few percent here: a sharper test than the default.
    assert_calibrated(value, std, LINEAR, optimism=1.05)
    assert_rejects(value, LINEAR + 0.1)

    def log_shared(v):
        log_p0 = -0.5 * v[:, 0] ** 2 - 0.5 * oracles.LOG_2PI
        log_p1 = -0.5 * (v[:, 0] - SLOPE) ** 2 - 0.5 * oracles.LOG_2PI
        return log_p0 + log_p1 - np.logaddexp(math.log(n0) + log_p0, math.log(n1) + log_p1)

    shared = math.exp(oracles.log_integral(log_shared, np.arange(-9, 11, 0.02)))
    assert_close_to(overlap, (n0 + n1) * shared, slack=np.mean(std**2))


def test_bennett_solves_its_equation(rng):
    """Both sides' Fermi sums agree at the estimate; a shift of ℓ moves it by as much."""
    forward, reverse = rng.standard_normal(50), 1 + rng.standard_normal(80)
    value, std, overlap = bennett(forward, reverse)

    def fermi(t):
        return 1 / (1 + np.exp(t))

    offset = value - math.log(80 / 50)
    into = fermi(offset - forward).sum() * 1.0
    out = fermi(reverse - offset).sum()
    assert into == pytest.approx(out, rel=1e-8)
    shifted = bennett(forward + 7.0, reverse + 7.0)
    assert shifted.value == pytest.approx(value + 7.0, abs=1e-8)
    assert shifted[1:] == pytest.approx((std, overlap), rel=1e-6)
    assert bennett(np.full(5, 2.5), np.full(9, 2.5)) == (2.5, 0.0, 1.0)


def test_bennett_where_weights_vanish():
    """A reference of which 30 draws in 50 lie outside of the support: log Z = log 20/50."""
    forward = np.where(np.arange(50) < 30, -math.inf, 0.0)
    assert bennett(forward, np.zeros(80)).value == pytest.approx(math.log(20 / 50), abs=1e-8)


def test_bennett_far_apart_has_no_overlap():
    """Laws 200 nats apart: no overlap, an error that says so, and nothing that overflows."""
    value, std, overlap = bennett(np.full(50, -100.0), np.full(50, 100.0))
    assert value == pytest.approx(0.0, abs=1e-6)
    assert overlap < 1e-30
    assert std > 1e9


@pytest.mark.statistical
def test_joined_knows_the_errors_of_either_direction(rng):
    """Forward and reverse by their own standard errors, at a slope whose weights are tame.

    As logarithms both are biased, one down and one up, by half of their variance.
    """
    slope, n = 0.7, 800
    exact = slope**2 / 2 - SHIFT
    found = [joined(*linear_weights(rng, n, n, slope)) for _ in range(4 * R)]
    for name in ("forward", "reverse"):
        value = np.array([getattr(p, name) for p in found])
        std = np.array([getattr(p, name + "_std") for p in found])
        assert_close_to(value, exact, slack=np.mean(std**2))
        assert_calibrated(value, std, exact)
        assert_rejects(value, exact + 0.1)


@pytest.mark.statistical
def test_joined_knows_the_errors_of_the_differences(rng):
    """Estimates that share draws differ by less than their errors in square would have it."""
    slope, n = 0.7, 800
    last = (slice(600, None),)
    found = [joined(*linear_weights(rng, n, n, slope), groups=last) for _ in range(8 * R)]
    for name in ("forward", "apart"):
        gap = np.array([getattr(p, name) - p.value for p in found])
        std = np.array([getattr(p, name + "_gap_std") for p in found])
        # Biases of logarithms are half of their variances.
        assert_close_to(gap, 0.0, slack=np.mean([p.forward_std**2 for p in found]))
        assert_calibrated(gap, std, 0.0)
        assert np.mean(std) < 0.9 * np.mean([math.hypot(p.std, p.forward_std) for p in found])


def test_apart_is_the_highest_of_the_groups(rng):
    """Each part of the pool gives Bennett's estimate from its own members alone."""
    forward, reverse = linear_weights(rng, 60, 90)
    reverse[70:] += 3.0
    parts = slice(0, 70), slice(70, None)
    found = joined(forward, reverse, groups=parts)
    low, high = (bennett(forward, reverse[part]) for part in parts)
    assert low.value < high.value
    assert found.apart == high.value
    assert found[:2] == bennett(forward, reverse)[:2]
    assert joined(forward, reverse).apart == -math.inf


# -- what is believed when estimates disagree ----------------------------------------------------


@pytest.mark.parametrize("name", ["forward", "apart"])
@pytest.mark.parametrize(
    ("std", "other", "gap_std", "raised_by"),
    [
        (0.001, 1.02, 0.0, 0.0),  # less than anyone minds
        (0.1, 1.35, 0.1, 0.0),  # within four errors of the difference
        (0.1, 1.35, 0.05, 0.35),  # which may be less than the estimate's own: they share draws
        (0.01, 1.2, 0.01, 0.2),
        (0.01, -9.0, 0.0, 0.0),  # lower: says nothing against the estimate
        (0.3, 1.0, 0.0, 0.6),  # two errors of its own, where they are no errors to publish
        (0.3, 1.5, 0.0, 0.6),
        (0.3, 3.0, 0.0, 2.0),  # the larger of two reasons, not their sum
    ],
)
@pytest.mark.parametrize("excess", [0.0, 3.0])
def test_the_conservative_end_is_the_largest(name, std, other, gap_std, raised_by, excess):
    """An estimate that lies above log Z = 1 raises it, and a planted well on top of it."""
    evidence = {name: other, f"{name}_gap_std": gap_std}
    found = LogPartition(1.0, std, 1.0, 1.0)._replace(excess=excess, **evidence)
    assert found.conservative == pytest.approx(1.0 + raised_by + excess, abs=1e-12)
    assert found.disagrees is (raised_by + excess > 0)
    assert max(found.raises.values(), default=0.0) == pytest.approx(max(raised_by, excess))


def test_a_high_reverse_estimate_accuses_nobody():
    """It is high in expectation, by more than its error where the draws are wide."""
    assert not LogPartition(1.0, 0.01, 1.0, 5.0, reverse_std=0.1).disagrees


@pytest.mark.parametrize(
    ("changed", "sharp"),
    [
        ({}, True),
        ({"overlap": 0.3}, False),
        ({"std": 0.2}, False),
        ({"forward_std": 0.2}, False),
        # The weights of the reverse one are unbounded where the draws are wide.
        ({"reverse_std": 0.2}, True),
    ],
)
def test_sharp_takes_errors_and_overlap(changed, sharp):
    assert LogPartition(1.0, 0.05, 1.0, 1.0)._replace(**changed).is_sharp is sharp


@pytest.mark.parametrize(
    ("depth", "centre"),
    [(7.0, 3.0), (20.0, 6.0), (25.0, 6.0), (30.0, 6.0)],
)
def test_members_that_started_apart_are_heard(generator, depth, centre):
    """A quarter of the pool sits in a well that holds from a quarter of the mass to nearly all of
    it, and that the other members never find: log Z is not too low by more than a tenth of a nat.
    """
    energy = build(Well(depth, centre), 1, 1, UNIT, generator)

    def log_density(points):
        points = torch.from_numpy(points)
        return -energy(points[:, :1], points[:, 1:]).numpy()

    exact = oracles.log_integral(log_density, np.arange(-8, 9, 0.01), np.arange(-8, 8, 0.1))
    outside = normal(generator, 4000, 2)
    outside = outside[outside[:, 1] < centre - 0.8][:1500]
    inside = normal(generator, 500, 2)
    inside[:, 1] = centre + 0.2 / math.sqrt(depth) * inside[:, 1]
    members = torch.cat([outside, inside])
    found = log_partition(energy, members, n_apart=500, noise=Noise(generator))
    assert found.conservative > exact - 0.1


def posterior_of(energy, x, generator):
    return importance(
        energy.posterior(x),
        Guess.single(*moments(normal(generator, len(x), 16, 1))),
        spread=torch.eye(1).double(),
        sizes=(64,),
        noise=Noise(generator),
    )


def test_excess_tilt_shows_a_planted_well(generator):
    """Zero for data that the model could have drawn; about the depth where data sit in the well."""
    energy = build(Well(20.0), 1, 1, UNIT, generator)
    pool = normal(generator, 500, 2)
    honest, planted = normal(generator, 200, 1), torch.full((200, 1), 6.0).double()
    assert excess_tilt(energy, honest, posterior_of(energy, honest, generator), pool) == 0.0
    found = excess_tilt(energy, planted, posterior_of(energy, planted, generator), pool)
    # The pool sees no tilt at all, so two nats of grace are all that is taken off.
    assert found == pytest.approx(20.0 - 2.0, abs=1e-3)
    shallow = build(Well(1.5), 1, 1, UNIT, generator)
    assert excess_tilt(shallow, planted, posterior_of(shallow, planted, generator), pool) == 0.0


def test_excess_tilt_is_zero_for_the_model_s_own_draws(generator):
    """Under a strong tilt too: data and pool are two samples of one law."""
    energy, log_density, axes = banana_case(generator)
    x, v = exact_draws(energy, log_density, axes, 2000, generator)
    data, pool = x[1000:], v[:1000]
    assert excess_tilt(energy, data, posterior_of(energy, data, generator), pool) == 0.0
