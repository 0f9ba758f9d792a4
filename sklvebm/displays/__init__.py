"""Plots of a fitted estimator, in scikit-learn's display convention.

A display holds plain numpy arrays; ``from_estimator`` computes and draws them, ``plot`` draws them
again. Drawing needs matplotlib (the extra ``plot``). Names are imported when first used:
``import sklvebm.displays`` loads neither matplotlib nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "CalibrationDisplay": "calibration",
    "EnergyDisplay": "energy",
    "LatentDisplay": "latent",
    "SampleDisplay": "sample",
    "TrainingDisplay": "training",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
