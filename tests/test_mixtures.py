"""The Student-t mixtures that propose latents: their draws, their density, their refit."""

import numpy as np
import pytest
import torch
from statistical import assert_at_most, assert_close_to

from sklvebm.langevin import Noise
from sklvebm.mixtures import Guess, StudentMixture, moments

N, S, K = 256, 200, 2


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def eye(k=K):
    return torch.eye(k, dtype=torch.float64)


def two_components(n=N):
    """A tenth at (−2, 0), wide, and the rest at (2, 1), narrow and tilted."""
    weights = torch.tensor([[0.1, 0.9]], dtype=torch.float64)
    mean = torch.tensor([[[-2.0, 0.0], [2.0, 1.0]]], dtype=torch.float64)
    narrow = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)
    covariance = torch.stack([eye(), narrow])[None]
    return Guess(*(part.expand(n, *part.shape[1:]).clone() for part in (weights, mean, covariance)))


@pytest.mark.parametrize("n_heavy", [None, 1])
@pytest.mark.statistical
def test_draws_come_from_the_density(generator, n_heavy):
    """E_q[p/q] = 1 and E_q[u p/q] = E_p[u] for a normalised p, each row a replicate."""
    mixture = StudentMixture(two_components(), 0.1 * eye(), n_heavy)
    draws = mixture.sample(S, Noise(generator))
    log_q = mixture.log_prob(draws)
    assert draws.shape == (N, S, K)
    assert log_q.shape == (N, S)
    centre = torch.tensor([0.5, 0.5], dtype=torch.float64)
    log_p = -0.5 * (draws - centre).square().sum(-1) - np.log(2 * np.pi)
    ratio = torch.exp(log_p - log_q)
    assert_close_to(ratio.mean(1), 1.0)
    assert_close_to((ratio[..., None] * draws).mean(1), centre.numpy())


@pytest.mark.statistical
def test_components_are_drawn_by_their_weights(generator):
    draws = StudentMixture(two_components(), 0.01 * eye()).sample(S, Noise(generator))
    left = (draws[..., 0] < 0).double().mean(1)
    # Tails cross the middle: a hundredth at most.
    assert_close_to(left, 0.1, slack=0.01)


def test_one_component_and_copies_of_it_are_the_same_law(generator):
    mean, covariance = normal(generator, 5, K), eye().expand(5, K, K)
    one = StudentMixture(Guess.single(mean, covariance), eye())
    copies = Guess(
        torch.full((5, 3), 1 / 3, dtype=torch.float64),
        mean[:, None].expand(5, 3, K),
        covariance[:, None].expand(5, 3, K, K),
    )
    z = normal(generator, 5, 7, K)
    torch.testing.assert_close(StudentMixture(copies, eye()).log_prob(z), one.log_prob(z))


def weighted(generator, n, s, k=K):
    draws = normal(generator, n, s, k)
    return draws, torch.softmax(1.5 * draws[..., 0] + normal(generator, n, s), 1)


def test_a_refit_trusts_many_draws_and_keeps_the_guess_of_few(generator):
    """Even weights give the draws' own moments; a lone heavy draw leaves the guess where it was."""
    draws, _ = weighted(generator, 2, 4000)
    even = torch.full((2, 4000), 1 / 4000, dtype=torch.float64)
    centre = torch.full((2, K), 3.0, dtype=torch.float64)
    mixture = StudentMixture(Guess.single(centre, eye().expand(2, K, K)), eye())
    found = mixture.refitted(draws, even)
    # A guess three deviations off in each of two directions counts for 20 draws of 4,020.
    torch.testing.assert_close(found.mean[:, 0], draws.mean(1) * 4000 / 4020 + 3 * 20 / 4020)
    assert bool((torch.diagonal(found.covariance[:, 0], dim1=1, dim2=2) < 1.3).all())
    lone = torch.zeros(2, 4000, dtype=torch.float64)
    lone[:, 7] = 1
    found = mixture.refitted(draws, lone)
    torch.testing.assert_close(found.mean[:, 0], (draws[:, 7] + 20 * centre) / 21)
    assert bool((torch.diagonal(found.covariance[:, 0], dim1=1, dim2=2) > 20 / 21 - 1e-9).all())
    torch.testing.assert_close(found.weights, torch.ones(2, 1, dtype=torch.float64))


@pytest.mark.statistical
def test_refits_find_the_weights_of_two_modes(generator):
    """From even weights, three rounds on a target of .2 and .8: closer than the first guess."""
    target = two_components()._replace(
        weights=torch.tensor([[0.2, 0.8]], dtype=torch.float64).expand(N, 2)
    )
    exact = StudentMixture(target, 0.01 * eye())
    guess = target._replace(weights=torch.full((N, 2), 0.5, dtype=torch.float64))
    for _ in range(3):
        mixture = StudentMixture(guess, 0.01 * eye())
        draws = mixture.sample(S, Noise(generator))
        weights = torch.softmax(exact.log_prob(draws) - mixture.log_prob(draws), 1)
        guess = mixture.refitted(draws, weights)
    # A tenth of each round's weights is the last one's: .2 + .3/1000 in the limit of many draws.
    assert_close_to(guess.weights[:, 0], 0.2, slack=0.01)
    assert_at_most((guess.mean - target.mean).square().sum(-1).mean(1), 0.5)


def test_moments_are_weighted(generator):
    all_draws, all_weights = weighted(generator, 3, 50)
    mean, covariance = moments(all_draws[2:], all_weights[2:])
    weights, draws = all_weights[2].numpy(), all_draws[2].numpy()
    np.testing.assert_allclose(mean[0], weights @ draws)
    np.testing.assert_allclose(
        covariance[0], np.cov(draws.T, aweights=weights, ddof=0), rtol=1e-10, atol=1e-12
    )
    equal = moments(all_draws)[1][2]
    np.testing.assert_allclose(equal, np.cov(draws.T, bias=True), rtol=1e-10, atol=1e-12)
