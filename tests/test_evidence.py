"""A row's posterior and evidence, with the effort that it needs, on targets known exactly."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from statistical import (
    ALPHA,
    assert_at_most,
    assert_calibrated,
    assert_close_to,
    assert_rejects,
)
from targets import banana_case, linear_case, normal

from sklvebm.evidence import (
    CHUNK,
    Mala,
    Posterior,
    Round,
    annealed,
    importance,
    pooled,
    row_posterior,
)
from sklvebm.langevin import Noise, Preconditioner
from sklvebm.mixtures import Guess, moments

R = 48


def eye(k):
    return torch.eye(k, dtype=torch.float64)


# -- posteriors that no Gaussian fits, known by quadrature -----------------------------------------


class Ring:
    """log p(x, z) = −(‖z‖ − 2)²/2x² for z in three dimensions: a thin shell of width x."""

    k = 3

    @staticmethod
    def density_of(x):
        return lambda z: -0.5 * ((z.norm(dim=-1) - 2) / x).square()

    @staticmethod
    def log_evidence(x):
        def log_density(radius):
            return -0.5 * ((radius[:, 0] - 2) / x) ** 2 + np.log(4 * math.pi * radius[:, 0] ** 2)

        return oracles.log_integral(log_density, np.arange(x / 20, 2 + 12 * x, x / 20))

    @staticmethod
    def particles(x, n, generator):
        """Exact draws to the order of x²: radii have mean 2 + x²."""
        z = normal(generator, len(x), n, 3)
        radii = 2 + x.square()[:, None] + x[:, None] * normal(generator, len(x), n, 1)
        return radii * z / z.norm(dim=-1, keepdim=True)


class Wells:
    """log p(x, z) = −Σ_j x (z_j² − 2)² − 0.3 z_j: 2ᵏ modes, the narrower the larger x."""

    axis = np.arange(-4, 4, 0.001)

    def __init__(self, k):
        self.k = k

    @staticmethod
    def log_density(z, x):
        return -(x * (z**2 - 2) ** 2 - 0.3 * z)

    def density_of(self, x):
        return lambda z: self.log_density(z, x[..., None]).sum(-1)

    def log_evidence(self, x):
        return self.k * oracles.log_integral(lambda z: self.log_density(z[:, 0], x), self.axis)

    def mean(self, x):
        log_density = self.log_density
        return oracles.expectation(lambda z: z, lambda z: log_density(z[:, 0], x), self.axis)[0]

    def particles(self, x, n, generator):
        """Exact draws, to a thousandth."""
        weights = torch.from_numpy(np.exp(self.log_density(self.axis, x.numpy())))
        picks = torch.multinomial(weights, n * self.k, True, generator=generator)
        return torch.from_numpy(self.axis)[picks].reshape(len(x), n, self.k)


def rows(target, value, n, generator):
    """n rows of the same hardness, each with 160 particles of its own, and their exact evidence."""
    x = torch.full((n, 1), value, dtype=torch.float64)
    return x, target.particles(x, 160, generator), target.log_evidence(value)


def answers(target, x, particles, noise, **options):
    return row_posterior(
        target.density_of,
        x,
        Guess.single(*moments(particles)),
        spread=eye(target.k),
        noise=noise,
        **options,
    )


def own(generator):
    """Noise that goes on from round to round, and that no two rows share: rows are replicates."""
    return lambda i: Noise(generator)


def shared(seed):
    """Noise that all rows share, anew for each round, as a model's is."""

    def noise(i):
        return Noise(torch.Generator().manual_seed(seed + i), shared_dims=(0,))

    return noise


# -- importance sampling -------------------------------------------------------------------------


def replicated_importance(energy, x, particles, n_draws, generator, n_replicates=R):
    """Importance sampling of the rows, over and over: replicates go first."""
    return [
        importance(
            energy.posterior(x),
            Guess.single(*moments(particles)),
            spread=eye(particles.shape[-1]),
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
    nodes = np.array([-2.0, -0.8, 0.0, 0.9, 1.5])
    exact = np.array(
        [
            oracles.log_integral(lambda z, r=r: log_density(np.insert(z, 0, r, axis=1)), axes[1])
            for r in nodes
        ]
    )
    x = torch.from_numpy(nodes[:, None])
    chains = mala(energy.posterior(x), 5, generator)
    # Spread evenly, some start at every mode: a proposal without one would have errors too small.
    start = torch.linspace(-3, 3, 32, dtype=torch.float64)[:, None].repeat(5, 1, 1)
    particles = chains.walk(chains.adapt(start, 60), 10, 10)
    found = replicated_importance(energy, x, particles, 1000, generator, 2 * R)
    log_evidence = torch.stack([p.log_evidence for p in found]).numpy()
    assert_close_to(np.exp(log_evidence - exact), np.ones(5))
    assert_rejects(log_evidence, exact + 0.1)
    std = torch.stack([p.std for p in found]).numpy()
    for row in range(5):
        assert_calibrated(log_evidence[:, row], std[:, row], exact[row])


def mala(log_density, n_rows, generator):
    return Mala(
        log_density,
        preconditioner=Preconditioner.from_covariance(eye(1)),
        n_rows=n_rows,
        initial_step_size=0.3,
        noise=Noise(generator),
    )


@pytest.mark.statistical
def test_steps_set_by_other_chains_leave_the_posterior_alone(generator):
    """One exact draw a row, moved: its variance stays one. Steps that it sets itself lower it."""

    def log_density(z):
        return -0.5 * z.square().sum(-1)

    n_rows = 400_000
    moving = mala(log_density, n_rows, generator)
    adapted = moving.adapt(normal(generator, n_rows, 1, 1), 20).reshape(100, -1)
    moved = moving.walk(normal(generator, n_rows, 1, 1), 20, 1).reshape(100, -1)
    assert_close_to(moved.square().mean(1), 1.0)
    assert_rejects(adapted.square().mean(1), 1.0)


@pytest.mark.statistical
def test_mala_reaches_the_posterior(generator):
    """Moments of the kept draws against quadrature; each of 64 rows is a replicate.

    The chains of a row adapt one step size, which is frozen before any draw is kept.
    """
    copies, chains, n_keep = 64, 32, 20

    def log_density(z):
        return -0.5 * z[..., 0].square() + 2 * torch.sin(1.3 * z[..., 0])

    moving = mala(log_density, copies, generator)
    start = moving.adapt(2 * normal(generator, copies, chains, 1), 200)
    draws = moving.walk(start, n_keep, n_keep)
    assert draws.shape == (copies, chains * n_keep, 1)

    def features(z):
        return np.stack([z, z**2, np.sin(2 * z)], -1)

    exact = oracles.expectation(
        lambda z: features(z[:, 0]),
        lambda z: log_density(torch.from_numpy(z)).numpy(),
        np.arange(-9, 9, 0.05),
    )
    assert_close_to(features(draws[..., 0].numpy()).mean(1), exact)


# -- pooling rounds ------------------------------------------------------------------------------


@pytest.mark.statistical
def test_pooled_rounds_of_given_laws_are_unbiased(generator):
    """Two modes, each of 512 rows a replicate: one law is wide, the other knows one mode alone.

    By itself the second misses half of the evidence. The mean is a ratio over 160 draws.
    """
    target, n = Wells(1), 512
    x, _, exact = rows(target, 2.0, n, generator)
    density, noise = target.density_of(x), Noise(generator)
    at = torch.ones(n, 1, dtype=torch.float64)
    wide, narrow = (
        Round.of(
            density, Guess.single(mean * at, variance * at[..., None]), 0.1 * eye(1), size, noise
        )
        for mean, variance, size in ((0.0, 3.0, 64), (1.4, 0.03, 96))
    )
    found = pooled(wide, narrow)
    assert found.draws.shape == (n, 160, 1)
    assert_close_to(torch.exp(found.log_evidence - exact), 1.0)
    assert_close_to(found.mean[:, 0], target.mean(2.0), slack=5 / 160 * 1.5)
    assert_rejects(pooled(narrow).log_evidence, exact)


@pytest.mark.statistical
def test_a_mean_gains_by_the_pilot_s_draws(generator):
    """Against as many draws of the last round: right, and closer."""
    target, n = Wells(1), 2**13
    x, particles, _ = rows(target, 0.3, n, generator)
    exact = target.mean(0.3)
    both, last = (
        answers(target, x, particles, own(generator), n_draws=size, pools=pools)
        for size, pools in ((160, True), (96, False))
    )
    assert both.draws.shape == (n, 160, 1)
    torch.testing.assert_close(both.weights.sum(1), torch.ones(n, dtype=torch.float64))
    assert_close_to(both.mean[:, 0], exact, slack=5 / 160 * 1.5)
    assert_rejects((both.mean - exact).square() - (last.mean - exact).square(), 0.0)
    assert_at_most((both.mean - exact).square() - (last.mean - exact).square(), 0.0)


# -- annealing a row -----------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "value"), [(Ring(), 0.1), (Wells(2), 2.0)])
@pytest.mark.statistical
def test_annealed_evidence_is_unbiased(generator, target, value):
    """exp(−F) on a thin shell and on four modes, each of 512 rows a replicate; its logarithm knows
    its error, which is smaller than with as many draws of the proposal.

    The draws that come with it are the posterior's: second moments by quadrature or symmetry, up to
    the bias of a ratio over 128 draws.
    """
    n = 512
    x, particles, exact = rows(target, value, n, generator)
    options = {"spread": eye(target.k), "noise": Noise(generator)}
    guess = Guess.single(*moments(particles))
    found = annealed(target.density_of(x), guess, n_draws=128, **options)
    assert_close_to(torch.exp(found.log_evidence - exact), 1.0)
    assert_rejects(found.log_evidence, exact + 0.1)
    assert_calibrated(found.log_evidence, found.std, exact)
    plain = importance(target.density_of(x), guess, sizes=(128,), **options)
    assert_at_most(found.std - plain.std, 0.0)
    assert found.draws.shape == (n, 128, target.k)
    squares = (found.weights * found.draws.square().mean(-1)).sum(1)
    expected = target.particles(x, 4000, generator).square().mean(-1)
    slack = 5 / 128 * float(expected.std())
    assert_close_to(squares - expected.mean(1), 0.0, slack=slack)


# -- effort by need ------------------------------------------------------------------------------


@pytest.mark.statistical
def test_hard_rows_get_more_effort(generator):
    """A shell too thin for 256 draws of a Student-t, among rows that are easy.

    The hard rows and no others are asked about again; their error falls to less than half of what
    it was, and stays honest.
    """
    target, hard = Ring(), 0.05
    n = 2 * R
    x, particles, exact = rows(target, hard, n, generator)
    easy, easy_particles, easy_exact = rows(target, 0.3, n, generator)
    asked = []

    class Watched(Ring):
        @staticmethod
        def density_of(x):
            asked.append(x)
            return Ring.density_of(x)

    x, particles = torch.cat([x, easy]), torch.cat([particles, easy_particles])
    found = answers(Watched(), x, particles, own(generator))
    chunks = 2 * n // CHUNK
    pilots, again = torch.cat(asked[:chunks]), torch.cat(asked[2 * chunks :])
    assert torch.equal(pilots, x)
    assert torch.equal(torch.cat(asked[chunks : 2 * chunks]), x)
    assert bool((again == hard).all())
    assert len(again) > n / 2
    options = {"spread": eye(3), "sizes": (256, 256), "noise": Noise(generator)}
    plain = importance(target.density_of(x), Guess.single(*moments(particles)), **options)
    assert_at_most(found.std[:n] - 0.5 * plain.std[:n], 0.0)
    for part, expected in ((slice(0, n), exact), (slice(n, None), easy_exact)):
        log_evidence, std = found.log_evidence[part], found.std[part]
        assert_calibrated(log_evidence, std, expected)
        assert_rejects(log_evidence, expected + 0.2)
        # exp(−F) is unbiased: its logarithm, low by half of its variance.
        assert_close_to(log_evidence, expected, slack=float(std.square().mean()))
    # A posterior mean is a ratio, biased by a few 256ths of a deviation: here, of 2/√3.
    assert_close_to(found.mean, np.zeros(3), slack=5 / 256 * 2 / math.sqrt(3))
    # What is kept of 2,048 draws is a fair sample of the shell.
    radii = (found.weights * found.draws.norm(dim=-1)).sum(1)[:n]
    assert_close_to(radii, 2 + hard**2, slack=5 / 256 * hard)


@pytest.mark.statistical
def test_the_effort_is_not_decided_by_luck(generator):
    """Two modes at the hardness where about half of the rows get more draws: no error raises the
    score on average.
    """
    x, particles, exact = rows(Wells(1), 10.0, 2048, generator)
    found = answers(Wells(1), x, particles, own(generator))
    assert_at_most(torch.exp(found.log_evidence - exact), 1.0)


@pytest.mark.statistical
def test_rows_of_many_modes_know_their_error(generator):
    """Eight modes, which the particles have all found."""
    x, particles, exact = rows(Wells(3), 3.0, R, generator)
    found = answers(Wells(3), x, particles, own(generator))
    assert_calibrated(found.log_evidence, found.std, exact)


def test_a_row_s_answer_does_not_depend_on_its_batch(generator, seed):
    """Alone, in any order, and whichever others need more effort: also the twelfth of the hard.

    None is so hard that it is annealed: along such a walk rounding grows like everything else.
    """
    x = torch.tensor([0.3, 0.05, 0.04, 0.08] * 6).double()[:, None]
    particles = Ring.particles(x, 40, generator)
    noise = shared(seed)
    together = answers(Ring(), x, particles, noise)
    assert float(together.std[0]) < 0.2, "some rows must be easy"
    backward = answers(Ring(), x.flip(0), particles.flip(0), noise)
    for a, b in zip(together, backward, strict=True):
        torch.testing.assert_close(a, b.flip(0), rtol=1e-9, atol=1e-9)
    for i in (0, 2, 13, 22):
        alone = answers(Ring(), x[i : i + 1], particles[i : i + 1], noise)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("distance", [1e2, 1e4, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_rows_have_finite_answers(rng, generator, seed, dtype, distance):
    """Particles that have not reached the posterior. The evidence is then far too low, and at each
    of three rounds unbiased: above exact + t it is with a chance of 3e⁻ᵗ at most (Markov).
    """
    energy, weight, bias, sigma = linear_case(rng, generator)
    energy = energy.to(dtype)
    x = distance * rng.standard_normal((6, 3))
    found = row_posterior(
        energy.posterior,
        torch.tensor(x, dtype=dtype),
        Guess.single(*moments(normal(generator, 6, 16, 2).to(dtype))),
        spread=eye(2).to(dtype),
        noise=shared(seed),
    )
    exact = oracles.linear_marginal(x, weight, bias, sigma)
    exact = exact + oracles.linear_log_partition(3, 2, sigma)
    for part in found:
        assert part.dtype == dtype
        assert bool(torch.isfinite(part).all())
    torch.testing.assert_close(found.weights.sum(1), torch.ones(6, dtype=dtype))
    rounding = 100 * torch.finfo(dtype).eps * np.abs(exact)
    bound = exact + math.log(3 * len(x) / ALPHA) + rounding
    assert np.all(found.log_evidence.double().numpy() <= bound)


@pytest.mark.parametrize("beyond", [-math.inf, math.nan])
def test_a_row_beyond_all_bounds_scores_as_low_as_a_float_can(generator, seed, beyond):
    """Its density underflows at every draw, or cannot be evaluated; its neighbour's can."""

    def density_of(x):
        return lambda z: torch.where(x > 1e19, beyond, -0.5 * (x - z[..., 0]).square())

    x = torch.tensor([[0.5], [1e30]])
    particles = normal(generator, 2, 16, 1).float()
    found = row_posterior(
        density_of,
        x,
        Guess.single(*moments(particles)),
        spread=torch.eye(1),
        noise=shared(seed),
    )
    assert abs(float(found.log_evidence[0]) - 0.5 * oracles.LOG_2PI) < 0.5
    for part in found:
        assert bool(torch.isfinite(part).all())
    assert float(found.log_evidence[1]) < -1e30


# -- what is kept of the draws -------------------------------------------------------------------


def weighted(generator, n, s, k=2):
    draws = normal(generator, n, s, k)
    weights = torch.softmax(1.5 * draws[..., 0] + normal(generator, n, s), 1)
    mean = (weights[..., None] * draws).sum(1)
    nothing = torch.zeros(n).double()
    return Posterior(nothing, nothing, mean, draws, weights)


@pytest.mark.parametrize("size", [64, 300])
@pytest.mark.statistical
def test_thinned_resamples_by_the_weights(generator, size):
    """Each draw is kept size · weight times, rounded up or down. On average over rows the mean of
    what is kept is the weighted mean, with less error than that of independent picks.
    """
    full = weighted(generator, 512, 200)
    thin = full.thinned(size)
    assert thin.draws.shape == (512, size, 2)
    torch.testing.assert_close(thin.weights, torch.full((512, size), 1 / size).double())
    torch.testing.assert_close(thin.mean, full.mean)
    for row in range(3):
        counts = (full.draws[row][:, None] == thin.draws[row]).all(-1).sum(1)
        assert int(counts.sum()) == size
        assert bool((counts - size * full.weights[row]).abs().max() < 1 + 1e-9)
    error = thin.draws.mean(1) - full.mean
    assert_close_to(error, np.zeros(2))
    variance = (full.weights[..., None] * (full.draws - full.mean[:, None]).square()).sum(1) / size
    assert_at_most(error.square() - variance, np.zeros(2))


def test_thinned_to_the_same_size_is_the_same(generator):
    full = weighted(generator, 3, 20)
    assert full.thinned(20) is full


def test_updated_answers_the_rows_that_were_asked_again(generator):
    """Whether or not the new answers look better: that would be luck."""
    old, new = weighted(generator, 4, 20), weighted(generator, 2, 20)
    new = new._replace(std=torch.tensor([0.2, 0.9]).double())
    found = old.updated(torch.tensor([2, 3]), new)
    for mine, theirs, before in zip(found, new, old, strict=True):
        torch.testing.assert_close(mine[[2, 3]], theirs)
        torch.testing.assert_close(mine[[0, 1]], before[[0, 1]])
