"""What the claims share: data, fits that may fail, means with their errors, colours."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from digits import load_split
from joblib import Parallel, delayed
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sklvebm import LVEBMEstimator
from sklvebm.datasets import Moons, eight_gaussians
from sklvebm.saddle import DivergenceError

matplotlib.use("Agg")

# Okabe and Ito's: told apart without colour vision, and in grey by their lightness.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7F7F7F"
DYNAMICS = {"mala": BLUE, "ula": ORANGE}
LINES = {"mala": "-", "ula": "--"}
MOONS, EIGHT = Moons(), eight_gaussians()
N_TRAIN, N_TEST = 2000, 1000


def _digits(seed):
    return load_split(seed)[:2]


def _wine(seed):
    parts = train_test_split(load_wine().data, test_size=0.2, random_state=seed)
    scaler = StandardScaler().fit(parts[0])
    return [scaler.transform(part) for part in parts]


def _planar(density):
    def draw(seed):
        X_train = density.sample(N_TRAIN, random_state=seed)
        return X_train, density.sample(N_TEST, random_state=seed + 10_000)

    return draw


# Each gives training and test rows of a seed. Latents are the estimator's default everywhere.
DATA: dict[str, Callable] = {
    "digits": _digits,
    "wine": _wine,
    "moons": _planar(MOONS),
    "8 gaussians": _planar(EIGHT),
}
DENSITIES = {"moons": MOONS, "8 gaussians": EIGHT}
# Of the estimator, for runs that show whether a script works and nothing else.
SMALL = {"max_iter": 40, "pool_size": 256}


@cache
def ceiling(name: str) -> float:
    """Minus the entropy of a planar set, in nats: no honest mean log-likelihood is above it."""
    return -DENSITIES[name].entropy()[0]


class Fit(NamedTuple):
    """A fitted model, None where training diverged, and how often it returned to an older state."""

    model: LVEBMEstimator | None
    n_recoveries: int


def fit(X, **params) -> Fit:
    """Fit the estimator; a divergence is an outcome here, not an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = LVEBMEstimator(**params).fit(X)
        except DivergenceError:
            model = None
    return Fit(model, sum("stage diverged" in str(w.message) for w in caught))


def score(found: Fit, X) -> float | None:
    """Held-out mean log-density in nats per row; in single precision, which halves the time."""
    return None if found.model is None else found.model.score(X.astype(np.float32))


def tilt_rows(history: list[dict]) -> list[dict]:
    """Entries of the stage that has a pool: only these have an energy gap and a joint flow."""
    return [row for row in history if row["stage"] == "tilt"]


def largest_gap(history: list[dict]) -> float | None:
    """Largest absolute energy gap at the evaluations, in nats."""
    gaps = [row["energy_gap"] for row in tilt_rows(history)]
    return max((abs(gap) for gap in gaps if gap is not None and gap == gap), default=None)


def every(**axes) -> list[dict]:
    """A cell for each combination of the values given by name, the last one varying fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def run(measure: Callable, cells: list[dict], n_jobs: int) -> list[dict]:
    """``measure(**cell)`` of every cell, said aloud as they come in."""
    done = []
    work = Parallel(n_jobs, return_as="generator")
    found = work(delayed(_on_one_thread)(measure, cell) for cell in cells)
    for cell, row in zip(cells, found, strict=True):
        done.append(cell | row)
        print(", ".join(f"{name} {value}" for name, value in cell.items()), flush=True)
    return done


def _on_one_thread(measure: Callable, cell: dict) -> dict:
    torch.set_num_threads(1)
    return measure(**cell)


def column(rows: list[dict], name: str) -> np.ndarray:
    """Values of ``name`` in ``rows``, without those that are missing."""
    values = [row[name] for row in rows]
    return np.array([value for value in values if value is not None], float)


def mean_error(values) -> tuple[float, float]:
    """Mean and its standard error; nan where too few values have them."""
    values = np.asarray(values, float)
    if len(values) == 0:
        return np.nan, np.nan
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def shown(values, digits: int = 2) -> str:
    """Mean ± standard error."""
    mean, error = mean_error(values)
    if np.isnan(mean):
        return ""
    tail = "" if np.isnan(error) else f" ± {error:.{digits}f}"
    return f"{mean:.{digits}f}{tail}"


def markdown(header: list[str], rows: list[list[str]], *notes: str) -> str:
    """A table, with lines of text below."""
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n\n".join([text, *notes])


def selected(rows: list[dict], **where) -> list[dict]:
    """Rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


def unique(rows: list[dict], *names: str) -> list[tuple]:
    """Combinations of the values of ``names``, in the order they first appear."""
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))


def lost(rows: list[dict]) -> str:
    """How often training returned to an older state, and how many fits diverged for good."""
    n_diverged = sum(row["score"] is None for row in rows)
    return f"{sum(row['n_recoveries'] for row in rows)} / {n_diverged}"


LOST = "returns to an older state / diverged fits"


def n_seeds(rows: list[dict]) -> str:
    """How many seeds are behind ``rows``."""
    n = len(unique(rows, "seed"))
    return f"{n} seed" + "s" * (n != 1)
