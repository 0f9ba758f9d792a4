r"""Samplers against the joint law that they serve: calibrated ranks, and Geweke's joint test.

Simulation-based calibration: for exact draws (z, x) of the joint law, the rank of z among L exact
draws of p(z | x) is uniform on 0 … L, whatever is asked of z. Geweke: a kernel that leaves
p(z | x) invariant, alternated with exact draws of x given z, stays in the joint law, moment for
moment. Neither needs the posterior itself, so both hold where no closed form does.

References
----------
S. Talts, M. Betancourt, D. Simpson, A. Vehtari and A. Gelman (2018), "Validating Bayesian inference
algorithms with simulation-based calibration", arXiv 1804.06788. J. Geweke (2004), "Getting it
right: joint distribution tests of posterior simulators", JASA 99(467).
"""

from __future__ import annotations

import math

import pytest
import torch
from statistical import assert_close_to, assert_rejects, assert_uniform_ranks

from sklvebm import evidence
from sklvebm.axes import principal_axes
from sklvebm.energies import LinearEnergy, TiltedEnergy
from sklvebm.langevin import Noise, Preconditioner, StepSize, init, langevin_step
from sklvebm.model import Model
from sklvebm.particles import GaussianPosteriors, JointPool, LangevinParticles
from sklvebm.partition import LogPartition
from sklvebm.proposals import Proposal

D, K = 3, 2
# Draws a row: 20 ranks.
L = 19
# Replicates and chains a replicate.
R, C = 64, 128
# Fixed steps at which unadjusted chains are visibly wrong: precision 1, the prior's alone, already
# gets the variance 4/3.
LARGE_STEP = 0.5


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def away(generator, *shape):
    """Of either sign, between a half and one: no parameter is near zero by chance."""
    u = 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1
    return 0.5 * (u + u.sign())


def fill(parameter, values):
    with torch.no_grad():
        parameter.copy_(values)


def nonlinear_energy(generator, bound=1.5):
    """E of a curved, skewed, heavy-tailed law, mixing and all, and a tilt: all weights random."""
    spec = TiltedEnergy((8,), (8,), mixing=True, n_frequencies=0, tilt_bound=bound)
    energy = spec.build(D, K, generator=generator).double().requires_grad_(False)
    reference = energy.reference
    fill(reference.weight, away(generator, D, K))
    fill(reference.loc, away(generator, D))
    fill(reference.log_scale, 0.2 * away(generator, D) - 0.2)
    fill(reference.log_tail, 0.2 * away(generator, D) - 0.7)
    fill(reference.skew, away(generator, D))
    fill(reference.mixing, 0.5 * away(generator, D, D))
    fill(reference.net.rest[-1].weight, 0.4 * away(generator, 2 * D, 8))
    # The network of f gets mean 0 and standard deviation 2 under p_0, before the bound.
    last = energy.tilt.net.rest[-1]
    fill(last.weight, away(generator, 1, 8))
    values = energy.tilt.net(*joint_draws(energy, 4096, generator))
    fill(last.weight, last.weight * (2 / values.std()))
    fill(last.bias, -values.mean(0) * (2 / values.std()))
    return energy


def joint_draws(energy, n, generator):
    """Exact draws of p_0: x ``(n, d)`` and z ``(n, k)``."""
    z = normal(generator, n, K)
    return energy.reference.from_noise(normal(generator, n, D), z), z


def untilted(energy):
    """p_0 alone, whose joint draws are exact."""
    energy.tilt = None
    return energy


def linear_energy(generator, *, orthogonal):
    """x = Wz + μ + σε with orthogonal columns of W, or turned so that the latents correlate."""
    energy = LinearEnergy().build(D, K, generator=generator).double().requires_grad_(False)
    columns = torch.linalg.qr(normal(generator, D, D))[0][:, :K] * torch.tensor([2.5, 0.5])
    half = math.sqrt(0.5)
    turn = torch.tensor([[half, -half], [half, half]]).double()
    fill(energy.reference.weight, columns if orthogonal else columns @ turn)
    fill(energy.reference.loc, away(generator, D))
    energy.reference.log_scale.fill_(math.log(0.6))
    return energy


# -- simulation-based calibration ------------------------------------------------------------------

# Energies, and rows of each: 102 ranks a bin.
N_ENERGIES, N_ROWS = 8, 256


def ranks(energy, x, z, draws):
    """Ranks ``(n, 4)`` of z among ``draws (n, L, k)``: its components, their product, log p."""

    def asked(z):
        product = z.prod(-1, keepdim=True)
        return torch.cat([z, product, -energy(x[:, None], z)[..., None]], -1)

    assert bool(torch.isfinite(draws).all())
    assert draws.shape == (len(x), L, K)
    return (asked(draws) < asked(z[:, None])).sum(1)


def ranks_of_all(energies, sampler, generator):
    """Ranks over rows of every energy; ``sampler(energy, x)`` gives draws ``(n, L, k)``."""
    found = []
    for energy in energies:
        x, z = joint_draws(energy, N_ROWS, generator)
        found.append(ranks(energy, x, z, sampler(energy, x)))
    return torch.cat(found)


def assert_calibrated_draws(energies, sampler, generator):
    """``sampler(energy, x)`` draws with the law p(z | x) of each energy."""
    assert_uniform_ranks(ranks_of_all(energies, sampler, generator), L + 1)


def nonlinear_energies(generator):
    return [untilted(nonlinear_energy(generator)) for _ in range(N_ENERGIES)]


def assembled(energy, generator):
    """The model of ``energy``: chains start and step by the regression of exact z on exact x."""
    x, z = joint_draws(energy, 4096, generator)
    design = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    start = torch.linalg.lstsq(design, z).solution
    residual = z - design @ start
    covariance = residual.T @ residual / len(x)
    pool, log_z = normal(generator, 1, K + D), LogPartition(0.0, 0.0, 0.0, 0.0)
    axes = principal_axes(energy, seed=0)
    return Model(TiltedEnergy(), energy, start, covariance, pool, log_z, axes, seed=0)


def by_seeds(energy, x, generator, draw):
    """``draw(model, rows)`` of 64 rows at a time, each with a seed of its own.

    Rows of one seed share their importance proposals, hence errors, and their ranks are dependent:
    over 2,048 rows of one seed, with pseudorandom proposals, χ² was twice what it should be. With a
    seed for every 64 nothing of it is left; the steps that follow by noise of their own remove it
    in any case.
    """
    model, draws = assembled(energy, generator), []
    for rows in x.split(64):
        model.seed = int(torch.randint(2**31, (1,), generator=generator))
        draws.append(draw(model, rows))
    return torch.cat(draws)


def posterior_draws(energy, x, generator):
    return by_seeds(
        energy, x, generator, lambda m, rows: m.sample_posterior(rows, L, generator).transpose(0, 1)
    )


def weighted_draws(energy, x, generator, *, even=False):
    """What ``sample_posterior`` starts from; ``even`` forgets the weights."""

    def pick(model, rows):
        posterior = next(model.posterior(rows))
        weights = torch.ones_like(posterior.weights) if even else posterior.weights
        picks = torch.multinomial(weights, L, True, generator=generator)
        return posterior.draws.take_along_dim(picks[..., None], 1)

    return by_seeds(energy, x, generator, pick)


@pytest.mark.parametrize("sampler", [weighted_draws, posterior_draws])
@pytest.mark.statistical
def test_posterior_draws_are_calibrated(generator, sampler):
    """By importance sampling, before and after the Langevin steps that move the draws apart.

    Either would hide a fault of the other that is not gross.
    """
    assert_calibrated_draws(
        nonlinear_energies(generator), lambda e, x: sampler(e, x, generator), generator
    )


@pytest.mark.parametrize("annealed", [False, True])
@pytest.mark.statistical
def test_draws_of_the_later_rounds_are_calibrated(generator, monkeypatch, annealed):
    """Every row is taken for one that wants more draws, and the annealed path, a short one."""
    monkeypatch.setattr(evidence, "_WANTS_MORE", -1.0)
    monkeypatch.setattr(evidence, "_WANTS_ANNEALING", -1.0 if annealed else math.inf)
    monkeypatch.setattr(evidence, "_N_TEMPERATURES", 8)
    monkeypatch.setattr(evidence, "_FEW", 64)
    assert_calibrated_draws(
        nonlinear_energies(generator), lambda e, x: weighted_draws(e, x, generator), generator
    )


@pytest.mark.statistical
def test_the_ranks_reject_draws_without_their_weights(generator):
    with pytest.raises(AssertionError, match="not uniform"):
        assert_calibrated_draws(
            nonlinear_energies(generator),
            lambda e, x: weighted_draws(e, x, generator, even=True),
            generator,
        )


@pytest.mark.statistical
def test_the_nonlinear_posteriors_are_not_gaussian(generator):
    """The same ranks reject the regression that the chains start from."""

    def regression(energy, x):
        model = assembled(energy, generator)
        noise = normal(generator, len(x), L, K)
        return model.guess(x)[:, None] + noise @ torch.linalg.cholesky(model.covariance).T

    with pytest.raises(AssertionError, match="not uniform"):
        assert_calibrated_draws(nonlinear_energies(generator), regression, generator)


@pytest.mark.statistical
def test_closed_form_posterior_draws_are_calibrated(generator):
    energies = [linear_energy(generator, orthogonal=False) for _ in range(N_ENERGIES)]
    assert all(energy.is_gaussian for energy in energies)
    assert_calibrated_draws(energies, lambda e, x: posterior_draws(e, x, generator), generator)


def particles(energy, x, generator, *, n_visits, **options):
    """Langevin particles of ``x`` after visits of eight steps, from twice the prior's width."""
    flow = LangevinParticles(
        2 * normal(generator, len(x), L, K),
        torch.eye(K, dtype=torch.float64),
        n_steps=8,
        noise=Noise(generator),
        **options,
    )
    for _ in range(n_visits):
        flow.advance(torch.arange(len(x)), energy.posterior(x))
        draws = flow.draws(torch.arange(len(x)))
    return draws


@pytest.mark.statistical
def test_langevin_particles_are_calibrated(generator):
    """From a cold start, 200 steps: half of them leave nothing of it that these ranks can see."""

    def sampler(energy, x):
        return particles(energy, x, generator, n_visits=25, dynamics="mala", step_size="auto")

    assert_calibrated_draws(nonlinear_energies(generator), sampler, generator)


@pytest.mark.statistical
def test_the_ranks_reject_unadjusted_particles_at_a_large_step(generator):
    def sampler(energy, x):
        return particles(energy, x, generator, n_visits=10, dynamics="ula", step_size=LARGE_STEP)

    with pytest.raises(AssertionError, match="not uniform"):
        assert_calibrated_draws(nonlinear_energies(generator), sampler, generator)


def mean_field_draws(energy, x, generator):
    """Of a converged q: antithetic draws come in pairs, and one of each pair is independent.

    Means converge by 0.9 a step. The log scales fluctuate, with a variance of η(4 + 2k)/8p < 0.002,
    which moves the odds of a rank by less than a hundredth: a tenth of the standard error of a bin.
    """
    flow = GaussianPosteriors(
        2 * normal(generator, len(x), K),
        torch.eye(K, dtype=torch.float64),
        n_particles=64,
        n_steps=200,
        step_size="auto",
        noise=Noise(generator),
    )
    flow.advance(torch.arange(len(x)), energy.posterior(x))
    return flow.draws(torch.arange(len(x)))[:, :L]


@pytest.mark.statistical
def test_mean_field_posteriors_are_calibrated_where_they_are_exact(generator):
    """Orthogonal columns: the posterior's covariance is diagonal."""
    energies = [linear_energy(generator, orthogonal=True) for _ in range(N_ENERGIES)]
    assert_calibrated_draws(energies, lambda e, x: mean_field_draws(e, x, generator), generator)


@pytest.mark.statistical
def test_the_ranks_reject_mean_field_where_the_latents_correlate(generator):
    """Variances 1/M_ii in place of (M⁻¹)_ii: a third of what they should be."""
    energies = [linear_energy(generator, orthogonal=False) for _ in range(N_ENERGIES)]
    with pytest.raises(AssertionError, match="not uniform"):
        assert_calibrated_draws(energies, lambda e, x: mean_field_draws(e, x, generator), generator)


# -- Geweke's joint distribution test --------------------------------------------------------------


def features(u, value):
    """First moments and all products of ``u (n, m)``, and ``value (n,)``."""
    i, j = torch.triu_indices(u.shape[1], u.shape[1])
    return torch.cat([u, u[:, i] * u[:, j], value[:, None]], -1)


def replicates(values):
    """Means over the chains of each replicate."""
    return values.reshape(R, C, -1).mean(1)


def geweke(energy, x, kernel, generator, *, n_sweeps=60, n_kept=40):
    """Moments of (z, x) over the last sweeps, less those of exact draws: ``(R, m)``.

    p(x, z)^¼ is among them: bounded, so that no heavy tail of E hides a difference.
    ``kernel(x)`` moves z given x and returns it. It starts at the exact z of ``x``, so that a right
    kernel has nothing to forget, and a wrong one has all the sweeps to wander off.
    """

    def asked(x, z):
        return features(torch.cat([z, x], -1), torch.exp(-energy(x, z) / 4))

    total = 0.0
    for i in range(n_sweeps):
        z = kernel(x)
        if i >= n_sweeps - n_kept:
            total = total + asked(x, z) - asked(*joint_draws(energy, R * C, generator))
        x = energy.reference.from_noise(normal(generator, R * C, D), z)
    return replicates(total / n_kept)


def tuned_step_size(energy, x, z, **options):
    """Where half of the proposals are accepted: adjusted steps move, and need their adjustment."""
    step_size = StepSize("auto", initial=LARGE_STEP, target=0.5, rate=0.2)
    state = init(z, lambda z: -energy(x, z))
    for _ in range(60):
        state, info = langevin_step(
            state,
            lambda z: -energy(x, z),
            step_size=step_size.value,
            metropolis=True,
            **options,
        )
        step_size.update(info)
    return step_size.value


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.statistical
def test_geweke_for_langevin_steps(generator, preconditioned):
    """Adjusted, at a step where they fail unadjusted; by any preconditioner."""
    energy = untilted(nonlinear_energy(generator))
    options = {"noise": Noise(generator)}
    if preconditioned:
        covariance = torch.tensor([[0.9, 0.5], [0.5, 0.6]], dtype=torch.float64)
        options["preconditioner"] = Preconditioner.from_covariance(covariance)
    step_size = tuned_step_size(energy, *joint_draws(energy, 4096, generator), **options)

    def found(metropolis):
        x, z = joint_draws(energy, R * C, generator)

        def kernel(x):
            nonlocal z
            state, _ = langevin_step(
                init(z, lambda z: -energy(x, z)),
                lambda z: -energy(x, z),
                step_size=step_size,
                metropolis=metropolis,
                **options,
            )
            z = state.position
            return z

        return geweke(energy, x, kernel, generator)

    assert_close_to(found(True), 0.0)
    assert_rejects(found(False), 0.0)


@pytest.mark.statistical
def test_geweke_for_langevin_particles(generator):
    """Steps and preconditioner adapt all the while, on 16,384 particles together.

    The first particle of a row is the chain. The second follows, and is there for the running
    covariance, which a lone particle would not move.
    """
    energy = untilted(nonlinear_energy(generator))
    x, z = joint_draws(energy, R * C, generator)
    found = {}
    for dynamics, step_size in (("mala", "auto"), ("ula", LARGE_STEP)):
        flow = LangevinParticles(
            z[:, None].repeat(1, 2, 1),
            torch.eye(K, dtype=torch.float64),
            dynamics=dynamics,
            n_steps=1,
            step_size=step_size,
            noise=Noise(generator),
        )
        before = flow.preconditioner.factor.clone()

        def kernel(x, flow=flow):
            flow.advance(torch.arange(R * C), energy.posterior(x))
            return flow.position[:, 0].clone()

        found[dynamics] = geweke(energy, x, kernel, generator)
        assert not torch.equal(flow.preconditioner.factor, before)
    assert_close_to(found["mala"], 0.0)
    assert_rejects(found["ula"], 0.0)


def tilted_draws(energy, n, generator):
    """Exact draws v ``(n, k + d)`` of N(v; 0, I) e^{−f}, by rejection from N(0, I): \\|f\\| ≤ c."""
    found, n_found = [], 0
    while n_found < n:
        v = normal(generator, n, K + D)
        log_odds = energy.log_tilt(v) - energy.tilt.bound
        assert float(log_odds.max()) <= 0
        found.append(v[torch.rand(n, generator=generator).log() < log_odds])
        n_found += len(found[-1])
    return torch.cat(found)[:n]


N_VISITS, N_KEPT = 40, 20


def pool_moments(energy, kept):
    """Moments of the batches ``kept`` of v, and of f: ``(R, m)``."""
    return sum(replicates(features(v, -energy.log_tilt(v))) for v in kept) / N_KEPT


def exact_pool_moments(energy, generator):
    return pool_moments(energy, [tilted_draws(energy, R * C, generator) for _ in range(N_KEPT)])


def moments_after_visits(energy, generator, proposal=None, **options):
    """Of the last visits of a pool that starts from exact draws."""
    start = tilted_draws(energy, R * C, generator)
    pool = JointPool(start, noise=Noise(generator), **options)
    pool.proposal = proposal or pool.proposal
    visits = []
    for _ in range(N_VISITS):
        pool.advance(energy.log_tilt)
        visits.append(pool.position.clone())
    return pool_moments(energy, visits[-N_KEPT:])


@pytest.mark.parametrize(("n_steps", "fitted"), [(4, False), (0, True)])
@pytest.mark.statistical
def test_geweke_for_the_joint_pool(generator, n_steps, fitted):
    """Exact draws of the tilted law stay in it, also under sweeps alone from another law."""
    energy, proposal = nonlinear_energy(generator), None
    if fitted:
        proposal = Proposal.fitted(0.7 * normal(generator, 400, K + D) + 0.3, Noise(generator))
    found = moments_after_visits(
        energy, generator, proposal, dynamics="mala", n_steps=n_steps, step_size="auto"
    )
    assert_close_to(found - exact_pool_moments(energy, generator), 0.0)


@pytest.mark.statistical
def test_geweke_rejects_the_unadjusted_pool_and_the_reference(generator):
    energy = nonlinear_energy(generator)
    exact = exact_pool_moments(energy, generator)
    found = moments_after_visits(energy, generator, dynamics="ula", n_steps=4, step_size=LARGE_STEP)
    assert_rejects(found - exact, 0.0)
    reference = pool_moments(energy, [normal(generator, R * C, K + D) for _ in range(N_KEPT)])
    assert_rejects(reference - exact, 0.0)
