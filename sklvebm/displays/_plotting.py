"""What the displays share: matplotlib on demand, colours, and the checks of what they are given."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from ..estimator import LVEBMEstimator

# M. Okabe and K. Ito (2008), "Color Universal Design". Their yellow is too light on white.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# Ten, which has no factor in common with seven: seventy pairs of colour and marker.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DATA, MODEL = OKABE_ITO[0], OKABE_ITO[1]


def pyplot() -> Any:
    """``matplotlib.pyplot``, imported when first needed.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "displays draw with matplotlib, which is not installed: pip install matplotlib"
        ) from error
    return plt


def single_axes(ax: Any, **figure_kw) -> tuple[Any, Any]:
    """The figure and axes to draw on: those of ``ax``, or new ones."""
    if ax is None:
        return pyplot().subplots(layout="constrained", **figure_kw)
    return ax.figure, ax


def grid_of_axes(axes: Any, shape: tuple[int, int], **figure_kw) -> tuple[Any, NDArray]:
    """A figure and its axes of ``shape``: the given ones, or new ones.

    Raises
    ------
    ValueError
        If ``axes`` are not as many as are needed.
    """
    if axes is None:
        return pyplot().subplots(*shape, squeeze=False, layout="constrained", **figure_kw)
    axes = np.array(axes, dtype=object)
    if axes.size != np.prod(shape):
        raise ValueError(f"axes must be {shape[0]} by {shape[1]} here, got {axes.size} of them.")
    return axes.flat[0].figure, axes.reshape(shape)


def checked_estimator(estimator: Any) -> LVEBMEstimator:
    """``estimator`` itself, if it is a fitted ``LVEBMEstimator``.

    Raises
    ------
    TypeError
        If it is something else.
    NotFittedError
        If it is not fitted.
    """
    if not isinstance(estimator, LVEBMEstimator):
        raise TypeError(
            f"estimator must be an LVEBMEstimator, got {type(estimator).__name__}. From a pipeline "
            "take its last step, and the rows as the steps before leave them."
        )
    check_is_fitted(estimator)
    return estimator


def checked_names(estimator: LVEBMEstimator, names: Sequence[str] | None) -> list[str]:
    """A name a feature: those given, those the estimator saw, or x0, x1, ….

    Raises
    ------
    ValueError
        If there are not as many names as features.
    """
    n = estimator.n_features_in_
    if names is None:
        names = getattr(estimator, "feature_names_in_", [f"x{i}" for i in range(n)])
    if len(names) != n:
        raise ValueError(f"feature_names has {len(names)} entries, but there are {n} features.")
    return [str(name) for name in names]


@contextmanager
def nameless_rows() -> Iterator[None]:
    """Rows that the model drew carry no feature names, which is not worth a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        yield
