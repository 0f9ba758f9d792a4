"""Whole models and fitted estimators against exact answers, and the oracles against each other."""

from __future__ import annotations

import math
import warnings

import numpy as np
import oracles
import pytest
import torch
from sklearn.datasets import load_wine, make_moons
from sklearn.preprocessing import StandardScaler
from statistical import (
    Z,
    assert_at_least,
    assert_at_most,
    assert_calibrated,
    assert_close_to,
    assert_rejects,
    interval,
)
from torch import nn

from sklvebm import LVEBMEstimator
from sklvebm.energies import CustomEnergy, FreeEnergy, LinearEnergy, TiltedEnergy
from sklvebm.langevin import Noise
from sklvebm.particles import JointPool
from sklvebm.partition import log_partition
from sklvebm.ppca import fit_ppca

R = 32


def reseeded(model, seeds):
    """The fitted ``model`` once for every seed of its answers' noise: independent replicates.

    Its answers are deterministic, so their Monte Carlo error shows only across seeds.
    """
    kept = model._model.seed
    for seed in seeds:
        for variant in (model._model, model._model.cast(torch.float64)):
            variant.seed = int(seed)
        yield model
    model._model.seed = model._model.cast(torch.float64).seed = kept


def replicate(answer, model, rng, n=R):
    """``answer(model)`` under n seeds, stacked."""
    return np.stack([answer(m) for m in reseeded(model, rng.integers(2**31, size=n))])


def log_z_slacks(model) -> tuple[float, float]:
    """What log_partition_ may be too low and too high by: its error; that, and what it was raised
    by to be safe, which never makes a score too high.

    The error is an estimate itself, let to be small by a quarter as in ``assert_calibrated``.
    """
    log_z = model._model.log_partition
    error = 1.25 * Z * log_z.std
    return error, error + (log_z.conservative - log_z.value)


def assert_log_partition(model, exact, *, slack):
    """``log_partition_`` is ``exact`` within its error, or raised; known well enough to matter."""
    low, high = log_z_slacks(model)
    assert high + slack < 0.3, "log Z should be known well enough for this to mean something"
    assert -low - slack <= model.log_partition_ - exact <= high + slack


def assert_densities(estimates, exact, model, *, slack=0.0):
    """Densities, or their integrals, are ``exact`` up to log Z: lower where that was raised."""
    low, high = log_z_slacks(model)
    assert_at_most(estimates, exact, slack=math.expm1(low) + slack)
    assert_at_least(estimates, exact, slack=-math.expm1(-high) + slack)


# -- the oracles against each other --------------------------------------------------------------

AXIS = np.arange(-9, 9, 0.05)


def test_linear_oracles_against_quadrature(rng):
    """d = k = 1: log Z, the marginal and the posterior of exp(−E), all by the trapezoid rule."""
    weight, bias, sigma = rng.uniform(0.3, 1.2, (1, 1)), rng.standard_normal(1), 0.7

    def log_density(points):
        x, z = points[:, 0], points[:, 1]
        residual = x - weight[0, 0] * z - bias[0]
        return -(residual**2) / (2 * sigma**2) - z**2 / 2

    log_z = oracles.log_integral(log_density, np.arange(-14, 14, 0.05), AXIS)
    assert log_z == pytest.approx(oracles.linear_log_partition(1, 1, sigma), abs=1e-9)
    x = np.array([[0.4]])

    def given_x(z):
        return log_density(np.insert(z, 0, x[0, 0], axis=1))

    evidence = oracles.log_integral(given_x, AXIS)
    marginal = oracles.linear_marginal(x, weight, bias, sigma)[0]
    assert evidence - log_z == pytest.approx(marginal, abs=1e-9)
    mean, covariance = oracles.linear_posterior(x, weight, bias, sigma)
    moments = oracles.expectation(lambda z: np.column_stack([z, z**2]), given_x, AXIS)
    np.testing.assert_allclose(moments, [mean.item(), covariance.item() + mean.item() ** 2])


def random_covariance(rng, d):
    root = rng.standard_normal((d, d))
    return root @ root.T + 0.3 * np.eye(d)


def test_conditioning_against_the_ratio_of_densities(rng):
    """Case 11: log p(missing | observed) = log p(all) − log p(observed), at any point."""
    mean, covariance = rng.standard_normal(5), random_covariance(rng, 5)
    observed, missing = np.array([0, 3]), np.array([1, 2, 4])
    x = rng.standard_normal((1, 5))
    conditional = oracles.gaussian_conditional(mean, covariance, observed, x[0, observed])
    found = oracles.gaussian_log_prob(x[:, missing], *conditional)
    part = oracles.gaussian_log_prob(
        x[:, observed], mean[observed], covariance[np.ix_(observed, observed)]
    )
    whole = oracles.gaussian_log_prob(x, mean, covariance)
    np.testing.assert_allclose(found, whole - part, rtol=1e-9)


@pytest.mark.statistical
def test_conditioning_against_the_draws_that_happen_to_agree(rng):
    """Case 11 by brute force: least squares of the missing on the observed in a large sample."""
    mean, covariance = rng.standard_normal(3), random_covariance(rng, 3)
    x = mean + rng.standard_normal((R, 4000, 3)) @ np.linalg.cholesky(covariance).T
    values = np.array([0.5, -0.2])
    exact, rest = oracles.gaussian_conditional(mean, covariance, np.array([0, 2]), values)
    found = []
    for part in x:
        design = np.column_stack([np.ones(4000), part[:, 0], part[:, 2]])
        solution, residual, *_ = np.linalg.lstsq(design, part[:, 1], rcond=None)
        found.append([solution @ [1.0, *values], residual[0] / (4000 - 3)])
    assert_close_to(found, [exact.item(), rest.item()])


def test_entropies_against_quadrature(rng):
    covariance = np.array([[1.0, 0.6], [0.6, 0.8]])
    found = oracles.entropy(
        lambda x: oracles.gaussian_log_prob(x, np.zeros(2), covariance), AXIS, AXIS
    )
    assert found == pytest.approx(oracles.gaussian_entropy(covariance), abs=1e-9)


@pytest.mark.parametrize(("noise", "ceiling"), [(0.05, -0.290), (0.1, -1.008)])
def test_the_ceiling_of_make_moons(noise, ceiling):
    x, y = np.arange(-1.7, 2.7, noise / 2), np.arange(-1.2, 1.7, noise / 2)
    assert oracles.log_integral(lambda p: oracles.moons_log_prob(p, noise), x, y) == pytest.approx(
        0.0, abs=1e-4
    )
    entropy = oracles.entropy(lambda p: oracles.moons_log_prob(p, noise), x, y)
    assert -entropy == pytest.approx(ceiling, abs=1e-3)


def test_mean_field_gap_is_the_smallest_divergence(rng):
    """½(Σ log M_ii − log det M) = min KL(N(m, D) ‖ N(m, M⁻¹)), reached at D_ii = 1/M_ii."""
    precision = random_covariance(rng, 4)
    target = np.zeros(4), np.linalg.inv(precision)
    gap = oracles.mean_field_gap(precision)
    variances = 1 / np.diag(precision)
    best = oracles.gaussian_kl(np.zeros(4), np.diag(variances), *target)
    assert gap == pytest.approx(best, abs=1e-10)
    for _ in range(20):
        other = variances * np.exp(0.1 * rng.standard_normal(4))
        assert oracles.gaussian_kl(0.1 * rng.standard_normal(4), np.diag(other), *target) > gap


def test_ula_oracles_are_fixed_points(rng):
    """S = (I − ηA) S (I − ηA)ᵀ + 2ηI; the moments follow the recursion and end at S."""
    precision, eta = random_covariance(rng, 3), 0.02
    covariance = oracles.ula_covariance(precision, eta)
    step = np.eye(3) - eta * precision
    np.testing.assert_allclose(
        step @ covariance @ step.T + 2 * eta * np.eye(3), covariance, rtol=1e-9, atol=1e-12
    )
    m, v = 2.0, 0.5
    for _ in range(7):
        m, v = (1 - 0.1 * 1.5) * m, (1 - 0.1 * 1.5) ** 2 * v + 0.2
    assert oracles.ula_moments(7, 0.1, 2.0, 0.5, 1.5) == pytest.approx((m, v))
    stationary = oracles.ula_covariance(np.array([[1.5]]), 0.1).item()
    assert oracles.ula_moments(10_000, 0.1, 2.0, 0.5, 1.5)[1] == pytest.approx(stationary)


def gaussian_bernoulli(rng, n_hidden=8):
    weight = rng.uniform(-1, 1, (2, n_hidden)) * 1.5 / math.sqrt(n_hidden)
    return oracles.GaussianBernoulli(
        weight, 0.5 * rng.standard_normal(2), rng.uniform(-1, 1, n_hidden), 0.8
    )


@pytest.mark.parametrize("n_hidden", [1, 8, 12])
def test_gaussian_bernoulli_enumeration(rng, n_hidden):
    """Case 6: 2^H states against the mixture, the product of sums, and quadrature."""
    machine = gaussian_bernoulli(rng, n_hidden)
    x = 2 * rng.standard_normal((20, 2))
    free_energy = machine.free_energy(x)
    np.testing.assert_allclose(-free_energy - machine.log_partition, machine.log_prob(x), rtol=1e-9)
    # Σ_h factorises over the units: −F = −‖x − b‖²/2σ² + Σ_j softplus.
    centred = x - machine.bias
    units = machine.hidden_bias + centred @ machine.weight / machine.sigma**2
    product = (centred**2).sum(1) / (2 * machine.sigma**2) - np.logaddexp(0, units).sum(1)
    np.testing.assert_allclose(free_energy, product, rtol=1e-9)
    axis = np.arange(-14, 14, 0.35)
    found = oracles.log_integral(lambda p: -machine.free_energy(p), axis, axis)
    assert found == pytest.approx(machine.log_partition, abs=1e-6)


# -- cases 1 to 3 through the estimator ----------------------------------------------------------


class LinearGaussian(nn.Module):
    """E = ‖x − Wz − b‖²/2σ² + ‖z‖²/2, fixed and not normalised."""

    def __init__(self, weight, bias, sigma):
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))
        self.register_buffer("bias", torch.tensor(bias))
        self.sigma = sigma

    def forward(self, x, z):
        residual = x - z @ self.weight.to(z.dtype).T - self.bias.to(x.dtype)
        return residual.square().sum(-1) / (2 * self.sigma**2) + 0.5 * z.square().sum(-1)


@pytest.fixture
def linear_model(rng, seed):
    """A fit whose energy has nothing to learn, the oracle's parameters, rows in user units.

    The energy is near the probabilistic PCA of its data, and a little narrower, so that the
    estimator's own start proposes well: what else may happen is test_evidence's business.
    """
    X = rng.standard_normal((400, 2)) @ rng.standard_normal((2, 3))
    X = StandardScaler().fit_transform(X + 0.6 * rng.standard_normal((400, 3)))
    weight, bias, sigma = fit_ppca(X, 2)
    weight, bias, sigma = 0.9 * weight, bias + 0.1, 0.9 * sigma
    X = X * [3.0, 0.2, 1.0] + [10.0, -5.0, 0.0]
    model = LVEBMEstimator(
        2, energy=lambda d, k: LinearGaussian(weight, bias, sigma), max_iter=50, random_state=seed
    ).fit(X)
    return model, (weight, bias, sigma), X[:4]


def standardised(model, X):
    return (X - model._scaler.mean_) / model._scaler.scale_


@pytest.mark.statistical
def test_the_linear_gaussian_energy_as_a_user_s_module(linear_model, rng):
    """Cases 1 to 3: the estimator is told nothing of what it is given.

    exp(−F) is unbiased. A posterior mean is a ratio of two means over 256 draws, biased by a few
    256ths of a standard deviation.
    """
    model, parameters, X = linear_model
    x = standardised(model, X)
    log_z = oracles.linear_log_partition(3, 2, parameters[2])
    assert_log_partition(model, log_z, slack=1e-4)
    marginal = oracles.linear_marginal(x, *parameters) - np.log([3.0, 0.2, 1.0]).sum()
    free_energy = replicate(lambda m: m.free_energy(X), model, rng)
    assert_close_to(np.exp(-free_energy - log_z - marginal), np.ones(4), slack=1e-4)
    scores = replicate(lambda m: m.score_samples(X), model, rng)
    assert_densities(np.exp(scores - marginal), np.ones(4), model)
    mean, covariance = oracles.linear_posterior(x, *parameters)
    latents = replicate(lambda m: m.transform(X), model, rng)
    assert_close_to(latents, mean, slack=3 / 256 * np.sqrt(np.diag(covariance)))
    draws = replicate(lambda m: m.sample_posterior(X, 100), model, rng)
    assert draws.shape == (R, 100, 4, 2)
    centred = draws - mean
    # Resampled from 256 weighted draws, then moved apart by MALA.
    assert_close_to(centred.mean(1), np.zeros((4, 2)))
    second = np.einsum("rsni,rsnj->rnij", centred, centred) / 100
    assert_close_to(second, np.broadcast_to(covariance, (4, 2, 2)))
    assert_rejects(second, np.broadcast_to(np.eye(2), (4, 2, 2)))


@pytest.mark.statistical
def test_the_linear_energy_answers_in_closed_form(rng, seed):
    """Cases 2 and 3 by name, in user units. The parameters are kept in float32: 1e-7 each."""
    X = rng.standard_normal((300, 2)) @ rng.standard_normal((2, 5)) + rng.standard_normal((300, 5))
    X = X * [1.0, 40.0, 0.3, 2.0, 1.0] + [0.0, 100.0, -3.0, 0.0, 7.0]
    model = LVEBMEstimator(2, energy="linear", whiten=True, random_state=seed).fit(X)
    scale = X.std(0)
    x = (X - X.mean(0)) / scale
    weight, bias, variance, log_likelihood = oracles.ppca(x, 2)
    sigma = math.sqrt(variance)
    exact = oracles.linear_marginal(x, weight, bias, sigma) - np.log(scale).sum()
    np.testing.assert_allclose(model.score_samples(X), exact, atol=2e-4)
    assert model.score(X) == pytest.approx(log_likelihood - np.log(scale).sum(), abs=1e-5)
    assert (model.log_partition_, model.log_partition_std_) == (0.0, 0.0)
    # Of prior variance one they are defined up to a rotation: compare what is not.
    mean, covariance = oracles.linear_posterior(x, weight, bias, sigma)
    Z_ = model.transform(X)
    np.testing.assert_allclose(Z_ @ Z_.T, mean @ mean.T, atol=1e-3)
    back = model.decode(Z_)
    np.testing.assert_allclose(back, X.mean(0) + scale * (mean @ weight.T), atol=1e-3 * 40)
    draws = model.sample_posterior(X[:3], 64 * 50) - Z_[:3]
    squares = (draws**2).sum(-1).reshape(64, 50, 3).mean(1)
    assert_close_to(squares, np.trace(covariance) * np.ones(3), slack=1e-4)
    sampled = ((model.sample(64 * 50) - X.mean(0)) / scale).reshape(64, 50, 5)
    second = np.einsum("rni,rnj->rij", sampled, sampled) / 50
    assert_close_to(second, oracles.linear_covariance(weight, sigma), slack=1e-4)


# -- case 6: Gaussian–Bernoulli ------------------------------------------------------------------


class GaussianBernoulliEnergy(nn.Module):
    """F(loc + scale · x) of the machine, its hidden units summed out, and an idle latent."""

    def __init__(self, machine, loc=0.0, scale=1.0):
        super().__init__()
        self.sigma = machine.sigma
        for name in ("weight", "bias", "hidden_bias"):
            self.register_buffer(name, torch.tensor(getattr(machine, name)))
        self.register_buffer("loc", torch.as_tensor(loc))
        self.register_buffer("scale", torch.as_tensor(scale))

    def forward(self, x, z):
        centred = self.loc + self.scale * x - self.bias
        units = self.hidden_bias + centred @ self.weight / self.sigma**2
        fit = centred.square().sum(-1) / (2 * self.sigma**2)
        return fit - nn.functional.softplus(units).sum(-1) + 0.5 * z.square().sum(-1)


@pytest.mark.statistical
def test_gaussian_bernoulli_log_partition(rng, generator):
    """log Z and log p(x) of a mixture of 256 Gaussians. Pools start at the reference."""
    machine = gaussian_bernoulli(rng)
    energy = CustomEnergy(lambda *_: GaussianBernoulliEnergy(machine)).build(
        2, 1, generator=generator
    )
    energy = energy.double().requires_grad_(False)
    energy.reference.set_ppca_(fit_ppca(machine.sample(2000, rng), 1))
    noise, m = Noise(generator), 512
    start = noise.normal(torch.empty(R * m, 3, dtype=torch.float64))
    pool = JointPool(start, dynamics="mala", n_steps=1, step_size="auto", noise=noise)
    for _ in range(150):
        pool.advance(energy.log_tilt)
    pools = pool.position.reshape(R, m, 3)
    found = [log_partition(energy, members, noise=noise) for members in pools]
    value, std = np.array([part[:2] for part in found]).T
    exact = machine.log_partition + 0.5 * oracles.LOG_2PI
    assert_close_to(value, exact, slack=np.mean(std**2))
    assert_calibrated(value, std, exact)
    # The pool's own x are draws of the mixture.
    x = energy.reference.split(pool.position)[0].reshape(R, m, 2)
    weights = np.exp(machine.log_masses - machine.log_partition)
    mean = weights @ machine.means
    second = (weights[:, None] * machine.means).T @ machine.means + machine.sigma**2 * np.eye(2)
    found = np.einsum("rni,rnj->rij", x.numpy(), x.numpy()) / m
    assert_close_to(x.mean(1), mean)
    assert_close_to(found, second)


@pytest.mark.statistical
def test_gaussian_bernoulli_scores(rng, seed):
    """score_samples is the mixture's log-density, where the module undoes the standardisation."""
    machine = gaussian_bernoulli(rng)
    X = machine.sample(500, rng)
    loc, scale = X.mean(0), X.std(0)
    model = LVEBMEstimator(
        1,
        energy=lambda d, k: GaussianBernoulliEnergy(machine, loc, scale),
        max_iter=50,
        random_state=seed,
    ).fit(X)
    log_z = machine.log_partition + 0.5 * oracles.LOG_2PI - np.log(scale).sum()
    assert_log_partition(model, log_z, slack=1e-4)
    exact = machine.log_prob(X[:5])
    scores = replicate(lambda m: m.score_samples(X[:5]), model, rng)
    assert_densities(np.exp(scores - exact), np.ones(5), model, slack=1e-4)


# -- case 7: fitted densities integrate to one ---------------------------------------------------


class Curve(nn.Module):
    """A user's energy with parameters to learn: x about a curve of z, integrable by design."""

    def __init__(self, n_features, n_components):
        super().__init__()
        self.inner = nn.Linear(n_components, 8)
        self.outer = nn.Linear(8, n_features)
        self.log_scale = nn.Parameter(torch.zeros(n_features))

    def forward(self, x, z):
        residual = (x - self.outer(torch.tanh(self.inner(z)))) * torch.exp(-self.log_scale)
        return 0.5 * (residual.square() + (1 + residual.square()).log()).sum(-1) + 0.5 * (
            z.square().sum(-1)
        )


ENERGIES = {
    "tilted": TiltedEnergy((16, 16), (16, 16)),
    "mixed": TiltedEnergy((16, 16), (16, 16), mixing=True),
    "isotropic": TiltedEnergy((16, 16), (16, 16), noise="isotropic"),
    "free": FreeEnergy((16, 16)),
    "linear": "linear",
    "custom": Curve,
}


def blobs(rng, n, d):
    """Two clusters at different scales and offsets, ``(n, d)``."""
    labels = rng.integers(2, size=(n, 1))
    X = np.where(labels, 1.5, -1.0) + np.where(labels, 0.5, 0.8) * rng.standard_normal((n, d))
    return X * [3.0, 0.5][:d] + [20.0, -1.0][:d]


@pytest.mark.parametrize(
    ("energy", "d"),
    [
        *(("tilted", 1), ("free", 1), ("linear", 1), ("custom", 1)),
        *(("mixed", 2), ("isotropic", 2), ("free", 2), ("linear", 2), ("custom", 2)),
    ],
)
@pytest.mark.statistical
def test_fitted_densities_integrate_to_one(rng, seed, energy, d):
    """∫ exp(score_samples) over a grid of ±8 (d = 1) or ±6 (d = 2) standard deviations.

    The evidence of a row is unbiased, so the integral's mean over seeds of the answers is Z/Ẑ. The
    slack is the error of log Z, a thousandth for the grid, and the share of the model's own draws
    that falls outside.
    """
    X = blobs(rng, 600, d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = {"energy": ENERGIES[energy], "max_iter": 300, "refit": False}
        model = LVEBMEstimator(1, **params, random_state=seed).fit(X)
    reach, spacing, n = (8, 0.1, R) if d == 1 else (6, 0.3, 16)
    axis = np.arange(-reach, reach, spacing)
    points = oracles.grid(*[axis] * d) * X.std(0) + X.mean(0)
    cell = float(np.prod(spacing * X.std(0)))

    def integral(model):
        # float32: twice as fast, and its rounding is far below the Monte Carlo error.
        return np.exp(model.score_samples(points.astype(np.float32))).sum() * cell

    if energy == "linear":
        assert integral(model) == pytest.approx(1.0, abs=1e-3)
        return
    outside = np.abs(standardised(model, model.sample(5000, random_state=seed))).max(1) > reach
    slack = 1e-3 + 2 * outside.mean()
    known = log_z_slacks(model)[1] + slack
    assert known < 0.35, "log Z should be known well enough for this to mean something"
    assert_densities(replicate(integral, model, rng, n), 1.0, model, slack=slack)


class Fixed(nn.Module):
    """d = k = 1, nothing to learn, not Gaussian in x, in z, or in either given the other."""

    def forward(self, x, z):
        x, z = x[..., 0], z[..., 0]
        fit = (x - torch.sin(1.3 * z)).square() / (2 * 0.6**2)
        return fit + 0.5 * z.square() + 0.8 * torch.tanh(x + z) - 2.0


@pytest.mark.statistical
def test_a_fixed_energy_through_the_estimator(rng, seed):
    """Case 7: log_partition_ and free_energy against the trapezoid rule, in user units.

    Beyond x = 1 the posterior has a second mode, of a few hundredths of the mass or less, which few
    replicates find: exp(−F) is unbiased there too, but no mean of 32 replicates shows it. So rows
    far out are held to one side: their scores are not too high.
    """
    X = 5.0 + 2.0 * rng.standard_normal((300, 1))
    model = LVEBMEstimator(1, energy=lambda d, k: Fixed(), max_iter=50, random_state=seed).fit(X)
    energy = Fixed()

    def log_density(points):
        points = torch.from_numpy(points)
        return -energy(points[:, :1], points[:, 1:]).numpy()

    exact = oracles.log_integral(log_density, AXIS, AXIS)
    assert_log_partition(model, exact, slack=1e-4)
    rows = X.mean() + X.std() * np.array([-1.0, -0.5, 0.0, 0.5, 0.9, 1.5, 2.5, 3.5])[:, None]
    x = standardised(model, rows)
    log_evidence = [
        oracles.log_integral(lambda z, r=r: log_density(np.insert(z, 0, r, axis=1)), AXIS)
        for r in x[:, 0]
    ]
    expected = np.array(log_evidence) - math.log(X.std())
    found = replicate(lambda m: -m.free_energy(rows), model, rng)
    ratio = np.exp(found - expected)
    assert_close_to(ratio[:, :5], 1.0, slack=1e-4)
    mean, half_width = interval(ratio[:, 5:])
    assert (mean <= 1 + half_width + 1e-4).all()
    joint = model.joint_energy(rows, np.zeros((8, 1)))
    np.testing.assert_allclose(
        -joint, log_density(np.column_stack([x, np.zeros(8)])) - math.log(X.std()), atol=1e-4
    )


class TwoModes(nn.Module):
    """z in one of two wells at ±√2, six nats deep, the right one 5.5 times as heavy."""

    def forward(self, x, z):
        z = z[..., 0]
        return 0.5 * x.square().sum(-1) + 1.5 * (z.square() - 2).square() - 0.6 * z


@pytest.mark.statistical
def test_a_posterior_with_two_modes_gets_their_weights(rng, seed):
    """Draws and mean: chains do not cross in time, so the weights must come from importance.

    A mean of 256 weighted draws is biased by a few 256ths of a deviation.
    """
    X = rng.standard_normal((200, 1))
    model = LVEBMEstimator(1, energy=lambda d, k: TwoModes(), max_iter=50, random_state=seed).fit(X)
    energy = TwoModes()

    def log_density(z):
        return -energy(torch.zeros(len(z), 1), torch.from_numpy(z)).numpy()

    moments = oracles.expectation(lambda z: np.hstack([z, z > 0, z**2]), log_density, AXIS)
    deviation = math.sqrt(moments[2] - moments[0] ** 2)
    rows = X[:3]
    found = replicate(lambda m: m.transform(rows), model, rng, 2 * R)
    assert_close_to(found, np.full((3, 1), moments[0]), slack=5 / 256 * deviation)
    draws = replicate(lambda m: m.sample_posterior(rows, 100), model, rng, 2 * R)[..., 0]
    assert_close_to((draws > 0).mean(1), np.full(3, moments[1]), slack=5 / 256)


@pytest.mark.statistical
def test_both_phases_find_a_density_that_no_gaussian_has(rng, seed):
    """The free energy on two clusters: at least half of the Gaussian's divergence is closed.

    A tilt on a frozen Gaussian gains only what data and negatives teach it together.
    """
    means, covariances = np.array([[-2.0], [2.0]]), np.full((2, 1, 1), 0.5)
    X = oracles.mixture_sample(3000, np.array([0.4, 0.6]), means, covariances, rng)
    log_q = oracles.mixture_log_prob(X, np.array([0.4, 0.6]), means, covariances)[1000:]
    model = LVEBMEstimator(1, energy=FreeEnergy((32, 32)), max_iter=600, random_state=seed)
    model.fit(X[:1000])
    gaussian = oracles.gaussian_log_prob(X[1000:], X[:1000].mean(0), X[:1000].var(0)[:, None])
    learned = model.score_samples(X[1000:])
    assert (log_q - learned).mean() < 0.5 * (log_q - gaussian).mean()


# -- case 10: probabilistic PCA ------------------------------------------------------------------


def test_wine_by_the_closed_form():
    """178 rows, standardised, k = 3: −15.7018 nats per row."""
    X = StandardScaler().fit_transform(load_wine(return_X_y=True)[0])
    assert oracles.ppca(X, 3)[3] == pytest.approx(-15.7018, abs=5e-5)
    model = LVEBMEstimator(3, energy="linear", random_state=0).fit(X)
    assert model.score(X) == pytest.approx(-15.7018, abs=5e-5)
    assert model.n_iter_ == 1


def test_training_recovers_probabilistic_pca(rng, seed):
    """From a random W, by particles alone.

    The maximum itself is known from n rows only to p/2n nats (half a χ² with p parameters) and
    σ² to √(2/n(d − k)): training must be ten times closer in likelihood, twice in σ².
    """
    n, d, k = 400, 5, 2
    loadings = 1.3 * np.linalg.qr(rng.standard_normal((d, k)))[0]
    X = rng.standard_normal((n, k)) @ loadings.T + 0.6 * rng.standard_normal((n, d))
    X = StandardScaler().fit_transform(X)
    model = LVEBMEstimator(
        k,
        energy=LinearEnergy(init="random"),
        early_stopping=False,
        max_iter=3000,
        learning_rate=3e-2,
        random_state=seed,
    ).fit(X)
    weight, _, variance, best = oracles.ppca(X, k)
    n_parameters = d * k - k * (k - 1) // 2 + d + 1
    gap = best - model.score(X)
    assert -1e-5 < gap < 0.1 * n_parameters / (2 * n)
    reference = model._model.energy.reference
    found = math.exp(2 * reference.log_scale.item())
    assert abs(found / variance - 1) < 0.5 * math.sqrt(2 / (n * (d - k)))
    learned = reference.weight.detach().double().cpu().numpy()
    exact = weight @ weight.T
    assert np.abs(learned @ learned.T - exact).max() < 0.1 * np.abs(exact).max()


# -- case 12: no held-out score above the ceiling ------------------------------------------------


def corner_mixture():
    """Three overlapping clusters in the plane, at scales that standardisation must undo."""
    weights = np.array([0.5, 0.3, 0.2])
    means = np.array([[0.0, 0.0], [3.0, 10.0], [-2.0, 12.0]])
    covariances = np.array(
        [[[1.0, 1.2], [1.2, 4.0]], [[0.5, 0.0], [0.0, 9.0]], [[0.3, -0.5], [-0.5, 2.0]]]
    )
    return weights, means, covariances


def chain_mixture():
    """Two correlated clusters in three dimensions."""
    covariance = np.array([[1.0, 0.7, 0.3], [0.7, 1.0, 0.5], [0.3, 0.5, 0.6]])
    means = np.array([[1.2, 0.0, -1.0], [-1.2, 0.5, 1.0]])
    return np.array([0.6, 0.4]), means, np.stack([covariance, 0.4 * np.eye(3)])


@pytest.mark.parametrize("data", ["corners", "chain", "moons"])
@pytest.mark.statistical
def test_no_held_out_score_above_the_entropy(rng, seed, data):
    """E[score − log q] = −KL ≤ 0 for data from q, paired row by row.

    Its squared error is Var(score − log q)/n, plus what all rows share: their evidence's mean
    error, squared, and that of log Z.
    """
    n, n_held_out = 1500, 500
    if data == "moons":
        X = make_moons(n + n_held_out, noise=0.1, random_state=seed % 2**31)[0]
        log_q = oracles.moons_log_prob(X, 0.1)
    else:
        mixture = corner_mixture() if data == "corners" else chain_mixture()
        X = oracles.mixture_sample(n + n_held_out, *mixture, rng)
        log_q = oracles.mixture_log_prob(X, *mixture)
    energy = TiltedEnergy((64, 64), (64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LVEBMEstimator(2, energy=energy, max_iter=600, random_state=seed).fit(X[:n])
    held_out = X[n:]
    excess = model.score_samples(held_out) - log_q[n:]
    x = torch.tensor(standardised(model, held_out), device=model._model.device)
    row_error = torch.cat([p.std for p in model._model.cast(x.dtype).posterior(x)]).mean()
    error = math.sqrt(
        excess.var() / n_held_out + float(row_error) ** 2 + model.log_partition_std_**2
    )
    assert excess.mean() < Z * error
    # A model better than nothing was learned, and the errors would show a lie of half a nat.
    assert Z * error < 0.5
    gaussian = oracles.gaussian_log_prob(held_out, X[:n].mean(0), np.cov(X[:n].T))
    assert model.score(held_out) > gaussian.mean() - Z * error
