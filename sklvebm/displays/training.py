"""``TrainingDisplay``: what training did, evaluation by evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._plotting import MARKERS, OKABE_ITO, checked_estimator, grid_of_axes, pyplot

_LINES = ("-", "--", ":")
_HELD_OUT, _GAP = "held-out log-likelihood\n(nats per row, standardised)", "energy gap\n(nats)"


class TrainingDisplay:
    """Held-out log-likelihood, energy gap and acceptances over the parameter updates.

    The stages of training are shaded in turn and named at the top; a ring marks the evaluation
    whose state each stage kept, the best one; a start keeps its last. With ``refit`` the stages
    come again, and no row is held out then. Panels without a finite value are left out: there is no
    held-out log-likelihood without early stopping, and no energy gap without a tilt.

    Parameters
    ----------
    n_iter : ndarray of shape (n_evaluations,)
        Updates made before each evaluation.
    stages : ndarray of str of shape (n_evaluations,)
        "start", "reference", "mixing", "tilt" or "joint".
    log_likelihood : ndarray of shape (n_evaluations,)
        Held-out log-likelihood in nats per row, of standardised rows as in ``history_``; NaN where
        there is none. ``score`` differs by the units, and takes log Z from more draws.
    energy_gap : ndarray of shape (n_evaluations,)
        Mean energy of the data less that of the joint pool at that update, in nats. It is near
        zero where the two flows agree.
    acceptances : dict of str to ndarray of shape (n_evaluations,)
        Mean acceptance probability of each kind of move.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes of shape (n_panels,)

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklvebm import LVEBMEstimator
    >>> from sklvebm.displays import TrainingDisplay
    >>> model = LVEBMEstimator(2, energy="linear", inference="variational", max_iter=20)
    >>> display = TrainingDisplay.from_estimator(model.fit(load_iris().data))
    >>> display.n_iter[:3]
    array([ 0,  5, 10])
    >>> [ax.get_ylabel() for ax in display.axes_]  # a linear energy has no tilt
    ['held-out log-likelihood\\n(nats per row, standardised)']
    """

    def __init__(self, *, n_iter, stages, log_likelihood, energy_gap, acceptances) -> None:
        self.n_iter = np.asarray(n_iter)
        self.stages = np.asarray(stages, dtype=str)
        self.log_likelihood = np.asarray(log_likelihood, dtype=float)
        self.energy_gap = np.asarray(energy_gap, dtype=float)
        self.acceptances = {name: np.asarray(a, dtype=float) for name, a in acceptances.items()}

    @classmethod
    def from_estimator(cls, estimator, *, axes=None, **kwargs):
        """Read ``history_`` and draw it.

        Parameters
        ----------
        estimator : LVEBMEstimator
            Fitted.
        axes : array-like of matplotlib Axes, default=None
            One a panel; None makes a new figure.
        **kwargs : dict
            To ``Axes.plot``.

        Returns
        -------
        display : TrainingDisplay

        Raises
        ------
        ValueError
            If nothing was trained: a linear energy is fitted in closed form.
        """
        pyplot()
        history = checked_estimator(estimator).history_
        if not history:
            raise ValueError(
                "history_ is empty, so there is no training to show: energy='linear' is fitted in "
                "closed form."
            )
        columns = {
            name: np.array([row.get(name, np.nan) for row in history])
            for name in dict.fromkeys(name for row in history for name in row)
        }
        names = [name for name in columns if name.startswith("acceptance_")]
        held_out = columns.get("log_likelihood", np.full(len(history), np.nan))
        display = cls(
            n_iter=columns["n_iter"],
            stages=columns["stage"],
            log_likelihood=held_out,
            energy_gap=columns["energy_gap"],
            acceptances={name.removeprefix("acceptance_"): columns[name] for name in names},
        )
        return display.plot(axes, **kwargs)

    def plot(self, axes=None, **kwargs):
        """Draw the panels that have finite values, one below the other.

        Parameters
        ----------
        axes : array-like of matplotlib Axes, default=None
            One a panel; None makes a new figure.
        **kwargs : dict
            To ``Axes.plot``.

        Returns
        -------
        self : TrainingDisplay

        Raises
        ------
        ValueError
            If no value is finite, or the number of ``axes`` is not that of the panels.
        """
        panels = self._panels()
        if not panels:
            raise ValueError(
                "the history has no finite value to show: neither a held-out log-likelihood "
                "(early_stopping) nor a tilt was part of this training."
            )
        n = len(panels)
        self.figure_, grid = grid_of_axes(axes, (n, 1), sharex=True, figsize=(6.4, 0.8 + 1.9 * n))
        self.axes_ = grid[:, 0]
        for ax, (label, series) in zip(self.axes_, panels, strict=True):
            self._draw(ax, series, kwargs)
            ax.set_ylabel(label)
            ax.tick_params(labelbottom=ax is self.axes_[-1])
        self._decorate()
        return self

    def _panels(self) -> list[tuple[str, dict[str, NDArray]]]:
        every = [
            (_HELD_OUT, {"": self.log_likelihood}),
            (_GAP, {"": self.energy_gap}),
            ("acceptance", self.acceptances),
        ]
        found = []
        for label, series in every:
            finite = {name: v for name, v in series.items() if np.isfinite(v).any()}
            found += [(label, finite)] if finite else []
        return found

    def _runs(self) -> list[NDArray]:
        """Indices of the evaluations of each stage, in order."""
        changes = np.flatnonzero(self.stages[1:] != self.stages[:-1]) + 1
        return np.split(np.arange(len(self.stages)), changes)

    def _draw(self, ax: Any, series: dict[str, NDArray], kwargs: dict) -> None:
        for i, (name, values) in enumerate(series.items()):
            look = {"color": OKABE_ITO[i], "linestyle": _LINES[i % 3], "marker": MARKERS[i]}
            style = {**look, "markersize": 3, **kwargs}
            label = name
            for run in self._runs():
                rows = run[np.isfinite(values[run])]
                if len(rows):
                    ax.plot(self.n_iter[rows], values[rows], label=label, **style)
                    # One entry in the legend, however many stages.
                    label = "_nolegend_"

    def _decorate(self) -> None:
        """Stages, the kept states, zero and the range of a probability; legends."""
        for ax in self.axes_:
            self._shade(ax)
            outside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
            if ax.get_ylabel() == _HELD_OUT:
                ax.legend(handles=self._mark_kept(ax), **outside)
            elif ax.get_ylabel() == _GAP:
                ax.axhline(0.0, color="0.4", linewidth=0.8, zorder=0)
            else:
                ax.set_ylim(0.0, 1.05)
                ax.legend(**outside)
        top = self.axes_[0]
        self.axes_[-1].set_xlabel("parameter updates")
        for run in self._runs():
            middle = (self.n_iter[run[0]] + self.n_iter[run[-1]]) / 2
            top.text(
                middle, 1.02, self.stages[run[0]], ha="center", transform=top.get_xaxis_transform()
            )

    def _shade(self, ax: Any) -> None:
        for run in self._runs()[1::2]:
            ax.axvspan(self.n_iter[run[0]], self.n_iter[run[-1]], color="0.92", lw=0, zorder=-1)

    def _mark_kept(self, ax: Any) -> list[Any]:
        """Rings around the best evaluation of each stage that keeps it."""
        kept = [
            run[np.nanargmax(self.log_likelihood[run])]
            for run in self._runs()
            if np.isfinite(self.log_likelihood[run]).any() and self.stages[run[0]] != "start"
        ]
        look = {"linestyle": "none", "marker": "o", "markersize": 9, "markerfacecolor": "none"}
        return ax.plot(
            self.n_iter[kept], self.log_likelihood[kept], color="black", label="kept", **look
        )
