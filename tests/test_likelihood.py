"""log Z and the evidence of a row, their errors and their warnings, on targets known exactly."""

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
from torch import nn

from sklvebm.energies import CustomEnergy, LinearEnergy
from sklvebm.langevin import Noise, Preconditioner
from sklvebm.likelihood import (
    LogPartition,
    bennett,
    excess_tilt,
    explore,
    importance,
    log_partition,
)
from sklvebm.particles import JointPool
from sklvebm.reference import PPCA

R = 48


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class LinearGaussian(nn.Module):
    """E = ‖x − Wz − b‖²/2σ² + ‖z‖²/2, not normalised: case 1."""

    def __init__(self, weight, bias, sigma):
        super().__init__()
        self.weight, self.bias, self.sigma = torch.tensor(weight), torch.tensor(bias), sigma

    def forward(self, x, z):
        residual = x - z @ self.weight.T - self.bias
        return residual.square().sum(-1) / (2 * self.sigma**2) + 0.5 * z.square().sum(-1)


class Banana(nn.Module):
    """d = k = 1: x near sin 2z, z skewed; neither the marginal nor a posterior is Gaussian."""

    def forward(self, x, z):
        x, z = x[..., 0], z[..., 0]
        fit = (x - torch.sin(2 * z)).square() / (2 * 0.4**2)
        return fit + 0.5 * z.square() + 0.7 * torch.tanh(2 * z) + 1.3


class Wide(nn.Module):
    """x ∼ N(0, 3²) and an independent latent."""

    def forward(self, x, z):
        return 0.5 * (x / 3).square().sum(-1) + 0.5 * z.square().sum(-1)


def build(module, d, k, ppca, generator):
    """The module's joint energy in float64, on the reference ``ppca``."""
    energy = CustomEnergy(lambda *_: module).build(d, k, generator=generator).double()
    energy.reference.set_ppca_(ppca)
    return energy.requires_grad_(False)


def linear_case(rng, generator, scale=1.0):
    """A linear-Gaussian energy on a reference that is near, not equal, to it."""
    weight, bias, sigma = scale * rng.uniform(-1, 1, (3, 2)), rng.standard_normal(3), 0.5
    # The reference's W is off by a tenth of σ at most, its noise a third too wide: the weights
    # then have all the moments needed, whatever the draw of W.
    offset = 0.05 * rng.uniform(-1, 1, (3, 2))
    reference = PPCA(weight + offset, bias + 0.1, 1.3 * sigma)
    energy = build(LinearGaussian(weight, bias, sigma), 3, 2, reference, generator)
    return energy, weight, bias, sigma


def banana_case(generator):
    reference = PPCA(np.array([[0.3]]), np.array([-0.1]), 1.0)
    energy = build(Banana(), 1, 1, reference, generator)
    axes = np.arange(-7, 7, 0.02), np.arange(-8, 8, 0.02)

    def log_density(points):
        points = torch.from_numpy(points)
        return -energy(points[:, :1], points[:, 1:]).numpy()

    return energy, log_density, axes


def exact_linear_draws(energy, weight, bias, sigma, n, generator):
    """Draws of the linear-Gaussian model in the reference's coordinates."""
    z, noise = normal(generator, n, 2), normal(generator, n, 3)
    x = z @ torch.tensor(weight).T + torch.tensor(bias) + sigma * noise
    return torch.cat([z, energy.reference.to_noise(x, z)[0]], -1)


def estimates(energy, members, *, n_sweeps, n_reference, generator, n_steps=1):
    """A LogPartition from each of the pools ``members (R, m, k + d)``."""
    noise = Noise(generator)
    return [
        log_partition(
            energy,
            JointPool(v.clone(), dynamics="mala", n_steps=n_steps, step_size="auto", noise=noise),
            n_sweeps=n_sweeps,
            n_reference=n_reference,
            noise=noise,
        )
        for v in members
    ]


def columns(estimates):
    """Values, standard errors, forward and reverse estimates as arrays."""
    return np.array([estimate[:4] for estimate in estimates]).T


# -- log Z ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.statistical
def test_linear_gaussian_log_partition(rng, generator, scale):
    """Case 1: ((d + k)/2) log 2π + d log σ, whatever W.

    An estimate that is smooth in means is biased by the order of its variance: the slack.
    """
    energy, weight, bias, sigma = linear_case(rng, generator, scale)
    v = exact_linear_draws(energy, weight, bias, sigma, R * 512, generator)
    found = estimates(
        energy, v.reshape(R, 512, 5), n_sweeps=2, n_reference=1024, generator=generator
    )
    value, std, forward, reverse = columns(found)
    exact = oracles.linear_log_partition(3, 2, sigma)
    assert_close_to(value, exact, slack=np.mean(std**2))
    assert_calibrated(value, std, exact)
    assert_at_most(forward, exact)
    assert_at_least(reverse, exact)
    assert_rejects(value, oracles.linear_log_partition(3, 2, 1.1 * sigma))


@pytest.mark.statistical
def test_log_partition_against_quadrature(generator):
    """Case 7: a fixed energy with d + k = 2. Pools start at the reference and move for long."""
    energy, log_density, axes = banana_case(generator)
    exact = oracles.log_integral(log_density, *axes)
    pool = JointPool(
        normal(generator, R * 512, 2),
        dynamics="mala",
        n_steps=1,
        step_size="auto",
        noise=Noise(generator),
    )
    for _ in range(150):
        pool.advance(slice(None), energy.log_tilt)
    members = pool.position.reshape(R, 512, 2)
    found = estimates(energy, members, n_sweeps=0, n_reference=1024, generator=generator)
    value, std, forward, reverse = columns(found)
    assert_close_to(value, exact, slack=np.mean(std**2))
    assert_calibrated(value, std, exact)
    assert_rejects(value, exact + 0.1)
    # Unbiased as a ratio, so low as a logarithm (Jensen); the reverse estimate is high.
    assert_close_to(np.exp(forward - exact), 1.0)
    assert_at_most(forward, exact)
    assert_at_least(reverse, exact)


@pytest.mark.statistical
def test_the_forward_estimate_knows_its_error(generator):
    """Neither too small nor too large by a factor of 1.25; the pool has no part in it."""
    energy, log_density, axes = banana_case(generator)
    cold = normal(generator, 8 * R, 8, 2)
    found = estimates(energy, cold, n_sweeps=0, n_reference=1024, generator=generator)
    exact = oracles.log_integral(log_density, *axes)
    assert_calibrated([p.forward for p in found], [p.forward_std for p in found], exact)


@pytest.mark.statistical
def test_log_partition_brings_a_cold_pool_to_equilibrium(generator):
    """Its own moves, from reference draws, are enough for errors that are honest."""
    energy, log_density, axes = banana_case(generator)
    exact = oracles.log_integral(log_density, *axes)
    cold = normal(generator, R, 512, 2)
    kept = {"n_reference": 1024, "generator": generator, "n_steps": 2}
    value, std, _, reverse = columns(estimates(energy, cold, n_sweeps=50, **kept))
    assert_calibrated(value, std, exact)
    # Left where they are, the reference's draws are no sample of the model.
    value, _, _, reverse = columns(estimates(energy, cold, n_sweeps=0, **kept))
    assert_rejects(value, exact)
    assert_rejects(reverse, exact)


@pytest.mark.xfail(
    reason="log_partition stops moving the pool after five renewals on average, while the members "
    "deep in the tilt have hardly been reached: log Z is then too low by ten standard errors",
    strict=False,
)
@pytest.mark.statistical
def test_log_partition_where_the_reference_is_too_narrow(generator):
    """x ∼ N(0, 3²) from a reference N(0, 1), a cold pool, and the sweeps that a fit would spend.

    Fresh draws are then rarely as far out as a third of the members should be; too few moves leave
    the pool near the centre, log Z too low and every score too high.
    """
    energy = build(Wide(), 1, 1, PPCA(np.zeros((1, 1)), np.zeros(1), 1.0), generator)
    cold = normal(generator, R, 512, 2)
    found = estimates(energy, cold, n_sweeps=150, n_reference=1024, generator=generator, n_steps=2)
    value, std, *_ = columns(found)
    assert_calibrated(value, std, oracles.LOG_2PI + math.log(3.0))


def test_a_normalised_energy_has_no_partition_function(generator):
    energy = LinearEnergy().build(2, 1, generator=generator)
    pool = JointPool(
        torch.zeros(4, 3), dynamics="mala", n_steps=1, step_size=0.1, noise=Noise(generator)
    )
    found = log_partition(energy, pool, n_sweeps=1, n_reference=8, noise=Noise(generator))
    assert found == LogPartition(0.0, 0.0, 0.0, 0.0)


# -- Bennett's acceptance ratio ------------------------------------------------------------------


@pytest.mark.parametrize(("n0", "n1"), [(800, 800), (400, 1600), (1600, 400)])
@pytest.mark.statistical
def test_bennett_against_a_known_ratio(rng, n0, n1):
    """ℓ(v) = 1.5v − 0.3 on N(0, 1): log Z = 1.5²/2 − 0.3, draws exact on both sides."""
    slope, shift = 1.5, 0.3
    exact = slope**2 / 2 - shift
    found = [
        bennett(
            slope * rng.standard_normal(n0) - shift,
            slope * (slope + rng.standard_normal(n1)) - shift,
        )
        for _ in range(4 * R)
    ]
    value, std = np.array(found).T
    assert_close_to(value, exact, slack=np.mean(std**2))
    # The asymptotic error is right to a few percent here: a sharper test than the default.
    assert_calibrated(value, std, exact, optimism=1.05)
    assert_rejects(value, exact + 0.1)


def test_bennett_solves_its_equation(rng):
    """Both sides' Fermi sums agree at the estimate; a shift of ℓ moves it by as much."""
    forward, reverse = rng.standard_normal(50), 1 + rng.standard_normal(80)
    value, std = bennett(forward, reverse)

    def fermi(t):
        return 1 / (1 + np.exp(t))

    offset = value - math.log(80 / 50)
    into = fermi(offset - forward).sum() * 1.0
    out = fermi(reverse - offset).sum()
    assert into == pytest.approx(out, rel=1e-8)
    shifted, same = bennett(forward + 7.0, reverse + 7.0)
    assert shifted == pytest.approx(value + 7.0, abs=1e-8)
    assert same == pytest.approx(std, rel=1e-6)
    assert bennett(np.full(5, 2.5), np.full(9, 2.5)) == (2.5, 0.0)


# -- what is believed when estimates disagree ----------------------------------------------------


@pytest.mark.parametrize(
    ("std", "forward", "forward_std", "raised_by"),
    [
        (0.01, 1.05, 0.0, 0.0),  # within a tenth of a nat
        (0.1, 1.35, 0.0, 0.0),  # within four errors of the estimate
        (0.01, 1.35, 0.1, 0.0),  # within four errors of the forward one
        (0.06, 1.38, 0.08, 0.0),  # within four of both, which add in square: 0.1
        (0.01, 1.2, 0.0, 0.2),
        (0.1, 1.5, 0.0, 0.5),
        (0.06, 1.42, 0.08, 0.42),
        (0.01, -9.0, 0.0, 0.0),  # low in expectation: says nothing against the estimate
    ],
)
@pytest.mark.parametrize("excess", [0.0, 3.0])
def test_the_conservative_end_is_the_larger(std, forward, forward_std, raised_by, excess):
    """A forward estimate that lies above log Z = 1 raises it, and a planted well on top of it."""
    found = LogPartition(1.0, std, forward, 1.0, forward_std=forward_std, excess=excess)
    assert found.conservative == pytest.approx(1.0 + raised_by + excess, abs=1e-12)
    assert found.disagrees is (raised_by + excess > 0)


class Well(nn.Module):
    """A standard normal with a well in x at 6, where neither reference nor pool ever looks."""

    def __init__(self, depth):
        super().__init__()
        self.depth = depth

    def forward(self, x, z):
        well = self.depth * torch.exp(-0.5 * ((x[..., 0] - 6.0) / 0.2).square())
        return 0.5 * x.square().sum(-1) + 0.5 * z.square().sum(-1) + oracles.LOG_2PI - well


def row_posterior(energy, x, generator):
    particles = normal(generator, len(x), 16, 1)
    return importance(
        energy.posterior(x), particles, torch.eye(1).double(), sizes=(64,), noise=Noise(generator)
    )


def test_excess_tilt_shows_a_planted_well(generator):
    """Zero for data that the model could have drawn; about the depth where data sit in the well."""
    energy = build(Well(20.0), 1, 1, PPCA(np.zeros((1, 1)), np.zeros(1), 1.0), generator)
    pool = normal(generator, 500, 2)
    honest, planted = normal(generator, 200, 1), torch.full((200, 1), 6.0).double()
    assert excess_tilt(energy, honest, row_posterior(energy, honest, generator), pool) == 0.0
    found = excess_tilt(energy, planted, row_posterior(energy, planted, generator), pool)
    # The pool sees no tilt at all, so two nats of grace are all that is taken off.
    assert found == pytest.approx(20.0 - 2.0, abs=1e-3)
    shallow = build(Well(1.5), 1, 1, PPCA(np.zeros((1, 1)), np.zeros(1), 1.0), generator)
    assert excess_tilt(shallow, planted, row_posterior(shallow, planted, generator), pool) == 0.0


def test_excess_tilt_is_zero_for_the_model_s_own_draws(generator):
    """Under a strong tilt too: data and pool are two samples of one law."""
    energy, log_density, axes = banana_case(generator)
    points = oracles.grid(*axes)
    log_p = log_density(points)
    picks = torch.multinomial(
        torch.from_numpy(np.exp(log_p - logsumexp(log_p))), 2000, True, generator=generator
    )
    x, z = torch.from_numpy(points[picks.numpy()]).split(1, dim=1)
    pool = torch.cat([z, energy.reference.to_noise(x, z)[0]], -1)[:1000]
    data = x[1000:]
    assert excess_tilt(energy, data, row_posterior(energy, data, generator), pool) == 0.0


# -- a row's posterior and evidence --------------------------------------------------------------


def replicated_importance(energy, x, particles, n_draws, generator, n_replicates=R):
    """Importance sampling of the rows, over and over: replicates go first."""
    k = particles.shape[-1]
    return [
        importance(
            energy.posterior(x),
            particles,
            torch.eye(k, dtype=torch.float64),
            sizes=(256, n_draws),
            noise=Noise(generator),
        )
        for _ in range(n_replicates)
    ]


@pytest.mark.parametrize("start", ["posterior", "prior"])
@pytest.mark.statistical
def test_importance_on_the_linear_gaussian_energy(rng, generator, start):
    """Cases 2 and 3: evidence, posterior mean and covariance of five rows, from good particles
    and from bad ones.

    The evidence (not its logarithm) is unbiased whatever the proposal. Mean and covariance are
    ratios, with a bias of the order 1/n_draws of a standard deviation.
    """
    energy, weight, bias, sigma = linear_case(rng, generator)
    # Rows of the model itself: prior particles are bad ones, yet not a dozen deviations away.
    x = rng.standard_normal((5, 2)) @ weight.T + bias + sigma * rng.standard_normal((5, 3))
    mean, covariance = oracles.linear_posterior(x, weight, bias, sigma)
    particles = normal(generator, 5, 32, 2)
    if start == "posterior":
        factor = torch.linalg.cholesky(torch.from_numpy(covariance))
        particles = torch.from_numpy(mean)[:, None] + particles @ factor.T
    found = replicated_importance(energy, torch.from_numpy(x), particles, 2000, generator)
    exact = oracles.linear_marginal(x, weight, bias, sigma)
    log_evidence = torch.stack([p.log_evidence for p in found]).numpy()
    log_p = log_evidence - oracles.linear_log_partition(3, 2, sigma)
    assert_close_to(np.exp(log_p - exact), np.ones(5))
    assert_rejects(log_p, exact + 0.1)
    std = torch.stack([p.std for p in found]).numpy()
    for row in range(5):
        assert_calibrated(log_p[:, row], std[:, row], exact[row])
    means = torch.stack([p.mean for p in found]).numpy()
    assert_close_to(means, mean, slack=np.sqrt(np.diag(covariance)) * 5 / 2000)
    centred = [p.draws.numpy() - mean[:, None] for p in found]
    weights = [p.weights.numpy() for p in found]
    second = [np.einsum("ns,nsi,nsj->nij", w, c, c) for w, c in zip(weights, centred, strict=True)]
    assert_close_to(second, np.broadcast_to(covariance, (5, 2, 2)), slack=5 / 2000)
    assert_rejects(second, np.broadcast_to(np.eye(2), (5, 2, 2)))


@pytest.mark.statistical
def test_free_energy_against_quadrature(generator):
    """Case 7: F(x) of rows whose posteriors are skewed or have two modes, from MALA particles."""
    energy, log_density, axes = banana_case(generator)
    rows = np.array([-2.0, -0.8, 0.0, 0.9, 1.5])
    exact = np.array(
        [
            oracles.log_integral(lambda z, r=r: log_density(np.insert(z, 0, r, axis=1)), axes[1])
            for r in rows
        ]
    )
    x = torch.from_numpy(rows[:, None])
    eye = torch.eye(1, dtype=torch.float64)
    particles = explore(
        normal(generator, 5, 32, 1),
        energy.posterior(x),
        preconditioner=Preconditioner.from_covariance(eye),
        initial_step_size=0.3,
        n_burn=60,
        n_keep=10,
        noise=Noise(generator),
    )
    found = replicated_importance(energy, x, particles, 1000, generator, 2 * R)
    log_evidence = torch.stack([p.log_evidence for p in found]).numpy()
    assert_close_to(np.exp(log_evidence - exact), np.ones(5))
    assert_rejects(log_evidence, exact + 0.1)
    std = torch.stack([p.std for p in found]).numpy()
    for row in range(5):
        assert_calibrated(log_evidence[:, row], std[:, row], exact[row])


@pytest.mark.statistical
def test_explore_reaches_the_posterior(generator):
    """Moments of the kept draws against quadrature; each of 64 rows is a replicate.

    The chains of a row adapt one step size, which is frozen before any draw is kept.
    """
    copies, chains, n_keep = 64, 32, 20

    def log_density(z):
        return -0.5 * z[..., 0].square() + 2 * torch.sin(1.3 * z[..., 0])

    draws = explore(
        2 * normal(generator, copies, chains, 1),
        log_density,
        preconditioner=Preconditioner.from_covariance(torch.eye(1).double()),
        initial_step_size=0.3,
        n_burn=200,
        n_keep=n_keep,
        noise=Noise(generator),
    )
    assert draws.shape == (copies, chains * n_keep, 1)

    def features(z):
        return np.stack([z, z**2, np.sin(2 * z)], -1)

    exact = oracles.expectation(
        lambda z: features(z[:, 0]),
        lambda z: log_density(torch.from_numpy(z)).numpy(),
        np.arange(-9, 9, 0.05),
    )
    assert_close_to(features(draws[..., 0].numpy()).mean(1), exact)
