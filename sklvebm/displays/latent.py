"""``LatentDisplay``: rows as points in two of the latents."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import column_or_1d

from ._plotting import DATA, MARKERS, OKABE_ITO, checked_estimator, pyplot, single_axes

# More distinct numbers than this are a quantity, not classes.
_MAX_CLASSES = 20


class LatentDisplay:
    """Map of two latents: the posterior means E[z | x] of rows, coloured by a target.

    Parameters
    ----------
    latents : ndarray of shape (n_samples, 2)
        As ``transform`` gives them.
    components : tuple of two ints, default=(0, 1)
        Which latents these are.
    y : ndarray of shape (n_samples,), default=None
        Classes, each with a colour and a marker of its own, or a quantity on a colour scale.
        Numbers are a quantity where they take more than 20 distinct values.

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    legend_ : matplotlib Legend or None
    colorbar_ : matplotlib Colorbar or None

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklvebm import LVEBMEstimator
    >>> from sklvebm.displays import LatentDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LVEBMEstimator(2, energy="linear", random_state=0).fit(X)
    >>> display = LatentDisplay.from_estimator(model, X, load_iris().target_names[y])
    >>> [text.get_text() for text in display.legend_.get_texts()]
    ['setosa', 'versicolor', 'virginica']
    """

    def __init__(self, *, latents, components=(0, 1), y=None) -> None:
        self.latents = np.asarray(latents)
        self.components = tuple(components)
        self.y = None if y is None else np.asarray(y)

    @classmethod
    def from_estimator(cls, estimator, X, y=None, *, components=(0, 1), ax=None, **kwargs):
        """Transform rows and draw them.

        Parameters
        ----------
        estimator : LVEBMEstimator
            Fitted.
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), default=None
            Classes or a quantity.
        components : tuple of two ints, default=(0, 1)
            The latents on the horizontal and the vertical axis, counted from zero.
        ax : matplotlib Axes, default=None
        **kwargs : dict
            To ``Axes.scatter``.

        Returns
        -------
        display : LatentDisplay

        Raises
        ------
        ValueError
            If ``components`` are not two different latents of the estimator, or ``y`` does not
            have a value per row.
        """
        pyplot()
        components = _checked_components(components, checked_estimator(estimator).n_components_)
        if y is not None:
            y = column_or_1d(y)
            check_consistent_length(X, y)
        latents = estimator.transform(X)[:, list(components)]
        return cls(latents=latents, components=components, y=y).plot(ax, **kwargs)

    def plot(self, ax=None, **kwargs):
        """Draw the map.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.
        **kwargs : dict
            To ``Axes.scatter``.

        Returns
        -------
        self : LatentDisplay
        """
        self.figure_, self.ax_ = single_axes(ax)
        self.legend_ = self.colorbar_ = None
        style = {"s": 18, "alpha": 0.8, "linewidths": 0, **kwargs}
        if self.y is None:
            self.ax_.scatter(*self.latents.T, **{"color": DATA, **style})
        elif self.is_discrete:
            self._plot_classes(style)
        else:
            points = self.ax_.scatter(*self.latents.T, c=self.y, **{"cmap": "viridis", **style})
            self.colorbar_ = self.figure_.colorbar(points, ax=self.ax_, label="y")
            self.colorbar_.solids.set_alpha(1.0)
        self.ax_.set_xlabel(f"latent {self.components[0]}")
        self.ax_.set_ylabel(f"latent {self.components[1]}")
        # Both axes have one unit, and distances in the map mean something.
        self.ax_.set_aspect("equal", adjustable="datalim")
        return self

    @property
    def is_discrete(self) -> bool:
        """Whether ``y`` holds classes: names, or at most 20 distinct numbers."""
        y: Any = self.y
        return y is not None and (y.dtype.kind not in "iuf" or len(np.unique(y)) <= _MAX_CLASSES)

    def _plot_classes(self, style: dict) -> None:
        y: NDArray = np.asarray(self.y)
        for i, name in enumerate(np.unique(y)):
            look = {"color": OKABE_ITO[i % len(OKABE_ITO)], "marker": MARKERS[i % len(MARKERS)]}
            points = self.latents[y == name].T
            self.ax_.scatter(*points, label=str(name), **{**look, **style})
        self.legend_ = self.ax_.legend(
            loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=1.5
        )


def _checked_components(components, n_components: int) -> tuple[int, int]:
    pair = tuple(components)
    valid = all(isinstance(c, int | np.integer) and 0 <= c < n_components for c in pair)
    if not valid or len(set(pair)) != 2 or len(pair) != 2:
        raise ValueError(
            f"components must be two different latents between 0 and {n_components - 1}, got "
            f"{components!r}."
        )
    return int(pair[0]), int(pair[1])
