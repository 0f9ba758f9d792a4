"""``LVEBMOutlierDetector``: a density, and the log-density below which a row is an outlier."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils import _safe_indexing, get_tags
from sklearn.utils.validation import (
    _check_sample_weight,
    _num_samples,
    check_is_fitted,
    has_fit_parameter,
)

from ._links import DocumentedMixin
from .estimator import LVEBMEstimator

if TYPE_CHECKING:
    from numpy.typing import NDArray

# "auto": of new rows like the training rows, at most one in this many is called an outlier.
_ONE_IN = 20
# A fifth of the rows shows where that share lies, and never fewer than the 19 that can show it:
# a new row is the lowest of twenty in one case of twenty. In small tables, half.
_HELD_OUT, _ENOUGH, _LARGEST_HELD_OUT = 0.2, 19, 0.5


class LVEBMOutlierDetector(DocumentedMixin, OutlierMixin, BaseEstimator):
    r"""Outliers as rows of low log-density.

    A density p is fitted to the rows, and a row is an outlier where log p(x) < ``offset_``: outside
    a highest-density region of p, the smallest that holds its share of the mass [1]_. By default
    the threshold comes from rows held out of the fit, not from what p says of itself.

    Parameters
    ----------
    density : estimator or None, default=None
        What is fitted: any estimator with ``score_samples``, cloned to ``density_``. None stands
        for ``LVEBMEstimator()``. Its parameters nest: ``set_params(density__n_components=3)`` also
        works where ``density`` is None, and replaces None by an :class:`LVEBMEstimator`.
    contamination : "auto" or float, default="auto"
        Where ``offset_`` lies.

        - "auto": so that at most 5 % of new rows from the distribution of the training rows are
          called outliers on average, however well the density fits (with fewer than 38 rows,
          more; see Notes). A fifth of the rows (19 at least, half of them at most) is held out,
          the density is fitted to the others, and the offset is a low score of the rows held out.
          For another rate, fit and then set ``offset_`` to that quantile of the scores of rows that
          were not fitted to.
        - a float in (0, 0.5]: the share of the training rows that are outliers. The density is
          fitted to all rows, and ``offset_`` is that percentile of their scores, as in
          scikit-learn. New rows fall below it more often than the rows that p was fitted to.
    random_state : int, RandomState instance or None, default=None
        Handed to the density, and to its parts, where these have a ``random_state`` which is None.

    Attributes
    ----------
    density_ : estimator
        The fitted density.
    offset_ : float
        The lowest log-density of an inlier, in nats and in the units of the ``X`` given.
    n_features_in_ : int
        That of ``density_``.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        That of ``density_``, where ``X`` had names.

    Notes
    -----
    Under "auto" the offset is the k-th lowest score of the m rows held out, k = ⌊(m + 1)/20⌋. A new
    row from the same distribution falls below it with probability k/(m + 1), at most 5 %, exactly
    and for any density [2]_; on average over tables, for one table it varies by about √k/(m + 1).
    With fewer than 38 rows it is the lowest of fewer than 19, and the probability 1/(m + 1). Many
    outliers among the training rows lower the offset: state their share in
    ``contamination``.

    Which rows are held out follows from a hash of their content, so that neither order nor
    ``random_state`` changes it and equal rows stay together. Weights count as repetitions.

    A density that takes missing values scores a row by the features present. Such scores are not in
    the units of ``offset_``, and tell outliers among rows that miss the same features only.

    References
    ----------
    .. [1] Hyndman (1996), "Computing and graphing highest density regions", The American
       Statistician 50(2).
    .. [2] Papadopoulos, Proedrou, Vovk and Gammerman (2002), "Inductive confidence machines for
       regression", ECML.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklvebm import LVEBMEstimator, LVEBMOutlierDetector
    >>> X = load_iris().data
    >>> density = LVEBMEstimator(n_components=2, energy="linear")
    >>> detector = LVEBMOutlierDetector(density, random_state=0).fit(X)
    >>> detector.predict([[5.8, 3.1, 3.8, 1.2], [5.8, 3.1, 3.8, 3.2]])
    array([ 1, -1])
    """

    density_: Any
    offset_: float

    def __init__(self, density=None, *, contamination="auto", random_state=None):
        self.density = density
        self.contamination = contamination
        self.random_state = random_state

    def set_params(self, **params):
        """Set parameters, nested ones (``density__...``) included.

        Parameters
        ----------
        **params : dict

        Returns
        -------
        self : LVEBMOutlierDetector
        """
        if any(name.startswith("density__") for name in params):
            # None has no parameters of its own to set: the estimator that it stands for has.
            density = params.get("density", self.density)
            params = {**params, "density": LVEBMEstimator() if density is None else density}
        return super().set_params(**params)

    # -- fitting ---------------------------------------------------------------------------------

    def fit(self, X, y=None, sample_weight=None):
        """Fit the density, and set the offset.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            What the density takes; under "auto" three rows at least.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            Handed to the density where given. A row of weight w counts as w rows for the offset.

        Returns
        -------
        self : LVEBMOutlierDetector

        Raises
        ------
        TypeError
            If the density is none, or takes no weights and some are given.
        ValueError
            If ``contamination`` or a weight is out of range, there are too few rows, the density
            refuses ``X``, or the offset is not finite. The detector is then, as after an interrupt,
            what it was before the call.
        """
        share = _checked_contamination(self.contamination)
        density = self._unfitted(sample_weight)
        weight = None if sample_weight is None else _checked_weight(sample_weight, X)
        if share is None:
            offset = _fit_and_hold_out(density, X, weight)
        else:
            _fit(density, X, sample_weight)
            scores = _scores(density, X)
            offset = _percentile(scores, share, np.ones(len(scores)) if weight is None else weight)
        if not np.isfinite(offset):
            raise ValueError(
                f"{type(density).__name__} gives rows that should be inliers a density of zero, so "
                "that no offset tells outliers from them."
            )
        self.density_, self.offset_ = density, offset
        return self

    def _unfitted(self, sample_weight: Any) -> Any:
        """A clone of the density, seeded where it has no seed of its own."""
        density = LVEBMEstimator() if self.density is None else clone(self.density)
        name = type(density).__name__
        if not hasattr(density, "score_samples"):
            raise TypeError(f"density must have score_samples, which {name} has not.")
        if sample_weight is not None and not has_fit_parameter(density, "sample_weight"):
            raise TypeError(f"sample_weight is given, but {name}.fit takes none.")
        if self.random_state is not None:
            seeds = {
                name: self.random_state
                for name, value in density.get_params().items()
                if value is None and name.rpartition("__")[2] == "random_state"
            }
            density.set_params(**seeds)
        return density

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        # What may be given is for the density to say: missing values, sparse matrices.
        density = LVEBMEstimator() if self.density is None else self.density
        tags.input_tags = get_tags(density).input_tags
        return tags

    @property
    def n_features_in_(self) -> int:
        """Number of features that the density was fitted to."""
        return self.density_.n_features_in_

    @property
    def feature_names_in_(self) -> NDArray:
        """Their names, where it was fitted to a table with names."""
        return self.density_.feature_names_in_

    # -- answers ---------------------------------------------------------------------------------

    def score_samples(self, X):
        """Log-density of each row: the higher, the more normal.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        log_prob : ndarray of shape (n_samples,)
            In nats and the units of ``X``, float64.
        """
        check_is_fitted(self)
        return np.asarray(self.density_.score_samples(X), dtype=np.float64)

    def decision_function(self, X):
        """Log-density less ``offset_``: below zero for outliers.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        decision : ndarray of shape (n_samples,)
            In nats: log-ratios, whatever the units of ``X``.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X):
        """Inlier or outlier.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        label : ndarray of shape (n_samples,)
            1 for inliers, -1 for outliers.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)


def _checked_contamination(contamination: Any) -> float | None:
    """The share of outliers, None for "auto"."""
    message = f"contamination must be 'auto' or a float in (0, 0.5], got {contamination!r}."
    if isinstance(contamination, str):
        if contamination != "auto":
            raise ValueError(message)
        return None
    if not isinstance(contamination, Real):
        raise TypeError(message)
    if not 0 < float(contamination) <= 0.5:
        raise ValueError(message)
    return float(contamination)


def _checked_weight(sample_weight: Any, X: Any) -> NDArray:
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    if not weight.any():
        raise ValueError("sample_weight must not be zero for all rows.")
    return weight


def _fit(density: Any, X: Any, sample_weight: Any) -> None:
    density.fit(X, **({} if sample_weight is None else {"sample_weight": sample_weight}))


def _scores(density: Any, X: Any) -> NDArray:
    scores = np.asarray(density.score_samples(X), dtype=np.float64)
    if np.isnan(scores).any():
        raise ValueError(f"{type(density).__name__} scores rows as NaN; there is no offset.")
    return scores


def _fit_and_hold_out(density: Any, X: Any, weight: NDArray | None) -> float:
    """Fit to the rows that are not held out; the offset from those that are."""
    # What the rows hold is for the density to judge. Tables with names stay as they are.
    rows = X.tocsr() if issparse(X) else X if hasattr(X, "columns") else np.asarray(X)
    if _num_samples(rows) == 2:
        raise ValueError(
            "Found array with 2 samples while a minimum of 3 is required by LVEBMOutlierDetector, "
            "which holds one of them out."
        )
    mass = np.ones(_num_samples(rows)) if weight is None else weight
    held_out = _held_out(rows, mass)
    _fit(density, _safe_indexing(rows, ~held_out), None if weight is None else mass[~held_out])
    if not mass[held_out].any():
        held_out = np.ones_like(held_out)
    return _low_score(_scores(density, _safe_indexing(rows, held_out)), mass[held_out])


def _held_out(X: Any, mass: NDArray) -> NDArray:
    """Which rows of ``X (n, d)`` are held out, by hash: ``(n,)``, bool; equal rows go together."""
    total = mass.sum()
    wanted = max(_HELD_OUT * total, min(_ENOUGH, _LARGEST_HELD_OUT * total))
    digests = b"".join(blake2b(row, digest_size=8).digest() for row in _contents(X))
    _, place = np.unique(np.frombuffer(digests, dtype=">u8"), return_inverse=True)
    return (np.bincount(place, weights=mass).cumsum() <= wanted)[place]


def _contents(X: Any) -> Iterator[bytes]:
    """What each row holds: the same bytes for equal rows, dense or sparse, of numbers or words."""
    if issparse(X):
        yield from (content for i in range(X.shape[0]) for content in _contents(X[[i]].toarray()))
        return
    values = np.asarray(X)
    try:
        # Minus zero is zero. Complex numbers are for the density to refuse.
        values = (values if values.dtype.kind == "c" else values.astype(np.float64)) + 0.0
    except (TypeError, ValueError):
        yield from (repr(row.tolist()).encode() for row in values)
    else:
        yield from (row.tobytes() for row in values)


def _low_score(scores: NDArray, mass: NDArray) -> float:
    """The k-th lowest of m, k = ⌊(m + 1)/20⌋ and at least one; a row counts ``mass`` times."""
    order = np.argsort(scores)
    reached = mass[order].cumsum()
    k = (reached[-1] + 1) // _ONE_IN
    # Weights may sum to less than one row.
    return float(scores[order][np.argmax(reached >= min(max(k, 1), reached[-1]))])


def _percentile(scores: NDArray, share: float, mass: NDArray) -> float:
    """numpy's default quantile of the scores, each repeated ``mass`` times."""
    order = np.argsort(scores)
    reached = mass[order].cumsum()
    place = share * max(reached[-1] - 1, 0)
    # Weights are no whole numbers always, and may sum to less than a row.
    around = np.minimum([np.floor(place), np.floor(place) + 1], np.nextafter(reached[-1], 0))
    low, high = scores[order][np.searchsorted(reached, around, side="right")]
    return float(low + (place - around[0]) * (high - low) if high > low else low)
