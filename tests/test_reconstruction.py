"""The regression behind ``inverse_transform``."""

import numpy as np
import pytest

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
