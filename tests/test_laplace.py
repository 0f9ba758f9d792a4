"""Quasi-Newton ascent: exact on Gaussians, several modes, and no harm from wild starts."""

import pytest
import torch

from sklvebm.laplace import laplace, starts

N, K = 6, 3


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def eye(k=K):
    return torch.eye(k, dtype=torch.float64)


def gaussian(generator, n=N, k=K):
    """A Gaussian of its own for each row: mean, covariance, and the log-density."""
    root = normal(generator, n, k, k)
    covariance = root @ root.transpose(1, 2) + 0.3 * eye(k)
    mean = 3 * normal(generator, n, k)
    precision = torch.linalg.inv(covariance)

    def log_density(z):
        gap = z - mean[:, None]
        return -0.5 * (gap * (gap @ precision)).sum(-1)

    return mean, covariance, log_density


def test_it_finds_gaussians(generator):
    """The mode of 200 of them, and of nine in ten the covariance to half: BFGS learns a quadratic.

    About one in a hundred is found before all directions have been gone.
    """
    mean, covariance, log_density = gaussian(generator, n=200)
    found = laplace(normal(generator, 200, 1, K), eye(), log_density, n_steps=40)
    torch.testing.assert_close(found.weights, torch.ones(200, 1, dtype=torch.float64))
    white = torch.linalg.inv(torch.linalg.cholesky(covariance))
    gap = (white @ (found.mean[:, 0] - mean)[..., None])[..., 0]
    assert float(gap.norm(dim=1).max()) < 0.1
    ratios = torch.linalg.eigvalsh(white @ found.covariance[:, 0] @ white.transpose(1, 2))
    close = (ratios > 0.5) & (ratios < 1.5)
    assert float(close.all(1).double().mean()) > 0.9


def test_climbers_near_their_peak_stay_whatever_the_others_do(generator):
    """The same to the bit beside neighbours that climb on; no gradients when all have arrived."""
    mean, covariance, log_density = gaussian(generator, n=200)
    n_gradients = 0

    def watched(z):
        nonlocal n_gradients
        n_gradients += 1
        return log_density(z)

    near = mean[:, None] + 1e-4
    far = torch.cat([near[:1], near[1:] + 10 * normal(generator, 199, 1, K)])
    begun = [laplace(start, covariance, watched, n_steps=100, tol=0.01) for start in (near, near)]
    assert n_gradients == 2
    torch.testing.assert_close(begun[0].mean, near, rtol=0, atol=0)
    among = laplace(far, covariance, watched, n_steps=100, tol=0.01)
    assert 4 < n_gradients < 2 + 1 + 100
    for mine, beside in zip(begun[0], among, strict=True):
        assert torch.equal(mine[0], beside[0])
    inverse_factor = torch.linalg.inv(torch.linalg.cholesky(covariance))
    gap = (inverse_factor @ (among.mean[:, 0] - mean)[..., None])[..., 0]
    # H begins as the covariance itself, and on a quadratic no step teaches it otherwise.
    assert float(gap.norm(dim=1).max()) < 0.01 * (1 + 1e-6)


def test_a_peak_climbed_twice_counts_once(generator):
    mean, _, log_density = gaussian(generator)
    found = laplace(normal(generator, N, 3, K), eye(), log_density, n_steps=40)
    torch.testing.assert_close(found.weights[:, 0], torch.ones(N, dtype=torch.float64))
    torch.testing.assert_close(found.mean, mean[:, None].expand(N, 3, K), rtol=0, atol=0.1)


def test_two_modes_are_found_and_weighed():
    """Peaks at ±4 of standard deviations 1 and ½, in proportions .7 to .3."""

    def log_density(z):
        left = -0.5 * (z[..., 0] + 4).square() + torch.tensor(0.7).log()
        right = -0.5 * ((z[..., 0] - 4) / 0.5).square() + torch.tensor(0.6).log()
        return torch.logaddexp(left, right)

    start = torch.tensor([[[-1.0], [2.0]]], dtype=torch.float64)
    found = laplace(start, eye(1), log_density, n_steps=30)
    order = found.mean[0, :, 0].argsort()
    mean, weights = found.mean[0, order, 0], found.weights[0, order]
    scale = found.covariance[0, order, 0, 0].sqrt()
    torch.testing.assert_close(mean, torch.tensor([-4.0, 4.0]).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(scale, torch.tensor([1.0, 0.5]).double(), rtol=0.1, atol=0)
    # Half by the estimated mass, half in equal parts.
    torch.testing.assert_close(weights, torch.tensor([0.6, 0.4]).double(), rtol=0, atol=0.03)


def test_the_best_candidates_that_lie_apart_are_taken(generator):
    _, _, log_density = gaussian(generator)
    guess, candidates = normal(generator, N, K), normal(generator, 50, K)
    begun = starts(guess, eye(), candidates, log_density, 3)
    assert begun.shape == (N, 3, K)
    torch.testing.assert_close(begun[:, 0], guess)
    values = log_density(candidates.expand(N, 50, K))
    for row in range(N):
        taken = [guess[row]]
        for start in begun[row, 1:]:
            allowed = torch.stack([(candidates - other).norm(dim=1) >= 2 for other in taken]).all(0)
            best = values[row].masked_fill(~allowed, -torch.inf).argmax()
            torch.testing.assert_close(start, candidates[best], rtol=0, atol=0)
            taken.append(start)
    torch.testing.assert_close(starts(guess, eye(), candidates, log_density, 1), guess[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_covariance_stays_positive_definite(generator, dtype):
    """Flat, steep, cut-off and non-finite densities: the answer can always propose."""

    def hostile(z):
        steep = 1e6 * torch.cos(50 * z).sum(-1)
        cut = torch.where(z[..., 0] > 1, torch.nan, 0.0)
        return torch.stack([0 * z.sum(-1), steep, cut - z.square().sum(-1)]).gather(
            0, (torch.arange(N) % 3)[None, :, None].expand(1, N, z.shape[1])
        )[0]

    start = normal(generator, N, 2, K).to(dtype)
    found = laplace(start, eye().to(dtype), hostile, n_steps=15)
    for part in found:
        assert part.dtype == dtype
        assert bool(torch.isfinite(part).all())
    assert bool((torch.linalg.eigvalsh(found.covariance.double()) > 0).all())
    assert bool((found.weights >= 0).all())
