"""The checks of the estimator's parameters. Imports no torch."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from sklearn.utils.validation import check_scalar

_CHOICES = {"inference": ("langevin", "variational", "map"), "dynamics": ("mala", "ula")}
_SMALLEST = {
    "max_iter": 1,
    "batch_size": 1,
    "n_particles": 1,
    "pool_size": 2,
    "n_iter_no_change": 1,
}
_POSITIVE = ("learning_rate", "validation_fraction")
_NOT_NEGATIVE = ("weight_decay", "tol")
# An unadjusted chain takes short steps, so it takes more of them.
_DEFAULT_STEPS = {"mala": 1, "ula": 10}


def default_components(n_features: int) -> int:
    """Half the features, at least two and at most ten; one where there is one feature."""
    return min(n_features, max(2, min(10, -(-n_features // 2))))


def checked_options(parameters: dict[str, Any], n_features: int) -> dict[str, Any]:
    """The parameters of training, each validated and every default resolved.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong type or out of range.
    """
    options: dict[str, Any] = {"early_stopping": bool(parameters["early_stopping"])}
    for name, choices in _CHOICES.items():
        options[name] = parameters[name]
        if options[name] not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {options[name]!r}.")
    for name, low in _SMALLEST.items():
        options[name] = _integer(name, parameters[name], low)
    for name in _POSITIVE + _NOT_NEGATIVE:
        options[name] = _real(name, parameters[name], zero=name in _NOT_NEGATIVE)
    if options["validation_fraction"] >= 1:
        raise ValueError("validation_fraction must be less than 1.")
    step_size, k, n_steps = (parameters[p] for p in ("step_size", "n_components", "n_steps"))
    if isinstance(step_size, str) and step_size != "auto":
        raise ValueError(f"step_size must be 'auto' or a positive number, got {step_size!r}.")
    options["step_size"] = step_size if step_size == "auto" else _real("step_size", step_size)
    options["n_components"] = (
        default_components(n_features) if k is None else _integer("n_components", k, 1)
    )
    options["n_steps"] = (
        _DEFAULT_STEPS[options["dynamics"]] if n_steps is None else _integer("n_steps", n_steps, 1)
    )
    return options


def _integer(name: str, value: Any, low: int) -> int:
    return int(check_scalar(value, name, Integral, min_val=low))


def _real(name: str, value: Any, zero: bool = False) -> float:
    boundaries = "left" if zero else "neither"
    return float(check_scalar(value, name, Real, min_val=0, include_boundaries=boundaries))
