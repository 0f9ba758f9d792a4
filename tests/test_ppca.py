"""Probabilistic PCA: the closed form, which nothing near it beats."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest

from sklvebm.ppca import fit_ppca


def table(rng, n=300, d=5, k=2):
    return rng.standard_normal((n, k)) @ rng.standard_normal((k, d)) + rng.standard_normal((n, d))


def test_fit_ppca_is_the_closed_form(rng):
    X = table(rng)
    weight, loc, variance, log_likelihood = oracles.ppca(X, 2)
    fitted = fit_ppca(X, 2)
    np.testing.assert_allclose(fitted.scale**2, variance, rtol=1e-10)
    np.testing.assert_allclose(fitted.loc, loc, rtol=1e-10, atol=1e-12)
    # W is defined up to a rotation of the latents.
    np.testing.assert_allclose(fitted.weight @ fitted.weight.T, weight @ weight.T, atol=1e-10)
    reached = oracles.linear_marginal(X, fitted.weight, fitted.loc, fitted.scale).mean()
    assert reached == pytest.approx(log_likelihood, abs=1e-10)


def test_fit_ppca_is_a_maximum(rng):
    """Every small change of W, μ or σ lowers the likelihood."""
    X = table(rng)
    fitted = fit_ppca(X, 2)
    best = oracles.linear_marginal(X, *fitted).mean()
    for _ in range(20):
        changed = oracles.linear_marginal(
            X,
            fitted.weight + 0.03 * rng.standard_normal(fitted.weight.shape),
            fitted.loc + 0.03 * rng.standard_normal(5),
            fitted.scale * math.exp(0.03 * rng.standard_normal()),
        ).mean()
        assert changed < best


def test_sample_weight_counts_rows(rng):
    X, counts = table(rng, 40), rng.integers(1, 4, 40)
    weighted, repeated = fit_ppca(X, 2, sample_weight=counts), fit_ppca(X.repeat(counts, 0), 2)
    for a, b in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_surplus_components_are_empty(rng):
    fitted = fit_ppca(table(rng, d=3), 5)
    assert fitted.weight.shape == (3, 5)
    assert not fitted.weight[:, 2:].any()
    assert fitted.scale > 0


def test_constant_columns_stop_at_min_scale(rng):
    X = np.column_stack([rng.standard_normal(50), np.zeros(50)])
    assert fit_ppca(X, 1, min_scale=0.02).scale == pytest.approx(0.02)
