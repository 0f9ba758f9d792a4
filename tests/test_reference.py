"""The reference p_0: a bijection with a known Jacobian, normalised, and PPCA at the start."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import oracles
import pytest
import torch

from sklvebm import tails
from sklvebm.ppca import PPCA
from sklvebm.reference import MAX_TAIL, FlexibleReference, IsotropicReference, Reference
from sklvebm.shears import Shears
from sklvebm.tails import Tails


def uniform(generator, *shape):
    return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1


KINDS = {
    "sheared": partial(FlexibleReference, hidden_layer_sizes=(8,), mixing=True, mixing_rank=2),
    "mixed": partial(FlexibleReference, hidden_layer_sizes=(8,), mixing=True),
    "flexible": partial(FlexibleReference, hidden_layer_sizes=(8,)),
    "isotropic": partial(IsotropicReference, hidden_layer_sizes=(8,)),
    "linear": IsotropicReference,
}


def random_reference(generator, d=3, k=2, *, kind="mixed") -> Reference:
    """A reference whose parameters are all away from zero, in ranges that grids can hold."""
    reference = KINDS[kind](d, k, min_scale=1e-3, generator=generator).double()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(0.3 * uniform(generator, *parameter.shape))
        if isinstance(reference, FlexibleReference):
            reference.log_tail.sub_(1.0)
    return reference


CASES = pytest.mark.parametrize("kind", KINDS)


@CASES
def test_to_noise_inverts_from_noise(generator, kind):
    reference = random_reference(generator, kind=kind)
    z, noise = 2 * uniform(generator, 5, 7, 2), 4 * uniform(generator, 5, 7, 3)
    x = reference.from_noise(noise, z)
    torch.testing.assert_close(reference.to_noise(x, z)[0], noise, rtol=1e-10, atol=1e-10)
    # The other way round, with a row's x shared by its particles.
    x = 3 * uniform(generator, 5, 1, 3)
    noise, log_det = reference.to_noise(x, z)
    assert log_det.shape == (5, 7)
    torch.testing.assert_close(
        reference.from_noise(noise, z), x.expand(5, 7, 3), rtol=1e-10, atol=1e-10
    )


@CASES
def test_the_jacobian_is_autograd_s(generator, kind):
    """Of x given z, and of the whole map v → (x, z), whose determinants agree as z = a."""
    reference = random_reference(generator, kind=kind)
    for _ in range(4):
        v = 2 * uniform(generator, 5)
        x, z = reference.split(v)
        log_det = reference.to_noise(x, z)[1]

        def joint(v):
            x, z = reference.split(v)
            return torch.cat([z, x])

        whole = torch.autograd.functional.jacobian(joint, v)
        torch.testing.assert_close(-torch.linalg.slogdet(whole)[1], log_det, rtol=1e-9, atol=1e-9)
        inverse = torch.autograd.functional.jacobian(lambda x, z=z: reference.to_noise(x, z)[0], x)
        sign, value = torch.linalg.slogdet(inverse)
        torch.testing.assert_close(value, log_det, rtol=1e-9, atol=1e-9)
        assert float(sign) == 1.0


@CASES
def test_log_prob_is_the_change_of_variables(generator, kind):
    reference = random_reference(generator, kind=kind)
    v = 2 * uniform(generator, 6, 5)
    x, z = reference.split(v)
    log_det = reference.to_noise(x, z)[1]
    expected = -0.5 * (v.square().sum(-1) + 5 * math.log(2 * math.pi)) + log_det
    torch.testing.assert_close(reference.log_prob(x, z), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["flexible", "isotropic", "linear"])
def test_integrates_to_one_in_two_dimensions(generator, kind):
    """d = k = 1, over x and z; the tails t stretch the grid over x."""
    reference = random_reference(generator, 1, 1, kind=kind)

    def log_prob(points):
        points = torch.from_numpy(points)
        with torch.no_grad():
            return reference.log_prob(points[:, :1], points[:, 1:]).numpy()

    log_mass = oracles.log_integral(log_prob, np.arange(-60, 60, 0.08), np.arange(-8, 8, 0.1))
    assert abs(log_mass) < 1e-7


@pytest.mark.parametrize("kind", ["mixed", "sheared"])
def test_the_conditional_of_two_mixed_features_integrates_to_one(generator, kind):
    """∫ p_0(x, z) dx = N(z; 0, I) at any z, with A mixing two features."""
    reference = random_reference(generator, 2, 1, kind=kind)
    axis = np.arange(-60, 60, 0.12)
    for z in (-1.5, 0.3):

        def log_prob(points, z=z):
            points = torch.from_numpy(points)
            with torch.no_grad():
                return reference.log_prob(points, points.new_tensor([[z]])).numpy()

        exact = -0.5 * z**2 - 0.5 * oracles.LOG_2PI
        assert oracles.log_integral(log_prob, axis, axis) == pytest.approx(exact, abs=1e-7)


@CASES
def test_the_conditional_mean_is_that_of_the_draws(generator, kind):
    """E_0[x | z] by Gauss–Hermite quadrature of from_noise over ε."""
    reference = random_reference(generator, 2, 1, kind=kind)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    noise = torch.from_numpy(oracles.grid(nodes, nodes))
    weights = torch.from_numpy(np.outer(weights, weights).ravel()) / (2 * math.pi)
    z = 2 * uniform(generator, 4, 1)
    with torch.no_grad():
        x = reference.from_noise(noise.expand(4, -1, -1), z[:, None])
        expected = (weights[:, None] * x).sum(1)
        torch.testing.assert_close(reference.mean(z), expected, rtol=1e-9, atol=1e-9)


@CASES
def test_answers_that_share_residuals_are_those_that_do_not(generator, kind):
    reference = random_reference(generator, kind=kind)
    x, z = 3 * uniform(generator, 6, 3), 2 * uniform(generator, 6, 2)
    v = torch.cat([z, 2 * uniform(generator, 6, 3)], -1)
    shared = reference.residuals()
    for answer, inputs in [
        (reference.log_prob, (x, z)),
        (reference.energy_by_latent, (x, z)),
        (reference.from_noise, (x, z)),
        (reference.split, (v,)),
    ]:
        torch.testing.assert_close(answer(*inputs, shared), answer(*inputs))
    (*found, pull), (*expected, alone) = (reference.split_vjp(v, of) for of in (shared, None))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(pull(*found), alone(*expected))


@pytest.mark.parametrize("kind", ["mixed", "sheared"])
def test_maps_that_are_held_at_zero_are_left_out(generator, kind):
    reference = random_reference(generator, kind=kind)
    maps = [reference.mixing]
    if reference.shears is not None:
        maps += reference.shears.net.last.parameters()
    v, x, z = (uniform(generator, 6, n) for n in (5, 3, 2))

    def answers():
        return (
            *reference.split(v),
            *reference.energy_by_latent(x, z),
            reference.log_prob(x, z, reference.residuals()),
            reference.to_noise(x, z)[0],
            reference.mean(z),
        )

    with torch.no_grad():
        for parameter in maps:
            parameter.zero_()
    while_learned = answers()
    assert reference.residuals().unmixing is not None
    reference.requires_grad_(False)
    assert reference.residuals().unmixing is None
    torch.testing.assert_close(answers(), while_learned, rtol=0, atol=0)
    for parameter in maps:
        parameter.view(-1)[1] = 0.3
        others = answers()
        assert not any(torch.equal(others[i], while_learned[i]) for i in (0, 2, 3, 4, 5))
        parameter.zero_()


@pytest.mark.parametrize("kind", ["mixed", "sheared"])
def test_the_mixing_undoes_the_unmixing_and_leaves_volumes(generator, kind):
    reference = random_reference(generator, d=5, kind=kind)
    residuals = reference.residuals()
    eye = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(residuals.mixing @ residuals.unmixing, eye)
    assert float(torch.linalg.det(residuals.mixing)) == pytest.approx(1.0, abs=1e-12)
    r, z = uniform(generator, 4, 5), uniform(generator, 4, 2)
    strengths = None if reference.shears is None else reference.shears(z)
    mixed, pull = residuals.mix_vjp(r, strengths)
    torch.testing.assert_close(mixed, residuals.mix(r, strengths))
    torch.testing.assert_close(residuals.unmix(mixed, strengths), r)
    back, _ = pull(r.flip(0))
    torch.testing.assert_close((mixed * r.flip(0)).sum(), (r * back).sum())


def test_shears_follow_the_latents_leave_volumes_and_start_at_the_identity(generator):
    r, z = uniform(generator, 5, 3, 4), uniform(generator, 5, 3, 2)
    shears = Shears(4, 2, 3, generator=generator).double()
    assert not shears(z).any()
    with torch.no_grad():
        for parameter in shears.parameters():
            parameter.copy_(uniform(generator, *parameter.shape))
    shears.requires_grad_(False)
    first, second = shears.pair()
    c, after = shears(z).chunk(2, dim=-1)

    # As matrices: one writes to the first half from the second, and then the other way round.
    def matrices(shear, strengths):
        return torch.eye(4) + shear.writes.T @ torch.diag_embed(strengths) @ shear.reads

    one, other = matrices(first, c), matrices(second, after)
    torch.testing.assert_close(one, one.triu())
    torch.testing.assert_close(other, other.tril())
    assert not torch.equal(one[0, 0], one[0, 1])
    whole = (other @ one @ r[..., None])[..., 0]
    torch.testing.assert_close(second(first(r, c), after), whole)
    torch.testing.assert_close(first(second(whole, -after), -c), r)
    det = torch.linalg.det(other @ one)
    torch.testing.assert_close(det, torch.ones_like(det))


# -- the tails' energy ---------------------------------------------------------------------------


def tail_inputs(generator, d=3):
    """Residuals ``(4, 5, d)`` on both sides of zero, and scales, tails and skewness of each."""
    residual = 3 * uniform(generator, 4, 5, d)
    log_scale, log_tail = uniform(generator, 4, 1, d), uniform(generator, d) - 1.0
    return residual, log_scale, log_tail, 0.8 * uniform(generator, d)


def test_tails_from_normal_inverts_to_normal(generator):
    """Also far out, where e grows as sinh; e(0) = 0 and de/dε(0) = 1."""
    _, _, log_tail, skew = tail_inputs(generator)
    noise = 8 * uniform(generator, 50, 3)
    e = Tails(log_tail, skew).from_normal(noise)
    back = Tails(log_tail, skew).to_normal(e)[0]
    torch.testing.assert_close(back, noise, rtol=1e-10, atol=1e-10)
    e = 20 * uniform(generator, 50, 3)
    back = Tails(log_tail, skew).from_normal(Tails(log_tail, skew).to_normal(e)[0])
    torch.testing.assert_close(back, e, rtol=1e-10, atol=1e-10)
    at_zero, log_slope = Tails(log_tail, skew).to_normal(torch.zeros(3).double())
    torch.testing.assert_close(at_zero, torch.zeros(3).double())
    torch.testing.assert_close(log_slope, torch.zeros(3).double())


def test_the_energy_of_the_tails_is_that_of_the_map(generator):
    """Σ over features of ½ε² − log dε/de + log s."""
    residual, log_scale, log_tail, skew = tail_inputs(generator)
    noise, log_slope = Tails(log_tail, skew).to_normal(residual * torch.exp(-log_scale))
    expected = (0.5 * noise.square() - log_slope + log_scale).sum(-1)
    found = tails.energy(residual, log_scale, log_tail, skew)
    assert found.shape == (4, 5)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_energy_of_the_tails_has_the_gradient_of_finite_differences(generator):
    """In all four inputs, together and each alone: what is not asked for is not computed."""
    inputs = tail_inputs(generator)
    for chosen in [{0, 1, 2, 3}, {0}, {1}, {2}, {3}]:
        leaves = [t.clone().requires_grad_(i in chosen) for i, t in enumerate(inputs)]
        assert torch.autograd.gradcheck(tails.energy, leaves)


def test_the_energy_of_the_tails_has_autograd_s_gradient(generator):
    """Of the same sum written out, weighted unevenly, to rounding; far out too."""
    residual, *others = tail_inputs(generator)
    inputs = [1e3 * residual, *others]
    weights = uniform(generator, 4, 5)

    def written_out(residual, log_scale, log_tail, skew):
        noise, log_slope = Tails(log_tail, skew).to_normal(residual * torch.exp(-log_scale))
        return (0.5 * noise.square() - log_slope + log_scale).sum(-1)

    gradients = []
    for energy in (tails.energy, written_out):
        leaves = [t.clone().requires_grad_() for t in inputs]
        gradients.append(torch.autograd.grad((weights * energy(*leaves)).sum(), leaves))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


# -- the linear reference ------------------------------------------------------------------------


def test_the_noise_scale_has_a_floor():
    generator = torch.Generator().manual_seed(0)
    reference = IsotropicReference(2, 1, min_scale=0.02, generator=generator).double()
    reference.set_ppca_(PPCA(np.zeros((2, 1)), np.zeros(2), 0.0))
    origin = torch.zeros(1, 2).double(), torch.zeros(1, 1).double()
    expected = -1.5 * oracles.LOG_2PI - 2 * math.log(0.02)
    assert reference.log_prob(*origin).item() == pytest.approx(expected, abs=1e-9)


def test_the_tails_have_a_bound(generator):
    reference = random_reference(generator)
    with torch.no_grad():
        reference.log_tail.copy_(torch.tensor([-1.0, math.log(MAX_TAIL) + 1e-6, 3.0]))
    reference.project_()
    tails_ = reference.log_tail.exp().tolist()
    assert tails_ == pytest.approx([math.exp(-1), MAX_TAIL, MAX_TAIL], rel=1e-12)
    before = {name: p.clone() for name, p in reference.named_parameters()}
    reference.project_()
    assert all(torch.equal(p, before[name]) for name, p in reference.named_parameters())


def linear_case(rng, generator, n=6, d=4, k=2):
    """A linear reference in float64 and its parameters."""
    ppca = PPCA(rng.standard_normal((d, k)), rng.standard_normal(d), rng.uniform(0.3, 1.5))
    reference = IsotropicReference(d, k, min_scale=1e-3, generator=generator).double()
    reference.set_ppca_(ppca)
    return reference, ppca, 2 * rng.standard_normal((n, d))


def test_the_linear_reference_is_the_joint_gaussian(rng, generator):
    reference, ppca, x = linear_case(rng, generator)
    z = rng.standard_normal((6, 2))
    with torch.no_grad():
        log_prob = reference.log_prob(torch.from_numpy(x), torch.from_numpy(z)).numpy()
    expected = oracles.gaussian_log_prob(np.hstack([z, x]), *oracles.linear_joint(*ppca))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-10, atol=1e-10)


def test_the_linear_posterior_is_gaussian_conditioning(rng, generator):
    """p(z | x) by conditioning the joint Gaussian of (z, x), and by M⁻¹Wᵀ(x − μ)/σ²."""
    reference, ppca, x = linear_case(rng, generator)
    with torch.no_grad():
        mean, covariance = (t.numpy() for t in reference.linear_posterior(torch.from_numpy(x)))
    joint_mean, joint_covariance = oracles.linear_joint(*ppca)
    for exact_mean, exact_covariance in (
        oracles.gaussian_conditional(joint_mean, joint_covariance, np.arange(2, 6), x),
        oracles.linear_posterior(x, *ppca),
    ):
        np.testing.assert_allclose(mean, exact_mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(covariance, exact_covariance, rtol=1e-9, atol=1e-9)


def test_the_linear_evidence_is_the_marginal(rng, generator):
    reference, ppca, x = linear_case(rng, generator)
    with torch.no_grad():
        evidence = reference.linear_log_prob(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(evidence, oracles.linear_marginal(x, *ppca), rtol=1e-9, atol=1e-9)


def test_the_isotropic_reference_starts_at_ppca(rng, generator):
    """To the last digits: a network that is zero, and one Gaussian noise."""
    linear, ppca, x = linear_case(rng, generator)
    isotropic = KINDS["isotropic"](4, 2, min_scale=1e-3, generator=generator).double()
    isotropic.set_ppca_(ppca)
    x, z = torch.from_numpy(x), torch.from_numpy(rng.standard_normal((6, 2)))
    torch.testing.assert_close(isotropic.log_prob(x, z), linear.log_prob(x, z), rtol=1e-12, atol=0)


def test_the_isotropic_reference_weighs_all_errors_alike(generator):
    """log p_0(x | z) is −½|x − g(z)|²/σ² − d log σ + constant, with the same σ at every z."""
    reference = random_reference(generator, kind="isotropic")
    z, x = 2 * uniform(generator, 6, 2), 3 * uniform(generator, 6, 3)
    with torch.no_grad():
        given_z = reference.log_prob(x, z) + 0.5 * z.square().sum(-1) + oracles.LOG_2PI
        errors = (x - reference.mean(z)).square().sum(-1)
        log_scale = reference.log_scale[0]
    expected = -0.5 * errors * torch.exp(-2 * log_scale) - 3 * (log_scale + 0.5 * oracles.LOG_2PI)
    torch.testing.assert_close(given_z, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("mixing", [True, False])
def test_the_learned_reference_starts_at_ppca(rng, generator, mixing, rank):
    """Exactly, but for the tails, which start at κ = e⁻² and not at zero.

    With κ, log p_0 departs from PPCA by κ²(e⁴/6 − e²/2) at a residual of e standard deviations,
    to leading order: 0.16 nats at three, nothing on average. As a Kullback–Leibler divergence that
    is 0.58 κ⁴ = 2e-4 nats a feature.
    """
    ppca = PPCA(rng.standard_normal((2, 1)), rng.standard_normal(2), 0.7)
    reference = FlexibleReference(
        2,
        1,
        min_scale=1e-3,
        generator=generator,
        hidden_layer_sizes=(8,),
        mixing=mixing,
        mixing_rank=rank,
    ).double()
    reference.set_ppca_(ppca)
    kappa = math.exp(-2.0)
    nodes = np.linspace(-8, 8, 401)
    z = rng.standard_normal(1)
    loc = ppca.weight @ z + ppca.loc

    def log_ratio():
        """log p_0 − log PPCA along the first feature's residual, the second's at zero."""
        x = loc + ppca.scale * np.stack([nodes, np.zeros(401)], 1)
        zs = np.broadcast_to(z, (401, 1))
        with torch.no_grad():
            ours = reference.log_prob(torch.from_numpy(x), torch.tensor(zs)).numpy()
        return ours - oracles.gaussian_log_prob(np.hstack([zs, x]), *oracles.linear_joint(*ppca))

    departure = log_ratio()
    leading = kappa**2 * (nodes**4 / 6 + nodes**2 / 2)
    assert np.all(np.abs(departure) <= leading + 1e-9)
    normal = np.exp(-0.5 * nodes**2) / math.sqrt(2 * math.pi)
    divergence = -(normal * departure).sum() * (nodes[1] - nodes[0])
    assert 0 < divergence < kappa**4
    # Without tails nothing is left of it.
    with torch.no_grad():
        reference.log_tail.fill_(-12.0)
    assert np.abs(log_ratio()).max() < 1e-6
