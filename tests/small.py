"""Estimators that train for a moment: enough for every contract but quality."""

from sklvebm import FreeEnergy, LVEBMEstimator, TiltedEnergy

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
