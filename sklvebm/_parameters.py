"""The checks of the estimator's parameters. Imports no torch."""

from __future__ import annotations

import math
import os
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import check_scalar

_CHOICES = {"inference": ("langevin", "variational", "map"), "dynamics": ("mala", "ula")}
_SMALLEST = {
    "batch_size": 1,
    "n_particles": 1,
    "pool_size": 2,
    "n_iter_no_change": 1,
}
_POSITIVE = ("learning_rate", "validation_fraction")
_NOT_NEGATIVE = ("tol",)
# Beside a mean over rows a prior counts for the less the more rows there are (docs/choices.md). A
# row of which half is seen shows a quarter of the pairs of features, and it is pairs that tell how
# features depend on each other (docs/missing.md).
_DECAY_TIMES_ROWS, _SMALLEST_DECAY, _LARGEST_DECAY = 400.0, 0.03, 3.0
# Small tables are learned, and over-learned, in fewer updates (docs/choices.md).
_UPDATES_A_ROW, _FEWEST_UPDATES, _MOST_UPDATES = 3, 1500, 3000
# Fewer rows miss those that are held out most, and are soonest learned by heart (docs/choices.md).
_FEW_ROWS = 1000
# An unadjusted chain takes short steps, so it takes more of them. Beside a pool the energy changes
# slowly, and half of the adjusted ones follow it as well (docs/choices.md).
_DEFAULT_STEPS = {"mala": 4, "ula": 10}
_DEFAULT_STEPS_BESIDE_POOL = {"mala": 2, "ula": 10}


class Settled(NamedTuple):
    """What "auto" marginals and smoothing are, where the table is not asked."""

    marginals: str
    smoothing: float


def default_components(n_features: int) -> int:
    """Half the features, at least two and at most ten; one where there is one feature."""
    return min(n_features, max(2, min(10, -(-n_features // 2))))


def default_weight_decay(n_samples: float, share_of_pairs: float = 1.0) -> float:
    """400 / n, within .03 and 3, for n rows by the share of pairs of entries that are seen."""
    decay = _DECAY_TIMES_ROWS / max(n_samples * share_of_pairs, 1.0)
    return min(max(decay, _SMALLEST_DECAY), _LARGEST_DECAY)


def default_max_iter(n_samples: float) -> int:
    """Three updates per row, within 1,500 and 3,000."""
    return round(min(max(_UPDATES_A_ROW * n_samples, _FEWEST_UPDATES), _MOST_UPDATES))


def checked_options(
    parameters: dict[str, Any],
    *,
    n_features: int,
    n_samples: float,
    share_of_pairs: float,
    is_decayed: bool,
) -> dict[str, Any]:
    """The parameters of training, each validated and every default resolved.

    But for "auto" smoothing, which remains where there are few enough rows to ask the table.
    ``share_of_pairs`` is that of the pairs of entries of a row that are both seen; ``is_decayed``
    says whether automatic weight decay is any.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong type or out of range.
    """
    options: dict[str, Any] = {
        "early_stopping": _flag("early_stopping", parameters["early_stopping"])
    }
    options["refit"] = _flag("refit", parameters["refit"], auto=n_samples < _FEW_ROWS)
    _flag("warm_start", parameters["warm_start"])
    _flag("whiten", parameters["whiten"])
    _integer("verbose", parameters["verbose"], 0)
    for name, choices in _CHOICES.items():
        options[name] = checked_choice(name, parameters[name], choices)
    for name, low in _SMALLEST.items():
        options[name] = _integer(name, parameters[name], low)
    for name in _POSITIVE + _NOT_NEGATIVE:
        options[name] = _real(name, parameters[name], zero=name in _NOT_NEGATIVE)
    if options["validation_fraction"] >= 1:
        raise ValueError("validation_fraction must be less than 1.")
    k, n_steps, max_iter = (parameters[name] for name in ("n_components", "n_steps", "max_iter"))
    options["max_iter"] = (
        default_max_iter(n_samples) if max_iter == "auto" else _integer("max_iter", max_iter, 1)
    )
    options["step_size"] = _real_or_auto("step_size", parameters["step_size"], "auto")
    decay = default_weight_decay(n_samples, share_of_pairs) if is_decayed else 0.0
    options["weight_decay"] = _real_or_auto(
        "weight_decay", parameters["weight_decay"], decay, zero=True
    )
    options["smoothing"] = _real_or_auto(
        "smoothing", parameters["smoothing"], "auto" if n_samples < _FEW_ROWS else 0.0, zero=True
    )
    options["n_components"] = (
        default_components(n_features) if k is None else _integer("n_components", k, 1)
    )
    for name, defaults in (
        ("n_steps", _DEFAULT_STEPS),
        ("n_steps_beside_pool", _DEFAULT_STEPS_BESIDE_POOL),
    ):
        options[name] = (
            defaults[options["dynamics"]] if n_steps is None else _integer("n_steps", n_steps, 1)
        )
    return options


def checked_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of ``choices``.

    Raises
    ------
    ValueError
        If ``value`` is none of them.
    """
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"{name} must be one of {choices}, got {value!r}.")
    return value


def checked_path(name: str, value: Any) -> Path | None:
    """A path, or None.

    Raises
    ------
    TypeError
        If ``value`` is neither.
    """
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path or None, got {value!r}.")
    return Path(value)


def _real_or_auto(name: str, value: Any, default: Any, zero: bool = False) -> Any:
    if not isinstance(value, str):
        return _real(name, value, zero=zero)
    if value != "auto":
        kind = "number that is not negative" if zero else "positive number"
        raise ValueError(f"{name} must be 'auto' or a {kind}, got {value!r}.")
    return default


def _flag(name: str, value: Any, *, auto: bool | None = None) -> bool:
    if auto is not None and isinstance(value, str) and value == "auto":
        return auto
    if not isinstance(value, bool | np.bool_):
        allowed = "True or False" if auto is None else "'auto', True or False"
        raise TypeError(f"{name} must be {allowed}, got {value!r}.")
    return bool(value)


def _integer(name: str, value: Any, low: int) -> int:
    return int(check_scalar(value, name, Integral, min_val=low))


def _real(name: str, value: Any, zero: bool = False) -> float:
    boundaries = "left" if zero else "neither"
    found = float(check_scalar(value, name, Real, min_val=0, include_boundaries=boundaries))
    if not math.isfinite(found):
        raise ValueError(f"{name} must be a finite number, got {value!r}.")
    return found
