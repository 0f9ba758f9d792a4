"""``CalibrationDisplay``: are held-out rows as probable as what the model draws?"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_array, check_scalar

from ._band import simultaneous_band, spread_ranks
from ._calibration_axes import draw_probabilities, draw_quantiles
from ._plotting import (
    checked_estimator,
    nameless_rows,
    pyplot,
    single_axes,
)

_KINDS = ("quantile", "probability")


class CalibrationDisplay:
    r"""Score calibration: log p(x) of held-out rows against that of draws from the model.

    Where the rows follow the model, s = log p(x) has one distribution for rows and for draws. With
    :math:`t_{(r)}` the r-th smallest score of m draws, the share of the n rows that
    score no higher,

    .. math:: \hat F(r) = \frac1n \#\{i : s_i ≤ t_{(r)}\}, \qquad
        n \hat F(r) ∼ \mathrm{BetaBinomial}(n, r, m + 1 - r),

    lies near the level r/(m + 1). The band holds the whole curve with probability ``confidence``:
    it is exact for finite n and m and for any continuous distribution of s [3]_. Levels are the
    mass, under the model, outside its highest-density regions [2]_, and a row's is its p-value in
    the predictive check of [1]_.

    Below the diagonal of the probability plot (above that of the quantile plot) rows are more
    probable than draws: the model is too wide. The other way round rows lie where the model thinks
    nothing is: it is too narrow, overfitted, or there are outliers.

    Parameters
    ----------
    log_prob : ndarray of shape (n_samples,)
        Scores of held-out rows, in nats.
    log_prob_samples : ndarray of shape (n_draws,)
        Scores of draws of the model, in nats.
    ranks : ndarray of int of shape (n_levels,)
        Ranks r of the draws at which the band is held.
    lower, upper : ndarray of shape (n_levels,)
        The band: shares of the rows.
    confidence : float
    worst_rows : ndarray of int of shape (n_worst,)
        Rows of the lowest score, the lowest first.

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes

    Notes
    -----
    Leaving the band refutes the model; staying inside does not prove it, since other densities can
    give s the same distribution. An error of log Z moves both alike and cannot be seen:
    ``log_partition_bounds_`` is there for that. Monte Carlo errors of the scores do no harm to the
    band: they are fixed functions of the row, the same for rows and draws.

    The rows must be independent and held out. Draws are taken as independent; those of a tilted
    energy are picked from the joint pool with repetition and moved on, so with many more draws than
    its ``pool_size``, or a pool that mixes slowly, the band is too narrow.

    References
    ----------
    .. [1] G. E. P. Box (1980), "Sampling and Bayes' inference in scientific modelling and
       robustness", JRSS A 143(4).
    .. [2] R. J. Hyndman (1996), "Computing and graphing highest density regions", The American
       Statistician 50(2).
    .. [3] T. Säilynoja, P.-C. Bürkner and A. Vehtari (2022), "Graphical test for discrete
       uniformity and its applications in goodness-of-fit evaluation and multiple sample
       comparison", Statistics and Computing 32.

    Examples
    --------
    >>> import numpy as np
    >>> from sklvebm import LVEBMEstimator
    >>> from sklvebm.displays import CalibrationDisplay
    >>> X = np.random.default_rng(0).normal(size=(1000, 2))
    >>> model = LVEBMEstimator(1, energy="linear", random_state=0).fit(X[:800])
    >>> options = {"confidence": 0.9999, "random_state": 0}
    >>> CalibrationDisplay.from_estimator(model, X[800:], **options).is_within_band
    True
    >>> CalibrationDisplay.from_estimator(model, 2 * X[800:], **options).is_within_band
    False
    """

    def __init__(
        self, *, log_prob, log_prob_samples, ranks, lower, upper, confidence, worst_rows
    ) -> None:
        self.log_prob = np.asarray(log_prob)
        self.log_prob_samples = np.asarray(log_prob_samples)
        self.ranks = np.asarray(ranks)
        self.lower, self.upper = np.asarray(lower), np.asarray(upper)
        self.confidence = confidence
        self.worst_rows = np.asarray(worst_rows)

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        *,
        n_samples=1000,
        confidence=0.95,
        n_worst=3,
        random_state=None,
        kind="quantile",
        ax=None,
        **kwargs,
    ):
        """Score rows and as many draws as asked for, and draw their distributions.

        Parameters
        ----------
        estimator : LVEBMEstimator
            Fitted.
        X : array-like of shape (n_rows, n_features)
            Held-out rows.
        n_samples : int, default=1000
            Number of draws of the model.
        confidence : float, default=0.95
            Probability with which the whole curve lies in the band where the model is right.
        n_worst : int, default=3
            Rows of the lowest log-density to mark.
        random_state : int, RandomState instance or None, default=None
            Of the draws.
        kind : {"quantile", "probability"}, default="quantile"
        ax : matplotlib Axes, default=None
        **kwargs : dict
            To ``Axes.plot``, for the rows.

        Returns
        -------
        display : CalibrationDisplay

        Raises
        ------
        ValueError
            If a parameter is out of range, or ``X`` has missing entries: the density of what is
            seen of a row has no rank among those of whole draws.
        """
        pyplot()
        _check_options(confidence, n_worst, kind)
        check_array(X, dtype=None)
        draws = checked_estimator(estimator).sample(n_samples, random_state=random_state)
        log_prob = estimator.score_samples(X)
        with nameless_rows():
            log_prob_samples = estimator.score_samples(draws)
        return cls.from_log_prob(
            log_prob,
            log_prob_samples,
            confidence=confidence,
            n_worst=n_worst,
            kind=kind,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_log_prob(
        cls,
        log_prob,
        log_prob_samples,
        *,
        confidence=0.95,
        n_worst=3,
        kind="quantile",
        ax=None,
        **kwargs,
    ):
        """The same from scores: of any density that can be sampled.

        Parameters
        ----------
        log_prob : array-like of shape (n_samples,)
            Of held-out rows, in nats.
        log_prob_samples : array-like of shape (n_draws,)
            Of the model's own draws, in nats.
        confidence, n_worst, kind, ax, **kwargs
            As in :meth:`from_estimator`.

        Returns
        -------
        display : CalibrationDisplay

        Raises
        ------
        ValueError
            If a parameter is out of range, or a score is not finite.
        """
        pyplot()
        _check_options(confidence, n_worst, kind)
        log_prob = check_array(log_prob, ensure_2d=False, input_name="log_prob")
        draws = check_array(log_prob_samples, ensure_2d=False, input_name="log_prob_samples")
        n, m = len(log_prob), len(draws)
        ranks = spread_ranks(m)
        lower, upper = simultaneous_band(n, m, ranks, confidence)
        display = cls(
            log_prob=log_prob,
            log_prob_samples=draws,
            ranks=ranks,
            lower=lower / n,
            upper=upper / n,
            confidence=confidence,
            worst_rows=np.argsort(log_prob, kind="stable")[:n_worst],
        )
        return display.plot(ax, kind=kind, **kwargs)

    @property
    def levels(self) -> NDArray:
        """Share of the rows expected at each rank, r/(m + 1), ``(n_levels,)``."""
        return self.ranks / (len(self.log_prob_samples) + 1)

    @property
    def observed(self) -> NDArray:
        """Share of the rows that score no higher than the draw of each rank, ``(n_levels,)``."""
        thresholds = np.sort(self.log_prob_samples)[self.ranks - 1]
        counts = np.searchsorted(np.sort(self.log_prob), thresholds, side="right")
        return counts / len(self.log_prob)

    @property
    def is_within_band(self) -> bool:
        """Whether the whole curve lies in the band."""
        return bool(np.all((self.lower <= self.observed) & (self.observed <= self.upper)))

    @property
    def p_values(self) -> NDArray:
        """(1 + number of draws that score no higher)/(m + 1) of each row, ``(n_samples,)``."""
        counts = np.searchsorted(np.sort(self.log_prob_samples), self.log_prob, side="right")
        return (1 + counts) / (len(self.log_prob_samples) + 1)

    def plot(self, ax=None, *, kind="quantile", **kwargs):
        """Draw the curve and its band.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.
        kind : {"quantile", "probability"}, default="quantile"
            "quantile": each row's score against the draws' quantile of its rank, in nats.
            "probability": shares of the rows against shares of the draws. The worst rows are
            ringed, and the legend lists them.
        **kwargs : dict
            To ``Axes.plot``, for the rows.

        Returns
        -------
        self : CalibrationDisplay

        Raises
        ------
        ValueError
            If ``kind`` is neither.
        """
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {_KINDS}, got {kind!r}.")
        self.figure_, self.ax_ = single_axes(ax, figsize=(5.2, 4.8))
        draw = draw_quantiles if kind == "quantile" else draw_probabilities
        draw(self.ax_, self, kwargs)
        self.ax_.legend(loc="upper left", frameon=False)
        return self


def _check_options(confidence: Any, n_worst: Any, kind: Any) -> None:
    """Before anything is scored: that can take minutes."""
    check_scalar(n_worst, "n_worst", Integral, min_val=0)
    check_scalar(confidence, "confidence", Real, min_val=0, max_val=1, include_boundaries="neither")
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {_KINDS}, got {kind!r}.")
