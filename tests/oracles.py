"""Closed forms and quadrature in float64 numpy: what the package's answers are held against.

Nothing here imports the package. The oracles are checked against one another in
``test_exact_answers.py``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]
LOG_2PI = math.log(2 * math.pi)


# -- Gaussians -----------------------------------------------------------------------------------


def gaussian_log_prob(x: Array, mean: Array, covariance: Array) -> Array:
    """log N(x; mean, covariance) of the rows of ``x``."""
    centred = np.atleast_2d(x) - mean
    factor = np.linalg.cholesky(covariance)
    white = np.linalg.solve(factor, centred.T)
    log_det = 2 * np.log(np.diag(factor)).sum()
    return -0.5 * ((white**2).sum(0) + log_det + len(covariance) * LOG_2PI)


def gaussian_entropy(covariance: Array) -> float:
    """½ log det(2πe Σ)."""
    return 0.5 * (np.linalg.slogdet(covariance)[1] + len(covariance) * (1 + LOG_2PI))


def gaussian_kl(m0: Array, c0: Array, m1: Array, c1: Array) -> float:
    """KL(N(m0, c0) ‖ N(m1, c1))."""
    ratio = np.linalg.solve(c1, c0)
    gap = m1 - m0
    square = gap @ np.linalg.solve(c1, gap)
    return 0.5 * (np.trace(ratio) - len(m0) + square - np.linalg.slogdet(ratio)[1])


def gaussian_w2(m0: float, v0: float, m1: float, v1: float) -> float:
    """2-Wasserstein distance of two normals on the line."""
    return math.hypot(m0 - m1, math.sqrt(v0) - math.sqrt(v1))


def gaussian_conditional(
    mean: Array, covariance: Array, observed: Array, values: Array
) -> tuple[Array, Array]:
    """Mean and covariance of the rest given ``values`` at the indices ``observed``."""
    missing = np.setdiff1d(np.arange(len(mean)), observed)
    c_oo = covariance[np.ix_(observed, observed)]
    c_mo = covariance[np.ix_(missing, observed)]
    gain = np.linalg.solve(c_oo, c_mo.T).T
    conditional = mean[missing] + (values - mean[observed]) @ gain.T
    return conditional, covariance[np.ix_(missing, missing)] - gain @ c_mo.T


# -- linear-Gaussian energy E = ‖x − Wz − b‖²/2σ² + ‖z‖²/2 -----------------------------------------


def linear_log_partition(d: int, k: int, sigma: float) -> float:
    """((d + k)/2) log 2π + d log σ, whatever W."""
    return 0.5 * (d + k) * LOG_2PI + d * math.log(sigma)


def linear_covariance(weight: Array, sigma: float) -> Array:
    """Covariance of x."""
    return weight @ weight.T + sigma**2 * np.eye(len(weight))


def linear_marginal(x: Array, weight: Array, bias: Array, sigma: float) -> Array:
    """log p(x) = log N(x; b, WWᵀ + σ²I)."""
    return gaussian_log_prob(x, bias, linear_covariance(weight, sigma))


def linear_posterior(x: Array, weight: Array, bias: Array, sigma: float) -> tuple[Array, Array]:
    """Mean M⁻¹Wᵀ(x − b)/σ² and covariance M⁻¹ of z given x, M = I + WᵀW/σ²."""
    covariance = np.linalg.inv(np.eye(weight.shape[1]) + weight.T @ weight / sigma**2)
    return (x - bias) @ weight @ covariance / sigma**2, covariance


def linear_joint(weight: Array, bias: Array, sigma: float) -> tuple[Array, Array]:
    """Mean and covariance of (z, x)."""
    k = weight.shape[1]
    covariance = np.block([[np.eye(k), weight.T], [weight, linear_covariance(weight, sigma)]])
    return np.concatenate([np.zeros(k), bias]), covariance


def mean_field_gap(precision: Array) -> float:
    """−F − max ELBO over Gaussians with diagonal covariance: ½(Σ log M_ii − log det M)."""
    return 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])


def ppca(X: Array, k: int) -> tuple[Array, Array, float, float]:
    """Maximum likelihood W, mean, σ² (mean discarded eigenvalue) and mean log-likelihood."""
    n, d = X.shape
    centred = X - X.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / n)
    values, vectors = values[::-1], vectors[:, ::-1]
    variance = values[k:].mean()
    weight = vectors[:, :k] * np.sqrt(values[:k] - variance)
    log_det = np.log(values[:k]).sum() + (d - k) * math.log(variance)
    return weight, X.mean(0), variance, -0.5 * (d * LOG_2PI + log_det + d)


# -- Langevin dynamics ---------------------------------------------------------------------------


def ula_covariance(precision: Array, eta: float) -> Array:
    """Stationary covariance [A(I − ηA/2)]⁻¹ of unadjusted steps on a Gaussian of precision A."""
    return np.linalg.inv(precision @ (np.eye(len(precision)) - 0.5 * eta * precision))


def ou_moments(t: float, m0: float, v0: float, rate: float) -> tuple[float, float]:
    """Mean and variance at time t of dz = −λz dt + √2 dB."""
    decay = math.exp(-rate * t)
    return m0 * decay, 1 / rate + (v0 - 1 / rate) * decay**2


def ula_moments(n: int, eta: float, m0: float, v0: float, rate: float) -> tuple[float, float]:
    """Mean and variance after n unadjusted steps on exp(−λz²/2)."""
    decay = 1 - eta * rate
    stationary = 2 * eta / (1 - decay**2)
    return m0 * decay**n, stationary + (v0 - stationary) * decay ** (2 * n)


# -- Gaussian–Bernoulli energy E(x, h) = ‖x − b‖²/2σ² − c·h − (x − b)ᵀWh/σ² -----------------------


class GaussianBernoulli:
    """H binary hidden units under Gaussian x: p(x) is a mixture of 2^H Gaussians."""

    def __init__(self, weight: Array, bias: Array, hidden_bias: Array, sigma: float) -> None:
        self.weight, self.bias, self.hidden_bias, self.sigma = weight, bias, hidden_bias, sigma
        d, n_hidden = weight.shape
        self.states = np.array(list(itertools.product([0.0, 1.0], repeat=n_hidden)))
        self.means = bias + self.states @ weight.T
        # exp(−E(x, h)) = e^{c·h + ‖Wh‖²/2σ²} exp(−‖x − b − Wh‖²/2σ²): complete the square.
        shift = (self.states @ weight.T) ** 2
        self.log_masses = (
            self.states @ hidden_bias
            + shift.sum(1) / (2 * sigma**2)
            + d * (0.5 * LOG_2PI + math.log(sigma))
        )

    @property
    def log_partition(self) -> float:
        """log Σ_h ∫ exp(−E) dx."""
        return float(logsumexp(self.log_masses))

    def free_energy(self, x: Array) -> Array:
        """−log Σ_h exp(−E(x, h)), the sum over 2^H states written out."""
        centred = x - self.bias
        linear = self.hidden_bias + centred @ self.weight / self.sigma**2
        return (centred**2).sum(1) / (2 * self.sigma**2) - logsumexp(linear @ self.states.T, axis=1)

    def log_prob(self, x: Array) -> Array:
        """log p(x) as the mixture of 2^H Gaussians."""
        d = x.shape[1]
        square = ((x[:, None] - self.means) ** 2).sum(-1) / (2 * self.sigma**2)
        log_normals = -square - d * (0.5 * LOG_2PI + math.log(self.sigma))
        return logsumexp(self.log_masses - self.log_partition + log_normals, axis=1)

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """Exact draws."""
        states = rng.choice(len(self.states), n, p=np.exp(self.log_masses - self.log_partition))
        return self.means[states] + self.sigma * rng.standard_normal((n, self.means.shape[1]))


# -- quadrature ----------------------------------------------------------------------------------


def grid(*axes: Array) -> Array:
    """All points of the product of ``axes``, ``(n, len(axes))``."""
    return np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)


def _log_cell(axes: tuple[Array, ...]) -> float:
    return sum(math.log(a[1] - a[0]) for a in axes)


def log_integral(log_density: Callable[[Array], Array], *axes: Array) -> float:
    """log ∫ exp by the trapezoid rule on evenly spaced ``axes``.

    For a smooth density that vanishes at the ends the weights are equal and the rule converges
    faster than any power of the spacing.
    """
    return float(logsumexp(log_density(grid(*axes)))) + _log_cell(axes)


def expectation(
    function: Callable[[Array], Array], log_density: Callable[[Array], Array], *axes: Array
) -> Array:
    """E[function] under the normalised density, by the trapezoid rule."""
    points = grid(*axes)
    log_weights = log_density(points)
    weights = np.exp(log_weights - logsumexp(log_weights))
    return np.tensordot(weights, function(points), axes=1)


def entropy(log_prob: Callable[[Array], Array], *axes: Array) -> float:
    """−∫ p log p of a normalised density, in nats."""
    log_p = log_prob(grid(*axes))
    # exp of a very negative number times it is zero, not nan.
    return float(-(np.exp(log_p) * np.maximum(log_p, -1e4)).sum() * math.exp(_log_cell(axes)))


# -- annealing -----------------------------------------------------------------------------------


def ais_gaussian_mean(precision: float, n_steps: int) -> float:
    """E log w of annealing from N(0, 1) to ``precision``, evenly spaced, by perfect transitions.

    ℓ(v) = −½(λ − 1)v², and v has precision 1 + (λ − 1)β under β: a left Riemann sum of
    log Z = −½ log λ.
    """
    betas = np.arange(n_steps) / n_steps
    return float(-0.5 * ((precision - 1) / (1 + (precision - 1) * betas)).mean())


def phi4_log_partition(n: int, spacing: float = 0.05, reach: float = 3.5) -> float:
    """log Z of the periodic chain S = Σ ½(φ_i − φ_{i+1})² + (φ_i² − 1)², by its transfer matrix.

    Z = tr Kⁿ, with K(a, b) = exp(−½(a − b)² − ½V(a) − ½V(b)) on a grid times its spacing.
    """
    a = np.arange(-reach, reach + spacing / 2, spacing)
    half = 0.5 * (a**2 - 1) ** 2
    kernel = spacing * np.exp(-0.5 * (a[:, None] - a) ** 2 - half[:, None] - half)
    values = np.linalg.eigvalsh(kernel)
    return n * math.log(values[-1]) + math.log(((values / values[-1]) ** n).sum())


# -- known densities -----------------------------------------------------------------------------


def mixture_log_prob(x: Array, weights: Array, means: Array, covariances: Array) -> Array:
    """log Σ_c w_c N(x; m_c, C_c)."""
    parts = [
        math.log(w) + gaussian_log_prob(x, m, c)
        for w, m, c in zip(weights, means, covariances, strict=True)
    ]
    return logsumexp(parts, axis=0)


def mixture_sample(
    n: int, weights: Array, means: Array, covariances: Array, rng: np.random.Generator
) -> Array:
    """Exact draws from a Gaussian mixture."""
    labels = rng.choice(len(weights), n, p=weights)
    factors = np.linalg.cholesky(covariances)
    noise = rng.standard_normal((n, means.shape[1], 1))
    return means[labels] + (factors[labels] @ noise)[..., 0]


def moons_log_prob(x: Array, noise: float, n_nodes: int = 400) -> Array:
    """Density of ``make_moons``: two half circles, evenly covered, plus N(0, noise² I)."""
    t = (np.arange(n_nodes) + 0.5) * math.pi / n_nodes
    upper = np.stack([np.cos(t), np.sin(t)], 1)
    lower = np.stack([1 - np.cos(t), 0.5 - np.sin(t)], 1)
    centres = np.concatenate([upper, lower])
    square = (x**2).sum(1)[:, None] - 2 * x @ centres.T + (centres**2).sum(1)
    log_kernel = -0.5 * square / noise**2 - LOG_2PI - 2 * math.log(noise)
    return logsumexp(log_kernel, axis=1) - math.log(len(centres))
