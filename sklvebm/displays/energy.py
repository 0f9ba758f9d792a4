"""``EnergyDisplay``: the landscape of a density of two features."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_scalar, validate_data

from ._plotting import (
    MODEL,
    checked_estimator,
    checked_names,
    nameless_rows,
    pyplot,
    single_axes,
)

# Nats above the lowest energy: what lies higher holds no mass worth its contours.
_DEPTH = 12
_MARGIN = 0.15
_SHADES = np.linspace(0.0, 0.65, 32)


class EnergyDisplay:
    """Contours of −log p(x) over two features, with the joint pool's particles on it.

    The particles are those that hold log Z and start ``sample``: where they lie thick the energy
    should be low, and every well of the energy should hold some.

    Parameters
    ----------
    grid : tuple of two ndarrays of shape (grid_resolution,)
        Values of the two features, in the user's units.
    energy : ndarray of shape (grid_resolution, grid_resolution)
        −log p(x) in nats, in the user's units, at ``(grid[0][j], grid[1][i])``.
    particles : ndarray of shape (n_particles, 2)
        The x of joint particles, in the user's units.
    X : ndarray of shape (n_samples, 2), default=None
        Rows to draw as well.
    feature_names : sequence of two str, default=("x0", "x1")

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    contours_ : matplotlib QuadContourSet
    colorbar_ : matplotlib Colorbar

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklvebm import LVEBMEstimator
    >>> from sklvebm.displays import EnergyDisplay
    >>> X = load_iris().data[:, :2]
    >>> model = LVEBMEstimator(1, energy="linear", random_state=0).fit(X)
    >>> display = EnergyDisplay.from_estimator(model, X, grid_resolution=20)
    >>> display.energy.shape
    (20, 20)
    """

    def __init__(self, *, grid, energy, particles, X=None, feature_names=("x0", "x1")) -> None:
        self.grid = tuple(np.asarray(values) for values in grid)
        self.energy = np.asarray(energy)
        self.particles = np.asarray(particles)
        self.X = None if X is None else np.asarray(X)
        self.feature_names = tuple(feature_names)

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X=None,
        *,
        grid_resolution=50,
        n_particles=300,
        feature_names=None,
        ax=None,
        **kwargs,
    ):
        """Score a grid and draw it.

        Parameters
        ----------
        estimator : LVEBMEstimator
            Fitted to two features.
        X : array-like of shape (n_samples, 2), default=None
            Rows to draw as well; the grid covers them.
        grid_resolution : int, default=50
            Points along each axis. All are scored, at milliseconds each.
        n_particles : int, default=300
            Largest number of the joint pool's particles to draw; the grid covers the middle 99 in
            100 of all of them along each axis.
        feature_names : sequence of two str, default=None
            None takes those of the estimator.
        ax : matplotlib Axes, default=None
        **kwargs : dict
            To ``Axes.contourf``.

        Returns
        -------
        display : EnergyDisplay

        Raises
        ------
        ValueError
            If the estimator does not have two features.
        """
        pyplot()
        n_features = checked_estimator(estimator).n_features_in_
        if n_features != 2:
            raise ValueError(
                f"a landscape needs an estimator of two features, but this one has {n_features}. "
                "SampleDisplay and CalibrationDisplay work for any number."
            )
        check_scalar(grid_resolution, "grid_resolution", Integral, min_val=2)
        check_scalar(n_particles, "n_particles", Integral, min_val=0)
        names = checked_names(estimator, feature_names)
        if X is not None:
            X = validate_data(estimator, X, ensure_all_finite="allow-nan", reset=False)
        pool = _pool_in_user_units(estimator)
        grid = _grid(pool, X, grid_resolution)
        display = cls(
            grid=grid,
            energy=_energy_on(estimator, grid),
            particles=pool[:n_particles],
            X=X,
            feature_names=names,
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax=None, **kwargs):
        """Draw the landscape.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.
        **kwargs : dict
            To ``Axes.contourf``. By default the levels are the whole nats up to twelve above the
            lowest energy of the grid, and the lowest are the lightest.

        Returns
        -------
        self : EnergyDisplay
        """
        self.figure_, self.ax_ = single_axes(ax)
        levels = np.floor(self.energy.min()) + np.arange(_DEPTH + 1)
        style = {"levels": levels, "extend": "max", "cmap": _light_blues(), **kwargs}
        self.contours_ = self.ax_.contourf(*self.grid, self.energy, **style)
        self.colorbar_ = self.figure_.colorbar(
            self.contours_, ax=self.ax_, label="−log p(x) (nats)"
        )
        self._draw_points("joint particles", self.particles, marker="o", color=MODEL)
        if self.X is not None:
            self._draw_points("data", self.X, marker="+", color="black", linewidths=0.7)
        self.ax_.set(
            xlim=self.grid[0][[0, -1]],
            ylim=self.grid[1][[0, -1]],
            xlabel=self.feature_names[0],
            ylabel=self.feature_names[1],
        )
        return self

    def _draw_points(self, label: str, points: NDArray, **look: Any) -> None:
        self.ax_.scatter(*points.T, s=12, label=label, **look)
        self.ax_.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False)


def _light_blues() -> Any:
    """White to a blue that points still stand out from, in greyscale too."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("light_blues", pyplot().cm.Blues(_SHADES))


def _pool_in_user_units(estimator) -> NDArray:
    """The x of the joint pool, ``(pool_size, 2)``."""
    import torch

    from .._arrays import to_numpy

    model = estimator._model
    with torch.no_grad():
        x, _ = model.energy.reference.split(model.pool)
    return estimator._units.from_model(to_numpy(x).astype(np.float64))


def _grid(pool: NDArray, X: NDArray | None, n: int) -> tuple[NDArray, NDArray]:
    """Values of each feature that cover ``X`` and all of the pool but its extremes."""
    seen = np.quantile(pool, [0.005, 0.995], axis=0)
    if X is not None:
        seen = np.concatenate([seen, X])
    low, high = np.nanmin(seen, 0), np.nanmax(seen, 0)
    margin = _MARGIN * (high - low)
    ends = zip(low - margin, high + margin, strict=True)
    first, second = (np.linspace(*pair, n) for pair in ends)
    return first, second


def _energy_on(estimator, grid: tuple[NDArray, NDArray]) -> NDArray:
    across, up = np.meshgrid(*grid)
    with nameless_rows():
        log_prob = estimator.score_samples(np.column_stack([across.ravel(), up.ravel()]))
    return -log_prob.reshape(across.shape)
