"""The regression behind ``inverse_transform``, and the rows that it is learned from."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

from sklvebm import LVEBMEstimator
from sklvebm.finishing import _kept
from sklvebm.reconstruction import fit_remainder


class TestFitRemainder:
    def test_what_is_linear_is_found(self, rng):
        T, slope = rng.standard_normal((500, 3)), rng.standard_normal((3, 4))
        found = fit_remainder(T, T @ slope + 1, seed=0)
        np.testing.assert_allclose(found.predict(T), T @ slope + 1, atol=1e-2)

    def test_what_is_curved_is_found(self, rng):
        T = rng.uniform(-1, 1, (2000, 1))
        inner = np.linspace(-0.9, 0.9, 50)[:, None]
        found = fit_remainder(T, np.cos(4 * T), seed=0)
        np.testing.assert_allclose(found.predict(inner), np.cos(4 * inner), atol=0.05)

    def test_latents_that_tell_nothing_are_not_heard(self, rng):
        T, noise = rng.standard_normal((500, 2)), rng.standard_normal((500, 3))
        found = fit_remainder(T, noise, seed=0).predict(rng.standard_normal((200, 2)))
        # The mean over the fewest neighbours that could be taken would have a variance of 1/5.
        assert found.var(axis=0).max() < 1 / 10

    @pytest.mark.parametrize("n_distinct", [1, 4, 9])
    def test_few_rows_that_differ_have_no_neighbours(self, rng, n_distinct):
        T = rng.standard_normal((n_distinct, 2))[rng.integers(n_distinct, size=200)]
        found = fit_remainder(T, T @ np.ones((2, 3)) + 1.0, seed=0).predict(T)
        np.testing.assert_allclose(found, T @ np.ones((2, 3)) + 1.0, atol=1e-3)

    def test_latents_that_are_all_the_same(self):
        """A linear energy has none to tell of one feature."""
        X = load_iris().data[:, :1]
        model = LVEBMEstimator(energy="linear", marginals="mixture", random_state=0).fit(X)
        back = model.inverse_transform(model.transform(X))
        np.testing.assert_allclose(back, np.broadcast_to(X.mean(), X.shape), atol=0.1)

    def test_a_row_does_not_vouch_for_itself(self, rng):
        """Rows of weight have copies: neighbours would explain all noise if these were apart."""
        T, noise = (rng.standard_normal((100, 2)).repeat(10, axis=0) for _ in range(2))
        found = fit_remainder(T, noise, seed=0).predict(rng.standard_normal((200, 2)))
        assert found.var(axis=0).max() < 1 / 2

    @pytest.mark.parametrize("far", [3.0, 30.0])
    def test_nothing_is_made_up_far_out(self, rng, far):
        """A kernel's prediction once left the range of all rows a hundredfold, a little outside."""
        T = rng.uniform(-1, 1, (500, 1))
        remainder = np.concatenate([np.cos(4 * T), T**2], axis=1)
        found = fit_remainder(T, remainder, seed=0)
        outside = np.array([[-far], [far]])
        beside_line = found.predict(outside) - found.linear.predict(outside)
        left = remainder - found.linear.predict(T)
        assert (beside_line >= left.min(axis=0)).all()
        assert (beside_line <= left.max(axis=0)).all()


class TestRowsThatAreKept:
    def test_they_miss_nothing_and_come_in_order(self, rng):
        x = torch.from_numpy(rng.standard_normal((1500, 3)))
        x[::2, 1] = torch.nan
        order = torch.arange(1500).flip(0)
        torch.testing.assert_close(_kept(x, order), x[1::2].flip(0))

    @pytest.mark.parametrize(("n_features", "expected"), [(2, 4096), (64, 2048), (1000, 512)])
    def test_no_more_than_a_wide_table_can_afford(self, n_features, expected):
        x = torch.rand(5000, n_features)
        assert _kept(x, torch.arange(5000)).shape == (expected, n_features)

    def test_none_of_too_few(self, rng):
        x = torch.from_numpy(rng.standard_normal((511, 2)))
        assert _kept(x, torch.arange(511)) is None
        # However often they come.
        assert _kept(x, torch.arange(511).repeat(4)) is None

    def test_they_tell_what_the_model_has_not_learned(self, rng):
        """A parabola, and a model that is still Gaussian, whose own draws do not bend."""
        u = rng.uniform(-0.5, 1.5, 1000)
        X = np.column_stack([u, u**2])
        model = LVEBMEstimator(1, max_iter=2).fit(X)
        Z = model.transform(X)
        learned = np.square(model.inverse_transform(Z) - X).sum()
        without = LVEBMEstimator(1, max_iter=2).fit(X[:500])
        assert learned < 0.5 * np.square(without.inverse_transform(without.transform(X)) - X).sum()
