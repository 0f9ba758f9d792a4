"""Annealed paths and the walks along them: unbiased both ways, and each the other's reversal."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import oracles
import pytest
import torch
from statistical import (
    Z,
    assert_at_least,
    assert_at_most,
    assert_calibrated,
    assert_close_to,
    assert_rejects,
    assert_resolves,
    assert_within_errors,
)
from targets import moved, normal, phi4_case

from sklvebm.annealing import DIRECT, Path, adapted_path, walk
from sklvebm.langevin import Noise
from sklvebm.partition import log_partition

R = 64


def geometric(precision, n_steps, step_size=0.4):
    """From N(0, 1) to N(0, 1/λ) by equal ratios of the precisions 1 + (λ − 1)β."""
    levels = precision ** (np.arange(n_steps + 1) / n_steps)
    betas = (levels - 1) / (precision - 1)
    return Path((0.0, *map(float, betas[1:-1]), 1.0), (step_size,) * n_steps)


def walks(position, log_tilt, path, generator, *, forward, n_moves=1):
    """Log-weights in numpy, ``(R, n / R)``."""
    found = walk(position, log_tilt, path, forward=forward, n_moves=n_moves, noise=Noise(generator))
    return found.numpy().reshape(R, -1)


# -- a Gaussian: case 9 --------------------------------------------------------------------------

PRECISION = 4.0
LOG_Z = -0.5 * math.log(PRECISION)


def narrowing(v):
    """ℓ that takes N(0, 1) to precision 4."""
    return -0.5 * (PRECISION - 1) * v[..., 0].square()


def test_the_bias_of_annealing_in_closed_form():
    """E log w = −.69881 against log Z = −.69315 at K = 100; the bias falls as 1/K."""
    assert pytest.approx(-0.69315, abs=5e-6) == LOG_Z
    assert oracles.ais_gaussian_mean(PRECISION, 100) == pytest.approx(-0.69881, abs=5e-6)
    biases = [LOG_Z - oracles.ais_gaussian_mean(PRECISION, n) for n in (1000, 2000)]
    assert biases[0] / biases[1] == pytest.approx(2.0, rel=1e-3)


@pytest.mark.statistical
def test_the_bias_of_annealing_by_perfect_transitions(rng):
    """A fresh exact draw at each temperature: the mean of log w is seen to be below log Z."""
    log_weights = np.zeros((R, 4096))
    for beta in np.arange(100) / 100:
        v = rng.standard_normal((R, 4096)) / math.sqrt(1 + (PRECISION - 1) * beta)
        log_weights -= 0.5 * (PRECISION - 1) * v**2 / 100
    assert_close_to(log_weights.mean(1), oracles.ais_gaussian_mean(PRECISION, 100))
    assert_rejects(log_weights.mean(1), LOG_Z)
    assert_close_to(np.exp(log_weights - LOG_Z).mean(1), 1.0)


@pytest.mark.parametrize("n_steps", [4, 12])
@pytest.mark.statistical
def test_walks_are_unbiased_either_way(generator, n_steps):
    """E[e^W] = Z forward and E[e^{−W}] = 1/Z backward, at a coarse path and a fine one, with one
    move a temperature; W itself is low forward and high backward.
    """
    n = R * 2048
    path = geometric(PRECISION, n_steps)
    forward = walks(normal(generator, n, 1), narrowing, path, generator, forward=True)
    start = normal(generator, n, 1) / math.sqrt(PRECISION)
    backward = walks(start, narrowing, path, generator, forward=False)
    assert_close_to(np.exp(forward - LOG_Z).mean(1), 1.0)
    assert_close_to(np.exp(LOG_Z - backward).mean(1), 1.0)
    assert_at_most(forward.mean(1), LOG_Z)
    assert_at_least(backward.mean(1), LOG_Z)
    # Neither is so near that the four could not tell the directions apart.
    assert_rejects(forward.mean(1), LOG_Z)
    assert_rejects(backward.mean(1), LOG_Z)


@pytest.mark.statistical
def test_a_finer_path_is_sharper(generator):
    """The mean of W comes nearer to log Z, from below; refining a path does the same."""
    start = normal(generator, R * 2048, 1)
    coarse = geometric(PRECISION, 4)
    gaps = [
        LOG_Z - walks(start, narrowing, path, generator, forward=True).mean(1)
        for path in (DIRECT, coarse, coarse.refined(), geometric(PRECISION, 16))
    ]
    for longer, shorter in itertools.pairwise(gaps):
        assert_at_most(shorter - longer, 0.0)
        assert_rejects(shorter - longer, 0.0)


# -- a target with two modes, known exactly ------------------------------------------------------


class TwoModes(NamedTuple):
    """N(v; 0, I) e^{ℓ(v)} = Z times a lopsided pair of normals in v₁, and v₂ on a curve of v₁."""

    log_z: float = 0.8
    weights: tuple = (0.3, 0.7)
    means: tuple = (-1.2, 1.5)
    scales: tuple = (0.35, 0.6)

    def log_tilt(self, v):
        x, y = v.unbind(-1)
        parts = [
            math.log(w / s) - 0.5 * ((x - m) / s).square()
            for w, m, s in zip(self.weights, self.means, self.scales, strict=True)
        ]
        curve = -0.5 * ((y - torch.sin(2 * x)) / 0.5).square() - math.log(0.5)
        return torch.logaddexp(*parts) + curve + 0.5 * v.square().sum(-1) + self.log_z

    def sample(self, n, generator):
        left = torch.rand(n, generator=generator) < self.weights[0]
        noise, side = normal(generator, n, 2), left.long()
        means, scales = (torch.tensor(t[::-1]).double()[side] for t in (self.means, self.scales))
        x = means + scales * noise[:, 0]
        return torch.stack([x, torch.sin(2 * x) + 0.5 * noise[:, 1]], -1)


PATHS = {
    "direct": DIRECT,
    "one stop": Path((0.0, 0.4, 1.0), (0.5, math.nan)),
    "eight": Path((0.0, 0.02, 0.06, 0.12, 0.2, 0.35, 0.55, 0.8, 1.0), (0.3,) * 8),
}


@pytest.mark.parametrize("n_moves", [1, 2])
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.statistical
def test_crooks_ratio_on_two_modes(generator, name, n_moves):
    """E_F[h(W) e^W]/Z = E_R[h(W)] for bounded h: all of the two laws of W, not their means only."""
    target, n = TwoModes(), R * 1024
    options = {"n_moves": n_moves, "generator": generator}
    forward = walks(normal(generator, n, 2), target.log_tilt, PATHS[name], forward=True, **options)
    backward = walks(
        target.sample(n, generator), target.log_tilt, PATHS[name], forward=False, **options
    )

    def bounded(w):
        return np.stack([1 / (1 + np.exp(-2 * w)), np.sin(w), np.exp(-(w**2)), w > 0], -1)

    w_f, w_r = forward - target.log_z, backward - target.log_z
    weighted = (bounded(w_f) * np.exp(w_f)[..., None]).mean(1)
    assert_close_to(weighted - bounded(w_r).mean(1), np.zeros(4))
    assert_close_to(np.exp(w_f).mean(1), 1.0)
    # Unweighted, the two directions are far apart.
    assert_rejects(bounded(w_f).mean(1) - bounded(w_r).mean(1), np.zeros(4))


@pytest.mark.statistical
def test_moves_backward_are_the_reversal(generator):
    """ℓ(v) = 3v, where a sweep and a Langevin step are far from commuting.

    Any kernels that leave π_β invariant give E_R[e^{−W}] = 1/Z: only the law of W shows the order
    of the moves. In the forward order backward, this h would be off by 0.0075.
    """
    slope, n = 3.0, R * 40_000
    log_z = slope**2 / 2
    path = Path((0.0, 0.4, 1.0), (1.0, math.nan))
    options = {"log_tilt": lambda v: slope * v[..., 0], "path": path, "generator": generator}
    forward = walks(normal(generator, n, 1), forward=True, **options) - log_z
    backward = walks(slope + normal(generator, n, 1), forward=False, **options) - log_z

    def bounded(w):
        return np.exp(-0.5 * (w + 0.3) ** 2)

    difference = (bounded(forward) * np.exp(forward)).mean(1) - bounded(backward).mean(1)
    assert_close_to(difference, 0.0)
    assert_resolves(difference, 0.0075)


# -- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("forward", [True, False])
def test_the_direct_walk_is_the_tilt_itself(generator, forward):
    v = normal(generator, 7, 2)
    found = walk(v, TwoModes().log_tilt, DIRECT, forward=forward, n_moves=3, noise=None)
    torch.testing.assert_close(found, TwoModes().log_tilt(v), rtol=0, atol=0)


def test_refined_halves_every_gap():
    path = Path((0.0, 0.1, 0.4, 1.0), (0.5, 0.3, 0.2))
    refined = path.refined()
    assert refined.betas == pytest.approx((0.0, 0.05, 0.1, 0.25, 0.4, 0.7, 1.0))
    assert refined.step_sizes == (0.5, 0.5, 0.3, 0.3, 0.2, 0.2)
    assert refined.refined().betas[::4] == path.betas
    assert DIRECT.refined().betas == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_harder_targets_get_more_temperatures(generator, dtype):
    """ℓ = −c‖v‖² in three dimensions: none are needed at c = 0, seven or more at c = 1000."""
    lengths = []
    for hardness in (0.0, 0.5, 10.0, 1000.0):
        path = adapted_path(
            lambda v, c=hardness: -c * v.square().sum(-1),
            3,
            cess=0.5,
            like=torch.zeros(1, dtype=dtype),
            noise=Noise(generator),
        )
        assert (path.betas[0], path.betas[-1]) == (0.0, 1.0)
        assert np.diff(path.betas).min() > 0
        assert len(path.step_sizes) == len(path.betas) - 1
        assert min(path.step_sizes) > 0
        lengths.append(len(path.betas))
    assert lengths[:2] == [2, 2]
    assert lengths[1] < lengths[2] < lengths[3]


@pytest.mark.parametrize("cess", [0.5, 0.8])
@pytest.mark.statistical
def test_gaps_keep_the_share_that_is_asked_for(generator, cess):
    """From precision p to p(1 + r), the weights of m dimensions keep ((1 + 2r)^½/(1 + r))^m.

    The share of a finite sample is biased by about one particle in its 512.
    """
    hardness, m = 20.0, 3
    shares = []
    for _ in range(R):
        path = adapted_path(
            lambda v: -0.5 * hardness * v.square().sum(-1),
            m,
            cess=cess,
            like=torch.zeros(1).double(),
            noise=Noise(generator),
        )
        precisions = 1 + hardness * np.array(path.betas)
        ratios = np.diff(precisions)[:2] / precisions[:2]
        shares.append((np.sqrt(1 + 2 * ratios) / (1 + ratios)) ** m)
    assert_close_to(shares, np.full(2, cess), slack=3 / 512)


# -- the φ⁴ chain: case 8 ------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "figure"), [(8, 1.372858), (16, 2.733814), (64, 10.935112)])
def test_phi4_by_the_transfer_matrix(n, figure):
    assert oracles.phi4_log_partition(n) == pytest.approx(figure, abs=5e-7)
    assert oracles.phi4_log_partition(n, 0.1, 3.2) == pytest.approx(figure, abs=5e-7)


def test_phi4_oracle_against_quadrature():
    """Three sites, by the trapezoid rule."""
    axis = np.arange(-3.5, 3.5, 0.1)

    def log_density(x):
        action = 0.5 * (x - np.roll(x, 1, axis=1)) ** 2 + (x**2 - 1) ** 2
        return -action.sum(1)

    found = oracles.log_integral(log_density, axis, axis, axis)
    assert found == pytest.approx(oracles.phi4_log_partition(3), abs=1e-6)


def phi4_pools(n_sites, n_pools, size, generator, *, n_visits):
    """The chain's energy, and pools moved from the reference to equilibrium, in float32."""
    energy = phi4_case(n_sites, generator)
    cold = normal(generator, n_pools * size, n_sites + 1).float()
    return energy, moved(cold, energy, generator, n_visits=n_visits).reshape(n_pools, size, -1)


@pytest.mark.statistical
def test_phi4_log_partition_of_16_sites(generator):
    """Thirty-two pools: right on average to 0.05 nats, by errors of their own that are honest."""
    energy, pools = phi4_pools(16, 32, 512, generator, n_visits=120)
    found = [log_partition(energy, v, noise=Noise(generator)) for v in pools]
    value, std = np.array([p[:2] for p in found]).T
    exact = oracles.phi4_log_partition(16)
    assert_calibrated(value, std, exact)
    error = math.sqrt(np.mean(std**2) / len(pools))
    assert Z * error < 0.05, "the errors are too large for the figure to mean something"
    assert_within_errors(value.mean(), error, exact)


@pytest.mark.statistical
def test_phi4_log_partition_of_64_sites(generator):
    """Where reference and pool share nothing, an annealed path joins them."""
    energy, (members,) = phi4_pools(64, 1, 2048, generator, n_visits=300)
    found = log_partition(energy, members, noise=Noise(generator))
    assert found.n_temperatures > 10
    assert found.std < 0.1
    assert_within_errors(found.value, found.std, oracles.phi4_log_partition(64))
