"""sklvebm: latent-variable energy-based models as scikit-learn estimators.

Public names are imported when first used; ``import sklvebm`` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "LVEBMEstimator": "estimator",
    "LVEBMOutlierDetector": "outliers",
    "CustomEnergy": "energies",
    "FreeEnergy": "energies",
    "LinearEnergy": "energies",
    "TiltedEnergy": "energies",
    "ScoreReport": "report",
    "DivergenceError": "saddle",
    "LostRankError": "distributed",
}
_SUBMODULES = ("datasets", "displays", "energies")
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
