"""Convergence on two moons: density and samples after more and more updates, against the truth.

Each column is a fit of its own, with ``max_iter`` set to its number of updates: the learning rate
falls to zero within ``max_iter``, so that the state of a longer fit at that time is another.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from .common import (
    BLUE,
    DATA,
    MOONS,
    ceiling,
    column,
    fit,
    markdown,
    mean_error,
    n_seeds,
    run,
    score,
    selected,
    shown,
    unique,
)

CAPTION = "Density and samples after more and more updates; held-out likelihood and truth."
FULL = {"seeds": range(3), "updates": (50, 200, 1000, 3000), "n_axis": 72, "params": {}}
QUICK = {
    "seeds": range(1),
    "updates": (20, 40),
    "n_axis": 24,
    "params": {"pool_size": 256},
}
# The picture's window, and the samples it shows.
WINDOW, N_SHOWN = ((-1.6, 2.6), (-1.1, 1.6)), 1000


def grid(n):
    """Points ``(n², 2)`` of the window, row by row from below."""
    axes = [np.linspace(*bounds, n) for bounds in WINDOW]
    return np.stack([a.ravel() for a in np.meshgrid(*axes)], 1)


def measure_fit(*, updates: int, seed: int, n_axis: int, params: dict, pictured: bool) -> dict:
    X_train, X_test = DATA["moons"](seed)
    found = fit(X_train, max_iter=updates, random_state=seed, **params)
    row = {
        "score": score(found, X_test),
        "truth": float(MOONS.log_prob(X_test).mean()),
        "n_iter": found.model.n_iter_,
    }
    if pictured:
        log_p = found.model.score_samples(grid(n_axis).astype(np.float32))
        row["density"] = np.round(np.exp(log_p), 3).tolist()
        row["samples"] = np.round(found.model.sample(N_SHOWN, random_state=seed), 3).tolist()
    return row


def measure(*, seeds, updates, n_axis, params, n_jobs):
    """The first seed's densities and samples are kept for the picture."""
    cells = [
        {
            "updates": n,
            "seed": seed,
            "n_axis": n_axis,
            "params": params,
            "pictured": seed == seeds[0],
        }
        for n in updates
        for seed in seeds
    ]
    return run(measure_fit, cells, n_jobs)


def table(rows):
    lines = []
    for (updates,) in unique(rows, "updates"):
        mine = selected(rows, updates=updates)
        missing = [row["truth"] - row["score"] for row in mine]
        lines.append([str(updates), shown(column(mine, "score"), 3), shown(missing, 3)])
    truth = shown([row["truth"] for row in selected(rows, updates=rows[0]["updates"])], 3)
    header = ["updates (`max_iter`)", "held-out nats", "true log-density less that"]
    note = (
        f"Means ± standard errors, {n_seeds(rows)}. The true log-density of the same rows is "
        f"{truth}; minus the entropy {ceiling('moons'):.3f}."
    )
    return markdown(header, lines, note)


# -- the picture -----------------------------------------------------------------------------------


def picture(rows, path):
    drawn = selected(rows, pictured=True)
    figure, axes = plt.subplots(
        2, len(drawn) + 2, figsize=(2.9 * (len(drawn) + 2), 5), layout="constrained"
    )
    truth = np.exp(MOONS.log_prob(grid(drawn[0]["n_axis"])))
    data = DATA["moons"](drawn[0]["seed"])[0][:N_SHOWN]
    _column(axes[:, 0], truth, data, "data", truth.max())
    for pair, row in zip(axes[:, 1:-1].T, drawn, strict=True):
        title = f"{row['updates']:,} updates"
        image = _column(pair, np.array(row["density"]), row["samples"], title, truth.max())
    figure.colorbar(image, ax=axes[0, -2], label="density", shrink=0.8)
    axes[0, 0].set_ylabel("density")
    axes[1, 0].set_ylabel("rows, samples")
    for axis in axes[:, -1]:
        axis.remove()
    _curve(figure.add_subplot(axes[0, 0].get_gridspec()[:, -1]), rows)
    figure.savefig(path, dpi=110)


def _column(axes, density, points, title, largest):
    """A density over points drawn from it; all densities share one scale."""
    n = round(len(density) ** 0.5)
    image = axes[0].imshow(
        density.reshape(n, n),
        origin="lower",
        extent=(*WINDOW[0], *WINDOW[1]),
        vmin=0,
        vmax=largest,
        cmap="cividis",
    )
    axes[1].plot(*np.array(points).T, ".", color=BLUE, markersize=1.5)
    axes[1].set(xlim=WINDOW[0], ylim=WINDOW[1], aspect="equal")
    axes[0].set_title(title, fontsize=10)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    return image


def _curve(axis, rows):
    updates = [n for (n,) in unique(rows, "updates")]
    scores = [mean_error(column(selected(rows, updates=n), "score")) for n in updates]
    means, errors = np.nan_to_num(np.array(scores)).T
    axis.errorbar(
        updates, means, yerr=errors, fmt="o-", markersize=4, color=BLUE, capsize=3, label="model"
    )
    truth = np.mean([row["truth"] for row in rows])
    axis.axhline(truth, color="black", linewidth=1, label="true density")
    axis.set(xscale="log", xlabel="updates", ylabel="held-out log-likelihood, nats per row")
    axis.set_xticks(updates, labels=updates)
    axis.minorticks_off()
    axis.legend(fontsize=8)
