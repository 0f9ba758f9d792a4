"""Estimators that train for a moment: enough for every contract but quality."""

from contextlib import contextmanager

import pytest

from sklvebm import FreeEnergy, LVEBMEstimator, TiltedEnergy
from sklvebm.saddle import Saddle

ENERGIES = {"tilted": TiltedEnergy((16,), (8,)), "free": FreeEnergy((16,)), "linear": "linear"}


def quick(energy="tilted", **params):
    """A few updates, once, beside a small pool; ``energy`` may be the name of a small one."""
    known = isinstance(energy, str) and energy in ENERGIES
    short = {
        "max_iter": 20,
        "pool_size": 256,
        "refit": False,
        "smoothing": 0,
        "random_state": 0,
    }
    return LVEBMEstimator(energy=ENERGIES[energy] if known else energy, **short | params)


@contextmanager
def interrupted(monkeypatch, stage, n):
    """The fit inside ends, as by a key, at the ``n``-th update of ``stage``."""
    update, calls = Saddle.update, []

    def stop(self, run):
        calls.append(run.stage.name)
        if calls.count(stage) == n:
            raise KeyboardInterrupt
        return update(self, run)

    with monkeypatch.context() as patch:
        patch.setattr(Saddle, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            yield
