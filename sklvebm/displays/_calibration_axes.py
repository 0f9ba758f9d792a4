"""The two drawings of a ``CalibrationDisplay``: in nats, and in shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._band import quantile_band
from ._plotting import DATA, MODEL

if TYPE_CHECKING:
    from .calibration import CalibrationDisplay


def draw_quantiles(ax: Any, display: CalibrationDisplay, kwargs: dict) -> None:
    """The i-th lowest score of the rows against the draws' quantile at (i − ½)/n."""
    rows = np.sort(display.log_prob)
    n, n_worst = len(rows), len(display.worst_rows)
    expected = np.quantile(display.log_prob_samples, (np.arange(n) + 0.5) / n)
    limits = _with_margin(expected, rows)
    thresholds = np.sort(display.log_prob_samples)[display.ranks - 1]
    band = quantile_band(n, thresholds, display.lower, display.upper)
    # The band is open beyond the extreme draws.
    _draw_band(ax, display, expected, *np.clip(band, *limits))
    ax.plot(expected, expected, color="0.4", linewidth=0.8, label="model")
    style = {"color": DATA, "linestyle": "none", "marker": "o", "markersize": 3, "label": "rows"}
    ax.plot(expected, rows, **{**style, **kwargs})
    _mark_worst(ax, display, expected[:n_worst], rows[:n_worst])
    ax.set(ylim=limits, xlabel="log p(x) of draws (nats)", ylabel="log p(x) of rows (nats)")


def draw_probabilities(ax: Any, display: CalibrationDisplay, kwargs: dict) -> None:
    """Share of the rows up to each draw against the share of the draws."""
    ends = [0.0, 1.0]
    levels, lower, upper, observed = (
        np.concatenate([[0.0], curve, [1.0]])
        for curve in (display.levels, display.lower, display.upper, display.observed)
    )
    _draw_band(ax, display, levels, lower, upper)
    ax.plot(ends, ends, color="0.4", linewidth=0.8, label="model")
    ax.plot(levels, observed, **{"color": DATA, "label": "rows", **kwargs})
    shares = (1 + np.arange(len(display.worst_rows))) / len(display.log_prob)
    _mark_worst(ax, display, display.p_values[display.worst_rows], shares)
    ax.set(xlim=ends, ylim=ends, aspect="equal")
    ax.set(xlabel="share of draws of lower log p", ylabel="share of rows of lower log p")


def _draw_band(
    ax: Any, display: CalibrationDisplay, across: NDArray, lower: NDArray, upper: NDArray
) -> None:
    label = f"{100 * display.confidence:g} % band"
    ax.fill_between(across, lower, upper, color="0.85", lw=0, label=label)


def _mark_worst(ax: Any, display: CalibrationDisplay, across: NDArray, up: NDArray) -> None:
    """Rings around the lowest rows, which the legend lists from the lowest on."""
    if len(display.worst_rows):
        names = ", ".join(map(str, display.worst_rows))
        label = f"lowest: row{'s' * (len(display.worst_rows) > 1)} {names}"
        look = {"linestyle": "none", "marker": "o", "markersize": 8, "markerfacecolor": "none"}
        ax.plot(across, up, color=MODEL, label=label, clip_on=False, **look)


def _with_margin(*values: Any) -> tuple[float, float]:
    low, high = min(map(np.min, values)), max(map(np.max, values))
    margin = 0.05 * (high - low) + 1e-9
    return float(low - margin), float(high + margin)
