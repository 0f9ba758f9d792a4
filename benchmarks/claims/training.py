"""Stable training and mixing: what the history and the diagnostics of a fit show.

Digits and eight Gaussians (modes that the pool must keep all of), adjusted steps ("mala") and the
paper's unadjusted ones ("ula"). R-hat and ESS are those of the chains at the end of ``fit``, which
are Metropolis-adjusted whatever the dynamics of training.
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
    largest_gap,
    lost,
    markdown,
    n_seeds,
    run,
    score,
    selected,
    shown,
    tilt_rows,
    unique,
)

CAPTION = "Validation likelihood, energy gap and acceptances over training, one curve per seed."
FULL = {"names": ("digits", "8 gaussians"), "seeds": range(3), "params": {}}
QUICK = {"names": ("8 gaussians",), "seeds": range(1), "params": SMALL}
_CONDITIONAL = "acceptance_conditional"
CURVES = {
    "log_likelihood": "validation rows, nats per row",
    "energy_gap": "energy gap, nats",
    _CONDITIONAL: "acceptance, conditional",
    "acceptance_joint": "acceptance, joint",
}


def measure_fit(*, data: str, dynamics: str, seed: int, params: dict) -> dict:
    X_train, X_test = DATA[data](seed)
    found = fit(X_train, dynamics=dynamics, random_state=seed, **params)
    row = {"score": score(found, X_test), "n_recoveries": found.n_recoveries}
    if found.model is None:
        return row | {"converged": False, "history": [], "diagnostics": {}}
    return row | {
        "converged": found.model.converged_,
        "history": in_user_units(found.model.history_, X_train),
        "diagnostics": found.model.diagnostics_,
    }


def in_user_units(history, X):
    """History rows whose log-likelihoods lost the log-Jacobian of the standardisation."""
    jacobian = float(np.log(X.std(0)).sum())
    return [
        {"stage": row["stage"], "n_iter": row["n_iter"]}
        | {name: row[name] - jacobian * (name == "log_likelihood") for name in CURVES}
        for row in history
    ]


def measure(*, names, seeds, params, n_jobs):
    cells = every(data=names, dynamics=DYNAMICS, seed=seeds, params=[params])
    return run(measure_fit, cells, n_jobs)


def table(rows):
    lines = [
        [data, dynamics, *_cells(selected(rows, data=data, dynamics=dynamics))]
        for data, dynamics in unique(rows, "data", "dynamics")
    ]
    header = [
        "data",
        "dynamics",
        "held-out nats",
        "energy gap, mean / largest, nats",
        "acceptance, conditional / joint",
        "R-hat, conditional / joint",
        "ESS, conditional / joint",
        LOST,
    ]
    names = [name for (name,) in unique(rows, "data") if name in DENSITIES]
    ceilings = ", ".join(f"{ceiling(name):.3f} on {name}" for name in names)
    note = f"Means ± standard errors, {n_seeds(rows)}. Minus the entropy is {ceilings}."
    return markdown(header, lines, note)


def _cells(rows) -> list[str]:
    done = [row for row in rows if row["score"] is not None]
    diagnostics = [row["diagnostics"] for row in done]
    gaps = [{"largest": largest_gap(row["history"])} for row in done]

    def pair(name, digits):
        both = (f"{name}_conditional", f"{name}_joint")
        return " / ".join(shown(column(diagnostics, part), digits) for part in both)

    return [
        shown(column(done, "score")),
        " / ".join([shown(column(diagnostics, "energy_gap_mean")), shown(column(gaps, "largest"))]),
        pair("acceptance", 2),
        pair("rhat", 3),
        pair("ess", 0),
        lost(rows),
    ]


def picture(rows, path):
    names = [name for (name,) in unique(rows, "data")]
    figure, axes = plt.subplots(
        len(names),
        len(CURVES),
        figsize=(14, 3 * len(names)),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for line, data in zip(axes, names, strict=True):
        for axis, (name, label) in zip(line, CURVES.items(), strict=True):
            _panel(axis, selected(rows, data=data), name)
            axis.set_title(data, fontsize=9)
            axis.set_ylabel(label)
        if data in DENSITIES:
            line[0].axhline(ceiling(data), color="black", linewidth=1, label="minus the entropy")
    for axis in axes[-1]:
        axis.set_xlabel("parameter updates")
    axes[-1, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _panel(axis, rows, name):
    """A curve a fit; energy gap and joint flow exist in the tilt stage alone."""
    for row in rows:
        history = (
            row["history"]
            if name in ("log_likelihood", _CONDITIONAL)
            else tilt_rows(row["history"])
        )
        points = [(r["n_iter"], r[name]) for r in history if r[name] is not None]
        first = row["seed"] == rows[0]["seed"]
        label = row["dynamics"] if first else None
        axis.plot(
            *np.array(points, float).reshape(-1, 2).T,
            LINES[row["dynamics"]],
            color=DYNAMICS[row["dynamics"]],
            linewidth=1,
            label=label,
        )
