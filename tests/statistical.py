r"""The only home of k-sigma asserts.

Failure budget. The suite makes at most ``N_COMPARISONS`` = 500 statistical comparisons and may
fail by chance below ``FAILURE_BUDGET`` = 1e-5 a run, so each comparison gets the two-sided
false-alarm probability ``ALPHA`` = 2e-8: a normal quantile of 5.6. An array of m numbers is one
comparison, at ALPHA/m a number. Tolerances are never chosen: they are computed from the spread of
independent replicates (Student-t quantile for their number), or from the standard error that the
code under test reports about itself. A ``slack`` is a bias that the caller derives and states.

Quantiles that far out trust the central limit theorem far out: give many replicates (32 or more),
each of them a mean over many chains.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

N_COMPARISONS = 500
FAILURE_BUDGET = 1e-5
ALPHA = FAILURE_BUDGET / N_COMPARISONS
Z = float(stats.norm.isf(ALPHA / 2))
MIN_REPLICATES = 16
# With fewer, all could lie close.
MIN_CALIBRATED = 32
_MEDIAN = float(stats.norm.ppf(0.75))
MIN_RANKS_PER_BIN = 50


def _as_array(values) -> np.ndarray:
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    return np.asarray(values, dtype=np.float64)


def interval(estimates) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the replicates (first axis) and the half-width of its confidence interval."""
    estimates = _as_array(estimates)
    n = len(estimates)
    assert n >= MIN_REPLICATES, f"{n} replicates say too little about their own spread"
    assert np.isfinite(estimates).all(), "a replicate is not finite"
    quantile = stats.t.isf(ALPHA / 2 / max(estimates[0].size, 1), n - 1)
    return estimates.mean(0), quantile * estimates.std(0, ddof=1) / np.sqrt(n)


def _message(what: str, mean, half_width, exact, slack) -> str:
    error = np.max(np.abs(mean - exact) / (half_width + slack + 1e-300))
    return (
        f"{what}: mean {mean}, half-width {half_width}, exact {exact}, slack {slack}; "
        f"largest error {error:.2f} tolerances"
    )


def assert_close_to(estimates, exact, *, slack=0.0) -> None:
    """The replicates ``estimates (R, ...)`` have mean ``exact``, up to a derived bias ``slack``."""
    mean, half_width = interval(estimates)
    exact = _as_array(exact)
    # Rounding only; a degenerate spread must not make the test exact beyond float64.
    slack = slack + 1e-12 * (1 + np.abs(exact))
    assert np.all(np.abs(mean - exact) <= half_width + slack), _message(
        "not close", mean, half_width, exact, slack
    )


def assert_rejects(estimates, wrong_value) -> None:
    """Some entry of the mean is so far from ``wrong_value`` that chance cannot explain it.

    It must also resolve the difference: a test that needs luck to reject is flaky, so the distance
    is asked to be twice the half-width.
    """
    mean, half_width = interval(estimates)
    distance = np.abs(mean - _as_array(wrong_value))
    assert np.any(distance > 2 * half_width), _message(
        "not rejected", mean, half_width, _as_array(wrong_value), 0.0
    )


def assert_resolves(estimates, difference: float) -> None:
    """The replicates are sharp enough to see ``difference``: a pass would mean something."""
    _, half_width = interval(estimates)
    assert np.all(2 * half_width < difference), f"half-width {half_width} hides {difference}"


def assert_at_most(estimates, bound, *, slack=0.0) -> None:
    """The mean of the replicates does not exceed ``bound`` by more than chance."""
    mean, half_width = interval(estimates)
    bound = _as_array(bound)
    assert np.all(mean <= bound + half_width + slack), _message(
        "too high", mean, half_width, bound, slack
    )


def assert_at_least(estimates, bound, *, slack=0.0) -> None:
    """The mean of the replicates does not fall short of ``bound`` by more than chance."""
    assert_at_most(-_as_array(estimates), -_as_array(bound), slack=slack)


def assert_within_errors(value: float, std: float, exact: float, *, slack: float = 0.0) -> None:
    """One estimate agrees with ``exact`` within the standard error that it comes with."""
    tolerance = Z * std + slack
    assert abs(value - exact) <= tolerance, (
        f"{value} is {abs(value - exact):.4g} from {exact}; tolerance {tolerance:.4g}"
    )


def assert_calibrated(estimates, stds, exact, *, optimism: float = 1.25) -> None:
    """The standard errors that come with the estimates are neither too small nor idle.

    Where the errors are right, one replicate in 22 is further off than two of them and one in two
    than .67 of them: how many are is binomial. Counts, unlike squares, ask nothing of the tail,
    which is heavy for the logarithm of a mean of weights: a proposal may miss a mode once in
    thousands. A reported error may be off by a factor ``optimism`` either way: it is itself an
    estimate. What errors are noticed depends on the number of replicates: ``test_statistical.py``
    has a table.
    """
    z = np.abs(_as_array(estimates) - exact) / _as_array(stds)
    n = len(z)
    assert n >= MIN_CALIBRATED, f"{n} replicates could all be close by chance"
    n_far, n_close = int((z > 2 * optimism).sum()), int((z < _MEDIAN / optimism).sum())
    most_far, most_close = calibration_limits(n)
    assert n_far <= most_far, f"errors too small: {n_far} of {n} beyond two, at most {most_far}"
    assert n_close <= most_close, f"errors too large: {n_close} of {n} close, at most {most_close}"


def calibration_limits(n: int) -> tuple[int, int]:
    """How many of n replicates may lie far off, and how many close, if their errors are right."""
    far = stats.binom.isf(ALPHA / 2, n, 2 * stats.norm.sf(2))
    return int(far), int(stats.binom.isf(ALPHA / 2, n, 0.5))


def assert_uniform_ranks(ranks, n_bins: int) -> None:
    """The ranks ``(N,)`` or ``(N, q)``, integers 0 … n_bins − 1, are uniform, column by column.

    Pearson's χ² with n_bins − 1 degrees of freedom. With at least 50 ranks a bin its tail at ALPHA
    is less than twice what χ² says (importance sampling of the multinomial: 1.5 times at 50).
    """
    ranks = _as_array(ranks)
    ranks = ranks.reshape(len(ranks), -1)
    expected = len(ranks) / n_bins
    assert expected >= MIN_RANKS_PER_BIN, f"{expected} ranks a bin are too few for χ²"
    assert np.isin(ranks, np.arange(n_bins)).all(), f"a rank is not one of 0 … {n_bins - 1}"
    counts = np.stack([(ranks == value).sum(0) for value in range(n_bins)])
    chi2 = ((counts - expected) ** 2 / expected).sum(0)
    critical = stats.chi2.isf(ALPHA / len(chi2), n_bins - 1)
    assert np.all(chi2 <= critical), (
        f"not uniform: χ² {chi2}, critical {critical:.1f}; counts\n{counts}"
    )
