"""What the harness itself can tell: the errors that it would notice."""

import numpy as np
import pytest
from scipy import stats
from statistical import (
    ALPHA,
    assert_calibrated,
    assert_close_to,
    calibration_limits,
)

OPTIMISM = 1.25
# Times too small and too large that errors are noticed half of the time, for so many replicates.
RESOLVED = {32: (2.8, 3.7), 64: (2.3, 2.7), 128: (2.0, 2.2), 256: (1.8, 1.9)}


@pytest.mark.parametrize(("n", "factors"), RESOLVED.items())
def test_errors_that_calibration_notices(n, factors):
    """By the binomial law of the counts, for normal estimates whose errors are off by a factor."""
    too_small, too_large = factors
    far, close = calibration_limits(n)
    share_far = 2 * stats.norm.sf(2 * OPTIMISM / too_small)
    share_close = 1 - 2 * stats.norm.sf(stats.norm.ppf(0.75) / OPTIMISM * too_large)
    assert stats.binom.sf(far, n, share_far) > 0.5
    assert stats.binom.sf(close, n, share_close) > 0.5
    # And right errors pass.
    assert stats.binom.sf(far, n, 2 * stats.norm.sf(2)) < ALPHA
    assert stats.binom.sf(close, n, 0.5) < ALPHA


def test_asserts_fail_where_they_should(rng):
    exact = rng.standard_normal(256)
    assert_calibrated(exact, np.ones(256), 0.0)
    for wrong in (0.4, 2.5):
        with pytest.raises(AssertionError, match="errors too"):
            assert_calibrated(exact, np.full(256, wrong), 0.0)
    with pytest.raises(AssertionError, match="not close"):
        assert_close_to(exact, 2.0)
