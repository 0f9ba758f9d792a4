"""Known densities integrate to one and match their draws; systems obey their identities."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
from statistical import assert_close_to, assert_rejects, assert_within_errors

from sklvebm import datasets
from sklvebm.datasets import (
    Checkerboard,
    DoublePendulum,
    Duffing,
    FitzHughNagumo,
    Lorenz63,
    LotkaVolterra,
    Moons,
    MuellerBrown,
    Pinwheel,
    Rings,
    Spirals,
    SwissRoll,
    eight_gaussians,
)

R = 32
PLANAR = {
    "checkerboard": Checkerboard(),
    "eight gaussians": eight_gaussians(),
    "moons": Moons(),
    "pinwheel": Pinwheel(),
    "rings": Rings(),
    "spirals": Spirals(),
    "swiss roll": SwissRoll(),
    "Duffing": Duffing(),
    "Müller–Brown": MuellerBrown(),
}
# Four rings, as FFJORD draws them.
RINGS = Rings((0.75, 1.5, 2.25, 3.0))
AXIS = np.arange(-6, 6, 0.05) + 0.025


@pytest.mark.parametrize("name", PLANAR)
def test_planar_densities_integrate_to_one(name):
    with np.errstate(divide="ignore"):
        assert oracles.log_integral(PLANAR[name].log_prob, AXIS, AXIS) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", PLANAR)
@pytest.mark.statistical
def test_draws_have_the_moments_of_the_density(rng, name):
    """Means and products, by quadrature and by draws."""
    density = PLANAR[name]
    mesh = np.stack([a.ravel() for a in np.meshgrid(AXIS, AXIS, indexing="ij")], 1)
    with np.errstate(divide="ignore"):
        mass = np.exp(density.log_prob(mesh)) * (AXIS[1] - AXIS[0]) ** 2

    def asked(X):
        x, y = X.T
        return np.stack([x, y, x * x, x * y, y * y, np.sin(3 * x + y)], 1)

    X = density.sample(R * 1000, random_state=rng.integers(2**31))
    found = asked(X).reshape(R, 1000, -1).mean(1)
    assert_close_to(found, mass @ asked(mesh), slack=2e-3)


@pytest.mark.parametrize(
    ("density", "entropy"),
    [(eight_gaussians(), 2.832), (Moons(0.05), 0.290), (Moons(0.1), 1.008), (RINGS, 2.623)],
)
@pytest.mark.statistical
def test_entropies(rng, density, entropy):
    """The published figures are rounded to three places."""
    value, error = density.entropy(100_000, rng.integers(2**31))
    assert_within_errors(value, error, entropy, slack=1e-3)


@pytest.mark.parametrize(("kT", "log_z"), [(10, 11.7296), (15, 7.3649), (20, 5.3661)])
def test_mueller_brown_partition_function(kT, log_z):
    assert MuellerBrown(kT).log_partition == pytest.approx(log_z, abs=2e-3)


def test_duffing_partition_function():
    exact = math.log(3.905137) + 0.5 * oracles.LOG_2PI
    assert Duffing().log_partition == pytest.approx(exact, abs=1e-6)


def replicated(system, rng, n=200):
    """Draws ``(R, n, d)``."""
    X = system.sample(R * n, random_state=rng.integers(2**31))
    return X.reshape(R, n, -1)


@pytest.mark.statistical
def test_lorenz(rng):
    """E[x²] = E[xy] = β E[z], and z about 23.5."""
    x, y, z = np.moveaxis(replicated(Lorenz63(), rng), -1, 0)
    beta = Lorenz63.beta
    found = np.stack([x * x - beta * z, x * y - beta * z, y - x], -1).mean(1)
    assert_close_to(found, 0.0)
    assert_close_to(z.mean(1), 23.54, slack=0.02)
    assert_rejects(z.mean(1), 27.0)


@pytest.mark.statistical
def test_fitzhugh_nagumo(rng):
    """Both time derivatives have mean zero, up to the integrator's first-order noise."""
    system = FitzHughNagumo()
    X = replicated(system, rng)
    velocity = system.velocity(X.reshape(-1, 2)).reshape(X.shape)
    assert_close_to(velocity.mean(1), 0.0, slack=[2e-3, 2e-4])


def test_lotka_volterra(rng):
    """V is kept, and the mean over time follows from the ends of an orbit alone."""
    system = LotkaVolterra()
    start = system.sample(50, random_state=rng.integers(2**31))
    X, n_steps, step, total = start, 2000, 0.01, 0.0
    for i in range(n_steps + 1):
        total = total + X * (0.5 if i in (0, n_steps) else 1.0)
        if i < n_steps:
            X = system.advance(X, step)
    np.testing.assert_allclose(system.invariant(X), system.invariant(start), atol=1e-6)
    ends = np.log(X / start) / (n_steps * step)
    exact = system.equilibrium + np.stack([ends[:, 1] / system.delta, -ends[:, 0] / system.beta], 1)
    np.testing.assert_allclose(total / n_steps, exact, rtol=1e-3)


def test_double_pendulum_keeps_its_energy(rng):
    """From a release at rest within the reach, and over a further stretch."""
    system = DoublePendulum()
    X = system.sample(200, random_state=rng.integers(2**31))
    energies = system.energy(X)
    assert energies.min() > -3
    assert energies.max() < -3 * math.cos(system.reach)
    moved = X
    for _ in range(500):
        moved = system.advance(moved, 0.01)
    np.testing.assert_allclose(system.energy(moved), energies, atol=1e-5)
    assert np.abs(moved - X).max() > 0.1


@pytest.mark.parametrize("name", ["Lorenz63", "LotkaVolterra", "FitzHughNagumo", "DoublePendulum"])
def test_systems_draw_reproducibly(name):
    system = getattr(datasets, name)()
    first, again = (system.sample(3, random_state=0) for _ in range(2))
    assert first.shape == (3, system.n_features)
    np.testing.assert_array_equal(first, again)
    assert np.isfinite(first).all()
