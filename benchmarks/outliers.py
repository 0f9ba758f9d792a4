"""Outliers by log-density: ROC-AUC beside the detectors of scikit-learn, defaults throughout.

Run ``python benchmarks/outliers.py`` (about seven minutes on one core; what is done is skipped).
Every detector is fitted to normal rows alone and ranks held-out normal rows and anomalies. Results
go to ``benchmarks/results/outliers.json``, tables into ``docs/outliers.md`` (``outliers_page.py``);
``--redraw`` writes the page from the results that are there.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import sklearn.datasets
from digits import ROOT, machine
from outliers_page import OURS, TRUTH, redraw
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from tables import cleaned, dequantised

from sklvebm import datasets

RESULTS = ROOT / "benchmarks" / "results" / "outliers.json"
SEEDS = (0, 1, 2)
# Share of the normal rows that a detector is fitted to; test rows of either sort, at most.
TRAIN_SHARE, MAX_TEST = 0.7, 300
N_PLANAR = 1000
COMPONENTS = (1, 2, 5, 10)


class Case(NamedTuple):
    """A table with anomalies: ``draw(seed)`` gives all rows and which of them are anomalies.

    ``density`` is the law of the normal rows, where it is known.
    """

    name: str
    draw: Callable[[int], tuple[np.ndarray, np.ndarray]]
    density: datasets.KnownDensity | None = None


def labelled(load, is_anomalous):
    """Rows of a table of scikit-learn; ``is_anomalous(y, seed)`` says which are anomalies."""

    def draw(seed):
        X, y = cleaned(*load(return_X_y=True))
        return X, is_anomalous(y, seed)

    return draw


def planar(density):
    """Draws, and as many uniform rows on their box, a tenth of its width added on every side."""

    def draw(seed):
        rng = np.random.default_rng(seed)
        normal = density.sample(N_PLANAR, random_state=seed)
        low, width = normal.min(0), np.ptp(normal, axis=0)
        uniform = low - 0.1 * width + 1.2 * width * rng.uniform(size=(MAX_TEST, 2))
        return np.concatenate([normal, uniform]), np.arange(N_PLANAR + MAX_TEST) >= N_PLANAR

    return draw


CASES = {
    case.name: case
    for case in (
        Case(
            "breast cancer: malignant",
            labelled(sklearn.datasets.load_breast_cancer, lambda y, seed: y == 0),
        ),
        Case(
            "wine: the last of three",
            labelled(sklearn.datasets.load_wine, lambda y, seed: y == 2),
        ),
        Case(
            "digits: one is not",
            labelled(sklearn.datasets.load_digits, lambda y, seed: y == seed),
        ),
        Case("moons: uniform", planar(datasets.Moons()), datasets.Moons()),
        Case(
            "digits: one is normal",
            labelled(sklearn.datasets.load_digits, lambda y, seed: y != seed),
        ),
    )
}


def indices(anomalous, seed):
    """Rows to train on, which are normal, and rows to test on."""
    rng = np.random.default_rng(seed)
    normal, odd = (rng.permutation(np.flatnonzero(part)) for part in (~anomalous, anomalous))
    train, held_out = np.split(normal, [round(TRAIN_SHARE * len(normal))])
    return train, np.concatenate([held_out[:MAX_TEST], odd[:MAX_TEST]])


def standardised(X, train, test):
    """Both parts in the units of the training rows."""
    scaler = StandardScaler().fit(X[train])
    return scaler.transform(X[train]), scaler.transform(X[test])


class Peer(NamedTuple):
    """``build(rows, seed)``; whether it is a density, and whether it has an offset of its own."""

    build: Callable[[np.ndarray, int], Any]
    is_density: bool = True
    has_auto: bool = True


def ours(X, seed, **params):
    from sklvebm import LVEBMEstimator, LVEBMOutlierDetector

    return LVEBMOutlierDetector(LVEBMEstimator(**params), random_state=seed)


def mixture(X, seed):
    """The mixture of the lowest BIC on the training rows, as the density of our detector."""
    from sklearn.mixture import GaussianMixture

    from sklvebm import LVEBMOutlierDetector

    found = [GaussianMixture(k, random_state=seed).fit(X) for k in COMPONENTS]
    return LVEBMOutlierDetector(min(found, key=lambda m: m.bic(X)), random_state=seed)


def forest(X, seed):
    from sklearn.ensemble import IsolationForest

    return IsolationForest(random_state=seed)


def factor(X, seed):
    from sklearn.neighbors import LocalOutlierFactor

    return LocalOutlierFactor(novelty=True)


def envelope(X, seed):
    from sklearn.covariance import EllipticEnvelope

    return EllipticEnvelope(random_state=seed)


PEERS = {
    OURS: Peer(ours),
    "sklvebm, linear": Peer(lambda X, seed: ours(X, seed, energy="linear")),
    "GaussianMixture": Peer(mixture),
    "EllipticEnvelope": Peer(envelope, has_auto=False),
    "IsolationForest": Peer(forest, is_density=False),
    "LocalOutlierFactor": Peer(factor, is_density=False),
}


def ranked(scores, anomalous):
    """Figures of a ranking; anomalies are the positives, and should score low."""
    return {
        "roc_auc": roc_auc_score(anomalous, -scores),
        "average_precision": average_precision_score(anomalous, -scores),
    }


def measure(peer, train, test, anomalous, seed):
    """One detector on one split."""
    start = time.perf_counter()
    detector = peer.build(train, seed).fit(train)
    fitted = time.perf_counter()
    scores = detector.score_samples(test)
    cell = ranked(scores, anomalous) | {
        "fit_s": fitted - start,
        "score_s": time.perf_counter() - fitted,
    }
    if peer.has_auto:
        # What predict does, without scoring the rows again.
        flagged = scores < detector.offset_
        cell["flagged_normal"] = float(flagged[~anomalous].mean())
        cell["flagged_anomalous"] = float(flagged[anomalous].mean())
    return cell


def measure_split(case, seed):
    """Every detector on one split of a case.

    Densities are given columns that lie on a grid with uniform noise of its width: there is no
    density on a grid. The others need no noise and are given none.
    """
    X, anomalous = case.draw(seed)
    train, test = indices(anomalous, seed)
    plain = standardised(X, train, test)
    noisy = standardised(dequantised(X, np.random.default_rng(seed)), train, test)
    cells = {
        name: measure(peer, *(noisy if peer.is_density else plain), anomalous[test], seed)
        for name, peer in PEERS.items()
    }
    if case.density is not None:
        cells[TRUTH] = ranked(case.density.log_prob(X[test]), anomalous[test])
    return {
        "case": case.name,
        "seed": seed,
        "n_features": X.shape[1],
        "n_train": len(train),
        "n_normal": int((~anomalous[test]).sum()),
        "n_anomalous": int(anomalous[test].sum()),
        "cells": cells,
    }


def measure_all(seeds):
    """Every split that is not there yet; results are written after each."""
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    done = {(row["case"], row["seed"]) for row in content["rows"]}
    for case in CASES.values():
        for seed in seeds:
            if (case.name, seed) in done:
                continue
            content["rows"].append(measure_split(case, seed))
            print(json.dumps(content["rows"][-1]), flush=True)
            save(content | {"machine": machine()})


def save(content):
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--redraw", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--note", help="what a reader of the seconds should know; kept")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if not arguments.redraw:
        measure_all(arguments.seeds)
    content = json.loads(RESULTS.read_text())
    if arguments.note is not None:
        content["note"] = arguments.note
        save(content)
    redraw(content)


if __name__ == "__main__":
    main()
