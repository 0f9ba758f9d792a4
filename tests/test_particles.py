"""The particle systems on posteriors and tilted targets that are known exactly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import oracles
import pytest
import torch
from statistical import assert_close_to, assert_rejects

from sklvebm.langevin import Noise, StepSize, init
from sklvebm.particles import (
    GaussianPosteriors,
    JointPool,
    LangevinParticles,
    PointEstimates,
    regularised,
)

R = 64


class Posterior(NamedTuple):
    """A linear-Gaussian posterior of each row: N(mean_i, precision⁻¹)."""

    mean: torch.Tensor
    precision: torch.Tensor

    @property
    def covariance(self):
        return torch.linalg.inv(self.precision)

    def log_density(self, rows):
        """log p(x_i, z) + const of the given rows, for z (b, p, k)."""
        mean = self.mean[rows][:, None]
        return lambda z: -0.5 * (((z - mean) @ self.precision) * (z - mean)).sum(-1)


@pytest.fixture
def posterior(rng):
    """Of 256 rows, k = 3: strongly correlated latents (a large mean-field gap)."""
    weight = np.array([[2.0, 1.5, 1.0], [1.5, 2.0, -1.0], [0.3, 0.0, 1.0], [0.0, 0.2, 0.1]])
    x = rng.standard_normal((256, 4)) @ np.diag([2.0, 2.0, 1.0, 1.0])
    mean, covariance = oracles.linear_posterior(x, weight, np.zeros(4), 0.8)
    return Posterior(torch.from_numpy(mean), torch.from_numpy(np.linalg.inv(covariance)))


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


ALL = torch.arange(256)


def moments(residuals):
    """Means and second moments of ``residuals (256, p, k)``, by replicate: ``(64, k + k²)``."""
    flat = residuals.reshape(R, -1, residuals.shape[-1])
    outer = (flat[..., :, None] * flat[..., None, :]).flatten(2)
    return torch.cat([flat, outer], -1).mean(1)


def langevin_moments(posterior, generator, *, n_visits, n_kept, **options):
    """Moments about the exact mean over the last visits of a flow started at the prior."""
    flow = LangevinParticles(
        normal(generator, 256, 8, 3),
        torch.eye(3, dtype=torch.float64),
        noise=Noise(generator),
        **options,
    )
    total = 0.0
    for i in range(n_visits):
        flow.advance(ALL, posterior.log_density(ALL))
        z = flow.draws(ALL)
        if i >= n_visits - n_kept:
            total = total + moments(z - posterior.mean[:, None])
    return flow, total / n_kept


@pytest.mark.statistical
def test_langevin_particles_have_the_posterior(posterior, generator):
    """Means and covariance, from the prior, step and preconditioner adapting all the while.

    All 2,048 particles share what adapts, each with a weight of 1/2,048 of 0.02 a visit: rows
    count as independent.
    """
    flow, found = langevin_moments(
        posterior, generator, n_visits=300, n_kept=100, dynamics="mala", n_steps=1, step_size="auto"
    )
    exact = np.concatenate([np.zeros(3), posterior.covariance.numpy().ravel()])
    assert_close_to(found, exact)
    # The running estimate averages some 50 visits of 1,792 degrees of freedom each.
    scale = posterior.covariance.diagonal().sqrt()
    error = (flow.covariance - posterior.covariance) / (scale[:, None] * scale)
    assert float(error.abs().max()) < 0.1


@pytest.mark.statistical
def test_unadjusted_particles_have_ula_s_covariance(posterior, generator):
    """Plain steps in raw z: off by O(η), and by exactly as much as theory says."""
    eta = 0.5 / float(torch.linalg.eigvalsh(posterior.precision)[-1])
    flow, found = langevin_moments(
        posterior, generator, n_visits=60, n_kept=10, dynamics="ula", n_steps=10, step_size=eta
    )
    exact = oracles.ula_covariance(posterior.precision.numpy(), eta)
    assert_close_to(found, np.concatenate([np.zeros(3), exact.ravel()]))
    # Along the stiffest direction ηλ = ½, and the variance is 4/3 of the posterior's.
    stiff = torch.linalg.eigh(posterior.precision)[1][:, -1]
    variance = found[:, 3:].reshape(R, 3, 3) @ stiff @ stiff
    assert_rejects(variance, stiff @ posterior.covariance @ stiff)
    assert float(flow.step_size.value) == pytest.approx(eta)


def test_a_visit_moves_its_rows_and_no_others(posterior, generator):
    flow = LangevinParticles(
        normal(generator, 256, 2, 3),
        torch.eye(3, dtype=torch.float64),
        dynamics="ula",
        n_steps=1,
        step_size=0.01,
        noise=Noise(generator),
    )
    before, rows = flow.position.clone(), torch.tensor([7, 200, 3])
    flow.advance(rows, posterior.log_density(rows))
    assert bool((flow.draws(rows) == flow.position[rows]).all())
    others = torch.ones(256, dtype=torch.bool)
    others[rows] = False
    assert bool((flow.position[others] == before[others]).all())
    assert bool((flow.position[rows] != before[rows]).all())


@pytest.mark.statistical
def test_gaussian_posteriors_reach_the_mean_field_optimum(posterior, generator):
    """Variances 1/M_ii, means exact, and the ELBO's gap ½(Σ log M_ii − log det M).

    Antithetic draws make the mean's gradient exact, so the means converge to the last bit. Where
    they have, E[s²] M_ii = 1 exactly at stationarity. log s fluctuates with a variance of at most
    η(4 + 2k)/8p, which is what the gap of a row gains, k times.
    """
    eta, p, k = 0.2, 256, 3
    rows = ALL[:R]
    flow = GaussianPosteriors(
        posterior.mean[:R] + normal(generator, R, k),
        torch.eye(k, dtype=torch.float64),
        n_particles=p,
        n_steps=10,
        step_size=eta,
        noise=Noise(generator),
    )
    diagonal = posterior.precision.diagonal()
    for _ in range(100):
        flow.advance(rows, posterior.log_density(rows))
    torch.testing.assert_close(flow.location, posterior.mean[:R], rtol=1e-6, atol=1e-6)
    total, n_kept = 0.0, 40
    for _ in range(n_kept):
        flow.advance(rows, posterior.log_density(rows))
        z = flow.draws(rows)
        total = total + (2 * flow.log_scale).exp() * diagonal / n_kept
    assert z.shape == (R, p, k)
    assert_close_to(total, 1.0)
    assert_rejects(total, (posterior.covariance.diagonal() * diagonal).numpy())
    exact = oracles.mean_field_gap(posterior.precision.numpy())
    gaps = [
        oracles.gaussian_kl(m, np.diag(np.exp(2 * s)), mean, posterior.covariance.numpy())
        for m, s, mean in zip(
            flow.location.numpy(), flow.log_scale.numpy(), posterior.mean[:R].numpy(), strict=True
        )
    ]
    assert exact > 0.5
    assert min(gaps) >= exact - 1e-6
    assert_close_to(gaps, exact, slack=k * eta * (4 + 2 * k) / (8 * p))


@pytest.mark.statistical
def test_draws_of_gaussian_posteriors_are_theirs(posterior, generator):
    """Mean and diagonal covariance of the draws that a visit returns."""
    flow = GaussianPosteriors(
        posterior.mean.clone(),
        posterior.covariance,
        n_particles=64,
        n_steps=1,
        step_size=1e-9,
        noise=Noise(generator),
    )
    # The start: variances 1/M_ii of the covariance it is given.
    torch.testing.assert_close(
        (-2 * flow.log_scale[0]).exp(), posterior.precision.diagonal(), rtol=1e-9, atol=1e-9
    )
    flow.advance(ALL, posterior.log_density(ALL))
    z = flow.draws(ALL)
    found = moments((z - posterior.mean[:, None]) * posterior.precision.diagonal().sqrt())
    assert_close_to(found[:, 3:], np.eye(3).ravel())
    assert float(found[:, :3].abs().max()) < 1e-6, "antithetic draws average to the mean"


def test_point_estimates_reach_the_mode(posterior, generator):
    """On a Gaussian, the mean; elsewhere a point of zero gradient; the density never falls."""
    start = posterior.mean + normal(generator, 256, 3)
    flow = PointEstimates(start.clone(), posterior.covariance, n_steps=60, step_size="auto")
    flow.advance(ALL, posterior.log_density(ALL))
    z = flow.draws(ALL)
    assert z.shape == (256, 1, 3)
    torch.testing.assert_close(z[:, 0], posterior.mean, rtol=1e-6, atol=1e-6)

    def quartic(z):
        return posterior.log_density(ALL)(z) - 0.25 * z.pow(4).sum(-1) + z[..., 0]

    flow = PointEstimates(start.clone(), posterior.covariance, n_steps=1, step_size="auto")
    values = [quartic(flow.location[:, None])]
    for _ in range(300):
        flow.advance(ALL, quartic)
        values.append(quartic(flow.draws(ALL)))
    heights = torch.stack(values)
    assert bool((heights.diff(dim=0) >= 0).all())
    # Strictly concave, so a zero gradient is the mode.
    assert float(init(flow.location[:, None], quartic).gradient.abs().max()) < 1e-5


def test_regularised_keeps_cholesky_safe(generator):
    direction = normal(generator, 4, 1)
    singular = direction @ direction.T
    torch.linalg.cholesky(regularised(singular))
    excess = regularised(singular) - singular
    trace = float(singular.trace())
    torch.testing.assert_close(excess, excess.diagonal().diag())
    torch.testing.assert_close(
        excess.diagonal(), torch.full((4,), 1e-4 * trace / 4 + 1e-10).double(), rtol=1e-6, atol=0
    )


# -- the joint pool ------------------------------------------------------------------------------


def tilt(v):
    """Two wells of unequal depth in the first coordinate, a slope in the second."""
    a, b = v[..., 0], v[..., 1]
    return 2 * torch.sin(2 * a) + torch.tanh(a + b)


def features(v):
    a, b = v[..., 0], v[..., 1]
    return torch.stack([a, b, a * a, a * b, torch.sin(2 * a)], -1)


@pytest.fixture(scope="module")
def exact_features():
    axis = np.arange(-8, 8, 0.1)
    return oracles.expectation(
        lambda v: features(torch.from_numpy(v)).numpy(),
        lambda v: tilt(torch.from_numpy(v)).numpy() - 0.5 * (v**2).sum(1),
        axis,
        axis,
    )


def pool_features(generator, log_tilt, *, n_visits, n_kept, **options):
    """Mean features over the last visits of a pool started at the reference."""
    pool = JointPool(normal(generator, R * 64, 2), noise=Noise(generator), **options)
    total = 0.0
    for i in range(n_visits):
        pool.advance(log_tilt)
        v = pool.position
        if i >= n_visits - n_kept:
            total = total + features(v).reshape(R, 64, -1).mean(1) / n_kept
    return pool, total


@pytest.mark.parametrize("n_steps", [0, 2])
@pytest.mark.statistical
def test_the_pool_has_the_tilted_law(generator, exact_features, n_steps):
    """From reference draws, by sweeps alone and by sweeps and steps."""
    pool, found = pool_features(
        generator, tilt, n_visits=140, n_kept=30, dynamics="mala", n_steps=n_steps, step_size="auto"
    )
    assert_close_to(found, exact_features)
    assert_rejects(found, [0, 0, 1, 0, 0])
    assert 0 < pool.sweep_acceptance < 1
    if n_steps:
        assert pool.acceptance == pytest.approx(0.6, abs=0.1)


@pytest.mark.statistical
def test_the_steps_find_what_no_sweep_can(generator):
    """A tilt 6a moves the target to N(6, 1): one sweep in 50,000 is accepted, the steps get there.

    For a linear tilt the exponential integrator is exact, so every step is accepted.
    """

    def slope(v):
        return 6 * v[..., 0]

    start = normal(generator, R * 64, 2)
    pool = JointPool(
        start.clone(), dynamics="mala", n_steps=8, step_size=0.5, noise=Noise(generator)
    )
    for _ in range(10):
        pool.advance(slope)
    assert pool.acceptance == pytest.approx(1.0, abs=1e-9)
    assert float(pool.step_size.value) == pytest.approx(0.5)
    a, b = pool.position.unbind(-1)
    found = torch.stack([a, b, (a - 6).square(), b.square(), (a - 6) * start[:, 0]], -1)
    assert_close_to(found.reshape(R, 64, -1).mean(1), [6, 0, 1, 1, 0])


@pytest.mark.statistical
def test_the_unadjusted_pool_is_ula_and_nothing_else(generator):
    """Without a tilt, variance 1/(1 − η/2) from E = ½‖v‖²: no sweep corrects it."""
    eta = 0.4
    pool, found = pool_features(
        generator,
        lambda v: 0.0 * v.sum(-1),
        n_visits=30,
        n_kept=10,
        dynamics="ula",
        n_steps=3,
        step_size=eta,
    )
    assert_close_to(found[:, [0, 1, 2, 3]], [0, 0, 1 / (1 - eta / 2), 0])
    assert_rejects(found[:, 2], 1.0)
    assert np.isnan(pool.sweep_acceptance)


def test_a_pool_visit_moves_its_members_and_no_others(generator):
    pool = JointPool(
        normal(generator, 20, 2), dynamics="ula", n_steps=1, step_size=0.1, noise=Noise(generator)
    )
    before, rows = pool.position.clone(), torch.tensor([4, 11])
    pool.advance(tilt, rows)
    assert int((pool.position != before).any(1).sum()) == 2


def test_flows_take_a_fixed_step_size(posterior, generator):
    """A number given is the number used: nothing adapts it."""
    flow, _ = langevin_moments(
        posterior, generator, n_visits=3, n_kept=1, dynamics="mala", n_steps=2, step_size=0.17
    )
    assert float(flow.step_size.value) == pytest.approx(0.17)
    assert isinstance(flow.step_size, StepSize)


@pytest.mark.statistical
def test_all_members_are_swept_and_some_take_steps(generator):
    """Members that take no steps still meet fresh draws; without a tilt each one is accepted."""
    start = normal(generator, R * 64, 2)
    pool = JointPool(
        start.clone(), dynamics="mala", n_steps=1, step_size=0.5, noise=Noise(generator)
    )
    pool.advance(lambda v: 0.0 * v.sum(-1), torch.arange(10))
    assert bool((pool.position != start).any(1).all())
    found = torch.stack([pool.position[:, 0] * start[:, 0], pool.position[:, 0].square()], -1)
    assert_close_to(found.reshape(R, 64, -1).mean(1), [0, 1])
