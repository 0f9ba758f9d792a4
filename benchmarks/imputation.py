"""Filling in missing entries: error and coverage against scikit-learn's imputers.

Run ``python benchmarks/imputation.py`` (about fifteen minutes). Half of the entries of a
standardised table are removed at random; the table is fitted as it is and filled in. It prints the
table, writes ``benchmarks/results/imputation.json`` and puts the table into ``docs/missing.md``.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import numpy as np
from digits import ROOT, insert, machine
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler
from tables import TABLES

from sklvebm import LVEBMEstimator

TABLE_NAMES = ("breast cancer", "wine red", "wine white")
N_SEEDS, N_DRAWS, SHARE = 3, 100, 0.5
PEERS = {
    "IterativeImputer": lambda seed: IterativeImputer(random_state=seed),
    "KNNImputer": lambda seed: KNNImputer(n_neighbors=10),
    "mean": lambda seed: SimpleImputer(),
}


def holed(name, seed):
    """The standardised table, and the same with half of its entries missing at random."""
    X = StandardScaler().fit_transform(TABLES[name].draw(seed)[0])
    holes = np.random.default_rng(seed).uniform(size=X.shape) < SHARE
    return X, np.where(holes, np.nan, X), holes


def rmse(found, X, holes):
    """Root mean squared error of what was missing, in standard deviations of a feature."""
    return float(np.sqrt(np.mean((found - X)[holes] ** 2)))


def measure(name, seed):
    """Errors of all imputers on one table, the coverage of ours, and its seconds."""
    X, holed_X, holes = holed(name, seed)
    start = time.perf_counter()
    model = LVEBMEstimator(random_state=seed).fit(holed_X)
    fit_seconds = time.perf_counter() - start
    found = {"sklvebm": rmse(model.impute(holed_X), X, holes), "fit_seconds": fit_seconds}
    draws = model.impute(holed_X, n_samples=N_DRAWS, random_state=seed)
    # The law of a draw's rank: 90 % lie between the quantiles at 5 and 95 of 101.
    low, high = np.quantile(draws, [0.05, 0.95], axis=0, method="weibull")
    found["coverage"] = float(np.mean(((low <= X) & (high >= X))[holes]))
    found["seconds"] = time.perf_counter() - start
    for peer, build in PEERS.items():
        found[peer] = rmse(build(seed).fit_transform(holed_X), X, holes)
    return found


def table_of(results, note):
    """Markdown: means over the seeds ± their standard errors."""
    names = ("sklvebm", *PEERS)
    lines = [
        "| table | " + " | ".join(names) + " | cover of 90 % intervals | "
        "seconds: fit; fit and 100 draws |",
        "|---" * (len(names) + 3) + "|",
    ]
    for table, seeds in results.items():

        def cell(key, seeds=seeds):
            values = np.array([found[key] for found in seeds.values()])
            if len(values) == 1:
                return f"{values[0]:.3f}"
            return f"{values.mean():.3f} ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}"

        seconds = [np.mean([f[key] for f in seeds.values()]) for key in ("fit_seconds", "seconds")]
        cells = [cell(name) for name in names] + [cell("coverage")]
        cells.append(f"{seconds[0]:.0f}, {seconds[1]:.0f}")
        lines.append(f"| {table} | " + " | ".join(cells) + " |")
    n_seeds = sorted({len(seeds) for seeds in results.values()})
    lines += ["", f"Seeds per table: {', '.join(map(str, n_seeds))}. {note}".rstrip()]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", default=TABLE_NAMES, choices=TABLE_NAMES)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(N_SEEDS)))
    parser.add_argument("--note", help="a line below the table")
    parser.add_argument("--redraw", action="store_true", help="write the page from the results")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    path = ROOT / "benchmarks" / "results" / "imputation.json"
    content = json.loads(path.read_text()) if path.exists() else {"results": {}}
    if arguments.note is not None:
        content["note"] = arguments.note
        path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    if not arguments.redraw:
        for seed in arguments.seeds:
            for name in arguments.tables:
                content["results"].setdefault(name, {})[str(seed)] = measure(name, seed)
                print(name, seed, content["results"][name][str(seed)], flush=True)
                content["machine"] = machine()
                path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    table = table_of(content["results"], content.get("note", ""))
    print(table)
    insert(ROOT / "docs" / "missing.md", "imputation", table)


if __name__ == "__main__":
    main()
