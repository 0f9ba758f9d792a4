"""Can the score be trusted? Fitted densities against densities that are known exactly.

Every energy is fitted to draws from known densities and held to three facts. On fresh rows the mean
score does not exceed the mean true log-density by more than chance: twelve densities. In one and
two dimensions its exponential integrates to one: six of them. In any dimension, Bennett's
acceptance ratio between the known density and the model's draws says what it integrates to, as
sharply as the two overlap.

Run ``python benchmarks/trust.py`` (about forty minutes on two cores; a cell at a time,
and resumed where it stopped). It writes ``benchmarks/results/trust.json``;
``benchmarks/trust_page.py`` makes ``docs/trust.md`` from it.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import numpy as np
from digits import ROOT, machine
from joblib import Parallel, delayed

from sklvebm import LVEBMEstimator
from sklvebm.datasets import (
    Checkerboard,
    GaussianMixtureDensity,
    Moons,
    MultivariateT,
    PhiFourChain,
    Pinwheel,
    Rings,
    twonorm,
)
from sklvebm.energies import FreeEnergy, LinearEnergy, TiltedEnergy
from sklvebm.partition import bennett

RESULTS = ROOT / "benchmarks" / "results" / "trust.json"
N_TRAIN, N_TEST, MAX_ITER = 1000, 1000, 1000
ENERGIES = {
    "tilted": TiltedEnergy(),
    "isotropic": TiltedEnergy(noise="isotropic"),
    "free": FreeEnergy(),
    "linear": LinearEnergy(),
}


def _correlated(d):
    factor = np.random.RandomState(0).standard_normal((d, d))
    return factor @ factor.T / d + 0.2 * np.eye(d)


def densities():
    mixture = GaussianMixtureDensity.random
    return {
        "Gaussian, 5-d": GaussianMixtureDensity([1.0], np.ones((1, 5)), [_correlated(5)]),
        "mixture, 1-d": GaussianMixtureDensity(
            [0.3, 0.5, 0.2], [[-2.0], [0.5], [3.0]], [[[0.1]], [[0.4]], [[0.05]]]
        ),
        "mixture, 2-d": mixture(4, 2, random_state=0),
        "mixture, 10-d": mixture(5, 10, random_state=0),
        "mixture, 50-d": mixture(3, 50, spread=1.0, random_state=0),
        "moons": Moons(0.1),
        "rings": Rings(),
        "checkerboard": Checkerboard(),
        "pinwheel": Pinwheel(),
        "Student-t(3), 5-d": MultivariateT(_correlated(5), 3.0),
        "twonorm, 20-d": twonorm(20),
        "phi-four chain, 16-d": PhiFourChain(16),
    }


def integral(model, X):
    """∫ exp(score_samples) by the trapezoid rule: finely where the data are, coarsely around.

    Axes are in standard deviations of the data.
    """
    d = X.shape[1]
    reach, inner, fine, coarse = 8.0, 3.0, 0.1, 0.4
    loc, scale = X.mean(0), X.std(0)
    total = 0.0
    for spacing, bound, hole in ((fine, inner, 0.0), (coarse, reach, inner)):
        axis = np.arange(-bound + spacing / 2, bound, spacing)
        points = np.stack([a.ravel() for a in np.meshgrid(*[axis] * d)], 1)
        points = points[np.abs(points).max(1) > hole]
        log_p = model.score_samples((points * scale + loc).astype(np.float32))
        total += float(np.exp(log_p).sum() * np.prod(spacing * scale))
    return total


def measure(name, energy, seed):
    """One cell: fit, score fresh rows, and integrate where that can be done."""
    density = densities()[name]
    X = density.sample(N_TRAIN, random_state=seed)
    X_test = density.sample(N_TEST, random_state=seed + 10_000)
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = LVEBMEstimator(energy=ENERGIES[energy], max_iter=MAX_ITER, random_state=seed)
        model.fit(X)
    seconds = time.perf_counter() - start
    report = model.score_report(X_test.astype(np.float32))
    excess = report.log_prob - density.log_prob(X_test)
    drawn = model.sample(N_TEST, random_state=seed)
    mass = bennett(excess, model.score_samples(drawn) - density.log_prob(drawn))
    errors = excess.std() / N_TEST**0.5, report.std_rows, report.std_partition
    return {
        "density": name,
        "energy": energy,
        "seed": seed,
        "excess": float(excess.mean()),
        "error": float(np.linalg.norm(errors)),
        "errors": [float(e) for e in errors],
        "score": report.mean,
        "row_std_median": float(np.median(report.row_std)),
        "row_std_max": float(report.row_std.max()),
        "log_partition": model.log_partition_,
        "raised_by": dict(report.raised_by),
        "integral": integral(model, X) if X.shape[1] <= 2 else None,
        "log_mass": mass.value,
        "log_mass_error": float(np.hypot(mass.std, np.hypot(*errors[1:]))),
        "overlap": mass.overlap,
        "diagnostics": model.diagnostics_,
        "warnings": [str(w.message) for w in caught],
        "fit_seconds": seconds,
    }


def load():
    return json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else []


def save(cells):
    RESULTS.parent.mkdir(exist_ok=True)
    cells = sorted(cells, key=lambda c: (c["density"], c["energy"], c["seed"]))
    RESULTS.write_text(json.dumps({"machine": machine(), "cells": cells}, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--only", default="", help="densities whose name contains this")
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    arguments = parser.parse_args()
    cells = [] if arguments.dry_run else load()
    done = {(c["density"], c["energy"], c["seed"]) for c in cells}
    todo = [
        (name, energy, seed)
        for seed in arguments.seeds
        for name in densities()
        for energy in ENERGIES
        if arguments.only in name and (name, energy, seed) not in done
    ]
    work = Parallel(arguments.n_jobs, return_as="generator_unordered")
    for cell in work(delayed(measure)(*key) for key in todo):
        cells.append(cell)
        shown = "" if cell["integral"] is None else f", integral {cell['integral']:.4f}"
        print(
            f"{cell['density']}, {cell['energy']}, seed {cell['seed']}: excess "
            f"{cell['excess']:.3f} ± {cell['error']:.3f}{shown}, {cell['fit_seconds']:.0f} s, "
            f"{cell['raised_by']}",
            flush=True,
        )
        if not arguments.dry_run:
            save(cells)


if __name__ == "__main__":
    main()
