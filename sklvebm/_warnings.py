"""Warnings that point at the line which called this package, whatever lies between."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable

from sklearn.exceptions import ConvergenceWarning

# Frames of these are never the caller's: scikit-learn's callbacks wrap `fit`.
_INSIDE = ("sklvebm", "sklearn.callback")


def warn_of(messages: Iterable[str]) -> None:
    """A ``ConvergenceWarning`` for each message."""
    level = _level()
    for message in messages:
        warnings.warn(message, ConvergenceWarning, stacklevel=level)


def _level() -> int:
    """The ``stacklevel`` of the first caller that is not inside, seen from :func:`warn_of`."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    return level


def _is_inside(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in _INSIDE)
