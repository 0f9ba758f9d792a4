"""The kernels against exact laws: stationary moments, contraction, invariance, coupling."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from statistical import assert_close_to, assert_rejects

from sklvebm.langevin import (
    Noise,
    Preconditioner,
    StepSize,
    gaussian_step,
    independence_step,
    init,
    langevin_step,
)

# Replicates and chains a replicate: every chain is independent, and so is every replicate.
R, C = 64, 256


def tilt(v):
    """A bounded, asymmetric, non-Gaussian log-tilt of N(v; 0, I) in two dimensions."""
    return 1.5 * torch.tanh(v[..., 0] + v[..., 1]) + torch.sin(2 * v[..., 1]) * torch.cos(v[..., 0])


def tilted(v):
    return tilt(v) - 0.5 * v.square().sum(-1)


def features(v):
    """Moments that a wrong kernel would get wrong, ``(..., 5)``."""
    a, b = v[..., 0], v[..., 1]
    return torch.stack([a, b, a * a, a * b, torch.sin(2 * b)], -1)


@pytest.fixture(scope="module")
def exact_features():
    axis = np.arange(-8, 8, 0.1)
    return oracles.expectation(
        lambda u: features(torch.from_numpy(u)).numpy(),
        lambda u: tilted(torch.from_numpy(u)).numpy(),
        axis,
        axis,
    )


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def run_langevin(position, log_density, n_steps, n_kept, statistic, **options):
    """Mean of ``statistic`` over the last ``n_kept`` steps and the chains of each replicate."""
    state, total = init(position, log_density), 0.0
    for i in range(n_steps):
        state, info = langevin_step(state, log_density, **options)
        if i >= n_steps - n_kept:
            total = total + statistic(state.position).mean(1)
    return total / n_kept, info


def gaussian(precision):
    return lambda u: -0.5 * ((u @ precision) * u).sum(-1)


def outer(u):
    return u[..., :, None] * u[..., None, :]


# -- unadjusted steps: case 4 ----------------------------------------------------------------------


@pytest.mark.statistical
def test_ula_is_biased_and_mala_is_not_at_the_same_step(generator):
    """η = 0.3, λ = 2: variance 1/(2 − 0.6) = 0.714 unadjusted, 1/2 adjusted."""
    precision = torch.tensor([[2.0]], dtype=torch.float64)
    exact = oracles.ula_covariance(precision.numpy(), 0.3)
    assert exact.item() == pytest.approx(1 / 1.4)
    options = {"step_size": 0.3, "noise": Noise(generator)}
    start = normal(generator, R, C, 1)
    # Either chain forgets its start at 0.4 a step: 60 steps leave nothing.
    ula, _ = run_langevin(start, gaussian(precision), 80, 20, outer, metropolis=False, **options)
    assert_close_to(ula, exact)
    assert_rejects(ula, 0.5)
    mala, _ = run_langevin(start, gaussian(precision), 80, 20, outer, metropolis=True, **options)
    assert_close_to(mala, 0.5)
    assert_rejects(mala, exact)


@pytest.mark.statistical
def test_ula_stationary_covariance_of_a_correlated_gaussian(generator):
    precision = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    eta = 0.4
    exact = oracles.ula_covariance(precision.numpy(), eta)
    ula, _ = run_langevin(
        normal(generator, R, C, 2),
        gaussian(precision),
        120,
        20,
        outer,
        step_size=eta,
        noise=Noise(generator),
        metropolis=False,
    )
    assert_close_to(ula, exact)
    assert_rejects(ula, np.linalg.inv(precision.numpy()))


# -- contraction: case 5 ---------------------------------------------------------------------------

M0, V0, RATE = 2.0, 0.5, 1.5


def test_contraction_figures():
    """KL 3.019, 0.670, 0.149 at t = 0, 0.5, 1; KL ≤ e^{−2λt} KL_0 and W2 ≤ e^{−λt} W2_0."""
    target = np.zeros(1), np.eye(1) / RATE

    def kl(m, v):
        return oracles.gaussian_kl(np.array([m]), np.array([[v]]), *target)

    kl_0, w2_0 = kl(M0, V0), oracles.gaussian_w2(M0, V0, 0.0, 1 / RATE)
    for t, figure in ((0.0, 3.019), (0.5, 0.670), (1.0, 0.149)):
        m, v = oracles.ou_moments(t, M0, V0, RATE)
        assert kl(m, v) == pytest.approx(figure, abs=5e-4)
        assert kl(m, v) <= math.exp(-2 * RATE * t) * kl_0 + 1e-12
        assert oracles.gaussian_w2(m, v, 0.0, 1 / RATE) <= math.exp(-RATE * t) * w2_0 + 1e-12


@pytest.mark.parametrize("metropolis", [False, True])
@pytest.mark.statistical
def test_small_steps_follow_the_flow(generator, metropolis):
    """Moments at t = 0.5 and 1 are those of dz = −λz dt + √2 dB, up to the O(η) of the steps.

    For ULA the moments after n steps are known exactly. Adjusted chains reject about λ^{3/2}η^{3/2}
    of their steps, each of them a step of delay; three of ULA's own O(η) covers that.
    """
    eta = 0.01
    state = init(
        M0 + math.sqrt(V0) * normal(generator, R, C, 1), gaussian(RATE * torch.eye(1).double())
    )
    noise = Noise(generator)
    for step in range(1, 101):
        state, _ = langevin_step(
            state,
            gaussian(RATE * torch.eye(1).double()),
            step_size=eta,
            noise=noise,
            metropolis=metropolis,
        )
        if step not in (50, 100):
            continue
        z = state.position[..., 0]
        flow = oracles.ou_moments(eta * step, M0, V0, RATE)
        steps = oracles.ula_moments(step, eta, M0, V0, RATE)
        bias = 3 * np.abs(np.subtract(flow, steps))
        mean, variance = z.mean(1), z.var(1)
        if not metropolis:
            assert_close_to(mean, steps[0])
            assert_close_to(variance, steps[1])
        assert_close_to(mean, flow[0], slack=bias[0])
        assert_close_to(variance, flow[1], slack=bias[1])
        assert_rejects(mean, M0)


def test_the_discretisation_is_of_first_order():
    """Halving η halves the distance of ULA's moments from the flow's."""
    errors = []
    for n in (200, 400):
        flow = oracles.ou_moments(1.0, M0, V0, RATE)
        errors.append(np.subtract(oracles.ula_moments(n, 1.0 / n, M0, V0, RATE), flow))
    np.testing.assert_allclose(errors[0] / errors[1], 2.0, rtol=0.02)


def test_coupled_chains_contract_exactly(generator):
    """Under shared noise two ULA chains on a λ-Gaussian approach by exactly 1 − ηλ a step."""
    eta, n = 0.05, 40
    state = init(normal(generator, 7, 1) * 3, gaussian(RATE * torch.eye(1).double()))
    gaps = state.position - state.position[:1]
    noise = Noise(generator, shared_dims=(0,))
    for _ in range(n):
        state, _ = langevin_step(
            state,
            gaussian(RATE * torch.eye(1).double()),
            step_size=eta,
            noise=noise,
            metropolis=False,
        )
    moved = state.position - state.position[:1]
    torch.testing.assert_close(moved, gaps * (1 - eta * RATE) ** n, rtol=1e-10, atol=1e-12)


# -- adjusted steps --------------------------------------------------------------------------------


@pytest.mark.statistical
def test_mala_targets_a_known_density_at_a_step_where_ula_fails(generator, exact_features):
    options = {"step_size": 0.5, "noise": Noise(generator)}
    start = normal(generator, R, C, 2)
    mala, info = run_langevin(start, tilted, 100, 40, features, metropolis=True, **options)
    assert_close_to(mala, exact_features)
    assert 0.2 < float(info.acceptance.mean()) < 0.95, "the test should need its Metropolis step"
    ula, _ = run_langevin(start, tilted, 100, 40, features, metropolis=False, **options)
    assert_rejects(ula, exact_features)


@pytest.mark.statistical
def test_preconditioned_mala_targets_a_known_density(generator, exact_features):
    """A preconditioner with no relation to the target changes the path, not the law."""
    covariance = torch.tensor([[1.5, 0.9], [0.9, 0.8]], dtype=torch.float64)
    mala, _ = run_langevin(
        normal(generator, R, C, 2),
        tilted,
        140,
        40,
        features,
        step_size=0.4,
        noise=Noise(generator),
        metropolis=True,
        preconditioner=Preconditioner.from_covariance(covariance),
    )
    assert_close_to(mala, exact_features)


@pytest.mark.statistical
def test_step_sizes_of_their_own_keep_the_target(generator, exact_features):
    """Each replicate has a step size of its own, from 0.1 to 0.8."""
    mala, _ = run_langevin(
        normal(generator, R, C, 2),
        tilted,
        160,
        40,
        features,
        step_size=torch.linspace(0.1, 0.8, R, dtype=torch.float64)[:, None],
        noise=Noise(generator),
        metropolis=True,
    )
    assert_close_to(mala, exact_features)


@pytest.mark.parametrize("metropolis", [False, True])
def test_preconditioning_is_a_change_of_coordinates(seed, metropolis):
    """Steps with C = LLᵀ on p(u) are plain steps on p(Lw) in w = L⁻¹u, noise for noise."""
    covariance = torch.tensor([[4.0, 1.0], [1.0, 0.5]], dtype=torch.float64)
    preconditioner = Preconditioner.from_covariance(covariance)
    factor = preconditioner.factor

    def white(w):
        return tilted(w @ factor.T)

    w = init(normal(torch.Generator().manual_seed(seed), 50, 2), white)
    u = init(w.position @ factor.T, tilted)
    noise_w, noise_u = (Noise(torch.Generator().manual_seed(seed)) for _ in range(2))
    for _ in range(20):
        w, info_w = langevin_step(w, white, step_size=0.3, noise=noise_w, metropolis=metropolis)
        u, info_u = langevin_step(
            u,
            tilted,
            step_size=0.3,
            noise=noise_u,
            metropolis=metropolis,
            preconditioner=preconditioner,
        )
    torch.testing.assert_close(u.position, w.position @ factor.T, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(info_u.acceptance, info_w.acceptance, rtol=1e-7, atol=1e-7)


def test_preconditioner_factors(generator):
    root = normal(generator, 3, 4, 4)
    covariance = root @ root.transpose(1, 2) + torch.eye(4).double()
    factor, inverse = Preconditioner.from_covariance(covariance)
    eye = torch.eye(4).double().expand(3, 4, 4)
    torch.testing.assert_close(factor @ factor.transpose(1, 2), covariance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inverse @ factor, eye, rtol=1e-10, atol=1e-10)


def test_the_metropolis_ratio_is_the_one_of_the_definition(seed):
    """π(u')q(u|u')/π(u)q(u'|u) written out, for the proposal that the unadjusted step takes."""
    eta = 0.4
    state = init(normal(torch.Generator().manual_seed(seed), 200, 2), tilted)
    proposal, info = langevin_step(
        state,
        tilted,
        step_size=eta,
        noise=Noise(torch.Generator().manual_seed(seed)),
        metropolis=False,
    )

    def log_q(to, start):
        return -(to.position - start.position - eta * start.gradient).square().sum(-1) / (4 * eta)

    log_ratio = (
        tilted(proposal.position)
        + log_q(state, proposal)
        - tilted(state.position)
        - log_q(proposal, state)
    )
    torch.testing.assert_close(info.acceptance, log_ratio.clamp(max=0).exp(), rtol=1e-9, atol=1e-12)
    # Adjusted, from the same noise: the same ratio, and each chain stays or takes the proposal.
    adjusted, same = langevin_step(
        state,
        tilted,
        step_size=eta,
        noise=Noise(torch.Generator().manual_seed(seed)),
        metropolis=True,
    )
    torch.testing.assert_close(same.acceptance, info.acceptance)
    stayed = (adjusted.position == state.position).all(-1)
    moved = (adjusted.position == proposal.position).all(-1)
    assert bool((stayed ^ moved).all())
    assert bool(stayed.any())
    assert bool(moved.any())
    torch.testing.assert_close(adjusted.log_density, tilted(adjusted.position))
    torch.testing.assert_close(adjusted.gradient, init(adjusted.position, tilted).gradient)


@pytest.mark.statistical
def test_proposals_out_of_the_support_are_rejected(generator):
    """Half-normal: −∞ below zero is never entered, and the mean is √(2/π)."""

    def half_normal(u):
        u = u[..., 0]
        return torch.where(u > 0, -0.5 * u.square(), torch.full_like(u, -math.inf))

    start = normal(generator, R, C, 1).abs()
    mean, _ = run_langevin(
        start,
        half_normal,
        120,
        40,
        lambda u: torch.cat([u, (u <= 0).double()], -1),
        step_size=0.3,
        noise=Noise(generator),
        metropolis=True,
    )
    assert_close_to(mean, [math.sqrt(2 / math.pi), 0.0])


# -- moves that know the Gaussian reference --------------------------------------------------------


@pytest.mark.parametrize("h", [0.01, 0.5, 3.0, 30.0])
@pytest.mark.statistical
def test_gaussian_step_leaves_the_reference_invariant(generator, h):
    """A constant tilt is always accepted, whatever h, and N(0, I) stays; so does its memory."""

    def constant(v):
        return 0.0 * v.sum(-1) + 1.3

    start = normal(generator, R, C, 2)
    state, info = gaussian_step(
        init(start, constant), constant, step_size=h, noise=Noise(generator)
    )
    torch.testing.assert_close(info.acceptance, torch.ones_like(info.acceptance))
    assert bool((state.position != start).all())
    v = state.position
    moments = torch.cat([v, v * v, v[..., :1] * v[..., 1:], v * start], -1).mean(1)
    memory = math.exp(-h)
    assert_close_to(moments, [0, 0, 1, 1, 0, memory, memory])


@pytest.mark.parametrize("h", [0.1, 1.0])
@pytest.mark.statistical
def test_gaussian_step_targets_a_known_density(generator, exact_features, h):
    state, noise, total = init(normal(generator, R, C, 2), tilt), Noise(generator), 0.0
    n = round(15 / h) + 40
    for i in range(n):
        state, info = gaussian_step(state, tilt, step_size=h, noise=noise)
        if i >= n - 40:
            total = total + features(state.position).mean(1) / 40
    assert_close_to(total, exact_features)
    if h == 1.0:
        assert float(info.acceptance.mean()) < 0.9, "the test should need its Metropolis step"


@pytest.mark.statistical
def test_independence_step_targets_a_known_density(generator, exact_features):
    v, noise, total = normal(generator, R, C, 2), Noise(generator), 0.0
    value = tilt(v)
    start = features(v).mean(1)
    for i in range(140):
        fresh = noise.normal(v)
        v, value, _ = independence_step(v, value, fresh, tilt(fresh), noise=noise)
        if i >= 100:
            total = total + features(v).mean(1) / 40
    torch.testing.assert_close(value, tilt(v))
    assert_close_to(total, exact_features)
    assert_rejects(start, exact_features)


def test_independence_step_accepts_everything_under_a_constant_tilt(generator):
    v = normal(generator, 100, 3)

    def constant(v):
        return v.new_full(v.shape[:-1], -2.0)

    fresh = normal(generator, 100, 3)
    moved, _, info = independence_step(
        v, constant(v), fresh, constant(fresh), noise=Noise(generator)
    )
    assert bool((info.acceptance == 1).all())
    assert torch.equal(moved, fresh)


# -- noise and step sizes --------------------------------------------------------------------------


def test_shared_noise_is_shared_and_only_there(generator):
    like = torch.empty(5, 3, 2, dtype=torch.float64)
    assert Noise(generator).normal(like).shape == (5, 3, 2)
    shared = Noise(generator, shared_dims=(0,))
    assert shared.normal(like).shape == (1, 3, 2)
    assert shared.uniform(like[..., 0]).shape == (1, 3)
    draws = shared.normal(like).expand_as(like)
    assert bool((draws[0] == draws[4]).all())
    assert len(draws[0].unique()) == 6
    assert draws.dtype == torch.float64


def test_rows_that_share_noise_do_not_see_their_batch(seed):
    """A row's chains are the same alone and among others."""
    start = normal(torch.Generator().manual_seed(seed), 6, 4, 2)

    def run(rows):
        noise = Noise(torch.Generator().manual_seed(seed), shared_dims=(0,))
        state = init(start[rows], tilted)
        for _ in range(10):
            state, _ = langevin_step(state, tilted, step_size=0.4, noise=noise, metropolis=True)
        return state.position

    everything = run(list(range(6)))
    torch.testing.assert_close(run([3]), everything[3:4], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(run([5, 1]), everything[[5, 1]], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("initial", "target"), [(5.0, 0.6), (1e-3, 0.6), (0.5, 0.9)])
@pytest.mark.statistical
def test_step_size_adapts_to_its_target(generator, initial, target):
    """Then, held fixed, the step is accepted as often as asked for.

    The log step forgets its start at rate × slope a step, 0.2 × 0.12 where the acceptance is least
    steep: 600 steps leave e⁻¹⁴. At rest it fluctuates by about 0.01 with 256 chains each, which
    moves the mean acceptance by less than its square.
    """
    start = torch.full((R,), initial, dtype=torch.float64)
    step_size = StepSize("auto", initial=start, target=target, rate=0.2)
    state, noise = init(normal(generator, R, C, 2), tilted), Noise(generator)
    for _ in range(600):
        state, info = langevin_step(
            state, tilted, step_size=step_size.value[:, None], noise=noise, metropolis=True
        )
        step_size.update(info)
    accepted = 0.0
    for _ in range(20):
        state, info = langevin_step(
            state, tilted, step_size=step_size.value[:, None], noise=noise, metropolis=True
        )
        accepted = accepted + info.acceptance.mean(1) / 20
    assert_close_to(accepted, target, slack=1e-3)


@pytest.mark.statistical
def test_every_entry_adapts_to_its_own_chains(generator):
    """Chains on a tenth of the scale find a hundredth of the step."""
    scale = torch.ones(2 * R, 1, dtype=torch.float64)
    scale[R:] = 0.1

    def log_density(u):
        return -0.5 * (u[..., 0] / scale).square()

    step_size = StepSize("auto", initial=torch.full((2 * R,), 0.3), target=0.6, rate=0.1)
    state = init(scale[..., None] * normal(generator, 2 * R, 64, 1), log_density)
    for _ in range(150):
        state, info = langevin_step(
            state,
            log_density,
            step_size=step_size.value[:, None],
            noise=Noise(generator),
            metropolis=True,
        )
        step_size.update(info)
    logs = step_size.log_value
    assert_close_to(logs[R:] - logs[:R], math.log(0.01), slack=0.01)


def test_a_number_stays_fixed(generator):
    step_size = StepSize(0.25, initial=1.0, target=0.6)
    state, noise = init(normal(generator, 10, 2), tilted), Noise(generator)
    for _ in range(5):
        state, info = langevin_step(
            state, tilted, step_size=step_size.value, noise=noise, metropolis=True
        )
        step_size.update(info)
    assert not step_size.adapts
    assert float(step_size.value) == pytest.approx(0.25, rel=1e-15)


def test_init_is_the_gradient(generator):
    u = normal(generator, 8, 3, 2)
    precision = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    state = init(u, gaussian(precision))
    torch.testing.assert_close(state.gradient, -u @ precision)
    torch.testing.assert_close(state.log_density, gaussian(precision)(u))
    assert not state.position.requires_grad
