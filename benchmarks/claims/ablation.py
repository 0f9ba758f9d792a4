"""Ablation of the coupled flows: what each part of the two particle systems is worth.

*Fresh* chains start anew before every visit: the conditional particles from the posterior of the
initial probabilistic PCA, the pool from N(0, I), the reference's own coordinates. *No sweeps* takes
the independence proposals from the pool's visits in training, leaving Langevin steps alone. Both
are changes of training only: log Z and the likelihood are always computed by the full machinery.
"""

from __future__ import annotations

from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import MaxNLocator

import sklvebm.training
from sklvebm.langevin import regularised
from sklvebm.particles import JointPool, LangevinParticles
from sklvebm.training import Trainer

from .common import (
    BLUE,
    DATA,
    DENSITIES,
    LOST,
    ORANGE,
    SMALL,
    ceiling,
    column,
    every,
    fit,
    largest_gap,
    lost,
    markdown,
    mean_error,
    n_seeds,
    run,
    score,
    selected,
    shown,
    unique,
)

CAPTION = "Held-out likelihood and energy gap of each variant; fresh chains in orange."
FULL = {"names": ("moons", "wine"), "seeds": range(3), "params": {"max_iter": 1000}}
QUICK = {"names": ("wine",), "seeds": range(1), "params": SMALL}


class FreshParticles(LangevinParticles):
    """Conditional particles that restart from N(``guess``, L Lᵀ) before every visit."""

    guess: torch.Tensor
    factor: torch.Tensor

    def move(self, rows, log_density):
        loc = self.guess[rows][:, None].expand(-1, self.position.shape[1], -1)
        self.position[rows] = loc + self.noise.normal(loc) @ self.factor.T
        return super().move(rows, log_density)


class FreshPool(JointPool):
    """A pool that restarts from the reference before every visit, all of which then moves."""

    def advance(self, log_tilt, rows=slice(None)):
        self.position = self.noise.normal(self.position)
        super().advance(log_tilt)


class NoSweeps(JointPool):
    """A pool that moves by Metropolis-adjusted Langevin steps alone."""

    def _sweep(self, log_tilt, rows, known):
        pass


class FreshNoSweeps(FreshPool, NoSweeps):
    """Both at once."""


class FreshTrainer(Trainer):
    """Training with conditional particles that restart from the initial PPCA's posterior."""

    def _conditional_flow(self, *, at_modes):
        flow = super()._conditional_flow(at_modes=at_modes)
        flow.__class__ = FreshParticles
        with torch.no_grad():
            flow.guess, covariance = self.energy.reference.linear_posterior(self.rows.x)
        flow.factor = torch.linalg.cholesky(regularised(covariance))
        return flow


FRESH = {"Trainer": FreshTrainer, "JointPool": FreshPool}
# Name: parameters of the estimator, and what replaces parts of ``sklvebm.training``.
VARIANTS = {
    "tilted, MALA, sweeps, persistent (default)": ({}, {}),
    "tilted, MALA, sweeps, fresh": ({}, FRESH),
    "tilted, MALA, no sweeps, persistent": ({}, {"JointPool": NoSweeps}),
    "tilted, MALA, no sweeps, fresh": ({}, FRESH | {"JointPool": FreshNoSweeps}),
    "tilted, ULA, persistent": ({"dynamics": "ula"}, {}),
    "tilted, ULA, fresh": ({"dynamics": "ula"}, FRESH),
    "free, MALA, sweeps, persistent": ({"energy": "free"}, {}),
    "free, ULA, persistent (the paper's)": ({"energy": "free", "dynamics": "ula"}, {}),
    "free, ULA, fresh": ({"energy": "free", "dynamics": "ula"}, FRESH),
}


def measure_fit(*, data: str, variant: str, seed: int, params: dict) -> dict:
    X_train, X_test = DATA[data](seed)
    options, parts = VARIANTS[variant]
    with patch.multiple(sklvebm.training, **({"JointPool": JointPool} | parts)):
        found = fit(X_train, random_state=seed, **options, **params)
    row = {"score": score(found, X_test), "n_recoveries": found.n_recoveries}
    if found.model is None:
        return row | {"gap": None, "largest_gap": None}
    return row | {
        # Nothing where the tilt was left out in the end.
        "gap": found.model.diagnostics_.get("energy_gap_mean"),
        "largest_gap": largest_gap(found.model.history_),
    }


def measure(*, names, seeds, params, n_jobs):
    cells = every(data=names, variant=VARIANTS, seed=seeds, params=[params])
    return run(measure_fit, cells, n_jobs)


def table(rows):
    lines = []
    for data, variant in unique(rows, "data", "variant"):
        mine = selected(rows, data=data, variant=variant)
        values = [shown(column(mine, name)) for name in ("score", "gap", "largest_gap")]
        lines.append([data, variant, *values, lost(mine)])
    header = [
        "data",
        "energy, dynamics, chains",
        "held-out nats",
        "mean energy gap, nats",
        "largest",
        LOST,
    ]
    note = (
        f"Means ± standard errors, {n_seeds(rows)}, max_iter={rows[0]['params']['max_iter']}; of "
        f"the fits that did not diverge. Minus the entropy of moons is {ceiling('moons'):.3f}."
    )
    return markdown(header, lines, note)


def picture(rows, path):
    names = [name for (name,) in unique(rows, "data")]
    figure, axes = plt.subplots(
        1, 2 * len(names), figsize=(7 * len(names), 4), layout="constrained", sharey=True
    )
    for i, data in enumerate(names):
        pair = axes[2 * i : 2 * i + 2]
        _panel(pair[0], selected(rows, data=data), "score")
        _panel(pair[1], selected(rows, data=data), "gap")
        if data in DENSITIES:
            pair[0].axvline(ceiling(data), color="black", linewidth=1)
        pair[0].set_xlabel("held-out log-likelihood, nats per row")
        pair[1].axvline(0, color="black", linewidth=1)
        pair[1].set_xlabel("mean energy gap, nats")
        for axis in pair:
            axis.set_title(data, fontsize=10)
    axes[0].set_yticks(range(len(VARIANTS)), labels=VARIANTS, fontsize=8)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)


def _panel(axis, rows, name):
    """Every seed, and the mean with its standard error."""
    for i, variant in enumerate(VARIANTS):
        values = column(selected(rows, variant=variant), name)
        colour = ORANGE if "fresh" in variant else BLUE
        mean, error = mean_error(values)
        axis.plot(values, [i - 0.15] * len(values), "o", color=colour, markersize=3, alpha=0.5)
        axis.errorbar([mean], [i + 0.1], xerr=[np.nan_to_num(error)], fmt="D", color=colour)
    axis.grid(axis="x", alpha=0.3)
    axis.xaxis.set_major_locator(MaxNLocator(4))
