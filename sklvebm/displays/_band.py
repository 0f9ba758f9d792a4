"""An exact simultaneous band for one empirical distribution function seen from another's ranks.

n rows and m draws are independent and of one continuous distribution. That of K_r, the number of
rows up to the r-th smallest draw, then depends on n and m alone: every order of the n + m values is
as likely as any other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln
from scipy.stats import nbinom

_N_HALVINGS = 14


def spread_ranks(n_draws: int) -> NDArray:
    """About a hundred ranks between 1 and ``n_draws``: even, but dense at both ends."""
    ends = np.geomspace(1, n_draws, 20)
    every = np.concatenate([np.linspace(1, n_draws, 80), ends, n_draws + 1 - ends])
    return np.unique(every.round().astype(int))


def simultaneous_band(
    n_rows: int, n_draws: int, ranks: NDArray, confidence: float
) -> tuple[NDArray, NDArray]:
    r"""Bounds that all K_r keep at once with a probability of at least ``confidence``.

    .. math:: K_r ∼ \mathrm{BetaBinomial}(n, r, m + 1 - r)

    Each bound cuts off the same tail probability of its K_r, the largest for which the band as a
    whole keeps its confidence (Säilynoja, Bürkner and Vehtari 2022, who find it by simulation).

    Parameters
    ----------
    n_rows, n_draws : int
        n and m.
    ranks : ndarray of int of shape (J,)
        Increasing, between 1 and m.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    lower, upper : ndarray of int of shape (J,)
        Numbers of rows, inclusive.

    References
    ----------
    T. Säilynoja, P.-C. Bürkner and A. Vehtari (2022), "Graphical test for discrete uniformity and
    its applications in goodness-of-fit evaluation and multiple sample comparison", Statistics and
    Computing 32.
    """
    below, above = _tails(n_rows, n_draws, ranks)
    steps, pmf = _steps(n_rows, n_draws, ranks)

    def band(tail: float) -> tuple[NDArray, NDArray]:
        return (below <= tail).sum(1), (above > tail).sum(1)

    # Bonferroni's tail keeps the confidence; the tail of a single bound is the most there can be.
    widest, narrowest = (1 - confidence) / (2 * len(ranks)), (1 - confidence) / 2
    for _ in range(_N_HALVINGS):
        tail = np.sqrt(widest * narrowest)
        if _coverage(*band(tail), n_rows, steps, pmf) >= confidence:
            widest = tail
        else:
            narrowest = tail
    return band(widest)


def coverage(lower: NDArray, upper: NDArray, n_rows: int, n_draws: int, ranks: NDArray) -> float:
    """Probability that ``lower[j] <= K_r <= upper[j]`` at every r = ``ranks[j]``."""
    return _coverage(lower, upper, n_rows, *_steps(n_rows, n_draws, ranks))


def quantile_band(
    n_rows: int, thresholds: NDArray, lower: NDArray, upper: NDArray
) -> tuple[NDArray, NDArray]:
    """The same band, turned: bounds of the i-th smallest row, ``(n,)`` each, possibly infinite.

    Fewer than i rows up to a draw: the i-th lies above it. At least i: it does not. ``thresholds
    (J,)`` are the draws of the ranks, increasing; ``lower`` and ``upper (J,)`` shares of the rows.
    """
    ends = np.concatenate([[-np.inf], thresholds, [np.inf]])
    # Halfway between the counts i − 1 and i, so that rounding cannot decide.
    below_i = (np.arange(n_rows) + 0.5) / n_rows
    return ends[np.searchsorted(upper, below_i)], ends[np.searchsorted(lower, below_i) + 1]


def _tails(n_rows: int, n_draws: int, ranks: NDArray) -> tuple[NDArray, NDArray]:
    """P(K_r ≤ k) and P(K_r > k) for k = 0 … n, ``(J, n + 1)`` each."""
    k, r = np.arange(n_rows + 1), np.asarray(ranks)[:, None]
    choose = gammaln(n_rows + 1) - gammaln(k + 1) - gammaln(n_rows - k + 1)
    log_pmf = choose + betaln(k + r, n_rows - k + n_draws + 1 - r) - betaln(r, n_draws + 1 - r)
    pmf = np.exp(log_pmf)
    # Sums from either end, so that both small tails are precise.
    at_least = pmf[:, ::-1].cumsum(1)[:, ::-1]
    return pmf.cumsum(1), np.pad(at_least[:, 1:], ((0, 0), (0, 1)))


def _steps(n_rows: int, n_draws: int, ranks: NDArray) -> tuple[NDArray, dict[int, NDArray]]:
    """Draws between successive ranks, and the distribution of the rows that fall between them.

    Let each value be a draw with probability (m + 1)/(n + m + 1), else a row: the rows between
    ranks are then independent and negative binomial, and K is their sum, given that all make n.
    """
    steps = np.diff(np.concatenate([[0], ranks, [n_draws + 1]]))
    chance = (n_draws + 1) / (n_rows + n_draws + 1)
    k = np.arange(n_rows + 1)
    pmf = {int(step): nbinom.pmf(k, step, chance) for step in {*steps, n_draws + 1}}
    return steps, pmf


def _coverage(
    lower: NDArray, upper: NDArray, n_rows: int, steps: NDArray, pmf: dict[int, NDArray]
) -> float:
    inside = pmf[int(steps[0])][lower[0] : upper[0] + 1]
    for j in range(1, len(lower)):
        first, last = lower[j] - lower[j - 1], upper[j] - lower[j - 1]
        inside = np.convolve(inside, pmf[int(steps[j])][: last + 1])[first : last + 1]
    rest = n_rows - np.arange(lower[-1], upper[-1] + 1)
    total = pmf[int(steps.sum())][n_rows]
    return float(inside @ pmf[int(steps[-1])][rest] / total)
