"""Sensitivity to the step size and to the initialisation: held-out likelihood over a grid.

One split of each data set; ``random_state`` alone varies, which draws the initial networks, the
particles, the pool, the validation rows and the batches.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from .common import (
    DATA,
    DENSITIES,
    DYNAMICS,
    LINES,
    LOST,
    SMALL,
    ceiling,
    column,
    every,
    fit,
    lost,
    markdown,
    n_seeds,
    run,
    score,
    selected,
    shown,
    unique,
)

CAPTION = "Held-out likelihood against step size, a dot per seed."
FULL = {
    "names": ("digits", "moons"),
    "step_sizes": ("auto", 0.01, 0.03, 0.1, 0.3, 1.0),
    "seeds": range(5),
    "params": {"max_iter": 400},
}
QUICK = {
    "names": ("moons",),
    "step_sizes": ("auto", 1.0),
    "seeds": range(1),
    "params": SMALL,
}
SPLIT = 0


def measure_fit(*, data: str, dynamics: str, step_size, seed: int, params: dict) -> dict:
    X_train, X_test = DATA[data](SPLIT)
    found = fit(X_train, dynamics=dynamics, step_size=step_size, random_state=seed, **params)
    diagnostics = {} if found.model is None else found.model.diagnostics_
    return {
        "score": score(found, X_test),
        "n_recoveries": found.n_recoveries,
        "acceptance": diagnostics.get("acceptance_conditional"),
    }


def measure(*, names, step_sizes, seeds, params, n_jobs):
    cells = every(data=names, dynamics=DYNAMICS, step_size=step_sizes, seed=seeds, params=[params])
    return run(measure_fit, cells, n_jobs)


def table(rows):
    lines = []
    for data, dynamics, step in unique(rows, "data", "dynamics", "step_size"):
        mine = selected(rows, data=data, dynamics=dynamics, step_size=step)
        scores = column(mine, "score")
        span = f"{scores.min():.2f} to {scores.max():.2f}" if len(scores) else ""
        acceptance = shown(column(mine, "acceptance"))
        lines.append([data, dynamics, str(step), shown(scores), span, acceptance, lost(mine)])
    header = [
        "data",
        "dynamics",
        "step size",
        "held-out nats",
        "lowest to highest seed",
        "acceptance, conditional",
        LOST,
    ]
    note = (
        f"One split, {n_seeds(rows)}, max_iter={rows[0]['params']['max_iter']}. Means ± standard "
        "errors of the fits that did not diverge."
    )
    return markdown(header, lines, note)


def picture(rows, path):
    names = [name for (name,) in unique(rows, "data")]
    steps = [step for (step,) in unique(rows, "step_size")]
    figure, axes = plt.subplots(
        1, len(names), figsize=(6 * len(names), 4.2), layout="constrained", squeeze=False
    )
    for axis, data in zip(axes[0], names, strict=True):
        for shift, (dynamics, colour) in zip((-0.1, 0.1), DYNAMICS.items(), strict=True):
            _series(axis, selected(rows, data=data, dynamics=dynamics), steps, shift, colour)
        if data in DENSITIES:
            axis.axhline(ceiling(data), color="black", linewidth=1, label="minus the entropy")
        axis.set_title(data)
        axis.set_xticks(range(len(steps)), labels=steps)
        axis.set_xlabel("step size")
        axis.set_ylabel("held-out log-likelihood, nats per row")
        axis.legend(fontsize=8, loc="center left")
    figure.savefig(path, dpi=110)


def _series(axis, rows, steps, shift, colour):
    """A dot per seed, a line through the means, a cross at the bottom for fits that diverged."""
    means = []
    for i, step in enumerate(steps):
        scores = column(selected(rows, step_size=step), "score")
        means.append(scores.mean() if len(scores) else np.nan)
        axis.plot(np.full(len(scores), i + shift), scores, "o", color=colour, markersize=4)
        if len(scores) < len(selected(rows, step_size=step)):
            transform = axis.get_xaxis_transform()
            axis.plot([i + shift], [0.03], "x", color=colour, transform=transform)
    places, dynamics = np.arange(len(steps)) + shift, rows[0]["dynamics"]
    axis.plot(places, means, LINES[dynamics], color=colour, linewidth=1, label=dynamics)
