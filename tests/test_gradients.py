"""Gradients by hand against autograd, for every shipped energy: to 1e-6 of their size, float64."""

import pytest
import torch

from sklvebm.energies import CustomEnergy, FreeEnergy, LinearEnergy, TiltedEnergy, _joint
from sklvebm.langevin import Differentiated, tempered, times_normal, value_and_gradient

D, K = 5, 3
SPECS = {
    "tilted": TiltedEnergy(),
    "one mixing": TiltedEnergy(mixing_rank=0),
    "frequencies": TiltedEnergy(n_frequencies=8),
    "unbounded": TiltedEnergy(tilt_bound=None, hidden_layer_sizes=(16, 8, 4)),
    "least scale": TiltedEnergy(min_scale=0.9),
    "isotropic": TiltedEnergy(noise="isotropic"),
    "free": FreeEnergy(),
    "free frequencies": FreeEnergy(n_frequencies=4),
    "linear": LinearEnergy(),
}


def away_from_the_start(spec, generator):
    """The energy with every parameter moved at random, in float64."""
    energy = spec.build(D, K, generator=generator).double()
    for parameter in energy.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.3 * noise
    return energy.requires_grad_(False)


def assert_same(found, exact):
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", SPECS)
def test_the_posterior_of_a_row(name, generator):
    energy = away_from_the_start(SPECS[name], generator)
    x = torch.randn(7, D, generator=generator, dtype=torch.float64)
    z = torch.randn(7, 4, K, generator=generator, dtype=torch.float64)
    density = energy.posterior(x)
    assert isinstance(density, Differentiated)
    exact = value_and_gradient(lambda u: -energy(x[:, None], u), z)
    assert_same(value_and_gradient(density, z), exact)
    torch.testing.assert_close(density(z), exact[0])


@pytest.mark.parametrize("name", SPECS)
def test_complete_rows_among_others(name, generator):
    """Where other rows of a table miss entries, all have coordinates for them, which are idle."""
    energy = away_from_the_start(SPECS[name], generator)
    x = torch.randn(7, D, generator=generator, dtype=torch.float64)
    u = torch.randn(7, 4, K + D, generator=generator, dtype=torch.float64)
    density = energy.posterior(x)

    def expected(u):
        z, y = u.split([K, D], -1)
        return torch.distributions.Normal(0.0, 1.0).log_prob(y).sum(-1) - energy(x[:, None], z)

    assert_same(value_and_gradient(density, u), value_and_gradient(expected, u))
    torch.testing.assert_close(density(u), expected(u))
    # The same rows beside one that misses an entry.
    beside = torch.cat([x, torch.full((1, D), torch.nan, dtype=torch.float64)])
    value = energy.posterior(beside)(torch.cat([u, u[:1]]))[:-1]
    torch.testing.assert_close(value, density(u))


@pytest.mark.parametrize("name", SPECS)
def test_a_few_rows_at_a_time_give_the_same(name, generator, monkeypatch):
    """As do particles that all rows share, and members of the pool."""
    energy = away_from_the_start(SPECS[name], generator)
    x = torch.randn(7, D, generator=generator, dtype=torch.float64)
    z = torch.randn(1, 4, K, generator=generator, dtype=torch.float64)
    v = torch.randn(9, D + K, generator=generator, dtype=torch.float64)
    density, each = energy.posterior(x), z.expand(7, 4, K)
    pairs = [(density, each), (density, z)]
    if energy.tilt is not None:
        pairs.append((energy.log_tilt, v))
    together = [value_and_gradient(log_p, at) for log_p, at in pairs]
    monkeypatch.setattr(_joint, "_AT_ONCE", _joint._AT_ONCE * 2 // energy._rows_at_once(4))
    assert energy._rows_at_once(4) == 2
    for (log_p, at), expected in zip(pairs, together, strict=True):
        assert_same(value_and_gradient(log_p, at), expected)
        torch.testing.assert_close(log_p(at), expected[0])


@pytest.mark.parametrize("name", [name for name in SPECS if name != "linear"])
def test_the_tilt_in_the_reference_coordinates(name, generator):
    energy = away_from_the_start(SPECS[name], generator)
    v = torch.randn(9, D + K, generator=generator, dtype=torch.float64)
    assert isinstance(energy.log_tilt, Differentiated)
    exact = value_and_gradient(lambda v: -energy.tilt(*energy.reference.split(v)), v)
    assert_same(value_and_gradient(energy.log_tilt, v), exact)
    for build in (times_normal, lambda density: tempered(density, 0.3)):
        by_hand, by_autograd = build(energy.log_tilt), build(lambda v: energy.log_tilt(v))
        assert_same(value_and_gradient(by_hand, v), value_and_gradient(by_autograd, v))


def test_what_a_user_gives_is_differentiated_by_autograd(generator):
    class Quadratic(torch.nn.Module):
        def forward(self, x, z):
            return 0.5 * (x.square().sum(-1) + (z - x[:, :K]).square().sum(-1))

    energy = away_from_the_start(CustomEnergy(lambda d, k: Quadratic()), generator)
    x = torch.randn(7, D, generator=generator, dtype=torch.float64)
    z = torch.randn(7, 4, K, generator=generator, dtype=torch.float64)
    density = energy.posterior(x)
    assert not isinstance(density, Differentiated)
    torch.testing.assert_close(value_and_gradient(density, z)[1], x[:, None, :K] - z)
