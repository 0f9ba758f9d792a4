"""Digits over several seeds: held-out likelihood, latents and seconds against the neighbours.

Run ``python benchmarks/digits.py`` (about three minutes on two cores). It prints the table, writes
``benchmarks/results/digits.json``, and puts the table into ``README.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import FunctionTransformer, StandardScaler

ROOT = Path(__file__).resolve().parent.parent
N_COMPONENTS = 10
# The grid of the comparison, and the covariance floors; 1e-6 is scikit-learn's default.
MIXTURES = (1, 5, 10, 20, 40)
FLOORS = (1e-6, 1e-2, 5e-2, 1e-1)


def load_pixels(seed):
    """80/20 split of the digits: pixel + uniform noise, which makes grey levels a density."""
    X, y = load_digits(return_X_y=True)
    X = X + np.random.default_rng(seed).uniform(size=X.shape)
    return train_test_split(X, y, test_size=0.2, random_state=seed)


def load_split(seed):
    """The same, standardised by the training rows."""
    X_train, X_test, y_train, y_test = load_pixels(seed)
    scaler = StandardScaler().fit(X_train)
    return scaler.transform(X_train), scaler.transform(X_test), y_train, y_test


def latent_accuracy(model, X_train, X_test, y_train, y_test):
    """Accuracy of logistic regression on ``model.transform``."""
    classifier = LogisticRegression(max_iter=5000)
    classifier.fit(model.transform(X_train), y_train)
    return classifier.score(model.transform(X_test), y_test)


def best_mixture(X_train, X_test, floor):
    """Highest held-out score over the grid of components (chosen on the test rows)."""
    scores = {
        n: GaussianMixture(n, reg_covar=floor, random_state=0).fit(X_train).score(X_test)
        for n in MIXTURES
    }
    return max(scores.values())


def measure(seed, **params):
    """One row of the table."""
    from sklvebm import LVEBMEstimator

    data = load_split(seed)
    X_train, X_test = data[:2]
    start = time.perf_counter()
    model = LVEBMEstimator(N_COMPONENTS, random_state=seed, **params).fit(X_train)
    seconds = time.perf_counter() - start
    pca = PCA(N_COMPONENTS).fit(X_train)
    mixtures = {floor: best_mixture(X_train, X_test, floor) for floor in FLOORS}
    return {
        "seed": seed,
        "log_likelihood": model.score(X_test),
        "mixture_default": mixtures[FLOORS[0]],
        "mixture_best_floor": max(mixtures.values()),
        "accuracy": latent_accuracy(model, *data),
        "accuracy_pca": latent_accuracy(pca, *data),
        "accuracy_pixels": latent_accuracy(FunctionTransformer(), *data),
        "accuracy_lda": latent_accuracy(LinearDiscriminantAnalysis().fit(X_train, data[2]), *data),
        "fit_seconds": seconds,
        "log_partition": model.log_partition_,
        "log_partition_std": model.log_partition_std_,
        "log_partition_bounds": model.log_partition_bounds_,
    }


def _processor():
    """The processor by name, where the system tells it; else its kind."""
    path = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", path.read_text(), re.M) if path.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def machine():
    """What the figures were measured on."""
    import sklearn
    import torch

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "scikit-learn": sklearn.__version__,
    }


def table(rows, where):
    """Markdown."""
    lines = [
        "| seed | LVEBM, nats | best mixture, nats | the same, floor tuned | "
        "LVEBM accuracy | PCA accuracy | less PCA, points | all 64 pixels less PCA | "
        "LDA less PCA | fit, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = ("log_likelihood", "mixture_default", "mixture_best_floor")
    for row in [*rows, {k: np.mean([r[k] for r in rows]) for k in (*names, *_REST)}]:
        nats = " | ".join(f"{row[name]:.1f}" for name in names)
        gains = " | ".join(
            f"{100 * (row[name] - row['accuracy_pca']):+.1f}"
            for name in ("accuracy", "accuracy_pixels", "accuracy_lda")
        )
        lines.append(
            f"| {row.get('seed', 'mean')} | {nats} | {row['accuracy']:.3f} | "
            f"{row['accuracy_pca']:.3f} | {gains} | {row['fit_seconds']:.0f} |"
        )
    lines += [
        "",
        f"Python {where['python']}, torch {where['torch']}, scikit-learn "
        f"{where['scikit-learn']}, torch threads: {where['threads']}, {where['processor']}.",
    ]
    return "\n".join(lines)


_REST = ("accuracy", "accuracy_pca", "accuracy_pixels", "accuracy_lda", "fit_seconds")


def insert(path, name, text):
    """Replace what stands between the markers of ``name`` in ``path``."""
    if path.exists():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        path.write_text(pattern.sub(lambda m: m[1] + text + "\n" + m[2], path.read_text()))


def last_line_of(*command, **environment):
    """What the last line that a fresh interpreter prints says, as JSON."""
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for seed in arguments.seeds:
        rows.append(measure(seed))
        print(json.dumps(rows[-1]), flush=True)
    where = machine()
    text = table(rows, where)
    print(text)
    if not arguments.dry_run:
        results = ROOT / "benchmarks" / "results"
        results.mkdir(exist_ok=True)
        content = {"machine": where, "rows": rows}
        (results / "digits.json").write_text(json.dumps(content, indent=1) + "\n")
        insert(ROOT / "README.md", "digits", text)


if __name__ == "__main__":
    main()
