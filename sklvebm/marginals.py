r"""Each feature by itself to a coordinate without spikes, by a monotone map, and back.

.. math:: y_j = C_j^{-1}(F_j(x_j)), \qquad \log p(x) = \log p(y) + \sum_j \log \frac{dy_j}{dx_j}

F_j is the distribution function of a mixture of normals, fitted to feature j by EM, its size chosen
by BIC; C_j is that of the same mixture with every component widened. The map is the optimal
transport from the one to the other: a spike becomes a bump, and what is broad stays as it is, so
that features hang together as before. In use is the piecewise linear one through 257 points of it,
and what is linear beyond the last ones: a bijection whose inverse and slope are exact, so that
densities stay normalised.

References
----------
G. Peyré and M. Cuturi (2019), "Computational optimal transport", Foundations and Trends in Machine
Learning 11(5-6), remark 2.30. G. Schwarz (1978), "Estimating the dimension of a model", Annals of
Statistics 6(2).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from ._threads import in_order

# Variance that a component gains, as a standard deviation, in those of the feature. Wider, features
# lose what they have to do with others; narrower, likelihood.
_WIDENED = 0.25
# Where the points of F_j lie, as normal quantiles: evenly. F_j is all background beyond them.
_LIMIT, _N_KNOTS = 5.0, 257
_KNOTS = np.linspace(-_LIMIT, _LIMIT, _N_KNOTS)
# Sizes of the mixtures that BIC chooses among. More would follow the single rows of a few hundred.
_SIZES = (1, 2, 3, 5, 8)
# Least standard deviation of a component, in those of the feature: a spike of the map makes a
# likelihood that is as high as the spike is narrow.
_MIN_SCALE = 0.01
# A broad normal that counts as one more row, so that no tail is that of a narrow component: this
# wide, or so wide that the farthest value is so many of its standard deviations out.
_BACKGROUND_SCALE, _BACKGROUND_REACH = 1.5, 3.0
_MAX_ITER, _TOL = 200, 1e-5
# Parts that the rows are summarised to, and the entries that EM works on at once in a thread.
_N_PARTS, _AT_ONCE = 256, 2**16
_N_HALVINGS = 60
_LOG_2PI = np.log(2 * np.pi)


class MarginalMaps:
    """The maps of d features.

    Parameters
    ----------
    knots : ndarray of shape (2, d, 257)
        x and y of the points that the map of each feature goes through, increasing.
    """

    def __init__(self, knots: NDArray) -> None:
        self.knots = knots

    @classmethod
    def fitted(cls, X: NDArray, weight: NDArray) -> MarginalMaps:
        """Fit to standardised rows ``X (n, d)``, NaN where missing, that count ``weight (n,)``."""
        parts = _parts(X, weight)
        width = max(1, _AT_ONCE // (parts.mean.shape[1] * max(_SIZES)))

        def knots(start: int) -> NDArray:
            mixtures = _best_mixtures(parts.of(slice(start, start + width)))
            return np.stack([_quantiles(*mixtures), _quantiles(*mixtures.widened())])

        return cls(np.concatenate(list(in_order(knots, range(0, X.shape[1], width))), axis=1))

    def forward(self, X: NDArray) -> NDArray:
        """y of ``X (..., d)``, standardised; NaN stays NaN."""
        return _through(X, *self.knots)

    def inverse(self, Y: NDArray) -> NDArray:
        """X of ``Y (..., d)``: undoes :meth:`forward`."""
        return _through(Y, *self.knots[::-1])

    def log_slope(self, Y: NDArray) -> NDArray:
        """log dy/dx of each entry, at ``Y (..., d)``; NaN where missing."""
        x, y = self.knots
        slopes = np.log(np.diff(y) / np.diff(x))
        found = [s[_piece(column, a)] for column, a, s in zip(_columns(Y), y, slopes, strict=True)]
        return np.where(np.isnan(Y), np.nan, np.stack(found, -1))


def _through(values: NDArray, start: NDArray, end: NDArray) -> NDArray:
    """Where the lines from ``start`` to ``end (d, 257)`` take each entry of ``values (..., d)``."""
    slopes = np.diff(end) / np.diff(start)
    found = []
    for column, a, b, slope in zip(_columns(values), start, end, slopes, strict=True):
        piece = _piece(column, a)
        found.append(b[piece] + (column - a[piece]) * slope[piece])
    return np.stack(found, -1)


def _columns(values: NDArray) -> NDArray:
    """Of each feature what lies in a row, so that it is read at once."""
    return np.ascontiguousarray(np.moveaxis(values, -1, 0))


def _piece(column: NDArray, knots: NDArray) -> NDArray:
    """Which line each entry lies on; those beyond the knots on the last ones."""
    return np.clip(np.searchsorted(knots, column) - 1, 0, len(knots) - 2)


class _Parts(NamedTuple):
    """The rows by their values of each feature, ``(d, m)``; parts of no weight fill up."""

    mean: NDArray
    variance: NDArray
    weight: NDArray

    def of(self, features: NDArray | slice) -> _Parts:
        return _Parts(*(part[features] for part in self))


def _parts(X: NDArray, weight: NDArray) -> _Parts:
    columns = [_parts_of_one(column, weight) for column in X.T]
    m = max(len(parts[0]) for parts in columns)
    return _Parts(
        *(
            np.array([np.pad(part, (0, m - len(part))) for part in kind])
            for kind in zip(*columns, strict=True)
        )
    )


def _parts_of_one(column: NDArray, weight: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Each distinct value; or so many parts of equal weight, and the two extremes."""
    seen = ~np.isnan(column)
    values, place = np.unique(column[seen], return_inverse=True)
    weights = np.bincount(place, weights=weight[seen])
    part = np.arange(len(values))
    if len(values) > _N_PARTS:
        middle = (weights.cumsum() - weights / 2) / weights.sum()
        part = (middle * _N_PARTS).astype(int)
        part[[0, -1]] = -1, _N_PARTS
        part = np.unique(part, return_inverse=True)[1]
    mass = np.bincount(part, weights=weights)
    mean = np.bincount(part, weights=weights * values) / mass
    return mean, np.bincount(part, weights=weights * (values - mean[part]) ** 2) / mass, mass


class _Mixtures(NamedTuple):
    """Shares, means and scales of the components, ``(d, K)`` each."""

    share: NDArray
    mean: NDArray
    scale: NDArray

    def of(self, features: NDArray | slice) -> _Mixtures:
        return _Mixtures(*(part[features] for part in self))

    def widened(self) -> _Mixtures:
        """The same with more variance in every component but the background, the first."""
        scale = np.hypot(self.scale, _WIDENED)
        scale[:, 0] = self.scale[:, 0]
        return self._replace(scale=scale)

    def put(self, features: NDArray, others: _Mixtures) -> None:
        """Those of ``features`` become ``others``, of no more components."""
        size = others.share.shape[1]
        for kept, part in zip(self, others, strict=True):
            kept[features, :size] = part


def _best_mixtures(parts: _Parts) -> _Mixtures:
    """For each feature the mixture of least BIC, the background its first component."""
    total = parts.weight.sum(1)
    d = len(total)
    best = _Mixtures(*(np.full((d, max(_SIZES) + 1), fill) for fill in (0.0, 0.0, 1.0)))
    least = np.full(d, np.inf)
    for size in _SIZES:
        found, log_likelihood = _em(parts, size)
        bic = (3 * size - 1) * np.log(np.maximum(total, 2.0)) - 2 * log_likelihood
        better = bic < least
        least[better] = bic[better]
        best.put(better, found.of(better))
    return best


def _em(parts: _Parts, size: int) -> tuple[_Mixtures, NDArray]:
    """Mixtures of ``size`` normals and the background, and their log-likelihoods ``(d,)``.

    The background comes first; its share and place are fixed.
    """
    weight = parts.weight
    total = weight.sum(1)
    # Of a feature that no row shows only the background is left.
    middle = (weight.cumsum(1) - weight / 2) / np.where(total > 0, total, 1.0)[:, None]
    begun = np.minimum((middle * size).astype(int), size - 1)[..., None] == np.arange(size)
    mixtures = _maximised(parts, begun)
    likelihood = np.full(len(total), -np.inf)
    active = np.arange(len(total))
    for _ in range(_MAX_ITER):
        now = parts.of(active)
        log_joint = _log_joint(now, mixtures.of(active))
        top = log_joint.max(-1, keepdims=True)
        joint = np.exp(log_joint - top)
        density = joint.sum(-1, keepdims=True)
        found = (now.weight * (top + np.log(density))[..., 0]).sum(1)
        rising = found - likelihood[active] > _TOL * total[active]
        likelihood[active] = found
        active = active[rising]
        if not len(active):
            break
        responsible = (joint[..., 1:] / density)[rising]
        mixtures.put(active, _maximised(parts.of(active), responsible))
    return mixtures, likelihood


def _maximised(parts: _Parts, responsible: NDArray) -> _Mixtures:
    """The M-step: ``responsible (d, m, K)`` are of all components but the background."""
    mass = parts.weight[..., None] * responsible
    total = np.maximum(mass.sum(1), np.finfo(float).tiny)
    mean = np.einsum("dmk,dm->dk", mass, parts.mean) / total
    square = (parts.mean[..., None] - mean[:, None]) ** 2 + parts.variance[..., None]
    scale = np.sqrt((mass * square).sum(1) / total)
    rows = 1 + parts.weight.sum(1, keepdims=True)
    share = total / total.sum(1, keepdims=True) * (1 - 1 / rows)
    largest = np.abs(parts.mean).max(1, keepdims=True)
    background = np.maximum(_BACKGROUND_SCALE, largest / _BACKGROUND_REACH)
    return _Mixtures(
        np.hstack([1 / rows, share]),
        np.hstack([np.zeros_like(rows), mean]),
        np.hstack([background, np.maximum(scale, _MIN_SCALE)]),
    )


def _log_joint(parts: _Parts, mixtures: _Mixtures) -> NDArray:
    """Mean over each part of log(share · density) of each component, ``(d, m, K + 1)``."""
    share, mean, scale = (part[:, None] for part in mixtures)
    square = (parts.mean[..., None] - mean) ** 2 + parts.variance[..., None]
    with np.errstate(divide="ignore"):
        constant = np.log(share) - np.log(scale) - 0.5 * _LOG_2PI
    return constant - 0.5 * square / scale**2


def _quantiles(shares: NDArray, means: NDArray, scales: NDArray) -> NDArray:
    """Where the distribution functions are Φ of the knots, ``(d, 257)``, by bisection."""
    # Every component has less than Φ(−limit) of its mass below, and above.
    reach = (_LIMIT + 1) * scales
    used = shares > 0
    low = np.where(used, means - reach, np.inf).min(1)[:, None].repeat(_N_KNOTS, 1)
    high = np.where(used, means + reach, -np.inf).max(1)[:, None].repeat(_N_KNOTS, 1)
    # Of the two tails the smaller one, whose digits are all there.
    side = np.where(_KNOTS > 0, -1.0, 1.0)
    wanted = ndtr(side * _KNOTS)
    for _ in range(_N_HALVINGS):
        middle = (low + high) / 2
        tail = np.zeros_like(middle)
        for share, mean, scale in zip(shares.T, means.T, scales.T, strict=True):
            tail += share[:, None] * ndtr(side * (middle - mean[:, None]) / scale[:, None])
        below = (tail < wanted) == (side > 0)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2
