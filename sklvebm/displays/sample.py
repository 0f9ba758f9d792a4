"""``SampleDisplay``: what the model draws beside what it was shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_scalar, validate_data

from ._plotting import (
    DATA,
    MODEL,
    checked_estimator,
    checked_names,
    grid_of_axes,
    pyplot,
)

_KINDS = ("auto", "pairs", "images")
_N_BINS = 20
_MAX_FEATURES = 4
_N_ROWS, _N_IMAGES = 1000, 20
# Tables of so many columns are rarer than images of so few pixels.
_MIN_PIXELS = 64


class SampleDisplay:
    """Samples of the model against data rows: a pair plot, or a grid of images.

    Parameters
    ----------
    data : ndarray of shape (n_rows, n_shown)
        Rows in the user's units: the features of a pair plot, or all pixels of an image.
    samples : ndarray of shape (n_samples, n_shown)
        The same of the model's draws.
    kind : {"pairs", "images"}
    image_shape : tuple of two ints, default=None
        Height and width in pixels. Needed for images.
    feature_names : sequence of str of length n_shown, default=None
        Needed for pairs.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes
        ``(n_shown, n_shown)`` for pairs, of which those above the diagonal are empty; ``(2,)`` for
        images, data and samples.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklvebm import LVEBMEstimator
    >>> from sklvebm.displays import SampleDisplay
    >>> X = load_iris().data
    >>> model = LVEBMEstimator(2, energy="linear", random_state=0).fit(X)
    >>> display = SampleDisplay.from_estimator(model, X, features=(0, 2), random_state=0)
    >>> display.samples.shape, display.axes_.shape
    ((150, 2), (2, 2))
    """

    def __init__(self, *, data, samples, kind, image_shape=None, feature_names=None) -> None:
        self.data = np.asarray(data)
        self.samples = np.asarray(samples)
        self.kind = kind
        self.image_shape = image_shape
        self.feature_names = feature_names

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        *,
        n_samples=None,
        kind="auto",
        image_shape=None,
        features=None,
        feature_names=None,
        random_state=None,
        axes=None,
        **kwargs,
    ):
        """Draw from the model and show it beside rows of ``X``.

        Parameters
        ----------
        estimator : LVEBMEstimator
            Fitted.
        X : array-like of shape (n_rows, n_features)
            At most ``n_samples`` of its rows are shown, picked at random.
        n_samples : int, default=None
            None takes as many as there are rows, at most 1000 for pairs and 20 for images.
        kind : {"auto", "pairs", "images"}, default="auto"
            "auto" is images where ``image_shape`` is given, or where the number of features is a
            square of 64 or more and no ``features`` are asked for; else pairs.
        image_shape : tuple of two ints, default=None
            Height and width; None takes a square.
        features : sequence of int or str, default=None
            Features of a pair plot, by position or name. None takes the first four.
        feature_names : sequence of str of length n_features, default=None
            None takes those of the estimator.
        random_state : int, RandomState instance or None, default=None
            Of the picked rows and of ``sample``.
        axes : array-like of matplotlib Axes, default=None
        **kwargs : dict
            To ``Axes.scatter`` for pairs, ``Axes.imshow`` for images.

        Returns
        -------
        display : SampleDisplay

        Raises
        ------
        ValueError
            If ``kind``, ``features`` or ``feature_names`` are invalid, or ``image_shape`` does not
            have as many pixels as there are features.
        """
        pyplot()
        names = checked_names(checked_estimator(estimator), feature_names)
        X = validate_data(estimator, X, ensure_all_finite="allow-nan", reset=False)
        kind = _checked_kind(kind, X.shape[1], image_shape, features)
        if kind == "images":
            image_shape = _checked_shape(image_shape, X.shape[1], features)
            shown = list(range(X.shape[1]))
        else:
            shown = _checked_features(features, names)
        n = min(len(X), _N_IMAGES if kind == "images" else _N_ROWS)
        n = n if n_samples is None else check_scalar(n_samples, "n_samples", Integral, min_val=1)
        display = cls(
            data=_pick(X, n, random_state)[:, shown],
            samples=estimator.sample(n, random_state=random_state)[:, shown],
            kind=kind,
            image_shape=image_shape if kind == "images" else None,
            feature_names=[names[i] for i in shown],
        )
        return display.plot(axes, **kwargs)

    def plot(self, axes=None, **kwargs):
        """Draw data and samples.

        Parameters
        ----------
        axes : array-like of matplotlib Axes, default=None
            As many as ``axes_`` has; None makes a new figure.
        **kwargs : dict
            To ``Axes.scatter`` for pairs, ``Axes.imshow`` for images. Images share one grey scale,
            from the least to the greatest value of the data.

        Returns
        -------
        self : SampleDisplay

        Raises
        ------
        ValueError
            If the number of ``axes`` is not that of the panels.
        """
        if self.kind == "images":
            self._plot_images(axes, kwargs)
        else:
            self._plot_pairs(axes, kwargs)
        return self

    def _plot_images(self, axes: Any, kwargs: dict) -> None:
        assert self.image_shape is not None
        height, width = self.image_shape
        columns = min(10, max(len(self.data), len(self.samples)))
        self.figure_, grid = grid_of_axes(axes, (2, 1), figsize=(6.4, 3.6))
        self.axes_ = grid[:, 0]
        ends = {"vmin": np.nanmin(self.data), "vmax": np.nanmax(self.data)}
        style = {"cmap": "gray_r", **ends, **kwargs}
        for ax, rows, label in zip(
            self.axes_, (self.data, self.samples), ("data", "samples"), strict=True
        ):
            ax.imshow(_mosaic(rows.reshape(-1, height, width), columns), **style)
            ax.set_ylabel(label)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)

    def _plot_pairs(self, axes: Any, kwargs: dict) -> None:
        n = self.data.shape[1]
        self.figure_, self.axes_ = grid_of_axes(axes, (n, n), figsize=(1.8 * n + 1, 1.8 * n + 0.6))
        both = np.concatenate([self.data, self.samples])
        low, high = np.nanmin(both, 0), np.nanmax(both, 0)
        margin = 0.05 * (high - low) + 1e-12 * (np.abs(high) + 1)
        limits = np.stack([low - margin, high + margin], 1)
        for (i, j), ax in np.ndenumerate(self.axes_):
            if i < j:
                ax.axis("off")
            elif i == j:
                self._draw_histograms(ax, i, limits[i])
            else:
                self._draw_scatter(ax, i, j, limits, kwargs)
        self._label_pairs()

    def _draw_histograms(self, ax: Any, i: int, limits: NDArray) -> None:
        bins = np.linspace(limits[0], limits[1], _N_BINS + 1)
        look = {"bins": bins, "density": True}
        ax.hist(self.data[:, i], color=DATA, alpha=0.4, label="data", **look)
        ax.hist(self.samples[:, i], color=MODEL, histtype="step", lw=1.5, label="samples", **look)
        ax.set(xlim=limits, yticks=[])

    def _draw_scatter(self, ax: Any, i: int, j: int, limits: NDArray, kwargs: dict) -> None:
        for rows, look in (
            (self.data, {"color": DATA, "marker": "o", "s": 10, "linewidths": 0}),
            (self.samples, {"color": MODEL, "marker": "+", "s": 14, "linewidths": 0.8}),
        ):
            ax.scatter(rows[:, j], rows[:, i], **{**look, "alpha": 0.6, **kwargs})
        ax.set(xlim=limits[j], ylim=limits[i])

    def _label_pairs(self) -> None:
        names = self.feature_names or [f"x{i}" for i in range(len(self.axes_))]
        for (i, j), ax in np.ndenumerate(self.axes_):
            ax.tick_params(labelbottom=i == len(names) - 1, labelleft=j == 0 and i > 0)
        for j, name in enumerate(names):
            self.axes_[-1, j].set_xlabel(name)
            self.axes_[j, 0].set_ylabel(name if j else "density")
        handles, labels = self.axes_[0, 0].get_legend_handles_labels()
        self.axes_[0, -1].legend(handles, labels, loc="upper right", frameon=False)


def _mosaic(images: NDArray, n_columns: int) -> NDArray:
    """Images ``(n, h, w)`` in rows of ``n_columns``, a pixel of nothing (NaN) between them."""
    n, height, width = images.shape
    n_rows = -(-n // n_columns)
    padded = np.full((n_rows * n_columns, height + 1, width + 1), np.nan)
    padded[:n, :-1, :-1] = images
    grid = padded.reshape(n_rows, n_columns, height + 1, width + 1).swapaxes(1, 2)
    return grid.reshape(n_rows * (height + 1), -1)[:-1, :-1]


def _pick(X: NDArray, n: int, random_state: Any) -> NDArray:
    """At most ``n`` rows of ``X``, at random."""
    if n >= len(X):
        return X
    from .._arrays import draw_seed

    rng = np.random.default_rng(draw_seed(random_state))
    return X[rng.choice(len(X), n, replace=False)]


def _checked_kind(kind: str, n_features: int, image_shape: Any, features: Any) -> str:
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {_KINDS}, got {kind!r}.")
    if kind != "auto":
        return kind
    square = n_features >= _MIN_PIXELS and math.isqrt(n_features) ** 2 == n_features
    return "images" if image_shape is not None or (square and features is None) else "pairs"


def _checked_shape(image_shape: Any, n_features: int, features: Any) -> tuple[int, int]:
    if features is not None:
        raise ValueError("features belong to kind='pairs'; images show all of them.")
    side = math.isqrt(n_features)
    shape = (side, side) if image_shape is None else tuple(image_shape)
    if len(shape) != 2 or min(shape) < 1 or math.prod(shape) != n_features:
        raise ValueError(
            f"image_shape must be (height, width) with {n_features} pixels, one per feature, got "
            f"{image_shape!r}."
        )
    return int(shape[0]), int(shape[1])


def _checked_features(features: Sequence[int | str] | None, names: list[str]) -> list[int]:
    if features is None:
        return list(range(min(len(names), _MAX_FEATURES)))
    known = {name: i for i, name in enumerate(names)} | {i: i for i in range(len(names))}
    unknown = [feature for feature in features if feature not in known]
    if unknown or not len(features):
        raise ValueError(
            f"features must be positions below {len(names)} or names of features, got {features!r}."
        )
    return [known[feature] for feature in features]
